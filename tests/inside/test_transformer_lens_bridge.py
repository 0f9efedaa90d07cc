"""TransformerLens's own functions on this engine, by its driver protocol, against the same on its own engine."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from hf_folders import Spec

import llama2cpp

with warnings.catch_warnings():  # its imports', and theirs
    warnings.simplefilter("ignore")
    pytest.importorskip("transformer_lens", reason='TransformerLens is not installed: pip install ".[lens-test]"')
    import torch
    from lens_bridge import bridge, difference
    from transformer_lens import patching
    from transformer_lens.head_detector import compute_head_attention_similarity_score, detect_head
    from transformer_lens.model_bridge import RemoteBridge
    from transformer_lens.model_bridge.driver_protocol import validate_driver
    from transformer_lens.tools.analysis.logit_lens import logit_lens
    from transformer_lens.utilities import test_prompt as their_test_prompt
    from transformers import Qwen3Config, Qwen3ForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-4


class Pair(NamedTuple):
    ours: Any  # our bridge
    theirs: Any  # TransformerLens's, to transformers
    folded: tuple[Any, Any]  # both, with the norms' gains folded into the weights
    clean: Any
    corrupt: Any


def qwen() -> Any:
    torch.manual_seed(2)
    config = Qwen3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=50,
        max_position_embeddings=64,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn_like(parameter) * 0.2
            parameter.copy_(1 + values / 2 if "norm" in name else values)
    frozen: Any = model
    return frozen.eval()


MODELS: dict[str, Any] = {
    "llama": Spec(seed=5, settings={"attention_bias": True, "mlp_bias": True}).model,
    "qwen3": qwen,
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    model = MODELS[request.param]()
    model.save_pretrained(folder)
    theirs, folded = (bridge(MODELS[request.param](), folder, fold_ln=fold_ln) for fold_ln in (False, True))
    opened = llama2cpp.load(folder, precision="exact")
    ours, ours_folded = (llama2cpp.transformer_lens(opened, fold_ln=fold_ln) for fold_ln in (False, True))
    rng = np.random.default_rng(3)
    clean, corrupt = (torch.tensor(rng.integers(3, 50, size=(2, 5))) for _ in range(2))
    corrupt[:, -2:] = clean[:, -2:]
    for each in (ours, theirs):
        each.set_use_attn_result(True)
    return Pair(ours, theirs, (ours_folded, folded), clean, corrupt)


def gap(ours: Any, theirs: Any) -> float:
    return difference(ours.detach().numpy(), theirs)


def metric(logits: Any) -> Any:
    return (logits[:, -1, 7] - logits[:, -1, 11]).mean()


def test_the_driver_is_one(pair: Pair) -> None:
    validate_driver(pair.ours._driver, after_bridge_construction=True)
    assert isinstance(pair.ours, RemoteBridge)
    assert not pair.ours._driver.non_fireable_hook_points


def test_every_point_fires_once_and_acts(pair: Pair) -> None:
    """What a callable returns is what the run goes on with, at each point that says that it can fire."""
    bridge = pair.ours
    plain = bridge(pair.clean)
    for flag in ("split_qkv_input", "attn_in", "hook_mlp_in"):
        getattr(bridge, f"set_use_{flag}")(True)
    names = sorted(bridge._driver.supported_hook_points)
    assert len(names) > 26 * bridge.cfg.n_layers
    fired: list[str] = []
    bridge.run_with_hooks(pair.clean, fwd_hooks=[(name, lambda x, hook: fired.append(hook.name)) for name in names])
    assert sorted(fired) == names
    for name in names:
        _, cache = bridge.run_with_cache(pair.clean, names_filter=[name])
        if name.endswith("hook_attn_scores"):
            continue  # half of them are minus infinity
        changed = bridge.run_with_hooks(pair.clean, fwd_hooks=[(name, lambda x, hook: x * x * 1.7 + 0.3)])
        ends = name.endswith(("hook_k", "hook_rot_k", "hook_k_normed", "hook_scale", "hook_q_input"))
        assert (changed - plain).abs().max() > (0 if ends else 1e-5), name
        assert name in cache
    for flag in ("split_qkv_input", "attn_in", "hook_mlp_in"):
        getattr(bridge, f"set_use_{flag}")(False)


def test_runs_caches_and_losses(pair: Pair) -> None:
    with torch.no_grad():
        theirs, their_cache = pair.theirs.run_with_cache(pair.clean)
        loss = pair.theirs(pair.clean, return_type="loss")
    ours, cache = pair.ours.run_with_cache(pair.clean)
    assert gap(ours, theirs) < TOLERANCE
    assert abs(float(pair.ours(pair.clean, return_type="loss")) - float(loss)) < TOLERANCE
    shared = set(cache.cache_dict) & set(their_cache.cache_dict)
    assert len(shared) > 40
    gaps = {}
    for name in shared:
        expected = their_cache[name].transpose(1, 2) if name.endswith("_normed") else their_cache[name]  # heads first
        gaps[name] = gap(cache[name], expected)
    assert {name: found for name, found in gaps.items() if not found < TOLERANCE} == {}
    assert pair.ours.run_with_cache(pair.clean, remove_batch_dim=False, stop_at_layer=1)[0].shape == (2, 5, 32)
    resid = cache["resid_pre", 1]
    assert gap(pair.ours(resid, start_at_layer=1), theirs) < TOLERANCE
    assert torch.equal(pair.ours(pair.clean, stop_at_layer=1), resid)


def test_every_weight(pair: Pair) -> None:
    for ours, theirs in [(pair.ours, pair.theirs), pair.folded]:
        for name in ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"):
            assert gap(getattr(ours, name), getattr(theirs, name)) < 1e-6, name
        assert gap(ours.QK.AB, theirs.QK.AB) < 1e-5
        assert gap(ours.OV.AB, theirs.OV.AB) < 1e-5
        for mode in "QKV":
            scores = ours.all_composition_scores(mode)
            assert gap(scores.scores, theirs.all_composition_scores(mode).scores) < TOLERANCE
        tokens = torch.tensor([[3, 4], [5, 6]])
        assert gap(ours.tokens_to_residual_directions(tokens), theirs.tokens_to_residual_directions(tokens)) < 1e-6
        assert gap(ours.accumulated_bias(1), theirs.accumulated_bias(1)) < 1e-6
        x = torch.randn(1, 3, 32)
        assert gap(ours.unembed(ours.ln_final(x)), theirs.unembed(theirs.ln_final(x))) < TOLERANCE


PATCHES = [
    "resid_pre",
    "mlp_out",
    "attn_out",
    "attn_head_out_by_pos",
    "attn_head_out_all_pos",
    "attn_head_q_all_pos",
    "attn_head_pattern_all_pos",
]


@pytest.mark.parametrize("name", PATCHES)
def test_their_patching(pair: Pair, name: str) -> None:
    sweep = getattr(patching, f"get_act_patch_{name}")
    with torch.no_grad():
        theirs = sweep(pair.theirs, pair.corrupt, pair.theirs.run_with_cache(pair.clean)[1], metric)
    ours = sweep(pair.ours, pair.corrupt, pair.ours.run_with_cache(pair.clean)[1], metric)
    assert gap(ours, theirs) < TOLERANCE
    assert ours.std() > 1e-3


def test_their_patching_is_ours(pair: Pair) -> None:
    _, cache = pair.ours.model.run_with_cache(pair.clean.numpy())
    ours = llama2cpp.patching.get_act_patch_resid_pre(pair.ours.model, pair.corrupt.numpy(), cache, metric)
    theirs = patching.get_act_patch_resid_pre(pair.ours, pair.corrupt, pair.ours.run_with_cache(pair.clean)[1], metric)
    assert difference(ours, theirs) < 1e-6


def test_inputs_of_parts(pair: Pair) -> None:
    for bridge in (pair.ours, pair.theirs):
        bridge.set_use_split_qkv_input(True)
        bridge.set_use_hook_mlp_in(True)

    def edit(x: Any, hook: Any, head: bool) -> Any:
        x = x.clone()
        part = x[:, 2:, 1] if head else x[:, 2:]
        part *= part
        return x

    for name in ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"):
        hooks = [(f"blocks.1.{name}", partial(edit, head=name != "hook_mlp_in"))]
        with torch.no_grad():
            theirs = pair.theirs.run_with_hooks(pair.clean, fwd_hooks=hooks)
            plain = pair.theirs(pair.clean)
        assert gap(pair.ours.run_with_hooks(pair.clean, fwd_hooks=hooks), theirs) < TOLERANCE
        assert (theirs - plain).abs().max() > 1e-3
    for bridge in (pair.ours, pair.theirs):
        bridge.set_use_split_qkv_input(False)
        bridge.set_use_hook_mlp_in(False)


def test_direct_logit_attribution(pair: Pair) -> None:
    for ours, theirs in [(pair.ours, pair.theirs), pair.folded]:
        with torch.no_grad():
            _, their_cache = theirs.run_with_cache(pair.clean)
        _, cache = ours.run_with_cache(pair.clean)
        stacks: dict[str, dict[str, Any]] = {"decompose_resid": {"layer": -1}, "accumulated_resid": {"incl_mid": True}}
        for method, options in stacks.items():
            stack, labels = getattr(cache, method)(**options, return_labels=True)
            their_stack, their_labels = getattr(their_cache, method)(**options, return_labels=True)
            assert labels == their_labels
            assert gap(stack, their_stack) < TOLERANCE
            answers = torch.tensor([7, 9])
            attributed = cache.logit_attrs(stack, answers, incorrect_tokens=answers + 1)
            expected = their_cache.logit_attrs(their_stack, answers, incorrect_tokens=answers + 1)
            assert gap(attributed, expected) < TOLERANCE
        heads = cache.stack_head_results(layer=-1, pos_slice=-1)
        assert gap(heads, their_cache.stack_head_results(layer=-1, pos_slice=-1)) < TOLERANCE
        neurons = cache.stack_neuron_results(layer=-1, pos_slice=-1)
        assert gap(neurons, their_cache.stack_neuron_results(layer=-1, pos_slice=-1)) < TOLERANCE
        full = cache.get_full_resid_decomposition(expand_neurons=False)
        assert gap(full, their_cache.get_full_resid_decomposition(expand_neurons=False)) < TOLERANCE


def test_their_logit_lens(pair: Pair) -> None:
    for ours, theirs in [(pair.ours, pair.theirs), pair.folded]:
        with torch.no_grad():
            expected = logit_lens(theirs, pair.clean, top_k=3)
            found = logit_lens(ours, pair.clean, top_k=3)
        assert found.labels == expected.labels
        assert gap(found.values, expected.values) < TOLERANCE


def test_their_head_detector(pair: Pair) -> None:
    """It takes texts, and the tokenizers here have none to speak of: its score of each head, and a run of it."""
    with torch.no_grad():
        _, their_cache = pair.theirs.run_with_cache(pair.clean)
    _, cache = pair.ours.run_with_cache(pair.clean)
    wanted = torch.tril(torch.ones(5, 5), diagonal=-1)
    for layer in range(pair.ours.cfg.n_layers):
        for head in range(pair.ours.cfg.n_heads):
            scores = [
                compute_head_attention_similarity_score(
                    each["pattern", layer][0, head],
                    wanted,
                    exclude_bos=True,
                    exclude_current_token=False,
                    error_measure="mul",
                )
                for each in (cache, their_cache)
            ]
            assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE)


def test_with_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    model = llama2cpp.load("storyteller", precision="exact")
    ours = llama2cpp.transformer_lens(model)
    text = "Once upon a time there was a cat. Once upon a time"
    assert ours.to_tokens(text).tolist() == model.to_tokens(text).tolist()
    assert ours.to_tokens([text, "Once"]).shape == (2, len(model.to_tokens(text)[0]))
    assert ours.to_str_tokens(text) == model.to_str_tokens(text)
    assert ours.get_token_position(" cat", text) == model.get_token_position(" cat", text)
    for kind in ("previous_token_head", "duplicate_token_head", "induction_head"):
        scores = detect_head(ours, text, kind)
        np.testing.assert_allclose(scores.numpy(), llama2cpp.utils.detect_head(model, text, kind), atol=TOLERANCE)
    their_test_prompt(" upon", " a", ours, prepend_bos=True)
    assert "Rank" in capsys.readouterr().out
    np.testing.assert_array_equal(ours(text).numpy(), model(text))

    made = ours.generate("Once upon a", max_new_tokens=8, do_sample=False)
    assert made == "Once upon a" + model.generate("Once upon a", max_tokens=8, temperature=0)
    ours.add_hook("blocks.2.hook_mlp_out", lambda x, hook: x * 0)
    mute = ours.generate("Once upon a", max_new_tokens=8, do_sample=False)
    with model.hooks([llama2cpp.interventions.zero("mlp_out", layer=2)]):
        assert mute == "Once upon a" + model.generate("Once upon a", max_tokens=8, temperature=0)
    ours.reset_hooks()
    tokens = ours.generate(ours.to_tokens("Once upon a"), max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, len(model.to_tokens("Once upon a")[0]) + 3)


def test_what_it_refuses(pair: Pair) -> None:
    def look(x: Any, hook: Any) -> None:
        pass

    calls: list[Any] = [
        lambda: pair.ours.run_with_hooks(pair.clean, bwd_hooks=[("hook_embed", look)]),
        lambda: pair.ours.run_with_cache(pair.clean, incl_bwd=True),
        lambda: pair.ours(pair.clean, attention_mask=torch.zeros_like(pair.clean)),
        lambda: pair.ours(pair.clean, past_key_values=1),
        lambda: pair.ours.generate(pair.clean, beams=3),
        lambda: pair.ours._driver.forward(pair.clean, intervene={"hook_embed": {"op": "suppress"}}),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()
    with pytest.raises(KeyError):
        pair.ours.run_with_hooks(pair.clean, fwd_hooks=[("blocks.0.hook_nothing", look)])
