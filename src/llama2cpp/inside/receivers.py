"""Gradients of a metric with respect to what each head's queries, keys and values, and each MLP, read.

As if every one of them read a residual stream of its own: what edge attribution multiplies with. All heads of queries
have keys and values of their own here, also where the model shares them (GQA).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import get_part
from .gradients import differentiate
from .places import find_places, residual_streams

if TYPE_CHECKING:
    from ..model import Model

Array: TypeAlias = NDArray[np.float32]
Metric: TypeAlias = Callable[[Any], Any]


class DifferentiatedRun:
    """A run of the layers from one on, and gradients of a metric of its logits.

    Parameters
    ----------
    model : Model
    ids : sequence of sequence of int
        Prompts [B][T].
    residual : array [B, T, dim]
        What enters at the layer `start`.
    metric : callable
        Of logits; gives a number and its gradient, or is PyTorch's to differentiate.
    names, gradient_names : sequence of str
        Activations and gradients that are kept.
    """

    def __init__(
        self,
        model: Model,
        ids: Sequence[Sequence[int]],
        residual: Array,
        metric: Metric,
        names: Sequence[str],
        gradient_names: Sequence[str],
        start: int = 0,
    ) -> None:
        self.model = model
        config = model.config
        streams = residual_streams(config)
        before = find_places("hook_embed", config)
        places = [p for p in find_places([*names, *streams], config) if p[1] >= start and p not in before]
        rows = [(model._core.session(), list(own)) for own in ids]
        residual = np.ascontiguousarray(residual, dtype=np.float32)
        [(logits, self.activations)] = model._core.run_with_cache(rows, places, None, None, None, start, residual, True)
        assert logits is not None
        self.value, dlogits = differentiate(metric, logits)
        # Layers before the first are not gone back through: any stream will do for them.
        held = {name: self.activations.get(name, residual) for name in streams}
        self.gradients: dict[str, Array] = model._gradients(ids, dlogits, gradient_names, None, (), held)


def activation_names(config: _core.Config) -> list[str]:
    """Name what `by_receiver` reads of a run, beside the residual stream."""
    names = [] if config.norm_places == "after" else ["blocks.*.ln1.hook_scale", "blocks.*.ln1.hook_normalized"]
    if config.qk_norm != "none":
        names += ["rot_q", "rot_k"] if config.qk_norm == "head_after_rope" else ["q", "k"]
    if config.n_kv_heads < config.n_heads:
        names += [_scored("q", config), "pattern", *(["attn_scores"] if config.score_cap else [])]
    return names


def gradient_names(config: _core.Config) -> list[str]:
    """Name the gradients that `by_receiver` reads of a run."""
    names = ["resid_pre", "resid_post", *([] if config.parallel else ["resid_mid"]), _scored("q", config)]
    return [*names, *(["attn_scores", "z"] if config.n_kv_heads < config.n_heads else [_scored("k", config), "v"])]


def _scored(which: str, config: _core.Config) -> str:
    """Name the queries or keys that scores are made of."""
    return f"{which}_normed" if config.qk_norm == "head_after_rope" else f"rot_{which}"


def by_receiver(run: DifferentiatedRun, layer: int) -> Array:
    """Give gradients of what a layer's receivers read: [n_heads * 3 + 1, B, T, dim], q, k, v of each head, then MLP."""
    own = _Layer(run, layer)
    config = run.model.config
    parts = [own.through_norm(own.queries()), own.through_norm(own.keys()), own.through_norm(own.values())]
    heads = np.stack(parts, axis=1).reshape(3 * config.n_heads, *parts[0].shape[1:])
    before, after = own.gradient("hook_resid_pre"), own.gradient("hook_resid_post")
    mlp = before - after - heads.sum(axis=0) if config.parallel else own.gradient("hook_resid_mid") - after
    return np.concatenate([heads, mlp[None]])


class _Layer:
    """The arithmetic of one layer, from what a run has of it, [B, T, heads, head_dim]."""

    def __init__(self, run: DifferentiatedRun, layer: int) -> None:
        self.run, self.layer, self.config = run, layer, run.model.config
        self.group = self.config.n_heads // self.config.n_kv_heads
        self._angles: tuple[Array, Array] | None = None  # cosines and sines [T, 1, half]

    def activation(self, name: str) -> Array:
        return self.run.activations[f"blocks.{self.layer}.{name}"]

    def gradient(self, name: str) -> Array:
        return self.run.gradients[f"blocks.{self.layer}.{name}"]

    def weight(self, name: str) -> Array:
        return np.asarray(self.run.model.weights[f"blocks.{self.layer}.{name}"])

    def queries(self) -> Array:
        """[n_heads, B, T, dim]: of what each head's queries are made of."""
        return self._back(self.gradient(f"attn.hook_{_scored('q', self.config)}"), "q", range(self.config.n_heads))

    def keys(self) -> Array:
        """[n_heads, B, T, dim]: of what each head's keys are made of."""
        config = self.config
        if self.group == 1:
            d = self.gradient(f"attn.hook_{_scored('k', config)}")
        else:
            scores = self.gradient("attn.hook_attn_scores")
            if config.score_cap:
                capped = np.where(scores == 0, 0, self.activation("attn.hook_attn_scores"))
                scores = scores * (1 - np.square(capped / np.float32(config.score_cap)))
            queries = self.activation(f"attn.hook_{_scored('q', config)}")
            d = np.einsum("bhqk,bqhe->bkhe", scores, queries, optimize=True)
            d = d * np.float32(config.attention_multiplier or config.head_dim**-0.5)
        return self._back(d, "k", [head // self.group for head in range(config.n_heads)])

    def values(self) -> Array:
        """[n_heads, B, T, dim]: of what each head's values are made of."""
        if self.group == 1:
            d = self.gradient("attn.hook_v")
        else:
            d = np.einsum(
                "bhqk,bqhe->bkhe", self.activation("attn.hook_pattern"), self.gradient("attn.hook_z"), optimize=True
            )
        return self._projected(d, "V")

    def _back(self, d: Array, which: str, of: Sequence[int]) -> Array:
        """From what scores read, d [B, T, n_heads, head_dim], to what the projection read; `of`: whose head each is."""
        kind = self.config.qk_norm
        if kind == "head_after_rope":
            d = self._through_head_norm(d, f"attn.hook_rot_{which}", which, of)
        d = self._turned_back(d)
        if kind == "head":
            d = self._through_head_norm(d, f"attn.hook_{which}", which, of)
        elif kind == "full":
            return self._through_full_norm(d, which, of)
        return self._projected(d, which.upper())

    def _turned_back(self, d: Array) -> Array:
        """Through rotary embedding: by the same angles the other way."""
        if self.layer in self.config.no_rope_layers:
            return d
        if self._angles is None:
            cos, sin = self.run.model.session()._core.rotary(d.shape[1], self.layer)
            self._angles = cos[:, None], sin[:, None]
        cos, sin = self._angles
        half = cos.shape[-1]
        a, b, rest = d[..., :half], d[..., half : 2 * half], d[..., 2 * half :]
        return np.concatenate([a * cos + b * sin, b * cos - a * sin, rest], axis=-1)

    def _through_head_norm(self, d: Array, read: str, which: str, of: Sequence[int]) -> Array:
        x = self.activation(read)[..., list(of), :]
        scale = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        return _norm_gradient(d * self.weight(f"attn.{which}_norm.w"), x / scale, scale)

    def _through_full_norm(self, d: Array, which: str, of: Sequence[int]) -> Array:
        """Of a norm over all heads at once: a head's gradient goes back to all of them. [n_heads, B, T, dim]."""
        x = self.activation(f"attn.hook_{which}")  # [B, T, heads, head_dim]
        flat = x.reshape(*x.shape[:2], -1)
        scale = np.sqrt(np.square(flat).mean(axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        gain = self.weight(f"attn.{which}_norm.w").reshape(x.shape[2:])
        weights = self.weight(f"attn.W_{which.upper()}")  # [heads, dim, head_dim]
        matrix = np.moveaxis(weights, 1, 2).reshape(flat.shape[-1], -1)
        out = []
        for head, own in enumerate(of):
            alone = np.zeros_like(x)
            alone[..., own, :] = d[..., head, :] * gain[own]
            out.append(_norm_gradient(alone.reshape(flat.shape), flat / scale, scale) @ matrix)
        return np.stack(out)

    def _projected(self, d: Array, which: str) -> Array:
        """From d [B, T, n_heads, head_dim] through W_Q, W_K or W_V: [n_heads, B, T, dim]."""
        weights = self.weight(f"attn.W_{which}")
        weights = np.repeat(weights, self.config.n_heads // len(weights), axis=0)
        return np.stack([d[..., head, :] @ w.T for head, w in enumerate(weights)])

    def through_norm(self, d: Array) -> Array:
        """Through the norm before attention, where there is one: d [..., B, T, dim]."""
        config = self.config
        if config.norm_places == "after":
            return d
        gain = f"blocks.{self.layer}.{get_part('attention_norm').lens}"
        if gain in self.run.model.weights:
            d = d * np.asarray(self.run.model.weights[gain])
        d = _norm_gradient(d, self.activation("ln1.hook_normalized"), self.activation("ln1.hook_scale"))
        return d if config.norm == "rms" else d - d.mean(axis=-1, keepdims=True)


def _norm_gradient(d: Array, normalized: Array, scale: Array) -> Array:
    """From the gradient of x / scale to that of x."""
    return np.asarray((d - normalized * (d * normalized).mean(axis=-1, keepdims=True)) / scale, dtype=np.float32)


def receivers_of(config: _core.Config) -> list[str]:
    """Name all receivers, in the order of the forward."""
    names = []
    for layer in range(config.n_layers):
        names += [f"a{layer}.h{head}<{part}>" for head in range(config.n_heads) for part in "qkv"]
        names.append(f"m{layer}")
    return [*names, "logits"]


def senders_of(config: _core.Config) -> list[str]:
    """Name all senders, in the order of the forward."""
    names = ["input"]
    for layer in range(config.n_layers):
        names += [f"a{layer}.h{head}" for head in range(config.n_heads)]
        names.append(f"m{layer}")
    return names


def reach(config: _core.Config) -> dict[str, int]:
    """Count the senders, of those in their order, that each receiver hears."""
    counts: dict[str, int] = {}
    each = config.n_heads + 1
    for layer in range(config.n_layers):
        for head in range(config.n_heads):
            counts |= {f"a{layer}.h{head}<{part}>": 1 + layer * each for part in "qkv"}
        counts[f"m{layer}"] = 1 + layer * each + (0 if config.parallel else config.n_heads)
    return counts | {"logits": 1 + config.n_layers * each}


def sent(model: Model, arrays: Mapping[str, Array]) -> Array:
    """Stack what each sender of a run adds to the residual stream: [senders, B, T, dim].

    `arrays` has the run's ``hook_embed``, ``z`` and ``mlp_out``, and the divisors of norms after attention.
    """
    parts = [arrays["hook_embed"][None]]
    for layer in range(model.config.n_layers):
        parts += [heads_of(model, arrays, layer), arrays[f"blocks.{layer}.hook_mlp_out"][None]]
    return np.concatenate(parts)


def heads_of(model: Model, arrays: Mapping[str, Array], layer: int) -> Array:
    """Stack what each head of a layer adds to the residual stream: [n_heads, B, T, dim]."""
    from .cache import ActivationCache

    return ActivationCache(arrays, model)._added_by_heads(layer, None)


def sent_names(config: _core.Config) -> list[str]:
    """Name what `sent` reads of a run."""
    names = ["hook_embed", "z", "mlp_out"]
    return names if config.norm_places == "before" else [*names, "blocks.*.ln1_post.hook_scale"]
