"""Axes of grids, named as in `llama2cpp.patching` and `llama2cpp.attribution`: layers, heads, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..common.arguments import close_names, index, integers
from .figures import short_text, texts

_LETTERS = {"layer": "L", "position": "P", "head": "H", "query_head": "H", "neuron": "N", "key": "K"}
_SPELLED = {"pos": "position", "dest_pos": "position", "src_pos": "key", "head_index": "head"}


@dataclass(frozen=True)
class GridAxis:
    """One axis of a grid: what it is, and the numbers of its places."""

    kind: str
    numbers: list[int]


def grid_axes(
    function: str, over: Sequence[str] | Mapping[str, Any] | None, shape: Sequence[int], tokens: Sequence[str] | None
) -> list[GridAxis]:
    """Read `over`; without it they are layers, and positions where there are tokens, heads otherwise."""
    if over is None:
        usual = ["layer", "head" if tokens is None else "position"]
        if len(shape) > 2:
            raise ValueError(f"{function}: the values have shape {list(shape)}: name the axes by over=")
        over = usual[: len(shape)]
    chosen = dict(over) if isinstance(over, Mapping) else None
    names = [over] if isinstance(over, str) else texts(function, "over", over)
    if len(names) != len(shape):
        raise ValueError(f"{function}: over names {len(names)} axes, the values have shape {list(shape)}")
    axes = []
    for name, size in zip(names, shape, strict=True):
        kind = _SPELLED.get(name, name)
        if kind not in _LETTERS:
            raise ValueError(f"{function}: over has {name!r}{close_names(name, [*_LETTERS, *_SPELLED])}")
        given = None if chosen is None else chosen[name]
        numbers = list(range(size)) if given is None else _indices_of(function, name, given, tokens)
        if len(numbers) != size:
            raise ValueError(f"{function}: over names {len(numbers)} places of axis {name!r}, which has {size}")
        if kind in ("position", "key") and tokens is not None and max(numbers, default=0) >= len(tokens):
            raise ValueError(f"{function}: there are {len(tokens)} tokens for {max(numbers) + 1} positions")
        axes.append(GridAxis(kind, numbers))
    return axes


def _indices_of(function: str, name: str, given: Any, tokens: Sequence[str] | None) -> list[int]:  # noqa: ANN401
    if isinstance(given, str | bytes):
        raise TypeError(f"{function}: over has {name} {given!r}, expected integers")
    numbers = np.atleast_1d(np.asarray(integers(given, name, function), dtype=np.int64))
    return [_index_of(function, name, int(one), tokens) for one in numbers]


def _index_of(function: str, name: str, number: int, tokens: Sequence[str] | None) -> int:
    """Count a place from the beginning. A negative one needs to know how many there are: of tokens it is known."""
    if number >= 0:
        return number
    if tokens is None or _SPELLED.get(name, name) not in ("position", "key"):
        raise ValueError(f"{function}: over has {name} {number}, expected numbers from 0 on")
    return index(number, len(tokens), name, function)


def split(axes: Sequence[GridAxis]) -> tuple[list[int], list[int], list[int]]:
    """Decide which axes are panels, rows and columns of a picture."""
    kinds = [axis.kind for axis in axes]
    rest = list(range(len(axes)))
    if "key" in kinds and "position" in kinds:
        columns, rows = [kinds.index("key")], [kinds.index("position")]
        return [i for i in rest if i not in (*columns, *rows)], rows, columns
    for kind in ("key", "position"):
        if kind in kinds:
            columns = [kinds.index(kind)]
            return [], [i for i in rest if i not in columns], columns
    half = (len(axes) + 1) // 2 if len(axes) > 1 else 0
    return [], rest[:half], rest[half:]


def names_of(axes: Sequence[GridAxis], tokens: Sequence[str] | None = None, *, letters: bool = False) -> list[str]:
    """Name each place of some axes together: "L0H5". Places of one axis are its tokens or numbers alone."""
    if len(axes) == 1 and not letters:
        [axis] = axes
        if axis.kind in ("position", "key") and tokens is not None:
            return [short_text(tokens[number]) for number in axis.numbers]
        return [str(number) for number in axis.numbers]
    count = prod(len(axis.numbers) for axis in axes)
    places = np.unravel_index(np.arange(count), [len(axis.numbers) for axis in axes])
    return [
        "".join(f"{_LETTERS[axis.kind]}{axis.numbers[at]}" for axis, at in zip(axes, place, strict=True))
        for place in zip(*places, strict=True)
    ]


def title_of(axes: Sequence[GridAxis], tokens: Sequence[str] | None) -> str:
    """Name what a side of a picture goes through."""
    words = {"query_head": "head", "key": "key's token", "position": "token"}
    if tokens is None:
        words |= {"key": "key's position", "position": "position"}
    return ", ".join(words.get(axis.kind, axis.kind) for axis in axes)
