"""Hugging Face folders whose matrices are LLM.int8(), as transformers and bitsandbytes write and read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import OUTPUT
from ..common.safetensors_file import Tensor
from .fused import Stored
from .hf_folder import (
    Progress,
    array_of,
    hugging_face_name,
    is_layer_matrix,
    parameters_of,
    shape_of_all,
    tensors_to_write,
    weights_to_write,
    write_config,
)
from .hf_shards import ShardWriter
from .outliers import THRESHOLD, Columns
from .source import Source

FORMAT = "llm_int8"
_OTHERS = "f16"  # embeddings, gains, biases and the output matrix, as in transformers


def formats_of(source: Source) -> dict[str, str]:
    """Give each weight's format by llama2.c's name: the layers' matrices are int8, all else is float16."""
    return {name: FORMAT if is_layer_matrix(name) else _OTHERS for name in weights_to_write(source)}


def settings(*, fixed: bool) -> dict[str, Any]:
    """Make config.json's ``quantization_config``. `fixed`: outlier columns go along with each matrix."""
    result: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": THRESHOLD,
        "llm_int8_skip_modules": [hugging_face_name(OUTPUT.at()).removesuffix(".weight")],
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
    return result | ({"llama2cpp_fixed_outliers": True} if fixed else {})


def write(
    folder: Path,
    source: Source,
    config: dict[str, Any],
    outliers: Mapping[str, Columns] | None,
    progress: Progress,
    *,
    shard_size: int,
    threads: int | None,
) -> dict[str, str]:
    """Write config.json and the weights' files, one weight after another.

    Parameters
    ----------
    folder : Path
        Where they go.
    source : Source
        The model.
    config : dict
        What config.json says of the model but its quantization.
    outliers : mapping of str to numpy.ndarray, optional
        The columns of each matrix that are always multiplied in float, int32 [n], ascending, by llama2.c's name. Two
        tensors more for each matrix: transformers passes over them, and decides for itself. If not given, engines
        decide by each input.
    progress : callable
        Called after each weight with its name and the parameters that it has.
    shard_size : int
        The most bytes of weights in a file.
    threads : int, optional
        How many threads encode.

    Returns
    -------
    dict of str to str
        The format of each weight by llama2.c's name.
    """
    config = config | {"quantization_config": settings(fixed=outliers is not None)}
    write_config(folder, config)
    formats = formats_of(source)
    stored = tensors_to_write(source)
    weights = [list(_tensors(source, whole, formats[whole.weights[0]], outliers)) for whole in stored]
    writer = ShardWriter(folder, weights, shard_size, parameters_of(source, list(formats)))
    for whole in stored:
        arrays = []
        for name in whole.weights:
            arrays.append(array_of(source, name))
            progress(name, arrays[-1].size)
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        for tensor, data in _encoded(whole, formats[whole.weights[0]], array, outliers, threads):
            writer.write(tensor, data)
    writer.finish()
    return formats


def _columns(whole: Stored, outliers: Mapping[str, Columns]) -> Columns:
    """Give the outliers of a tensor's inputs: its weights have one input."""
    columns = outliers[whole.weights[0]]
    assert all(np.array_equal(outliers[name], columns) for name in whole.weights)
    return columns


def _tensors(source: Source, whole: Stored, format: str, outliers: Mapping[str, Columns] | None) -> Iterator[Tensor]:
    """Give what a tensor of the folder's model becomes."""
    full, shape = whole.name, shape_of_all(source, whole)
    if format != FORMAT:
        yield Tensor.of(full, "F16", shape)
        return
    module = full.removesuffix(".weight")
    yield Tensor.of(full, "I8", shape)
    yield Tensor.of(f"{module}.SCB", "F32", shape[:1])
    yield Tensor.of(f"{module}.weight_format", "U8", ())
    if outliers is not None:
        count = len(_columns(whole, outliers))
        yield Tensor.of(f"{module}.outlier_columns", "I32", (count,))
        yield Tensor.of(f"{module}.outlier_weight", "F16", (shape[0], count))


def _encoded(
    whole: Stored,
    format: str,
    array: NDArray[np.float32],
    outliers: Mapping[str, Columns] | None,
    threads: int | None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give what these tensors hold."""
    full = whole.name
    if format != FORMAT:
        yield full, _core.encode(_OTHERS, array, threads=threads)
        return
    module = full.removesuffix(".weight")
    values, largest = _core.encode_llm_int8(array)
    yield full, values
    yield f"{module}.SCB", largest
    yield f"{module}.weight_format", np.zeros((), dtype=np.uint8)  # rows, one after another
    if outliers is not None:
        columns = _columns(whole, outliers)
        yield f"{module}.outlier_columns", columns
        weights = np.ascontiguousarray(array[:, columns])
        yield f"{module}.outlier_weight", _core.encode(_OTHERS, weights, threads=threads) if len(columns) else weights
