"""Activations that are computed again when they are asked for: a cache of `Model.run_with_cache` with ``max_bytes``."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .places import Place, find_places, is_pattern, name_of, residual_streams

Array: TypeAlias = NDArray[np.float32]


def shape_of(place: Place, config: _core.Config, batch: int, length: int) -> tuple[int, ...]:
    """Give the shape of a place's activation in a run of whole prompts."""
    heads, width = _core.point_shape(place[0], config)
    if is_pattern(name_of(place, config)):
        return batch, heads, length, length
    return (batch, length, heads, width) if heads else (batch, length, width)


def bytes_of(place: Place, config: _core.Config, batch: int, length: int) -> int:
    """Give how much memory it takes."""
    return 4 * math.prod(shape_of(place, config, batch, length))


class RecomputedArrays(MutableMapping[str, Array]):
    """The residual stream before each layer, and from it everything else, a layer at a time, with the run's own bits.

    Arrays are read-only: a change would be lost when they are computed again.

    Parameters
    ----------
    core : Model
        The core's.
    ids : sequence of sequence of int
        Prompts [B][T] of one length.
    streams : mapping of str to array [B, T, dim]
        Into each layer, and after the last.
    places : sequence of (point, layer)
        What there is.
    max_bytes : int
        What is held, at the most, beside an array that alone takes more.

    Examples
    --------
    See `Model.run_with_cache`.

    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> _, cache = model.run_with_cache("Once upon a time", max_bytes=40_000)
    >>> whole = model.run_with_cache("Once upon a time")[1]
    >>> bool((cache["pattern", 3] == whole["pattern", 3]).all()), cache.nbytes < 40_000 < whole.nbytes
    (True, True)
    """

    def __init__(
        self,
        core: _core.Model,
        ids: Sequence[Sequence[int]],
        streams: Mapping[str, Array],
        places: Sequence[Place],
        max_bytes: int,
    ) -> None:
        self._core, self._ids = core, [list(own) for own in ids]
        self.streams = dict(streams)
        for array in self.streams.values():
            array.flags.writeable = False
        config = core.config
        self._places = {name_of(place, config): place for place in places}
        self._room = max_bytes - sum(array.nbytes for array in self.streams.values())
        self._blocks: list[dict[str, Array]] = []  # of one call each, the one used last at the end
        self._added: dict[str, Array] = {}
        self.batched = True
        self._lock = threading.Lock()  # threads that read activations of one cache take turns

    @property
    def batch(self) -> int:
        """How many prompts there are."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """How much memory is held."""
        held = [*self.streams.values(), *self._added.values(), *(a for block in self._blocks for a in block.values())]
        return sum(array.nbytes for array in held)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give an array's shape without computing it."""
        if name in self._added:
            return self._added[name].shape
        shape = shape_of(self._places[name], self._core.config, self.batch, len(self._ids[0]))
        return shape if self.batched else shape[1:]

    def __getitem__(self, name: str) -> Array:
        if name in self._added:
            return self._added[name]
        if name not in self._places:
            raise KeyError(name)
        array = self.streams[name] if name in self.streams else self._found(name)
        return array if self.batched else array[0]

    def _found(self, name: str) -> Array:
        with self._lock:
            return self._kept_or_computed(name)

    def _kept_or_computed(self, name: str) -> Array:
        for i, block in enumerate(self._blocks):
            if name in block:
                self._blocks.append(self._blocks.pop(i))
                return block[name]
        block = self._computed(name)
        size = sum(array.nbytes for array in block.values())
        while self._blocks and self._room - sum(a.nbytes for b in self._blocks for a in b.values()) < size:
            del self._blocks[0]
        if size <= self._room:
            self._blocks.append(block)
        return block[name]

    def _computed(self, name: str) -> dict[str, Array]:
        """Run the layer of an activation for it, and for as many others of the layer as there is room for."""
        core, config, length = self._core, self._core.config, len(self._ids[0])
        behind = find_places("ln_final.*", config)
        place = self._places[name]
        last = place in behind
        room = self._room - bytes_of(place, config, self.batch, length)
        chosen = [place]
        for other_name, other in self._places.items():
            if other == place or other_name in self.streams or other[1] != place[1] or (other in behind) != last:
                continue
            room -= bytes_of(other, config, self.batch, length)
            if room < 0:
                break
            chosen.append(other)
        start = config.n_layers if last else place[1]
        names = residual_streams(config)
        rows = [(core.session(), ids) for ids in self._ids]
        stop = None if last else place[1] + 1
        stream = np.ascontiguousarray(self.streams[names[start]]) if start else None  # the first layer has the tokens
        [(_, arrays)] = core.run_with_cache(rows, chosen, None, stop, None, start or None, stream, False)
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def __setitem__(self, name: str, array: Array) -> None:
        self._added[name] = array

    def __delitem__(self, name: str) -> None:
        raise TypeError("activations that are computed again cannot be taken away")

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from (name for name in self._added if name not in self._places)

    def __len__(self) -> int:
        return len(self._places.keys() | self._added.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._added

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return dict, (dict(self),)
