"""GGUF's tokenizer.ggml.pre: each name that is known cuts as the library does, with the defaults that llama.cpp has."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama
from tokenizers import AddedToken, decoders, models, trainers
from tokenizers import Tokenizer as Reference
from vocabularies import SENTENCES, STAND_INS, mixed_text, reference_pre_tokenizer

import llama2cpp
from llama2cpp import _core

# cut, ignore_merges, BOS where the file does not say: names
NAMES: dict[tuple[str, bool, bool], list[str]] = {
    ("ggml_default", False, False): ["default"],
    ("llama3", True, True): [
        *["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
    ],
    ("llama3", True, False): ["glm4", "glm5"],
    ("llama3", False, False): ["smaug-bpe", "dbrx", "chatglm-bpe"],
    ("smollm", False, False): [
        *["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
    ],
    ("gpt2", False, False): [
        *["gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum"],
        *["modern-bert", "exaone4", "olmo", "mpt", "jais", "trillion", "granite-docling"],
    ],
    ("qwen2", False, False): [
        *["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
    ],
    ("seed_coder", False, False): ["seed-coder"],
    ("tekken", True, True): ["tekken"],
    ("qwen35", False, False): ["qwen35"],
    ("o200k", False, False): ["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
    ("deepseek_llm", False, False): ["deepseek-llm"],
    ("deepseek_v3", False, False): ["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
    ("falcon", False, False): ["falcon"],
    ("bloom", False, False): ["bloom", "poro-chat", "gpt3-finnish"],
    ("viking", False, False): ["viking"],
    ("chameleon", False, True): ["chameleon"],
    ("bailing", False, False): ["bailingmoe", "bailingmoe2", "llada-moe"],
    ("exaone_moe", False, False): ["exaone-moe"],
    ("jais2", False, False): ["jais-2"],
    ("youtu", True, False): ["youtu"],
    ("laguna", False, False): ["laguna"],
    ("minicpm5", True, False): ["minicpm5"],
    ("ufakzeka", False, False): ["ufakzeka"],
    ("spark", False, False): ["spark2_5"],
    ("deepseek_coder", False, False): ["deepseek-coder"],
}
RULES = [(name, *rule) for rule, names in NAMES.items() for name in names]
TEXTS = [
    *SENTENCES,
    "It's 2024, isn't it? f(x) == 12345; 1,000,000 DON'T\r\n\r\n  x",
    "a  b\t\tc \u0661\u0662 1\u0663345 \u00a7\u00a9",
]


@cache
def trained(cut: str) -> tuple[list[str], list[str], str]:
    """Pieces, merges and the tokenizer.json of a vocabulary that the library has trained on this cut."""
    reference = Reference(models.BPE())
    reference.pre_tokenizer = reference_pre_tokenizer(cut)
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=STAND_INS)
    reference.train_from_iterator([mixed_text(30_000, seed=2), *TEXTS], trainer)
    reference.add_special_tokens([AddedToken("<|begin|>")])
    model = json.loads(reference.to_str())["model"]
    pieces = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "<|begin|>"]
    return pieces, [" ".join(merge) for merge in model["merges"]], reference.to_str()


def loaded(path: Path, cut: str, **metadata: Any) -> llama2cpp.Model:
    pieces, merges, _ = trained(cut)
    vocabulary = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__tokens": pieces,
        "tokenizer__ggml__token_type": [1] * (len(pieces) - 1) + [3],
        "tokenizer__ggml__merges": merges,
        "tokenizer__ggml__bos_token_id": len(pieces) - 1,
    }
    path.write_bytes(llama(len(pieces), **vocabulary, **metadata).to_bytes())
    return llama2cpp.load(path, threads=1)


@pytest.mark.parametrize(("name", "cut", "ignore_merges", "add_bos"), RULES)
def test_names(tmp_path: Path, name: str, cut: str, ignore_merges: bool, add_bos: bool) -> None:
    tokenizer = loaded(tmp_path / "m.gguf", cut, tokenizer__ggml__pre=name).tokenizer
    assert tokenizer is not None
    assert tokenizer.add_bos == add_bos
    tokenizer_json = json.loads(trained(cut)[2])
    tokenizer_json["model"]["ignore_merges"] = ignore_merges
    reference = Reference.from_str(json.dumps(tokenizer_json))
    for text in TEXTS:
        assert tokenizer.encode(text, bos=False) == reference.encode(text, add_special_tokens=False).ids, text


def test_all_names_are_here() -> None:
    rules = {(cut, *rule): list(names) for names, cut, *rule in _core.gguf_pre_tokenizers()}
    assert rules == NAMES


def test_no_name(tmp_path: Path) -> None:
    """It is "default", and whoever asks for text is told."""
    model = loaded(tmp_path / "m.gguf", "ggml_default")
    with pytest.warns(
        UserWarning, match=r'"tokenizer.ggml.pre" is missing: words are cut by llama.cpp\'s rule "default"'
    ):
        tokenizer = model.tokenizer
    assert tokenizer is not None
    reference = Reference.from_str(trained("ggml_default")[2])
    for text in TEXTS:
        assert tokenizer.encode(text, bos=False) == reference.encode(text, add_special_tokens=False).ids, text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.tokenizer is tokenizer  # told once
    with pytest.warns(UserWarning, match="is missing"):
        llama2cpp.Tokenizer.from_file(tmp_path / "m.gguf")


# llama.cpp's names that are none of ours: see src/cpp/io/gguf_pre_tokenizers.cpp.
OTHERS = (
    *("gemma4", "sarvam-moe", "whitespace", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mmbert"),
    *("granite-embed-multi-97m", "granite-embed-multi-311m"),
    *("kimi-k2", "superbpe", "tiny_aya", "cohere2moe", "afmoe"),
)


@pytest.mark.parametrize("name", [*OTHERS, "", "x"])
def test_names_that_are_not_known(tmp_path: Path, name: str) -> None:
    model = loaded(tmp_path / "m.gguf", "gpt2", tokenizer__ggml__pre=name)
    with pytest.raises(ValueError, match="the file's pre-tokenizer is"):
        _ = model.tokenizer
    assert f'the file\'s pre-tokenizer is "{name}", known are "default", "gpt-2"' in model.tokenizer_problem
    assert len(model.session().step(1)) == len(trained("gpt2")[0])
