"""What quantization, or another change of a model, does to the activations of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..analysis import Difference
from ..common.arguments import checked
from .figures import drawable, finish, new_figure, texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart by who is colour-blind (Okabe and Ito's colours, darker where they are pale), and by their marks.
_COLOURS = ("#0072b2", "#c05621", "#00795a", "#8a3d78", "#8a6d00", "#2f7fb5", "#333333")
_MARKS = "osD^vPX"
_WORDS = {"attn_out": "attention's output", "mlp_out": "MLP's output", "resid_post": "residual stream after the layer"}


@checked
def quantization_damage(
    differences: Difference | Mapping[str, Difference],
    points: Sequence[str] = ("attn_out", "mlp_out", "resid_post"),
    *,
    title: str | None = None,
) -> Figure:
    """Draw how far each layer's activations are from those of the original, for one or several other models.

    Each line is one model: its name, and the mean Kullback-Leibler divergence of its predictions, in nats for a token.

    Parameters
    ----------
    differences : Difference, or mapping of str to Difference
        What `llama2cpp.analysis.diff` has found; several by name, such as ``{"q8_0": ..., "q4_0": ...}``.
    points : sequence of str
        Which activations, a picture for each: short names, such as "z" or "resid_mid", that there are in each layer.
    title : str, optional
        Above the pictures.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there are no differences, one lacks a point, or is no finite number.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> exact = llama2cpp.load("storyteller", precision="exact", backend="cpu")
    >>> rounded = llama2cpp.load("storyteller", backend="cpu")
    >>> found = analysis.diff(exact, rounded, "Once upon a time")
    >>> figure = llama2cpp.plot.quantization_damage({"int8 activations": found}, ["resid_post"])
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [0, 1, 2, 3, 4]
    """
    function = "quantization_damage"
    by_name = {"": differences} if isinstance(differences, Difference) else dict(differences)
    chosen = [points] if isinstance(points, str) else texts(function, "points", points)
    texts(function, "differences", by_name)
    if not by_name or not chosen:
        raise ValueError(f"{function}: there are {len(by_name)} differences and {len(chosen)} points, expected some")
    for name, one in by_name.items():
        if not isinstance(one, Difference):
            raise TypeError(f"{function}: {name!r} is a {type(one).__name__}, expected what analysis.diff gives")
    found = {(name, point): _by_layer(one, point) for name, one in by_name.items() for point in chosen}
    for name, point in found:
        if not found[name, point]:
            raise ValueError(f"{function}: {name or 'the difference'} has no {point!r} of any layer")
        bad = next((layer for layer, value in found[name, point].items() if not math.isfinite(value)), None)
        if bad is not None:
            raise ValueError(f"{function}: {name or 'the difference'} at {point!r} of layer {bad} is no finite number")
    figure = new_figure(2.9 * len(chosen) + 0.6, 2.7 + (0.3 if title else 0) + 0.2 * len(by_name))
    grid = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for axes, point in zip(grid, chosen, strict=True):
        for i, (name, one) in enumerate(by_name.items()):
            layers = found[name, point]
            kl = [f"KL {_short(float(np.mean(one.kl)))} nats"] if len(one.kl) else []  # of caches it may be unknown
            label = ", ".join(([name] if name else []) + kl)
            style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKS[i % len(_MARKS)]}
            axes.plot(list(layers), list(layers.values()), label=drawable(label), markersize=4, linewidth=1.4, **style)
        axes.set_title(drawable(_WORDS.get(point, point)), fontsize=9, parse_math=False)
        axes.set_xlabel("layer", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8, colors="#555555")
        axes.set_facecolor("white")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color("#888888")
    numbers = [value for layers in found.values() for value in layers.values()]
    if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        grid[0].set_yscale("log")
    else:
        grid[0].set_ylim(bottom=0, top=max(numbers) * 1.08 or 1.0)
    grid[0].set_ylabel("relative difference", fontsize=9)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", fontsize=8, frameon=False, ncols=min(len(labels), len(chosen))
    )
    return finish(figure, title)


def _by_layer(difference: Difference, point: str) -> dict[int, float]:
    """Get the relative difference at a point, for each layer that has it."""
    found = {}
    for one in difference.points:
        parts = one.name.split(".")
        if parts[0] == "blocks" and parts[-1] == f"hook_{point.removeprefix('hook_')}":
            found[int(parts[1])] = one.relative
    return found


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
