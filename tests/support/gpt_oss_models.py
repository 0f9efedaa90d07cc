"""Small random models of gpt-oss, as transformers and OpenAI write them, and as GGUF files by gguf's names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from family_models import Case, begin_gguf
from gguf import GGMLQuantizationType as Type
from hf_folders import change_json
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

EXPERTS, USED, LAYERS, WIDTH, DIM = 5, 3, 4, 64, 32
# Its rotary frequencies differ from those of scaling with whole ends.
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
# Its are the same: the end of what turns slowly is a whole number, a hair below so that rounding up gives it.
WHOLE_YARN = YARN | {"rope_theta": float(np.float32((64 / (2 * np.pi)) ** 4 * 1.000001))}
SETTINGS: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": USED,
    "hidden_size": DIM,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "head_dim": 16,
    "sliding_window": 6,
    "max_position_embeddings": 256,
    "rope_parameters": YARN,
}
BLOCKS = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}


def make(**settings: Any) -> Any:
    """A model of its own, whose gates and what they are multiplied with are beyond the clamps at times."""
    model = Case("gpt_oss", SETTINGS | settings).model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj_bias.mul_(25)
            layer.self_attn.sinks.mul_(10)
    return model


@cache
def made() -> Any:
    """One for all tests: not to be changed."""
    return make()


def random_blocks(experts: int, rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, rows, columns / 32, 16] bytes with two weights each, and their scales."""
    chance = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=chance)
    scales = torch.randint(119, 125, (experts, rows, columns // 32), dtype=torch.uint8, generator=chance)
    return blocks, scales


def write_blocks(path: Path, **settings: Any) -> Any:
    """A folder as OpenAI writes them. Gives the model that transformers makes of its numbers."""
    model = make(**settings)
    stored: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            experts = layer.mlp.experts
            for number, name in enumerate(("gate_up_proj", "down_proj")):
                parameter = getattr(experts, name)  # [E, columns, rows]
                count, columns, rows = parameter.shape
                blocks, scales = random_blocks(count, rows, columns, 2 * i + number)
                parameter.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
                stored[f"model.layers.{i}.mlp.experts.{name}_blocks"] = blocks
                stored[f"model.layers.{i}.mlp.experts.{name}_scales"] = scales
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        del tensors[name]
    save_file(tensors | stored, path / "model.safetensors")
    change_json(path / "config.json", **BLOCKS)
    return model


def write_gguf(path: Path, kind: Type = Type.F32, **settings: Any) -> Any:
    """The model by gguf's own names, its experts of one type. Gives a model of the file's values."""
    model = make(**settings)
    config = model.config
    yarn = config.rope_parameters
    writer = begin_gguf(path, "gpt-oss", config, {})
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn["factor"])
    writer.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, LAYERS)

    def add(own: str, values: torch.Tensor) -> torch.Tensor:
        """Under gguf's name of it. Gives the values that the file has then."""
        stored = names.get_name(own, (".weight", ".bias"))
        assert stored is not None, own
        data = np.ascontiguousarray(values.detach().numpy())
        if kind == Type.F32 or data.ndim < 3:
            writer.add_tensor(stored, data)
            return values
        packed = gguf.quants.quantize(data, kind)
        writer.add_tensor(stored, packed, raw_dtype=kind)
        return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(packed, kind)))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stem = name.removesuffix("_bias").replace("gate_up_proj", "{}")
            if name.endswith("gate_up_proj_bias"):  # [E, rows]
                for first, part in enumerate(("gate_proj", "up_proj")):
                    add(stem.format(part) + ".bias", parameter[:, first::2])
            elif name.endswith("gate_up_proj"):  # [E, columns, rows]
                for first, part in enumerate(("gate_proj", "up_proj")):
                    stored = add(stem.format(part) + ".weight", parameter[:, :, first::2].transpose(1, 2))
                    parameter[:, :, first::2] = stored.transpose(1, 2).clone()
            elif name.endswith("down_proj_bias"):
                add(stem + ".bias", parameter)
            elif name.endswith("down_proj"):
                parameter.copy_(add(stem + ".weight", parameter.transpose(1, 2)).transpose(1, 2).clone())
            else:
                add(name + ".weight" if name.endswith("sinks") else name, parameter)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
