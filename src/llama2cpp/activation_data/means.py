"""Means and variances of activations over many texts, with no more in memory than a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter, check_adapter
from ..common.token_ids import Prompt
from ..inside.cache import ActivationCache
from ..inside.places import Names
from .passes import Passes, Texts, chosen_places

if TYPE_CHECKING:
    from ..model import Model


class MeanActivations(NamedTuple):
    """What `Model.mean_activations` has found.

    Attributes
    ----------
    mean, variance : ActivationCache
        float32 [1, 1, ...] by name: as the cache of one token, so that ``interventions.mean`` and ``patching.ablate``
        take it. The variance is that of the tokens (divided by `tokens`).
    tokens, texts : int
        How many there were.

    Examples
    --------
    See `Model.mean_activations`.

    >>> from llama2cpp.activation_data.means import MeanActivations
    >>> MeanActivations._fields
    ('mean', 'variance', 'tokens', 'texts')
    """

    mean: ActivationCache
    variance: ActivationCache
    tokens: int
    texts: int


def mean_activations(
    model: Model,
    texts: Iterable[Prompt],
    points: Names,
    layers: int | Sequence[int] | None,
    *,
    truncate: bool = False,
    special: bool | None = None,
    adapter: Adapter | None = None,
    seen: Callable[[int, int], None] = lambda texts, rows: None,
) -> MeanActivations:
    """Do what `Model.mean_activations` does.

    Each text's own mean and sum of squares are taken in double precision, and joined in the order of the texts (Chan,
    Golub and LeVeque, 1979), which loses nothing to cancellation where the mean is far from 0.
    """
    check_adapter("mean_activations", adapter, model)
    source = Texts(model, "mean_activations", texts, truncate=truncate, special=special)
    passes = Passes(model, chosen_places("mean_activations", points, layers, model), None, adapter)
    count = 0
    mean: dict[str, NDArray[np.float64]] = {}
    squares: dict[str, NDArray[np.float64]] = {}  # of differences from the mean
    while batch := passes.take(source, lambda _: True):
        for arrays in passes.run(batch):
            rows = len(next(iter(arrays.values())))
            whole = count + rows
            for name, array in arrays.items():
                own = array.mean(axis=0, dtype=np.float64)
                differences = array - own
                own_squares = np.einsum("t...,t...->...", differences, differences)
                if not count:
                    mean[name], squares[name] = own, own_squares
                    continue
                step = own - mean[name]
                mean[name] = mean[name] + step * (rows / whole)
                squares[name] = squares[name] + own_squares + step * step * (count * rows / whole)
            count = whole
        seen(source.taken, count)
    if not count:
        raise ValueError("mean_activations: there are no texts, expected at least one")
    variance = {name: part / count for name, part in squares.items()}
    return MeanActivations(_cache_of(mean, model, adapter), _cache_of(variance, model, adapter), count, source.taken)


def _cache_of(parts: Mapping[str, NDArray[np.float64]], model: Model, adapter: Adapter | None) -> ActivationCache:
    cache = ActivationCache({name: part.astype(np.float32)[None, None] for name, part in parts.items()}, model)
    cache.adapter = adapter
    return cache
