"""Patterns of attention that kinds of heads have, and how close a head's own pattern is to one.

The kinds, their patterns and the two measures are those of TransformerLens's ``detect_head``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

KINDS = ("previous_token_head", "duplicate_token_head", "induction_head")
MEASURES = ("mul", "abs")


def wanted_pattern(kind: str, tokens: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
    """Make the pattern that a head of a kind has on some tokens.

    Parameters
    ----------
    kind : str
        "previous_token_head" looks at the token before; "duplicate_token_head" at earlier ones that are the same;
        "induction_head" at the tokens behind those.
    tokens : sequence of int
        [T].

    Returns
    -------
    numpy.ndarray
        float32 [T, T] of ones and zeros, query by key; nothing is above the diagonal.

    Raises
    ------
    ValueError
        For another kind, or tokens of several prompts.

    Examples
    --------
    >>> from llama2cpp.inside.head_detection import wanted_pattern
    >>> wanted_pattern("induction_head", [7, 5, 7]).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1:
        raise ValueError(f"tokens have shape {list(ids.shape)}, expected those of one prompt, [T]")
    if kind == "previous_token_head":
        return np.eye(len(ids), k=-1, dtype=np.float32)
    if kind not in KINDS:
        raise ValueError(f"there is no kind of heads {kind!r}, expected one of: {', '.join(KINDS)}")
    same = np.tril(ids[:, None] == ids[None, :], k=-1)  # [query, key]
    if kind == "induction_head":
        behind = np.zeros_like(same)
        behind[:, 1:] = same[:, :-1]
        same = behind
    return np.asarray(same, dtype=np.float32)


def closeness(
    patterns: ArrayLike,
    wanted: ArrayLike,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    measure: str = "mul",
) -> NDArray[np.float64]:
    """Say how close patterns are to one that is wanted.

    Parameters
    ----------
    patterns : array [..., T, T]
        Of heads, query by key.
    wanted : array [T, T]
        Such as `wanted_pattern` makes.
    exclude_bos, exclude_current_token : bool
        Pass over what looks at the first token, and what each token has of itself.
    measure : str
        "mul": the share of the attention that is where the wanted pattern is. "abs": 1 less the mean, over the queries,
        of the sum of absolute differences.

    Returns
    -------
    numpy.ndarray
        float64 [...]; a head whose attention is all passed over has 0 by "mul".

    Raises
    ------
    ValueError
        For another measure, and where the shapes differ or the wanted pattern looks ahead.

    Examples
    --------
    >>> from llama2cpp.inside.head_detection import closeness, wanted_pattern
    >>> pattern = [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]]
    >>> float(closeness(pattern, wanted_pattern("previous_token_head", [7, 5, 7])))
    0.5
    """
    own = np.array(patterns, dtype=np.float64)
    target = np.asarray(wanted, dtype=np.float64)
    length = target.shape[0] if target.ndim == 2 else -1
    if own.ndim < 2 or target.shape != (length, length) or own.shape[-2:] != target.shape:
        raise ValueError(
            f"the wanted pattern has shape {list(target.shape)}, and those of heads {list(own.shape[-2:])}: expected "
            "the same, [T, T]"
        )
    if np.triu(target, k=1).any():
        raise ValueError("the wanted pattern looks at tokens behind the query: it has to be lower triangular")
    if measure == "mul":
        score, whole = own * target, own
    elif measure == "abs":
        score = whole = np.abs(own - target)
    else:
        raise ValueError(f"measure is {measure!r}, expected one of: {', '.join(MEASURES)}")
    for array in (score, whole):
        if exclude_bos:
            array[..., 0] = 0
        if exclude_current_token:
            array[..., np.arange(length), np.arange(length)] = 0
    total = whole.sum(axis=(-2, -1))
    if measure == "abs":
        return np.asarray(1 - total / length)
    return np.asarray(np.divide(score.sum(axis=(-2, -1)), total, out=np.zeros_like(total), where=total > 0))
