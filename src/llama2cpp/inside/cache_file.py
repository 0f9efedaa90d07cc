"""Files of arrays by name: NumPy's .npz and safetensors, with a few facts beside them. Reads what it wrote itself."""

from __future__ import annotations

import errno
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import FormatError
from ..common.file_kinds import stand_in
from ..common.new_files import new_file

Array = NDArray[np.float32]
Facts = dict[str, Any]

_WHAT = "llama2cpp activations"
_FACTS = "__facts__"  # no activation has this name
# The last three where there is something to say.
_KEYS = {"has_batch_dim", "positions", "tokens", "changed", "replaced", "why_no_gradients"}
# An npy header of ours has less. NumPy lets Python parse it, and of deep nesting Python makes a MemoryError.
_MOST_HEADER = 256

# What the parsers of JSON, zip and npy headers throw at bytes that are none.
_BAD = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    SyntaxError,
    RuntimeError,
    OverflowError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def save(path: str | PathLike[str], arrays: Mapping[str, Array], facts: Facts) -> None:
    """Write a file by its suffix: under another name first, so that there is never half of one."""
    path = Path(path)
    write = _by_suffix(path, _write_npz, _write_safetensors)
    with new_file(path) as begun, begun.open("wb") as file:
        write(file, arrays, json.dumps(facts))


def load(path: str | PathLike[str]) -> tuple[dict[str, Array], Facts]:
    """Read a file of `save`, whole. FormatError for any other."""
    path = Path(path)
    read = _by_suffix(path, _read_npz, _read_safetensors)
    _core.check_file(path)
    _core.need_memory(path.stat().st_size, str(path), "keep fewer activations")
    try:
        arrays, text = read(path)
        facts = _checked(json.loads(text))
    except (*_BAD, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which offsets before the file's begin are
            raise
        found = stand_in(path)
        raise FormatError(f"{path}: expected {_WHAT}, {f'found {found}' if found else f'but {error}'}") from error
    return arrays, facts


def _checked(facts: Any) -> Facts:  # noqa: ANN401 - from JSON
    def ids(value: object) -> bool:
        return isinstance(value, list) and all(type(id) is int for id in value)

    good = (
        isinstance(facts, dict)
        and {"has_batch_dim", "positions", "tokens"} <= facts.keys() <= _KEYS
        and isinstance(facts["has_batch_dim"], bool)
        and (facts["positions"] is None or ids(facts["positions"]))
        and (facts["tokens"] is None or ids(facts["tokens"]) or all(map(ids, facts["tokens"])))
        and isinstance(facts.get("why_no_gradients", ""), str)
        and all(
            isinstance(facts.get(name, []), list) and all(isinstance(item, str) for item in facts.get(name, []))
            for name in ("changed", "replaced")
        )
    )
    if not good:
        raise ValueError("the facts beside the arrays are not those of activations")
    checked: Facts = facts
    return checked


def _by_suffix(path: Path, npz: Callable[..., Any], safetensors: Callable[..., Any]) -> Callable[..., Any]:
    found = {".npz": npz, ".safetensors": safetensors}.get(path.suffix.lower())
    if found is None:
        name = str(path)
        shown = name if name.isprintable() else repr(name)
        raise ValueError(f"{shown}: expected a name that ends in .npz or .safetensors")
    return found


def _write_npz(file: IO[bytes], arrays: Mapping[str, Array], facts: str) -> None:
    everything: dict[str, NDArray[Any]] = {**arrays, _FACTS: np.array(facts)}
    np.savez(file, **everything)  # type: ignore[arg-type]  # its own keyword arguments are no names of ours


def _read_npz(path: Path) -> tuple[dict[str, Array], str]:
    """Not by numpy.load, which makes an array as large as a header says before it looks whether the file is."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename!r} is compressed")
            arrays[info.filename.removesuffix(".npy")] = _read_npy(info.filename, archive.read(info))
    facts = arrays.pop(_FACTS, None)
    if facts is None or facts.dtype.kind != "U" or facts.ndim != 0:
        raise ValueError("these are other arrays")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"{name!r} has dtype {array.dtype}, expected float32")
    return arrays, str(facts)


def _read_npy(name: str, content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name!r} is of another version than this writes")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MOST_HEADER)
    values = np.frombuffer(bytearray(stream.read()), dtype)  # writable, and as many as there are
    if values.size != math.prod(shape):
        raise ValueError(f"{name!r} is {shape} of {dtype}, and there are {values.size} numbers")
    return values.reshape(shape, order="F" if in_columns else "C")


def _write_safetensors(file: IO[bytes], arrays: Mapping[str, Array], facts: str) -> None:
    shapes = [(name, array.shape) for name, array in arrays.items()]
    file.write(_core.safetensors_header({"format": _WHAT, "facts": facts}, shapes))
    for array in arrays.values():
        file.write(np.ascontiguousarray(array, dtype="<f4").data)


def _read_safetensors(path: Path) -> tuple[dict[str, Array], str]:
    arrays, metadata = _core.read_safetensors(path)
    if metadata.get("format") != _WHAT:
        raise ValueError(f"it holds {metadata.get('format', 'other things')!r}")
    return arrays, metadata["facts"]
