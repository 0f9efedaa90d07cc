"""Where the heads of a layer look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..common.arguments import checked, index
from ..inside.cache import ActivationCache
from .figures import CELL, HIGHEST, TEXT, WIDEST, finish, new_figure, numbers, one_prompt, short_text, texts, texts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _positions(cache: ActivationCache, count: int) -> list[int]:
    return list(range(count)) if cache.positions is None else cache.positions


@checked
def attention_patterns(
    cache: ActivationCache | ArrayLike,
    layer: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draw where each head of one layer looks: a row for each token that looks, a column for each it looks at.

    Parameters
    ----------
    cache : ActivationCache or array [n_heads, T, S]
        Of one prompt; or the pattern itself.
    layer : int, optional
        Which, for a cache; a negative one counts from the last.
    tokens : sequence of str, optional
        Texts of the S positions, such as ``model.to_str_tokens`` gives; the cache's own if not given.
    heads : sequence of int, optional
        Which, all if not given.
    columns : int, optional
        How many pictures beside each other.
    title : str, optional
        Above all of them.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is more than one prompt, no `layer` for a cache, no such layer or head, or the wrong number of tokens.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache("Once upon a time")
    >>> figure = llama2cpp.plot.attention_patterns(cache, layer=0)
    >>> len([axes for axes in figure.axes if axes.get_title().startswith("head")])
    6
    """
    function = "attention_patterns"
    if columns is not None and columns < 1:
        raise ValueError(f"{function}: columns is {columns}, expected 1 or more")
    if tokens is not None:
        tokens = texts(function, "tokens", tokens)
    rows: list[int] | None = None
    if isinstance(cache, ActivationCache):
        if layer is None:
            raise ValueError(f"{function}: pass the layer whose patterns to draw")
        if cache.model is not None:
            layer = index(layer, cache.model.config.n_layers, "layer", function)
        try:
            kept = cache["pattern", layer]
        except KeyError:
            names = [key for key in cache if key.endswith("attn.hook_pattern")]
            said = f"it has {', '.join(names)}" if names else "it has those of none"
            raise ValueError(f"{function}: the cache has no patterns of layer {layer}: {said}") from None
        pattern = one_prompt(kept, cache.has_batch_dim, "the cache")
        if tokens is None:
            tokens = texts_of(cache, pattern.shape[-1])
        rows = _positions(cache, pattern.shape[-2])
        if title is None:
            number = layer if layer >= 0 or cache.model is None else cache.model.config.n_layers + layer
            title = f"layer {number}"
    else:
        pattern = numbers(function, "the pattern", cache)
    if pattern.ndim != 3 or 0 in pattern.shape:
        raise ValueError(f"{function}: the pattern has shape {list(pattern.shape)}, expected [heads, T, S]")
    n_heads, t, s = pattern.shape
    if rows is None:
        if t > s:
            raise ValueError(f"{function}: the pattern has {t} rows and {s} columns, expected as many rows or fewer")
        rows = list(range(s - t, s))
    tokens = [str(position) for position in range(s)] if tokens is None else tokens
    if len(tokens) != s:
        raise ValueError(f"{function}: there are {len(tokens)} tokens for {s} positions")
    chosen = list(range(n_heads)) if heads is None else list(heads)
    if not chosen or min(chosen) < 0 or max(chosen) >= n_heads:
        raise ValueError(f"{function}: heads are {chosen}, expected some of 0 to {n_heads - 1}")
    columns, cell_size = _grid_for(len(chosen), columns, s, t)
    lines = math.ceil(len(chosen) / columns)
    width = max(1.6, cell_size * s + 0.75)
    height = max(1.4, cell_size * t + 0.95)
    figure = new_figure(columns * width + 0.9, lines * height + (0.3 if title else 0))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    labels = [short_text(token) for token in tokens]
    for cell, axes in enumerate(grid.flat):
        if cell >= len(chosen):
            axes.remove()
            continue
        # Where a position may not look the pattern is 0; pale grey says that there was nothing to choose.
        allowed = np.arange(s)[None, :] <= np.asarray(rows)[:, None]
        shown = np.ma.masked_array(pattern[chosen[cell]], mask=~allowed)
        image = axes.imshow(shown, vmin=0, vmax=1, cmap="Blues", aspect="equal", interpolation="nearest")
        axes.set_facecolor("#f1f1f1")
        axes.set_title(f"head {chosen[cell]}", fontsize=9)
        axes.set_xticks(range(s), labels, rotation=90, fontsize=TEXT, parse_math=False)
        axes.set_yticks(range(t), [labels[row] for row in rows], fontsize=TEXT, parse_math=False)
        axes.tick_params(length=0, pad=2)
        axes.tick_params(labelbottom=cell + columns >= len(chosen), labelleft=cell % columns == 0)
        for side in axes.spines.values():
            side.set_color("#bbbbbb")
    figure.supxlabel("looks at", fontsize=9)
    figure.supylabel("token", fontsize=9)
    drawn = list(figure.axes)
    bar = figure.colorbar(
        image, ax=drawn, shrink=min(1.0, 2.2 / (lines * height)), aspect=14, pad=0.02, anchor=(0, 0.5)
    )
    bar.set_label("attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return finish(figure, title)


def _grid_for(heads: int, columns: int | None, s: int, t: int) -> tuple[int, float]:
    """Get how many pictures go beside each other, and the inches of a token: the most that there is room for."""

    def cell_size(columns: int) -> float:
        lines = math.ceil(heads / columns)
        wide, high = (WIDEST - 0.9) / columns - 0.75, (HIGHEST - 0.3) / lines - 0.95
        return max(0.001, min(CELL, wide / s, high / t))

    if columns is None:
        usual = 2 if s > 24 else 3 if s > 10 else 4
        columns = max(range(1, min(heads, 8) + 1), key=lambda count: (cell_size(count), -abs(count - usual)))
    columns = min(heads, columns)
    return columns, cell_size(columns)
