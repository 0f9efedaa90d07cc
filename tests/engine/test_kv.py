"""Keys without rotation, and keys and values from one session in another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny

import llama2cpp

YARN = {
    "type": "yarn",
    "factor": 16.0,
    "original_context": 16,
    "attention_factor": 1.277,  # cos and sin are multiplied by it
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 16}
SIZES: dict[str, dict[str, Any]] = {
    "interleaved": {},
    "half split": {"rope_style": "half_split"},
    "scaled": {"rope_scaling": {"type": "linear", "factor": 3.0}, "head_dim": 6},
    "yarn": {"rope_scaling": YARN, "rope_style": "half_split"},
}


@pytest.fixture(params=SIZES)
def model(request: pytest.FixtureRequest) -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=3, **SIZES[request.param]))


def fed(model: llama2cpp.Model, tokens: list[int]) -> llama2cpp.Session:
    session = model.session()
    session.prefill(tokens)
    return session


@pytest.mark.parametrize("kv", ["f32", "f16"])
@pytest.mark.parametrize("style", ["interleaved", "half_split"])
@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 3.0}, LLAMA3, YARN])
def test_unrotated_keys_are_what_the_hook_saw(kv: str, style: str, scaling: dict[str, Any] | None) -> None:
    model = tiny.model(tiny.config(rope_style=style, rope_scaling=scaling), kv_dtype=kv)
    tokens = tiny.tokens(model.config, 30)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    session = fed(model, tokens)
    for layer in range(model.config.n_layers):
        keys = session.kv.unrotated_keys(layer)
        assert keys.dtype == np.float32
        assert not np.shares_memory(keys, session.kv.keys(layer))
        np.testing.assert_allclose(keys, cache["k", layer], rtol=0, atol=1e-5 if kv == "f32" else 4e-3)
    with pytest.raises(ValueError, match="layer"):
        session.kv.unrotated_keys(model.config.n_layers)
    assert model.session().kv.unrotated_keys(0).shape == (0, 2, 6)


def test_splicing_everything_makes_the_other_session(model: llama2cpp.Model) -> None:
    one, other = tiny.tokens(model.config, 9), tiny.tokens(model.config, 9, seed=1)
    session, source = fed(model, one), fed(model, other)
    before = session.logits
    session.kv.splice(source.kv, 0, 9)
    assert session.tokens == one
    assert before is not None
    assert session.logits is not None
    assert session.logits.tobytes() == before.tobytes()
    assert session.step(5).tobytes() == source.step(5).tobytes()


def test_splicing_some(model: llama2cpp.Model) -> None:
    """Only those positions in those layers, with their bits."""
    session, source = fed(model, tiny.tokens(model.config, 9)), fed(model, tiny.tokens(model.config, 7, seed=1))
    before = [(session.kv.keys(i).copy(), session.kv.values(i).copy()) for i in range(3)]
    session.kv.splice(source.kv, 2, 5, layers=[1])
    for i in range(3):
        for now, then, theirs in [
            (session.kv.keys(i), before[i][0], source.kv.keys(i)),
            (session.kv.values(i), before[i][1], source.kv.values(i)),
        ]:
            expected = then.copy()
            if i == 1:
                expected[2:5] = theirs[2:5]
            np.testing.assert_array_equal(now, expected)


@pytest.mark.parametrize("at", [0, 5])
def test_moved_keys_are_those_of_the_new_place(model: llama2cpp.Model, at: int) -> None:
    """In layer 0 keys and values depend on the token and its place only, so there a moved one is known."""
    tokens = tiny.tokens(model.config, 9)
    source = fed(model, tokens)
    session = fed(model, tiny.tokens(model.config, 9, seed=2))
    session.kv.splice(source.kv, 3, 6, at=at)
    moved = tiny.tokens(model.config, 9, seed=2)
    moved[at : at + 3] = tokens[3:6]
    expected = fed(model, moved)
    np.testing.assert_allclose(session.kv.keys(0), expected.kv.keys(0), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(session.kv.values(0), expected.kv.values(0))


def test_within_one_session(model: llama2cpp.Model) -> None:
    session = fed(model, tiny.tokens(model.config, 9))
    values = session.kv.values(2).copy()
    session.kv.splice(session.kv, 0, 6, at=2)
    np.testing.assert_array_equal(session.kv.values(2)[2:8], values[:6])


def test_numbers_stored_by_copying(model: llama2cpp.Model) -> None:
    """The way into caches whose arrays are copies, which writes into others what their arrays take."""
    session = fed(model, tiny.tokens(model.config, 9))
    before = session.kv.keys(1).copy()
    rng = np.random.default_rng(4)
    keys, values = rng.standard_normal((2, 3, *before.shape[1:])).astype(np.float32)
    session._core.store_kv(1, 4, keys, values)
    np.testing.assert_array_equal(session.kv.keys(1)[4:7], keys.astype(before.dtype))
    np.testing.assert_array_equal(session.kv.values(1)[4:7], values.astype(before.dtype))
    np.testing.assert_array_equal(session.kv.keys(1)[:4], before[:4])
    np.testing.assert_array_equal(session.kv.keys(1)[7:], before[7:])


def test_what_cannot_be(model: llama2cpp.Model) -> None:
    session, source = fed(model, [1, 2, 3]), fed(model, [1, 2, 3, 4])
    keys = session.kv.keys(0).copy()
    for begin, end, at in [(0, 4, None), (0, 5, 0), (-1, 2, None), (3, 2, None), (0, 2, 2), (0, 2, -1)]:
        with pytest.raises(ValueError, match="are not in the"):
            session.kv.splice(source.kv, begin, end, at)
    with pytest.raises(ValueError, match="layer"):
        session.kv.splice(source.kv, 0, 2, layers=[0, 3])
    other = tiny.model(tiny.config(n_layers=2))
    with pytest.raises(ValueError, match="n_layers is 3 here and 2"):
        session.kv.splice(fed(other, [1]).kv, 0, 1)
    np.testing.assert_array_equal(session.kv.keys(0), keys)


def test_from_an_edited_model() -> None:
    """What one head's values carry, put into the session of the model as it was."""
    model = tiny.model(tiny.config())
    edited = model.with_weights({"blocks.1.attn.W_V": np.zeros_like(model.weights["blocks.1.attn.W_V"])})
    session = fed(model, [1, 2, 3])
    session.kv.splice(fed(edited, [1, 2, 3]).kv, 0, 3, layers=[1])
    assert not session.kv.values(1).any()
