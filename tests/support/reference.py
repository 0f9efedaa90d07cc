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
    rotation = _rotation(config, positions, config.rope_theta)
    local_rotation = _rotation(config, positions, config.local_rope_theta) if config.local_rope_theta else rotation

    def norm(x: Tensor, name: str) -> Tensor:
        gain = None if config.norm == "layer_plain" else weight(name)
        bias = weights.get(f"{name}.bias")
        return _norm(config, x, gain, None if bias is None else torch.tensor(np.asarray(bias)).double())

    def mlp(normed: Tensor, layer: str) -> Tensor:
        up = normed @ weight(f"{layer}.feed_forward.w3").T
        if config.activation == "clamped_swiglu":
            hidden = _clamped_swiglu(normed @ weight(f"{layer}.feed_forward.w1").T, up)
        elif config.gated:
            hidden = ACTIVATIONS[config.activation](normed @ weight(f"{layer}.feed_forward.w1").T) * up
        else:
            hidden = ACTIVATIONS[config.activation](up)
        out = rounded(hidden) @ weight(f"{layer}.feed_forward.w2").T
        return norm(out, f"{layer}.ffn_post_norm") if config.norm_places != "before" else out

    distance = torch.arange(positions)[:, None] - torch.arange(positions)[None]  # to the key, back from the query
    no_rope, full = set(config.no_rope_layers), set(config.full_layers)
    multiplier = config.attention_multiplier or config.head_dim**-0.5
    heads_per_kv = config.n_heads // config.n_kv_heads
    keys, values = [], []

    x = weight("tok_embeddings")[list(tokens)] * config.embedding_multiplier  # [T, dim]
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        before = config.norm_places != "after"
        normed = rounded(norm(x, f"{layer}.attention_norm") if before else x)
        q = (normed @ weight(f"{layer}.attention.wq").T).view(positions, config.n_heads, config.head_dim)
        k = (normed @ weight(f"{layer}.attention.wk").T).view(positions, config.n_kv_heads, config.head_dim)
        v = (normed @ weight(f"{layer}.attention.wv").T).view(positions, config.n_kv_heads, config.head_dim)
        if config.qk_norm in ("head", "full"):
            q = _norm_heads(config, q, weight(f"{layer}.attention.q_norm"))
            k = _norm_heads(config, k, weight(f"{layer}.attention.k_norm"))
        window = None if i in full else config.sliding_window
        cos, sin = local_rotation if window else rotation
        if i not in no_rope:
            q, k = _rotate(config, q, cos, sin), _rotate(config, k, cos, sin)
        if config.qk_norm == "head_after_rope":
            q = _norm_heads(config, q, weight(f"{layer}.attention.q_norm"))
            k = _norm_heads(config, k, weight(f"{layer}.attention.k_norm"))
        keys.append(k)
        values.append(v)
        k, v = k.repeat_interleave(heads_per_kv, 1), v.repeat_interleave(heads_per_kv, 1)  # [T, n_heads, head_dim]
        masked = (distance < 0) | (distance >= (window or positions))
        scores = _capped(torch.einsum("thd,shd->hts", q, k) * multiplier, config.score_cap)
        scores = scores.masked_fill(masked, -torch.inf)
        pattern = scores.softmax(-1)
        if (sinks := weights.get(f"{layer}.attention.sinks.weight")) is not None:  # one more score of each head
            column = torch.tensor(np.asarray(sinks)).double()[:, None, None].expand(-1, positions, 1)
            pattern = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
        z = torch.einsum("hts,shd->thd", pattern, v)
        out = rounded(z.flatten(1)) @ weight(f"{layer}.attention.wo").T
        out = norm(out, f"{layer}.attention_post_norm") if config.norm_places != "before" else out
        x = x + out * config.residual_multiplier
        if not config.parallel:
            normed = rounded(norm(x, f"{layer}.ffn_norm") if before else x)
        x = x + mlp(normed, layer) * config.residual_multiplier

    unembed = weight("tok_embeddings" if config.tied else "output")
    logits = _capped(rounded(norm(x, "norm")) @ unembed.T / config.logits_scaling, config.logits_cap)
    return Result(logits, keys, values)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: x.relu().square(),
}


def _clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate = gate.clamp(max=7)
    return (up.clamp(-7, 7) + 1) * gate * (1.702 * gate).sigmoid()


def _capped(x: Tensor, cap: float) -> Tensor:
    return cap * (x / cap).tanh() if cap else x


def _norm(config: llama2cpp.Config, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if config.norm == "rms" else x - x.mean(-1, keepdim=True)
    x = _rms_norm(x, torch.ones(x.shape[-1]).double() if gain is None else gain, config.norm_eps)
    return x if bias is None else x + bias


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


def _rotation(config: llama2cpp.Config, positions: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, rotary / 2] of position times theta^(-2j / rotary)."""
    turned = config.rotary_dim or config.head_dim
    exponents = torch.arange(0, turned, 2, dtype=torch.float32) / turned
    frequencies = 1.0 / theta**exponents
    angles = (torch.arange(positions, dtype=torch.float32)[:, None] * frequencies).double()[:, None, :]
    return angles.cos(), angles.sin()


def _rotate(config: llama2cpp.Config, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x [T, heads, head_dim]: neighbours, or an element of each half; or of its first numbers."""
    if config.rotary_dim:
        x, rest = x[..., : config.rotary_dim], x[..., config.rotary_dim :]
        if config.rope_style == "interleaved":
            a, b = x[..., 0::2], x[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
            return torch.cat((turned, rest), -1)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)
    if config.rope_style == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
