"""The logit lens: the last stream gives the model's own bits, and the selections are what NumPy makes of all logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from on_metal import agree

import llama2cpp
from llama2cpp import logit_lens

CONFIG = tiny.config(n_layers=3)
BATCH = [tiny.tokens(CONFIG, 5), tiny.tokens(CONFIG, 5, seed=1)]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG)


@pytest.fixture(scope="module")
def cache(model: llama2cpp.Model) -> llama2cpp.ActivationCache:
    return model.run_with_cache(BATCH)[1]


def test_the_last_stream_has_the_models_bits(model: llama2cpp.Model) -> None:
    logits, cache = model.run_with_cache(BATCH)
    lens = cache.logit_lens(positions=None)
    assert agree(lens.values[-1], logits)
    assert lens.labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    assert lens.values.shape == (4, 2, 5, CONFIG.vocab_size)
    assert (lens.has_batch_dim, lens.positions) == (True, [0, 1, 2, 3, 4])


@pytest.mark.cpu_bits("int8 activations")
def test_the_bits_of_int8(stories: llama2cpp.Model) -> None:
    """The storyteller's activations are int8, and so are its lens's."""
    storyteller = llama2cpp.load()
    logits, _ = storyteller.run_with_cache("Once upon a time")
    lens = logit_lens(storyteller, "Once upon a time", positions=None)
    assert storyteller.activation_dtype == "int8"
    assert lens.values[-1].tobytes() == logits.tobytes()


def test_streams(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    everything = cache.logit_lens(positions=None, incl_mid=True)
    assert everything.labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    some = cache.logit_lens(positions=[1, 3], incl_mid=True, layers=[2, -1], batch_slice=1)
    assert some.labels == ["1_pre", "final_post"]
    assert (some.has_batch_dim, some.positions) == (False, [1, 3])
    assert agree(some.values, everything.values[[2, -1], 1][:, [1, 3]])
    one = cache.logit_lens()
    assert one.positions is None
    assert agree(one.values, everything.values[[0, 2, 4, 6], :, -1])
    plain = cache.logit_lens(apply_ln=False)
    np.testing.assert_allclose(plain.values[1], cache["resid_pre", 1][:, -1] @ model.W_U, rtol=0, atol=1e-4)
    run = logit_lens(model, BATCH, incl_mid=True, positions=None)
    assert agree(run.values, everything.values)
    kept = model.run_with_cache(BATCH, positions=[2, 4])[1].logit_lens(positions=-1)
    assert agree(kept.values, one.values)
    assert model.run_with_cache(BATCH, positions=[2, 4])[1].logit_lens(positions=None).positions == [2, 4]


def test_selections(cache: llama2cpp.ActivationCache) -> None:
    logits = cache.logit_lens(positions=None).values.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected: dict[Any, Any] = {"logits": logits, "log_probs": log_probs, "probs": np.exp(log_probs)}
    ranks = (logits[..., None, :] > logits[..., None]).sum(-1)
    for return_type, values in expected.items():
        full = cache.logit_lens(positions=None, return_type=return_type)
        np.testing.assert_allclose(full.values, values, rtol=0, atol=1e-4)
        np.testing.assert_allclose(full.entropy, -(np.exp(log_probs) * log_probs).sum(-1), rtol=0, atol=1e-4)
        some = cache.logit_lens(positions=None, return_type=return_type, vocab=[7, 0])
        np.testing.assert_array_equal(some.values, full.values[..., [7, 0]])
        top = cache.logit_lens(positions=None, return_type=return_type, top_k=3)
        assert top.top_ids is not None
        np.testing.assert_array_equal(top.top_ids, np.argsort(-logits, axis=-1, kind="stable")[..., :3])
        np.testing.assert_array_equal(top.values, np.take_along_axis(full.values, top.top_ids, -1))
        shared = cache.logit_lens(positions=None, return_type=return_type, targets=[9, 2])
        np.testing.assert_array_equal(shared.values, full.values[..., [9, 2]])
        np.testing.assert_array_equal(shared.target_ranks, ranks[..., [9, 2]])
        np.testing.assert_array_equal(shared.rank_trajectory(2), ranks[..., 2])
        each = np.array(BATCH)
        own = cache.logit_lens(positions=None, return_type=return_type, targets=each)
        index = np.broadcast_to(each, logits.shape[:-1])[..., None]
        np.testing.assert_array_equal(own.values, np.take_along_axis(full.values, index, -1))
        np.testing.assert_array_equal(own.rank_trajectory(), np.take_along_axis(ranks, index, -1)[..., 0])


def test_text(stories: llama2cpp.Model) -> None:
    lens = logit_lens(stories, "Once upon a", targets=[" time", 5])
    assert lens.rank_trajectory(" time")[-1] == 0
    assert lens.rank_trajectory(" time").tobytes() == lens.rank_trajectory(stories.to_single_token(" time")).tobytes()
    top = logit_lens(stories, "Once upon a", top_k=2, positions=None)
    tokens = top.top_tokens()
    assert list(tokens) == top.labels
    assert tokens["final_post"][0][-1][0] == " time"
    assert np.shape(list(tokens.values())) == top.values.shape
    assert "·time" in top._repr_html_()
    assert "<table>" in logit_lens(tiny.model(CONFIG), BATCH[0], top_k=1)._repr_html_()


def test_what_cannot_be(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    lens = cache.logit_lens(top_k=1)
    calls: list[tuple[Any, str]] = [
        (lambda: logit_lens(model), "an input or with a cache"),
        (lambda: logit_lens(model, BATCH, cache=cache), "an input or with a cache"),
        (lambda: logit_lens(cache, BATCH), "pass a cache"),
        (lambda: cache.logit_lens(return_type="odds"), "return_type is 'odds'"),
        (lambda: cache.logit_lens(top_k=1, vocab=[1]), "one of vocab, targets and top_k"),
        (lambda: cache.logit_lens(top_k=0), "top_k is 0, expected 1 to 53"),
        (lambda: cache.logit_lens(targets=53), "expected integers from 0 to 52"),
        (lambda: cache.logit_lens(vocab=[]), "expected integers"),
        (lambda: cache.logit_lens(layers=[4]), "layer is 4"),
        (lambda: lens.rank_trajectory(), "no targets"),
        (lambda: cache.logit_lens(targets=[1, 2]).rank_trajectory(3), "target is 3"),
        (lambda: cache.logit_lens(targets=[1, 2]).rank_trajectory(), "target is None"),
        (lambda: cache.logit_lens().top_tokens(), "without top_k"),
        (lambda: lens.top_tokens(), "no tokenizer"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
