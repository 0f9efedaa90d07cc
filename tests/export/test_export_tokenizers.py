"""Tokenizers that go along with an export give the same ids, in our hands and in others'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from vocabularies import CONTROL, NORMAL, PRE_TOKENIZERS, SENTENCES, TEXTS, ByteBpe

import llama2cpp
from llama2cpp import Tokenizer
from llama2cpp.export import convert
from llama2cpp.export.llama2c_file import tokenizer_bin
from llama2cpp.export.vocabulary import Vocabulary

TARGETS = [("m.gguf", "f16"), ("m", "f16")]
PLAIN = ["Once upon a time", " two  spaces ", "", "naïve café 🚀 日本", "a\nb\tc", "12 + 345 = 357", "<s> is text here"]


def exported(tmp_path: Path, tokenizer: Tokenizer, name: str, format: str) -> Tokenizer:
    config = tiny.config(dim=32, hidden_dim=32, n_heads=2, n_kv_heads=1, n_layers=1, vocab_size=tokenizer.vocab_size)
    done = convert(tiny.model(config, tokenizer=tokenizer), tmp_path / name, format)
    assert done.notes == ()
    found = llama2cpp.load(done.path).tokenizer
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "format"), TARGETS)
@pytest.mark.parametrize("file", ["stories260K/tok512.bin", "llama2/tokenizer.bin", "llama2/tokenizer.model"])
def test_sentencepiece_s(tmp_path: Path, models_dir: Path, file: str, name: str, format: str) -> None:
    tokenizer = Tokenizer.from_file(models_dir / file)
    found = exported(tmp_path, tokenizer, name, format)
    for text in [*PLAIN, *SENTENCES]:
        assert found.encode(text) == tokenizer.encode(text), text
    assert (found.bos_id, found.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids)
    ids = tokenizer.encode(PLAIN[0])
    assert found.decode(ids) == tokenizer.decode(ids)


def test_tokenizer_bin_is_llama2c_s(models_dir: Path) -> None:
    """Llama 2's, from SentencePiece's file, as llama2.c's tokenizer.py writes it."""
    vocabulary = Vocabulary.of(Tokenizer.from_file(models_dir / "llama2" / "tokenizer.model"))
    assert tokenizer_bin(vocabulary) == (models_dir / "llama2" / "tokenizer.bin").read_bytes()


@pytest.mark.parametrize("file", ["stories260K/tok512.bin", "llama2/tokenizer.model"])
def test_merges_become_scores(tmp_path: Path, models_dir: Path, file: str) -> None:
    """To a folder, whose tokenizer has merges and no scores, and on to a GGUF and a tokenizer.bin."""
    tokenizer = Tokenizer.from_file(models_dir / file)
    exported(tmp_path, tokenizer, "m", "f16")
    for name in ("m.gguf", "m.bin"):
        done = convert(tmp_path / "m", tmp_path / name)
        assert done.tokenizer is not None
        found = Tokenizer.from_file(done.tokenizer)
        for text in [*PLAIN, *SENTENCES]:
            assert found.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("file", ["stories260K/tok512.bin", "llama2/tokenizer.model", "smollm2"])
def test_llama_cpp_gives_the_same_ids(tmp_path: Path, models_dir: Path, smollm2_path: Path, file: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = Tokenizer.from_file(smollm2_path if file == "smollm2" else models_dir / file)
    exported(tmp_path, tokenizer, "m.gguf", "f16")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    try:
        for text in [*PLAIN[:2], *PLAIN[3:6], *SENTENCES]:
            assert theirs.tokenize(text.encode(), add_bos=tokenizer.add_bos) == tokenizer.encode(text), text
    finally:
        theirs.close()


@pytest.mark.parametrize(("name", "format"), TARGETS)
def test_byte_level(tmp_path: Path, smollm2_path: Path, name: str, format: str) -> None:
    tokenizer = Tokenizer.from_file(smollm2_path)
    found = exported(tmp_path, tokenizer, name, format)
    for text in [*PLAIN, *SENTENCES]:
        assert found.encode(text) == tokenizer.encode(text), text
    chat = "<|im_start|>user\nHello<|im_end|>\n"
    assert found.encode(chat, special=True) == tokenizer.encode(chat, special=True)
    assert found.chat_template == tokenizer.chat_template
    assert (found.bos_id, found.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids)
    assert (found.add_bos, found.add_eos) == (tokenizer.add_bos, tokenizer.add_eos)


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(("name", "format"), TARGETS)
@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_made_byte_level(tmp_path: Path, pre: str, by_id: bool, name: str, format: str) -> None:
    """Each pre-tokeniser; merges as a list, or as tiktoken's files have them: by id."""
    words = [b"on", b"ce", b" t", b"im", b"ime", b" time", b"the", b" a", b"\xc3\xa9", b"12"]
    merges = [(b"o", b"n"), (b"c", b"e"), (b" ", b"t"), (b"i", b"m"), (b"im", b"e"), (b" t", b"ime"), (b"t", b"he")]
    pieces = [*BYTES, b"he", *words, b"<|begin|>", b"<|end|>"]
    kinds = [NORMAL] * (len(pieces) - 2) + [CONTROL] * 2
    made = ByteBpe(
        pieces,
        [] if by_id else [(b"h", b"e"), *merges, (b" ", b"a"), (b"\xc3", b"\xa9"), (b"1", b"2")],
        kinds,
        pre,
        ignore_merges=pre in ("llama3", "tekken"),
        merges_by_id=by_id,
        bos=len(pieces) - 2,
        eos=(len(pieces) - 1,),
        template=b"{{ messages }}",
    )
    tokenizer = made.ours()
    found = exported(tmp_path, tokenizer, name, format)
    for text in [*PLAIN, *SENTENCES, "once upon a time the time 12é"]:
        assert found.encode(text) == tokenizer.encode(text), text
    assert found.chat_template == "{{ messages }}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path, stories_dir: Path) -> dict[str, Any]:
    """By name: our tokenizer, and transformers' of the folder that we have written."""
    transformers = pytest.importorskip("transformers")
    pairs = {}
    for name, path in {"smollm2": smollm2_path, "tok512": stories_dir / "tok512.bin"}.items():
        folder = tmp_path_factory.mktemp(name)
        tokenizer = Tokenizer.from_file(path)
        exported(folder, tokenizer, "m", "f16")
        pairs[name] = (tokenizer, transformers.AutoTokenizer.from_pretrained(folder / "m"))
    return pairs


@pytest.mark.parametrize("name", ["smollm2", "tok512"])
def test_transformers_reads_the_folder(folders: dict[str, Any], name: str) -> None:
    ours, theirs = folders[name]
    for text in [*PLAIN, *SENTENCES]:
        if name == "tok512" and text in ("", "<s> is text here"):
            continue  # there the prefix alone is a piece, and what is spelled as BOS is BOS
        assert theirs(text)["input_ids"] == ours.encode(text), text
    assert theirs.eos_token_id == ours.eos_ids[0]
    assert theirs.bos_token_id == ours.bos_id


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_transformers_gives_the_same_ids(folders: dict[str, Any], text: str) -> None:
    ours, theirs = folders["smollm2"]
    assert theirs(text)["input_ids"] == ours.encode(text)


def test_chat_template_in_transformers(folders: dict[str, Any]) -> None:
    ours, theirs = folders["smollm2"]
    assert theirs.chat_template == ours.chat_template
    text = theirs.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert "<|im_start|>user\nHello<|im_end|>" in text


def test_folder_s_own_files_are_copied(tmp_path: Path, smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_file(smollm2_path)
    exported(tmp_path, tokenizer, "m", "f16")
    (tmp_path / "m" / "special_tokens_map.json").write_text("{}")
    done = convert(tmp_path / "m", tmp_path / "copy", "bf16")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert (done.path / name).read_bytes() == (tmp_path / "m" / name).read_bytes()


def test_what_cannot_go_along_is_noted(tmp_path: Path, smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_file(smollm2_path)
    config = tiny.config(dim=32, hidden_dim=32, n_heads=2, n_kv_heads=1, n_layers=1, vocab_size=tokenizer.vocab_size)
    done = convert(tiny.model(config, tokenizer=tokenizer), tmp_path / "m.bin")
    assert done.tokenizer is None
    assert done.notes == ("no tokenizer.bin goes along: llama2.c has no byte-level BPE",)
    done = convert(tiny.model(config), tmp_path / "m.gguf")
    assert done.notes == ("no tokenizer goes along: the source has none, and none was given",)


def test_scores_and_merges_are_each_other_s(stories_dir: Path) -> None:
    """tok512's scores as merges and back: the same order of merging."""
    vocabulary = Vocabulary.of(Tokenizer.from_file(stories_dir / "tok512.bin")).with_escaped_spaces()
    back = vocabulary.with_merges().with_scores()
    made = {both for _, _, both in vocabulary.with_merges().merges}
    order = sorted(made, key=lambda id: -vocabulary.scores[id])
    assert sorted(made, key=lambda id: -back.scores[id]) == order
    assert len(made) > 100
