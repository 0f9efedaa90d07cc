"""What exports of each family are to transformers and to llama.cpp; and weights that files hold as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from family_models import CASES, PLUS_ONE, TOKENS, expected_logits, logits_of, write_gguf
from hf_folders import change_json, read_json
from llamacpp_goldens import CONTEXT, GOLDENS, TOLERANCE, TOLERANCES, cases, writers
from numpy.typing import NDArray
from reference import largest_error
from safetensors.numpy import load_file, save_file

import llama2cpp
from llama2cpp.common.probabilities import log_softmax
from llama2cpp.export import Calibration, convert
from llama2cpp.export.mixtures import tensor_format

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
# One model of each family, with every setting that one has.
SETTINGS = [
    "qwen2",
    "qwen3-windows",
    "ministral",
    "granite-biases",
    "smollm3-list",
    "phi3-partial",
    "phi3-longrope",
    "internlm3",
    "seed_oss-out",
    "cwm",
    "hunyuan",
    "olmo2-grouped",
    "olmo3-yarn",
    "exaone4",
    "exaone4-no-window",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-scaled",
    "vaultgemma",
    "arcee",
    "nemotron-biases",
    "glm",
    "glm4",
    "cohere",
    "cohere2",
    "starcoder2",
    "starcoder2-window",
    "stablelm",
    "stablelm-parallel",
    "olmo",
]
# Whose folders are written by their own family, tensor by tensor as they were. Of Gemma and Nemotron, 1 is added to
# gains and taken off again.
AS_THEY_WERE = [
    *("phi3-partial", "phi3-longrope", "olmo2-grouped", "olmo3-yarn", "exaone4", "vaultgemma", "gemma3", "cohere"),
    *("nemotron-biases", "glm", "glm4", "cohere2", "starcoder2", "stablelm", "stablelm-parallel", "olmo", "arcee"),
    *("hunyuan", "internlm3", "iquestcoder", "seed_oss", "seed_oss-out", "cwm"),
]
TEXT = Calibration(TOKENS * 4, sequences=2, length=40)


@pytest.mark.parametrize("name", [*SETTINGS, "ernie4_5"])
def test_transformers_opens_our_folder(name: str, tmp_path: Path) -> None:
    source = CASES[name].save(tmp_path / "theirs")
    done = convert(source, tmp_path / "ours", "f32")
    models: list[Any] = [
        transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
        for path in (source, done.path)
    ]
    expected, found = (expected_logits(model.float().eval(), TOKENS) for model in models)
    assert largest_error(found, expected) < 2e-6  # sums of a head are in another order where its rows are


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_scaling_where_part_of_a_head_is_turned(kind: str, tmp_path: Path) -> None:
    """Phi-3's files hold a GLM without biases, and transformers opens a Phi-3 with longrope's scaling alone."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 0.5}
    if kind != "linear":
        rope["original_max_position_embeddings"] = 16
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings = CASES["glm-no-bias"].settings | {"rope_parameters": rope}
    case = replace(CASES["glm-no-bias"], settings=settings)
    source = case.save(tmp_path / "source")
    done = convert(source, tmp_path / "written", "f32")
    assert read_json(done.path / "config.json")["model_type"] == "glm"
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(done.path, attn_implementation="eager")
    expected = expected_logits(case.model(), TOKENS)
    assert largest_error(expected_logits(theirs.float().eval(), TOKENS), expected) < 1e-5
    assert largest_error(logits_of(done.path, TOKENS), expected) < 1e-5


@pytest.mark.parametrize("name", AS_THEY_WERE)
def test_a_folder_of_the_same_family_keeps_every_bit(name: str, tmp_path: Path) -> None:
    source = CASES[name].save(tmp_path / "theirs")
    convert(source, tmp_path / "ours", "f32")
    assert read_json(tmp_path / "ours" / "config.json")["model_type"] == CASES[name].model_type
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "ours"))
    assert after.keys() == before.keys()
    plus_one = CASES[name].model_type in PLUS_ONE
    for key, value in after.items():
        if plus_one and "norm" in key and key.endswith(".weight"):
            assert np.abs(value - before[key]).max() <= 2.0**-23, key
        else:
            assert value.tobytes() == before[key].tobytes(), key
    found, expected = (logits_of(path, TOKENS) for path in (tmp_path / "ours", source))
    if plus_one:
        assert largest_error(found, expected) < 1e-5
    else:
        assert found.tobytes() == expected.tobytes()


# Which are written by another architecture's name: as a Llama's, or a Qwen 2's.
RENAMED = ("phi3", "phi3-grouped", "ernie4_5", "seed_oss")


@pytest.mark.parametrize("name", [name for name in cases() if name not in RENAMED])
def test_our_gguf_is_what_gguf_s_names_make_of_it(name: str, tmp_path: Path) -> None:
    case = cases()[name]
    write_gguf(tmp_path / "theirs.gguf", case)
    convert(case.save(tmp_path / "source"), tmp_path / "ours.gguf", "f32", tokenizer=False)
    theirs, ours = (gguf.GGUFReader(tmp_path / f"{whose}.gguf") for whose in ("theirs", "ours"))
    arrays, made = ({tensor.name: np.asarray(tensor.data) for tensor in reader.tensors} for reader in (theirs, ours))
    assert made.keys() == arrays.keys()
    for key, array in arrays.items():
        assert made[key].tobytes() == array.tobytes(), key
    prefix = f"{case.architecture}."
    expected, found = (
        {key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)}
        for reader in (theirs, ours)
    )
    assert expected.keys() - found.keys() <= {"attention.key_length", "attention.value_length"}
    assert found.keys() - expected.keys() <= {"rope.dimension_count", "rope.scaling.type", "use_parallel_residual"}
    for key in found.keys() & expected.keys():
        assert found[key] == pytest.approx(expected[key], rel=1e-6), key


@pytest.mark.cpu_bits("panels")
@pytest.mark.parametrize("name", ["gemma", "gemma2-own", "gemma3"])
def test_the_root_of_dim_is_not_rounded_to_the_type_of_the_table(name: str, tmp_path: Path) -> None:
    """A folder of bfloat16 computes as transformers does in float32, and as its GGUF does in llama.cpp."""
    half = convert(CASES[name].save(tmp_path / "theirs"), tmp_path / "half", "bf16")
    make: Any = transformers.AutoModelForCausalLM
    model = make.from_pretrained(half.path, dtype=torch.float32, attn_implementation="eager").eval()
    expected, found = expected_logits(model, TOKENS), logits_of(half.path, TOKENS)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    for target in ("m.gguf", "m.safetensors"):
        done = convert(half.path, tmp_path / target, *(["bf16"] if target.endswith("gguf") else []))
        assert not any("embedding_multiplier" in note for note in done.notes)
        assert logits_of(done.path, TOKENS).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    ("name", "settings", "architecture"),
    [
        ("seed_oss", {}, "llama"),  # with biases of inputs and heads of their own width, which a Qwen 2 has not
        ("glm-narrow", {}, "chatglm"),
        ("glm", {}, None),
        ("olmo2", {"tie_word_embeddings": True}, None),
        ("stablelm", {"tie_word_embeddings": True}, None),
        ("exaone4-no-window", {"head_dim": 16}, None),
    ],
)
def test_sizes_that_llama_cpp_opens(
    name: str, settings: dict[str, Any], architecture: str | None, tmp_path: Path
) -> None:
    case = replace(CASES[name], settings=CASES[name].settings | settings)
    source = case.save(tmp_path / "theirs")
    if architecture is None:
        with pytest.raises(ValueError, match=r"llama.cpp has no model .*(own width \(head_dim\)|\(tied\))"):
            convert(source, tmp_path / "m.gguf", "f32", tokenizer=False)
        return
    convert(source, tmp_path / "m.gguf", "f32", tokenizer=False)
    found = gguf.GGUFReader(tmp_path / "m.gguf").fields["general.architecture"].contents()
    assert found == architecture
    assert largest_error(logits_of(tmp_path / "m.gguf", TOKENS), logits_of(source, TOKENS)) < 1e-5


@pytest.mark.cpu_bits("panels")
@pytest.mark.parametrize("name", SETTINGS)
def test_panels_keep_every_bit(name: str, tmp_path: Path) -> None:
    source = CASES[name].save(tmp_path / "theirs")
    convert(source, tmp_path / "m.safetensors")
    assert logits_of(tmp_path / "m.safetensors", TOKENS).tobytes() == logits_of(source, TOKENS).tobytes()


@pytest.mark.parametrize("name", ["qwen2", "granite", "smollm3", "phi3-longrope", "gemma3", "glm4", "cohere2"])
def test_q8_0_is_that_of_panels(name: str, tmp_path: Path) -> None:
    """The same rows are rounded, in whichever tensor they lie."""
    source = CASES[name].save(tmp_path / "theirs")
    for target in ("m.gguf", "m.safetensors"):
        convert(source, tmp_path / target, "q8_0")
    found, expected = (logits_of(tmp_path / target, TOKENS) for target in ("m.gguf", "m.safetensors"))
    assert largest_error(found, expected) < 1e-5
    assert 1e-4 < largest_error(found, logits_of(source, TOKENS)) < 0.2


def test_longrope_on_both_sides_of_its_context(tmp_path: Path) -> None:
    source = CASES["phi3-longrope"].save(tmp_path / "theirs")
    found = {}
    for path in (source, *(convert(source, tmp_path / target, "f32").path for target in ("m", "m.gguf"))):
        with llama2cpp.load(path, kv_dtype="f32") as model:
            assert len(model.config.rope_long_factors) == 3
            found[path] = [model.session(context=context).prefill(TOKENS) for context in (32, 33)]
    assert largest_error(*found[source]) > 0.01
    for short, long in found.values():
        assert largest_error(short, found[source][0]) < 1e-5
        assert largest_error(long, found[source][1]) < 1e-5


def joined(folder: Path, planes: dict[str, NDArray[Any]]) -> None:
    """Put planes of a quantized Llama's modules together, as its folder would have them were it a Phi-3."""
    for layer in range(3):
        for whole, modules in FUSED.items():
            names = [f"model.layers.{layer}.{module}" for module in modules]
            for plane in {name.removeprefix(names[0]) for name in planes if name.startswith(f"{names[0]}.")}:
                arrays = [planes.pop(f"{name}{plane}") for name in names]
                if plane in (".g_idx", ".weight_format", ".outlier_columns"):
                    together = arrays[0]
                else:
                    together = np.concatenate(arrays, axis=int(plane in (".qweight", ".qzeros", ".scales")))
                planes[f"model.layers.{layer}.{whole}{plane}"] = np.array(together, order="C")
    save_file(planes, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("format", ["gptq8", "llm_int8"])
@pytest.mark.parametrize("name", ["glm", "hunyuan", "gemma"])
def test_quantized_folders_have_their_family_s_rows(name: str, format: str, tmp_path: Path) -> None:
    source = CASES[name].save(tmp_path / "theirs")
    text: dict[str, Any] = {"calibration": TEXT, "group": 16} if format == "gptq8" else {}
    done = convert(source, tmp_path / "ours", format, tokenizer=False, **text)
    assert read_json(done.path / "config.json")["model_type"] == CASES[name].model_type
    assert largest_error(logits_of(done.path, TOKENS), logits_of(source, TOKENS)) < 0.05


@pytest.mark.parametrize("format", ["gptq8", "gptq4", "llm_int8"])
def test_quantized_fused_weights(format: str, tmp_path: Path) -> None:
    """Read as those of a Llama's folder that were put together; and written."""
    source = CASES["phi3"].save(tmp_path / "theirs")
    llama = convert(source, tmp_path / "llama", format, calibration=TEXT, group=16 if format != "llm_int8" else None)
    expected = logits_of(llama.path, TOKENS)
    planes = load_file(llama.path / "model.safetensors")
    settings = {key: read_json(llama.path / "config.json")[key] for key in ("quantization_config", "torch_dtype")}
    joined(source, planes)
    change_json(source / "config.json", **settings)
    assert logits_of(source, TOKENS).tobytes() == expected.tobytes()

    partial = CASES["phi3-partial"].save(tmp_path / "partial")
    done = convert(partial, tmp_path / "ours", format, calibration=TEXT, group=16 if format != "llm_int8" else None)
    assert largest_error(logits_of(done.path, TOKENS), logits_of(partial, TOKENS)) < (
        0.5 if format == "gptq4" else 0.05
    )
    names = load_file(done.path / "model.safetensors")
    assert {name.split(".")[4] for name in names if ".self_attn." in name} == {"qkv_proj", "o_proj"}
    # Two planes that do not fit together.
    broken = {name: array for name, array in planes.items() if not name.endswith("1.self_attn.qkv_proj.g_idx")}
    first = next(name for name in broken if name.endswith(("2.mlp.gate_up_proj.scales", "2.mlp.gate_up_proj.SCB")))
    broken[first] = np.ascontiguousarray(broken[first][..., :-8])
    save_file(broken, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(llama2cpp.FormatError, match=r"gate_up_proj.* has 120 rows, expected 128"):
        llama2cpp.load(source)


def test_a_window_that_llama_cpp_does_not_compute_is_noted(tmp_path: Path) -> None:
    for name, noted in (("phi3-window", True), ("phi3", False)):
        done = convert(CASES[name].save(tmp_path / name), tmp_path / f"{name}.gguf", "f32")
        assert any("without their window (sliding_window 6)" in note for note in done.notes) == noted


def test_mixtures_of_fused_weights() -> None:
    """llama.cpp's rules for attn_qkv; a fused ffn_up has none."""
    config = llama2cpp.load("storyteller").config
    found = {
        mixture: [
            tensor_format(mixture, config, f"layers.0.{name}.weight", 256, fused=True)
            for name in ("attention.wq", "attention.wv", "feed_forward.w1")
        ]
        for mixture in ("q2_k", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")
    }
    assert found == {
        "q2_k": ["q2_k", "q2_k", "q2_k"],
        "q3_k_m": ["q4_k", "q4_k", "q3_k"],
        "q3_k_l": ["q4_k", "q4_k", "q3_k"],
        "q4_k_s": ["q4_k", "q4_k", "q4_k"],
        "q4_k_m": ["q5_k", "q5_k", "q4_k"],
        "q5_k_m": ["q6_k", "q6_k", "q5_k"],
        "q6_k": ["q6_k", "q6_k", "q6_k"],
        "q8_0": ["q8_0", "q8_0", "q8_0"],
        "f16": ["f16", "f16", "f16"],
    }


def test_llama_cpp_s_logits(tmp_path: Path) -> None:
    """Of files that gguf writes; the goldens are made by tests/support/llamacpp_goldens.py."""
    goldens = json.loads(GOLDENS.read_text(encoding="utf-8"))
    assert goldens.keys() == writers().keys()
    for name, write in writers().items():
        path = tmp_path / f"{name}.gguf"
        write(path)
        with llama2cpp.load(path, kv_dtype="f32", activation_dtype="f32") as model:
            context = min(CONTEXT, model.config.seq_len)
            found = log_softmax(model.session(context=context).prefill(TOKENS))
        assert np.abs(found - np.array(goldens[name])).max() < TOLERANCES.get(name, TOLERANCE), name
