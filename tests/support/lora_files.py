"""LoRA adapters of small random models: folders that peft writes, GGUF files as llama.cpp's converter lays them out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from family_models import Case
from gguf_files import interleaved
from numpy.typing import NDArray

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

CASES: dict[str, tuple[Case, list[str]]] = {
    "llama": (Case("llama", {"rms_norm_eps": 1e-5}, "llama", {"rope.dimension_count": 8}, turned=True), ALL),
    "qwen2": (Case("qwen2", {}, "qwen2"), ALL),
    "phi3": (Case("phi3", {}, "phi3"), FUSED),
    "gemma2": (
        Case(
            "gemma2",
            {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4},
            "gemma2",
            {"attention.sliding_window": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        ),
        ALL,
    ),
    "cohere": (Case("cohere", {"logit_scale": 0.3}, "command-r", {"logit_scale": 0.3}), ALL),
    "glm": (Case("glm", {"head_dim": 16}), ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]),
}


def save_adapter(case: Case, folder: Path, targets: Any, seed: int = 0, **settings: Any) -> Any:
    """Let peft make an adapter of random factors for a case's model, and write it. Gives peft's model of both."""
    import peft

    base = case.model()
    torch.manual_seed(100 + seed)
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": targets, "lora_dropout": 0.1} | settings))
    model: Any = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return model


def merged_logits(model: Any, tokens: list[int]) -> NDArray[np.float64]:
    """[T, vocab_size] of peft's model with its factors folded into the weights, all in double precision."""
    whole = copy.deepcopy(model).double().merge_and_unload()
    with torch.no_grad():
        logits: NDArray[np.float64] = whole(torch.tensor([tokens])).logits[0].double().numpy()
    return logits


def write_gguf_adapter(path: Path, case: Case, model: Any, alpha: float | None, **changed: Any) -> None:
    """The adapter of a model of peft's as a GGUF: names and shapes as convert_lora_to_gguf.py gives them."""
    config = model.config
    writer = gguf.GGUFWriter(path, changed.get("architecture", case.architecture))
    writer.add_string("general.type", changed.get("type", "adapter"))
    writer.add_string("adapter.type", changed.get("kind", "lora"))
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == case.architecture)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        module, which = name.removeprefix("base_model.model.").split(".lora_")
        array = parameter.detach().numpy()
        count = heads.get(module.split(".")[-1], 0) if case.turned and which.startswith("B") else 0
        array = interleaved(array, count) if count else array
        stored = table.get_name(f"{module}.weight", (".weight",))
        assert stored is not None, module
        writer.add_tensor(f"{stored}.lora_{which[0].lower()}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def expected_logits(model: Any, tokens: list[int]) -> NDArray[np.float64]:
    """[T, vocab_size], by peft in float32."""
    with torch.no_grad():
        logits: NDArray[np.float64] = model(torch.tensor([tokens])).logits[0].double().numpy()
    return logits
