"""Products and embed of every format, against what the weights' bytes stand for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import op_weights
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_bench import COST, MODES, TINY, Bench, Mode, Operand, Scene, U, few, same_bits, scenes, tokens, within

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def bound_of(bench: Bench, scene: Scene, name: str, count: int, cols: int) -> float:
    """The bound on a product, in u sum|w||x|.

    Signs by chance let roundings cancel: 2, or 8 in tiles, is far above what is seen of them. Where numbers differ much
    in size, a few of them are the sum, and every number after them may cost a rounding of it: so the bound counts
    additions, `chain` of them by one thread, the sum over a simdgroup, and the roundings of a weight.
    """
    step = bench.kind == "metal" and count <= 8
    if scene.numbers != "wide":
        return 2.0 if step else 8.0
    chain = 32 * -(-cols // 1024) if step else cols
    return chain + 5 + (0 if name in op_weights.FLOATS else 3) + 2


def check_matmul(
    bench: Bench, scene: Scene, raws: list[op_weights.RawWeight], weights: list[Any], count: int, norm: str, op: str
) -> None:
    backend = scene.backend(bench)
    cols = raws[0].cols
    x = scene.operand(backend, scene.values(count, cols))
    outs = [scene.empty(backend, count, raw.rows) for raw in raws]
    scale = gain = None
    exact_x = x.view.astype(np.float64)
    if norm != "none":
        scale = scene.operand(backend, scene.rng.uniform(0.25, 4, (count, 1)).astype(np.float32), offset=1)
        exact_x = exact_x / scale.view
    if norm == "gain":
        gain = scene.operand(backend, scene.rng.uniform(0.5, 1.5, cols).astype(np.float32))
        exact_x = exact_x * gain.view
    before = x.view.copy()
    backend.matmul(
        weights,
        x.view,
        [out.view for out in outs],
        scale=None if scale is None else scale.view,
        gain=None if gain is None else gain.view,
    )
    same_bits(f"{op} leaves x", "", x.view, before)
    bound = bound_of(bench, scene, raws[0].format, count, cols) + {"none": 0, "scale": 2, "gain": 3}[norm]
    for raw, out in zip(raws, outs, strict=True):
        unit = U * (np.abs(exact_x) @ np.abs(raw.values).T)
        # What is flushed: each product, each x, each decoded number.
        lost = cols + np.abs(raw.values).sum(1)[None, :] + np.abs(exact_x).sum(1)[:, None]
        name = f"{op} {'norm ' if norm != 'none' else ''}T {'1-8' if count <= 8 else '9-70'}"
        name += " wide" if scene.numbers == "wide" else ""
        within(
            f"{bench.kind} {name}",
            raw.format,
            out.view,
            exact_x @ raw.values.T,
            unit,
            bound,
            "u sum|w||x|",
            4 * TINY * lost,
        )
    for operand, what in ((x, "x"), *((out, "out") for out in outs)):
        operand.check(what)


def columns_of(facts: op_weights.FormatFacts, draw: Any, most: int) -> int:
    largest = max(most // facts.cols, 1)
    usual = [n for n in (1, 2, 3, 4, 5, 8, 16, 18, 32, 64, 128) if n <= largest]
    return facts.cols * int(draw(st.one_of(st.sampled_from(usual), st.integers(1, largest))))


def rows_of(facts: op_weights.FormatFacts, draw: Any, most: int) -> int:
    largest = max(min(most, 300) // facts.rows, 1)
    usual = [n for n in (1, 2, 3, 4, 5, 7, 8, 9, 33, 64, 65, 130) if n <= largest]
    return facts.rows * int(draw(st.one_of(st.sampled_from(usual), st.integers(1, largest))))


@pytest.mark.parametrize("name", op_weights.FORMATS)
@given(scene=scenes, count=tokens, data=st.data())
@few
def test_matmul(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, name: str, scene: Scene, count: int, data: Any
) -> None:
    """Weights in arrays, in a mapped file and in one that was read, at any place; some columns of wider ones."""
    facts = op_weights.FORMATS[name]
    cols = columns_of(facts, data.draw, 4096)
    raws = [
        facts.make(rows_of(facts, data.draw, COST // count // cols), cols, scene.rng, scene.numbers == "wide")
        for _ in range(data.draw(st.sampled_from([1, 1, 2, 3])))
    ]
    if len(raws[0].planes) == 1 and cols >= 2 * facts.cols and data.draw(st.booleans()):
        begin = facts.cols * data.draw(st.integers(0, cols // facts.cols - 1))
        end = facts.cols * data.draw(st.integers(begin // facts.cols + 1, cols // facts.cols))
        raws = [raw.columns(begin, end) for raw in raws]
    where = data.draw(st.sampled_from(["array", "file", "read"]))
    offset = data.draw(st.sampled_from([0, 0, 32, 4, 2, 28, 1, 7]))
    weights = [
        op_weights.weight(
            bench.ops,
            raw,
            offset=offset,
            folder=None if where == "array" else tmp_path_factory.mktemp("weights"),
            mapped=where == "file",
        )
        for raw in raws
    ]
    check_matmul(
        bench, scene, raws, weights, count, data.draw(st.sampled_from(["none", "none", "scale", "gain"])), "matmul"
    )


@given(scene=scenes, count=tokens, names=st.lists(st.sampled_from(list(op_weights.FORMATS)), min_size=2, max_size=3))
@few
def test_matmul_of_several_formats(bench: Bench, scene: Scene, count: int, names: list[str]) -> None:
    raws = [op_weights.FORMATS[name].make(32, 256, scene.rng, False) for name in names]
    check_matmul(bench, scene, raws, [op_weights.weight(bench.ops, raw) for raw in raws], count, "gain", "matmul")


@pytest.mark.parametrize("name", op_weights.FORMATS)
def test_matmul_of_every_kind(bench: Bench, name: str) -> None:
    """A step and a prompt, with each form of a norm, of numbers of one size and of many: none is left to chance."""
    rng = np.random.default_rng(5)
    kinds = itertools.product([1, 5, 33], ["none", "scale", "gain"], ["ordinary", "wide"])
    for place, (count, norm, numbers) in enumerate(kinds):
        scene = Scene(MODES[5 * place % len(MODES)], place, numbers)
        raw = op_weights.FORMATS[name].make(32, 256, rng, numbers == "wide")
        check_matmul(bench, scene, [raw], [op_weights.weight(bench.ops, raw)], count, norm, "matmul")


@pytest.mark.parametrize("count", [1, 7, 33])
@pytest.mark.parametrize("name", op_weights.FORMATS)
def test_the_last_tile_is_cut_short(bench: Bench, name: str, count: int) -> None:
    """What fills no tile of rows, columns or tokens, of weights that end with their memory: nothing else is read."""
    facts = op_weights.FORMATS[name]
    rng = np.random.default_rng(count)
    for rows, cols in ((5, 36), (67, 96), (3, 260)):
        rows, cols = -(-rows // facts.rows) * facts.rows, -(-cols // facts.cols) * facts.cols
        raw = facts.make(rows, cols, rng, False)
        check_matmul(
            bench, Scene(Mode(), rows, "ordinary"), [raw], [op_weights.weight(bench.ops, raw)], count, "none", "matmul"
        )


@pytest.mark.parametrize("count", [1, 8, 9, 40])
@pytest.mark.parametrize("name", op_weights.FORMATS)
def test_what_is_not_finite_stays_in_its_token(bench: Bench, name: str, count: int) -> None:
    """A NaN or an infinity in a row of x shows in that row of out; tiles and small batches keep the rest apart."""
    raw = op_weights.FORMATS[name].make(64, 256, np.random.default_rng(count + 1000), False)
    weight = op_weights.weight(bench.ops, raw)
    scene = Scene(Mode(), count, "ordinary")
    backend = scene.backend(bench)
    values = scene.values(count, 256)
    for bad in (np.nan, np.inf):
        x, out = Operand(backend, values), Operand(backend, np.zeros((count, 64), np.float32))
        row = count // 2
        x.view[row, 77] = bad
        backend.matmul([weight], x.view, [out.view])
        others = np.arange(count) != row
        touched = raw.values[:, 77] != 0
        assert np.all(np.isfinite(out.view[others]))
        assert not np.any(np.isfinite(out.view[row, touched]))
        exact = values[others].astype(np.float64) @ raw.values.T
        unit = U * (np.abs(values[others]).astype(np.float64) @ np.abs(raw.values).T)
        assert np.all(np.abs(out.view[others] - exact) <= 8 * unit)


@pytest.mark.parametrize("name", op_weights.FORMATS)
@given(scene=scenes, count=tokens, data=st.data())
@few
def test_embed(bench: Bench, name: str, scene: Scene, count: int, data: Any) -> None:
    facts = op_weights.FORMATS[name]
    cols = columns_of(facts, data.draw, 2048)
    raw = facts.make(rows_of(facts, data.draw, 40), cols, scene.rng, scene.numbers == "wide")
    check_embed(bench, scene, raw, scene.rng.integers(0, raw.rows, count))


def check_embed(bench: Bench, scene: Scene, raw: op_weights.RawWeight, ids: NDArray[np.int64]) -> None:
    backend = scene.backend(bench)
    table = op_weights.weight(bench.ops, raw, offset=int(scene.rng.choice([0, 2, 1])))
    out = scene.empty(backend, len(ids), raw.cols)
    backend.embed(table, ids.tolist(), out.view)
    exact = raw.values[ids]
    name = f"{bench.kind} embed"
    if op_weights.FORMATS[raw.format].exact:
        zero = np.float32(-0.0 if raw.format in op_weights.FLOATS else 0)  # 0 * -d need not be -0
        same_bits(name, raw.format, out.view + zero, exact.astype(np.float32) + zero)
    else:
        within(name, raw.format, out.view, exact, U * np.abs(exact), 1.0, "u |w|", 2 * TINY)
    out.check("out")


def test_no_tokens(bench: Bench) -> None:
    backend = bench.backend(Mode())
    weight = op_weights.weight(bench.ops, op_weights.FORMATS["q8_0"].make(5, 64, np.random.default_rng(1), False))
    x, out = (Operand(backend, np.zeros((0, n), np.float32)) for n in (64, 5))
    backend.matmul([weight], x.view, [out.view])
    backend.embed(weight, [], x.view)


@pytest.mark.parametrize("count", [1024, 1025, 2500])
def test_embed_of_more_ids_than_setbytes_takes(bench: Bench, count: int) -> None:
    scene = Scene(Mode(), count, "ordinary")
    raw = op_weights.FORMATS["f16"].make(300, 33, scene.rng, False)
    check_embed(bench, scene, raw, scene.rng.integers(0, 300, count))


def test_formats_without_a_kernel_are_refused_with_advice(bench: Bench) -> None:
    if bench.kind != "metal":
        pytest.skip("the CPU has kernels for all")
    refused = set(bench.ops.formats) - set(op_weights.FORMATS)
    assert refused == {"llm_int8", "f64", "iq4_nl", "iq4_xs", "mxfp4"}
    backend = bench.backend(Mode())
    x, out, row = (Operand(backend, np.zeros((1, n), np.float32)) for n in (256, 32, 256))
    for name in sorted(refused):
        weight = bench.ops.Weight(name, 32, 256, [(np.zeros(65536, np.uint8), 2048)] * 3, group=32)
        with pytest.raises(Exception, match=rf"{name}(.|\n)*cpu"):
            backend.matmul([weight], x.view, [out.view])
        with pytest.raises(Exception, match=rf"{name}(.|\n)*cpu"):
            backend.embed(weight, [0], row.view)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 37])
@pytest.mark.parametrize("name", op_weights.FORMATS)
def test_products_in_every_mode(bench: Bench, name: str, count: int) -> None:
    """All orders give the same bits, as no thread depends on another's; every way to round is within the bounds."""
    facts = op_weights.FORMATS[name]
    bits: dict[tuple[str, str], Floats] = {}
    for mode in bench.modes:
        scene = Scene(mode, 5, "ordinary")
        rng = np.random.default_rng(6)
        cols = {256: 512, 32: 96, 16: 80, 8: 72, 4: 76, 1: 75}[facts.cols]
        raw = facts.make(-(-67 // facts.rows) * facts.rows, cols, rng, False)
        backend = scene.backend(bench)
        x, out = (
            Operand(backend, scene.values(count, cols), gap=5),
            Operand(backend, np.zeros((count, raw.rows), np.float32), gap=3),
        )
        backend.matmul([op_weights.weight(bench.ops, raw)], x.view, [out.view])
        exact_x = x.view.astype(np.float64)
        unit = U * (np.abs(exact_x) @ np.abs(raw.values).T)
        bound = bound_of(bench, scene, name, count, cols)
        within(
            f"{bench.kind} matmul T {'1-8' if count <= 8 else '9-70'}",
            name,
            out.view,
            exact_x @ raw.values.T,
            unit,
            bound,
            "u sum|w||x|",
        )
        first = bits.setdefault((mode.contract, mode.ftz), out.view.copy())
        same_bits(f"{bench.kind} orders", name, out.view, first)
