"""Attention and its cache: spans, windows, grouped heads, stages, and contexts that are split."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_bench import COST, TINY, Bench, Mode, Operand, Scene, U, many, same_bits, scenes, within

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclasses.dataclass
class Sequence:
    """A span, its cache and what NumPy makes of it."""

    count: int
    position: int
    window: int
    context: int

    @property
    def keys(self) -> int:
        return self.position + self.count

    def seen(self) -> NDArray[np.bool_]:
        """[count, keys], True where a row looks."""
        row, key = self.position + np.arange(self.count)[:, None], np.arange(self.keys)[None, :]
        return np.asarray((key <= row) & ((key > row - self.window) if self.window else True))


@dataclasses.dataclass
class Placed:
    """A sequence in a pass: where it begins, its cache, the places for scores and pattern, and the op's own span."""

    sequence: Sequence
    row: int
    keys: Operand
    values: Operand
    scores: Operand | None
    pattern: Operand | None
    span: Any


@st.composite
def sequences(draw: st.DrawFn) -> list[Sequence]:
    spans: list[Sequence] = []
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        count = draw(st.one_of(st.sampled_from([1, 1, 2, 5, 8, 9, 33]), st.integers(1, 40)))
        position = draw(st.one_of(st.sampled_from([0, 0, 30, 31, 32, 63]), st.integers(0, 150)))
        window = draw(st.sampled_from([0, 0, 0, 1, 2, 31, 32, 33, 100]))
        spans.append(Sequence(count, position, window, position + count + draw(st.integers(0, 5))))
    return spans


def softmax_of(scores: Doubles, seen: NDArray[np.bool_], sinks: Doubles) -> Doubles:
    """Of scores [heads, count, keys] with a sink of each head, which is -inf where there is none."""
    masked = np.where(seen, scores, -np.inf)
    most = np.maximum(masked.max(axis=-1, keepdims=True), sinks[:, None, None])
    powers = np.exp(masked - most)
    return np.asarray(powers / (powers.sum(axis=-1, keepdims=True) + np.exp(sinks[:, None, None] - most)))


def check_attention(
    bench: Bench,
    scene: Scene,
    spans: list[Sequence],
    dtype: str,
    n_kv_heads: int,
    group: int,
    head_dim: int,
    stages: str,
    cap: float = 0.0,
    with_sinks: bool = False,
) -> None:
    backend = scene.backend(bench)
    op, heads = f"{bench.kind} attention", n_kv_heads * group
    rows = sum(span.count for span in spans)
    q = scene.operand(backend, scene.values(rows, heads * head_dim))
    q.view[...] *= np.float32(scene.rng.choice([0.3, 1, 4]))
    z = scene.empty(backend, rows, heads * head_dim)
    divisor = float(np.float32(np.sqrt(head_dim) * scene.rng.choice([1, 1, 0.7])))
    lanes = 16 if bench.kind == "cpu" else 32
    sunk = scene.operand(backend, scene.rng.normal(0, 3, heads).astype(np.float32)) if with_sinks else None
    sinks = np.full(heads, -np.inf) if sunk is None else sunk.view.astype(np.float64)
    # What a sink adds to the error of a row: a difference, which is rounded, an exponential and an addition.
    of_sink = np.zeros((heads, 1, 1)) if sunk is None else U * (np.abs(sinks)[:, None, None] + 3)
    made: list[Placed] = []
    for span in spans:
        row = sum(other.sequence.count for other in made)
        caches = []
        for _ in range(2):
            full = np.full((n_kv_heads, span.context, head_dim), np.nan, np.float32)
            first = max(0, span.position - span.window + 1) if span.window else 0
            full[:, first : span.keys] = scene.values(n_kv_heads, span.keys - first, head_dim)
            caches.append(Operand(backend, full.astype(dtype), reserved=True))
        outs: list[Operand | None] = [None, None]
        if stages != "plain":
            shape = (heads, span.count, span.keys)
            outs = [scene.operand(backend, np.full(shape, np.nan, np.float32), offset=3) for _ in range(2)]
        of_op = bench.ops.Span(
            row=row,
            count=span.count,
            position=span.position,
            keys=caches[0].view,
            values=caches[1].view,
            window=span.window,
            divisor=divisor,
            score_cap=cap,
            sinks=None if sunk is None else sunk.view,
            scores=None if outs[0] is None else outs[0].view,
            pattern=None if outs[1] is None else outs[1].view,
        )
        made.append(Placed(span, row, caches[0], caches[1], outs[0], outs[1], of_op))
    given_spans = [placed.span for placed in made]
    stage = bench.ops.Stage
    of_score = head_dim / lanes + 7 + (13 if cap else 0)  # tanh, as soft_cap has it

    def exact_scores(placed: Placed) -> tuple[Doubles, Doubles]:
        """Scores [heads, count, keys], and the unit of their error, u sum|q||k| / divisor."""
        span = placed.sequence
        rows_of_q = q.view[placed.row : placed.row + span.count].astype(np.float64).reshape(span.count, heads, head_dim)
        keys = np.nan_to_num(np.repeat(placed.keys.view.astype(np.float64), group, axis=0)[:, : span.keys])
        scores = np.einsum("thd,hkd->htk", rows_of_q, keys) / divisor
        if cap:
            scores = cap * np.tanh(scores / cap)
        sizes = np.einsum("thd,hkd->htk", np.abs(rows_of_q), np.abs(keys)) / divisor
        return scores, U * sizes

    def relative_errors(span: Sequence, score_errors: Doubles, extra: float) -> Doubles:
        """Of a row's largest error of a score, twice: for the number itself and for the sum that divides it."""
        largest = np.where(span.seen()[None], score_errors, 0).max(axis=-1, keepdims=True) + of_sink
        return np.asarray(2 * largest + (span.keys / 32 + extra) * U)

    def check_z(placed: Placed, pattern: Doubles, score_errors: Doubles) -> None:
        span = placed.sequence
        values = np.nan_to_num(np.repeat(placed.values.view.astype(np.float64), group, axis=0)[:, : span.keys])
        exact = np.einsum("htk,hkd->thd", pattern, values)
        sizes = np.einsum("htk,hkd->thd", np.abs(pattern), np.abs(values))
        unit = sizes * np.moveaxis(relative_errors(span, score_errors, 12), 0, 1)
        got = z.view[placed.row : placed.row + span.count].reshape(span.count, heads, head_dim)
        slack = 4 * TINY * (1 + span.keys * np.max(np.abs(values), initial=0))
        within(f"{op} z", dtype, got, exact, unit, 1.0, "(2 e + (keys / 32 + 12) u) sum p|v|", slack)

    def edit(out: Operand, span: Sequence) -> None:
        """As a hook does: some of what is seen is another number."""
        seen = np.broadcast_to(span.seen(), out.view.shape)
        edited = scene.rng.random(seen.shape) < 0.2
        out.view[...] = np.where(seen & edited, scene.values(*seen.shape), out.view)

    if stages in ("plain", "whole"):
        backend.attention(q.view, given_spans, z.view)
        for placed in made:
            scores, unit = exact_scores(placed)
            pattern = softmax_of(scores, placed.sequence.seen(), sinks)
            if placed.scores is not None and placed.pattern is not None:
                check_scores(op, dtype, placed.scores.view, scores, unit, placed.sequence, of_score)
                relative = relative_errors(placed.sequence, of_score * unit, 10)
                check_pattern(op, dtype, placed.pattern.view, pattern, relative, placed.sequence)
            check_z(placed, pattern, of_score * unit)
    else:
        backend.attention(q.view, given_spans, z.view, stage.scores, stage.scores)
        for placed in made:
            assert placed.scores is not None
            check_scores(op, dtype, placed.scores.view, *exact_scores(placed), placed.sequence, of_score)
            edit(placed.scores, placed.sequence)
        backend.attention(q.view, given_spans, z.view, stage.pattern, stage.pattern)
        for placed in made:
            assert placed.scores is not None
            assert placed.pattern is not None
            scores = np.where(placed.sequence.seen(), placed.scores.view.astype(np.float64), -np.inf)
            most = np.maximum(scores.max(axis=-1, keepdims=True), sinks[:, None, None])
            apart = U * np.where(np.isfinite(scores), most - scores, 0)  # a difference is rounded once
            relative = relative_errors(placed.sequence, apart, 10)
            pattern = softmax_of(scores, placed.sequence.seen(), sinks)
            check_pattern(op, dtype, placed.pattern.view, pattern, relative, placed.sequence)
            edit(placed.pattern, placed.sequence)
        backend.attention(q.view, given_spans, z.view, stage.values, stage.values)
        for placed in made:
            assert placed.pattern is not None
            check_z(placed, placed.pattern.view.astype(np.float64), np.zeros(placed.pattern.view.shape))
    for placed in made:
        for operand in (placed.keys, placed.values, placed.scores, placed.pattern, q, z, sunk):
            if operand is not None:
                operand.check("attention")


def check_scores(op: str, kind: str, got: Floats, exact: Doubles, unit: Doubles, span: Sequence, bound: float) -> None:
    seen = np.broadcast_to(span.seen(), exact.shape)
    assert np.all(np.isneginf(got[~seen])), "a score that nobody may see is not -inf"
    within(f"{op} scores", kind, got[seen], exact[seen], unit[seen], bound, "u sum|q||k| / divisor", 64 * TINY)


def check_pattern(op: str, kind: str, got: Floats, exact: Doubles, relative: Doubles, span: Sequence) -> None:
    seen = np.broadcast_to(span.seen(), exact.shape)
    assert np.all(got[~seen] == 0), "a masked number of the pattern is not 0"
    unit = (exact * relative)[seen]
    within(f"{op} pattern", kind, got[seen], exact[seen], unit, 1.0, "(2 e + (keys / 32 + 10) u) p", 4 * TINY)


@given(
    scene=scenes.filter(lambda scene: scene.numbers != "wide"),
    spans=sequences(),
    dtype=st.sampled_from(["f4", "f2"]),
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([2, 4, 6, 8, 16, 18, 20, 32, 40, 48, 64, 80, 96, 100, 128, 192, 256]),
    stages=st.sampled_from(["plain", "plain", "whole", "alone"]),
    cap=st.sampled_from([0.0, 0.0, 0.75, 50.0]),
    with_sinks=st.sampled_from([False, False, True]),
)
@many
def test_attention(
    bench: Bench,
    scene: Scene,
    spans: list[Sequence],
    dtype: str,
    n_kv_heads: int,
    group: int,
    head_dim: int,
    stages: str,
    cap: float,
    with_sinks: bool,
) -> None:
    """Several sequences; what nobody may see is NaN; scores and pattern change between stages."""
    assume(sum(span.count * span.keys for span in spans) * n_kv_heads * group * head_dim <= COST)
    check_attention(bench, scene, spans, dtype, n_kv_heads, group, head_dim, stages, cap, with_sinks)


@pytest.mark.parametrize("keys", [1, 1023, 1024, 1025, 2048, 2100])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize(
    ("stages", "with_sinks"), [("plain", False), ("plain", True), ("whole", False), ("alone", False)]
)
def test_attention_of_long_contexts(bench: Bench, keys: int, dtype: str, stages: str, with_sinks: bool) -> None:
    """Where a context is split, and next to it; with a window that begins inside a part."""
    scene = Scene(Mode(), keys, "ordinary")
    spans = [Sequence(1, keys - 1, 0, keys), Sequence(1, keys - 1, 700, keys + 3)]
    check_attention(bench, scene, spans, dtype, 1, 2, 16, stages, 0.75 if with_sinks else 0.0, with_sinks)


@given(
    scene=scenes,
    spans=sequences(),
    dtype=st.sampled_from(["f4", "f2"]),
    n_kv_heads=st.integers(1, 4),
    head_dim=st.integers(1, 70),
)
@many
def test_store_kv(
    bench: Bench, scene: Scene, spans: list[Sequence], dtype: str, n_kv_heads: int, head_dim: int
) -> None:
    backend = scene.backend(bench)
    rows, width = sum(span.count for span in spans), n_kv_heads * head_dim
    k, v = (scene.operand(backend, scene.values(rows, width)) for _ in range(2))
    if scene.numbers == "wide":  # halves: to nearest even, denormals too, and infinity beyond their range
        for x in (k, v):
            x.view[...] = np.float32(1) * scene.rng.choice(
                [65504, 65519, 65520, 1e9, 6e-8, 5.9e-5, 2049, -2051], x.view.shape
            )
    made, row = [], 0
    for span in spans:
        caches = [
            Operand(
                backend, scene.rng.standard_normal((n_kv_heads, span.context, head_dim)).astype(dtype), reserved=True
            )
            for _ in range(2)
        ]
        made.append((span, row, caches, [cache.view.copy() for cache in caches]))
        row += span.count
    backend.store_kv(
        k.view,
        v.view,
        [
            bench.ops.Span(
                row=row, count=span.count, position=span.position, keys=caches[0].view, values=caches[1].view
            )
            for span, row, caches, _ in made
        ],
    )
    for span, row, caches, before in made:
        for x, cache, expected in zip((k, v), caches, before, strict=True):
            given_rows = x.view[row : row + span.count].reshape(span.count, n_kv_heads, head_dim)
            with np.errstate(over="ignore"):
                expected[:, span.position : span.keys] = np.swapaxes(given_rows, 0, 1).astype(dtype)
            same_bits(f"{bench.kind} store_kv", dtype, cache.view, expected)
            cache.check("cache")


@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize(
    "spans", [[Sequence(1, 70, 0, 75)], [Sequence(19, 3, 0, 22), Sequence(2, 40, 17, 42)]], ids=["step", "rows"]
)
def test_attention_in_every_mode(bench: Bench, spans: list[Sequence], dtype: str) -> None:
    for mode in bench.modes:
        for stages in ("plain", "alone"):
            check_attention(bench, Scene(mode, 9, "ordinary"), spans, dtype, 2, 2, 24, stages)
