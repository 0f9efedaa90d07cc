"""In every family heads, neurons, biases and embeddings sum to the residual stream, and attributions to the logits."""

from __future__ import annotations

from typing import Any

import expert_models
import family_models
import numpy as np
import pytest
import tiny
from family_models import MULTIPLIERS, TOKENS, Case
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import ActivationCache

BIASES = {"attention_bias": True}
FAMILIES: dict[str, Case] = {
    **{case.model_type: case for case in reversed(family_models.CASES.values())},
    **{case.model_type: case for case in reversed(expert_models.CASES.values())},
    "olmo2 with biases": family_models.CASES["olmo2-grouped"],
    "gemma2 with biases": Case("gemma2", {"head_dim": 8} | BIASES),
    "gemma3 with biases": Case("gemma3_text", {"head_dim": 8} | BIASES),
    "granite with biases": Case("granite", MULTIPLIERS | BIASES | {"mlp_bias": True}),
    "stablelm, parallel": family_models.CASES["stablelm-parallel"],
}
# What no family is, of a Config that may be: settings for tiny.config.
OTHERS: dict[str, dict[str, Any]] = {
    f"{places}, {norm}": {"norm_places": places, "norm": norm, "residual_multiplier": 0.37, "gated": norm == "layer"}
    for places in ("after", "both")
    for norm in ("rms", "layer", "layer_plain")
}
PLACES = [(0, False), (0, True), (1, False), (2, True), (None, False)]


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHERS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> llama2cpp.Model:
    options: dict[str, Any] = {"threads": 1, "kv_dtype": "f32", "activation_dtype": "f32"}
    if request.param in OTHERS:
        config = tiny.config(n_layers=3, **OTHERS[request.param])
        return llama2cpp.from_arrays(config, tiny.arrays(config), **options)
    return llama2cpp.load(FAMILIES[request.param].save(tmp_path_factory.mktemp("model")), **options)


@pytest.fixture(scope="module")
def cache(model: llama2cpp.Model) -> ActivationCache:
    return model.run_with_cache(TOKENS[:9], names_filter=lambda name: True)[1]


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def places(model: llama2cpp.Model) -> list[tuple[int | None, bool]]:
    return [
        place
        for place in PLACES
        if (place[0] or 0) < model.config.n_layers and not (place[1] and model.config.parallel)
    ]


def stream(cache: ActivationCache, layer: int | None, mlp_input: bool) -> NDArray[np.float32]:
    return cache["resid_post", -1] if layer is None else cache["resid_mid" if mlp_input else "resid_pre", layer]


def test_parts_sum_to_the_stream(model: llama2cpp.Model, cache: ActivationCache) -> None:
    experts = model.config.n_experts is not None
    for layer, mlp_input in places(model):
        whole = stream(cache, layer, mlp_input)
        assert_same(cache.decompose_resid(layer, mlp_input).sum(axis=0), whole)
        for expand in (False,) if experts else (False, True):
            full = cache.get_full_resid_decomposition(layer, mlp_input, expand, incl_remainder=False)
            assert_same(full.sum(axis=0), whole)
            last = cache.get_full_resid_decomposition(layer, mlp_input, expand, pos_slice=-1)
            assert_same(last, full[:, :, -1])
    if experts:
        with pytest.raises(ValueError, match="without experts"):
            cache.get_full_resid_decomposition()


def test_parts_of_one_half(model: llama2cpp.Model, cache: ActivationCache) -> None:
    """Heads sum to what attention added, without its bias; neurons to what the MLP added."""
    bare = not any(name.endswith(".b_O") for name in model.weights.transformer_lens)
    if bare:
        heads = cache.stack_head_results(1)
        assert_same(heads.sum(axis=0), cache["attn_out", 0])
        fewer = ActivationCache({name: array for name, array in cache.items() if "result" not in name}, model)
        assert_same(fewer.stack_head_results(1), heads)
    if model.config.n_experts is None and not any(name.endswith(".b_out") for name in model.weights.transformer_lens):
        assert_same(cache.get_neuron_results(0).sum(axis=-2), cache["mlp_out", 0])
    if model.config.norm_places != "before":
        unscaled = ActivationCache(
            {name: array for name, array in cache.items() if "post.hook_scale" not in name}, model
        )
        with pytest.raises(KeyError, match=r"ln1_post\.hook_scale"):
            unscaled.stack_head_results()
        with pytest.raises(KeyError, match=r"ln2_post\.hook_scale"):
            unscaled.get_neuron_results(0)


def test_norm_of_parts(model: llama2cpp.Model, cache: ActivationCache) -> None:
    """What is multiplied with a layer's matrices is the sum of the parts' norms."""
    weights = model.weights
    directions = np.random.default_rng(0).standard_normal((model.config.dim, 2)).astype(np.float32)
    for layer, mlp_input in places(model):
        name = "ln_final" if layer is None else f"blocks.{layer}.ln{2 if mlp_input else 1}"
        if layer is not None and model.config.norm_places == "after":
            seen = stream(cache, layer, mlp_input)
        else:
            gain = 1 if model.config.norm == "layer_plain" else weights[f"{name}.w"]
            seen = cache[f"{name}.hook_normalized"] * gain
        assert_same(cache.decompose_resid(layer, mlp_input, apply_ln=True).sum(axis=0), seen)
        expand = model.config.n_experts is None
        for apply_ln in (False, True):
            arguments: dict[str, Any] = {"expand_neurons": expand, "apply_ln": apply_ln, "incl_remainder": False}
            full = cache.get_full_resid_decomposition(layer, mlp_input, **arguments)
            assert_same(full.sum(axis=0), seen if apply_ln else stream(cache, layer, mlp_input))
            for wanted in (directions, directions[:, 0]):
                fused = cache.get_full_resid_decomposition(layer, mlp_input, project_output_onto=wanted, **arguments)
                assert_same(fused, full @ wanted)


def test_attributions_sum_to_the_logits(model: llama2cpp.Model, cache: ActivationCache) -> None:
    """Without what is no part's: a bias of the last norm, and a cap."""
    logits: Any = model.unembed(cache["resid_post", -1], apply_ln=True)
    if model.config.logits_cap:
        logits = np.arctanh(logits.astype(np.float64) / model.config.logits_cap) * model.config.logits_cap
    if "ln_final.b" in model.weights:
        logits = logits - model.weights["ln_final.b"] @ model.W_U / np.float32(model.config.logits_scaling)
    attributions = cache.logit_attrs(cache.get_full_resid_decomposition(expand_neurons=False), 7)
    found = attributions.sum(axis=0)
    np.testing.assert_allclose(found, logits[..., 7], rtol=0, atol=2e-5 * np.abs(logits).max())


def test_what_there_is_not_is_refused_by_name(model: llama2cpp.Model, cache: ActivationCache) -> None:
    after = model.config.norm_places != "before"
    biased = any(name.endswith((".b_O", ".b_out")) for name in model.weights.transformer_lens)
    if after and biased:
        with pytest.raises(ValueError, match="norm_places"):
            model.accumulated_bias(1)
    else:
        assert model.accumulated_bias(1).shape == (model.config.dim,)
    if model.config.parallel:
        for refused in (
            lambda: cache.decompose_resid(1, mlp_input=True),
            lambda: cache.accumulated_resid(1, mlp_input=True),
            lambda: cache.accumulated_resid(incl_mid=True),
            lambda: cache.logit_lens(incl_mid=True),
            lambda: model.accumulated_bias(1, mlp_input=True),
        ):
            with pytest.raises(ValueError, match=r"\(parallel\)"):
                refused()


def test_contributions_of_an_explanation_sum_to_the_logit(model: llama2cpp.Model) -> None:
    """What is left over is rounding."""
    ids = TOKENS[:9]
    logits = model(ids)[0, -1].astype(np.float64)
    cap = model.config.logits_cap
    if cap > 0:
        logits = cap * np.arctanh(logits / cap)
    for answer, instead in [(None, None), (3, None), (3, 5)]:
        found = model.explain(ids, answer, instead=instead)
        parts = {part.label: part.value for part in found.contributions}
        value = logits[found.answer] - (0 if instead is None else logits[instead])
        assert found.logit == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert sum(parts.values()) == pytest.approx(found.logit, abs=1e-9)
        assert abs(parts["remainder"]) <= 1e-4 * max(1.0, float(np.abs(logits).max()))
        assert len(found.heads()) == model.config.n_layers * model.config.n_heads
