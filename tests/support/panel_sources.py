"""Models of all kinds that are packed into files of panels, and a file that has something of everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny
from gptq_files import quantize_folder
from hf_folders import Spec
from tokenizer_files import tokenizer_bin

import llama2cpp
from llama2cpp.export import Calibration, convert

BLOCKS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")


def wide(**changed: Any) -> llama2cpp.Config:
    """Rows of 256 for the K-quants; 53 rows, which sixteen do not divide."""
    return tiny.config(**({"dim": 256, "hidden_dim": 288, "n_heads": 8, "n_kv_heads": 2, "n_layers": 2} | changed))


def gguf(folder: Path, format: str) -> Path:
    return convert(tiny.model(wide(tied=format == "q4_0")), folder / "source.gguf", format).path


def gptq(folder: Path, **options: Any) -> Path:
    path = Spec(settings={"hidden_size": 64, "intermediate_size": 96}).save(folder / "gptq")
    quantize_folder(path, **options)
    return path


def float_folder(folder: Path, dtype: str, **options: Any) -> Path:
    import torch

    return Spec(dtype=getattr(torch, dtype), **options).save(folder / "folder")


def odd(folder: Path, format: str) -> Path:
    """A llama2.c file of sizes that no width divides; for version 2 in groups of 2."""
    config = tiny.config(dim=36, hidden_dim=50, tied=format == "v2")
    return convert(tiny.model(config), folder / "source.bin", format).path


def llm_int8(folder: Path, *, text: list[int] | None = None, **sizes: Any) -> Path:
    """Of sizes that no width divides. With a text, the columns that are large on it are fixed."""
    config = tiny.config(dim=36, hidden_dim=50, **sizes)
    arrays = tiny.arrays(config)
    for name, array in arrays.items():
        if name.endswith("_norm.weight"):
            array[[3, 17, 30]] = 40.0
    calibration = None if text is None else Calibration(text)
    return convert(llama2cpp.from_arrays(config, arrays), folder / "int8", "llm_int8", calibration=calibration).path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "llama2.c v0": lambda folder: odd(folder, "v0"),
    "llama2.c v2": lambda folder: odd(folder, "v2"),
    **{f"GGUF {format}": partial(gguf, format=format) for format in (*BLOCKS, "f16", "bf16")},
    "folder bf16": lambda folder: float_folder(folder, "bfloat16"),
    "folder f16, a window": lambda folder: float_folder(folder, "float16", mistral=True),
    "folder with biases": lambda folder: float_folder(
        folder, "float32", settings={"attention_bias": True, "mlp_bias": True}
    ),
    "GPTQ": gptq,
    "GPTQ in order of activations": lambda folder: gptq(folder, act_order=True),
    "GPTQ of 3 bits": lambda folder: gptq(folder, bits=3, group_size=-1, version=2),
    "GPTQ of 8 bits": lambda folder: gptq(folder, bits=8, group_size=64),
    "GPTQ in groups that are no blocks": lambda folder: gptq(folder, group_size=16),
    "LLM.int8()": llm_int8,
    "LLM.int8() with fixed outliers": lambda folder: llm_int8(folder, text=list(range(1, 30)), tied=True),
}


def packed_with_all(folder: Path) -> bytes:
    """Of everything something: blocks, floats, an order, a tokenizer."""
    source = gptq(folder, act_order=True, modules=("q_proj", "up_proj"))
    model = llama2cpp.load(source, tokenizer=tiny_tokenizer(folder, 50))
    return convert(model, folder / "packed.safetensors").path.read_bytes()


def tiny_tokenizer(folder: Path, size: int) -> Path:
    path = folder / "tokenizer.bin"
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    path.write_bytes(tokenizer_bin(pieces + [(b"%c" % (97 + i), -float(i)) for i in range(size - 3)]))
    return path
