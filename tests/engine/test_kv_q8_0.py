"""Keys and values in q8_0: what the arrays show, and everything else that a session does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny
from numpy.typing import NDArray
from on_metal import ON_METAL

import llama2cpp
from llama2cpp.common.kv_size import kv_bytes

pytestmark = pytest.mark.skipif(ON_METAL, reason="kv_dtype='q8_0' runs on the CPU")

CONFIG = tiny.config(n_layers=3, head_dim=32)
PROMPT = tiny.tokens(CONFIG, 23)


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG, kv_dtype="q8_0")


def fed(model: llama2cpp.Model, tokens: list[int] = PROMPT) -> llama2cpp.Session:
    session = model.session()
    session.prefill(tokens)
    return session


def as_q8_0(x: NDArray[Any]) -> NDArray[np.float32]:
    """What blocks of 32 numbers along the last axis stand for, in plain NumPy."""
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore"):
        quotient = np.where(scale > 0, groups / scale, 0)
    q = np.sign(quotient) * np.floor(np.abs(quotient) + 0.5)  # halves away from zero
    numbers: NDArray[np.float32] = q.astype(np.float32) * scale.astype(np.float16).astype(np.float32)
    return numbers.reshape(x.shape)


def test_arrays_show_the_rounded_numbers(model: llama2cpp.Model) -> None:
    """Of the first layer, whose keys and values no rounding came before."""
    exact = fed(tiny.model(CONFIG, kv_dtype="f32"))
    session = fed(model)
    for ours, theirs in ((session.kv.keys, exact.kv.keys), (session.kv.values, exact.kv.values)):
        shown = ours(0)
        assert shown.dtype == np.float32
        assert np.array_equal(shown, as_q8_0(theirs(0)))
    assert "q8_0" in repr(session.kv)
    assert "read-only copies" in session.kv._repr_html_()
    unrotated = session.kv.unrotated_keys(0)
    np.testing.assert_allclose(unrotated, exact.kv.unrotated_keys(0), rtol=0, atol=2e-2)


def test_arrays_are_copies_that_refuse_to_be_written(model: llama2cpp.Model) -> None:
    session = fed(model)
    keys, values = session.kv.keys(0), session.kv.values(-1)
    for array in (keys, values):
        with pytest.raises(ValueError, match=r"q8_0 are shown as read-only copies: .*kv_dtype='f16'"):
            array[0] = 0
    before = keys.copy()
    session.rewind(0)
    session.prefill([1] * 23)
    assert np.array_equal(keys, before)


def test_logits_are_near_and_ones_own(model: llama2cpp.Model) -> None:
    exact, rounded = fed(tiny.model(CONFIG, kv_dtype="f32")).logits, fed(model).logits
    assert exact is not None
    assert rounded is not None
    difference = np.abs(rounded - exact).max()
    assert 0 < difference < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("chunk", [1, 5, 22])
def test_chunks_forks_rewinds_and_companions_change_no_bit(model: llama2cpp.Model, chunk: int) -> None:
    whole = fed(model).logits
    assert whole is not None
    session = model.session()
    for begin in range(0, len(PROMPT), chunk):
        session.prefill(PROMPT[begin : begin + chunk])
    assert session.logits is not None
    assert session.logits.tobytes() == whole.tobytes()
    fork = session.fork()
    expected = fork.step(3).tobytes()
    session.step(9)
    session.rewind(len(PROMPT))
    assert session.step(3).tobytes() == expected
    others = [fed(model, PROMPT[:5]), fed(model, PROMPT[:17]), fed(model)]
    assert model.forward([(other, [3]) for other in others])[2].tobytes() == expected


def test_saved_sessions_go_on_with_the_same_bits(model: llama2cpp.Model, tmp_path: Path) -> None:
    session = fed(model)
    session.save(tmp_path / "session")
    loaded = model.load_session(tmp_path / "session")
    assert np.array_equal(loaded.kv.keys(1), session.kv.keys(1))
    blocks = safetensors.numpy.load_file(tmp_path / "session")["layers.1.keys"]
    assert blocks.dtype == np.uint8
    assert blocks.shape == (len(PROMPT), CONFIG.n_kv_heads, 34)
    scales = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    assert np.array_equal(blocks[..., 2:].view(np.int8) * scales, session.kv.keys(1))
    assert loaded.step(3).tobytes() == session.step(3).tobytes()
    with pytest.raises(llama2cpp.FormatError, match='metadata \'kv\' is "q8_0", expected "f16"'):
        tiny.model(CONFIG, kv_dtype="f16").load_session(tmp_path / "session")


def test_splices(model: llama2cpp.Model) -> None:
    """What is rounded already stays as it is, also of another position's or type's."""
    other = tiny.tokens(CONFIG, 23, seed=1)
    session, source = fed(model), fed(model, other)
    session.kv.splice(source.kv, 0, 23)
    for layer in range(3):
        assert np.array_equal(session.kv.keys(layer), source.kv.keys(layer))
        assert np.array_equal(session.kv.values(layer), source.kv.values(layer))
    assert session.step(5).tobytes() == source.step(5).tobytes()
    floats = fed(tiny.model(CONFIG, kv_dtype="f32"), other)
    session.kv.splice(floats.kv, 2, 5, at=4, layers=[1])
    assert np.array_equal(session.kv.values(1)[4:7], as_q8_0(floats.kv.values(1)[2:5]))
    assert np.abs(session.kv.keys(1)[4:7] - fed(model, other).kv.keys(1)[2:5]).max() > 0  # they were turned


def test_hooks_start_at_layer_and_gradients(model: llama2cpp.Model) -> None:
    """What looks inside sees the numbers that attention computes with; gradients go through the rounding."""
    logits, cache = model.run_with_cache(PROMPT, remove_batch_dim=True)
    session = fed(model)
    assert session.logits is not None
    assert np.asarray(logits)[0, -1].tobytes() == session.logits.tobytes()
    group = CONFIG.n_heads // CONFIG.n_kv_heads
    values = np.repeat(session.kv.values(1).astype(np.float64), group, axis=1)  # [T, heads, head_dim]
    z = np.einsum("hqk,khd->qhd", cache["pattern", 1].astype(np.float64), values)
    np.testing.assert_allclose(cache["z", 1], z, rtol=0, atol=1e-5)
    again = model.run_with_hooks(cache["resid_pre", 1], start_at_layer=1)
    assert np.array_equal(np.asarray(again)[-1], np.asarray(logits)[-1])
    dlogits = np.zeros((len(PROMPT), CONFIG.vocab_size), np.float32)
    dlogits[-1, 7] = 1
    ours = cache.backward(dlogits, ["resid_pre", "k", "v"])
    _, exact = tiny.model(CONFIG, kv_dtype="f32").run_with_cache(PROMPT, remove_batch_dim=True)
    for name, expected in exact.backward(dlogits, ["resid_pre", "k", "v"]).items():
        assert 0 < np.abs(ours[name] - expected).max() < 0.05 * np.abs(expected).max()


def test_bytes_are_counted(model: llama2cpp.Model, tmp_path: Path) -> None:
    """As many as the blocks take."""
    assert kv_bytes(CONFIG, "q8_0", 10) == 2 * 3 * 10 * CONFIG.n_kv_heads * 34
    assert kv_bytes(CONFIG, "f16", 10) > 1.8 * kv_bytes(CONFIG, "q8_0", 10)
    position = len(PROMPT)
    session = fed(model)
    session.save(tmp_path / "session")
    with safetensors.safe_open(tmp_path / "session", "np") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys() if name.startswith("layers"))  # noqa: SIM118
    assert stored == kv_bytes(CONFIG, "q8_0", position)


@pytest.mark.parametrize("head_dim", [6, 16, 48, 100])
def test_heads_that_blocks_do_not_fill(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"^kv_dtype is 'q8_0', but head_dim is {head_dim}, expected a multiple of 32"):
        tiny.model(tiny.config(head_dim=head_dim), kv_dtype="q8_0")


def test_words_around_it() -> None:
    for kv_dtype in ("q8", "q4_0", "int8"):
        with pytest.raises(ValueError, match=f"kv_dtype is '{kv_dtype}', expected one of: auto, f32, f16, q8_0"):
            tiny.model(CONFIG, kv_dtype=kv_dtype)
    with pytest.raises(ValueError, match="kv_dtype is 'q8_0', but precision='exact' stands for 'f32'"):
        llama2cpp.load(kv_dtype="q8_0", precision="exact")
    with pytest.raises(
        ValueError, match=r"kv_dtype is 'q8_0', which runs on the CPU only; use 'f16', or backend='cpu'"
    ):
        llama2cpp.load(kv_dtype="q8_0", backend="metal")
    story = llama2cpp.load(kv_dtype="q8_0")  # llama2.c's int8, in its order of arithmetic
    assert story.backend == "cpu"
    kv_room = kv_bytes(story.config, "q8_0", 40) + 8 * story.config.vocab_size
    with llama2cpp.Engine(story, kv_bytes=kv_room, prefix_bytes=0) as engine:
        pieces = [engine.submit("Once upon a time", max_tokens=20, temperature=0).result() for _ in range(2)]
        with pytest.raises(MemoryError, match="kv_bytes="):
            engine.submit("Once upon a time", max_tokens=60, temperature=0).result()
    assert {piece.text for piece in pieces} == {str(story.generate("Once upon a time", max_tokens=20, temperature=0))}
