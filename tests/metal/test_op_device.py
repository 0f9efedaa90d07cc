"""What the host owes the device: memory that comes and goes, views of files, errors of commands, work given up."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import op_weights
import pytest
from op_bench import Bench, Operand


@pytest.fixture
def soft(bench: Bench) -> Any:
    """The software device with no object of an earlier test's."""
    if not bench.soft:
        pytest.skip("of the software device")
    bench.made.clear()
    gc.collect()
    bench.ops.soft.set_options("")
    bench.ops.soft.take_late_faults()
    yield bench.ops.soft
    bench.made.clear()
    gc.collect()
    bench.ops.soft.set_options("")
    assert bench.ops.soft.take_late_faults() == []


def product(ops: Any, backend: Any, raw: op_weights.RawWeight, weight: Any) -> None:
    """Two tokens, checked."""
    x = Operand(backend, np.random.default_rng(1).standard_normal((2, raw.cols)).astype(np.float32))
    out = Operand(backend, np.zeros((2, raw.rows), np.float32))
    backend.matmul([weight], x.view, [out.view])
    exact = x.view.astype(np.float64) @ raw.values.T
    assert np.all(np.abs(out.view - exact) <= 1e-6 * (np.abs(x.view) @ np.abs(raw.values).T))


def test_all_objects_are_let_go_of(bench: Bench, soft: Any) -> None:
    before = soft.live_objects()
    backend = bench.ops.Backend("metal")
    raw = op_weights.FORMATS["q8_0"].make(20, 64, np.random.default_rng(2), False)
    product(bench.ops, backend, raw, op_weights.weight(bench.ops, raw))
    assert soft.live_objects() > before
    del backend
    gc.collect()
    assert soft.live_objects() == before, soft.describe_live_objects()


def test_memory_goes_with_its_arrays_and_weights(bench: Bench, soft: Any, tmp_path: Path) -> None:
    backend = bench.ops.Backend("metal")
    raw = op_weights.FORMATS["f16"].make(20, 64, np.random.default_rng(2), False)

    def use(where: Path | None) -> None:
        weight = op_weights.weight(bench.ops, raw, folder=where, offset=1)
        product(bench.ops, backend, raw, weight)
        weight = op_weights.weight(bench.ops, raw, folder=where)
        product(bench.ops, backend, raw, weight)

    def settle() -> int:
        gc.collect()
        x = backend.array([1, 4])
        backend.add(x, x, x)  # a pass's end is when weights that are gone are let go of
        del x
        gc.collect()
        return int(soft.live_objects("Buffer"))

    use(None)
    before = settle()
    for _ in range(3):
        use(None)
        use(tmp_path)
    assert settle() <= before
    for n in range(1, 50):
        backend.array([n, 100])
    assert settle() <= before


def test_new_memory_is_zero(bench: Bench, soft: Any) -> None:
    backend = bench.ops.Backend("metal")
    for n in (1, 7, 4096):
        assert not backend.array([n]).any()


def test_other_weights_at_the_same_address(bench: Bench, soft: Any) -> None:
    """Memory is used again by whoever asks next: what was made of the old weights is not taken for the new ones'."""
    backend = bench.ops.Backend("metal")
    memory = np.empty(20 * 64 * 4 + 64, np.uint8)
    place = memory[-memory.ctypes.data % 64 :][: 20 * 64 * 4]
    for seed in range(3):
        raw = op_weights.FORMATS["f32"].make(20, 64, np.random.default_rng(seed), False)
        place[:] = raw.planes[0][0]
        weight = bench.ops.Weight("f32", 20, 64, [(place, 64 * 4)])
        product(bench.ops, backend, raw, weight)
        del weight
        gc.collect()


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_larger_than_a_buffer(bench: Bench, soft: Any, tmp_path: Path, mapped: bool) -> None:
    """A mapped file is seen through several views, one of which has each weight whole."""
    soft.set_options("max_buffer=16k")
    backend = bench.ops.Backend("metal")
    rng = np.random.default_rng(3)
    raws = [op_weights.FORMATS["f16"].make(30, 100, rng, False) for _ in range(12)]  # of 6,000 bytes each
    content, places = bytearray(), []
    for raw in raws:
        content.extend(bytes(-len(content) % 32))
        places.append(len(content))
        content.extend(raw.planes[0][0].tobytes())
    path = tmp_path / "file"
    path.write_bytes(content)
    file = bench.ops.File(str(path), mapped)
    weights = [bench.ops.Weight("f16", 30, 100, [((file, place, 6000), 200)]) for place in places]
    for raw, weight in zip(raws, weights, strict=True):
        product(bench.ops, backend, raw, weight)
    if not mapped:
        return
    # Where they lie, and in no copy: what is written to the file is seen.
    others = [op_weights.FORMATS["f16"].make(30, 100, rng, False) for _ in raws]
    with path.open("r+b") as changed:
        for raw, place in zip(others, places, strict=True):
            changed.seek(place)
            changed.write(raw.planes[0][0].tobytes())
    for raw, weight in zip(others, weights, strict=True):
        product(bench.ops, backend, raw, weight)


def sparse_weight(bench: Bench, folder: Path) -> tuple[op_weights.RawWeight, Any]:
    """Six rows in a file of 5 GB, most of which is nowhere."""
    row_bytes = (1 << 30) + 4096
    raw = op_weights.FORMATS["f16"].make(6, 64, np.random.default_rng(4), False)
    path = folder / "sparse"
    with path.open("wb") as file:
        for row in range(6):
            file.seek(row * row_bytes)
            file.write(raw.planes[0][0][row * 128 : row * 128 + 128].tobytes())
    size = path.stat().st_size
    assert size > 1 << 32
    return raw, bench.ops.Weight("f16", 6, 64, [((bench.ops.File(str(path)), 0, size), row_bytes)])


def test_rows_beyond_4_gigabytes(bench: Bench, soft: Any, tmp_path: Path) -> None:
    """Offsets of rows do not fit into 32 bits."""
    soft.set_options("max_buffer=8g")
    backend = bench.ops.Backend("metal")
    raw, weight = sparse_weight(bench, tmp_path)
    product(bench.ops, backend, raw, weight)
    x, out = Operand(backend, np.eye(9, 64, dtype=np.float32)), Operand(backend, np.zeros((9, 6), np.float32))
    backend.matmul([weight], x.view, [out.view])
    assert np.array_equal(out.view, raw.values[:, :9].T.astype(np.float32))
    embedded = Operand(backend, np.zeros((2, 64), np.float32))
    backend.embed(weight, [5, 4], embedded.view)
    assert np.array_equal(embedded.view, raw.values[[5, 4]].astype(np.float32))


@pytest.mark.parametrize("failure", ["timeout", "interactivity", "out_of_memory", "submissions_ignored"])
def test_an_error_of_a_command_is_an_exception_and_the_next_pass_works(bench: Bench, soft: Any, failure: str) -> None:
    backend = bench.ops.Backend("metal")
    x = backend.array([3, 8])
    x[...] = 1
    soft.set_options(f"fail={failure}@1")
    with pytest.raises(RuntimeError):
        backend.add(x, x, x)
    soft.set_options("")
    x[...] = 1
    backend.add(x, x, x)
    assert np.array_equal(x, np.full((3, 8), 2))


def test_a_pass_that_is_given_up_leaves_nothing_behind(bench: Bench, soft: Any) -> None:
    """As when something throws in the middle of forward: no later pass runs what was encoded."""
    backend = bench.ops.Backend("metal")
    x, y = backend.array([3, 8]), backend.array([3, 8])
    x[...] = 1
    backend.begin()
    backend.add(x, x, y)
    backend.end(False)
    assert not np.any(y == 2)
    y[...] = 5
    backend.begin()
    backend.add(x, x, x)
    backend.end()
    assert np.array_equal(x, np.full((3, 8), 2))
    assert np.array_equal(y, np.full((3, 8), 5))


def test_a_long_pass_is_committed_in_portions(bench: Bench, soft: Any, tmp_path: Path) -> None:
    """So that a caller is not gone for long: what takes a GPU 0.1 s is a command buffer of its own."""
    soft.set_options("max_buffer=8g")
    backend = bench.ops.Backend("metal")
    raw, weight = sparse_weight(bench, tmp_path)
    x, out = backend.array([1, raw.cols]), backend.array([1, raw.rows])
    soft.reset_counters()
    backend.begin()
    for _ in range(4):
        backend.matmul([weight], x, [out])
    backend.end()
    assert soft.counters()["commits"] == 4


def test_what_was_committed_is_done_when_a_pass_is_given_up(bench: Bench, soft: Any, tmp_path: Path) -> None:
    """Its memory is the host's again: the device tells of a write to memory that a command still uses."""
    soft.set_options("max_buffer=8g")
    backend = bench.ops.Backend("metal")
    raw, weight = sparse_weight(bench, tmp_path)
    x, out = backend.array([1, raw.cols]), backend.array([1, raw.rows])
    backend.begin()
    backend.matmul([weight], x, [out])
    assert soft.counters()["commits"] > 0
    backend.end(False)
    assert soft.counters()["waits"] == soft.counters()["commits"]
    x[...], out[...] = 2, 3
    backend.add(out, out, out)
    assert np.array_equal(out, np.full((1, raw.rows), 6))


def test_a_forked_child_is_refused_with_advice(bench: Bench, soft: Any) -> None:
    backend = bench.ops.Backend("metal")
    x = backend.array([1, 4])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            backend.add(x, x, x)
            text = "no exception"
        except RuntimeError as error:
            text = str(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert "spawn" in pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    backend.add(x, x, x)
