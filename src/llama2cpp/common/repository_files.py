"""Which files of a Hugging Face repository are a model, and whether they have arrived whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from .file_kinds import TOKENIZER_FILES

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Beside the weights. Patterns match no "/" of their own: original/ and onnx/ have the same model again.
_BESIDE = ("config.json", "quantize_config.json", *TOKENIZER_FILES)

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_SHA256 = re.compile("[0-9a-f]{64}")
_SHA1 = re.compile("[0-9a-f]{40}")


def part_number(name: str) -> int | None:
    """Give which part of a split GGUF a file is, from 1; None for another file."""
    found = _PART.search(name)
    return None if found is None else int(found[1])


def without_part(name: str) -> str:
    """Give a name without what says which part it is."""
    return _PART.sub("", name)


def parts_of(name: str) -> list[str]:
    """Give all files that a split GGUF is in, by the name of one; a file that is not split is alone."""
    found = _PART.search(name)
    if found is None:
        return [name]
    return [f"{name[: found.start()]}-{i:05}-of-{found[2]}.gguf" for i in range(1, int(found[2]) + 1)]


def files_of_folder(names: Collection[str], shards: Sequence[str] | None) -> list[str]:
    """Give the files of a repository that a model's folder needs.

    Parameters
    ----------
    names : collection of str
        What the repository has.
    shards : sequence of str, optional
        What its index names, where the weights are not in one file.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the index names a file that is not there.

    Examples
    --------
    >>> from llama2cpp.common.repository_files import files_of_folder
    >>> files_of_folder(["config.json", "model.safetensors", "pytorch_model.bin", "original/params.json"], None)
    ['config.json', 'model.safetensors']
    """
    beside = [name for name in names if any(_is_like(name, pattern) for pattern in _BESIDE)]
    if WEIGHTS in names:
        return sorted([*beside, WEIGHTS])
    if shards is None:
        return sorted([*beside, *(name for name in names if _is_like(name, "*.safetensors"))])
    for name in shards:
        if name not in names:
            raise ValueError(f"{INDEX} names {name}, which the repository does not have")
    return sorted({*beside, INDEX, *shards})


def _is_like(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def shards_of(index: Path) -> list[str] | None:
    """Give the files that an index of shards names; None where it cannot be read."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({name for name in named if isinstance(name, str)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def is_whole_folder(folder: Path) -> bool:
    """Whether a folder has a config.json and all of its weights: an interrupted download lacks some."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return any(path.is_file() for path in folder.glob("*.safetensors"))
    return all((folder / name).is_file() for name in shards_of(folder / INDEX) or ["?"])


def lacks(folder: Path, names: Iterable[str]) -> list[str]:
    """Give those of some files that a folder does not have."""
    return [name for name in names if not (folder / name).is_file()]


def check_hash(path: Path) -> None:
    """Compare a file in Hugging Face's cache with the hash that it is named by there, and remove one that is damaged.

    Parameters
    ----------
    path : Path
        A link to ``blobs/HASH``: SHA-256 of a large file, Git's SHA-1 of another. No other is looked at.

    Raises
    ------
    RuntimeError
        If it is not what it should be.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":
        return  # a system without links
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif _SHA1.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return
    with blob.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise RuntimeError(
            f"{path.name} is not what it should be: expected the hash {blob.name}, found {digest.hexdigest()}; it has "
            "been removed, and another pull downloads it again"
        )
