"""A piece of text as it comes, with what is known about its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TopLogprobs = list[tuple[int, float]]


class Piece(str):
    """A str that knows the tokens which ended in it.

    A token whose text is not final yet (half a character, or what may begin a stop string) comes with a later piece.

    Parameters
    ----------
    text : str
        The piece.
    tokens : sequence of int
        The sampled ids.
    logprobs : sequence of float
        For each of them the natural logarithm of its probability; empty where nobody asked.
    top_logprobs : sequence of list of (int, float)
        For each of them the likeliest ids at that place, best first; empty where nobody asked.

    Examples
    --------
    >>> from llama2cpp.common.piece import Piece
    >>> piece = Piece(" time", [420], [-0.01])
    >>> piece.upper(), piece.tokens, piece.logprobs
    (' TIME', (420,), (-0.01,))
    """

    __slots__ = ("logprobs", "tokens", "top_logprobs")

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...]

    def __new__(
        cls,
        text: str,
        tokens: Sequence[int] = (),
        logprobs: Sequence[float] = (),
        top_logprobs: Sequence[TopLogprobs] = (),
    ) -> Piece:
        """Make a str, which is what it is before it can know anything."""
        piece = super().__new__(cls, text)
        piece.tokens = tuple(tokens)
        piece.logprobs = tuple(logprobs)
        piece.top_logprobs = tuple(top_logprobs)
        return piece

    def __reduce__(self) -> tuple[Any, ...]:
        return Piece, (str(self), self.tokens, self.logprobs, self.top_logprobs)
