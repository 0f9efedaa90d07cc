"""``llama2cpp pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import hub
from .display import console, one_line, say
from .options import examples

PULL_EXAMPLES = examples("llama2cpp pull smollm2-135m", "llama2cpp pull --list", "llama2cpp pull org/repo:file")


def pull(
    name: Annotated[
        str | None,
        typer.Argument(help="A name of the list, or org/repo, org/repo:file or org/repo:Q4_K_M.", show_default=False),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the names that are known, and what is here.")] = False,
) -> None:
    """Download a model, for the other commands and load() to find by its name."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.table import Table

    from .progress import progress_bar

    if show_list:
        table = Table("name", "model", "licence", "download", "here", box=None)
        for known in hub.KNOWN.values():
            here = "yes" if known.path.is_file() else "no"
            table.add_row(known.name, known.about, known.licence, f"{known.download_bytes / 1e6:.0f} MB", here)
        console().print(table)
        return
    if name is None:
        raise typer.BadParameter("pull needs a name; --list shows those that are known", param_hint="NAME")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task(one_line(name), total=None, visible=name in hub.KNOWN)
        path = hub.pull(name, lambda done, total: bar.update(task, completed=done, total=total))
    say(one_line(str(path)))
