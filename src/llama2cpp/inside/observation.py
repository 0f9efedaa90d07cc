"""Running whole prompts for their activations: what `Model.run_with_cache` does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter, check_adapter
from ..common.arguments import float_array
from ..common.byte_sizes import parse_size
from ..common.token_ids import HasTokenizer, Prompt, batch_of, listed, to_ids
from ..metrics import loss as loss_metric
from .cache import ActivationCache
from .gradients import Metric, differentiate
from .hooks import Watch, any_hooks, changed_places, for_call, watching
from .next_token_loss import next_token_loss
from .places import Names, Place, between_layers, find_places, layer_or_end, places_to_keep, points_of, residual_streams
from .recomputed import RecomputedArrays, bytes_of

if TYPE_CHECKING:
    from ..model import Model

Prompts: TypeAlias = Prompt | Sequence[Prompt] | NDArray[Any]
ReturnType: TypeAlias = Literal["logits", "loss", "both"] | None

_TOGETHER = 32  # prompts of different lengths in a call


@dataclass(frozen=True)
class _Input:
    """What a run reads."""

    ids: list[list[int]]  # of each prompt; zeros where only the residual stream is known
    residual: NDArray[np.float32] | None = None  # [B, T, dim], what enters at start_at_layer
    known: bool = True  # whether the ids are the prompts'

    @property
    def even(self) -> bool:
        return len({len(ids) for ids in self.ids}) == 1


def run_with_cache(
    model: Model,
    function: str,
    text_or_tokens: Prompts,
    names_filter: Names | None,
    remove_batch_dim: bool = False,
    stop_at_layer: int | None = None,
    positions: int | slice | Sequence[int] | None = None,
    special: bool | None = None,
    start_at_layer: int | None = None,
    return_type: ReturnType = "logits",
    tokens: Prompts | None = None,
    loss_per_token: bool = False,
    incl_bwd: bool = False,
    metric: Metric | None = None,
    max_bytes: int | str | None = None,
    adapter: Adapter | None = None,
) -> tuple[Any, Any]:
    """Do what `Model.run_with_cache` does, for the function that was called."""
    if max_bytes is not None and (
        incl_bwd or not (stop_at_layer is None and start_at_layer is None and positions is None)
    ):
        raise ValueError(
            "max_bytes goes with whole runs: without incl_bwd, positions, start_at_layer and stop_at_layer "
            "(cache.backward gives gradients)"
        )
    check_adapter(function, adapter, model)
    if adapter is not None and incl_bwd:
        raise ValueError(f"{function}: a run with an adapter has no gradients (incl_bwd, bwd_hooks)")
    if adapter is not None and max_bytes is not None:
        raise ValueError(f"{function}: max_bytes computes activations again, and that without the adapter")
    of_loss = incl_bwd and metric is None and return_type in ("loss", "both")
    if incl_bwd != (metric is not None) and not of_loss:
        raise ValueError(
            "incl_bwd=True, or bwd_hooks, and metric= come together: gradients are those of a metric of the logits, or "
            "without one of the loss, with return_type='loss' or 'both'"
        )
    if incl_bwd and (stop_at_layer is not None or start_at_layer is not None or return_type is None):
        raise ValueError(
            "with incl_bwd there is no stop_at_layer, start_at_layer or return_type=None: a metric takes logits"
        )
    if return_type not in ("logits", "loss", "both", None):
        raise ValueError(f"return_type is {return_type!r}, expected 'logits', 'loss', 'both' or None")
    n_layers = model.config.n_layers
    start = None if start_at_layer is None else layer_or_end(start_at_layer, n_layers, "start_at_layer")
    stop = None if stop_at_layer is None else layer_or_end(stop_at_layer, n_layers, "stop_at_layer")
    if start is not None and stop is not None and stop < start:
        raise ValueError(f"stop_at_layer is {stop} and start_at_layer {start}, expected one that is not before it")
    given = _read(model, function, text_or_tokens, special, start, tokens)
    if remove_batch_dim and len(given.ids) > 1:
        raise ValueError(f"remove_batch_dim needs a single prompt, there are {len(given.ids)}")
    losses = return_type in ("loss", "both") and stop is None
    if losses and not given.known:
        raise ValueError("the loss needs tokens=, those that the residual stream is of")
    if losses and min(map(len, given.ids)) < 2:
        raise ValueError("the loss needs at least 2 tokens: it is of each but the first")
    kept = None if positions is None else [_checked_positions(positions, len(ids)) for ids in given.ids]
    watch: Watch | None = None
    if start is not None and start == stop:
        out: list[tuple[Any, dict[str, NDArray[np.float32]]]] = [(np.array(given.residual), {})]
    else:
        places = _reached(places_to_keep(names_filter, model.config), model, start, stop)
        every, limit = places, None
        if max_bytes is not None:
            limit = _limit(model, function, given, places, parse_size(max_bytes, "max_bytes"))
            places = places if limit is None else find_places(residual_streams(model.config), model.config)
        with watching() if function == "run_with_cache" or incl_bwd else nullcontext() as watch:
            out = _run(model, given, places, kept, start, stop, logits=return_type is not None, adapter=adapter)

    changed = any_hooks(model._core, watch)
    results, caches = [], []
    of_run = [given.ids] if given.even else [[ids] for ids in given.ids]
    for i, ((logits, arrays), ids) in enumerate(zip(out, of_run, strict=True)):
        if losses:
            loss = next_token_loss(logits, np.asarray(ids), loss_per_token)
            results.append(loss if return_type == "loss" else (logits, loss))
        else:
            results.append(logits)
        again = None
        if max_bytes is not None and limit is not None:
            again = RecomputedArrays(model._core, ids, arrays, every, limit)
            again.batched = not remove_batch_dim
        elif remove_batch_dim:
            arrays = {name: array[0] for name, array in arrays.items()}
        cache = ActivationCache(
            arrays if again is None else again,
            model,
            has_batch_dim=not remove_batch_dim,
            positions=None if kept is None else kept[i],
            tokens=None if not given.known else ids[0] if remove_batch_dim else ids,
        )
        cache.adapter = adapter
        if start is not None or stop is not None:
            cache._why_no_gradients = "it is of some layers only"
        elif changed:
            places_changed = set() if watch is None else changed_places(model._core, watch)
            cache._why_no_gradients = _why_not_after(places_changed, cache)
            cache._changed = sorted(places_changed)
            cache._replaced = [] if watch is None else sorted(watch.replaced)
        if incl_bwd:
            measured = loss_metric(ids) if metric is None else metric
            _, dlogits = differentiate(measured, logits)
            for name, array in cache.backward(dlogits).items():
                cache._arrays[f"{name}_grad"] = array
        caches.append(cache)
    return (results[0], caches[0]) if given.even else (results, caches)


def _limit(model: Model, function: str, given: _Input, places: list[Place], max_bytes: int) -> int | None:
    """Give the bytes that a cache may hold; None if everything fits in them."""
    if any_hooks(model._core):
        raise ValueError(f"{function}: with max_bytes, activations are computed again without the hooks that are on")
    if not given.even:
        raise ValueError(f"{function}: max_bytes is for prompts of one length")
    batch, length, config = len(given.ids), len(given.ids[0]), model.config
    if sum(bytes_of(place, config, batch, length) for place in places) <= max_bytes:
        return None
    least = 4 * batch * length * config.dim * (config.n_layers + 1)
    if least > max_bytes:
        raise ValueError(
            f"{function}: max_bytes is {max_bytes}, and the residual stream, from which the rest is computed again, "
            f"takes {least}"
        )
    return max_bytes


def _why_not_after(changed: set[str], cache: ActivationCache) -> str:
    """Say why a run that hooks changed there has no gradients; nothing if the cache has what they made of it."""
    config = cache._need_model().config
    names = points_of(config)
    unknown = sorted(changed - set(names))
    if unknown or not changed:
        where = f" at {unknown[0]!r}" if unknown else ""
        return f"hooks may have changed the run{where}, and gradients do not know what they have done"
    inside = sorted(changed - between_layers(config))
    missing = [name for name in (*residual_streams(config), *inside) if name not in cache]
    if cache.positions is not None or missing:
        what = f"the run at {inside[0]!r}" if inside else "the residual stream"
        also = "".join(f", {name!r}" for name in inside)
        return f"hooks changed {what}: keep 'resid_pre', 'resid_post-1'{also} of all positions in the cache"
    return ""


def _run(
    model: Model,
    given: _Input,
    places: list[Place],
    kept: list[list[int]] | None,
    start: int | None,
    stop: int | None,
    *,
    logits: bool,
    adapter: Adapter | None,
) -> list[tuple[Any, dict[str, NDArray[np.float32]]]]:
    """Run prompts of one length in one call, others some at a time."""
    out = []
    count = len(given.ids)
    at_once = count if given.even else _TOGETHER
    for first in range(0, count, at_once):
        ids = given.ids[first : first + at_once]
        sessions = [model.session(adapter=adapter) for _ in ids]
        rows = [(session._core, own) for session, own in zip(sessions, ids, strict=True)]
        even = len({len(own) for own in ids}) == 1  # some may be, though not all are
        active = for_call(sessions, model._core, together=given.even, first=first, prompts=count)
        own_kept = None if kept is None else kept[first : first + (1 if even else at_once)]
        done = model._core.run_with_cache(rows, places, own_kept, stop, active, start, given.residual, logits)
        if even and not given.even:  # back to a run for each
            done = [
                (None if array is None else array[i : i + 1], {name: part[i : i + 1] for name, part in arrays.items()})
                for array, arrays in done
                for i in range(len(ids))
            ]
        out += done
    return out


def _reached(places: list[Place], model: Model, start: int | None, stop: int | None) -> list[Place]:
    """Leave out what a run of some layers does not come to."""
    config = model.config
    before, after = find_places("hook_embed", config), find_places("ln_final.*", config)
    if start is not None:
        places = [p for p in places if p not in before and (p[1] >= start or p in after)]
    if stop is not None:
        places = [p for p in places if p not in after and (p[1] < stop or p in before)]
    return places


def _read(
    model: Model, function: str, given: Prompts, special: bool | None, start: int | None, tokens: Prompts | None
) -> _Input:
    if start is None:
        if tokens is not None:
            raise ValueError("tokens= goes with start_at_layer, where the input is the residual stream")
        return _Input(prompts_of(model, function, given, special))
    if isinstance(given, str | bytes):
        raise ValueError("with start_at_layer the input is the residual stream, [batch, T, dim], and not text")
    residual: NDArray[Any] = np.ascontiguousarray(float_array(given))
    dim = model.config.dim
    if residual.ndim == 2:
        residual = residual[None]
    if residual.ndim != 3 or residual.shape[2] != dim or 0 in residual.shape:
        raise ValueError(
            f"with start_at_layer the input is the residual stream: it has shape {np.asarray(given).shape}, expected "
            f"[batch, T, {dim}]"
        )
    batch, length, _ = residual.shape
    if tokens is None:
        return _Input([[0] * length for _ in range(batch)], residual, known=False)
    ids = prompts_of(model, function, tokens, special)
    if [len(own) for own in ids] != [length] * batch:
        raise ValueError(f"tokens are {len(ids)} rows of {[len(own) for own in ids]}, expected {batch} of {length}")
    return _Input(ids, residual)


def prompts_of(model: HasTokenizer, function: str, text_or_tokens: Prompts, special: bool | None) -> list[list[int]]:
    """One prompt or several as ids."""
    given: Any = listed(text_or_tokens)
    many = batch_of(given)
    batch = [
        to_ids(model, prompt, function=function if many is None else f"{function}: prompt {i}", special=special)
        for i, prompt in enumerate([given] if many is None else many)
    ]
    empty = [i for i, ids in enumerate(batch) if not ids]
    if empty or not batch:
        where = f"prompt {empty[0]}: " if many is not None and len(batch) > 1 else ""
        raise ValueError(f"{function}: {where}there are no tokens, expected at least one")
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
