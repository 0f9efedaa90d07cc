"""How a model wants to be talked to: its chat template as token ids, and what ends an answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .._core import Tokenizer
from ..common.library_tokenizer import special_candidates

Message: TypeAlias = Mapping[str, Any]

# Put into what looks like a special token but is only talked about. No character: Unicode keeps it out of text.
_MARK = "\ufdd0"
_ARGUMENTS = "arguments"  # the key of what a call of a tool is called with
_ANSWER = "llama2cpp"  # stands for an answer where the template is asked what follows one


def checked_messages(messages: str | Sequence[Message]) -> list[dict[str, Any]]:
    """Give the messages as dicts of plain data; a str is what the user says."""
    from .templates import plain

    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Iterable) or isinstance(messages, bytes):
        raise TypeError(
            f"messages is {messages!r:.80} ({type(messages).__name__}), expected a str or a sequence of dicts"
        )
    checked = []
    for i, message in enumerate(messages):
        # An assistant's message that calls tools need not say anything.
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or len(message) < 2:
            raise ValueError(
                f"message {i} must be a dict with a 'role' and a 'content', or such as 'tool_calls' in its place, "
                f"got {message!r:.200}"
            )
        checked.append(plain(message))
    if not checked:
        raise ValueError("there is no message")
    return checked


def choose_template(tokenizer: Tokenizer, template: str | None, tools: object = None) -> str | None:
    """Find the template that is meant, as transformers does: the one given, else that for tools, else the usual one."""
    templates = tokenizer.chat_templates
    if template is not None:
        return templates.get(template, template)
    if tools is not None and "tool_use" in templates:
        return templates["tool_use"]
    if templates and "default" not in templates:
        raise ValueError(
            "the model has several chat templates, and none that is the usual one: pass template= (--template) with "
            f"one of {', '.join(templates)}"
        )
    return tokenizer.chat_template


def read_by(template: str) -> set[str]:
    """Give the names that a template reads, less those that `ChatTemplate.render` has arguments for."""
    from .templates import ChatTemplate

    return set(ChatTemplate(template).variables - {"messages", "add_generation_prompt", "tools", "documents"})


class ChatFormat:
    """The template of a conversation with a tokenizer.

    Parameters
    ----------
    tokenizer : Tokenizer
    template : str, optional
        "chatml", "llama2", "llama3", the name of one of the tokenizer's ("tool_use"), or the text of a jinja2 template.
        If not given, the tokenizer's own: that for tools where there are some and it has one.
    special_in_content : bool
        Let a message spell special tokens, as transformers does.
    tools, documents, variables
        What the template gets beside messages; see `ChatTemplate.render`.

    Raises
    ------
    ValueError
        If there is no template, or it does not compile.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.dialogue.chat_format import ChatFormat
    >>> tokenizer = llama2cpp.load("storyteller").tokenizer
    >>> ids = ChatFormat(tokenizer, "llama2").encode([{"role": "user", "content": "Hello"}])
    >>> tokenizer.decode(ids)
    '[INST] Hello [/INST]'
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | None = None,
        special_in_content: bool = False,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        from .templates import NAMED, ChatTemplate, plain  # jinja2 takes a while, and only chats need it

        source = choose_template(tokenizer, template, tools)
        if source is None:
            raise ValueError(
                "the model has no chat template: if it was made for chats, pass template= (--template) with one of "
                f"{', '.join(NAMED)} or the text of its own; if not, generate() continues a text"
            )
        self._tokenizer = tokenizer
        self._template = ChatTemplate(source)
        self._special_in_content = special_in_content
        given = plain(variables or {})
        self._tokens = {
            "bos_token": given.pop("bos_token", _spelling(tokenizer, tokenizer.bos_id)),
            "eos_token": given.pop(
                "eos_token", _spelling(tokenizer, tokenizer.eos_ids[0] if tokenizer.eos_ids else None)
            ),
        }
        self._beside = {"tools": plain(tools), "documents": plain(documents), "variables": given}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
    ) -> str:
        """Give the template's text."""
        return self._render(messages, self._beside, (add_generation_prompt, continue_final_message))

    def _render(self, messages: Sequence[Message], beside: Mapping[str, Any], end: tuple[bool, bool | str]) -> str:
        prompt, continued = end
        return self._template.render(
            messages, add_generation_prompt=prompt, continue_final_message=continued, **self._tokens, **beside
        )

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
    ) -> list[int]:
        """Give the ids of the template's text, with one BOS before them where the tokenizer's file wants one.

        What the template writes may be special tokens. What messages say is text, even "<|im_end|>", unless the
        format was made with ``special_in_content``. (Pieces that a file calls user-defined, not control, are found in
        any text.)
        """
        tokenizer, end = self._tokenizer, (add_generation_prompt, continue_final_message)
        if self._special_in_content or not self._spells_special([messages, self._beside]):
            ids = self._ids(self._render(messages, self._beside, end), special=True)
        else:
            marked, beside = self._marked([messages, self._beside])
            ids = self._encode_marked(self._render(marked, beside, end))
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    @functools.cached_property
    def ends(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The ids and the strings that the template puts behind an answer: one of either, or none."""
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = self.render(turn, add_generation_prompt=False)
        except ValueError:  # it does not like this conversation, so it cannot be asked
            return (), ()
        after = text.rpartition(_ANSWER)[2].strip()
        if _ANSWER not in text or not after:
            return (), ()
        first = self._ids(after, special=True)[0]
        if self._ids(after)[0] != first and after.startswith(_spelling(self._tokenizer, first)):
            return (first,), ()
        return (), (after.splitlines()[0],)

    def _spells_special(self, value: Any, arguments: bool = False) -> bool:  # noqa: ANN401  # any plain data
        if isinstance(value, str):
            return self._ids(value, special=True) != self._ids(value)
        if isinstance(value, Mapping):
            keys = map(self._spells_special, value) if arguments else ()
            return any(keys) or any(
                self._spells_special(item, arguments or key == _ARGUMENTS) for key, item in value.items()
            )
        return isinstance(value, list) and any(self._spells_special(item, arguments) for item in value)

    def _marked(self, value: Any, arguments: bool = False) -> Any:  # noqa: ANN401
        """Put a mark into each spelling of a special token, behind its first character.

        Keys are what templates look for, and stay as they are; but those of a call's arguments are the model's own.
        """
        if isinstance(value, str):
            value = value.replace(_MARK, "")
            special = _special_tokens(self._tokenizer)[0]
            while special.search(value):  # again: one may begin inside another
                value = special.sub(lambda match: match[0][0] + _MARK + match[0][1:], value)
            return value
        if isinstance(value, Mapping):
            return {
                self._marked(key) if arguments else key: self._marked(item, arguments or key == _ARGUMENTS)
                for key, item in value.items()
            }
        return [self._marked(item, arguments) for item in value] if isinstance(value, list) else value

    def _encode_marked(self, text: str) -> list[int]:
        """Do what the tokenizer does with ``special=True``, but take what is marked for text."""
        special, ids_of = _special_tokens(self._tokenizer)
        ids: list[int] = []
        for i, part in enumerate(special.split(text)):
            if i % 2:
                ids.append(ids_of[part])
            elif part:
                ids += self._ids(part.replace(_MARK, ""))
        return ids

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, bos=False, eos=False, special=special)


def _spelling(tokenizer: Tokenizer, token: int | None) -> str:
    """Give what a template writes for a token."""
    if token is None:
        return ""
    name = tokenizer.piece(token).decode(errors="replace")
    short = name.strip("\n")  # llama2.c's files have newlines around the names of BOS and EOS
    return short if tokenizer.encode(short, bos=False, eos=False, special=True) == [token] else name


@functools.lru_cache(maxsize=4)
def _special_tokens(tokenizer: Tokenizer) -> tuple[re.Pattern[str], dict[str, int]]:
    """Find the pieces that are ids only where special tokens are asked for; an expression for those not marked."""
    ids = {}
    for token in special_candidates(tokenizer):
        try:
            name = tokenizer.piece(token).decode()
            for spelling in {name, name.strip("\n")}:
                special = tokenizer.encode(spelling, bos=False, eos=False, special=True)
                if spelling and special == [token] != tokenizer.encode(spelling, bos=False, eos=False):
                    ids[spelling] = token
        except ValueError:  # half a character, or text that has no id
            continue
    longest_first = sorted(ids, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!{_MARK})"), ids
