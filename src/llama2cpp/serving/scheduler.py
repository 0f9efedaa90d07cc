"""Which rows a pass has: jobs join and leave between passes, and prompts are read beside the texts that go on.

It has no thread: who calls `Scheduler.step` computes. A pass on the CPU gives each row the bits that it has alone, so
nothing of this shows in results.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.kv_size import kv_bytes
from ..inside.hooks import for_call
from ..session import Session
from .prefixes import WORTH_REUSING, PrefixCache, same_adapter, shared_length

if TYPE_CHECKING:
    from ..model import Model
    from .jobs import Job

PASS = 128  # rows of a pass beside texts that go on: they never wait for more of a prompt
ALONE = 256  # tokens of prompts in a pass in which no text goes on
LOGITS = 64  # tokens at a time of those whose logits are all wanted: a row of them may be a megabyte
ROWS = 32  # texts that run at a time, unless others are asked for
PREFIX_BYTES = 1 << 30  # the most that is kept of ended ones, likewise
LEAST = 16  # tokens of prompts that get into a pass, however many texts go on


@dataclass(frozen=True)
class Limits:
    """What the jobs of a scheduler may take.

    Attributes
    ----------
    rows : int
        How many run at a time.
    kv_bytes : int
        Bytes of keys and values that those which run may fill.
    prefix_bytes : int
        Bytes of keys and values that are kept for later prompts which begin alike.
    """

    rows: int
    kv_bytes: int
    prefix_bytes: int


@dataclass
class Counts:
    """What a scheduler has done so far, in passes and in tokens."""

    passes: int = 0
    prompt_tokens: int = 0  # computed
    reused_tokens: int = 0
    generated_tokens: int = 0
    accepted_tokens: int = 0  # of those that were proposed


def _session_bytes(position: int, logits: int, positions: int) -> int:
    """Give the bytes of so many positions, and of the logits."""
    return positions * position + logits


class _Row:
    """A job that runs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.session: Session | None = None  # None: it waits for `leader` to read what both begin with
        self.leader: _Row | None = None
        self.shared = 0
        self.reading = True  # its ids; then it is a text that goes on


@dataclass
class _Feed:
    """What a pass feeds to a row."""

    row: _Row
    tokens: list[int]
    place: NDArray[np.float32] | None = None  # where the logits after each go

    @property
    def session(self) -> Session:
        assert self.row.session is not None
        return self.row.session


class Scheduler:
    """Jobs of one model, those that run and those that wait.

    Parameters
    ----------
    model : Model
        What runs them.
    limits : Limits
        How many at a time.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self._size = partial(_session_bytes, kv_bytes(model.config, model.kv_dtype), 2 * 4 * model.config.vocab_size)
        self.waiting: deque[Job] = deque()
        self.counts = Counts()
        self.stopping = False  # everything is cancelled
        self._rows: list[_Row] = []
        self._taken = 0  # bytes that those which run may fill
        # Not its own method: that circle would keep the model until the garbage collector comes.
        self._prefixes = PrefixCache(limits.prefix_bytes, self._size)

    def bytes_for(self, positions: int) -> int:
        """How much memory a session with so many positions has."""
        return self._size(positions)

    @property
    def running(self) -> int:
        """How many jobs have a row."""
        return len(self._rows)

    @property
    def prefix_bytes(self) -> int:
        """How much memory is kept for prompts to come."""
        return self._prefixes.nbytes

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self.waiting)

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self.waiting.append(job)

    def step(self) -> None:
        """Let jobs in, compute one pass, and see which have ended."""
        self._drop_cancelled()
        self._let_in()
        feeds = self._plan()
        if feeds:
            for feed in self._run(feeds):
                self._after(feed)

    def end_all(self, error: BaseException) -> None:
        """Fail everything, with what has made it impossible to go on."""
        for row in list(self._rows):
            self._end(row, error)
        while self.waiting:
            self.waiting.popleft().end(error)

    def forget(self) -> None:
        """Let go of what is kept for prompts to come."""
        self._prefixes.clear()

    def _drop_cancelled(self) -> None:
        for row in list(self._rows):
            if row.job.cancelled or self.stopping:
                self._end(row)
        for job in [job for job in self.waiting if job.cancelled or self.stopping]:
            self.waiting.remove(job)
            job.end(None)

    def _let_in(self) -> None:
        """First come, first served: one that does not fit keeps those behind it waiting."""
        while self.waiting and len(self._rows) < self._limits.rows:
            job = self.waiting[0]
            size = self.bytes_for(job.positions)
            if self._rows and self._taken + size > self._limits.kv_bytes:
                return
            self.waiting.popleft()
            self._taken += size
            row = _Row(job)
            self._rows.append(row)
            try:
                self._seat(row)
            except Exception as error:  # there is no memory for its session
                self._end(row, error)

    def _seat(self, row: _Row) -> None:
        """Give a row its session: one that begins with what another has read, where that is worth it."""
        job = row.job
        most = len(job.ids) - 1  # the last one is read anew, for its logits
        if job.logits_from is not None:
            most = min(most, job.logits_from)
        length, source = (0, None) if job.watched else self._prefixes.find(job.ids[:most], job.adapter)
        row.leader = None
        earlier = self._rows[: self._rows.index(row)]  # so that no two wait for each other
        for other in [] if job.watched else earlier:
            if other.job.watched or not same_adapter(other.job.adapter, job.adapter):
                continue
            shared = shared_length(other.job.ids, job.ids[:most])
            if shared > length and shared >= WORTH_REUSING:
                length, source, row.leader = shared, other.session, other
        if row.leader is not None and (source is None or source.position < length):
            row.shared = length
            return
        row.leader = None
        model = self._model
        if source is None:
            session = model.session(adapter=job.adapter)
        else:
            session = Session(source._core.fork(length), model, source.adapter)
        job.reused = length if source is not None else 0
        self.counts.reused_tokens += job.reused
        job.begin(session)
        row.session = session

    def _plan(self) -> list[_Feed]:
        """Each text that goes on has a row; prompts fill the rest in the order of their arrival."""
        going_on = [row for row in self._rows if not row.reading]
        feeds = [feed for row in going_on if (feed := self._going_on(row, len(going_on))) is not None]
        room = max(PASS - sum(len(feed.tokens) for feed in feeds), LEAST) if feeds else ALONE
        for row in list(self._rows):
            if room <= 0:
                break
            if not row.reading or not self._seated(row):
                continue
            feed = self._next(row, room)
            feeds.append(feed)
            room -= len(feed.tokens)
        return feeds

    def _seated(self, row: _Row) -> bool:
        """Whether it has a session, or can be given one now."""
        if row.session is not None:
            return True
        leader = row.leader
        assert leader is not None
        if leader in self._rows and (leader.session is None or leader.session.position < row.shared):
            return False
        try:
            self._seat(row)
        except Exception as error:
            self._end(row, error)
        return row.session is not None

    def _going_on(self, row: _Row, rows: int) -> _Feed | None:
        try:
            return _Feed(row, *row.job.next_row(rows)[1:])
        except Exception as error:  # of what proposes tokens for it
            self._end(row, error)
            return None

    def _next(self, row: _Row, room: int) -> _Feed:
        job, session = row.job, row.session
        assert session is not None
        at = session.position
        if job.edited:  # hooks see a prompt whole
            return self._with_place(_Feed(row, job.ids.tolist()), at)
        end = min(at + room, len(job.ids))
        if job.logits_from is not None:
            end = min(end, job.logits_from if at < job.logits_from else at + LOGITS)
        return self._with_place(_Feed(row, job.ids[at:end].tolist()), at)

    def _with_place(self, feed: _Feed, at: int) -> _Feed:
        start = feed.row.job.logits_from
        if start is not None and at + len(feed.tokens) > start:
            feed.place = np.empty((len(feed.tokens), self._model.config.vocab_size), dtype=np.float32)
        return feed

    def _run(self, feeds: list[_Feed]) -> list[_Feed]:
        """Compute a pass; gives those whose rows have moved on. A call that fails has moved none."""
        together = [feed for feed in feeds if not self._apart(feed)]
        alone = [feed for feed in feeds if self._apart(feed)]
        done = []
        if together:
            try:
                self._feed(together)
                done += together
            except Exception:
                alone = [*together, *alone]  # whose fault it was shows when each runs by itself
        for feed in alone:
            try:
                self._feed([feed])
                done.append(feed)
            except Exception as error:
                self._end(feed.row, error)
        return done

    @staticmethod
    def _apart(feed: _Feed) -> bool:
        return feed.row.job.calls_back or (feed.row.reading and feed.row.job.edited)

    def _feed(self, feeds: list[_Feed]) -> None:
        core = self._model._core
        # Those with one adapter follow each other: its factors are read once. The order changes no bits.
        if any(feed.row.job.adapter is not None for feed in feeds):
            feeds = sorted(feeds, key=lambda feed: id(feed.row.job.adapter))
        generated = [not feed.row.reading for feed in feeds]
        hooks = for_call([feed.session for feed in feeds], core, generated=generated, added=False)
        rows: list[Any] = [
            (feed.session._core, feed.tokens) if feed.place is None else (feed.session._core, feed.tokens, feed.place)
            for feed in feeds
        ]
        core.feed(rows, hooks)
        self.counts.passes += 1

    def _after(self, feed: _Feed) -> None:
        """Hand on what a row has, and ask what is next."""
        row, session = feed.row, feed.session
        if row.reading:
            self.counts.prompt_tokens += len(feed.tokens)
        try:
            if feed.place is not None and row.reading:
                begin = session.position - len(feed.tokens)
                unwanted = max((row.job.logits_from or 0) - begin, 0)
                row.job.take_logits(begin + unwanted, feed.place[unwanted:])
            if session.position < len(row.job.ids):
                return
            job = row.job
            before = job.generated, job.accepted
            goes_on = job.go_on(session)
            row.reading = False
            self.counts.generated_tokens += job.generated - before[0]
            self.counts.accepted_tokens += job.accepted - before[1]
        except Exception as error:
            self._end(row, error)
            return
        if not goes_on:
            self._end(row)

    def _end(self, row: _Row, error: BaseException | None = None) -> None:
        self._rows.remove(row)
        self._taken -= self.bytes_for(row.job.positions)
        if row.session is not None and not row.job.watched and error is None:
            with contextlib.suppress(MemoryError):
                self._prefixes.keep(row.session)
        row.job.end(error)
