"""Hooks that see all prompts of a run at once: what they change is what all prompts go on with, as in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from hook_helpers import Array, everything, same_bits

import llama2cpp
from llama2cpp import interventions
from llama2cpp.inside.hooks import HookPoint, Layer

N_LAYERS = 3
TOKENS = np.array([[1, 7, 3, 9, 4], [2, 8, 8, 1, 6], [5, 3, 2, 7, 1], [4, 4, 9, 2, 3]])
PERMUTED = [2, 0, 3, 1]


@pytest.fixture(scope="module", params=["half_split", "interleaved"])
def model(request: pytest.FixtureRequest) -> llama2cpp.Model:
    config = tiny.config(rope_style=request.param, n_layers=N_LAYERS)
    return llama2cpp.from_arrays(config, tiny.arrays(config), threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[llama2cpp.Model, Any]:
    """One random model, here and in transformers."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    theirs: Any = transformers.LlamaForCausalLM(config)
    theirs.eval()
    folder: Path = tmp_path_factory.mktemp("batched")
    theirs.save_pretrained(folder)
    return llama2cpp.load(folder, threads=1, precision="exact"), theirs


def mean(x: Any) -> Any:
    return x.mean(0, keepdims=True) * np.ones((len(x), 1, 1, 1)[: x.ndim], dtype=np.float32)


CHANGES: dict[str, Any] = {
    "permuted": lambda x: x[PERMUTED],
    "mean": lambda x: 0 * x + x.mean(0, keepdims=True),
    "one prompt": lambda x: x * np.array([1, 0, 1, 1], dtype=np.float32).reshape(4, *[1] * (x.ndim - 1)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "module"), [("z", "o_proj"), ("mlp_out", "mlp"), ("v", "v_proj")])
def test_as_in_pytorch(pair: tuple[llama2cpp.Model, Any], name: str, module: str, change: str) -> None:
    ours, theirs = pair
    layer = theirs.model.layers[1]
    apply = CHANGES[change]

    def on_torch(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(apply(x.numpy()), dtype=np.float32))

    if module == "o_proj":
        hook = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: (on_torch(given[0]),))
    elif module == "mlp":
        hook = layer.mlp.register_forward_hook(lambda _, given, out: on_torch(out))
    else:
        hook = layer.self_attn.v_proj.register_forward_hook(lambda _, given, out: on_torch(out))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
        hook.remove()
        plain = theirs(torch.from_numpy(TOKENS)).logits.numpy()

    def returned(x: Array, hook: HookPoint) -> Array:
        return np.asarray(apply(x))

    def in_place(x: Array, hook: HookPoint) -> None:
        x[:] = apply(x.copy())

    for function in (returned, in_place):
        got = ours.run_with_hooks(TOKENS, [(f"{name}1", function)])
        np.testing.assert_allclose(got, expected, atol=2e-5)
        with ours.hooks([(f"{name}1", function)]):
            assert same_bits(ours(TOKENS), got)
            assert same_bits(ours.run_with_cache(TOKENS)[0], got)
    assert np.abs(expected - plain).max() > 1e-2


def test_every_point_has_the_shape_of_the_cache(model: llama2cpp.Model) -> None:
    """And what a hook returns for one prompt is what that prompt has: the others' bits stay."""
    plain, cache = model.run_with_cache(TOKENS, everything)
    seen: dict[str, Array] = {}

    def look(x: Array, hook: HookPoint) -> None:
        assert hook.session is None
        assert hook.position is None
        seen[hook.name] = x

    assert same_bits(model.run_with_hooks(TOKENS, [(everything, look)]), plain)
    assert seen.keys() == set(cache)
    for name, array in cache.items():
        assert same_bits(seen[name], array), name

        def double(x: Array, hook: HookPoint) -> None:
            x[2] *= 1.5

        changed, after = model.run_with_hooks(TOKENS, [(name, double)]), plain
        for row in (0, 1, 3):
            assert same_bits(changed[row], after[row]), name
        alone = model.run_with_hooks(TOKENS[2], [(name, lambda x, hook: x * 1.5)])
        assert same_bits(changed[2], alone[0]), name


def test_functions_and_interventions_act_in_order(model: llama2cpp.Model) -> None:
    hooks: list[Any] = [
        interventions.set("z1", 2.0, head=1),
        ("z1", lambda x, hook: x[PERMUTED] + 1),
        interventions.scale("z1", 0.5),
    ]
    got = model.run_with_hooks(TOKENS, hooks)

    def by_hand(x: Array, hook: HookPoint) -> Array:
        x[:, :, 1] = 2
        return np.asarray((x[PERMUTED] + 1) * np.float32(0.5))

    assert same_bits(got, model.run_with_hooks(TOKENS, [("z1", by_hand)]))


def test_sessions_keep_a_call_each(model: llama2cpp.Model) -> None:
    shapes: list[tuple[int, ...]] = []
    sessions: list[Any] = [model.session() for _ in TOKENS]
    with model.hooks([("z1", lambda x, hook: shapes.append((sessions.index(hook.session), *x.shape)))]):
        model.forward(list(zip(sessions, TOKENS, strict=True)))
        sessions[1].step(3)
    c = model.config
    assert shapes == [(i, 1, 5, c.n_heads, c.head_dim) for i in range(4)] + [(1, 1, 1, c.n_heads, c.head_dim)]


def test_layer_is_a_number_and_a_call(model: llama2cpp.Model) -> None:
    found: list[Any] = []
    model.run_with_hooks(TOKENS, [("hook_embed", lambda x, hook: found.append(hook.layer))])
    model.run_with_hooks(TOKENS, [("z2", lambda x, hook: found.append(hook.layer))])
    assert found[0] is None
    assert isinstance(found[1], Layer)
    assert (found[1], found[1]() + 1, f"{found[1]}", [5, 6, 7][found[1]]) == (2, 3, "2", 7)


# --- prompts of different lengths


def test_ragged_prompts_are_those_alone(model: llama2cpp.Model) -> None:
    """More than a call holds; with functions, interventions, positions and without logits."""
    prompts = [[1 + (i * k) % 11 for k in range(1, 2 + i % 5)] for i in range(70)]

    def quieter(x: Array, hook: HookPoint) -> Array:
        assert len(x) == 1
        return np.asarray(x * np.float32(0.5))

    hooks: list[Any] = [("mlp_out1", quieter), interventions.zero("z0", head=1, position=-1)]
    logits = model.run_with_hooks(prompts, hooks)
    assert isinstance(logits, list)
    with model.hooks(hooks):
        same, caches = model.run_with_cache(prompts, ["z1", "pattern1"], positions=-1)
        none, again = model.run_with_cache(prompts, ["z1"], return_type=None)
        for i, prompt in enumerate(prompts):
            expected, cache = model.run_with_cache(prompt, ["z1", "pattern1"], positions=[-1])
            assert same_bits(logits[i], expected)
            assert same_bits(same[i], expected)
            assert none[i] is None
            assert all(same_bits(caches[i][name], cache[name]) for name in cache)
            assert same_bits(again[i]["z", 1][:, -1:], cache["z", 1])
            assert caches[i].tokens == cache.tokens
            assert caches[i].positions == [len(prompt) - 1]


# --- interventions from caches of several prompts


def test_row_b_goes_to_prompt_b(model: llama2cpp.Model) -> None:
    clean = TOKENS[PERMUTED]
    _, cache = model.run_with_cache(clean, ["z1", "pattern2", "resid_pre2"])
    for name, options in [("z1", {"head": 1}), ("pattern2", {"head": [0, 1]}), ("resid_pre2", {"position": [1, 3]})]:
        got = model.run_with_hooks(TOKENS, [interventions.patch_from(cache, name, **options)])  # type: ignore[arg-type]
        for i, prompt in enumerate(TOKENS):
            own = model.run_with_cache(clean[i], name)[1]
            alone = model.run_with_hooks(prompt, [interventions.patch_from(own, name, **options)])  # type: ignore[arg-type]
            assert same_bits(got[i], alone[0]), (name, i)
    patch = [interventions.patch_from(cache, "z1")]
    for count in (1, 2, 3):
        with pytest.raises(ValueError, match=f"the cache has 4 prompts, and the call {count}"):
            model.run_with_hooks(TOKENS[:count], patch)
    with model.hooks(patch), pytest.raises(ValueError, match="the cache has 4 prompts, and the call 1"):
        model.session().prefill([1, 2])
    ragged: list[Any] = [TOKENS[0], TOKENS[1][:3], TOKENS[2], TOKENS[3][:2]]
    for i, logits in enumerate(model.run_with_hooks(ragged, patch)):
        own = model.run_with_cache(clean[i], "z1")[1]
        assert same_bits(logits, model.run_with_hooks(ragged[i], [interventions.patch_from(own, "z1")]))
    one = model.run_with_cache(clean[0], "z1")[1]  # one prompt's is for all
    assert same_bits(
        model.run_with_hooks(TOKENS, [interventions.patch_from(one, "z1")])[2],
        model.run_with_hooks(TOKENS[2], [interventions.patch_from(one, "z1")])[0],
    )


# --- which axis a value stands for


def test_values_are_assigned_as_numpy_would(model: llama2cpp.Model) -> None:
    c = model.config
    _, cache = model.run_with_cache(TOKENS, "z1")
    means = cache["z", 1].mean(0)  # [T, heads, head_dim]
    addresses: list[dict[str, Any]] = [
        {"position": [0, 2, 3], "head": 1},
        {"position": [0, 2, 3]},
        {"position": 2, "head": 1},
        {"position": 2},
        {"position": [1], "head": 0},
        {"position": [0, 2, 3], "head": [1, 0], "neuron": 1},
        {"position": 4, "head": [1], "neuron": [0, 2, 3]},
        {"position": [0, 1], "head": 1, "neuron": 1},
    ]
    for address in addresses:
        of = [address.get(axis, slice(None)) for axis in ("position", "head", "neuron")]
        lists = [([i] if isinstance(i, int) else i) for i in of]
        ints = tuple(axis for axis, i in enumerate(of) if isinstance(i, int))
        at = np.ix_(*[np.arange(n)[i] for n, i in zip(means.shape, lists, strict=True)])
        value = means[at].squeeze(ints)

        def by_hand(z: Array, hook: HookPoint, at: Any = at) -> None:
            rows = (slice(None), *at)
            z[rows] = means[at]

        got = model.run_with_hooks(TOKENS, [interventions.mean("z1", value, **address)])
        assert same_bits(got, model.run_with_hooks(TOKENS, [("z1", by_hand)])), address
    assert c.head_dim not in (1, 2, 3)


@pytest.mark.parametrize(
    ("address", "shape", "meanings"),
    [
        ({"position": [0, 1, 2], "head": [0, 1, 0]}, (3, 8), "positions and neurons or for heads and neurons"),
        ({"position": [0, 1], "neuron": [0, 1], "head": 0}, (2,), "positions or for neurons"),
        ({"head": [0, 1], "neuron": [3, 4]}, (2,), "heads or for neurons"),
    ],
)
def test_a_value_with_two_meanings_is_refused(
    model: llama2cpp.Model, address: dict[str, Any], shape: tuple[int, ...], meanings: str
) -> None:
    shape = tuple(model.config.head_dim if n == 8 else n for n in shape)
    with pytest.raises(ValueError, match=meanings):
        model.run_with_hooks(TOKENS, [interventions.set("z1", np.ones(shape), **address)])


def test_prompt_or_generated(any_stories: llama2cpp.Model) -> None:
    model = any_stories
    ids = model.to_tokens("Once upon a time")[0].tolist()
    direction = np.linspace(-1, 1, model.config.dim, dtype=np.float32)

    def run(when: Any) -> list[Array]:
        session = model.session()
        with model.hooks([interventions.add("resid_post1", direction, when=when)]):
            found = [session.prefill(ids), session.step(3), *model.forward([(session, [4])])]
            return [*found, model.run_with_hooks(ids)[0, -1]]

    def by_hand(wanted: tuple[bool, bool]) -> list[Array]:
        session = model.session()
        found = []
        for i, tokens in enumerate((ids, [3], [4])):
            on = [interventions.add("resid_post1", direction)] if wanted[min(i, 1)] else []
            with model.hooks(on):
                found.append(session.prefill(tokens))
        on = [interventions.add("resid_post1", direction)] if wanted[0] else []
        return [*found, model.run_with_hooks(ids, on)[0, -1]]

    for when, wanted in [("prompt", (True, False)), ("generated", (False, True)), (None, (True, True))]:
        assert all(map(same_bits, run(when), by_hand(wanted))), when
    plain = model.generate("Once", max_tokens=5, temperature=0)
    first = model.generate("Once", max_tokens=1, temperature=0)
    with model.hooks([interventions.add("resid_post1", 50 * direction, when="generated")]):
        changed = model.generate("Once", max_tokens=5, temperature=0)
    assert changed != plain
    assert changed.startswith(first)
    with pytest.raises(ValueError, match="when is 'later', expected 'prompt', 'generated' or None"):
        interventions.zero("z", when="later")  # type: ignore[arg-type]
