"""`Model.run_with_cache`: activations against other implementations, prompts, positions, and whose the arrays are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from hook_helpers import PROMPT, Array, everything, ids_of, same_bits

import llama2cpp
from llama2cpp import interventions
from llama2cpp.inside.hooks import HookPoint


def test_activations_are_the_references(model: llama2cpp.Model) -> None:
    """Keys, values, and through their sums the residual stream, in double precision."""
    config = model.config
    ids = tiny.tokens(config, 12)
    logits, cache = model.run_with_cache(ids, everything)
    expected = reference.run(config, tiny.arrays(config), ids)
    assert reference.largest_error(logits[0], expected.logits) < 1e-5
    order = np.arange(config.head_dim)
    if config.rope_style == "interleaved":  # the reference has the file's order, hooks have halves
        order = np.concatenate([order[0::2], order[1::2]])
    for layer in range(config.n_layers):
        assert reference.largest_error(cache["rot_k", layer][0], expected.keys[layer][..., order]) < 1e-5
        assert reference.largest_error(cache["v", layer][0], expected.values[layer]) < 1e-5


def test_activations_are_those_of_transformers(stories: llama2cpp.Model) -> None:
    """Hidden states, attention weights and, by hooks on its modules, the inputs and outputs of its parts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = tiny.config(rope_style="half_split")
    theirs = LlamaForCausalLM._from_config(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            intermediate_size=c.hidden_dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            max_position_embeddings=c.seq_len,
            rms_norm_eps=c.norm_eps,
        ),
        attn_implementation="eager",
    ).double()
    weights = tiny.hugging_face_names(tiny.arrays(c))
    state = {name: torch.tensor(array).double() for name, array in weights.items()}
    for name in [n for n in state if n.endswith("norm.weight") or "layernorm" in n]:
        state[name] = state[name].flatten()
    theirs.load_state_dict(state)
    seen: dict[str, Any] = {}

    def note(name: str, of_input: bool = False) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen[name] = (args[0] if of_input else output)[0].detach()

        return hook

    for i, layer in enumerate(theirs.model.layers):
        layer.self_attn.q_proj.register_forward_hook(note(f"q{i}"))
        layer.self_attn.v_proj.register_forward_hook(note(f"v{i}"))
        layer.self_attn.o_proj.register_forward_hook(note(f"z{i}", of_input=True))
        layer.self_attn.o_proj.register_forward_hook(note(f"attn_out{i}"))
        layer.mlp.gate_proj.register_forward_hook(note(f"pre{i}"))
        layer.mlp.up_proj.register_forward_hook(note(f"pre_linear{i}"))
        layer.mlp.down_proj.register_forward_hook(note(f"post{i}", of_input=True))
        layer.mlp.down_proj.register_forward_hook(note(f"mlp_out{i}"))
        layer.post_attention_layernorm.register_forward_hook(note(f"resid_mid{i}", of_input=True))
    ids = tiny.tokens(c, 11)
    with torch.no_grad():
        output = theirs(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)

    ours = llama2cpp.from_arrays(c, weights)
    _, cache = ours.run_with_cache(ids, everything)
    for i in range(c.n_layers):
        assert reference.largest_error(cache["resid_pre", i], output.hidden_states[i]) < 1e-5
        assert reference.largest_error(cache["pattern", i], output.attentions[i]) < 1e-5
        for name in ("q", "v", "z", "attn_out", "pre", "pre_linear", "post", "mlp_out", "resid_mid"):
            array = cache[name, i][0]
            assert reference.largest_error(array.reshape(len(ids), -1), seen[f"{name}{i}"]) < 1e-5, name


def test_logits_are_those_of_a_session(any_stories: llama2cpp.Model) -> None:
    ids = ids_of(any_stories)
    expected = any_stories.session().prefill(ids, all_logits=True)
    for names in (None, (), everything, "pattern", "result"):
        logits, _ = any_stories.run_with_cache(ids, names)
        assert same_bits(logits[0], expected)
    assert same_bits(any_stories.run_with_hooks(PROMPT)[0], expected)


def test_a_long_prompt_comes_in_passes_with_the_same_bits(stories: llama2cpp.Model) -> None:
    """300 tokens are three passes for a cache; a Python hook that looks makes it one."""
    ids = [1, *range(3, 302)]
    logits, cache = stories.run_with_cache(ids, everything)
    seen: dict[str, Array] = {}

    def look(activation: Array, hook: HookPoint) -> None:
        seen[hook.name] = activation

    assert same_bits(stories.run_with_hooks(ids, [(everything, look)]), logits)
    assert list(seen) == list(cache)
    for name, array in cache.items():
        assert same_bits(array, seen[name]), name


def test_prompts_of_one_length_are_a_batch(model: llama2cpp.Model) -> None:
    batch = [tiny.tokens(model.config, 7, seed) for seed in range(3)]
    logits, cache = model.run_with_cache(batch, everything)
    assert logits.shape == (3, 7, model.config.vocab_size)
    for i, ids in enumerate(batch):
        alone, one = model.run_with_cache(ids, everything)
        assert same_bits(logits[i], alone[0])
        for name, array in one.items():
            assert same_bits(cache[name][i], array[0]), name
    assert same_bits(model.run_with_cache(np.array(batch))[0], logits)


def test_prompts(stories: llama2cpp.Model, model: llama2cpp.Model) -> None:
    ids = ids_of(stories)
    expected = stories.run_with_cache(PROMPT)[0]
    for same in (
        ids,
        tuple(ids),
        np.array(ids),
        np.array([ids]),
        [ids],
        [PROMPT],
        PROMPT.encode(),
        torch.tensor([ids]),
    ):
        assert same_bits(stories.run_with_cache(same)[0], expected)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no tokens"):
        model.run_with_cache([])
    with pytest.raises(ValueError, match="no tokenizer"):
        model.run_with_cache("text")
    with pytest.raises(ValueError, match="token is 99"):
        model.run_with_cache([99])
    for wrong in ([1, 2.5], [[1, "2"]], np.zeros((2, 2, 2), dtype=int), np.array([1.0])):
        with pytest.raises(
            ValueError, match=r"(a token id is|token ids are) .*, expected (an integer|one dimension of integers)"
        ):
            model.run_with_cache(wrong)  # type: ignore[arg-type]
    with pytest.raises(llama2cpp.ContextFullError):
        model.run_with_cache([1] * 65)


def test_what_is_not_asked_for_is_not_kept(stories: llama2cpp.Model) -> None:
    assert len(stories.run_with_cache(PROMPT)[1]) == 5 * 20 + 3
    assert len(stories.run_with_cache(PROMPT, everything)[1]) == 5 * 21 + 3
    assert list(stories.run_with_cache(PROMPT, "z3")[1]) == ["blocks.3.attn.hook_z"]
    assert list(stories.run_with_cache(PROMPT, ())[1]) == []


@pytest.mark.parametrize("stop", [0, 1, 2, 3, -1, -3])
def test_stop_at_layer(model: llama2cpp.Model, stop: int) -> None:
    ids = tiny.tokens(model.config, 6)
    _, whole = model.run_with_cache(ids, everything)
    residual, cache = model.run_with_cache(ids, everything, stop_at_layer=stop)
    layers = stop % 3 if stop < 0 else stop
    assert same_bits(residual, whole["resid_pre", layers] if layers < 3 else whole["resid_post", 2])
    assert list(cache) == [name for name in whole if name == "hook_embed" or name[:9] < f"blocks.{layers}."]
    assert all(same_bits(cache[name], whole[name]) for name in cache)


def test_stop_at_layer_with_edits_and_beyond(model: llama2cpp.Model) -> None:
    with model.hooks([interventions.add("resid_post0", 1.0)]):
        residual, _ = model.run_with_cache([1, 2], (), stop_at_layer=1)
    plain, _ = model.run_with_cache([1, 2], (), stop_at_layer=1)
    assert same_bits(residual, plain + np.float32(1))
    for stop in (4, -4):
        with pytest.raises(ValueError, match=f"stop_at_layer is {stop}, expected -3 to 3"):
            model.run_with_cache([1], stop_at_layer=stop)


@pytest.mark.parametrize("positions", [[0], [5, 1, -1], 3, -2, slice(2, None, 2), np.array([4, 4])])
def test_positions(model: llama2cpp.Model, positions: Any) -> None:
    ids = tiny.tokens(model.config, 6)
    logits, whole = model.run_with_cache([ids, ids[::-1]], everything)
    some_logits, cache = model.run_with_cache([ids, ids[::-1]], everything, positions=positions)
    assert same_bits(logits, some_logits)
    rows = np.atleast_1d(np.arange(6)[positions])
    for name, array in whole.items():
        axis = 2 if name.endswith(("scores", "pattern")) else 1
        assert same_bits(cache[name], np.ascontiguousarray(array.take(rows, axis=axis))), name
    for wrong in ([6], [-7], [], slice(3, 3)):
        with pytest.raises(ValueError, match="position"):
            model.run_with_cache(ids, positions=wrong)


def test_remove_batch_dim(model: llama2cpp.Model) -> None:
    logits, cache = model.run_with_cache([1, 2, 3], remove_batch_dim=True)
    assert logits.shape == (1, 3, model.config.vocab_size)
    assert cache["pattern", 0].shape == (6, 3, 3)
    with pytest.raises(ValueError, match="single prompt, there are 2"):
        model.run_with_cache([[1], [2]], remove_batch_dim=True)


def test_an_absurd_request_states_what_it_needs() -> None:
    config = tiny.config(seq_len=1 << 21)
    model = tiny.model(config)
    with pytest.raises(MemoryError, match=r"run_with_cache needs 211\d\d\d GB \(211\d\d\d GB of activations"):
        model.run_with_cache(np.zeros(1 << 21, dtype=np.int64), "attn_scores")


def test_arrays_are_the_callers_own(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 5)
    _, cache = model.run_with_cache(ids)
    kept = cache["z", 1]
    copy = kept.copy()
    del cache
    model.run_with_cache(ids[::-1])
    assert same_bits(kept, copy)
    kept[:] = 3  # writable


def test_large_caches_are_the_callers_own(stories: llama2cpp.Model) -> None:
    """Their memory is used again, but not while an array of it is there."""
    prompts = [[1, *range(begin, begin + 199)] for begin in (3, 30, 60)]

    def run(ids: list[int]) -> tuple[Array, llama2cpp.ActivationCache]:
        return stories.run_with_cache(ids, everything)

    expected = [(logits.copy(), cache["pattern", 2].copy()) for logits, cache in map(run, prompts)]
    logits, cache = run(prompts[0])
    pattern = cache["pattern", 2]
    address = cache["hook_embed"].ctypes.data
    del cache
    for ids, (their_logits, their_pattern) in zip(prompts[1:], expected[1:], strict=True):
        other_logits, other = run(ids)
        assert same_bits(other_logits, their_logits)
        assert same_bits(other["pattern", 2], their_pattern)
    assert same_bits(logits, expected[0][0])
    assert same_bits(pattern, expected[0][1])
    del pattern, other
    if sys.platform == "linux":
        _, again = run(prompts[0])
        _, more = run(prompts[0])
        assert address in (again["hook_embed"].ctypes.data, more["hook_embed"].ctypes.data)
    model = llama2cpp.load(stories.path)
    _, last = model.run_with_cache(prompts[1], everything)
    del model
    assert same_bits(last["pattern", 2], expected[1][1])


def test_a_batch_of_long_prompts(stories: llama2cpp.Model) -> None:
    """Passes of 128 tokens, of which one has the end of a prompt and the beginning of the next."""
    batch = [[1, *range(begin, begin + 199)] for begin in (3, 30)]
    logits, cache = stories.run_with_cache(batch, ["z4", "pattern0"])
    for i, ids in enumerate(batch):
        alone, one = stories.run_with_cache(ids, ["z4", "pattern0"])
        assert same_bits(logits[i], alone[0])
        for name in cache:
            assert same_bits(cache[name][i], one[name][0])
