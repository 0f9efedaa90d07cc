"""Llama 3's tokenizer.model, a tiktoken file: ids against tiktoken itself, special pieces, damaged files."""

from __future__ import annotations

import ast
import base64
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from downloads import downloaded_file
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import ALL_BYTES, lines_of
from vocabularies import BYTES, LLAMA3_PATTERN, TEXTS, ByteBpe, first_difference, mixed_text, reference_ids

from llama2cpp import FormatError, Tokenizer

MEGABYTE = mixed_text(700_000)


def open_bytes(data: bytes) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(data)
        return Tokenizer.from_file(path)


def library(pieces: list[bytes], specials: list[str]) -> Any:
    return tiktoken.Encoding(
        name="llama3",
        pat_str=LLAMA3_PATTERN,
        mergeable_ranks={piece: rank for rank, piece in enumerate(pieces)},
        special_tokens={special: len(pieces) + i for i, special in enumerate(specials)},
    )


@cache
def special_pieces() -> list[str]:
    """As Meta's code lists them: the names in it, then the reserved ones up to 256."""
    source = downloaded_file("llama-models", "llama_models/llama3/tokenizer.py").read_text()
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "special_tokens"
        and isinstance(node.value, ast.List)
    )
    assert "special_tokens = special_tokens + reserved_tokens" in source
    assert "{2 + i}|>" in source
    assert "num_reserved_special_tokens = 256" in source
    return [*names, *(f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(names)))]


@pytest.fixture(scope="module")
def llama3_path() -> Path:
    return downloaded_file("llama-models", "llama_models/llama3/tokenizer.model")


@pytest.fixture(scope="module")
def llama3(llama3_path: Path) -> Tokenizer:
    return Tokenizer.from_file(llama3_path)


@pytest.fixture(scope="module")
def llama3_library(llama3_path: Path) -> Any:
    lines = (line.split() for line in llama3_path.read_bytes().splitlines())
    return library([base64.b64decode(text) for text, _ in lines], special_pieces())


def test_ids_of_llama3(llama3: Tokenizer, llama3_library: Any) -> None:
    @settings(max_examples=1000)
    @given(TEXTS)
    def check(text: str) -> None:
        ids = llama3.encode(text, bos=False)
        assert ids == llama3_library.encode_ordinary(text)
        assert llama3.decode(ids) == llama3_library.decode(ids) == text

    check()


def test_a_megabyte_of_mixed_text(llama3: Tokenizer, llama3_library: Any) -> None:
    ids = llama3.encode(MEGABYTE, bos=False)
    assert len(MEGABYTE.encode()) > 900_000
    assert first_difference(ids, llama3_library.encode_ordinary(MEGABYTE)) is None


def test_llama3_as_a_gguf_has_it(llama3: Tokenizer, llama3_path: Path) -> None:
    """The same ids from merges: every way to split a piece into two, in the order of the pieces' ranks."""
    ranks = [base64.b64decode(line.split()[0]) for line in llama3_path.read_bytes().splitlines()]
    known = {piece: rank for rank, piece in enumerate(ranks)}
    merges = [
        split
        for piece in ranks
        for split in sorted(
            ((piece[:at], piece[at:]) for at in range(1, len(piece)) if piece[:at] in known and piece[at:] in known),
            key=lambda split: (known[split[0]], known[split[1]]),
        )
    ]
    assert len(merges) > 280_000
    vocabulary = ByteBpe(ranks, merges, pre="llama3", ignore_merges=True)
    tokenizer, reference = vocabulary.ours(), vocabulary.reference()
    expected = llama3.encode(MEGABYTE, bos=False)
    assert first_difference(tokenizer.encode(MEGABYTE, bos=False), expected) is None
    assert first_difference(reference_ids(reference, MEGABYTE), expected) is None

    @given(TEXTS)
    def check(text: str) -> None:
        assert tokenizer.encode(text, bos=False) == reference_ids(reference, text) == llama3.encode(text, bos=False)

    check()


@pytest.mark.parametrize("text", ["a" * 200_000, " " * 200_000, "ab" * 100_000, "!?" * 100_000, "\U0001f680" * 50_000])
def test_long_words(llama3: Tokenizer, llama3_library: Any, text: str) -> None:
    assert first_difference(llama3.encode(text, bos=False), llama3_library.encode_ordinary(text)) is None


@given(BYTES)
def test_bytes(llama3: Tokenizer, text: bytes) -> None:
    assert llama3.decode_bytes(llama3.encode(text)) == text


def test_special_pieces(llama3: Tokenizer, llama3_library: Any) -> None:
    specials = special_pieces()
    assert [llama3.piece(id).decode() for id in range(128000, len(llama3))] == specials
    assert len(llama3) == 128256
    assert llama3.bos_id == 128000 == 128000 + specials.index("<|begin_of_text|>")
    ends = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]
    assert llama3.eos_ids == tuple(128000 + specials.index(end) for end in ends)
    assert (llama3.add_bos, llama3.add_eos, llama3.chat_template) == (True, False, None)

    @given(st.lists(st.sampled_from([*specials[:14], "<|", "|>", "a", " ", "user\n\n", "<|eot_id"]), max_size=12))
    def check(parts: list[str]) -> None:
        text = "".join(parts)
        theirs = llama3_library.encode(text, allowed_special="all")
        assert llama3.encode(text, bos=False, special=True) == theirs
        assert llama3.encode(text, special=True) == ([] if theirs[:1] == [128000] else [128000]) + theirs
        assert llama3.encode(text, bos=False) == llama3_library.encode_ordinary(text)

    check()


@st.composite
def small_files(draw: st.DrawFn) -> list[bytes]:
    """All bytes and some longer pieces in any order: ties between merges, pieces out of reach."""
    longer = st.lists(st.sampled_from([b"a", b"b", b" ", b"\xc3\xa9"]), min_size=2, max_size=5).map(b"".join)
    pieces = [*ALL_BYTES, *draw(st.lists(longer, unique=True, max_size=40))]
    return list(draw(st.permutations(pieces))) if draw(st.booleans()) else pieces


@settings(max_examples=300)
@given(small_files(), st.text("ab \u00e9", max_size=100) | st.text("ab", min_size=40, max_size=100))
def test_ids_of_small_files(pieces: list[bytes], text: str) -> None:
    tokenizer = open_bytes(lines_of(pieces))
    assert tokenizer.encode(text, bos=False) == library(pieces, []).encode_ordinary(text)
    assert tokenizer.bos_id == len(pieces)


def test_last_line_may_end_without_a_line_end() -> None:
    assert len(open_bytes(lines_of(ALL_BYTES)[:-1])) == 512


GOOD = lines_of([*ALL_BYTES, b"ab", b"abc"])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (lines_of(ALL_BYTES[:-1]), "each of the 256 bytes as a piece, found 255 in 255 pieces"),
        (b"AA== 1\n", "line 1 at byte 0: expected a space and the rank 0, found ' 1'"),
        (b"AA== 0\nAQ== 2\n", "line 2 at byte 7: expected a space and the rank 1, found ' 2'"),
        (b"AA== 00\n", "the rank 0, found ' 00'"),
        (b"AA==  0\n", "the rank 0, found '  0'"),
        (b"AA== 0 \n", "the rank 0, found ' 0 '"),
        (b"AA== 0\r\n", r"the rank 0, found ' 0\?'"),
        (b"AA== 99999999999999999999\n", "found ' 99999999999999999999'"),
        (b"AA==\n", "the rank 0, found ''"),
        (b"AA== 0\n\n", "line 2 at byte 7: expected a piece in base64, found ''"),
        (b"AA= 0\n", "expected a piece in base64, found 'AA='"),
        (b"A=== 0\n", "found 'A==='"),
        (b"AB== 0\n", "found 'AB=='"),  # bits left over
        (b"AA==AA== 0\n", "found 'AA==AA=='"),
        (b"AA== 0\nA\0== 1\n", r"found 'A\?=='"),
        (GOOD + b"YWI= 258\n", "line 259: the piece 'ab' has rank 256 already"),
        (
            lines_of([*ALL_BYTES, *(f"{i:06}".encode() for i in range(127_745))]),
            "line 128001 .* at most Llama 3's 128000",
        ),
    ],
)
def test_damage_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        open_bytes(data)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3), st.integers(0, 40))
def test_damaged_files(changes: list[tuple[int, int]], cut: int) -> None:
    """A FormatError, or a tokenizer that works."""
    damaged = bytearray(GOOD)
    for at, value in changes:
        damaged[at] = value
    try:
        tokenizer = open_bytes(bytes(damaged[: len(damaged) - cut]))
    except FormatError:
        return
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
