"""The generator of stories and its parser: one grammar, read in both directions."""

from __future__ import annotations

import hashlib
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(ROOT / "export" / "storyteller"))

import story_grammar as grammar

SEEDS = st.integers(0, 2**31)


def test_the_same_seed_gives_the_same_stories_everywhere() -> None:
    texts = "\n".join(story.text for story in grammar.stories(1, 200))
    assert texts == "\n".join(story.text for story in grammar.stories(1, 200))
    other = "\n".join(story.text for story in grammar.stories(2, 200))
    assert hashlib.sha256(texts.encode()).digest() != hashlib.sha256(other.encode()).digest()


@given(SEEDS)
def test_the_parser_takes_what_the_generator_makes(seed: int) -> None:
    assert grammar.parse(grammar.story(seed).text).problems == ()


@given(SEEDS, st.data())
def test_a_story_without_its_end_is_found(seed: int, data: st.DataObject) -> None:
    sentences = grammar.parse(grammar.story(seed).text).sentences
    kept = data.draw(st.integers(1, len(sentences) - 2))
    assert not grammar.parse(" ".join(sentences[:kept])).ends


@given(SEEDS, st.data())
def test_a_missing_word_is_found(seed: int, data: st.DataObject) -> None:
    """In a sentence's middle; an adverb or an adjective may be missing without harm, so most is what is asked."""
    words = grammar.story(seed).text.split()
    broken = 0
    for _ in range(5):
        at = data.draw(st.integers(1, len(words) - 2))
        broken += not grammar.parse(" ".join(words[:at] + words[at + 1 :])).ok
    assert broken >= 2


@pytest.mark.parametrize(
    "text", ["", "Hello.", "Once upon a time, there was a cat", "The cat sat on the mat. It was red."]
)
def test_other_texts_are_no_stories(text: str) -> None:
    assert not grammar.parse(text).ok
