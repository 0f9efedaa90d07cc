"""Hooks at what parts of a layer read: ``hook_mlp_in``, ``hook_attn_in``, ``hook_q_input`` and its two sisters.

The core has no such places, for which it would have to copy the residual stream for each part. A function there is
shown a copy of the stream, and what it makes of it is put through the norm, and for heads through their matrices, in
float32, and takes the place of what the core has computed. What it leaves alone stays as the core has it, to the bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import NORM_B
from .places import Place, find_places, part_inputs
from .weights import Weights, computed

Array: TypeAlias = NDArray[np.float32]
# (activation, name, layer, session, position), as the core calls it
Callback: TypeAlias = Callable[[Array, str, "int | None", Any, "int | None"], object]

_MATRICES = {"attn_in": "QKV", "q_input": "Q", "k_input": "K", "v_input": "V"}


def part_input_hooks(
    names: Iterable[str], function: Callback, core: _core.Model
) -> list[tuple[Sequence[Place], Callback]]:
    """Make what the core is to call for a function at such places.

    Parameters
    ----------
    names : iterable of str
        Of `places.part_inputs`.
    function : callable
        What is shown the input, [B, T, dim] or for heads [B, T, heads, dim].
    core : Model
        The core's.

    Returns
    -------
    list of (places, callable)

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> def drop(activation, hook):
    ...     print(hook.name, activation.shape)
    ...     return activation * 0
    >>> logits = model.run_with_hooks("Once upon a", [("mlp_in0", drop), ("blocks.4.hook_q_input", drop)])
    blocks.0.hook_mlp_in (1, 4, 192)
    blocks.4.hook_q_input (1, 4, 6, 192)
    """
    config = core.config
    found: list[tuple[Sequence[Place], Callback]] = []
    for name in names:
        source = part_inputs(config)[name]
        block, _, what = name.rpartition(".hook_")
        kind = _MlpInput if what == "mlp_in" else _HeadInput
        part = kind(name, block, what, function, core)
        found.append((find_places(source, config), part.look))
        found += [(find_places(place, config), part.replace) for place in part.replaced]
    return found


def multiplies(called: object) -> bool:
    """Whether what the core is to call puts an input through a model's own matrices."""
    return isinstance(getattr(called, "__self__", None), _HeadInput)


class _Input:
    """What a function has made of a part's input, until the core comes to the part."""

    replaced: tuple[str, ...] = ()

    def __init__(self, name: str, block: str, what: str, function: Callback, core: _core.Model) -> None:
        self.name, self.block, self.function = name, block, function
        self.config = core.config
        self.weights = computed(Weights(core))
        self.heads = self.config.n_heads if what in ("q_input", "attn_in") else self.config.n_kv_heads
        self._given: dict[tuple[int, int, str], Array] = {}  # by thread and session: calls may run beside each other

    def look(self, stream: Array, name: str, layer: int | None, session: Any, position: int | None) -> None:  # noqa: ANN401
        given = self.shown(stream)
        before = given.copy()
        result = self.function(given, self.name, layer, session, position)
        after = given if result is None else np.asarray(result, dtype=np.float32)
        if after.shape != before.shape:
            raise ValueError(
                f"a hook at {self.name!r} returned shape {list(after.shape)}, expected {list(before.shape)}"
            )
        for place in self.replaced:
            self._given.pop(self._key(session, place), None)
            if not np.array_equal(after, before):
                self._given[self._key(session, place)] = self.changed(after, before)

    def replace(
        self,
        activation: Array,
        name: str,
        layer: int | None,
        session: Any,  # noqa: ANN401
        position: int | None,
    ) -> Array | None:
        given = self._given.pop(self._key(session, name), None)
        return None if given is None else self.computed(given, activation, name)

    def _key(self, session: Any, place: str) -> tuple[int, int, str]:  # noqa: ANN401
        return threading.get_ident(), id(session), place

    def shown(self, stream: Array) -> Array:
        """Give what the function is shown: its own copy."""
        return np.array(stream)

    def changed(self, after: Array, before: Array) -> Array:
        """Give what is kept of it."""
        return np.array(after)

    def computed(self, given: Array, activation: Array, name: str) -> Array:
        """Give what the core is to go on with."""
        raise NotImplementedError

    def normed(self, x: Array) -> Array:
        """Divide by the norm's scale: [..., dim], in double precision."""
        wide = x.astype(np.float64)
        if self.config.norm != "rms":
            wide -= wide.mean(axis=-1, keepdims=True)
        return np.asarray(
            wide / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + self.config.norm_eps), np.float32
        )


class _MlpInput(_Input):
    def __init__(self, name: str, block: str, what: str, function: Callback, core: _core.Model) -> None:
        super().__init__(name, block, what, function, core)
        self.replaced = (f"{block}.ln2.hook_normalized",)

    def computed(self, given: Array, activation: Array, name: str) -> Array:
        return self.normed(given)


class _HeadInput(_Input):
    def __init__(self, name: str, block: str, what: str, function: Callback, core: _core.Model) -> None:
        super().__init__(name, block, what, function, core)
        self.replaced = tuple(f"{block}.attn.hook_{letter.lower()}" for letter in _MATRICES[what])

    def shown(self, stream: Array) -> Array:
        return np.asarray(np.repeat(stream[:, :, None], self.heads, axis=2))

    def changed(self, after: Array, before: Array) -> Array:
        """All heads, NaN where one is as it was."""
        kept = np.array(after)
        kept[np.broadcast_to((after == before).all(axis=(0, 1, 3))[:, None], kept.shape)] = np.nan
        return kept

    def computed(self, given: Array, activation: Array, name: str) -> Array:
        letter = name[-1].upper()
        heads = activation.shape[2]  # [B, T, heads, head_dim]
        out = np.array(activation)
        for head in range(heads):
            readers = given[:, :, head * (given.shape[2] // heads) : (head + 1) * (given.shape[2] // heads)]
            changed = [i for i in range(readers.shape[2]) if not np.isnan(readers[:, :, i]).all()]
            if not changed:
                continue
            if len(changed) < readers.shape[2] or not (readers == readers[:, :, :1]).all():
                raise ValueError(
                    f"a hook at {self.name!r} made different inputs for query heads that share the "
                    f"{'keys' if letter == 'K' else 'values'} of head {head}: hook_q_input, hook_k_input and "
                    "hook_v_input are apart"
                )
            out[:, :, head] = self.projected(readers[:, :, 0], letter, head)
        return out

    def projected(self, x: Array, letter: str, head: int) -> Array:
        normed: Array = self.normed(x)
        norm = f"{self.block}.ln1"
        if f"{norm}.w" in self.weights:
            normed = normed * self.weights[f"{norm}.w"]
        bias = f"{norm}.{NORM_B.lens.rpartition('.')[2]}"
        if bias in self.weights:
            normed = normed + self.weights[bias]
        out = normed @ self.weights.head(f"{self.block}.attn.W_{letter}", head)  # [B, T, head_dim]
        bias = f"{self.block}.attn.b_{letter}"
        return np.asarray(out + self.weights.head(bias, head) if bias in self.weights else out, dtype=np.float32)
