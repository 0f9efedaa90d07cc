"""A text, each token on the colour of its value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import checked
from .figures import WIDEST, drawable, finish, ink_on, new_figure, numbers, short_text, texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE, _GAP, _MARGIN, _SCALE = 0.27, 0.1, 0.1, 0.72  # inches
_MOST_TOKENS = 2000


@checked
def token_values(
    tokens: Sequence[str],
    values: ArrayLike,
    *,
    width: float = 7.5,
    center: float | None = None,
    title: str | None = None,
    unit: str = "value",
) -> Figure:
    """Draw a text whose tokens have the colour of a value: their surprise, their attribution, a neuron's activation.

    Spaces are dots, and a line end is shown and ends the line. Where all values are 0 or more, the palest colour is 0;
    with negative ones among them red is below `center`, blue above. A token whose value is NaN has no colour.

    Parameters
    ----------
    tokens : sequence of str
        Such as ``model.to_str_tokens`` gives; at most 2000.
    values : array [tokens]
        One for each.
    width : float
        Inches of the lines.
    center : float, optional
        The value that is white between the two colours. Without it: 0, with two colours only if there are negative
        values.
    title : str, optional
        Above the text.
    unit : str
        What the values are, below the scale of colours.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there are not as many values as tokens, no tokens, more than 2000, or the width is not between 1 and 14.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> import numpy as np
    >>> model = llama2cpp.load("storyteller")
    >>> text = "Once upon a time there was a purple brick"
    >>> losses = model(text, return_type="loss", loss_per_token=True)  # of each token but the first, in nats
    >>> bits = np.concatenate([[np.nan], losses[0] / np.log(2)])
    >>> figure = llama2cpp.plot.token_values(model.to_str_tokens(text), bits, unit="surprise (bits)")
    >>> figure.axes[0].texts[1].get_text()
    '·Once'
    """
    function = "token_values"
    tokens = texts(function, "tokens", tokens)
    of_each = numbers(function, "values", values)
    if of_each.ndim != 1 or len(of_each) != len(tokens):
        raise ValueError(
            f"{function}: the values have shape {list(of_each.shape)}, expected [{len(tokens)}], one for each token"
        )
    if not 0 < len(tokens) <= _MOST_TOKENS:
        raise ValueError(f"{function}: there are {len(tokens)} tokens, expected 1 to {_MOST_TOKENS}")
    if not 1 <= width <= WIDEST:
        raise ValueError(f"{function}: width is {width}, expected 1 to {WIDEST:g} inches")
    if center is not None and not math.isfinite(center):
        raise ValueError(f"{function}: center is {center}, expected a finite number")
    return _draw(tokens, of_each, width, center, title, unit)


def _draw(
    tokens: Sequence[str],
    values: NDArray[np.float64],
    width: float,
    center: float | None,
    title: str | None,
    unit: str,
) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import ScaledTranslation

    known = values[np.isfinite(values)]
    two = center is not None or bool((known < 0).any())
    middle = 0.0 if center is None else center
    farthest = float(np.abs(known - middle).max(initial=0)) or 1.0
    colours = ScalarMappable(Normalize(middle - farthest if two else 0, middle + farthest), "RdBu" if two else "YlOrRd")
    figure = new_figure(width, 2)
    axes = figure.subplots()
    axes.set_axis_off()
    corner: Any = axes.transAxes
    inches = figure.dpi_scale_trans + ScaledTranslation(0, 1, corner)  # from the upper left one
    drawn = []
    for token, value in zip(tokens, values.tolist(), strict=True):
        ground: Any = colours.to_rgba(value) if math.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
        box = {"boxstyle": "square,pad=0.22", "facecolor": ground, "edgecolor": "#dddddd", "linewidth": 0.4}
        style: dict[str, Any] = {"fontsize": 9.5, "va": "baseline", "color": ink_on(ground), "bbox": box}
        text = axes.text(0, 0, short_text(token, 40), parse_math=False, transform=inches, **style)
        text.set_in_layout(False)
        drawn.append(text)
    scale = figure.add_axes((0.1, 0.1, 0.4, 0.1))
    bar = figure.colorbar(colours, cax=scale, orientation="horizontal", ticks=MaxNLocator(5))
    bar.set_label(drawable(unit), fontsize=8, parse_math=False)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    finish(figure, title)  # its fonts decide how wide the texts are
    x, line = _MARGIN, 0
    for token, text in zip(tokens, drawn, strict=True):
        size = float(text.get_window_extent().width) / figure.dpi
        if x > _MARGIN and x + size > width - 2 * _MARGIN:
            x, line = _MARGIN, line + 1
        text.set_position((x, -_LINE * (line + 0.7)))
        x += size + _GAP
        if "\n" in token:
            x, line = _MARGIN, line + 1
    lowest = min(text.get_position()[1] for text in drawn)
    above = figure.get_figheight() - axes.get_window_extent().height / figure.dpi
    high = above - lowest + _SCALE
    figure.set_figheight(high)
    scale.set_position((0.15 / width, 0.42 / high, 2.4 / max(width, 2.7), 0.1 / high))
    figure.draw_without_rendering()
    return figure
