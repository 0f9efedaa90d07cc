"""Chat templates: messages -> text. The sandbox that they run in is `sandbox.py`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError, meta
from jinja2.environment import Template

from .sandbox import MAX_BITS, MAX_DATA, MAX_DIGITS, TooMuchError, environment, limited

MAX_SOURCE = 1_000_000  # characters of the template itself

_REASONING = ("reasoning_content", "thinking", "reasoning")

# The three that a model without a template may ask for by name.
NAMED = {
    "chatml": """\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
""",
    "llama2": """\
{%- set turn = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set turn.system = '<<SYS>>\\n' ~ message.content ~ '\\n<</SYS>>\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ bos_token ~ '[INST] ' ~ (turn.system ~ message.content) | trim ~ ' [/INST]' }}
{%- set turn.system = '' -%}
{%- elif message.role == 'assistant' -%}
{{ ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
{%- else -%}
{{ raise_exception('llama2 knows the roles system, user and assistant, not ' ~ message.role) }}
{%- endif -%}
{%- endfor -%}
""",
    "llama3": """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}
""",
}


class ChatTemplate:
    r"""A compiled template.

    Parameters
    ----------
    source : str
        "chatml", "llama2" or "llama3", or the text of a jinja2 template as Hugging Face's tokenizers have it.

    Raises
    ------
    ValueError
        If it is no name that is known, or does not compile; the message has the template's line.

    Examples
    --------
    >>> from llama2cpp.dialogue.templates import ChatTemplate
    >>> ChatTemplate("chatml").render([{"role": "user", "content": "Hello"}])
    '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
    """

    def __init__(self, source: str) -> None:
        if "{" not in source and source not in NAMED:
            raise ValueError(f"there is no chat template {source!r}: it is {', '.join(NAMED)}, or the text of one")
        self._source = NAMED.get(source, source)
        self._template = _compile(self._source)

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template reads and does not set, of what `render` gives it and of what it may be given."""
        with limited(lines=False):
            return frozenset(meta.find_undeclared_variables(self._template.environment.parse(self._source)))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        bos_token: str = "",
        eos_token: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Give the text of a conversation.

        Parameters
        ----------
        messages : sequence of mapping
            Each with "role" and "content", and whatever else the template reads; plain data (str, int, float, bool,
            None, lists, mappings).
        add_generation_prompt : bool
            End with what begins an answer.
        continue_final_message : bool or str
            End within the last message, so that the model goes on with it; a str is which of its keys is continued,
            instead of "content". There is no generation prompt then.
        bos_token, eos_token : str
            How the tokenizer spells its BOS and EOS.
        tools, documents : sequence of mapping, optional
            What the model may call, as JSON schemas, and what it may read: plain data.
        variables : mapping, optional
            Whatever else the template reads, such as ``enable_thinking``.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If a message is no plain data, the last one cannot be continued, or the template fails, does what the
            sandbox forbids, or takes more than 2 seconds of processor time, 100 million characters, integers of 4,000
            digits, 40 calls of macros within each other or 50 lists and dicts within each other. The message has the
            template's line.
        """
        shown = [_as_read(message) for message in plain(messages)]
        continued = None
        if continue_final_message:
            key = continue_final_message if isinstance(continue_final_message, str) else "content"
            continued = _Continued(shown, key, self._source)
        given = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            **plain(variables or {}),
            "messages": shown,
            "add_generation_prompt": add_generation_prompt and continued is None,
            "tools": plain(tools),
            "documents": plain(documents),
        }
        template = self._template
        try:
            with limited():
                text = str(template.environment.concat(template.root_render_func(template.new_context(given))))
        except (Exception, TooMuchError) as error:
            raise _failure(error, _line(template, error.__traceback__)) from error
        return text if continued is None else continued.cut(text)


class _Continued:
    """The last message, marked where it ends, so that the template's text can be cut there.

    The mark ends with a space: where that is missing, the template has trimmed the message, and so is the text. This is
    what transformers does.
    """

    def __init__(self, messages: list[dict[str, Any]], key: str, source: str) -> None:
        said = messages[-1].get(key) if messages else None
        if said is None:
            raise ValueError(f"there is no last message whose {key!r} could be continued")
        keys = [name for name in _REASONING if messages[-1].get(name) == said] if key in _REASONING else [key]
        if not any(name in source for name in keys):
            raise ValueError(f"the chat template does not read {key!r} of a message, so that cannot be continued")
        self._mark = "CONTINUED"
        while self._mark in str(messages):
            self._mark += "_"
        if isinstance(said, list):
            part = next((part for part in reversed(said) if isinstance(part, dict) and "text" in part), None)
            if part is None:
                raise ValueError(f"no part of the last message's {key!r} has a text that could be continued")
            said, holder, keys = part["text"], part, ["text"]
        else:
            holder = messages[-1]
        if not isinstance(said, str):
            raise ValueError(f"the last message's {key!r} is no text, so it cannot be continued")
        self._said = said
        for name in keys:
            holder[name] = f"{said}{self._mark} "

    def cut(self, text: str) -> str:
        """Give the template's text up to the end of the message."""
        end = text.rfind(self._mark)
        if end < 0 or self._said.strip() not in text:
            raise ValueError("the chat template leaves the last message out or changes it, so it cannot be continued")
        return text[:end] if text.startswith(f"{self._mark} ", end) else text[:end].rstrip()


def plain(value: Any, deepest: int = MAX_DATA) -> Any:
    """Rebuild data from JSON's types alone: other objects have methods that no sandbox knows about."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(f"a message may hold integers of {MAX_DIGITS:,} digits, and one has more")
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if deepest == 0 and isinstance(value, Mapping | Sequence):
        raise ValueError(f"messages may have {MAX_DATA} lists and dicts within each other, and these have more")
    if isinstance(value, Mapping):
        return {str(key): plain(item, deepest - 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, deepest - 1) for item in value]
    raise ValueError(f"a message may hold text, numbers, lists and dicts, but not a {type(value).__name__}")


def _as_read(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a message what is None, which templates test for by its absence, and name its reasoning as they do.

    transformers does both. Clients send ``content: null`` beside tool calls, and call reasoning by three names.
    """
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is not None:
        given = {"thinking": reasoning, **given, "reasoning_content": reasoning}
    return given


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    if len(source) > MAX_SOURCE:
        raise ValueError(f"the chat template has {len(source):,} characters, more than {MAX_SOURCE:,}")
    try:
        with limited(lines=False):
            return environment().from_string(source)
    except (Exception, TooMuchError) as error:
        raise _failure(error, error.lineno if isinstance(error, TemplateSyntaxError) else None) from error


def _failure(error: BaseException, line: int | None) -> ValueError:
    """One line that says where and why."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, TemplateError | TooMuchError):
        reason = f"{type(error).__name__}: {reason}"
    return ValueError(f"the chat template fails{f' in line {line}' if line else ''}: {reason}")


def _line(template: Template, traceback: TracebackType | None) -> int | None:
    """Where the template was, in its own lines, when an exception came."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__jinja_template__") is template:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line
