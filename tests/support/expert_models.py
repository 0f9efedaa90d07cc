"""Small random models of families with experts, as transformers makes them, and as GGUF files by gguf's names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from family_models import MULTIPLIERS, SCALES, Case, begin_gguf
from gguf_files import interleaved
from numpy.typing import NDArray
from safetensors.numpy import load_file

EXPERTS, USED, WIDTH = 5, 3, 32
_MANY = {"num_local_experts": EXPERTS, "num_experts_per_tok": USED, "intermediate_size": WIDTH, "num_hidden_layers": 2}
_TWO = _MANY | {"num_experts": EXPERTS}

CASES = {
    "mixtral": Case("mixtral", _MANY | {"sliding_window": 6}, "llama", turned=True),
    "mixtral-full": Case("mixtral", _MANY | {"sliding_window": None}, "llama", turned=True),
    "qwen3_moe": Case(
        "qwen3_moe",
        _TWO | {"head_dim": 16, "moe_intermediate_size": 64, "norm_topk_prob": True},
        "qwen3moe",
        {"expert_feed_forward_length": 64},
    ),
    "qwen3_moe-as-they-are": Case("qwen3_moe", _TWO | {"head_dim": 8, "moe_intermediate_size": 40}),
    "olmoe": Case("olmoe", _TWO | {"num_key_value_heads": 4}, "olmoe"),  # llama.cpp wants as many
    "olmoe-renormalised": Case("olmoe", _TWO | {"norm_topk_prob": True}),
    "granitemoe": Case("granitemoe", _MANY | MULTIPLIERS, "granitemoe", SCALES, turned=True),
}
IN_GGUF = [name for name, case in CASES.items() if case.architecture and not case.settings.get("sliding_window")]


@cache
def made(name: str) -> Any:
    """The model of a case, one for all tests: not to be changed."""
    return CASES[name].model()


def arrays_of(name: str, folder: Path) -> dict[str, NDArray[np.float32]]:
    """Its tensors as its folder has them, experts' under the names that most families have, each by itself."""
    made(name).save_pretrained(folder)
    found: dict[str, NDArray[np.float32]] = {}
    for own, array in load_file(folder / "model.safetensors").items():
        stem = own.replace("block_sparse_moe.", "mlp.").replace("router.layer", "gate")
        for mixtral, usual in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            stem = stem.replace(f".{mixtral}.weight", f".{usual}.weight")
        if stem.endswith(("input_linear.weight", "output_linear.weight")):
            prefix = stem.partition("mlp.")[0] + "mlp.experts"
            for e in range(EXPERTS):
                if "output" in stem:
                    found[f"{prefix}.{e}.down_proj.weight"] = array[e]
                else:
                    found[f"{prefix}.{e}.gate_proj.weight"], found[f"{prefix}.{e}.up_proj.weight"] = np.split(
                        array[e], 2
                    )
        else:
            found[stem] = array
    return found


def write_gguf(path: Path, name: str, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Any:
    """The model as a GGUF by gguf's own names, its experts of one type. Gives a model of the file's values."""
    case = CASES[name]
    model = case.model() if kind != gguf.GGMLQuantizationType.F32 else made(name)
    config = model.config
    writer = begin_gguf(path, case.architecture, config, case.metadata)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    arch = next(arch for arch, own in gguf.MODEL_ARCH_NAMES.items() if own == case.architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    arrays = arrays_of(name, path.parent / "theirs")
    for i in range(config.num_hidden_layers):
        for matrix in ("gate_proj", "down_proj", "up_proj"):
            stem = f"model.layers.{i}.mlp.experts"
            arrays[f"{stem}.{matrix}.weight"] = np.stack(
                [arrays.pop(f"{stem}.{e}.{matrix}.weight") for e in range(EXPERTS)]
            )
    for own, array in arrays.items():
        stored = names.get_name(own, (".weight",))
        assert stored is not None, own
        count = heads.get(own.split(".")[-2], 0) if case.turned else 0
        data = interleaved(array, count) if count else array
        if kind == gguf.GGMLQuantizationType.F32 or array.ndim < 3:
            writer.add_tensor(stored, np.ascontiguousarray(data))
            continue
        packed = gguf.quants.quantize(data, kind)
        writer.add_tensor(stored, packed, raw_dtype=kind)
        _set_experts(model, own, gguf.quants.dequantize(packed, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _set_experts(model: Any, name: str, values: NDArray[np.float32]) -> None:
    """Put all experts' matrices of a kind into a model, which has gate and up in one."""
    layer, matrix = int(name.split(".")[2]), name.split(".")[-2]
    experts = model.model.layers[layer].mlp.experts
    with torch.no_grad():
        given = torch.from_numpy(np.ascontiguousarray(values))
        if matrix == "down_proj":
            experts.down_proj.copy_(given)
        else:
            width = given.shape[1]
            experts.gate_up_proj[:, :width] = given if matrix == "gate_proj" else experts.gate_up_proj[:, :width]
            experts.gate_up_proj[:, width:] = given if matrix == "up_proj" else experts.gate_up_proj[:, width:]
