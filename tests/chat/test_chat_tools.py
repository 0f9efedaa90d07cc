"""Messages that call tools, and what templates read beside messages: the text of transformers' apply_chat_template."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2cpp
from llama2cpp.dialogue.chat_format import ChatFormat
from llama2cpp.dialogue.templates import ChatTemplate

# In the ways that templates of models that call tools are written.
TOOLS = """\
{%- if documents %}<docs>{% for d in documents %}{{ d['title'] }}: {{ d.text }};{% endfor %}</docs>{% endif %}
{%- if tools is defined and tools %}
{{- '<tools>' }}
{%- for tool in tools %}
{{- tool | tojson }}
{%- endfor %}
{{- '</tools>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<response id=' ~ message.tool_call_id ~ '>' ~ message.content ~ '</response>' }}
{%- elif message.tool_calls is defined and message.tool_calls %}
{%- for call in message.tool_calls %}
{%- set call = call.function if call.function else call %}
{{- '<call>' ~ call.name }} {{ (call.arguments if call.arguments is string else call.arguments | tojson) ~ '</call>' }}
{%- endfor %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- else %}
{{- '<' ~ message.role ~ '>' ~ message.content ~ (message.name or '') }}
{%- for name in ('reasoning_content', 'thinking', 'reasoning') %}{% if message[name] is defined %}
{{- name ~ message[name] }}{% endif %}{% endfor %}
{%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{%- if add_generation_prompt %}<assistant>{% endif %}{{ date | default('') }}{{ eos_token }}
"""
TOKENS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}

words = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["root", "</s>", "{{ 1 }}", "é🐶", '"'])
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
calls = st.fixed_dictionaries({"name": words, "arguments": words | st.dictionaries(words, values, max_size=3)})
tool_calls = st.lists(
    st.fixed_dictionaries({"id": words, "type": st.just("function"), "function": calls}) | calls, max_size=2
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": words | st.none()}, optional={"name": words})
    | st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": words},
        optional=dict.fromkeys(("reasoning_content", "thinking", "reasoning"), words | st.none()),
    )
    | st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": tool_calls}, optional={"content": words})
    | st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": tool_calls})
    | st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": words, "content": words})
    | st.fixed_dictionaries({"role": st.just("system"), "content": st.lists(values, max_size=2)}),
    min_size=1,
    max_size=4,
)
beside = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": calls}), max_size=2),
        "documents": st.lists(st.fixed_dictionaries({"title": words, "text": words}), max_size=2),
        "enable_thinking": st.booleans(),
        "date": words | st.integers(),
        "eos_token": words,
    },
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS
    )


@settings(max_examples=50)
@given(messages, beside, st.booleans())
def test_the_text_is_transformers(tokenizer: Any, messages: Any, beside: dict[str, Any], generate: bool) -> None:
    expected = tokenizer.apply_chat_template(
        messages, chat_template=TOOLS, tokenize=False, add_generation_prompt=generate, **beside
    )
    named: dict[str, Any] = {name: beside.get(name) for name in ("tools", "documents")}
    variables = {name: value for name, value in beside.items() if name not in named}
    template = ChatTemplate(TOOLS)
    assert template.variables >= set(variables)
    found = template.render(messages, add_generation_prompt=generate, **TOKENS, **named, variables=variables)
    assert found == expected


@pytest.fixture(scope="module")
def model(stories: llama2cpp.Model) -> llama2cpp.Model:
    return tiny.model(tiny.config(vocab_size=512, seq_len=400), tokenizer=stories.tokenizer, threads=1)


CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "root", "arguments": {"x": 101}}}]}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "root of 101?"},
    CALL,
    {"role": "tool", "tool_call_id": "1", "content": "10.05"},
]
SCHEMA = [{"type": "function", "function": {"name": "root", "parameters": {}}}]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("given", [{}, {"tools": SCHEMA}, {"tools": ()}, {"documents": [{"title": "a", "text": "b"}]}])
@pytest.mark.parametrize("more", [{}, {"enable_thinking": False}, {"date": "today", "enable_thinking": True}])
def test_chats(model: llama2cpp.Model, content: Any, given: Any, more: Any) -> None:
    """The answer is what the template's text continues with, in all that chats."""
    talk = [TALK[0], {**CALL, **content}, TALK[2]]
    options: dict[str, Any] = {"max_tokens": 4, "seed": 1}
    form = ChatFormat(model.tokenizer, TOOLS, **given, variables=more)
    expected = model.generate(form.encode(talk), temperature=0.7, stop=form.ends[1], **options)
    assert model.chat(talk, template=TOOLS, **given, **more, **options) == expected
    assert llama2cpp.chat(talk, model=model, template=TOOLS, **given, **more, **options) == expected
    assert "".join(model.chat_stream(talk, template=TOOLS, **given, **more, **options)) == expected
    conversation = llama2cpp.Conversation(model, template=TOOLS, **given, **more, **options)
    assert conversation.say("Hello") == model.chat("Hello", template=TOOLS, **given, **more, **options)


def test_what_the_template_does_not_read(model: llama2cpp.Model) -> None:
    wrong: list[dict[str, Any]] = [{"thinking": True}, {"max_token": 3}, {"add_generation_prompt": False}, {"loop": 1}]
    for options in wrong:
        [name] = options
        with pytest.raises(TypeError, match=f"chat.* has no argument '{name}'"):
            model.chat("Hello", template=TOOLS, **options)
        with pytest.raises(TypeError, match=f"Conversation.* has no argument '{name}'"):
            llama2cpp.Conversation(model, template=TOOLS, **options)
    wrong_tools: list[Any] = [[print], [{"type": print}], [object()]]
    for tools in wrong_tools:
        with pytest.raises((TypeError, ValueError), match=r"but not a|tools\[0\] is .*, expected a dict"):
            model.chat("Hello", template=TOOLS, tools=tools)


SPELLED = ["</s>", "a</s>b", "<s>"]


@pytest.mark.parametrize("special", SPELLED)
@pytest.mark.parametrize("where", ["value", "key", "tools", "documents", "variable", "name"])
def test_nothing_that_is_given_spells_a_control_token(stories: llama2cpp.Model, special: str, where: str) -> None:
    """Not even a key of a call's arguments; a template's own do."""
    arguments = {special if where == "key" else "x": special if where == "value" else 1}
    call = {"function": {"name": special if where == "name" else "root", "arguments": arguments}}
    talk = [{"role": "assistant", "tool_calls": [call]}]
    beside: dict[str, Any] = {
        "tools": ({"name": special},) if where == "tools" else None,
        "documents": [{"title": special, "text": ""}] if where == "documents" else None,
        "variables": {"date": special} if where == "variable" else {},
    }
    ids = ChatFormat(stories.tokenizer, TOOLS, **beside).encode(talk)
    assert [id for id in ids if id in (1, 2)] == [1, 2]  # BOS before all, and the template's EOS
    assert special in stories.tokenizer.decode(ids)
    spelled = ChatFormat(stories.tokenizer, TOOLS, special_in_content=True, **beside).encode(talk)
    assert len([id for id in spelled if id in (1, 2)]) == 3
