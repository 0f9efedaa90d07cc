"""A model's forward in PyTorch's float64, with every place where hooks look: its autograd is compared with ours.

It is written from what `Config` says, and knows no family. Angles of rotary embedding are taken from a run of the
engine, whose tests are elsewhere; everything else it computes by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import llama2cpp
from llama2cpp.inside.places import find_places, points_of

Tensor = Any


class TorchPoints:
    """One run: logits [T, vocab_size] and the tensors of all places, by name.

    Parameters
    ----------
    model : Model
        With exact arithmetic.
    tokens : list of int
        The prompt.
    stop : sequence of str
        Names or short names of places whose gradients go no further.
    added : mapping of str to array, optional
        What is added to activations, by full names, in the run's own shapes: [T, ...] or [heads, T, T].
    experts : mapping of str to array, optional
        Where tokens go, [T, k], by the name of ``hook_expert_indices``, instead of where the router sends them.
    """

    def __init__(
        self,
        model: llama2cpp.Model,
        tokens: list[int],
        stop: Sequence[str] = (),
        added: Mapping[str, NDArray[np.floating[Any]]] | None = None,
        experts: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    ) -> None:
        self.added, self.experts = added or {}, experts or {}
        self.model, self.c = model, model.config
        names = {place: name for name, place in points_of(self.c).items()}
        self.stop = {names[place] for place in find_places(stop, self.c)}
        self.points: dict[str, Tensor] = {}
        self.seen = model.run_with_cache(tokens, lambda name: "rot_" in name or "hook_q" in name, True)[1]
        c = self.c
        x = torch.from_numpy(np.array(model.weights["embed.W_E"])).double()[tokens] * c.embedding_multiplier
        x = self._see("hook_embed", x.requires_grad_())
        for i in range(c.n_layers):
            x = self._layer(i, x)
        x = self._norm("ln_final", x)
        self.logits = x @ self._w("unembed.W_U") / c.logits_scaling
        if c.logits_cap:
            self.logits = c.logits_cap * torch.tanh(self.logits / c.logits_cap)

    def gradients(self, dlogits: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Of sum(logits * dlogits), at all places."""
        found = torch.autograd.grad(
            (self.logits * torch.from_numpy(dlogits).double()).sum(), list(self.points.values()), allow_unused=True
        )
        zeros = [torch.zeros_like(x) if g is None else g for x, g in zip(self.points.values(), found, strict=True)]
        return {name: g.numpy() for name, g in zip(self.points, zeros, strict=True)}

    def _see(self, name: str, x: Tensor) -> Tensor:
        if name in self.added:
            x = x + torch.from_numpy(np.asarray(self.added[name])).double()
        if name in self.stop:
            x = x.detach().requires_grad_()
        self.points[name] = x
        return x

    def _w(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.model.weights[name])).double()

    def _bias(self, name: str) -> Tensor | float:
        return self._w(name) if name in self.model.weights.transformer_lens else 0.0

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if self.c.norm != "rms":
            x = x - x.mean(-1, keepdim=True)
        scale = self._see(f"{name}.hook_scale", (x.square().mean(-1, keepdim=True) + self.c.norm_eps).sqrt())
        normalized = self._see(f"{name}.hook_normalized", x / scale)
        names = self.model.weights.transformer_lens
        return normalized * (self._w(f"{name}.w") if f"{name}.w" in names else 1.0) + self._bias(f"{name}.b")

    def _layer(self, i: int, x: Tensor) -> Tensor:
        c, block = self.c, f"blocks.{i}."
        before, after = c.norm_places != "after", c.norm_places != "before"
        x = self._see(f"{block}hook_resid_pre", x)
        read = self._norm(f"{block}ln1", x) if before else x
        added = self._attention(i, read)
        if after:
            added = self._norm(f"{block}ln1_post", added)
        added = self._see(f"{block}hook_attn_out", added * c.residual_multiplier)
        if not c.parallel:
            x = self._see(f"{block}hook_resid_mid", x + added)
            read = self._norm(f"{block}ln2", x) if before else x
        mlp = self._mlp(i, read)
        if after:
            mlp = self._norm(f"{block}ln2_post", mlp)
        mlp = self._see(f"{block}hook_mlp_out", mlp * c.residual_multiplier)
        return self._see(f"{block}hook_resid_post", x + mlp + (added if c.parallel else 0.0))

    def _attention(self, i: int, x: Tensor) -> Tensor:
        c, name = self.c, f"blocks.{i}.attn."
        tokens = len(x)
        q, k, v = (
            self._see(f"{name}hook_{p}", torch.einsum("td,hde->the", x, self._w(f"{name}W_{p.upper()}")) + b)
            for p in "qkv"
            for b in [self._bias(f"{name}b_{p.upper()}")]
        )
        if c.qk_norm in ("head", "full"):
            q, k = self._normed(i, "q", q), self._normed(i, "k", k)
        rotated = i not in c.no_rope_layers
        turn = self._turn(i) if rotated else (lambda x: x)
        q, k = self._see(f"{name}hook_rot_q", turn(q)), self._see(f"{name}hook_rot_k", turn(k))
        if c.qk_norm == "head_after_rope":
            q, k = self._normed(i, "q", q), self._normed(i, "k", k)
        group = c.n_heads // c.n_kv_heads
        factor = c.attention_multiplier or c.head_dim**-0.5
        scores = torch.einsum("qhe,khe->hqk", q, k.repeat_interleave(group, 1)) * factor
        if c.score_cap:
            scores = c.score_cap * torch.tanh(scores / c.score_cap)
        scores = self._see(f"{name}hook_attn_scores", scores)
        position = torch.arange(tokens)
        allowed = position[:, None] >= position
        if c.sliding_window and i not in c.full_layers:
            allowed &= position[:, None] - position < c.sliding_window
        scores = scores.masked_fill(~allowed, -torch.inf)
        if f"{name}sinks" in self.model.weights.transformer_lens:
            sinks = self._w(f"{name}sinks")[:, None, None].expand(-1, tokens, 1)
            pattern = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        else:
            pattern = scores.softmax(-1)
        pattern = self._see(f"{name}hook_pattern", pattern)
        # What is masked is not read.
        z = torch.einsum("hqk,khe->qhe", pattern.masked_fill(~allowed, 0.0), v.repeat_interleave(group, 1))
        z = self._see(f"{name}hook_z", z)
        each = torch.einsum("the,hed->thd", z, self._w(f"{name}W_O")) * c.residual_multiplier
        each = self._see(f"{name}hook_result", each)
        return each.sum(1) / c.residual_multiplier + self._bias(f"{name}b_O")

    def _normed(self, i: int, which: str, x: Tensor) -> Tensor:
        gain = self._w(f"blocks.{i}.attn.{which}_norm.w")
        groups = x.flatten(1) if self.c.qk_norm == "full" else x
        normed = groups / (groups.square().mean(-1, keepdim=True) + self.c.norm_eps).sqrt()
        normed = normed.reshape(x.shape) * (gain.reshape(x.shape[1:]) if self.c.qk_norm == "full" else gain)
        return self._see(f"blocks.{i}.attn.hook_{which}_normed", normed)

    def _turn(self, i: int) -> Any:
        """A function that turns heads as the engine's run turned its queries."""
        name, c = f"blocks.{i}.attn.hook_", self.c
        before = self.seen[f"{name}q_normed" if c.qk_norm in ("head", "full") else f"{name}q"].astype(np.float64)
        after = self.seen[f"{name}rot_q"].astype(np.float64)
        width = c.rotary_dim or c.head_dim
        a, b = before[..., : width // 2], before[..., width // 2 : width]
        a2, b2 = after[..., : width // 2], after[..., width // 2 : width]
        size = (a * a + b * b).sum(1)  # over heads: all turn alike
        cos = torch.from_numpy((a * a2 + b * b2).sum(1) / size)[:, None]
        sin = torch.from_numpy((a * b2 - b * a2).sum(1) / size)[:, None]

        def turn(x: Tensor) -> Tensor:
            a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
            return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

        return turn

    def _mlp(self, i: int, x: Tensor) -> Tensor:
        c, name = self.c, f"blocks.{i}.mlp."
        if c.n_experts:
            return self._experts(i, x)
        pre = x @ self._w(f"{name}{'W_gate' if c.gated else 'W_in'}") + self._bias(
            f"{name}{'b_gate' if c.gated else 'b_in'}"
        )
        pre = self._see(f"{name}hook_pre", pre)
        if c.gated:
            up = self._see(f"{name}hook_pre_linear", x @ self._w(f"{name}W_in") + self._bias(f"{name}b_in"))
        post = activated(c.activation, pre, up if c.gated else None)
        post = self._see(f"{name}hook_post", post)
        return post @ self._w(f"{name}W_out") + self._bias(f"{name}b_out")

    def _experts(self, i: int, x: Tensor) -> Tensor:
        """Those that each token goes to, in ascending order, each by itself."""
        c, name = self.c, f"blocks.{i}.mlp."
        scores = self._see(f"{name}hook_router_scores", x @ self._w(f"{name}gate.W") + self._bias(f"{name}gate.b"))
        ids = scores.topk(c.n_experts_used).indices.sort().values
        if c.router_order == "topk_softmax":
            chosen = scores.gather(1, ids).softmax(-1)
        else:
            chosen = scores.softmax(-1).gather(1, ids)
            chosen = chosen / chosen.sum(-1, keepdim=True) if c.router_renormalise else chosen
        weights = self._see(f"{name}hook_expert_weights", torch.zeros_like(scores).scatter(1, ids, chosen))
        if f"{name}hook_expert_indices" in self.experts:
            ids = torch.from_numpy(np.asarray(self.experts[f"{name}hook_expert_indices"])).long()
        self._see(f"{name}hook_expert_indices", ids.double().requires_grad_())

        def of_chosen(matrix: str, read: Tensor) -> Tensor:  # read [T, n] or [T, k, n]
            every = torch.stack([self._w(f"{name}experts.{e}.W_{matrix}") for e in range(c.n_experts or 0)])
            biases: list[Tensor] = [self._bias(f"{name}experts.{e}.b_{matrix}") for e in range(c.n_experts or 0)]
            read = read[:, None].expand(-1, c.n_experts_used, -1) if read.ndim == 2 else read
            out = torch.einsum("tkd,tkdh->tkh", read, every[ids])
            return out if isinstance(biases[0], float) else out + torch.stack(biases)[ids]

        pre = self._see(f"{name}hook_pre", of_chosen("gate", x))
        up = self._see(f"{name}hook_pre_linear", of_chosen("in", x))
        post = self._see(f"{name}hook_post", activated(c.activation, pre, up))
        out = self._see(f"{name}hook_expert_out", of_chosen("out", post))
        return (out * weights.gather(1, ids)[..., None]).sum(1)


def activated(activation: str, gate: Tensor, up: Tensor | None) -> Tensor:
    """What an MLP makes of its gate and what that is multiplied with."""
    if activation == "clamped_swiglu" and up is not None:
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        return (up + 1) * (gate * torch.sigmoid(1.702 * gate))
    of: Any = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu_squared": lambda x: x.relu().square(),
    }[activation]
    return of(gate) if up is None else of(gate) * up
