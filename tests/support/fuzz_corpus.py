"""Writes the small good files that a fuzz target starts from: ``python tests/support/fuzz_corpus.py TARGET FOLDER``."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import gguf_files
import numpy as np
from gguf_files import BPE, SPM
from tokenizer_files import NORMAL, USER_DEFINED, SentencePieceModel, tokenizer_bin
from tokenizer_settings import CHARSMAP
from vocabularies import ByteBpe

from llama2cpp.export import Calibration, convert


def tokenizers(folder: Path) -> None:
    """Two bytes (flags and the length of a text), the text, and the file: see fuzz_tokenizer.cpp."""
    texts = ["a", "b", "c", "ab", "abc", "é", " ", " a"]
    pieces = [(text.encode(), -float(i)) for i, text in enumerate(texts)]
    special = [(text, 0.0) for text in (b"<unk>", b"\n<s>\n", b"\n</s>\n")]
    raw_bytes = [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    model = [(text.replace(" ", "\u2581"), -float(i), NORMAL) for i, text in enumerate(texts)]
    files = {
        "bin": tokenizer_bin([*special, *raw_bytes, *pieces]),
        "bin_small": tokenizer_bin(pieces),
        "model": SentencePieceModel([*model, ("cab", 0.0, USER_DEFINED)]).to_bytes(),
        "model_bytes": SentencePieceModel(model, byte_fallback=True, dummy_prefix=False, tidy=True).to_bytes(),
        "unigram": SentencePieceModel(model, trainer=[(3, 1)], normalizer=[(2, CHARSMAP)]).to_bytes(),
    }
    # What a Unigram model of a tokenizer.json is made of: which steps, which cuts, the pieces, the map.
    parts = "\n".join([*(piece for piece, _, _ in model), "<s>", "\n"]).encode() + CHARSMAP
    of_model = {f"steps_{cuts}": bytes([63, cuts]) + parts for cuts in range(8)}
    text = b"abc ab\xc3\xa9<s>  h"
    for flags in range(8):
        for name, data in files.items():
            (folder / f"{name}_{flags}").write_bytes(bytes([flags, len(text)]) + text + data)
        for name, data in of_model.items():
            (folder / f"{name}_{flags}").write_bytes(bytes([26 << 3 | flags, len(text)]) + text + data)


def ggufs(folder: Path) -> None:
    """Small Llamas of zeros: one for each type of weights, both kinds of tokenizer, what a config can say."""
    configs: dict[str, dict[str, Any]] = {
        "plain": {},
        "sentencepiece": SPM,
        "byte_level": BPE | {"tokenizer__chat_template": "{{ messages }}"},
        "scaled": {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0},
        "window": {"llama__attention__sliding_window": 3, "llama__rope__freq_base": 5e5},
        "aligned": {"general__alignment": 64, "llama__attention__key_length": 4, "llama__attention__value_length": 4},
    }
    tiny = {"llama__embedding_length": 8, "llama__feed_forward_length": 8, "llama__attention__head_count": 2}
    for name, changes in configs.items():
        file = gguf_files.llama(**(tiny | changes))
        file.alignment = int(changes.get("general__alignment", 32))
        (folder / f"gguf_{name}").write_bytes(file.to_bytes())
    for kind in gguf_files.TYPES:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        file = gguf_files.llama(llama__embedding_length=max(32, block), llama__feed_forward_length=max(32, block))
        file.tensors = [
            replace(tensor, kind=int(kind), bytes=int(np.prod(tensor.shape)) // block * size)
            if len(tensor.shape) == 2
            else tensor
            for tensor in file.tensors
        ]
        (folder / f"gguf_{kind.name}").write_bytes(file.to_bytes())


# Between them they have every setting of families, and every part.
FAMILIES = [
    *(
        "granite",
        "smollm3-every-2",
        "phi3-longrope",
        "cwm",
        "hunyuan",
        "olmo3-yarn",
        "exaone4",
        "gemma2",
        "gemma3-scaled",
    ),
    *("nemotron-biases", "glm4", "cohere2", "starcoder2", "stablelm", "olmo", "mixtral", "qwen3_moe", "granitemoe"),
]
TINY = {"intermediate_size": 32, "vocab_size": 30}  # a file of the corpus has fewer than 65,536 bytes


def family_ggufs(folder: Path) -> None:
    """A small model of each family that GGUF has, by gguf's names."""
    import expert_models
    import family_models
    import gpt_oss_models

    with tempfile.TemporaryDirectory() as scratch:
        for name in ("granite", "phi3-longrope", "olmo3", "gemma2-own", "gemma3", "cohere2", "stablelm", "starcoder2"):
            family_models.write_gguf(Path(scratch) / f"gguf_{name}", family_models.CASES[name])
        for name in ("mixtral-full", "qwen3_moe"):
            expert_models.write_gguf(Path(scratch) / f"gguf_{name}", name)
        gpt_oss_models.write_gguf(Path(scratch) / "gguf_gpt_oss")
        for file in Path(scratch).glob("gguf_*"):
            (folder / file.name).write_bytes(file.read_bytes())


def family_folders(folder: Path) -> None:
    """A small folder of each family."""
    import expert_models
    import family_models

    cases = family_models.CASES | expert_models.CASES
    for name in FAMILIES:
        settings = TINY | cases[name].settings
        large = settings.get("num_hidden_layers", 3) > 3 or "num_local_experts" in settings
        narrow = {"hidden_size": 16} if large else {}
        narrow |= {name: 8 for name in ("head_dim", "moe_intermediate_size") if name in settings}
        case = replace(cases[name], settings=settings | narrow)
        with tempfile.TemporaryDirectory() as scratch:
            case.model().half().save_pretrained(scratch)
            (folder / f"folder_{name}").write_bytes(joined(Path(scratch)))


def dictionary(target: str, path: Path) -> None:
    """Write the words of settings, for libFuzzer's -dict."""
    io = Path(__file__).parents[2] / "src/cpp/io"
    sources = {"fuzz_checkpoint": ["gguf_config", "families"], "fuzz_folder": ["hf_config", "families"]}
    words: set[str] = set()
    for name in sources.get(target, []):
        words |= set(re.findall(r'"([A-Za-z0-9_.]{3,40})"', (io / f"{name}.cpp").read_text()))
    if words:
        path.write_text("".join(f'"{word}"\n' for word in sorted(words)))


def panels(folder: Path) -> None:
    """Small files of panels: of each form, with and without an order and a tokenizer."""
    from panel_sources import SOURCES, packed_with_all

    for name in ("llama2.c v0", "llama2.c v2", "GPTQ of 3 bits", "LLM.int8() with fixed outliers"):
        with tempfile.TemporaryDirectory() as scratch:
            done = convert(SOURCES[name](Path(scratch)), Path(scratch) / "panels.safetensors")
            (folder / f"panels_{name.replace(' ', '_')}").write_bytes(done.path.read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        (folder / "panels_all").write_bytes(packed_with_all(Path(scratch)))


NAMES = [
    *("config.json", "model.safetensors", "model.safetensors.index.json", "a.safetensors", "tokenizer.json"),
    *("tokenizer_config.json", "generation_config.json", "quantize_config.json"),
]


def joined(path: Path) -> bytes:
    """The files of a folder as fuzz_folder.cpp takes them."""
    data = b""
    for which, name in enumerate(NAMES):
        if (path / name).exists():
            content = (path / name).read_bytes()
            data += bytes([which]) + len(content).to_bytes(2, "little") + content
    return data


def hugging_face(folder: Path) -> None:
    """Small Llamas of floats and of every width of GPTQ, and gpt-oss's experts: see fuzz_folder.cpp."""
    import torch
    from gpt_oss_models import make, write_blocks
    from gptq_files import quantize_folder
    from hf_folders import Spec
    from vocabularies import characters

    tokenizers_of = [
        characters([("a", "b"), ("ab", "c")]),
        characters([("a", "a")], byte_fallback=False, prefix="first", added=("<foo>",)),
        ByteBpe([b"a", b"b", b" ", b"ab"], [(b"a", b"b")], ignore_merges=True).reference(),
        ByteBpe([b"a", b"b", b" ", b"ab"], [(b"a", b"b")], pre="llama3").reference(),
    ]
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 4}
    sizes |= {"num_hidden_layers": 1, "vocab_size": 288, "tie_word_embeddings": True}
    for bits in (0, 2, 3, 4, 8):
        for number, tokenizer in enumerate(tokenizers_of):
            with tempfile.TemporaryDirectory() as scratch:
                path = Spec(settings=sizes, mistral=number % 2 == 1, dtype=torch.float16).save(Path(scratch))
                if bits > 0:
                    quantize_folder(path, bits, act_order=number == 1)
                tokenizer.save(str(path / "tokenizer.json"))
                (path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
                (folder / f"folder_{bits}_{number}").write_bytes(joined(path))
    quantized_experts(folder)
    small = {"num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 32}
    with tempfile.TemporaryDirectory() as scratch:
        make(**small).half().save_pretrained(scratch)
        (folder / "folder_turned_experts").write_bytes(joined(Path(scratch)))
    with tempfile.TemporaryDirectory() as scratch:
        write_blocks(Path(scratch), **small)
        (folder / "folder_blocks").write_bytes(joined(Path(scratch)))


def quantized_experts(folder: Path) -> None:
    """GPTQ in layers with experts, as `llama2cpp export` writes it, of each way in which files name experts."""
    import expert_models

    sizes = TINY | {"hidden_size": 16, "num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    for name in ("mixtral", "qwen3_moe", "granitemoe"):
        case = expert_models.CASES[name]
        narrow = {key: 8 for key in ("head_dim", "moe_intermediate_size") if key in case.settings}
        with tempfile.TemporaryDirectory() as scratch:
            source = replace(case, settings=case.settings | sizes | narrow).save(Path(scratch) / "source")
            text = Calibration(list(range(30)))
            for format in ("gptq4", "gptq8"):
                done = convert(source, Path(scratch) / format, format, calibration=text, group=8)
                (folder / f"folder_{format}_{name}").write_bytes(joined(done.path))


def main(target: str, folder: str) -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if target == "fuzz_checkpoint":
        checkpoints.write_corpus(path)
        ggufs(path)
        family_ggufs(path)
        panels(path)
    elif target == "fuzz_folder":
        hugging_face(path)
        family_folders(path)
    elif target == "fuzz_tokenizer":
        tokenizers(path)
    dictionary(target, path.with_suffix(".dict"))


if __name__ == "__main__":
    main(*sys.argv[1:])
