"""Many small changes of one run, each a cell: only tokens and layers that change are computed, many cells in a pass.

A cell goes on from the keys and values of the run for the tokens before its change, and from the residual stream of the
run at the layer of its change. Rows of a pass do not depend on each other, so each cell has the bits of a whole run.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..adapters import Adapter, check_adapter
from ..common.arguments import close_names, index, level_of_caller
from .hooks import any_hooks
from .observation import prompts_of
from .places import Names, Place, find_places, is_pattern, name_of, residual_streams

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..model import Model
    from .cache import ActivationCache
    from .observation import Prompts

Array: TypeAlias = NDArray[np.float32]
Over: TypeAlias = Sequence[str] | Mapping[str, Any]
Addressed: TypeAlias = "list[tuple[Place, Address]]"  # what a cell is about
_Cell: TypeAlias = "tuple[tuple[int, ...], Addressed]"

_CELLS = 32  # in a pass
_FULL_ROWS = 256  # in a pass of several cells

_AXES = {
    "pos": "position",
    "dest_pos": "position",
    "src_pos": "key",
    "head_index": "head",
}


@dataclass(frozen=True)
class Address:
    """What of an activation [B, T, heads, width] (or [B, heads, T, keys]) a change is about; None: all."""

    position: int | None = None
    head: int | None = None
    neuron: int | None = None  # of the last axis: a key, for patterns
    query_head: int | None = None  # whose own keys or values are meant, where it shares them with others

    def cut(self, array: Array, *, pattern: bool, by_head: bool) -> Array:
        """Cut it out of a batch's activation, as [B, positions, heads, neurons]."""
        if pattern:
            array = array.swapaxes(1, 2)
        elif not by_head:
            array = array[:, :, None]
        for axis, i in enumerate((self.position, self.head, self.neuron), start=1):
            if i is not None:
                array = np.take(array, [i], axis=axis)
        return array


@dataclass(frozen=True)
class Change:
    """What is addressed of a place becomes other numbers."""

    place: Place
    address: Address
    values: Array  # [B, positions, heads, neurons]


@dataclass(frozen=True)
class ChangedRun:
    """A cell: where its result goes, the first position that changes, and what does."""

    at: tuple[int, ...]
    begin: int
    changes: list[Change]


class BaseRun:
    """A run that cells change: its tokens, keys and values, logits, and activations.

    Parameters
    ----------
    model : Model
    function : str
        What was called, for messages.
    tokens : str, ids, or several of one length
    names : sequence of str
        Which activations are needed beside the residual stream into each layer.
    special : bool, optional
        As in `Model.run_with_cache`.
    adapter : Adapter, optional
        That acts in the run, and in all cells.
    """

    def __init__(
        self,
        model: Model,
        function: str,
        tokens: Prompts,
        names: Sequence[str],
        special: bool | None,
        adapter: Adapter | None = None,
    ) -> None:
        check_adapter(function, adapter, model)
        if any_hooks(model._core):
            raise ValueError(f"{function}: hooks are on in this block, and each cell is a run without them")
        self.model, self.function, self.adapter = model, function, adapter
        self.ids = prompts_of(model, function, tokens, special)
        if len({len(ids) for ids in self.ids}) > 1:
            raise ValueError(f"{function}: the prompts have different lengths, expected one")
        self.length = len(self.ids[0])
        config = model.config
        self._entering = residual_streams(config)
        places = find_places([*names, *self._entering], config)
        self._sessions = [self._session() for _ in self.ids]
        rows = list(zip(self._sessions, self.ids, strict=True))
        [(logits, self.arrays)] = model._core.run_with_cache(rows, places)
        assert logits is not None
        self.logits: Array = logits
        self._pool: list[_core.Session] = []

    def _session(self) -> _core.Session:
        return self.model._core.session(None, None if self.adapter is None else self.adapter._core)

    @property
    def whole_runs(self) -> int:
        """How many whole runs share a pass."""
        return max(1, _FULL_ROWS // (len(self.ids) * self.length))

    def entering(self, layer: int) -> Array:
        """Get the residual stream into a layer [B, T, dim]; n_layers is what the last norm gets."""
        return self.arrays[self._entering[layer]]

    def at(self, place: Place, address: Address) -> Array:
        """Cut what is addressed out of this run's activation, as [B, positions, heads, neurons]."""
        return cut(self.arrays[name_of(place, self.model.config)], place, address, self.model.config)

    def of_other_run(self, cache: ActivationCache, place: Place) -> Array:
        """Get a place's activation [B, T, ...] of a cache, of as many prompts as this run has or of one for all."""
        name = name_of(place, self.model.config)
        array = held(f"{self.function}: the cache", cache, name, self.adapter)
        expected = self.arrays[name].shape
        if cache.positions is not None or array.shape[1:] != expected[1:] or len(array) not in (1, expected[0]):
            shape = list(array.shape)
            raise ValueError(
                f"{self.function}: {name!r} of the cache has shape {shape}, expected {list(expected)}, whole"
            )
        return np.broadcast_to(array, expected)

    def begin_of(self, changes: Sequence[Change]) -> int:
        """Find the first position that changes in any prompt; the length if none does. Bits count, -0 is not 0."""
        first = self.length
        for change in changes:
            old = np.ascontiguousarray(self.at(change.place, change.address)).view(np.uint32)
            new = np.ascontiguousarray(change.values, dtype=np.float32).view(np.uint32)
            rows = np.flatnonzero((old != new).any(axis=(0, 2, 3)))
            if len(rows):
                first = min(first, int(rows[0]) if change.address.position is None else change.address.position)
        return first

    def values_after(
        self,
        cells: Sequence[Sequence[Change]],
        start: int,
        frozen: Sequence[Place],
        wanted: list[Place],
        stop: int | None = None,
    ) -> list[dict[str, Array]]:
        """Compute activations of cells whose changes are in layers from `start` on, in one pass.

        Places that are `frozen` have this run's activations, but for what the cells change. Layers from `stop` on are
        not run.
        """
        core, config, batch = self.model._core, self.model.config, len(self.ids)
        count = len(cells) * batch
        hooks = _core.CallHooks(core, [None] * count)
        for place, b in itertools.product(frozen, range(batch)):
            own = np.ascontiguousarray(self.at(place, Address())[b], dtype=np.float64)
            freeze = _core.Intervention("set", [], list(range(self.length)), [], own)
            for i in range(len(cells)):
                hooks.add_intervention(_core.Places([place], config), freeze, i * batch + b)
        for i, (changes, b) in enumerate(itertools.product(cells, range(batch))):
            for change in changes:
                hooks.add_intervention(_core.Places([change.place], config), self._intervention(change, b), i)
        rows = [(self._session(), self.ids[b]) for _, b in itertools.product(cells, range(batch))]
        residual = np.ascontiguousarray(np.tile(self.entering(start), (len(cells), 1, 1)))
        [(_, arrays)] = core.run_with_cache(rows, wanted, None, stop, hooks, start, residual, False)
        return [{name: array[i * batch : (i + 1) * batch] for name, array in arrays.items()} for i in range(len(cells))]

    def reading(self, place: Place, stream: Array) -> Array:
        """Compute what a place has if its layer reads another residual stream [B, T, dim]."""
        core = self.model._core
        rows = [(self._session(), ids) for ids in self.ids]
        residual = np.ascontiguousarray(stream, dtype=np.float32)
        [(_, arrays)] = core.run_with_cache(rows, [place], None, place[1] + 1, None, place[1], residual, False)
        return arrays[name_of(place, self.model.config)]

    def _intervention(self, change: Change, prompt: int) -> _core.Intervention:
        address = change.address
        return _core.Intervention(
            "set",
            [] if address.head is None else [address.head],
            list(range(self.length)) if address.position is None else [address.position],
            [] if address.neuron is None else [address.neuron],
            np.ascontiguousarray(change.values[prompt], dtype=np.float64),
        )

    def run(self, cells: Sequence[ChangedRun], start: int, *, last_only: bool) -> list[Array]:
        """Compute cells whose changes are in layers from `start` on, each from its position on, in one pass.

        Returns
        -------
        list of array
            For each cell the logits [B, T, vocab_size] of all tokens; or [B, 1, vocab_size].
        """
        core, config, batch = self.model._core, self.model.config, len(self.ids)
        while len(self._pool) < len(cells) * batch:
            self._pool.append(self._session())
        hooks = _core.CallHooks(core, [None] * (len(cells) * batch))
        rows: list[tuple[Any, list[int]]] = []
        residuals: list[Array] = []
        stream = self.entering(start)
        for cell, b in itertools.product(cells, range(batch)):
            session = self._pool[len(rows)]
            session.assign(self._sessions[b], cell.begin)
            for change in cell.changes:
                hooks.add_intervention(_core.Places([change.place], config), self._intervention(change, b), len(rows))
            rows.append((session, self.ids[b][cell.begin :]))
            residuals.append(np.ascontiguousarray(stream[b, cell.begin :]))
        made = core.forward(rows, hooks, not last_only, start, residuals)
        results = []
        for i, cell in enumerate(cells):
            own = made[i * batch : (i + 1) * batch]
            if last_only:
                results.append(np.stack(own)[:, None])
            else:
                full = self.logits.copy()
                for b, logits in enumerate(own):
                    full[b, cell.begin :] = logits
                results.append(full)
        return results


def held(where: str, cache: ActivationCache | None, name: str, adapter: Adapter | None = None) -> Array:
    """Get an activation [B, T, ...] of a cache, whose run had this adapter, or none."""
    if cache is None or name not in cache:
        raise ValueError(f"{where} has no {name!r}")
    there, here = (None if one is None else one.fingerprint for one in (cache.adapter, adapter))
    if there != here:
        if here is None:
            how, instead = "with an adapter, and the model runs without it here: pass adapter=cache.adapter", "None"
        elif there is None:
            how, instead = "without an adapter, and the model runs with one here: leave it out", "the adapter"
        else:
            how, instead = "with another adapter: pass adapter=cache.adapter", "this adapter"
        raise ValueError(
            f"{where} is of a run {how}, or set cache.adapter = {instead} to use such activations all the same"
        )
    return cache[name] if cache.has_batch_dim else cache[name][None]


def cut(array: Array, place: Place, address: Address, config: _core.Config) -> Array:
    """Cut what is addressed out of a batch's activation, as [B, positions, heads, neurons]."""
    heads, _ = _core.point_shape(place[0], config)
    return address.cut(array, pattern=is_pattern(name_of(place, config)), by_head=heads > 0)


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep: the places of a name, and what of them each cell addresses."""

    axes: dict[str, list[int]]
    places: list[Place]
    config: _core.Config

    @classmethod
    def of(cls, function: str, name: Names, over: Over | None, config: _core.Config, length: int) -> Grid:
        """Find the axes of a sweep over a name."""
        places = find_places(name, config)
        if not places:
            raise ValueError(f"{function}: {name!r} names no activation")
        if len({place[0] for place in places}) > 1:
            raise ValueError(f"{function}: {name!r} names activations of several kinds, expected one")
        heads, width = _core.point_shape(places[0][0], config)
        pattern = is_pattern(name_of(places[0], config))
        sizes = {"layer": config.n_layers, "position": length}
        sizes |= {"head": heads} if heads else {}
        sizes |= {"query_head": config.n_heads} if _is_shared(places[0], config) else {}
        sizes |= {"key": length} if pattern else {"neuron": width}
        if over is None:
            over = ["layer"] * (len(places) > 1) + (["head"] if heads else ["position"])
        if not isinstance(over, Sequence | Mapping):
            raise TypeError(
                f"{function}: over is {over!r:.80} ({type(over).__name__}), expected axes such as "
                "['layer', 'position'], or a dict of them"
            )
        given: dict[str, Any] = (
            dict(over) if isinstance(over, Mapping) else dict.fromkeys([over] if isinstance(over, str) else over)
        )
        axes: dict[str, list[int]] = {}
        for spelled, chosen in given.items():
            axis = _AXES.get(spelled, spelled)
            if axis not in sizes or axis in axes:
                close = close_names(axis, sizes)
                raise ValueError(f"{function}: over has {spelled!r}, expected each once of {', '.join(sizes)}{close}")
            count = sizes[axis]
            if chosen is not None and not isinstance(chosen, Iterable):
                raise TypeError(
                    f"{function}: {spelled!r} of over is {chosen!r:.80} ({type(chosen).__name__}), expected several "
                    f"integers, such as [{chosen!r:.20}], or None for all"
                )
            axes[axis] = list(range(count)) if chosen is None else [index(i, count, axis, function) for i in chosen]
        if "query_head" in axes and ("head" in axes or ("layer" not in axes and len(places) > 1)):
            raise ValueError(f"{function}: 'query_head' goes with 'layer', and not with 'head'")
        there = [place[1] for place in places]
        if "layer" in axes and given.get("layer") is None:
            axes["layer"] = there
        missing = [layer for layer in axes.get("layer", []) if layer not in there]
        if missing:
            raise ValueError(f"{function}: {name!r} is not in layer {missing[0]}")
        return cls(axes, places, config)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many cells along each axis."""
        return tuple(len(chosen) for chosen in self.axes.values())

    def cells(self) -> Iterator[_Cell]:
        """Give each cell's index in the result, and what it addresses."""
        for at in np.ndindex(self.shape):
            chosen = {axis: indices[i] for (axis, indices), i in zip(self.axes.items(), at, strict=True)}
            layer, own = chosen.get("layer"), chosen.get("query_head")
            head = chosen.get("head") if own is None else own * self.config.n_kv_heads // self.config.n_heads
            address = Address(chosen.get("position"), head, chosen.get("neuron", chosen.get("key")), own)
            yield at, [(place, address) for place in self.places if layer is None or place[1] == layer]


def _is_shared(place: Place, config: _core.Config) -> bool:
    """Whether these are keys or values."""
    return name_of(place, config).endswith(("hook_k", "hook_v", "hook_k_normed", "hook_rot_k"))


def for_own_heads(
    base: BaseRun, grid: Grid, changes_of: Callable[[Addressed], list[Change]]
) -> Callable[[Addressed], list[Change]]:
    """Make changes of what one head of queries has for its own keys or values: they change its ``hook_z`` alone.

    A layer is run with the keys or values changed for all heads that share them, and of that the head's z is taken.
    """
    if "query_head" not in grid.axes:
        return changes_of
    return made_together(base, grid, lambda cells, _: with_own_heads(base, [changes_of(cell) for cell in cells]))


def first_layer(addressed: Addressed) -> int:
    """Find the first layer that a cell changes."""
    return min(place[1] for place, _ in addressed)


def made_together(
    base: BaseRun, grid: Grid, changes_of: Callable[[list[Addressed], int], list[list[Change]]]
) -> Callable[[Addressed], list[Change]]:
    """Make a cell's changes by a function of as many cells as share a pass, all of one first layer, and of that layer.

    What it makes of the others is kept until they are asked for.
    """
    by_layer: dict[int, list[Addressed]] = {}
    index_of: dict[tuple[tuple[Place, Address], ...], int] = {}
    for _, addressed in grid.cells():
        cells = by_layer.setdefault(first_layer(addressed), [])
        index_of.setdefault(tuple(addressed), len(cells))
        cells.append(addressed)
    ready: dict[tuple[tuple[Place, Address], ...], list[Change]] = {}

    def one(addressed: Addressed) -> list[Change]:
        key = tuple(addressed)
        if key not in ready:
            start, first = first_layer(addressed), index_of[key]
            cells = by_layer[start][first : first + base.whole_runs]
            ready.update(zip(map(tuple, cells), changes_of(cells, start), strict=True))
        return ready.pop(key)

    return one


def in_outputs_of_heads(base: BaseRun, cells: Sequence[list[Change]]) -> list[list[Change]]:
    """Turn changes of what ``hook_z`` is made of, as queries and patterns, into those of z itself, layer by layer."""
    config = base.model.config
    names = ["q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern"]
    inner = set(find_places([*names, *([] if config.qk_norm == "none" else ["q_normed", "k_normed"])], config))
    results = [[change for change in changes if change.place not in inner] for changes in cells]
    for layer in range(config.n_layers):
        own = [[c for c in changes if c.place in inner and c.place[1] == layer] for changes in cells]
        concerned = [i for i, changes in enumerate(own) if changes]
        if not concerned:
            continue
        [z] = find_places(f"blocks.{layer}.attn.hook_z", config)
        for i, arrays in zip(
            concerned, base.values_after([own[i] for i in concerned], layer, [], [z], layer + 1), strict=True
        ):
            results[i].append(Change(z, Address(), arrays[name_of(z, config)]))
    return results


def with_own_heads(base: BaseRun, cells: Sequence[list[Change]]) -> list[list[Change]]:
    """Turn changes of a head's own keys and values into those of its z; all changes are of one layer then."""
    runs: list[tuple[int, int, list[Change]]] = []  # cell, head, changes
    for i, changes in enumerate(cells):
        heads = dict.fromkeys(c.address.query_head for c in changes if c.address.query_head is not None)
        runs += [(i, h, [c for c in changes if c.address.query_head in (None, h)]) for h in heads]
    if not runs:
        return list(cells)
    layer = runs[0][2][0].place[1]
    [z] = find_places(f"blocks.{layer}.attn.hook_z", base.model.config)
    results = [[change for change in changes if change.address.query_head is None] for changes in cells]
    for first in range(0, len(runs), base.whole_runs):
        some = runs[first : first + base.whole_runs]
        made = base.values_after([changes for _, _, changes in some], layer, [], [z], layer + 1)
        for (i, head, _), arrays in zip(some, made, strict=True):
            values = arrays[name_of(z, base.model.config)][:, :, [head]]
            results[i].append(Change(z, Address(head=head), values))
    return results


def sweep(
    base: BaseRun,
    grid: Grid,
    changes_of: Callable[[Addressed], list[Change]],
    metric: Callable[[Any], Any],
    *,
    last_only: bool = False,
    out: NDArray[np.float64] | None = None,
    progress: bool | None = None,
    one_of_many: bool = False,
) -> NDArray[np.float64]:
    """Compute a metric of every cell. One that a run was interrupted before is NaN.

    Parameters
    ----------
    base : BaseRun
    grid : Grid
    changes_of : callable
        Makes the changes of what a cell addresses.
    metric : callable
        Of logits [B, T, vocab_size], or [B, 1, vocab_size]; gives a number, or a pair that begins with one.
    last_only : bool
        Make the last token's logits only.
    out : array, optional
        Result of an interrupted sweep, to go on with; it is changed in place. Only its NaN are computed.
    progress : bool, optional
        Show a bar; where stderr is a terminal, if not given.
    one_of_many : bool
        Leave KeyboardInterrupt to the caller, who has `out` and other sweeps to do.
    """
    result = np.full(grid.shape, np.nan) if out is None else out
    if not isinstance(result, np.ndarray):
        raise TypeError(
            f"{base.function}: out is {result!r:.80} ({type(result).__name__}), expected an array: the result of an "
            "interrupted call"
        )
    if result.shape != grid.shape or result.dtype != np.float64:
        raise ValueError(
            f"{base.function}: out is {result.dtype} {list(result.shape)}, expected float64 {list(grid.shape)}"
        )
    if not result.flags.writeable:
        raise ValueError(f"{base.function}: out is read-only, expected an array to write to")
    by_layer: dict[int, list[_Cell]] = {}
    for at, addressed in grid.cells():
        if np.isnan(result[at]):
            by_layer.setdefault(first_layer(addressed), []).append((at, addressed))
    same = base.logits[:, -1:] if last_only else base.logits
    unchanged: float | None = None
    try:
        with _bar(progress) as bar:
            task = bar.add_task(base.function, total=sum(map(len, by_layer.values())))
            for cells in by_layer.values():
                for pack in _packs(base, cells, changes_of):
                    if pack[0].begin < base.length:
                        start = min(change.place[1] for cell in pack for change in cell.changes)
                        for cell, logits in zip(pack, base.run(pack, start, last_only=last_only), strict=True):
                            result[cell.at] = number(metric(logits))
                    else:
                        unchanged = number(metric(same)) if unchanged is None else unchanged
                        result[pack[0].at] = unchanged
                    bar.update(task, advance=len(pack))
    except KeyboardInterrupt:
        if one_of_many:
            raise
        warn_interrupted(base.function, result, "; pass the result as out= to go on")
    return result


def warn_interrupted(function: str, result: NDArray[np.float64], how: str = "") -> None:
    """Say that a result has NaN in it, and how to go on."""
    left = int(np.isnan(result).sum())
    warnings.warn(
        f"{function} was interrupted: {left} of {result.size} cells are NaN{how}",
        UserWarning,
        stacklevel=level_of_caller(),
    )


def _packs(
    base: BaseRun, cells: list[_Cell], changes_of: Callable[[Addressed], list[Change]]
) -> Iterator[list[ChangedRun]]:
    """Give what one pass computes; a cell that changes nothing by itself."""
    pack: list[ChangedRun] = []
    rows = 0
    for at, addressed in cells:
        changes = changes_of(addressed)
        run = ChangedRun(at, base.begin_of(changes), changes)
        if run.begin == base.length:
            yield [run]
            continue
        more = len(base.ids) * (base.length - run.begin)
        if pack and (len(pack) == _CELLS or rows + more > _FULL_ROWS):
            yield pack
            pack, rows = [], 0
        pack.append(run)
        rows += more
    if pack:
        yield pack


def number(value: Any) -> float:  # noqa: ANN401
    """Make a float of what a metric gives: a number, an array or tensor of one, or a pair that begins with one."""
    if isinstance(value, tuple) and value:
        value = value[0]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if value is None:
        raise TypeError("the metric gives None, expected a number: has it a return?")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"the metric gives {value!r:.80} ({type(value).__name__}), expected a number") from None
    if array.size != 1:
        raise ValueError(f"the metric gives an array of shape {array.shape}, expected a number")
    return float(array.reshape(()))


def _bar(progress: bool | None) -> Progress:
    """Make a progress bar: where stderr is a terminal, or if it is asked for; or one that draws nothing."""
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

    from ..command.progress import progress_bar

    bar = progress_bar(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
    if progress is not None:
        bar.live.console.quiet = not progress
    return bar
