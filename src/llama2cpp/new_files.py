"""Files and folders that appear under their name when they are complete, and not earlier."""

from __future__ import annotations

import fnmatch
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise FileExistsError unless the path is free, or may be replaced."""
    if not force and path.exists():
        raise FileExistsError(f"{path} exists; pass force=True (--force) to replace it")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; when the block ends, the file is synced and gets its own. An exception removes it.

    What a process that was killed has left of the same target is removed first.
    """
    with _naming(path), _unfinished(path, folder=False) as begun:
        yield begun
        _sync(begun)
        begun.chmod(0o666 & ~_umask())
        begun.replace(path)
        _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Do the same for a folder. One that is there is put aside, and removed when the new one is in its place."""
    refuse_replacing(path)
    with _naming(path), _unfinished(path, folder=True) as begun:
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
        known = any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_A_MODEL)
        if not known or not (path / name).is_file():
            raise FileExistsError(f"{path} has {name}, which is not written again: it is not replaced")


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


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of the system name the target, and not a name that the user has never seen, or none at all."""
    try:
        yield
    except OSError as error:
        parts = () if error.filename is None else Path(error.filename).parts
        ours = not parts or any(part.startswith(f".{path.name}.") for part in parts)
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def _unfinished(path: Path, *, folder: bool) -> Iterator[Path]:
    """Make .NAME.xxxxxxxx.part beside the target, locked while it is written, and remove what is left of it."""
    _remove_leftovers(path)
    begun, lock = _begin(path, folder=folder)
    try:
        yield begun
    finally:
        _remove(begun)
        if lock is not None:
            os.close(lock)


def _begin(path: Path, *, folder: bool) -> tuple[Path, int | None]:
    while True:
        if folder:
            begun = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            os.close(handle)
            begun = Path(name)
        lock = _lock(begun)
        if begun.exists():  # else another process took it for a leftover before it was locked
            return begun, lock
        if lock is not None:
            os.close(lock)


def _remove_leftovers(path: Path) -> None:
    """Remove parts of this target whose writer is gone. Where that cannot be told (Windows), they stay."""
    pattern = f".{glob.escape(path.name)}.????????"
    for part in path.parent.glob(f"{pattern}.part"):
        lock = _lock(part)
        if lock is not None:
            _remove(part)
            os.close(lock)
    if path.exists():  # else it may be all that is left of the target
        for old in path.parent.glob(f"{pattern}.old"):
            shutil.rmtree(old, ignore_errors=True)


def _lock(path: Path) -> int | None:
    """Lock a file or folder for as long as the handle is open; None where another process has it, or none can."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_array(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array's bytes. Its `tofile` may pass over a full disk where they are few; this raises OSError."""
    file.write(array.reshape(-1).view(np.uint8).data)


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
