"""A forward in PyTorch's float64 where each head's queries, keys, values, and each MLP, read streams of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_points import Tensor, TorchPoints

import llama2cpp


class TorchEdges(TorchPoints):
    """One run of a model whose norms are before attention and MLP.

    Parameters
    ----------
    model, tokens
        As in `TorchPoints`.
    reads : callable
        Of a receiver's name, the residual stream where it is, and what all senders before it have added, by name: what
        the receiver reads.
    """

    def __init__(
        self, model: llama2cpp.Model, tokens: list[int], reads: Callable[[str, Tensor, dict[str, Tensor]], Tensor]
    ) -> None:
        self.reads, self.sent = reads, dict[str, Tensor]()
        super().__init__(model, tokens)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return super()._norm(name, self.reads("logits", x, self.sent) if name == "ln_final" else x)

    def _layer(self, i: int, x: Tensor) -> Tensor:
        c = self.c
        if i == 0:
            self.sent["input"] = x
        before = dict(self.sent)
        group = c.n_heads // c.n_kv_heads

        def projected(part: str) -> Tensor:
            name, heads = f"blocks.{i}.attn.{{}}_{part.upper()}", []
            for h in range(c.n_heads):
                own = h if part == "q" else h // group
                read = self._norm(f"blocks.{i}.ln1", self.reads(f"a{i}.h{h}<{part}>", x, before))
                bias = self._bias(name.format("b"))
                heads.append(read @ self._w(name.format("W"))[own] + (bias if isinstance(bias, float) else bias[own]))
            return torch.stack(heads, 1)

        q, k, v = projected("q"), projected("k"), projected("v")
        if c.qk_norm == "head":
            q, k = self._normed(i, "q", q), self._normed(i, "k", k)
        turn = self._turn(i)
        q, k = turn(q), turn(k)
        scores = torch.einsum("qhe,khe->hqk", q, k) * (c.attention_multiplier or c.head_dim**-0.5)
        if c.score_cap:
            scores = c.score_cap * torch.tanh(scores / c.score_cap)
        at = torch.arange(len(x))
        pattern = scores.masked_fill(at[:, None] < at, -torch.inf).softmax(-1)
        z = torch.einsum("hqk,khe->qhe", pattern, v)
        each = torch.einsum("the,hed->htd", z, self._w(f"blocks.{i}.attn.W_O")) * c.residual_multiplier
        self.sent |= {f"a{i}.h{h}": each[h] for h in range(c.n_heads)}
        added = each.sum(0) + self._bias(f"blocks.{i}.attn.b_O") * c.residual_multiplier
        if c.parallel:
            read = self._norm(f"blocks.{i}.ln1", self.reads(f"m{i}", x, before))
        else:
            read = self._norm(f"blocks.{i}.ln2", self.reads(f"m{i}", x + added, dict(self.sent)))
        mlp = self._mlp(i, read) * c.residual_multiplier
        self.sent[f"m{i}"] = mlp
        return x + added + mlp


def edge_scores(
    model: llama2cpp.Model, clean: list[int], corrupt: list[int], dlogits: NDArray[np.float32]
) -> dict[str, float]:
    """Score all edges by autograd: (corrupt - clean) . gradient of sum(logits * dlogits) in the clean run."""
    leaves: dict[str, Tensor] = {}
    heard: dict[str, list[str]] = {}

    def reads(receiver: str, x: Tensor, sent: dict[str, Tensor]) -> Tensor:
        leaves[receiver] = torch.zeros_like(x).requires_grad_()
        heard[receiver] = list(sent)
        return x + leaves[receiver]

    run = TorchEdges(model, clean, reads)
    other = TorchEdges(model, corrupt, lambda _, x, __: x)
    total = (run.logits * torch.from_numpy(dlogits).double()).sum()
    found = torch.autograd.grad(total, list(leaves.values()))
    gradients = dict(zip(leaves, found, strict=True))
    return {
        f"{sender}->{receiver}": float(((other.sent[sender] - run.sent[sender]) * gradients[receiver]).sum().detach())
        for receiver, senders in heard.items()
        for sender in senders
    }


def circuit_logits(
    model: llama2cpp.Model, clean: list[int], corrupt: list[int], edges: set[str]
) -> NDArray[np.float64]:
    """Run with these edges: what others carry is of the corrupt run."""
    other: dict[str, Any] = TorchEdges(model, corrupt, lambda _, x, __: x).sent

    def reads(receiver: str, x: Tensor, sent: dict[str, Tensor]) -> Tensor:
        for sender, own in sent.items():
            if f"{sender}->{receiver}" not in edges:
                x = x + other[sender] - own
        return x

    logits: NDArray[np.float64] = TorchEdges(model, clean, reads).logits.detach().numpy()
    return logits
