"""Hugging Face folders of GPTQ: integers for the matrices of the layers, and float16 for all else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..new_files import write_array
from .gptq import BITS, PARTS, Settings, quantise
from .hf_folder import (
    Progress,
    array_of,
    hugging_face_name,
    is_layer_matrix,
    shape_of,
    weights_to_write,
    write_config,
)
from .safetensors_file import Tensor, lay_out
from .source import MATRICES, Source

FORMATS = tuple(BITS)
FLOAT = "float16"

_DTYPES = {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}
_WIDTHS = {"I32": 4, "F16": 2}


def formats_of(source: Source, format: str) -> dict[str, str]:
    """Give the format of each weight by llama2.c's name."""
    return {name: format if is_layer_matrix(name) else "f16" for name in weights_to_write(source)}


def check(source: Source, settings: Settings) -> None:
    """Raise ValueError for a model whose matrices fill no whole words."""
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
    return [f"rows of {broken[0]} columns end with a smaller group than {settings.group}: some programs refuse that"]


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
    threads: int | None,
) -> list[str]:
    """Write config.json and model.safetensors.

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
    threads : int, optional
        How many threads compute.

    Returns
    -------
    list of str
        What is worth knowing: matrices that needed more damping.
    """
    config = config | {"quantization_config": quantization_config(settings)}
    write_config(folder, config)
    names = weights_to_write(source)
    floats = [name for name in names if not is_layer_matrix(name)]
    tensors = [_tensor(hugging_face_name(name), "F16", shape_of(source, name)) for name in floats]
    for layer in range(source.config.n_layers):
        for stem in MATRICES:
            name = f"layers.{layer}.{stem}.weight"
            rows, columns = source.shape(name)
            group = columns if settings.group == -1 else min(settings.group, columns)
            groups = (columns - 1) // group + 1
            shapes = {
                "qweight": (columns * settings.bits // 32, rows),
                "qzeros": (groups, rows * settings.bits // 32),
                "scales": (groups, rows),
                "g_idx": (columns,),
            }
            for part in PARTS:
                tensors.append(_tensor(_plane(name, part), _DTYPES[part], shapes[part]))
    layout = lay_out(tensors)
    damped = []
    with (folder / "model.safetensors").open("wb") as file:
        file.write(layout.header)
        for name in floats:
            array = array_of(source, name)
            write_array(file, _core.encode("f16", array, threads=threads))
            progress(name, array.size)
        for name, rounded in quantise(source, sequences, settings, threads=threads):
            for part, plane in rounded.planes.items():
                file.seek(layout.begins[_plane(name, part)])
                write_array(file, plane)
            if rounded.damp > settings.damp:
                damped.append(f"{name} needed a damping of {rounded.damp:g}")
            progress(name, rounded.weight.size)
    return damped


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, dtype, shape, int(np.prod(shape)) * _WIDTHS[dtype])


def _plane(name: str, part: str) -> str:
    return hugging_face_name(name).removesuffix("weight") + part
