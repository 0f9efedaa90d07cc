"""GPTQ folders: bits where the published layout puts them, weights and logits of every variant, and refusals."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from gptq_files import quantize_folder
from gptq_models import folder_of_gguf
from hf_folders import Json, Spec, change_json, read_json, replace_tensor, tensors_of, write_tensors
from on_metal import ON_METAL, agree

import llama2cpp
from llama2cpp.common.probabilities import log_softmax

TOKENS = [1, 7, 3, 49, 0, 12, 30]


def spec(**settings: Any) -> Spec:
    sizes = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 1}
    return Spec(settings=sizes | settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return spec().save(tmp_path / "model")


def float_twin(folder: Path, floats: dict[str, torch.Tensor]) -> Path:
    twin = folder.parent / "floats"
    twin.mkdir()
    shutil.copy(folder / "config.json", twin)
    change_json(twin / "config.json", quantization_config=...)
    write_tensors(twin, floats)
    return twin


def logits_of(path: Path, **options: Any) -> Any:
    with llama2cpp.load(path, **({"kv_dtype": "f32", "activation_dtype": "f32"} | options)) as model:
        return model.session().prefill(TOKENS, all_logits=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_same_as_the_floats_they_stand_for(
    folder: Path, bits: int, group_size: int, version: int, act_order: bool
) -> None:
    """Also where groups do not divide the columns: down_proj has 160."""
    floats = quantize_folder(folder, bits, group_size, version, act_order)
    model = llama2cpp.load(folder, kv_dtype="f32", activation_dtype="f32")
    assert model.file_format == f"Hugging Face folder, gptq{bits}" + "_v2" * (version == 2)
    assert set(model.weights) == set(floats)
    for name, tensor in floats.items():
        assert np.array_equal(model.weights[name], tensor.numpy()), name
    info = model.weights.info("model.layers.0.mlp.up_proj.weight")
    assert info["format"] == f"gptq{bits}" + "_v2" * (version == 2)
    assert info["shape"] == (160, 128)
    assert model.activation_dtype == "f32"
    expected = logits_of(float_twin(folder, floats))
    logits = model.session().prefill(TOKENS, all_logits=True)
    if act_order:  # sums take columns by their groups
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    else:
        assert agree(logits, expected)
    assert agree(logits_of(folder, pack="never", threads=1), logits)


@pytest.mark.cpu_bits("int8 activations")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act_order", [False, True])
def test_rounded_activations(folder: Path, bits: int, group_size: int, version: int, act_order: bool) -> None:
    """They are the default, and as near as rounding to a 127th is. The sums themselves: tests/cpp."""
    quantize_folder(folder, bits, group_size, version, act_order)
    with llama2cpp.load(folder, kv_dtype="f32") as model:
        assert model.activation_dtype == "int8"
        logits = model.session().prefill(TOKENS, all_logits=True)
        steps = model.session()
        assert all(np.array_equal(steps.step(token), row) for token, row in zip(TOKENS, logits, strict=True))
    assert agree(logits_of(folder, activation_dtype="int8", pack="never", threads=3), logits)
    expected = logits_of(folder)
    assert not np.array_equal(logits, expected)
    assert np.linalg.norm(logits - expected) <= 0.05 * np.linalg.norm(expected)


@pytest.mark.cpu_bits("kernels of the CPU")
@pytest.mark.parametrize("isa", tiny.ISAS)
def test_every_isa(folder: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    quantize_folder(folder, act_order=True)
    wanted = logits_of(folder, activation_dtype="int8")
    tiny.choose_isa(monkeypatch, isa)
    assert agree(logits_of(folder, activation_dtype="int8"), wanted)


@pytest.mark.parametrize("act_order", [False, True])
def test_a_real_model(smollm2_path: Path, tmp_path: Path, act_order: bool) -> None:
    """What rounding the activations costs, on SmolLM2's own values: about 0.003 nats."""
    folder = folder_of_gguf(smollm2_path, tmp_path / "model", act_order=act_order)
    with llama2cpp.load(smollm2_path) as source:
        assert source.tokenizer is not None
        ids = source.tokenizer.encode(
            "The harbour was quiet when the last boat came in. Two men tied it to the iron ring"
        )
    logits = {}
    for activations in ("f32", "int8"):
        with llama2cpp.load(folder, activation_dtype=activations) as model:
            logits[activations] = log_softmax(model.session(context=64).prefill(ids, all_logits=True))
    divergence = (np.exp(logits["f32"]) * (logits["f32"] - logits["int8"])).sum(axis=-1)
    assert divergence.mean() < 0.01


@pytest.mark.parametrize("modules", [("q_proj",), ("gate_proj", "up_proj"), ("lm_head",), ("down_proj", "lm_head")])
def test_only_what_is_quantized(tmp_path: Path, modules: tuple[str, ...]) -> None:
    folder = spec(vocab_size=64).save(tmp_path / "model")
    floats = quantize_folder(folder, modules=modules)
    assert agree(logits_of(folder), logits_of(float_twin(folder, floats)))


def test_without_g_idx_and_with_biases_of_zeros(folder: Path) -> None:
    floats = quantize_folder(folder, g_idx=False)
    zeros = {
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(128),
        "model.layers.0.mlp.up_proj.bias": torch.zeros(160),
    }
    write_tensors(folder, tensors_of(folder) | zeros)
    assert agree(logits_of(folder), logits_of(float_twin(folder, floats)))


def test_settings_beside_the_config(folder: Path) -> None:
    """As AutoGPTQ first wrote them."""
    quantize_folder(folder, bits=8)
    expected = logits_of(folder)
    settings = read_json(folder / "config.json")["quantization_config"]
    del settings["quant_method"]
    change_json(folder / "config.json", quantization_config=...)
    change_json(folder / "quantize_config.json", **settings)
    assert agree(logits_of(folder), expected)


# --- GPTQModel's rules for some modules

LAYER = "model.layers.0"
DOWN = f"{LAYER}.mlp.down_proj.weight"
OWN = {
    "bits": ({".*down_proj": {"bits": 8}}, {f"{LAYER}.mlp.down_proj": (8, 32)}),
    "plus": ({r"+:.*\.mlp\..*": {"bits": 2}}, {f"{LAYER}.mlp.{name}_proj": (2, 32) for name in ("gate", "up", "down")}),
    "groups": ({r".*\.[qk]_proj": {"group_size": 64}}, {f"{LAYER}.self_attn.{name}_proj": (4, 64) for name in "qk"}),
    "both": ({"+:.*v_proj": {"bits": 3, "group_size": 128}}, {f"{LAYER}.self_attn.v_proj": (3, 128)}),
    "one group": ({".*o_proj": {"group_size": -1, "sym": False}}, {f"{LAYER}.self_attn.o_proj": (4, -1)}),
    "the first that fits": (
        {".*up_proj": {"bits": 8}, ".*mlp.*": {"bits": 2, "group_size": 16}},
        {f"{LAYER}.mlp.up_proj": (8, 32), f"{LAYER}.mlp.gate_proj": (2, 16), f"{LAYER}.mlp.down_proj": (2, 16)},
    ),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("g_idx", [True, False])
def test_rules_of_some_modules(folder: Path, name: str, version: int, g_idx: bool) -> None:
    """Bits and groups of a module's own."""
    rules, own = OWN[name]
    floats = quantize_folder(folder, version=version, own=own, g_idx=g_idx)
    settings = read_json(folder / "config.json")["quantization_config"]
    change_json(folder / "config.json", quantization_config=settings | {"dynamic": rules})
    with llama2cpp.load(folder) as model:
        for each, tensor in floats.items():
            assert np.array_equal(model.weights[each], tensor.numpy()), each
            bits = own.get(each.removesuffix(".weight"), (4, 32))[0]
            if "proj" in each:
                assert model.weights.info(each)["format"] == f"gptq{bits}" + "_v2" * (version == 2)
    assert agree(logits_of(folder), logits_of(float_twin(folder, floats)))


def test_rules_that_leave_modules_out(folder: Path) -> None:
    floats = quantize_folder(folder, modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    settings = read_json(folder / "config.json")["quantization_config"]
    change_json(folder / "config.json", quantization_config=settings | {"dynamic": {r"-:.*\.mlp\..*": {}}})
    assert agree(logits_of(folder), logits_of(float_twin(folder, floats)))


def test_groups_that_could_be_of_two_sizes(folder: Path) -> None:
    """160 columns are three groups of 64 or of 54: only g_idx can tell."""
    own = {f"{LAYER}.mlp.down_proj": (4, 54)}
    rules = {".*down_proj": {"group_size": 54}}
    for g_idx in (True, False):
        floats = quantize_folder(folder, group_size=64, own=own, g_idx=g_idx, modules=("down_proj",))
        settings = read_json(folder / "config.json")["quantization_config"]
        change_json(folder / "config.json", quantization_config=settings | {"dynamic": rules})
        if g_idx:
            assert np.array_equal(llama2cpp.load(folder).weights[f"{LAYER}.mlp.down_proj.weight"], floats[DOWN].numpy())
            assert agree(logits_of(folder), logits_of(float_twin(folder, floats)))
            write_tensors(folder, floats)
        else:
            with pytest.raises(llama2cpp.FormatError, match="has 3 groups and no g_idx, so they may have 64 or 54"):
                llama2cpp.load(folder)


# --- scales of other types


@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_of_other_types(folder: Path, tmp_path: Path, scale_type: torch.dtype, exact: bool, bits: int) -> None:
    """Where they are halves all the same nothing changes; others are exact, and run as floats."""
    floats = quantize_folder(folder, bits, scale_type=scale_type, exact=exact and scale_type == torch.float32)
    with llama2cpp.load(folder) as model:
        for each, tensor in floats.items():
            assert np.array_equal(model.weights[each], tensor.numpy()), each
        halves = exact and scale_type == torch.float32
        assert ON_METAL or model.activation_dtype == ("int8" if halves else "f32")
    wanted = logits_of(float_twin(folder, floats))
    assert agree(logits_of(folder), wanted)
    assert agree(logits_of(folder, pack="never"), wanted)
    llama2cpp.export.convert(folder, tmp_path / "panels.safetensors")
    assert agree(logits_of(tmp_path / "panels.safetensors"), wanted)


def test_brain_floats_that_are_halves(folder: Path) -> None:
    """As most are that are scales: they have fewer digits, and their exponents are those of halves."""
    quantize_folder(folder)
    tensors = tensors_of(folder)
    scales = {name: tensor.bfloat16() for name, tensor in tensors.items() if name.endswith(".scales")}
    write_tensors(folder, tensors | {name: tensor.half() for name, tensor in scales.items()})
    with llama2cpp.load(folder) as model:
        wanted = model.session().prefill(TOKENS, all_logits=True)
    write_tensors(folder, tensors | scales)
    with llama2cpp.load(folder) as model:
        assert ON_METAL or model.activation_dtype == "int8"
        assert agree(model.session().prefill(TOKENS, all_logits=True), wanted)


# Literal words. Column k of row 0 is k modulo 2^bits; scale 1; the zero of row 0 is 1, stored as 0 by version 1.
WORDS = {
    2: [0xE4E4E4E4] * 8,
    3: [0x88FAC688, 0xC688FAC6, 0xFAC688FA] * 4,
    4: [0x76543210, 0xFEDCBA98] * 8,
    8: [int.from_bytes(bytes(range(4 * word, 4 * word + 4)), "little") for word in range(32)],
}


@pytest.mark.parametrize("bits", WORDS)
@pytest.mark.parametrize("version", [1, 2])
def test_literal_words(folder: Path, bits: int, version: int) -> None:
    quantize_folder(folder, bits, -1, version)
    tensors = tensors_of(folder)
    module = "model.layers.0.self_attn.q_proj"
    words = np.array([struct.unpack("<i", struct.pack("<I", word)) for word in WORDS[bits]], np.int32)
    zero_words = np.zeros((1, 128 * bits // 32), np.int32)
    # Row 1's zero: version 1 stores 2^bits - 1 for 0.
    zero_words[0, 0] = 1 if version == 2 else ((1 << bits) - 1) << bits
    tensors[f"{module}.qweight"] = torch.from_numpy(np.repeat(words, 128, axis=1))
    tensors[f"{module}.qzeros"] = torch.from_numpy(zero_words)
    tensors[f"{module}.scales"] = torch.ones(1, 128, dtype=torch.float16)
    write_tensors(folder, tensors)
    weight = llama2cpp.load(folder).weights[f"{module}.weight"]
    q = np.arange(128, dtype=np.float32) % (1 << bits)
    assert np.array_equal(weight[0], q - 1)
    assert np.array_equal(weight[1], q)
    assert np.array_equal(weight[2], q - (1 if version == 1 else 0))


# --- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant_method": "awq"}, r'quant_method .*: "awq", expected "gptq"'),
        ({"quant_method": "fp8"}, r'"fp8", expected "gptq"'),
        ({"quant_method": "compressed-tensors"}, r'"compressed-tensors", expected "gptq"'),
        ({"quant_method": ...}, r'expected a member "quant_method"'),
        ({"checkpoint_format": "marlin"}, r'"marlin", expected "gptq" or "gptq_v2"'),
        ({"checkpoint_format": "gptq_p"}, r'"gptq_p", expected "gptq" or "gptq_v2"'),
        ({"format": "gemm"}, r'"gemm", expected "gptq" or "gptq_v2"'),
        ({"is_marlin_format": True}, r"is_marlin_format .*: it is set"),
        ({"pack_dtype": "int64"}, r'pack_dtype .*: "int64", expected "int32"'),
        ({"rotation": "hadamard"}, r"rotation .*: it is set"),
        ({"dynamic": {"+:.*down.*": {"bits": 5}}}, r"dynamic.*bits .*: 5, expected 2, 3, 4 or 8"),
        ({"dynamic": {".*down.*": {"group_size": 0}}}, r"dynamic.*group_size .*: 0, expected 1 or more, or -1"),
        ({"dynamic": {".*down.*": {"adapter": {"rank": 4}}}}, r"dynamic.*adapter .*: it is set"),
        (
            {"dynamic": {".*down.*": {"checkpoint_format": "gptq_v2"}}},
            r"checkpoint_format .*: another version",
        ),
        ({"dynamic": {".*down.*": 4}}, r"dynamic.*: expected an object, found an integer"),
        ({"bits": 5}, r"bits .*: 5, expected 2, 3, 4 or 8"),
        ({"bits": 8}, r"qweight\" is I32 \[\d+, \d+\], expected I32"),
        ({"group_size": 0}, r"group_size .*: 0, expected 1 or more, or -1"),
        ({"group_size": 64}, r"(scales|qzeros)\" is .*, expected"),
        ({"group_size": 2**62}, r"(scales|qzeros)\" is .*, expected"),
    ],
)
def test_refused_by_name(folder: Path, changes: Json, said: str) -> None:
    quantize_folder(folder)
    settings = read_json(folder / "config.json")["quantization_config"] | changes
    kept = {key: value for key, value in settings.items() if value is not ...}
    change_json(folder / "config.json", quantization_config=kept)
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(folder)


@pytest.mark.parametrize(
    ("part", "tensor", "said"),
    [
        ("qweight", None, r'q_proj\.qweight" is missing, beside'),
        ("qzeros", None, r'q_proj\.qzeros" is missing, beside'),
        ("scales", None, r'q_proj\.scales" is missing, beside'),
        ("scales", torch.ones(4, 128).double(), r"is F64 \[4, 128\], expected F16 \[4, 128\], F32 or BF16"),
        ("scales", torch.ones(4, 127), r"is F32 \[4, 127\], expected F16 \[4, 128\], F32 or BF16"),
        ("scales", torch.ones(5, 128), r"is F32 \[5, 128\], expected F16 \[4, 128\]"),
        ("qweight", torch.ones(16, 127).int(), r"is I32 \[16, 127\], expected I32 \[16, 128\]"),
        ("qzeros", torch.ones(16, 4).int(), r"is I32 \[16, 4\], expected I32 \[4, 16\]"),
        ("g_idx", torch.ones(128).long(), r"is I64 \[128\], expected I32 \[128\]"),
        ("g_idx", torch.full((128,), 4).int(), r"column 0 is of group 4, expected 0 to 3"),
        ("g_idx", torch.full((128,), -1).int(), r"column 0 is of group -1, expected 0 to 3"),
        ("weight", torch.ones(128, 128), r'q_proj\.weight" is there twice'),
        ("bias", torch.ones(128), r'q_proj\.bias" is there, but config\.json has no attention_bias'),
        ("extra", torch.ones(128), r"has no place in a Llama"),
    ],
)
def test_planes_that_do_not_fit(folder: Path, part: str, tensor: torch.Tensor | None, said: str) -> None:
    quantize_folder(folder)
    replace_tensor(folder, f"model.layers.0.self_attn.q_proj.{part}", tensor)
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(folder)


@pytest.mark.parametrize("group_size", [16, 48, 80])
def test_groups_that_blocks_of_32_do_not_fit(folder: Path, group_size: int) -> None:
    """They run as floats."""
    floats = quantize_folder(folder, group_size=group_size)
    with llama2cpp.load(folder, kv_dtype="f32") as model:
        logits = model.session().prefill(TOKENS, all_logits=True)
    assert agree(logits, logits_of(float_twin(folder, floats)))
    with pytest.raises(
        ValueError, match=r"activation_dtype is 'int8', but tensor 'model\.layers\.0.* is gptq4 of groups of"
    ):
        llama2cpp.load(folder, backend="cpu", activation_dtype="int8")


def test_groups_of_all_sizes(folder: Path) -> None:
    """A g_idx that no quantizer writes: its modules run as floats."""
    quantize_folder(folder, modules=("q_proj", "o_proj"))
    tensors = tensors_of(folder)
    rng = np.random.default_rng(3)
    for name in ("q_proj", "o_proj"):
        g_idx = rng.integers(0, 4, 128).astype(np.int32)
        tensors[f"model.layers.0.self_attn.{name}.g_idx"] = torch.from_numpy(g_idx)
    write_tensors(folder, tensors)
    with llama2cpp.load(folder, kv_dtype="f32") as model:
        assert model.activation_dtype == "f32"
        twin = {name: torch.from_numpy(np.array(model.weights[name])) for name in model.weights}
        logits = model.session().prefill(TOKENS, all_logits=True)
    assert agree(logits, logits_of(float_twin(folder, twin)))


def test_planes_of_a_folder_of_floats(folder: Path) -> None:
    quantize_folder(folder)
    change_json(folder / "config.json", quantization_config=...)
    with pytest.raises(llama2cpp.FormatError, match=r"g_idx\", I32 .*has no place"):
        llama2cpp.load(folder)


def test_sessions_know_the_weights(folder: Path, tmp_path: Path) -> None:
    """The fingerprint of a session file reads planes that are no rows."""
    quantize_folder(folder)
    model = llama2cpp.load(folder)
    session = model.session()
    session.prefill(TOKENS)
    session.save(tmp_path / "session.safetensors")
    assert model.load_session(tmp_path / "session.safetensors").position == len(TOKENS)
