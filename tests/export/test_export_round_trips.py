"""Every source to every target: each weight of the result is what its format makes of the source's, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import meta_files
import numpy as np
import pytest
import tiny
import torch
from checkpoints import dequantize, quantize
from gptq_files import quantize_folder
from hf_folders import Spec
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import _core
from llama2cpp.export import convert
from llama2cpp.export.llama2c_file import choose_group
from llama2cpp.export.mixtures import MIXTURES
from llama2cpp.export.opening import open_checkpoint
from llama2cpp.export.source import Source

GGUF = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")
FOLDER = ("f32", "f16", "bf16")
LLAMA2C = ("v0", "v1", "v2")
assert set(GGUF) <= set(MIXTURES)


def config(*, tied: bool = False) -> llama2cpp.Config:
    """Rows that K-quants divide, and grouped heads."""
    sizes: dict[str, Any] = {
        "dim": 256,
        "hidden_dim": 256,
        "n_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": 48,
    }
    return llama2cpp.Config(**sizes, seq_len=64, tied=tied)


def converted(name: str, format: str, *, tied: bool = False) -> Callable[[Path], Path]:
    return lambda folder: convert(tiny.model(config(tied=tied)), folder / name, format).path


def gptq(folder: Path) -> Path:
    settings = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "rms_norm_eps": 1e-5}
    path = Spec(settings=settings).save(folder / "source")
    quantize_folder(path, 4, 64, 1, True)
    return path


def meta(shards: int, dtype: torch.dtype) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tensors = {name: torch.from_numpy(array).to(dtype) for name, array in tiny.arrays(config()).items()}
        params = {"dim": 256, "hidden_dim": 256, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1}
        return meta_files.save_meta_folder(
            folder / "source", meta_files.shard(tensors, shards, embedding_axis=shards % 2), params
        )

    return write


def training(folder: Path) -> Path:
    return meta_files.save_training_checkpoint(folder / "source.pt", config(tied=True), tiny.arrays(config(tied=True)))


SOURCES: dict[str, Callable[[Path], Path]] = {
    **{f"llama2.c {format}": converted("source.bin", format) for format in LLAMA2C},
    **{f"GGUF {format}": converted("source.gguf", format, tied=format == "q8_0") for format in GGUF},
    **{f"folder {format}": converted("source", format) for format in FOLDER},
    "GPTQ": gptq,
    "Meta f32": meta(1, torch.float32),
    "Meta bf16 of 2 shards": meta(2, torch.bfloat16),
    "Meta f16 of 4 shards": meta(4, torch.float16),
    "training": training,
}
TARGETS = [("t.bin", format) for format in LLAMA2C]
TARGETS += [("t.gguf", format) for format in GGUF]
TARGETS += [("t", format) for format in FOLDER]


def stored(array: NDArray[np.float32], format: str, group: int) -> NDArray[np.float32]:
    """What a format keeps of some numbers."""
    if format == "int8_group":
        return dequantize(*quantize(array, group))
    return _core.decode(format, _core.encode(format, array))


@pytest.mark.parametrize("source", SOURCES)
def test_every_weight_of_every_target(tmp_path: Path, source: str) -> None:
    begin = SOURCES[source](tmp_path)
    checkpoint = open_checkpoint(begin)
    numbers = Source(checkpoint)
    names = numbers.names()
    expected = {name: numbers.array(name, "interleaved").copy() for name in names}
    group = choose_group(numbers.config, None)
    for target, format in TARGETS:
        done = convert(begin, tmp_path / target, format, force=True)
        with llama2cpp.load(done.path) as after:
            theirs: dict[str, Any] = after.config.to_dict()
            ours: dict[str, Any] = numbers.config.to_dict()
            assert theirs | {"rope_style": ""} == ours | {"rope_style": ""}
            result = Source(after)
            assert result.names() == names
            for name in names:
                kept = stored(expected[name], done.formats[name], group)
                np.testing.assert_array_equal(result.array(name, "interleaved"), kept, err_msg=f"{done.path} {name}")
    checkpoint.close()


CHAINS = {
    "v0": ("a.bin", "v0", [("b.gguf", "f32"), ("c", "f32"), ("d.bin", "v1")]),
    "v1": ("a.bin", "v1", [("b", "f32"), ("c.gguf", "f32"), ("d.bin", "v0")]),
    "GGUF f32": ("a.gguf", "f32", [("b", "f32"), ("c.bin", "v0"), ("d.bin", "v1")]),
    "GGUF f16": ("a.gguf", "f16", [("b", "f16"), ("c.gguf", "f16")]),
    "GGUF bf16": ("a.gguf", "bf16", [("b", "bf16"), ("c.gguf", "f32")]),
    "folder f32": ("a", "f32", [("b.gguf", "f32"), ("c.bin", "v1")]),
    "folder f16": ("a", "f16", [("b.gguf", "f16"), ("c.gguf", "f32"), ("d", "f32")]),
    "folder bf16": ("a", "bf16", [("b.gguf", "bf16"), ("c.bin", "v0")]),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_floats_come_back_to_the_byte(tmp_path: Path, chain: str, tied: bool) -> None:
    """Through every container that holds their width, and back."""
    name, format, between = CHAINS[chain]
    width = "f32" if format in LLAMA2C else format
    arrays = {name: stored(array, width, 0) for name, array in tiny.arrays(config(tied=tied)).items()}
    model = llama2cpp.from_arrays(config(tied=tied), arrays)  # GGUF has gains in float32: they fit the width too
    begin = convert(model, tmp_path / name, format).path
    path = begin
    for step, (target, kind) in enumerate(between):
        (tmp_path / str(step)).mkdir()
        path = convert(path, tmp_path / str(step) / target, kind).path
    (tmp_path / "end").mkdir()
    end = convert(path, tmp_path / "end" / name, format).path
    files = {"": begin} if begin.is_file() else {file.name: file for file in begin.iterdir()}
    assert files
    for file_name, file in files.items():
        assert (end / file_name if file_name else end).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("dtype", "format"), [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")]
)
def test_meta_folders_keep_their_bits(tmp_path: Path, dtype: torch.dtype, format: str) -> None:
    begin = meta(2, dtype)(tmp_path)
    direct = convert(begin, tmp_path / "direct").path  # the width of the source, without being told
    around = convert(convert(begin, tmp_path / "m.gguf", format).path, tmp_path / "around").path
    assert (direct / "model.safetensors").read_bytes() == (around / "model.safetensors").read_bytes()
