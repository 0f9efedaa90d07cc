"""What safetensors files begin with: the one place that lays tensors out in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_WIDTHS = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


class Tensor(NamedTuple):
    """What a file's header says of a tensor: its name, type ("BF16"), shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """Make one with the bytes that its type and shape take."""
        return cls(name, dtype, shape, math.prod(shape) * _WIDTHS[dtype])

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return _WIDTHS[self.dtype]


class Layout(NamedTuple):
    """A file's header, its length included, and where each tensor begins in the file."""

    header: bytes
    begins: dict[str, int]


def lay_out(tensors: Iterable[Tensor], *, metadata: Mapping[str, str] | None = None, alignment: int = 8) -> Layout:
    """Lay tensors out one after another.

    Parameters
    ----------
    tensors : iterable of Tensor
        In the order of their bytes.
    metadata : mapping of str to str, optional
        What the header says besides; that the file is for PyTorch if not given.
    alignment : int
        The first tensor begins at a multiple of this. The header is filled up with spaces.

    Returns
    -------
    Layout

    Examples
    --------
    >>> from llama2cpp.common.safetensors_file import Tensor, lay_out
    >>> layout = lay_out([Tensor("a", "F16", (2, 2), 8), Tensor("b", "F32", (1,), 4)])
    >>> layout.begins["b"] - layout.begins["a"], layout.begins["a"] == len(layout.header)
    (8, True)
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else dict(metadata)}
    offsets: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        offsets[tensor.name], end = end, end + tensor.bytes
        place = [offsets[tensor.name], end]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    header = len(text).to_bytes(8, "little") + text
    return Layout(header, {name: len(header) + begin for name, begin in offsets.items()})
