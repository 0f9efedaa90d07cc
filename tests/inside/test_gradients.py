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
        with pytest.raises(ValueError, match="keep 'resid_pre' and 'resid_post-1' of all positions"):
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
    with pytest.raises(ValueError, match=r"hooks may have changed the run at 'blocks\.0\.attn\.hook_z'"):
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
