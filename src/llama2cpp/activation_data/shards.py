"""Files of rows of activations: safetensors with the text, position and token of each row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError, check_file, need_memory
from ..common.new_files import new_file, write_array
from ..common.safetensors_file import Tensor, lay_out

Rows = dict[str, NDArray[Any]]

WHAT = "llama2cpp rows of activations"
KEYS = {"text": "I64", "tokens": "I32", "positions": "I32"}  # beside the activations
DTYPES = {"f16": "F16", "bf16": "BF16", "f32": "F32"}
# As NumPy has them, which knows no bfloat16.
STORED = {"I64": "<i8", "I32": "<i4", "F16": "<f2", "BF16": "<u2", "F32": "<f4"}
_MOST_HEADER = 16 * 2**20


def encoded(array: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """Round float32 to what is stored: to nearest, ties to even. A number that float16 has not is a ValueError.

    What is stored already is left as it is.
    """
    if array.dtype == np.float16:
        return array
    if dtype == "f16":
        try:
            with np.errstate(over="raise"):
                return np.asarray(array, dtype="<f2")
        except FloatingPointError:
            largest = float(np.abs(array[np.isfinite(array)]).max())
            raise ValueError(
                f"{name} has a number of size {largest:.6g}, and float16 none above 65504: pass dtype='bf16' or 'f32'"
            ) from None
    if dtype == "bf16":
        bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
        rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        return np.asarray(np.where(np.isnan(array), (bits >> 16) | 0x40, rounded), dtype="<u2")
    return np.array(array, dtype="<f4")


def widened(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Make float32 of bfloat16's bits."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def permutation(seed: Sequence[int], count: int) -> NDArray[np.int64]:
    """Shuffle 0 to count - 1 by PCG64's raw numbers, which NumPy promises to keep; its own shuffles may change."""
    return np.argsort(np.random.PCG64(list(seed)).random_raw(count), kind="stable")


def shard_path(folder: Path, number: int) -> Path:
    """Name a file."""
    return folder / f"activations-{number:05d}.safetensors"


def shard_paths(folder: Path) -> Iterator[Path]:
    """Give the files that are there, up to the first that is missing."""
    number = 0
    while (path := shard_path(folder, number)).exists():
        yield path
        number += 1


@dataclass(frozen=True)
class Facts:
    """What a file says of its rows.

    Attributes
    ----------
    first_text, texts, rows : int
        Its texts are `texts` from `first_text` on.
    tokens_sha256 : str
        Of the lengths and ids of these texts.
    full : bool
        Whether the next text goes into another file.

    Examples
    --------
    >>> from llama2cpp.activation_data.shards import Facts
    >>> Facts(0, 2, 7, "", True).rows
    7
    """

    first_text: int
    texts: int
    rows: int
    tokens_sha256: str
    full: bool


def write_shard(
    path: Path, columns: Mapping[str, tuple[str, Sequence[NDArray[Any]]]], facts: Facts, order: NDArray[np.int64] | None
) -> None:
    """Write rows, by name a type of safetensors' and pieces; `order` is a permutation of the rows, or None."""
    tensors = []
    for name, (dtype, pieces) in columns.items():
        tensors.append(Tensor.of(name, dtype, (facts.rows, *pieces[0].shape[1:])))
    metadata = {"format": WHAT, "facts": json.dumps(vars(facts))}
    with new_file(path) as begun, begun.open("wb") as file:
        file.write(lay_out(tensors, metadata=metadata).header)
        for _, pieces in columns.values():
            if order is None:
                for piece in pieces:
                    write_array(file, np.ascontiguousarray(piece))
            else:
                write_array(file, np.concatenate(pieces)[order])


class Shard:
    """A file of rows that is read: its facts, and its columns when they are asked for.

    Raises FormatError for a file that extract has not written.

    Examples
    --------
    See `llama2cpp.read_activations`.

    >>> from llama2cpp.activation_data.shards import Shard
    >>> try:
    ...     Shard(__import__("pathlib").Path("missing.safetensors"))
    ... except OSError as error:
    ...     print(type(error).__name__)
    FileNotFoundError
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_file(path)
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(size - 8, _MOST_HEADER):
                    raise ValueError(f"the header has {length} bytes, and the file {size}")
                entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__")
            if metadata["format"] != WHAT:
                raise ValueError(f"it holds {metadata['format']!r}")
            self.facts = Facts(**json.loads(metadata["facts"]))
            self._columns = {name: self._checked(name, entry, 8 + length, size) for name, entry in entries.items()}
            if not set(KEYS) <= set(self._columns):
                raise ValueError(f"it has no {', '.join(sorted(set(KEYS) - set(self._columns)))}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path}: expected {WHAT}, but {error}") from error
        self.points = [name for name in self._columns if name not in KEYS]

    def _checked(self, name: str, entry: Any, begin: int, size: int) -> tuple[str, tuple[int, ...], int]:  # noqa: ANN401
        dtype, shape, (first, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, end]
        if dtype not in STORED or not shape or not all(type(n) is int and 0 <= n <= size for n in numbers):
            raise ValueError(f"{name!r} has {dtype!r} of shape {shape} at {first} to {end}")
        bytes = math.prod(shape) * np.dtype(STORED[dtype]).itemsize
        if shape[0] != self.facts.rows or end - first != bytes or begin + end > size:
            raise ValueError(
                f"{name!r} has shape {shape} and {end - first} bytes, expected {self.facts.rows} rows in it"
            )
        return dtype, tuple(shape), begin + first

    def shape(self, name: str) -> tuple[int, ...]:
        """Say what shape a column has, [rows, ...]."""
        return self._columns[name][1]

    def dtype(self, name: str) -> str:
        """Say what safetensors calls its type."""
        return self._columns[name][0]

    def stored(self, name: str) -> NDArray[Any]:
        """Read a column as it is stored: bfloat16 as its bits."""
        dtype, shape, begin = self._columns[name]
        kind = np.dtype(STORED[dtype])
        need_memory(math.prod(shape) * kind.itemsize, f"{name} of {self.path}", "read fewer points")
        array = np.empty(shape, kind)
        with self.path.open("rb") as file:
            file.seek(begin)
            view = array.reshape(-1).view(np.uint8)
            if file.readinto(view.data) != len(view):
                raise FormatError(f"{self.path}: it ends within {name}")
        return array

    def read(self, name: str) -> NDArray[Any]:
        """Read a column; bfloat16 as float32."""
        array = self.stored(name)
        return widened(array) if self.dtype(name) == "BF16" else array
