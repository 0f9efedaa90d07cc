"""Three notebooks in the manner of TransformerLens's, with its calls, of which only the import is another.

What each begins with stands for theirs: a model that is loaded, and ``utils`` and ``patching`` from here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import llama2cpp
from llama2cpp import ActivationCache, FactoredMatrix, patching, utils


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return llama2cpp.load("storyteller", precision="exact", backend="cpu")


def test_a_first_look(model: llama2cpp.Model) -> None:
    """Loss, caches, a head switched off, repeated tokens, hooks that stay, weights as factored matrices."""
    text = "Once upon a time, in a green village, there lived a little boy named Jonas and a girl named Lily."
    loss = model(text, return_type="loss")
    assert 0 < float(loss) < 5
    tokens = model.to_tokens(text)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    pattern = cache["pattern", 0, "attn"]
    assert pattern.shape == (model.cfg.n_heads, tokens.shape[-1], tokens.shape[-1])
    assert len(model.to_str_tokens(text)) == tokens.shape[-1]

    layer, head_index = 0, 4

    def head_ablation_hook(value: Any, hook: Any) -> Any:
        assert hook.layer() == layer
        value[:, :, head_index // (model.cfg.n_heads // model.cfg.n_key_value_heads), :] = 0.0
        return value

    original_loss = model(tokens, return_type="loss")
    ablated_loss = model.run_with_hooks(
        tokens, return_type="loss", fwd_hooks=[(utils.get_act_name("v", layer), head_ablation_hook)]
    )
    assert abs(ablated_loss - original_loss) > 1e-3

    # Some random tokens twice: is there a head that finds what came after them?
    rng = np.random.default_rng(0)
    batch, length = 3, 20
    random_tokens = rng.integers(300, model.cfg.d_vocab, (batch, length))
    repeated_tokens = np.concatenate([random_tokens, random_tokens], axis=-1)
    induction_score_store = np.zeros((model.cfg.n_layers, model.cfg.n_heads))

    def induction_score_hook(pattern: Any, hook: Any) -> None:
        stripe = np.diagonal(pattern, offset=1 - length, axis1=-2, axis2=-1)
        induction_score_store[hook.layer(), :] = stripe.mean(axis=(0, -1))

    model.run_with_hooks(
        repeated_tokens,
        return_type=None,
        fwd_hooks=[(lambda name: name.endswith("pattern"), induction_score_hook)],
    )
    assert induction_score_store.min() > 0

    model.add_hook(lambda name: name == "blocks.0.hook_resid_pre", lambda resid, hook: resid * 0)
    assert model(tokens, return_type="loss") > original_loss
    model.reset_hooks()
    assert model(tokens, return_type="loss") == original_loss

    OV = model.blocks[1].attn.W_V[0] @ model.blocks[1].attn.W_O[0]  # noqa: N806
    circuit = FactoredMatrix(model.blocks[1].attn.W_V[0], model.blocks[1].attn.W_O[0])
    np.testing.assert_allclose(np.linalg.norm(OV), circuit.norm(), rtol=1e-5)
    full = model.W_E @ model.OV[1, 0] @ model.W_U
    assert full.shape == (model.cfg.d_vocab, model.cfg.d_vocab)
    copying = circuit.eigenvalues.sum() / np.abs(circuit.eigenvalues).sum()
    assert abs(copying) <= 1


def test_where_an_answer_comes_from(model: llama2cpp.Model, capsys: pytest.CaptureFixture[str]) -> None:
    """Logit differences, what layers and heads add to them, patching, and a head's pattern."""
    names = [("Lily", "Tom"), ("Tom", "Lily")]
    prompts = [f"{a} and {b} went to the park. {b} gave the ball to" for a, b in names]
    answers = [(f" {a}", f" {b}") for a, b in names]
    utils.test_prompt(prompts[0], answers[0][0], model, prepend_bos=True)
    assert "Rank" in capsys.readouterr().out
    answer_tokens = np.array([[model.to_single_token(name) for name in pair] for pair in answers])
    tokens = model.to_tokens(prompts, prepend_bos=True)
    original_logits, cache = model.run_with_cache(tokens)

    def logits_to_ave_logit_diff(logits: Any, per_prompt: bool = False) -> Any:
        final = logits[:, -1, :]
        picked = np.take_along_axis(final, answer_tokens, axis=-1)
        diff = picked[:, 0] - picked[:, 1]
        return diff if per_prompt else diff.mean()

    original = logits_to_ave_logit_diff(original_logits)
    directions = model.tokens_to_residual_directions(answer_tokens)
    diff_directions = directions[:, 0] - directions[:, 1]
    final = cache["resid_post", -1][:, -1, :]
    scaled = cache.apply_ln_to_stack(final[:, None], layer=-1, pos_slice=slice(-1, None))[:, 0]
    np.testing.assert_allclose((scaled * diff_directions).sum(-1).mean(), original, rtol=1e-3, atol=1e-3)

    def residual_stack_to_logit_diff(stack: Any) -> Any:
        scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        return np.einsum("...bd,bd->...", scaled, diff_directions) / len(prompts)

    accumulated, labels = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
    assert len(labels) == len(residual_stack_to_logit_diff(accumulated))
    per_layer, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    np.testing.assert_allclose(residual_stack_to_logit_diff(per_layer).sum(), original, rtol=1e-3, atol=1e-3)
    per_head = cache.stack_head_results(layer=-1, pos_slice=-1)
    grid = residual_stack_to_logit_diff(per_head).reshape(model.cfg.n_layers, model.cfg.n_heads)
    assert np.isfinite(grid).all()

    corrupted_tokens = tokens[::-1].copy()
    corrupted = logits_to_ave_logit_diff(model(corrupted_tokens, return_type="logits"))
    np.testing.assert_allclose(corrupted, -original, rtol=1e-5)

    def patch_residual_component(component: Any, hook: Any, pos: int, clean_cache: Any) -> Any:
        component[:, pos, :] = clean_cache[hook.name][:, pos, :]
        return component

    def normalize(logits: Any) -> Any:
        return (logits_to_ave_logit_diff(logits) - corrupted) / (original - corrupted)

    by_hand = np.zeros((2, tokens.shape[1]))
    for i, layer in enumerate((0, model.cfg.n_layers - 1)):
        for position in range(tokens.shape[1]):
            hook_fn = partial(patch_residual_component, pos=position, clean_cache=cache)
            patched = model.run_with_hooks(
                corrupted_tokens,
                fwd_hooks=[(utils.get_act_name("resid_pre", layer), hook_fn)],
                return_type="logits",
            )
            by_hand[i, position] = normalize(patched)
    swept = patching.get_act_patch_resid_pre(model, corrupted_tokens, cache, normalize)
    np.testing.assert_array_equal(by_hand, swept[[0, -1]])
    assert by_hand[1, -1] == pytest.approx(1, abs=0.5)

    scores = utils.detect_head(model, prompts[0], "previous_token_head")
    best_layer, head = np.unravel_index(scores.argmax(), scores.shape)
    pattern = cache["pattern", int(best_layer)][0, head]
    assert np.diagonal(pattern, offset=-1).sum() / pattern.sum() == pytest.approx(scores.max(), rel=1e-4)


def test_gradients_instead_of_many_runs(model: llama2cpp.Model) -> None:
    """Activation patching of all kinds, and what gradients say of it beforehand."""
    clean_tokens = model.to_tokens("Lily and Tom went to the park. Tom gave the ball to")
    corrupted_tokens = model.to_tokens("Lily and Tom went to the park. Lily gave the ball to")
    right, wrong = model.to_single_token(" Lily"), model.to_single_token(" Tom")
    clean_logits, clean_cache = model.run_with_cache(clean_tokens)
    corrupted_logits, _ = model.run_with_cache(corrupted_tokens)

    def logit_diff(logits: Any) -> Any:
        return logits[0, -1, right] - logits[0, -1, wrong]

    baseline = logit_diff(corrupted_logits)
    span = logit_diff(clean_logits) - baseline

    def metric(logits: Any) -> Any:
        dlogits = np.zeros_like(logits)
        dlogits[0, -1, right], dlogits[0, -1, wrong] = 1 / span, -1 / span
        return (logit_diff(logits) - baseline) / span, dlogits

    def get_cache_fwd_and_bwd(tokens: Any) -> tuple[float, ActivationCache, ActivationCache]:
        model.reset_hooks()
        cache: dict[str, Any] = {}
        grad_cache: dict[str, Any] = {}

        def forward_cache_hook(act: Any, hook: Any) -> None:
            cache[hook.name] = act

        def backward_cache_hook(act: Any, hook: Any) -> None:
            grad_cache[hook.name] = act

        def filter_not_qkv_input(name: str) -> bool:
            return "_input" not in name and "hook_result" not in name

        model.add_hook(filter_not_qkv_input, forward_cache_hook, "fwd")
        model.add_hook(filter_not_qkv_input, backward_cache_hook, "bwd")
        logits, _ = model.run_with_cache(tokens, "hook_embed", incl_bwd=True, metric=metric)
        model.reset_hooks()
        return metric(logits)[0], ActivationCache(cache, model), ActivationCache(grad_cache, model)

    clean_value, again, clean_grad_cache = get_cache_fwd_and_bwd(clean_tokens)
    assert clean_value == pytest.approx(1)
    np.testing.assert_array_equal(again["resid_pre", 3], clean_cache["resid_pre", 3])
    corrupted_value, corrupted_cache, corrupted_grad_cache = get_cache_fwd_and_bwd(corrupted_tokens)
    assert corrupted_value == 0
    assert set(clean_grad_cache) == set(corrupted_cache)

    clean_resid, labels = clean_cache.accumulated_resid(-1, incl_mid=True, return_labels=True)
    corrupted_resid = corrupted_cache.accumulated_resid(-1, incl_mid=True)
    grads = corrupted_grad_cache.accumulated_resid(-1, incl_mid=True)
    attributed = ((clean_resid - corrupted_resid) * grads).sum(axis=-1)[:, 0]  # [parts, T]
    assert len(labels) == len(attributed)

    swept = patching.get_act_patch_block_every(model, corrupted_tokens, clean_cache, metric)
    assert swept.shape == (3, model.cfg.n_layers, clean_tokens.shape[1])
    before_each = np.array([i for i, label in enumerate(labels) if label.endswith("pre")])
    # A gradient is of small changes; in the last layers the change that is patched is one that it tells.
    late = np.corrcoef(attributed[before_each[-1]], swept[0, -1])[0, 1]
    assert late > 0.9
    heads = patching.get_act_patch_attn_head_all_pos_every(model, corrupted_tokens, clean_cache, metric)
    assert heads.shape[1:] in {
        (model.cfg.n_layers, model.cfg.n_heads),
        (model.cfg.n_layers, model.cfg.n_key_value_heads),
    }
    # What a head's output does is told by its gradient, too.
    z = (
        (clean_cache.stack_activation("z") - corrupted_cache.stack_activation("z"))
        * corrupted_grad_cache.stack_activation("z")
    ).sum(axis=(1, 2, 4))
    assert np.corrcoef(z[-1], heads[0, -1])[0, 1] > 0.9
