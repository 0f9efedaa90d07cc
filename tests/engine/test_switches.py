"""What makes other models of a Llama: each switch alone, and each with every other, against float64."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import reference
import tiny
from on_metal import agree

import llama2cpp

SWITCHES: dict[str, dict[str, Any]] = {
    "norm of each head": {"qk_norm": "head"},
    "norm of all heads": {"qk_norm": "full"},
    "no rotary in a layer": {"no_rope_layers": [1]},
    "no rotary at all": {"no_rope_layers": [0, 1, 2]},
    "a window": {"sliding_window": 4},
    "a window in some layers": {"sliding_window": 3, "full_layers": [0, 2]},
    "a part of each head": {"rotary_dim": 4, "rope_style": "half_split"},
    "the other order": {"rope_style": "half_split"},
    "embeddings": {"embedding_multiplier": 5.5},
    "residual": {"residual_multiplier": 0.37},
    "scores": {"attention_multiplier": 0.9},
    "logits": {"logits_scaling": 3.3},
    "norm of heads after rotary": {"qk_norm": "head_after_rope"},
    "norms after": {"norm_places": "after"},
    "norms before and after": {"norm_places": "both"},
    "LayerNorm": {"norm": "layer"},
    "LayerNorm without weights": {"norm": "layer_plain"},
    "parallel": {"parallel": True, "norm": "layer"},
    "parallel with RMSNorm": {"parallel": True},
    "GELU": {"activation": "gelu_tanh"},
    "relu squared": {"activation": "relu_squared"},
    "clamped SwiGLU": {"activation": "clamped_swiglu"},
    "no gate": {"gated": False, "activation": "relu_squared"},
    "a part of each head, interleaved": {"rotary_dim": 4},
    "theta of windows": {"sliding_window": 4, "full_layers": [1], "local_rope_theta": 50.0},
    "capped scores": {"score_cap": 0.7},
    "capped logits": {"logits_cap": 1.3},
}
PAIRS = [
    pair
    for pair in combinations(SWITCHES, 2)
    if not set(SWITCHES[pair[0]]) & set(SWITCHES[pair[1]])
    and not {"parallel", "norm_places"} <= set(SWITCHES[pair[0]]) | set(SWITCHES[pair[1]])
]


def check(names: tuple[str, ...], *, sinks: bool = False) -> None:
    settings = {name: value for switch in names for name, value in SWITCHES[switch].items()}
    config = tiny.config(n_layers=3, head_dim=6, **settings)
    arrays = tiny.arrays(config)
    if sinks:
        rng = np.random.default_rng(3)
        arrays |= {f"layers.{i}.attention.sinks.weight": rng.normal(0, 2, 6).astype(np.float32) for i in range(3)}
    tokens = tiny.tokens(config, 13)
    model = llama2cpp.from_arrays(config, arrays, threads=1, kv_dtype="f32")
    found = model.session().prefill(tokens, all_logits=True)
    assert reference.largest_error(found, reference.run(config, arrays, tokens).logits) < 1e-5
    # It is no plain Llama, and chunked prefill gives the same bits.
    plain = tiny.arrays(tiny.config(n_layers=3, head_dim=6))
    plain |= {name: arrays[name] for name in plain if name in arrays}
    llama = llama2cpp.from_arrays(tiny.config(n_layers=3, head_dim=6), plain, threads=1, kv_dtype="f32")
    assert reference.largest_error(found, llama.session().prefill(tokens, all_logits=True)) > 1e-3
    session = model.session()
    parts = [session.prefill(tokens[:4], all_logits=True), session.prefill(tokens[4:], all_logits=True)]
    assert agree(np.concatenate(parts), found)


@pytest.mark.parametrize("switch", SWITCHES)
def test_alone(switch: str) -> None:
    check((switch,))


def test_sinks() -> None:
    check((), sinks=True)
    for switch in ("a window in some layers", "capped scores", "norm of each head", "clamped SwiGLU"):
        check((switch,), sinks=True)


def test_in_pairs() -> None:
    assert len(PAIRS) > 50
    for pair in PAIRS:
        check(pair)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"full_layers": [3]}, "one of full_layers is 3, expected numbers of 3 layers, ascending from 0"),
        ({"no_rope_layers": [1, 1]}, "one of no_rope_layers is 1"),
        ({"no_rope_layers": [-1]}, "one of no_rope_layers is -1"),
        ({"rotary_dim": 3, "rope_style": "half_split"}, "rotary_dim is 3, expected an even number up to head_dim"),
        ({"rotary_dim": 8, "rope_style": "half_split"}, "rotary_dim is 8, expected an even number up to head_dim"),
        ({"parallel": True, "norm_places": "both"}, "norm_places is both, expected before, of a parallel model"),
        ({"local_rope_theta": 50.0}, "local_rope_theta is 50, and no layer has a sliding_window"),
        ({"norm": "batch"}, "norm is 'batch', expected one of: rms, layer, layer_plain"),
        ({"activation": "gelu"}, "'gelu', expected one of: silu, gelu_tanh, relu_squared, clamped_swiglu"),
        ({"activation": "clamped_swiglu", "gated": False}, "clamped_swiglu and gated is false, expected a gate"),
        ({"score_cap": -1.0}, "score_cap is -1"),
        ({"rope_long_factors": [1.0, 2.0, 3.0]}, "rope_long_factors, which rope_scaling of type longrope has only"),
        ({"attention_multiplier": -1.0}, "attention_multiplier is -1"),
        ({"logits_scaling": 0.0}, "logits_scaling is 0"),
        ({"embedding_multiplier": float("inf")}, "embedding_multiplier is inf"),
        ({"qk_norm": "each"}, "qk_norm is 'each', expected one of: none, head, full"),
    ],
)
def test_settings_that_no_model_has(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.config(n_layers=3, head_dim=6, **settings)
