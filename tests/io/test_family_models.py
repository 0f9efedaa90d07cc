"""Models of every family against transformers: from folders, and through GGUF with gguf's own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from expert_models import CASES as EXPERT_CASES
from family_models import (
    CASES,
    LLAMA3,
    MULTIPLIERS,
    TOKENS,
    Case,
    begin_gguf,
    expected_logits,
    from_config,
    logits_of,
    same_bits,
    write_gguf,
)
from gguf import GGMLQuantizationType as Type
from hf_folders import change_json
from on_metal import agree
from reference import largest_error

import llama2cpp
from llama2cpp.export import convert

# What some targets cannot hold, by the field that says so.
REFUSED = {
    ("qwen2-windows", "m.gguf"): "full_layers",
    ("qwen2-layer-types", "m.gguf"): "full_layers",
    ("qwen3-windows", "m.gguf"): "full_layers",
    ("ministral", "m.gguf"): "full_layers",
    ("smollm3-every-2", "m.gguf"): "no_rope_layers",
    ("smollm3-list", "m.gguf"): "no_rope_layers",
    ("cwm", "m.gguf"): "full_layers",
    ("qwen3-biases", "m.gguf"): "biases",
    ("phi3-partial", "m.gguf"): "head_dim",
    ("hunyuan-plain", "m.gguf"): "biases",
    ("olmo2-grouped", "m.gguf"): "biases",
    ("gemma2", "m.gguf"): "attention_multiplier",
    ("gemma3-scaled", "m.gguf"): "attention_multiplier",
    ("vaultgemma", "m.gguf"): "score_cap",
    ("arcee", "m.gguf"): "biases",
    ("glm", "m.gguf"): "rotary_dim",
    ("cohere-biases", "m.gguf"): "biases",
    ("starcoder2-window", "m.gguf"): "activation gelu_tanh",
    ("olmo", "m.gguf"): "biases",
}
IN_GGUF = [name for name, case in CASES.items() if case.architecture]


@pytest.mark.parametrize("name", CASES)
def test_a_folder(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.save(tmp_path)
    expected = expected_logits(case.model(), TOKENS)
    found = logits_of(path, TOKENS, threads=1)
    assert largest_error(found, expected) < 1e-5
    # The same bits with chunked prefill, and on any number of threads.
    for threads in (1, 2, 3):
        same_bits(path, found, TOKENS, (1, 7, 19), threads=threads)


@pytest.mark.parametrize("name", IN_GGUF)
def test_a_gguf(name: str, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", CASES[name])
    assert largest_error(logits_of(tmp_path / "m.gguf", TOKENS), expected_logits(model, TOKENS)) < 1e-5


LAYER_TYPES = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "sliding_attention"]
WINDOWED: list[tuple[str, str, dict[str, Any]]] = [
    ("exaone4", "exaone4", {}),
    ("olmo3", "olmo2", {}),
    ("cohere2", "cohere2", {"logit_scale": 0.0625}),
    ("gemma2", "gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    ("gemma3_text", "gemma3", {}),
]


@pytest.mark.parametrize(("model_type", "architecture", "metadata"), WINDOWED)
@pytest.mark.parametrize("pattern", ["bools", "number", "none", "all"])
def test_a_pattern_of_windows_in_a_gguf(
    model_type: str, architecture: str, metadata: dict[str, Any], pattern: str, tmp_path: Path
) -> None:
    """As converters write it: a bool for each layer, or of how many layers one has no window."""
    types = {
        "bools": LAYER_TYPES,
        "number": ["full_attention" if i % 2 else "sliding_attention" for i in range(5)],
        "none": ["full_attention"] * 5,
        "all": ["sliding_attention"] * 5,
    }[pattern]
    windows = [kind == "sliding_attention" for kind in types]
    metadata = metadata | {
        "attention.sliding_window": 4,
        "attention.sliding_window_pattern": {"number": 2, "all": 0}.get(pattern, windows),
    }
    settings: dict[str, Any] = {"num_hidden_layers": 5, "sliding_window": 4, "layer_types": types}
    settings |= {"head_dim": 16, "query_pre_attn_scalar": 16} if architecture.startswith("gemma") else {}
    model = write_gguf(tmp_path / "m.gguf", Case(model_type, settings, architecture, metadata))
    assert largest_error(logits_of(tmp_path / "m.gguf", TOKENS), expected_logits(model, TOKENS)) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "pattern", "said"),
    [
        (
            "exaone4",
            [True, False],
            r"sliding_window_pattern\" \(byte \d+\) is 2 bools, expected one for each of 3 layers",
        ),
        ("exaone4", [1, 0, 1], "sliding_window_pattern.*an array of int32s, expected bools"),
        ("exaone4", -1, "sliding_window_pattern.*is -1, expected 0 or more"),
        ("exaone4", 1.5, "sliding_window_pattern.*a float32, expected an integer"),
        ("qwen2", 2, "sliding_window_pattern.* is not known"),
    ],
)
def test_no_pattern_of_windows(architecture: str, pattern: Any, said: str, tmp_path: Path) -> None:
    case = CASES["exaone4-no-window" if architecture == "exaone4" else "qwen2"]
    writer = begin_gguf(tmp_path / "m.gguf", architecture, case.model().config, {"attention.sliding_window": 4})
    add: Any = {int: writer.add_int32, float: writer.add_float32, list: writer.add_array}[type(pattern)]
    add(f"{architecture}.attention.sliding_window_pattern", pattern)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0])
@pytest.mark.parametrize("name", [name for name in IN_GGUF if not CASES[name].turned])
def test_a_quantized_gguf(name: str, kind: Type, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", CASES[name], kind)
    assert largest_error(logits_of(tmp_path / "m.gguf", TOKENS), expected_logits(model, TOKENS)) < 1e-5


@pytest.mark.parametrize("target", ["m", "m.gguf", "m.safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_an_export(name: str, target: str, tmp_path: Path) -> None:
    """The same logits, or an error that names what the target cannot hold."""
    path = CASES[name].save(tmp_path / "theirs")
    expected = logits_of(path, TOKENS)
    refused = REFUSED.get((name, target))
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            convert(path, tmp_path / target, "f32", tokenizer=False)
        return
    convert(path, tmp_path / target, "f32", tokenizer=False)
    assert largest_error(logits_of(tmp_path / target, TOKENS), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("qwen2", {"attention_bias": True}),
        ("qwen2", {"attention_multiplier": 0.3}),
        ("qwen3", {"no_rope_layers": [1, 0, 1]}),
        ("qwen3", {"embedding_multiplier": 2.0}),
        ("qwen3", {"query_pre_attn_scalar": 5}),
        ("qwen3", {"partial_rotary_factor": 0.5}),
        ("phi3", {"final_logit_softcapping": 30.0}),
        ("granite", {"no_rope_layers": [1, 0, 1]}),
        ("smollm3", {"residual_multiplier": 0.3}),
        ("smollm3", {"sliding_window": 5}),
        ("ministral", {"layer_types": ["sliding_attention"] * 2}),
        ("ministral", {"layer_types": ["chunked_attention"] * 3}),
        ("smollm3", {"no_rope_layers": [1, 0]}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}),
        ("granite", {"attention_multiplier": 0.0}),
        ("qwen3", {"hidden_act": "gelu"}),
        ("ernie4_5", {"use_bias": True}),
        ("helium", {"attention_bias": True}),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(name: str, setting: dict[str, object], tmp_path: Path) -> None:
    path = CASES[name].save(tmp_path)
    change_json(path / "config.json", **setting)
    with pytest.raises(llama2cpp.FormatError, match=rf"config\.json\.{list(setting)[-1]}"):
        llama2cpp.load(path)


def test_a_fused_weight_of_other_rows(tmp_path: Path) -> None:
    path = CASES["phi3"].save(tmp_path)
    change_json(path / "config.json", num_key_value_heads=4)
    with pytest.raises(llama2cpp.FormatError, match=r"qkv_proj\.weight\" has 64 rows, expected 96 of 3 weights"):
        llama2cpp.load(path)


def test_hooks_see_true_values(tmp_path: Path) -> None:
    """What is added to the residual stream is what the hooks show, multipliers and all."""
    case = Case("granite", MULTIPLIERS | {"attention_bias": True, "mlp_bias": True})
    model = llama2cpp.load(case.save(tmp_path), kv_dtype="f32")
    names = lambda name: True  # noqa: E731
    logits, cache = model.run_with_cache(TOKENS, names_filter=names)
    embedded = model.weights["model.embed_tokens.weight"][TOKENS] * np.float32(MULTIPLIERS["embedding_multiplier"])
    assert cache["hook_embed"][0].tobytes() == embedded.tobytes()
    for i in range(3):
        assert np.array_equal(cache["resid_mid", i], cache["resid_pre", i] + cache["attn_out", i])
        assert np.array_equal(cache["resid_post", i], cache["resid_mid", i] + cache["mlp_out", i])
        bias = model.accumulated_bias(i + 1, mlp_input=False, include_mlp_biases=False)
        bias = bias - model.accumulated_bias(i, include_mlp_biases=False)
        heads = cache["result", i].sum(axis=-2) + bias
        assert largest_error(heads, cache["attn_out", i]) < 1e-5
    assert agree(model.unembed(cache["resid_post", 2], apply_ln=True), logits)


def test_hooks_of_normed_queries_and_keys(tmp_path: Path) -> None:
    model = llama2cpp.load(CASES["qwen3"].save(tmp_path), kv_dtype="f32")
    _, cache = model.run_with_cache(TOKENS)
    for letter, heads in (("q", 4), ("k", 2)):
        raw = cache[f"blocks.1.attn.hook_{letter}"].astype(np.float64)
        gain = model.weights[f"model.layers.1.self_attn.{letter}_norm.weight"]
        normed = raw / np.sqrt((raw**2).mean(-1, keepdims=True) + model.config.norm_eps) * gain
        found = cache[f"blocks.1.attn.hook_{letter}_normed"]
        assert found.shape == (1, len(TOKENS), heads, 16)
        assert largest_error(found, normed) < 1e-6
        # A change of what is normed is a change of the logits.
    logits = model.session().prefill(TOKENS)
    with model.hooks([("blocks.1.attn.hook_q_normed", lambda activation, hook: activation * 0)]):
        assert not np.array_equal(model.session().prefill(TOKENS), logits)


def test_a_llama_has_no_such_hooks(tmp_path: Path) -> None:
    model = llama2cpp.load(CASES["phi3"].save(tmp_path))
    with pytest.raises(ValueError, match="hook_q_normed"):
        model.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_q_normed")


@pytest.mark.parametrize("name", ["smollm3-list", "phi3-partial", "phi3-longrope", "granite"])
def test_keys_turned_back_are_those_before_rotary(name: str, tmp_path: Path) -> None:
    with llama2cpp.load(CASES[name].save(tmp_path), kv_dtype="f32") as model:
        for context in {model.context, 64}:
            session = model.session(context=context)
            seen: dict[int, Any] = {}

            def look(keys: Any, hook: Any, seen: dict[int, Any] = seen) -> None:
                seen[hook.layer] = keys.reshape(len(TOKENS), 2, -1).copy()

            with model.hooks([("blocks.*.attn.hook_k", look)]):
                session.prefill(TOKENS)
            for layer in range(3):
                assert largest_error(session.kv.unrotated_keys(layer), seen[layer]) < 1e-5
            # A key that moves is what it would have been there.
            moved = session.fork()
            moved.kv.splice(session.kv, 0, 5, at=4)
            for layer in range(3):
                assert largest_error(moved.kv.unrotated_keys(layer)[4:9], seen[layer][:5]) < 1e-5


# Sizes that a family's own defaults need: heads of enough numbers to turn, what transformers does not work out from
# others, and experts' numbers, which are never assumed.
NEEDED: dict[str, dict[str, Any]] = {
    "helium": {"num_attention_heads": 20, "hidden_size": 20 * 128, "num_hidden_layers": 1},  # its o_proj is square
    "stablelm": {"hidden_size": 256},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "cwm": {"rope_parameters": LLAMA3},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": LLAMA3},
}


@pytest.mark.parametrize("name", sorted({"gpt_oss", *(case.model_type for case in (CASES | EXPERT_CASES).values())}))
def test_what_a_config_leaves_out_is_as_in_transformers(name: str, tmp_path: Path) -> None:
    """A config.json of sizes alone, beside the weights of the model that transformers makes of it."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 7 if name == "gemma3_text" else 5,
        "num_attention_heads": 32,
        "vocab_size": 50,
    } | NEEDED.get(name, {})
    own: Any = type(transformers.AutoConfig.for_model(name))
    mapping: Any = transformers.AutoModelForCausalLM
    config = sizes | {
        "model_type": name,
        "pad_token_id": 0,
        "architectures": [mapping._model_mapping[own].__name__],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(1)
    model = from_config(theirs)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert largest_error(logits_of(tmp_path, TOKENS), expected_logits(model, TOKENS)) < 1e-5
    # What so few tokens do not show.
    with llama2cpp.load(tmp_path) as found:
        assert found.config.seq_len == theirs.max_position_embeddings
        kinds = getattr(theirs, "layer_types", None)
        window = getattr(theirs, "sliding_window", None)
        if kinds is None or "sliding_attention" in kinds:
            assert found.config.sliding_window == window
        if kinds is not None and "sliding_attention" in kinds:
            full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
            assert list(found.config.full_layers) == full
