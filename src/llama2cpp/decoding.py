"""Sampled texts on their way: what is drawn, what is fed, where a text ends, and what is known of it then."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._core import Sampler, Tokenizer
from .common.arguments import float_array
from .common.grammar import GrammarState, TokenTexts, loses_space
from .common.library_tokenizer import stream_decoder
from .common.not_pickled import NotPickled
from .common.piece import Piece
from .common.probabilities import log_softmax
from .common.sampling import Sampling
from .common.token_ids import Prompt
from .common.usage import Usage
from .inside.hooks import for_call
from .inside.html_views import details_html, facts_html, table
from .speculation import MOST, guesser_of

if TYPE_CHECKING:
    from .model import Model
    from .session import Session

FinishReason: TypeAlias = Literal["end", "stop", "length", "context", "incomplete", "cancelled"]

_ROWS_SHOWN = 200  # of a completion's tokens in a notebook


@dataclass(frozen=True)
class Completion:
    """Generated text and what is known about its tokens: what `complete` returns.

    Attributes
    ----------
    text : str
        What was generated, up to a stop string if there was one (after the prompt, with ``echo=True``).
    tokens : list of int
        The sampled ids, those of a stop string included, the one that ended the text not.
    logprobs : list of float
        For each of `tokens`, the natural logarithm of its probability: the model's own, before temperature, penalty
        and the cuts of sampling.
    top_logprobs : list of list of (int, float)
        For each of `tokens`, the likeliest ids at that place with their log probabilities, best first.
    finish_reason : str
        "end" (the model ended the text, or its grammar did), "stop" (a stop string, or one of `stop_ids`), "length"
        (`max_tokens`), "context" (it is full), "incomplete" (one of the last three, where the text does not satisfy its
        grammar or schema) or "cancelled" (`Request.cancel`).
    usage : Usage
        How many tokens and passes it took. Two completions are equal whatever they took.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> [completion] = model.complete("Once upon a", max_tokens=1, temperature=0, logprobs=2)
    >>> completion.text, completion.finish_reason, len(completion.top_logprobs[0])
    (' time', 'length', 2)
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    finish_reason: FinishReason
    usage: Usage = field(default=Usage(0, 0, 0), compare=False)

    def _repr_html_(self) -> str:
        likeliest = [exp(best[0][1]) if best else None for best in self.top_logprobs]
        rows = [
            (i, token, f"{exp(logprob):.1%}", "" if best is None else f"{best:.1%}")
            for i, (token, logprob, best) in enumerate(zip(self.tokens, self.logprobs, likeliest, strict=False))
        ]
        rest = f"<p>and {len(rows) - _ROWS_SHOWN} more</p>" if len(rows) > _ROWS_SHOWN else ""
        probabilities = table(("", "id", "probability", "the likeliest one's"), rows[:_ROWS_SHOWN]) + rest
        facts = {"text": self.text, "tokens": len(self.tokens), "finish_reason": self.finish_reason}
        return facts_html("llama2cpp.Completion", facts) + details_html("probabilities", probabilities)


def check_logprobs(function: str, logprobs: int | None) -> None:
    """Refuse a negative number of alternatives."""
    if logprobs is not None and logprobs < 0:
        raise ValueError(f"{function}: logprobs must not be negative, got {logprobs}")


def decode(model: Model, sequences: list[Sample]) -> Generator[tuple[int, Piece], None, None]:
    """Sample and feed all sequences until they have ended; gives (which, text that became final)."""
    core = model._core
    for i, sequence in enumerate(sequences):
        if sequence.finish_reason is None:
            yield i, sequence.sample()
    while active := [(i, sequence) for i, sequence in enumerate(sequences) if sequence.finish_reason is None]:
        hooks = for_call([sequence.session for _, sequence in active], core, generated=True)
        # Hooks see each token in a pass of its own, and none that is taken back.
        fed = [sequence.next_row(len(active), proposes=hooks is None) for _, sequence in active]
        core.feed(fed, hooks)  # the logits stay in the sessions, where the samplers read them
        for i, sequence in active:
            with closing(sequence.draws()) as drawn:
                for piece in drawn:
                    yield i, piece


class TextStream(NotPickled, Iterator[str]):
    """A text as it comes, piece by piece: what `stream` and `chat_stream` return.

    Each piece is a str that also has the ids that ended in it (``tokens``) and, where they were asked for, what is
    known of them (``logprobs``, ``top_logprobs``). What is known of the whole has the names of `Completion`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> pieces = model.stream("Once upon a", max_tokens=3, temperature=0, logprobs=0)
    >>> [(str(piece), len(piece.logprobs)) for piece in pieces]
    [(' time', 1), (',', 1), (' in', 1)]
    >>> pieces.finish_reason, pieces.text, pieces.usage.completion_tokens
    ('length', ' time, in', 3)
    """

    _instead = "its text and tokens can be"

    def __init__(self, model: Model, sample: Sample, echo: str = "") -> None:
        self._sample = sample
        self._given: list[str] = []
        self._pieces = self._decoded(model, echo)

    def _decoded(self, model: Model, echo: str) -> Generator[Piece, None, None]:
        if echo:
            yield Piece(echo)
        with closing(decode(model, [self._sample])) as decoded:
            for _, piece in decoded:
                if piece:
                    yield piece

    def __iter__(self) -> TextStream:
        return self

    def __repr__(self) -> str:
        ended = "" if self.finish_reason is None else f", ended ({self.finish_reason})"
        return f"<llama2cpp.TextStream: {len(self._sample.tokens)} tokens{ended}>"

    def __next__(self) -> Piece:
        """Give the next piece; it is computed now."""
        piece = next(self._pieces)
        self._given.append(piece)
        return piece

    def close(self) -> None:
        """End it here: there are no more pieces.

        Examples
        --------
        >>> import llama2cpp
        >>> pieces = llama2cpp.stream("Once upon a", temperature=0)
        >>> next(pieces)
        ' time'
        >>> pieces.close()
        >>> list(pieces), pieces.finish_reason
        ([], None)
        """
        self._pieces.close()

    @property
    def text(self) -> str:
        """What was given so far."""
        return "".join(self._given)

    @property
    def tokens(self) -> list[int]:
        """The ids that were sampled so far."""
        return list(self._sample.tokens)

    @property
    def logprobs(self) -> list[float]:
        """The log probability of each, with ``logprobs=``."""
        return list(self._sample._logprobs)

    @property
    def top_logprobs(self) -> list[list[tuple[int, float]]]:
        """The likeliest ids at the place of each, with ``logprobs=``."""
        return list(self._sample._top_logprobs)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text has ended, as in `Completion`; None before that."""
        return self._sample.finish_reason

    @property
    def usage(self) -> Usage:
        """What it took so far, in tokens and passes."""
        return self._sample.usage()


class Sample:
    """Text on its way: its session, its sampler, the ids sampled so far and the text they make."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        session: Session,
        sampler: Sampler,
        prompt: Prompt | None,
        sampling: Sampling,
        n_top: int | None,
        ends: Iterable[int] = (),
    ) -> None:
        max_tokens = sampling.max_tokens
        self.session = session
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = "length" if max_tokens == 0 else None
        self._sampler = sampler
        self._text = _Text(tokenizer, sampling.stops)
        # The text goes on from the prompt's; without one it begins anew.
        before = () if prompt is None else session.tokens
        decoded = "".join(self._text.decoder.push(token) for token in before)
        if isinstance(prompt, bytes):
            prompt = prompt.decode(errors="replace")
        self.echo = prompt if isinstance(prompt, str) else decoded
        self._prompt_tokens = session.position
        room = session.context - session.position + 1  # the last token need not be fed
        self._limit = room if max_tokens is None else min(max_tokens, room)
        self._at_limit: FinishReason = "length" if self._limit == max_tokens else "context"
        self._end_ids = {tokenizer.bos_id, *tokenizer.eos_ids, *ends}  # BOS too: llama2.c's models end a story so
        self._stop_ids = {*sampling.end_ids} - self._end_ids
        self._min_tokens = sampling.min_tokens
        self._text.looks_for_stops = sampling.min_tokens == 0
        self._processor = sampling.logits_processor
        self._grammar = _grammar_of(sampling, tokenizer, session, before)
        self._vocab_size = session._core.config.vocab_size
        self._ends = _bits({*self._end_ids, *self._stop_ids}, self._vocab_size) if self._is_masked else None
        self._n_top = n_top
        self._told = 0  # how many tokens pieces have told of
        self._logprobs: list[float] = []
        self._top_logprobs: list[list[tuple[int, float]]] = []
        self._guesser = guesser_of(sampling.speculate, session._core.model)
        self._ids = session.tokens if self._guesser is not None else []  # and what was sampled
        self._guesses: list[int] = []  # that were fed behind the last token
        self._rows: NDArray[np.float32] | None = None  # [MOST + 1, vocab_size], of a pass that has guesses
        self._passes = self._proposed = self._accepted = 0

    @property
    def _is_masked(self) -> bool:
        return self._grammar is not None or self._min_tokens > 0

    def next_row(self, rows: int, *, proposes: bool = True) -> tuple[Any, ...]:
        """Give what the next pass has of this text, for `Model.feed`: the last token, and perhaps what may follow it.

        Parameters
        ----------
        rows : int
            How many texts the pass has.
        proposes : bool
            Whether tokens may be proposed.
        """
        core, token = self.session._core, self.tokens[-1]
        self._guesses = self._guessed(rows) if proposes and self._guesser is not None else []
        if not self._guesses:
            return core, [token]
        if self._rows is None:
            self._rows = np.empty((MOST + 1, self._vocab_size), dtype=np.float32)
        return core, [token, *self._guesses], self._rows[: 1 + len(self._guesses)]

    def draws(self) -> Generator[Piece, None, None]:
        """Choose the tokens that follow a pass: the next one, and one more behind each guess that was right.

        Afterwards, and wherever the reader leaves, the session holds what it would without guesses.
        """
        guesses, self._guesses = self._guesses, []
        self._passes += 1
        if not guesses:
            yield self.sample()
            return
        assert self._rows is not None
        session = self.session
        begin = session.position - len(guesses)
        right = 0
        try:
            for row, guess in zip(self._rows, [*guesses, None], strict=False):
                piece = self.sample(row)
                goes_on = self.finish_reason is None and self.tokens[-1] == guess
                yield piece
                if not goes_on:
                    break
                right += 1
        finally:
            self._proposed += len(guesses)
            self._accepted += right
            if right < len(guesses):
                session.rewind(begin + right)

    def sample(self, logits: NDArray[np.float32] | None = None) -> Piece:
        """Choose the next token; gives the text that is final now.

        Parameters
        ----------
        logits : numpy.ndarray, optional
            float32 [vocab_size], those behind the last token; if not given, the session's.
        """
        mask = self._mask(len(self.tokens))
        if mask is not None and not mask.any():
            return self._at_dead_end()
        token = self._draw(mask, logits)
        if token in self._end_ids or token in self._stop_ids:
            return self.end("end" if token in self._end_ids else "stop")
        self.tokens.append(token)
        if self._guesser is not None:
            self._ids.append(token)
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._n_top is not None:
            self._note_logprobs(token, self._n_top, logits)
        self._text.looks_for_stops = len(self.tokens) >= self._min_tokens
        text = self._text.push(token)
        if self._text.stopped:
            self.finish_reason = self._checked_reason("stop")
        elif self._grammar is not None and self._grammar.finished:
            text += self._finish("end")
        elif len(self.tokens) == self._limit:
            text += self._finish(self._at_limit)
        return self._piece(text)

    def end(self, reason: FinishReason) -> Piece:
        """End the text here; gives what of it was held back."""
        return self._piece(self._finish(reason))

    def _piece(self, text: str) -> Piece:
        known = slice(self._told, len(self.tokens))
        if text:
            self._told = len(self.tokens)
        return Piece(text, self.tokens[known], self._logprobs[known], self._top_logprobs[known])

    def _mask(self, count: int) -> NDArray[np.uint32] | None:
        """Which ids may follow so many tokens, where not all may: the grammar's, and ends where they may be."""
        if self._ends is None:
            return None
        early = count < self._min_tokens
        if self._grammar is None:
            return ~self._ends if early else None
        mask = self._grammar.mask() & ~self._ends
        return mask | self._ends if self._grammar.accepting and not early else mask

    def _at_dead_end(self) -> Piece:
        """Nothing may be drawn: the grammar is at its end, or was never to be satisfied by this tokenizer's tokens."""
        assert self._grammar is not None
        if self._grammar.accepting:
            return self.end("end")
        raise ValueError(
            f"the grammar cannot be satisfied: no token can follow {self._text.all_text!r}, and it is not at its end"
        )

    def _draw(self, mask: NDArray[np.uint32] | None, logits: NDArray[np.float32] | None) -> int:
        core = self.session._core
        if logits is not None:
            given = logits if self._processor is None else self._processed(self._ids, logits.copy())
            return self._draw_from(given, self._ids, self._sampler, mask)
        if self._processor is None:
            return core.sample(self._sampler, self._prompt_tokens, mask)
        ids, own = core.tokens, core.logits
        if own is None:
            raise ValueError("the session has no logits: it is new, or was rewound")
        return self._draw_from(self._processed(ids, own), ids, self._sampler, mask)

    def _draw_from(
        self, logits: NDArray[Any], ids: Sequence[int], sampler: Sampler, mask: NDArray[np.uint32] | None
    ) -> int:
        options = (sampler.repetition_penalty, sampler.presence_penalty, sampler.frequency_penalty)
        if options == (1, 0, 0):
            return sampler.sample(logits, mask=mask)
        return sampler.sample(logits, ids, self._prompt_tokens, mask)

    def _processed(self, ids: list[int], logits: NDArray[np.float32]) -> NDArray[Any]:
        """Give what the caller's function makes of logits."""
        assert self._processor is not None
        given = self._processor(list(ids), logits)
        try:
            changed = logits if given is None else float_array(given)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"logits_processor has given {given!r:.80} ({type(given).__name__}), expected an array of numbers "
                f"{list(logits.shape)} or None"
            ) from error
        if changed.shape != logits.shape:
            raise ValueError(
                f"logits_processor has given an array {list(changed.shape)}, expected {list(logits.shape)}"
            )
        return changed

    def _guessed(self, rows: int) -> list[int]:
        """Ask for tokens that may follow, and take them as long as they may."""
        assert self._guesser is not None
        most = self._limit - len(self.tokens) - 1  # the last token is not fed
        if most <= 0:
            return []
        guesses: list[int] = []
        drawing: list[Sampler] = []  # a copy, when there is something to draw

        def draw(logits: NDArray[np.float32], ids: Sequence[int]) -> int | None:
            if not drawing:
                drawing.append(self._sampler.copy())
            mask = self._mask(len(self.tokens) + len(guesses))
            try:
                return self._draw_from(logits, ids, drawing[0], mask)
            except ValueError:  # there is none that may follow
                return None

        try:
            for guess in self._guesser.propose(self._ids, rows, most, draw):
                if guess in self._end_ids or guess in self._stop_ids:  # nothing is fed behind those
                    break
                if self._grammar is not None:
                    if not self._grammar.mask()[guess // 32] >> np.uint32(guess % 32) & 1:
                        break
                    self._grammar.accept(guess)
                guesses.append(guess)
        finally:
            if self._grammar is not None:
                self._grammar.take_back(len(guesses))
        return guesses

    def usage(self, reused: int = 0) -> Usage:
        """Give what it took so far."""
        return Usage(self._prompt_tokens, reused, len(self.tokens), self._passes, self._proposed, self._accepted)

    def completion(self, text: str, reused: int = 0) -> Completion:
        """Give the text with what is known about its tokens."""
        assert self.finish_reason is not None
        return Completion(text, self.tokens, self._logprobs, self._top_logprobs, self.finish_reason, self.usage(reused))

    def _finish(self, reason: FinishReason) -> str:
        text = self._text.finish()
        self.finish_reason = self._checked_reason("stop" if self._text.stopped else reason)
        return text

    def _checked_reason(self, reason: FinishReason) -> FinishReason:
        """Say of a text that was cut off within its grammar that it is incomplete."""
        if self._grammar is None or reason in ("end", "cancelled"):
            return reason
        complete = self._grammar.accepts(self._text.all_text) if self._text.stopped else self._grammar.accepting
        return reason if complete else "incomplete"

    def _note_logprobs(self, token: int, n_top: int, logits: NDArray[np.float32] | None) -> None:
        if logits is None:
            logits = self.session.logits
        assert logits is not None
        logprobs = log_softmax(logits)
        self._logprobs.append(float(logprobs[token]))
        best = np.argsort(-logprobs, kind="stable")[:n_top]
        self._top_logprobs.append([(int(i), float(logprobs[i])) for i in best])


def _grammar_of(
    sampling: Sampling, tokenizer: Tokenizer, session: Session, before: Sequence[int]
) -> GrammarState | None:
    """Make the state of a text that begins, where it has a grammar."""
    text = sampling.grammar_text
    if text is None:
        return None
    texts = TokenTexts.of(tokenizer, session._core.config.vocab_size)
    return GrammarState(texts, text, loses_space(tokenizer, before, texts))


def _bits(ids: Iterable[int | None], vocab_size: int) -> NDArray[np.uint32]:
    """Ids as packed bits; those that there are not are left out."""
    words = np.zeros((vocab_size + 31) // 32, np.uint32)
    for id in ids:
        if id is not None and 0 <= id < vocab_size:
            words[id // 32] |= np.uint32(1 << id % 32)
    return words


class _Text:
    """Sampled ids -> text that is final: whole characters, and nothing that may yet begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.decoder = stream_decoder(tokenizer)
        self.stopped = False
        self.looks_for_stops = True
        self._stops = stops
        self._held = ""
        self._given: list[str] = []

    @property
    def all_text(self) -> str:
        """All that was final so far."""
        return "".join(self._given)

    def push(self, token: int) -> str:
        return self._noted(self._release(self.decoder.push(token)))

    def finish(self) -> str:
        """Give what is left when no more tokens come."""
        text = self._release(self.decoder.flush())
        return self._noted(text if self.stopped else text + self._held)

    def _noted(self, text: str) -> str:
        self._given.append(text)
        return text

    def _release(self, new: str) -> str:
        if not self._stops or not self.looks_for_stops:
            return new
        text = self._held + new
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stops if stop in text]
        if found:  # the one that is complete first, so that the borders of tokens do not matter
            self.stopped = True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
