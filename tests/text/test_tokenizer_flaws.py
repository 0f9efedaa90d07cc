"""A flaw in a tokenizer never keeps a model from opening for ids: the tokenizer warns or is not there, and says why."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama, pair, text
from hf_folders import Json, Spec
from tokenizer_files import ALL_BYTES, SentencePieceModel, lines_of, tokenizer_bin
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, pre_tokenizers

import llama2cpp

ROWS = 12
NO_ID = 2**32 - 1

# --- GGUF

SPM: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "<0x0A>", "c", "d", "e", "f"],
    "scores": [-float(i) for i in range(ROWS)],
    "token_type": [2, 3, 3, 1, 1, 1, 1, 6, 1, 1, 1, 1],
}
BPE: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["a", "b", "ab", "\u0120", "c", "d", "e", "f", "g", "h", "<s>", "</s>"],
    "token_type": [1] * 10 + [3] * 2,
    "merges": ["a b"],
    "bos_token_id": 10,
    "eos_token_id": 11,
}
IDS = ["bos_token_id", "eos_token_id", "unknown_token_id", "eot_token_id", "eom_token_id"]
UNUSED_IDS = ["padding_token_id", "seperator_token_id", "mask_token_id", "cls_token_id"]


@dataclass
class Flaw:
    """What is wrong; what the tokenizer then is told to be, or warns of, or nothing."""

    changes: dict[str, Any]
    warns: str = ""
    problem: str = ""
    base: str = "both"


def ids_out_of_range() -> list[Flaw]:
    flaws = [
        Flaw({key: value}, warns=f'"tokenizer.ggml.{key}" is {value}, expected an id below {ROWS}: ')
        for key in IDS
        for value in (ROWS, ROWS + 1000, NO_ID)
    ]
    flaws += [Flaw({key: "x"}, warns=rf'"tokenizer.ggml.{key}" \(byte \d+\) is a string, expected') for key in IDS]
    return flaws + [Flaw({key: value}) for key in UNUSED_IDS for value in (ROWS, NO_ID)]


GGUF_FLAWS = [
    *ids_out_of_range(),
    Flaw({"tokens": None}, problem="metadata 'tokenizer.ggml.tokens' is missing"),
    Flaw({"tokens": [1] * ROWS}, problem="is an array of uint32s, expected strings"),
    Flaw(
        {"token_type": [2, 3, 3] + [7] * 9},
        warns="is 7 for piece 6, expected 0 to 6: taken as 0; and 5 more like these",
        base="spm",
    ),
    Flaw(
        {"token_type": [7] * ROWS},
        warns="is 7 for piece 3, expected 0 to 6: taken as 0; and 8 more like these",
        base="bpe",
    ),
    Flaw({"token_type": [1] * 5}, problem="is an array of 5, expected one for each of the 12 pieces"),
    Flaw({"scores": [0.0] * 5}, problem="is an array of 5, expected one for each of the 12 pieces"),
    Flaw({"scores": [float("nan")] * ROWS}, problem="is NaN for piece 0"),
    Flaw({"add_bos_token": 1}, problem="is a uint32, expected a bool"),
    Flaw(
        {"tokens": [*SPM["tokens"], "[PAD]"], "token_type": [*SPM["token_type"], 3], "scores": [0.0] * 13},
        warns="an array of 13 pieces, but the model has a vocabulary of 12: those behind it are left out",
        base="spm",
    ),
    Flaw(
        {"tokens": [*BPE["tokens"], "[PAD]"], "token_type": [*BPE["token_type"], 3], "padding_token_id": 12},
        warns="an array of 13 pieces, but the model has a vocabulary of 12: those behind it are left out",
        base="bpe",
    ),
    Flaw(
        {"tokens": [*BPE["tokens"], "z"], "token_type": [*BPE["token_type"], 1]},
        problem="is an array of 13 pieces, but the model has a vocabulary of 12",
        base="bpe",
    ),
    Flaw(
        {"tokens": SPM["tokens"][:9], "token_type": SPM["token_type"][:9], "scores": [0.0] * 9},
        warns="an array of 9 pieces, but the model has a vocabulary of 12: the others are never used",
        base="spm",
    ),
    Flaw(
        {"tokens": [*SPM["tokens"][:7], "<0x0>", *SPM["tokens"][8:]]},
        warns='"<0x0>" for piece 7, which is of type byte',
        base="spm",
    ),
    Flaw({"tokens": [*SPM["tokens"][:8], "", "", "a", "a"]}, base="spm"),
    Flaw(
        {"tokens": [*BPE["tokens"][:8], "\u4e00", "", *BPE["tokens"][10:]]},
        warns="for piece 8, expected a normal piece in the alphabet",
        base="bpe",
    ),
    Flaw({"merges": ["a z"]}, problem="merge 0, 'a z': its right part is not in the vocabulary", base="bpe"),
    Flaw({"merges": ["ab"]}, problem="merge 0, 'ab': expected two pieces", base="bpe"),
    Flaw({"merges": None}, warns='"tokenizer.ggml.merges" is missing: taken as an empty list', base="bpe"),
    Flaw({"pre": None}, warns='"tokenizer.ggml.pre" is missing', base="bpe"),
    Flaw({"pre": "nobody"}, problem='the file\'s pre-tokenizer is "nobody"', base="bpe"),
    Flaw({"pre": 1}, problem="is a uint32, expected a string", base="bpe"),
    Flaw({"model": "bert"}, problem='is of kind "bert"'),
]


def expect(model: llama2cpp.Model, warns: str, problem: str, works: str = "ab") -> None:
    """The model takes ids; its tokenizer works, warns, or says why there is none."""
    assert len(model.session().step(1)) == model.config.vocab_size
    if problem:
        assert problem in model.tokenizer_problem
        for ask in (lambda: model.tokenizer, lambda: model.generate("ab", max_tokens=1)):
            with pytest.raises(ValueError, match="the model has no tokenizer"):
                ask()
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tokenizer = model.tokenizer
    texts = [str(warning.message) for warning in told]
    assert any(re.search(warns, text) for text in texts) if warns else not texts
    assert tokenizer is not None
    assert tokenizer.vocab_size == model.config.vocab_size
    ids = tokenizer.encode(works)
    assert tokenizer.decode(ids) == works
    assert all(0 <= id < tokenizer.vocab_size for id in [*ids, *tokenizer.eos_ids])


CASES = [
    pytest.param(flaw, base, id=f"{base}-{str(flaw.changes)[:60]}")
    for flaw in GGUF_FLAWS
    for base in ("spm", "bpe")
    if flaw.base in ("both", base) and not (base == "bpe" and "scores" in flaw.changes)
]


@pytest.mark.parametrize(("flaw", "base"), CASES)
def test_gguf(tmp_path: Path, flaw: Flaw, base: str) -> None:
    metadata = (SPM if base == "spm" else BPE) | flaw.changes
    named = {f"tokenizer__ggml__{key}": setting for key, setting in metadata.items()}
    (tmp_path / "m.gguf").write_bytes(llama(ROWS, **named).to_bytes())
    expect(llama2cpp.load(tmp_path / "m.gguf", threads=1), flaw.warns, flaw.problem)


@pytest.mark.parametrize("base", [SPM, BPE], ids=["spm", "bpe"])
def test_ids_below_zero(tmp_path: Path, base: dict[str, Any]) -> None:
    """-1 as an int32, as some converters write it."""
    file = llama(ROWS, **{f"tokenizer__ggml__{key}": setting for key, setting in base.items() if "_id" not in key})
    file.metadata.append(pair("tokenizer.ggml.eos_token_id", 5, struct.pack("<i", -1)))
    (tmp_path / "m.gguf").write_bytes(file.to_bytes())
    expect(llama2cpp.load(tmp_path / "m.gguf", threads=1), r"eos_token_id\" is -1, expected an id below 12", "")


@pytest.mark.parametrize(
    ("key", "warns"),
    [("general.description", ""), ("general.name", ""), ("tokenizer.chat_template", "is not UTF-8: there is no chat")],
)
def test_latin1(tmp_path: Path, key: str, warns: str) -> None:
    """A text that nobody reads may be any bytes."""
    file = llama(ROWS, **{f"tokenizer__ggml__{key}": setting for key, setting in SPM.items()})
    file.metadata.append(pair(key, 8, text(b"caf\xe9")))
    file.metadata.append(pair("general.tags", 9, struct.pack("<IQ", 8, 1) + text(b"caf\xe9")))
    (tmp_path / "m.gguf").write_bytes(file.to_bytes())
    expect(llama2cpp.load(tmp_path / "m.gguf", threads=1), warns, "")


# --- Hugging Face folders


def tokenizer_json() -> Json:
    pieces = ["<s>", "</s>", "\u0120", "a", "b", "ab", "c"]
    tokenizer = Reference(models.BPE({piece: id for id, piece in enumerate(pieces)}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    data: Json = json.loads(tokenizer.to_str())
    return data


def changed(change: Callable[[Json], Any]) -> bytes:
    data = tokenizer_json()
    change(data)
    return json.dumps(data).encode()


def added(id: int, content: str = "[PAD]", special: bool = True) -> Callable[[Json], Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return lambda data: data["added_tokens"].append({"id": id, "content": content, "special": special} | flags)


def template(ids: list[int]) -> Json:
    single: list[Json] = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


JSON_FLAWS: dict[str, tuple[bytes, str, str]] = {
    "none": (changed(lambda data: None), "", ""),
    "[PAD] beyond": (
        changed(lambda data: [data["model"]["vocab"].update({f"<{i}>": i for i in range(7, ROWS)}), added(ROWS)(data)]),
        r'ids up to 12, but the model has a vocabulary of 12: the tokens from "\[PAD\]" on are left out',
        "",
    ),
    "a piece beyond": (
        changed(lambda data: data["model"]["vocab"].update({f"{i}": i for i in range(7, ROWS + 1)})),
        "",
        "ids up to 12, but the model has a vocabulary of 12",
    ),
    "a hole": (changed(added(9)), "", ""),
    "an id of -1": (changed(added(-1)), "", "-1 is no id"),
    "an id far beyond": (changed(added(2**31)), "", "is no id"),
    "an odd piece": (changed(lambda data: data["model"]["vocab"].update({"\u4e00": 7})), "", ""),
    "an unknown merge": (changed(lambda data: data["model"]["merges"].append(["a", "z"])), "", 'the piece "z" is not'),
    "a template's id": (changed(lambda data: data.update(post_processor=template([99]))), "", "expected one id of"),
    "Latin-1": (b'{"x": "caf\xe9"}', "", "tokenizer.json"),
    "not JSON": (b"{", "", "tokenizer.json"),
    "empty": (b"", "", "tokenizer.json"),
    "another model": (changed(lambda data: data["model"].update(type="WordLevel")), "", 'expected "BPE"'),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings: Json = {"vocab_size": ROWS, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return Spec(settings=settings | {"eos_token_id": [1, ROWS, -1], "bos_token_id": NO_ID}).save(
        tmp_path_factory.mktemp("model")
    )


def folder_with(model_folder: Path, path: Path, files: dict[str, bytes]) -> llama2cpp.Model:
    for file in model_folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    for name, content in files.items():
        (path / name).write_bytes(content)
    return llama2cpp.load(path, threads=1)


@pytest.mark.parametrize("flaw", JSON_FLAWS)
def test_tokenizer_json(tmp_path: Path, model_folder: Path, flaw: str) -> None:
    data, warns, problem = JSON_FLAWS[flaw]
    expect(folder_with(model_folder, tmp_path, {"tokenizer.json": data}), warns, problem)


BESIDE: dict[str, Json] = {
    "an id of -1": {"-1": {"content": "[X]"}},
    "an id that is none": {"x": {"content": "[X]"}},
    "an id far beyond": {"4294967296": {"content": "[X]"}},
    "single_word": {"7": {"content": "[X]", "single_word": True}},
    "no text": {"7": {"content": ""}},
    "no content": {"7": {}},
}


@pytest.mark.parametrize("flaw", BESIDE)
def test_added_tokens_beside_a_tokenizer_json(tmp_path: Path, model_folder: Path, flaw: str) -> None:
    """A tokenizer.json has its own: what is wrong with those of tokenizer_config.json changes nothing."""
    config = {"eos_token": "</s>", "added_tokens_decoder": BESIDE[flaw]}
    files = {"tokenizer.json": changed(lambda data: None), "tokenizer_config.json": json.dumps(config).encode()}
    model = folder_with(model_folder, tmp_path, files)
    assert model.has_tokenizer, model.tokenizer_problem
    without = folder_with(model_folder, tmp_path, files | {"tokenizer_config.json": b'{"eos_token": "</s>"}'})
    assert model.tokenizer == without.tokenizer


SP = SentencePieceModel([("\u2581", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1), ("ab", -1.5, 1)])
MODEL_FLAWS: dict[str, tuple[bytes, str, str]] = {
    "none": (SP.to_bytes(), "", ""),
    "[PAD] beyond": (
        SentencePieceModel([*SP.pieces, *((f"<{i}>", 0.0, 1) for i in range(5)), ("[PAD]", 0.0, 3)]).to_bytes(),
        r"ids up to 12, but the model has a vocabulary of 12: the tokens from \"\[PAD\]\" on are left out",
        "",
    ),
    "a piece beyond": (
        SentencePieceModel([*SP.pieces, *((f"<{i}>", 0.0, 1) for i in range(6))]).to_bytes(),
        "",
        "tokenizer.model: ids up to 12, but the model has a vocabulary of 12",
    ),
    "an odd byte piece": (SentencePieceModel([*SP.pieces, ("<0x0>", 0.0, 6)]).to_bytes(), "", "not written <0xHH>"),
    "NaN": (SentencePieceModel([*SP.pieces, ("c", float("nan"), 1)]).to_bytes(), "", "is NaN"),
    "a type of 9": (SentencePieceModel([*SP.pieces, ("c", 0.0, 9)]).to_bytes(), "", "expected a type from 1 to 6"),
    "cut": (SP.to_bytes()[:-3], "", "tokenizer.model"),
    "empty": (b"", "", "tokenizer.model"),
    "unigram": (SentencePieceModel(SP.pieces, trainer=[(3, 1)]).to_bytes(), "", ""),
    "words": (SentencePieceModel(SP.pieces, trainer=[(3, 3)]).to_bytes(), "", "tokenizer.model"),
    "tiktoken, larger than the model": (lines_of(ALL_BYTES), "", "tokenizer.model: ids up to 511"),
    "tiktoken, a byte missing": (lines_of(ALL_BYTES[:-1]), "", "each of the 256 bytes"),
    "tiktoken, a wrong rank": (lines_of(ALL_BYTES).replace(b" 7\n", b" 8\n"), "", "expected a space and the rank 7"),
    "tokenizer.bin, cut": (tokenizer_bin([(b"<unk>", 0.0)] * 4)[:-2], "", "tokenizer.model"),
}


@pytest.mark.parametrize("flaw", MODEL_FLAWS)
def test_tokenizer_model(tmp_path: Path, model_folder: Path, flaw: str) -> None:
    data, warns, problem = MODEL_FLAWS[flaw]
    expect(folder_with(model_folder, tmp_path, {"tokenizer.model": data}), warns, problem)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b'{"eos_token_id": "x", "eos_token": 5, "chat_template": 1}', b"\xe9"])
def test_settings_beside_a_tokenizer(tmp_path: Path, model_folder: Path, name: str, content: bytes) -> None:
    files = {"tokenizer.json": json.dumps(tokenizer_json()).encode(), name: content}
    model = folder_with(model_folder, tmp_path, files)
    assert len(model.session().step(1)) == ROWS
    assert (model._core.tokenizer is None) == (model.tokenizer_problem != "")


def test_a_tokenizer_that_may_not_be_read(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    model = folder_with(model_folder, tmp_path, {})
    assert model._core.tokenizer is None
    assert "tokenizer.json is no file" in model.tokenizer_problem
    assert len(model.session().step(1)) == ROWS
