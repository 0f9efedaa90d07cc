"""Interventions: changes of activations that run in C++, without Python in the loop and without the GIL.

Each function here makes one. They stand in the lists of `Model.hooks`, `Session.hooks` and `Model.run_with_hooks`
beside Python hooks, act in the same order, and give the bits that a hook which says the same in NumPy gives.

All take the same address, by keyword:

layer : int or sequence of int
    For names that several layers have ("z"): which of them. Negative counts from the end.
head : int or sequence of int
    For activations that have heads: which of them.
position : int or sequence of int
    Which tokens, counted from the beginning of the sequence; for scores and patterns the queries. Negative counts from
    the end of the tokens of a call, so that -1 is the last token of a prompt, and then each token of `generate`.
neuron : int or sequence of int
    Which numbers of the last axis: neurons of ``hook_post``, dimensions of the residual stream; for scores and patterns
    the keys.

What is not given stands for all. Positions and keys that a call does not have are passed over.

A name, head, layer or neuron that the model has not, and a value of another shape, are a ValueError where the
intervention is switched on: that is where the model is known.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import interventions
>>> model = llama2cpp.load("storyteller")
>>> with model.hooks([interventions.zero("z", layer=1, head=[0, 4]), interventions.scale("mlp_out", 1.1, layer=-1)]):
...     text = model.generate("Once upon a time", max_tokens=8)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .common.arguments import checked, float_array, integers
from .inside.cache import ActivationCache
from .inside.places import Names, Place, find_places, name_of

Index: TypeAlias = int | Sequence[int] | NDArray[np.integer[Any]] | None
Compiled: TypeAlias = list[tuple[list[Place], _core.Intervention]]

__all__ = ["Intervention", "add", "mask_pattern", "mean", "patch_from", "project_out", "scale", "set", "zero"]


@dataclass(frozen=True, eq=False, slots=True)
class Intervention:
    """A change of activations, made by one of the functions of this module.

    Attributes
    ----------
    change : str
        The core's word for what is done: "set", "scale", "add", "project_out", "mask" or "patch".
    names : str, sequence of str, or predicate
        To which activations, as in `Model.run_with_cache`.
    layer, head, position, neuron : int, sequence of int, or None
        To what of them; see the module.
    value : number, array or ActivationCache
        By what; a cache for "patch", and for means that are taken from it.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> interventions.zero("z", layer=0, head=3)
    Intervention(set z, layer=0, head=3)
    """

    change: str
    names: Names
    layer: Index = None
    head: Index = None
    position: Index = None
    neuron: Index = None
    value: Any = None

    def __repr__(self) -> str:
        name = self.names if isinstance(self.names, str) else repr(self.names)
        parts = [f"{self.change} {name}"]
        for part in ("layer", "head", "position", "neuron"):
            if getattr(self, part) is not None:
                parts.append(f"{part}={getattr(self, part)}")
        return f"Intervention({', '.join(parts)})"

    def compile(self, config: _core.Config) -> Compiled:
        """Find the places in a model, check that they have what is addressed, and make the core's form of it.

        Parameters
        ----------
        config : Config
            The model's.

        Returns
        -------
        list of (list of places, core's intervention)

        Raises
        ------
        ValueError
            For names that no activation has, heads, layers or neurons that it has not, and values of another shape.

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp import interventions
        >>> model = llama2cpp.load("storyteller")
        >>> len(interventions.zero(["z", "mlp_out"]).compile(model.config))
        2
        """
        places = find_places(self.names, config)
        if self.layer is not None:
            layers = _indices(self.layer, config.n_layers, "layer")
            places = [place for place in places if place[1] in layers]
        if not places:
            raise ValueError(f"{self!r} names no activation")
        if self.change == "patch" or isinstance(self.value, Mapping):  # the numbers are each place's own
            return [([place], self._at(place, config)) for place in places]
        points = dict.fromkeys(point for point, _ in places)
        return [
            (of_point, self._at(of_point[0], config))
            for of_point in ([place for place in places if place[0] == point] for point in points)
        ]

    def _at(self, place: Place, config: _core.Config) -> _core.Intervention:
        name = name_of(place, config)
        heads, width = _core.point_shape(place[0], config)  # 0 heads: it has none; width 0: as many as there are keys
        if self.head is not None and heads == 0:
            raise ValueError(f"{self!r}: {name} has no heads")
        chosen_heads = [] if self.head is None else _indices(self.head, heads, "head")
        if self.neuron is None:
            neurons = []
        elif width > 0:
            neurons = _indices(self.neuron, width, "neuron")
        else:
            neurons = _as_list(self.neuron)
            if min(neurons, default=0) < 0:
                raise ValueError(f"{self!r}: a key is {min(neurons)}, expected 0 or more")
        positions = [] if self.position is None else _as_list(self.position)
        shape = (len(chosen_heads) or max(heads, 1), len(neurons) or width or 1)
        if self.change == "patch":
            values, positions = self._from_cache(name, positions, chosen_heads, neurons, heads)
            change = "set"
        else:
            values = self._values(name, shape, heads > 0, len(positions), bool(neurons) or width > 0)
            change = self.change
        return _core.Intervention(change, chosen_heads, positions, neurons, values)

    def _values(
        self, name: str, shape: tuple[int, int], by_head: bool, n_positions: int, wide: bool
    ) -> NDArray[np.float64]:
        """Make the value [positions or 1, heads or 1, neurons or 1]."""
        value = self.value
        if isinstance(value, ActivationCache):
            value = self._mean_of(value, name)
        if self.change == "project_out" and np.ndim(value) == 0:
            raise ValueError(f"{self!r}: the direction is a number, expected an array")
        exact = self.change == "project_out"
        value = float_array(value, np.float64) if exact else float_array(value).astype(np.float64)
        if exact:
            length = np.sqrt(np.cumsum(value * value, axis=-1)[..., -1:])
            if not np.isfinite(length).all() or (length == 0).any():
                raise ValueError(f"{self!r}: the direction is zero or not finite")
            value = value / length
        if value.ndim == 0:
            return np.full((1, 1, 1), value)
        # The last axes are those of the activation, and there may be one for positions before them.
        own = shape if by_head else shape[1:]
        expected = (n_positions, *own) if n_positions > 1 and value.ndim > len(own) else own
        try:
            if not wide:
                raise ValueError
            full = np.broadcast_to(value, expected)
        except ValueError:
            raise ValueError(
                f"{self!r}: the value has shape {value.shape}, which does not stand for {list(expected)} of {name}"
            ) from None
        if full.ndim == len(own):
            full = full[None]
        return np.ascontiguousarray(full if by_head else full[:, None])

    def _mean_of(self, cache: ActivationCache, name: str) -> NDArray[np.float32]:
        """Take the mean of a place over a cache's prompts and positions, for what is addressed."""
        if name.endswith(("hook_pattern", "hook_attn_scores")):
            raise ValueError(f"{self!r}: patterns of different tokens have no mean")
        array = cache[name]
        axes = (0, 1) if cache.has_batch_dim else (0,)
        mean = array.astype(np.float64).mean(axis=axes)
        if self.head is not None:
            mean = mean[_indices(self.head, mean.shape[0], "head")]
        if self.neuron is not None:
            mean = mean[..., _indices(self.neuron, mean.shape[-1], "neuron")]
        return np.asarray(mean, dtype=np.float32)

    def _from_cache(
        self, name: str, positions: list[int], heads: list[int], neurons: list[int], n_heads: int
    ) -> tuple[NDArray[np.float64], list[int]]:
        """Cut the addressed part out of a cache's activation, as [positions, heads, neurons], and its positions."""
        cache: ActivationCache = self.value
        array = cache[name]
        if cache.has_batch_dim:
            if array.shape[0] != 1:
                raise ValueError(f"{self!r}: the cache has {array.shape[0]} prompts, expected one")
            array = array[0]
        if name.endswith(("hook_pattern", "hook_attn_scores")):
            array = array.swapaxes(0, 1)  # [T, heads, keys]
        elif n_heads == 0:
            array = array[:, None]
        there = list(range(array.shape[0])) if cache.positions is None else [int(p) for p in cache.positions]
        rows = [row for row, position in enumerate(there) if not positions or position in positions]
        missing = [position for position in positions if position not in there]
        if missing:
            raise ValueError(f"{self!r}: the cache has no position {missing[0]}")
        array = array[rows]
        if heads:
            array = array[:, heads]
        if neurons:
            array = array[..., neurons]
        return np.ascontiguousarray(array, dtype=np.float64), [there[row] for row in rows]


@checked
def zero(
    names: Names, *, layer: Index = None, head: Index = None, position: Index = None, neuron: Index = None
) -> Intervention:
    """Set activations to 0.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    layer, head, position, neuron
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> logits = model.run_with_hooks("Once upon a time", [interventions.zero("z", layer=0, head=[3, 5])])
    """
    return Intervention("set", names, layer, head, position, neuron, 0.0)


@checked
def set(
    names: Names,
    value: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
) -> Intervention:
    """Set activations to a value.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    value : number or array
        One number, or an array that NumPy can broadcast to what is addressed of one token: [neurons], or
        [heads, neurons]; with several positions also [positions, ...].
    layer, head, position, neuron
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> neuron = interventions.set("post", 3.0, layer=2, neuron=17)
    >>> logits = model.run_with_hooks("Once upon a time", [neuron])
    """
    return Intervention("set", names, layer, head, position, neuron, value)


@checked
def scale(
    names: Names,
    factor: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
) -> Intervention:
    """Multiply activations.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    factor : number or array
        As the value in `set`.
    layer, head, position, neuron
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> with model.hooks([interventions.scale("attn_out", 0.5, layer=-1)]):
    ...     text = model.generate("Once upon a time", max_tokens=8)
    """
    return Intervention("scale", names, layer, head, position, neuron, factor)


@checked
def add(
    names: Names,
    value: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
) -> Intervention:
    """Add to activations: steering, if it is a direction of the residual stream.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    value : number or array
        As in `set`.
    layer, head, position, neuron
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> happy, cache = model.run_with_cache("happy", "resid_post2")
    >>> direction = cache["resid_post", 2][0, -1]
    >>> with model.hooks([interventions.add("resid_post2", direction)]):
    ...     text = model.generate("Once upon a time", max_tokens=8)
    """
    return Intervention("add", names, layer, head, position, neuron, value)


@checked
def mean(
    names: Names,
    value: ArrayLike | ActivationCache,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
) -> Intervention:
    """Set activations to a mean: ablation that leaves what is always there.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    value : array or ActivationCache
        The mean, as the value in `set`; or a cache, of which it is the mean over prompts and positions (taken in double
        precision and rounded).
    layer, head, position, neuron
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache("The dog sat on a mat.", "z0")
    >>> logits = model.run_with_hooks("Once upon a time", [interventions.mean("z0", cache, head=3)])
    """
    return Intervention("set", names, layer, head, position, neuron, value)


@checked
def project_out(
    names: Names,
    direction: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
) -> Intervention:
    """Take away what activations have along a direction: x - (x . v) v, with v of length 1.

    The sum runs over the last axis in order, in double precision, and the difference is rounded once.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    direction : array
        [neurons], or [heads, neurons] for one of each head; of any length but 0.
    layer, head, position, neuron
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> direction = model.weights["tok_embeddings.weight"][260]
    >>> logits = model.run_with_hooks("Once upon a time", [interventions.project_out("resid_post", direction)])
    """
    return Intervention("project_out", names, layer, head, position, neuron, direction)


@checked
def patch_from(
    cache: ActivationCache,
    names: Names,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
) -> Intervention:
    """Set activations to those of another run, each position to the same position there.

    Parameters
    ----------
    cache : ActivationCache
        Of one prompt. Positions that it does not have are left alone.
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`; the cache must have them.
    layer, head, position, neuron
        What of it; see the module. Positions are counted from the beginning only.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> other, cache = model.run_with_cache("Once upon a day")
    >>> patched = model.run_with_hooks("Once upon a time", [interventions.patch_from(cache, "resid_pre3", position=4)])
    >>> bool((patched[0, 4] == other[0, 4]).all())  # the tokens before it are the same
    True
    """
    return Intervention("patch", names, layer, head, position, neuron, cache)


@checked
def mask_pattern(
    key: Index, *, layer: Index = None, head: Index = None, position: Index = None, names: Names = "pattern"
) -> Intervention:
    """Forbid attention to some keys: their weight becomes 0, and those of the other keys are divided by what is left.

    It is what a score of -inf would give, but where nothing is left the weights are 0 and not NaN. The sum runs over
    the keys in order, in double precision.

    Parameters
    ----------
    key : int or sequence of int
        Positions that must not be looked at, counted from the beginning of the sequence.
    layer, head, position
        Where; see the module. Positions are the queries, those that look.
    names : str, sequence of str, or predicate
        Other names for the same patterns, such as "blocks.[0-3].attn.hook_pattern".

    Returns
    -------
    Intervention

    Raises
    ------
    ValueError
        If `key` is None.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller")
    >>> with model.hooks([interventions.mask_pattern(2, layer=0)]):
    ...     logits, cache = model.run_with_cache("Once upon a time", "pattern0")
    >>> bool((cache["pattern", 0][..., 2] == 0).all())
    True
    """
    if key is None:
        raise ValueError("key is None, expected positions")
    return Intervention("mask", names, layer, head, position, key, 0.0)


def _as_list(index: Index) -> list[int]:
    given = integers(index, "an index", "Intervention")
    return [int(i) for i in np.atleast_1d(np.asarray(given, dtype=np.int64))]


def _indices(index: Index, count: int, what: str) -> list[int]:
    """Give indices from 0 on, each below `count`."""
    given = _as_list(index)
    for i in given:
        if not -count <= i < count:
            raise ValueError(f"{what} is {i}, expected {-count} to {count - 1}")
    return [i % count for i in given]
