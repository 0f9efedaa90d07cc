"""The patterns of pre-tokenizers: texts are cut as `tokenizers` (Oniguruma) and tiktoken cut them, in bounded time."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from cuts import o200k_of_tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_byte_bpe import trained_vocabulary
from test_hf_tokenizer import opened
from tokenizer_settings import BEHAVIORS
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference
from vocabularies import (
    CUTS,
    PATTERNS,
    STAND_INS,
    TEXTS,
    ByteBpe,
    first_difference,
    mixed_text,
    reference_ids,
    reference_pre_tokenizer,
    reference_words,
)

import llama2cpp
from llama2cpp import FormatError, Tokenizer, _core

ALL_BYTES = [bytes([byte]) for byte in range(256)]
BYTES_ALONE = ByteBpe(ALL_BYTES).settings()
Step = tuple[str, str, bool]


def cut_by(*steps: Step) -> Tokenizer:
    splits = [{"pattern": pattern.encode(), "behavior": how, "invert": invert} for pattern, how, invert in steps]
    return Tokenizer.from_dict(BYTES_ALONE | {"pre_tokenizer": "splits", "splits": splits})


def reference_cut(*steps: Step) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior=how, invert=invert) for pattern, how, invert in steps]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# Letters in a few cases, marks, digits, spaces, ends of lines, punctuation and symbols.
SHORT = st.text("abBsS\u017f\u00e9\u0301\u02b01\u06632 \t\n\r\u3000'!/-$\u3002\u4e00\U0001f680", max_size=16)
NAMED = [cut for cut in CUTS if cut not in ("gpt2", "smollm")]


def test_names_are_those_of_the_core() -> None:
    cuts = _core.pre_tokenizers()
    assert set(cuts) == set(CUTS)
    assert {name: list(cuts[name]) for name in PATTERNS} == PATTERNS


@pytest.mark.parametrize("cut", CUTS[8:])
def test_words(cut: str) -> None:
    tokenizer = ByteBpe(ALL_BYTES, pre=cut).ours()
    reference = reference_pre_tokenizer(cut)

    @settings(max_examples=100)
    @given(TEXTS | SHORT)
    @example("IMGIMGABZ IMGIMGABCDEZ <sentinel:12>\t     x")
    @example("123456 \u4e00\u3042\u30a2, a. $x (a|b) don'T\r\n/\n  ")
    @example(" " * 1000 + "x")
    def check(text: str) -> None:
        assert tokenizer.words(text) == reference_words(reference, text)

    check()
    text = mixed_text(20_000)
    assert tokenizer.words(text) == reference_words(reference, text)


@pytest.mark.parametrize("cut", ["o200k", "deepseek_v3", "deepseek_llm"])
def test_ids(cut: str) -> None:
    vocabulary = trained_vocabulary(cut, 600, False)
    ours, theirs = vocabulary.ours(), vocabulary.reference()

    @given(TEXTS)
    def check(text: str) -> None:
        ids = ours.encode(text, bos=False)
        assert ids == reference_ids(theirs, text)
        assert ours.decode(ids) == text

    check()
    text = mixed_text(40_000)
    assert first_difference(ours.encode(text, bos=False), reference_ids(theirs, text)) is None


def test_o200k_of_tiktoken() -> None:
    """Its own pattern, with pieces of two bytes, which show where words end."""
    pieces = [*ALL_BYTES, *(bytes([a, b]) for a in range(256) for b in range(256))]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    encoding = tiktoken.Encoding("o200k", pat_str=o200k_of_tiktoken(), mergeable_ranks=ranks, special_tokens={})
    tokenizer = ByteBpe(pieces, pre="o200k", merges_by_id=True, ignore_merges=True).ours()

    @given(TEXTS | SHORT)
    def check(text: str) -> None:
        assert tokenizer.encode(text, bos=False) == encoding.encode_ordinary(text)

    check()


# --- the language

PATTERNS_OF_ALL_KINDS = [
    *[
        r"\s+",
        r"\S",
        r"\d",
        r"\D+",
        r".",
        r"a|b",
        r"(a|ab)(c|bcd)?",
        r"[^\S\n]+",
        r"[a-c[1-2]]+",
        r"[ab]",
    ],
    *[r"\p{L}\p{M}*", r"\P{L}+", r"\p{^L}+", r"[\P{L}a]+", r"[^\p{L}\p{N}\s]", r"\p{Lu}+|\p{Ll}+", r"[\p{L}&&[^a-z]]+"],
    *[r"a*?b", r"a+?", r"a??b", r"[ab]{1,2}?", r"a{2}", r"a{2,}", r"a{,2}b", r"a{1,2}", r"a{2}?", r"a{1,2}+"],
    *[r"\s++$", r"\s+$", r"$", r"b*", r"a?", r"(?i:'s|b)", r"(?i:[a-b]+)", r"(?i:k)", r"\s+(?!\S)|\s+", r"a(?=b)|b"],
    *[
        r"a(?![ab])",
        r"[ab]?+\p{L}++",
        r"\p{N}++",
        r"(?=a)",
        r"(?!a)b*",
        r"(?:a|b(?=\s|$))+",
        r"(ab|a)(?=b)",
        r"\x61|\u0062",
    ],
    *[r"\x{1F680}|\t", r"[\r\n]", r"[a\-b]", r"[a-]", r"[-a]", r"[\]\[]", r"(?:)", r"(?:a|)", r"''?", r"\!|\/|\-|\ "],
]
PIECES = [r"a", r"b", r"\s", r"\S", r"[ab]", r"[^a]", r"\p{L}", r"\n", r".", r"(?:a|b)", r"(?:ab|a)", r"(?i:s)"]
QUANTIFIERS = ["", "?", "*", "+", "??", "*?", "+?", "{2}", "{1,2}", "{2,}"]
AHEAD = ["", r"(?!\S)", r"(?=a)", r"(?!a|b)", r"(?=\s|$)", r"$"]
SEQUENCES = st.lists(
    st.sampled_from(PIECES).flatmap(lambda p: st.sampled_from([p + q for q in QUANTIFIERS])), max_size=4
)
ANY_PATTERN = st.lists(
    st.tuples(SEQUENCES.map("".join), st.sampled_from(AHEAD)).map("".join), min_size=1, max_size=3
).map("|".join)


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_every_kind_of_pattern(behavior: str) -> None:
    for pattern in PATTERNS_OF_ALL_KINDS:
        for invert in (False, True):
            ours = cut_by((pattern, behavior, invert))
            theirs = reference_cut((pattern, behavior, invert))
            for text in [
                "",
                "a",
                "ab aab  b\n\nbb",
                "'S aKk\u212a\u017f 12 \u0663",
                " a\t \r\n b- !/",
                "[a]-\U0001f680b \n ",
            ]:
                assert ours.words(text) == reference_words(theirs, text), (pattern, text)


@settings(max_examples=200, deadline=None)
@given(ANY_PATTERN, st.sampled_from(BEHAVIORS), st.booleans(), st.lists(SHORT | st.text("ab \n"), max_size=4))
@example(r"|a", "isolated", False, ["ab aa"])
@example(r"a??|b", "merged_with_next", True, ["ab\naa"])
def test_made_patterns(pattern: str, behavior: str, invert: bool, texts: list[str]) -> None:
    ours = cut_by((pattern, behavior, invert))
    theirs = reference_cut((pattern, behavior, invert))
    for text in texts:
        assert ours.words(text) == reference_words(theirs, text)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PATTERNS_OF_ALL_KINDS), st.sampled_from(BEHAVIORS), st.booleans()), max_size=4),
    SHORT,
)
def test_several_steps(steps: list[Step], text: str) -> None:
    assert cut_by(*steps).words(text) == reference_words(reference_cut(*steps), text)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?<=a)b", "at byte 2, a group that begins with (?<"),
        (r"(?<!a)b", "a group that begins with (?<"),
        (r"(?<n>a)", "a group that begins with (?<"),
        (r"(?>a)", "a group that begins with (?>"),
        (r"(?i)a", "a group that begins with (?i"),
        (r"(?m:a)", "a group that begins with (?m"),
        (r"(?#a)", "a group that begins with (?#"),
        (r"\bword", r"\b"),
        (r"(a)\1", r"\1"),
        (r"\w+", r"\w"),
        (r"\Ga", r"\G"),
        (r"^a", "^"),
        (r"\p{Han}", 'at byte 2, \\p of "Han"'),
        (r"[[:alpha:]]", "[:...:]"),
        (r"(?=ab)", "a lookahead for more than one character"),
        (r"(?!a*)", "a lookahead for more than one character"),
        (r"(?:ab)++", "a possessive repetition of more than one character"),
        (r"(?:a*)*", "a repetition of what may be nothing"),
        (r"(?i:ss)", '"ss" in (?i:...)'),
        (r"(?i:\u00e9)", "a character that is not ASCII in (?i:...)"),
        ("(?i:\u00e9)", "a character that is not ASCII in (?i:...)"),
        (r"a{1001}", "a repetition of more than 1000 times"),
        (r"a{2,1}", "a repetition from more to less"),
        (r"a{", "a { that is no repetition"),
        (r"(a", "a ( without its )"),
        (r"a)", "a ) without its ("),
        (r"[a", "a [ without its ]"),
        (r"[]a]", "a set that begins with ]"),
        (r"[b-a]", "a range from more to less"),
        (r"[a-\d]", "a range to a class"),
        ("a\\", "a \\ at its end"),
        (r"*a", "a * without what it repeats"),
        (r"\x{110000}", "a code point that is none"),
        (r"\x{D800}", "a code point that is none"),
        ("(" * 200 + ")" * 200, "deeper than is implemented"),
        ("[" * 200, "deeper than is implemented"),
        (r"(?:(?:(?:a{100}){100}){100})", "is too large"),
        (r"(?:a|b)*a(?:a|b){20}", "is too large"),
        ("a" + "??" * 50, "a repetition of repetitions, many times"),
        ("a" * 70_000, "a pattern of 70000 bytes is not implemented"),
        ("".join(map(chr, range(0x4E00, 0x4F80))), "more different sets and characters than 256"),
        ("".join(map(chr, range(0x4E00, 0x4F00))), "more classes of characters than are implemented"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(pattern: str, said: str) -> None:
    with pytest.raises(FormatError) as caught:
        cut_by((pattern, "isolated", False))
    assert "pattern" in str(caught.value)
    assert said in str(caught.value)


def test_bytes_that_are_no_text() -> None:
    splits = [{"pattern": b"\xff", "behavior": "isolated", "invert": False}]
    with pytest.raises(FormatError, match="bytes that are not UTF-8"):
        Tokenizer.from_dict(BYTES_ALONE | {"pre_tokenizer": "splits", "splits": splits})


def test_splits_belong_to_no_named_cut() -> None:
    splits = [{"pattern": b"a", "behavior": "isolated", "invert": False}]
    with pytest.raises(FormatError, match='splits are given, and the pre_tokenizer is "gpt2"'):
        Tokenizer.from_dict(BYTES_ALONE | {"splits": splits})


@contextmanager
def suppress_a_refusal() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "takes too long to cut this text" not in str(error):
            raise


HOSTILE = ["a*b|a", "[ab]a[ab]*c", "(?:a|b|ab)*c", "a*a*a*b", "(?:a+b?)+c", r"\s+$"]
RUNS = ["a" * 200_000, "ab" * 100_000, " " * 200_000 + "x", "\u4e00" * 60_000]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_no_text_takes_long(pattern: str) -> None:
    """All of the text, or an error: what a search that backtracks would not finish."""
    ours = cut_by((pattern, "isolated", False))
    for text in RUNS:
        with suppress_a_refusal():
            assert b"".join(ours.words(text)) == text.encode()


@pytest.mark.parametrize("cut", CUTS)
def test_no_named_cut_gives_up(cut: str) -> None:
    ours = ByteBpe(ALL_BYTES, pre=cut).ours()
    for unit in [
        "a",
        "A",
        "\u02b0",
        "a\u0301",
        " ",
        "\n",
        " \n",
        "1",
        "\u0663",
        "!",
        "'s",
        "\u4e00",
        "\t ",
        "aA",
        "A\u02b0",
        "! ",
        " 1",
    ]:
        for end in ["", "x", "\n", "1", "!"]:
            text = unit * 20_000 + end
            assert b"".join(ours.words(text)) == text.encode()


# --- files


def trained(cut: Any, normalizer: Any = None) -> Any:
    reference = Reference(models.BPE())
    reference.pre_tokenizer = cut
    if normalizer is not None:
        reference.normalizer = normalizer
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=STAND_INS)
    reference.train_from_iterator([mixed_text(20_000, seed=3)], trainer)
    return reference


LAST = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLIT = pre_tokenizers.Split
FILES = {
    "words and signs": [
        SPLIT(Regex(r" ?\p{L}+"), "isolated"),
        SPLIT(Regex(r"[\p{P}\p{S}]"), "merged_with_previous"),
        LAST,
    ],
    "text": [SPLIT("+-$", "isolated"), SPLIT("  ", "removed"), SPLIT("a", "merged_with_next"), LAST],
    "digits": [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "inverted": [SPLIT(Regex(r"\p{L}+|\s"), "removed", invert=True), LAST],
    "none": [SPLIT("", "isolated"), LAST],
}


@pytest.mark.parametrize("name", FILES)
def test_files_with_any_splits(name: str, tmp_path: Path) -> None:
    reference = trained(pre_tokenizers.Sequence(FILES[name]))
    ours = opened(reference.to_str())
    assert ours.to_dict()["pre_tokenizer"] == "splits"

    @settings(max_examples=60)
    @given(TEXTS | SHORT)
    def check(text: str) -> None:
        assert ours.encode(text, bos=False) == reference_ids(reference, text)

    check()


@pytest.mark.parametrize("cut", NAMED)
def test_files_of_named_cuts(cut: str) -> None:
    settings = json.loads(ByteBpe(ALL_BYTES, pre=cut).reference().to_str())
    assert opened(settings).to_dict()["pre_tokenizer"] == cut


def test_a_file_s_pattern_is_refused_with_its_place() -> None:
    settings = json.loads(ByteBpe(ALL_BYTES, pre="llama3").reference().to_str())
    settings["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"(?<=a)\s"
    with pytest.raises(FormatError, match=re.escape(r'the pattern "(?<=a)\\s" has, at byte 2, a group that begins')):
        opened(settings)
    settings["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Merged"
    with pytest.raises(FormatError, match='"Merged", expected one of: Isolated, Removed'):
        opened(settings)


# --- NFC and Gemma


NFC = Tokenizer.from_dict(BYTES_ALONE | {"nfc": True, "pre_tokenizer": "splits"})
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def composed(text: str) -> str:
    return b"".join(NFC.words(text)).decode()


def test_nfc_of_all_code_points() -> None:
    """Alone as in `tokenizers`; between what may compose with them as in Python's module, of what that knows."""
    for at in range(0, len(CODES), 4096):
        text = " ".join(map(chr, CODES[at : at + 4096]))
        assert composed(text) == normalizers.NFC().normalize_str(text), f"U+{CODES[at]:04X}"
    known = [chr(code) for code in CODES if unicodedata.category(chr(code)) not in ("Cn", "Co")]
    for at in range(0, len(known), 4096):
        text = "".join(f" {c}a{c}\u0323\u0301{c}" for c in known[at : at + 4096])
        assert composed(text) == unicodedata.normalize("NFC", text), f"U+{ord(known[at]):04X}"


def test_what_nfc_of_tokenizers_has_not() -> None:
    """Its tables are older: marks that it does not order, and pairs that it does not compose. The documents say so."""
    theirs = normalizers.NFC()
    marks = [chr(code) for code in CODES if unicodedata.combining(chr(code))]
    other = [c for c in marks if composed(f"{c}\u0323\u0301") != theirs.normalize_str(f"{c}\u0323\u0301")]
    assert all(unicodedata.normalize("NFC", f"{c}\u0323\u0301") == composed(f"{c}\u0323\u0301") for c in other)
    assert 0 < len(other) < 120
    assert min(other) > "\u07fc"
    assert composed("\U00011935\U00011930") == "\U00011938" != theirs.normalize_str("\U00011935\U00011930")


MARKED = st.text(
    "aeE\u0301\u0323\u0300\u00e9\u1e69\u1100\u1161\u11a8\uac00\uac01\u0344\u212b\u2126\u0958\u09c7\u09be\u3099\u304b"
    "\U0001d15e\u0f71\u0f72"
)


@settings(max_examples=300)
@given(MARKED | TEXTS)
def test_nfc(text: str) -> None:
    if all(unicodedata.category(c) != "Cn" for c in text):
        assert composed(text) == unicodedata.normalize("NFC", text)
    assert composed(composed(text)) == composed(text)


def test_nfc_leaves_bytes_that_are_no_text() -> None:
    ours = Tokenizer.from_dict(BYTES_ALONE | {"nfc": True})
    text = b"e\xcc\x81\xffe\xcc\x81 \xcc\x81\xe2\x82"
    assert ours.decode_bytes(ours.encode(text)) == b"\xc3\xa9\xff\xc3\xa9 \xcc\x81\xe2\x82"


def test_qwen2_with_nfc() -> None:
    reference = trained(reference_pre_tokenizer("qwen2"), normalizers.NFC())
    reference.add_tokens(["<e\u0301>", "caf\u00e9"])
    reference.add_special_tokens(["<|im_start|>"])
    ours = opened(reference.to_str())
    assert (ours.to_dict()["nfc"], ours.to_dict()["pre_tokenizer"]) == (True, "qwen2")

    @given(st.lists(MARKED | st.sampled_from(["<e\u0301>", "cafe\u0301", "<|im_start|>"]), max_size=4).map("".join))
    def check(text: str) -> None:
        for special in (False, True):
            assert ours.encode(text, bos=False, special=special) == reference_ids(reference, text, special)

    check()


def test_gemma() -> None:
    """Spaces are replaced first, so that the Split at spaces finds none."""
    space = "\u2581"
    alphabet = [*(f"<0x{byte:02X}>" for byte in range(256)), space, *"abcdet\u00e9"]
    merges = [(space, "a"), ("a", "b"), (space, space), (space + space, space), (space + "a", "b"), ("t", "e")]
    vocab = {piece: id for id, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *alphabet])}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    reference = Reference(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    reference.normalizer = normalizers.Replace(" ", space)
    reference.pre_tokenizer = SPLIT(" ", "merged_with_previous")
    reference.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    reference.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    reference.add_tokens(["<start>", "\n\n"])
    ours = opened(reference.to_str())

    @given(st.text("abcdet \u2581\n\u00e9\u4e00<", max_size=24) | TEXTS)
    def check(text: str) -> None:
        for special in (False, True):
            ids = reference_ids(reference, text, special)
            assert ours.encode(text, bos=False, special=special) == ids
        assert ours.decode(ids) == reference.decode(ids)

    check()


def test_the_package_says_which_unicode() -> None:
    assert "Unicode 16.0" in (llama2cpp.Tokenizer.__doc__ or "")
