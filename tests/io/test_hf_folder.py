"""Hugging Face folders against transformers: models over the space of configurations, and what the files may say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import (
    Json,
    Spec,
    change_json,
    read_json,
    replace_tensor,
    tensors_of,
    transformers_logits,
    write_tensors,
)
from reference import largest_error

import llama2cpp
from llama2cpp import FormatError

TOKENS = [1, 7, 3, 49, 0, 7, 7, 12, 30, 31, 2, 45, 18, 9, 22, 40, 5, 11, 17, 28]

LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500000.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
BIASES: Json = {"attention_bias": True, "mlp_bias": True}

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def spec(mistral: bool = False, dtype: torch.dtype = F32, shards: str | None = None, **settings: Any) -> Spec:
    return Spec(mistral, settings, dtype, shards, seed=len(settings))


SPECS = {
    "llama": spec(),
    "every-head-its-own-kv": spec(num_key_value_heads=4),
    "one-kv-head": spec(num_key_value_heads=1),
    "kv-heads-null": spec(num_key_value_heads=None),
    "three-layers": spec(num_hidden_layers=3, intermediate_size=36),
    "wide-heads": spec(head_dim=16),
    "narrow-heads": spec(head_dim=4),
    "head-of-6": spec(hidden_size=36, num_attention_heads=6, num_key_value_heads=3),
    "tied": spec(tie_word_embeddings=True),
    "tied-wide": spec(tie_word_embeddings=True, head_dim=16, **BIASES),
    "attention-bias": spec(attention_bias=True),
    "mlp-bias": spec(mlp_bias=True),
    "biases": spec(num_key_value_heads=1, **BIASES),
    "eps": spec(rms_norm_eps=1e-3),
    "theta": spec(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "linear": spec(rope_parameters=LINEAR),
    "linear-wide": spec(rope_parameters=LINEAR, head_dim=12),
    "llama3": spec(rope_parameters=LLAMA3),
    "llama3-wide": spec(rope_parameters=LLAMA3, head_dim=32),
    "llama3-tied": spec(rope_parameters=LLAMA3, tie_word_embeddings=True, **BIASES),
    "yarn": spec(rope_parameters=YARN),
    "yarn-wide": spec(rope_parameters=YARN, head_dim=64),
    "yarn-long": spec(rope_parameters=YARN | {"factor": 32.0, "original_max_position_embeddings": 4096}, head_dim=128),
    "yarn-theta": spec(rope_parameters=YARN | {"rope_theta": 1e6, "factor": 1.0}, head_dim=32),
    "yarn-below-1": spec(rope_parameters=YARN | {"factor": 0.5}, head_dim=32),
    "yarn-no-context": spec(rope_parameters={"rope_type": "yarn", "factor": 3.5, "rope_theta": 1e4}, head_dim=16),
    "yarn-attention": spec(rope_parameters=YARN | {"attention_factor": 0.7}),
    "yarn-mscale": spec(rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}),
    "yarn-one-mscale": spec(rope_parameters=YARN | {"mscale": 0.7}),
    "yarn-betas": spec(rope_parameters=YARN | {"beta_fast": 2.0, "beta_slow": 0.05}, head_dim=32),
    "yarn-equal-betas": spec(rope_parameters=YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}),
    "yarn-not-truncated": spec(rope_parameters=YARN | {"truncate": False}, head_dim=64),
    "mistral-yarn": spec(True, sliding_window=5, rope_parameters=YARN, head_dim=16),
    "shards": spec(shards="10KB"),
    "shards-tied": spec(shards="6KB", tie_word_embeddings=True),
    "tp": spec(pretraining_tp=2),
    "f16": spec(dtype=F16),
    "f16-shards": spec(dtype=F16, shards="5KB"),
    "f16-biases": spec(dtype=F16, **BIASES),
    "bf16": spec(dtype=BF16),
    "bf16-llama3": spec(dtype=BF16, rope_parameters=LLAMA3),
    "bf16-tied": spec(dtype=BF16, tie_word_embeddings=True, shards="5KB"),
    "mistral": spec(True, sliding_window=None),
    "mistral-window": spec(True, sliding_window=5),
    "mistral-window-of-1": spec(True, sliding_window=1),
    "mistral-long-window": spec(True, sliding_window=4096),
    "mistral-wide": spec(True, sliding_window=None, head_dim=16, num_key_value_heads=1),
    "mistral-tied": spec(True, sliding_window=7, tie_word_embeddings=True),
    "mistral-linear": spec(True, sliding_window=3, rope_parameters=LINEAR),
    "mistral-llama3": spec(True, sliding_window=None, rope_parameters=LLAMA3),
    "mistral-shards": spec(True, sliding_window=9, shards="10KB"),
    "mistral-bf16": spec(True, sliding_window=6, dtype=BF16),
    "mistral-f16-shards": spec(True, sliding_window=6, dtype=F16, shards="5KB"),
}


def logits_of(path: Path, **options: Any) -> Any:
    with llama2cpp.load(path, kv_dtype="f32", **options) as model:
        return model.session().prefill(TOKENS, all_logits=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spec().save(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A folder of the test's own."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = SPECS[name].save(tmp_path)
    assert largest_error(logits_of(path), transformers_logits(path, TOKENS)) < 1e-5


@pytest.mark.parametrize("name", [name for name, one in SPECS.items() if one.dtype != F32])
def test_halves_are_their_own_widening(name: str, tmp_path: Path) -> None:
    path = SPECS[name].save(tmp_path / "narrow")
    wide = tmp_path / "wide"
    wide.mkdir()
    shutil.copy(path / "config.json", wide)
    write_tensors(wide, {name: tensor.float() for name, tensor in tensors_of(path).items()})
    assert np.array_equal(logits_of(path), logits_of(wide))


def test_weights_are_in_place_under_their_names(folder: Path) -> None:
    model = llama2cpp.load(folder)
    tensors = tensors_of(folder)
    assert model.file_format == "Hugging Face folder"
    assert model.config.rope_style == "half_split"
    assert set(model.weights) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(model.weights[name], tensor.numpy())
        assert not model.weights[name].flags.owndata
    assert model.weights.info("model.norm.weight") == {"format": "f32", "shape": (32,), "bytes": 128}


def test_read_instead_of_mapped(folder: Path) -> None:
    assert np.array_equal(logits_of(folder, mmap=False), logits_of(folder))


def test_a_safetensors_file_opens_its_folder(folder: Path, tmp_path: Path) -> None:
    expected = logits_of(folder)
    assert np.array_equal(logits_of(folder / "model.safetensors"), expected)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert np.array_equal(logits_of(folder / "other.safetensors"), expected)
    with pytest.raises(llama2cpp.FormatError, match=r"expected weights in model\.safetensors"):
        llama2cpp.load(folder)
    sharded = spec(shards="10KB").save(tmp_path / "shards")
    shard = min(sharded.glob("*.safetensors"))
    assert np.array_equal(logits_of(shard), logits_of(sharded))


def test_one_file_comes_before_shards(folder: Path) -> None:
    """As in transformers."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "missing.safetensors"}}')
    assert logits_of(folder).shape == (len(TOKENS), 50)


def test_links_as_the_cache_makes_them(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    blobs = repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    assert np.array_equal(logits_of(snapshot), logits_of(folder))
    (tmp_path / "link").symlink_to(snapshot)
    assert np.array_equal(logits_of(tmp_path / "link"), logits_of(folder))


# --- config.json


def test_architectures_may_be_missing(folder: Path) -> None:
    change_json(folder / "config.json", architectures=...)
    assert logits_of(folder).shape == (len(TOKENS), 50)


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5},
        {"rope_theta": 500000},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": {}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_theta": 5e5, "type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}, "rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_every_spelling_of_theta(folder: Path, rotary: Json) -> None:
    change_json(folder / "config.json", **({"rope_parameters": ...} | rotary))
    assert llama2cpp.load(folder).config.rope_theta == 5e5
    assert largest_error(logits_of(folder), transformers_logits(folder, TOKENS)) < 1e-5


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}},
        {"rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}, "rope_theta": 1e5},
        {"rope_scaling": {key: value for key, value in LLAMA3.items() if "original" not in key}},
        {},
    ],
)
def test_older_spellings_of_scaling(folder: Path, rotary: Json) -> None:
    change_json(folder / "config.json", **({"rope_parameters": ...} | rotary))
    assert largest_error(logits_of(folder), transformers_logits(folder, TOKENS)) < 1e-5


@pytest.mark.parametrize("name", ["head_dim", "num_key_value_heads", "rms_norm_eps", "hidden_act", "rope_parameters"])
def test_what_a_file_leaves_out_is_transformers_default(name: str, tmp_path: Path) -> None:
    path = spec(num_key_value_heads=4).save(tmp_path)
    change_json(path / "config.json", **{name: ...})
    assert largest_error(logits_of(path), transformers_logits(path, TOKENS)) < 1e-5


@pytest.mark.parametrize(("window", "expected"), [(..., 4096), (None, None), (3, 3)])
def test_a_missing_window_is_not_null(tmp_path: Path, window: Any, expected: int | None) -> None:
    path = spec(True, sliding_window=5).save(tmp_path)
    change_json(path / "config.json", sliding_window=window)
    assert llama2cpp.load(path).config.sliding_window == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "falcon"},
            r'config\.json\.model_type \(byte \d+\): "falcon", expected "qwen2", "llama", "mistral",.* or "gpt_oss"',
        ),
        ({"model_type": ...}, r'config\.json .*: expected a member "model_type", found none'),
        ({"model_type": 7}, r"model_type .*: expected a string, found an integer"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r'architectures .*expected "LlamaForCausalLM"'),
        ({"architectures": ["MistralForCausalLM"]}, r'"MistralForCausalLM", expected "LlamaForCausalLM"'),
        ({"hidden_size": ...}, r'expected a member "hidden_size"'),
        ({"hidden_size": "32"}, r"hidden_size .*: expected an integer, found a string"),
        ({"hidden_size": -32}, r"config: dim is -32"),
        ({"hidden_size": 2**62}, r"config: dim is 4611686018427387904"),
        ({"num_attention_heads": 0}, r"config: n_heads is 0"),
        ({"num_attention_heads": 5, "head_dim": ...}, r"hidden_size is 32, which num_attention_heads 5"),
        ({"num_key_value_heads": 3}, r"n_kv_heads 3 does not divide"),
        ({"head_dim": 7}, r"head_dim is 7, expected an even number"),
        ({"hidden_act": "gelu"}, r'hidden_act .*: "gelu", expected "silu"'),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor .*: 0\.5, and only 1 is implemented"),
        ({"rope_interleaved": True}, r"rope_interleaved .*: 1, and only 0 is implemented"),
        ({"num_local_experts": 8}, r"num_local_experts .*: 8, and only 0 is implemented"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers\[1\] .*: 0, and only 1 is implemented"),
        ({"no_rope_layer_interval": 4}, r"no_rope_layer_interval .*: 4, and only 0 is implemented"),
        ({"attention_multiplier": 1.0}, r"attention_multiplier .*: 1, and only 0\.35355\d* is implemented for heads"),
        ({"query_pre_attn_scalar": 256}, r"query_pre_attn_scalar .*: 256, and only 8 is implemented for heads of 8"),
        ({"sliding_window": 5}, r'sliding_window .*: 5, and a model of type "llama" has no window'),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r'layer_types\[1\] .*"sliding_attention", expected'),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, r"auto_map.* brings Python code of its own"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads .*: heads are left out"),
        ({"rms_norm_eps": -1.0}, r"norm_eps is -1"),
        ({"rope_theta": 5.0}, r"rope_theta .*: 10000, but rope_theta of config\.json is 5"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -2.0}}, r"rope_scaling's factor is -2"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.0}}, "attention_factor is 0"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_slow": -1}}, "beta_slow is -1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}}, "rope_theta is 1, expected more"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}},
            "original_context is 0",
        ),
        ({"rope_parameters": {"rope_type": "axial"}}, r'rope_type is "axial"'),
        ({"rope_parameters": {"type": "su"}}, r'rope_type is "su"'),
        ({"rope_parameters": {"rope_type": "linear"}}, r'rope_parameters .*: expected a member "factor"'),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, r"rope_scaling's factor is 0"),
        ({"rope_parameters": {"rope_type": "linear", "type": "yarn"}}, r'"linear", but type is "yarn"'),
        ({"rope_parameters": {"mrope_section": [1]}}, r"mrope_section .*: not known"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, r"partial_rotary_factor .*: 0\.25, and only 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling .*: there are rope_parameters too"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r'quant_method .*: "awq"'),
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, r"bitsandbytes' 4 bits"),
    ],
)
def test_refused_by_name(folder: Path, changes: Json, said: str) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(folder)


@pytest.mark.parametrize("setting", ["attention_bias", "mlp_bias"])
def test_mistral_has_no_biases(tmp_path: Path, setting: str) -> None:
    path = spec(True).save(tmp_path)
    change_json(path / "config.json", **{setting: True})
    with pytest.raises(llama2cpp.FormatError, match=rf"{setting} .*: 1, and only 0 is implemented"):
        llama2cpp.load(path)


# --- tensors


def test_stored_frequencies_are_passed_over(folder: Path) -> None:
    expected = logits_of(folder)
    tensors = tensors_of(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    write_tensors(folder, tensors)
    assert np.array_equal(logits_of(folder), expected)


def test_an_output_matrix_of_a_tied_model_is_used(tmp_path: Path) -> None:
    """As transformers 5 does it, which ties only where the two are equal."""
    path = spec(tie_word_embeddings=True).save(tmp_path)
    tensors = tensors_of(path)
    tied = logits_of(path)
    write_tensors(path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert np.array_equal(logits_of(path), tied)
    write_tensors(path, tensors | {"lm_head.weight": torch.randn(50, 32)})
    assert largest_error(logits_of(path), transformers_logits(path, TOKENS)) < 1e-5


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("lm_head.weight", None, r"tensor 'lm_head\.weight' is missing from the 20 tensors"),
        ("model.embed_tokens.weight", None, r"tensor 'model\.embed_tokens\.weight' is missing"),
        ("model.layers.1.mlp.up_proj.weight", None, r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        ("model.norm.weight", torch.ones(31), r'"model\.norm\.weight" is F32 \[31\], expected F32 \[32\]'),
        ("model.norm.weight", torch.ones(1, 32), r"is F32 \[1, 32\], expected F32 \[32\]"),
        ("lm_head.weight", torch.ones(32, 50), r"is F32 \[32, 50\], expected F32 \[50, 32\]"),
        ("lm_head.weight", torch.ones(50, 32).char(), r"is I8 \[50, 32\], expected F32, F16 or BF16"),
        ("lm_head.weight", torch.ones(50, 32).to(torch.float8_e4m3fn), r"is F8_E4M3 \[50, 32\], expected F32, F16"),
        ("model.layers.2.mlp.up_proj.weight", torch.ones(48, 32), r"has no place in a Llama of 2 layers"),
        ("model.layers.0.self_attn.q_norm.weight", torch.ones(8), r"F32 \[8\], has no place in a Llama"),
        ("lm_head.bias", torch.ones(50), r'"lm_head\.bias", F32 \[50\], has no place'),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, name: str, tensor: torch.Tensor | None, said: str) -> None:
    replace_tensor(folder, name, tensor)
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(folder)


# --- hostile folders


def refused(folder: Path, said: str) -> None:
    with pytest.raises(llama2cpp.FormatError, match=said) as error:
        llama2cpp.load(folder)
    assert str(folder) in str(error.value)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        llama2cpp.load(folder)
    with pytest.raises(llama2cpp.FormatError, match="looks like a safetensors file"):
        llama2cpp.load(folder / "model.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1, "a": 2}', "\ufeff{}", '{"model_type": "llama"}'])
def test_bad_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    refused(folder, "config.json")


def test_other_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"found neither; pytorch_model\.bin is not read: save the model with transformers as safetensors")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "c:x", "a\\b", "a\0b", "../../blobs/x"]
)
def test_shards_have_plain_names(tmp_path: Path, name: str) -> None:
    folder = spec(shards="10KB").save(tmp_path / "model")
    index = read_json(folder / "model.safetensors.index.json")["weight_map"]
    change_json(folder / "model.safetensors.index.json", weight_map=index | {"lm_head.weight": name})
    refused(folder, "is no plain file name")


def test_shards_are_what_the_index_says(tmp_path: Path) -> None:
    folder = spec(shards="10KB").save(tmp_path / "model")
    path = folder / "model.safetensors.index.json"
    index = read_json(path)["weight_map"]
    shards = sorted(set(index.values()))
    change_json(path, weight_map=index | {"lm_head.weight": "model-00099-of-00099.safetensors"})
    refused(folder, r"model-00099-of-00099\.safetensors is missing from the folder")
    change_json(path, weight_map=index | {"model.none.weight": shards[0]})
    refused(folder, rf'tensor "model\.none\.weight" is not in {shards[0]}')
    change_json(path, weight_map=index | {"model.norm.weight": shards[0]})
    refused(folder, rf'tensor "model\.norm\.weight" is not in {shards[0]}')
    shutil.copy(folder / shards[0], folder / "twin.safetensors")
    change_json(path, weight_map=index | {"model.none.weight": "twin.safetensors"})
    refused(folder, rf"twin\.safetensors: tensor .* is in {shards[0]} too")
    change_json(path, weight_map=...)
    refused(folder, 'expected a member "weight_map"')
    change_json(path, weight_map={"a": 1})
    refused(folder, "expected a string, found an integer")


def linked(folder: Path, name: str, outside: Path, *, relative: bool) -> None:
    """Keep a file elsewhere, and a link to it in its place."""
    outside.mkdir(exist_ok=True)
    (folder / name).rename(outside / name)
    (folder / name).symlink_to(Path(os.path.relpath(outside, folder)) / name if relative else outside / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("relative", [False, True])
def test_texts_behind_links_out_of_the_folder(tmp_path: Path, name: str, relative: bool) -> None:
    """They could show what is not the folder's."""
    folder = spec(shards="10KB").save(tmp_path / "model")
    linked(folder, name, tmp_path / "blobs", relative=relative)
    refused(folder, rf"{name} is a link to .*, which is neither in the folder nor in the blobs of")


@pytest.mark.parametrize("shards", [None, "10KB"])
@pytest.mark.parametrize("relative", [False, True])
def test_weights_behind_a_users_own_link(tmp_path: Path, shards: str | None, relative: bool) -> None:
    folder = spec(shards=shards).save(tmp_path / "model")
    wanted = logits_of(folder)
    for path in sorted(folder.glob("*.safetensors")):
        linked(folder, path.name, tmp_path / "another disk", relative=relative)
    assert np.array_equal(logits_of(folder), wanted)
    (tmp_path / "link").symlink_to(folder)
    assert np.array_equal(logits_of(tmp_path / "link"), wanted)
    if shards is None:
        assert np.array_equal(logits_of(folder / "model.safetensors"), wanted)


# What tells a folder that was downloaded, so that its links are not the user's: where it lies, and what it has in it.
DOWNLOADED = {
    "cache": ("models--org--name/snapshots/revision", None, "snapshots"),
    "client": ("model", "model/.cache/huggingface", r"\.cache/huggingface"),
    "git": ("model", "model/.git", "the Git repository"),
    "git above": ("repository/original/model", "repository/.git", "the Git repository"),
}


@pytest.mark.parametrize("how", DOWNLOADED)
@pytest.mark.parametrize("relative", [False, True])
def test_links_out_of_downloaded_folders(tmp_path: Path, how: str, relative: bool) -> None:
    place, mark, said = DOWNLOADED[how]
    folder = spec().save(tmp_path / place)
    if mark is not None:
        (tmp_path / mark).mkdir(parents=True)
    linked(folder, "model.safetensors", tmp_path / "elsewhere", relative=relative)
    refused(folder, rf"model\.safetensors is a link to .* and .*{said}.* says that this one was downloaded")


@pytest.mark.parametrize("content", [b"-----BEGIN PRIVATE KEY-----\nsecret", b"\x08\0\0\0\0\0\0\0{secret}"])
def test_what_is_behind_a_link_is_not_shown(folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "key")
    with pytest.raises(FormatError, match=r"is a link to .*, which is no complete safetensors file") as error:
        llama2cpp.load(folder)
    assert "secret" not in str(error.value)
    assert "BEGIN" not in str(error.value)


def test_links_within_the_folder(folder: Path) -> None:
    expected = logits_of(folder)
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert np.array_equal(logits_of(folder), expected)


def test_links_that_lead_nowhere(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, r"config\.json is missing from the folder")


def test_no_files(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, r"config\.json is no file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_does_not_hang(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, r"model\.safetensors is no file")


def test_every_cut_of_the_weights_is_noticed(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for length in [*range(0, 64, 5), *range(64, len(whole), 997), len(whole) - 1]:
        (folder / "model.safetensors").write_bytes(whole[:length])
        refused(folder, r"model\.safetensors")


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llama2cpp.command import cli
    from llama2cpp.command.generate_command import names_a_checkpoint

    cli.info(str(folder))
    shown = capsys.readouterr().out
    assert "Hugging Face folder" in shown
    assert "model.layers.0-1.self_attn.o_proj.weight" in shown
    assert "none (the folder has no tokenizer.json)" in shown
    assert names_a_checkpoint(str(folder))
    assert not names_a_checkpoint(str(folder.parent))
