"""PyTorch's files of weights, read one tensor at a time. Only this module imports torch, when a file is opened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import FormatError
from ..common.file_kinds import stand_in
from ..common.parts import EMBEDDING, OUTPUT, PARTS
from .source import Array

if TYPE_CHECKING:
    import torch

_TOUCHED = 128 << 20  # bytes of mappings that may be in memory before they are made anew
_FORMATS = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16", "torch.float64": "f64"}
_WIDTHS = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}
_SMALL = 1 << 29  # weights up to which a checkpoint may as well be a model in memory: 2 GB of float32


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError:
        raise ImportError("reading .pth and .pt files needs PyTorch: run `pip install torch`") from None
    return torch


class TorchFile:
    """A file that torch.save has written, mapped. Nothing in it is executed.

    Parameters
    ----------
    path : Path
        The file.
    of : int
        How many such files are read together.

    Raises
    ------
    FormatError
        If it is no such file, is damaged, or has objects in it that are no tensors and no plain data.
    ImportError
        Where PyTorch is not installed.
    """

    def __init__(self, path: Path, of: int = 1) -> None:
        self.path = path
        self._touched = 0
        self._of = of
        self.content: Any = self._open()

    def _open(self) -> object:
        torch = _torch()
        _core.check_file(self.path)
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # bytes that are damaged make PyTorch's reader raise nearly anything
            found = stand_in(self.path)
            reason = f", found {found}" if found else f": {' '.join(str(error).split()) or type(error).__name__}"
            raise FormatError(f"{self.path}: expected a file of torch.save, tensors and plain data{reason}") from None

    def release(self, bytes: int) -> None:
        """Count what has been read; from time to time the file is mapped anew, so that its pages leave memory."""
        self._touched += bytes
        if self._touched > _TOUCHED // self._of:
            self._touched = 0
            self.content = None
            self.content = self._open()

    def close(self) -> None:
        """Unmap the file."""
        self.content = None


class Piece:
    """A tensor in a file, or one shard's part of it.

    Parameters
    ----------
    file : TorchFile
        Where it is.
    keys : tuple of str
        The way to it: one key of a dict after another.
    """

    def __init__(self, file: TorchFile, keys: tuple[str, ...]) -> None:
        self.file = file
        self.keys = keys
        tensor = self.tensor()
        if not isinstance(tensor, _torch().Tensor):
            raise FormatError(f"{file.path}: {keys[-1]}: expected a tensor, found {type(tensor).__name__}")
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.format = _FORMATS.get(str(tensor.dtype))
        if self.format is None:
            raise FormatError(
                f"{file.path}: {keys[-1]} has type {tensor.dtype}, expected float32, float16, bfloat16 or float64: "
                "a quantized checkpoint of PyTorch's is not read"
            )

    def tensor(self) -> torch.Tensor:
        """Get it, mapped."""
        found = self.file.content
        for key in self.keys:
            found = found[key]
        tensor: torch.Tensor = found
        return tensor

    def copy_to(self, target: Array) -> None:
        """Convert it to float32, in place: `target` has its shape."""
        tensor = self.tensor()
        _torch().from_numpy(target).copy_(tensor)
        self.file.release(tensor.numel() * tensor.element_size())


class TorchWeights(Mapping[str, NDArray[np.float32]]):
    """Weights by llama2.c's names, each of one piece or of several that lie below or beside each other.

    Parameters
    ----------
    pieces : mapping of str to list of Piece
        One for each shard, in their order.
    shapes : mapping of str to tuple of int
        What the whole of each weight has: [rows, columns] or [columns].

    Raises
    ------
    FormatError
        For pieces that cannot be joined to that shape.
    """

    def __init__(self, pieces: Mapping[str, list[Piece]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._pieces = dict(pieces)
        self._shapes = {name: tuple(shapes[name]) for name in pieces}
        self._axes = {name: self._axis(name) for name in pieces}

    def _axis(self, name: str) -> int | None:
        """Give the axis along which shards are joined; None where each has the whole."""
        pieces, whole = self._pieces[name], self._shapes[name]
        (part, *others) = dict.fromkeys(piece.shape for piece in pieces)
        if not others and part == whole:
            return None
        for axis in range(len(whole)):
            joined = [*part]
            if not others and len(part) == len(whole):
                joined[axis] *= len(pieces)
                if tuple(joined) == whole:
                    return axis
        found = " and ".join(str(list(shape)) for shape in [part, *others])
        raise FormatError(
            f"{pieces[0].file.path}: {name} has shape {found}{f' in each of {len(pieces)} files' if pieces[1:] else ''}"
            f", expected {list(whole)} in all"
        )

    def __getitem__(self, name: str) -> Array:
        pieces, shape, axis = self._pieces[name], self._shapes[name], self._axes[name]
        _core.need_memory(4.0 * math.prod(shape), name, "it is read as one array of float32")
        array = np.empty(shape, dtype=np.float32)
        if axis is None:
            pieces[0].copy_to(array)
            return array
        step = shape[axis] // len(pieces)
        for i, piece in enumerate(pieces):
            part = slice(i * step, (i + 1) * step)
            piece.copy_to(array[part] if axis == 0 else array[:, part])
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def info(self, name: str) -> dict[str, Any]:
        """Give its shape, format and bytes, without reading it."""
        shape, format = self._shapes[name], self._pieces[name][0].format
        return {"shape": shape, "format": format, "bytes": int(np.prod(shape)) * _WIDTHS[str(format)]}

    def release(self, name: str) -> None:
        """Do nothing: files let go of their pages by themselves."""


class TorchCheckpoint:
    """Files of PyTorch's as what an export reads: sizes, weights and a tokenizer. It does not compute.

    Parameters
    ----------
    path : Path
        The folder or file.
    file_format : str
        What that is, for people.
    config : Config
        With interleaved rotary pairs.
    pieces : mapping of str to list of Piece
        Each weight by llama2.c's name. An output matrix of the embedding's numbers is left out.
    tokenizer : Tokenizer, optional
        If there is one.
    tokenizer_problem : str
        Why there is none, or empty.

    Raises
    ------
    FormatError
        If a weight is missing, or has another shape than the configuration asks for.
    """

    def __init__(
        self,
        path: Path,
        file_format: str,
        config: _core.Config,
        pieces: Mapping[str, list[Piece]],
        tokenizer: _core.Tokenizer | None,
        tokenizer_problem: str = "",
    ) -> None:
        shapes = weight_shapes(config)
        missing = [name for name in shapes if name not in pieces]
        if missing:
            raise FormatError(f"{path}: tensor {missing[0]} is missing ({len(missing)} of {len(shapes)} are)")
        for name in pieces:
            if name not in shapes:
                raise FormatError(f"{path}: {name} has no place in a Llama of {config.n_layers} layers without biases")
        self.path = str(path)
        self.file_format = file_format
        self.config = config
        self.weights = TorchWeights({name: pieces[name] for name in shapes}, shapes)
        self.tokenizer = tokenizer
        self.tokenizer_problem = tokenizer_problem
        self._files = {piece.file for parts in pieces.values() for piece in parts}

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer."""
        return self.tokenizer is not None

    def arrays(self) -> dict[str, Array] | None:
        """Read all weights into memory, for a model of arrays; None where they are many."""
        if sum(int(np.prod(self.weights.info(name)["shape"])) for name in self.weights) > _SMALL:
            return None
        return dict(self.weights)

    def close(self) -> None:
        """Unmap the files."""
        for file in self._files:
            file.close()


def weight_shapes(config: _core.Config) -> dict[str, tuple[int, ...]]:
    """Give the shape that each weight has in a model of these sizes, by llama2.c's name."""
    needed = [part for part in PARTS if part.in_every_llama or (part.need == "untied" and not config.tied)]
    return {name: part.shape(config) for part in needed for name in part.in_model(config.n_layers)}


def name_tied(pieces: dict[str, list[Piece]]) -> None:
    """Give a matrix that is both output and embedding the embedding's name, where only the output's was kept."""
    embedding, output = EMBEDDING.at(), OUTPUT.at()
    if output in pieces and embedding not in pieces:
        pieces[embedding] = pieces.pop(output)


def same_numbers(a: list[Piece], b: list[Piece]) -> bool:
    """Whether two weights are equal shard by shard: an output matrix that is the embedding."""
    torch = _torch()
    same = [piece.shape for piece in a] == [piece.shape for piece in b]
    for one, other in zip(a, b, strict=False):
        same = same and one.format == other.format and bool(torch.equal(one.tensor(), other.tensor()))
        for piece in (one, other):
            piece.file.release(int(np.prod(piece.shape)) * 4)
    return same
