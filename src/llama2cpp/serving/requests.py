"""A request of an engine, as its sender sees it: text as it comes, a result, a way to end it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked
from ..common.not_pickled import NotPickled
from ..common.piece import Piece
from ..common.usage import Usage

if TYPE_CHECKING:
    from ..decoding import Completion, FinishReason
    from ..inside.cache import ActivationCache
    from ..inside.recording import Recording


class Request(NotPickled):
    """One text that an engine works on. `Engine.submit` makes it.

    Iterating gives its pieces as they come, each a str that also has the ids (``tokens``) and, where they were asked
    for, the log probabilities (``logprobs``, ``top_logprobs``) that belong to it. Each iteration begins at the first
    piece. ``async for`` does the same without blocking the loop.

    Examples
    --------
    >>> import llama2cpp
    >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
    ...     request = engine.submit("Once upon a", max_tokens=3, temperature=0)
    ...     print([str(piece) for piece in request], request.finish_reason)
    [' time', ',', ' in'] length
    """

    _instead = "result() is a Completion, which can be"

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._pieces: list[Piece] = []
        self._result: Completion | None = None
        self._error: BaseException | None = None
        self._wake: list[Callable[[], object]] = []
        self._cancelled = False
        self._usage = Usage(0, 0, 0)
        self._logits: NDArray[np.float32] | None = None
        self._recording: Recording | None = None

    def __iter__(self) -> Iterator[Piece]:
        at = 0
        while True:
            with self._condition:
                self._condition.wait_for(lambda: at < len(self._pieces) or self.done)  # noqa: B023 - called here
                new = self._pieces[at:]
            yield from new
            at += len(new)
            if not new:
                self._raise()
                return

    async def __aiter__(self) -> AsyncIterator[Piece]:
        import asyncio

        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(news.set)

        with self._condition:
            self._wake.append(wake)
        try:
            at = 0
            while True:
                with self._condition:
                    news.clear()
                    new, done = self._pieces[at:], self.done
                for piece in new:
                    yield piece
                at += len(new)
                if not new and done:
                    self._raise()
                    return
                if not new:
                    await news.wait()
        finally:
            with self._condition:
                self._wake.remove(wake)

    @checked
    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end.

        Parameters
        ----------
        timeout : float, optional
            The most seconds to wait; as long as it takes if not given.

        Returns
        -------
        Completion
            The whole text with what is known about its tokens: log probabilities where they were asked for. Its
            ``finish_reason`` is "cancelled" after `cancel`, with the text so far.

        Raises
        ------
        TimeoutError
            If it has not ended by then. It goes on.
        Exception
            Whatever ended it: what a hook of its own has raised, for instance.

        Examples
        --------
        >>> import llama2cpp
        >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
        ...     engine.submit("Once upon a", max_tokens=3, temperature=0).result().text
        ' time, in'
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the request has not ended within {timeout} s")
        self._raise()
        assert self._result is not None
        return self._result

    def __await__(self) -> Any:  # noqa: ANN401
        async def end() -> Completion:
            async for _ in self:
                pass
            return self.result()

        return end().__await__()

    def cancel(self) -> None:
        """End it within one pass. What has come so far stays; one that has ended already stays as it is.

        Examples
        --------
        >>> import llama2cpp
        >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
        ...     request = engine.submit("Once upon a time", max_tokens=None)
        ...     request.cancel()
        ...     request.result().finish_reason in ("cancelled", "end")
        True
        """
        self._cancelled = True

    @property
    def done(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._result is not None or self._error is not None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it has ended, as in `Completion`, or "cancelled"; None before that, and after an error."""
        return None if self._result is None else self._result.finish_reason

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def usage(self) -> Usage:
        """What it took so far, in tokens."""
        return self._usage

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """What ``logits=`` asked for: [vocab_size] after the prompt, or [T, vocab_size] after each of its tokens.

        None where nothing was asked for, and until the prompt has been read.
        """
        return self._logits

    def cache(self) -> ActivationCache:
        """Get the activations that ``record=`` asked for, of the prompt and of the tokens that were fed since.

        Returns
        -------
        ActivationCache

        Raises
        ------
        ValueError
            If nothing was to be recorded, or nothing has been fed yet.

        Examples
        --------
        >>> import llama2cpp
        >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
        ...     request = engine.submit("Once upon a time", max_tokens=3, record="resid_post")
        ...     completion = request.result()
        >>> request.cache()["resid_post", -1].shape[-1]
        192
        """
        if self._recording is None:
            raise ValueError("Request.cache: nothing was recorded: pass record= to submit()")
        return self._recording.cache()

    def __repr__(self) -> str:
        state = "running or waiting" if not self.done else f"ended ({self.finish_reason or type(self._error).__name__})"
        return f"<llama2cpp.Request: {state}, {self._usage.completion_tokens} tokens>"

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # What the engine's thread does:

    def _push(self, piece: Piece, usage: Usage) -> None:
        with self._condition:
            self._usage = usage
            if piece:
                self._pieces.append(piece)
                self._tell()

    def _end(self, result: Completion | BaseException) -> None:
        with self._condition:
            if isinstance(result, BaseException):
                self._error = result
            else:
                self._result = result
            self._tell()

    def _tell(self) -> None:
        self._condition.notify_all()
        for wake in self._wake:
            wake()
