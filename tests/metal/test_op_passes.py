"""Ops one after another in a pass, what a backend refuses, and that no op is without a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import op_weights
import pytest
from numpy.typing import NDArray
from op_bench import Bench, Mode, Operand, Scene, same_bits

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def layer(
    bench: Bench, backend: Any, scene: Scene, raws: dict[str, op_weights.RawWeight], *, one_pass: bool
) -> list[Floats]:
    """The ops of a layer, as forward calls them; in one pass or each in its own. The same numbers for the same seed."""
    count, dim, heads, head_dim = 5, 64, 4, 16
    rng = np.random.default_rng(scene.seed)
    weights = {name: op_weights.weight(bench.ops, raw) for name, raw in raws.items()}

    def new(*shape: int, dtype: str = "f4") -> Any:
        return backend.array(list(shape), dtype)

    x, scale, gain = new(count, dim), new(count, 1), new(dim)
    x[...], gain[...] = rng.standard_normal((count, dim)), rng.uniform(0.5, 1.5, dim)
    cos, sin = new(count, head_dim // 2), new(count, head_dim // 2)
    angles = rng.uniform(0, 6, cos.shape)
    cos[...], sin[...] = np.cos(angles), np.sin(angles)
    q, k, v, z, out = new(count, dim), new(count, 32), new(count, 32), new(count, dim), new(count, dim)
    gate, up, last = new(count, 96), new(count, 96), new(1, dim)
    keys, values = new(2, 9, head_dim, dtype="f2"), new(2, 9, head_dim, dtype="f2")
    span = bench.ops.Span(row=0, count=count, position=2, keys=keys, values=values, divisor=4.0)
    if one_pass:
        backend.begin()
    done = False
    try:
        backend.rms_scale(x, 1e-5, scale)
        backend.matmul([weights["q"], weights["k"], weights["v"]], x, [q, k, v], scale=scale, gain=gain)
        backend.rope(q, cos, sin, head_dim, True)
        backend.rope(k, cos, sin, head_dim, True)
        backend.store_kv(k, v, [span])
        backend.attention(q, [span], z)
        backend.matmul([weights["o"]], z, [out])
        backend.add(x, out, x)
        backend.rms_scale(x, 1e-5, scale)
        backend.matmul([weights["gate"], weights["up"]], x, [gate, up], scale=scale, gain=gain)
        backend.gated(bench.ops.Activation.silu, gate, up, gate)
        backend.matmul([weights["down"]], gate, [out])
        backend.add(x, out, x)
        backend.take_rows(x, [count - 1], last)
        done = True
    finally:
        if one_pass:
            backend.end(done)
    assert heads == 4
    return [np.array(t) for t in (x, q, k, z, gate, keys, values, last)]


@pytest.mark.parametrize("name", op_weights.FORMATS)
def test_ops_of_one_pass_wait_for_each_other(bench: Bench, name: str) -> None:
    """A layer in one pass gives the bits of the same ops one at a time, in every order of threads and groups."""
    rng = np.random.default_rng(1)
    wide = 256 if op_weights.FORMATS[name].cols == 256 else 0
    if wide:
        pytest.skip("a layer of 64 is too narrow for blocks of 256; their products are tested above")
    sizes = {
        "q": (64, 64),
        "k": (32, 64),
        "v": (32, 64),
        "o": (64, 64),
        "gate": (96, 64),
        "up": (96, 64),
        "down": (64, 96),
    }
    raws = {part: op_weights.FORMATS[name].make(*size, rng, False) for part, size in sizes.items()}
    for contract in ("off", "on") if bench.soft else ("off",):
        expected = None
        for mode in bench.modes:
            if (mode.contract, mode.ftz) != (contract, "off"):
                continue
            backend = bench.backend(mode)
            for one_pass in (True, False):
                got = layer(bench, backend, Scene(mode, 3, "ordinary"), raws, one_pass=one_pass)
                expected = expected or got
                for a, b in zip(got, expected, strict=True):
                    same_bits(f"{bench.kind} layer", name, a, b)


def test_every_op_is_tested() -> None:
    """The list of a backend's ops is that of its header."""
    here = Path(__file__).parent
    header = (here.parents[1] / "src" / "cpp" / "backend" / "backend.h").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in here.glob("test_op_*.py"))
    found = [line.split("(")[0].split()[-1] for line in header.splitlines() if line.startswith("  virtual void ")]
    others = {"acquire", "release", "pack", "parallel_for", "sync"}
    others |= {"narrow"}  # by the calling thread: tests/cpp/test_hooks.cpp
    others |= {
        "route",
        "matmul_experts",
        "add_expert_bias",
        "mix_experts",
    }  # the CPU's alone: tests/cpp/test_experts.cpp
    assert others < set(found)
    assert [op for op in found if op not in others and f"backend.{op}(" not in tests] == []


def test_memory_of_others_is_refused(bench: Bench) -> None:
    if bench.kind != "metal":
        pytest.skip("the CPU reads any memory")
    backend = bench.backend(Mode())
    x = Operand(backend, np.ones((2, 8), np.float32))
    with pytest.raises(ValueError, match="add"):
        backend.add(x.view, np.ones((2, 8), np.float32), x.view)
