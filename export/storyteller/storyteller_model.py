"""The storyteller in PyTorch: a Llama as llama2.c's files describe it, laid out for fast training on CPU cores.

Weights and the residual stream are float32; matrices are multiplied in a type of choice (bfloat16 is faster where the
processor has instructions for it). q, k and v are one matrix here, w1 and w3 another, and rotary pairs are halves of a
head: `arrays` gives llama2.c's matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

NORM_EPS = 1e-5
ROPE_THETA = 10000.0
IGNORED = -100  # a target that does not count


@dataclass(frozen=True)
class Sizes:
    """A model's, under the names of llama2.c's header. `n_heads` divides `dim`, `n_kv_heads` divides `n_heads`."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool = True

    @property
    def kv_dim(self) -> int:
        """Rows of wk and wv."""
        return self.dim // self.n_heads * self.n_kv_heads


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, causal."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.n_kv_heads = sizes.n_kv_heads
        self.head_dim = sizes.dim // sizes.n_heads
        self.widths = [sizes.dim, sizes.kv_dim, sizes.kv_dim]
        self.wqkv = nn.Parameter(torch.empty(sum(self.widths), sizes.dim))
        self.wo = nn.Parameter(torch.empty(sizes.dim, sizes.dim))

    def forward(self, x: Tensor, tables: Tables) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        batch, length, dim = x.shape
        q, k, v = torch.split_with_sizes(F.linear(x, self.wqkv.to(x.dtype)), self.widths, dim=-1)
        q = rotate(q.view(batch, length, -1, self.head_dim), tables) * self.head_dim**-0.5
        k = rotate(k.view(batch, length, -1, self.head_dim), tables)
        v = v.view(batch, length, -1, self.head_dim)
        # The heads that share k and v are more rows of the same product. [B * n_kv_heads, rows, head_dim]:
        q, k, v = (t.transpose(1, 2).reshape(batch * self.n_kv_heads, -1, self.head_dim) for t in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(len(q), -1, length, length) + tables.mask
        pattern = scores.softmax(-1).view(len(q), -1, length)
        z = torch.bmm(pattern, v).view(batch, -1, length, self.head_dim)  # [B, n_heads, T, head_dim]
        return F.linear(z.transpose(1, 2).reshape(batch, length, dim), self.wo.to(x.dtype))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(2 * sizes.hidden_dim, sizes.dim))
        self.w2 = nn.Parameter(torch.empty(sizes.dim, sizes.hidden_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        gate, up = F.linear(x, self.w13.to(x.dtype)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.w2.to(x.dtype))


class Layer(nn.Module):
    """One block."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.dim, NORM_EPS)
        self.attention = Attention(sizes)
        self.ffn_norm = nn.RMSNorm(sizes.dim, NORM_EPS)
        self.feed_forward = FeedForward(sizes)

    def forward(self, x: Tensor, tables: Tables) -> Tensor:
        """[B, T, dim] float32 -> the same."""
        x = x + self.attention(self.attention_norm(x).to(tables.dtype), tables)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x).to(tables.dtype))
        return out


class Tables:
    """What all layers share for texts of one length: rotary angles and the causal mask, in the type of products."""

    def __init__(self, head_dim: int, length: int, dtype: torch.dtype) -> None:
        frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)[:, None]  # [T, 1, head_dim / 2]
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.mask = torch.full((length, length), -torch.inf, dtype=dtype).triu(1)
        self.dtype = dtype


def rotate(x: Tensor, tables: Tables) -> Tensor:
    """Turn the halves of [B, T, heads, head_dim], taken as pairs, by the position's angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * tables.cos - second * tables.sin, first * tables.sin + second * tables.cos), dim=-1)


class Llama(nn.Module):
    """The whole model, with tied embeddings."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sizes = sizes
        self.dtype = dtype  # of the products
        self.tok_embeddings = nn.Parameter(torch.empty(sizes.vocab_size, sizes.dim))
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.RMSNorm(sizes.dim, NORM_EPS)
        self._initialise()

    def _initialise(self) -> None:
        deep = (2 * self.sizes.n_layers) ** -0.5  # the sums in the residual stream keep their size
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                spread = 0.02 if name == "tok_embeddings" else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=spread * (deep if name.endswith(("wo", "w2")) else 1))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean of -log p, in nats, of the targets [B, T] that count."""
        tables = Tables(self.sizes.dim // self.sizes.n_heads, ids.shape[1], self.dtype)
        x = F.embedding(ids, self.tok_embeddings)
        for layer in self.layers:
            x = layer(x, tables)
        counts = targets != IGNORED
        hidden = self.norm(x[counts]).to(self.dtype)
        logits = F.linear(hidden, self.tok_embeddings.to(self.dtype))
        return F.cross_entropy(logits.float(), targets[counts])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Give the weights under llama2.c's names, rotary pairs as halves of a head."""
        found: dict[str, Tensor] = {"tok_embeddings.weight": self.tok_embeddings, "norm.weight": self.norm.weight}
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            attention, feed_forward = layer.attention, layer.feed_forward
            q, k, v = torch.split_with_sizes(attention.wqkv, attention.widths)
            w1, w3 = feed_forward.w13.chunk(2)
            found |= {
                f"layers.{i}.attention_norm.weight": layer.attention_norm.weight,
                f"layers.{i}.attention.wq.weight": q,
                f"layers.{i}.attention.wk.weight": k,
                f"layers.{i}.attention.wv.weight": v,
                f"layers.{i}.attention.wo.weight": attention.wo,
                f"layers.{i}.ffn_norm.weight": layer.ffn_norm.weight,
                f"layers.{i}.feed_forward.w1.weight": w1,
                f"layers.{i}.feed_forward.w2.weight": feed_forward.w2,
                f"layers.{i}.feed_forward.w3.weight": w3,
            }
        return {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in found.items()}


def fastest_dtype(sizes: Sizes) -> torch.dtype:
    """Measure the type in which this machine multiplies matrices of these sizes faster: float32 or bfloat16."""
    import time

    def seconds(dtype: torch.dtype) -> float:
        x, w = torch.ones(2048, sizes.dim, dtype=dtype), torch.ones(sizes.hidden_dim, sizes.dim, dtype=dtype)
        took = []
        for _ in range(5):
            begin = time.perf_counter()
            F.linear(x, w)
            took.append(time.perf_counter() - begin)
        return min(took)

    return min((torch.float32, torch.bfloat16), key=seconds)
