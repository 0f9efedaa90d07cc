"""What a model would say after each of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arguments import checked
from ..inside.cache import ActivationCache
from .figures import HIGHEST, WIDEST, finish, new_figure, one_prompt, short_text, texts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..inside.lens import LogitLens


@checked
def logit_lens(
    lens: LogitLens | ActivationCache,
    *,
    title: str | None = None,
    **options: Any,  # noqa: ANN401 - those of logit_lens
) -> Figure:
    """Draw what the model would say next after each layer: the likeliest token, coloured by its probability.

    Parameters
    ----------
    lens : LogitLens or ActivationCache
        Of one prompt. A `LogitLens` with ``top_k`` of 1 or more and ``return_type="probs"``; a cache is read so.
    title : str, optional
        Above the picture.
    **options
        For a cache, those of `llama2cpp.logit_lens`, such as ``positions=(-5, None)`` or ``incl_mid=True``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is more than one prompt, or the lens has no ``top_k``.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache("Once upon a time")
    >>> figure = llama2cpp.plot.logit_lens(cache)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()][0]
    'after layer 4'
    """
    if isinstance(lens, ActivationCache):
        lens = lens.logit_lens(**({"positions": None, "top_k": 1, "return_type": "probs"} | options))
    if lens.top_ids is None or lens.return_type != "probs":
        raise ValueError('the lens must have been made with top_k=1 and return_type="probs"')
    ids = one_prompt(np.moveaxis(lens.top_ids, 0, -2), lens.has_batch_dim, "the lens")  # [(T,) streams, k]
    probs = one_prompt(np.moveaxis(lens.values, 0, -2), lens.has_batch_dim, "the lens")
    if ids.ndim == 2:  # one position
        ids, probs = ids[None], probs[None]
    best, prob = ids[..., 0].T[::-1], probs[..., 0].T[::-1]  # [streams, T], the last layer above
    labels = [_stream_name(label, lens.model.config.n_layers) for label in reversed(lens.labels)]
    n_tokens = len(lens.tokens[0] if lens.tokens and isinstance(lens.tokens[0], list) else lens.tokens or [])
    positions = lens.positions if lens.positions is not None else [n_tokens - 1] if n_tokens else [0]
    before = texts_of(lens, max(positions) + 1)
    readable = lens.model.has_tokenizer
    said = [[lens.model.to_str_tokens([id])[0] if readable else str(id) for id in row] for row in best.tolist()]
    longest = max(5, *(len(short_text(text)) for row in said for text in row))
    cell = min(0.085 * min(longest, 14) + 0.12, (WIDEST - 1.9) / best.shape[1])
    line = min(0.27, (HIGHEST - 1.4) / len(best))
    letters = int((cell - 0.04) / 0.062)  # that a cell has room for
    figure = new_figure(cell * best.shape[1] + 1.9, line * len(best) + 1.1 + (0.3 if title else 0))
    axes = figure.subplots()
    image = axes.imshow(prob, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto", interpolation="nearest")
    # Where the cells are too small for words, the colours alone are drawn: fewer positions= make room.
    for row, texts in enumerate(said if letters >= 4 and line > 0.13 else []):
        for column, text in enumerate(texts):
            colour = "white" if prob[row, column] > 0.55 else "#222222"
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5, "color": colour}
            axes.text(column, row, short_text(text, min(14, letters)), parse_math=False, **style)
    names = [short_text(before[position]) for position in positions]
    axes.set_xticks(range(best.shape[1]), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("after reading", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=16)
    bar.set_label("probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return finish(figure, title)


def _stream_name(label: str, n_layers: int) -> str:
    """Say what has been done when the stream of this label is read."""
    if label == "final_post":
        return f"after layer {n_layers - 1}"
    number, _, kind = label.partition("_")
    if kind == "mid":
        return f"layer {number}, half"
    return "embedding" if number == "0" else f"after layer {int(number) - 1}"
