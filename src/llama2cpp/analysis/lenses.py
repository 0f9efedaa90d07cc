"""Lenses on the residual stream: how far they are from the model's predictions, and one that is fitted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..activation_data.passes import Passes, Texts, shown_progress
from ..common.arguments import checked
from ..common.probabilities import kl_divergence, log_softmax
from ..common.token_ids import Prompt, to_ids
from ..inside.places import find_places, residual_streams
from ..inside.tuned_lens import TunedLens

if TYPE_CHECKING:
    from ..model import Model

_LENS_ROWS = 64  # of logits that are in memory at a time


@checked
def lens_divergence(
    model: Model,
    text: Prompt,
    translators: TunedLens | None = None,
    *,
    special: bool | None = None,
) -> NDArray[np.float64]:
    """Measure how far the logit lens, or a tuned lens, is from what the model says in the end, layer by layer.

    Parameters
    ----------
    model : Model
    text : str, bytes or sequence of int
    translators : TunedLens, optional
        Of a tuned lens; without them it is the logit lens.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.

    Returns
    -------
    numpy.ndarray
        float64 [n_layers + 1, T]: the Kullback-Leibler divergence, in nats, from the model's prediction to the one that
        is read before each layer, and after the last, where it is 0.

    Raises
    ------
    ValueError
        For translators of other sizes than the model's.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> found = analysis.lens_divergence(model, "Once upon a time")
    >>> found.shape, float(found[-1].max())
    ((6, 5), 0.0)
    """
    if translators is not None:
        translators.check(model, "lens_divergence")
    ids = to_ids(model, text, function="lens_divergence", special=special)
    _, cache = model._run("lens_divergence", ids, residual_streams(model.config), return_type=None)
    streams = [cache[name][0] for name in residual_streams(model.config)]
    found = np.zeros((len(streams), len(ids)))
    for first in range(0, len(ids), _LENS_ROWS):
        some = slice(first, first + _LENS_ROWS)
        last = log_softmax(model.unembed(streams[-1][some], apply_ln=True))
        for layer, stream in enumerate(streams[:-1]):
            read = stream[some] if translators is None else translators.translate(stream[some], layer)
            found[layer, some] = kl_divergence(last, log_softmax(model.unembed(read, apply_ln=True)))
    return found


@checked
def fit_tuned_lens(
    model: Model,
    texts: Iterable[Prompt],
    *,
    ridge: float = 1e-3,
    skip: int = 1,
    truncate: bool = False,
    special: bool | None = None,
    progress: bool | None = None,
) -> TunedLens:
    """Fit translators of a tuned lens by least squares: each layer's stream to that after the last.

    Of the affine maps it is the one with the least squared error in the residual stream (Din and others, "Jump to
    conclusions", 2023), which needs one run of each text and no gradients. Translators that are trained to predictions
    (Belrose and others, 2023) are better ones: `train_tuned_lens` trains some, and `TunedLens` reads those of others.

    Parameters
    ----------
    model : Model
    texts : iterable of str, bytes or sequences of int
        Of the kind that the lens is for; several tokens for each number of `dim`, in all.
    ridge : float
        What the squares of weights cost, in parts of the mean square of the stream: it holds back directions that the
        texts hardly have.
    skip : int
        How many tokens of each text are left out: the first ones have streams of their own, often very large.
    truncate, special, progress
        As in `Model.extract`.

    Returns
    -------
    TunedLens

    Raises
    ------
    ValueError
        If there are no tokens, or for a negative `ridge` or `skip`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> stories = [model.generate("Once upon a", max_tokens=40, seed=i, echo=True) for i in range(12)]
    >>> lens = analysis.fit_tuned_lens(model, stories, progress=False)
    >>> text = "Once upon a time, there was a little dog."
    >>> plain, tuned = (analysis.lens_divergence(model, text, each).mean(axis=1) for each in (None, lens))
    >>> bool(tuned[2] < plain[2])
    True
    """
    if not 0 <= ridge < np.inf:
        raise ValueError(f"fit_tuned_lens: ridge is {ridge}, expected a number of 0 or more")
    if skip < 0:
        raise ValueError(f"fit_tuned_lens: skip is {skip}, expected 0 or more")
    config = model.config
    names = residual_streams(config)
    source = Texts(model, "fit_tuned_lens", texts, truncate=truncate, special=special)
    passes = Passes(model, find_places(names, config), None)
    dim, count = config.dim, 0
    squares = np.zeros((config.n_layers, dim + 1, dim + 1))  # of streams with a one behind them
    products = np.zeros((config.n_layers, dim + 1, dim))  # of these with what the last stream adds to them
    with shown_progress(texts, progress) as seen:
        while batch := passes.take(source, lambda _: True):
            rows = [{name: array[skip:] for name, array in arrays.items()} for arrays in passes.run(batch)]
            last = np.concatenate([own[names[-1]] for own in rows]).astype(np.float64)
            for layer, name in enumerate(names[:-1]):
                x = np.concatenate([own[name] for own in rows]).astype(np.float64)
                wide = np.concatenate([x, np.ones((len(x), 1))], axis=1)
                squares[layer] += wide.T @ wide
                products[layer] += wide.T @ (last - x)
            count += len(last)
            seen(source.taken, count)
    if not count:
        raise ValueError(f"fit_tuned_lens: the texts have no tokens behind the first {skip}")
    for own in squares:
        own[np.arange(dim), np.arange(dim)] += ridge * own.trace() / dim + 1e-12
    solved = np.linalg.solve(squares, products).astype(np.float32)  # [n_layers, dim + 1, dim]
    return TunedLens(np.swapaxes(solved[:, :dim], 1, 2), solved[:, dim])
