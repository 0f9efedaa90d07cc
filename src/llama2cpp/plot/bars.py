"""Bars: the likeliest tokens, and what parts of a model add to something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..attribution import EdgeAttribution
from ..common.arguments import checked
from ..common.probabilities import log_softmax
from .axes import grid_axes, names_of
from .figures import MINUS, PLUS, drawable, finish, new_figure, numbers, short_text, texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..model import Model

_MOST_NUMBERS = 60  # beside bars, before they are too close


@checked
def next_tokens(model: Model, logits: ArrayLike, *, most: int = 10, title: str | None = None) -> Figure:
    """Draw the likeliest next tokens as bars.

    Parameters
    ----------
    model : Model
        Whose tokens they are.
    logits : array [vocab_size]
        What `Session.step` and `Session.prefill` return.
    most : int
        How many bars.
    title : str, optional
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the logits are not one row of the model's vocabulary, the largest is no finite number, or `most` is less
        than 1.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits = model.session().prefill(model.tokenizer.encode("Once upon a"))
    >>> figure = llama2cpp.plot.next_tokens(model, logits, most=3)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()][0]
    '·time'
    """
    if most < 1:
        raise ValueError(f"next_tokens: most is {most}, expected 1 or more")
    row = numbers("next_tokens", "logits", logits)
    if row.shape != (model.config.vocab_size,):
        raise ValueError(f"next_tokens: logits have shape {list(row.shape)}, expected [{model.config.vocab_size}]")
    if not np.isfinite(row.max()):  # single tokens may have -inf, which is a probability of 0
        raise ValueError(f"next_tokens: the largest logit is {row.max()}, expected a finite number")
    probs = np.exp(log_softmax(row))
    best = np.argsort(-probs, kind="stable")[:most].tolist()
    names = [str(id) for id in best] if not model.has_tokenizer else list(model.to_str_tokens(best))
    figure, axes = _bars(probs[best].tolist(), [short_text(name) for name in names], title)
    end = 1.0 if probs[best[0]] > 0.1 else float(probs[best[0]]) * 1.3  # bars that can be seen
    axes.set_xlim(0, end)
    axes.set_xlabel("probability", fontsize=9)
    for place, id in enumerate(best if len(best) <= _MOST_NUMBERS else []):
        beside: dict[str, Any] = {"va": "center", "fontsize": 7, "color": "#555555"}
        axes.text(float(probs[id]) + 0.01 * end, place, _probability(float(probs[id])), **beside)
    return finish(figure, title)


@checked
def attributions(
    values: ArrayLike | Mapping[str, float] | EdgeAttribution,
    labels: Sequence[str] | None = None,
    *,
    over: Sequence[str] | Mapping[str, Any] | None = None,
    tokens: Sequence[str] | None = None,
    most: int = 12,
    title: str | None = None,
    unit: str = "logit",
) -> Figure:
    """Draw what parts add to something as bars, the largest first.

    Parameters
    ----------
    values : array, mapping of str to float, or EdgeAttribution
        Such as ``cache.logit_attrs(...)`` at one position, an array that `llama2cpp.patching` or
        `llama2cpp.attribution.attribution_patch` gives, or the edges of `llama2cpp.attribution.edge_attribution`.
        What is NaN was not computed, and is left out.
    labels : sequence of str, optional
        One for each part of an array. Without them the axes name the parts: "L0H5".
    over : sequence of str, or mapping of str to sequence of int, optional
        What the axes of an array without labels are, as in `patching`: ``["layer", "neuron"]``. Two axes are layers and
        heads if not given.
    tokens : sequence of str, optional
        Texts of positions, if the only axis is "position".
    most : int
        How many bars; the rest is one bar more, "all others".
    title : str, optional
        Above the picture.
    unit : str
        Below the axis.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there are not as many labels as values, no values or infinite ones, `over` does not fit the shape, or `most`
        is less than 1.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> figure = llama2cpp.plot.attributions([0.5, -2.0, 1.0], ["a", "b", "c"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['b', 'c', 'a']
    >>> figure = llama2cpp.plot.attributions([[0.5, -2.0], [1.0, 0.0]], most=2)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['L0H1', 'L1H0', 'all others']
    """
    if most < 1:
        raise ValueError(f"attributions: most is {most}, expected 1 or more")
    if isinstance(values, Mapping | EdgeAttribution):
        if labels is not None or over is not None:
            raise ValueError("attributions: the values have names: pass no labels= and no over=")
        labels = list(values)
        values = [values[name] for name in labels]
    array = numbers("attributions", "values", values)
    if array.ndim == 0 or np.isinf(array).any() or np.isnan(array).all():
        shape = list(array.shape)
        raise ValueError(f"attributions: the values have shape {shape}, expected one or more, finite or NaN")
    every = array.ravel()
    if tokens is not None:
        tokens = texts("attributions", "tokens", tokens)
    if labels is None:
        if tokens is not None and over is None:
            over = ["position"]
        axes_of = grid_axes("attributions", over, array.shape, tokens)
        labels = names_of(axes_of, tokens, letters=tokens is None or len(axes_of) > 1)
    elif over is not None:
        raise ValueError("attributions: pass either labels= or over=")
    labels = texts("attributions", "labels", labels)
    if len(every) != len(labels):
        raise ValueError(f"attributions: there are {len(labels)} labels for {len(every)} values")
    order = np.argsort(-np.abs(every), kind="stable")[: np.count_nonzero(~np.isnan(every))]
    shown, rest = order[:most], order[most:]
    names = [labels[i] for i in shown] + (["all others"] if len(rest) else [])
    bars = [float(every[i]) for i in shown] + ([float(every[rest].sum())] if len(rest) else [])
    figure, axes = _bars(bars, [short_text(name, 40, spaces=True) for name in names], title)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel(drawable(unit), fontsize=9, parse_math=False)
    return finish(figure, title)


def _bars(bars: Sequence[float], names: Sequence[str], title: str | None) -> tuple[Figure, Axes]:
    figure = new_figure(5.6, 0.24 * len(bars) + 0.8 + (0.3 if title else 0))
    axes: Axes = figure.subplots()
    axes.barh(range(len(bars)), bars, color=[PLUS if bar >= 0 else MINUS for bar in bars], height=0.72)
    axes.set_yticks(range(len(bars)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#888888")
    axes.set_facecolor("white")
    return figure, axes


def _probability(value: float) -> str:
    """Write 0.25 and 0.003 and 3e-05: two places would make 0.00 of the small ones."""
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.1g}"
