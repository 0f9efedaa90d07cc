"""Grids: a colour for each cell of what patching, ablations and attribution give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import checked
from .axes import GridAxis, grid_axes, names_of, split, title_of
from .figures import HIGHEST, WIDEST, drawable, finish, ink_on, new_figure, numbers, texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PANELS = 64
_MOST_NUMBERS = 200  # in cells, of a panel
_CELL = (0.34, 0.24)  # inches, with a number in it wider


@checked
def patching(
    values: ArrayLike,
    over: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    tokens: Sequence[str] | None = None,
    panels: Sequence[str] | None = None,
    columns: int | None = None,
    center: float = 0.0,
    title: str | None = None,
    unit: str = "metric",
) -> Figure:
    """Draw what patching, an ablation or attribution patching gives as a heat map.

    Blue cells lie above `center`, red ones below, and white is at it: for results of `llama2cpp.patching` pass the
    metric of the run without a change, so that the colours show what a cell changes. Positions go to the right, layers
    and what is in them down. Cells that were not computed (NaN) are grey.

    Parameters
    ----------
    values : array
        A result of a function of `llama2cpp.patching`, or of `llama2cpp.attribution.attribution_patch`.
    over : sequence of str, or mapping of str to sequence of int, optional
        What the axes are, as it was given to that function. Without it an array of two axes is layers and positions
        where there are `tokens`, layers and heads otherwise. An axis may come twice: ("layer", "head", "layer", "head")
        is `patching.get_act_patch_direct_path_all_sources`'s.
    tokens : sequence of str, optional
        Texts of the prompt's positions, such as ``model.to_str_tokens`` gives; numbers if not given.
    panels : sequence of str, optional
        Names of pictures beside each other, for a first axis that `over` does not name:
        ``["resid_pre", "attn_out", "mlp_out"]`` for `patching.get_act_patch_block_every`. Where a grid has zeros
        for heads that there are not, make them NaN first: they are no results.
    columns : int, optional
        How many pictures beside each other.
    center : float
        The value that is white.
    title : str, optional
        Above the picture.
    unit : str
        What is measured, beside the scale of colours.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If `over` or `panels` do not fit the shape, there are too few tokens, or more than 64 pictures.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import metrics, patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> clean, corrupt = "Tom saw Lily. Lily smiled at", "Tom saw Lily. Tom smiled at"
    >>> _, cache = model.run_with_cache(clean, "resid_pre")
    >>> metric = metrics.logit_diff(model.to_single_token(" Tom"), model.to_single_token(" Lily"))
    >>> grid = patching.activation_patch(model, corrupt, cache, metric, "resid_pre")
    >>> figure = llama2cpp.plot.patching(grid, tokens=model.to_str_tokens(corrupt), unit="logit difference")
    >>> figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()
    ('layer', 'token')
    """
    function = "patching"
    array = numbers(function, "values", values)
    if not math.isfinite(center):
        raise ValueError(f"{function}: center is {center}, expected a finite number")
    if tokens is not None:
        tokens = texts(function, "tokens", tokens)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{function}: the values have shape {list(array.shape)}, expected cells")
    if panels is not None and len(texts(function, "panels", panels)) != len(array):
        raise ValueError(f"{function}: panels is {panels!r}, expected {len(array)} names (shape {list(array.shape)})")
    inner = array.shape if panels is None else array.shape[1:]
    if not inner:
        raise ValueError(f"{function}: the values have shape {list(array.shape)}, which leaves nothing but panels")
    axes_of = grid_axes(function, over, inner, tokens)
    apart, down, right = split(axes_of)
    names = [""] if panels is None else list(panels)
    if apart:
        inside = names_of([axes_of[i] for i in apart], letters=True)
        names = [f"{name} {one}".strip() for name in names for one in inside]
    if len(names) > _MOST_PANELS:
        raise ValueError(f"{function}: {len(names)} pictures are too many, expected {_MOST_PANELS} or fewer: take some")
    rows, sides = [axes_of[i] for i in down], [axes_of[i] for i in right]
    n_rows, n_columns = (math.prod(len(axis.numbers) for axis in axes) for axes in (rows, sides))
    shift = array.ndim - len(axes_of)
    order = [*range(shift), *(i + shift for i in (*apart, *down, *right))]
    cells = array.transpose(order).reshape(len(names), n_rows, n_columns)
    return _draw(cells, names, rows, sides, tokens, columns, center, title, unit)


def _draw(
    cells: NDArray[np.float64],
    names: Sequence[str],
    rows: Sequence[GridAxis],
    sides: Sequence[GridAxis],
    tokens: Sequence[str] | None,
    columns: int | None,
    center: float,
    title: str | None,
    unit: str,
) -> Figure:
    count, n_rows, n_columns = cells.shape
    if columns is not None and columns < 1:
        raise ValueError(f"patching: columns is {columns}, expected 1 or more")
    room = max(1, int((WIDEST - 1.6) / (0.3 * n_columns + 0.6)))
    across = min(count, columns or min(math.ceil(math.sqrt(count)), room))
    lines = math.ceil(count / across)
    wide = min(_CELL[0], ((WIDEST - 1.6) / across - 0.3) / n_columns)
    high = min(_CELL[1], ((HIGHEST - 0.6) / lines - 0.9) / n_rows)
    numbered = n_rows * n_columns <= _MOST_NUMBERS and wide >= _CELL[0] and high >= _CELL[1] and count <= 4
    if numbered:
        wide = min(0.42, ((WIDEST - 1.6) / across - 0.3) / n_columns)
    wide, high = max(wide, 0.001), max(high, 0.001)
    size = (max(wide * n_columns, 1.0) + 0.35, max(high * n_rows, 0.3) + (0.3 if names[0] else 0.1))
    figure = new_figure(across * size[0] + 1.5, lines * size[1] + 0.9 + (0.3 if title else 0))
    grid = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    farthest = float(np.nanmax(np.abs(cells - center), initial=0)) if not np.isnan(cells).all() else 0.0
    farthest = farthest if 0 < farthest < math.inf else 1.0
    below, beside = names_of(sides, tokens), names_of(rows, tokens) if rows else [""]
    turned = 90 if max(map(len, below)) > 2 else 0
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.remove()
            continue
        shown = np.ma.masked_invalid(cells[place])
        colours: dict[str, Any] = {"vmin": center - farthest, "vmax": center + farthest, "cmap": "RdBu"}
        image = axes.imshow(shown, aspect="auto", interpolation="nearest", **colours)
        axes.set_facecolor("#d5d5d5")
        axes.set_title(drawable(names[place]), fontsize=9, parse_math=False)
        axes.set_xticks(range(n_columns), below, rotation=turned, fontsize=8, parse_math=False)
        axes.set_yticks(range(n_rows), beside, fontsize=8)
        axes.tick_params(length=0, pad=2)
        axes.tick_params(labelbottom=place + across >= count, labelleft=place % across == 0)
        for side in axes.spines.values():
            side.set_color("#bbbbbb")
        for (row, column), value in np.ndenumerate(shown.filled(np.nan)) if numbered else []:
            if not np.isnan(value):
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
                axes.text(column, row, _number(value, farthest), color=ink_on(image.to_rgba(value)), **style)
    if count == 1:
        grid[0, 0].set_xlabel(title_of(sides, tokens), fontsize=9)
        grid[0, 0].set_ylabel(title_of(rows, tokens), fontsize=9)
    else:
        figure.supxlabel(title_of(sides, tokens), fontsize=9)
        figure.supylabel(title_of(rows, tokens), fontsize=9)
    bar = figure.colorbar(image, ax=list(figure.axes), pad=0.02, aspect=16, shrink=min(1.0, 2.6 / (lines * size[1])))
    bar.set_label(drawable(unit), fontsize=8, parse_math=False)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    known = np.append(cells[np.isfinite(cells)], center)
    if known.min() < known.max():
        bar.ax.set_ylim(known.min(), known.max())  # colours that no cell has are left out
    return finish(figure, title)


def _number(value: float, farthest: float) -> str:
    """Write a value with the places that tell it from others in its picture."""
    if farthest >= 1000 or farthest < 0.01:
        return f"{value:.0e}"
    places = 0 if farthest >= 100 else 1 if farthest >= 10 else 2
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text
