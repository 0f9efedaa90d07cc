"""Our own short children's stories: writes them by a seed, and says of any text whether it is one.

A plot (`story_plots_*.py`) is a row of beats, a beat is told by sentences with slots (`story_template.py`), and the slots
are filled from the story's cast and things (`story_names.py`, `story_words.py`). The parser reads with the same templates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random

from story_beats import Alternative, Beat, Need, Plot
from story_names import NAMES, is_held_out, is_held_out_name
from story_parser import Parsed, Parser
from story_plots_friends import PLOTS as FRIENDS
from story_plots_home import PLOTS as HOME
from story_plots_wonders import PLOTS as WONDERS
from story_template import Template, choose
from story_words import ADJECTIVE, ANIMALS, CHILDREN, ROLES

PLOTS: tuple[Plot, ...] = FRIENDS + WONDERS + HOME
MIN_WORDS, MAX_WORDS = 60, 220
_OPTIONAL_TOLD = 0.35  # of the beats that may be left out, how many are told


@dataclass(frozen=True)
class Recall:
    """A place in a story that a reader who remembers can foretell."""

    role: str
    begin: int
    end: int


@dataclass(frozen=True)
class Story:
    """A story, what is in it, and what went into it.

    Attributes
    ----------
    text : str
        One paragraph.
    plot : str
        Which plot it follows.
    names : tuple of str
        First names and invented names, the hero's first.
    recalls : tuple of Recall
        Names and things whose place in the text is marked as one that can be foretold.
    bits : float
        Base-2 logarithm of 1 / the probability of these choices: what a perfect model must spend on the story, or a
        little more, as some texts can be written in two ways.
    """

    text: str
    plot: str
    names: tuple[str, ...]
    recalls: tuple[Recall, ...]
    bits: float


def story(seed: int, *, held_out: bool = False) -> Story:
    """Write the story of a seed.

    Parameters
    ----------
    seed : int
        Not negative. The same seed gives the same story in every version of Python.
    held_out : bool
        Choose a pair of names, and invented names, that no story has without this.

    Returns
    -------
    Story
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rng = Random(seed)
    while True:
        written = _Writer(choose(rng, PLOTS), rng, held_out).write()
        if MIN_WORDS <= len(written.text.split()) <= MAX_WORDS:
            return written


def stories(seed: int, count: int, *, held_out: bool = False) -> Iterator[Story]:
    """Write `count` stories, those of the seeds from `seed` on."""
    for i in range(seed, seed + count):
        yield story(i, held_out=held_out)


@cache
def _parser() -> Parser:
    return Parser(PLOTS)


def parse(text: str) -> Parsed:
    """Read a text as a story: see `story_parser.Parsed` for what it says.

    Parameters
    ----------
    text : str
        One paragraph.

    Returns
    -------
    Parsed
    """
    return _parser().parse(text)


class _Writer:
    """One story on its way: its cast, what has been told of it, and the bits of choice so far."""

    def __init__(self, plot: Plot, rng: Random, held_out: bool) -> None:
        self._plot = plot
        self._rng = rng
        self._held_out = held_out
        self._bits = math.log2(len(PLOTS))
        self._told: set[Need] = set()
        self._facts = self._cast()

    def write(self) -> Story:
        parts: list[str] = []
        recalls: list[Recall] = []
        length = 0
        for beat in self._plot.beats:
            for template in self._tell(beat):
                sentence = template.write(self._facts, self._rng)
                self._bits += sentence.bits
                recalls += [Recall(role, length + begin, length + end) for role, begin, end in sentence.recalls]
                parts.append(sentence.text)
                length += len(sentence.text) + 1
        names = tuple(columns["name"] for role, columns in self._facts.items() if (role, "name") in self._told)
        return Story(" ".join(parts), self._plot.name, names, tuple(recalls), self._bits)

    def _tell(self, beat: Beat) -> tuple[Template, ...]:
        groups = [fitting for group in beat.groups if (fitting := [one for one in group if self._fits(one)])]
        if beat.optional:
            told = bool(groups) and self._rng.random() < _OPTIONAL_TOLD
            if groups:
                self._bits -= math.log2(_OPTIONAL_TOLD if told else 1 - _OPTIONAL_TOLD)
            if not told:
                return ()
        if not groups:
            raise ValueError(f"plot {self._plot.name}: nothing can be told in {beat}")
        group = choose(self._rng, groups)
        alternative = choose(self._rng, group)
        self._bits += math.log2(len(groups)) + math.log2(len(group))
        self._bits += sum(math.log2(ROLES[role].axes[axis].choices) for role, axis in sorted(alternative.introduces))
        self._told |= alternative.introduces
        return alternative.sentences

    def _fits(self, alternative: Alternative) -> bool:
        return alternative.needs <= self._told and not alternative.introduces & self._told

    def _cast(self) -> dict[str, dict[str, str]]:
        """Choose all that the plot may tell of. No two roles of one type have the same name or noun."""
        facts: dict[str, dict[str, str]] = {}
        used: set[tuple[int, str]] = set()
        animals = self._plot.animals and self._rng.random() < 0.4
        kinds = ANIMALS if animals else CHILDREN
        for role in self._plot.roles:
            columns: dict[str, str] = {}
            for name, axis in sorted(ROLES[role].axes.items()):  # a person's kind before the name
                while True:
                    key = choose(self._rng, kinds) if (role, name) in _KINDS else axis.draw(self._rng)
                    row = axis.row(key) or {}
                    agrees = all(columns.get(column, text) == text for column, text in row.items())
                    if agrees and (id(axis), key) not in used and self._may_be(name, key, facts):
                        break
                if key not in CHILDREN and name != ADJECTIVE:
                    used.add((id(axis), key))
                columns |= {name: key, **row}
            facts[role] = columns
        return facts

    def _may_be(self, axis: str, key: str, facts: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether the rules of holding out allow this name in this company."""
        if axis not in ("name", "Word"):
            return True
        if key not in NAMES:
            return is_held_out_name(key) == self._held_out
        others = [columns["name"] for columns in facts.values() if "name" in columns]
        return all(is_held_out(key, other) == self._held_out for other in others)


_KINDS = {("hero", "kind"), ("friend", "kind")}
