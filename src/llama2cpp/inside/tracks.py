"""Which sessions a recording has seen, and what was kept of each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .. import _core
from ..adapters import Adapter

if TYPE_CHECKING:
    from ..session import Session


class Tracks:
    """What has been recorded of each session, in the order in which they were first fed."""

    def __init__(self, recorder: _core.Recorder) -> None:
        self.recorder = recorder
        self.all: list[_core.Track] = []
        self._adapters: dict[int, Adapter] = {}  # of a track of `all`, by its id()
        self._of_session: WeakKeyDictionary[Session, _core.Track] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def find(self, session: Session) -> _core.Track | None:
        """Get a session's track, if it has one."""
        with self._lock:
            return self._of_session.get(session)

    def of(self, session: Session) -> _core.Track:
        """Get a session's track, a new one if need be."""
        track = self.find(session)
        return self._add(session, _core.Track()) if track is None else track

    def adapter_of(self, track: _core.Track) -> Adapter | None:
        """Get what was computed beside the weights of its session."""
        return self._adapters.get(id(track))

    def follow(self, session: Session, fork: Session) -> None:
        """Let a fork begin with what has been recorded of a session."""
        track = self.find(session)
        if track is not None:
            self._add(fork, track.fork())

    def _add(self, session: Session, track: _core.Track) -> _core.Track:
        with self._lock:
            added = self._of_session.setdefault(session, track)
            if added is track:
                self.all.append(track)
                if session.adapter is not None:
                    self._adapters[id(track)] = session.adapter
            return added
