"""AtP*'s correction of queries and keys: against PyTorch's softmax and autograd in float64, and real patching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from llama2cpp import attribution, patching

pytestmark = pytest.mark.skipif(ON_METAL, reason="gradients are the CPU's, and refused on Metal by name")

OTHER = [(5 * token + 3) % 50 for token in TOKENS]


def weights(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def linear(logits: Any) -> tuple[float, NDArray[np.float32]]:
    """A metric that every logit is in."""
    own = weights(logits.shape)
    return float((logits.astype(np.float64) * own).sum()), own


def pattern_of(model: llama2cpp.Model, layer: int, q: Any, k: Any) -> Any:
    """PyTorch's pattern [n_heads, T, T] of queries and keys as they are scored."""
    c = model.config
    q, k = torch.as_tensor(q).double(), torch.as_tensor(k).double()
    scores = torch.einsum("qhe,khe->hqk", q, k.repeat_interleave(c.n_heads // c.n_kv_heads, 1))
    scores = scores * (c.attention_multiplier or c.head_dim**-0.5)
    if c.score_cap:
        scores = c.score_cap * torch.tanh(scores / c.score_cap)
    at = torch.arange(len(q))
    seen = at[:, None] >= at
    if c.sliding_window and layer not in c.full_layers:
        seen &= at[:, None] - at < c.sliding_window
    scores = scores.masked_fill(~seen, -torch.inf)
    sinks = f"blocks.{layer}.attn.sinks"
    if sinks in model.weights.transformer_lens:
        own = torch.from_numpy(np.array(model.weights[sinks])).double()[:, None, None].expand(-1, len(q), 1)
        return torch.cat([scores, own], -1).softmax(-1)[..., :-1]
    return scores.softmax(-1)


def by_hand(model: llama2cpp.Model, layer: int, which: str, place: str) -> Any:
    """Each patch by itself, [T, heads]: the pattern after it less the pattern before, times PyTorch's gradient."""
    then, now = TorchPoints(model, OTHER), TorchPoints(model, TOKENS)
    gradient = torch.from_numpy(
        now.gradients(weights((1, len(TOKENS), model.config.vocab_size))[0])[f"blocks.{layer}.attn.hook_pattern"]
    )
    q, k = (now.points[f"blocks.{layer}.attn.{place.format(x)}"].detach() for x in "qk")
    other = then.points[f"blocks.{layer}.attn.{place.format(which)}"].detach()
    before = pattern_of(model, layer, q, k)
    out = np.zeros(other.shape[:2])
    for position, head in np.ndindex(*out.shape):
        new = {"q": q.clone(), "k": k.clone()}
        new[which][position, head] = other[position, head]
        out[position, head] = ((pattern_of(model, layer, new["q"], new["k"]) - before) * gradient).sum()
    return out


CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "saturated": {"scale": 6.0},
    "window and cap": {"sliding_window": 6, "score_cap": 2.0, "n_kv_heads": 1},
    "norms of heads": {"qk_norm": "head"},
    "norms after rotary": {"qk_norm": "head_after_rope"},
    "half split, partly turned": {"rope_style": "half_split", "rotary_dim": 4, "attention_multiplier": 0.9},
}


@pytest.mark.parametrize("name", [*CONFIGS, "cohere", "gpt_oss"])
def test_beside_pytorch(name: str, tmp_path: Path) -> None:
    if name == "gpt_oss":  # with sinks
        gpt_oss_models.write_blocks(tmp_path)
        model = llama2cpp.load(tmp_path, precision="exact")
    elif name in CASES:
        model = llama2cpp.load(CASES[name].save(tmp_path), precision="exact")
    else:
        sizes = dict(CONFIGS[name])
        model = tiny.model(
            tiny.config(**{k: v for k, v in sizes.items() if k != "scale"}),
            precision="exact",
            scale=sizes.get("scale", 1.0),
        )
    _, clean = model.run_with_cache(OTHER)
    place = "hook_{}_normed" if model.config.qk_norm == "head_after_rope" else "hook_rot_{}"
    for which in "qk":
        points = [which, f"rot_{which}", f"{which}_normed"] if "norm" in name else [which, f"rot_{which}"]
        axes = {"layer": None, "position": None, "head": None}
        found: Any = attribution.attribution_patch(model, TOKENS, clean, linear, points, axes, qk_correction=True)
        for layer in range(model.config.n_layers):
            expected = by_hand(model, layer, which, place)
            for point in points:
                assert np.abs(found[point][layer] - expected).max() < 1e-4 * np.abs(expected).max(), (point, layer)


def test_axes() -> None:
    """Heads and positions are what is summed; all keys of a row together are not the sum of each alone."""
    model = tiny.model(tiny.config(), precision="exact")
    _, clean = model.run_with_cache(OTHER)
    patch: Any = attribution.attribution_patch

    def run(point: str, over: Any, corrupt: Any = TOKENS) -> Any:
        return patch(model, corrupt, clean, linear, point, over, qk_correction=True)

    full = run("q", ["layer", "position", "head"])
    assert np.allclose(run("q", ["head", "layer"]), full.sum(axis=1).T)
    assert np.allclose(run("q", {"position": [3, 1], "layer": [-1]}), full[[-1]][:, [3, 1]].sum(axis=2).T)
    keys = run("k", ["layer", "position", "head"])
    together = run("k", ["layer", "head"])
    assert together.shape == keys.sum(axis=1).shape
    assert not np.allclose(together, keys.sum(axis=1), rtol=1e-2)
    _, own = model.run_with_cache(TOKENS)
    zeros = patch(model, TOKENS, own, linear, ["q", "k"], ["layer", "position"], qk_correction=True)
    assert max(np.abs(array).max() for array in zeros.values()) < 1e-12
    others = patch(model, TOKENS, clean, linear, ["z", "q"], "layer", qk_correction=True)
    assert (others["z"] == patch(model, TOKENS, clean, linear, "z", "layer")).all()
    batch = [TOKENS, OTHER[::-1]]
    both, second = run("k", ["layer", "position"], batch), run("k", ["layer", "position"], batch[1])

    def first(logits: Any) -> tuple[float, Any]:
        own = np.zeros_like(logits)
        own[0] = weights(logits.shape)[0]
        return float((own * logits).sum()), own

    alone = patch(model, batch, clean, first, "k", ["layer", "position"], qk_correction=True)
    assert both.shape == second.shape == alone.shape
    assert not np.allclose(both, alone)


@pytest.mark.parametrize("which", ["q", "k"])
def test_nearer_to_real_patching_where_heads_are_saturated(which: str) -> None:
    """What attention adds is small beside the rest, so what is behind the pattern is linear: then it is the patch."""
    config = tiny.config(n_layers=1, parallel=True, norm="layer_plain", residual_multiplier=1e-3)
    arrays = tiny.arrays(config)
    for part in ("wq", "wk"):
        arrays[f"layers.0.attention.{part}.weight"] *= 5
    model = llama2cpp.from_arrays(config, arrays, precision="exact")
    logits, now = model.run_with_cache(TOKENS)
    _, clean = model.run_with_cache(OTHER)
    assert np.median(now["pattern", 0].max(axis=-1)) > 0.9
    over = ["position", "head"]
    real = patching.activation_patch(model, TOKENS, clean, linear, which, over) - linear(logits)[0]
    plain = attribution.attribution_patch(model, TOKENS, clean, linear, which, over)
    better = attribution.attribution_patch(model, TOKENS, clean, linear, which, over, qk_correction=True)
    size = np.abs(real).max()
    assert np.abs(better - real).max() < 0.02 * size
    assert np.abs(plain - real).max() > 0.2 * size


def test_errors(tmp_path: Path) -> None:
    model = tiny.model(tiny.config(), precision="exact")
    _, clean = model.run_with_cache(OTHER)
    patch: Any = attribution.attribution_patch
    with pytest.raises(ValueError, match="over has 'neuron', and qk_correction is of whole queries and keys"):
        patch(model, TOKENS, clean, linear, "q", ["neuron"], qk_correction=True)
    patch(model, TOKENS, clean, linear, "z", ["neuron"], qk_correction=True)
    with pytest.raises(ValueError, match="over has 'query_head', whose cells are runs"):
        patch(model, TOKENS, clean, linear, "k", ["layer", "query_head"])
    _, some = model.run_with_cache(OTHER, "q")
    with pytest.raises(ValueError, match=r"the cache has no 'blocks\.0\.attn\.hook_rot_q'"):
        patch(model, TOKENS, some, linear, "q", qk_correction=True)
    with pytest.raises(TypeError, match="qk_correction"):
        patch(model, TOKENS, clean, linear, "q", qk_correction="yes")
    olmo = llama2cpp.load(CASES["olmo2"].save(tmp_path), precision="exact")
    _, clean = olmo.run_with_cache(OTHER)
    with pytest.raises(ValueError, match="all heads share a norm: with qk_correction ask for 'rot_q'"):
        patch(olmo, TOKENS, clean, linear, "q", qk_correction=True)
    assert np.isfinite(patch(olmo, TOKENS, clean, linear, "rot_q", qk_correction=True)).all()
