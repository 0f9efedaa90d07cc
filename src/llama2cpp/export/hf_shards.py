"""safetensors files of a Hugging Face folder: one, or several with an index, as transformers names and fills them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..new_files import write_array
from .safetensors_file import Tensor, lay_out

SHARD_SIZE = "5GB"
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(size: int | str) -> int:
    """Give a number of bytes.

    Parameters
    ----------
    size : int or str
        Bytes, or a text such as "5GB", "500 MB" or "2GiB".

    Raises
    ------
    ValueError
        For another text, or no bytes at all.

    Examples
    --------
    >>> from llama2cpp.export.hf_shards import parse_size
    >>> parse_size("1.5GB")
    1500000000
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b)?\s*", size, flags=re.IGNORECASE | re.ASCII)
        if match is None:
            raise ValueError(f"shard_size is {size!r}, expected a number of bytes, or a text such as '5GB' or '500MB'")
        size = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if size < 1:
        raise ValueError(f"shard_size is {size}, expected at least 1 byte")
    return size


def split(tensors: Iterable[Tensor], shard_size: int) -> list[list[Tensor]]:
    """Fill one shard after another. A tensor that is larger than a shard has one for itself."""
    shards: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.bytes > room:
            shards.append([])
            room = shard_size
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


class ShardWriter:
    """Writes tensors one after another into the files that they belong in, and the index where there are several.

    Parameters
    ----------
    folder : Path
        Where the files go.
    tensors : iterable of Tensor
        All that will be written, in that order.
    shard_size : int
        The most bytes of tensors in a file.
    """

    def __init__(self, folder: Path, tensors: Iterable[Tensor], shard_size: int) -> None:
        self._folder = folder
        self._shards = split(tensors, shard_size)
        count = len(self._shards)
        self._names = (
            ["model.safetensors"]
            if count == 1
            else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        )
        self._shard = -1
        self._left = 0

    def write(self, data: NDArray[Any]) -> None:
        """Append the next tensor, as its file stores it."""
        if self._left == 0:
            self._shard += 1
            tensors = self._shards[self._shard]
            self._left = len(tensors)
            self._file().write_bytes(lay_out(tensors).header)
        tensor = self._shards[self._shard][-self._left]
        assert data.nbytes == tensor.bytes
        with self._file().open("ab") as file:
            write_array(file, data)
        self._left -= 1

    def finish(self) -> None:
        """Write the index, where there are several files."""
        if len(self._shards) == 1:
            return
        places = {tensor.name: file for file, shard in zip(self._names, self._shards, strict=True) for tensor in shard}
        everything = [tensor for shard in self._shards for tensor in shard]
        metadata: Mapping[str, int] = {
            "total_parameters": sum(int(np.prod(tensor.shape)) for tensor in everything),
            "total_size": sum(tensor.bytes for tensor in everything),
        }
        index = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
        path = self._folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _file(self) -> Path:
        return self._folder / self._names[self._shard]
