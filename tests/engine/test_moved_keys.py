"""Keys and values of every kind of rotary embedding: moved to other positions, forked, rewound, saved and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import expert_models
import family_models
import gpt_oss_models
import numpy as np
import pytest
import tiny
from family_models import TOKENS, Case
from numpy.typing import NDArray
from on_metal import agree
from reference import largest_error

import llama2cpp

ALL = expert_models.CASES | family_models.CASES | {"gpt_oss": Case("gpt_oss", gpt_oss_models.SETTINGS)}
# One of each family, and what else is turned otherwise than in the first of its family.
FAMILIES = {case.model_type: name for name, case in reversed(ALL.items())}
CASES = sorted({*FAMILIES.values(), "smollm3-list", "phi3-partial", "phi3-longrope", "olmo3-yarn", "gemma3-scaled"})


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> llama2cpp.Model:
    path = ALL[request.param].save(tmp_path_factory.mktemp("model"))
    return llama2cpp.load(path, kv_dtype="f32", threads=1)


@contextmanager
def tokens_alone(model: llama2cpp.Model) -> Iterator[None]:
    """Every layer reads embeddings, so that a key depends on its token and its position only."""
    kept: dict[str, Any] = {}

    def keep(x: Any, hook: Any) -> None:
        kept["x"] = x.copy()

    def put(x: Any, hook: Any) -> Any:
        return kept["x"]

    with model.hooks([("hook_embed", keep), ("blocks.*.hook_resid_pre", put)]):
        yield


def keys_of(session: llama2cpp.Session, n_layers: int) -> NDArray[Any]:
    """[n_layers, position, n_kv_heads, head_dim]"""
    return np.stack([session.kv.keys(layer) for layer in range(n_layers)])


def contexts(model: llama2cpp.Model) -> list[tuple[int, int]]:
    """Of the session that keys are from, and of that which they go to: on both sides of LongRoPE's limit."""
    return [(32, 64), (64, 32)] if model.config.rope_long_factors else [(model.context, model.context)]


def test_moved_keys_are_those_of_their_new_positions(model: llama2cpp.Model) -> None:
    n_layers = model.config.n_layers
    for theirs, mine in contexts(model):
        source, session = model.session(context=theirs), model.session(context=mine)
        with tokens_alone(model):
            source.prefill(TOKENS[:12])
            session.prefill([5, 6, 7, *TOKENS[:12]])
        expected = keys_of(session, n_layers)
        for begin, end, at in ((0, 12, 3), (2, 7, 5), (12, 12, 0)):
            moved = session.fork()
            for layer in range(n_layers):
                moved.kv.keys(layer)[at : at + end - begin] = 0
            moved.kv.splice(source.kv, begin, end, at=at)
            found = keys_of(moved, n_layers)
            for layer in range(n_layers):
                assert largest_error(found[layer], expected[layer]) < 1e-5, (layer, begin)
                assert moved.kv.values(layer).tobytes() == session.kv.values(layer).tobytes()
        # Back to where they were.
        source.kv.splice(session.kv, 3, 15, at=0)
        fresh = model.session(context=theirs)
        with tokens_alone(model):
            fresh.prefill(TOKENS[:12])
        for found_keys, wanted in zip(keys_of(source, n_layers), keys_of(fresh, n_layers), strict=True):
            assert largest_error(found_keys, wanted) < 1e-5


def test_keys_that_stay_keep_their_bits(model: llama2cpp.Model) -> None:
    source, session = model.session(), model.session()
    source.prefill(TOKENS[:9])
    session.prefill(TOKENS[5:15])
    session.kv.splice(source.kv, 2, 8)
    n_layers = model.config.n_layers
    assert keys_of(session, n_layers)[:, 2:8].tobytes() == keys_of(source, n_layers)[:, 2:8].tobytes()


def test_forked_rewound_saved_and_written(model: llama2cpp.Model, tmp_path: Path) -> None:
    """What comes next has the bits of a session that all was fed to at once."""
    whole = model.session()
    expected = whole.prefill(TOKENS, all_logits=True)
    session = model.session()
    session.prefill(TOKENS[:13])
    fork = session.fork()
    session.prefill([9, 9, 9])
    session.rewind(7)
    for layer in range(model.config.n_layers):
        for array in (session.kv.keys(layer), session.kv.values(layer)):
            array[:] = array.copy()
    assert agree(session.prefill(TOKENS[7:], all_logits=True), expected[7:])
    fork.save(tmp_path / "fork.session")
    for other in (fork, model.load_session(tmp_path / "fork.session")):
        assert agree(other.prefill(TOKENS[13:], all_logits=True), expected[13:])
    assert agree(keys_of(fork, model.config.n_layers), keys_of(whole, model.config.n_layers))
    # A key that is written is looked at.
    whole.rewind(19)
    whole.kv.keys(0)[18] += 1
    assert not np.array_equal(whole.step(TOKENS[19]), expected[19])


def test_keys_of_a_model_that_turns_otherwise() -> None:
    """Its angles are undone, and those of this model are taken, at the same position too."""
    common: dict[str, Any] = {"n_layers": 2, "sliding_window": 4, "full_layers": [1]}
    yarn = {"type": "yarn", "factor": 4.0, "original_context": 16, "attention_factor": 1.4, "beta_fast": 32.0}
    yarn |= {"beta_slow": 1.0, "truncate": True}
    settings: list[dict[str, Any]] = [
        {"rope_theta": 300.0},
        {"local_rope_theta": 77.0},
        {"rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_scaling": yarn},
    ]
    tokens = tiny.tokens(tiny.config(**common), 9)
    for qk_norm in ("none", "head_after_rope"):
        for setting in settings:
            config = tiny.config(**common | setting | {"qk_norm": qk_norm})
            own = tiny.config(**common, qk_norm=qk_norm)
            arrays = tiny.arrays(own)
            mine = llama2cpp.from_arrays(own, arrays, kv_dtype="f32")
            theirs = llama2cpp.from_arrays(config, arrays, kv_dtype="f32")
            source, session, expected = theirs.session(), mine.session(), mine.session()
            with tokens_alone(theirs):
                source.prefill(tokens)
            with tokens_alone(mine):
                session.prefill([1] * 11)
                expected.prefill([1, 1, *tokens])
            session.kv.splice(source.kv, 0, 9, at=2)
            # A norm after rotary embedding takes a length of it away, but for the norm's own epsilon.
            tolerance = 5e-5 if qk_norm != "none" and "attention_factor" in str(setting) else 1e-5
            for layer in range(2):
                error = largest_error(session.kv.keys(layer)[2:], expected.kv.keys(layer)[2:])
                assert error < tolerance, (setting, layer)
            with tokens_alone(mine):
                expected = mine.session()
                expected.prefill(tokens)
            session.kv.splice(source.kv, 0, 9)
            for layer in range(2):
                assert largest_error(session.kv.keys(layer)[:9], expected.kv.keys(layer)) < tolerance, (setting, layer)


def test_normed_keys_whose_gain_is_0() -> None:
    """What a gain of 0 took away cannot be turned."""
    config = tiny.config(qk_norm="head_after_rope")
    model = llama2cpp.from_arrays(config, tiny.arrays(config), kv_dtype="f32")
    name = "blocks.1.attn.k_norm.w"
    gain = model.weights[name].copy()
    gain[2] = 0
    edited = model.with_weights({name: gain})
    session = edited.session()
    session.prefill([1, 2, 3, 4])
    session.kv.splice(session.kv, 0, 2, at=1, layers=[0])
    session.kv.splice(session.kv, 0, 2, at=0)
    with pytest.raises(ValueError, match=r"KVCache\.splice to other positions: k_norm of layer 1 has a gain of 0"):
        session.kv.splice(session.kv, 0, 2, at=1)
    with pytest.raises(ValueError, match=r"unrotated_keys: qk_norm is head_after_rope"):
        session.kv.unrotated_keys(0)
