"""A tuned lens whose translators are trained to the model's own predictions, by gradients in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..activation_data.passes import Passes, Texts, shown_progress
from ..common.arguments import checked
from ..common.parts import NORM, OUTPUT
from ..common.probabilities import log_softmax
from ..common.token_ids import Prompt
from ..inside.places import find_places, residual_streams
from ..inside.tuned_lens import TunedLens

if TYPE_CHECKING:
    from ..model import Model

Array: TypeAlias = NDArray[np.float32]

_DECAY_OF_MEANS, _DECAY_OF_SQUARES = 0.9, 0.999  # Adam's
_LEAST = 1e-8


class _Reading:
    """How the model reads a residual stream: its last norm, its output matrix, and the way back through both."""

    def __init__(self, model: Model) -> None:
        self._model, self._config = model, model.config
        weights = model.weights
        self._matrix = np.asarray(weights[OUTPUT.lens])  # [dim, vocab_size]
        there = NORM.lens in weights.transformer_lens
        self._gain = np.asarray(weights[NORM.lens]) if there else np.ones(self._config.dim, dtype=np.float32)

    def gradient(self, read: Array, wanted: NDArray[np.float64]) -> Array:
        """Differentiate the divergence from `wanted`, log probabilities [N, vocab_size], by `read` [N, dim]."""
        c = self._config
        logits = self._model.unembed(read, apply_ln=True)
        d = (np.exp(log_softmax(logits)) - np.exp(wanted)).astype(np.float32)
        if c.logits_cap:
            d *= 1 - np.square(logits / np.float32(c.logits_cap))
        d = (d @ self._matrix.T) * (self._gain / np.float32(c.logits_scaling))
        x = read if c.norm == "rms" else read - read.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(c.norm_eps))
        normalized = x / scale
        d = (d - normalized * (d * normalized).mean(axis=-1, keepdims=True)) / scale
        return np.asarray(d if c.norm == "rms" else d - d.mean(axis=-1, keepdims=True), dtype=np.float32)


class _Adam:
    """Steps of Kingma and Ba (2015), in place."""

    def __init__(self, shape: tuple[int, ...], rate: float) -> None:
        self._mean, self._square = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        self._rate, self._step = rate, 0

    def step(self, parameter: Array, gradient: Array) -> None:
        """Change a parameter."""
        self._step += 1
        self._mean += (1 - _DECAY_OF_MEANS) * (gradient - self._mean)
        self._square += (1 - _DECAY_OF_SQUARES) * (np.square(gradient) - self._square)
        mean = self._mean / (1 - _DECAY_OF_MEANS**self._step)
        square = self._square / (1 - _DECAY_OF_SQUARES**self._step)
        parameter -= np.float32(self._rate) * mean / (np.sqrt(square) + np.float32(_LEAST))


@checked
def train_tuned_lens(
    model: Model,
    texts: Iterable[Prompt],
    start: TunedLens | None = None,
    *,
    learning_rate: float = 1e-3,
    rows: int = 64,
    skip: int = 1,
    truncate: bool = False,
    special: bool | None = None,
    progress: bool | None = None,
) -> TunedLens:
    """Train translators of a tuned lens to what the model says in the end: by the divergence between predictions.

    It is the tuned lens of Belrose and others, "Eliciting latent predictions from transformers with the tuned lens"
    (2023), trained by Adam; each step reads some tokens before every layer. `fit_tuned_lens` is a good `start`, and
    takes one run of each text; each step here costs about three products with the output matrix for each layer and
    token.

    Parameters
    ----------
    model : Model
    texts : iterable of str, bytes or sequences of int
        Read once, in their order: for several rounds, give them several times.
    start : TunedLens, optional
        What training begins with; if not given, the logit lens.
    learning_rate : float
        Adam's.
    rows : int
        Tokens of a step.
    skip, truncate, special, progress
        As in `fit_tuned_lens`.

    Returns
    -------
    TunedLens

    Raises
    ------
    ValueError
        If there are fewer tokens than a step has, or for a `start` of other sizes, a `learning_rate` that is not
        positive, `rows` below 1 or a negative `skip`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> stories = [model.generate("Once upon a", max_tokens=40, seed=i, echo=True) for i in range(12)]
    >>> fitted = analysis.fit_tuned_lens(model, stories, progress=False)
    >>> trained = analysis.train_tuned_lens(model, stories, fitted, rows=32, progress=False)
    >>> text = "Once upon a time, there was a little dog."
    >>> before, after = (analysis.lens_divergence(model, text, lens).mean() for lens in (fitted, trained))
    >>> bool(after < before)
    True
    """
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"train_tuned_lens: learning_rate is {learning_rate}, expected a number above 0")
    if rows < 1:
        raise ValueError(f"train_tuned_lens: rows is {rows}, expected 1 or more")
    if skip < 0:
        raise ValueError(f"train_tuned_lens: skip is {skip}, expected 0 or more")
    config = model.config
    if start is not None:
        start.check(model, "train_tuned_lens")
    layers, dim = config.n_layers, config.dim
    own = [None] * layers if start is None else start.weights
    weights = np.stack([np.zeros((dim, dim), dtype=np.float32) if weight is None else weight for weight in own])
    own = [None] * layers if start is None else start.biases
    biases = np.stack([np.zeros(dim, dtype=np.float32) if bias is None else bias for bias in own])
    steps = [(_Adam((dim, dim), learning_rate), _Adam((dim,), learning_rate)) for _ in range(layers)]
    reading = _Reading(model)
    names = residual_streams(config)
    source = Texts(model, "train_tuned_lens", texts, truncate=truncate, special=special)
    passes = Passes(model, find_places(names, config), None)
    done = 0
    with shown_progress(texts, progress) as seen:
        for streams in _steps(source, passes, names, skip, rows):
            wanted = log_softmax(model.unembed(streams[-1], apply_ln=True))
            for layer, x in enumerate(streams[:-1]):
                d = reading.gradient(x + x @ weights[layer].T + biases[layer], wanted) / np.float32(len(x))
                of_weight, of_bias = steps[layer]
                of_weight.step(weights[layer], d.T @ x)
                of_bias.step(biases[layer], d.sum(axis=0))
            done += rows
            seen(source.taken, done)
    if not done:
        raise ValueError(f"train_tuned_lens: the texts have fewer than {rows} tokens behind the first {skip} of each")
    return TunedLens(weights, biases)


def _steps(source: Texts, passes: Passes, names: list[str], skip: int, rows: int) -> Iterator[list[Array]]:
    """Give streams [rows, dim], before each layer and after the last, for each step; a rest is left out."""
    held: list[list[Array]] = [[] for _ in names]
    while batch := passes.take(source, lambda _: True):
        for arrays in passes.run(batch):
            for own, name in zip(held, names, strict=True):
                own.append(arrays[name][skip:])
        together = [np.concatenate(own) for own in held]
        whole = len(together[0]) // rows * rows
        for first in range(0, whole, rows):
            yield [array[first : first + rows] for array in together]
        held = [[array[whole:]] for array in together]
