"""GPTQ (Frantar et al., 2022): each layer is rounded for the inputs that the rounded layers before it give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import EMBEDDING, Part
from ..common.parts import PARTS as ALL_PARTS
from .calibration import Hessian, Input, Products, check_finite, inputs_of
from .source import Array, Source

if TYPE_CHECKING:
    from ..inside.hooks import HookPoint

Half = Literal["attention", "mlp"]

BITS = {"gptq2": 2, "gptq3": 3, "gptq4": 4, "gptq8": 8}
PARTS = ("qweight", "qzeros", "scales", "g_idx")

_HALVES: tuple[tuple[Half, ...], ...] = (("attention",), ("mlp",))
_WHOLE: tuple[Half, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Settings:
    """How matrices are rounded.

    Attributes
    ----------
    bits : int
        Of a weight: 2, 3, 4 or 8.
    group : int
        Columns that share a scale, or -1 for a whole row.
    act_order : bool
        Columns are rounded in the order of their inputs' mean squares, largest first: ``desc_act``.
    damp : float
        This share of the mean of a Hessian's diagonal is added to it.
    symmetric : bool
        The zero is half of the range; else it follows each group.
    search : bool
        Look for the range with the least error in each group; else it holds all of the group.
    """

    bits: int = 4
    group: int = 128
    act_order: bool = True
    damp: float = 0.01
    symmetric: bool = True
    search: bool = True

    def __post_init__(self) -> None:
        if self.group < 1 and self.group != -1:
            raise ValueError(f"group is {self.group}, expected 1 or more, or -1 for one group")
        if not 0 < self.damp < np.inf:
            raise ValueError(f"damp is {self.damp}, expected a positive number")

    @property
    def version(self) -> int:
        """Of the planes: 2 where zeros vary, because libraries disagree on what version 1 makes of a zero of 0."""
        return 1 if self.symmetric else 2


@dataclass(frozen=True)
class Rounded:
    """A matrix as GPTQ stores it.

    Attributes
    ----------
    planes : dict of str to numpy.ndarray
        qweight, qzeros, scales and g_idx.
    weight : numpy.ndarray
        float32 [rows, columns], what they stand for.
    loss : float
        The mean of its outputs' squared errors on the calibration text, summed over outputs, with the damping's share.
    damp : float
        What was added: more than the settings say, where that was not enough.
    """

    planes: dict[str, NDArray[Any]]
    weight: Array
    loss: float
    damp: float


def round_matrices(
    weights: dict[str, Array], hessian: Products, settings: Settings, threads: int | None = None
) -> dict[str, Rounded]:
    """Round matrices that have one input.

    Parameters
    ----------
    weights : dict of str to numpy.ndarray
        float32 [rows, columns] by name.
    hessian : numpy.ndarray
        float64 [columns, columns]: the mean of x x^T over the inputs x.
    settings : Settings
        How.
    threads : int, optional
        How many threads compute. The bytes do not depend on it.

    Returns
    -------
    dict of str to Rounded
    """
    order = np.arange(len(hessian), dtype=np.int32)
    if settings.act_order:
        order = np.argsort(-np.diag(hessian), kind="stable").astype(np.int32)
        hessian = np.ascontiguousarray(hessian[np.ix_(order, order)])
    factor, damp = _core.gptq_factor(hessian, settings.damp, threads)
    rounded = {}
    for name, weight in weights.items():
        try:
            stored = _core.gptq_encode(
                weight,
                factor,
                order,
                settings.bits,
                settings.group,
                settings.symmetric,
                settings.search,
                settings.version,
                threads,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        planes = {part: stored[part] for part in PARTS}
        rounded[name] = Rounded(planes, stored["weight"], stored["loss"], damp)
    return rounded


def quantize(
    source: Source,
    sequences: Sequence[Sequence[int]],
    settings: Settings,
    *,
    rope_style: str = "half_split",
    threads: int | None = None,
) -> Iterator[tuple[str, Rounded]]:
    """Round all matrices of a model's layers.

    Parameters
    ----------
    source : Source
        The model.
    sequences : sequence of sequence of int
        The text that it reads, of `Calibration.tokens`. Memory holds the residual stream of each token, half a layer in
        float32 (all of it, where its halves are not alone), and a Hessian.
    settings : Settings
        How.
    rope_style : str
        The rotary order of the rows that are asked for: "half_split" or "interleaved".
    threads : int, optional
        How many threads compute. The result does not depend on it.

    Yields
    ------
    (str, Rounded)
        llama2.c's name of each matrix, with rows in that order: layer by layer wq, wk, wv, wo, w1, w3, w2; w1 and w3
        behind wv where they read the same.

    Raises
    ------
    ValueError
        For activations that are not finite, and for weights that are too large.
    """
    embedding = source.array(EMBEDDING.at(), "half_split")
    multiplier = np.float32(source.config.embedding_multiplier)
    streams = [np.ascontiguousarray(embedding[ids] * multiplier) for ids in sequences]  # each [T, dim]
    del embedding
    inputs = inputs_of(source.config, source)
    parts = _HALVES if _has_halves(source.config) else (_WHOLE,)
    for layer in range(source.config.n_layers):
        for scopes in parts:
            part = _PartOfLayer(source, layer, scopes, rope_style, threads)
            for each in inputs:
                if each.matrices[0].scope not in scopes:
                    continue
                found = Hessian(source.shape(each.matrices[0].at(layer))[1], threads)
                part.run(streams, each, found.add)
                hessian = found.mean()
                check_finite(hessian, f"the inputs at blocks.{layer}.{each.point}")
                yield from part.round(each.matrices, hessian, settings)
            if (layer + 1, scopes) != (source.config.n_layers, parts[-1]):
                streams = part.run(streams)


def _has_halves(config: _core.Config) -> bool:
    """Whether half of a layer can be run alone: one whose matrices are zeros adds nothing."""
    plain = config.norm == "rms" and config.norm_places == "before" and not config.parallel
    return plain and config.gated and not config.local_rope_theta


class _PartOfLayer:
    """A layer, or its attention or MLP beside a half that adds nothing, as a model fed with residual streams."""

    def __init__(
        self, source: Source, layer: int, scopes: tuple[Half, ...], rope_style: str, threads: int | None
    ) -> None:
        self._layer, self._threads = layer, threads
        config = source.config.to_dict() | {"n_layers": 1, "vocab_size": 1, "tied": True, "rope_style": rope_style}
        config |= {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "full_layers": ()}
        config["no_rope_layers"] = (0,) if layer in source.config.no_rope_layers else ()
        if scopes == _WHOLE:
            config["full_layers"] = (0,) if layer in source.config.full_layers else ()
            self._config = _core.Config(**config)
            self._arrays = {
                part.at(0): source.array(part.at(layer), rope_style)
                for part in ALL_PARTS
                if part.in_layers and part.at(layer) in source
            }
            for part in ALL_PARTS:  # of the model, which the layer's output does not come to
                if not part.in_layers and part.at() in source:
                    self._arrays[part.at()] = np.zeros(part.shape(self._config), np.float32)
            return
        (half,) = scopes
        if layer in source.config.full_layers:
            config["sliding_window"] = None
        if half == "attention":
            config |= {"hidden_dim": 1}
        else:
            config |= {"n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "rope_scaling": None, "rope_factors": ()}
            config |= {"rotary_dim": None, "rope_long_factors": (), "qk_norm": "none"}
        self._config = _core.Config(**config)
        self._arrays = {}
        for part in ALL_PARTS:
            if part.scope == half:
                if part.at(layer) in source:
                    self._arrays[part.at(0)] = source.array(part.at(layer), rope_style)
            elif part.in_every_llama:  # matrices of zeros, which add nothing
                make = np.ones if part.is_vector else np.zeros
                self._arrays[part.at(0)] = make(part.shape(self._config), np.float32)

    def round(self, matrices: tuple[Part, ...], hessian: Products, settings: Settings) -> Iterator[tuple[str, Rounded]]:
        """Round some matrices, and go on with what has become of them."""
        weights = {matrix.at(self._layer): self._arrays[matrix.at(0)] for matrix in matrices}
        rounded = round_matrices(weights, hessian, settings, self._threads)
        for matrix in matrices:
            self._arrays[matrix.at(0)] = rounded[matrix.at(self._layer)].weight
        yield from rounded.items()

    def run(
        self, streams: list[Array], shown: Input | None = None, look: Callable[[Array], None] | None = None
    ) -> list[Array]:
        """Give what comes out for each stream [T, dim], and show the inputs [T, columns] of some matrices."""
        from ..loading import from_arrays

        norm = (None, None) if shown is None else (shown.gain, shown.bias)
        gain, bias = (None if part is None else self._arrays[part.at(0)] for part in norm)
        out = []
        with from_arrays(self._config, self._arrays, threads=self._threads, kv_dtype="f32", backend="cpu") as model:
            names = [] if shown is None else [f"blocks.0.{shown.point}"]
            for stream in streams:
                with model.hooks([("hook_embed", _puts(stream))]):
                    after, cache = model.run_with_cache([0] * len(stream), names, stop_at_layer=1)
                out.append(after[0])
                if look is not None:
                    inputs = cache[names[0]].reshape(len(stream), -1)
                    inputs = inputs if gain is None else inputs * gain
                    look(inputs if bias is None else inputs + bias)
        return out


def _puts(stream: Array) -> Callable[[Array, HookPoint], Array]:
    """Make a hook that puts a stream [T, dim] in an activation's place."""
    return lambda activation, hook: stream[None]
