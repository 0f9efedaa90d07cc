"""GPTQ (Frantar et al., 2022): each layer is rounded for the inputs that the rounded layers before it give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import EMBEDDING, EXPERT_PARTS, OUTPUT, Part, get_part
from ..common.parts import PARTS as ALL_PARTS
from .calibration import (
    EXPERT_INPUTS,
    ROUTING,
    Hessian,
    Input,
    Products,
    check_finite,
    expert_input,
    has_halves,
    inputs_of,
)
from .source import Array, Source

if TYPE_CHECKING:
    from ..inside.hooks import HookPoint

Half = Literal["attention", "mlp"]

BITS = {"gptq2": 2, "gptq3": 3, "gptq4": 4, "gptq8": 8}
PARTS = ("qweight", "qzeros", "scales", "g_idx")

_HALVES: tuple[tuple[Half, ...], ...] = (("attention",), ("mlp",))
_WHOLE: tuple[Half, ...] = ("attention", "mlp")

# What a part of an expert is in a model that has one MLP.
_DENSE_PART = {
    f"e{number}{end}": get_part(f"{kind}{number}") for number in (1, 2, 3) for kind, end in (("w", ""), ("b", "_b"))
}


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

    def damping(self, inputs: int, columns: int) -> float:
        """Give the share for a matrix of an expert: columns over inputs, where there are fewer inputs than columns."""
        return max(self.damp, columns / inputs) if 0 < inputs < columns else self.damp

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
    inputs : int
        How many there were.
    """

    planes: dict[str, NDArray[Any]]
    weight: Array
    loss: float
    damp: float
    inputs: int = 0


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
        float32 (all of it, where its halves are not alone; of experts one at a time), the inputs of its last matrix,
        and a Hessian.
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
        behind wv where they read the same. Of a layer with experts, those of one after those of the other: each is
        rounded for the tokens that the router sends it, and the router stays as it is.

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
    parts = _HALVES if has_halves(source.config) else (_WHOLE,)
    for layer in range(source.config.n_layers):
        for scopes in parts:
            if scopes == ("mlp",) and source.config.n_experts is not None:
                yield from _round_experts(source, layer, streams, settings, threads)
                continue
            part = _part_of_layer(source, layer, scopes, rope_style, threads)
            of_part = [each for each in inputs if each.matrices[0].scope in scopes]
            is_last = (layer + 1, scopes) == (source.config.n_layers, parts[-1])
            if scopes != _WHOLE:
                yield from _round_half(source, layer, part, of_part, streams, settings, is_last)
                continue
            for each in of_part:
                found = Hessian(source.shape(each.matrices[0].at(layer))[1], threads)
                for rows in part.inputs(streams, each):
                    found.add(rows)
                check_finite(found.mean(), f"the inputs at blocks.{layer}.{each.point}")
                yield from part.round(each.matrices, found, settings)
            if not is_last:
                streams = part.run(streams)


def _round_half(
    source: Source,
    layer: int,
    part: _Part,
    inputs: Sequence[Input],
    streams: list[Array],
    settings: Settings,
    is_last: bool,
) -> Iterator[tuple[str, Rounded]]:
    """Round attention or the MLP of a layer, and add what it gives to the streams [T, dim] unless it is the last.

    Each matrix is multiplied once for each token: a pass ends where its inputs are seen, and the last one's are kept.
    """
    first, second = inputs
    found = Hessian(source.config.dim, part.threads)
    for rows in part.inputs(streams, first):
        found.add(rows)
    check_finite(found.mean(), f"the inputs at blocks.{layer}.{first.point}")
    yield from part.round(first.matrices, found, settings)

    (matrix,) = second.matrices
    found = Hessian(source.shape(matrix.at(layer))[1], part.threads)
    kept = list(part.inputs(streams, second))
    for rows in kept:
        found.add(rows)
    check_finite(found.mean(), f"the inputs at blocks.{layer}.{second.point}")
    yield from part.round(second.matrices, found, settings)
    if is_last:
        return
    for stream, added in zip(streams, part.products(matrix, kept), strict=True):
        stream += added


class _SeenError(Exception):
    """Ends a pass whose activation has been seen."""


class _Part:
    """Some weights of a layer, as a model of one layer that is fed with residual streams.

    Parameters
    ----------
    config : Config
        Of that model.
    arrays : dict of str to numpy.ndarray
        Its weights by llama2.c's names.
    names : dict of str to str
        What those that can be rounded are called in the whole model.
    threads : int, optional
        How many compute.
    """

    def __init__(
        self, config: _core.Config, arrays: dict[str, Array], names: dict[str, str], threads: int | None
    ) -> None:
        self._config, self._arrays, self._names, self.threads = config, arrays, names, threads

    def products(self, matrix: Part, inputs: Sequence[Array]) -> Iterator[Array]:
        """Give what the half adds [T, dim] for its last matrix's inputs [T, columns]: a forward's products and sums."""
        from ..loading import from_arrays

        weight = self._arrays[matrix.at(0)]
        rows, columns = weight.shape
        sizes = {"dim": columns, "vocab_size": rows, "hidden_dim": 1, "tied": False, "logits_cap": 0.0}
        config = _core.Config(**self._config.to_dict() | _NO_ATTENTION | _DENSE | sizes)
        arrays = _adds_nothing(config, ()) | {OUTPUT.at(): weight}
        bias = self._arrays.get(matrix.at(0).removesuffix("weight") + "bias")
        multiplier = np.float32(self._config.residual_multiplier)
        with from_arrays(config, arrays, threads=self.threads, kv_dtype="f32", backend="cpu") as model:
            for each in inputs:
                added = model.unembed(each)
                if bias is not None:
                    added += bias
                yield added * multiplier

    def round(self, matrices: tuple[Part, ...], hessian: Hessian, settings: Settings) -> Iterator[tuple[str, Rounded]]:
        """Round some matrices, and go on with what has become of them."""
        weights = {self._names[matrix.at(0)]: self._arrays[matrix.at(0)] for matrix in matrices}
        products = hessian.mean()
        if not hessian.count:  # an expert that no token goes to
            products = np.eye(len(products))
        rounded = round_matrices(weights, products, settings, self.threads)
        for matrix in matrices:
            self._arrays[matrix.at(0)] = rounded[self._names[matrix.at(0)]].weight
        for name, each in rounded.items():
            yield name, replace(each, inputs=hessian.count)

    def run(self, streams: list[Array]) -> list[Array]:
        """Give what comes out for each stream [T, dim]."""
        return [after for after, _ in self.activations(streams, ())]

    def inputs(self, streams: list[Array], shown: Input) -> Iterator[Array]:
        """Give the inputs [T, columns] of some matrices for each stream [T, dim]. A pass ends there."""
        from ..loading import from_arrays

        gain, bias = (None if part is None else self._arrays[part.at(0)] for part in (shown.gain, shown.bias))
        seen: list[Array] = []

        def look(activation: Array, hook: HookPoint) -> None:
            rows = activation.reshape(activation.shape[1], -1)
            rows = rows.copy() if gain is None else rows * gain
            seen.append(rows if bias is None else rows + bias)
            raise _SeenError

        with from_arrays(self._config, self._arrays, threads=self.threads, kv_dtype="f32", backend="cpu") as model:
            for stream in streams:
                hooks = [("hook_embed", _puts(stream)), (f"blocks.0.{shown.point}", look)]
                with suppress(_SeenError), model.hooks(hooks):
                    model.run_with_cache([0] * len(stream), [], stop_at_layer=1)
                yield seen.pop()

    def activations(self, streams: list[Array], points: Sequence[str]) -> Iterator[tuple[Array, list[Array]]]:
        """Give what comes out for each stream [T, dim], and the activations [T, columns] at points of the layer."""
        from ..loading import from_arrays

        names = [f"blocks.0.{point}" for point in points]
        with from_arrays(self._config, self._arrays, threads=self.threads, kv_dtype="f32", backend="cpu") as model:
            for stream in streams:
                with model.hooks([("hook_embed", _puts(stream))]):
                    after, cache = model.run_with_cache([0] * len(stream), names, stop_at_layer=1)
                yield after[0], [cache[name].reshape(len(stream), -1) for name in names]


def _part_of_layer(source: Source, layer: int, scopes: tuple[Half, ...], rope_style: str, threads: int | None) -> _Part:
    """Make a layer, or its attention or MLP beside a half that adds nothing."""
    settings = _of_one_layer(source, rope_style)
    settings["no_rope_layers"] = (0,) if layer in source.config.no_rope_layers else ()
    names = {part.at(0): part.at(layer) for part in ALL_PARTS if part.in_layers and part.scope in scopes}
    arrays = {own: source.array(name, rope_style) for own, name in names.items() if name in source}
    if scopes == _WHOLE:
        settings["full_layers"] = (0,) if layer in source.config.full_layers else ()
        config = _core.Config(**settings)
        for part in ALL_PARTS:  # of the model, which the layer's output does not come to
            if not part.in_layers and part.at() in source:
                arrays[part.at()] = np.zeros(part.shape(config), np.float32)
        return _Part(config, arrays, names, threads)
    if layer in source.config.full_layers:
        settings["sliding_window"] = None
    if scopes == ("attention",):
        config = _core.Config(**settings | _DENSE | {"hidden_dim": 1})
    else:
        config = _core.Config(**settings | _NO_ATTENTION)
    return _Part(config, arrays | _adds_nothing(config, scopes), names, threads)


def _round_experts(
    source: Source, layer: int, streams: list[Array], settings: Settings, threads: int | None
) -> Iterator[tuple[str, Rounded]]:
    """Round all experts of a layer, one after another, and put what comes out in the streams' [T, dim] place."""
    shown = expert_input(source.config, source)
    routing = list(_router(source, layer, threads).activations(streams, (ROUTING, _SHARES)))
    outs = [np.zeros_like(stream) for stream in streams]
    for expert in range(source.config.n_experts or 0):
        part = _expert(source, layer, expert, threads)
        places = [np.flatnonzero(np.any(ids == expert, axis=1)) for _, (ids, _) in routing]
        rows = _in_pieces([stream[place] for stream, place in zip(streams, places, strict=True)])
        for point, matrices in EXPERT_INPUTS.items():
            each = Input(point, tuple(_DENSE_PART[matrix.name] for matrix in matrices))
            each = replace(each, gain=shown.gain if point == shown.point else None)
            columns = source.shape(matrices[0].at(layer, expert))[1]
            found = Hessian(columns, threads)
            kept = list(part.inputs(rows, each))
            for inputs in kept:
                found.add(inputs)
            check_finite(found.mean(), f"the inputs of expert {expert} at blocks.{layer}.{point}")
            damped = replace(settings, damp=settings.damping(sum(map(len, rows)), columns))
            yield from part.round(each.matrices, found, damped)
        (last,) = each.matrices
        added = list(part.products(last, kept))
        ends = np.cumsum([len(place) for place in places])[:-1]
        of_stream = np.split(np.concatenate(added), ends) if added else [np.empty((0, 1), np.float32) for _ in places]
        for out, place, (_, (_, shares)), gives in zip(outs, places, routing, of_stream, strict=True):
            out[place] += shares[place, expert, None] * gives
    for stream, out in zip(streams, outs, strict=True):
        stream += out


_SHARES = "mlp.hook_expert_weights"
_ROWS_OF_EXPERT = 512  # that run together


def _in_pieces(rows: Sequence[Array]) -> list[Array]:
    """Cut rows of all sequences into pieces, none of them empty."""
    every = np.concatenate(rows)
    return [every[begin : begin + _ROWS_OF_EXPERT] for begin in range(0, len(every), _ROWS_OF_EXPERT)]


def _router(source: Source, layer: int, threads: int | None) -> _Part:
    """Make a layer's router, of experts that give nothing."""
    settings = _of_one_layer(source, "half_split") | _NO_ATTENTION
    config = _core.Config(**settings | {"hidden_dim": 1})
    arrays = _adds_nothing(config, ("mlp",))
    for part in (*ALL_PARTS, *EXPERT_PARTS):
        if part.scope != "mlp":
            continue
        for name, own in zip(
            part.in_layer(layer, config.n_experts or 0), part.in_layer(0, config.n_experts or 0), strict=True
        ):
            if name in source:
                arrays[own] = (
                    np.zeros(part.shape(config), np.float32) if part.per_expert else source.array(name, "half_split")
                )
    return _Part(config, arrays, {}, threads)


def _expert(source: Source, layer: int, expert: int, threads: int | None) -> _Part:
    """Make an expert of a layer, as the MLP of a model without experts."""
    settings = _of_one_layer(source, "half_split") | _NO_ATTENTION | _DENSE
    config = _core.Config(**settings | {"seq_len": _ROWS_OF_EXPERT})
    arrays = _adds_nothing(config, ("mlp",))
    names = {_DENSE_PART[part.name].at(0): part.at(layer, expert) for part in EXPERT_PARTS if part.per_expert}
    of_layer = {part.at(0): part.at(layer) for part in ALL_PARTS if part.scope == "mlp"}
    for own, name in (of_layer | names).items():
        if name in source:
            arrays[own] = source.array(name, "half_split")
    return _Part(config, arrays, names, threads)


def _of_one_layer(source: Source, rope_style: str) -> dict[str, Any]:
    settings = source.config.to_dict() | {"n_layers": 1, "vocab_size": 1, "tied": True, "rope_style": rope_style}
    return settings | {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "full_layers": (), "no_rope_layers": ()}


_NO_ATTENTION: dict[str, Any] = {
    **{"n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "rotary_dim": None, "qk_norm": "none"},
    **{"rope_scaling": None, "rope_factors": (), "rope_long_factors": ()},
}
_DENSE: dict[str, Any] = {"n_experts": None, "n_experts_used": None}


def _adds_nothing(config: _core.Config, scopes: tuple[Half, ...]) -> dict[str, Array]:
    """Make what is not of these halves as every Llama has it, its matrices of zeros."""
    found = {}
    for part in ALL_PARTS:
        if part.scope not in scopes and part.in_every_llama:
            make = np.ones if part.is_vector else np.zeros
            found[part.at(0)] = make(part.shape(config), np.float32)
    return found


def _puts(stream: Array) -> Callable[[Array, HookPoint], Array]:
    """Make a hook that puts a stream [T, dim] in an activation's place."""
    return lambda activation, hook: stream[None]
