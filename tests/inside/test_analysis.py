"""Where two models part, and vectors from contrasts: against NumPy and PyTorch on whole caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_metal
import pytest
import tiny
import torch

import llama2cpp
from llama2cpp import analysis, interventions
from llama2cpp.analysis import differences

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


def test_two_caches_differ_as_their_models_do(model: llama2cpp.Model) -> None:
    other = model.with_weights({"blocks.1.mlp.W_out": model.weights["blocks.1.mlp.W_out"] * 0.9})
    whole = analysis.diff(model, other, IDS)
    one, two = (each.run_with_cache(IDS)[1] for each in (model, other))
    found = analysis.diff(one, two)
    assert found.points == whole.points
    assert found.first is not None
    assert found.first.name == "blocks.1.hook_mlp_out"
    np.testing.assert_allclose(found.kl, whole.kl, rtol=1e-9)
    some = analysis.diff(one, two, names_filter=["resid_pre", "z"])
    assert some.points == [point for point in whole.points if point.name.endswith(("hook_resid_pre", "hook_z"))]
    short = analysis.diff(model.run_with_cache(IDS, "z")[1], other.run_with_cache(IDS, "z")[1])
    assert len(short.kl) == 0
    assert "KL" not in repr(short) + short._repr_html_()


@pytest.mark.parametrize("filter", [None, "resid_pre", ["embed", "ln_final.hook_scale"], ["v1"], []])
def test_lock_step_gives_the_runs_own_bits(model: llama2cpp.Model, filter: Any) -> None:
    for layer, (arrays, logits) in enumerate(differences._layer_by_layer(model, IDS, filter)):
        expected, cache = model.run_with_cache(IDS, filter)
        assert all(np.array_equal(cache[name], array) for name, array in arrays.items())
        assert (logits is not None) == (layer == 3)
    assert np.array_equal(np.asarray(logits), expected)
    found = analysis.diff(model, model, IDS, filter)
    assert [point.name for point in found.points] == list(cache)


def test_lock_step_holds_one_layer(monkeypatch: pytest.MonkeyPatch, model: llama2cpp.Model) -> None:
    held: list[int] = []
    real = differences._check_same

    def check(a: Any, b: Any) -> None:
        held.append(len({name.split(".")[1] for name in a if name.startswith("blocks.")}))
        real(a, b)

    monkeypatch.setattr(differences, "_check_same", check)
    analysis.diff(model, model, IDS)
    assert held == [1, 1, 1, 0]


def test_harm_is_what_hooks_measure(model: llama2cpp.Model) -> None:
    rng = np.random.default_rng(0)
    changed = {}
    for name, size in (("blocks.1.mlp.W_out", 0.2), ("blocks.0.attn.W_O", 0.02)):
        values = model.weights[name].copy()
        changed[name] = values + size * rng.normal(size=values.shape) * values.std()
    quantized = model.with_weights(changed)
    found = analysis.harm(quantized, model, IDS, ["attn_out", "mlp_out", "resid_pre"], progress=False)
    expected, cache = model.run_with_cache(IDS)

    def kl(logits: Any) -> float:
        p, q = (torch.from_numpy(np.array(x))[0].double().log_softmax(-1) for x in (expected, logits))
        return float(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean())

    near = 1e-6 if on_metal.ON_METAL else 1e-9  # there a run with hooks sums in another order
    assert found.kl == pytest.approx(kl(quantized(IDS)), abs=near)
    for name, left in found.patched.items():
        for layer in range(3):
            patched = quantized.run_with_hooks(IDS, [interventions.patch_from(cache, name, layer=layer)])
            assert left[layer] == pytest.approx(kl(patched), abs=near)
            assert found.recovered[name][layer] == pytest.approx(1 - kl(patched) / found.kl, abs=1000 * near)
    assert analysis.harm(quantized, model, IDS, progress=False).worst == ("mlp_out", 1)
    assert found.worst == ("resid_pre", 2)  # both are before it
    assert "resid_pre" in found._repr_html_()
    alike = analysis.harm(model, model, IDS, "mlp_out", progress=False)
    assert alike.kl == 0
    assert np.isnan(alike.recovered["mlp_out"]).all()


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
        (lambda m: analysis.diff(m, m), "two models need a text"),
        (lambda m: analysis.diff(m, m.run_with_cache(IDS)[1]), "two models and a text, or two caches"),
        (
            lambda m: analysis.diff(m.run_with_cache(IDS, "z")[1], m.run_with_cache(IDS, ["z", "v"])[1]),
            "one of the caches has 'blocks.0.attn.hook_v', and the other does not",
        ),
        (
            lambda m: analysis.diff(m.run_with_cache(IDS, "z")[1], m.run_with_cache(IDS[1:], "z")[1]),
            "blocks.0.attn.hook_z has shapes",
        ),
        (lambda m: analysis.harm(m, tiny.model(tiny.config()), IDS), "harm: the models have sizes"),
        (lambda m: analysis.harm(m, m, IDS, []), "names is empty"),
        (lambda m: analysis.steering_vectors(m, [], [[1]]), "positive is empty, expected several prompts"),
        (lambda m: analysis.steering_vectors(m, [[1]], iter([])), "negative is empty, expected several prompts"),
        (lambda m: analysis.steering_vectors(m, [[1]], [[2]], "pattern"), "blocks.0.attn.hook_pattern has other sizes"),
    ],
)
def test_wrong_calls(model: llama2cpp.Model, call: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        call(model)
    assert message in str(caught.value)


@pytest.mark.parametrize("texts", ["No", b"No", 5, None])
def test_one_text_is_not_several(model: llama2cpp.Model, texts: Any) -> None:
    coder = interventions.replace_with("resid_pre0", np.eye(36), None, np.eye(36), None)
    kind = f"is of type {type(texts).__name__}, expected several texts"
    for call in (
        lambda: analysis.steering_vectors(model, texts, [[1]]),
        lambda: analysis.steering_vectors(model, [[1]], texts),
        lambda: analysis.loss_recovered(model, texts, coder),
    ):
        with pytest.raises(TypeError, match=kind):
            call()


def test_prompts_of_a_generator(model: llama2cpp.Model) -> None:
    whole = analysis.steering_vectors(model, [[1, 2], [3]], [[4]])
    other = analysis.steering_vectors(model, (ids for ids in ([1, 2], [3])), iter([[4]]))
    assert all((whole[name] == other[name]).all() for name in whole)
