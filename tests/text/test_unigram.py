"""Unigram models: SentencePiece's own, GGUF's "t5" and tokenizer.json's, against the libraries that define them."""

from __future__ import annotations

import base64
import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_files import NORMAL, USER_DEFINED, SentencePieceModel, open_bytes
from tokenizers import Tokenizer as Reference
from tokenizers import models, pre_tokenizers
from unigram import PARTS, SPACE, charsmap, corpus, model_of, proto_of, reference, texts

from llama2cpp import FormatError, Tokenizer
from llama2cpp._core import StreamDecoder
from llama2cpp.export.gguf_file import write_vocabulary
from llama2cpp.export.hf_tokenizer import tokenizer_json
from llama2cpp.export.vocabulary import Vocabulary

MODELS: dict[str, dict[str, Any]] = {
    "usual": {},
    "bytes": {"byte_fallback": True},
    "user-defined": {"user_defined_symbols": "<u>,ﬁ,run", "control_symbols": "<c>"},
    "spaces": {"user_defined_symbols": "  "},
    "identity": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no-prefix": {"add_dummy_prefix": False, "normalization_rule_name": "nfkc_cf", "split_by_whitespace": False},
    "bpe": {"model_type": "bpe"},
    "bpe-bytes": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf"},
}
CUTS = ("t5", "metaspace-always", "metaspace-first", "metaspace-never", "whole", "replaced")
ODD = [*PARTS, "", " a", "a  b ", "ﬁ ﬁ<u>  <u>", "run<c>run", "x" * 300, "日 本", *corpus()[:40]]


def all_code_points() -> list[str]:
    """Give every character, each behind a letter and before one, 64 in a text."""
    codes = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    return ["".join(f"a{c}" for c in codes[i : i + 64]) for i in range(0, len(codes), 64)]


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece(name: str) -> None:
    model = model_of(**MODELS[name])
    ours = open_bytes(model)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert ours.to_dict()["unigram"] == (not name.startswith("bpe"))

    @given(texts)
    def check(text: str) -> None:
        ids = library.encode(text)
        assert ours.encode(text, bos=False, eos=False) == ids
        assert ours.decode(ids) == library.decode(ids)
        stream = StreamDecoder(ours)
        assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids)

    for text in ODD:
        assert ours.encode(text, bos=False) == library.encode(text), text
    check()


@given(
    st.lists(st.sampled_from([-1.0, -2.0, -3.0, -0.1, -0.2, -0.3, 0.5]), min_size=12, max_size=12),
    st.text("abcx", max_size=12),
)
def test_equal_sums_of_sentencepiece(scores: list[float], text: str) -> None:
    """With a user-defined piece that is longer than others, or their beginning."""
    names = [SPACE, *"abc", "aa", "ab", "bc", "ca", "abc", "cab", "bca"]
    pieces = [(name, score, NORMAL) for name, score in zip(names, scores, strict=False)]
    model = SentencePieceModel([*pieces, ("cc", scores[-1], USER_DEFINED)], trainer=[(3, 1)]).to_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert open_bytes(model).encode(text, bos=False) == library.encode(text)


def test_sums_of_a_long_text() -> None:
    """The library counts from 0 again where a sum is too large for a float to tell pieces apart."""
    names = ["a", "b", "ab", "ba", "aab", "abb", SPACE]
    scores = [-90.01, -90.02, -180.03, -180.031, -270.05, -270.049, -50.0]
    model = SentencePieceModel(
        [(name, score, NORMAL) for name, score in zip(names, scores, strict=True)], trainer=[(3, 1)]
    ).to_bytes()
    choice = random.Random(5)
    text = "".join(choice.choices("ab", k=9000))
    assert open_bytes(model).encode(text, bos=False) == sentencepiece.SentencePieceProcessor(model_proto=model).encode(
        text
    )


def test_sentencepiece_on_all_code_points() -> None:
    model = model_of(byte_fallback=True)
    ours = open_bytes(model)
    cases = all_code_points()
    expected = sentencepiece.SentencePieceProcessor(model_proto=model).encode(cases)
    assert [text for text, ids in zip(cases, expected, strict=True) if ours.encode(text, bos=False) != ids] == []


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fallback", [False, True])
def test_tokenizer_json(cut: str, fallback: bool) -> None:
    library = reference(cut, **({"byte_fallback": True} if fallback else {}))
    ours = open_bytes(library.to_str().encode())
    assert ours.to_dict()["kind"] == "unigram"

    @given(texts)
    @example("a\u0308\u0304 ﬁ")
    def check(text: str) -> None:
        ids = library.encode(text).ids
        assert ours.encode(text, special=True) == ids
        stream = StreamDecoder(ours)
        assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids)

    for text in ODD:
        assert ours.encode(text, special=True) == library.encode(text).ids, text
    for text in corpus()[:50]:
        ids = library.encode(text).ids
        assert ours.decode(ids) == library.decode(ids)
    check()
    assert Tokenizer.from_dict(ours.to_dict()) == ours


def test_tokenizer_json_on_all_code_points() -> None:
    library = reference("t5", byte_fallback=True)
    ours = open_bytes(library.to_str().encode())
    cases = all_code_points()
    expected = [encoding.ids for encoding in library.encode_batch(cases)]
    assert [text for text, ids in zip(cases, expected, strict=True) if ours.encode(text, special=True) != ids] == []


def test_trained_by_tokenizers() -> None:
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers, trainers

    library = Reference(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<c>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(corpus(), trainer)
    ours = open_bytes(library.to_str().encode())

    @given(texts)
    def check(text: str) -> None:
        assert ours.encode(text, special=True) == library.encode(text).ids

    check()
    # A control piece is never made of plain text (`tokenizers` finds it among the pieces).
    control = library.token_to_id("<c>")
    assert control in ours.encode("the <c>", special=True)
    assert control not in ours.encode("the <c>")


def tie(pieces: list[tuple[str, float]]) -> bytes:
    tokenizer = json.loads(reference("whole").to_str())
    tokenizer["normalizer"], tokenizer["added_tokens"] = None, []
    tokenizer["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    return json.dumps(tokenizer).encode()


def test_many_pieces_that_begin_alike() -> None:
    """Twenty thousand of all lengths and from all scripts: the trie of them has long and wide branches."""
    choice = random.Random(3)
    letters = [
        chr(code) for code in (*range(32, 127), *range(0xA0, 0x250), *range(0x4E00, 0x5200), *range(0x1F300, 0x1F400))
    ]
    found = {"<unk>": 0.0} | {letter: -12.0 - choice.random() for letter in letters}
    while len(found) < 20_000:
        begin = choice.choice([*letters[:95], choice.choice(list(found)[-500:])])
        found.setdefault((begin + choice.choice(letters))[-24:], -8.0 - 4 * choice.random())
    library = Reference(models.Unigram(list(found.items()), 0, False))
    library.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "never", split=False)
    ours = open_bytes(library.to_str().encode())
    names = list(found)[1:]
    for piece in names[::7]:
        assert ours.encode(piece, bos=False) == library.encode(piece, add_special_tokens=False).ids, piece
    for _ in range(200):
        text = "".join(choice.choices(names, k=30))
        assert ours.encode(text, bos=False) == library.encode(text, add_special_tokens=False).ids


def test_equal_sums() -> None:
    from tokenizers import Tokenizer as Reference

    letters = "abc"
    names = [a + b for a in letters for b in ("", *letters)] + ["abc", "cab", "bca", SPACE]

    @given(
        st.lists(st.sampled_from([-1.0, -2.0, -3.0, -0.1, -0.2, -0.3]), min_size=len(names), max_size=len(names)),
        st.text("abcx", max_size=12),
    )
    def check(scores: list[float], text: str) -> None:
        data = tie([("<unk>", 0.0), *zip(names, scores, strict=True)])
        assert open_bytes(data).encode(text) == Reference.from_str(data.decode()).encode(text).ids

    check()


@pytest.mark.parametrize("name", ["usual", "user-defined", "identity", "bytes"])
def test_gguf(name: str, tmp_path: Path) -> None:
    """The keys of gguf's own writer, as llama.cpp's converter uses them; and what we write of it is the same."""
    model = model_of(**MODELS[name])
    proto = proto_of(model)
    path = tmp_path / "t5.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    if proto.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    writer.add_unk_token_id(0)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    ours = Tokenizer.from_file(path)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ODD:
        assert ours.encode(text, eos=False) == library.encode(text), text
    assert ours.encode("a", eos=True)[-1] == 2
    write_vocabulary(tmp_path / "again.gguf", Vocabulary.of(ours))
    again = Tokenizer.from_file(tmp_path / "again.gguf")
    assert again.to_dict() == ours.to_dict()


@pytest.mark.parametrize("cut", CUTS)
def test_written_as_tokenizer_json(cut: str) -> None:
    from tokenizers import Tokenizer as Reference

    ours = open_bytes(reference(cut).to_str().encode())
    written = json.dumps(tokenizer_json(Vocabulary.of(ours)))
    assert open_bytes(written.encode()).to_dict() == ours.to_dict()
    library = Reference.from_str(written)
    for text in ODD:
        assert library.encode(text).ids == ours.encode(text, special=True), text


def with_charsmap(data: bytes) -> bytes:
    proto = proto_of(model_of())
    proto.normalizer_spec.precompiled_charsmap = data
    found: bytes = proto.SerializeToString()
    return found


@given(st.data())
def test_damaged_maps_change_texts_at_most(data: st.DataObject) -> None:
    """Places outside the array, ends of strings without a text, and bytes that are no text."""
    whole = bytearray(charsmap())
    if data.draw(st.booleans()):
        trie = struct.unpack_from("<I", whole)[0]
        for _ in range(40):
            at = 4 + 4 * data.draw(st.integers(0, min(trie // 4 - 1, 600)))
            struct.pack_into("<I", whole, at, data.draw(st.integers(0, 2**32 - 1)))
        damaged = bytes(whole)
    else:
        body = data.draw(st.binary(max_size=64))
        damaged = struct.pack("<I", data.draw(st.integers(0, 20)) * 4) + body
    if damaged[:4] != whole[:4] and struct.unpack_from("<I", damaged)[0] > len(damaged) - 4:
        with pytest.raises(FormatError, match="precompiled_charsmap: a trie of"):
            open_bytes(with_charsmap(damaged))
        return
    ours = open_bytes(with_charsmap(damaged))
    for text in (*PARTS, "hello"):
        ours.decode(ours.encode(text))


def refused(change: dict[str, object], message: str) -> None:
    tokenizer = json.loads(reference("t5").to_str()) | change
    with pytest.raises(FormatError, match=message):
        open_bytes(json.dumps(tokenizer).encode())


def test_what_is_refused_by_name() -> None:
    for kind in ("NFKC", "NFKD", "NFD", "Lowercase", "Nmt", "StripAccents"):
        refused({"normalizer": {"type": kind}}, kind)
    refused({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "a"}}, "base64")
    short = base64.b64encode(b"\xff\0\0\0").decode()
    refused({"normalizer": {"type": "Precompiled", "precompiled_charsmap": short}}, "a trie of 255 bytes")
    empty = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": ""}
    refused({"normalizer": empty}, "finds an empty text")
    refused({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace")
    refused({"pre_tokenizer": None}, "neither a normalizer nor a pre_tokenizer")
    model = {"type": "Unigram", "unk_id": 3, "vocab": [["a", -1.0], ["b", -1.5]], "byte_fallback": False}
    refused({"model": model, "added_tokens": []}, "unk_id.*expected an id below 2")
    refused({"model": model | {"unk_id": 0, "vocab": [["a", -1.0], ["a", -1.0]]}, "added_tokens": []}, "comes twice")
    refused({"model": model | {"unk_id": 0, "vocab": [["a"]]}, "added_tokens": []}, "a piece and its score")
    first: list[float]
    for first in ([float("nan")], [-float("inf")], []):
        settings = open_bytes(reference("t5").to_str().encode()).to_dict()
        settings["log_probs"] = [*first, *settings["log_probs"][1:]]
        with pytest.raises(FormatError, match=r"score|log_probs"):
            Tokenizer.from_dict(settings)


def test_without_an_unknown_piece() -> None:
    tokenizer = json.loads(tie([("a", -1.0), (SPACE, -1.0)]))
    tokenizer["model"]["unk_id"] = None
    ours = open_bytes(json.dumps(tokenizer).encode())
    assert ours.encode("a") == [1, 0]
    with pytest.raises(ValueError, match="not in the vocabulary"):
        ours.encode("b")
