"""Where two models, or two caches, part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked
from ..common.probabilities import kl_divergence, log_softmax
from ..common.token_ids import Prompt, to_ids
from ..inside.cache import ActivationCache
from ..inside.html_views import table
from ..inside.places import Names, name_of, places_to_keep, residual_streams

if TYPE_CHECKING:
    from ..model import Model


class PointDifference(NamedTuple):
    """How an activation of one model differs from that of another.

    Attributes
    ----------
    name : str
        TransformerLens's.
    largest : float
        The largest absolute difference of two numbers.
    relative : float
        The root of the sum of squared differences, by that of the first model's squares.
    cosine : float
        Of the angle between the two activations; 1 where both are zero.

    Examples
    --------
    >>> from llama2cpp.analysis import PointDifference
    >>> PointDifference("hook_embed", 0.0, 0.0, 1.0).cosine
    1.0
    """

    name: str
    largest: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Difference:
    """What `diff` has found; in a notebook a table.

    Attributes
    ----------
    points : list of PointDifference
        In the order of the forward pass.
    kl : numpy.ndarray
        float64 [T]: the Kullback-Leibler divergence, in nats, from the first model's predictions to the second's. Of
        caches that lack the stream after the last layer it is empty.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> analysis.diff(model, model, "Once upon a time").first is None
    True
    """

    points: list[PointDifference]
    kl: NDArray[np.float64]

    @property
    def first(self) -> PointDifference | None:
        """The first point at which a number differs; None if none does."""
        return next((point for point in self.points if point.largest > 0), None)

    def __repr__(self) -> str:
        first = self.first
        where = "no difference" if first is None else f"from {first.name} on"
        kl = f", KL {self.kl.mean():.3g} of {len(self.kl)} tokens" if len(self.kl) else ""
        return f"<llama2cpp.analysis.Difference: {where}{kl}>"

    def _repr_html_(self) -> str:
        rows = [(p.name, f"{p.largest:.3g}", f"{p.relative:.3g}", f"{p.cosine:.6f}") for p in self.points]
        kl = f"<p>KL {self.kl.mean():.4g}</p>" if len(self.kl) else ""
        return f"{kl}{table(('activation', 'largest', 'relative', 'cosine'), rows)}"


@checked
def diff(
    model_a: Model | ActivationCache,
    model_b: Model | ActivationCache,
    text: Prompt | None = None,
    names_filter: Names | None = None,
    *,
    special: bool | None = None,
) -> Difference:
    """Run two models on the same tokens, and say where and how far their activations part.

    Such as a quantized model and its original, or one model with two kinds of arithmetic. Both run in lock-step, one
    layer of each at a time, so that only the activations of a layer are in memory. Two caches will do as well.

    Parameters
    ----------
    model_a, model_b : Model, or ActivationCache
        Of the same sizes.
    text : str, bytes or sequence of int
        A text is tokenized by the first model. For caches there is none.
    names_filter : str, sequence of str, or predicate, optional
        Which activations, as in `Model.run_with_cache`; of caches, which of those that they have.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.

    Returns
    -------
    Difference

    Raises
    ------
    ValueError
        If an activation or the vocabulary has another size in the other model, or caches have other activations.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> values = model.weights["blocks.2.attn.W_V"].copy()
    >>> values[0] = 0
    >>> other = model.with_weights({"blocks.2.attn.W_V": values})
    >>> analysis.diff(model, other, "Once upon a time", ["v", "z"]).first.name
    'blocks.2.attn.hook_v'
    >>> caches = [each.run_with_cache("Once upon a time")[1] for each in (model, other)]
    >>> analysis.diff(*caches).first.name
    'blocks.2.attn.hook_v'
    """
    if isinstance(model_a, ActivationCache) or isinstance(model_b, ActivationCache):
        if not (isinstance(model_a, ActivationCache) and isinstance(model_b, ActivationCache)) or text is not None:
            raise ValueError("diff: pass two models and a text, or two caches")
        return _of_caches(model_a, model_b, names_filter)
    if text is None:
        raise ValueError("diff: two models need a text")
    sizes = [model.config.vocab_size for model in (model_a, model_b)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"diff: the vocabularies have {sizes[0]} and {sizes[1]} tokens")
    ids = to_ids(model_a, text, function="diff", special=special)
    points: list[PointDifference] = []
    for (cache_a, logits_a), (cache_b, logits_b) in zip(
        *(_layer_by_layer(model, ids, names_filter) for model in (model_a, model_b)), strict=False
    ):
        _check_same(cache_a, cache_b)
        points += [_difference(name, cache_a[name], cache_b[name]) for name in cache_a]
        if (logits_a is None) != (logits_b is None):
            raise ValueError("diff: the models have other activations, or of other sizes")
        if logits_a is not None:
            return Difference(points, kl_divergence(*(log_softmax(logits[0]) for logits in (logits_a, logits_b))))
    raise AssertionError


def _check_same(a: Mapping[str, NDArray[np.float32]], b: Mapping[str, NDArray[np.float32]]) -> None:
    if list(a) != list(b) or any(a[name].shape != b[name].shape for name in a):
        raise ValueError("diff: the models have other activations, or of other sizes")


def _layer_by_layer(
    model: Model, ids: list[int], names_filter: Names | None
) -> Iterator[tuple[dict[str, NDArray[np.float32]], NDArray[np.float32] | None]]:
    """Give the activations of each layer, and in the end those of the last norm with the logits: a run's bits."""
    config = model.config
    wanted = {name_of(place, config) for place in places_to_keep(names_filter, config)}
    stream: Any = ids
    for layer in range(config.n_layers):
        last = f"blocks.{layer}.hook_resid_post"
        block = [name for name in wanted if name.startswith(f"blocks.{layer}.") or (not layer and name == "hook_embed")]
        how: dict[str, Any] = {"start_at_layer": layer, "tokens": ids} if layer else {}
        _, cache = model._run("diff", stream, sorted({*block, last}), stop_at_layer=layer + 1, return_type=None, **how)
        stream = cache[last]
        yield {name: array for name, array in cache.items() if name in wanted}, None
    names = sorted(name for name in wanted if name.startswith("ln_final."))
    logits, cache = model._run("diff", stream, names, start_at_layer=config.n_layers, tokens=ids)
    yield dict(cache.items()), logits


def _of_caches(a: ActivationCache, b: ActivationCache, names_filter: Names | None) -> Difference:
    names = list(a)
    if names_filter is not None:
        places = places_to_keep(names_filter, a._need_model().config)
        wanted = {name_of(place, a._need_model().config) for place in places}
        names = [name for name in names if name in wanted]
    missing = [name for name in names if name not in b] + [name for name in b if names_filter is None and name not in a]
    if missing:
        raise ValueError(f"diff: one of the caches has {missing[0]!r}, and the other does not")
    other = next((name for name in names if a[name].shape != b[name].shape), None)
    if other is not None:
        shapes = " and ".join(str(list(cache[other].shape)) for cache in (a, b))
        raise ValueError(f"diff: {other} has shapes {shapes} in the caches")
    return Difference([_difference(name, a[name], b[name]) for name in names], _divergence_of(a, b))


def _divergence_of(a: ActivationCache, b: ActivationCache) -> NDArray[np.float64]:
    """Give that of the predictions that the streams after the last layer make, where both caches have it."""
    logs = []
    for cache in (a, b):
        stream = cache._arrays.get(residual_streams(cache.model.config)[-1]) if cache.model is not None else None
        if stream is None or cache.model is None:
            return np.zeros(0)
        logs.append(log_softmax(cache.model.unembed(stream.reshape(-1, stream.shape[-1]), apply_ln=True)))
    return kl_divergence(*logs) if logs[0].shape == logs[1].shape else np.zeros(0)


def _difference(name: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> PointDifference:
    one, two = (np.where(np.isneginf(x), 0, x).astype(np.float64).ravel() for x in (a, b))  # scores that are masked
    error = one - two
    lengths = [float(np.sqrt((x * x).sum())) for x in (one, two, error)]
    both = lengths[0] * lengths[1]
    cosine = float((one * two).sum()) / both if both > 0 else float(lengths[0] == lengths[1])
    relative = lengths[2] / lengths[0] if lengths[0] > 0 else float(lengths[2] > 0)
    return PointDifference(name, float(np.abs(error).max(initial=0)), relative, cosine)
