"""Hugging Face folders of gpt-oss as OpenAI writes them: experts in blocks of MXFP4 with their scales beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import EMBEDDING, OUTPUT
from ..common.safetensors_file import Tensor
from .fused import Stored, in_turn
from .hf_folder import (
    FORMATS,
    Progress,
    arrays_of,
    has_turned_experts,
    hugging_face_name,
    parameters_of,
    pieces_of,
    shape_of_all,
    tensors_to_write,
    weights_to_write,
    write_config,
)
from .hf_shards import ShardWriter
from .mixtures import MXFP4, other_matrices
from .source import Array, Source

_BLOCK = 32  # numbers that share a scale
_PACKED = 16  # bytes of them


def check(source: Source) -> None:
    """Raise ValueError for a model whose folders have no such experts."""
    if not has_turned_experts(source):
        raise ValueError(
            f"a folder of {MXFP4} is written of gpt-oss's models only, whose experts have biases and clamps "
            "(activation clamped_swiglu)"
        )
    for size in ("dim", "hidden_dim"):
        columns = getattr(source.config, size)
        if columns % _BLOCK:
            raise ValueError(f"rows of experts have {columns} columns ({size}), which blocks of {_BLOCK} do not fill")


def float_of(source: Source) -> str:
    """Give the format of all that is no matrix of an expert: the source's where it is one, else "bf16"."""
    found = other_matrices(source)
    return found if found in FORMATS else "bf16"


def formats_of(source: Source) -> dict[str, str]:
    """Give the format of each weight by llama2.c's name."""
    other = float_of(source)
    return {
        weight: MXFP4 if _is_blocks(tensor, source) else other
        for tensor in tensors_to_write(source)
        for weight in tensor.weights
    }


def write(
    folder: Path, source: Source, config: dict[str, Any], progress: Progress, *, shard_size: int, threads: int | None
) -> dict[str, str]:
    """Write config.json and the weights' files. Returns the format of each weight by llama2.c's name.

    Parameters
    ----------
    folder : Path
        Where they go.
    source : Source
        The model. Numbers that blocks of MXFP4 stand for are kept as they are.
    config : dict
        What config.json says of the model but its quantization.
    progress : callable
        Called after each weight with its name and the parameters that it has.
    shard_size : int
        The most bytes of weights in a file.
    threads : int, optional
        How many threads encode.
    """
    others = [hugging_face_name(part.at()).removesuffix(".weight") for part in (EMBEDDING, OUTPUT)]
    others = ["model.layers.*.self_attn", "model.layers.*.mlp.router", *others]
    quantization = {"quant_method": MXFP4, "modules_to_not_convert": others}
    write_config(folder, config | {"quantization_config": quantization})
    formats = formats_of(source)
    other = float_of(source)
    tensors = tensors_to_write(source)
    stored = [_planes(source, tensor, FORMATS[other][0]) for tensor in tensors]
    writer = ShardWriter(folder, stored, shard_size, parameters_of(source, weights_to_write(source)))
    for tensor, planes in zip(tensors, stored, strict=True):
        if not _is_blocks(tensor, source):
            for piece in pieces_of(source, tensor, progress):
                writer.append(tensor.name, _core.encode(other, piece, threads=threads))
            continue
        for weights in tensor.of_each_expert():
            rows = in_turn(arrays_of(source, weights))
            for plane, data in zip(planes, _encoded(rows, threads), strict=True):
                writer.append(plane.name, data)
            for name in weights:
                progress(name, rows.size // len(weights))
    writer.finish()
    return formats


def _is_blocks(tensor: Stored, source: Source) -> bool:
    return tensor.turned and len(source.shape(tensor.weights[0])) == 2


def _planes(source: Source, tensor: Stored, dtype: str) -> list[Tensor]:
    """Give what a tensor of the folder's model becomes."""
    shape = shape_of_all(source, tensor)
    if not _is_blocks(tensor, source):
        return [Tensor.of(tensor.name, dtype, shape)]
    experts, columns, rows = shape
    groups = (experts, rows, columns // _BLOCK)
    return [
        Tensor.of(f"{tensor.name}_blocks", "U8", (*groups, _PACKED)),
        Tensor.of(f"{tensor.name}_scales", "U8", groups),
    ]


def _encoded(rows: Array, threads: int | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Give the blocks and the scales of [rows, columns]: two weights that are neighbours share a byte."""
    stored = _core.encode(MXFP4, rows, threads=threads).reshape(len(rows), -1, 1 + _PACKED)  # GGUF's blocks
    halves = stored[..., 1:]
    weights = np.concatenate([halves & 15, halves >> 4], axis=-1)  # byte i has weights i and i + 16
    return weights[..., 0::2] | weights[..., 1::2] << 4, np.ascontiguousarray(stored[..., 0])
