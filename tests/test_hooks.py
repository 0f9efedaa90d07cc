"""Hooks: what they see against other implementations, and what they may and may not do to a run."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import reference
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import interventions, places
from llama2cpp.hooks import HookPoint

Array = NDArray[np.float32]
PROMPT = "Once upon a time"


def everything(name: str) -> bool:
    return True


def ids_of(model: llama2cpp.Model, text: str = PROMPT) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(scope="module", params=["interleaved", "half_split"])
def model(request: pytest.FixtureRequest) -> llama2cpp.Model:
    return tiny.model(tiny.config(rope_style=request.param, n_layers=3), threads=2)


@pytest.fixture(scope="module", params=["f32", "int8"])
def any_stories(
    request: pytest.FixtureRequest, stories_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> llama2cpp.Model:
    """float32 weights, and llama2.c's int8 in its own order of arithmetic."""
    path = stories_dir / "stories260K.bin"
    if request.param == "int8":
        stories = llama2cpp.load(path)
        sizes = checkpoints.Sizes(
            **{field.name: getattr(stories.config, field.name) for field in dataclasses.fields(checkpoints.Sizes)}
        )
        path = tmp_path_factory.mktemp("int8") / "stories.bin"
        path.write_bytes(checkpoints.v2_bytes(sizes, dict(stories.weights), group=4))
    return llama2cpp.load(path, tokenizer=stories_dir / "tok512.bin")


# --- names


def test_names_are_those_of_the_forward(model: llama2cpp.Model) -> None:
    names = list(places.points_of(2))
    assert names[0] == "hook_embed"
    assert names[-2:] == ["ln_final.hook_scale", "ln_final.hook_normalized"]
    assert names[1:22] == [f"blocks.0.{part}" for part in BLOCK]
    assert names[22:-2] == [f"blocks.1.{part}" for part in BLOCK]


BLOCK = [
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("hook_embed", ["hook_embed"]),
        ("embed", ["hook_embed"]),
        ("blocks.1.attn.hook_z", ["blocks.1.attn.hook_z"]),
        ("z1", ["blocks.1.attn.hook_z"]),
        ("z", ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]),
        ("attn", ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]),
        ("pre1", ["blocks.1.mlp.hook_pre"]),
        ("blocks.*.hook_resid_post", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]),
        (["z1", "hook_embed", "z1"], ["hook_embed", "blocks.1.attn.hook_z"]),
        (lambda name: name.endswith("mlp_out"), ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]),
        (
            "scale",
            [*(f"blocks.{layer}.ln{norm}.hook_scale" for layer in (0, 1) for norm in (1, 2)), "ln_final.hook_scale"],
        ),
        ((), []),
    ],
)
def test_what_names_stand_for(names: Any, found: list[str]) -> None:
    assert [places.name_of(place, 2) for place in places.find_places(names, 2)] == found


@pytest.mark.parametrize("name", ["z2", "blocks.2.attn.hook_z", "hook_zz", "blocks.*.hook_nothing", ""])
def test_a_name_that_no_activation_has(name: str, model: llama2cpp.Model) -> None:
    with pytest.raises(ValueError, match="no activation of a model with 2 layers"):
        places.find_places(name, 2)
    with pytest.raises(ValueError, match=r"close to it are blocks\.1\.attn\.hook_z"):
        model.hooks([("blocks.1.attn.hook_zz", print)])


# --- run_with_cache


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
    with pytest.raises(ValueError, match="from 2 to 5 tokens: a batch needs equal lengths"):
        stories.run_with_cache([ids, ids[:2]])
    with pytest.raises(ValueError, match="there are no tokens"):
        model.run_with_cache([])
    with pytest.raises(ValueError, match="no tokenizer"):
        model.run_with_cache("text")
    with pytest.raises(ValueError, match="token is 99"):
        model.run_with_cache([99])
    for wrong in ([1, 2.5], [[1, "2"]], np.zeros((2, 2, 2), dtype=int), np.array([1.0])):
        with pytest.raises(ValueError, match=r"a token id is .*, expected an integer"):
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


# --- hooks that look


def test_identity_leaves_the_bits_alone(any_stories: llama2cpp.Model) -> None:
    """At every point: in place, as a returned copy, in another layout and type, and compiled."""
    ids = ids_of(any_stories)
    text = any_stories.generate(PROMPT, max_tokens=12, temperature=0)
    session = any_stories.session()
    expected = [session.prefill(ids, all_logits=True), session.step(3), session.step(4)]
    identities: list[Any] = [
        lambda a, hook: None,
        lambda a, hook: a,
        lambda a, hook: np.asfortranarray(a.astype(np.float64)),
        lambda a, hook: np.copyto(a, a.copy()),
        lambda a, hook: torch.from_numpy(a),
    ]
    hooks: list[Any] = [(everything, identity) for identity in identities]
    hooks.append(interventions.scale(everything, 1.0))
    for hook in hooks:
        with any_stories.hooks([hook]):
            session = any_stories.session()
            got = [session.prefill(ids, all_logits=True), session.step(3), session.step(4)]
            assert all(map(same_bits, got, expected))
            assert any_stories.generate(PROMPT, max_tokens=12, temperature=0) == text
            assert "".join(any_stories.stream(PROMPT, max_tokens=12, temperature=0)) == text


def test_identity_at_each_point_alone(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 9)

    def run() -> list[Array]:
        session = model.session()
        return [session.prefill(ids), session.step(3), session.kv.keys(2).copy(), session.kv.values(2).copy()]

    expected = run()
    for name in places.points_of(3):
        with model.hooks([(name, lambda a, hook: a * 1)]):
            assert all(map(same_bits, run(), expected)), name


def test_what_a_hook_is_told(model: llama2cpp.Model) -> None:
    calls: list[tuple[str, int | None, int, tuple[int, ...]]] = []
    session = model.session()

    def look(activation: Array, hook: HookPoint) -> None:
        assert hook.session is session
        assert session.position == position  # what has been finished
        assert activation.dtype == np.float32
        assert activation.flags.writeable
        calls.append((hook.name, hook.layer, hook.position, activation.shape))

    c = model.config
    names = ["hook_embed", "q1", "k1", "pattern1", "result1", "pre1", "ln_final.hook_scale"]
    position = 0
    for ids in ([1, 2, 3, 4], [5]):
        calls.clear()
        with model.hooks([(names, look)]):
            session.prefill(ids)
        count = len(ids)
        assert calls == [
            ("hook_embed", None, position, (1, count, c.dim)),
            ("blocks.1.attn.hook_q", 1, position, (1, count, c.n_heads, c.head_dim)),
            ("blocks.1.attn.hook_k", 1, position, (1, count, c.n_kv_heads, c.head_dim)),
            ("blocks.1.attn.hook_pattern", 1, position, (1, c.n_heads, count, position + count)),
            ("blocks.1.attn.hook_result", 1, position, (1, count, c.n_heads, c.dim)),
            ("blocks.1.mlp.hook_pre", 1, position, (1, count, c.hidden_dim)),
            ("ln_final.hook_scale", None, position + count - 1, (1, 1, 1)),  # only the last token's logits are made
        ]
        position += count


def test_masked_scores_are_minus_infinity(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache([1, 2, 3, 4], "attn_scores")
    above = np.triu(np.ones((4, 4), dtype=bool), 1)
    for array in cache.values():
        assert (array[..., above] == -np.inf).all()
        assert np.isfinite(array[..., ~above]).all()


def test_rotary_styles_show_the_same(model: llama2cpp.Model) -> None:
    """The same matrices in file order and in half-split order give equal caches."""
    c = model.config
    weights = tiny.arrays(c)
    order = np.arange(c.head_dim)
    other = "half_split" if c.rope_style == "interleaved" else "interleaved"
    if other == "half_split":
        order = np.concatenate([order[0::2], order[1::2]])
    else:
        order = np.stack(np.split(order, 2), axis=-1).ravel()
    for name in list(weights):
        if name.endswith(("wq.weight", "wk.weight")):
            heads = weights[name].reshape(-1, c.head_dim, c.dim)
            weights[name] = np.ascontiguousarray(heads[:, order].reshape(-1, c.dim))
    turned = llama2cpp.from_arrays(llama2cpp.Config(**(c.to_dict() | {"rope_style": other})), weights)
    ids = tiny.tokens(c, 8)
    ours, theirs = model.run_with_cache(ids, everything)[1], turned.run_with_cache(ids, everything)[1]
    for name, array in ours.items():
        # Later layers differ by the order of the sums of the scores.
        if name.startswith("blocks.0.") and name.endswith(("hook_q", "hook_k")):
            assert same_bits(array, theirs[name]), name
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-5)


def test_several_sessions_in_a_pass(model: llama2cpp.Model) -> None:
    """Hooks fire once per session; one session's hooks leave the others alone."""
    sessions = [model.session() for _ in range(3)]
    sessions[1].prefill([5, 6])
    calls: list[tuple[int, int, int]] = []

    def look(activation: Array, hook: HookPoint) -> None:
        calls.append((sessions.index(hook.session), hook.position, activation.shape[1]))

    def zero(activation: Array, hook: HookPoint) -> None:
        assert hook.session is sessions[2]
        activation[:] = 0

    rows = [(sessions[0], [1, 2, 3]), (sessions[1], [4]), (sessions[2], [1, 2, 3])]
    plain = model.forward([(session.fork(), ids) for session, ids in rows])
    with model.hooks([("z1", look)]), sessions[2].hooks([("mlp_out1", zero)]):
        got = model.forward(rows)
    assert calls == [(0, 0, 3), (1, 2, 1), (2, 0, 3)]
    assert same_bits(got[0], plain[0])
    assert same_bits(got[1], plain[1])
    alone = model.run_with_hooks([1, 2, 3], [interventions.zero("mlp_out1")])
    assert same_bits(got[2], alone[0, -1])


# --- hooks that change


def test_returned_and_in_place_edits_are_equal(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 7)
    plain = model.run_with_hooks(ids)

    def in_place(activation: Array, hook: HookPoint) -> None:
        activation[..., 0] = 0.5

    def returned(activation: Array, hook: HookPoint) -> Array:
        other = activation.copy()
        other[..., 0] = 0.5
        activation[:] = np.nan  # what is returned counts
        return np.asarray(other)

    for name in places.points_of(3):
        edited = model.run_with_hooks(ids, [(name, in_place)])
        assert same_bits(edited, model.run_with_hooks(ids, [(name, returned)])), name
        assert not same_bits(edited, plain), name


@pytest.mark.parametrize("name", ["hook_embed", "blocks.1.attn.hook_q", "blocks.0.attn.hook_pattern"])
def test_wrong_results(model: llama2cpp.Model, name: str) -> None:
    session = model.session()
    session.prefill([1, 2])
    before = (session.tokens, session.logits, session.step(3))
    session.rewind(2)
    cases: list[tuple[Callable[[Array, HookPoint], Any], str]] = [
        (lambda a, hook: a[0], r"returned an array of shape \(.*\), expected None or an array of shape \(1, "),
        (lambda a, hook: a[:, :0], r"returned an array of shape .*, expected None or an array of shape "),
        (lambda a, hook: 3.0, r"returned an array of shape \(\), expected"),
        (lambda a, hook: "text", "expected None or an array of shape"),
        (lambda a, hook: object(), "expected None or an array of shape"),
        (lambda a, hook: a.astype(complex), "returned an array of dtype complex128"),
    ]
    for hook, message in cases:
        with session.hooks([(name, hook)]), pytest.raises(ValueError, match=message) as error:
            session.step(3)
        assert name in str(error.value)
        assert session.tokens == before[0]
    assert same_bits(session.step(3), before[2])


def test_misuse_of_the_view(model: llama2cpp.Model) -> None:
    """Whatever is done to the array object, the memory stays what it is."""
    plain = model.run_with_hooks([1, 2, 3])

    def resize(activation: Array, hook: HookPoint) -> None:
        with pytest.raises(ValueError, match="does not own its data"):
            activation.resize((1000, 1000), refcheck=False)
        activation.setflags(write=False)

    assert same_bits(model.run_with_hooks([1, 2, 3], [(everything, resize)]), plain)


def test_kept_arrays_never_change(stories: llama2cpp.Model) -> None:
    kept: list[tuple[Array, Array]] = []

    def keep(activation: Array, hook: HookPoint) -> None:
        kept.append((activation, activation.copy()))

    def spoil(activation: Array, hook: HookPoint) -> None:
        activation *= 0.5

    with stories.hooks([(everything, keep), (everything, spoil)]):
        stories.generate(PROMPT, max_tokens=5, temperature=0)
    stories.generate(PROMPT, max_tokens=50)
    assert len(kept) > 500
    assert all(same_bits(array, copy) for array, copy in kept)


def test_hooks_act_in_order(model: llama2cpp.Model) -> None:
    seen: list[tuple[str, float]] = []

    def note(label: str) -> Callable[[Array, HookPoint], None]:
        return lambda a, hook: seen.append((label, float(a[0, 0, 0])))

    two, three = interventions.set("resid_mid1", 2.0), interventions.scale("resid_mid1", 3.0)
    with (
        model.hooks([("resid_mid1", note("outer")), two, ("resid_mid1", note("set")), three]),
        model.hooks([("resid_mid1", note("inner")), interventions.add("resid_mid1", 1.0)]),
    ):
        _, cache = model.run_with_cache([1, 2], "resid_mid1")
    assert seen[1:] == [("set", 2.0), ("inner", 6.0)]
    assert seen[0][0] == "outer"
    assert (cache["resid_mid", 1] == 7.0).all()  # what is kept is what the model went on with


def test_results_of_heads(any_stories: llama2cpp.Model) -> None:
    """They sum to attn_out; zeroing one takes away what it adds; other tokens keep their bits."""
    config = any_stories.config
    _, cache = any_stories.run_with_cache(PROMPT, everything)
    for layer in range(config.n_layers):
        result, attn_out = cache["result", layer], cache["attn_out", layer]
        np.testing.assert_allclose(result.sum(2), attn_out, atol=3e-6 * np.abs(result).max() * config.n_heads)
        if any_stories.activations == "f32":
            wo = any_stories.weights[f"layers.{layer}.attention.wo.weight"]
            by_head = wo.reshape(config.dim, config.n_heads, config.head_dim).astype(np.float64)
            expected = np.einsum("bthd,ohd->btho", cache["z", layer], by_head)
            np.testing.assert_allclose(result, expected, atol=1e-5)

    def zero(activation: Array, hook: HookPoint) -> None:
        activation[:, 2, 5] = 0

    with any_stories.hooks([("result1", zero)]):
        _, edited = any_stories.run_with_cache(PROMPT, ["attn_out1", "result1"])
    rows = [0, 1, 3, 4]
    assert same_bits(edited["attn_out", 1][:, rows], cache["attn_out", 1][:, rows])
    others = np.delete(cache["result", 1][0, 2], 5, axis=0)
    np.testing.assert_allclose(edited["attn_out", 1][0, 2], others.sum(0), atol=1e-5)


def test_results_on_a_quantised_model(smollm2_path: Path) -> None:
    """In the arithmetic of the product itself, rounding to int8 included, so the sum is as close as floats can be."""
    for activations in ("int8", "f32"):
        model = llama2cpp.load(smollm2_path, activations=activations)
        ids = [1, 4093, 253, 655, 28, 665]
        logits, cache = model.run_with_cache(ids, ["result3", "attn_out3", "result29", "attn_out29"])
        assert same_bits(logits[0], model.session().prefill(ids, all_logits=True))
        for layer in (3, 29):
            result, attn_out = cache["result", layer], cache["attn_out", layer]
            np.testing.assert_allclose(result.sum(2), attn_out, atol=2e-6 * np.abs(result).max() * 9)


# --- failures


class PlannedError(Exception):
    pass


@pytest.mark.parametrize("kind", [PlannedError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_the_session_as_it_was(model: llama2cpp.Model, kind: type[BaseException]) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    before = session.logits
    expected = session.fork().step(4)
    assert before is not None

    def fail(activation: Array, hook: HookPoint) -> None:
        activation[:] = np.nan
        raise kind("planned")

    for name in places.points_of(3):
        with session.hooks([(name, fail)]), pytest.raises(kind, match="planned"):
            session.prefill([4, 5])
        assert session.tokens == [1, 2, 3]
        assert session.logits is not None
        assert same_bits(session.logits, before)
    assert same_bits(session.step(4), expected)


def test_a_session_cannot_be_used_in_its_own_hook(model: llama2cpp.Model) -> None:
    session = model.session()
    uses: list[Callable[[], Any]] = [
        lambda: session.step(1),
        lambda: session.rewind(0),
        session.fork,
        lambda: model.forward([(session, [1])]),
    ]

    def fails(activation: Array, hook: HookPoint) -> None:
        uses.pop()()

    while uses:
        with session.hooks([("z1", fails)]), pytest.raises(RuntimeError, match="own"):
            session.step(1)
    assert session.position == 0


def test_another_session_can(model: llama2cpp.Model) -> None:
    expected = model.session().step(7)
    inner: list[Array] = []
    depth = 0

    def run_another(activation: Array, hook: HookPoint) -> None:
        nonlocal depth
        depth += 1
        if depth < 3:  # hooks are on in here too
            inner.append(model.session().step(7))
        depth -= 1

    with model.hooks([("attn_scores1", run_another)]):
        assert same_bits(model.session().step(7), expected)
    assert len(inner) == 2
    assert all(same_bits(logits, expected) for logits in inner)


def test_what_is_no_hook(model: llama2cpp.Model) -> None:
    for wrong in [3, "z", ("z",), ("z", 3), ("z", None), (1, 2, 3)]:
        with pytest.raises(ValueError, match="hook"):
            model.hooks([wrong])  # type: ignore[list-item]


# --- scope


def stop(activation: Array, hook: HookPoint) -> None:
    raise PlannedError


def test_hooks_end_with_their_block(model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    with pytest.raises(PlannedError), model.hooks([("z", stop)]):
        model.session().step(1)
    model.session().step(1)
    with model.hooks([("z", stop)]):
        stories.session().step(1)  # another model
        with pytest.raises(PlannedError):
            model.run_with_cache([1])
    block = model.hooks([("z", stop)])
    with block, block, contextlib.suppress(PlannedError):
        model.session().step(1)
    model.session().step(1)


def test_hooks_of_a_session(model: llama2cpp.Model) -> None:
    session, other = model.session(), model.session()
    with session.hooks([("z", stop)]):
        other.step(1)
        session.fork().step(1)
        with pytest.raises(PlannedError):
            session.step(1)
        with pytest.raises(PlannedError):
            model.forward([(other, [1]), (session, [1])])
    assert other.position == 1


def test_other_threads_do_not_see_them(model: llama2cpp.Model) -> None:
    expected = model.session().step(1)
    inside, done = threading.Event(), threading.Event()
    results: list[Array] = []

    def other() -> None:
        inside.wait(30)
        results.append(model.session().step(1))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def wait(activation: Array, hook: HookPoint) -> None:
        inside.set()
        assert done.wait(30)  # the other thread runs the same model meanwhile, without this hook

    model.run_with_hooks([1], [("z1", wait)])
    thread.join()
    assert same_bits(results[0], expected)


def test_many_threads_with_hooks_of_their_own(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 10)
    expected = {f: model.run_with_hooks(ids, [interventions.scale("mlp_out", f)]) for f in (0.5, 2.0, 3.0)}
    wrong: list[float] = []

    def work(factor: float) -> None:
        def scale(activation: Array, hook: HookPoint) -> Array:
            return np.asarray(activation * np.float32(factor))

        for _ in range(10):
            with model.hooks([("mlp_out", scale)]):
                session = model.session()
                session.prefill(ids[:5])
                logits = session.prefill(ids[5:])
            if not same_bits(logits, expected[factor][0, -1]):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stream_is_hooked_while_it_is_iterated_in_the_block(stories: llama2cpp.Model) -> None:
    calls: list[int] = []

    def look(activation: Array, hook: HookPoint) -> None:
        calls.append(activation.shape[1])

    with stories.hooks([("z0", look)]):
        pieces = stories.stream(PROMPT, max_tokens=6, temperature=0)
        next(pieces)
        next(pieces)
    inside = list(calls)
    assert inside[0] == 5
    assert set(inside[1:]) == {1}
    list(pieces)
    assert calls == inside


def test_edits_act_in_generate_and_chat(stories: llama2cpp.Model) -> None:
    plain = stories.generate(PROMPT, max_tokens=10, temperature=0)
    token = ids_of(stories, " dog")[-1]

    def always(activation: Array, hook: HookPoint) -> None:
        direction = stories.weights["tok_embeddings.weight"][token]
        activation[:] = direction / np.abs(direction).max()

    with stories.hooks([("resid_post4", always)]):
        steered = stories.generate(PROMPT, max_tokens=10, temperature=0)
        said = stories.chat("Hello", template="llama2", max_tokens=10, temperature=0)
    assert steered != plain
    assert len(set(ids_of(stories, steered)[1:])) <= 2  # one token again and again
    assert len(set(ids_of(stories, said)[1:])) <= 2


# --- interventions


VECTOR = np.linspace(-1, 2, 36).astype(np.float32)
UNIT = VECTOR.astype(np.float64) / np.sqrt(np.cumsum(VECTOR.astype(np.float64) ** 2)[-1])


def set_rows(a: Array, rows: Any, value: Any) -> None:
    a[rows] = value


def project(a: Array, hook: HookPoint) -> Array:
    along = np.cumsum(a * UNIT, axis=-1)[..., -1:]
    return np.asarray(a - along * UNIT, dtype=np.float32)


def mask_two_keys(a: Array, hook: HookPoint) -> None:
    rows = a[0, [1, 4]]  # [heads, T, keys], a copy
    rows[..., [k for k in (0, 2) if k < a.shape[-1]]] = 0
    sums = np.cumsum(rows.astype(np.float64), axis=-1)[..., -1:]
    a[0, [1, 4]] = np.where(sums == 0, rows, rows / np.where(sums == 0, 1, sums))


def at_positions(*positions: int) -> Callable[[Array, HookPoint], list[int]]:
    def rows(a: Array, hook: HookPoint) -> list[int]:
        count = a.shape[1]
        found = [count + p if p < 0 else p - hook.position for p in positions]
        return [t for t in found if 0 <= t < count]

    return rows


PAIRS: dict[str, tuple[Any, Any]] = {
    "zero": (interventions.zero("mlp_out", layer=1), ("mlp_out1", lambda a, h: a.fill(0))),
    "zero heads": (
        interventions.zero("z", layer=[0, 2], head=[1, -1]),
        (["z0", "z2"], lambda a, h: set_rows(a, np.s_[:, :, [1, 5]], 0)),
    ),
    "zero a neuron at the last position": (
        interventions.zero("post", position=-1, neuron=7),
        ("post", lambda a, h: set_rows(a, np.s_[:, -1, 7], 0)),
    ),
    "set": (interventions.set("q1", 0.1, head=2), ("q1", lambda a, h: set_rows(a, np.s_[:, :, 2], 0.1))),
    "set with a value for each position": (
        interventions.set("resid_mid", np.stack([VECTOR, -VECTOR]), layer=1, position=[3, 0]),
        ("resid_mid1", lambda a, h: set_rows(a, np.s_[0, [3, 0]], [VECTOR, -VECTOR]) if h.position == 0 else None),
    ),
    "scale": (interventions.scale("attn_out", 0.3), ("attn_out", lambda a, h: a * np.float32(0.3))),
    "scale by a vector": (interventions.scale("resid_pre2", VECTOR), ("resid_pre2", lambda a, h: a * VECTOR)),
    "scale scores": (
        interventions.scale("attn_scores", 1.5, layer=0, head=0),
        ("attn_scores0", lambda a, h: set_rows(a, np.s_[:, 0], a[:, 0] * np.float32(1.5))),
    ),
    "add": (interventions.add("resid_post0", VECTOR), ("resid_post0", lambda a, h: a + VECTOR)),
    "add at positions": (
        interventions.add("resid_post0", 0.7, position=[2, -1, 100]),
        (
            "resid_post0",
            lambda a, h: set_rows(
                a, np.s_[0, at_positions(2, -1)(a, h)], a[0, at_positions(2, -1)(a, h)] + np.float32(0.7)
            ),
        ),
    ),
    "mean": (
        interventions.mean("v", np.full((2, 6), 0.25), layer=1),
        ("v1", lambda a, h: set_rows(a, np.s_[:], np.float32(0.25))),
    ),
    "project_out": (interventions.project_out("resid_mid", VECTOR), ("resid_mid", project)),
    "mask_pattern": (interventions.mask_pattern([0, 2], head=[1, 4]), ("pattern", mask_two_keys)),
    "results": (interventions.zero("result1", head=3), ("result1", lambda a, h: set_rows(a, np.s_[:, :, 3], 0))),
    "scale of a norm": (interventions.scale("ln_final.hook_scale", 2), ("ln_final.hook_scale", lambda a, h: a * 2)),
}


def run_all(model: llama2cpp.Model, hooks: list[Any]) -> list[Array]:
    with model.hooks(hooks):
        session = model.session()
        logits, cache = model.run_with_cache(tiny.tokens(model.config, 6), everything)
        return [logits, *cache.values(), session.prefill(tiny.tokens(model.config, 5)), session.step(3)]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_compiled_and_python_forms_give_equal_bits(model: llama2cpp.Model, pair: tuple[Any, Any]) -> None:
    intervention, hook = pair
    compiled = run_all(model, [intervention])
    assert all(map(same_bits, compiled, run_all(model, [hook])))
    assert not all(map(same_bits, compiled, run_all(model, [])))


def test_all_of_them_mixed(model: llama2cpp.Model) -> None:
    compiled = [intervention for intervention, _ in PAIRS.values()]
    mixed = [pair[i % 2] for i, pair in enumerate(PAIRS.values())]
    assert all(map(same_bits, run_all(model, compiled), run_all(model, mixed)))


def test_patch_from(model: llama2cpp.Model) -> None:
    here, there = tiny.tokens(model.config, 7, 1), tiny.tokens(model.config, 7, 2)
    other_logits, cache = model.run_with_cache(there, everything)
    plain, own = model.run_with_cache(here, everything)
    for name in places.points_of(3):

        def by_hand(activation: Array, hook: HookPoint, name: str = name) -> Array:
            return cache[name]

        patched = model.run_with_hooks(here, [interventions.patch_from(cache, name)])
        assert same_bits(patched, model.run_with_hooks(here, [(name, by_hand)])), name
        assert same_bits(plain, model.run_with_hooks(here, [interventions.patch_from(own, name)])), name
    assert same_bits(model.run_with_hooks(here, [interventions.patch_from(cache, "resid_pre0")]), other_logits)

    _, few = model.run_with_cache(there, "z1", positions=[5, 2])
    some = interventions.patch_from(few, "z1", position=2, head=[4, 0], neuron=[1, 3])

    def some_by_hand(activation: Array, hook: HookPoint) -> None:
        for head in (4, 0):
            activation[0, 2, head, [1, 3]] = cache["z", 1][0, 2, head, [1, 3]]

    assert same_bits(model.run_with_hooks(here, [some]), model.run_with_hooks(here, [("z1", some_by_hand)]))
    with pytest.raises(ValueError, match="the cache has no position 3"):
        model.hooks([interventions.patch_from(few, "z1", position=[3])])
    with pytest.raises(KeyError):
        model.hooks([interventions.patch_from(few, "q1")])


def test_patches_in_decode_and_beyond_the_cache(model: llama2cpp.Model) -> None:
    """Positions are absolute: the patched run step by step is the patched run at once; later tokens are free."""
    here = tiny.tokens(model.config, 9, 1)
    _, cache = model.run_with_cache(tiny.tokens(model.config, 6, 2), everything)
    for name in ("resid_mid1", "pattern1", "v0", "z2"):
        patch = interventions.patch_from(cache, name, position=[1, 4, 5])
        with model.hooks([patch]):
            whole = model.run_with_hooks(here)
            session = model.session()
            steps = np.stack([session.step(token) for token in here])
        assert same_bits(whole[0], steps)


def test_mean_of_a_cache(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache([tiny.tokens(model.config, 6, seed) for seed in (1, 2, 3)], everything)
    mean = np.asarray(cache["z", 1].astype(np.float64).mean(axis=(0, 1)), dtype=np.float32)

    def by_hand(activation: Array, hook: HookPoint) -> None:
        activation[:, :, [0, 3]] = mean[[0, 3]]

    ablated = model.run_with_hooks([1, 2, 3], [interventions.mean("z1", cache, head=[0, 3])])
    assert same_bits(ablated, model.run_with_hooks([1, 2, 3], [("z1", by_hand)]))
    with pytest.raises(ValueError, match="patterns of different tokens have no mean"):
        model.hooks([interventions.mean("pattern1", cache)])


def test_masking_every_key_leaves_zeros(model: llama2cpp.Model) -> None:
    with model.hooks([interventions.mask_pattern([0, 1, 2], layer=0, position=[0, 2])]):
        logits, cache = model.run_with_cache([1, 2, 3, 4], "pattern0")
    assert np.isfinite(logits).all()
    assert (cache["pattern", 0][0, :, [0, 2]] == 0).all()
    np.testing.assert_allclose(cache["pattern", 0][0, :, [1, 3]].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interventions.zero("mlp_out", head=0), "blocks.0.hook_mlp_out has no heads"),
        (lambda: interventions.zero("z", head=6), "head is 6, expected -6 to 5"),
        (lambda: interventions.zero("z", layer=3), "layer is 3, expected -3 to 2"),
        (lambda: interventions.zero("z0", layer=1), "names no activation"),
        (lambda: interventions.zero("post", neuron=50), "neuron is 50"),
        (lambda: interventions.set("z", np.zeros(5)), r"the value has shape \(5,\)"),
        (lambda: interventions.set("z", np.zeros((3, 6)), head=[1, 2]), r"the value has shape \(3, 6\)"),
        (lambda: interventions.set("pattern", np.zeros(5)), r"the value has shape \(5,\)"),
        (lambda: interventions.project_out("mlp_out", np.zeros(36)), "the direction is zero"),
        (lambda: interventions.project_out("mlp_out", 1.0), "the direction is a number"),
        (lambda: interventions.mask_pattern(-1), "a key is -1"),
        (lambda: interventions.mask_pattern(None), "key is None"),
    ],
)
def test_what_cannot_be_addressed(model: llama2cpp.Model, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.hooks([make()])


def optional(values: st.SearchStrategy[int], most: int = 3) -> st.SearchStrategy[list[int] | None]:
    return st.none() | st.lists(values, min_size=1, max_size=most, unique=True)


@settings(max_examples=60)
@given(
    name=st.sampled_from(["q1", "z0", "v2", "resid_mid1", "post1", "ln2.hook_scale", "result2", "k0"]),
    change=st.sampled_from(["set", "scale", "add"]),
    head=optional(st.integers(0, 1)),
    position=optional(st.integers(-4, 9)),
    neuron=optional(st.integers(0, 5)),
    value=st.floats(-4, 4, width=32),
)
def test_addresses_are_numpys(
    name: str,
    change: str,
    head: list[int] | None,
    position: list[int] | None,
    neuron: list[int] | None,
    value: float,
) -> None:
    """Any address gives what the same indices give in NumPy."""
    model = tiny_model()
    full = "blocks.1.ln2.hook_scale" if name == "ln2.hook_scale" else name
    (place,) = places.find_places(full, 3)
    by_head = any(mark in name for mark in ("q", "z", "v2", "result", "k0"))
    head = head if by_head else None
    neuron = [0] if neuron is not None and "scale" in name else neuron
    number = np.float32(value)

    def by_hand(a: Array, hook: HookPoint) -> None:
        rows = range(a.shape[1]) if position is None else dict.fromkeys(at_positions(*position)(a, hook))
        if position is not None and change != "set":
            rows = at_positions(*position)(a, hook)  # type: ignore[assignment]  # named twice, changed twice
        for t in rows:
            for part in [a[0, t]] if not by_head else [a[0, t, h] for h in (head or range(a.shape[2]))]:
                which = slice(None) if neuron is None else neuron
                part[which] = {"set": number, "scale": part[which] * number, "add": part[which] + number}[change]

    function = {"set": interventions.set, "scale": interventions.scale, "add": interventions.add}[change]
    intervention = function(full, value, head=head, position=position, neuron=neuron)
    ids = tiny.tokens(model.config, 6)
    assert place is not None
    with model.hooks([intervention]):
        expected = model.run_with_cache(ids, full)
    with model.hooks([(full, by_hand)]):
        got = model.run_with_cache(ids, full)
    assert same_bits(got[0], expected[0])
    assert all(map(same_bits, got[1].values(), expected[1].values()))


def tiny_model(made: list[llama2cpp.Model] = []) -> llama2cpp.Model:  # noqa: B006
    if not made:
        made.append(tiny.model(tiny.config(n_layers=3)))
    return made[0]


# --- memory


def test_nothing_is_kept_after_a_call() -> None:
    class Big:
        pass

    model = tiny.model(tiny.config())
    references: list[weakref.ref[Any]] = []

    def run() -> Iterator[None]:
        for name in ("z", "pattern"):
            big = Big()
            references.append(weakref.ref(big))

            def hook(activation: Array, hook: HookPoint, big: Big = big) -> Array:
                references.append(weakref.ref(activation))
                return activation * 1

            with model.hooks([(name, hook)]):
                session = model.session()
                references.append(weakref.ref(session))
                session.prefill([1, 2])
                with contextlib.suppress(PlannedError), model.hooks([("mlp_out1", stop)]):
                    session.step(3)
            yield

    for _ in run():
        pass
    gc.collect()
    assert len(references) > 8
    assert [reference() for reference in references if reference() is not None] == []
