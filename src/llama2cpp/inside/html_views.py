"""What a notebook shows for models, sessions, caches and tokens. Text of a model is escaped before it is put in.

Tables take the page's own colours, so that they are read on light and dark ones; coloured tokens bring black text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core import Config, Tokenizer
from ..common.arguments import checked

_COLOURS = ("#dbe9ff", "#ffe8cc", "#d9f2d9", "#f5dcf0", "#fff3b8", "#d6f0f2")  # pale: black text is read on them
_MOST_TOKENS = 2000  # a page of them; the rest is counted


class TokenList(list[str]):
    """The texts of some tokens, with their ids; in a notebook each has a colour, and its id under the mouse.

    Made by `Model.to_str_tokens`.

    Attributes
    ----------
    ids : list of int
        As many as there are texts.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> tokens = model.to_str_tokens("Once upon")
    >>> tokens[-1], tokens.ids[-1]
    (' upon', 509)
    """

    @checked
    def __init__(self, texts: Iterable[str], ids: Iterable[int]) -> None:
        super().__init__(texts)
        self.ids = list(ids)

    def _repr_html_(self) -> str:
        return f"<div>{chips(self, self.ids)}</div>"


def token_list(tokenizer: Tokenizer, ids: Sequence[int]) -> TokenList:
    """Get the texts of ids, each by itself. Bytes that are no whole character are shown as U+FFFD."""
    marks = {tokenizer.bos_id, *tokenizer.eos_ids}  # llama2.c's tokenizer has line ends around them

    def text(id: int) -> str:
        piece = tokenizer.piece(id).decode("utf-8", "replace")
        return piece.strip() if id in marks else piece

    return TokenList(map(text, ids), ids)


def visible(text: str) -> str:
    """Show a token's spaces and line ends."""
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


def chips(texts: Sequence[str], ids: Sequence[int]) -> str:
    """Coloured pieces of text, one for each token."""
    spans = [
        f'<span title="{position}: id {id}" style="background:{_COLOURS[position % len(_COLOURS)]};color:#000;'
        f'padding:1px 2px;margin:1px;border-radius:3px;font-family:monospace;white-space:pre">'
        f"{html.escape(visible(text))}</span>"
        for position, (text, id) in enumerate(zip(texts[:_MOST_TOKENS], ids, strict=False))
    ]
    rest = len(texts) - len(spans)
    return "<wbr>".join(spans) + (f" and {rest} more" if rest else "")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Make a table; every cell is escaped."""

    def line(tag: str, cells: Sequence[Any]) -> str:
        style = ' style="text-align:left"'
        return "<tr>" + "".join(f"<{tag}{style}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def facts_html(title: str, facts: Mapping[str, Any]) -> str:
    """Make a heading and a table of two columns, names and values; both are escaped."""
    style = 'style="text-align:left;vertical-align:top;color:inherit;background:transparent"'
    rows = "".join(
        f"<tr><th {style}>{html.escape(str(name))}</th><td {style}>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<p><b>{html.escape(title)}</b></p><table>{rows}</table>"


def details_html(summary: str, content: str) -> str:
    """Fold HTML away under a line."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def config_html(config: Config) -> str:
    """Show the sizes and constants of a model."""

    def shown(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, tuple):
            return f"{len(value)} factors"
        return f"{value:.6g}" if isinstance(value, float) else value

    facts = {name: shown(value) for name, value in config.to_dict().items() if value not in (None, ())}
    return facts_html("llama2cpp.Config", facts)


def size_text(size: float) -> str:
    """Bytes, readable: "3.1 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
