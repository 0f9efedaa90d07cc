"""Chat templates whose single operations are large: each operator, filter and method ends within bounds of work.

A limit on time is looked at between lines of Python. What C code does within one cannot be interrupted and holds the
interpreter's lock, so its bound is what it is given. Work is counted, not timed: characters, digits and lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from test_chat_templates import ours, talk, theirs

from llama2cpp.dialogue import sandbox

# Each nearly as large as may be, where no more than 1,000,000 characters may be made.
PREPARED = (
    "{% set big = 10 ** 3990 %}{% set text = 'a' * 10000 %}{% set many = [1, 3] * 2000 %}"
    "{% set ns = namespace(a=(1,), b=(1,), l=[1], m=[1]) %}{% for i in range(10) %}"
    "{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}"
    "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}"
    "{% endfor %}"
)
VALUES = ["big", "text", "many", "ns.a", "ns.l"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in"]
ARGUMENTS = ["", "(big)", "(500000)", "(-500000)", "(text)", "('a', text)", "(text, 3)", "(ns.b)"]


def bodies() -> list[str]:
    filters = sorted(sandbox.environment().filters)
    methods = {
        kind: [name for name in dir(kind) if not name.startswith("_")] for kind in (str, int, float, list, dict, tuple)
    }
    owners: dict[Any, list[str]] = {
        str: ["text", "('{' ~ ':' * 10000)"],
        int: ["big"],
        float: ["1.5"],
        list: ["ns.l"],
        dict: ["{ns.a: 1}"],
        tuple: ["ns.a"],
    }
    made = [f"{left} {op} {right}" for op in OPERATORS for left in VALUES for right in [*VALUES, "ns.b", "3"]]
    # One argument for each value, in turn: all of them would take a quarter of an hour.
    for place, name in enumerate(filters):
        made += [f"{value} | {name}{ARGUMENTS[(place + i) % len(ARGUMENTS)]}" for i, value in enumerate(VALUES)]
    for kind, names in methods.items():
        for place, name in enumerate(names):
            for i, owner in enumerate(owners[kind]):
                made += [f"{owner}.{name}{ARGUMENTS[(place + i + j) % len(ARGUMENTS)] or '()'}" for j in (0, 3, 5)]
    return made


# Reads templates, and prints for each what came of it and the largest integer and text that any step has given.
CHILD = """
import json, resource, sys
from llama2cpp.dialogue import sandbox
from llama2cpp.dialogue.templates import ChatTemplate

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
sandbox.MAX_CHARACTERS = 1_000_000
lines = 0
digits = 0
trace, checked = sandbox._Budget.trace, sandbox._Budget.checked

def counting_trace(self, frame, event, argument):
    global lines
    lines += 1
    return counting_trace.__get__(self) if trace(self, frame, event, argument) else None

def counting_checked(self, value):
    global digits
    value = checked(self, value)
    if isinstance(value, int):
        digits = max(digits, value.bit_length() * 3 // 10)
    return value

sandbox._Budget.trace, sandbox._Budget.checked = counting_trace, counting_checked
for template in json.load(sys.stdin):
    lines = digits = 0
    try:
        ChatTemplate(template).render([{"role": "user", "content": "Hello"}])
        said = "text"
    except ValueError as error:
        said = str(error)
    print(json.dumps([said, lines, digits]), flush=True)
"""


def test_each_operation_is_bounded() -> None:
    """In a process with 2 GB of address space, and with a hundredth of the characters, so that there are many tries."""
    every = int(os.environ.get("LLAMA2CPP_TEMPLATE_COSTS", "9"))  # tests/slow.sh takes each
    templates = [PREPARED + "{% set x = " + body + " %}" for body in bodies()[::every]]
    assert len(templates) > 100
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(templates), capture_output=True, text=True, timeout=1200
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"it died of {templates[len(results)][len(PREPARED) :]}\n{done.stderr[-500:]}"
    for template, (said, lines, digits) in zip(templates, results, strict=True):
        body = template[len(PREPARED) :]
        assert said == "text" or said.startswith("the chat template fails"), body
        assert "MemoryError" not in said, body
        assert "seconds" not in said, body
        assert lines < 1_000_000, body
        assert digits <= sandbox.MAX_DIGITS, body


DIGITS = r"integer (of|has) more than 4,000 digits"
REFUSED = {
    "power": ("{{ 3 ** 3000000 // 7 ** 700000 }}", DIGITS),
    "product": ("{% set x = 10 ** 3000 %}{{ x * x }}", DIGITS),
    "products": (
        "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        DIGITS,
    ),
    "powers": ("{{ 10 ** 10 ** 10 ** 10 ** 10 }}", DIGITS),
    "literal": ("{{ 0x" + "f" * 100_000 + " }}", DIGITS),
    "from_bytes": ("{{ (5).from_bytes(('a' * 10000).encode(), 'big') }}", DIGITS),
    "int of text": ("{{ ('f' * 100000) | int(base=16) }}", DIGITS),
    "round": ("{{ 5 | round(-5000000) }}", DIGITS),
    "sum of lists": ("{% set x = [1] * 100000 %}{% set y = [x] * 100 %}", "100,000,000 characters"),
    "list of a text": ("{{ ('a' * 10000000) | list | length }}", "100,000,000 characters"),
    "pieces": ("{{ ('a ' * 10000000).split() | length }}", "100,000,000 characters"),
    "pieces at": ("{{ ('a ' * 10000000).split(' ') | length }}", "100,000,000 characters"),
    "lines": ("{{ ('a\\n' * 10000000).splitlines() | length }}", "100,000,000 characters"),
    "arguments": ("{{ dict(*('a' * 10000000)) }}", "100,000,000 characters"),
    "searched from the end": ("{{ ('a' * 1000000).rfind('b' ~ 'a' * 500000) }}", "100,000,000 characters"),
    "stripped": ("{{ ('a' * 1000000).strip('b' * 500000 ~ 'a') }}", "100,000,000 characters"),
    "slices": (
        "{% set x = [1] * 1000000 %}{% for i in range(1000) %}{% set y = x[1:] %}{% endfor %}",
        "100,000,000 characters",
    ),
    "equal, and not the same": (
        "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(45) %}"
        "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
        "100,000,000 characters",
    ),
    "key": (
        "{% set ns = namespace(a=(1,)) %}{% for i in range(45) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}"
        "{{ {ns.a: 1} }}",
        "100,000,000 characters",
    ),
    "format": ("{{ ('{' ~ ':' * 5000000).format(1) }}", "ValueError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    template, told = REFUSED[name]
    with pytest.raises(ValueError, match=f"^the chat template fails.*({told})"):
        ours(template, talk(None, ["Hello"]), True)


def test_integers_in_messages() -> None:
    assert ours("{{ messages[0].n + 1 }}", [{"role": "user", "n": 10**3999}], True) == str(10**3999 + 1)
    with pytest.raises(ValueError, match="may hold integers of 4,000 digits, and one has more"):
        ours("{{ 1 }}", [{"role": "user", "n": 10**5000}], True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 10 ** 3999 }} {{ 2 ** -1 }} {{ (-3) ** 5 }} {{ 0 ** 9999 }} {{ 7 // -2 }} {{ -7 % 3 }} {{ 1 / 3 }}",
        "{{ messages[1:] }}{{ messages[0].content[::-1] }}{{ messages[:-1] | length }}{{ 'abcdef'[1:5:2] }}",
        "{{ '{0:>4}{{}}'.format(1) }}{{ 'a b  c'.split() }}{{ 'a-b'.rsplit('-', 1) }}",
        "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(*'xy') }}{{ f(**{'a': 1, 'b': 2}) }}",
        "{{ '12' | int + 1 }}{{ 'x' | int(7) }}{{ 2.567 | round(1) }}{{ ' x '.strip() }}{{ 'xyx'.strip('x') }}",
        "{{ [1, 2] == [1, 2] }}{{ (1, 2) in [(1, 2)] }}{{ {(1, 2): 3}[(1, 2)] }}{{ 'a\n\nb'.splitlines() }}",
    ],
)
def test_what_is_small_is_transformers(template: str) -> None:
    messages = talk(None, ["Hello", "Hi", "What?"])
    assert ours(template, messages, True) == theirs(template, messages, True)
