"""Hugging Face folders of GPTQ: integers for the matrices of the layers, and float16 for all else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import expert_of, layer_of
from ..common.safetensors_file import Tensor
from .calibration import expert_input
from .fused import Stored
from .gptq import BITS, PARTS, Settings, quantize
from .hf_folder import (
    Progress,
    array_of,
    has_turned_experts,
    is_layer_matrix,
    parameters_of,
    rope_style,
    shape_of_all,
    tensors_to_write,
    weights_to_write,
    write_config,
)
from .hf_shards import ShardWriter
from .source import Source

FORMATS = tuple(BITS)
FLOAT = "float16"

_SHOWN = 8  # experts that a note names

_DTYPES = {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}


def formats_of(source: Source, format: str) -> dict[str, str]:
    """Give the format of each weight by llama2.c's name."""
    return {name: format if is_layer_matrix(name) else "f16" for name in weights_to_write(source)}


def check(source: Source, settings: Settings) -> None:
    """Raise ValueError for a model whose matrices fill no whole words, or whose experts are not written."""
    if has_turned_experts(source):
        raise ValueError(
            "a folder of GPTQ is not implemented for gpt-oss's experts, whose gate and up are one matrix with a row of "
            f"each in turn (n_experts {source.config.n_experts})"
        )
    if source.config.n_experts is not None:
        expert_input(source.config, source)
    for name in filter(is_layer_matrix, source.names()):
        for size in source.shape(name):
            if size * settings.bits % 32:
                raise ValueError(
                    f"{name} is {list(source.shape(name))}, and {size} values of {settings.bits} bits fill no whole "
                    "32-bit words, which GPTQ's files are made of"
                )


def notes(source: Source, settings: Settings) -> list[str]:
    """Give what some readers of the folder may refuse."""
    columns = {source.shape(name)[1] for name in filter(is_layer_matrix, source.names())}
    broken = sorted(count for count in columns if settings.group != -1 and count % settings.group)
    if not broken:
        return []
    # Four divides them all: rows fill whole words, and 8 bits are the most.
    fits = max(size for size in (128, 64, 32, 16, 8, 4) if all(count % size == 0 for count in columns))
    return [
        f"rows of {broken[0]} columns end with a smaller group than {settings.group}, which GPTQModel refuses; "
        f"groups of {fits} divide all rows"
    ]


def quantization_config(settings: Settings) -> dict[str, Any]:
    """Make config.json's entry, as transformers and GPTQModel read it."""
    return {
        "quant_method": "gptq",
        "bits": settings.bits,
        "group_size": settings.group,
        "desc_act": settings.act_order,
        "sym": settings.symmetric,
        "lm_head": False,
        "checkpoint_format": "gptq" if settings.version == 1 else "gptq_v2",
        "pack_dtype": "int32",
        "meta": {
            "quantizer": [f"llama2cpp:{_core.__version__}"],
            "damp_percent": settings.damp,
            "true_sequential": True,
            "static_groups": False,
        },
    }


def write(
    folder: Path,
    source: Source,
    config: dict[str, Any],
    settings: Settings,
    sequences: Sequence[Sequence[int]],
    progress: Progress,
    *,
    shard_size: int,
    threads: int | None,
) -> list[str]:
    """Write config.json and the weights' files.

    Parameters
    ----------
    folder : Path
        It is there.
    source : Source
        The model.
    config : dict
        What `hf_folder.config_json` says of it.
    settings : Settings
        How matrices are rounded.
    sequences : sequence of sequence of int
        The text to look at, of `Calibration.tokens`.
    progress : callable
        Called with the name and the parameters of each weight that is done.
    shard_size : int
        The most bytes of weights in a file.
    threads : int, optional
        How many threads compute.

    Returns
    -------
    list of str
        What is worth knowing: matrices that needed more damping, and experts that saw little of the text.
    """
    config = config | {"quantization_config": quantization_config(settings)}
    write_config(folder, config)
    names = weights_to_write(source)
    tensors = [each for tensor in tensors_to_write(source) for each in _modules(tensor)]
    floats = [tensor for tensor in tensors if not is_layer_matrix(tensor.weights[0])]  # of one weight each
    weights = [[Tensor.of(tensor.name, "F16", shape_of_all(source, tensor))] for tensor in floats]
    matrices = [tensor for tensor in tensors if is_layer_matrix(tensor.weights[0])]
    weights += [_planes(tensor.name, shape_of_all(source, tensor), settings) for tensor in matrices]
    writer = ShardWriter(folder, weights, shard_size, parameters_of(source, names))
    damped = []
    seen: dict[str, int] = {}
    for whole in floats:
        (name,) = whole.weights
        array = array_of(source, name)
        writer.write(whole.name, _core.encode("f16", array, threads=threads))
        progress(name, array.size)
    tensor_of = {name: tensor for tensor in matrices for name in tensor.weights}
    waiting: dict[str, dict[str, NDArray[Any]]] = {}  # those of one tensor have one input, and come one after another
    for name, rounded in quantize(source, sequences, settings, rope_style=rope_style(source), threads=threads):
        waiting[name] = rounded.planes
        tensor = tensor_of[name]
        if all(each in waiting for each in tensor.weights):
            for part, plane in _joined([waiting.pop(each) for each in tensor.weights]).items():
                writer.write(_plane(tensor.name, part), plane)
        if expert_of(name) is not None:
            seen[name] = rounded.inputs
        if rounded.damp > settings.damping(rounded.inputs, rounded.weight.shape[1]):
            damped.append(f"{name} needed a damping of {rounded.damp:g}")
        progress(name, rounded.weight.size)
    writer.finish()
    return [*_notes_of_experts(source, seen), *damped]


def _modules(tensor: Stored) -> list[Stored]:
    """Give the modules of a tensor as GPTQModel cuts it: one of all experts' matrices is one for each of them."""
    if not tensor.experts:
        return [tensor]
    stem = tensor.name.removesuffix(".weight")
    each = enumerate(tensor.of_each_expert())
    return [Stored(f"{stem}.{expert}.linear.weight", weights) for expert, weights in each]


def _notes_of_experts(source: Source, seen: dict[str, int]) -> list[str]:
    """Say which experts saw little of the text. `seen`: by the name of each matrix, its inputs."""
    few = {name: inputs for name, inputs in seen.items() if 0 < inputs < source.shape(name)[1]}
    none = [name for name, inputs in seen.items() if not inputs]
    notes = []
    if none:
        notes.append(
            f"{_experts(none)} saw no token of the calibration text: their matrices are rounded to what is nearest"
        )
    if few:
        least = min(few, key=lambda name: few[name])
        notes.append(
            f"{_experts(few)} saw fewer tokens than their matrices have columns ({least}: {few[least]} tokens, "
            f"{source.shape(least)[1]} columns): they are fitted to them with more damping"
        )
    return notes


def _experts(names: Iterable[str]) -> str:
    """Name the experts of some matrices, the first few of them."""
    experts = list(dict.fromkeys((layer_of(name), expert_of(name)) for name in names))
    shown = ", ".join(f"{expert} of layer {layer}" for layer, expert in experts[:_SHOWN])
    more = len(experts) - _SHOWN
    return f"expert{'s' * (len(experts) > 1)} {shown}{f' and {more} more' * (more > 0)}"


def _joined(planes: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Put the rows of several matrices, which are the planes' columns, one behind the other. They share groups."""
    first = planes[0]
    if len(planes) == 1:
        return first
    assert all(np.array_equal(each["g_idx"], first["g_idx"]) for each in planes)
    return {part: first[part] if part == "g_idx" else np.hstack([each[part] for each in planes]) for part in first}


def _planes(name: str, shape: tuple[int, ...], settings: Settings) -> list[Tensor]:
    rows, columns = shape
    group = columns if settings.group == -1 else min(settings.group, columns)
    groups = (columns - 1) // group + 1
    shapes = {
        "qweight": (columns * settings.bits // 32, rows),
        "qzeros": (groups, rows * settings.bits // 32),
        "scales": (groups, rows),
        "g_idx": (columns,),
    }
    return [Tensor.of(_plane(name, part), _DTYPES[part], shapes[part]) for part in PARTS]


def _plane(name: str, part: str) -> str:
    return name.removesuffix("weight") + part
