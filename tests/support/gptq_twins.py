"""GPTQ's folders as folders of floats, unpacked by NumPy alone, which transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hf_folders import tensors_of
from numpy.typing import NDArray

from llama2cpp.export.gptq import PARTS

Floats = NDArray[np.float32]


def unpacked(words: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """[n * bits / 32, m] words to [n, m] values, bit by bit."""
    stream = (words.view(np.uint32)[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
    by_value = stream.reshape(-1, bits, words.shape[1]).astype(np.int64)
    return np.asarray((by_value << np.arange(bits)[None, :, None]).sum(axis=1))


def dequantized(planes: dict[str, NDArray[Any]], bits: int, version: int) -> Floats:
    """[rows, columns] of a module's planes."""
    q = unpacked(planes["qweight"], bits)  # [columns, rows]
    zeros = unpacked(np.ascontiguousarray(planes["qzeros"].T), bits).T  # [groups, rows]
    if version == 1:
        zeros = (zeros + 1) % (1 << bits)
    g_idx = planes["g_idx"]
    return np.asarray((planes["scales"].astype(np.float32)[g_idx] * (q - zeros[g_idx])).T, dtype=np.float32)


def planes_of(folder: Path, module: str) -> dict[str, NDArray[Any]]:
    tensors = tensors_of(folder)
    return {part: tensors[f"{module}.{part}"].numpy() for part in PARTS}


def float_twin(folder: Path, path: Path) -> Path:
    """The same model as a folder of float32, unpacked by NumPy."""
    import safetensors.torch
    import torch

    config = json.loads((folder / "config.json").read_text())
    quantized = config.pop("quantization_config")
    version = 1 if quantized["checkpoint_format"] == "gptq" else 2
    tensors = tensors_of(folder)
    floats = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(PARTS)}
    for name in tensors:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            weight = dequantized(planes_of(folder, module), quantized["bits"], version)
            floats[f"{module}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
    stacks = {name.partition(".0.linear.")[0] for name in floats if ".0.linear." in name}  # of all experts in one
    for stack in stacks:
        count = sum(name.startswith(f"{stack}.") for name in floats)
        each = [floats.pop(f"{stack}.{expert}.linear.weight") for expert in range(count)]
        floats[f"{stack}.weight"] = torch.stack(each)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(floats, path / "model.safetensors", {"format": "pt"})
    return path
