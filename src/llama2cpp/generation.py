"""Text from a model: whole, piece by piece, or several samples at once."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from ._core import Sampler, StreamDecoder, Tokenizer
from .common.arguments import checked
from .common.token_ids import Prompt as Prompt
from .common.token_ids import to_ids as to_ids
from .inside.hooks import for_call
from .inside.html_views import details_html, facts_html, table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .session import Session

FinishReason: TypeAlias = Literal["end", "stop", "length", "context"]

Stop: TypeAlias = str | Sequence[str | None] | None

_SEEDS = 2**64
_ROWS_SHOWN = 200  # of a completion's tokens in a notebook


class Options(TypedDict, total=False):
    """The keyword arguments that `generate` and `stream` share."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: Stop
    echo: bool


@dataclass(frozen=True)
class Completion:
    """Generated text with its probabilities: what `generate` returns when it is asked for `logprobs`.

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
        "end" (the model ended the text), "stop" (a stop string), "length" (`max_tokens`) or "context" (it is full).

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> completion = model.generate("Once upon a", max_tokens=1, temperature=0, logprobs=2)
    >>> completion.text, completion.finish_reason, len(completion.top_logprobs[0])
    (' time', 'length', 2)
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    finish_reason: FinishReason

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


# n=1 is a str and any other int a list: mypy sees that one is part of the other.
@overload
def generate(  # type: ignore[overload-overlap]
    prompt: Prompt = ...,
    *,
    model: Model | None = ...,
    n: Literal[1] = 1,
    logprobs: None = ...,
    **options: Unpack[Options],
) -> str: ...
@overload
def generate(
    prompt: Prompt = ..., *, model: Model | None = ..., n: int, logprobs: None = ..., **options: Unpack[Options]
) -> list[str]: ...
@overload
def generate(  # type: ignore[overload-overlap]
    prompt: Prompt = ..., *, model: Model | None = ..., n: Literal[1] = 1, logprobs: int, **options: Unpack[Options]
) -> Completion: ...
@overload
def generate(
    prompt: Prompt = ..., *, model: Model | None = ..., n: int, logprobs: int, **options: Unpack[Options]
) -> list[Completion]: ...
@checked
def generate(
    prompt: Prompt = "",
    *,
    model: Model | None = None,
    max_tokens: int | None = 512,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: Stop = (),
    n: int = 1,
    echo: bool = False,
    logprobs: int | None = None,
) -> str | list[str] | Completion | list[Completion]:
    """Continue a prompt.

    The text ends where the model ends it, before a stop string, after `max_tokens`, or when the context is full.

    Parameters
    ----------
    prompt : str, bytes, sequence or array of int
        Text (bytes if it is not valid UTF-8), which gets a BOS token before it where the model is used to one; or ids,
        which are taken as they are: any sequence, an array or a tensor of integers [T] or [1, T].
    model : Model
        From `load`.
    max_tokens : int, optional
        The most tokens to generate; None for as many as the context holds.
    temperature : float
        0 takes the likeliest token each time; higher is more varied.
    top_p : float
        Sample from the likeliest tokens that together exceed this probability. Off where <= 0 or >= 1.
    top_k : int
        Sample from this many likeliest tokens. 0 is off.
    min_p : float
        Leave out tokens less likely than this times the likeliest. 0 is off.
    repetition_penalty : float
        Above 1 makes the tokens of the prompt and the text less likely to come again.
    seed : int, optional
        The same seed gives the same text, whatever the machine and its number of threads. Random if not given.
    stop : str or sequence of str, optional
        The text ends before the first of these, wherever the borders of tokens are.
    n : int
        How many samples, decoded together. Sample i is what ``seed + i`` gives alone.
    echo : bool
        Put the prompt before the text.
    logprobs : int, optional
        Return the log probability of each token and of this many likeliest alternatives (0 for none).

    Returns
    -------
    str, Completion or list
        The text; a `Completion` with `logprobs`; a list of them with `n` above 1.

    Raises
    ------
    ValueError
        For an argument that cannot be, or a model without a tokenizer.
    TypeError
        For an argument that is no integer where one is wanted, or that there is not.
    ContextFullError
        If the prompt does not fit in the context.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> llama2cpp.generate("Once upon a time", model=model, max_tokens=20, temperature=0, stop=".")
    ', in a green village, there lived a little boy named Jonas and a little boy named Henry'
    >>> two = llama2cpp.generate("The dog", model=model, max_tokens=20, seed=1, n=2)
    >>> two[1] == llama2cpp.generate("The dog", model=model, max_tokens=20, seed=2)
    True
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if logprobs is not None and logprobs < 0:
        raise ValueError(f"logprobs must not be negative, got {logprobs}")
    samplers = make_samplers(n, seed, temperature, top_p, top_k, min_p, repetition_penalty)
    model, sequences = _begin(model, prompt, samplers, max_tokens, stop, logprobs)
    parts = [[sequence.echo] if echo else [] for sequence in sequences]
    for i, text in decode(model, sequences):
        parts[i].append(text)
    texts = ["".join(part) for part in parts]
    if logprobs is None:
        return texts if n > 1 else texts[0]
    completions = [sequence.completion(text) for sequence, text in zip(sequences, texts, strict=True)]
    return completions if n > 1 else completions[0]


@checked
def stream(
    prompt: Prompt = "",
    *,
    model: Model | None = None,
    max_tokens: int | None = 512,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: Stop = (),
    echo: bool = False,
) -> Iterator[str]:
    """Continue a prompt, and give the text as it comes.

    The pieces are whole characters, never empty, and joined they are what `generate` returns. A piece that may turn
    out to begin a stop string is held back until that is known. The prompt is read before `stream` returns.

    Parameters
    ----------
    prompt, model, max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop, echo
        As in `generate`.

    Returns
    -------
    iterator of str

    Raises
    ------
    ValueError, ContextFullError
        As in `generate`, and at the call, not at the first piece.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> for piece in llama2cpp.stream("Once upon a", model=model, max_tokens=4, temperature=0):
    ...     print(repr(piece))
    ' time'
    ','
    ' in'
    ' a'
    """
    samplers = make_samplers(1, seed, temperature, top_p, top_k, min_p, repetition_penalty)
    model, sequences = _begin(model, prompt, samplers, max_tokens, stop, None)
    return _pieces(model, sequences, echo)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits [..., vocab_size] -> natural logarithms of probabilities, in double precision."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def make_samplers(
    n: int, seed: int | None, temperature: float, top_p: float, top_k: int, min_p: float, repetition_penalty: float
) -> list[Sampler]:
    """Make a sampler for each of n samples, the i-th with the seed + i."""
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    seed = operator.index(seed)  # NumPy's integers would overflow below
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, got {seed}")
    return [
        Sampler(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=(seed + i) % _SEEDS,
            repetition_penalty=repetition_penalty,
        )
        for i in range(n)
    ]


def _begin(
    model: Model | None,
    prompt: Prompt,
    samplers: list[Sampler],
    max_tokens: int | None,
    stop: Stop,
    logprobs: int | None,
) -> tuple[Model, list[Sample]]:
    """Read the prompt once, and fork the session for each further sampler."""
    assert model is not None  # defaults.py has put one there
    stops = _checked(max_tokens, stop)
    tokenizer = model.tokenizer
    ids = to_ids(model, prompt)
    session = model.session()
    session.prefill(ids)
    sessions = [session] + [session.fork() for _ in samplers[1:]]
    return model, [
        Sample(tokenizer, session, sampler, prompt, max_tokens, stops, logprobs)
        for session, sampler in zip(sessions, samplers, strict=True)
    ]


@checked
def answer(
    tokenizer: Tokenizer,
    session: Session,
    *,
    ends: Iterable[int] = (),
    max_tokens: int | None = 512,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: Stop = (),
) -> Sample:
    """Begin a sample where a session is, whose text is that of the new ids alone. It ends at `ends`, too."""
    samplers = make_samplers(1, seed, temperature, top_p, top_k, min_p, repetition_penalty)
    return Sample(tokenizer, session, samplers[0], None, max_tokens, _checked(max_tokens, stop), None, ends)


def _checked(max_tokens: int | None, stop: Stop) -> tuple[str, ...]:
    """Give the stop strings, if both can be."""
    if max_tokens is not None and max_tokens < 0:
        raise ValueError(f"max_tokens must not be negative, got {max_tokens}")
    return stop_strings(stop)


def stop_strings(stop: Stop) -> tuple[str, ...]:
    """Give the stop strings; None, alone or among them, is none."""
    given = stop if isinstance(stop, Iterable) and not isinstance(stop, str) else [stop]
    stops = tuple(one for one in given if one is not None)
    for one in stops:
        if not isinstance(one, str):
            raise TypeError(f"stop is {one!r} ({type(one).__name__}), expected str, a sequence of str, or None")
    if "" in stops:
        raise ValueError("a stop string must not be empty")
    return stops


def decode(model: Model, sequences: list[Sample]) -> Iterator[tuple[int, str]]:
    """Sample and feed all sequences until they have ended; gives (which, text that became final)."""
    active = [sequence for sequence in sequences if sequence.finish_reason is None]
    while active:
        for i, sequence in enumerate(sequences):
            if sequence.finish_reason is None:
                yield i, sequence.sample()
        active = [sequence for sequence in active if sequence.finish_reason is None]
        core = model._core
        hooks = for_call([sequence.session for sequence in active], core)
        # The logits stay in the sessions, where the samplers read them.
        core.feed([(sequence.session._core, sequence.tokens[-1]) for sequence in active], hooks)


def _pieces(model: Model, sequences: list[Sample], echo: bool) -> Iterator[str]:
    if echo and sequences[0].echo:
        yield sequences[0].echo
    for _, text in decode(model, sequences):
        if text:
            yield text


class Sample:
    """Text on its way: its session, its sampler, the ids sampled so far and the text they make."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        session: Session,
        sampler: Sampler,
        prompt: Prompt | None,
        max_tokens: int | None,
        stops: tuple[str, ...],
        n_top: int | None,
        ends: Iterable[int] = (),
    ) -> None:
        self.session = session
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = "length" if max_tokens == 0 else None
        self._sampler = sampler
        self._text = _Text(tokenizer, stops)
        # The text goes on from the prompt's; without one it begins anew.
        before = () if prompt is None else session.tokens
        decoded = "".join(self._text.decoder.push(token) for token in before)
        if isinstance(prompt, bytes):
            prompt = prompt.decode(errors="replace")
        self.echo = prompt if isinstance(prompt, str) else decoded
        room = session.context - session.position + 1  # the last token need not be fed
        self._limit = room if max_tokens is None else min(max_tokens, room)
        self._at_limit: FinishReason = "length" if self._limit == max_tokens else "context"
        self._end_ids = {tokenizer.bos_id, *tokenizer.eos_ids, *ends}  # BOS too: llama2.c's models end a story so
        self._n_top = n_top
        self._logprobs: list[float] = []
        self._top_logprobs: list[list[tuple[int, float]]] = []

    def sample(self) -> str:
        """Choose the next token; gives the text that is final now."""
        token = self.session._core.sample(self._sampler)
        if token in self._end_ids:
            return self._finish("end")
        self.tokens.append(token)
        if self._n_top is not None:
            self._note_logprobs(token, self._n_top)
        text = self._text.push(token)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self._limit:
            text += self._finish(self._at_limit)
        return text

    def completion(self, text: str) -> Completion:
        """Give the text with what is known about its tokens."""
        assert self.finish_reason is not None
        return Completion(text, self.tokens, self._logprobs, self._top_logprobs, self.finish_reason)

    def _finish(self, reason: FinishReason) -> str:
        text = self._text.finish()
        self.finish_reason = "stop" if self._text.stopped else reason
        return text

    def _note_logprobs(self, token: int, n_top: int) -> None:
        logits = self.session.logits
        assert logits is not None
        logprobs = log_softmax(logits)
        self._logprobs.append(float(logprobs[token]))
        best = np.argsort(-logprobs, kind="stable")[:n_top]
        self._top_logprobs.append([(int(i), float(logprobs[i])) for i in best])


class _Text:
    """Sampled ids -> text that is final: whole characters, and nothing that may yet begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.decoder = StreamDecoder(tokenizer)
        self.stopped = False
        self._stops = stops
        self._held = ""

    def push(self, token: int) -> str:
        return self._release(self.decoder.push(token))

    def finish(self) -> str:
        """Give what is left when no more tokens come."""
        text = self._release(self.decoder.flush())
        return text if self.stopped else text + self._held

    def _release(self, new: str) -> str:
        if not self._stops:
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
