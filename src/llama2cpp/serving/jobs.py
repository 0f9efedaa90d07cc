"""What a scheduler works on: ids to read, and what is done with what comes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..adapters import Adapter
from ..common.piece import Piece
from ..common.probabilities import log_softmax
from ..decoding import Completion, Sample
from ..inside.hooks import Scope, Scoped
from ..inside.places import find_places
from ..inside.tracks import Tracks
from .requests import Request

if TYPE_CHECKING:
    from ..session import Session


class Job:
    """Ids that are to be read by a session of their own. It ends when they have been, unless `go_on` says more.

    Parameters
    ----------
    ids : sequence of int
        The prompt.
    positions : int
        How many positions of the cache it may fill.
    scopes : sequence of Scope
        Hooks and recordings that look at its session.
    adapter : Adapter, optional
        What is computed beside the weights.
    """

    # From which position on the logits after each token are wanted: `take_logits` gets them. None: none are.
    logits_from: int | None = None

    def __init__(
        self, ids: Sequence[int], positions: int, scopes: Sequence[Scope] = (), adapter: Adapter | None = None
    ) -> None:
        self.ids = np.array(ids, dtype=np.int64)
        self.adapter = adapter
        self.positions = positions
        self.reused = 0  # tokens that another session had computed
        self.generated = 0  # tokens
        self.accepted = 0  # tokens that were what was proposed
        self._scopes = scopes
        self._on = ExitStack()

    @property
    def watched(self) -> bool:
        """Whether something looks at its session: then it computes all by itself, and nobody goes on from it."""
        return bool(self._scopes)

    @property
    def edited(self) -> bool:
        """Whether something may change its activations: the prompt is then one pass, as in `Session.prefill`."""
        return any(scope.entries for scope in self._scopes)

    @property
    def calls_back(self) -> bool:
        """Whether Python functions look at it: they may raise, or take long, in passes of its own."""
        return any(not isinstance(entry.what, _core.Intervention) for scope in self._scopes for entry in scope.entries)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants more of it."""
        return False

    def begin(self, session: Session) -> None:
        """Switch on what looks at its session."""
        for scope in self._scopes:
            self._on.enter_context(Scoped(replace(scope, session=session._core)))

    def take_logits(self, begin: int, logits: NDArray[np.float32]) -> None:
        """Take logits [T, vocab_size] after the tokens from `begin` on."""

    def go_on(self, session: Session) -> bool:
        """Take what a pass has given, when all ids have been read; gives whether more is to be fed."""
        return False

    def next_row(self, rows: int) -> tuple[Any, ...]:
        """Give what is fed next, in a pass that has so many texts."""
        raise NotImplementedError

    def end(self, error: BaseException | None) -> None:
        """Hand over what there is: it has ended, been cancelled, or failed."""
        self._on.close()


class TextJob(Job):
    """A prompt that is continued for a `Request`.

    Parameters
    ----------
    request : Request
        Who is told.
    ids, positions, scopes
        As for any job.
    sample : callable
        Makes the `Sample` when the session has read the prompt.
    logits : str
        "none", "last" or "all": which of the prompt's the request gets.
    adapter
        As for any job.
    """

    def __init__(
        self,
        request: Request,
        ids: Sequence[int],
        positions: int,
        scopes: Sequence[Scope],
        sample: Callable[[Session], Sample],
        logits: str,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(ids, positions, scopes, adapter)
        self._request = request
        self._make_sample = sample
        self._sample: Sample | None = None
        self._last_only = logits == "last"
        if logits != "none":
            self.logits_from = len(self.ids) - 1 if self._last_only else 0
        self._logits: list[NDArray[np.float32]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the request was."""
        return self._request._cancelled

    def take_logits(self, begin: int, logits: NDArray[np.float32]) -> None:
        """Keep them for the request."""
        self._logits.append(logits)

    def go_on(self, session: Session) -> bool:
        """Sample what follows, and tell the request."""
        if self._sample is None:
            if self._logits:
                together = np.concatenate(self._logits)
                self._request._logits = together[0] if self._last_only else together
                self._logits = []
            self._sample = self._make_sample(session)
            if self._sample.finish_reason is None:
                self._tell(self._sample.sample())
        else:
            with closing(self._sample.draws()) as drawn:
                for piece in drawn:
                    self._tell(piece)
        return self._sample.finish_reason is None

    def next_row(self, rows: int) -> tuple[Any, ...]:
        """Give the last token, and perhaps guesses behind it."""
        assert self._sample is not None
        return self._sample.next_row(rows, proposes=not self.watched)

    def _tell(self, piece: Piece) -> None:
        sample = self._sample
        assert sample is not None
        usage = sample.usage(self.reused)
        self.generated, self.accepted = usage.completion_tokens, usage.accepted_tokens
        self._request._push(piece, usage)

    def end(self, error: BaseException | None) -> None:
        """Give the request its result."""
        super().end(error)
        request, sample = self._request, self._sample
        if error is not None:
            request._end(error)
            return
        if sample is None:
            request._end(Completion("", [], [], [], "cancelled"))
            return
        if sample.finish_reason is None:
            self._tell(sample.end("cancelled"))
        request._end(sample.completion(request.text, self.reused))


class MeasureJob(Job):
    """One whose sender waits for a number.

    Parameters
    ----------
    ids, positions, scopes, adapter
        As for any job.
    """

    def __init__(
        self, ids: Sequence[int], positions: int, scopes: Sequence[Scope] = (), adapter: Adapter | None = None
    ) -> None:
        super().__init__(ids, positions, scopes, adapter)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._read = False  # all ids
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether its sender has left."""
        return self._cancelled

    def cancel(self) -> None:
        """Let it end within one pass."""
        self._cancelled = True

    def go_on(self, session: Session) -> bool:
        """Note that there is nothing more to do."""
        self._read = True
        return False

    def wait(self) -> None:
        """Wait for its end, and raise what has ended it."""
        self._over.wait()
        if self._error is not None:
            raise self._error

    def end(self, error: BaseException | None) -> None:
        """Let its sender go on."""
        super().end(error)
        self._error = error or (None if self._read else RuntimeError("the engine was closed before this had its turn"))
        self._over.set()


class ScoreJob(MeasureJob):
    """A context and a continuation, whose tokens' log probabilities are wanted.

    Parameters
    ----------
    ids : sequence of int
        Both.
    context : int
        How many of them are the context's, at least one.
    adapter
        As for any job.
    """

    def __init__(self, ids: Sequence[int], context: int, adapter: Adapter | None = None) -> None:
        super().__init__(ids[:-1], len(ids) - 1, (), adapter)  # nobody asks what follows the last one
        self._all = np.array(ids, dtype=np.int64)
        self.logits_from = context - 1
        self.logprobs: list[float] = []
        self.greedy = True

    def take_logits(self, begin: int, logits: NDArray[np.float32]) -> None:
        """Note the next tokens' log probabilities."""
        targets = self._all[begin + 1 : begin + 1 + len(logits)]
        logprobs = log_softmax(logits)[np.arange(len(targets)), targets]
        self.logprobs += [float(logprob) for logprob in logprobs]
        self.greedy = self.greedy and bool((logits.argmax(axis=-1) == targets).all())


class EmbedJob(MeasureJob):
    """A text whose last residual stream is wanted.

    Parameters
    ----------
    ids : sequence of int
        The text.
    core : _core.Model
        The model.
    adapter
        As for any job.
    """

    def __init__(self, ids: Sequence[int], core: _core.Model, adapter: Adapter | None = None) -> None:
        self._tracks = Tracks(_core.Recorder(core, find_places("blocks.-1.hook_resid_post", core.config)))
        super().__init__(ids, len(ids), [Scope(core, None, tracks=self._tracks)], adapter)
        self.stream: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)

    def end(self, error: BaseException | None) -> None:
        """Take what was recorded: [T, dim]."""
        if error is None and self._tracks.all:
            arrays, _, _ = self._tracks.recorder.arrays(self._tracks.all[0])
            (found,) = arrays.values()
            self.stream = found[0]
        super().end(error)
