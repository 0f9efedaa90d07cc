"""Weights of every format as raw planes, and in float64 exactly what they stand for, by gguf and NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
from gptq_models import pack
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]


@dataclasses.dataclass
class RawWeight:
    """One matrix: its planes with the bytes from row to row, and its numbers."""

    format: str
    planes: list[tuple[Bytes, int]]
    values: Doubles  # [rows, cols]
    group: int = 1
    order: NDArray[np.int32] | None = None

    @property
    def rows(self) -> int:
        return int(self.values.shape[0])

    @property
    def cols(self) -> int:
        return int(self.values.shape[1])

    def columns(self, begin: int, end: int) -> RawWeight:
        """Some columns of the same rows, whose planes are as far apart as before. Only of formats with one plane."""
        data, row_bytes = self.planes[0]
        each = row_bytes // self.cols if self.format in FLOATS else 0
        size, bytes_each = (1, each) if each else gguf.GGML_QUANT_SIZES[GGUF[self.format]]
        assert begin % size == end % size == 0
        return RawWeight(
            self.format, [(data[begin // size * bytes_each :], row_bytes)], self.values[:, begin:end].copy(), self.group
        )


FLOATS = ("f32", "f16", "bf16")
GGUF = {kind.name.lower(): kind for kind in gguf_files.SCALES}


def scales(rng: np.random.Generator, count: int, *, extreme: bool) -> NDArray[np.uint16]:
    """Halves near 1 of either sign; where `extreme`, denormals, zeros and the largest are among them."""
    values = (rng.uniform(0.5, 1.5, count) * rng.choice([-1.0, 1.0], count)).astype(np.float16)
    if extreme:
        odd = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF], np.uint16).view(np.float16)
        values = np.where(rng.random(count) < 0.3, rng.choice(odd, count), values).astype(np.float16)
    return np.asarray(values.view(np.uint16))


def float_weight(name: str, rows: int, cols: int, rng: np.random.Generator, *, extreme: bool) -> RawWeight:
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    if extreme:  # either zero; the least and the largest that do not overflow a sum
        odd = np.array([0.0, -0.0, 6e-8, 1e-5, 6e4, -6e4], np.float32)
        values = np.where(rng.random(values.shape) < 0.3, rng.choice(odd, values.shape), values).astype(np.float32)
    if name == "f32":
        return RawWeight(name, [(values.view(np.uint8).reshape(-1), cols * 4)], values.astype(np.float64))
    if name == "f16":
        halves = values.astype(np.float16)
        return RawWeight(name, [(halves.view(np.uint8).reshape(-1), cols * 2)], halves.astype(np.float64))
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    exact = (upper.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return RawWeight(name, [(upper.view(np.uint8).reshape(-1), cols * 2)], exact)


def gguf_weight(name: str, rows: int, cols: int, rng: np.random.Generator, *, extreme: bool) -> RawWeight:
    """Random bytes with halves for scales.

    gguf computes in float32, where a product is exact and a sum need not be: terms of formats that have two are decoded
    one at a time.
    """
    kind = GGUF[name]
    data = gguf_files.blocks(kind, rows, cols, rng)
    size, bytes_each = gguf.GGML_QUANT_SIZES[kind]
    count = rows * cols // size
    of_scale = [scales(rng, count, extreme=extreme) for _ in gguf_files.SCALES[kind]]
    data = gguf_files.with_scales(data, kind, of_scale)
    nothing = np.zeros(count, np.uint16)
    values: Doubles = np.zeros((rows, cols))
    for i in range(len(of_scale)):
        one = [scale if i == j else nothing for j, scale in enumerate(of_scale)]
        values = values + gguf_files.decoded(gguf_files.with_scales(data, kind, one), kind).astype(np.float64)
    return RawWeight(name, [(data.reshape(-1), cols // size * bytes_each)], values)


def int8_weight(
    rows: int, cols: int, group: int, rng: np.random.Generator, *, extreme: bool, dtype: Any = np.float32
) -> RawWeight:
    q = rng.integers(-128, 128, (rows, cols), dtype=np.int8)
    scale = (rng.uniform(0.5, 1.5, (rows, cols // group)) / 64).astype(dtype)
    if extreme:
        scale = np.where(rng.random(scale.shape) < 0.3, rng.choice([0.0, 1e-20, -3e4], scale.shape), scale).astype(
            dtype
        )
    values = q.astype(np.float64) * np.repeat(scale.astype(np.float64), group, axis=1)
    planes = [(q.view(np.uint8).reshape(-1), cols), (scale.view(np.uint8).reshape(-1), cols // group * 4)]
    return RawWeight("int8_group", planes, values, group)


def gptq_weight(
    name: str, rows: int, cols: int, group: int, g_idx: str, rng: np.random.Generator, *, single: bool = False
) -> RawWeight:
    """g_idx: "none"; "order", columns shuffled over the groups, with the order that sorts them; or "uneven", groups of
    columns by chance, for which there is no order. single: scales that are no halves."""
    bits = int(name.removeprefix("gptq")[0])
    groups = -(-cols // group)
    of_column = np.arange(cols) // group
    order = None
    if g_idx == "order":
        of_column = rng.permutation(of_column)
        order = np.argsort(of_column, kind="stable").astype(np.int32)
    elif g_idx == "uneven":
        of_column = rng.integers(0, groups, cols)
    q = rng.integers(0, 1 << bits, (cols, rows))
    zeros = rng.integers(0, 1 << bits, (groups, rows))
    scale = (rng.uniform(0.5, 1.5, (groups, rows)) / (1 << bits)).astype(np.float32 if single else np.float16)
    stored = zeros if name.endswith("_v2") else (zeros - 1) % (1 << bits)
    values = scale.astype(np.float64)[of_column] * (q - zeros[of_column])
    planes = [
        (pack(q, bits).view(np.uint8).reshape(-1), 0),
        (scale.view(np.uint8).reshape(-1), rows * 4 if single else 0),
        (np.ascontiguousarray(pack(stored.T, bits).T).view(np.uint8).reshape(-1), 0),
    ]
    if g_idx != "none":
        planes.append((of_column.astype(np.int32).view(np.uint8), 0))
    return RawWeight(name, planes, np.ascontiguousarray(values.T), group, order)


@dataclasses.dataclass(frozen=True)
class FormatFacts:
    """What shapes a format takes, and how to make one."""

    name: str
    rows: int  # rows are a multiple of it
    cols: int  # columns too
    exact: bool  # decoding rounds nothing
    make: Callable[[int, int, np.random.Generator, bool], RawWeight]


def _floats(name: str) -> FormatFacts:
    return FormatFacts(
        name, 1, 1, True, lambda rows, cols, rng, extreme: float_weight(name, rows, cols, rng, extreme=extreme)
    )


def _gguf(name: str) -> FormatFacts:
    size = gguf.GGML_QUANT_SIZES[GGUF[name]][0]
    exact = len(gguf_files.SCALES[GGUF[name]]) == 1
    return FormatFacts(
        name, 1, size, exact, lambda rows, cols, rng, extreme: gguf_weight(name, rows, cols, rng, extreme=extreme)
    )


def _int8(rows: int, cols: int, rng: np.random.Generator, extreme: bool) -> RawWeight:
    groups = [group for group in range(1, cols + 1) if cols % group == 0]
    usual = [group for group in (32, 64) if cols % group == 0]
    group = int(rng.choice(usual if usual and rng.random() < 0.6 else groups))
    return int8_weight(rows, cols, group, rng, extreme=extreme)


def _gptq(name: str) -> FormatFacts:
    def make(rows: int, cols: int, rng: np.random.Generator, extreme: bool) -> RawWeight:
        group = int(rng.choice([32, 64, 128, cols, 8, 24]))
        g_idx = str(rng.choice(["none", "none", "order", "uneven"]))
        return gptq_weight(name, rows, cols, min(group, cols), g_idx, rng, single=extreme)

    bits = int(name.removeprefix("gptq")[0])
    whole = 32 if bits == 3 else 32 // bits  # values that fill words
    return FormatFacts(name, whole, whole, False, make)


# The order in which the Metal backend's issue names them.
FORMATS = {
    facts.name: facts
    for facts in (
        *map(_floats, FLOATS),
        *map(_gguf, ("q8_0", "q4_0", "q4_1", "q4_k", "q6_k")),
        FormatFacts("int8_group", 1, 1, False, _int8),
        *map(_gptq, ("gptq4", "gptq4_v2")),
        *map(_gguf, ("q5_0", "q5_1", "q5_k", "q3_k", "q2_k")),
        *map(_gptq, ("gptq2", "gptq3", "gptq8", "gptq2_v2", "gptq3_v2", "gptq8_v2")),
    )
}


def at_offset(data: Bytes, offset: int) -> Bytes:
    """A copy that begins `offset` bytes behind a multiple of 64."""
    memory = np.empty(data.size + offset + 64, np.uint8)
    begin = -memory.ctypes.data % 64 + offset
    memory[begin : begin + data.size] = data
    return memory[begin : begin + data.size]


def weight(ops: Any, raw: RawWeight, *, offset: int = 0, folder: Path | None = None, mapped: bool = True) -> Any:
    """A Weight of the module `ops` from arrays; with a folder from a file in it, where each plane begins `offset` bytes
    behind a multiple of 64."""
    planes: list[tuple[Any, int]]
    if folder is None:
        planes = [(at_offset(data, offset), row_bytes) for data, row_bytes in raw.planes]
    else:
        content = bytearray()
        places = []
        for data, _ in raw.planes:
            content.extend(bytes(-len(content) % 64 + offset))
            places.append((len(content), data.size))
            content.extend(data.tobytes())
        path = folder / "weights"
        path.write_bytes(content)
        file = ops.File(str(path), mapped)
        planes = [((file, *place), row_bytes) for place, (_, row_bytes) in zip(places, raw.planes, strict=True)]
    return ops.Weight(raw.format, raw.rows, raw.cols, planes, group=raw.group, order=raw.order)
