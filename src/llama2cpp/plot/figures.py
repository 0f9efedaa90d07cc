"""What all pictures have in common: their figures, texts in every script, and axes that name tokens and layers."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import float_array, naming
from ..inside.cache import ActivationCache
from ..inside.html_views import visible

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from ..inside.lens import LogitLens

CELL = 0.19  # inches for one token
TEXT = 7.5  # points of the tokens beside a picture
WIDEST, HIGHEST = 14.0, 16.0  # inches of a whole picture, which is drawn with 110 dots each
PLUS, MINUS = "#2b6cb0", "#c05621"  # told apart by who is colour-blind, too
LARGEST = 1e300  # of what is drawn: axes and colours need room beyond it
INK = "#222222"  # on white, whatever colours the page or the reader's style has

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
def figure_class() -> type[Figure]:
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


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of some inches, white, with room that matplotlib shares out."""
    size = (min(width, WIDEST), min(height, HIGHEST))
    return figure_class()(figsize=size, layout="constrained", facecolor="white")


def finish(figure: Figure, title: str | None) -> Figure:
    """Add the title, make the text readable on white in every script, and leave out labels that would overlap."""
    from matplotlib import rcParams
    from matplotlib.text import Text

    if title:
        lines = textwrap.wrap(drawable(title), max(20, int(figure.get_figwidth() * 11)), max_lines=4, placeholder=" …")
        figure.set_figheight(figure.get_figheight() + 0.2 * (len(lines) - 1))
        figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)
    families = list(_families(tuple(rcParams["font.family"])))
    in_cells = {id(text) for axes in figure.axes for text in axes.texts}  # they have their own colours
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(families)
        if id(text) not in in_cells:
            text.set_color(INK)
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


def numbers(function: str, name: str, given: ArrayLike) -> NDArray[np.float64]:
    """Read values that are drawn: arrays, lists, or tensors of any type. What matplotlib cannot subtract is refused."""
    with naming(f"{function}: {name}"):
        array = float_array(given, np.float64)
    largest = float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))
    if largest > LARGEST:
        raise ValueError(f"{function}: {name} has {largest:.3g} in size, expected at most {LARGEST:.0e}")
    return array


def texts(function: str, name: str, given: Iterable[str]) -> list[str]:
    """Read names that are drawn: a sequence of str."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"{function}: {name} is {given!r}, expected a sequence of str")
    found = list(given)
    other = next((one for one in found if not isinstance(one, str)), None)
    if other is not None:
        raise TypeError(f"{function}: {name} has {other!r} ({type(other).__name__}) in it, expected str")
    return found


def one_prompt(array: NDArray[Any], batched: bool, what: str) -> NDArray[Any]:
    """Take the only prompt of a batch."""
    if not batched:
        return array
    if len(array) != 1:
        raise ValueError(f"{what} has {len(array)} prompts, expected 1: take one by apply_slice_to_batch_dim")
    one: NDArray[Any] = array[0]
    return one


def texts_of(cache: ActivationCache | LogitLens, count: int) -> list[str]:
    """Get the texts of positions 0 to count - 1; their numbers where they are not known."""
    tokens: list[Any] = cache.tokens or []
    if tokens and isinstance(tokens[0], list):
        tokens = tokens[0]
    if len(tokens) < count or cache.model is None or not cache.model.has_tokenizer:
        return [str(position) for position in range(count)]
    return list(cache.model.to_str_tokens(tokens[:count]))


def short_text(text: str, most: int = 14, *, spaces: bool = False) -> str:
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


def drawable(text: str) -> str:
    """Write the code points of what no font can draw."""
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


def ink_on(ground: Sequence[float]) -> str:
    """Get the colour of text that is read on a colour, red, green and blue from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in map(float, ground[:3])]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.2 else "white"
