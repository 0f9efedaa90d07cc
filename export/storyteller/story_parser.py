"""Reads a text as a story of the grammar, and says what is wrong with it.

Every sentence is held against every template. Then the sentences are followed through the plots: which role is who, what
has been told, what may come next. Of all ways to read a text, the one with the fewest problems counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from story_beats import TEMPLATES, Plot
from story_names import PRONOUNS
from story_template import Columns, Match, Slot, Template
from story_words import ADJECTIVE, ROLES

Kind = Literal["grammar", "characters", "things", "order", "ending"]

_BEAM = 48  # readings that are followed at a time


class Problem(NamedTuple):
    """Something wrong: what kind of thing, in which sentence (from 0), and what."""

    kind: Kind
    sentence: int
    what: str


@dataclass(frozen=True)
class Parsed:
    """A text as the grammar sees it.

    Attributes
    ----------
    sentences : tuple of str
        What the text was cut into.
    plot : str or None
        The plot that it follows, or comes closest to; None if no sentence is one of the grammar's.
    problems : tuple of Problem
        Of kind "grammar" (no such sentence, or a pronoun of the wrong gender), "characters" (someone who was not
        introduced, or the wrong one), "things" (the same for what they have, and where), "order" (a sentence of the
        grammar that cannot come here) or "ending" (the text stops before the story does).
    """

    sentences: tuple[str, ...]
    plot: str | None
    problems: tuple[Problem, ...]

    def free_of(self, *kinds: Kind) -> bool:
        """Whether there is no problem of these kinds."""
        return all(problem.kind not in kinds for problem in self.problems)

    @property
    def ok(self) -> bool:
        """Whether the grammar could have written it."""
        return not self.problems

    @property
    def grammatical(self) -> bool:
        """Whether all sentences are the grammar's, with the right articles and pronouns."""
        return self.free_of("grammar")

    @property
    def keeps_to_characters(self) -> bool:
        """Whether everyone and everything was introduced, and stays who and what it is."""
        return self.free_of("characters", "things")

    @property
    def ends(self) -> bool:
        """Whether it ends where a story may end."""
        return self.free_of("ending")


def split_sentences(text: str) -> list[str]:
    """Cut at spaces after a full stop, question or exclamation mark, outside quotes; speech keeps its "said Tom"."""
    found: list[str] = []
    begin = 0
    quoted = False
    for at, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif char == " " and not quoted:
            stop = text[at - 1] in ".!?" or (
                text[at - 2 : at] in ('."', '!"', '?"') and not text[at + 1 : at + 2].islower()
            )
            if stop and at > begin:
                found.append(text[begin:at])
                begin = at + 1
    if begin < len(text):
        found.append(text[begin:])
    return found


@dataclass(frozen=True)
class _Node:
    """One sentence of one way to tell one beat of a plot."""

    beat: int
    group: int
    alternative: int
    sentence: int


class _Graph:
    """Which sentence may follow which in a plot."""

    def __init__(self, plot: Plot) -> None:
        self.name = plot.name
        self.template: dict[_Node, Template] = {}
        self.after: dict[_Node, list[_Node]] = {}
        self.last: set[_Node] = set()
        self.nodes_of: dict[str, list[_Node]] = {}
        firsts = [
            [_Node(b, g, a, 0) for g, group in enumerate(beat.groups) for a in range(len(group))]
            for b, beat in enumerate(plot.beats)
        ]
        reach: list[list[_Node]] = [[]]  # the first sentences that can come from beat b on, from the end
        may_end = [True]
        for b in reversed(range(len(plot.beats))):
            optional = plot.beats[b].optional
            reach.insert(0, firsts[b] + (reach[0] if optional else []))
            may_end.insert(0, optional and may_end[0])
        self.first = reach[0]
        for b, beat in enumerate(plot.beats):
            for node in firsts[b]:
                sentences = beat.groups[node.group][node.alternative].sentences
                for i, template in enumerate(sentences):
                    here = _Node(b, node.group, node.alternative, i)
                    self.template[here] = template
                    self.nodes_of.setdefault(template.text, []).append(here)
                    ends_beat = i + 1 == len(sentences)
                    self.after[here] = reach[b + 1] if ends_beat else [_Node(b, node.group, node.alternative, i + 1)]
                    if ends_beat and may_end[b + 1]:
                        self.last.add(here)


Told = Mapping[tuple[str, str], str]  # (role, axis) -> key


@dataclass(frozen=True)
class _Reading:
    """One way to understand the text so far. `node` is None where the place in the plot is lost."""

    graph: _Graph
    node: _Node | None
    told: Told
    problems: tuple[Problem, ...] = ()
    started: bool = True

    def next_nodes(self) -> Sequence[_Node]:
        if not self.started:
            return self.graph.first
        return list(self.graph.template) if self.node is None else self.graph.after[self.node]

    def identity(self) -> tuple[str, _Node | None, frozenset[tuple[tuple[str, str], str]]]:
        return self.graph.name, self.node, frozenset(self.told.items())


@dataclass
class Parser:
    """Reads texts as stories of these plots."""

    plots: Sequence[Plot]
    _by_first_word: dict[str, list[Template]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._graphs = [_Graph(plot) for plot in self.plots]
        for template in TEMPLATES.values():
            for word in template.first_words:
                self._by_first_word.setdefault(word, []).append(template)

    def parse(self, text: str) -> Parsed:
        """Read a text.

        Parameters
        ----------
        text : str
            One paragraph, without a special token at its end.

        Returns
        -------
        Parsed
        """
        sentences = split_sentences(text.strip())
        cut = bool(sentences) and re.search(r'[.!?]"?$', sentences[-1]) is None
        readings = [_Reading(graph, None, {}, started=False) for graph in self._graphs]
        known = False
        for i, sentence in enumerate(sentences[:-1] if cut else sentences):
            matches = self._matches(sentence)
            known = known or bool(matches)
            readings = self._follow(readings, matches, i, sentence)
        last = len(sentences) - 1
        ended = [self._end(reading, cut, last) for reading in readings]
        best = min(ended, key=lambda reading: len(reading.problems))
        return Parsed(tuple(sentences), best.graph.name if known else None, best.problems)

    def _matches(self, sentence: str) -> dict[str, Match]:
        templates = self._by_first_word.get(sentence.split(" ")[0], []) + self._by_first_word.get("", [])
        found = {template.text: match for template in templates if (match := template.match(sentence))}
        return {
            text: match for text, match in found.items() if all(_known(slot, columns) for slot, columns in match.said)
        }

    def _follow(self, readings: list[_Reading], matches: Mapping[str, Match], i: int, sentence: str) -> list[_Reading]:
        """Take one more sentence: where it fits if it fits anywhere, else with as few problems as possible."""
        fitting = [
            _Reading(reading.graph, node, told, reading.problems)
            for reading in readings
            for node in reading.next_nodes()
            if (match := matches.get(reading.graph.template[node].text))
            for told, problems in [_understand(match, reading.told, i)]
            if not problems
        ]
        if fitting:
            return _best(fitting)
        if not matches:
            problem = Problem("grammar", i, f"no such sentence: {sentence}")
            return _best(
                [_Reading(reading.graph, None, reading.told, (*reading.problems, problem)) for reading in readings]
            )
        return _best([found for reading in readings for found in self._force(reading, matches, i)])

    def _force(self, reading: _Reading, matches: Mapping[str, Match], i: int) -> Iterator[_Reading]:
        """Take a sentence where it does not fit, and note why."""
        expected = {(reading.graph.name, node) for node in reading.next_nodes()}
        for text, match in matches.items():
            told, problems = _understand(match, reading.told, i)
            for graph in self._graphs:
                for node in graph.nodes_of.get(text, []):
                    late = () if (graph.name, node) in expected else (Problem("order", i, f"cannot come here: {text}"),)
                    yield _Reading(graph, node, told, (*reading.problems, *problems, *late))

    @staticmethod
    def _end(reading: _Reading, cut: bool, last: int) -> _Reading:
        if reading.started and not cut and (reading.node is None or reading.node in reading.graph.last):
            return reading
        problem = Problem("ending", last, "the text stops before the story does")
        return _Reading(reading.graph, reading.node, reading.told, (*reading.problems, problem))


def _known(slot: Slot, columns: Columns) -> bool:
    axes = ROLES[slot.role].axes
    return all(axes[column].row(text) is not None for column, text in columns.items() if column in axes)


def _best(readings: list[_Reading]) -> list[_Reading]:
    """Keep the readings with the fewest problems, one of each kind."""
    found: dict[object, _Reading] = {}
    for reading in sorted(readings, key=lambda reading: len(reading.problems)):
        found.setdefault(reading.identity(), reading)
    return list(found.values())[:_BEAM]


def _understand(match: Match, told: Told, i: int) -> tuple[Told, tuple[Problem, ...]]:
    """Take in what a sentence says: what is told now, and what is wrong with it."""
    now = dict(told)
    problems: list[Problem] = []
    for slot, columns in match.said:
        if slot.introduces:
            for column in columns.keys() & ROLES[slot.role].axes.keys():
                problems += _introduce(slot.role, column, columns[column], now, i)
    for slot, columns in match.said:
        for column, text in columns.items():
            problems += _mention(slot.role, column, text, now, i)
    return now, tuple(problems)


def _introduce(role: str, axis: str, key: str, told: dict[tuple[str, str], str], i: int) -> Iterator[Problem]:
    type_ = ROLES[role]
    if (role, axis) in told:
        yield Problem("order", i, f"{key} is introduced when the {role} is known already")
        return
    for (other, its_axis), its_key in told.items():
        if its_key == key and ROLES[other].axes[its_axis] is type_.axes[axis] and axis not in ("kind", ADJECTIVE):
            yield Problem(_kind(role), i, f"{key} is the {role} and the {other}")
    row = type_.axes[axis].row(key) or {}
    for name, other_axis in type_.axes.items():
        known = (role, name) in told and other_axis.row(told[role, name])
        if known and any(known.get(column, text) != text for column, text in row.items()):
            yield Problem("grammar", i, f"{key} cannot be a {told[role, name]}")
    told[role, axis] = key


def _mention(role: str, column: str, text: str, told: Told, i: int) -> Iterator[Problem]:
    type_ = ROLES[role]
    axis = type_.axis_of(column)
    key = told.get((role, axis))
    if key is None:
        yield Problem(_kind(role), i, f"{text} (the {role}) was never introduced")
        return
    expected = key if column == axis else (type_.axes[axis].row(key) or {})[column]
    if text != expected:
        kind: Kind = "grammar" if column in PRONOUNS else _kind(role)
        yield Problem(kind, i, f"{text} where {expected} (the {role}) was expected")


def _kind(role: str) -> Kind:
    return "characters" if set(ROLES[role].forms) >= PRONOUNS else "things"
