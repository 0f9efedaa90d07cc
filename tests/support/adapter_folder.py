"""An adapter in a folder, as peft would write it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy


def save_adapter(folder: Path, layers: int = 5, dim: int = 192, hidden_dim: int = 512) -> Path:
    """Write factors beside the down_proj of each layer, of the storyteller's sizes; gives the folder."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    tensors = {}
    for layer in range(layers):
        module = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{module}.lora_A.weight"] = rng.normal(size=(4, hidden_dim)).astype(np.float32) / 22
        tensors[f"{module}.lora_B.weight"] = rng.normal(size=(dim, 4)).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
