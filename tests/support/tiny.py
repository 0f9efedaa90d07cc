"""Models with random weights, and the names that files give to the same matrix."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import _core

Arrays = dict[str, NDArray[np.float32]]

# llama2.c's name -> Hugging Face's
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
OTHER_NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


# What a Config has where nothing is said of it.
DEFAULTS: dict[str, Any] = {
    "norm_eps": float(np.float32(1e-5)),
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_factors": (),
    "sliding_window": None,
    "rope_style": "interleaved",
    "tied": False,
    "rotary_dim": None,
    "rope_long_factors": (),
    "qk_norm": "none",
    "full_layers": (),
    "no_rope_layers": (),
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 0.0,
    "logits_scaling": 1.0,
    "n_experts": None,
    "n_experts_used": None,
    "router_order": "softmax_topk",
    "router_renormalise": False,
    "norm": "rms",
    "parallel": False,
    "norm_places": "before",
    "activation": "silu",
    "gated": True,
    "local_rope_theta": 0.0,
    "score_cap": 0.0,
    "logits_cap": 0.0,
}


def config(**sizes: Any) -> llama2cpp.Config:
    """A small Llama with nothing round about it: grouped heads, sizes that no vector width divides."""
    odd: dict[str, Any] = {
        "dim": 36,
        "hidden_dim": 50,
        "n_layers": 2,
        "n_heads": 6,
        "n_kv_heads": 2,
        "vocab_size": 53,
        "seq_len": 64,
    }
    return llama2cpp.Config(**(odd | sizes))


def arrays(config: llama2cpp.Config, seed: int = 0, *, scale: float = 1.0) -> Arrays:
    """Random weights under llama2.c's names, of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return np.asarray(rng.standard_normal((rows, columns)) * (scale / np.sqrt(columns)), dtype=np.float32)

    def gain() -> NDArray[np.float32]:
        return np.asarray(rng.uniform(0.5, 1.5, config.dim), dtype=np.float32)

    def head_gain(part: str) -> NDArray[np.float32]:
        return np.asarray(rng.uniform(0.5, 1.5, _core.part_shape(part, config)), dtype=np.float32)

    weights = {"tok_embeddings.weight": rng.standard_normal((config.vocab_size, config.dim)).astype(np.float32)}
    for layer in range(config.n_layers):
        weights |= {
            f"layers.{layer}.attention_norm.weight": gain(),
            f"layers.{layer}.attention.wq.weight": matrix(q_dim, config.dim),
            f"layers.{layer}.attention.wk.weight": matrix(kv_dim, config.dim),
            f"layers.{layer}.attention.wv.weight": matrix(kv_dim, config.dim),
            f"layers.{layer}.attention.wo.weight": matrix(config.dim, q_dim),
            f"layers.{layer}.ffn_norm.weight": gain(),
            f"layers.{layer}.feed_forward.w1.weight": matrix(config.hidden_dim, config.dim),
            f"layers.{layer}.feed_forward.w2.weight": matrix(config.dim, config.hidden_dim),
            f"layers.{layer}.feed_forward.w3.weight": matrix(config.hidden_dim, config.dim),
        }
    if config.qk_norm != "none":
        for layer in range(config.n_layers):
            weights[f"layers.{layer}.attention.q_norm.weight"] = head_gain("q_norm")
            weights[f"layers.{layer}.attention.k_norm.weight"] = head_gain("k_norm")
    drop = [] if config.gated else ["feed_forward.w1"]
    if config.norm_places == "after":
        drop += ["attention_norm", "ffn_norm"]
    if config.norm_places != "before":
        for layer in range(config.n_layers):
            weights[f"layers.{layer}.attention_post_norm.weight"] = gain()
            weights[f"layers.{layer}.ffn_post_norm.weight"] = gain()
    drop += ["ffn_norm"] if config.parallel else []
    weights["norm.weight"] = gain()
    if config.norm == "layer":
        biased = [f"layers.{i}.{part}" for i in range(config.n_layers) for part in ("attention_norm", "ffn_norm")]
        biased += ["norm"]
        weights |= {f"{name}.bias": gain() - 1 for name in biased if name.rpartition(".")[2] not in drop}
    weights = {name: array for name, array in weights.items() if not any(f".{part}.weight" in name for part in drop)}
    if config.norm == "layer_plain":
        kept = ("q_norm.weight", "k_norm.weight")
        weights = {name: array for name, array in weights.items() if "norm" not in name or name.endswith(kept)}
    if not config.tied:
        weights["output.weight"] = matrix(config.vocab_size, config.dim)
    return weights


def model(config: llama2cpp.Config, seed: int = 0, *, scale: float = 1.0, **options: Any) -> llama2cpp.Model:
    return llama2cpp.from_arrays(config, arrays(config, seed, scale=scale), **options)


def tokens(config: llama2cpp.Config, count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng([seed, count]).integers(config.vocab_size, size=count)]


def write_v0(path: Path, config: llama2cpp.Config, weights: Arrays) -> Path:
    """Weights as a llama2.c checkpoint of version 0."""
    header = [config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads]
    header += [config.vocab_size if config.tied else -config.vocab_size, config.seq_len]
    with path.open("wb") as file:
        file.write(struct.pack("<7i", *header))
        file.write(weights["tok_embeddings.weight"].tobytes())
        for part in ["attention_norm", *(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")), "ffn_norm"]:
            file.writelines(weights[f"layers.{i}.{part}.weight"].tobytes() for i in range(config.n_layers))
        for part in ("w1", "w2", "w3"):
            file.writelines(weights[f"layers.{i}.feed_forward.{part}.weight"].tobytes() for i in range(config.n_layers))
        file.write(weights["norm.weight"].tobytes())
        file.write(bytes(4 * config.seq_len * config.head_dim))  # the rotary tables, which nobody reads
        if not config.tied:
            file.write(weights["output.weight"].tobytes())
    return path


def script(vocab_size: int, followers: dict[int, int], seq_len: int = 64) -> tuple[llama2cpp.Config, Arrays]:
    """A model that at temperature 0 says what `followers` has for each token, and 0 after any other."""
    config_ = config(
        dim=vocab_size,
        hidden_dim=2,
        n_layers=1,
        n_heads=vocab_size // 2,
        n_kv_heads=1,
        vocab_size=vocab_size,
        seq_len=seq_len,
    )
    weights = {name: np.zeros_like(weight) for name, weight in arrays(config_).items()}
    weights["tok_embeddings.weight"] = np.eye(vocab_size, dtype=np.float32)
    weights["norm.weight"] += 1
    weights["output.weight"][list(followers.values()), list(followers)] = 1
    return config_, weights


def hugging_face_names(weights: Arrays) -> Arrays:
    def rename(name: str) -> str:
        stem = name.removesuffix(".weight")
        if stem in OTHER_NAMES:
            return f"{OTHER_NAMES[stem]}.weight"
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"

    return {rename(name): array for name, array in weights.items()}


ISAS = [
    "reference",
    "scalar",
    "avx2-base",
    "avx2-vnni",
    "avx512-base",
    "avx512-vnni",
    "avx512-bf16",
    "neon-base",
    "neon-dotprod",
    "neon-i8mm",
]


def choose_isa(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    """Models made from here on run these kernels; skips where the machine lacks them."""
    monkeypatch.setenv("LLAMA2CPP_ISA", isa)
    try:
        llama2cpp.build_info()
    except ValueError as error:
        if "this machine lacks" not in str(error):
            raise
        pytest.skip(str(error))
