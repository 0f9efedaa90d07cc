"""Writes llama2.c checkpoints, versions 0, 1 and 2, from NumPy arrays: what the tests open.

As a program (``python tests/support/checkpoints.py FOLDER``) it writes small ones: where the fuzzer of checkpoints
starts.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = {0: 28, 1: 256, 2: 256}


@dataclass(frozen=True)
class Sizes:
    """What a llama2.c header holds."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    def ints(self) -> tuple[int, ...]:
        return (
            self.dim,
            self.hidden_dim,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.vocab_size,
            self.seq_len,
        )


SMALL = Sizes(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=19, seq_len=11)


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape; gains are [dim]."""
    dim, hidden = sizes.dim, sizes.hidden_dim
    found: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (sizes.vocab_size, dim), "norm.weight": (dim,)}
    for layer in range(sizes.n_layers):
        found |= {
            f"layers.{layer}.attention_norm.weight": (dim,),
            f"layers.{layer}.attention.wq.weight": (dim, dim),
            f"layers.{layer}.attention.wk.weight": (sizes.kv_dim, dim),
            f"layers.{layer}.attention.wv.weight": (sizes.kv_dim, dim),
            f"layers.{layer}.attention.wo.weight": (dim, dim),
            f"layers.{layer}.ffn_norm.weight": (dim,),
            f"layers.{layer}.feed_forward.w1.weight": (hidden, dim),
            f"layers.{layer}.feed_forward.w2.weight": (dim, hidden),
            f"layers.{layer}.feed_forward.w3.weight": (hidden, dim),
        }
    if not sizes.tied:
        found["output.weight"] = (sizes.vocab_size, dim)
    return found


def random_arrays(sizes: Sizes, seed: int = 0) -> Arrays:
    """Normal values, small enough for a forward pass to stay tame; gains lie around 1."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for name, shape in shapes(sizes).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        arrays[name] = values * np.float32(0.1) + np.float32(1) if len(shape) == 1 else values * np.float32(0.2)
    return arrays


def quantize(array: NDArray[np.float32], group: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 values in the array's shape, and one scale for each `group` of them, in order."""
    groups = array.reshape(-1, group)
    scales = (np.abs(groups).max(axis=1) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)[:, None]
    return np.rint(groups / divisors).astype(np.int8).reshape(array.shape), scales


def dequantize(values: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an int8_group weight stands for: each product rounded once, to float32."""
    groups = values.reshape(scales.size, -1).astype(np.float32)
    return (groups * scales[:, None]).reshape(values.shape)


def _layers(arrays: Arrays, sizes: Sizes, name: str) -> Iterator[NDArray[np.float32]]:
    for layer in range(sizes.n_layers):
        yield arrays[f"layers.{layer}.{name}.weight"]


def _matrices(arrays: Arrays, sizes: Sizes) -> Iterator[NDArray[np.float32]]:
    """In the order of versions 1 and 2."""
    yield arrays["tok_embeddings.weight"]
    for name in ("attention.wq", "attention.wk", "attention.wv", "attention.wo"):
        yield from _layers(arrays, sizes, name)
    for name in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
        yield from _layers(arrays, sizes, name)
    if not sizes.tied:
        yield arrays["output.weight"]


def _gains(arrays: Arrays, sizes: Sizes) -> Iterator[NDArray[np.float32]]:
    yield from _layers(arrays, sizes, "attention_norm")
    yield from _layers(arrays, sizes, "ffn_norm")
    yield arrays["norm.weight"]


def v0_bytes(sizes: Sizes, arrays: Arrays) -> bytes:
    """The legacy format: no magic, a negative vocab_size for a classifier of its own, two rotary tables."""
    *head, vocab_size, seq_len = sizes.ints()
    parts = [struct.pack("<7i", *head, vocab_size if sizes.tied else -vocab_size, seq_len)]

    def add(*tensors: NDArray[np.float32]) -> None:
        parts.extend(tensor.astype("<f4").tobytes() for tensor in tensors)

    add(arrays["tok_embeddings.weight"])
    for name in ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"):
        add(*_layers(arrays, sizes, name))
    for name in ("ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
        add(*_layers(arrays, sizes, name))
    add(arrays["norm.weight"])
    inverse = 1.0 / 10000.0 ** (np.arange(0, sizes.head_dim, 2) / sizes.head_dim)
    angles = np.outer(np.arange(seq_len), inverse)
    add(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    if not sizes.tied:
        add(arrays["output.weight"])
    return b"".join(parts)


def _header(version: int, sizes: Sizes, *more: int) -> bytes:
    fields = struct.pack("<Ii7iB", MAGIC, version, *sizes.ints(), int(sizes.tied))
    fields += b"".join(struct.pack("<i", value) for value in more)
    return fields.ljust(HEADER_BYTES[version], b"\0")


def v1_bytes(sizes: Sizes, arrays: Arrays) -> bytes:
    """A 256-byte header, then float32: gains first."""
    tensors = [*_gains(arrays, sizes), *_matrices(arrays, sizes)]
    return _header(1, sizes) + b"".join(tensor.astype("<f4").tobytes() for tensor in tensors)


def v2_bytes(sizes: Sizes, arrays: Arrays, group: int) -> bytes:
    """A 256-byte header, float32 gains, then each matrix as its int8 values followed by its float32 scales."""
    parts = [_header(2, sizes, group), *(tensor.astype("<f4").tobytes() for tensor in _gains(arrays, sizes))]
    for matrix in _matrices(arrays, sizes):
        values, scales = quantize(matrix, group)
        parts += [values.tobytes(), scales.astype("<f4").tobytes()]
    return b"".join(parts)


def checkpoint_bytes(version: int, sizes: Sizes, arrays: Arrays, group: int = 8) -> bytes:
    """Version 0, 1 or 2; `group` is for version 2."""
    if version == 0:
        return v0_bytes(sizes, arrays)
    return v1_bytes(sizes, arrays) if version == 1 else v2_bytes(sizes, arrays, group)


def write_corpus(folder: Path) -> None:
    """Small files of every version, tied and untied."""
    folder.mkdir(parents=True, exist_ok=True)
    for tied in (True, False):
        sizes = Sizes(dim=4, hidden_dim=6, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=5, seq_len=3, tied=tied)
        arrays = random_arrays(sizes)
        for version in HEADER_BYTES:
            path = folder / f"v{version}_{'tied' if tied else 'untied'}.bin"
            path.write_bytes(checkpoint_bytes(version, sizes, arrays, group=2))


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
