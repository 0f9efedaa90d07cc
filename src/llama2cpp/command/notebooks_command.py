"""The notebooks of the package, and ``llama2cpp notebooks``, which copies them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.new_files import refuse_existing, write_file
from .display import one_line, say


def notebook_files() -> list[Path]:
    """Find them: in the package where that is installed, at the top of a checkout."""
    here = Path(__file__).resolve()
    found = sorted((here.parents[1] / "notebooks").glob("*.ipynb")) or sorted(
        (here.parents[3] / "notebooks").glob("*.ipynb")
    )
    if not found:
        raise FileNotFoundError("this installation of llama2cpp has no notebooks")
    return found


def notebooks(
    folder: Annotated[
        Path, typer.Argument(help="Where to. It is made if it is not there.", show_default="this one")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace notebooks of the same names.")] = False,
) -> None:
    """Copy the package's notebooks to a folder.

    They need Jupyter and what pip install "llama2cpp[notebook]" brings. The paths of the copies are printed.
    """
    sources = notebook_files()
    for source in sources:  # all before the first is written
        refuse_existing(folder / source.name, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        write_file(folder / source.name, source.read_bytes())
        say(one_line(str(folder / source.name)))
