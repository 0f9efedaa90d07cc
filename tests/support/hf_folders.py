"""Hugging Face folders for tests: small random models as transformers writes them, and as an attacker would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

Json = dict[str, Any]


def read_json(path: Path) -> Json:
    data: Json = json.loads(path.read_text(encoding="utf-8"))
    return data


def change_json(path: Path, **changes: Any) -> None:
    """Members by their new values; ``...`` takes one away."""
    data = (read_json(path) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}), encoding="utf-8")


@dataclass
class Spec:
    """What a random model is to have."""

    mistral: bool = False
    settings: Json = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    shards: str | None = None  # max_shard_size
    seed: int = 0

    def model(self) -> Any:
        torch.manual_seed(self.seed)
        sizes: Json = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 50,
            "max_position_embeddings": 64,
        }
        kinds: Any = (MistralConfig, MistralForCausalLM) if self.mistral else (LlamaConfig, LlamaForCausalLM)
        model = kinds[1](kinds[0](**(sizes | self.settings)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # biases too, which are zeros otherwise
                values = torch.randn_like(parameter) * 0.2
                parameter.copy_(1 + values / 2 if "norm" in name else values)
        return model.to(self.dtype).eval()

    def save(self, folder: Path) -> Path:
        options = {} if self.shards is None else {"max_shard_size": self.shards}
        self.model().save_pretrained(folder, **options)
        return folder


def transformers_logits(folder: Path, tokens: list[int]) -> NDArray[np.float64]:
    """[T, vocab_size], as transformers computes them in float32."""
    kinds: Any = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM}
    model = kinds[read_json(folder / "config.json")["model_type"]].from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: NDArray[np.float64] = model(torch.tensor([tokens])).logits[0].double().numpy()
    return logits


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def replace_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Put another tensor in the place of one that is there or not, or take it away."""
    tensors = tensors_of(folder)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    write_tensors(folder, tensors)
