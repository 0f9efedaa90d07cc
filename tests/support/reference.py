"""A Llama in plain PyTorch, written from the papers: what the engine's numbers are compared with.

Llama 2 (Touvron et al. 2023): RMSNorm before each block, rotary positions (Su et al. 2021), grouped queries
(Ainslie et al. 2023), SwiGLU (Shazeer 2020). It computes in double precision; only the rotary angle is rounded to
float32, because every implementation that models were trained with does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import llama2cpp


@dataclass
class Result:
    logits: Tensor  # [T, vocab_size]
    keys: list[Tensor]  # per layer [T, n_kv_heads, head_dim], after rotary
    values: list[Tensor]  # per layer [T, n_kv_heads, head_dim]


def run(
    config: llama2cpp.Config,
    weights: Mapping[str, NDArray[np.float32]],
    tokens: Sequence[int],
    rounded: Callable[[Tensor], Tensor] = lambda x: x,
) -> Result:
    """The whole sequence at once; weights under llama2.c's names. Every matmul's input goes through `rounded`."""

    def weight(name: str) -> Tensor:
        return torch.tensor(np.asarray(weights[f"{name}.weight"])).double()

    positions = len(tokens)
    cos, sin = _rotation(config, positions)
    distance = torch.arange(positions)[:, None] - torch.arange(positions)[None]  # to the key, back from the query
    no_rope, full = set(config.no_rope_layers), set(config.full_layers)
    multiplier = config.attention_multiplier or config.head_dim**-0.5
    heads_per_kv = config.n_heads // config.n_kv_heads
    keys, values = [], []

    x = weight("tok_embeddings")[list(tokens)] * config.embedding_multiplier  # [T, dim]
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        normed = rounded(_rms_norm(x, weight(f"{layer}.attention_norm"), config.norm_eps))
        q = (normed @ weight(f"{layer}.attention.wq").T).view(positions, config.n_heads, config.head_dim)
        k = (normed @ weight(f"{layer}.attention.wk").T).view(positions, config.n_kv_heads, config.head_dim)
        v = (normed @ weight(f"{layer}.attention.wv").T).view(positions, config.n_kv_heads, config.head_dim)
        if config.qk_norm != "none":
            q = _norm_heads(config, q, weight(f"{layer}.attention.q_norm"))
            k = _norm_heads(config, k, weight(f"{layer}.attention.k_norm"))
        if i not in no_rope:
            q, k = _rotate(config, q, cos, sin), _rotate(config, k, cos, sin)
        keys.append(k)
        values.append(v)
        k, v = k.repeat_interleave(heads_per_kv, 1), v.repeat_interleave(heads_per_kv, 1)  # [T, n_heads, head_dim]
        window = None if i in full else config.sliding_window
        masked = (distance < 0) | (distance >= (window or positions))
        scores = (torch.einsum("thd,shd->hts", q, k) * multiplier).masked_fill(masked, -torch.inf)
        z = torch.einsum("hts,shd->thd", scores.softmax(-1), v)
        x = x + rounded(z.flatten(1)) @ weight(f"{layer}.attention.wo").T * config.residual_multiplier

        normed = rounded(_rms_norm(x, weight(f"{layer}.ffn_norm"), config.norm_eps))
        gate = torch.nn.functional.silu(normed @ weight(f"{layer}.feed_forward.w1").T)
        up = normed @ weight(f"{layer}.feed_forward.w3").T
        x = x + rounded(gate * up) @ weight(f"{layer}.feed_forward.w2").T * config.residual_multiplier

    unembed = weight("tok_embeddings" if config.tied else "output")
    logits = rounded(_rms_norm(x, weight("norm"), config.norm_eps)) @ unembed.T / config.logits_scaling
    return Result(logits, keys, values)


def largest_error(got: NDArray[Any], expected: Tensor | NDArray[Any]) -> float:
    """The largest difference, as a part of the largest expected value."""
    right = np.asarray(expected, dtype=np.float64)
    assert got.shape == right.shape
    return float(np.abs(got - right).max() / np.abs(right).max())


def _rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain.flatten()


def _norm_heads(config: llama2cpp.Config, x: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm of x [T, heads, head_dim]: of each head, or of all together."""
    together = config.qk_norm == "full"
    return _rms_norm(x.flatten(1) if together else x, gain, config.norm_eps).reshape(x.shape)


def _rotation(config: llama2cpp.Config, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, rotary / 2] of position times theta^(-2j / rotary)."""
    turned = config.rotary_dim or config.head_dim
    exponents = torch.arange(0, turned, 2, dtype=torch.float32) / turned
    frequencies = 1.0 / config.rope_theta**exponents
    angles = (torch.arange(positions, dtype=torch.float32)[:, None] * frequencies).double()[:, None, :]
    return angles.cos(), angles.sin()


def _rotate(config: llama2cpp.Config, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x [T, heads, head_dim]: neighbours, or an element of each half; or of its first numbers."""
    if config.rotary_dim:
        x, rest = x[..., : config.rotary_dim], x[..., config.rotary_dim :]
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)
    if config.rope_style == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
