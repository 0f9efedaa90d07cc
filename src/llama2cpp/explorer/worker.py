"""One thread in which the model computes: one call at a time, and none that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..server.errors import ApiError

Result = TypeVar("Result")
_END = object()


class Worker:
    """Runs what it is given in turn.

    A page asks for each view under a name. What was asked for under the same name before, and has not begun, is not
    begun any more; a stream ends at its next piece.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="llama2cpp-explore")
        self._latest: dict[str, object] = {}

    def close(self) -> None:
        """End the thread; what has not begun is not begun."""
        self._latest.clear()
        self._pool.shutdown(cancel_futures=True)

    async def run(self, view: str | None, compute: Callable[[], Result]) -> Result:
        """Compute something, when all that was asked for before is done."""
        mark = self._begin(view)

        def job() -> Result:
            self._check(view, mark)
            return compute()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, job)
        finally:
            self._end(view, mark)

    async def stream(self, view: str | None, pieces: Iterator[Result]) -> AsyncIterator[Result]:
        """Compute pieces one by one. Between two of them others have their turn."""
        mark = self._begin(view)

        def job() -> Result | object:
            self._check(view, mark)
            return next(pieces, _END)

        try:
            while True:
                piece = await asyncio.get_running_loop().run_in_executor(self._pool, job)
                if piece is _END:
                    return
                yield piece  # type: ignore[misc]
        finally:
            self._end(view, mark)

    def _begin(self, view: str | None) -> object:
        mark = object()
        if view is not None:
            self._latest[view] = mark
        return mark

    def _check(self, view: str | None, mark: object) -> None:
        if view is not None and self._latest.get(view) is not mark:
            raise ApiError(409, "something newer was asked for", code="out_of_date")

    def _end(self, view: str | None, mark: object) -> None:
        if view is not None and self._latest.get(view) is mark:
            del self._latest[view]
