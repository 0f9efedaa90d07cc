"""One answer to some messages, whole or as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .._core import Tokenizer
from ..adapters import adapter_of, check_adapter
from ..common.arguments import checked, naming, spelled_out, unknown_argument
from ..common.later import Later, now
from ..common.sampling import Sampling, SamplingOptions
from ..decoding import Sample, TextStream, check_logprobs
from ..speculation import check_speculation
from .chat_format import ChatFormat, Message, checked_messages, choose_template, read_by

if TYPE_CHECKING:
    from ..model import Model
    from ..session import Session

# Where chats differ from generate's defaults: answers end by themselves, and are better a little below temperature 1.
DEFAULTS: SamplingOptions = {"max_tokens": 1024, "temperature": 0.7}


@checked
@spelled_out(Sampling, "template_variables", **DEFAULTS)
def chat(
    messages: str | Sequence[Message],
    *,
    model: Model | None = None,
    template: str | None = None,
    special_in_content: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    logprobs: int | None = None,
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Answer the last of some messages.

    Parameters
    ----------
    messages : str or sequence of dict
        Each with "role" ("system", "user", "assistant" or what else the template knows) and "content", or in its place
        what the template reads, such as "tool_calls"; a str is one message of the user.
    model : Model
        From `load`.
    template : str, optional
        How messages become text: a jinja2 template as Hugging Face's tokenizers have it, or "chatml", "llama2" or
        "llama3"; or the name of one of the model's own ("tool_use"). If not given, the model's own: the one for tools
        where there are tools and it has one. It runs in jinja2's sandbox, with limits (2 seconds of processor time,
        100 million characters, 40 calls of macros within each other).
    special_in_content : bool
        Whether a message that spells a special token ("<|im_end|>") gets that token. By default it is text like any
        other, so that what users write cannot end their turn and begin another's.
    tools : sequence of dict, optional
        What the model may call, as JSON schemas, for a template that reads it.
    documents : sequence of dict, optional
        What the model may read, for a template that reads it.
    template_args : mapping, optional
        Whatever else the template reads, such as ``{"enable_thinking": False}``. A name that it does not read is a
        TypeError.
    continue_final_message : bool or str
        Go on with the last message, such as ``{"role": "assistant", "content": "The answer is"}``, in place of a new
        one; a str is which of its keys is continued, instead of "content". The answer is what comes behind it.
    logprobs : int, optional
        Return a `Completion` in place of a str: the answer with why it ended, what it took, and the log probability of
        each of its tokens and of this many likeliest alternatives.
    max_tokens : int, optional
        The most tokens of the answer, 1024 by default; None for as many as the context holds.
    temperature : float
        What the model's file says (`Model.sampling_defaults`), else 0.7; 0 takes the likeliest token each time.
    top_p, top_k, min_p, repetition_penalty, seed, stop
        As in `generate`.
    presence_penalty, frequency_penalty, logit_bias, min_tokens, stop_ids, logits_processor, json_schema, grammar, regex
        As in `generate`.
    speculate : "prompt" or Model, optional
        As in `generate`: the same answer, sooner where much of it is as proposed.
    adapter : Adapter, optional
        As in `generate`.
    **template_variables
        The same as `template_args`, as arguments: ``enable_thinking=False``.

    Returns
    -------
    str or Completion
        The answer. It ends where the model ends its turn: at an end of the tokenizer, or at what the template puts
        behind an answer.

    Raises
    ------
    ValueError
        For a model without a tokenizer or a template, a template that fails (with its line) or has no place where the
        last message could be continued, or an argument that cannot be.
    ContextFullError
        If the messages do not fit in the context.

    Examples
    --------
    The model of the examples tells stories and was made for no chat:

    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> llama2cpp.chat("Hello", model=model, template="llama2", max_tokens=10, temperature=0)
    ', andilaaaaa. Every'
    """
    asked = Asked(template, special_in_content, tools, documents, template_args, continue_final_message)
    pieces = _answer("chat", messages, model, asked, options, logprobs)
    text = "".join(pieces)
    return text if logprobs is None else pieces._sample.completion(text)


@checked
@spelled_out(Sampling, "template_variables", **DEFAULTS)
def chat_stream(
    messages: str | Sequence[Message],
    *,
    model: Model | None = None,
    template: str | None = None,
    special_in_content: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    logprobs: int | None = None,
    **options: Any,  # noqa: ANN401
) -> TextStream:
    """Answer the last of some messages, and give the text as it comes.

    The pieces are whole characters, never empty, and joined they are what `chat` returns. The messages are read before
    `chat_stream` returns.

    Parameters
    ----------
    messages, model, template, special_in_content, tools, documents, template_args, continue_final_message, **options
        As in `chat`.
    logprobs : int, optional
        Give pieces the log probability of each of their tokens, and of this many likeliest alternatives.

    Returns
    -------
    TextStream
        An iterator of str, which knows why the answer has ended when it has.

    Raises
    ------
    ValueError, ContextFullError
        As in `chat`, and at the call, not at the first piece.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> list(llama2cpp.chat_stream("Hello", model=model, template="llama2", max_tokens=2, temperature=0))
    [',', ' and']
    """
    asked = Asked(template, special_in_content, tools, documents, template_args, continue_final_message)
    return _answer("chat_stream", messages, model, asked, options, logprobs)


@dataclass(frozen=True)
class Asked:
    """What a template is given beside messages, and how its text ends."""

    template: str | None
    special_in_content: bool
    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    template_args: Mapping[str, Any] | None
    continue_final_message: bool | str


def _answer(
    function: str,
    messages: str | Sequence[Message],
    given_model: Model | Later[Model] | None,
    asked: Asked,
    options: Mapping[str, Any],
    logprobs: int | None,
) -> TextStream:
    check_logprobs(function, logprobs)
    with naming(function):
        said = checked_messages(messages)
    sampled, variables = split_options(options)
    sampling_of(function, sampled)  # wrong ones are told before a model is opened
    assert given_model is not None  # defaults.py has put one there
    model = now(given_model)
    sampling = sampling_of(function, sampled, model)
    form, ids = encoded(function, said, model, asked, variables, ("model", "logprobs"))
    session = model.session(adapter=adapter_of(sampling))
    session.prefill(ids)
    goes_on = bool(asked.continue_final_message)
    return TextStream(model, begin_answer(model.tokenizer, session, form, sampling, goes_on=goes_on, n_top=logprobs))


def encoded(
    function: str,
    said: Sequence[Message],
    model: Model,
    asked: Asked,
    variables: Mapping[str, Any],
    own: Sequence[str],
) -> tuple[ChatFormat, list[int]]:
    """Make the format of messages, and their ids; `own` are arguments of the function beside those of all chats."""
    form = chat_format(
        function,
        model,
        ("messages", *own, *(field.name for field in fields(Asked))),
        asked.template,
        asked.special_in_content,
        tools=asked.tools,
        documents=asked.documents,
        template_args=asked.template_args,
        variables=variables,
    )
    with naming(function):
        return form, form.encode(said, continue_final_message=asked.continue_final_message)


def sampling_of(function: str, options: SamplingOptions, model: Model | None = None) -> Sampling:
    """Give how answers are sampled, with the defaults of chats, and before those of a model's file."""
    own: SamplingOptions = {} if model is None else model._sampling_defaults()
    merged: SamplingOptions = {**DEFAULTS, **own, **options}
    sampling = Sampling(**merged).checked(function, None if model is None else model.config.vocab_size)
    if model is not None:
        check_speculation(function, sampling.speculate, model)
        check_adapter(function, sampling.adapter, model)
    return sampling


def split_options(options: Mapping[str, Any]) -> tuple[SamplingOptions, dict[str, Any]]:
    """Tell how to sample from what a template reads by name."""
    names = [field.name for field in fields(Sampling)]
    variables = {name: value for name, value in options.items() if name not in names}
    sampled = {name: options[name] for name in names if name in options}
    return sampled, variables  # type: ignore[return-value]


def chat_format(
    function: str,
    model: Model,
    own: Sequence[str],
    template: str | None,
    special_in_content: bool,
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    template_args: Mapping[str, Any] | None,
    variables: Mapping[str, Any],
) -> ChatFormat:
    """Make a format, and refuse names that its template does not read; `own` are the function's."""
    named = dict(template_args or {})
    for name in variables:
        if name in named:
            raise TypeError(f"{function}() got {name!r} twice: as an argument and in template_args")
    given = {**named, **variables}
    if given:
        source = choose_template(model.tokenizer, template, tools) if model.has_tokenizer else template
        read = set() if source is None else read_by(source)
        names = [field.name for field in fields(Sampling)]
        for name in given:
            if name not in read:
                raise TypeError(unknown_argument(str(name), [*own, *names], function))
    return ChatFormat(model.tokenizer, template, special_in_content, tools=tools, documents=documents, variables=given)


def begin_answer(
    tokenizer: Tokenizer,
    session: Session,
    form: ChatFormat,
    sampling: Sampling,
    *,
    goes_on: bool = False,
    n_top: int | None = None,
) -> Sample:
    """Begin an answer where a session is: its text is that of the new ids, and also ends where the template says.

    It begins anew, or goes on from the session's text, which matters to a space at its beginning.
    """
    ids, strings = form.ends
    own = replace(sampling, stop=sampling.stops + strings)
    return Sample(tokenizer, session, own.samplers(1)[0], "" if goes_on else None, own, n_top, ids)
