"""Tokenizers of families of models, as transformers builds them: the same ids from tokenizer.json and from a GGUF."""

from __future__ import annotations

import importlib
import json
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cuts import o200k_of_tiktoken
from gguf_files import llama
from test_hf_tokenizer import opened
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference
from vocabularies import STAND_INS, first_difference, mixed_text, reference_ids, reference_pre_tokenizer

import llama2cpp

TEXT = mixed_text(10_000, seed=5)
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
# All code points, but for the insides of blocks of one kind.
ALL_CODES = "".join(f"a{chr(code)}" for code in CODES if code < 0x3100 or 0xA400 <= code < 0xAC10)
ALL_CODES += "".join(f"a{chr(code)}" for code in CODES if 0xD700 <= code < 0x20010 and code % 0x100 < 0x40)
ALL_CODES += "".join(map(chr, CODES[::101]))


@dataclass(frozen=True)
class Family:
    """A class of transformers or a pattern; the cut that it is, and GGUF's name for it."""

    made_by: str
    cut: str = ""
    pre: str = ""


def of_class(module: str, name: str) -> str:
    return f"transformers.models.{module}.tokenization_{module}.{name}"


FAMILIES = {
    "qwen2": Family(of_class("qwen2", "Qwen2Tokenizer"), "qwen2", "qwen2"),
    "qwen3_5": Family(of_class("qwen3_5", "Qwen3_5Tokenizer"), "qwen35", "qwen35"),
    "starcoder2": Family(of_class("gpt2", "GPT2Tokenizer"), "gpt2", "gpt-2"),
    "olmo": Family(of_class("gpt_neox", "GPTNeoXTokenizer"), "gpt2", "olmo"),
    "cohere": Family(of_class("cohere", "CohereTokenizer"), "smollm", "command-r"),
    "gemma": Family(of_class("gemma", "GemmaTokenizer")),
    "llama": Family(of_class("llama", "LlamaTokenizer")),
    # Whose classes take what tokenizer.json has.
    "gpt_oss": Family("o200k_base", "o200k", "gpt-4o"),
    "phi4_mini": Family("o200k_base", "o200k", "gpt-4o"),
    "tekken": Family("tekken", "tekken", "tekken"),
    "granite": Family("smollm", "smollm", "refact"),
    "smollm3": Family("llama3", "llama3", "smaug-bpe"),
    "olmo2": Family("llama3", "llama3", "dbrx"),
    "falcon3": Family("llama3", "llama3", "falcon3"),
    "glm4": Family("llama3", "llama3", "glm4"),
    "stablelm": Family("qwen2", "qwen2", "stablelm2"),
    "exaone": Family("smollm", "smollm", "exaone"),
    "deepseek_v3": Family("deepseek_v3", "deepseek_v3", "deepseek-v3"),
    "deepseek_llm": Family("deepseek_llm", "deepseek_llm", "deepseek-llm"),
    "hunyuan_dense": Family("deepseek_v3", "deepseek_v3", "hunyuan-dense"),
    "seed_oss": Family("seed_coder", "seed_coder", "seed-coder"),
}
KINDS = sorted({family.made_by: name for name, family in FAMILIES.items()}.values())  # one of those that are made alike


def empty(made_by: str, **model: Any) -> Any:
    """A `tokenizers.Tokenizer` as the family has it, without a vocabulary or with one."""
    if "." in made_by:
        module, _, name = made_by.rpartition(".")
        return getattr(importlib.import_module(module), name)(**model).backend_tokenizer
    reference = Reference(models.BPE(**model))
    if made_by == "o200k_base":
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Split(Regex(o200k_of_tiktoken()), "isolated")
        reference.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    else:
        reference.pre_tokenizer = reference_pre_tokenizer(made_by)
    reference.decoder = decoders.ByteLevel()
    return reference


@cache
def trained(made_by: str) -> Any:
    """A vocabulary that the library has trained on the family's own normalizer and pre-tokenizer."""
    learner = Reference(models.BPE())
    shape = empty(made_by)
    learner.pre_tokenizer = shape.pre_tokenizer
    if shape.normalizer is not None:
        learner.normalizer = shape.normalizer
    characters = made_by.endswith((".GemmaTokenizer", ".LlamaTokenizer"))
    alphabet = [] if characters else STAND_INS
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=alphabet, special_tokens=names if characters else []
    )
    texts = [TEXT]
    if characters:  # the merges of one word that is the whole text would take long
        texts = [word + " " for text in texts for word in text.split()]
        learner.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    return empty(made_by, vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


@pytest.mark.parametrize("name", KINDS)
def test_tokenizer_json(name: str) -> None:
    reference = trained(FAMILIES[name].made_by)
    ours = opened(reference.to_str())
    if FAMILIES[name].cut:
        assert ours.to_dict()["pre_tokenizer"] == FAMILIES[name].cut
    for text in (TEXT, ALL_CODES, " ", "\n\n x"):
        if "nfc" in ours.to_dict() and ours.to_dict()["nfc"]:  # of what the library's older tables know
            text = unicodedata.normalize("NFC", text)
        ids = ours.encode(text, bos=False)
        assert first_difference(ids, reference_ids(reference, text)) is None
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.pre])
def test_gguf(name: str, tmp_path: Path) -> None:
    """llama.cpp composes no characters, so what is compared is composed."""
    reference = trained(FAMILIES[name].made_by)
    model = json.loads(reference.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    rows = reference.get_vocab_size()
    pieces += [reference.id_to_token(id) for id in range(len(pieces), rows)]
    special = {token.content for token in reference.get_added_tokens_decoder().values()}
    (tmp_path / "m.gguf").write_bytes(
        llama(
            len(pieces),
            tokenizer__ggml__model="gpt2",
            tokenizer__ggml__pre=FAMILIES[name].pre,
            tokenizer__ggml__tokens=pieces,
            tokenizer__ggml__token_type=[3 if piece in special else 1 for piece in pieces],
            tokenizer__ggml__merges=[" ".join(merge) for merge in model["merges"]],
        ).to_bytes()
    )
    ours = llama2cpp.load(tmp_path / "m.gguf", threads=1).tokenizer
    model["ignore_merges"] = ours.to_dict()["ignore_merges"]
    reference = Reference.from_str(json.dumps(json.loads(reference.to_str()) | {"model": model}))
    for text in (TEXT, ALL_CODES):
        text = unicodedata.normalize("NFC", text)
        assert first_difference(ours.encode(text, bos=False), reference_ids(reference, text)) is None
