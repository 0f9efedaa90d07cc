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
when : str
    "prompt": only in calls that feed a prompt; "generated": only in those that feed tokens which were generated, as
    `generate` does after the prompt, and ``session.step``; a single token that `Model.forward` feeds to a session which
    has some is one of these. None: in all.

Where differences between runs are the result, open quantized models with ``load(..., precision="exact")``: by default
their activations are rounded to int8, which turns a tiny change into a coarse one.

What is not given stands for all. Positions and keys that a call does not have are passed over.

A name, head, layer or neuron that the model has not, and a value of another shape, are a ValueError where the
intervention is switched on: that is where the model is known.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import interventions
>>> model = llama2cpp.load("storyteller", precision="exact")
>>> with model.hooks([interventions.zero("z", layer=1, head=[0, 4]), interventions.scale("mlp_out", 1.1, layer=-1)]):
...     text = model.generate("Once upon a time", max_tokens=8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .common.arguments import checked, float_array, integers
from .inside.cache import ActivationCache
from .inside.places import Names, Place, find_places, is_pattern, name_of
from .inside.replacement import Array, Replacement

if TYPE_CHECKING:
    from .inside.hooks import HookPoint

Index: TypeAlias = int | Sequence[int] | NDArray[np.integer[Any]] | None
When: TypeAlias = Literal["prompt", "generated"]

__all__ = [
    "Intervention",
    "Replacement",
    "add",
    "mask_pattern",
    "mean",
    "patch_from",
    "project_out",
    "replace_with",
    "scale",
    "set",
    "zero",
]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an intervention that has numbers of its own, as the core takes it.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> len(interventions.zero("z", layer=[0, 2]).compile(model.config)[0].places)
    2
    """

    places: list[Place]
    change: _core.Intervention
    prompt: int | None = None  # for this prompt only,
    prompts: int | None = None  # of a call of so many


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
    when : str, optional
        In which calls; see the module.

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
    when: When | None = None

    def __post_init__(self) -> None:
        if self.when not in (None, "prompt", "generated"):
            raise ValueError(f"when is {self.when!r}, expected 'prompt', 'generated' or None")

    def __repr__(self) -> str:
        name = self.names if isinstance(self.names, str) else repr(self.names)
        parts = [f"{self.change} {name}"]
        for part in ("layer", "head", "position", "neuron", "when"):
            if getattr(self, part) is not None:
                parts.append(f"{part}={getattr(self, part)}")
        return f"Intervention({', '.join(parts)})"

    def compile(self, config: _core.Config) -> list[Part]:
        """Find the places in a model, check that they have what is addressed, and make the core's form of it.

        Parameters
        ----------
        config : Config
            The model's.

        Returns
        -------
        list of Part
            In the order in which they act.

        Raises
        ------
        ValueError
            For names that no activation has, heads, layers or neurons that it has not, and values of another shape.

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp import interventions
        >>> model = llama2cpp.load("storyteller", precision="exact")
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
            return [part for place in places for part in self._at([place], config)]
        points = dict.fromkeys(point for point, _ in places)
        return [
            part
            for of_point in ([place for place in places if place[0] == point] for point in points)
            for part in self._at(of_point, config)
        ]

    def _at(self, places: list[Place], config: _core.Config) -> list[Part]:
        place = places[0]
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
        if self.change == "patch":
            prompts, positions = self._from_cache(name, positions, chosen_heads, neurons, heads)
            changes = [_core.Intervention("set", chosen_heads, positions, neurons, values) for values in prompts]
            if len(changes) == 1:
                return [Part(places, changes[0])]
            return [Part(places, change, i, len(changes)) for i, change in enumerate(changes)]
        if self.position is not None and np.ndim(self.position) > 0:
            axes = [_Axis("positions", len(positions))]
        else:
            axes = [_Axis("positions", 1, taken=True)]
        axes.append(_Axis("heads", len(chosen_heads) or max(heads, 1), heads == 0 or _is_one(self.head)))
        one_neuron = _is_one(self.neuron) and self.change != "project_out"
        axes.append(_Axis("neurons", len(neurons) or width or 1, one_neuron))
        values = self._values(name, axes, bool(neurons) or width > 0)
        return [Part(places, _core.Intervention(self.change, chosen_heads, positions, neurons, values))]

    def _values(self, name: str, axes: list[_Axis], wide: bool) -> NDArray[np.float64]:
        """Make the value [positions or 1, heads or 1, neurons or 1]."""
        value = self.value
        if isinstance(value, ActivationCache):
            return self._mean_of(value, name).astype(np.float64)
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
        # As NumPy would assign to what is addressed: an int has taken its axis away. All three axes are taken, too.
        shown = axes if value.ndim == 3 else [axis for axis in axes if not axis.taken]
        expected = [axis.size for axis in shown]
        try:
            if not wide:
                raise ValueError
            full = np.broadcast_to(value, expected)
        except ValueError:
            raise ValueError(
                f"{self!r}: the value has shape {value.shape}, which does not stand for {expected} of {name}"
            ) from None
        meanings = _meanings(value.shape, shown)
        if len(meanings) > 1:
            raise ValueError(
                f"{self!r}: the value has shape {value.shape}, which could stand for {' or for '.join(meanings)} of "
                f"{name}: give it all axes, {' or '.join(meanings.values())}"
            )
        return np.ascontiguousarray(full.reshape([axis.size for axis in axes]))

    def _mean_of(self, cache: ActivationCache, name: str) -> NDArray[np.float32]:
        """Take the mean of a place over a cache's prompts and positions, for what is addressed."""
        if is_pattern(name):
            raise ValueError(f"{self!r}: patterns of different tokens have no mean")
        array = cache[name]
        axes = (0, 1) if cache.has_batch_dim else (0,)
        mean = array.astype(np.float64).mean(axis=axes)
        if self.head is not None:
            mean = mean[_indices(self.head, mean.shape[0], "head")]
        if self.neuron is not None:
            mean = mean[..., _indices(self.neuron, mean.shape[-1], "neuron")]
        return np.asarray(mean, dtype=np.float32).reshape(1, -1, mean.shape[-1])

    def _from_cache(
        self, name: str, positions: list[int], heads: list[int], neurons: list[int], n_heads: int
    ) -> tuple[NDArray[np.float64], list[int]]:
        """Cut what is addressed out of a cache's array, [prompts, positions, heads, neurons], and its positions."""
        cache: ActivationCache = self.value
        array = cache[name] if cache.has_batch_dim else cache[name][None]
        if is_pattern(name):
            array = array.swapaxes(1, 2)  # [prompts, T, heads, keys]
        elif n_heads == 0:
            array = array[:, :, None]
        there = list(range(array.shape[1])) if cache.positions is None else [int(p) for p in cache.positions]
        length = cache._length()
        row_of = {position: row for row, position in enumerate(there)}
        if length is not None:
            row_of |= {position - length: row for position, row in row_of.items()}
        positions = positions or there
        missing = [position for position in positions if position not in row_of]
        if missing:
            raise ValueError(f"{self!r}: the cache has no position {missing[0]}")
        array = array[:, [row_of[position] for position in positions]]
        if heads:
            array = array[:, :, heads]
        if neurons:
            array = array[..., neurons]
        return np.ascontiguousarray(array, dtype=np.float64), positions


@checked
def zero(
    names: Names,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Set activations to 0.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    layer, head, position, neuron, when
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> logits = model.run_with_hooks("Once upon a time", [interventions.zero("z", layer=0, head=[3, 5])])
    """
    return Intervention("set", names, layer, head, position, neuron, 0.0, when)


@checked
def set(
    names: Names,
    value: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Set activations to a value.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    value : number or array
        One number, or an array that NumPy could assign to what is addressed: [positions, heads, neurons], where
        `position` is a sequence, and the activation has heads. An int takes its axis away, and so does no `position`.
        One with fewer axes stands for the last ones; if it could stand for others as well, it is refused.
    layer, head, position, neuron, when
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> neuron = interventions.set("post", 3.0, layer=2, neuron=17)
    >>> logits = model.run_with_hooks("Once upon a time", [neuron])
    """
    return Intervention("set", names, layer, head, position, neuron, value, when)


@checked
def scale(
    names: Names,
    factor: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Multiply activations.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    factor : number or array
        As the value in `set`.
    layer, head, position, neuron, when
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> with model.hooks([interventions.scale("attn_out", 0.5, layer=-1)]):
    ...     text = model.generate("Once upon a time", max_tokens=8)
    """
    return Intervention("scale", names, layer, head, position, neuron, factor, when)


@checked
def add(
    names: Names,
    value: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Add to activations: steering, if it is a direction of the residual stream.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    value : number or array
        As in `set`.
    layer, head, position, neuron, when
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> happy, cache = model.run_with_cache("happy", "resid_post2")
    >>> direction = cache["resid_post", 2][0, -1]
    >>> with model.hooks([interventions.add("resid_post2", direction)]):
    ...     text = model.generate("Once upon a time", max_tokens=8)
    """
    return Intervention("add", names, layer, head, position, neuron, value, when)


@checked
def mean(
    names: Names,
    value: ArrayLike | ActivationCache,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Set activations to a mean: ablation that leaves what is always there.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    value : array or ActivationCache
        The mean, as the value in `set`; or a cache, of which it is the mean over prompts and positions (taken in double
        precision and rounded).
    layer, head, position, neuron, when
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> logits, cache = model.run_with_cache("The dog sat on a mat.", "z0")
    >>> logits = model.run_with_hooks("Once upon a time", [interventions.mean("z0", cache, head=3)])
    """
    return Intervention("set", names, layer, head, position, neuron, value, when)


@checked
def project_out(
    names: Names,
    direction: ArrayLike,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Take away what activations have along a direction: x - (x . v) v, with v of length 1.

    The sum runs over the last axis in order, in double precision, and the difference is rounded once.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`.
    direction : array
        [neurons], or [heads, neurons] for one of each head; of any length but 0.
    layer, head, position, neuron, when
        What of it; see the module.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> direction = model.weights["tok_embeddings.weight"][260]
    >>> logits = model.run_with_hooks("Once upon a time", [interventions.project_out("resid_post", direction)])
    """
    return Intervention("project_out", names, layer, head, position, neuron, direction, when)


@checked
def patch_from(
    cache: ActivationCache,
    names: Names,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    neuron: Index = None,
    when: When | None = None,
) -> Intervention:
    """Set activations to those of another run, each position to the same position there.

    Parameters
    ----------
    cache : ActivationCache
        Of one prompt; or of as many as the call has, of which prompt b gets row b (other numbers are a ValueError in
        the call). Positions that it does not have are left alone.
    names : str, sequence of str, or predicate
        As in `Model.run_with_cache`; the cache must have them.
    layer, head, position, neuron, when
        What of it; see the module. Negative positions count from the end of the call's tokens, and from that of the
        cache's: -1 sets the last token of a prompt to what the last token of the cache has.

    Returns
    -------
    Intervention

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> other, cache = model.run_with_cache("Once upon a day")
    >>> patched = model.run_with_hooks("Once upon a time", [interventions.patch_from(cache, "resid_pre3", position=4)])
    >>> bool((patched[0, 4] == other[0, 4]).all())  # the tokens before it are the same
    True
    """
    return Intervention("patch", names, layer, head, position, neuron, cache, when)


@checked
def mask_pattern(
    key: Index,
    *,
    layer: Index = None,
    head: Index = None,
    position: Index = None,
    names: Names = "pattern",
    when: When | None = None,
) -> Intervention:
    """Forbid attention to some keys: their weight becomes 0, and those of the other keys are divided by what is left.

    It is what a score of -inf would give, but where nothing is left the weights are 0 and not NaN. The sum runs over
    the keys in order, in double precision.

    Parameters
    ----------
    key : int or sequence of int
        Positions that must not be looked at, counted from the beginning of the sequence.
    layer, head, position, when
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
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> with model.hooks([interventions.mask_pattern(2, layer=0)]):
    ...     logits, cache = model.run_with_cache("Once upon a time", "pattern0")
    >>> bool((cache["pattern", 0][..., 2] == 0).all())
    True
    """
    if key is None:
        raise ValueError("key is None, expected positions")
    return Intervention("mask", names, layer, head, position, key, 0.0, when)


@checked
def replace_with(
    names: Names,
    W_enc: ArrayLike,  # noqa: N803 - as the field writes them
    b_enc: ArrayLike | None,
    W_dec: ArrayLike,  # noqa: N803
    b_dec: ArrayLike | None,
    *,
    layer: int | None = None,
    reads: str | None = None,
    activation: str = "relu",
    k: int | None = None,
    threshold: ArrayLike | None = None,
    W_skip: ArrayLike | None = None,  # noqa: N803
    subtract_b_dec: bool = False,
    error_term: bool = False,
    features: Callable[[Array, HookPoint], object] | None = None,
    when: When | None = None,
) -> Replacement:
    """Replace an activation by what a sparse autoencoder or a transcoder makes of it, given as arrays.

    What takes the activation's place is ``f @ W_dec + b_dec`` of the features ``f = activation(x @ W_enc + b_enc)``. An
    autoencoder reads what it replaces; a transcoder, with ``reads="mlp.hook_in"``, replaces ``mlp_out``. Features are
    computed by NumPy in float32. `llama2cpp.analysis.loss_recovered` measures how much of the model is left.

    Parameters
    ----------
    names : str, sequence of str, or predicate
        Which activation is replaced, as in `Model.run_with_cache`: one, as "resid_pre2", or "mlp_out" with `layer`.
        Heads, as those of "z", come one after another.
    W_enc : array [d_in, n]
    b_enc : array [n], optional
        None is zero.
    W_dec : array [n, d_out]
    b_dec : array [d_out], optional
    layer : int, optional
        For names that several layers have. Negative counts from the end.
    reads : str, optional
        What is encoded, an activation of the same layer, if it is not what is replaced: "mlp.hook_in" is what the MLP's
        matrices are multiplied with, after its norm's gain; "ln2.hook_normalized" the same before the gain; "mlp_in"
        the residual stream before the norm.
    activation : str
        "relu"; "topk": the `k` largest of those above 0; "jumprelu": those that are above `threshold`.
    k : int, optional
    threshold : number or array [n], optional
    W_skip : array [d_in, d_out], optional
        Of transcoders with a linear way beside the features.
    subtract_b_dec : bool
        Take `b_dec` from what is read, as some autoencoders are trained.
    error_term : bool
        Add what the dictionary does not explain, so that only what `features` changes has an effect.
    features : callable, optional
        ``fn(f, hook)`` of float32 [B, T, n]: what it returns, or leaves in `f`, is decoded.
    when
        See the module.

    Returns
    -------
    Replacement
        To stand in lists of hooks, with ``encode`` and ``decode``.

    Raises
    ------
    ValueError
        For arrays of shapes that do not fit each other or, where it is switched on, the model.

    Examples
    --------
    >>> import numpy
    >>> import llama2cpp
    >>> from llama2cpp import interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> rng = numpy.random.default_rng(0)
    >>> W_enc, W_dec = rng.normal(size=(192, 768)) / 14, rng.normal(size=(768, 192)) / 28
    >>> coder = interventions.replace_with("mlp_out", W_enc, None, W_dec, None, layer=2, reads="mlp.hook_in")
    >>> logits = model.run_with_hooks("Once upon a time", [coder])
    >>> with model.hooks([coder]):
    ...     text = model.generate("Once upon a time", max_tokens=8)
    """
    return Replacement(
        names,
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        layer=layer,
        reads=reads,
        activation=activation,
        k=k,
        threshold=threshold,
        W_skip=W_skip,
        subtract_b_dec=subtract_b_dec,
        error_term=error_term,
        features=features,
        when=when,
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of what is addressed."""

    name: str
    size: int
    taken: bool = False  # away, by an int


def _meanings(shape: tuple[int, ...], axes: list[_Axis]) -> dict[str, str]:
    """Which axes a value that has fewer could stand for, by their names, with the shape that says so."""
    sizes = [size for size in shape if size != 1]
    if len(shape) >= len(axes) or not sizes:
        return {}
    chosen = [
        places for places in combinations(range(len(axes)), len(sizes)) if [axes[i].size for i in places] == sizes
    ]
    return {
        " and ".join(axes[i].name for i in places): str(
            [axis.size if i in places else 1 for i, axis in enumerate(axes)]
        )
        for places in chosen
    }


def _is_one(index: Index) -> bool:
    return index is not None and np.ndim(index) == 0


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
