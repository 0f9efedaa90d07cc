"""Files of panels: weights as the kernels read them, used where they are mapped. See `io/panel_file.cpp`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.generation_config import GenerationConfig
from ..common.new_files import write_array
from ..common.parts import EMBEDDING, family_of
from ..common.safetensors_file import Tensor, lay_out
from . import gguf_file, sampling_settings
from .source import Array, Source

Progress = Callable[[str, int], None]

FORMATS = gguf_file.FORMATS
KEEP = "as stored"

_ALIGNMENT = 64
_PARTS = ("order", "outlier_columns")  # small tensors beside a matrix
_FLOATS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_TYPES = {"uint8": "U8", "int32": "I32", "float32": "F32"}


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: what the header says of it, and how its bytes are made."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    make: Callable[[], NDArray[Any]]
    weight: str = ""  # llama2.c's name, where it is one
    parameters: int = 0


def formats_of(source: Source, format: str, *, pure: bool) -> dict[str, str]:
    """Give the format of each weight by llama2.c's name. ValueError for one that a file of panels cannot hold."""
    if format != KEEP:
        return gguf_file.formats_of(source, format, pure=pure, fused={})
    found = {}
    for name in source.names():
        found[name] = source.stored_format(name)
        if len(source.shape(name)) == 1 and found[name] not in _FLOATS:
            found[name] = "f32"
        elif len(source.shape(name)) == 2 and source.core is not None:
            _core.panel_facts(source.core, source.stored_name(name))
    return found


def write(
    path: Path,
    source: Source,
    formats: Mapping[str, str],
    progress: Progress,
    *,
    tokenizer: _core.Tokenizer | None,
    sampling: GenerationConfig,
    importance: Mapping[str, Array],
    threads: int | None,
) -> None:
    """Write a file. Weights that have their format already are packed as they are stored, all others encoded anew.

    Parameters
    ----------
    path : Path
        The file.
    source : Source
        Its names and the order of its rows are kept.
    formats : mapping of str to str
        The format of each weight, by llama2.c's name.
    progress : callable
        Called with the name and the parameters of each weight that is done.
    tokenizer : Tokenizer, optional
        Without it the file has no tokenizer.
    sampling : GenerationConfig
        How the model is to be sampled.
    importance : mapping of str to numpy.ndarray
        float32 [columns] by llama2.c's name, for the K-quants' search.
    threads : int, optional
        How many threads encode.
    """
    matrices = {}
    packer = _Packer(source, importance, threads)
    tensors: list[_Tensor] = []
    others: list[_Tensor] = []  # behind the matrices, which all begin at multiples of 64
    for name, format in formats.items():
        if len(source.shape(name)) == 1:
            others.append(_vector(source, name, format))
            continue
        stored = source.stored_name(name)
        facts = packer.facts(name, format)
        size = -(-facts.pop("bytes") // _ALIGNMENT) * _ALIGNMENT
        small = {part: facts.pop(part) for part in _PARTS}
        matrices[stored] = facts
        make = partial(packer.pack, name, format)
        tensors.append(_Tensor(stored, "U8", (size,), size, make, name, int(np.prod(source.shape(name)))))
        others += [_small(f"{stored}.{part}", array) for part, array in small.items() if array is not None]
    unchanged = source.core is not None and all(source.stored_format(name) == formats[name] for name in formats)
    metadata = {
        "llama2cpp.layout": "panels16",
        "llama2cpp.layout_version": str(_core.PANEL_VERSION),
        "arithmetic": _core.panel_arithmetic(source.core) if source.core is not None and unchanged else "contract",
        "config": _json(source.config.to_dict()),
        "names": family_of(source.stored_name(EMBEDDING.at())),
        "weights": _json(matrices),
        **sampling_settings.panel_metadata(sampling),
    }
    if tokenizer is not None:
        metadata["tokenizer"], vocabulary = _tokenizer(tokenizer)
        others += vocabulary
    with path.open("wb") as file:
        _write(file, metadata, [*tensors, *others], progress)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _write(file: BinaryIO, metadata: Mapping[str, str], tensors: list[_Tensor], progress: Progress) -> None:
    places = [Tensor(tensor.name, tensor.dtype, tensor.shape, tensor.bytes) for tensor in tensors]
    file.write(lay_out(places, metadata=metadata, alignment=_ALIGNMENT).header)
    for tensor in tensors:
        data = tensor.make()
        write_array(file, data)
        file.write(bytes(tensor.bytes - data.nbytes))
        if tensor.weight:
            progress(tensor.weight, tensor.parameters)


class _Packer:
    """Panels of matrices: those that the engine holds in the wanted format as they are, all others encoded anew."""

    def __init__(self, source: Source, importance: Mapping[str, Array], threads: int | None) -> None:
        self._source, self._importance, self._threads = source, importance, threads
        self._new = _core.PanelPacker(threads)

    def _keeper(self, name: str, format: str) -> _core.Model | None:
        return self._source.core if self._source.stored_format(name) == format else None

    def facts(self, name: str, format: str) -> dict[str, Any]:
        core, stored = self._keeper(name, format), self._source.stored_name(name)
        if core is not None:
            return _core.panel_facts(core, stored)
        return self._new.facts(stored, format, *self._source.shape(name))

    def pack(self, name: str, format: str) -> NDArray[np.uint8]:
        core, stored = self._keeper(name, format), self._source.stored_name(name)
        if core is not None:
            return _core.pack_weight(core, stored)
        array = self._source.array(name, self._source.config.rope_style)
        columns = array.shape[1]
        rows = gguf_file.encode_rows(array, format, self._importance.get(name), self._threads)
        del array
        return self._new.pack(stored, format, columns, rows)


def _vector(source: Source, name: str, format: str) -> _Tensor:
    (length,) = source.shape(name)

    def make() -> NDArray[np.uint8]:
        return _core.encode(format, source.array(name, source.config.rope_style))

    size = _core.row_bytes(format, length)
    return _Tensor(source.stored_name(name), _FLOATS[format], (length,), size, make, name, length)


def _small(name: str, array: NDArray[Any]) -> _Tensor:
    return _Tensor(name, _TYPES[array.dtype.name], array.shape, array.nbytes, lambda: array)


def _tokenizer(tokenizer: _core.Tokenizer) -> tuple[str, list[_Tensor]]:
    """Give the metadata and the tensors that hold a tokenizer: see `io/panel_vocabulary.h`."""
    settings, tensors = _core.panel_tokenizer(tokenizer)
    return settings, [
        _Tensor(name, dtype, shape, len(data), partial(np.frombuffer, data, np.uint8))
        for name, dtype, shape, data in tensors
    ]
