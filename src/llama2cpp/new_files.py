"""Files and folders that appear under their name when they are complete, and not earlier."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise FileExistsError unless the path is free, or may be replaced."""
    if not force and path.exists():
        raise FileExistsError(f"{path} exists; pass force=True (--force) to replace it")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; when the block ends, the file is synced and gets its own. An exception removes it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    begun = Path(name)
    try:
        yield begun
        _sync(begun)
        begun.chmod(0o666 & ~_umask())
        begun.replace(path)
        _sync_folder(path.parent)
    finally:
        begun.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Do the same for a folder. One that is there is put aside, and removed when the new one is in its place."""
    if path.exists() and not _is_replaceable(path):
        raise FileExistsError(f"{path} is no folder of a model, and is not replaced")
    begun = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield begun
        for file in begun.iterdir():
            _sync(file)
        begun.chmod(0o777 & ~_umask())
        old = begun.with_suffix(".old")
        was_there = path.exists()
        if was_there:
            path.replace(old)
        try:
            begun.replace(path)
        except BaseException:
            if was_there:
                old.replace(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def write_array(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array's bytes. Its `tofile` may pass over a full disk where they are few; this raises OSError."""
    file.write(array.reshape(-1).view(np.uint8).data)


def _is_replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / "config.json").is_file() or not any(path.iterdir()))


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the new name last through a crash of the system, where folders can be synced."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
