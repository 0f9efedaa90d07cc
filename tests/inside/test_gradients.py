"""Gradients at every point, for every family: against PyTorch's autograd in float64, and central differences."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import expert_models
import gguf
import gpt_oss_models
import numpy as np
import pytest
import tiny
import torch
from family_models import CASES, TOKENS
from numpy.typing import NDArray
from on_metal import ON_METAL
from torch_points import TorchPoints

import llama2cpp
from llama2cpp import interventions, metrics
from llama2cpp.inside.places import points_of

pytestmark = pytest.mark.skipif(ON_METAL, reason="gradients are the CPU's, and refused on Metal by name")

TOLERANCE = 1e-5  # of the largest of a place


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


def direction(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def every(name: str) -> bool:
    return bool(name)


def compare(model: llama2cpp.Model, tokens: list[int], stop: tuple[str, ...] = ()) -> None:
    """All places of a model against PyTorch, for a number that all logits are in."""
    theirs = TorchPoints(model, tokens, stop)
    logits, run = model.run_with_cache(tokens, "hook_embed", remove_batch_dim=True)
    expected_logits = theirs.logits.detach().numpy()
    assert np.abs(logits[0] - expected_logits).max() < TOLERANCE * np.abs(expected_logits).max()
    dlogits = direction(logits.shape)
    found = run.backward(dlogits, every, stop_grad=list(stop))
    assert list(found) == list(points_of(model.config))
    expected = theirs.gradients(dlogits[0])
    assert set(found) == set(expected)
    for name, gradient in found.items():
        size = np.abs(expected[name]).max()
        assert np.abs(gradient - expected[name]).max() <= TOLERANCE * size, name


@pytest.mark.parametrize("name", CASES)
def test_every_point_of_every_family(name: str, tmp_path: Path) -> None:
    with llama2cpp.load(CASES[name].save(tmp_path), precision="exact", threads=2) as model:
        compare(model, TOKENS)


@pytest.mark.parametrize("name", [*expert_models.CASES, "gpt_oss"])
def test_every_point_of_experts(name: str, tmp_path: Path) -> None:
    """The router's scores and weights too; a choice has no gradient."""
    if name == "gpt_oss":
        gpt_oss_models.write_blocks(tmp_path)
    else:
        expert_models.CASES[name].save(tmp_path)
    with llama2cpp.load(tmp_path, precision="exact", threads=2) as model:
        compare(model, TOKENS)
        compare(model, TOKENS, ("expert_weights", "post"))


@pytest.fixture(scope="module")
def experts_in_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts") / "model.gguf"
    expert_models.write_gguf(path, "qwen3_moe", gguf.GGMLQuantizationType.Q4_0)
    return path


@cache
def experts_run(path: Path, threads: int, pack: str) -> dict[str, bytes]:
    """Of two prompts, and of the second alone, which has the same bits."""
    batch = [[(7 * i + 3 * seed) % 50 for i in range(40)] for seed in (0, 1)]
    with llama2cpp.load(path, threads=threads, pack=pack) as model:
        logits, run = model.run_with_cache(batch, "z")
        dlogits = direction(logits.shape)
        found = bits(run.backward(dlogits, every))
        for name, array in model.run_with_cache(batch[1], "z")[1].backward(dlogits[1], every).items():
            assert array.tobytes() == found[name][len(found[name]) // 2 :]
    return found


@pytest.mark.parametrize("isa", tiny.ISAS)
def test_experts_have_the_same_bits(isa: str, experts_in_blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of four bits, by any threads, on every instruction set, alone or in a batch."""
    expected = experts_run(experts_in_blocks, 1, "auto")
    tiny.choose_isa(monkeypatch, isa)
    assert experts_run.__wrapped__(experts_in_blocks, 3, "never") == expected


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"rope_style": "half_split", "n_heads": 4, "n_kv_heads": 4, "dim": 40, "tied": True},
        {"n_kv_heads": 1, "sliding_window": 270, "head_dim": 10},
        {"activation": "clamped_swiglu", "score_cap": 2.0, "logits_cap": 3.0},
        {"activation": "gelu_tanh", "gated": False, "norm": "layer_plain", "rotary_dim": 4, "qk_norm": "head"},
    ],
)
def test_long_prompts(sizes: dict[str, Any]) -> None:
    """Longer than a tile of attention, a block of a sum and a pass of the forward."""
    model = tiny.model(tiny.config(seq_len=400, **sizes), precision="exact", threads=2)
    compare(model, tiny.tokens(model.config, 300))


@pytest.mark.parametrize(
    "stop", [("attn_scores", "scale"), ("pattern",), ("blocks.1.hook_resid_mid",), ("z", "mlp_post"), ("rot_k", "v0")]
)
def test_stopped_gradients_go_no_further(stop: tuple[str, ...]) -> None:
    compare(tiny.model(tiny.config(), precision="exact"), tiny.tokens(tiny.config(), 9), stop)


def transformers_gradients(model: Any, dlogits: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Of what goes into each layer, and into its matrices behind attention and in the MLP."""
    model = model.double()
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if not x.requires_grad:
                x.requires_grad_()
            x.retain_grad()
            seen[name] = x

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(keep(f"blocks.{i}.hook_resid_pre"), with_kwargs=True)
        layer.self_attn.o_proj.register_forward_pre_hook(keep(f"blocks.{i}.attn.hook_z"), with_kwargs=True)
        down = getattr(layer.mlp, "down_proj", None) or layer.mlp.c_proj
        down.register_forward_pre_hook(keep(f"blocks.{i}.mlp.hook_post"), with_kwargs=True)
    logits = model(torch.tensor([TOKENS])).logits
    (logits * torch.from_numpy(dlogits).double()).sum().backward()
    return {name: x.grad.numpy() for name, x in seen.items()}


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "cohere2", "olmo2", "starcoder2", "granite", "phi3-partial"])
def test_transformers_own_autograd(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with llama2cpp.load(case.save(tmp_path), precision="exact") as model:
        logits, run = model.run_with_cache(TOKENS, "z")
        dlogits = direction(logits.shape)
        theirs = transformers_gradients(case.model(), dlogits)
        ours = run.backward(dlogits, list(theirs))
        for place, gradient in theirs.items():
            found = ours[place].reshape(gradient.shape)
            assert np.abs(found - gradient).max() <= TOLERANCE * np.abs(gradient).max(), place


@pytest.mark.parametrize("place", ["resid_pre1", "z0", "post1", "attn_out0", "v0", "rot_q1"])
def test_central_differences(place: str) -> None:
    """Of the engine's own runs, nudged both ways by an intervention."""
    model = tiny.model(tiny.config(rope_style="half_split"), precision="exact")
    ids = tiny.tokens(model.config, 7)
    dlogits = direction((1, 7, model.config.vocab_size))
    _, run = model.run_with_cache(ids, place)
    (name,) = run
    gradient = run.backward(dlogits, name)[name]
    along = direction(gradient.shape, 1)

    def value(step: float) -> float:
        def nudge(x: NDArray[np.float32], hook: object) -> NDArray[np.float32]:
            return np.asarray(x + np.float32(step) * along, dtype=np.float32)

        return float((model.run_with_hooks(ids, [(name, nudge)]).astype(np.float64) * dlogits).sum())

    step = 2.0**-7
    slope = (value(step) - value(-step)) / (2 * step)
    expected = float((gradient.astype(np.float64) * along).sum())
    assert abs(slope - expected) < 2e-3 * np.linalg.norm(gradient) * np.linalg.norm(along) / np.sqrt(along.size)


@cache
def long_run() -> tuple[llama2cpp.Config, list[list[int]], NDArray[np.float32], dict[str, bytes]]:
    config = tiny.config(seq_len=400, n_layers=2)
    batch = [tiny.tokens(config, 300, seed) for seed in (0, 1)]
    dlogits = direction((2, 300, config.vocab_size))
    model = tiny.model(config, threads=1)
    _, run = model.run_with_cache(batch, "z")
    return config, batch, dlogits, bits(run.backward(dlogits, every))


def bits(arrays: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("pack", ["always", "never"])
def test_same_bits_for_any_threads(threads: int, pack: str) -> None:
    config, batch, dlogits, expected = long_run()
    with tiny.model(config, threads=threads, pack=pack) as model:
        assert bits(model.run_with_cache(batch, "z")[1].backward(dlogits, every)) == expected


def test_same_bits_for_any_batch_cut_and_cache() -> None:
    """Alone or in a batch; from residual streams that are held, of passes of any size, or from the tokens."""
    config, batch, dlogits, expected = long_run()
    model = tiny.model(config)
    _, whole = model.run_with_cache(batch)  # in passes
    assert bits(whole.backward(dlogits, every)) == expected
    with model.hooks([("hook_embed", lambda x, hook: None)]):  # in one pass
        _, streams = model.run_with_cache(batch, ["resid_pre", "resid_post"])
    streams._why_no_gradients = ""
    assert bits(streams.backward(dlogits, every)) == expected
    _, one = model.run_with_cache(batch[1], "z", remove_batch_dim=True)
    grads = one.backward(dlogits[1], every)
    assert grads["z", 0].shape == (300, config.n_heads, config.head_dim)
    for name, array in grads.items():
        assert array.tobytes() == np.frombuffer(expected[name], np.float32).reshape(2, -1)[1].tobytes()


@pytest.mark.parametrize("isa", tiny.ISAS)
def test_same_bits_on_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = long_run()[3]
    tiny.choose_isa(monkeypatch, isa)
    config, batch, dlogits, _ = long_run()
    with tiny.model(config) as model:
        found = model.run_with_cache(batch[0], "z")[1].backward(dlogits[0], ["resid_pre", "pattern1"])
    for name, array in found.items():
        assert array.tobytes() == np.frombuffer(expected[name], np.float32).reshape(2, -1)[0].tobytes()


def within_layers(config: llama2cpp.Config) -> list[str]:
    """Places where an edit may be any number; which experts a token goes to is no number."""
    return [name for name in points_of(config) if not name.endswith("expert_indices")]


def compare_edited(
    model: llama2cpp.Model,
    ids: list[int],
    names: list[str],
    stop: tuple[str, ...] = (),
    size: float = 0.2,
) -> None:
    """All places against PyTorch, of a run in which hooks add to some of them."""
    _, plain = model.run_with_cache(ids, names, remove_batch_dim=True)
    added = {}
    for i, name in enumerate(names):
        own = np.nan_to_num(plain[name], neginf=0.0)
        added[name] = direction(own.shape, i) * (size * np.sqrt(np.square(own).mean()))
        if name.endswith("hook_scale"):
            added[name] = np.abs(added[name])
        if name.endswith("expert_weights"):
            added[name] *= own != 0  # so that tokens go where they went
    hooks = [(name, lambda x, hook: x + added[hook.name]) for name in names]
    logits, run = model.run_with_hooks(ids, hooks), None
    with model.hooks(hooks):
        again, run = model.run_with_cache(ids, ["resid_pre", "resid_post-1", *names])
    assert (again == logits).all()
    dlogits = direction(logits.shape)
    found = run.backward(dlogits, every, stop_grad=list(stop))
    theirs = TorchPoints(model, ids, stop, added)
    expected_logits = theirs.logits.detach().numpy()
    assert np.abs(logits[0] - expected_logits).max() < TOLERANCE * np.abs(expected_logits).max()
    expected = theirs.gradients(dlogits[0])
    for name, gradient in found.items():
        largest = np.abs(expected[name]).max()
        assert np.abs(gradient[0] - expected[name]).max() <= TOLERANCE * largest, (names, name)


# One query head for each key's, several, a norm for each head; LayerNorm, parallel halves, biases, norms after, caps,
# sinks, windows.
EDITED = ["qwen2", "qwen3", "cohere", "gemma2", "olmo2"]
EDITED_EXPERTS = ["qwen3_moe", "mixtral", "gpt_oss"]


@pytest.fixture(scope="module")
def edited_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, llama2cpp.Model]:
    models = {"tiny": tiny.model(tiny.config(), precision="exact", threads=2)}
    for name in [*EDITED, *EDITED_EXPERTS]:
        folder = tmp_path_factory.mktemp(name)
        if name == "gpt_oss":
            gpt_oss_models.write_blocks(folder)
        else:
            (expert_models.CASES if name in EDITED_EXPERTS else CASES)[name].save(folder)
        models[name] = llama2cpp.load(folder, precision="exact", threads=2)
    return models


@pytest.mark.parametrize("name", ["tiny", *EDITED, *EDITED_EXPERTS])
def test_after_hooks_within_a_layer(name: str, edited_models: dict[str, llama2cpp.Model]) -> None:
    """At each place by itself, of the first layer or the last; at all of them; and with some as constants."""
    model = edited_models[name]
    names = within_layers(model.config)
    last = f"blocks.{model.config.n_layers - 1}."
    for place in names:
        if place.startswith(("blocks.0.", last)) or not place.startswith("blocks."):
            compare_edited(model, TOKENS, [place])
    compare_edited(model, TOKENS, names, size=0.05)
    halves = [place for place in names if "hook_z" in place or place.endswith("hook_post") or "pattern" in place]
    compare_edited(model, TOKENS, halves, (f"{last}attn.hook_z", "pattern0"))


def test_after_hooks_that_send_tokens_to_other_experts(edited_models: dict[str, llama2cpp.Model]) -> None:
    """The router's own choice keeps the gradient of its weights, which the others do not have from it."""
    for name in EDITED_EXPERTS:
        model = edited_models[name]
        k, experts = model.config.n_experts_used or 0, model.config.n_experts or 0
        place = "blocks.0.mlp.hook_expert_weights"
        _, plain = model.run_with_cache(TOKENS, place, remove_batch_dim=True)
        added = np.zeros_like(plain[place])
        added[1::2, experts - 1] = 0.9  # of some tokens the last expert becomes the first choice
        hook = (place, lambda x, hook, added=added: x + added)
        with model.hooks([hook]):
            logits, run = model.run_with_cache(
                TOKENS, ["resid_pre", "resid_post-1", "expert_weights", "expert_indices"]
            )
        dlogits = direction(logits.shape)
        found = run.backward(dlogits, every)
        indices = "blocks.0.mlp.hook_expert_indices"
        assert (run[indices][0, 1::2, -1] == experts - 1).all()
        assert run[indices].shape[-1] == k
        theirs = TorchPoints(model, TOKENS, (), {place: added}, {indices: run[indices][0]})
        expected = theirs.gradients(dlogits[0])
        for point, gradient in found.items():
            if point == place:  # of those that are not read any more, nothing
                continue
            largest = np.abs(expected[point]).max()
            assert np.abs(gradient[0] - expected[point]).max() <= TOLERANCE * largest, (name, point)


def test_after_hooks_in_long_prompts_and_batches() -> None:
    """Longer than a tile of attention, with a window; each prompt of a batch has what it has alone."""
    config = tiny.config(seq_len=400, rope_style="half_split", sliding_window=130, score_cap=3.0)
    model = tiny.model(config, precision="exact", threads=2)
    ids = tiny.tokens(config, 300)
    compare_edited(
        model, ids, ["blocks.0.attn.hook_attn_scores", "blocks.1.attn.hook_pattern", "blocks.1.hook_mlp_out"]
    )
    batch = [tiny.tokens(config, 20, seed) for seed in range(3)]
    hooks: list[Any] = [
        ("pattern0", lambda x, hook: x * 0.5),
        ("q1", lambda x, hook: x + 1),
        interventions.zero("post1", neuron=[3, 4]),
        interventions.scale("blocks.0.ln1.hook_scale", 1.5),
        interventions.patch_from(model.run_with_cache(batch[::-1])[1], "z0", head=1),
    ]
    names = ["resid_pre", "resid_post-1", "pattern0", "q1", "post1", "blocks.0.ln1.hook_scale", "z0"]
    with model.hooks(hooks):
        logits, run = model.run_with_cache(batch, names)
    dlogits = direction(logits.shape)
    found = run.backward(dlogits, every)
    for row, ids in enumerate(batch):
        reverse = model.run_with_cache(batch[::-1][row])[1]
        with model.hooks([*hooks[:-1], interventions.patch_from(reverse, "z0", head=1)]):
            _, alone = model.run_with_cache(ids, names, remove_batch_dim=True)
        for name, gradient in alone.backward(dlogits[row], every).items():
            assert gradient.tobytes() == found[name][row].tobytes(), name
        part = run.apply_slice_to_batch_dim(row).backward(dlogits[row], every)
        assert all(part[name].tobytes() == found[name][row].tobytes() for name in part)


def test_what_gradients_after_hooks_need(tmp_path: Path) -> None:
    model = tiny.model(tiny.config(), precision="exact")
    ids = tiny.tokens(model.config, 9)
    hooks: list[Any] = [("z1", lambda z, hook: z + 1)]
    with model.hooks(hooks):
        logits, run = model.run_with_cache(ids)
        _, without = model.run_with_cache(ids, ["resid_pre", "resid_post-1"])
        _, some = model.run_with_cache(ids, positions=[1, 2])
    grads = run.backward(logits, "z")
    for other in (without, some):
        with pytest.raises(ValueError, match=r"keep 'resid_pre', 'resid_post-1', 'blocks\.1\.attn\.hook_z' of all"):
            other.backward(logits)
    run.save(tmp_path / "run.safetensors")
    loaded = llama2cpp.ActivationCache.load(tmp_path / "run.safetensors", model)
    assert loaded.backward(logits, "z")["z", 0].tobytes() == grads["z", 0].tobytes()
    some.save(tmp_path / "some.npz")
    with pytest.raises(ValueError, match="keep 'resid_pre'"):
        llama2cpp.ActivationCache.load(tmp_path / "some.npz", model).backward(logits)
    with model.hooks([("mlp_in1", lambda x, hook: x + 1)]):
        _, run = model.run_with_cache(ids)
    with pytest.raises(ValueError, match=r"hooks may have changed the run at 'blocks\.1\.hook_mlp_in'"):
        run.backward(logits)
    dim = model.config.dim
    coder = interventions.replace_with(
        "mlp_out0", np.zeros((dim, 3)), None, np.zeros((3, dim)), None, reads="mlp.hook_in"
    )
    with model.hooks([coder]):
        logits, run = model.run_with_cache(ids)
    with pytest.raises(ValueError, match=r"took the place of 'blocks\.0\.hook_mlp_out'.*stop_grad"):
        run.backward(logits)
    found = run.backward(logits, every, stop_grad="mlp_out0")
    assert not any(found[f"blocks.0.mlp.hook_{name}"].any() for name in ("post", "pre"))
    expected = TorchPoints(model, ids, ("blocks.0.hook_mlp_out",), {"blocks.0.hook_mlp_out": -own_mlp_out(model, ids)})
    for name, gradient in expected.gradients(logits[0]).items():
        assert np.abs(found[name][0] - gradient).max() <= TOLERANCE * np.abs(gradient).max(), name


def own_mlp_out(model: llama2cpp.Model, ids: list[int]) -> Any:
    return TorchPoints(model, ids).points["blocks.0.hook_mlp_out"].detach().numpy()


@pytest.mark.parametrize("place", ["hook_embed", "blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"])
@pytest.mark.parametrize("by_function", [False, True])
def test_after_hooks_on_the_stream(place: str, by_function: bool) -> None:
    """A vector that is added is a constant; with its place in stop_grad all that is there is one."""
    model = tiny.model(tiny.config(), precision="exact")
    ids = tiny.tokens(model.config, 9)
    vector = direction((model.config.dim,), 5)
    hook: Any = (place, lambda x, hook: x + vector) if by_function else interventions.add(place, vector)

    class Steered(TorchPoints):
        def _see(self, name: str, x: Any) -> Any:
            return super()._see(name, x + torch.from_numpy(vector) if name == place else x)

    with model.hooks([hook, ("z0", lambda z, hook: None)]):  # one that only looks
        logits, run = model.run_with_cache(ids, ["resid_pre", "resid_post-1"])
        _, less = model.run_with_cache(ids, "resid_pre")
        _, some = model.run_with_cache(ids, positions=[1])
    dlogits = direction(logits.shape)
    for stop in ((), (place,)):
        theirs = Steered(model, ids, stop)
        assert np.abs(logits[0] - theirs.logits.detach().numpy()).max() < 1e-5 * np.abs(logits).max()
        expected = theirs.gradients(dlogits[0])
        for name, gradient in run.backward(dlogits, every, stop_grad=list(stop)).items():
            assert np.abs(gradient[0] - expected[name]).max() <= TOLERANCE * np.abs(expected[name]).max(), name
    for cache_without in (less, some):
        with pytest.raises(ValueError, match="keep 'resid_pre', 'resid_post-1' of all positions"):
            cache_without.backward(dlogits)


def test_positions_of_a_cache(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 8)
    logits, everything = model.run_with_cache(ids)
    _, some = model.run_with_cache(ids, ["resid_mid", "pattern"], positions=[-1, 2])
    dlogits = direction(logits.shape)
    whole, part = everything.backward(dlogits), some.backward(dlogits)
    assert list(part) == list(some)
    assert part["resid_mid", 1].tobytes() == whole["resid_mid", 1][:, [-1, 2]].tobytes()
    assert part["pattern", 0].tobytes() == whole["pattern", 0][:, :, [-1, 2]].tobytes()


def test_what_no_logit_depends_on_is_zero(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 6)
    logits, run = model.run_with_cache(ids)
    dlogits = np.zeros_like(logits)
    dlogits[0, 3, 5] = 1
    grads = run.backward(dlogits)
    for name, array in grads.items():
        rows = np.moveaxis(array, 2, 1) if "pattern" in name or "attn_scores" in name else array
        assert not rows[:, 4:].any(), name
    assert grads["resid_post", -1][0, 3].any()
    for array in run.backward(np.zeros_like(logits), every).values():
        assert not array.any()


def test_rounded_runs_go_straight_through() -> None:
    """Gradients of a run in int8, with halves as keys, point where exact ones do."""
    grads = []
    runs: list[dict[str, Any]] = [{"precision": "exact"}, {"activation_dtype": "int8", "kv_dtype": "f16"}]
    for options in runs:
        with llama2cpp.load("storyteller", **options) as model:
            logits, run = model.run_with_cache("Once upon a time there was a", "resid_pre")
            grads.append(run.backward(metrics.logit_diff(5, 9)(logits)[1]).to_numpy())
    for name, array in grads[0].items():
        other = grads[1][name]
        assert (array * other).sum() > 0.98 * np.linalg.norm(array) * np.linalg.norm(other)


def test_with_the_run_and_by_pytorch(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 6)
    logits, run = model.run_with_cache(ids, ["z", "attn_scores0"])
    expected = run.backward(metrics.log_prob(7)(logits)[1])

    def by_torch(logits: Any) -> Any:
        return torch.log_softmax(logits[0, -1], -1)[7]

    def as_numbers(logits: Any) -> Any:
        return metrics.log_prob(7)(np.asarray(logits))

    for metric in (metrics.log_prob(7), as_numbers, by_torch):
        same, both = model.run_with_cache(ids, ["z", "attn_scores0"], incl_bwd=True, metric=metric)
        assert same.tobytes() == logits.tobytes()
        assert list(both) == [*expected, *(f"{name}_grad" for name in expected)]
        for name, gradient in expected.items():
            assert np.abs(both[f"{name}_grad"] - gradient).max() <= 1e-5 * np.abs(gradient).max()
        assert both["z_grad", 1].tobytes() == both["blocks.1.attn.hook_z_grad"].tobytes()


def test_metrics_are_pytorchs() -> None:
    rng = np.random.default_rng(0)
    logits, other = rng.standard_normal((2, 3, 5, 11)).astype(np.float32)
    ids = rng.integers(11, size=(3, 5))
    log = torch.nn.functional.log_softmax
    pairs: list[tuple[Any, Any]] = [
        (metrics.logit_diff([1, 2, 3], 4), lambda x: (x[[0, 1, 2], -1, [1, 2, 3]] - x[:, -1, 4]).mean()),
        (metrics.log_prob(4, position=2), lambda x: log(x, -1)[:, 2, 4].mean()),
        (
            metrics.kl(other, position=None),
            lambda x: torch.nn.functional.kl_div(
                log(x, -1).flatten(0, 1), log(torch.from_numpy(other), -1).flatten(0, 1), None, None, "batchmean", True
            ),
        ),
        (
            metrics.loss(ids),
            lambda x: torch.nn.functional.cross_entropy(
                x[:, :-1].flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten()
            ),
        ),
    ]
    for ours, theirs in pairs:
        value, dlogits = ours(logits)
        x = torch.from_numpy(logits).requires_grad_()
        expected = theirs(x)
        assert abs(value - expected.item()) < 1e-6
        assert np.abs(dlogits - torch.autograd.grad(expected, x)[0].numpy()).max() < 1e-7
    refused: list[tuple[Any, str]] = [
        (lambda: metrics.log_prob(11)(logits), "token has the id 11, expected 0 to 10"),
        (lambda: metrics.log_prob([1, 2])(logits), "for each of 3 prompts"),
        (lambda: metrics.log_prob(1, position=5)(logits), "position is 5, but there are 5 tokens"),
        (lambda: metrics.kl(other[:2])(logits), r"logits have shape \[3, 5, 11\], those of the reference \[2, 5, 11\]"),
        (lambda: metrics.loss([[1]]), "expected two ids or more"),
        (lambda: metrics.loss(ids)(logits[:, :4]), r"logits have shape \[3, 4, 11\], but tokens \[3, 5\]"),
        (lambda: metrics.logit_diff(1, 2)(logits[0]), r"expected \[B, T, vocab_size\]"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_errors(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 4)
    logits, run = model.run_with_cache(ids, "z")
    with pytest.raises(ValueError, match=r"dlogits has shape \[1, 3, 53\], expected \[1, 4, 53\]"):
        run.backward(logits[:, 1:])
    with pytest.raises(ValueError, match="no activation of a model with 3 layers is called 'zz'"):
        run.backward(logits, "zz")
    with pytest.raises(ValueError, match="no activation of a model with 3 layers is called 'nowhere'"):
        run.backward(logits, stop_grad=["nowhere"])
    with pytest.raises(ValueError, match="these are gradients"):
        run.backward(logits).backward(logits)
    with pytest.raises(ValueError, match="the cache has no tokens"):
        llama2cpp.ActivationCache(run.to_numpy(), model).backward(logits)
    with pytest.raises(ValueError, match="the cache has no model"):
        llama2cpp.ActivationCache(run.to_numpy(), None, tokens=[ids]).backward(logits)
    with model.hooks([interventions.zero("z0")]):
        _, changed = model.run_with_cache(ids, "z")
    with pytest.raises(
        ValueError, match=r"hooks changed the run at 'blocks\.0\.attn\.hook_z': keep 'resid_pre', 'resid_post-1', 'bl"
    ):
        changed.apply_slice_to_batch_dim([0]).backward(logits)
    with pytest.raises(ValueError, match="come together"):
        model.run_with_cache(ids, incl_bwd=True)
    with pytest.raises(ValueError, match="come together"):
        model.run_with_cache(ids, metric=metrics.log_prob(1))
    with pytest.raises(ValueError, match="there is no stop_at_layer"):
        model.run_with_cache(ids, stop_at_layer=1, incl_bwd=True, metric=metrics.log_prob(1))
    for metric, message in [
        (lambda x: (1, 2, 3), r"a tuple of 3, expected \(number, dlogits\)"),
        (lambda x: (1.0, x[:, 0]), r"dlogits has shape \[1, 53\]"),
        (lambda x: 1.0, "returned a float, expected"),
        (lambda x: torch.tensor(1.0), "does not depend on the logits"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.run_with_cache(ids, incl_bwd=True, metric=metric)


def test_an_absurd_request_states_what_it_needs() -> None:
    config = tiny.config(seq_len=1 << 20)
    with tiny.model(config) as model:
        run = llama2cpp.ActivationCache({}, model, tokens=[1] * (1 << 20))
        dlogits = np.broadcast_to(np.float32(0), (1 << 20, config.vocab_size))
        with pytest.raises(MemoryError, match=r"backward needs \d+ GB \(\d+ GB of gradients, .* for one layer\)"):
            run.backward(dlogits, "attn_scores")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself SIGINT in a test")
def test_ctrl_c_ends_it() -> None:
    config = tiny.config(seq_len=2048, dim=96, hidden_dim=256, n_layers=12)
    with tiny.model(config, threads=1) as model:
        ids = tiny.tokens(config, 1500)
        run = llama2cpp.ActivationCache({}, model, tokens=ids)
        dlogits = direction((1500, config.vocab_size))
        timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            [run.backward(dlogits, "resid_pre") for _ in range(100)]
        timer.join()
        assert model.run_with_cache(ids[:4], "z")[1].backward(dlogits[:4])["z", 0].any()
