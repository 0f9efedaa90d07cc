"""One answer to some messages, whole or as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from .. import generation
from ..common.arguments import checked_options
from .chat_format import ChatFormat, Message, checked_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..model import Model


class ChatOptions(TypedDict, total=False):
    """How answers are sampled: the keyword arguments that `chat` and `Conversation` share."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: generation.Stop


# Where chats differ from generate's defaults: answers end by themselves, and are better a little below temperature 1.
_DEFAULTS: ChatOptions = {"max_tokens": 1024, "temperature": 0.7}


def chat(
    messages: str | Sequence[Message],
    *,
    model: Model | None = None,
    template: str | None = None,
    special_in_content: bool = False,
    **options: Unpack[ChatOptions],
) -> str:
    """Answer the last of some messages.

    Parameters
    ----------
    messages : str or sequence of dict
        Each with "role" ("system", "user" or "assistant") and "content"; a str is one message of the user.
    model : Model
        From `load`.
    template : str, optional
        How messages become text: a jinja2 template as Hugging Face's tokenizers have it, or "chatml", "llama2" or
        "llama3". The model's own if not given. It runs in jinja2's sandbox, with limits (2 seconds of processor time,
        100 million characters, 40 calls of macros within each other).
    special_in_content : bool
        Whether a message that spells a special token ("<|im_end|>") gets that token. By default it is text like any
        other, so that what users write cannot end their turn and begin another's.
    max_tokens : int, optional
        The most tokens of the answer, 1024 by default; None for as many as the context holds.
    temperature : float
        0.7 by default; 0 takes the likeliest token each time.
    top_p, top_k, min_p, repetition_penalty, seed, stop
        As in `generate`.

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
    stream = chat_stream(messages, model=model, template=template, special_in_content=special_in_content, **options)
    return "".join(stream)


def chat_stream(
    messages: str | Sequence[Message],
    *,
    model: Model | None = None,
    template: str | None = None,
    special_in_content: bool = False,
    **options: Unpack[ChatOptions],
) -> Iterator[str]:
    """Answer the last of some messages, and give the text as it comes.

    The pieces are whole characters, never empty, and joined they are what `chat` returns. The messages are read before
    `chat_stream` returns.

    Parameters
    ----------
    messages, model, template, special_in_content, **options
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
    assert model is not None  # defaults.py has put one there
    checked_options(options, ChatOptions, "chat", ("messages", "model", "template", "special_in_content"))
    form = ChatFormat(model.tokenizer, template, special_in_content)
    session = model.session()
    session.prefill(form.encode(checked_messages(messages)))
    sample = generation.answer(model.tokenizer, session, **sampling_options(form, options))
    return (text for _, text in generation.decode(model, [sample]) if text)


def sampling_options(form: ChatFormat, options: ChatOptions) -> dict[str, Any]:
    """Options for `generation.answer`, with the ends of the template."""
    merged: dict[str, Any] = {**_DEFAULTS, **options}
    ids, strings = form.ends
    return {**merged, "ends": ids, "stop": generation.stop_strings(merged.get("stop")) + strings}
