"""What the inputs of a model's matrices look like on some text: what quantizers want to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.arguments import integer
from ..common.parts import (
    EMBEDDING,
    EXPERT_PARTS,
    LAYER_GAINS,
    LAYER_MATRICES,
    LAYER_PARTS,
    NORM,
    NORM_B,
    OUTPUT,
    Part,
    in_forward_order,
)
from ..common.token_ids import to_ids
from .source import Array, Source

if TYPE_CHECKING:
    from ..inside.hooks import Hook, HookPoint
    from ..model import Model

Progress = Callable[[str, int, int], None]
Products = NDArray[np.float64]

_ROWS_AT_ONCE = 4096  # inputs whose products are summed in float32, in blocks of 256; sums of those are float64

_LEAST_IMPORTANCE = 0.01  # what a column counts that no input of the text has used, as a share of the mean

# Which activation is the input of which matrices of a layer. A normalised one still lacks the norm's gain.
INPUTS = {
    point: tuple(matrices)
    for point, matrices in groupby(in_forward_order(LAYER_MATRICES), key=lambda matrix: matrix.reads)
}
GAINS = {gain.reads: gain for gain in LAYER_GAINS}

EXPERT_INPUTS = {
    point: tuple(matrices)
    for point, matrices in groupby(
        in_forward_order(part for part in EXPERT_PARTS if part.kind == "experts"), key=lambda matrix: matrix.reads
    )
}
"""The same of experts: a row of the first is the input of those that `ROUTING` names, the second has a row for each."""

ROUTING = "mlp.hook_expert_indices"


@dataclass(frozen=True)
class Input:
    """What some matrices of a layer are multiplied with.

    Attributes
    ----------
    point : str
        A hook point, without "blocks.{i}.".
    matrices : tuple of Part
        In the order of a forward.
    gain, bias : Part or None
        What the activation there still lacks of its norm.
    """

    point: str
    matrices: tuple[Part, ...]
    gain: Part | None = None
    bias: Part | None = None

    def weights(self, source: Source, layer: int) -> tuple[Array | None, Array | None]:
        """Give the layer's gain and bias, where it has them."""
        gain, bias = (
            None if part is None else source.array(part.at(layer), "half_split") for part in (self.gain, self.bias)
        )
        return gain, bias


def inputs_of(config: _core.Config, source: Source) -> list[Input]:
    """Give the inputs of all matrices of a layer, in the order of a forward; those of experts are `EXPERT_INPUTS`."""
    found: dict[str, Input] = {}
    for point, every in INPUTS.items():
        matrices = tuple(part for part in every if part.at(0) in source)
        if not matrices:
            continue
        if point in GAINS and config.parallel:  # its MLP reads what attention reads
            point = next(iter(INPUTS))
        gain = GAINS.get(point)
        if gain is not None and config.norm_places == "after":  # it reads the residual stream
            point = _STREAMS[gain.scope]
            gain = None
        gain = gain if gain is not None and gain.at(0) in source else None
        bias = None if gain is None else _NORM_BIASES.get(gain.name)
        bias = bias if bias is not None and bias.at(0) in source else None
        before = found[point].matrices if point in found else ()
        found[point] = Input(point, (*before, *matrices), gain, bias)
    return list(found.values())


def expert_input(config: _core.Config, source: Source) -> Input:
    """Give what experts' first matrices are multiplied with, each with the rows that the router sends it.

    Raises
    ------
    ValueError
        For a model whose halves cannot be run alone.
    """
    if not has_halves(config):
        raise ValueError(
            "calibration text for experts (n_experts) is implemented for models with RMSNorm before attention and MLP, "
            "one after the other"
        )
    point, *_ = EXPERT_INPUTS
    gain = GAINS[point]
    return Input(point, EXPERT_INPUTS[point], gain if gain.at(0) in source else None)


def has_halves(config: _core.Config) -> bool:
    """Whether half of a layer can be run alone: one whose matrices are zeros adds nothing."""
    plain = config.norm == "rms" and config.norm_places == "before" and not config.parallel
    return plain and config.gated and not config.local_rope_theta


_STREAMS = {"attention": "hook_resid_pre", "mlp": "hook_resid_mid"}
_NORM_BIASES = {
    gain.name: bias
    for gain in LAYER_GAINS
    for bias in LAYER_PARTS
    if bias.pattern == f"{gain.pattern.removesuffix('weight')}bias"
}


@dataclass(frozen=True)
class Calibration:
    """Text that a quantizer looks at, and how much of it.

    Attributes
    ----------
    text : path or sequence of int
        A file, of the kind that the model will read and write; or token ids.
    sequences : int
        The most sequences of it. They are spread evenly over a longer text.
    length : int
        Tokens of a sequence, or the model's context if that is less. Where the tokenizer puts a first token before a
        text, each sequence begins with it.

    Raises
    ------
    ValueError
        For less than one sequence or one token.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> story = model.tokenizer.encode(model.generate(seed=1))
    >>> calibration = llama2cpp.export.Calibration(story, sequences=8)
    >>> calibration.length
    512
    >>> [len(sequence) for sequence in calibration.tokens(model)] == [len(story)]
    True
    """

    text: str | PathLike[str] | Sequence[int]
    sequences: int = 64
    length: int = 512

    def __post_init__(self) -> None:
        for name in ("sequences", "length"):
            if integer(getattr(self, name), name, "Calibration") < 1:
                raise ValueError(f"calibration: {name} is {getattr(self, name)}, expected 1 or more")

    def tokens(self, model: Model) -> list[list[int]]:
        """Cut the text into sequences.

        Parameters
        ----------
        model : Model
            Its tokenizer makes ids of a file.

        Returns
        -------
        list of list of int
            At least one, none of them empty; the last is shorter where the text ends.

        Raises
        ------
        ValueError
            If there is no token, or one that the model has not, or no tokenizer for a file.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp.export import Calibration
        >>> Calibration([1, 508, 509, 260, 420], length=3).tokens(llama2cpp.load("storyteller"))
        [[1, 508, 509], [260, 420]]
        """
        is_file = isinstance(self.text, str | PathLike)
        prompt = _core.read_file(self.text) if isinstance(self.text, str | PathLike) else self.text
        ids = to_ids(model, prompt, function="Calibration", special=False)
        bos = model.tokenizer.bos_id if is_file and model.has_tokenizer else None
        first = [bos] if bos is not None and ids[:1] == [bos] else []
        rest = ids[len(first) :]
        if not rest:
            raise ValueError("the calibration text has no tokens")
        unknown = [id for id in rest if not 0 <= id < model.config.vocab_size]
        if unknown:
            raise ValueError(
                f"calibration: a token is {unknown[0]}, expected 0 to {model.config.vocab_size - 1}, the vocabulary"
            )
        each = max(1, min(self.length, model.context) - len(first))
        begins = range(0, len(rest), each)
        if len(begins) > self.sequences:  # whole ones, from its beginning to its end
            last = len(rest) // each - 1
            numbers = np.linspace(0, last, self.sequences).round().astype(int)
            begins_chosen = [int(number) * each for number in numbers]
        else:
            begins_chosen = list(begins)
        return [[*first, *rest[begin : begin + each]] for begin in begins_chosen]


@dataclass
class Hessian:
    """X^T X / n of inputs X [n, columns] that come in pieces: float64 [columns, columns].

    Products are summed in float32 for up to `_ROWS_AT_ONCE` inputs, in blocks of 256, and the sums of those in float64.
    The same inputs in the same pieces give the same bits on any processor, with any number of threads.
    """

    columns: int
    threads: int | None = None
    count: int = 0
    _sum: Products = field(init=False)
    _rows: list[Array] = field(init=False, default_factory=list)
    _waiting: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        # The sum, what is added to it, and what the factor takes.
        _core.need_memory(
            3 * 8.0 * self.columns**2,
            f"the Hessian of a matrix of {self.columns} columns",
            "export without calibration",
        )
        self._sum = np.zeros((self.columns, self.columns))

    def add(self, inputs: Array) -> None:
        """Count float32 [n, columns] in. They must not change afterwards."""
        self._rows.append(inputs)
        self._waiting += len(inputs)
        if self._waiting >= _ROWS_AT_ONCE:
            self._take()

    def _take(self) -> None:
        if not self._rows:
            return
        inputs = np.ascontiguousarray(np.concatenate(self._rows), dtype=np.float32)
        self._sum += _core.gram(inputs, self.threads)
        self.count += len(inputs)
        self._rows, self._waiting = [], 0

    def mean(self) -> Products:
        """Give the mean over all inputs so far."""
        self._take()
        return self._sum / max(self.count, 1)


def check_finite(array: NDArray[Any], what: str) -> None:
    """Raise ValueError where numbers are not finite."""
    if not np.isfinite(array).all():
        raise ValueError(f"calibration: {what} of the model on this text are not finite")


class ExpertInputs:
    """A hook that shows what experts read by expert, of all layers.

    Parameters
    ----------
    n_experts : int
        Of a layer.
    show : callable
        Called with a layer, an expert, a point of `EXPERT_INPUTS` and the inputs there, float32 [n, columns], of the
        tokens that go to the expert; not where there are none.
    """

    def __init__(self, n_experts: int, show: Callable[[int, int, str, Array], None]) -> None:
        self.points = (*EXPERT_INPUTS, ROUTING)
        self._n_experts, self._show = n_experts, show
        self._rows = np.empty((0, 0), np.float32)
        self._ids = np.empty((0, 0), np.float32)

    def look(self, activation: Array, hook: HookPoint) -> None:
        """Take an activation at one of `points` of a layer."""
        point = hook.name.split(".", 2)[2]
        first, second = EXPERT_INPUTS
        if point == first:  # the routing is known later
            self._rows = activation.reshape(activation.shape[1], -1).copy()
            return
        if point == ROUTING:
            self._ids = activation.reshape(activation.shape[1], -1).copy()
            rows, chosen = self._rows, [np.any(self._ids == expert, axis=1) for expert in range(self._n_experts)]
            point = first
        else:
            rows, places = activation.reshape(self._ids.size, -1), self._ids.reshape(-1)
            chosen = [places == expert for expert in range(self._n_experts)]
            assert point == second
        assert hook.layer is not None
        for expert, mask in enumerate(chosen):
            if mask.any():
                self._show(int(hook.layer), expert, point, rows[mask])


def importance_of_inputs(
    model: Model, sequences: Sequence[Sequence[int]], *, progress: Progress | None = None
) -> dict[str, Array]:
    """Measure how much each column of a matrix counts: the mean square of its input, relative to that of all inputs.

    Parameters
    ----------
    model : Model
        It runs as it is, one sequence after another.
    sequences : sequence of sequence of int
        The text, of `Calibration.tokens`.
    progress : callable, optional
        Called after each sequence with "calibration", the tokens that are done and that there are in all.

    Returns
    -------
    dict of str to numpy.ndarray
        float32 [columns] by llama2.c's name of each matrix; that of the output matrix is the embedding table's where
        they are one. An expert's columns count by the tokens that it has seen, and all alike where it saw none.

    Raises
    ------
    ValueError
        Where activations are not finite.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.export.calibration import importance_of_inputs
    >>> model = llama2cpp.load("storyteller")
    >>> found = importance_of_inputs(model, [[1, 403, 407, 261, 378]])
    >>> found["layers.0.feed_forward.w2.weight"].shape
    (512,)
    """
    n_layers, source = model.config.n_layers, Source(model)
    squares: dict[str, NDArray[np.float64]] = {}
    config, inputs = model.config, inputs_of(model.config, source)
    last = f"blocks.{n_layers - 1}.hook_resid_post"
    norms = {
        f"blocks.{layer}.{each.point}": each.weights(source, layer) for each in inputs for layer in range(n_layers)
    }
    last_bias = source.array(NORM_B.at(), "half_split") if NORM_B.at() in source else None
    norms[last] = (source.array(NORM.at(), "half_split") if NORM.at() in source else None, last_bias)

    def look(activation: Array, hook: HookPoint) -> None:
        gain, bias = norms[hook.name]
        rows = activation.reshape(activation.shape[1], -1).astype(np.float64)
        if hook.name == last and config.norm != "rms":
            rows -= rows.mean(axis=1, keepdims=True)
        # The last is normalised here: the model would compute logits for all tokens, too.
        divisor = np.square(rows).mean(axis=1, keepdims=True) + config.norm_eps if hook.name == last else np.float64(1)
        if bias is None:  # the gain's squares are multiplied with the sums
            found = np.square(rows) / divisor
        else:
            found = np.square(rows / np.sqrt(divisor) * (1 if gain is None else gain) + bias)
        squares[hook.name] = squares.get(hook.name, 0.0) + found.sum(axis=0)

    n_experts = config.n_experts or 0
    of_experts: dict[tuple[int, int, str], NDArray[np.float64]] = {}

    def show(layer: int, expert: int, point: str, rows: Array) -> None:
        key = layer, expert, point
        of_experts[key] = of_experts.get(key, 0.0) + np.square(rows, dtype=np.float64).sum(axis=0)

    hooks: list[Hook] = [([*list(norms)[:-1], last], look)]
    if n_experts:
        first = expert_input(config, source)
        experts = ExpertInputs(n_experts, show)
        hooks.append(
            ([f"blocks.{layer}.{point}" for layer in range(n_layers) for point in experts.points], experts.look)
        )
    total = sum(map(len, sequences))
    done = 0
    with model.hooks(hooks):
        for ids in sequences:
            model.session(context=len(ids)).prefill(ids)
            done += len(ids)
            if progress is not None:
                progress("calibration", done, total)
    result: dict[str, Array] = {}

    def put(point: str, sums: NDArray[np.float64], gain: Array | None, weights: Sequence[str]) -> None:
        mean = sums / total
        if gain is not None:
            mean *= np.square(gain, dtype=np.float64)
        check_finite(mean, f"the inputs at {point}")
        mean = mean / (mean.mean() or 1.0) + _LEAST_IMPORTANCE
        result.update((weight, mean.astype(np.float32)) for weight in weights)

    def put_at(point: str, weights: Sequence[str]) -> None:
        gain, bias = norms[point]
        put(point, squares[point], gain if bias is None else None, weights)

    for layer in range(n_layers):
        for each in inputs:
            put_at(f"blocks.{layer}.{each.point}", [matrix.at(layer) for matrix in each.matrices])
        for expert in range(n_experts):
            for point, matrices in EXPERT_INPUTS.items():
                gain = first.weights(source, layer)[0] if point == first.point else None
                sums = of_experts.get((layer, expert, point), np.zeros(matrices[0].shape(config)[1]))
                put(f"blocks.{layer}.{point}", sums, gain, [matrix.at(layer, expert) for matrix in matrices])
    put_at(last, [(EMBEDDING if config.tied else OUTPUT).at()])
    return result
