"""Names: first names, invented names, and which of them never meet in training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from story_template import Columns, Table, choose, either

_HELD_OUT_ONE_IN = 10


def _held_out(key: str) -> bool:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little") % _HELD_OUT_ONE_IN == 0


def is_held_out(first: str, second: str) -> bool:
    """Whether these two names, in any order, never meet in a story that is trained on: one pair in ten."""
    return _held_out("|".join(sorted((first, second))))


def is_held_out_name(name: str) -> bool:
    """Whether this invented name or word never stands in a story that is trained on: one in ten."""
    return _held_out(name.lower())


def words(text: str) -> list[str]:
    """Split at commas, or at spaces where there are none."""
    return [" ".join(word.split()) for word in (text.split(",") if "," in text else text.split())]


SHE = {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her", "himself": "herself"}
HE = {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His", "himself": "himself"}
PRONOUNS = frozenset(HE)

GIRLS = words("""
    Alice Amelia Amy Anna Asha Astrid Ava Bella Carmen Clara Daisy Dora Eliza Ella Elsa Emily Emma Eva Fatima Flora Freya
    Greta Hana Hannah Helen Holly Ida Imani Iris Isla Ivy Jane Julia Kate Keiko Lara Layla Leah Lena Lily Lucy Luna Maria
    Maya Mei Mia Mila Molly Nadia Nina Nora Olga Olivia Petra Priya Rosa Ruby Sara Selma Sofia Stella Suki Tess Zoe
""")
BOYS = words("""
    Adam Ahmed Ali Amir Anton Arjun Ben Bruno Carlos Dan Daniel David Diego Elias Emil Erik Felix Finn Fred Gus Hamza
    Haru Henry Hugo Ivan Jack Jacob Jake James Jonas Juan Kenji Kofi Kwame Lars Leo Liam Louis Luca Luke Marco Max Miguel
    Milo Ned Noah Omar Oscar Otto Owen Pablo Paul Peter Ravi Rohan Sam Samir Simon Taro Theo Tim Toby Tom Victor
""")
NAMES: Mapping[str, Columns] = dict.fromkeys(GIRLS, SHE) | dict.fromkeys(BOYS, HE)

# Syllables that in no order make a word one would not say to a child.
_SYLLABLES = words("""
    ba be bi bo da di do du fe fi gu jo ju ka ko la le lo lu ma me mi mo na ne ni no nu pa pi po ra re ri ro ru se su
    ta te ti to tu va ve vi vo wa we wi wo za ze zo zu
""")
_LAST_SYLLABLES = [syllable for syllable in _SYLLABLES if syllable[1] != "e"]
_INVENTED = re.compile(f"{either(_SYLLABLES)}{{1,2}}{either(_LAST_SYLLABLES)}")


def is_invented(word: str) -> bool:
    """Whether this could be an invented name or word: two or three syllables."""
    return _INVENTED.fullmatch(word.lower()) is not None and word.capitalize() not in NAMES


@dataclass(frozen=True)
class Invented:
    """An axis of invented words, capitalised. As names they have pronouns: a she ends in a or i, a he in o or u."""

    as_name: bool
    choices: int = 60_000  # about as many words of three syllables as there are

    def row(self, key: str) -> Columns | None:
        if not is_invented(key) or key != key.capitalize():
            return None
        if not self.as_name:
            return {"word": key.lower()}
        return SHE if key[-1] in "ai" else HE

    def draw(self, rng: Random) -> str:
        while True:
            first = [choose(rng, _SYLLABLES) for _ in range(1 if rng.random() < 0.3 else 2)]
            key = "".join([*first, choose(rng, _LAST_SYLLABLES)]).capitalize()
            if self.row(key) is not None:
                return key

    def pattern(self, column: str) -> str:
        return either([SHE[column], HE[column]]) if column in HE else "[A-Z][a-z]+" if column == "" else "[a-z]+"

    def has(self, column: str) -> bool:
        return column in (HE if self.as_name else ("word",))


@dataclass(frozen=True)
class Names(Table):
    """First names: too many to list them in every regular expression."""

    def pattern(self, column: str) -> str:
        return super().pattern(column) if column else "[A-Z][a-z]+"
