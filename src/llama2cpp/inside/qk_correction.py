"""What patching of queries and keys does to patterns, with the softmax computed again: AtP*'s correction.

The gradient of a softmax says little where it is saturated: a query that attends to one key alone has a gradient of
nearly 0, though another query in its place may attend elsewhere. Here the pattern after a patch is computed, and only
from there on the gradient is used (Kramár, Lieberum, Shah and Nanda, "AtP*: an efficient and scalable method for
localizing LLM behaviour to components", 2024, section 3.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core

Array: TypeAlias = NDArray[np.float32]
Wide: TypeAlias = NDArray[np.float64]

_QUERIES, _KEYS = ("hook_q", "hook_q_normed", "hook_rot_q"), ("hook_k", "hook_k_normed", "hook_rot_k")


def is_query(name: str) -> bool:
    """Whether an activation has queries."""
    return name.rpartition(".")[2] in _QUERIES


def is_key(name: str) -> bool:
    """Whether it has keys."""
    return name.rpartition(".")[2] in _KEYS


def scored(name: str, config: _core.Config) -> str:
    """Name what scores are computed from, of a query's or key's activation: after rotary embedding and norms.

    Raises
    ------
    ValueError
        Where one head's part of it is not made of that head's part alone.
    """
    block, _, short = name.rpartition(".")
    which = "q" if is_query(name) else "k"
    after = f"{block}.hook_{which}_normed" if config.qk_norm == "head_after_rope" else f"{block}.hook_rot_{which}"
    if config.qk_norm == "full" and short == f"hook_{which}":
        raise ValueError(
            f"attribution_patch: in {name!r} all heads share a norm: with qk_correction ask for {f'rot_{which}'!r}"
        )
    return after


def needed(name: str, config: _core.Config) -> list[str]:
    """Name the activations of both runs that the correction of one takes."""
    block = name.rpartition(".")[0]
    return [scored(f"{block}.hook_rot_{which}", config) for which in "qk"]


@dataclass(frozen=True)
class Attention:
    """A layer's attention in the run that is patched, and the gradient of a metric with respect to its pattern.

    Attributes
    ----------
    q, k : array [B, T, heads, head_dim]
        What scores are computed from.
    visible : array [B, n_heads, T, T] of bool
        Which keys a query sees.
    gradient : array [B, n_heads, T, T]
    factor, cap : float
        Scores are cap * tanh(q . k * factor / cap); without a cap (0), q . k * factor.
    sinks : array [n_heads], optional
        What the softmax has beside the keys.
    """

    q: Array
    k: Array
    visible: NDArray[np.bool_]
    gradient: Array
    factor: float
    cap: float
    sinks: Array | None

    @classmethod
    def of(
        cls,
        name: str,
        config: _core.Config,
        arrays: Mapping[str, Array],
        gradients: Mapping[str, Array],
        sinks: Array | None,
    ) -> Attention:
        """Take it from what a run has, for the layer of an activation."""
        block = name.rpartition(".")[0]
        q, k = (arrays[own] for own in needed(name, config))
        return cls(
            q,
            k,
            np.isfinite(arrays[f"{block}.hook_attn_scores"]),
            gradients[f"{block}.hook_pattern"],
            config.attention_multiplier or config.head_dim**-0.5,
            config.score_cap,
            sinks,
        )

    def of_queries(self, q: Array) -> Wide:
        """Give what each query of another run does, [B, T, n_heads]: its row of the pattern changes, and no other."""
        change = self._pattern(self._scores(q, self.k)) - self._pattern(self._scores(self.q, self.k))
        product: Wide = (change * self.gradient).sum(axis=-1).swapaxes(1, 2)
        return product

    def of_all_keys(self, k: Array) -> Wide:
        """Give what all keys of another run do together, by the positions of queries, [B, T, n_kv_heads]."""
        change = self._pattern(self._scores(self.q, k)) - self._pattern(self._scores(self.q, self.k))
        product: Wide = (change * self.gradient).sum(axis=-1)
        return self._by_kv_head(product)

    def of_each_key(self, k: Array) -> Wide:
        """Give what each key of another run does alone, [B, T, n_kv_heads]: rows of all later queries change."""
        before, after = self._scores(self.q, self.k), self._scores(self.q, k)
        gradient = np.where(self.visible, self.gradient, 0.0).astype(np.float64)
        top = np.maximum(before, after).max(axis=-1, keepdims=True)
        rest = np.zeros_like(top)
        if self.sinks is not None:
            sinks = self.sinks.astype(np.float64)[:, None, None]
            top = np.maximum(top, sinks)
            rest = np.exp(sinks - top)
        e, changed = np.exp(before - top), np.exp(after - top)
        sums, means = _without_each(e) + rest, _without_each(e * gradient)
        own = (e * gradient).sum(axis=-1, keepdims=True) / (e.sum(axis=-1, keepdims=True) + rest)
        total = sums + changed
        ratio = np.divide(means + gradient * changed, total, out=np.zeros_like(total), where=total > 0)
        product: Wide = np.where(self.visible, ratio - own, 0.0).sum(axis=-2)  # over queries
        return self._by_kv_head(product)

    def _by_kv_head(self, x: Wide) -> Wide:
        """Sum over the heads that share keys: [B, n_heads, T] -> [B, T, n_kv_heads]."""
        batch, heads, length = x.shape
        shared = self.k.shape[2]
        product: Wide = x.reshape(batch, shared, heads // shared, length).sum(axis=2).swapaxes(1, 2)
        return product

    def _scores(self, q: Array, k: Array) -> Wide:
        """Compute scores [B, n_heads, T, T], with -inf for what is not seen."""
        group = q.shape[2] // k.shape[2]
        queries = q.astype(np.float64).transpose(0, 2, 1, 3)
        keys = np.repeat(k.astype(np.float64).transpose(0, 2, 3, 1), group, axis=1)
        scores = queries @ keys * self.factor
        if self.cap:
            scores = self.cap * np.tanh(scores / self.cap)
        product: Wide = np.where(self.visible, scores, -np.inf)
        return product

    def _pattern(self, scores: Wide) -> Wide:
        top = scores.max(axis=-1, keepdims=True)
        rest = np.zeros_like(top)
        if self.sinks is not None:
            sinks = self.sinks.astype(np.float64)[:, None, None]
            top = np.maximum(top, sinks)
            rest = np.exp(sinks - top)
        e = np.exp(scores - top)
        product: Wide = e / (e.sum(axis=-1, keepdims=True) + rest)
        return product


def _without_each(x: Wide) -> Wide:
    """Sum the last axis without each of its numbers, by sums from both ends: nothing is subtracted."""
    before, after = np.zeros_like(x), np.zeros_like(x)
    np.cumsum(x[..., :-1], axis=-1, out=before[..., 1:])
    after[..., :-1] = np.cumsum(x[..., :0:-1], axis=-1)[..., ::-1]
    product: Wide = before + after
    return product
