"""Floats of every width that files have, in every kind of tensor: read as PyTorch rounds them to float32."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from hf_folders import Spec, change_json, tensors_of, transformers_logits, write_tensors
from meta_files import of_transformers, save_meta_folder
from on_metal import agree
from reference import largest_error
from test_hf_folder import TOKENS, logits_of

import llama2cpp
from llama2cpp import FormatError, export

FLOATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
KINDS = {
    "norms": ("layernorm.weight", "model.norm.weight"),
    "biases": (".bias",),
    "embeddings": ("embed_tokens.weight",),
    "output": ("lm_head.weight",),
    "matrices": ("proj.weight",),
    "all": ("",),
}
OTHERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64]
OTHERS += [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]
UP = "model.layers.0.mlp.up_proj.weight"
EXTREMES = [1 / 3, 1 + 2**-24, 1 + 2**-24 + 2**-40, 3.4028235677973366e38, 1e300, -1e300, 1e-46, 1.17549435e-38, -0.0]


def changed(folder: Path, kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Give the tensors of a kind another type; numbers that no narrower one has, where it is a wide one."""
    tensors = tensors_of(folder)
    for name, tensor in tensors.items():
        if name.endswith(KINDS[kind]):
            tensors[name] = (tensor.double() * (1 + 1e-9)).to(dtype)
    write_tensors(folder, tensors)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOATS)
def test_every_width_of_every_kind(tmp_path: Path, kind: str, name: str) -> None:
    folder = Spec(settings={"attention_bias": True, "mlp_bias": True}).save(tmp_path)
    tensors = changed(folder, kind, FLOATS[name])
    with llama2cpp.load(folder) as model:
        for each, tensor in tensors.items():
            assert np.array_equal(model.weights[each], tensor.float().numpy())
            assert model.weights.info(each)["format"] == (name if each.endswith(KINDS[kind]) else "f32")
    assert largest_error(logits_of(folder), transformers_logits(folder, TOKENS)) < 1e-5


def test_rounding(tmp_path: Path) -> None:
    folder = Spec().save(tmp_path)
    tensors = tensors_of(folder)
    values = torch.tensor(EXTREMES, dtype=torch.float64)
    values = torch.cat([values, torch.tensor([float("inf"), float("nan")], dtype=torch.float64)])
    tensors["model.norm.weight"] = torch.cat([values, torch.ones(32 - len(values), dtype=torch.float64)])
    write_tensors(folder, tensors)
    found = llama2cpp.load(folder).weights["model.norm.weight"]
    wanted = tensors["model.norm.weight"].float().numpy()
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    real = ~np.isnan(wanted)
    assert np.array_equal(found[real].view(np.uint32), wanted[real].view(np.uint32))


def test_what_is_made_of_it(tmp_path: Path) -> None:
    """Bits do not depend on packing, and exports hold the rounded numbers."""
    folder = Spec().save(tmp_path / "model")
    changed(folder, "all", torch.float64)
    wanted = logits_of(folder)
    assert np.array_equal(logits_of(folder, pack="never"), wanted)
    for target in ("model.gguf", "panels.safetensors", "folder"):
        export.convert(folder, tmp_path / target)
        assert largest_error(logits_of(tmp_path / target), wanted) < 1e-6
    assert {tensor.tensor_type for tensor in GGUFReader(tmp_path / "model.gguf").tensors} == {GGMLQuantizationType.F32}


def test_gguf(tmp_path: Path) -> None:
    """ggml has the type too."""
    folder = Spec().save(tmp_path / "model")
    export.convert(folder, tmp_path / "f32.gguf", "f32")
    import gguf

    reader = gguf.GGUFReader(tmp_path / "f32.gguf")
    writer = gguf.GGUFWriter(tmp_path / "f64.gguf", "llama")
    with llama2cpp.load(tmp_path / "f32.gguf") as model:
        c = model.config
    writer.add_context_length(c.seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data, dtype=np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert agree(logits_of(tmp_path / "f64.gguf"), logits_of(tmp_path / "f32.gguf"))


def test_files_of_pytorch(tmp_path: Path) -> None:
    model = Spec().model()
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "vocab_size": 50}
    for name, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        weights = {each: tensor.to(dtype) for each, tensor in of_transformers(model).items()}
        save_meta_folder(tmp_path / name, [weights], params)
        export.convert(tmp_path / name, tmp_path / f"{name}.gguf", "f32")
    assert agree(logits_of(tmp_path / "f64.gguf"), logits_of(tmp_path / "f32.gguf"))


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]
)
def test_other_types_are_refused_by_name(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = Spec().save(tmp_path)
    tensors = tensors_of(folder)
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.float32).to(dtype)
    write_tensors(folder, tensors)
    content = (folder / "model.safetensors").read_bytes()
    spelled = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])[name]["dtype"]
    with pytest.raises(FormatError, match=rf"{name}\" is {spelled} .*, expected F32, F16 or BF16, or F64"):
        llama2cpp.load(folder)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "mlx"}])
def test_metadata_may_be_null(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """As mlx writes it where there is none."""
    folder = Spec().save(tmp_path)
    wanted = logits_of(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.dumps(json.loads(content[8:end]) | {"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[end:])
    assert np.array_equal(logits_of(folder), wanted)


def test_metadata_is_nothing_else(tmp_path: Path) -> None:
    folder = Spec().save(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.dumps(json.loads(content[8:end]) | {"__metadata__": 3}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content[end:])
    change_json(folder / "config.json", torch_dtype="float32")
    with pytest.raises(FormatError, match=r"__metadata__.*expected an object, found an integer"):
        llama2cpp.load(folder)
