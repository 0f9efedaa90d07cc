"""A .model of each kind that SentencePiece trains, against its library; what is none of them is refused by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hf_folders import Spec
from hypothesis import given
from tokenizer_files import NORMAL, SentencePieceModel, open_bytes
from unigram import PARTS, SPACE, corpus, model_of, proto_of, texts

import llama2cpp
from llama2cpp import FormatError, Tokenizer
from llama2cpp._core import StreamDecoder
from llama2cpp.export.gguf_file import write_vocabulary
from llama2cpp.export.hf_tokenizer import tokenizer_json
from llama2cpp.export.vocabulary import Vocabulary

RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
WAYS: dict[str, dict[str, Any]] = {
    "usual": {},
    "no-prefix": {"add_dummy_prefix": False},
    "spaces": {"remove_extra_whitespaces": False},
    "bytes": {"byte_fallback": True},
    "user-defined": {"user_defined_symbols": "<u>,ﬁ,run,  ", "control_symbols": "<c>", "split_digits": True},
}
KINDS = ("char", "unigram", "bpe")
ODD = [*PARTS, "", " a", "a  b ", "ﬁ ﬁ<u>  <u>", "run<c>run", "x" * 300, "日 本", *corpus()[:20]]


def model(kind: str, rule: str, way: str) -> bytes:
    return model_of(model_type=kind, normalization_rule_name=rule, **WAYS[way])


@cache
def all_code_points() -> list[str]:
    """Every character, each behind a letter and before one, 64 in a text."""
    codes = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    return ["".join(f"a{c}" for c in codes[i : i + 64]) for i in range(0, len(codes), 64)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts(kind: str, rule: str, way: str) -> None:
    data = model(kind, rule, way)
    ours = open_bytes(data)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)

    @given(texts)
    def check(text: str) -> None:
        ids = library.encode(text)
        assert ours.encode(text, bos=False) == ids
        assert ours.decode(ids) == library.decode(ids)
        stream = StreamDecoder(ours)
        assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids)

    for text in ODD:
        assert ours.encode(text, bos=False) == library.encode(text), text
    check()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_code_points(kind: str, rule: str) -> None:
    data = model(kind, rule, "bytes" if rule == "nmt_nfkc" else "user-defined")
    ours = open_bytes(data)
    cases = all_code_points()
    expected = sentencepiece.SentencePieceProcessor(model_proto=data).encode(cases)
    assert [text for text, ids in zip(cases, expected, strict=True) if ours.encode(text, bos=False) != ids] == []


def test_a_rule_of_one_s_own(tmp_path: Path) -> None:
    """normalization_rule_tsv: to nothing, to more, to a space, and one that is the beginning of another."""
    rules = {"a": "b", "ab": "", "c": "dd d", "e": " ", "日": "本語", "é": "e\u0301"}
    lines = ["\t".join(" ".join(f"{ord(c):X}" for c in side) for side in rule) for rule in rules.items()]
    (tmp_path / "rules.tsv").write_text("\n".join(lines) + "\n")
    for kind in KINDS:
        data = model_of(model_type=kind, normalization_rule_tsv=str(tmp_path / "rules.tsv"))
        ours = open_bytes(data)
        library = sentencepiece.SentencePieceProcessor(model_proto=data)
        for text in [*ODD, "abc", "aabb", "eae e", "日日a é", "ccab"]:
            assert ours.encode(text, bos=False) == library.encode(text), (kind, text)


@pytest.mark.parametrize("way", ["usual", "bytes", "no-prefix"])
def test_characters_in_other_files(way: str, tmp_path: Path) -> None:
    """A character model is a BPE without merges there."""
    data = model_of(model_type="char", normalization_rule_name="identity", remove_extra_whitespaces=False, **WAYS[way])
    ours = open_bytes(data)
    write_vocabulary(tmp_path / "m.gguf", Vocabulary.of(ours))
    again = Tokenizer.from_file(tmp_path / "m.gguf")
    assert Tokenizer.from_dict(ours.to_dict()) == ours
    written = open_bytes(json.dumps(tokenizer_json(Vocabulary.of(ours))).encode())
    for text in ODD:
        assert again.encode(text) == ours.encode(text), text
        assert written.encode(text) == ours.encode(text), text


def test_what_is_refused() -> None:
    pieces = [(SPACE, -1.0, NORMAL), ("a", -1.0, NORMAL), ("ab", -2.0, NORMAL)]
    trainers: list[tuple[list[tuple[int, int | float | bytes]], str]] = [
        ([(3, 3)], "expected a BPE, a Unigram or a character model, found one of type word"),
        ([(3, 9)], "found one of type 9"),
        ([(3, 4)], "piece 5 of a character model is 'ab', expected one character"),
        ([(3, 1), (24, 1)], "treat_whitespace_as_suffix is not supported"),
    ]
    for trainer, said in trainers:
        with pytest.raises(FormatError, match=said):
            open_bytes(SentencePieceModel(pieces, trainer=trainer).to_bytes())
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"model_type": "word"}, "found one of type word"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is not supported"),
    ]
    for settings, said in kinds:
        with pytest.raises(FormatError, match=said):
            open_bytes(model_of(**settings))


# Those of transformers whose ids are not a tokenizer.model's own, and some that are made of one as Llama's is.
OTHER = ["T5", "XGLM", "XLMRoberta", "Camembert", "MBart50", "Nllb", "Albert", "Pegasus", "DebertaV2", "SpeechT5"]
SAME = ["Llama", "CodeLlama", "Gemma", "InternLM3", "Ernie4_5_", "PreTrainedTokenizerFast", ""]


@pytest.mark.parametrize("name", [*OTHER, *SAME])
def test_a_class_in_a_folder(name: str, tmp_path: Path) -> None:
    data = model("bpe", "identity", "bytes")
    folder = Spec(settings={"vocab_size": len(proto_of(data).pieces), "hidden_size": 8}).save(tmp_path)
    (folder / "tokenizer.model").write_bytes(data)
    classes = [name] if name in ("PreTrainedTokenizerFast", "") else [f"{name}Tokenizer", f"{name}TokenizerFast"]
    for each in classes:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": each} if each else {}))
        opened = llama2cpp.load(folder)
        assert opened.has_tokenizer == (name in SAME)
        if name in OTHER:
            assert f'tokenizer_class: "{each}", which makes other ids' in opened.tokenizer_problem
            with pytest.raises(ValueError, match="makes other ids"):
                opened.generate("a", max_tokens=1)
