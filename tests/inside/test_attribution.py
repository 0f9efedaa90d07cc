"""Attribution by gradients: beside PyTorch's float64, real patching where it is exact, and what has to sum to what."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import expert_models
import numpy as np
import pytest
import tiny
import torch
from family_models import CASES, TOKENS
from numpy.typing import NDArray
from on_metal import ON_METAL
from torch_edges import circuit_logits, edge_scores
from torch_points import TorchPoints

import llama2cpp
from llama2cpp import attribution, metrics, patching
from llama2cpp.inside.places import points_of
from llama2cpp.inside.receivers import DifferentiatedRun, activation_names, by_receiver, gradient_names

pytestmark = pytest.mark.skipif(ON_METAL, reason="gradients are the CPU's, and refused on Metal by name")

T = 6
CLEAN, CORRUPT = [7, 3, 5, 2, 4, 1], [7, 3, 8, 1, 6, 2]


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@cache
def exact(**sizes: Any) -> llama2cpp.Model:
    return tiny.model(
        tiny.config(**({"rope_style": "half_split", "n_layers": 3} | sizes)), precision="exact", threads=1
    )


@cache
def weights_of(vocab_size: int, batch: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((batch, T, vocab_size)).astype(np.float32)


def linear(logits: Any) -> tuple[float, NDArray[np.float32]]:
    """A metric that every logit is in."""
    weights = weights_of(logits.shape[-1], len(logits))
    return float((logits.astype(np.float64) * weights).sum()), weights


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(np.subtract(found, expected)).max() <= tolerance * np.abs(expected).max())


def test_nodes_beside_pytorch() -> None:
    """Every number of every activation: (clean - corrupt) . gradient."""
    model = exact(qk_norm="head")
    then, now = TorchPoints(model, CLEAN), TorchPoints(model, CORRUPT)
    gradients = now.gradients(weights_of(model.config.vocab_size)[0])
    _, clean = model.run_with_cache(CLEAN, lambda _: True)
    kinds = list(dict.fromkeys(name.rpartition("hook_")[2] for name in points_of(model.config)))
    kinds = [kind for kind in kinds if kind not in ("scale", "normalized")]
    found = attribution.attribution_patch(model, CORRUPT, clean, linear, kinds, ["layer", "position"])
    for kind in kinds:
        names = [name for name in points_of(model.config) if name.endswith(f"hook_{kind}")]
        expected = []
        for name in names:
            a, b = (np.nan_to_num(x.points[name].detach().numpy(), neginf=0) for x in (then, now))
            product = (a - b) * gradients[name]
            product = np.swapaxes(product, 0, 1) if kind in ("pattern", "attn_scores") else product
            expected.append(product.reshape(T, -1).sum(1))
        assert close(found[kind], expected), kind


def test_axes_of_nodes() -> None:
    """Whatever the cells are, they sum to the same; and each is where the axes say."""
    model = exact()
    _, clean = model.run_with_cache(CLEAN, lambda _: True)
    one: Any = attribution.attribution_patch
    full = one(model, CORRUPT, clean, linear, "z", ["layer", "position", "head", "neuron"])
    assert full.shape == (3, T, model.config.n_heads, model.config.head_dim)
    assert np.allclose(one(model, CORRUPT, clean, linear, "z"), full.sum(axis=(1, 3)))
    assert np.allclose(one(model, CORRUPT, clean, linear, "z", ["head", "layer"]), full.sum(axis=(1, 3)).T)
    some = one(model, CORRUPT, clean, linear, "z", {"neuron": [2], "layer": [-1, 0], "position": [3, 5, 4]})
    assert np.allclose(some, full.sum(axis=2)[[2, 0]][:, [3, 5, 4]][:, :, [2]].transpose(2, 0, 1))
    assert np.allclose(one(model, CORRUPT, clean, linear, "z1", []), full[1].sum())
    patterns = one(model, CORRUPT, clean, linear, "pattern", ["layer", "head", "dest_pos", "src_pos"])
    assert patterns.shape == (3, model.config.n_heads, T, T)
    assert np.allclose(one(model, CORRUPT, clean, linear, "pattern", ["pos"]), patterns.sum(axis=(0, 1, 3)))


def test_exact_where_the_metric_is_linear() -> None:
    """Logits are linear in what the last norm gives; and everything is in small changes."""
    model = exact()
    _, clean = model.run_with_cache(CLEAN, lambda _: True)
    base = linear(model(CORRUPT))[0]
    for batch in (CORRUPT, [CORRUPT, CORRUPT[::-1]]):
        base = linear(model(batch))[0]
        real = patching.activation_patch(model, batch, clean, linear, "ln_final.hook_normalized", ["position"]) - base
        found = attribution.attribution_patch(model, batch, clean, linear, "ln_final.hook_normalized", ["position"])
        assert close(found, real, 1e-4)
    _, own = model.run_with_cache(CORRUPT, "z")
    near = llama2cpp.ActivationCache({n: own[n] + np.float32(2**-8) * (clean[n] - own[n]) for n in own}, model)
    base = linear(model(CORRUPT))[0]
    real = patching.activation_patch(model, CORRUPT, near, linear, "z") - base
    assert close(attribution.attribution_patch(model, CORRUPT, near, linear, "z"), real, 0.02)


SIZES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "one head of keys, capped": {"n_kv_heads": 1, "score_cap": 2.0, "attention_multiplier": 0.4},
    "norms of heads": {"qk_norm": "head", "residual_multiplier": 0.7},
    "parallel": {"parallel": True, "norm": "layer_plain", "gated": False, "activation": "gelu_tanh", "rotary_dim": 4},
    "mha": {"n_heads": 2, "n_kv_heads": 2},
}


@pytest.mark.parametrize("sizes", SIZES)
def test_edges_beside_pytorch(sizes: str) -> None:
    model = exact(**SIZES[sizes])
    edges = attribution.edge_attribution(model, CLEAN, CORRUPT, linear)
    expected = edge_scores(model, CLEAN, CORRUPT, weights_of(model.config.vocab_size)[0])
    assert set(edges) == set(expected)
    assert len(edges) == len(expected)
    assert close([edges[name] for name in expected], list(expected.values()))
    size = np.abs(list(expected.values())).max()
    top = edges.top(20)
    assert all(abs(expected[a]) >= abs(expected[b]) - 1e-5 * size for a, b in itertools.pairwise(top))
    # A circuit of a random half of the edges, run for real.
    some = set(np.random.default_rng(0).permutation(sorted(expected))[: len(expected) // 2].tolist())
    logits = circuit_logits(model, CLEAN, CORRUPT, some)
    clean, corrupt = (linear(model(ids))[0] for ids in (CLEAN, CORRUPT))
    wanted = (float((logits * weights_of(model.config.vocab_size)[0]).sum()) - corrupt) / (clean - corrupt)
    found = attribution.faithfulness(model, CLEAN, CORRUPT, linear, some)
    assert abs(found - wanted) < 1e-5 * max(1, abs(wanted))


# Norms of heads, of all heads at once, before and after rotary embedding; norms after; layers without it
OF_FAMILIES = ("qwen3", "olmo2", "gemma2", "smollm3", "phi3", "starcoder2", "exaone4", "hunyuan")


FAMILIES = {name: case for name, case in CASES.items() if name.startswith(OF_FAMILIES)}
FAMILIES["mixtral-full"] = expert_models.CASES["mixtral-full"]


@pytest.mark.parametrize("name", FAMILIES)
def test_receivers_gradients_sum_to_the_streams(name: str, tmp_path: Path) -> None:
    """What all receivers behind a place of the stream get is what the stream gets there by the engine itself."""
    with llama2cpp.load(FAMILIES[name].save(tmp_path), precision="exact", threads=1) as model:
        config = model.config
        _, run = model.run_with_cache(TOKENS[:T], "hook_embed")
        own = DifferentiatedRun(
            model, [TOKENS[:T]], run["embed"], linear, activation_names(config), gradient_names(config)
        )
        total = own.gradients[f"blocks.{config.n_layers - 1}.hook_resid_post"]
        for layer in reversed(range(config.n_layers)):
            total = total + by_receiver(own, layer).sum(axis=0)
            assert close(total, own.gradients[f"blocks.{layer}.hook_resid_pre"], 2e-5)


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_circuits_with_norms_after(name: str, tmp_path: Path) -> None:
    with llama2cpp.load(CASES[name].save(tmp_path), precision="exact", threads=1) as model:
        clean, corrupt = TOKENS[:T], [*TOKENS[: T - 2], 9, 4]
        edges = attribution.edge_attribution(model, clean, corrupt, linear, steps=2)
        assert attribution.faithfulness(model, clean, corrupt, linear, list(edges)) == pytest.approx(1, abs=1e-5)
        from_input = [edge for edge in edges if edge.startswith("input")]
        rest = [edge for edge in edges if edge not in from_input]
        # Embeddings of the other run, and all else follows.
        assert attribution.faithfulness(model, clean, corrupt, linear, rest) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_one_edge_less_is_path_patching(kv_dtype: str) -> None:
    """From a head to the logits, and to another head's queries: with all other edges it is a path that is patched."""
    model = tiny.model(tiny.config(n_layers=3), kv_dtype=kv_dtype, threads=1)
    _, corrupt = model.run_with_cache(CORRUPT)
    every = list(attribution.edge_attribution(model, CLEAN, CORRUPT, linear))
    whole, none = linear(model(CLEAN))[0], linear(model(CORRUPT))[0]
    for edge, receivers in (("a0.h1->logits", ["resid_post-1"]), ("a0.h3->a2.h1<q>", [("q2", 1)])):
        layer, head = int(edge[1]), int(edge[4])
        cell = patching.path_patch(
            model, CLEAN, corrupt, linear, "z", receivers, {"layer": [layer], "head": [head]}, freeze_mlp=True
        )
        found = attribution.faithfulness(model, CLEAN, CORRUPT, linear, [name for name in every if name != edge])
        assert found == pytest.approx((cell[0, 0] - none) / (whole - none), abs=2e-5)
    assert attribution.faithfulness(model, CLEAN, CORRUPT, linear, every) == 1.0


def test_several_prompts_and_steps() -> None:
    """A batch is the sum of its prompts; steps are the mean of gradients on the way."""
    model = exact()
    clean, corrupt = [CLEAN, CLEAN[::-1]], [CORRUPT, CORRUPT[::-1]]

    def metric(logits: Any) -> tuple[float, NDArray[np.float32]]:
        value, dlogits = metrics.log_prob(3)(logits)
        return value * len(logits), dlogits * np.float32(len(logits))

    alone = [attribution.edge_attribution(model, *pair, metric, steps=3) for pair in zip(clean, corrupt, strict=True)]
    both = attribution.edge_attribution(model, clean, corrupt, metric, steps=3)
    there = ~np.isnan(both.scores)
    assert close(both.scores[there], (alone[0].scores + alone[1].scores)[there])
    embed = [model.run_with_cache(ids, "hook_embed")[1]["embed"] for ids in (CORRUPT, CLEAN)]
    total = np.zeros_like(embed[0])
    for step in (1, 2, 3):
        middle = embed[0] + np.float32(step / 3) * (embed[1] - embed[0])
        logits, run = model.run_with_cache(middle, ["resid_pre", "resid_post"], start_at_layer=0, tokens=CLEAN)
        run._why_no_gradients = ""
        total += run.backward(metric(logits)[1], "resid_post-1")["resid_post", -1] / 3
    expected = float(((embed[0] - embed[1]) * total).sum())
    assert alone[0]["input->logits"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("point", ["embed", "resid_pre0", "resid_pre2", "resid_post1", "resid_post-1"])
def test_integrated_gradients_are_complete(point: str) -> None:
    """They sum to the metric's difference, within an error that shrinks with the square of the steps."""
    model = exact()
    metric = metrics.log_prob(5)
    errors = []
    for steps in (4, 8, 16, 32):
        shares, delta = attribution.integrated_gradients(
            model, CLEAN, metric, CORRUPT, steps=steps, point=point, return_convergence_delta=True
        )
        assert shares.shape == (1, T, model.config.dim)
        errors.append(abs(delta))
    assert errors[-1] < max(2e-5, errors[0] / 32)
    assert errors[-1] < 1e-3
    name = point if point == "embed" else f"{point[:-1] if point[-2] != '-' else point[:-2]}"
    layer = None if point == "embed" else int(point[len(name) :])
    streams = [model.run_with_cache(ids)[1][name, layer] for ids in (CLEAN, CORRUPT)]
    ends = [metric(model(ids))[0] for ids in (CLEAN, CORRUPT)]
    assert float(shares.sum()) == pytest.approx(ends[0] - ends[1], abs=1e-3)
    assert not shares[streams[0] == streams[1]].any()
    again = attribution.integrated_gradients(model, CLEAN, metric, streams[1], steps=32, point=point)
    assert again.tobytes() == shares.tobytes()


def jumps_on_the_way(model: llama2cpp.Model, metric: Any) -> list[float]:
    """What the metric gains each time that a token is sent to other experts, from CORRUPT's embeddings to CLEAN's."""
    begin, end = (model.run_with_cache(ids, "hook_embed")[1]["embed"].astype(np.float64) for ids in (CORRUPT, CLEAN))

    def at(share: float) -> tuple[float, bytes]:
        embed = (begin + share * (end - begin)).astype(np.float32)
        logits, run = model.run_with_cache(embed, "expert_indices", start_at_layer=0, tokens=CLEAN)
        return metric(logits)[0], b"".join(np.sort(indices, axis=-1).tobytes() for indices in run.values())

    found: list[float] = []

    def search(low: float, before: tuple[float, bytes], high: float, after: tuple[float, bytes]) -> None:
        if before[1] == after[1]:
            return
        if high - low < 1e-6:
            found.append(after[0] - before[0])
            return
        middle = (low + high) / 2
        between = at(middle)
        search(low, before, middle, between)
        search(middle, between, high, after)

    shares = np.linspace(0, 1, 65).tolist()
    runs = [at(share) for share in shares]
    for one, other in itertools.pairwise(zip(shares, runs, strict=True)):
        search(*one, *other)
    return found


@pytest.mark.parametrize("name", ["mixtral-full", "qwen3_moe", "olmoe"])
def test_integrated_gradients_lack_the_jumps_between_experts(name: str, tmp_path: Path) -> None:
    """Completeness is off by the sum of the metric's jumps, and by nothing where no router comes after the point."""
    expert_models.CASES[name].save(tmp_path)
    model = llama2cpp.load(tmp_path, precision="exact", threads=1)
    metric = metrics.log_prob(5)
    jumps = jumps_on_the_way(model, metric)

    def gap(steps: int, point: str = "embed") -> float:
        _, delta = attribution.integrated_gradients(
            model, CLEAN, metric, CORRUPT, steps=steps, point=point, return_convergence_delta=True
        )
        return delta

    assert len(jumps) >= 3
    assert abs(sum(jumps)) > 0.05
    assert gap(256) == pytest.approx(-sum(jumps), abs=0.01)
    assert abs(gap(64, "resid_post-1")) < 1e-3


def test_integrated_gradients_are_complete_where_all_experts_are_used(tmp_path: Path) -> None:
    """No jumps, no gap: it is the choice that makes it, and not the experts."""
    case = expert_models.CASES["mixtral-full"]
    replace(case, settings=case.settings | {"num_experts_per_tok": expert_models.EXPERTS}).save(tmp_path)
    model = llama2cpp.load(tmp_path, precision="exact", threads=1)
    _, delta = attribution.integrated_gradients(
        model, CLEAN, metrics.log_prob(5), CORRUPT, steps=64, return_convergence_delta=True
    )
    assert not jumps_on_the_way(model, metrics.log_prob(5))
    assert abs(delta) < 1e-3


def test_what_is_refused(tmp_path: Path) -> None:
    model = exact()
    _, clean = model.run_with_cache(CLEAN, "z")
    edge, ig, keep = attribution.edge_attribution, attribution.integrated_gradients, attribution.faithfulness
    wrong: list[tuple[Any, str]] = [
        (lambda: attribution.attribution_patch(model, CORRUPT, clean, linear, "q"), "the cache has no"),
        (lambda: attribution.attribution_patch(model, CORRUPT, clean, linear, "zz"), "no activation of a model"),
        (lambda: attribution.attribution_patch(model, CORRUPT, clean, linear, "z", ["depth"]), "over has 'depth'"),
        (lambda: edge(model, CLEAN, CORRUPT[1:], linear), r"clean prompts are \[1, 6\] and corrupt ones \[1, 5\]"),
        (lambda: edge(model, CLEAN, CORRUPT, linear, steps=0), "steps is 0, expected 1 or more"),
        (lambda: edge(model, CLEAN, CORRUPT, linear).top(-1), "count is -1"),
        (lambda: keep(model, CLEAN, CORRUPT, linear, ["a0.h0->m9"]), "is between no two nodes"),
        (lambda: keep(model, CLEAN, CORRUPT, linear, ["m1->a0.h0<q>"]), "m1 comes after a0.h0<q>"),
        (lambda: keep(model, CLEAN, CLEAN, linear, []), "in both runs"),
        (lambda: ig(model, CLEAN, linear, CORRUPT, steps=0), "steps is 0"),
        (lambda: ig(model, CLEAN, linear, CORRUPT, point="z0"), "point is 'z0', expected"),
        (lambda: ig(model, CLEAN, linear, CORRUPT, point="resid_pre"), "point is 'resid_pre', expected"),
        (lambda: ig(model, CLEAN, linear, np.zeros(3)), r"the baseline has shape \[3\]"),
        (lambda: ig(model, CLEAN, linear, CORRUPT[1:]), "the baseline's prompts are"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
    none: Any = None
    numbers: Any = [3]
    types: list[tuple[Any, str]] = [
        (lambda: keep(model, CLEAN, CORRUPT, linear, "m1->logits"), r"edges is 'm1->logits' \(str\), expected several"),
        (lambda: keep(model, CLEAN, CORRUPT, linear, none), r"edges is None \(NoneType\), expected several edges"),
        (lambda: keep(model, CLEAN, CORRUPT, linear, numbers), r"edges has 3 \(int\) in it"),
        (lambda: edge(model, CLEAN, CORRUPT, none), r"metric is None \(NoneType\), expected a function of the logits"),
        (lambda: attribution.attribution_patch(model, CORRUPT, clean, linear, none), "names of activations are None"),
    ]
    for call, message in types:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(KeyError, match="no edge 'm1->m0'"):
        edge(model, CLEAN, CORRUPT, linear)["m1->m0"]
    with model.hooks([("z0", lambda z, hook: None)]), pytest.raises(ValueError, match="hooks are on"):
        edge(model, CLEAN, CORRUPT, linear)
