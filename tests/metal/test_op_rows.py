"""Ops on rows: norms, rope, sums, activations, and copies of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_bench import COST, TINY, Bench, Mode, Scene, U, many, same_bits, scenes, tokens, within

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@given(scene=scenes, count=tokens, n=st.one_of(st.integers(1, 300), st.sampled_from([512, 4096, 11008])))
@many
def test_rms_scale(bench: Bench, scene: Scene, count: int, n: int) -> None:
    assume(count * n <= COST)
    backend = scene.backend(bench)
    x, scale = scene.operand(backend, scene.values(count, n)), scene.empty(backend, count, 1)
    eps = float(np.float32(scene.rng.choice([1e-5, 1e-6, 0.0 if scene.numbers == "ordinary" else 1e-12])))
    backend.rms_scale(x.view, eps, scale.view)
    exact = np.sqrt(np.mean(x.view.astype(np.float64) ** 2, axis=1, keepdims=True) + eps)
    bound = n / 512 + 8 + 4
    within(
        f"{bench.kind} rms_scale",
        "",
        scale.view,
        exact,
        U * exact,
        bound,
        "u |scale|",
        np.sqrt(n * TINY) * (exact < 1e-17),
    )
    scale.check("scale")


@given(scene=scenes, count=tokens, n=st.one_of(st.integers(1, 300), st.sampled_from([512, 4096, 11008])))
@many
def test_center(bench: Bench, scene: Scene, count: int, n: int) -> None:
    """A sum of n numbers over 16 lanes or 32 and more threads, a division and a difference."""
    assume(count * n <= COST)
    backend = scene.backend(bench)
    values = scene.values(count, n) + np.float32(scene.rng.choice([0, 0, 3, -40]))
    x, out = scene.operand(backend, values), scene.empty(backend, count, n)
    backend.center(x.view, out.view)
    wide = x.view.astype(np.float64)
    exact = wide - np.mean(wide, axis=1, keepdims=True)
    unit = U * np.mean(np.abs(wide), axis=1, keepdims=True)
    slack = U * np.abs(exact) + 4 * TINY
    within(f"{bench.kind} center", "", out.view, exact, unit + 0 * exact, n / 16 + 8, "u mean|x|", slack)
    for operand in (x, out):
        operand.check("center")


@given(scene=scenes, count=tokens, n=st.integers(1, 700), in_place=st.booleans(), with_gain=st.booleans())
@many
def test_normalize(bench: Bench, scene: Scene, count: int, n: int, in_place: bool, with_gain: bool) -> None:
    backend = scene.backend(bench)
    x = scene.operand(backend, scene.values(count, n))
    scale = scene.operand(backend, scene.rng.uniform(0.01, 100, (count, 1)).astype(np.float32))
    gain = scene.operand(backend, scene.values(n)) if with_gain else None
    exact = x.view.astype(np.float64) / scale.view
    if gain is not None:
        exact = exact * gain.view
    out = x if in_place else scene.empty(backend, count, n)
    backend.normalize(x.view, scale.view, out.view, gain=None if gain is None else gain.view)
    slack = TINY * (2 + (0 if gain is None else np.abs(gain.view.astype(np.float64))) * 3)
    within(f"{bench.kind} normalize", "", out.view, exact, U * np.abs(exact), 3.0001, "u |out|", slack)
    out.check("out")
    scale.check("scale")


@given(scene=scenes, count=tokens, n=st.integers(1, 700), in_place=st.booleans())
@many
def test_scale(bench: Bench, scene: Scene, count: int, n: int, in_place: bool) -> None:
    backend = scene.backend(bench)
    x = scene.operand(backend, scene.values(count, n))
    factor = np.float32(scene.rng.uniform(0.5, 3))
    exact = x.view * factor
    out = x if in_place else scene.empty(backend, count, n)
    backend.scale(x.view, float(factor), out.view)
    same_bits(f"{bench.kind} scale", "", out.view, exact)
    for operand in (x, out):
        operand.check("scale")


@given(scene=scenes, count=tokens, rows=tokens, n=st.integers(1, 300))
@many
def test_take_rows(bench: Bench, scene: Scene, count: int, rows: int, n: int) -> None:
    """Bits are copied, NaNs and denormals too."""
    backend = scene.backend(bench)
    bits = scene.rng.integers(0, 2**32, (count, n), dtype=np.uint32)
    x, out = scene.operand(backend, bits.view(np.float32)), scene.empty(backend, rows, n)
    taken = scene.rng.integers(0, count, rows)
    backend.take_rows(x.view, taken.tolist(), out.view)
    same_bits(f"{bench.kind} take_rows", "", out.view, bits[taken].view(np.float32))
    out.check("out")


@pytest.mark.parametrize("rows", [511, 512, 513, 1025])
def test_take_many_rows(bench: Bench, rows: int) -> None:
    scene = Scene(Mode(), rows, "ordinary")
    backend = scene.backend(bench)
    x, out = scene.operand(backend, scene.values(40, 5)), scene.empty(backend, rows, 5)
    taken = scene.rng.integers(0, 40, rows)
    backend.take_rows(x.view, taken.tolist(), out.view)
    same_bits(f"{bench.kind} take_rows", "", out.view, x.view[taken])


@given(
    scene=scenes,
    count=tokens,
    heads=st.integers(1, 9),
    head_dim=st.one_of(st.integers(1, 40).map(lambda n: 2 * n), st.sampled_from([64, 80, 128, 256])),
    half_split=st.booleans(),
    part=st.sampled_from([1.0, 1.0, 0.75, 0.5, 0.01]),
)
@many
def test_rope(bench: Bench, scene: Scene, count: int, heads: int, head_dim: int, half_split: bool, part: float) -> None:
    backend = scene.backend(bench)
    turned = max(1, int(head_dim * part) // 2)  # pairs: the first numbers of a head
    x = scene.operand(backend, scene.values(count, heads * head_dim))
    angles = scene.rng.uniform(-1e4, 1e4, (count, turned))
    cos, sin = (scene.operand(backend, f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    by_head = x.view.astype(np.float64).reshape(count, heads, head_dim)
    pairs, rest = by_head[..., : 2 * turned], by_head[..., 2 * turned :]
    shape = (count, heads, 2, turned) if half_split else (count, heads, turned, 2)
    a, b = np.moveaxis(pairs.reshape(shape), 2 if half_split else 3, 0)
    c, s = (t.view.astype(np.float64)[:, None, :] for t in (cos, sin))
    axis = 2 if half_split else 3

    def whole(first: Doubles, second: Doubles, others: Doubles) -> Doubles:
        each = np.stack([first, second], axis=axis).reshape(count, heads, 2 * turned)
        return np.concatenate([each, others], axis=-1).reshape(count, heads * head_dim)

    exact = whole(a * c - b * s, b * c + a * s, rest)
    unit = U * whole(np.abs(a * c) + np.abs(b * s), np.abs(b * c) + np.abs(a * s), 0 * rest)
    backend.rope(x.view, cos.view, sin.view, head_dim, half_split)
    within(f"{bench.kind} rope", "", x.view, exact, unit, 2.0001, "u (|a c| + |b s|)", 8 * TINY)
    for operand in (x, cos, sin):
        operand.check("rope")


ALONE = ["silu", "gelu_tanh", "relu_squared"]
ACTIVATIONS = st.sampled_from([*ALONE, "clamped_swiglu"])


def activated(name: str, x: Doubles) -> tuple[Doubles, Doubles]:
    """f(x), and in u |f(x)| how far a float may be from it.

    e^-|y| is some units off, and by |y| times as much as y is, which for GELU is rounded four times.
    """
    if name == "relu_squared":
        return np.maximum(x, 0) ** 2, np.ones_like(x)
    y = x if name == "silu" else np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-y)), 11 + (0 if name == "silu" else 4.5 * np.maximum(0, -y)) + np.zeros_like(x)


@given(
    scene=scenes,
    count=tokens,
    n=st.integers(1, 700),
    activation=ACTIVATIONS,
    out=st.sampled_from(["new", "gate", "up"]),
)
@many
def test_gated(bench: Bench, scene: Scene, count: int, n: int, activation: str, out: str) -> None:
    backend = scene.backend(bench)
    gate, up = (scene.operand(backend, scene.values(count, n)) for _ in range(2))
    gate.view[...] *= np.float32(scene.rng.choice([1, 10, 60]))
    if activation == "clamped_swiglu":
        up.view[...] *= np.float32(10)  # beyond its clamps
    g, v = gate.view.astype(np.float64), up.view.astype(np.float64)
    if activation == "clamped_swiglu":
        g, v = np.minimum(g, 7), np.clip(v, -7, 7) + 1
        y = np.float64(np.float32(1.702)) * g
        with np.errstate(over="ignore"):
            value, units = g / (1 + np.exp(-y)), 14 + 2 * np.maximum(0, -y)
    else:
        value, units = activated(activation, g)
    exact = value * v
    place = {"new": scene.empty(backend, count, n), "gate": gate, "up": up}[out]
    backend.gated(getattr(bench.ops.Activation, activation), gate.view, up.view, place.view)
    # e^-|y| may be flushed, or taken for 0 a little above the least normal number, and then counts g * up times.
    slack = 2 * TINY * (1 + np.abs(v) + np.abs(g * v))
    bound = 12.0 if activation == "silu" else 1.0
    unit = U * np.abs(exact) * (1 if activation == "silu" else units + 1)
    within(f"{bench.kind} gated", activation, place.view, exact, unit, bound, "u |out|", slack)
    for operand in (gate, up, place):
        operand.check("gated")


@given(scene=scenes, count=tokens, n=st.integers(1, 700), activation=st.sampled_from(ALONE), in_place=st.booleans())
@many
def test_activate(bench: Bench, scene: Scene, count: int, n: int, activation: str, in_place: bool) -> None:
    backend = scene.backend(bench)
    x = scene.operand(backend, scene.values(count, n))
    x.view[...] *= np.float32(scene.rng.choice([1, 10, 60]))
    before = x.view.astype(np.float64)
    exact, units = activated(activation, before)
    place = x if in_place else scene.empty(backend, count, n)
    backend.activate(getattr(bench.ops.Activation, activation), x.view, place.view)
    slack = 2 * TINY * (1 + np.abs(before))
    within(f"{bench.kind} activate", activation, place.view, exact, U * np.abs(exact) * units, 1.0, "u f(y)", slack)
    for operand in (x, place):
        operand.check("activate")


@given(scene=scenes, count=tokens, n=st.integers(1, 700), in_place=st.booleans())
@many
def test_soft_cap(bench: Bench, scene: Scene, count: int, n: int, in_place: bool) -> None:
    """tanh within 5 ulps, which is what Metal promises, between a division and a product."""
    backend = scene.backend(bench)
    x = scene.operand(backend, scene.values(count, n))
    x.view[...] *= np.float32(scene.rng.choice([1, 30, 400]))
    cap = float(np.float32(scene.rng.choice([0.5, 30, 50])))
    exact = cap * np.tanh(x.view.astype(np.float64) / cap)
    place = x if in_place else scene.empty(backend, count, n)
    backend.soft_cap(x.view, cap, place.view)
    within(f"{bench.kind} soft_cap", "", place.view, exact, U * np.abs(exact), 13.0, "u |out|", 2 * TINY * (1 + cap))
    for operand in (x, place):
        operand.check("soft_cap")


@given(scene=scenes, count=tokens, n=st.integers(1, 700), out=st.sampled_from(["new", "a", "b"]))
@many
def test_add(bench: Bench, scene: Scene, count: int, n: int, out: str) -> None:
    backend = scene.backend(bench)
    a, b = (scene.operand(backend, scene.values(count, n)) for _ in range(2))
    exact = a.view + b.view
    place = {"new": scene.empty(backend, count, n), "a": a, "b": b}[out]
    backend.add(a.view, b.view, place.view)
    same_bits(f"{bench.kind} add", "", place.view, exact)
    for operand in (a, b, place):
        operand.check("add")


@given(scene=scenes, count=tokens, n=st.integers(1, 700))
@many
def test_add_bias(bench: Bench, scene: Scene, count: int, n: int) -> None:
    backend = scene.backend(bench)
    x, bias = scene.operand(backend, scene.values(count, n)), scene.operand(backend, scene.values(n))
    exact = x.view + bias.view
    backend.add_bias(x.view, bias.view)
    same_bits(f"{bench.kind} add_bias", "", x.view, exact)
    for operand in (x, bias):
        operand.check("add_bias")
