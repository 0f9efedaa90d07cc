"""tokenizer_config.json beside a tokenizer.json: what changes a prompt is as in transformers, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

import llama2cpp
import llama2cpp.export

SPECIAL = ["<unk>", "<s>", "</s>", "<|x|>"]
CORPUS = ["Hello world hello there don't 123 été"] * 20
TEXTS = ["Hello world", " Hello  world", "a<|x|>b", "", " ", "é 123 don't", " <s>hi</s> x", "<s>  hello</s>hello"]
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
PREPEND = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
Json = dict[str, Any]


def trained(byte_level: bool) -> Json:
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=pieces)
    if byte_level:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    made: Json = json.loads(tokenizer.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in SPECIAL[:3]]  # not <|x|>
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "m"
    return llama2cpp.export.convert(tiny.model(tiny.config(vocab_size=340)), path, "f32").path


@pytest.fixture(scope="module")
def files() -> dict[str, Json]:
    """tokenizer.json in the forms that there are."""
    byte_level, pieces = trained(True), trained(False)
    made = {"byte-level": byte_level}
    for scheme in ("first", "always", "never", "prepended"):
        strip = [] if scheme == "never" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        steps = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        made[scheme] = {
            **pieces,
            "normalizer": {"type": "Sequence", "normalizers": PREPEND} if scheme == "prepended" else None,
            "pre_tokenizer": None if scheme == "prepended" else {**METASPACE, "prepend_scheme": scheme},
            "decoder": {"type": "Sequence", "decoders": [*steps, *strip]},
        }
    return made


def write(folder: Path, file: Json, settings: Json) -> Path:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {name: value for name, value in {**named, **settings}.items() if value is not ...}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


LLAMA = {"tokenizer_class": "LlamaTokenizer"}
AS_THEIRS: list[tuple[str, Json]] = [
    *[(form, {}) for form in ("first", "always", "never", "prepended", "byte-level")],
    *[
        (form, {**LLAMA, "add_prefix_space": False, **more})
        for form in ("first", "always", "never", "prepended")
        for more in ({}, {"legacy": True}, {"tokenizer_class": "LlamaTokenizerFast"})
    ],
    *[("never", {**LLAMA, "add_prefix_space": True, "legacy": legacy}) for legacy in (False, True)],
    ("byte-level", {**LLAMA, "add_prefix_space": True}),  # Llama 3's, which transformers takes as they are
    *[
        (form, {"tokenizer_class": name, "add_prefix_space": value})
        for form in ("always", "never", "byte-level")
        for name in ("PreTrainedTokenizerFast", ...)
        for value in (True, False)
    ],
    ("byte-level", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}),
    *[
        (form, {key: value})
        for form in ("first", "byte-level")
        for key in ("add_bos_token", "add_eos_token")
        for value in (True, False)
    ],
    *[(form, {"eos_token": "<|x|>"}) for form in ("first", "byte-level")],
    *[(form, {"additional_special_tokens": ["<|x|>"]}) for form in ("first", "byte-level")],
    ("byte-level", {"do_lower_case": True, "clean_up_tokenization_spaces": True, "use_default_system_prompt": True}),
]  # fmt: skip


@pytest.mark.parametrize(("form", "settings"), AS_THEIRS)
def test_ids_are_transformers(folder: Path, files: dict[str, Json], form: str, settings: Json) -> None:
    write(folder, files[form], settings)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = llama2cpp.load(folder, threads=1).tokenizer
    assert theirs.eos_token_id in ours.eos_ids
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text, special=True) == ids, text
        if not settings.get("clean_up_tokenization_spaces"):
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split_special_tokens": True}, "split_special_tokens: true, and only false is implemented"),
        *[
            ({"tokenizer_class": name, "add_prefix_space": True}, "add_prefix_space: true, and for byte-level BPE only")
            for name in ("GPT2Tokenizer", "Qwen2Tokenizer", "CohereTokenizer", "GPT2TokenizerFast")
        ],
    ],
)
def test_what_is_refused(folder: Path, files: dict[str, Json], settings: Json, told: str) -> None:
    """It changes ids in transformers, which the error says by its name."""
    write(folder, files["byte-level"], settings)
    plain, changed = (
        transformers.AutoTokenizer.from_pretrained(write(folder, files["byte-level"], given))
        for given in ({}, settings)
    )
    assert any(plain(text)["input_ids"] != changed(text)["input_ids"] for text in TEXTS)
    model = llama2cpp.load(folder, threads=1)
    assert not model.has_tokenizer
    assert f"tokenizer_config.json.{told}" in model.tokenizer_problem
