"""Text from a model: whole, piece by piece, or several samples at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ._core import Sampler, Tokenizer
from .common.arguments import checked, float_array, naming, spelled_out
from .common.grammar import GrammarState, TokenTexts, loses_space
from .common.later import Later, now
from .common.library_tokenizer import stream_decoder
from .common.sampling import Sampling, SamplingOptions
from .common.token_ids import Prompt as Prompt
from .common.token_ids import check_prompt, listed, several
from .common.token_ids import to_ids as to_ids
from .inside.hooks import for_call
from .inside.html_views import details_html, facts_html, table

if TYPE_CHECKING:
    from typing_extensions import Unpack

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


@overload
def generate(
    prompt: Prompt = ...,
    *,
    model: Model | None = ...,
    n: None = ...,
    echo: bool = ...,
    special: bool | None = ...,
    logprobs: None = ...,
    **options: Unpack[SamplingOptions],
) -> str: ...
@overload
def generate(
    prompt: Prompt = ...,
    *,
    model: Model | None = ...,
    n: int,
    echo: bool = ...,
    special: bool | None = ...,
    logprobs: None = ...,
    **options: Unpack[SamplingOptions],
) -> list[str]: ...
@overload
def generate(
    prompt: Prompt | Sequence[Prompt] = ...,
    *,
    model: Model | None = ...,
    n: int | None = ...,
    echo: bool = ...,
    special: bool | None = ...,
    logprobs: int | None = ...,
    **options: Unpack[SamplingOptions],
) -> Any: ...  # noqa: ANN401
@checked
@spelled_out(Sampling)
def generate(
    prompt: Prompt | Sequence[Prompt] = "",
    *,
    model: Model | None = None,
    n: int | None = None,
    echo: bool = False,
    special: bool | None = None,
    logprobs: int | None = None,
    **options: Unpack[SamplingOptions],
) -> Any:
    """Continue a prompt, or several at once.

    The text ends where the model ends it, before a stop string, after `max_tokens`, or when the context is full.

    Parameters
    ----------
    prompt : str, bytes, sequence or array of int, or a sequence of those
        Text (bytes if it is not valid UTF-8), which gets a BOS token before it where the model is used to one; or ids,
        which are taken as they are: any sequence, an array or a tensor of integers [T] or [1, T]. A list of prompts is
        decoded together, and each gives what it gives alone.
    model : Model
        From `load`; the storyteller if not given.
    n : int, optional
        How many samples of each prompt, decoded together. Sample j is what ``seed + j`` gives alone.
    echo : bool
        Put the prompt before the text.
    special : bool, optional
        Whether a text that spells control tokens, such as "<|im_start|>", gets them. If not, they are
        text like any other. Not given is False, with a UserWarning for the first prompt that spells one.
    logprobs : int, optional
        Return completions, with the log probability of each token and of this many likeliest alternatives, in place of
        texts. `complete` is made for that.
    max_tokens : int, optional
        The most tokens to generate; None for as many as the context holds.
    temperature : float
        0 takes the likeliest token each time; higher is more varied. For this and the next four, what the caller gives
        counts before what the model's file says (`Model.sampling_defaults`), and that before the defaults here.
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
    presence_penalty, frequency_penalty : float
        Taken off the logits of tokens that the text has (the prompt's do not count): the first once, the second each
        time.
    logit_bias : mapping of int to float, optional
        What is added to the logits of ids; -inf forbids one.
    min_tokens : int
        Until there are so many tokens the model cannot end the text, and stop strings are not looked for. (A grammar
        that is complete ends it all the same.)
    stop_ids : int or sequence of int, optional
        Ids that end the text, as the model's own do.
    logits_processor : callable, optional
        Gets the ids so far, a list, and the model's logits, float32 [vocab_size]; it changes them in place, or returns
        others. Penalties, bias and grammar come after it.
    json_schema : mapping, str or class, optional
        The text is JSON that satisfies this JSON Schema: a dict, JSON text, or a class with ``model_json_schema()``
        (Pydantic's). There is no white space between its parts, unless the schema has
        ``"x-guidance": {"whitespace_flexible": True}``. This and the next two need llguidance:
        ``pip install "llama2cpp[grammar]"``.
    grammar : str, optional
        The text is one of this grammar: lark's, as llguidance reads it, or llama.cpp's GBNF (``root ::= ...``).
    regex : str, optional
        The whole text matches this regular expression.

    Returns
    -------
    str or list
        The text. With `n` a list of `n` texts; for a list of prompts a list of one text for each, or with `n` a list of
        lists. (`Completion` in the place of str with `logprobs`.)

    Raises
    ------
    ValueError
        For an argument that cannot be, or a model without a tokenizer. For a schema or a grammar that is wrong, or that
        nothing satisfies, before the first token; and where no token can follow.
    ImportError
        For a schema, a grammar or an expression without llguidance.
    TypeError
        For an argument that is no integer where one is wanted, or that there is not. (An id in a prompt that is no
        integer is a ValueError, like one that is not in the vocabulary.)
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
    >>> llama2cpp.generate(["The dog", "The cat"], model=model, max_tokens=3, temperature=0)
    [', and a', ' who lived a']
    """
    begun = _begin("generate", prompt, model, n, options, special, logprobs)
    results: list[Any] = list(begun.completions(echo))
    if logprobs is None:
        results = [completion.text for completion in results]
    each = begun.samples_each
    rows = [results[i : i + each] for i in range(0, len(results), each)]
    shaped = rows if n is not None else [row[0] for row in rows]
    return shaped if begun.several else shaped[0]


@checked
@spelled_out(Sampling)
def complete(
    prompt: Prompt | Sequence[Prompt] = "",
    *,
    model: Model | None = None,
    n: int | None = None,
    echo: bool = False,
    special: bool | None = None,
    logprobs: int = 0,
    **options: Unpack[SamplingOptions],
) -> list[Completion]:
    """Continue a prompt, or several at once, and say what is known about each token.

    Parameters
    ----------
    prompt, model, n, echo, special, **options
        As in `generate`.
    logprobs : int
        How many of the likeliest alternatives to give with each token.

    Returns
    -------
    list of Completion
        Always a flat list: the samples of the first prompt, those of the second, and so on; one for one prompt
        without `n`.

    Raises
    ------
    ValueError, TypeError, ContextFullError
        As in `generate`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> completions = llama2cpp.complete(["Once upon a", "The dog"], model=model, max_tokens=2, temperature=0)
    >>> [(completion.text, completion.finish_reason) for completion in completions]
    [(' time,', 'length'), (', and', 'length')]
    """
    begun = _begin("complete", prompt, model, n, options, special, logprobs)
    return list(begun.completions(echo))


@checked
@spelled_out(Sampling)
def stream(
    prompt: Prompt = "",
    *,
    model: Model | None = None,
    echo: bool = False,
    special: bool | None = None,
    **options: Unpack[SamplingOptions],
) -> Iterator[str]:
    """Continue a prompt, and give the text as it comes.

    The pieces are whole characters, never empty, and joined they are what `generate` returns. A piece that may turn
    out to begin a stop string is held back until that is known. The prompt is read before `stream` returns.

    Parameters
    ----------
    prompt : str, bytes, sequence or array of int
        One prompt, as in `generate`.
    model, echo, special, **options
        As in `generate`.

    Returns
    -------
    iterator of str

    Raises
    ------
    ValueError, TypeError, ContextFullError
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
    begun = _begin("stream", prompt, model, None, options, special, None)
    return _pieces(begun.model, begun.samples, echo)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits [..., vocab_size] -> natural logarithms of probabilities, in double precision."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class _Begun:
    """Prompts that have been read, and the samples that go on from them: all of the first prompt, then the next's."""

    model: Model
    samples: list[Sample]
    samples_each: int
    several: bool  # whether it was a list of prompts

    def completions(self, echo: bool) -> Iterator[Completion]:
        """Decode all to their ends."""
        parts = [[sample.echo] if echo else [] for sample in self.samples]
        for i, text in decode(self.model, self.samples):
            parts[i].append(text)
        return (sample.completion("".join(part)) for sample, part in zip(self.samples, parts, strict=True))


def check_logprobs(function: str, logprobs: int | None) -> None:
    """Refuse a negative number of alternatives."""
    if logprobs is not None and logprobs < 0:
        raise ValueError(f"{function}: logprobs must not be negative, got {logprobs}")


def _begin(
    function: str,
    given: Prompt | Sequence[Prompt],
    given_model: Model | Later[Model] | None,
    n: int | None,
    options: SamplingOptions,
    special: bool | None,
    logprobs: int | None,
) -> _Begun:
    """Read each prompt once, and fork its session for each further sample."""
    if n is not None and n < 1:
        raise ValueError(f"{function}: n must be at least 1, got {n}")
    check_logprobs(function, logprobs)
    Sampling(**options).checked(function)
    given = listed(given)
    many = several(given)
    if function == "stream" and many is not None and (len(many) > 1 or isinstance(many[0], str | bytes)):
        raise TypeError(f"stream: prompt is a list of {len(many)}, expected one prompt; generate() takes several")
    prompts: list[Prompt] = [given] if many is None else many  # type: ignore[list-item]
    places = [function if many is None else f"{function}: prompt {i}" for i in range(len(prompts))]
    for prompt, where in zip(prompts, places, strict=True):
        check_prompt(prompt, where)
    assert given_model is not None  # defaults.py has put one there
    model = now(given_model)
    merged: SamplingOptions = {**model._sampling_defaults(), **options}
    sampling = Sampling(**merged).checked(function, model.config.vocab_size)
    tokenizer = model.tokenizer
    rows = []
    for prompt, where in zip(prompts, places, strict=True):
        rows.append((prompt, where, to_ids(model, prompt, function=where, special=special)))
    samples = []
    for prompt, where, ids in rows:
        session = model.session()
        hooks = for_call([session])
        with naming(where) if hooks is None else nullcontext():  # an error may be a hook's own
            session._core.prefill(ids, False, hooks)
        samplers = sampling.samplers(n or 1)
        sessions = [session] + [session.fork() for _ in samplers[1:]]
        samples += [
            Sample(tokenizer, own, sampler, prompt, sampling, logprobs)
            for own, sampler in zip(sessions, samplers, strict=True)
        ]
    return _Begun(model, samples, n or 1, many is not None)


def answer(
    tokenizer: Tokenizer, session: Session, sampling: Sampling, ends: Iterable[int] = (), *, goes_on: bool = False
) -> Sample:
    """Begin a sample where a session is, whose text is that of the new ids, and ends at `ends`, too.

    It begins anew, or goes on from the session's text, which matters to a space at its beginning.
    """
    return Sample(tokenizer, session, sampling.samplers(1)[0], "" if goes_on else None, sampling, None, ends)


def decode(model: Model, sequences: list[Sample]) -> Iterator[tuple[int, str]]:
    """Sample and feed all sequences until they have ended; gives (which, text that became final)."""
    active = [sequence for sequence in sequences if sequence.finish_reason is None]
    while active:
        for i, sequence in enumerate(sequences):
            if sequence.finish_reason is None:
                yield i, sequence.sample()
        active = [sequence for sequence in active if sequence.finish_reason is None]
        core = model._core
        hooks = for_call([sequence.session for sequence in active], core, generated=True)
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
        vocab_size = session._core.config.vocab_size
        self._ends = _bits({*self._end_ids, *self._stop_ids}, vocab_size) if self._is_masked else None
        self._n_top = n_top
        self._logprobs: list[float] = []
        self._top_logprobs: list[list[tuple[int, float]]] = []

    @property
    def _is_masked(self) -> bool:
        return self._grammar is not None or self._min_tokens > 0

    def sample(self) -> str:
        """Choose the next token; gives the text that is final now."""
        mask = self._mask()
        if mask is not None and not mask.any():
            return self._at_dead_end()
        token = self._draw(mask)
        if token in self._end_ids or token in self._stop_ids:
            return self._finish("end" if token in self._end_ids else "stop")
        self.tokens.append(token)
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._n_top is not None:
            self._note_logprobs(token, self._n_top)
        self._text.looks_for_stops = len(self.tokens) >= self._min_tokens
        text = self._text.push(token)
        if self._text.stopped:
            self.finish_reason = self._checked_reason("stop")
        elif self._grammar is not None and self._grammar.finished:
            text += self._finish("end")
        elif len(self.tokens) == self._limit:
            text += self._finish(self._at_limit)
        return text

    def _mask(self) -> NDArray[np.uint32] | None:
        """Which ids may be drawn, where not all may: what the grammar allows, and ends where they may be."""
        if self._ends is None:
            return None
        early = len(self.tokens) < self._min_tokens
        if self._grammar is None:
            return ~self._ends if early else None
        mask = self._grammar.mask() & ~self._ends
        return mask | self._ends if self._grammar.accepting and not early else mask

    def _at_dead_end(self) -> str:
        """Nothing may be drawn: the grammar is at its end, or was never to be satisfied by this tokenizer's tokens."""
        assert self._grammar is not None
        if self._grammar.accepting:
            return self._finish("end")
        raise ValueError(
            f"the grammar cannot be satisfied: no token can follow {self._text.all_text!r}, and it is not at its end"
        )

    def _draw(self, mask: NDArray[np.uint32] | None) -> int:
        core = self.session._core
        if self._processor is None:
            return core.sample(self._sampler, self._prompt_tokens, mask)
        ids, logits = core.tokens, core.logits
        if logits is None:
            raise ValueError("the session has no logits: it is new, or was rewound")
        return self._draw_processed(ids, logits, mask)

    def _draw_processed(self, ids: list[int], logits: NDArray[np.float32], mask: NDArray[np.uint32] | None) -> int:
        """Draw from what the caller's function makes of logits."""
        if self._processor is not None:
            given = self._processor(list(ids), logits)
            changed = logits if given is None else float_array(given)
            if changed.shape != logits.shape:
                raise ValueError(
                    f"logits_processor has given an array {list(changed.shape)}, expected {list(logits.shape)}"
                )
            logits = changed
        return self._sampler.sample(logits, ids, self._prompt_tokens, mask)

    def completion(self, text: str) -> Completion:
        """Give the text with what is known about its tokens."""
        assert self.finish_reason is not None
        return Completion(text, self.tokens, self._logprobs, self._top_logprobs, self.finish_reason)

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

    def _note_logprobs(self, token: int, n_top: int) -> None:
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
