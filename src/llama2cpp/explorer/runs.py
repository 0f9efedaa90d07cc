"""What the model has computed for the page: logits, activations, texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import Sampler
from ..inside.places import points_of
from .edits import Edit, key_of

if TYPE_CHECKING:
    from ..inside.cache import ActivationCache
    from ..model import Model
    from ..session import Session

_MOST_SESSIONS = 4
_MOST_CACHE_BYTES = 128 << 20  # of activations that are kept for the next view


class Runs:
    """A model and what is kept of its last runs. Used by one thread at a time.

    Parameters
    ----------
    model : Model
        What runs.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.points = points_of(model.config)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._caches: OrderedDict[tuple[Any, ...], ActivationCache] = OrderedDict()

    def has(self, name: str) -> bool:
        """Whether a model of this family has an activation."""
        return name in self.points

    def logits(self, ids: Sequence[int], edits: Sequence[Edit] = ()) -> NDArray[np.float32]:
        """Give the logits after the last token [vocab_size]: only tokens that are new are computed."""
        session = self._session(edits)
        there = session.tokens
        if there == list(ids) and session.logits is not None:
            return session.logits
        common = 0
        while common < min(len(there), len(ids) - 1) and there[common] == ids[common]:
            common += 1
        session.rewind(common)
        with session.hooks([edit.make(self.model) for edit in edits]):
            return session.prefill(ids[common:])

    def _session(self, edits: Sequence[Edit]) -> Session:
        key = key_of(edits)
        if key not in self._sessions:
            while len(self._sessions) >= _MOST_SESSIONS:
                _, oldest = self._sessions.popitem(last=False)
                oldest.close()
            self._sessions[key] = self.model.session()
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def cache(
        self,
        ids: Sequence[int],
        edits: Sequence[Edit],
        names: Sequence[str],
        positions: tuple[int, int] | None = None,
    ) -> ActivationCache:
        """Give activations of a run, without the batch axis; of the tokens from `positions` to before their end."""
        wanted = tuple(name for name in names if self.has(name))
        key = (tuple(ids), key_of(edits), wanted, positions)
        if key not in self._caches:
            with self.model.hooks([edit.make(self.model) for edit in edits]):
                _, cache = self.model.run_with_cache(
                    list(ids),
                    list(wanted),
                    remove_batch_dim=True,
                    positions=None if positions is None else slice(*positions),
                    return_type=None,
                )
            self._caches[key] = cache
            while len(self._caches) > 1 and sum(kept.nbytes for kept in self._caches.values()) > _MOST_CACHE_BYTES:
                self._caches.popitem(last=False)
        self._caches.move_to_end(key)
        return self._caches[key]

    def generate(
        self, ids: Sequence[int], edits: Sequence[Edit], sampler: Sampler, most: int
    ) -> Iterator[tuple[int, bool]]:
        """Draw tokens one by one, each with whether it ends the text: those of `Model.generate` of the same seed."""
        text, prompt = list(ids), len(ids)
        ends = self.model.tokenizer.eos_ids if self.model.has_tokenizer else ()
        for _ in range(most):
            if len(text) > self.model.context:
                return
            drawn = sampler.sample(self.logits(text, edits), text, prompt)
            yield drawn, drawn in ends
            if drawn in ends:
                return
            text.append(drawn)
