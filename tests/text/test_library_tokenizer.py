"""load(tokenizer=tokenizers.Tokenizer): what our readers refuse works with the library's ids, or is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from vocabularies import SENTENCES, TEXTS, mixed_text

import llama2cpp
from llama2cpp import export
from llama2cpp.common.library_tokenizer import LibraryStream, LibraryTokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
LEARNED = [mixed_text(4_000, seed=4), *SENTENCES]


def unigram() -> Any:
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    library.train_from_iterator(LEARNED, trainer)
    return library


def word_piece() -> Any:
    library = Library(models.WordPiece(unk_token="<unk>"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    library.train_from_iterator(LEARNED, trainer)
    return library


def byte_level() -> Any:
    """With a space before the text, which ours refuses."""
    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(LEARNED, trainer)
    return library


KINDS = {"unigram": unigram(), "word_piece": word_piece(), "byte_level": byte_level()}
for one in KINDS.values():
    one.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    one.add_tokens([AddedToken("<tool>", normalized=False)])
ROWS = 600


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "m.gguf"
    path.write_bytes(llama(ROWS).to_bytes())
    return path


@pytest.fixture(params=KINDS)
def library(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def test_ids_and_texts_are_the_library_s(library: Any) -> None:
    ours = LibraryTokenizer.from_library(library, ROWS)

    @settings(max_examples=60)
    @given(TEXTS)
    def check(text: str) -> None:
        assert ours.encode(text) == library.encode(text).ids
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text.encode(), bos=False, special=True) == ids
        assert ours.decode(ids) == library.decode(ids)

    check()
    text = "<|user|>Once<tool> <s>"
    as_text = ours.encode(text, bos=False)
    assert as_text != ours.encode(text, bos=False, special=True) == library.encode(text, add_special_tokens=False).ids
    assert 3 not in as_text
    assert library.token_to_id("<tool>") in as_text
    assert ours.encode("<s>x", special=True) == ours.encode("x")


def test_stream(library: Any) -> None:
    ours = LibraryTokenizer.from_library(library, ROWS)

    @settings(max_examples=60)
    @given(st.lists(st.integers(0, library.get_vocab_size() - 1), max_size=30) | TEXTS.map(ours.encode))
    def check(ids: list[int]) -> None:
        stream = LibraryStream(ours)
        assert "".join(map(stream.push, ids)) + stream.flush() == library.decode(ids)

    check()


def test_a_model_works_with_it(library: Any, checkpoint: Path) -> None:
    model = llama2cpp.load(checkpoint, tokenizer=library, threads=1)
    assert model.has_tokenizer
    assert "of the tokenizers library" in repr(model.tokenizer)
    answer = llama2cpp.generate("Once upon a time", model=model, max_tokens=8, temperature=0, seed=0, logprobs=1)
    ids = library.encode("Once upon a time").ids
    assert answer.text == library.decode(ids + answer.tokens)[len(library.decode(ids)) :]
    assert "".join(llama2cpp.stream("Once", model=model, max_tokens=8, temperature=0)) == str(
        llama2cpp.generate("Once", model=model, max_tokens=8, temperature=0)
    )
    session = model.session()
    session.prefill(model.to_tokens("Once")[0])
    assert session.tokens == library.encode("Once").ids
    assert len(model.to_str_tokens("Once upon")) == len(library.encode("Once upon").ids)
    assert np.isfinite(model.run_with_cache("Once upon")[0]).all()
    again = pickle.loads(pickle.dumps(model))
    assert again.tokenizer.encode("Once upon") == library.encode("Once upon").ids
    assert pickle.loads(pickle.dumps(model.tokenizer)).encode("a") == library.encode("a").ids


def test_chat(library: Any, checkpoint: Path) -> None:
    model = llama2cpp.load(checkpoint, tokenizer=library, threads=1)
    template = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    messages = [{"role": "user", "content": "Once <|end|>"}]
    ids = model.chat_tokens(messages, template=template)
    assert ids[:2] == [1, 3]
    assert ids.count(4) == 1  # the one in the content is text
    assert isinstance(llama2cpp.chat(messages, model=model, template=template, max_tokens=4), str)


def test_files_beside_the_model_are_read(tmp_path: Path) -> None:
    files = {
        "config.json": {"eos_token_id": 2},
        "generation_config.json": {"eos_token_id": [2, 4]},
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"},
    }
    for name, settings_ in files.items():
        (tmp_path / name).write_text(json.dumps(settings_))
    ours = LibraryTokenizer.from_library(KINDS["unigram"], ROWS, str(tmp_path))
    assert (ours.bos_id, ours.eos_ids, ours.add_bos, ours.add_eos) == (1, (2, 4), True, False)
    assert ours.chat_template == "{{ messages }}"
    assert ours.encode("a", eos=True)[-1] == 2


@pytest.mark.parametrize("method", ["to_dict", "words", "decode_bytes", "piece_after"])
def test_what_it_cannot_is_refused_by_name(method: str) -> None:
    ours = LibraryTokenizer.from_library(KINDS["unigram"], ROWS)
    arguments = {"to_dict": (), "words": ("a",), "decode_bytes": ([1],), "piece_after": (1, 2)}[method]
    with pytest.raises(ValueError, match="tokenizer of the tokenizers library"):
        getattr(ours, method)(*arguments)


def test_an_export_says_that_it_cannot_keep_it(checkpoint: Path, tmp_path: Path) -> None:
    library = KINDS["unigram"]
    with pytest.raises(ValueError, match="an export cannot keep a tokenizer of the tokenizers library"):
        export.convert(checkpoint, tmp_path / "m.safetensors", tokenizer=library)
    assert not list(tmp_path.iterdir())
    export.convert(checkpoint, tmp_path / "m.safetensors", tokenizer=False)


def test_what_does_not_fit_is_refused(checkpoint: Path) -> None:
    library = Library.from_str(KINDS["word_piece"].to_str())
    with pytest.raises(ValueError, match="has ids up to 542 and the model a vocabulary of 300"):
        LibraryTokenizer.from_library(library, 300)
    library.post_processor = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 1)])
    with pytest.raises(ValueError, match="puts 2 tokens before a text"):
        llama2cpp.load(checkpoint, tokenizer=library)
    ours = LibraryTokenizer.from_library(KINDS["unigram"], ROWS)
    with pytest.raises(ValueError, match="id 600 is not in the vocabulary of 600 pieces"):
        ours.decode([600])
    with pytest.raises(ValueError, match="lone surrogate"):
        ours.encode("a\ud83d")
    with pytest.raises(TypeError, match=r"load: tokenizer is .*expected one of: str, PathLike, Tokenizer"):
        llama2cpp.load(checkpoint, tokenizer=3)  # type: ignore[arg-type]


def test_pieces() -> None:
    byte_level = LibraryTokenizer.from_library(KINDS["byte_level"], ROWS)
    ids = byte_level.encode(" \u00e9\U0001f680", bos=False)
    assert b"".join(map(byte_level.piece, ids)).strip() == "\u00e9\U0001f680".encode()
    unigram = LibraryTokenizer.from_library(KINDS["unigram"], ROWS)
    assert b"".join(map(unigram.piece, unigram.encode("the", bos=False))) == b" the"
    assert (unigram.piece(1), unigram.piece(ROWS - 1), len(unigram)) == (b"<s>", b"", ROWS)


def test_the_library_is_not_imported_unless_given() -> None:
    code = "import sys, llama2cpp; llama2cpp.generate('a', max_tokens=1); print('tokenizers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
