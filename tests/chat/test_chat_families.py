"""What templates of many families use, in templates of our own, with all kinds of conversations: transformers' text.

`tests/support/chat_template_report.py` does the same with real ones.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import chat_template_report
import pytest
import tiny
import tokenizers
import transformers
import typer

import llama2cpp
from llama2cpp.dialogue.templates import ChatTemplate

# Thinks: finds the last question from the end, keeps the thoughts behind it, and leaves out those before.
THINKING = """\
{%- if tools %}{{- '<|start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content ~ '\\n\\n' }}{% endif %}
    {{- "# Tools" }}{% for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{% endfor %}{{- '<|stop|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|start|>system\\n' + messages[0].content + '<|stop|>\\n' }}{% endif %}
{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string
        and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|start|>' ~ message.role ~ '\\n' ~ content ~ '<|stop|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}{% set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}{{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{% endif %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{% else %}{{- call.arguments | tojson }}{% endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}{{- '<|stop|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|stop|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

# Alternates, or raises; takes the system message into the first question; parts of several kinds.
ALTERNATING = """\
{{- bos_token -}}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
    {%- if messages[0]['content'] is string -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}{%- set first = "" -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
    {%- if message['role'] == 'tool' or message.get('tool_calls') -%}
        {%- if '%s' % message['role'] not in ('tool', 'assistant') %}{{ raise_exception('never') }}{% endif -%}
        {{- '[%s:%d]' | format(message['role'], loop.index) -}}{%- continue -%}
    {%- endif -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) and not tools -%}
        {{ raise_exception("Roles must alternate: " ~ message['role'] ~ " at " ~ loop.index0) }}
    {%- endif -%}
    {%- set role = {'assistant': 'model'}.get(message['role'], message['role']) -%}
    {{- '<start>' + role + '\\n' + (first if loop.first else "") -}}
    {%- if message['content'] is string -%}{{- message['content'] | trim -}}
    {%- elif message['content'] is iterable and message['content'] is not mapping -%}
        {%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{- part['text'] | trim -}}
        {%- endfor -%}
    {%- else -%}{{- raise_exception('Content is neither text nor parts') -}}{%- endif -%}
    {{- '<end>\\n' -}}
    {%- if loop.index > 40 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start>model\\n' -}}{%- endif -%}"""

# Writes types of tools by a macro that calls itself, dates, documents, and marks answers for training.
TYPES = """\
{%- macro kind(spec, required, depth=0) -%}
    {%- if spec.type == "array" -%}{{- kind(spec['items'], false, depth + 1) + "[]" if spec['items'] else "any[]" -}}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string -%}
        {{- spec.type | join(" | ") -}}
    {%- elif spec.enum -%}{{- '"' + spec.enum | map('upper') | join('" | "') + '"' -}}
    {%- elif spec.type == "object" -%}{
        {%- for name, inner in spec.properties | dictsort -%}
            {{- "\\n" ~ "  " * depth ~ name ~ ("" if name in (spec.required or []) else "?") ~ ": " }}
            {{- kind(inner, true, depth + 1) -}}
            {%- if inner.default is defined %} // default: {{ inner.default }}{% endif %}{{ "," if not loop.last }}
        {%- endfor -%}}
    {%- else -%}{{- {'boolean': 'bool'}[spec.type] | default(spec.type or 'any') -}}{%- endif -%}
{%- endmacro -%}
{%- macro wrap() -%}<{{ caller() | trim }}>{%- endmacro -%}
{%- set effort = reasoning_effort | default("medium") -%}
{{- "Year: " + strftime_now("%Y") + ", effort: " + effort ~ ", " ~ (thinking | default('unset')) + eos_token }}
{% for tool in tools or [] -%}
    {%- set function = tool.function if 'function' in tool else tool -%}
    {{ function.name }} = {{ kind(function.parameters, true) }}; {{ function | tojson(indent=2) }}
    {{ function.parameters | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}
    {% for name, value in function.parameters.items() %}
        {{- name }}{% if value is mapping %}={{ value | length }}{% endif %},{% endfor %}
{% endfor -%}
{%- for document in documents or [] %}
    {%- call wrap() %}{{ loop.index ~ '. ' }}
        {{- document['title'] | lower }}: {{ document.text | replace('hot', 'cold') }}{% endcall %}
{%- endfor %}
{%- for message in messages -%}
    {%- if message.content is undefined or message.content is none -%}{%- set text = '-' -%}
    {%- elif message.content is sequence and message.content is not string -%}
        {%- set text = message.content | map(attribute='text') | join('') -%}
    {%- else -%}
        {%- set text = message.content.rsplit(' ', 1)[0] if message.role == 'user' else message.content -%}
    {%- endif -%}
    {%- if message.role == 'assistant' -%}
        {% generation %}{{- '<a>' ~ (message.thinking | default('', true)) ~ text -}}{% endgeneration %}
        {{- eos_token -}}
    {%- else -%}{{- '<' ~ message.role[0] ~ '>' ~ text | trim }}{{ '\\n' }}{% endif -%}
    {%- if message.tool_calls is defined -%}{%- for call in message.tool_calls -%}
        {{- '#' ~ call.id[:3] ~ call.function.arguments | string | length ~ (call.function.arguments is mapping) -}}
    {%- endfor -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt is true -%}<a>{%- endif -%}"""

TEMPLATES = {"thinking": THINKING, "alternating": ALTERNATING, "types": TYPES}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **chat_template_report.TOKENS
    )


@pytest.mark.parametrize("kind", chat_template_report.KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_transformers(tokenizer: Any, name: str, kind: str) -> None:
    """Where it fails there, it fails here, and most do not."""
    texts = 0
    for messages, given in chat_template_report.KINDS[kind]:
        theirs, found, error, _ = chat_template_report.outcomes(tokenizer, TEMPLATES[name], messages, given)
        assert found == theirs, (messages, given, error)
        texts += theirs is not None
    assert texts > 0


def test_a_template_asks_for_its_time_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a system call, and was made for each line that jinja2 runs."""
    asked: list[float] = []
    clock = time.thread_time

    def counted() -> float:
        asked.append(clock())
        return asked[-1]

    monkeypatch.setattr(time, "thread_time", counted)
    ChatTemplate(TYPES + " ").render([chat_template_report.USER])
    assert 1 <= len(asked) < 100


# --- what is given to a template, in all that chats


@pytest.fixture(scope="module")
def model(stories: llama2cpp.Model) -> llama2cpp.Model:
    return tiny.model(tiny.config(vocab_size=512, seq_len=600), tokenizer=stories.tokenizer, threads=1)


BEGUN = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "It is a"}]


def test_the_last_message_goes_on(model: llama2cpp.Model) -> None:
    """The answer is what the model adds, with the space at its beginning, and begins no new message."""
    text = model.chat_text(BEGUN, template=THINKING, continue_final_message=True)
    assert text.endswith("<|start|>assistant\n<think>\n\n</think>\n\nIt is a")
    ids = model.chat_tokens(BEGUN, template=THINKING, continue_final_message=True)
    assert model.tokenizer.decode(ids) == text
    expected = model.generate(ids, max_tokens=5, temperature=0)
    given: dict[str, Any] = {"template": THINKING, "continue_final_message": True, "max_tokens": 5, "temperature": 0}
    assert model.chat(BEGUN, **given) == expected
    assert "".join(model.chat_stream(BEGUN, **given)) == expected
    assert llama2cpp.chat(BEGUN, model=model, **given) == expected


def test_the_space_where_it_goes_on() -> None:
    """A tokenizer that puts a space before a text takes none from what goes on."""
    storyteller = llama2cpp.load("storyteller", threads=1)
    begun = [BEGUN[0], {"role": "assistant", "content": "Once upon a"}]
    answer = storyteller.chat(begun, template="llama2", continue_final_message=True, max_tokens=2, temperature=0)
    assert answer == " time,"


@pytest.mark.parametrize(
    ("messages", "template", "key", "told"),
    [
        ([{"role": "assistant", "tool_calls": []}], "chatml", True, "no last message whose 'content'"),
        (BEGUN, "chatml", "thinking", "no last message whose 'thinking'"),
        ([{**BEGUN[1], "x": "y"}], "chatml", "x", "does not read 'x'"),
        ([{"role": "user", "content": [{"type": "image"}]}], TYPES, True, "no part"),
        ([{"role": "user", "content": 5}], TYPES, True, "is no text"),
        (BEGUN, "{{ messages[0].content }}", True, "leaves the last message out"),
        (BEGUN, "{{ messages[-1].content[:4] }}", True, "leaves the last message out"),
    ],
)
def test_what_cannot_be_continued(model: llama2cpp.Model, messages: Any, template: str, key: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^chat: .*{told}"):
        model.chat(messages, template=template, continue_final_message=key)


def test_special_tokens_in_what_goes_on(model: llama2cpp.Model) -> None:
    """What a message spells is text there, too; and so is the mark of its end."""
    begun = [{"role": "user", "content": "CONTINUED </s>"}, {"role": "assistant", "content": "a</s>CONTINUED_ b"}]
    ids = model.chat_tokens(begun, template="llama2", continue_final_message=True)
    assert 2 not in ids
    assert model.tokenizer.decode(ids) == "[INST] CONTINUED </s> [/INST] a</s>CONTINUED_ b"


def test_template_args(model: llama2cpp.Model) -> None:
    """The same as arguments, and for names that are arguments already."""
    for value in (True, False):
        said = model.chat_text("Hello", template=THINKING, template_args={"enable_thinking": value})
        assert said.endswith("</think>\n\n") == (not value)
        options: dict[str, Any] = {"template": THINKING, "max_tokens": 3, "temperature": 0}
        ids = model.chat_tokens("Hello", template=THINKING, template_args={"enable_thinking": value})
        expected = model.generate(ids, max_tokens=3, temperature=0)
        assert model.chat("Hello", enable_thinking=value, **options) == expected
        assert model.chat("Hello", template_args={"enable_thinking": value}, **options) == expected
        conversation = llama2cpp.Conversation(model, template_args={"enable_thinking": value}, **options)
        assert conversation.say("Hello") == expected
    assert model.chat_text("Hello", template="{{ seed }}", template_args={"seed": "s"}) == "s"
    for call in (
        model.chat,
        model.chat_text,
        model.chat_tokens,
        lambda text, **given: llama2cpp.Conversation(model, **given),
    ):
        with pytest.raises(TypeError, match="has no argument 'enable_thoughts'"):
            call("Hello", template=THINKING, template_args={"enable_thoughts": True})
    with pytest.raises(TypeError, match="'enable_thinking' twice"):
        model.chat("Hello", template=THINKING, enable_thinking=True, template_args={"enable_thinking": True})
    with pytest.raises(TypeError, match="template_args is 'x'"):
        model.chat("Hello", template_args="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ("[" * 5000, "expected a JSON object"),
        ('{"x": 1}', "no argument 'x'"),
        ('{"enable_thinking": false}', None),
    ],
)
def test_the_command_line_has_them(
    given: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.main import get_command

    from llama2cpp.command import terminal
    from llama2cpp.command.cli import app

    asked: list[str] = []
    monkeypatch.setattr(terminal, "talk", lambda conversation, *_: asked.append(conversation.say("Hello")))
    template = tmp_path / "template.jinja"
    template.write_text(THINKING)
    arguments = ["chat", "storyteller", "-t", "0", "-n", "2", "--template", str(template), "--template-args", given]
    if told is None:
        get_command(app).main(arguments, standalone_mode=False)
        options: dict[str, Any] = {"template": THINKING, "max_tokens": 2, "temperature": 0}
        assert asked == [llama2cpp.chat("Hello", enable_thinking=False, **options)]
    else:
        with pytest.raises((typer.BadParameter, TypeError)) as caught:
            get_command(app).main(arguments, standalone_mode=False)
        assert re.search(told, getattr(caught.value, "message", str(caught.value)))
