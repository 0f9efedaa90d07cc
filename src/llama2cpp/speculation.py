"""Speculation: tokens that are proposed for a text, so that one pass can check several.

A pass of several rows costs little more than one of a single row. So what may come next is proposed, fed together, and
each position's token is then drawn from its own logits, with the random number that it would have had: a proposal that
is another token is taken back with all behind it. On the CPU a row has the bits that it has alone, so the text is that
of plain decoding, whatever was proposed; proposals are a matter of speed only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from . import _core
from .common.library_tokenizer import LibraryTokenizer
from .common.sampling import DraftModel

MOST = 7  # tokens that are proposed for a pass
FEW = 3  # of them, unless nearly all come true: kernels have tiles of 4 rows
ROW = 0.2  # what a further row adds to a pass of one, about
SURE = 0.95  # a rate from which more than FEW are proposed
DEAREST = 0.8  # a rate that is always good enough: who asks for speculation gets it

_PROBE = 32  # tokens after which a draft model that was not worth its passes is tried again
_STEP = 1 / 8  # of a rate, with each proposal that is judged
_SHORT, _LONG = 2, 3  # how many tokens must have been there before
_LONGEST = 16  # how far a match is looked at
_CHEAPEST = 0.02  # a draft's pass, in passes of the model

# Draws a token from logits [vocab_size] that follow these ids, as the sampler would; None where there is none to draw.
Draw = Callable[[NDArray[np.float32], Sequence[int]], int | None]


class Guesser(Protocol):
    """What proposes tokens."""

    def propose(self, ids: Sequence[int], rows: int, most: int, draw: Draw) -> Iterator[int]:
        """Propose what may follow, one token after the other; who asks may stop at any.

        Parameters
        ----------
        ids : sequence of int
            The prompt and the text so far: those of the call before, and one or more behind them.
        rows : int
            How many texts the pass has.
        most : int
            How many tokens there is room for.
        draw : callable
            How a token is drawn from logits.
        """


class Pace:
    """How many proposals are worth their rows, by how many came true lately.

    Parameters
    ----------
    rate : float
        The share that is expected to come true.
    cost : float
        What making a proposal costs, in passes of one row.

    Examples
    --------
    >>> from llama2cpp.speculation import Pace
    >>> pace = Pace(0.5)
    >>> pace.count(1), pace.count(32)
    (2, 0)
    >>> for _ in range(40):
    ...     pace.note(True)
    >>> pace.count(1)
    7
    """

    def __init__(self, rate: float, cost: float = 0.0) -> None:
        self.rate = rate
        self._cost = cost

    def count(self, rows: int) -> int:
        """Give how many to propose for a text, in a pass with so many: each has to bring more than its row costs."""
        price = min((ROW + self._cost) * rows / (1 + ROW * (rows - 1)), DEAREST)
        most = MOST if self.rate > SURE else FEW
        count, chance = 0, self.rate
        while count < most and chance > price:
            count, chance = count + 1, chance * self.rate
        return count

    def note(self, right: bool) -> None:
        """Take note of whether a proposal came true."""
        self.rate += _STEP * (right - self.rate)


class _Judged:
    """Proposals that wait for what comes, and the pace that they are judged for."""

    def __init__(self) -> None:
        self._begin = 0
        self._guesses: list[int] = []
        self._pace: Pace | None = None

    def begin(self, position: int, pace: Pace) -> list[int]:
        """Note proposals for the ids from a position on, in the list that is returned."""
        self._begin, self._pace, self._guesses = position, pace, []
        return self._guesses

    def judge(self, ids: Sequence[int]) -> None:
        """Compare them with what came."""
        if self._pace is None:
            return
        for guess, id in zip(self._guesses, ids[self._begin : self._begin + len(self._guesses)], strict=False):
            self._pace.note(guess == id)
            if guess != id:
                break
        self._pace = None


class PromptLookup:
    """Proposes what followed the last tokens where they were before, in the prompt or in the text.

    What it would have proposed is judged even where it was not fed, so it begins to propose where that comes true.

    Examples
    --------
    >>> from llama2cpp.speculation import PromptLookup
    >>> lookup = PromptLookup()
    >>> ids = [5, 6, 7, 8, 9, 10, 5, 6, 7]
    >>> list(lookup.propose(ids, 1, 2, lambda logits, ids: None))
    [8]
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # the last tokens -> where the one behind them is
        self._indexed = 0  # how many ids have been looked at
        self._at: int | None = None  # the id that is expected next
        self._length = 0  # of what matched before it
        self._judged = _Judged()
        # For matches of 2, 3 and 4, 5 to 8 tokens, and longer ones.
        self._paces = [Pace(0.1), Pace(0.4), Pace(0.6), Pace(0.8)]

    def propose(self, ids: Sequence[int], rows: int, most: int, draw: Draw) -> Iterator[int]:
        """Propose what followed before."""
        self._judged.judge(ids)
        self._follow(ids)
        if self._at is None:
            return
        pace = self._paces[min((self._length - 1).bit_length(), 4) - 1]
        guesses = self._judged.begin(len(ids), pace)
        count = min(pace.count(rows), most)
        for i in range(max(count, 1)):
            at = self._at + i
            guess = ids[at] if at < len(ids) else guesses[at - len(ids)]  # a text that repeats itself
            guesses.append(guess)
            if i < count:
                yield guess

    def _follow(self, ids: Sequence[int]) -> None:
        """Go on in the match that there is, or find one."""
        for i in range(self._indexed, len(ids)):
            if self._at is not None and ids[self._at] == ids[i]:
                self._at, self._length = self._at + 1, self._length + 1
            else:
                self._at = None
            for length in (_SHORT, _LONG):
                if i >= length:
                    self._places[tuple(ids[i - length : i])] = i
        self._indexed = len(ids)
        if self._at is not None:
            return
        for length in (_LONG, _SHORT):
            self._at = self._places.get(tuple(ids[-length:]))
            if self._at is not None and len(ids) > length:
                self._length = length
                longest = min(self._at, _LONGEST)
                while self._length < longest and ids[self._at - 1 - self._length] == ids[-1 - self._length]:
                    self._length += 1
                return


class ModelDraft:
    """Proposes what a smaller model would say, drawn with the same random numbers.

    Parameters
    ----------
    draft : core's Model
        The smaller one.
    model : core's Model
        The one whose text it is.

    Notes
    -----
    With the random number that the model's own draw will have, a draft of nearly the same probabilities draws the same
    token nearly always; its likeliest token would come true only as often as it is likely.
    """

    def __init__(self, draft: _core.Model, model: _core.Model) -> None:
        self._session = draft.session()
        self._vocab_size = model.config.vocab_size
        self._fed: list[int] = []
        self._pace = Pace(0.9, max(draft.matrix_bytes / max(model.matrix_bytes, 1), _CHEAPEST))
        self._judged = _Judged()
        self._next_try = 0

    def propose(self, ids: Sequence[int], rows: int, most: int, draw: Draw) -> Iterator[int]:
        """Propose what the draft draws."""
        self._judged.judge(ids)
        count = self._pace.count(rows)
        if count == 0:
            if len(ids) < self._next_try:
                return
            count = 1
        if count <= 1:
            self._next_try = len(ids) + _PROBE
        count = min(count, most, self._session.context - len(ids) + 1)
        if count <= 0:
            return
        logits = self._catch_up(ids)
        guesses = self._judged.begin(len(ids), self._pace)
        while True:
            guess = draw(self._of_model(logits), [*ids, *guesses])
            if guess is None:
                return
            guesses.append(guess)
            yield guess
            if len(guesses) == count:
                return
            logits = self._session.step(guess)
            self._fed.append(guess)

    def _catch_up(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed what it has not seen; gives the logits that follow."""
        known = min(len(self._fed), len(ids) - 1)
        # What it proposed last may be wrong; all before that was compared in earlier calls.
        first = max(known - MOST - 1, 0)
        known = next((i for i in range(first, known) if self._fed[i] != ids[i]), known)
        if known < self._session.position:
            self._session.rewind(known)
        del self._fed[known:]
        logits = self._session.prefill(list(ids[known:]))
        self._fed += ids[known:]
        return logits

    def _of_model(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Leave out rows of padding that the model does not have, and forbid those that only it has."""
        if len(logits) < self._vocab_size:
            return np.pad(logits, (0, self._vocab_size - len(logits)), constant_values=-np.inf)
        return logits[: self._vocab_size]


_texts: WeakKeyDictionary[object, list[bytes | None]] = WeakKeyDictionary()


def _texts_of(tokenizer: _core.Tokenizer | LibraryTokenizer) -> list[bytes | None]:
    """Give what each id adds to a text, without those behind the last that adds anything."""
    if tokenizer not in _texts:
        if isinstance(tokenizer, LibraryTokenizer):
            texts: list[bytes | None] = [*tokenizer.token_texts()]
        else:
            texts = [*_core.token_texts(tokenizer)]
        while texts and not texts[-1]:
            texts.pop()
        _texts[tokenizer] = texts
    return _texts[tokenizer]


def check_speculation(function: str, speculate: str | DraftModel | None, model: DraftModel) -> None:
    """Refuse what cannot be for this model.

    Parameters
    ----------
    function : str
        What was called, for the message.
    speculate : "prompt", Model or None
        What was asked for.
    model : Model
        Whose text it is.

    Raises
    ------
    ValueError
        On Metal, and for a draft whose vocabulary is another, or that is closed.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.speculation import check_speculation
    >>> model = llama2cpp.load("storyteller", backend="cpu")
    >>> check_speculation("generate", "prompt", model)
    """
    if speculate is None:
        return
    if model._core.backend != "cpu":
        raise ValueError(
            f"{function}: speculate is not possible on {model._core.backend}: there passes of different shapes differ "
            "in their last bits, and so texts could; load the model with backend='cpu', or leave speculate out"
        )
    if isinstance(speculate, str):
        return
    speculate._core  # noqa: B018  # an error if it is closed
    if speculate._core is model._core:
        return
    own, drafts = _texts_of(model.tokenizer), _texts_of(speculate.tokenizer)
    if len(own) != len(drafts):
        raise ValueError(
            f"{function}: speculate is a model with {len(drafts)} tokens, and this one has {len(own)}: a draft needs "
            "the same vocabulary"
        )
    other = next((id for id, (one, two) in enumerate(zip(own, drafts, strict=True)) if one != two), None)
    if other is not None:
        raise ValueError(
            f"{function}: speculate is a model whose id {other} is {drafts[other]!r}, and this one's is "
            f"{own[other]!r}: a draft needs the same vocabulary"
        )


def guesser_of(speculate: str | DraftModel | None, model: _core.Model) -> Guesser | None:
    """Make what proposes tokens for one text; None where nothing does.

    Parameters
    ----------
    speculate : "prompt", Model or None
        What was asked for, and was checked.
    model : core's Model
        Whose text it is.
    """
    if speculate is None:
        return None
    return PromptLookup() if isinstance(speculate, str) else ModelDraft(speculate._core, model)
