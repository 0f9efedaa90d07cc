"""Sentence templates: one text that both writes sentences and recognises them.

    "{hero} [found|saw] {+toy:a}[ <locale>|]."

`[a|b]` is a choice, `<name>` a choice from the table of macros. `{role:form}` is what the role's value looks like in that
form, `{+role}` the place where it is told first, and `{role!}` a place where a reader who remembers knows the word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Columns = Mapping[str, str]
Facts = Mapping[str, Mapping[str, str]]  # role -> column -> text


class Axis(Protocol):
    """One thing that is chosen about a role: a key, and columns of text that go with it."""

    @property
    def choices(self) -> int: ...

    def draw(self, rng: Random) -> str: ...

    def row(self, key: str) -> Columns | None:
        """Columns of a key; None if there is no such key."""

    def pattern(self, column: str) -> str:
        """Make a regular expression for the keys (column "") or a column: it finds all of them, or more."""

    def has(self, column: str) -> bool: ...


@dataclass(frozen=True)
class Table:
    """An axis whose keys are listed."""

    rows: Mapping[str, Columns]

    @property
    def choices(self) -> int:
        return len(self.rows)

    def draw(self, rng: Random) -> str:
        return choose(rng, tuple(self.rows))

    def row(self, key: str) -> Columns | None:
        return self.rows.get(key)

    def pattern(self, column: str) -> str:
        return either(list(self.rows) if column == "" else [row[column] for row in self.rows.values() if column in row])

    def has(self, column: str) -> bool:
        return all(column in row for row in self.rows.values())


@dataclass(frozen=True)
class Type:
    """What a role may be: its axes, and for each form of a slot a pattern such as "a {adj} {noun}"."""

    axes: Mapping[str, Axis]
    forms: Mapping[str, str]

    def axis_of(self, column: str) -> str:
        """Find the axis whose key decides this column."""
        if column in self.axes:
            return column
        return next(name for name, axis in self.axes.items() if axis.has(column))


@dataclass(frozen=True)
class Slot:
    """One place for a role in a template."""

    role: str
    form: str
    introduces: bool
    recall: bool

    def __str__(self) -> str:
        form = f":{self.form}" if self.form else ""
        return f"{{{'+' * self.introduces}{self.role}{form}{'!' * self.recall}}}"


@dataclass(frozen=True)
class Choice:
    """Alternatives inside a sentence."""

    options: tuple[Sequence[Node], ...]


Node = str | Slot | Choice


@dataclass(frozen=True)
class Written:
    """A sentence with the places in it that a reader can foretell, and the bits of choice that it took."""

    text: str
    recalls: tuple[tuple[str, int, int], ...]  # role, begin, end
    bits: float


def choose(rng: Random, items: Sequence[Item]) -> Item:
    """One of the items. Only `Random.random` is promised to stay the same in later versions of Python."""
    return items[int(rng.random() * len(items))]


def either(texts: Sequence[str]) -> str:
    """Make a regular expression for one of the texts, longer ones first."""
    return "(?:" + "|".join(map(re.escape, sorted(set(texts), key=lambda text: (-len(text), text)))) + ")"


_COLUMN = re.compile(r"\{(\w+)\}")
_SLOT = re.compile(r"\{(\+?)(\w+)(?::(\w+))?(!?)\}")
_MACRO = re.compile(r"<(\w+)>")
_SPECIAL = re.compile(r"[\[\]{}|]")


def expand_macros(text: str, macros: Mapping[str, str]) -> str:
    """Put the choices of the macros, which may hold macros themselves, in their places."""
    while _MACRO.search(text):
        text = _MACRO.sub(lambda match: f"[{macros[match[1]]}]", text)
    return text


def fill(pattern: str, columns: Columns) -> str:
    """Fill a form's pattern; "a" becomes "an" before a vowel."""
    text = _COLUMN.sub(lambda match: columns[match[1]], pattern)
    return f"an {text[2:]}" if text.startswith("a ") and text[2] in "aeiou" else text


def _read(text: str, at: int, inside: bool) -> tuple[list[list[Node]], int]:
    """Read alternatives up to the end, or to the bracket that ends them."""
    options: list[list[Node]] = [[]]
    while at < len(text):
        char = text[at]
        if char == "[":
            inner, at = _read(text, at + 1, inside=True)
            options[-1].append(Choice(tuple(inner)))
        elif char == "]" and inside:
            return options, at + 1
        elif char == "|" and inside:
            options.append([])
            at += 1
        elif char == "{":
            match = _SLOT.match(text, at)
            if match is None:
                raise ValueError(f"not a slot at {at}: {text}")
            options[-1].append(Slot(match[2], match[3] or "", bool(match[1]), bool(match[4])))
            at = match.end()
        elif char in "]|}":
            raise ValueError(f"stray {char!r} at {at}: {text}")
        else:
            stop = _SPECIAL.search(text, at)
            end = stop.start() if stop else len(text)
            options[-1].append(text[at:end])
            at = end
    if inside:
        raise ValueError(f"an open bracket: {text}")
    return options, at


@dataclass(frozen=True)
class Match:
    """How a sentence fits a template: what each slot in it says, as (slot, column -> text)."""

    template: Template
    said: tuple[tuple[Slot, Columns], ...]


class Template:
    """A sentence with slots and choices. `text` has no macros any more."""

    def __init__(self, text: str, roles: Mapping[str, Type]) -> None:
        options, _ = _read(text, 0, inside=False)
        self.text = text
        self._nodes = options[0]
        self._roles = roles
        self.introduces, self.needs = self._introductions()

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def write(self, facts: Facts, rng: Random) -> Written:
        """Choose a wording, and fill in the facts."""
        parts: list[str] = []
        recalls: list[tuple[str, int, int]] = []
        bits = 0.0
        length = 0
        todo: list[Node] = list(reversed(self._nodes))
        while todo:
            node = todo.pop()
            if isinstance(node, Choice):
                bits += math.log2(len(node.options))
                todo.extend(reversed(choose(rng, node.options)))
                continue
            text = node if isinstance(node, str) else fill(self._roles[node.role].forms[node.form], facts[node.role])
            if isinstance(node, Slot) and node.recall:
                recalls.append((node.role, length, length + len(text)))
            parts.append(text)
            length += len(text)
        return Written("".join(parts), tuple(recalls), bits)

    def match(self, sentence: str) -> Match | None:
        """Find what the slots say, if the sentence is one that the template can write."""
        regex, groups = self._regex
        found = regex.fullmatch(sentence)
        if found is None:
            return None
        said: list[tuple[Slot, Columns]] = []
        for slot, whole, columns in groups:
            if found[whole] is None:  # in an alternative that was not taken
                continue
            values = {column: found[group] for column, group in columns.items()}
            if fill(self._roles[slot.role].forms[slot.form], values) != found[whole]:
                return None  # "a" where there must be "an"
            said.append((slot, values))
        return Match(self, tuple(said))

    @cached_property
    def first_words(self) -> frozenset[str]:
        """Text up to the first space that sentences can begin with; "" where a slot with many values begins them."""
        return frozenset(_first_words(self._nodes))

    @cached_property
    def _regex(self) -> tuple[re.Pattern[str], list[tuple[Slot, str, dict[str, str]]]]:
        groups: list[tuple[Slot, str, dict[str, str]]] = []
        return re.compile(self._pattern(self._nodes, groups)), groups

    def _pattern(self, nodes: Sequence[Node], groups: list[tuple[Slot, str, dict[str, str]]]) -> str:
        parts: list[str] = []
        for node in nodes:
            if isinstance(node, str):
                parts.append(re.escape(node))
            elif isinstance(node, Choice):
                parts.append("(?:" + "|".join(self._pattern(option, groups) for option in node.options) + ")")
            else:
                parts.append(self._slot_pattern(node, groups))
        return "".join(parts)

    def _slot_pattern(self, slot: Slot, groups: list[tuple[Slot, str, dict[str, str]]]) -> str:
        type_ = self._roles[slot.role]
        form = type_.forms[slot.form]
        whole = f"g{len(groups)}"
        columns: dict[str, str] = {}
        pattern = "an? " if form.startswith("a ") else ""
        at = 2 if pattern else 0
        for match in _COLUMN.finditer(form):
            column = match[1]
            axis_name = type_.axis_of(column)
            columns[column] = f"{whole}_{column}"
            inner = type_.axes[axis_name].pattern("" if column == axis_name else column)
            pattern += re.escape(form[at : match.start()]) + f"(?P<{columns[column]}>{inner})"
            at = match.end()
        groups.append((slot, whole, columns))
        return f"(?P<{whole}>{pattern}{re.escape(form[at:])})"

    def _introductions(self) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
        """Which (role, axis) are told first in this sentence, and which must have been told before it."""
        introduced: set[tuple[str, str]] = set()
        used: set[tuple[str, str]] = set()

        def visit(nodes: Sequence[Node], in_choice: bool) -> None:
            for node in nodes:
                if isinstance(node, Choice):
                    for option in node.options:
                        visit(option, True)
                elif isinstance(node, Slot):
                    if node.introduces and in_choice:
                        raise ValueError(f"{node} tells something for the first time, perhaps: {self.text}")
                    type_ = self._roles[node.role]
                    columns = _COLUMN.findall(type_.forms[node.form])
                    axes = {(node.role, type_.axis_of(column)) for column in columns}
                    (introduced if node.introduces else used).update(axes)

        visit(self._nodes, False)
        return frozenset(introduced), frozenset(used - introduced)


def _first_words(nodes: Sequence[Node], begun: str = "") -> set[str]:
    if not nodes:
        return {begun}
    first, rest = nodes[0], nodes[1:]
    if isinstance(first, Slot):
        return {""}
    if isinstance(first, Choice):
        return {word for option in first.options for word in _first_words([*option, *rest], begun)}
    word, space, _ = (begun + first).partition(" ")
    return {word} if space else _first_words(rest, word)
