"""How the next token is drawn: what temperature, top-k, top-p and min-p leave of the model's probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cut:
    """The model's probabilities, and those that a token is drawn with.

    Attributes
    ----------
    order : array of int [vocab_size]
        Ids, the likeliest first.
    p : array [vocab_size]
        The model's probabilities, by id.
    q : array [vocab_size]
        Those that are drawn with: 0 for what is cut.
    by : list of str
        What has cut each rank of `order`: "top_k", "top_p", "min_p", "temperature" at 0, or "" for what is kept.
        Shorter than `order`: the last entry is that of all the rest.
    """

    order: NDArray[np.int64]
    p: Floats
    q: Floats
    kept: int
    by: list[str]


def softmax(logits: NDArray[np.float32]) -> Floats:
    """Turn logits [..., vocab_size] into probabilities, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def cut(logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float, shown: int) -> Cut:
    """Cut as `llama2cpp.Sampler` does, whose rule is in ``src/cpp/sample/sampler.h``.

    Parameters
    ----------
    logits : array [vocab_size]
    temperature, top_k, top_p, min_p
        As in `llama2cpp.generate`.
    shown : int
        For how many ranks `by` is needed.
    """
    p = softmax(logits)
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    count = len(order)
    if temperature == 0:
        q = np.zeros(count)
        q[order[0]] = 1
        return Cut(order, p, q, 1, ["", "temperature"])
    heated = softmax(np.asarray(logits / np.float32(temperature)))[order]  # by rank
    by_k = top_k if 0 < top_k < count else count
    by_p = count
    if 0 < top_p < 1:
        sums = np.cumsum(heated)
        whole = sums[by_k - 1] if by_k < count else 1.0
        by_p = min(count, int((sums <= top_p * whole).sum()) + 1)  # the one that goes over is kept
    by_min = int((heated >= min_p * heated[0]).sum())
    kept = max(1, min(by_k, by_p, by_min))
    by = [""] * min(kept, shown)
    for rank in range(kept, min(shown, count)):
        by.append("top_k" if rank >= by_k else "top_p" if rank >= by_p else "min_p")
    q = np.zeros(count)
    q[order[:kept]] = heated[:kept] / heated[:kept].sum()
    return Cut(order, p, q, kept, by)
