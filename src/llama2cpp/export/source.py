"""Where an export takes its numbers from: one weight of a model at a time, under llama2.c's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import EXPERT_PARTS, LAYER_PARTS, MODEL_PARTS, OUTPUT, PARTS, Part, find_part
from ..inside.weights import Weights, computed

Array = NDArray[np.float32]
RopeStyle = Literal["interleaved", "half_split"]


class StoredWeights(Protocol):
    """Weights by the names of their file, decoded to float32 one by one: `model.weights`, or what reads as it does."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> Array: ...

    def info(self, name: str) -> dict[str, Any]:
        """Give ``shape`` and ``format``, without decoding it."""

    def release(self, name: str) -> None:
        """Let its pages leave memory, where it lies in a mapped file. They come back when it is asked for again."""


class Checkpoint(Protocol):
    """What an export reads: a Model, or files that need not be able to compute."""

    @property
    def config(self) -> _core.Config:
        """Sizes and constants."""

    @property
    def weights(self) -> StoredWeights:
        """Its weights under any family's names."""

    @property
    def tokenizer(self) -> _core.Tokenizer | None:
        """Its tokenizer, where `has_tokenizer`."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one."""

    @property
    def tokenizer_problem(self) -> str:
        """Why there is none; may be empty."""

    @property
    def path(self) -> str:
        """The file or folder; empty for arrays."""

    @property
    def file_format(self) -> str:
        """What kind of file that is, for people."""

    def close(self) -> None:
        """Let go of its files."""


def tokenizer_of(checkpoint: Checkpoint) -> _core.Tokenizer | None:
    """Give its tokenizer, if there is one."""
    return checkpoint.tokenizer if checkpoint.has_tokenizer else None


class Source:
    """A checkpoint's weights by llama2.c's names, decoded when they are asked for.

    Parameters
    ----------
    checkpoint : Checkpoint
        Open for as long as this lives.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        core = self.core
        self.model_type = "" if core is None else core.model_type  # of a folder's config.json; "" for other files
        self._last: str | None = None
        self._stored: dict[str, str] = {}
        weights = checkpoint.weights
        self._weights = computed(weights) if isinstance(weights, Weights) else weights
        for stored in self._weights:
            name = _core.rename_weight(stored, "llama2.c")
            if name is not None and not (name == OUTPUT.at() and self.config.tied):
                self._stored[name] = stored

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def names(self) -> list[str]:
        """Every weight: the embedding, then layer by layer, then the last norm and the output matrix."""
        of_layer, experts = (*LAYER_PARTS, *EXPERT_PARTS), self.config.n_experts or 0
        layers = [
            name for layer in range(self.config.n_layers) for part in of_layer for name in part.in_layer(layer, experts)
        ]
        first, *last = (part.at() for part in MODEL_PARTS)
        return [name for name in (first, *layers, *last) if name in self]

    def optional_parts(self) -> list[Part]:
        """Which parts are there that a Llama need not have, such as biases."""
        return [part for part in (*PARTS, *EXPERT_PARTS) if part.is_optional and part.at(0) in self]

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, columns] or [columns]."""
        return tuple(self._weights.info(self._stored[name])["shape"])

    @property
    def core(self) -> _core.Model | None:
        """What a model is in C++; None for files that the engine does not run."""
        core = getattr(self.checkpoint, "_core", None)
        return core if isinstance(core, _core.Model) else None

    def stored_name(self, name: str) -> str:
        """Give the source's own name of it."""
        return self._stored[name]

    def stored_format(self, name: str) -> str:
        """How the source stores it, such as "q4_0"."""
        return str(self._weights.info(self._stored[name])["format"])

    def array(self, name: str, rope_style: str) -> Array:
        """Decode one weight. Rows of rotary parts come in the order of `rope_style`.

        The pages of the weight before it are let go: a file that is read through should not pile up in memory.
        """
        if self._last is not None:
            self._weights.release(self._last)
        self._last = self._stored[name]
        array = self._weights[self._last]
        part = find_part(name)
        if self.config.rope_style != rope_style and part is not None and part.rotary:
            array = reorder_rows(array, self.config.head_dim, rope_style, self.config.rotary_dim)
        return np.ascontiguousarray(array)

    def arrays(self, names: list[str], rope_style: str) -> Iterator[tuple[str, Array]]:
        """Decode some weights, one after another."""
        for name in names:
            yield name, self.array(name, rope_style)


def reorder_rows(array: Array, head_dim: int, rope_style: str, rotary: int | None = None) -> Array:
    """Change which rows of each head are a rotary pair, from the other style to `rope_style`.

    Parameters
    ----------
    array : numpy.ndarray
        [heads * head_dim, columns] or [heads * head_dim].
    head_dim : int
        Rows of a head; their number of heads may be that of queries or of keys.
    rope_style : str
        "half_split": row j of a head and row j + rotary / 2 are a pair. "interleaved": rows 2j and 2j + 1.
    rotary : int, optional
        How many rows of a head are turned, its first; all if not given. The others stay where they are.

    Returns
    -------
    numpy.ndarray
        A copy in the array's shape.
    """
    rotary = head_dim if rotary is None else rotary
    heads = array.reshape(-1, head_dim, *array.shape[1:])
    turned = heads[:, :rotary]
    split = (rotary // 2, 2) if rope_style == "half_split" else (2, rotary // 2)
    order = turned.reshape(-1, *split, *array.shape[1:]).swapaxes(1, 2).reshape(turned.shape)
    return np.concatenate([order, heads[:, rotary:]], axis=1).reshape(array.shape)


def llama3_factors(config: _core.Config, scaling: dict[str, Any]) -> Array:
    """Compute what Llama 3.1's scaling divides each rotary frequency by: float32 [rotary_dim / 2]."""
    turned = config.rotary_dim or config.head_dim
    frequencies = config.rope_theta ** (-np.arange(0, turned, 2) / turned)
    wavelengths = 2 * math.pi / frequencies
    low, high, context = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_context"]
    kept = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - kept) / scaling["factor"] + kept), dtype=np.float32)


def rope_factors(config: _core.Config) -> Array | None:
    """Give the divisors of all rotary frequencies, [rotary_dim / 2], but for linear scaling; None where all are 1."""
    scaling = config.rope_scaling
    factors = np.array(config.rope_factors, dtype=np.float32) if config.rope_factors else None
    if scaling is None or scaling["type"] != "llama3":
        return factors
    computed = llama3_factors(config, scaling)
    return computed if factors is None else computed * factors


def short_float(value: float) -> float:
    """Give the shortest decimal that is the same float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
