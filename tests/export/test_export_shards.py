"""Hugging Face folders of several files: transformers opens them, and so do we."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hf_folders import Spec, tensors_of, transformers_logits

import llama2cpp
from llama2cpp.common.byte_sizes import parse_size
from llama2cpp.common.safetensors_file import Tensor
from llama2cpp.export import Calibration, convert
from llama2cpp.export.hf_shards import split


def weights_in(folder: Path) -> dict[str, int]:
    """Bytes of tensors in each file, by its header."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        found[path.name] = len(data) - 8 - int.from_bytes(data[:8], "little")
    return found


@pytest.mark.parametrize("shard_size", [3000, "20KB", 50_000])
def test_transformers_and_we_open_shards(tmp_path: Path, shard_size: int | str) -> None:
    model = tiny.model(tiny.config(dim=64, hidden_dim=96, n_heads=4, vocab_size=96), kv_dtype="f32")
    whole = convert(model, tmp_path / "whole", "f32").path
    done = convert(model, tmp_path / "shards", "f32", shard_size=shard_size)
    sizes = weights_in(done.path)
    limit = parse_size(shard_size)
    largest = max(model.weights.info(name)["bytes"] for name in model.weights)
    assert len(sizes) > 1
    assert all(size <= max(limit, largest) for size in sizes.values())
    assert sorted(sizes) == [f"model-{i:05}-of-{len(sizes):05}.safetensors" for i in range(1, len(sizes) + 1)]
    index = json.loads((done.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert set(index["weight_map"].values()) == set(sizes)
    expected = tensors_of(whole)
    found = tensors_of(done.path)
    assert set(found) == set(expected) == set(index["weight_map"])
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())
    ids = tiny.tokens(model.config, 24)
    with llama2cpp.load(done.path, kv_dtype="f32") as after:
        logits = after.session().prefill(ids, all_logits=True)
    np.testing.assert_allclose(transformers_logits(done.path, ids), logits, atol=2e-5, rtol=1e-4)
    assert done.bytes == sum(path.stat().st_size for path in done.path.iterdir())


@pytest.mark.parametrize("format", ["gptq4", "gptq3", "llm_int8", "llm_int8 with fixed outliers"])
@pytest.mark.parametrize("shard_size", [3000, "20KB", 40_000])
def test_shards_of_quantized_weights(tmp_path: Path, format: str, shard_size: int | str) -> None:
    """The single file's tensors and logits; all tensors of a weight in one file, at multiples of their width."""
    model = tiny.model(tiny.config(dim=64, hidden_dim=96, n_heads=4, vocab_size=96))
    format, _, fixed = format.partition(" ")
    text = None if format == "llm_int8" and not fixed else Calibration(tiny.tokens(model.config, 100))
    options: dict[str, Any] = {"calibration": text} | ({"group": 32} if format != "llm_int8" else {})
    whole = convert(model, tmp_path / "whole", format, **options)
    done = convert(model, tmp_path / "shards", format, shard_size=shard_size, **options)
    assert done.formats == whole.formats
    sizes = weights_in(done.path)
    assert len(sizes) > 1
    assert max(sizes.values()) <= max(parse_size(shard_size), 96 * 64 * 2)
    index = json.loads((done.path / "model.safetensors.index.json").read_text())
    parameters = sum(int(np.prod(model.weights.info(name)["shape"])) for name in model.weights)
    assert index["metadata"] == {"total_parameters": parameters, "total_size": sum(sizes.values())}
    found, expected = tensors_of(done.path), tensors_of(whole.path)
    assert set(found) == set(expected) == set(index["weight_map"])
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy(), err_msg=name)
    files: dict[str, set[str]] = {}
    for name, file in index["weight_map"].items():
        files.setdefault(name.rpartition(".")[0], set()).add(file)
    assert all(len(of_module) == 1 for of_module in files.values())
    for path in done.path.glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, facts in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                assert (8 + length + facts["data_offsets"][0]) % found[name].element_size() == 0, name
    ids = tiny.tokens(model.config, 24)
    with llama2cpp.load(done.path) as shards, llama2cpp.load(whole.path) as single:
        logits = single.session().prefill(ids, all_logits=True)
        np.testing.assert_array_equal(shards.session().prefill(ids, all_logits=True), logits)


def test_as_many_files_as_transformers_makes(tmp_path: Path) -> None:
    theirs = Spec(shards="20KB").save(tmp_path / "theirs")
    ours = convert(theirs, tmp_path / "ours", shard_size="20KB").path
    assert len(weights_in(ours)) == len(weights_in(theirs)) > 1
    index, their_index = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (ours, theirs))
    assert set(index["weight_map"]) == set(their_index["weight_map"])
    assert index["metadata"] == their_index["metadata"]


def test_one_file_has_no_index(tmp_path: Path) -> None:
    done = convert(tiny.model(tiny.config()), tmp_path / "m", "bf16")
    assert sorted(path.name for path in done.path.iterdir()) == ["config.json", "model.safetensors"]


def test_shards_are_filled_in_order() -> None:
    weights = [[Tensor.of(str(i), "F32", (size // 4,))] for i, size in enumerate((4, 8, 100, 4, 4, 8, 16))]
    assert [[t.bytes for t in shard] for shard in split(weights, 16)] == [[4, 8], [100], [4, 4, 8], [16]]


def test_tensors_of_a_weight_stay_together_and_aligned() -> None:
    weights = [[Tensor.of(f"{i}{dtype}", dtype, (3,)) for dtype in ("U8", "F32", "F16")] for i in range(3)]
    shards = split(weights, 45)
    assert [[t.name for t in shard] for shard in shards] == [
        ["0F32", "1F32", "0F16", "1F16", "0U8", "1U8"],
        ["2F32", "2F16", "2U8"],
    ]


@pytest.mark.parametrize(
    ("size", "expected"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), (7, 7), ("12", 12)]
)
def test_sizes(size: Any, expected: int) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "5TB", "five", 0, -3, "0"])
def test_other_sizes(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match="shard_size is"):
        convert(tiny.model(tiny.config()), tmp_path / "m", shard_size=size)


def test_command(tmp_path: Path, stories_dir: Path) -> None:
    command = ["export", stories_dir / "stories260K.bin", tmp_path / "m", "-f", "f16", "--shard-size", "200KB"]
    result = subprocess.run(
        [sys.executable, "-m", "llama2cpp", *map(str, command), "--no-report"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 1
