"""The lines that were typed in a chat, for the next one: in a file that only its user can read."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from .display import one_line

_KEPT = 1000  # lines


def history_path() -> Path | None:
    """Where the lines are kept; None if they are not.

    Returns
    -------
    pathlib.Path or None
        ``LLAMA2CPP_HISTORY`` if that is set, and None if it is set to nothing or to "0"; else ``llama2cpp/history`` in
        ``XDG_STATE_HOME`` or the system's usual folder.

    Examples
    --------
    >>> from llama2cpp.command.line_history import history_path
    >>> path = history_path()
    >>> path is None or path.is_absolute()
    True
    """
    chosen = os.environ.get("LLAMA2CPP_HISTORY")
    if chosen is not None:
        return None if chosen in ("", "0") else Path(chosen).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_STATE_HOME", ""))
    if xdg.is_absolute():
        return xdg / "llama2cpp" / "history"
    try:
        home = Path.home()
    except RuntimeError:  # there is none
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "llama2cpp" / "history"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "llama2cpp" / "history"
    return home / ".local" / "state" / "llama2cpp" / "history"


class LineHistory:
    """A file of lines. Where it cannot be read or written there is no history, and no error.

    Parameters
    ----------
    path : Path or None
        The file, there or not; None for no history.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def lines(self) -> list[str]:
        """Read the last lines, and cut the file where it has become long."""
        if self.path is None:
            return []
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except (OSError, ValueError):
            return []
        lines = [line for line in map(one_line, lines) if line.strip()]
        if len(lines) > 2 * _KEPT:
            self._write(lines[-_KEPT:], os.O_TRUNC)
        return lines[-_KEPT:]

    def add(self, line: str) -> None:
        """Write a line behind the others, at once: a chat may be killed, and another may run beside it."""
        line = one_line(line)
        if line.strip():
            self._write([line], os.O_APPEND)

    def _write(self, lines: list[str], mode: int) -> None:
        if self.path is None:
            return
        text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        with suppress(OSError, ValueError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Not through a link that somebody else has put there, and for nobody else to read.
            flags = os.O_WRONLY | os.O_CREAT | mode | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = os.open(self.path, flags, 0o600)
            try:
                if hasattr(os, "fchmod"):
                    os.fchmod(file, 0o600)
                os.write(file, text)
            finally:
                os.close(file)
