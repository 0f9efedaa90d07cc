"""Methods of `Model` that answer messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..common.arguments import checked, naming, spelled_out
from ..common.sampling import Sampling
from ..dialogue import answers
from ..dialogue.chat_format import checked_messages

if TYPE_CHECKING:
    from ..decoding import TextStream
    from ..dialogue.chat_format import Message
    from ..model import Model


@spelled_out(Sampling, "template_variables", **answers.DEFAULTS)
def chat(
    self: Model,
    messages: str | Sequence[Message],
    *,
    template: str | None = None,
    special_in_content: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    logprobs: int | None = None,
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Answer the last of some messages with this model.

    Parameters, result and errors are those of `llama2cpp.chat`. `Conversation` takes turns, and computes less.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.chat([{"role": "user", "content": "Hello"}], template="llama2", max_tokens=5, temperature=0)
    ', andilaa'
    """
    return answers.chat(
        messages,
        model=self,
        template=template,
        special_in_content=special_in_content,
        tools=tools,
        documents=documents,
        template_args=template_args,
        continue_final_message=continue_final_message,
        logprobs=logprobs,
        **options,
    )


@spelled_out(Sampling, "template_variables", **answers.DEFAULTS)
def chat_stream(
    self: Model,
    messages: str | Sequence[Message],
    *,
    template: str | None = None,
    special_in_content: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    logprobs: int | None = None,
    **options: Any,  # noqa: ANN401
) -> TextStream:
    """Answer the last of some messages with this model, and give the text as it comes.

    Parameters, result and errors are those of `llama2cpp.chat_stream`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> list(model.chat_stream("Hello", template="llama2", max_tokens=2, temperature=0))
    [',', ' and']
    """
    return answers.chat_stream(
        messages,
        model=self,
        template=template,
        special_in_content=special_in_content,
        tools=tools,
        documents=documents,
        template_args=template_args,
        continue_final_message=continue_final_message,
        logprobs=logprobs,
        **options,
    )


@checked
def chat_text(
    self: Model,
    messages: str | Sequence[Message],
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
) -> str:
    r"""Give the text that the chat template makes of messages: that of transformers' ``apply_chat_template``.

    Parameters
    ----------
    messages, template, tools, documents, template_args, continue_final_message
        As in `llama2cpp.chat`.
    add_generation_prompt : bool
        End with what begins an answer, unless the last message is continued.

    Returns
    -------
    str

    Raises
    ------
    ValueError, TypeError
        As in `llama2cpp.chat`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.chat_text("Hello", template="chatml")
    '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
    >>> begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good"}]
    >>> model.chat_text(begun, template="chatml", continue_final_message=True)[-14:]
    'assistant\nGood'
    """
    form = answers.chat_format(
        "Model.chat_text",
        self,
        (),
        template,
        True,
        tools=tools,
        documents=documents,
        template_args=template_args,
        variables={},
    )
    with naming("Model.chat_text"):
        return form.render(
            checked_messages(messages),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )


@checked
def chat_tokens(
    self: Model,
    messages: str | Sequence[Message],
    *,
    template: str | None = None,
    special_in_content: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
) -> list[int]:
    """Give the ids that `chat` reads for messages: those of `chat_text`, with BOS where the tokenizer wants it.

    Parameters
    ----------
    messages, template, special_in_content, tools, documents, template_args, continue_final_message
        As in `llama2cpp.chat`.
    add_generation_prompt : bool
        End with what begins an answer, unless the last message is continued.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError, TypeError
        As in `llama2cpp.chat`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits = model.session().prefill(model.chat_tokens("Hello", template="llama2"))
    >>> logits.shape
    (1536,)
    """
    form = answers.chat_format(
        "Model.chat_tokens",
        self,
        (),
        template,
        special_in_content,
        tools=tools,
        documents=documents,
        template_args=template_args,
        variables={},
    )
    with naming("Model.chat_tokens"):
        return form.encode(
            checked_messages(messages),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
