"""Chat templates: the same text as transformers', and no harm from one that means some."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama2cpp.dialogue import sandbox
from llama2cpp.dialogue.templates import NAMED, ChatTemplate

Messages = list[dict[str, Any]]

# As models have them, but for SmolLM2's written for one line each.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# What larger templates use: blocks on lines of their own, macros, namespaces, filters, tests, loop controls, dates.
FEATURES = """\
{#- a comment -#}
{%- macro block(name, text) -%}
    <{{ name|upper }}>{{ text }}</{{ name }}>
{%- endmacro %}
{% if tools is not none %}
    never
{% endif %}
{%- set ns = namespace(count=0, last=none) %}
{%- if date is not defined %}{% set date = strftime_now("%Y") %}{% endif %}
{{ date[:2] }}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% generation %}{{ block(message.role, message['content'] | trim) }}{% endgeneration %}
    {%- set ns.count = ns.count + 1 %}
    {% set ns.last = message %}
    {% if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
{{ ns.count * 2 }} {{ ns.last | tojson }} {{ {'b': [1, 2.5, true, none], 'a': '<é>'} | tojson(indent=2) }}
{{ '%s and %05.1f' % ('x', 3.14159) }} {{ '{}-{:>4}'.format('a', 7) }} {{ messages | length }}
{{ messages | map(attribute='role') | join(', ') }} {{ dict(a=1).items() | list }} {{ 2 ** 10 }} {{ 7 // 2 }}
{{ 'a,b'.split(',') }} {{ ['x'] * 3 + ['y'] }} {{ messages[0].content.replace('a', 'bb') ~ 5 ~ none ~ 1.5 }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'x' | indent(4, true) }}
"""
REAL = {"SmolLM2": SMOLLM2, "ChatML": CHATML, "Llama 2": LLAMA2, "Llama 3": LLAMA3, "Mistral": MISTRAL}
TOKENS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(template: str, messages: Messages, generate: bool) -> str:
    tokenizer = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS
    )
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generate
    )
    assert isinstance(text, str)
    return text


def ours(template: str, messages: Messages, generate: bool) -> str:
    return ChatTemplate(template).render(messages, add_generation_prompt=generate, **TOKENS)


def talk(system: str | None, turns: list[str]) -> Messages:
    """A system message, if any, then user and assistant in turn."""
    spoken = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(turns)]
    return spoken if system is None else [{"role": "system", "content": system}, *spoken]


texts = st.text(max_size=20) | st.sampled_from(["", " a ", "\n", "<|im_end|>", "{{ 1 }}", "{% raw %}", "é🐶", "</s>"])
systems = st.none() | texts
turns = st.lists(texts, min_size=1, max_size=5)


@pytest.mark.parametrize("template", [*REAL.values(), FEATURES], ids=[*REAL, "features"])
def test_the_text_is_transformers(template: str) -> None:
    @settings(max_examples=40)
    @given(systems, turns, st.booleans())
    @example("Be nice.", ["Hello", "Hi!", "What?"], True)
    def check(system: str | None, turns: list[str], generate: bool) -> None:
        messages = talk(None if template is MISTRAL else system, turns)
        assert ours(template, messages, generate) == theirs(template, messages, generate)

    check()


@pytest.mark.parametrize(("name", "template"), [("chatml", CHATML), ("llama2", LLAMA2), ("llama3", LLAMA3)])
def test_named_templates_are_what_models_have(name: str, template: str) -> None:
    @settings(max_examples=40)
    @given(systems, turns, st.booleans())
    def check(system: str | None, turns: list[str], generate: bool) -> None:
        messages = talk(system, turns)
        assert ours(name, messages, generate) == theirs(template, messages, generate)

    check()


def test_names() -> None:
    assert set(NAMED) == {"chatml", "llama2", "llama3"}
    with pytest.raises(ValueError, match="no chat template 'vicuna': it is chatml, llama2, llama3"):
        ChatTemplate("vicuna")


# --- templates that fail


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("a\n{% for %}", "in line 2: Expected an expression"),
        ("a\n\n{% if x %}", "in line 3: .*'endif'|in line 3: Unexpected end"),
        ("a\n{{ raise_exception('No tools\nhere') }}", "in line 2: No tools here"),
        ("a\n{% if 1 %}\n{{ messages[0].a.b }}\n{% endif %}", "in line 3: 'dict object' has no attribute 'a'"),
        ("{% macro m() %}\n\n{{ 1 // 0 }}\n{% endmacro %}\n{{ m() }}", "in line 3: ZeroDivisionError"),
        ("\n{{ 1 + 'a' }}", "in line 2: TypeError"),
        ("\n{% include 'other' %}", "in line 2: TypeError: no loader"),
        ("{% macro f() %}\n{{ f() }}{% endmacro %}{{ f() }}", "in line 2: it has more than 40 calls"),
        ("{{ nothing | unknown_filter }}", "in line 1: No filter named 'unknown_filter'"),
    ],
)
def test_a_failing_template_says_its_line(template: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^the chat template fails ({told})") as caught:
        ours(template, talk(None, ["Hello"]), True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0[__class__]}'.format(messages) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ self.__init__ }}",
        "{% set x = messages | map(attribute='__class__') | list %}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    messages = talk(None, ["Hello"])
    with pytest.raises(ValueError, match=r"unsafe|may not|callable"):
        ours(template, messages, True)
    assert messages == talk(None, ["Hello"])


def test_a_template_sees_plain_data_only() -> None:
    class Text(str):
        def secret(self) -> str:
            return "secret"

    assert ours("{{ messages[0].content.secret is defined }}", talk(None, [Text("x")]), True) == "False"
    with pytest.raises(ValueError, match="may hold text, numbers, lists and dicts, but not a object"):
        ours("x{{ 1 }}", [{"role": "user", "content": object()}], True)


GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x }}"
LARGE = [
    GROW % ("'aa'", "{% set ns.x = ns.x ~ ns.x %}"),
    GROW % ("'aa'", "{% set ns.x = ns.x + ns.x %}"),
    GROW % ("'aa'", "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}"),
    GROW % ("'aa'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    GROW % ("'aa'", "{% set ns.x = '{0}{0}'.format(ns.x) %}"),
    GROW % ("'aa'", "{% set ns.x = [ns.x, ns.x] | join %}"),
    GROW % ("[1]", "{% set ns.x = ns.x + ns.x %}"),
    "{{ 'a' * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ 10 ** 10000000000 }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ 'a'.ljust(10000000000) }}",
    "{{ '\t'.expandtabs(tabsize=10000000000) }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a' | indent(10000000000, first=true) }}",
    "{{ [1] | batch(10000000000, 'x') | list }}",
    "{{ [1] | slice(10000000000) | list }}",
    "{{ [[1]] | tojson(indent=10000000000) }}",
    "{{ 1.5 | round(10000000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('b' * 1000000).join(['a'] * 1000) }}",
    "{{ (['a'] * 1000) | join('b' * 1000000) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ (5).to_bytes(10000000000, 'big') }}",
    "{{ ([['a' * 1000] * 1000] * 1000) | string }}",
    (GROW % ("[1, 2]", "{% set ns.x = [ns.x, ns.x] %}")).replace("60", "45"),
]
LONG = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "{{ range(100000) | map('string') | map('join', range(100000)) | join }}",
]


@pytest.mark.parametrize("template", LARGE)
def test_no_template_fills_the_memory(template: str) -> None:
    with pytest.raises(ValueError, match="it makes more than 100,000,000 characters"):
        ours(template, talk(None, ["Hello"]), True)


@pytest.mark.parametrize("template", LONG)
def test_no_template_runs_for_ever(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"it takes more than 0\.2 seconds"):
        ours(template, talk(None, ["Hello"]), True)


def test_widths_come_from_no_value() -> None:
    for template in ("{{ '%*d' % (10 ** 9, 1) }}", "{{ '{:{}}'.format(1, 10 ** 9) }}"):
        with pytest.raises(ValueError, match="width"):
            ours(template, talk(None, ["Hello"]), True)


def test_a_long_conversation_is_within_the_limits() -> None:
    messages = talk("Be nice.", ["word " * 500] * 400)  # a megabyte
    for template in REAL.values():
        if template is not MISTRAL:
            assert ours(template, messages, True) == theirs(template, messages, True)


def test_a_debugger_is_left_alone() -> None:
    def trace(frame: Any, event: str, argument: Any) -> None:
        return None

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        ours("chatml", talk(None, ["Hello"]), True)
        assert sys.gettrace() is trace
        with pytest.raises(ValueError, match="fails"):
            ours("{{ raise_exception('no') }}", talk(None, ["Hello"]), True)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
