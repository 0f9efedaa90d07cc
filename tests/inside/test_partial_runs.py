"""Runs of some layers only, and what a run returns: logits, loss, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_metal
import pytest
import tiny
import torch
from hook_helpers import everything, same_bits

import llama2cpp
from llama2cpp import interventions

N_LAYERS = 3
TOKENS = np.array([[1, 7, 3, 9, 4], [2, 8, 8, 1, 6]])


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    config = tiny.config(n_layers=N_LAYERS)
    return llama2cpp.from_arrays(config, tiny.arrays(config), threads=1)


def entering(model: llama2cpp.Model, layer: int) -> np.ndarray[Any, Any]:
    _, cache = model.run_with_cache(TOKENS, ["resid_pre", f"resid_post{N_LAYERS - 1}"])
    return cache["resid_pre", layer] if layer < N_LAYERS else cache["resid_post", N_LAYERS - 1]


@pytest.mark.parametrize("start", range(N_LAYERS + 1))
def test_starting_at_a_layer_is_the_whole_run(model: llama2cpp.Model, start: int) -> None:
    logits, cache = model.run_with_cache(TOKENS, everything)
    residual = entering(model, start)
    for layer in {start, start - N_LAYERS} - {0 if start == N_LAYERS else None}:
        got, part = model.run_with_cache(residual, everything, start_at_layer=layer, tokens=TOKENS)
        assert same_bits(got, logits)
        layers = [f"blocks.{i}." for i in range(start, N_LAYERS)]
        assert list(part) == [name for name in cache if name.startswith((*layers, "ln_final"))]
        assert all(same_bits(part[name], cache[name]) for name in part)
        assert part.tokens == TOKENS.tolist()
        assert same_bits(model.run_with_hooks(residual, start_at_layer=layer), logits)
        tensor: Any = torch.from_numpy(residual)
        assert same_bits(model(tensor, start_at_layer=layer), logits)
        assert model(residual, "loss", start_at_layer=layer, tokens=TOKENS) == model(TOKENS, "loss")
    for stop in range(start, N_LAYERS + 1):
        got = model(residual, start_at_layer=start, stop_at_layer=stop)
        assert same_bits(got, entering(model, stop))
    assert same_bits(model(residual[0], start_at_layer=start), logits[:1])


def test_hooks_of_layers_that_run_act(model: llama2cpp.Model) -> None:
    hooks: list[Any] = [interventions.scale("resid_pre2", 1.5, position=2), ("z2", lambda z, hook: z[::-1])]
    expected = model.run_with_hooks(TOKENS, hooks)
    below: list[Any] = [interventions.zero(["z0", "embed"]), ("z1", lambda z, hook: z * 0)]
    assert same_bits(model.run_with_hooks(entering(model, 2), hooks + below, start_at_layer=2), expected)


def test_what_cannot_be_begun(model: llama2cpp.Model) -> None:
    residual = entering(model, 1)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (residual, {"start_at_layer": 4}, "start_at_layer is 4, expected -3 to 3"),
        (residual, {"start_at_layer": 2, "stop_at_layer": 1}, "stop_at_layer is 1 and start_at_layer 2"),
        (residual[..., :-1], {"start_at_layer": 1}, "it has shape"),
        ("Once", {"start_at_layer": 1}, "not text"),
        (residual, {"start_at_layer": 1, "return_type": "loss"}, "the loss needs tokens="),
        (residual, {"start_at_layer": 1, "tokens": TOKENS[:, 1:]}, "expected 2 of 5"),
        (TOKENS, {"tokens": TOKENS}, "tokens= goes with start_at_layer"),
        (TOKENS, {"return_type": "all"}, "return_type is 'all'"),
        ([[1], [2]], {"return_type": "loss"}, "at least 2 tokens"),
    ]
    for given, options, message in wrong:
        for run in (model.run_with_cache, model.run_with_hooks, model):
            with pytest.raises(ValueError, match=message):
                run(given, **options)


# --- sessions


def test_a_session_goes_on_from_a_residual_stream(model: llama2cpp.Model) -> None:
    """Rewound over some tokens, with some of them changed at a layer, it is the session whose hook did that."""
    ids = tiny.tokens(model.config, 9)
    whole = model.session()
    whole.prefill(ids)
    _, cache = model.run_with_cache(ids, "resid_pre")
    for layer in range(N_LAYERS):
        for at in (0, 4, 8):
            residual = cache["resid_pre", layer][0].copy()
            residual[at] *= 2
            hooked = model.session()
            with model.hooks([interventions.scale("resid_pre", 2, layer=layer, position=at)]):
                expected = hooked.prefill(ids, all_logits=True)
            for parts in ([9], [7, 9]):
                trial = whole.fork()
                trial.rewind(at)
                begin = at
                for end in parts:
                    if end <= begin:
                        continue
                    got = trial.prefill(residual[begin:end], start_at_layer=layer - N_LAYERS, all_logits=True)
                    assert same_bits(got, expected[begin:end])
                    begin = end
                assert trial.tokens == ids
                assert same_bits(trial.step(3), hooked.fork().step(3))


def test_sessions_that_have_no_keys_refuse(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache([1, 2, 3, 4], "resid_pre")
    residual = cache["resid_pre", 2][0]
    session = model.session()
    with pytest.raises(ValueError, match="rewound over 0 tokens, and there are 4"):
        session.prefill(residual, start_at_layer=2)
    session.prefill([1, 2, 3, 4])
    session.rewind(2)
    with pytest.raises(ValueError, match="rewound over 2 tokens, and there are 3"):
        session.prefill(residual[1:], start_at_layer=2)
    with pytest.raises(ValueError, match=r"\[T, 48\]|\[T, \d+\]"):
        session.prefill([1, 2], start_at_layer=2)
    with pytest.raises(ValueError, match="start_at_layer is 5"):
        session.prefill(residual[2:], start_at_layer=5)
    session.prefill(residual[2:], start_at_layer=1)
    session.rewind(2)
    with pytest.raises(ValueError, match="the session was fed at layer 1 before"):
        session.prefill(residual[2:], start_at_layer=2)
    session.prefill(residual[2:], start_at_layer=1)
    session.rewind(2)
    session.step(3)
    session.rewind(2)
    with pytest.raises(ValueError, match="rewound over 1 tokens"):
        session.prefill(residual[2:], start_at_layer=1)
    with session.record("z2") as recording:  # what leaves layers out is not in it
        session.prefill([6])
        session.rewind(2)
        session.prefill(residual[2:3], start_at_layer=1)
    assert recording.cache().tokens == [[1, 2, 6]]


# --- what a run returns


def test_return_types(model: llama2cpp.Model) -> None:
    logits = model(TOKENS)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:, :-1].reshape(-1, logits.shape[-1])).double(),
        torch.from_numpy(TOKENS[:, 1:].reshape(-1)),
        reduction="none",
    ).numpy()
    near = 1e-12 if not on_metal.ON_METAL else on_metal.NEAR  # there `logits` came from a pass of another shape
    for run in (model, model.run_with_hooks, lambda *a, **k: model.run_with_cache(*a, **k)[0]):
        assert same_bits(run(TOKENS), logits)
        np.testing.assert_allclose(run(TOKENS, return_type="loss"), expected.mean(), rtol=near)
        both = run(TOKENS, return_type="both")
        assert same_bits(both[0], logits)
        assert both[1] == pytest.approx(run(TOKENS, return_type="loss"), rel=near)
        assert run(TOKENS, return_type=None) is None
    each = model(TOKENS, "loss", loss_per_token=True)
    np.testing.assert_allclose(each, expected.reshape(2, 4), rtol=max(near, 1e-6))
    losses = model([[1, 2, 3], [4, 5]], return_type="loss")
    alone = [model([1, 2, 3], return_type="loss"), model([4, 5], return_type="loss")]
    assert losses == pytest.approx(alone, rel=near)
    assert losses[0] == pytest.approx(np.log(model.perplexity([1, 2, 3])), rel=max(near, 1e-6))


def test_without_logits_the_rest_is_kept(model: llama2cpp.Model) -> None:
    logits, cache = model.run_with_cache(TOKENS, everything)
    none, same = model.run_with_cache(TOKENS, everything, return_type=None)
    assert none is None
    assert list(same) == list(cache)
    assert all(same_bits(same[name], cache[name]) for name in cache)
    with model.record("z1") as recording:
        model(TOKENS, return_type=None)
    assert [part.tokens for part in recording.caches()] == [[row] for row in TOKENS.tolist()]
    assert len(logits) == 2


def test_forward_gives_all_logits(model: llama2cpp.Model) -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    rows = [(model.session(), prompt) for prompt in prompts]
    got = model.forward(rows, all_logits=True)
    for prompt, logits, (session, _) in zip(prompts, got, rows, strict=True):
        other = model.session()
        assert same_bits(logits, other.prefill(prompt, all_logits=True))
        assert same_bits(session.step(7), other.step(7))
