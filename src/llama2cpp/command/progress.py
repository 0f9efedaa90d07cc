"""Progress bars on stderr."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress, ProgressColumn, TaskID

from .display import console


def progress_bar(*columns: ProgressColumn, transient: bool = False) -> Progress:
    """Make a bar that a thread draws anew now and then or, where no thread can be started, each update does.

    Nothing is drawn where stderr is no terminal. Descriptions are to be `display.one_line`, in columns without markup.
    """
    terminal = console(stderr=True)
    terminal.quiet = not terminal.is_terminal
    return _Bar(*columns, console=terminal, transient=transient)


class _Bar(Progress):
    def start(self) -> None:
        try:
            super().start()
        except RuntimeError:  # a limit of threads: the user's or the container's
            self.live.auto_refresh = False

    def update(self, task_id: TaskID, *args: Any, **values: Any) -> None:  # noqa: ANN401, whatever Progress takes
        super().update(task_id, *args, **values)
        if not self.live.auto_refresh:
            self.refresh()
