"""How surprised logits are by the tokens that follow: the loss of `Model.run_with_hooks` and its sisters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.probabilities import log_softmax

_ROWS = 64  # of logits that are in memory in double precision at a time


def next_token_loss(logits: NDArray[np.float32], tokens: NDArray[Any], per_token: bool = False) -> Any:  # noqa: ANN401
    """Compute the mean of -log p over each token but the first of each prompt.

    Parameters
    ----------
    logits : array [B, T, vocab_size]
        After each token.
    tokens : array of int [B, T]
        The prompts.
    per_token : bool
        Give -log p of each token.

    Returns
    -------
    float, or numpy.ndarray
        Computed in double precision; of each token float32 [B, T - 1].

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp.inside.next_token_loss import next_token_loss
    >>> round(next_token_loss(numpy.zeros((1, 3, 8), numpy.float32), numpy.array([[1, 5, 2]])), 4)
    2.0794
    """
    batch, length = tokens.shape
    losses = np.empty((batch, length - 1))
    for i in range(batch):
        for at in range(0, length - 1, _ROWS):
            rows = log_softmax(logits[i, at : min(at + _ROWS, length - 1)])
            targets = tokens[i, at + 1 : at + 1 + len(rows)]
            losses[i, at : at + len(rows)] = -rows[np.arange(len(rows)), targets]
    return losses.astype(np.float32) if per_token else float(losses.mean())
