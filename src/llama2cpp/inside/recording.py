"""Recordings: the activations of everything that is fed in a ``with`` block, decoding included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core
from ..common.arguments import checked
from .cache import ActivationCache
from .hooks import Scope, Scoped
from .places import places_to_keep
from .tracks import Tracks

if TYPE_CHECKING:
    from ..session import Session
    from .places import Names
    from .readable_model import ReadableModel


class Recording(Scoped):
    """What `Model.record` and `Session.record` return: a context manager that keeps activations, token by token.

    While it is on, C++ code appends the activations of each token that is fed, in `Session.step` and `prefill`, in
    `Model.forward`, `generate`, `stream` and `chat`, to memory of its own. Edits act before it. It follows its
    sessions: a token that is fed in the place of one that was rewound replaces it, a fork begins with what its parent
    had, and a call that fails leaves nothing.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> with model.record(["resid_post", "pattern"]) as recording:
    ...     text = model.generate("Once upon a time", max_tokens=8, temperature=0)
    >>> cache = recording.cache()  # 5 tokens of the prompt and 7 of the 8: the last one was not fed
    >>> cache["resid_post", 4].shape, cache["pattern", 4].shape
    ((1, 12, 192), (1, 6, 12, 12))
    >>> recording
    <llama2cpp.Recording: 1 sequence, 12 tokens>
    """

    _instead = "cache() makes an ActivationCache of it, which can be"

    @checked
    def __init__(
        self,
        core: _core.Model,
        session: _core.Session | None,
        names_filter: Names | None,
        tokens: int | None,
        model: ReadableModel | None,
    ) -> None:
        places = places_to_keep(names_filter, core.config)
        self._model = model
        self._tracks = Tracks(_core.Recorder(core, places))
        super().__init__(Scope(core, session, tracks=self._tracks))
        if tokens is not None:
            self._tracks.recorder.reserve(self.bytes_for(tokens))

    def cache(self, session: Session | None = None) -> ActivationCache:
        """Get what has been recorded of one sequence, so far.

        Parameters
        ----------
        session : Session, optional
            Which one; not needed where a single one was recorded, as in `generate`.

        Returns
        -------
        ActivationCache
            float32 arrays [1, T, ...], copies, T tokens in the order of their positions; ``cache.positions`` has these
            where some before the last are missing. ``hook_attn_scores`` and ``hook_pattern`` are [1, n_heads, T, S]
            with S the last position + 1: keys after a token's own are -inf and 0, as in a prompt. ``ln_final`` is NaN
            for tokens whose logits nobody asked for, those of a prompt but the last.

        Raises
        ------
        ValueError
            If nothing has been recorded of the session, or several have been and none is given.
        MemoryError
            If the arrays need more memory than is available; it says how much.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> first, second = model.session(), model.session()
        >>> with model.record("z") as recording:
        ...     logits = model.forward([(first, [1, 508]), (second, [1])])
        ...     logits = first.step(509)
        >>> recording.cache(first)["z", 0].shape, recording.cache(second)["z", 0].shape
        ((1, 3, 6, 32), (1, 1, 6, 32))
        """
        if session is not None:
            track = self._tracks.find(session)
            if track is None or not len(track):
                raise ValueError(f"nothing was recorded of {session!r}")
            return self._cache(track)
        tracks = self._recorded()
        if len(tracks) != 1:
            advice = "; name the session, or use caches()" if tracks else ""
            raise ValueError(f"{len(tracks)} sequences were recorded, expected 1{advice}")
        return self._cache(tracks[0])

    def caches(self) -> list[ActivationCache]:
        """Get what has been recorded of every sequence, so far.

        Returns
        -------
        list of ActivationCache
            In the order in which they were first fed or forked: for ``generate(..., n=3)`` sample after sample.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> with model.record("resid_post4") as recording:
        ...     texts = model.generate("Once upon a time", n=2, max_tokens=6, seed=1)
        >>> [cache["resid_post", 4].shape for cache in recording.caches()]
        [(1, 10, 192), (1, 10, 192)]
        """
        return [self._cache(track) for track in self._recorded()]

    @checked
    def bytes_for(self, tokens: int) -> int:
        """How much memory a sequence of so many tokens takes, known before it is run.

        Parameters
        ----------
        tokens : int
            From position 0 on. Patterns have a number for each pair of tokens.

        Returns
        -------
        int
            Bytes, at most 60 a token more than are used. `cache` makes arrays of that size besides.

        Raises
        ------
        ValueError
            If `tokens` is negative.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").record("resid_post").bytes_for(1000)
        3900000
        """
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}, expected 0 or more")
        return int(self._tracks.recorder.bytes(0, tokens))

    @property
    def nbytes(self) -> int:
        """How much memory has been taken so far, in bytes. What was rewound has been given back in part."""
        return self._tracks.recorder.bytes_taken

    def _recorded(self) -> list[_core.Track]:
        return [track for track in self._tracks.all if len(track)]

    def _cache(self, track: _core.Track) -> ActivationCache:
        arrays, positions, tokens = self._tracks.recorder.arrays(track)
        complete = len(positions) == len(tokens)
        cache = ActivationCache(arrays, self._model, positions=None if complete else positions, tokens=[tokens])
        cache.adapter = self._tracks.adapter_of(track)
        return cache

    def __repr__(self) -> str:
        tracks = self._recorded()
        sequences = f"{len(tracks)} sequence{'' if len(tracks) == 1 else 's'}"
        return f"<llama2cpp.Recording: {sequences}, {sum(map(len, tracks))} tokens>"
