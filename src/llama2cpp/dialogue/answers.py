"""One answer to some messages, whole or as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .. import generation
from .._core import Tokenizer
from ..common.arguments import checked, naming, spelled_out, unknown_argument
from ..common.later import Later, now
from ..common.sampling import Sampling, SamplingOptions
from .chat_format import ChatFormat, Message, checked_messages, read_by

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
    **options: Any,  # noqa: ANN401
) -> str:
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
        "llama3". The model's own if not given. It runs in jinja2's sandbox, with limits (2 seconds of processor time,
        100 million characters, 40 calls of macros within each other).
    special_in_content : bool
        Whether a message that spells a special token ("<|im_end|>") gets that token. By default it is text like any
        other, so that what users write cannot end their turn and begin another's.
    tools : sequence of dict, optional
        What the model may call, as JSON schemas, for a template that reads it.
    documents : sequence of dict, optional
        What the model may read, for a template that reads it.
    max_tokens : int, optional
        The most tokens of the answer, 1024 by default; None for as many as the context holds.
    temperature : float
        0.7 by default; 0 takes the likeliest token each time.
    top_p, top_k, min_p, repetition_penalty, seed, stop
        As in `generate`.
    **template_variables
        Whatever else the template reads by name, such as ``enable_thinking=False``. A name that it does not read is a
        TypeError.

    Returns
    -------
    str
        The answer. It ends where the model ends its turn: at an end of the tokenizer, or at what the template puts
        behind an answer.

    Raises
    ------
    ValueError
        For a model without a tokenizer or a template, a template that fails (with its line), or an argument that
        cannot be.
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
    return "".join(_answer("chat", messages, model, template, special_in_content, tools, documents, options))


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
    **options: Any,  # noqa: ANN401
) -> Iterator[str]:
    """Answer the last of some messages, and give the text as it comes.

    The pieces are whole characters, never empty, and joined they are what `chat` returns. The messages are read before
    `chat_stream` returns.

    Parameters
    ----------
    messages, model, template, special_in_content, tools, documents, **options
        As in `chat`.

    Returns
    -------
    iterator of str

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
    return _answer("chat_stream", messages, model, template, special_in_content, tools, documents, options)


def _answer(
    function: str,
    messages: str | Sequence[Message],
    given_model: Model | Later[Model] | None,
    template: str | None,
    special_in_content: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> Iterator[str]:
    with naming(function):
        said = checked_messages(messages)
    sampled, variables = split_options(options)
    sampling = sampling_of(function, sampled)
    assert given_model is not None  # defaults.py has put one there
    model = now(given_model)
    own = ("messages", "model", "template", "special_in_content", "tools", "documents")
    check_variables(function, variables, template, model, own)
    form = ChatFormat(
        model.tokenizer, template, special_in_content, tools=tools, documents=documents, variables=variables
    )
    session = model.session()
    with naming(function):
        ids = form.encode(said)
    session.prefill(ids)
    sample = begin_answer(model.tokenizer, session, form, sampling)
    return (text for _, text in generation.decode(model, [sample]) if text)


def sampling_of(function: str, options: SamplingOptions) -> Sampling:
    """Give how answers are sampled, with the defaults of chats."""
    merged: SamplingOptions = {**DEFAULTS, **options}
    return Sampling(**merged).checked(function)


def split_options(options: Mapping[str, Any]) -> tuple[SamplingOptions, dict[str, Any]]:
    """Tell how to sample from what a template reads by name."""
    names = [field.name for field in fields(Sampling)]
    variables = {name: value for name, value in options.items() if name not in names}
    sampled = {name: options[name] for name in names if name in options}
    return sampled, variables  # type: ignore[return-value]


def check_variables(
    function: str, variables: Mapping[str, Any], template: str | None, model: Model, own: Sequence[str]
) -> None:
    """Refuse names that a template does not read; `own` are the function's."""
    if not variables:
        return
    source = template if template is not None or not model.has_tokenizer else model.tokenizer.chat_template
    read = set() if source is None else read_by(source)
    for name in variables:
        if name not in read:
            names = [field.name for field in fields(Sampling)]
            raise TypeError(unknown_argument(name, [*own, *names], function))


def begin_answer(tokenizer: Tokenizer, session: Session, form: ChatFormat, sampling: Sampling) -> generation.Sample:
    """Begin an answer, which also ends where the template says."""
    ids, strings = form.ends
    return generation.answer(tokenizer, session, replace(sampling, stop=sampling.stops + strings), ids)
