"""Gemma's tokenizer.model: BPE without a space before the text, with runs of spaces as pieces, and with bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hf_folders import Spec
from hypothesis import given
from tokenizer_files import open_bytes
from unigram import PARTS, SPACE, corpus, model_of, proto_of, texts

import llama2cpp

RUNS = ",".join([*(SPACE * n for n in range(2, 6)), "<start_of_turn>", "<end_of_turn>"])
ODD = [
    *PARTS,
    *corpus()[:60],
    "a  b   c    d     e      f",
    " a",
    "  a",
    "hi  \n\n x",
    "<start_of_turn>user\n hi<end_of_turn>",
]


def gemma_model() -> bytes:
    return model_of(
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        user_defined_symbols=RUNS,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
    )


def test_alone() -> None:
    ours = open_bytes(gemma_model())
    library = sentencepiece.SentencePieceProcessor(model_proto=gemma_model())
    assert (ours.bos_id, ours.eos_ids) == (2, (1,))

    @given(texts)
    def check(text: str) -> None:
        ids = library.encode(text)
        assert ours.encode(text, bos=False) == ids
        assert ours.decode(ids) == library.decode(ids)

    for text in ODD:
        assert ours.encode(text, bos=False) == library.encode(text), text
    check()


@pytest.mark.parametrize("name", ["GemmaTokenizer", "GemmaTokenizerFast"])
def test_in_a_folder(name: str, tmp_path: Path) -> None:
    """As transformers makes it of the same file, in whose BPE both halves of a merge are pieces."""
    size = len(proto_of(gemma_model()).pieces)
    folder = Spec(settings={"vocab_size": size, "hidden_size": 8}).save(tmp_path)
    (folder / "tokenizer.model").write_bytes(gemma_model())
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": name, "add_bos_token": True, "add_eos_token": False} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = llama2cpp.load(folder).tokenizer
    library = transformers.GemmaTokenizer.from_pretrained(folder)
    assert ours is not None

    @given(texts)
    def check(text: str) -> None:
        assert ours.encode(text, bos=False, special=True) == library.encode(text, add_special_tokens=False)

    for text in ODD:
        assert ours.encode(text, bos=False, special=True) == library.encode(text, add_special_tokens=False), text
    check()
    assert ours.encode("a")[0] == 2
