"""Runs in which receivers hear only some senders as the run has them, and all others as another run has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .places import find_places
from .receivers import heads_of, reach, senders_of

if TYPE_CHECKING:
    from ..model import Model

Array: TypeAlias = NDArray[np.float32]

_TOKENS = 512  # of a pass


class CircuitRun:
    """The model with one way from each sender to each receiver, layer by layer.

    What a receiver reads is the residual stream, in which all senders that it is not to hear are replaced by those of
    the other run. Heads of one layer read different streams, so a layer is run once for each that is different.

    Parameters
    ----------
    model : Model
    ids : sequence of sequence of int
        Prompts [B][T].
    embed : array [B, T, dim]
        Their ``hook_embed``.
    other : array [senders, B, T, dim]
        What all senders add to the stream in the other run.
    """

    def __init__(self, model: Model, ids: Sequence[Sequence[int]], embed: Array, other: Array) -> None:
        self.model, self.config = model, model.config
        self.ids = [list(own) for own in ids]
        self.embed, self.other = embed, other
        self._senders = senders_of(self.config)
        self._reach = reach(self.config)

    def logits(self, edges: Iterable[tuple[str, str]]) -> Array:
        """Run with these edges, of sender and receiver: logits [B, T, vocab_size]."""
        heard: dict[str, set[int]] = {}
        number = {name: i for i, name in enumerate(self._senders)}
        for sender, receiver in edges:
            heard.setdefault(receiver, set()).add(number[sender])
        own = np.empty_like(self.other)
        own[0] = self.embed
        stream = self.embed
        for layer in range(self.config.n_layers):
            first = 1 + layer * (self.config.n_heads + 1)
            z = self._heads(layer, stream, heard, own)
            after = self._attention(layer, stream, z)
            own[first : first + self.config.n_heads] = heads_of(self.model, after, layer)
            added = after[f"blocks.{layer}.hook_attn_out"]
            read = stream if self.config.parallel else stream + added
            mlp = self._mlp(layer, self._read(f"m{layer}", read, heard, own))
            own[first + self.config.n_heads] = mlp
            # in the order of the engine's own sums
            stream = read + mlp + added if self.config.parallel else read + mlp
        last = self._read("logits", stream, heard, own)
        [(logits, _)] = self._run(self.config.n_layers, last[None], [], logits=True)
        assert logits is not None
        return logits

    def _missing(self, receiver: str, heard: Mapping[str, set[int]]) -> tuple[int, ...]:
        hears = heard.get(receiver, set())
        return tuple(i for i in range(self._reach[receiver]) if i not in hears)

    def _read(self, receiver: str, stream: Array, heard: Mapping[str, set[int]], own: Array) -> Array:
        return self._replaced(self._missing(receiver, heard), stream, own)

    def _replaced(self, missing: Sequence[int], stream: Array, own: Array) -> Array:
        if not missing:
            return stream
        at = list(missing)
        return np.asarray(stream + (self.other[at] - own[at]).sum(axis=0), dtype=np.float32)

    def _heads(self, layer: int, stream: Array, heard: Mapping[str, set[int]], own: Array) -> Array:
        """Make ``hook_z`` [B, T, n_heads, head_dim], each head's of what it reads."""
        heads = range(self.config.n_heads)
        hears = [tuple(self._missing(f"a{layer}.h{head}<{part}>", heard) for part in "qkv") for head in heads]
        streams = list(dict.fromkeys(itertools.chain.from_iterable(hears)))
        number = {missing: i for i, missing in enumerate(streams)}
        read = np.stack([self._replaced(missing, stream, own) for missing in streams])
        parts = [f"blocks.{layer}.attn.hook_{part}" for part in "qkv"]
        made = self._arrays(layer, read, parts)
        kinds = list(dict.fromkeys(hears))
        changes = [
            {part: made[part][number[missing]] for part, missing in zip(parts, kind, strict=True)} for kind in kinds
        ]
        z = f"blocks.{layer}.attn.hook_z"
        all_z = self._arrays(layer, np.broadcast_to(stream, (len(kinds), *stream.shape)), [z], changes)[z]
        return np.stack([all_z[kinds.index(hears[head])][:, :, head] for head in heads], axis=2)

    def _attention(self, layer: int, stream: Array, z: Array) -> dict[str, Array]:
        name = f"blocks.{layer}.attn.hook_z"
        names = [name, f"blocks.{layer}.hook_attn_out"]
        names += [] if self.config.norm_places == "before" else [f"blocks.{layer}.ln1_post.hook_scale"]
        return {found: array[0] for found, array in self._arrays(layer, stream[None], names, [{name: z}]).items()}

    def _mlp(self, layer: int, read: Array) -> Array:
        name = f"blocks.{layer}.hook_mlp_out"
        change = {} if self.config.parallel else {f"blocks.{layer}.hook_resid_mid": read}
        [added] = self._arrays(layer, read[None], [name], [change])[name]
        return np.asarray(added)

    def _arrays(
        self, layer: int, residuals: Array, names: list[str], changes: Sequence[Mapping[str, Array]] = ()
    ) -> dict[str, Array]:
        """Run one layer on several streams [n, B, T, dim], each with changes of its own: [n, B, T, ...] by name."""
        at_once = max(1, _TOKENS // (residuals.shape[1] * residuals.shape[2]))
        found: list[dict[str, Array]] = []
        for first in range(0, len(residuals), at_once):
            some = slice(first, first + at_once)
            [(_, arrays)] = self._run(layer, residuals[some], names, changes[some])
            found.append(arrays)
        shape = residuals.shape[1:2]
        return {
            name: np.concatenate([part[name] for part in found]).reshape(-1, *shape, *found[0][name].shape[1:])
            for name in found[0]
        }

    def _run(
        self,
        layer: int,
        residuals: Array,
        names: list[str],
        changes: Sequence[Mapping[str, Array]] = (),
        *,
        logits: bool = False,
    ) -> list[tuple[Array | None, dict[str, Array]]]:
        core, batch = self.model._core, len(self.ids)
        count = len(residuals) * batch
        hooks = _core.CallHooks(core, [None] * count)
        everywhere = list(range(residuals.shape[2]))
        for i, own in enumerate(changes):
            for name, array in own.items():
                places = _core.Places(find_places(name, self.config), self.config)
                for b in range(batch):
                    values = np.ascontiguousarray(array[b], dtype=np.float64)
                    values = values if values.ndim == 3 else values[:, None]
                    change = _core.Intervention("set", [], everywhere, [], values)
                    hooks.add_intervention(places, change, i * batch + b)
        rows = [(core.session(), ids) for _, ids in itertools.product(range(len(residuals)), self.ids)]
        flat = np.ascontiguousarray(residuals.reshape(count, *residuals.shape[2:]), dtype=np.float32)
        stop = None if logits else layer + 1
        return core.run_with_cache(rows, find_places(names, self.config), None, stop, hooks, layer, flat, logits)
