"""Reading and decoding in turns: what share of the machine's speed of reading a model uses, as that speed changes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

_APART = 1.25  # limits that differ by this much are those of two phases
_FEW = 4  # turns that are no phases yet


class Turn(NamedTuple):
    """How fast weights were read, and how fast they could be."""

    used: float  # bytes a second, of weights
    limit: float  # the faster of the readings before and after

    @property
    def share(self) -> float:
        """How much of what could be read was."""
        return self.used / self.limit


class Phase(TypedDict):
    """Turns in which the machine reads about equally fast."""

    turns: int
    read_gigabytes_per_second: float  # medians
    share: float


def take_turns(read: Callable[[], float], decode: Callable[[int], float], count: int) -> list[Turn]:
    """Read, decode, read, decode, and so on, and read. `decode` is told which turn it is."""
    used: list[float] = []
    readings = [read()]
    for i in range(count):
        used.append(decode(i))
        readings.append(read())
    return [Turn(speed, max(pair)) for speed, pair in zip(used, pairwise(readings), strict=True)]


def phases(turns: Sequence[Turn]) -> list[Phase]:
    """Split turns where the limit has a low and a high phase, as with neighbours that come and go; else give one."""
    limits = [turn.limit for turn in turns]
    middle = (min(limits) * max(limits)) ** 0.5
    parts = [[turn for turn in turns if turn.limit < middle], [turn for turn in turns if turn.limit >= middle]]
    if len(turns) < _FEW or max(limits) < _APART * min(limits):
        parts = [list(turns)]
    return [
        {
            "turns": len(part),
            "read_gigabytes_per_second": statistics.median(turn.limit for turn in part) / 1e9,
            "share": statistics.median(turn.share for turn in part),
        }
        for part in parts
    ]


def over_the_limit(turns: Sequence[Turn]) -> int:
    """Count the turns in which decoding was faster than any reader: then the limit is none, a fault of the bench."""
    return sum(turn.share > 1 for turn in turns)
