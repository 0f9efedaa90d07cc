"""Running whole prompts for their activations: what `Model.run_with_cache` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..common.token_ids import HasTokenizer, Prompt, listed, several, to_ids
from .cache import ActivationCache
from .gradients import Metric, differentiate
from .hooks import for_call, may_change
from .places import Names, find_places, places_to_keep

if TYPE_CHECKING:
    from ..model import Model

Prompts: TypeAlias = Prompt | Sequence[Prompt] | NDArray[Any]


def run_with_cache(
    model: Model,
    function: str,
    text_or_tokens: Prompts,
    names_filter: Names | None,
    remove_batch_dim: bool = False,
    stop_at_layer: int | None = None,
    positions: int | slice | Sequence[int] | None = None,
    special: bool | None = None,
    incl_bwd: bool = False,
    metric: Metric | None = None,
) -> tuple[NDArray[np.float32], ActivationCache]:
    """Do what `Model.run_with_cache` does, for the function that was called."""
    if incl_bwd != (metric is not None):
        raise ValueError("incl_bwd=True and metric= come together: gradients are those of a metric of the logits")
    if incl_bwd and stop_at_layer is not None:
        raise ValueError("with incl_bwd there is no stop_at_layer: a metric takes logits")
    batch = prompts_of(model, function, text_or_tokens, special)
    length, n_layers = len(batch[0]), model.config.n_layers
    if remove_batch_dim and len(batch) > 1:
        raise ValueError(f"remove_batch_dim needs a single prompt, there are {len(batch)}")
    if stop_at_layer is not None and not -n_layers <= stop_at_layer <= n_layers:
        raise ValueError(f"stop_at_layer is {stop_at_layer}, expected {-n_layers} to {n_layers}")
    if stop_at_layer is not None and stop_at_layer < 0:
        stop_at_layer += n_layers
    places = places_to_keep(names_filter, model.config)
    if stop_at_layer is not None:
        reached = find_places("hook_embed", model.config) if stop_at_layer >= 0 else []
        places = [
            p
            for p in places
            if p in reached or (p[1] < stop_at_layer and p not in find_places("ln_final.*", model.config))
        ]
    kept = None if positions is None else _checked_positions(positions, length)
    sessions = [model.session() for _ in batch]
    rows = [(session._core, ids) for session, ids in zip(sessions, batch, strict=True)]
    active = for_call(sessions, model._core)
    logits, arrays = model._core.run_with_cache(rows, places, kept, stop_at_layer, active)
    if remove_batch_dim:
        arrays = {name: array[0] for name, array in arrays.items()}
    cache = ActivationCache(
        arrays,
        model,
        has_batch_dim=not remove_batch_dim,
        positions=kept,
        tokens=batch[0] if remove_batch_dim else batch,
    )
    if may_change(sessions, model._core):
        cache._why_no_gradients = "hooks may have changed the run, and gradients do not know what they have done"
    if metric is not None:
        _, dlogits = differentiate(metric, logits)
        for name, array in cache.backward(dlogits).items():
            cache._arrays[f"{name}_grad"] = array
    return logits, cache


def prompts_of(model: HasTokenizer, function: str, text_or_tokens: Prompts, special: bool | None) -> list[list[int]]:
    """One prompt or several as ids, all of one length."""
    given: Any = listed(text_or_tokens)
    rows = hasattr(given, "__array__") and len(getattr(given, "shape", ())) > 1
    many = list(given) if rows else several(given)
    batch = [
        to_ids(model, prompt, function=function if many is None else f"{function}: prompt {i}", special=special)
        for i, prompt in enumerate([given] if many is None else many)
    ]
    lengths = sorted({len(ids) for ids in batch})
    if len(lengths) > 1:
        raise ValueError(
            f"the prompts have from {lengths[0]} to {lengths[-1]} tokens: a batch needs equal lengths; "
            "run them one by one, or those of one length together"
        )
    if lengths == [0]:
        raise ValueError("there are no tokens, expected at least one")
    return batch


def _checked_positions(positions: int | slice | Sequence[int], length: int) -> list[int]:
    """Positions from 0 on."""
    if isinstance(positions, slice):
        kept = list(range(length)[positions])
    else:
        kept = [int(p) for p in ([positions] if isinstance(positions, int | np.integer) else positions)]
    if not kept:
        raise ValueError("positions names none")
    for position in kept:
        if not -length <= position < length:
            raise ValueError(f"a position is {position}, but there are {length} tokens")
    return [position % length for position in kept]
