"""The classes of characters that byte-level BPE cuts words by: all code points, against the references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiktoken
from tokenizers import Regex, pre_tokenizers
from vocabularies import LISTED, LLAMA3_PATTERN, ByteBpe, reference_pre_tokenizer, reference_words

from llama2cpp import Tokenizer

ALL_BYTES = [bytes([byte]) for byte in range(256)]
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
CATEGORIES = [
    *["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"],
    *["Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cn"],
]
CROWDED = "".join(chr(code) for code in CODES if code < 0x3500 or 0x4D00 <= code < 0x4F00 or 0x9F00 <= code < 0xAC10)
CROWDED += "".join(chr(code) for code in CODES if 0xD700 <= code < 0x32400 and not 0x20010 <= code < 0x2A600)
CROWDED += "".join(map(chr, range(0xE0000, 0xE0200)))
NEW_REFERENCES = "the references have another version of Unicode than 16.0: run make_unicode_tables.py for theirs"


@pytest.mark.parametrize("category", [*CATEGORIES, "L", "M", "N", "P", "S", "Z", "C"])
def test_categories(category: str) -> None:
    """Oniguruma's: runs of those of one category are words. Large blocks of one kind are left to the next test."""
    split = {"pattern": f"\\p{{{category}}}+".encode(), "behavior": "isolated", "invert": False}
    settings = ByteBpe(ALL_BYTES).settings() | {"pre_tokenizer": "splits", "splits": [split]}
    reference = pre_tokenizers.Split(Regex(f"\\p{{{category}}}+"), "isolated")
    words = Tokenizer.from_dict(settings).words(CROWDED)
    assert words == [word.encode() for word, _ in reference.pre_tokenize_str(CROWDED)], NEW_REFERENCES


@pytest.mark.parametrize("pre", ["tekken"])
def test_all_code_points(pre: str) -> None:
    """Each between letters, numbers, spaces and others; where Unicode is still empty, between letters."""
    tokenizer = ByteBpe(ALL_BYTES, pre=pre).ours()
    reference = reference_pre_tokenizer(pre)
    for at in range(0, len(CODES), 256):
        characters = [chr(code) for code in CODES[at : at + 256]]
        crowded = CODES[at] < 0x32000 or 0xE0000 <= CODES[at] < 0xE0200
        text = "".join(f"a{c}1{c} {c}!{c}\n{c}" if crowded else f"a{c}" for c in characters)
        assert tokenizer.words(text) == reference_words(reference, text), f"U+{CODES[at]:04X}: {NEW_REFERENCES}"


def test_the_list_of_differences() -> None:
    """Of a character that is a digit for SmolLM2's pre-tokeniser in the library, no two are in one word."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    ours = ByteBpe(ALL_BYTES, pre="smollm").ours()
    different = {
        code
        for code in CODES
        if (len(digits.pre_tokenize_str(chr(code) * 2)) == 2) != (len(ours.words(chr(code) * 2)) == 2)
    }
    assert different == LISTED, NEW_REFERENCES


def test_classes_of_tiktoken() -> None:
    """tiktoken leaves out what its pattern does not match, so a pattern of one class tells the class."""
    tokenizer = ByteBpe(ALL_BYTES, pre="gpt2").ours()

    def members(pattern: str) -> Callable[[str], bool]:
        ranks = {byte: rank for rank, byte in enumerate(ALL_BYTES)}
        encoding = tiktoken.Encoding("classes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        return lambda character: bool(encoding.encode_ordinary(character))

    # A character is one word with a neighbour of its own class, and with no other.
    for neighbour, pattern in {"a": r"\p{L}", "1": r"\p{N}", "\t": r"\s", "!": r"[^\s\p{L}\p{N}]"}.items():
        is_member = members(pattern)
        different = [
            hex(code) for code in CODES if (len(tokenizer.words(neighbour + chr(code))) == 1) != is_member(chr(code))
        ]
        assert different == [], f"{pattern}: {NEW_REFERENCES}"


def test_case_folding_of_tiktoken() -> None:
    """What is a contraction in Llama 3's pattern: only U+017F besides the ASCII letters."""
    ranks = {byte: rank for rank, byte in enumerate(ALL_BYTES)}
    contractions = LLAMA3_PATTERN.split("|[^\\r")[0]
    assert contractions == "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    encoding = tiktoken.Encoding("contractions", pat_str=contractions, mergeable_ranks=ranks, special_tokens={})
    tokenizer = ByteBpe(ALL_BYTES, pre="llama3").ours()

    def is_one(text: str) -> bool:
        """A contraction ends before a letter; what only begins like a word goes on."""
        return tokenizer.words(text + "x") == [text.encode(), b"x"]

    letters = [chr(code) for code in CODES if chr(code).isalpha()]
    for before in ("", "r", "v", "l", "R"):
        for letter in letters:
            text = f"'{before}{letter}"
            theirs = b"".join(ALL_BYTES[id] for id in encoding.encode_ordinary(text)) == text.encode()
            assert is_one(text) == theirs, f"{text!r}: {NEW_REFERENCES}"
