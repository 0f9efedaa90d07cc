"""Files and folders that appear under their name when they are complete, and not earlier.

All writers come here, those of C++ too: `src/cpp/core/file_writer.h` has what is promised.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import _core


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise FileExistsError unless the path is free, or may be replaced."""
    if not force and path.exists():
        raise FileExistsError(f"{path} exists; pass force=True (--force) to replace it")


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there. OSError names it."""
    with new_file(path) as begun:
        begun.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; when the block ends, the file is synced and gets its own. An exception removes it."""
    with _committed(_core.FileWriter(path), path) as begun:
        yield begun


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Do the same for a folder of a model. One that is there is exchanged for it."""
    refuse_replacing(path)
    with _committed(_core.FolderWriter(path), path) as begun:
        yield begun
        refuse_replacing(path)  # what somebody has put there meanwhile


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Give a folder beside a path, which goes when the block ends, or when its process was killed, with the next."""
    writer = _core.FolderWriter(beside)
    try:
        yield writer.temporary_path
    finally:
        writer.close()


@contextmanager
def _committed(writer: _core.FileWriter | _core.FolderWriter, path: Path) -> Iterator[Path]:
    begun = writer.temporary_path
    try:
        yield begun
        writer.commit()
    except OSError as error:
        # It names the target, and not a file that the user has never seen, or none at all.
        ours = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(begun)
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        writer.close()


def refuse_replacing(path: Path) -> None:
    """Raise FileExistsError for what is no folder of a model alone: with it, something else would be lost."""
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is no folder of a model, and is not replaced")
    here = Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise FileExistsError(f"{path} is the folder that this runs in, or above it, and is not replaced")
    names = sorted(entry.name for entry in path.iterdir())
    if names and "config.json" not in names:
        raise FileExistsError(f"{path} is no folder of a model, and is not replaced")
    for name in names:
        if name == _TEMPLATES and all(file.suffix == ".jinja" for file in (path / name).glob("*")):
            continue
        known = any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_A_MODEL)
        if not known or not (path / name).is_file():
            raise FileExistsError(f"{path} has {name}, which is not written again: it is not replaced")


_TEMPLATES = "additional_chat_templates"  # the one folder in a model's

# Files that an export to a folder writes, or that other tools put there for the same model.
_OF_A_MODEL = (
    "*config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def write_array(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array's bytes. Its `tofile` may pass over a full disk where they are few; this raises OSError."""
    file.write(array.reshape(-1).view(np.uint8).data)
