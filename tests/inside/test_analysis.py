"""Where two models part, and vectors from contrasts: against NumPy and PyTorch on whole caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

import llama2cpp
from llama2cpp import analysis, interventions

IDS = [5, 9, 2, 30, 7]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=3))


def test_the_first_that_differs(model: llama2cpp.Model) -> None:
    for layer in range(3):
        name = f"blocks.{layer}.attn.W_V"
        other = model.with_weights({name: model.weights[name] * 1.5})
        found = analysis.diff(model, other, IDS)
        assert found.first is not None
        assert found.first.name == f"blocks.{layer}.attn.hook_v"
        assert found.first.relative == pytest.approx(0.5)
        assert found.first.cosine == pytest.approx(1)
        assert found.first.name in repr(found)
        _, a = model.run_with_cache(IDS)
        _, b = other.run_with_cache(IDS)
        assert [point.name for point in found.points] == list(a)
        for point in found.points:
            if point.name.endswith("attn_scores"):
                continue
            one, two = (torch.from_numpy(cache[point.name].copy()).double().flatten() for cache in (a, b))
            assert point.largest == pytest.approx(float((one - two).abs().max()))
            assert point.cosine == pytest.approx(float(torch.cosine_similarity(one, two, dim=0)), abs=1e-9)
        logits = [torch.from_numpy(runner(IDS)[0]).double().log_softmax(-1) for runner in (model, other)]
        kl = torch.nn.functional.kl_div(logits[1], logits[0], reduction="none", log_target=True).sum(-1)
        np.testing.assert_allclose(found.kl, kl.numpy(), rtol=1e-5, atol=1e-7)


def test_a_model_does_not_differ_from_itself(model: llama2cpp.Model) -> None:
    found = analysis.diff(model, model, IDS)
    assert found.first is None
    assert found.kl.max() == 0
    assert [point.cosine for point in found.points] == pytest.approx([1.0] * len(found.points))
    assert "no difference" in repr(found)
    assert "hook_embed" in found._repr_html_()


@pytest.mark.parametrize("position", [-1, 0, None])
def test_steering_vectors_are_differences_of_means(model: llama2cpp.Model, position: int | None) -> None:
    positive, negative = [[1, 2, 3], [4, 5]], [[6, 7], [8, 9, 10, 11], [12]]
    found = analysis.steering_vectors(model, positive, negative, ["resid_post", "z"], position=position)
    assert len(found) == 6

    def mean(prompts: list[list[int]], name: str) -> Any:
        rows = [model.run_with_cache(ids, name, return_type=None)[1][name][0].astype(np.float64) for ids in prompts]
        return np.mean([row.mean(axis=0) if position is None else row[position] for row in rows], axis=0)

    for name, vector in found.items():
        np.testing.assert_allclose(vector, mean(positive, name) - mean(negative, name), rtol=1e-5, atol=1e-6)
    with model.hooks([("resid_pre0", lambda x, hook: None)]):  # one prompt at a time then, for the hook's sake
        alone = analysis.steering_vectors(model, positive, negative, ["resid_post", "z"], position=position)
    assert all((alone[name] == vector).all() for name, vector in found.items())
    steer = interventions.add("resid_post", found["blocks.1.hook_resid_post"], layer=1)
    assert (model.run_with_hooks(IDS, [steer]) != model(IDS)).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: analysis.diff(m, tiny.model(tiny.config()), IDS), "other activations, or of other sizes"),
        (
            lambda m: analysis.diff(tiny.model(tiny.config(n_layers=3, vocab_size=60)), m, [59]),
            "the vocabularies have 60 and 53 tokens",
        ),
        (
            lambda m: analysis.diff(m, tiny.model(tiny.config(n_layers=3, vocab_size=60)), IDS),
            "the vocabularies have 53 and 60 tokens",
        ),
        (lambda m: analysis.steering_vectors(m, [], [[1]]), "positive is [], expected several prompts"),
        (lambda m: analysis.steering_vectors(m, [[1]], "No"), "negative is 'No', expected several prompts"),
        (lambda m: analysis.steering_vectors(m, [[1]], [[2]], "pattern"), "blocks.0.attn.hook_pattern has other sizes"),
    ],
)
def test_wrong_calls(model: llama2cpp.Model, call: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        call(model)
    assert message in str(caught.value)
