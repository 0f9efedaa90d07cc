"""The tokenizer: ids against the sentencepiece library and a plain form of llama2.c's rule, decoding, damaged files."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece  # type: ignore[import-untyped, unused-ignore]
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    NORMAL,
    SPACE,
    UNUSED,
    USER_DEFINED,
    Pieces,
    SentencePieceModel,
    message,
    open_bytes,
    read_tokenizer_bin,
    tokenizer_bin,
)

from llama2cpp import FormatError, Tokenizer
from llama2cpp._core import StreamDecoder

TEXTS = st.text(max_size=60) | st.text("ab \n\t\u2581\u00e9\u65e5\U0001f680\0<s>/", max_size=60)
BYTES = st.binary(max_size=60) | TEXTS.map(lambda text: text.encode())


def library(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def llama2_bin(models_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(models_dir / "llama2" / "tokenizer.bin")


@pytest.fixture(scope="module")
def llama2_model(models_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(models_dir / "llama2" / "tokenizer.model")


@pytest.fixture(scope="module")
def llama2_library(models_dir: Path) -> Any:
    return library((models_dir / "llama2" / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def tok512(models_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(models_dir / "stories260K" / "tok512.bin")


# Ids of a tokenizer.bin: llama2.c's rule, written out plainly.


class PlainLlama2c:
    """Looks at every pair for every merge, as llama2.c does. Its names of pieces are C strings: they end at a NUL."""

    def __init__(self, pieces: Pieces) -> None:
        self.names = [text.split(b"\0")[0] for text, _ in pieces]
        self.scores = [struct.unpack("<f", struct.pack("<f", score))[0] for _, score in pieces]
        self.ids: dict[bytes, int] = {}
        for id, name in enumerate(self.names):
            self.ids.setdefault(name, id)
        # Of equal names only the first is known, and a merge needs its score.
        self.merges: dict[bytes, int] = {}
        for id, name in enumerate(self.names):
            if self.scores[id] > -1e10:
                self.merges.setdefault(name, id)

    def encode(self, text: bytes, bos: bool = True, eos: bool = False) -> list[int]:
        ids = [1] if bos else []
        for character in [b" "] * bool(text) + re.findall(rb"(?s).[\x80-\xBF]{0,3}", text):
            id = self.ids.get(character)
            ids += [id] if id is not None else [byte + 3 for byte in character]
        while True:
            best, where = -math.inf, -1
            for i, (left, right) in enumerate(pairwise(ids)):
                id = self.merges.get(self.names[left] + self.names[right])
                if id is not None and (where < 0 or self.scores[id] > best):
                    best, where = self.scores[id], i
            if where < 0:
                return [*ids, 2] if eos else ids
            ids[where : where + 2] = [self.merges[self.names[ids[where]] + self.names[ids[where + 1]]]]


SCORES = st.integers(-5, 0).map(float) | st.floats(width=32) | st.sampled_from([-1e10, -0.0])


@st.composite
def llama2c_pieces(draw: st.DrawFn) -> list[tuple[bytes, float]]:
    """Small vocabularies in which much merges: names of bytes and of BOS too, equal and empty names, ties, NaN."""
    part = st.sampled_from(
        [b"a", b"b", b" ", b"aa", b"ab", b"\xc3\xa9", b"\xf0\x9f", b"\x9f", b"\0", b"<0x63>", b"<0x9F>", b"<s>\n"]
    )
    text = st.lists(part, min_size=1, max_size=4).map(b"".join)
    extra = draw(st.lists(st.tuples(text, SCORES), max_size=25))
    byte_pieces = [text.encode() for text in BYTE_PIECES]
    if draw(st.booleans()):
        for byte in b"abc":
            byte_pieces[byte] = draw(text)
    return [
        (b"<unk>", 0.0),
        (draw(st.sampled_from([b"\n<s>\n", b"a", b"\n<s>\n\0"])), 0.0),
        (b"\n</s>\n", 0.0),
        *((piece, 0.0) for piece in byte_pieces),
        *extra,
        *draw(st.sampled_from([[], [(b"\n<s>\n ", 1.0)], [(b" ", -1.0), (b"a", -2.0), (b"b", -3.0)]])),
        *draw(st.sampled_from([[], [(b"\xf0\x9f\x9f\x9f", 0.0), (b"\x9f\x9f", 0.0)]])),
    ]


@settings(max_examples=500)
@given(
    llama2c_pieces(),
    st.lists(st.sampled_from([b"a", b"b", b"c", b" ", b"\xc3\xa9", b"\xf0", b"\x9f", b"\0"]), max_size=16).map(
        b"".join
    ),
    st.booleans(),
    st.booleans(),
)
def test_llama2c_ids(pieces: Pieces, text: bytes, bos: bool, eos: bool) -> None:
    tokenizer = open_bytes(tokenizer_bin(pieces))
    plain = PlainLlama2c(pieces).encode(text, bos, False)
    within = {1, 2} & set(plain[1:] if bos and plain[:1] == [1] else plain)
    if not within:
        assert tokenizer.encode(text, bos, eos) == [*plain, *([2] if eos else [])]
    elif len(pieces) >= 259:  # llama2.c finds BOS and EOS by their names in the text, ours spells them in bytes
        ids = tokenizer.encode(text, bos, False)
        assert not {1, 2} & set(ids[1:] if bos and ids[:1] == [1] else ids)


@pytest.mark.parametrize("name", ["stories260K/tok512.bin", "llama2/tokenizer.bin"])
def test_llama2c_ids_of_real_files(models_dir: Path, name: str) -> None:
    tokenizer = Tokenizer.from_file(models_dir / name)
    plain = PlainLlama2c(read_tokenizer_bin((models_dir / name).read_bytes()))

    @given(BYTES)
    @example(b"Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
    @example("naïve café 日本語 🚀🚀 \u2581".encode())
    def check(text: bytes) -> None:
        assert tokenizer.encode(text) == plain.encode(text)

    check()


def test_llama2c_golden(llama2_bin: Tokenizer, tok512: Tokenizer) -> None:
    """What llama2.c's own encode printed."""
    assert llama2_bin.encode("I believe the meaning of life is") == [1, 306, 4658, 278, 6593, 310, 2834, 338]
    assert tok512.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert llama2_bin.encode("") == [1]
    assert llama2_bin.encode("", bos=False, eos=True) == [2]


def test_llama2c_characters_end_after_four_bytes() -> None:
    first = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(text.encode() for text in BYTE_PIECES)]
    pieces = [(piece, -2e10) for piece in [*first, b" ", b"\x80", b"\xf0\x9f\x9a\x80", b"\xf0\x9f\x9a\x80\x80"]]
    tokenizer = open_bytes(tokenizer_bin(pieces))
    assert tokenizer.encode("\U0001f680".encode() + b"\x80", bos=False) == [259, 261, 260]


def test_vocab_size_limits_what_is_read(models_dir: Path, tok512: Tokenizer) -> None:
    path = models_dir / "stories260K" / "tok512.bin"
    fewer = Tokenizer.from_file(path, 300)
    assert len(fewer) == fewer.vocab_size == 300
    assert len(tok512) == 512
    pieces = read_tokenizer_bin(path.read_bytes())[:300]
    assert fewer.encode("Once upon a time") == PlainLlama2c(pieces).encode(b"Once upon a time")
    with pytest.raises(FormatError, match=r"piece 512 at byte 6227.*513 pieces were asked for"):
        Tokenizer.from_file(path, 513)


def test_llama2c_text_without_ids() -> None:
    """Nothing is read beyond the vocabulary for a byte that it lacks."""
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), (b" ", 0.0), (b"a", 0.0)]
    tokenizer = open_bytes(tokenizer_bin(pieces))
    assert tokenizer.encode("a") == [1, 3, 4]
    with pytest.raises(ValueError, match=r"at byte 1 of the text.*its byte 98.*id 101 of 5"):
        tokenizer.encode("ab")


# Ids of a .model: the sentencepiece library.


@settings(max_examples=500)
@given(TEXTS)
@example(" leading, trailing and  inner spaces ")
def test_sentencepiece_ids_of_llama2(llama2_model: Tokenizer, llama2_library: Any, text: str) -> None:
    ids = llama2_library.encode(text)
    assert llama2_model.encode(text, bos=False) == ids
    assert llama2_model.encode(text, eos=True) == [1, *ids, 2]
    assert llama2_model.decode(ids) == llama2_library.decode(ids)


@settings(max_examples=500)
@given(BYTES)
@example(b"\xff")
@example(b"a\xe2\x96b")
@example(b"\xed\xa0\x80 surrogate")
@example(b"\xf4\x90\x80\x80 \xc0\x80 \xe0\x80\x80")
def test_sentencepiece_ids_of_bytes(llama2_model: Tokenizer, llama2_library: Any, text: bytes) -> None:
    """Each byte that belongs to no character is taken for U+FFFD."""
    assert llama2_model.encode(text, bos=False) == llama2_library.encode(text)


PARTS = st.sampled_from(["a", "b", "c", SPACE, "\u00e9", "\U0001f680"])
PIECE_TEXTS = st.lists(PARTS, min_size=1, max_size=5).map("".join)
MODEL_TEXTS = st.lists(PARTS | st.sampled_from([" ", "  ", "d", "<s>", "\0", "aa"]), max_size=30).map("".join)


@st.composite
def sentencepiece_models(draw: st.DrawFn) -> SentencePieceModel:
    kinds = st.sampled_from([NORMAL] * 6 + [UNUSED, UNUSED, USER_DEFINED, CONTROL])
    texts = draw(st.lists(PIECE_TEXTS | st.sampled_from([" ", "  a", "a b"]), unique=True, max_size=30))
    return SentencePieceModel(
        [(text, draw(st.integers(-8, 0).map(float)), draw(kinds)) for text in texts],
        byte_fallback=draw(st.booleans()),
        dummy_prefix=draw(st.booleans()),
        tidy=draw(st.booleans()),
        trainer=draw(st.sampled_from([[], [(44, b"?")]])),
    )


@settings(max_examples=1000)
@given(sentencepiece_models(), MODEL_TEXTS | st.text(max_size=10))
@example(SentencePieceModel([("  b", 0.0, USER_DEFINED), ("b", 0.0, NORMAL), (SPACE, 0.0, NORMAL)], tidy=True), "a   b")
def test_sentencepiece_ids_of_any_model(model: SentencePieceModel, text: str) -> None:
    """Ties, unused and user-defined pieces, unknown text, and all settings of spaces."""
    tokenizer = open_bytes(model.to_bytes())
    assert tokenizer.encode(text, bos=False) == library(model.to_bytes()).encode(text)


@settings(max_examples=500)
@given(sentencepiece_models(), st.data())
def test_sentencepiece_text_of_any_ids(model: SentencePieceModel, data: st.DataObject) -> None:
    """Byte pieces apart, which the library decodes with another number of U+FFFD where they are invalid."""
    pieces = model.all_pieces()
    ids = data.draw(st.lists(st.sampled_from([i for i, (_, _, kind) in enumerate(pieces) if kind != BYTE])))
    assert open_bytes(model.to_bytes()).decode(ids) == library(model.to_bytes()).decode(ids)


WORDS = "the cat sat on the mat and the rat ran, 1234 caf\u00e9s \u65e5\u672c\u8a9e \U0001f680 isn't it? f(x) == <tag>"


@cache
def trained(**options: Any) -> tuple[Tokenizer, Any]:
    sentences = [" ".join(WORDS.split()[i % 7 :: 1 + i % 3]) + f" {i}" for i in range(100)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return open_bytes(model.getvalue()), library(model.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 400, "byte_fallback": True},
        {"vocab_size": 120},
        {"vocab_size": 400, "byte_fallback": True, "remove_extra_whitespaces": False},
        {"vocab_size": 120, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"vocab_size": 120, "add_dummy_prefix": False},
        {"vocab_size": 150, "user_defined_symbols": "<tag>,at,t o,\u2581\u2581", "control_symbols": "<sep>,x"},
        {"vocab_size": 400, "byte_fallback": True, "split_by_whitespace": False, "allow_whitespace_only_pieces": True},
        {"vocab_size": 120, "unk_surface": "??", "bos_id": -1, "eos_id": 3, "pad_id": 1, "unk_id": 0},
    ],
    ids=str,
)
def test_sentencepiece_ids_of_trained_models(options: dict[str, Any]) -> None:
    tokenizer, processor = trained(**options)
    words = st.lists(st.sampled_from([*WORDS.split(), " ", "  ", "\n", "<sep>", "x", "q"]), max_size=20)

    @given(words.map(" ".join) | words.map("".join) | TEXTS)
    def check(text: str) -> None:
        ids = processor.encode(text)
        assert tokenizer.encode(text, bos=False) == ids
        assert tokenizer.decode(ids) == processor.decode(ids)

    check()
    assert len(tokenizer) == processor.get_piece_size()
    assert tokenizer.bos_id == (processor.bos_id() if processor.bos_id() >= 0 else None)
    assert tokenizer.eos_ids == (processor.eos_id(),)
    assert tokenizer.encode("a", eos=True)[-1] == processor.eos_id()
    if tokenizer.bos_id is None:
        assert tokenizer.encode("a") == processor.encode("a")


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "ab" * 500_000, "\U0001f680" * 250_000])
def test_a_megabyte_of_one_thing(
    llama2_model: Tokenizer, llama2_bin: Tokenizer, llama2_library: Any, text: str
) -> None:
    """One word without an end: what a quadratic merge would not finish."""
    ids = llama2_library.encode(text)
    assert llama2_model.encode(text, bos=False) == ids
    assert llama2_bin.encode(text, bos=False) == ids
    assert llama2_model.decode(ids) == text


# Special pieces.


@given(st.text(" ab<", max_size=6), st.lists(st.tuples(st.sampled_from([1, 2]), st.text(" ab<", max_size=6))))
def test_special(llama2_bin: Tokenizer, llama2_model: Tokenizer, start: str, rest: list[tuple[int, str]]) -> None:
    """Each text between two marks is encoded as if it stood alone; one that begins with BOS gets no second."""
    text = start + "".join(f"{('<s>', '</s>')[mark - 1]}{following}" for mark, following in rest)
    for tokenizer in (llama2_bin, llama2_model):
        expected = tokenizer.encode(start, bos=not text.startswith("<s>"))
        for mark, following in rest:
            expected += [mark, *tokenizer.encode(following, bos=False)]
        assert tokenizer.encode(text, special=True) == expected
        assert not {1, 2} & set(tokenizer.encode(text, bos=False))


def test_special_spellings(llama2_bin: Tokenizer, llama2_model: Tokenizer) -> None:
    """tokenizer.bin has the names with line ends about them; those belong to the name only there."""
    hello = llama2_bin.encode("Hello", bos=False)
    assert llama2_bin.encode("\n<s>\nHello\n</s>\n", bos=False, special=True) == [1, *hello, 2]
    assert llama2_bin.encode("<s>Hello</s>", bos=False, special=True) == [1, *hello, 2]
    line_end = llama2_model.encode("\n", bos=False)
    assert llama2_model.encode("<s>\n</s>", bos=False, special=True) == [1, *line_end, 2]
    assert llama2_model.encode("<unk>", special=True) == llama2_model.encode("<unk>")
    assert llama2_bin.encode("<s>", special=True) == [1]


def test_special_takes_the_longest() -> None:
    model = SentencePieceModel([("<s><s>", 0.0, CONTROL), ("a", 0.0, NORMAL), ("b<s>", 0.0, USER_DEFINED)])
    tokenizer = open_bytes(model.to_bytes())
    assert tokenizer.encode("<s><s><s>a", bos=False, special=True) == [3, 1, 0, 4]
    assert tokenizer.encode("b<s>", bos=False) == [0, 5]


# Decoding.


@given(BYTES)
def test_decode_undoes_encode(llama2_bin: Tokenizer, llama2_model: Tokenizer, tok512: Tokenizer, text: bytes) -> None:
    for tokenizer in (llama2_bin, tok512):
        assert tokenizer.decode_bytes(tokenizer.encode(text, eos=True)) == text
        assert tokenizer.decode(tokenizer.encode(text)) == text.decode(errors="replace")
    valid = text.decode(errors="ignore").replace(SPACE, " ")
    assert llama2_model.decode(llama2_model.encode(valid)) == valid


ODD_PIECES = [
    b"\xe2",
    b"\x96\x81",
    b" ",
    b"  ",
    b"\xf0\x9f",
    b"x\xed\xa0",
    b" \x80",
    b"\xf4\x90",
    b"\xc3\xa9\xc3",
    b"\0",
]


def check_stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = StreamDecoder(tokenizer)
    for _ in range(2):  # after flush a new sequence begins
        parts = [decoder.push(id) for id in ids]
        so_far = "".join(parts)
        assert so_far + decoder.flush() == tokenizer.decode_bytes(ids).decode(errors="replace") == tokenizer.decode(ids)
        # Never more is held back than an unfinished character.
        assert len(tokenizer.decode_bytes(ids).decode(errors="ignore")) <= len(so_far)


@settings(max_examples=500)
@given(st.lists(st.integers(0, 259 + len(ODD_PIECES) - 1) | st.integers(259, 259 + len(ODD_PIECES) - 1)))
def test_stream_of_odd_pieces(ids: list[int]) -> None:
    check_stream(odd_tokenizer(), ids)


@cache
def odd_tokenizer() -> Tokenizer:
    first = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(text.encode() for text in BYTE_PIECES)]
    return open_bytes(tokenizer_bin([(piece, 0.0) for piece in [*first, *ODD_PIECES]]))


@given(sentencepiece_models(), st.data())
def test_stream_of_any_model(model: SentencePieceModel, data: st.DataObject) -> None:
    tokenizer = open_bytes(model.to_bytes())
    check_stream(tokenizer, data.draw(st.lists(st.integers(0, len(tokenizer) - 1))))


@given(BYTES)
def test_stream_of_text(llama2_bin: Tokenizer, llama2_model: Tokenizer, text: bytes) -> None:
    check_stream(llama2_bin, llama2_bin.encode(text))
    check_stream(llama2_model, llama2_model.encode(text))


def test_stream_holds_back_half_a_character(llama2_bin: Tokenizer) -> None:
    decoder = StreamDecoder(llama2_bin)
    rocket = [3 + byte for byte in "\U0001f680".encode()]
    assert [decoder.push(id) for id in rocket] == ["", "", "", "\U0001f680"]
    assert [decoder.push(id) for id in [*rocket[:3], 9038]] == ["", "", "", "\ufffd Once"]
    assert decoder.push(rocket[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert decoder.push(9038) == "Once"
    with pytest.raises(ValueError, match="32000"):
        decoder.push(32000)
    assert decoder.push(9038) == " Once"
    del llama2_bin  # the decoder keeps the vocabulary
    assert decoder.push(9038) == " Once"


def test_pieces(llama2_bin: Tokenizer, llama2_model: Tokenizer, llama2_library: Any) -> None:
    for id in range(len(llama2_model)):
        if id in (1, 2):
            assert llama2_bin.piece(id) == b"\n" + llama2_model.piece(id) + b"\n"
        elif not llama2_library.is_byte(id):
            assert llama2_model.piece(id) == llama2_library.id_to_piece(id).replace(SPACE, " ").encode()
            assert llama2_bin.piece(id) == llama2_model.piece(id)
        else:
            assert llama2_bin.piece(id) == llama2_model.piece(id) == bytes([id - 3])


def test_piece_after_is_what_llama2c_prints(llama2_bin: Tokenizer) -> None:
    assert llama2_bin.piece_after(1, 9038) == b"Once"
    assert llama2_bin.piece_after(-1, 9038) == llama2_bin.piece_after(2, 9038) == b" Once"
    assert llama2_bin.piece_after(1, 259) == b" "  # of two spaces
    assert llama2_bin.piece_after(5, 1) == b"\n<s>\n"
    assert llama2_bin.piece_after(5, 3 + 0xE2) == b"\xe2"
    assert llama2_bin.piece_after(5, 3) == b""  # a C string with byte 0 is empty

    # Its scanf asks for no ">" and takes white space and a sign.
    odd = [
        b"<0x4",
        b"<0xfoo",
        b"<0x ab>",
        b"<0x-1>",
        b"<0x+5>",
        b"<0x-12",
        b" <0x41>",
        b"a\0b",
        b"<0x>",
        b"<0X41>",
        b"<0x\0",
    ]
    first: list[tuple[bytes, float]] = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    tokenizer = open_bytes(tokenizer_bin(first + [(piece, 0.0) for piece in odd]))
    assert [tokenizer.piece_after(-1, 3 + i) for i in range(len(odd))] == [
        *(b"\x04", b"\x0f", b"\xab", b"\xff", b"\x05", b"\xff"),
        *(b" <0x41>", b"a", b"<0x>", b"<0X41>", b"<0x"),
    ]
    assert tokenizer.piece_after(1, 3 + odd.index(b" <0x41>")) == b"A"
    assert tokenizer.decode_bytes([3, 9]) == b"<0x4 <0x41>"  # decode takes only <0xHH> for a byte


# What Python sees.


def test_ids_may_be_any_integers(llama2_bin: Tokenizer) -> None:
    ids = llama2_bin.encode("Hello world")
    for same in (tuple(ids), iter(ids), np.array(ids), np.array(ids, np.uint16), (np.int32(id) for id in ids)):
        assert llama2_bin.decode(same) == "Hello world"
    assert llama2_bin.decode([]) == ""
    assert llama2_bin.decode_bytes([]) == b""


@pytest.mark.parametrize("id", [-1, 32000, 2**31, -(2**31) - 1, 2**63, 10**30])
def test_wrong_ids(llama2_bin: Tokenizer, id: int) -> None:
    message = f"id {id} is not in the vocabulary of 32000 pieces"
    calls: list[Callable[[], object]] = [
        lambda: llama2_bin.decode([1, id]),
        lambda: llama2_bin.decode_bytes([1, id]),
        lambda: llama2_bin.piece(id),
        lambda: llama2_bin.piece_after(1, id),
        lambda: StreamDecoder(llama2_bin).push(id),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_wrong_arguments(llama2_bin: Tokenizer) -> None:
    with pytest.raises(TypeError, match="int, expected str or bytes"):
        llama2_bin.encode(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        llama2_bin.decode([1.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"text has the lone surrogate U\+D800 at character 2, "):
        llama2_bin.encode("ab\ud800")
    with pytest.raises(ValueError, match="vocab_size is -1"):
        open_bytes(tokenizer_bin([(b"a", 0.0)] * 3), -1)
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file("no such file")


@pytest.mark.parametrize("name", ["stories260K/tok512.bin", "llama2/tokenizer.bin", "llama2/tokenizer.model"])
def test_pickle(models_dir: Path, name: str) -> None:
    tokenizer = Tokenizer.from_file(str(models_dir / name))
    text = "Once upon a time \U0001f680 <s>"
    for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert len(other) == len(tokenizer)
        assert (other.bos_id, other.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids)
        assert other.encode(text, special=True, eos=True) == tokenizer.encode(text, special=True, eos=True)
        assert other.decode(range(len(other))) == tokenizer.decode(range(len(other)))


def test_pickle_keeps_every_setting() -> None:
    pieces = [("a", -1.0, NORMAL), (SPACE, 0.0, NORMAL), ("aa", -2.0, UNUSED), ("b", 0.0, USER_DEFINED)]
    model = SentencePieceModel(pieces, dummy_prefix=False, tidy=True, trainer=[(44, b"\xff?")])
    tokenizer = open_bytes(model.to_bytes())
    settings = tokenizer.to_dict()
    assert pickle.loads(pickle.dumps(tokenizer)).to_dict() == settings
    with pytest.raises(FormatError, match="7 pieces, but 6 scores"):
        Tokenizer.from_dict(settings | {"scores": settings["scores"][:-1]})


def test_threads_share_a_tokenizer(llama2_bin: Tokenizer) -> None:
    texts = [(WORDS + str(i)) * 200 for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(llama2_bin.encode, texts)) == [llama2_bin.encode(text) for text in texts]


def test_repr(tok512: Tokenizer) -> None:
    assert repr(tok512) == "<Tokenizer of 512 pieces, llama2.c>"


# Damaged, foreign and unsupported files.

SMALL_BIN = tokenizer_bin(
    [
        (text.encode(), -float(i))
        for i, text in enumerate(["<unk>", "\n<s>\n", "\n</s>\n", *BYTE_PIECES, " ", "a", "aa"])
    ]
)
SMALL_MODEL = SentencePieceModel(
    [("a", 0.0, NORMAL), ("aa", -1.0, USER_DEFINED), (SPACE, 0.0, UNUSED)], byte_fallback=True
).to_bytes()


def check_opening(data: bytes) -> None:
    """A tokenizer of which everything works, or a FormatError. Text that the vocabulary lacks is a ValueError."""
    try:
        tokenizer = open_bytes(data)
    except FormatError:
        return
    for text in (b"a aaab \xff\0", b"<s>a"):
        with suppress(ValueError):
            ids = tokenizer.encode(text, eos=True, special=True)
            check_stream(tokenizer, ids)
    check_stream(tokenizer, list(range(len(tokenizer))))


@pytest.mark.parametrize("data", [SMALL_BIN, SMALL_MODEL], ids=["bin", "model"])
def test_damaged_files(data: bytes) -> None:
    @settings(max_examples=500)
    @given(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 400))
    def check(changes: list[tuple[int, int]], cut: int) -> None:
        damaged = bytearray(data)
        for at, value in changes:
            damaged[at] = value
        check_opening(bytes(damaged[: len(damaged) - cut]))

    check()


@given(st.sampled_from([b"", b"\5\0\0\0", b"\n"]), st.binary(max_size=100))
def test_foreign_files(start: bytes, data: bytes) -> None:
    check_opening(start + data)


@given(st.integers(0, len(SMALL_BIN) - 1))
def test_cut_tokenizer_bin(length: int) -> None:
    with pytest.raises(FormatError):
        open_bytes(SMALL_BIN[:length], 262)


def bin_with(length: int, text: bytes) -> bytes:
    return tokenizer_bin([(b"<unk>", 0.0), (b"<s>", 0.0)]) + struct.pack("<fi", 0.0, length) + text


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b"\5\0", "begins like none of them"),
        (b"\x7fELF\2\1\1", "begins like none of them"),
        (b"\5\0\0\0", "found 0 by byte 4"),
        (bin_with(3, b"abc")[:-2], "piece 2 at byte 28: expected 3 bytes of text, found 1"),
        (bin_with(3, b"abc")[:-5], "piece 2 at byte 28: expected a score and a length .8 bytes., found 6"),
        (bin_with(0, b""), "piece 2 at byte 28: expected a length from 1 to the file's longest, 5, found 0"),
        (bin_with(-7, b"abc"), "found -7"),
        (bin_with(6, b"abcdef"), "longest, 5, found 6"),
        (bin_with(2**31 - 1, b"abc"), "found 2147483647"),
        (bin_with(3, b"abc") + b"\0", "piece 3 at byte 39.* found 1 bytes"),
        (tokenizer_bin([(b"<unk>", 0.0), (b"<s>", 0.0)]), "at least the pieces unknown, BOS and EOS, found 2"),
        (SMALL_MODEL[:20], "at byte"),
        (message([(1, message([(1, b"a")]))]), "piece of type unknown"),
        (message([(2, message([(3, 2)]))]), "no pieces in 4 bytes"),
        (message([(1, message([(1, b"a")])), (2, message([(3, 2)]))]), "piece of type unknown"),
        (SMALL_MODEL + message([(1, message([(1, b"<u>"), (3, 2)]))]), "piece 262: a second unknown piece"),
        (SMALL_MODEL + message([(1, message([(2, 1.0)]))]), "piece 262: expected a text, found none"),
        (SMALL_MODEL + message([(1, message([(1, b"x"), (3, 7)]))]), "piece 262: expected a type from 1 to 6, found 7"),
        (SMALL_MODEL + message([(1, message([(1, b"x"), (3, BYTE)]))]), "piece 262, 'x', is of type byte"),
        (SMALL_MODEL + message([(1, message([(1, b"x"), (2, math.nan)]))]), "score of piece 262, 'x', is NaN"),
        (SMALL_MODEL + message([(1, message([(1, b"x"), (2, 5)]))]), "score: expected a float, found wire type 0"),
        (SMALL_MODEL + message([(1, 5)]), "a piece: expected bytes, found wire type 0"),
        (SMALL_MODEL + b"\x0a\xff\xff\xff\xff\x0f", "expected 4294967295 bytes, found 0"),
        (SMALL_MODEL + b"\x0b", "wire type 3 is not supported"),
        (SMALL_MODEL + b"\x08" + b"\xff" * 10, "varint of more than 10 bytes"),
    ],
)
def test_damage_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        open_bytes(data)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (SentencePieceModel([], trainer=[(3, 3)]), "type word"),
        (SentencePieceModel([("two", 0.0, NORMAL)], trainer=[(3, 4)]), "of a character model"),
        (SentencePieceModel([], trainer=[(24, 1)]), "treat_whitespace_as_suffix"),
        (
            SentencePieceModel([], normalizer=[(1, b"nmt_nfkc"), (2, b"map")]),
            "precompiled_charsmap: expected at least 4",
        ),
        (SentencePieceModel([], normalizer=[(5, 0)]), "escape_whitespaces"),
    ],
)
def test_unsupported_models(model: SentencePieceModel, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        open_bytes(model.to_bytes())


def test_model_larger_than_asked() -> None:
    assert len(open_bytes(SMALL_MODEL, 262)) == 262
    assert len(open_bytes(SMALL_MODEL, 300)) == 262
    with pytest.raises(FormatError, match="at most 261 pieces, found 262"):
        open_bytes(SMALL_MODEL, 261)


def test_path_is_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(b"\5\0\0\0\1")
    with pytest.raises(FormatError, match=re.escape(f"{path}: tokenizer.bin: piece 0 at byte 4")):
        Tokenizer.from_file(path)
