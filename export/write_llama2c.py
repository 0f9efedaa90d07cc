"""Writes what llama2.c reads: checkpoints of version 1 (float32) and 2 (int8 in groups), and `tokenizer.bin`.

A file appears under its name when it is complete, and not earlier.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256
_INT8_MAX = 127

# The order of the file: gains of each layer, then matrices, each kind through all layers.
_GAINS = ("attention_norm", "ffn_norm")
_MATRICES = (
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)


@dataclass(frozen=True)
class Sizes:
    """What a llama2.c header says. RMSNorm's epsilon is 1e-5 and rotary's base 10,000; neither is in the file.

    Attributes
    ----------
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len : int
        As in llama2.c; `n_heads` divides `dim`, `n_kv_heads` divides `n_heads`.
    tied : bool
        Whether the output matrix is the embedding.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool = True

    @property
    def kv_dim(self) -> int:
        """Rows of wk and wv."""
        return self.dim // self.n_heads * self.n_kv_heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by llama2.c's name, in the order of the file."""
        shape_of = {
            "attention_norm": (self.dim,),
            "ffn_norm": (self.dim,),
            "attention.wq": (self.dim, self.dim),
            "attention.wk": (self.kv_dim, self.dim),
            "attention.wv": (self.kv_dim, self.dim),
            "attention.wo": (self.dim, self.dim),
            "feed_forward.w1": (self.hidden_dim, self.dim),
            "feed_forward.w2": (self.dim, self.hidden_dim),
            "feed_forward.w3": (self.hidden_dim, self.dim),
        }

        def layers(names: Sequence[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
            for name in names:
                for layer in range(self.n_layers):
                    yield f"layers.{layer}.{name}.weight", shape_of[name]

        shapes: dict[str, tuple[int, ...]] = dict(layers(_GAINS))
        shapes["norm.weight"] = (self.dim,)
        shapes["tok_embeddings.weight"] = (self.vocab_size, self.dim)
        shapes.update(layers(_MATRICES))
        if not self.tied:
            shapes["output.weight"] = (self.vocab_size, self.dim)
        return shapes


def write_checkpoint(
    path: str | os.PathLike[str], sizes: Sizes, arrays: Mapping[str, Array], *, group: int | None = None
) -> None:
    """Write a checkpoint: version 1, or version 2 where a group is given.

    Parameters
    ----------
    path : str or path
        The file.
    sizes : Sizes
        What goes into the header.
    arrays : mapping of str to array
        float32 under the names and in the shapes of ``sizes.shapes()``; rows of wq and wk for interleaved rotary pairs.
    group : int, optional
        How many int8 values share a scale. It must divide `dim` and `hidden_dim`.

    Raises
    ------
    ValueError
        If a weight is missing, has another shape or is not finite, or the group does not divide.
    OSError
        If the file cannot be written.
    """
    if group is not None and (group < 1 or sizes.dim % group or sizes.hidden_dim % group):
        raise ValueError(f"group is {group}, expected a divisor of dim {sizes.dim} and hidden_dim {sizes.hidden_dim}")
    shapes = sizes.shapes()
    if arrays.keys() != shapes.keys():
        raise ValueError(f"weights that are missing or too many: {sorted(arrays.keys() ^ shapes.keys())}")
    parts = [_header(sizes, group)]
    for name, shape in shapes.items():
        array = np.asarray(arrays[name], dtype="<f4")
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        if group is None or len(shape) == 1:
            parts.append(array.tobytes())
        else:
            values, scales = quantise(array, group)
            parts += [values.tobytes(), scales.astype("<f4").tobytes()]
    _write(path, parts)


def quantise(array: Array, group: int) -> tuple[NDArray[np.int8], Array]:
    """Round to int8 in groups: value = int8 * scale, with the largest of a group at 127.

    Parameters
    ----------
    array : numpy.ndarray
        float32, of a size that `group` divides.
    group : int
        How many neighbours in the last dimension share a scale.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        int8 in the array's shape; float32 [size / group].
    """
    groups = array.reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(_INT8_MAX)
    divisors = np.where(scales == 0, np.float32(1), scales)[:, None]
    return np.rint(groups / divisors).astype(np.int8).reshape(array.shape), scales.astype(np.float32)


def write_tokenizer_bin(path: str | os.PathLike[str], pieces: Sequence[tuple[bytes, float]]) -> None:
    """Write llama2.c's `tokenizer.bin`.

    Parameters
    ----------
    path : str or path
        The file.
    pieces : sequence of (bytes, float)
        Text and score of each id, spaces as spaces; ids 0, 1 and 2 are unknown, BOS and EOS.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    parts = [struct.pack("<i", max(len(text) for text, _ in pieces))]
    parts += [struct.pack("<fi", score, len(text)) + text for text, score in pieces]
    _write(path, parts)


def _header(sizes: Sizes, group: int | None) -> bytes:
    fields = struct.pack(
        "<Ii7iB",
        _MAGIC,
        1 if group is None else 2,
        sizes.dim,
        sizes.hidden_dim,
        sizes.n_layers,
        sizes.n_heads,
        sizes.n_kv_heads,
        sizes.vocab_size,
        sizes.seq_len,
        sizes.tied,
    )
    if group is not None:
        fields += struct.pack("<i", group)
    return fields.ljust(_HEADER_BYTES, b"\0")


def _write(path: str | os.PathLike[str], parts: Sequence[bytes]) -> None:
    target = Path(path)
    begun = target.with_name(target.name + ".part")
    with begun.open("wb") as file:
        for part in parts:
            file.write(part)
    begun.replace(target)
