"""Many texts in passes that share one read of the weights, for some of their activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.arguments import index, integers
from ..common.token_ids import Prompt, check_texts, to_ids
from ..inside.hooks import for_call
from ..inside.places import Names, Place, find_places, is_pattern, name_of

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..model import Model

Array = NDArray[np.float32]

TOGETHER = 32  # texts of a pass
_PASS_BYTES = 256 * 2**20  # of float32 activations that a pass has in memory, unless one text alone has more


def chosen_places(function: str, points: Names, layers: int | Sequence[int] | None, model: Model) -> list[Place]:
    """Find the places that points and layers stand for, and refuse those that have no row for each token."""
    config = model.config
    places = find_places(points, config)
    if layers is not None:
        asked = integers(layers, "layers", function)
        wanted = {
            index(layer, config.n_layers, "layers", function) for layer in np.atleast_1d(np.asarray(asked)).tolist()
        }
        without = find_places(["hook_embed", "ln_final.*"], config)  # they have no layer
        places = [place for place in places if place in without or place[1] in wanted]
    if not places:
        raise ValueError(f"{function}: points {points!r} with layers {layers!r} name no activation")
    for place in places:
        name = name_of(place, config)
        if is_pattern(name):
            raise ValueError(
                f"{function}: {name} has a number for each pair of tokens, and so no row for a token; "
                "run_with_cache gives it"
            )
    return places


class Texts:
    """The ids of texts, one after another, with checks; the next one can be looked at before it is taken.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.activation_data.passes import Texts
    >>> texts = Texts(llama2cpp.load("storyteller"), "extract", iter(["Once", [1, 5]]))
    >>> len(texts.peek()), texts.take() == texts.take(), texts.peek() is None, texts.taken
    (2, False, True, 2)
    """

    def __init__(
        self,
        model: Model,
        function: str,
        texts: Iterable[Prompt],
        *,
        truncate: bool = False,
        special: bool | None = None,
    ) -> None:
        check_texts(texts, "texts", function)
        self._model = model
        self._function = function
        self._texts: Iterator[Any] = iter(texts)
        self._truncate = truncate
        self._special = special
        self._next: list[int] | None = None
        self.taken = 0
        self.truncated = 0  # of those

    def peek(self) -> list[int] | None:
        """Give the ids of the next text; None at the end."""
        if self._next is None:
            for text in self._texts:
                self._next = self._ids(text)
                break
        return self._next

    def take(self) -> list[int]:
        """Give them, and go on; at most as many as the context has."""
        ids = self.peek()
        if ids is None:
            raise ValueError(f"{self._function}: there are no more texts")
        self._next = None
        self.taken += 1
        if len(ids) > self._model.context:
            self.truncated += 1
            ids = ids[: self._model.context]
        return ids

    def _ids(self, text: Any) -> list[int]:  # noqa: ANN401
        where = f"{self._function}: text {self.taken}"
        if not isinstance(text, str | bytes | Sequence) and not hasattr(text, "__array__"):
            kind = type(text).__name__
            hint = "; pass the texts in it, such as (row['text'] for row in rows)" if isinstance(text, Mapping) else ""
            raise TypeError(f"{where} is of type {kind}, expected a text or ids{hint}")
        ids = to_ids(self._model, text, function=where, special=self._special)
        if not ids:
            raise ValueError(f"{where} has no tokens, expected at least one")
        size, context = self._model.config.vocab_size, self._model.context
        wrong = next((id for id in ids if not 0 <= id < size), None)
        if wrong is not None:
            raise ValueError(f"{where}: a token is {wrong}, expected 0 to {size - 1}")
        if len(ids) > context and not self._truncate:
            raise ValueError(
                f"{where} has {len(ids)} tokens, and the context {context}: pass truncate=True (--truncate) to leave "
                "the rest away"
            )
        return ids


class Passes:
    """Runs texts for the activations at some places. Layers behind the last of them do not run.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.activation_data.passes import Passes, chosen_places
    >>> model = llama2cpp.load("storyteller")
    >>> passes = Passes(model, chosen_places("extract", "resid_post", 1, model), None)
    >>> [arrays["blocks.1.hook_resid_post"].shape for arrays in passes.run([[1, 5, 7], [1, 5]])]
    [(3, 192), (2, 192)]
    """

    def __init__(self, model: Model, places: Sequence[Place], pool: str | None, adapter: Adapter | None = None) -> None:
        self._model = model
        self._adapter = adapter
        self._places = list(places)
        self._pool = pool
        self.names = [name_of(place, model.config) for place in places]
        after = any(name.startswith("ln_final.") for name in self.names)
        layers = [layer + 1 for name, (_, layer) in zip(self.names, places, strict=True) if name != "hook_embed"]
        self._stop = None if after else max(layers, default=1)
        self._sessions: list[Any] = []
        self._row_bytes = 4 * sum(max(1, int(np.prod(shape))) for shape in self.row_shapes())

    def row_shapes(self) -> list[tuple[int, ...]]:
        """Give the shape of a token's row, for each name."""
        shapes: list[tuple[int, ...]] = []
        for point, _ in self._places:
            heads, width = _core.point_shape(point, self._model.config)
            shapes.append((width,) if heads == 0 else (heads, width))
        return shapes

    def take(self, texts: Texts, more: Callable[[int], bool]) -> list[list[int]]:
        """Take texts for a pass, as long as there is room, and `more` says so of the rows that they are."""
        taken: list[list[int]] = []
        rows = computed = 0
        while len(taken) < TOGETHER and more(rows):
            ids = texts.peek()
            if ids is None:
                break
            length = 1 if self._pool == "last" else min(len(ids), self._model.context)
            if taken and (computed + length) * self._row_bytes > _PASS_BYTES:
                break
            taken.append(texts.take())
            computed += length
            rows += 1 if self._pool else length
        return taken

    def run(self, batch: Sequence[list[int]], *, halves: bool = False) -> list[dict[str, NDArray[Any]]]:
        """Give the rows of each text by name: [T, ...], or of its last token [1, ...]. Hooks that are on act.

        With `halves` they are float16, which the core rounds them to as it goes; a number that float16 has not is then
        an OverflowError.
        """
        model = self._model
        while len(self._sessions) < len(batch):
            self._sessions.append(model.session(adapter=self._adapter))
        sessions = self._sessions[: len(batch)]
        for session in sessions:
            session.rewind(0)
        even = len({len(ids) for ids in batch}) == 1
        kept = None
        if self._pool == "last":
            kept = [[len(ids) - 1] for ids in (batch[:1] if even else batch)]
        rows = [(session._core, ids) for session, ids in zip(sessions, batch, strict=True)]
        active = for_call(sessions, model._core)
        done = model._core.run_with_cache(rows, self._places, kept, self._stop, active, None, None, False, halves)
        if even:
            [(_, arrays)] = done
            return [{name: arrays[name][i] for name in self.names} for i in range(len(batch))]
        return [{name: arrays[name][0] for name in self.names} for _, arrays in done]


def mean_row(array: Array) -> Array:
    """Give the mean over a text's tokens as one row, [1, ...]; sums are in double precision."""
    return np.asarray(array.mean(axis=0, keepdims=True, dtype=np.float64), dtype=np.float32)


@contextmanager
def shown_progress(texts: object, progress: bool | None) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on stderr where that is a terminal, or if asked for: give a function of the texts and rows done."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from ..command.progress import progress_bar

    total = len(texts) if hasattr(texts, "__len__") else None
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[rows]:,} rows", markup=False))
    bar = progress_bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True)
    if progress is not None:
        bar.live.console.quiet = not progress
    with bar:
        task = bar.add_task("", total=total, rows=0)
        yield lambda done, rows: bar.update(task, completed=done, rows=rows)
