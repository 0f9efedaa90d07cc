"""The table of families (src/cpp/io/families.cpp): which one a file names, and settings of others that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import llama2cpp
from llama2cpp import _core

transformers = pytest.importorskip("transformers")

# Families whose config.json states what makes them another model, and the setting.
STATED = {
    "cohere": "logit_scale",
    "gemma2": "attn_logit_softcapping",
    "glm": "rope_parameters.partial_rotary_factor",
    "granite": "attention_multiplier",
    "llama4_text": "use_qk_norm",
    "mixtral": "num_local_experts",
    "olmo3": "layer_types",
    "smollm3": "no_rope_layers",
}


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize(("family", "setting"), STATED.items())
def test_a_renamed_model_does_not_load_as_another(model_type: str, family: str, setting: str, tmp_path: Path) -> None:
    settings = transformers.AutoConfig.for_model(family).to_dict()
    settings |= {"model_type": model_type, "hidden_act": "silu", "attention_bias": False}
    settings["architectures"] = [{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[model_type]]
    # What else would be refused, so that it is the setting itself that is.
    for name in {"sliding_window", "layer_types", "attn_logit_softcapping", "rope_parameters"} - {
        setting.partition(".")[0]
    }:
        settings[name] = None
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(llama2cpp.FormatError, match=rf"config\.json\.{setting}"):
        llama2cpp.load(tmp_path)


def gguf_family_of(config: llama2cpp.Config, parts: list[str]) -> tuple[str, str]:
    found = _core.gguf_family(parts, config)
    assert not found["fused"]
    assert not found["stacked"]
    assert not found["names"]
    return found["architecture"], found["rope_style"]


@pytest.mark.parametrize(
    ("window", "parts", "expected"),
    [
        (None, [], "llama"),
        (None, ["bq", "bk", "bv", "bo"], "llama"),
        (None, ["bq", "bk", "bv"], "qwen2"),
        (None, ["bq"], "llama"),
        (None, ["b1", "b2", "b3"], "llama"),
        (5, [], "mistral"),
    ],
)
def test_the_family_that_holds_a_model(window: int | None, parts: list[str], expected: str) -> None:
    config = llama2cpp.Config(**(tiny.config().to_dict() | {"sliding_window": window}))
    found = _core.hugging_face_family(config, parts)
    assert (found["model_type"], found["has_window"]) == (expected, window is not None)
    if expected == "qwen2":
        assert gguf_family_of(config, parts) == ("qwen2", "half_split")
    theirs: Any = transformers.AutoConfig.for_model(expected)
    assert type(theirs).__name__.removesuffix("Config") + "ForCausalLM" == found["architecture"]
    assert {name for name in ("attention_bias", "mlp_bias") if hasattr(theirs, name)} == set(found["biases"])
    if expected != "qwen2":
        assert gguf_family_of(config, parts) == ("llama", "interleaved")


def test_no_family_holds_a_model() -> None:
    config = llama2cpp.Config(**(tiny.config().to_dict() | {"sliding_window": 5}))
    said = r"no model that this version writes with a sliding window \(sliding_window\) and biases"
    with pytest.raises(ValueError, match=said):
        _core.hugging_face_family(config, ["b1", "b2"])
    with pytest.raises(ValueError, match="which no Llama has"):
        _core.gguf_family(["bx"])
