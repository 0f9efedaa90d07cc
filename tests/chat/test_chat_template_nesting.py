"""Chat templates that call, nest or collect without end: an exception, and never an end of the C stack."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from test_chat_templates import ours, talk, theirs

from llama2cpp.dialogue import sandbox
from llama2cpp.dialogue.templates import ChatTemplate

GROW = "{%% set ns = namespace(x=[1]) %%}{%% for i in range(100000) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x %s }}"
COUNTED = "{%% set ns = namespace(n=%d) %%}{%% block b %%}{%% if ns.n %%}{%% set ns.n = ns.n - 1 %%}{{ self.b() }}"
CALLS = "it has more than 40 calls within each other"
DATA = "it has more than 50 lists and dicts within each other"
DEEP = "it is nested too deeply"

ENDLESS = {
    "macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", CALLS),
    "macro in set": ("{% macro f() %}{% set x %}{{ f() }}{% endset %}{% endmacro %}{{ f() }}", CALLS),
    "macro in for": ("{% macro f() %}{% for i in [1] %}{{ f() | upper }}{% endfor %}{% endmacro %}{{ f() }}", CALLS),
    "macros in turn": (
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ [f()] | join }}{% endmacro %}{{ f() }}",
        CALLS,
    ),
    "macro as argument": ("{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}", CALLS),
    "caller": (
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{% call f() %}x{% endcall %}",
        CALLS,
    ),
    "recursive loop": ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", CALLS),
    "block": ("{% block b %}{{ self.b() }}{% endblock %}", CALLS),
    "parentheses": ("{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}", DEEP),
    "a few parentheses": ("{{ " + "(" * 150 + "1" + ")" * 150 + " }}", DEEP),
    "lists": ("{{ " + "[" * 100000 + "]" * 100000 + " }}", DEEP),
    "dicts": ("{{ " + "{1: " * 100 + "1" + "}" * 100 + " }}", DEEP),
    "indices": ("{{ " + "x[" * 100000 + "x" + "]" * 100000 + " }}", DEEP),
    "arguments": ("{{ " + "f(" * 100000 + "x" + ")" * 100000 + " }}", DEEP),
    "not": ("{{ " + "not " * 100000 + "1 }}", DEEP),
    "minus": ("{{ " + "- " * 100000 + "1 }}", DEEP),
    "else": ("{{ " + "1 if x else " * 50000 + "1 }}", DEEP),
    "ifs": ("{% if x %}" * 40000 + "{% endif %}" * 40000, DEEP),
    "sum": ("{{ " + "x + " * 200 + "x }}", DEEP),
    "power": ("{{ " + "1 ** " * 200 + "x }}", DEEP),
    "and": ("{{ " + "x and " * 200 + "x }}", DEEP),
    "attributes": ("{{ x" + ".a" * 200 + " }}", DEEP),
    "filters": ("{{ x" + " | upper" * 200 + " }}", DEEP),
    "calls": ("{{ x" + "()" * 200 + " }}", DEEP),
    "elifs": ("{% if x %}" + "{% elif x %}" * 500 + "{% endif %}", "an if has more than 200 elif"),
    "list": (GROW % ("[ns.x]", ""), DATA),
    "tuple": (GROW % ("(ns.x,)", ""), DATA),
    "dict": (GROW % ("{'a': ns.x}", ""), DATA),
    "dict's view": (GROW % ("{'a': ns.x}.items()", "| list"), DATA),
    "dict's key": (GROW % ("((ns.x | length, ns.x),)", "| list"), DATA),
    "dict()": (GROW % ("dict(a=ns.x)", ""), DATA),
    "dict.fromkeys": (GROW % ("{}.fromkeys(['a'], ns.x)", ""), DATA),
    "cycler": (GROW % ("cycler(ns.x).items", ""), DATA),
    "batch": (GROW % ("ns.x | batch(1)", "| list"), DATA),
    "map": (GROW % ("[ns.x] | map('list')", "| list"), DATA),
    "varargs": (
        "{% set ns = namespace(x=[1]) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(100000) %}{{ f(ns.x) }}{% endfor %}{{ ns.x }}",
        DATA,
    ),
    "tojson": (GROW % ("[ns.x]", "| tojson"), DATA),
    "tojson(indent)": (GROW % ("[ns.x]", "| tojson(indent=1)"), DATA),
    "comparison": (GROW % ("[ns.x]", "== ns.x"), DATA),
    "generators": (GROW % ("ns.x | map('string')", "| join"), "it takes more than 2 seconds"),
    "message": ("{{ messages[1].content }}", "messages may have 50 lists and dicts within each other"),
}
# As deep as may be.
ALLOWED = {
    "macro": (
        "{% macro f(n) %}{% if n %}{% for i in [1] %}{% set x %}{{ f(n - 1) }}{% endset %}{{ x }}{% endfor %}"
        "{% endif %}{% endmacro %}{{ f(39) }}",
        "",
    ),
    "caller": (
        "{% macro f(n) %}{% set back = caller %}{% if n %}{% call f(n - 1) %}{{ back() }}{% endcall %}"
        "{% else %}{{ back() }}{% endif %}{% endmacro %}{% call f(19) %}x{% endcall %}",
        "x",
    ),
    "recursive loop": (
        "{% for i in [40] recursive %}{% if i %}{{ loop([i - 1]) }}{% endif %}{{ i }}{% endfor %}",
        None,
    ),
    "block": (COUNTED % 40 + "{% endif %}{% endblock %}", ""),
    "parentheses": ("{{ " + "(" * 16 + "messages[0].role" + ")" * 16 + " }}", "user"),
    "lists": ("{{ " + "[" * 16 + "messages[0].role" + "]" * 16 + " }}", None),
    "not": ("{{ " + "not " * 34 + "messages }}", "True"),
    "ifs": ("{% if messages %}" * 34 + "x" + "{% endif %}" * 34, "x"),
    "sum": ("{{ " + "messages[0].role + " * 50 + "'' }}", "user" * 50),
    "filters": ("{{ messages[0].role" + " | upper" * 50 + " }}", "USER"),
    "elifs": ("{% if no %}" + "{% elif no %}" * 199 + "{% else %}x{% endif %}", "x"),
    "list": (
        "{% set ns = namespace(x=1) %}{% for i in range(50) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "[" * 50 + "1" + "]" * 50,
    ),
    "message": ("{{ messages[0].content == messages[0].content }}{{ messages[0].content | tojson(indent=1) }}", None),
}

# Reads [[template, messages]], runs each in a thread with 256 KB of stack, and prints what comes of it.
CHILD = """
import json, sys, threading
from llama2cpp.dialogue.templates import ChatTemplate

def run():
    for template, messages in json.load(sys.stdin):
        try:
            print(json.dumps(["text", ChatTemplate(template).render(messages)]), flush=True)
        except ValueError as error:
            print(json.dumps(["error", str(error)]), flush=True)

threading.stack_size(256 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def nested(depth: int) -> Any:
    value: Any = "x"
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def run_on_a_small_stack(templates: list[str]) -> list[tuple[str, str]]:
    # 50 levels with the list of messages and the message itself; and more.
    messages = [{"role": "user", "content": nested(48)}, {"role": "user", "content": nested(60)}]
    given = [[template, messages if "messages[1]" in template else messages[:1]] for template in templates]
    done = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(given), capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (
        f"it died of template {len(lines)}: {templates[len(lines)][:200]}\n{done.stderr[-500:]}"
    )
    return [(kind, text) for kind, text in lines]


def test_nothing_endless_ends_a_small_stack() -> None:
    results = run_on_a_small_stack([template for template, _ in ENDLESS.values()])
    for (name, (_, told)), (kind, text) in zip(ENDLESS.items(), results, strict=True):
        assert (name, kind, told in text) == (name, "error", True), text


def test_what_is_allowed_fits_in_a_small_stack() -> None:
    results = run_on_a_small_stack([template for template, _ in ALLOWED.values()])
    for (name, (_, expected)), (kind, text) in zip(ALLOWED.items(), results, strict=True):
        assert (name, kind) == (name, "text"), text
        assert expected is None or text == expected, name


@pytest.mark.parametrize("name", ["recursive loop", "lists", "message"])
def test_deep_text_is_transformers(name: str) -> None:
    messages = [{"role": "user", "content": nested(48)}]
    template, _ = ALLOWED[name]
    assert ours(template, messages, True) == theirs(template, messages, True)


def test_recursive_macros_give_transformers_text() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for i in range(12):
        schema = {"type": "object", "properties": {f"p{i}": schema, "also": {"type": "array", "items": {"type": "n"}}}}
    template = (
        "{% macro show(s) %}{% if s.type == 'object' %}{ {% for name, inner in s.properties.items() %}"
        "{{ name }}: {{ show(inner) }}{{ ', ' if not loop.last }}{% endfor %} }"
        "{% elif s.type == 'array' %}{{ show(s['items']) }}[]{% else %}{{ s.type }}{% endif %}{% endmacro %}"
        "{{ show(messages[0].content) }}"
    )
    messages = [{"role": "user", "content": schema}]
    assert ours(template, messages, True) == theirs(template, messages, True)


def test_the_line_of_an_endless_call() -> None:
    with pytest.raises(ValueError, match=f"^the chat template fails in line 2: {CALLS}$"):
        ChatTemplate("{% macro f() %}\n{{ f() }}{% endmacro %}\n{{ f() }}").render(talk(None, ["Hello"]))
    with pytest.raises(ValueError, match=f"^the chat template fails in line 3: {DEEP}$"):
        ChatTemplate("a\nb\n{{ " + "(" * 40 + "1" + ")" * 40 + " }}")


def test_calls_that_are_over_do_not_count() -> None:
    template = "{% macro f() %}x{% endmacro %}{% for i in range(100) %}{{ f() }}{% endfor %}"
    assert ours(template, talk(None, ["Hello"]), True) == "x" * 100
    failing = ChatTemplate("{% macro f(n) %}{{ f(n - 1) if n else raise_exception('end') }}{% endmacro %}{{ f(38) }}")
    for _ in range(3):
        with pytest.raises(ValueError, match="end"):
            failing.render(talk(None, ["Hello"]))


def test_limits_are_what_the_tests_say() -> None:
    assert (sandbox.MAX_CALLS, sandbox.MAX_DATA, sandbox.MAX_ELIFS) == (40, 50, 200)


def test_a_namespace_in_itself() -> None:
    template = "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}{{ ns.x == ns.x }}"
    assert ours(template, talk(None, ["Hello"]), True) == "[<Namespace>]True"
