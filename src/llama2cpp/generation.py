"""Text from a model: whole, piece by piece, or several samples at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from ._core import Sampler, available_memory, need_memory
from .adapters import adapter_of, check_adapter
from .common.arguments import checked, naming, spelled_out
from .common.later import Later, now
from .common.sampling import Sampling, SamplingOptions
from .common.token_ids import Prompt as Prompt
from .common.token_ids import check_prompt, listed, several
from .common.token_ids import to_ids as to_ids
from .decoding import Completion, Sample, TextStream, check_logprobs, decode
from .decoding import FinishReason as FinishReason
from .inside.hooks import for_call, scopes_of
from .serving.jobs import TextJob
from .serving.requests import Request
from .serving.scheduler import PREFIX_BYTES, ROWS, Limits, Scheduler
from .speculation import check_speculation

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .session import Session


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
        decoded together, and each gives what it gives alone; an empty list has no texts.
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
    speculate : "prompt" or Model, optional
        Propose tokens, and check several in one pass: those that followed the last ones where they were before, in the
        prompt or in the text; or those of a smaller model with the same vocabulary. The text is the same, on the CPU;
        where much of it comes as proposed it comes faster. While hooks look, nothing is proposed.
    adapter : Adapter, optional
        A LoRA adapter of the model, from `Model.load_adapter`, that acts in this call.

    Returns
    -------
    str or list
        The text. With `n` a list of `n` texts; for a list of prompts a list of one text for each, or with `n` a list of
        lists. (`Completion` in the place of str with `logprobs`.)

    Raises
    ------
    ValueError
        For an argument that cannot be, or a model without a tokenizer. For a schema or a grammar that is wrong, or that
        nothing satisfies, before the first token; and where no token can follow. For `speculate` on Metal, or with a
        model of another vocabulary.
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
    logprobs: int | None = None,
    **options: Unpack[SamplingOptions],
) -> TextStream:
    """Continue a prompt, and give the text as it comes.

    The pieces are whole characters, never empty, and joined they are what `generate` returns. A piece that may turn
    out to begin a stop string is held back until that is known. The prompt is read before `stream` returns.

    Parameters
    ----------
    prompt : str, bytes, sequence or array of int
        One prompt, as in `generate`.
    model, echo, special, **options
        As in `generate`.
    logprobs : int, optional
        Give pieces the log probability of each of their tokens, and of this many likeliest alternatives.

    Returns
    -------
    TextStream
        An iterator of str, which knows why the text has ended when it has.

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
    begun = _begin("stream", prompt, model, None, options, special, logprobs)
    [sample] = begun.samples
    return TextStream(begun.model, sample, sample.echo if echo else "")


@dataclass(frozen=True)
class _Begun:
    """Prompts that have been read, and the samples that go on from them: all of the first prompt, then the next's.

    Or `jobs` that read theirs beside texts that go on already.
    """

    model: Model
    samples: list[Sample]
    samples_each: int
    several: bool  # whether it was a list of prompts
    jobs: list[_Asked] | None = None

    def completions(self, echo: bool) -> Iterator[Completion]:
        """Decode all to their ends."""
        if self.jobs is not None:
            return _scheduled(self.model, self.jobs, echo)
        parts: list[list[str]] = [[sample.echo] if echo else [] for sample in self.samples]
        for i, text in decode(self.model, self.samples):
            parts[i].append(text)
        return (sample.completion("".join(part)) for sample, part in zip(self.samples, parts, strict=True))


_TEXT_BYTES = 4300  # that a text of `generate` takes before it begins: its sampler, its request, its job


class _Asked:
    """A prompt, one sampler, and what comes of them."""

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        ids: list[int],
        sampler: Sampler,
        sampling: Sampling,
        logprobs: int | None,
    ) -> None:
        self.request = Request()
        # Not in `self`, which holds the job that holds the function: a circle would keep the model alive.
        echoes = self.echoes = [""]

        def sample(session: Session) -> Sample:
            made = Sample(model.tokenizer, session, sampler, prompt, sampling, logprobs)
            echoes[0] = made.echo
            return made

        most = model.context if sampling.max_tokens is None else sampling.max_tokens
        positions = min(len(ids) + most, model.context)
        self.job = TextJob(self.request, ids, positions, (), sample, "none", adapter_of(sampling))


def _scheduled(model: Model, asked: list[_Asked], echo: bool) -> Iterator[Completion]:
    """Run texts as an engine does, in this thread: some at a time, and prompts beside texts that go on."""
    available = available_memory()
    scheduler = Scheduler(model, Limits(ROWS, available // 2, min(available // 8, PREFIX_BYTES)))
    for one in asked:
        scheduler.add(one.job)
    running = deque(asked)
    while scheduler.busy:
        scheduler.step()
        while running and running[0].request.done:
            running.popleft().request.result()  # raises what has ended it
    for one in asked:
        completion = one.request.result()
        yield replace(completion, text=one.echoes[0] + completion.text) if echo else completion


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
    if function != "stream" and isinstance(given, list | tuple) and not given:
        many = []  # no prompts have no texts: what a program's list may come to
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
    check_speculation(function, sampling.speculate, model)
    check_adapter(function, sampling.adapter, model)
    rows = []
    for prompt, where in zip(prompts, places, strict=True):
        rows.append((prompt, where, to_ids(model, prompt, function=where, special=special)))
    vocab_size = model.config.vocab_size
    plain = all(0 < len(ids) <= model.context and 0 <= min(ids) <= max(ids) < vocab_size for _, _, ids in rows)
    if function != "stream" and plain and len(rows) * (n or 1) > 1 and not scopes_of(model._core):
        texts = len(rows) * (n or 1)
        need_memory(float(texts) * _TEXT_BYTES, f"{function}: a run of {texts} texts", "ask for fewer at a time")
        jobs = [
            _Asked(model, prompt, ids, sampler, sampling, logprobs)
            for prompt, _, ids in rows
            for sampler in sampling.samplers(n or 1)
        ]
        return _Begun(model, [], n or 1, many is not None, jobs)
    samples = []
    for prompt, where, ids in rows:
        session = model.session(adapter=adapter_of(sampling))
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
