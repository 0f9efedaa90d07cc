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
    Abena Agnes Aiko Aisha Akiko Alice Alma Ama Amelia Amina Amy Anita Anna Asha Astrid Ava Beatrice Bella Beth Betty
    Camila Carla Carmen Cecilia Celia Chloe Clara Daisy Dalia Divya Dora Edith Efua Elena Elina Eliza Ella Ellen Elsa
    Emi Emily Emma Esther Eva Evelyn Fatima Fiona Flora Freya Frida Gemma Gloria Greta Hana Hannah Hazel Heidi Helen
    Hilda Holly Ida Imani Ingrid Irene Iris Isabel Isla Ivy Jane Jenny Joan Josie Judith Julia Kate Kavya Keiko Kira
    Lara Laura Layla Leah Leela Leila Lena Lily Lottie Lucia Lucy Luna Lydia Mabel Maeve Maggie Makena Mara Maria Marta
    Martha Mary Matilda Maya Meera Mei Mia Mila Millie Mina Minnie Molly Myra Nadia Nancy Naomi Nell Nia Nina Nisha Nora
    Odette Olga Olivia Padma Paula Pearl Peggy Penny Petra Phoebe Polly Poppy Priya Rachel Radha Rebecca Rhea Rita Ronja
    Rosa Rosie Ruby Ruth Sakura Sally Samira Sara Selma Signe Sita Sofia Sophie Stella Suki Susan Sylvia Tamara Tess
    Thandi Tilda Tilly Tina Uma Ursula Vera Viola Violet Wanda Wendy Willa Winnie Xenia Yara Yasmin Yuki Zainab Zara
    Zelda Zoe Zuri
""")
BOYS = words("""
    Abel Adam Ade Ahmed Akira Alan Albert Alfie Ali Amir Andy Anton Archie Arjun Arthur Axel Ben Bert Boris Bruno Caleb
    Carlos Cedric Clive Colin Cyrus Dan Daniel Darius David Diego Dylan Eddie Edgar Elias Elliot Emil Enzo Erik Ernest
    Ethan Ezra Felix Finn Frank Fred Gabriel Gavin George Gilbert Glen Gus Hamza Hank Haru Harry Harvey Hassan Hector
    Henry Hiro Hugo Ian Idris Isaac Ivan Jack Jacob Jake Jamal James Jasper Jiro Joe Joel John Jonas Jorge Josh Juan
    Julian Karim Karl Kenji Kenta Kevin Khalid Kofi Kojo Kurt Kwame Lars Leo Leon Liam Linus Louis Luca Lucas Luis Luke
    Magnus Malik Marco Mario Martin Mateo Matt Max Miguel Miles Milo Mohan Nathan Ned Neil Nick Nikhil Nils Noah Olaf
    Oliver Omar Oscar Otto Owen Pablo Paul Pedro Peter Philip Quentin Rafael Rahul Ralph Ravi Ray Reza Rob Roger Rohan
    Rory Ross Rufus Sam Samir Samuel Sanjay Sean Sefu Seth Simon Stan Steve Sven Taro Tariq Ted Tendai Theo Tim Tobias
    Toby Tom Tony Ulf Umar Victor Vikram Vincent Wade Walter Wei Wesley Yusuf Zach
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
    """Whether this could be an invented name or word: two or three syllables, no two alike side by side."""
    return (
        _INVENTED.fullmatch(word.lower()) is not None
        and all(word[i : i + 2].lower() != word[i + 2 : i + 4] for i in range(0, len(word) - 2, 2))
        and word.capitalize() not in NAMES
    )


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
