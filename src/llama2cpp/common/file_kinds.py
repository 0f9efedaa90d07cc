"""What a file is that cannot be read as what it should be: a Git LFS pointer, or a page that a server sent instead."""

from __future__ import annotations

from pathlib import Path

from .. import _core

_BYTES = 512  # more of a file makes no difference


def stand_in(path: Path) -> str:
    """Say what stands in the place of a file that could not be read; empty where its first bytes do not tell."""
    if not path.is_file():  # a pipe would wait for its writer
        return ""
    try:
        with path.open("rb") as file:
            return _core.find_stand_in(file.read(_BYTES))
    except OSError:
        return ""
