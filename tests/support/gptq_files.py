"""Folders whose modules GPTQ has quantized, with random numbers in every place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gptq_models import pack
from hf_folders import change_json, tensors_of, write_tensors

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantized(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    rng: np.random.Generator,
    version: int = 1,
    act_order: bool = False,
    scale_type: torch.dtype = torch.float16,
    exact: bool = True,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A module's tensors with random numbers of the shapes of `weight`, and the weight that they stand for.

    `exact`: scales of any type are halves.
    """
    rows, cols = weight.shape
    group_size = cols if group_size == -1 else group_size
    groups = -(-cols // group_size)
    q = rng.integers(0, 1 << bits, (cols, rows))
    zeros = rng.integers(0, 1 << bits, (groups, rows))
    drawn = torch.from_numpy(rng.uniform(0.5, 1.5, (groups, rows)) / (1 << bits) * 0.4)
    scales = (drawn.half().to(scale_type) if exact else drawn.to(scale_type)).contiguous()
    if not exact:
        scales[0, 0] = 1e-6
    g_idx = np.arange(cols) // group_size
    if act_order:
        g_idx = rng.permutation(g_idx)
    stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
    tensors = {
        "qweight": torch.from_numpy(pack(q, bits)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(pack(stored.T, bits).T)),
        "scales": scales,
        "g_idx": torch.from_numpy(g_idx.astype(np.int32)),
    }
    value = scales.float().numpy()[g_idx] * (q - zeros[g_idx]).astype(np.float32)
    return tensors, torch.from_numpy(np.ascontiguousarray(value.T))


def quantize_folder(
    folder: Path,
    bits: int = 4,
    group_size: int = 32,
    version: int = 1,
    act_order: bool = False,
    g_idx: bool = True,
    modules: tuple[str, ...] = MODULES,
    own: dict[str, tuple[int, int]] | None = None,
    scale_type: torch.dtype = torch.float16,
    exact: bool = True,
) -> dict[str, torch.Tensor]:
    """Put random quantized modules in place of a folder's. Returns the float tensors that they stand for.

    `own`: bits and group size of some modules, by their full names.
    """
    rng = np.random.default_rng(bits * 1000 + group_size)
    stored: dict[str, torch.Tensor] = {}
    floats: dict[str, torch.Tensor] = {}
    for name, tensor in tensors_of(folder).items():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] not in modules:
            stored[name] = floats[name] = tensor
            continue
        sizes = (own or {}).get(module, (bits, group_size))
        parts, floats[name] = quantized(tensor, *sizes, rng, version, act_order, scale_type, exact)
        if not g_idx:
            del parts["g_idx"]
        stored |= {f"{module}.{part}": value for part, value in parts.items()}
    write_tensors(folder, stored)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": False}
    if version == 2:
        settings["checkpoint_format"] = "gptq_v2"
    change_json(folder / "config.json", quantization_config=settings)
    return floats
