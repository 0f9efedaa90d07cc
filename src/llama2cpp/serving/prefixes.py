"""What earlier requests have computed, for those that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter
from ..session import Session

WORTH_REUSING = 8  # tokens: a fork costs about what computing so few does


def shared_length(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """How many ids two sequences have in common at their beginnings."""
    count = min(len(first), len(second))
    different = np.flatnonzero(first[:count] != second[:count])
    return int(different[0]) if len(different) else count


def same_adapter(first: Adapter | None, second: Adapter | None) -> bool:
    """Whether what one has computed is what the other would."""
    if first is None or second is None:
        return first is second
    return first is second or first.fingerprint == second.fingerprint


class PrefixCache:
    """Sessions of requests that have ended, within a limit of memory: the least recently used goes first.

    Parameters
    ----------
    limit : int
        Bytes of keys and values, and of the logits beside them.
    bytes_of : callable
        How many a session of so many tokens has.
    """

    def __init__(self, limit: int, bytes_of: Callable[[int], int]) -> None:
        self.limit = limit
        self.nbytes = 0
        self._bytes_of = bytes_of
        self._kept: OrderedDict[int, tuple[NDArray[np.int64], Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ids: NDArray[np.int64], adapter: Adapter | None = None) -> tuple[int, Session | None]:
        """Find the session with the adapter that shares most with `ids`: how many tokens, and which."""
        best, found = 0, None
        for key, (tokens, session) in self._kept.items():
            if not same_adapter(session.adapter, adapter):
                continue
            length = shared_length(tokens, ids)
            if length > best:
                best, found = length, key
        if found is None or best < WORTH_REUSING:
            return 0, None
        self._kept.move_to_end(found)
        return best, self._kept[found][1]

    def keep(self, session: Session) -> None:
        """Keep what a session has computed, if it fits and is not there already."""
        tokens = np.array(session.tokens, dtype=np.int64)
        size = self._bytes_of(len(tokens))
        if len(tokens) < WORTH_REUSING or size > self.limit:
            return
        for key, (others, other) in list(self._kept.items()):
            if not same_adapter(other.adapter, session.adapter):
                continue
            length = shared_length(others, tokens)
            if length == len(tokens):  # another one begins with all of it
                self._kept.move_to_end(key)
                return
            if length == len(others):
                self._drop(key)
        while self._kept and self.nbytes + size > self.limit:
            self._drop(next(iter(self._kept)))
        self._kept[id(session)] = (tokens, session)
        self.nbytes += size

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self.nbytes = 0

    def _drop(self, key: int) -> None:
        tokens, _ = self._kept.pop(key)
        self.nbytes -= self._bytes_of(len(tokens))
