"""What a comparison has found as a picture, in matplotlib (``pip install "llama2cpp[notebook]"``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..common.parts import LAYER_PARTS, Part, find_part, layer_of
from ..plot.figures import finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .comparison import Comparison, TensorDifference

_SMOOTHED = 32  # positions of the running mean


def picture(found: Comparison, title: str | None = None) -> Figure:
    """Draw how the weights differ, layer by layer, and where in the text the predictions are apart.

    Above, the relative error of each weight of each layer, dark where it is small; a ring is around the weight with
    the largest difference of two numbers. Below, the KL divergence at each position, with a running mean.

    Parameters
    ----------
    found : Comparison
        What `compare` has returned.
    title : str, optional
        Above all of it.

    Returns
    -------
    matplotlib.figure.Figure
        A notebook shows it; ``savefig("name.png")`` writes it.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> import tempfile
    >>> model = llama2cpp.load("storyteller")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = llama2cpp.export.convert(model, f"{folder}/stories.bin", "int8")
    ...     found = llama2cpp.export.compare(model, llama2cpp.load(done.path), "Once upon a time there was a cat.")
    >>> figure = llama2cpp.export.picture(found, "int8")
    >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
    ['relative error of the weights (white: none)', 'KL divergence of the predictions']
    """
    by_place = {place: tensor for tensor in found.tensors if (place := _place(tensor.name)) is not None}
    layers = 1 + max((layer for layer, _ in by_place), default=-1)
    kinds = [part for part in LAYER_PARTS if any((layer, part) in by_place for layer in range(layers))]
    height = 1.2 + 0.2 * layers if layers else 0.6
    figure = new_figure(9.0, height + 3.4)
    weights, predictions = figure.subplots(2, 1, height_ratios=[height, 2.4])
    _draw_weights(weights, found, by_place, layers, kinds)
    _draw_predictions(predictions, found)
    for axes in (weights, predictions):
        axes.set_facecolor("white")
    return finish(figure, title)


def _place(name: str) -> tuple[int, Part] | None:
    layer, part = layer_of(name), find_part(name)
    return None if layer is None or part is None else (layer, part)


def _draw_weights(
    axes: Axes,
    found: Comparison,
    by_place: dict[tuple[int, Part], TensorDifference],
    layers: int,
    kinds: list[Part],
) -> None:
    from matplotlib.colors import LogNorm

    axes.set_title("relative error of the weights (white: none)", loc="left")
    if not by_place:
        axes.set_axis_off()
        axes.text(0, 0.5, "the weights were not compared", transform=axes.transAxes, color="black")
        return
    errors = np.full((layers, len(kinds)), np.nan)
    for (layer, part), tensor in by_place.items():
        errors[layer, kinds.index(part)] = tensor.relative_error
    above = errors[errors > 0]
    # Equal weights have no logarithm: they stay white.
    norm = LogNorm(above.min(), max(above.max(), above.min() * 1.01)) if above.size else None
    image = axes.imshow(np.ma.masked_less_equal(np.ma.masked_invalid(errors), 0), aspect="auto", norm=norm)
    axes.set_xticks(range(len(kinds)), [_short(kind.pattern) for kind in kinds], rotation=90)
    step = max(1, layers // 16)
    axes.set_yticks(range(0, layers, step))
    axes.set_ylabel("layer")
    axes.get_figure().colorbar(image, ax=axes, pad=0.01)  # type: ignore[union-attr]

    largest = max(found.tensors, key=lambda tensor: tensor.largest)
    note = f"largest difference {largest.largest:.3g}: {largest.name} at {list(largest.at)}"
    place = _place(largest.name)
    if place is not None and largest.largest > 0:
        axes.plot(kinds.index(place[1]), place[0], "o", markersize=11, fillstyle="none", color="red", markeredgewidth=2)
    others = [tensor for tensor in found.tensors if _place(tensor.name) is None]
    lines = [f"{_short(tensor.name)} {tensor.relative_error:.2g}" for tensor in others]
    axes.set_xlabel("\n".join([note, *([f"outside the layers: {', '.join(lines)}"] if lines else [])]), loc="left")


def _draw_predictions(axes: Axes, found: Comparison) -> None:
    positions = np.arange(1, 1 + len(found.kl))
    kl = np.asarray(found.kl)
    axes.set_title("KL divergence of the predictions", loc="left")
    axes.plot(positions, kl, linewidth=0.6, color="tab:gray")
    if len(kl) >= 2 * _SMOOTHED:
        mean = np.convolve(kl, np.full(_SMOOTHED, 1 / _SMOOTHED), mode="valid")
        axes.plot(positions[_SMOOTHED - 1 :], mean, color="tab:blue", label=f"mean of {_SMOOTHED}")
    axes.plot(
        found.worst_at,
        found.worst_kl,
        "o",
        markersize=9,
        fillstyle="none",
        color="red",
        label=f"worst {found.worst_kl:.3g}",
    )
    axes.axhline(found.mean_kl, linestyle="--", linewidth=1, color="black", label=f"mean {found.mean_kl:.3g}")
    axes.set_xlabel(
        f"token that is predicted; perplexity {found.perplexity_a:.4g} → {found.perplexity_b:.4g}, "
        f"same likeliest token {found.top1_agreement:.1%}",
        loc="left",
    )
    axes.set_ylabel("nats")
    axes.set_xlim(0.5, len(kl) + 0.5)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize="small", facecolor="white")


def _short(name: str) -> str:
    """Give the last word of a name, and of a bias the last two."""
    words = name.removesuffix(".weight").split(".")
    return ".".join(words[-2:] if words[-1] == "bias" else words[-1:])
