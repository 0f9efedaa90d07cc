"""Pictures of what a model does, in matplotlib (``pip install "llama2cpp[notebook]"``).

Each function returns a figure of its own and leaves pyplot's alone; a notebook shows it where it is the last line of a
cell.

Examples
--------
>>> import llama2cpp
>>> model = llama2cpp.load("storyteller")
>>> logits, cache = model.run_with_cache("Once upon a time")
>>> figure = llama2cpp.plot.attention_patterns(cache, layer=2)
>>> figure.savefig("layer2.png")
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common.arguments import checked
from .inside.cache import ActivationCache
from .inside.html_views import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from .inside.lens import LogitLens
    from .model import Model

_CELL = 0.19  # inches for one token
_TEXT = 7.5  # points of the tokens beside a picture
_WIDEST, _HIGHEST = 14.0, 16.0  # inches of a whole picture, which is drawn with 110 dots each
_MOST_NUMBERS = 60  # beside bars, before they are too close
_INK = "#222222"  # on white, whatever colours the page or the reader's style has

# Tried in this order for what the first font lacks; those that are not installed are passed over.
_FALLBACK_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "MS Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Nirmala UI",
    "Leelawadee UI",
    "Noto Emoji",
    "Noto Sans Symbols2",
    "Segoe UI Symbol",
    "Segoe UI Emoji",
    "Apple Symbols",
)


@lru_cache(maxsize=1)
def _figure_class() -> type[Figure]:
    """Make matplotlib's Figure one that a notebook shows without pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "llama2cpp[notebook]"') from error

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            # Without the name of the program that has written it, a picture has the same bytes everywhere.
            style: dict[str, Any] = {"facecolor": "white", "transparent": False, "metadata": {"Software": None}}
            self.savefig(file, format="png", dpi=110, bbox_inches="tight", **style)
            return file.getvalue()

    return Picture


def _new_figure(width: float, height: float) -> Figure:
    size = (min(width, _WIDEST), min(height, _HIGHEST))
    return _figure_class()(figsize=size, layout="constrained", facecolor="white")


def _finish(figure: Figure, title: str | None) -> Figure:
    """Add the title, make the text readable on white in every script, and leave out labels that would overlap."""
    from matplotlib import rcParams
    from matplotlib.text import Text

    if title:
        lines = textwrap.wrap(_drawable(title), max(20, int(figure.get_figwidth() * 11)), max_lines=4, placeholder=" …")
        figure.set_figheight(figure.get_figheight() + 0.2 * (len(lines) - 1))
        figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)
    families = list(_families(tuple(rcParams["font.family"])))
    in_cells = {id(text) for axes in figure.axes for text in axes.texts}  # they have their own colours
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(families)
        if id(text) not in in_cells:
            text.set_color(_INK)
    for axes in figure.axes:
        axes.grid(False)
    figure.draw_without_rendering()
    _thin([axes.xaxis for axes in figure.axes], 0)
    _thin([axes.yaxis for axes in figure.axes], 1)
    return figure


def _thin(lines: Sequence[Axis], direction: int) -> None:
    """Keep every n-th of the labels that overlap otherwise, counted from the last."""
    from matplotlib.ticker import FixedLocator

    done = set()
    for axis in lines:
        labels = [tick.label1 for tick in axis.get_major_ticks()]
        shared = id(axis.major)  # pictures beside each other have the same ticks
        named = isinstance(axis.get_major_locator(), FixedLocator)  # numbers are spaced by matplotlib
        if shared in done or not named or len(labels) < 2 or not labels[0].get_visible():
            continue
        done.add(shared)
        needed = 2 + max(label.get_window_extent().size[direction] for label in labels)
        middles = [label.get_transform().transform(label.get_position())[direction] for label in labels]
        step = math.ceil(needed / (abs(middles[-1] - middles[0]) / (len(labels) - 1)))
        if step > 1:
            kept = slice((len(labels) - 1) % step, None, step)
            axis.set_ticks(axis.get_majorticklocs()[kept], [label.get_text() for label in labels][kept])


def _one_prompt(array: NDArray[Any], batched: bool, what: str) -> NDArray[Any]:
    if not batched:
        return array
    if len(array) != 1:
        raise ValueError(f"{what} has {len(array)} prompts, expected 1: take one by apply_slice_to_batch_dim")
    one: NDArray[Any] = array[0]
    return one


def _texts(cache: ActivationCache | LogitLens, count: int) -> list[str]:
    """Get the texts of positions 0 to count - 1; their numbers where they are not known."""
    tokens: list[Any] = cache.tokens or []
    if tokens and isinstance(tokens[0], list):
        tokens = tokens[0]
    if len(tokens) < count or cache.model is None or not cache.model.has_tokenizer:
        return [str(position) for position in range(count)]
    return list(cache.model.to_str_tokens(tokens[:count]))


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
        If there is more than one prompt, no `layer` for a cache, no such head, or the wrong number of tokens.
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
    rows: list[int] | None = None
    if isinstance(cache, ActivationCache):
        if layer is None:
            raise ValueError("pass the layer whose patterns to draw")
        pattern = _one_prompt(cache["pattern", layer], cache.has_batch_dim, "the cache")
        if tokens is None:
            tokens = _texts(cache, pattern.shape[-1])
        rows = _positions(cache, pattern.shape[-2])
        if title is None:
            number = layer if layer >= 0 or cache.model is None else cache.model.config.n_layers + layer
            title = f"layer {number}"
    else:
        pattern = np.asarray(cache, dtype=np.float32)
    if pattern.ndim != 3:
        raise ValueError(f"the pattern has shape {list(pattern.shape)}, expected [heads, T, S]")
    n_heads, t, s = pattern.shape
    rows = list(range(s - t, s)) if rows is None else rows
    tokens = [str(position) for position in range(s)] if tokens is None else list(tokens)
    if len(tokens) != s:
        raise ValueError(f"there are {len(tokens)} tokens for {s} positions")
    chosen = list(range(n_heads)) if heads is None else list(heads)
    if not chosen or min(chosen) < 0 or max(chosen) >= n_heads:
        raise ValueError(f"heads are {chosen}, expected some of 0 to {n_heads - 1}")
    columns, cell_size = _grid_for(len(chosen), columns, s, t)
    lines = math.ceil(len(chosen) / columns)
    width = max(1.6, cell_size * s + 0.75)
    height = max(1.4, cell_size * t + 0.95)
    figure = _new_figure(columns * width + 0.9, lines * height + (0.3 if title else 0))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    labels = [_label(token) for token in tokens]
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
        axes.set_xticks(range(s), labels, rotation=90, fontsize=_TEXT, parse_math=False)
        axes.set_yticks(range(t), [labels[row] for row in rows], fontsize=_TEXT, parse_math=False)
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
    return _finish(figure, title)


def _grid_for(heads: int, columns: int | None, s: int, t: int) -> tuple[int, float]:
    """Get how many pictures go beside each other, and the inches of a token: the most that there is room for."""

    def cell_size(columns: int) -> float:
        lines = math.ceil(heads / columns)
        wide, high = (_WIDEST - 0.9) / columns - 0.75, (_HIGHEST - 0.3) / lines - 0.95
        return max(0.001, min(_CELL, wide / s, high / t))

    if columns is None:
        usual = 2 if s > 24 else 3 if s > 10 else 4
        columns = max(range(1, min(heads, 8) + 1), key=lambda count: (cell_size(count), -abs(count - usual)))
    columns = min(heads, columns)
    return columns, cell_size(columns)


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
    ids = _one_prompt(np.moveaxis(lens.top_ids, 0, -2), lens.has_batch_dim, "the lens")  # [(T,) streams, k]
    probs = _one_prompt(np.moveaxis(lens.values, 0, -2), lens.has_batch_dim, "the lens")
    if ids.ndim == 2:  # one position
        ids, probs = ids[None], probs[None]
    best, prob = ids[..., 0].T[::-1], probs[..., 0].T[::-1]  # [streams, T], the last layer above
    labels = [_stream_name(label, lens.model.config.n_layers) for label in reversed(lens.labels)]
    n_tokens = len(lens.tokens[0] if lens.tokens and isinstance(lens.tokens[0], list) else lens.tokens or [])
    positions = lens.positions if lens.positions is not None else [n_tokens - 1] if n_tokens else [0]
    before = _texts(lens, max(positions) + 1)
    readable = lens.model.has_tokenizer
    said = [[lens.model.to_str_tokens([id])[0] if readable else str(id) for id in row] for row in best.tolist()]
    longest = max(5, *(len(_label(text)) for row in said for text in row))
    cell = min(0.085 * min(longest, 14) + 0.12, (_WIDEST - 1.9) / best.shape[1])
    line = min(0.27, (_HIGHEST - 1.4) / len(best))
    letters = int((cell - 0.04) / 0.062)  # that a cell has room for
    figure = _new_figure(cell * best.shape[1] + 1.9, line * len(best) + 1.1 + (0.3 if title else 0))
    axes = figure.subplots()
    image = axes.imshow(prob, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto", interpolation="nearest")
    # Where the cells are too small for words, the colours alone are drawn: fewer positions= make room.
    for row, texts in enumerate(said if letters >= 4 and line > 0.13 else []):
        for column, text in enumerate(texts):
            colour = "white" if prob[row, column] > 0.55 else "#222222"
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5, "color": colour}
            axes.text(column, row, _label(text, min(14, letters)), parse_math=False, **style)
    names = [_label(before[position]) for position in positions]
    axes.set_xticks(range(best.shape[1]), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("after reading", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=16)
    bar.set_label("probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return _finish(figure, title)


def _label(text: str, most: int = 14, *, spaces: bool = False) -> str:
    """Make a token what a picture shows: short, and without what no font can draw. A space is a dot, or stays."""
    pieces = _drawable_pieces(text if spaces else visible(text))
    if sum(map(len, pieces)) <= most:
        return "".join(pieces)
    room = most - 1
    kept = []
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def _drawable(text: str) -> str:
    return "".join(_drawable_pieces(text))


def _drawable_pieces(text: str) -> list[str]:
    r"""Get each character, or its code point, such as \u4e2d, where no font has it."""
    from matplotlib import rcParams

    families = _families(tuple(rcParams["font.family"]))
    return [c if c.isprintable() and _has_glyph(c, families) else c.encode("unicode_escape").decode() for c in text]


@lru_cache(maxsize=4096)
def _has_glyph(character: str, families: tuple[str, ...]) -> bool:
    from matplotlib import font_manager

    paths = (font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families)
    return any(font_manager.get_font(path).get_char_index(ord(character)) for path in paths)


@lru_cache(maxsize=4)
def _families(own: tuple[str, ...]) -> tuple[str, ...]:
    """Get the fonts that matplotlib looks for a character in: the reader's own, then those that are installed."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return (*own, *(name for name in _FALLBACK_FONTS if name in installed and name not in own))


def _probability(value: float) -> str:
    """Write 0.25 and 0.003 and 3e-05: two places would make 0.00 of the small ones."""
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.1g}"


def _stream_name(label: str, n_layers: int) -> str:
    """Say what has been done when the stream of this label is read."""
    if label == "final_post":
        return f"after layer {n_layers - 1}"
    number, _, kind = label.partition("_")
    if kind == "mid":
        return f"layer {number}, half"
    return "embedding" if number == "0" else f"after layer {int(number) - 1}"


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
        If the logits are not one row of the model's vocabulary, or `most` is less than 1.
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
        raise ValueError(f"most is {most}, expected 1 or more")
    row = np.asarray(logits, dtype=np.float64)
    if row.shape != (model.config.vocab_size,):
        raise ValueError(f"logits have shape {list(row.shape)}, expected [{model.config.vocab_size}]")
    probs = np.exp(row - row.max())
    probs /= probs.sum()
    best = np.argsort(-probs, kind="stable")[:most].tolist()
    names = [str(id) for id in best] if not model.has_tokenizer else list(model.to_str_tokens(best))
    figure, axes = _bars(probs[best].tolist(), [_label(name) for name in names], title)
    end = 1.0 if probs[best[0]] > 0.1 else float(probs[best[0]]) * 1.3  # bars that can be seen
    axes.set_xlim(0, end)
    axes.set_xlabel("probability", fontsize=9)
    for place, id in enumerate(best if len(best) <= _MOST_NUMBERS else []):
        beside: dict[str, Any] = {"va": "center", "fontsize": 7, "color": "#555555"}
        axes.text(float(probs[id]) + 0.01 * end, place, _probability(float(probs[id])), **beside)
    return _finish(figure, title)


@checked
def attributions(
    values: ArrayLike, labels: Sequence[str], *, most: int = 12, title: str | None = None, unit: str = "logit"
) -> Figure:
    """Draw what parts add to something as bars, the largest first.

    Parameters
    ----------
    values : array [parts]
        Such as ``cache.logit_attrs(...)`` at one position.
    labels : sequence of str
        One for each part.
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
        If there are not as many labels as values, or `most` is less than 1.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import llama2cpp
    >>> figure = llama2cpp.plot.attributions([0.5, -2.0, 1.0], ["a", "b", "c"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['b', 'c', 'a']
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if len(numbers) != len(labels):
        raise ValueError(f"there are {len(labels)} labels for {len(numbers)} values")
    if most < 1:
        raise ValueError(f"most is {most}, expected 1 or more")
    order = np.argsort(-np.abs(numbers), kind="stable")
    shown, rest = order[:most], order[most:]
    names = [labels[i] for i in shown] + (["all others"] if len(rest) else [])
    bars = [float(numbers[i]) for i in shown] + ([float(numbers[rest].sum())] if len(rest) else [])
    figure, axes = _bars(bars, [_label(name, 40, spaces=True) for name in names], title)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel(_drawable(unit), fontsize=9, parse_math=False)
    return _finish(figure, title)


def _bars(bars: Sequence[float], names: Sequence[str], title: str | None) -> tuple[Figure, Axes]:
    figure = _new_figure(5.6, 0.24 * len(bars) + 0.8 + (0.3 if title else 0))
    axes: Axes = figure.subplots()
    axes.barh(range(len(bars)), bars, color=["#2b6cb0" if bar >= 0 else "#c05621" for bar in bars], height=0.72)
    axes.set_yticks(range(len(bars)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#888888")
    axes.set_facecolor("white")
    return figure, axes
