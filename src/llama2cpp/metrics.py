"""Numbers that say how well a model does on prompts, with their gradients: what patching and gradients are measured by.

Each function here makes a metric: a function of logits [B, T, vocab_size] that returns a number and its gradient with
respect to the logits, float32 of their shape. Over a batch it is the mean. Any other function of logits that returns
such a pair, or one of PyTorch's tensors that returns a number, is as good.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import metrics
>>> model = llama2cpp.load("storyteller", precision="exact")
>>> logits, cache = model.run_with_cache("Once upon a")
>>> value, dlogits = metrics.log_prob(model.to_single_token(" time"))(logits)
>>> -1 < value < 0, dlogits.shape == logits.shape
(True, True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common.arguments import checked, float_array, integer
from .common.probabilities import kl_divergence, log_softmax

Array: TypeAlias = NDArray[np.float32]
Pair: TypeAlias = tuple[float, Array]
# One for all prompts, or one for each.
Tokens: TypeAlias = int | Sequence[int] | NDArray[Any]

__all__ = ["kl", "log_prob", "logit_diff", "loss"]


@checked
def logit_diff(answer: Tokens, wrong: Tokens, position: int = -1) -> Callable[[Array], Pair]:
    """Measure by how much the logit of an answer is above that of a wrong one.

    Parameters
    ----------
    answer, wrong : int or sequence of int
        Ids: one for all prompts, or one for each.
    position : int
        Of the token whose logits are read; negative counts from the end.

    Returns
    -------
    callable
        Of logits [B, T, vocab_size]: the mean over the batch, and its gradient.

    Raises
    ------
    ValueError
        By the metric: for a token or a position that the logits do not have, or another number of prompts.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import metrics
    >>> value, dlogits = metrics.logit_diff(2, 0)(numpy.arange(4, dtype=numpy.float32).reshape(1, 1, 4))
    >>> value, dlogits.tolist()
    (2.0, [[[-1.0, 0.0, 1.0, 0.0]]])
    """

    def metric(logits: Array) -> Pair:
        logits = _checked(logits)
        rows, at = np.arange(len(logits)), _position(position, logits)
        right, other = _ids(answer, "answer", logits), _ids(wrong, "wrong", logits)
        picked = logits[:, at].astype(np.float64)
        dlogits = np.zeros(logits.shape, dtype=np.float32)
        dlogits[rows, at, right] += np.float32(1 / len(logits))
        dlogits[rows, at, other] -= np.float32(1 / len(logits))
        return float((picked[rows, right] - picked[rows, other]).mean()), dlogits

    return metric


@checked
def log_prob(token: Tokens, position: int = -1) -> Callable[[Array], Pair]:
    """Measure the logarithm of a token's probability.

    Parameters
    ----------
    token : int or sequence of int
        Its id: one for all prompts, or one for each.
    position : int
        Of the token after which it is to come; negative counts from the end.

    Returns
    -------
    callable
        Of logits [B, T, vocab_size]: the mean over the batch, and its gradient.

    Raises
    ------
    ValueError
        As `logit_diff`.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import metrics
    >>> value, dlogits = metrics.log_prob(1)(numpy.zeros((1, 1, 4), dtype=numpy.float32))
    >>> round(value, 4), dlogits.tolist()
    (-1.3863, [[[-0.25, 0.75, -0.25, -0.25]]])
    """

    def metric(logits: Array) -> Pair:
        logits = _checked(logits)
        rows, at = np.arange(len(logits)), _position(position, logits)
        ids = _ids(token, "token", logits)
        logs = log_softmax(logits[:, at])
        dlogits = np.zeros(logits.shape, dtype=np.float32)
        dlogits[:, at] = -np.exp(logs) / len(logits)
        dlogits[rows, at, ids] += np.float32(1 / len(logits))
        return float(logs[rows, ids].mean()), dlogits

    return metric


@checked
def kl(reference: ArrayLike, position: int | None = -1) -> Callable[[Array], Pair]:
    """Measure how far the probabilities are from those of another run: their Kullback-Leibler divergence.

    Parameters
    ----------
    reference : array [B, T, vocab_size] or [T, vocab_size]
        The other run's logits, whose probabilities are the expected ones.
    position : int, optional
        Of the token whose logits are read; negative counts from the end. None: the mean over all.

    Returns
    -------
    callable
        Of logits [B, T, vocab_size]: the mean over the batch, in nats, and its gradient.

    Raises
    ------
    ValueError
        By the metric: for logits of another shape, or without the position.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import metrics
    >>> logits = numpy.zeros((1, 2, 4), dtype=numpy.float32)
    >>> value, dlogits = metrics.kl(logits)(logits)
    >>> value, float(abs(dlogits).max())
    (0.0, 0.0)
    """
    expected = float_array(reference)

    def metric(logits: Array) -> Pair:
        logits = _checked(logits)
        theirs = expected if expected.ndim == 3 else expected[None]
        if theirs.shape != logits.shape:
            raise ValueError(f"logits have shape {list(logits.shape)}, those of the reference {list(theirs.shape)}")
        at = range(logits.shape[1]) if position is None else [_position(position, logits)]
        dlogits = np.zeros(logits.shape, dtype=np.float32)
        value, count = 0.0, len(logits) * len(at)
        for t in at:
            wanted, logs = log_softmax(theirs[:, t]), log_softmax(logits[:, t])
            value += float(kl_divergence(wanted, logs).sum()) / count
            dlogits[:, t] = (np.exp(logs) - np.exp(wanted)) / count
        return value, dlogits

    return metric


@checked
def loss(tokens: Any) -> Callable[[Array], Pair]:  # noqa: ANN401 - ids [T] or [B][T]
    """Measure the mean cross-entropy of each next token: what a model is trained by.

    Parameters
    ----------
    tokens : sequence of int, or of such
        The ids of the run, [T] or [B][T]; at least two of each prompt.

    Returns
    -------
    callable
        Of logits [B, T, vocab_size]: the mean over all tokens but each prompt's first, in nats, and its gradient.

    Raises
    ------
    ValueError
        For fewer than two tokens; by the metric: for logits of other prompts.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import metrics
    >>> value, dlogits = metrics.loss([1, 3])(numpy.zeros((1, 2, 4), dtype=numpy.float32))
    >>> round(value, 4), dlogits[0, 0].tolist()
    (1.3863, [0.25, 0.25, 0.25, -0.75])
    """
    ids = np.asarray(tokens)
    if ids.ndim not in (1, 2) or ids.dtype.kind not in "iu" or ids.shape[-1] < 2:
        raise ValueError(f"tokens is {tokens!r}, expected two ids or more of each prompt, all of one length")
    ids = ids if ids.ndim == 2 else ids[None]

    def metric(logits: Array) -> Pair:
        logits = _checked(logits)
        if logits.shape[:2] != ids.shape:
            raise ValueError(f"logits have shape {list(logits.shape)}, but tokens {list(ids.shape)}")
        _check_ids(ids, "tokens", logits)
        dlogits = np.zeros(logits.shape, dtype=np.float32)
        rows = np.arange(len(ids))
        value, count = 0.0, ids[:, 1:].size
        for t in range(ids.shape[1] - 1):  # one position at a time: logits of a large vocabulary are large in float64
            x, following = logits[:, t].astype(np.float64), ids[:, t + 1]
            x -= x.max(axis=-1, keepdims=True)
            right = x[rows, following]
            np.exp(x, out=x)
            total = x.sum(axis=-1, keepdims=True)
            value -= float((right - np.log(total[:, 0])).sum()) / count
            x *= 1 / (total * count)
            dlogits[:, t] = x
            dlogits[rows, t, following] -= np.float32(1 / count)
        return value, dlogits

    return metric


def _checked(logits: ArrayLike) -> Array:
    array = np.asarray(logits)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"logits have shape {list(array.shape)}, expected [B, T, vocab_size]")
    return array


def _position(position: int, logits: Array) -> int:
    length = int(logits.shape[1])
    if not -length <= position < length:
        raise ValueError(f"position is {position}, but there are {length} tokens")
    return position % length


def _ids(tokens: Tokens, name: str, logits: Array) -> NDArray[np.int64]:
    """One id for each prompt."""
    batch = len(logits)
    given = np.asarray(tokens)
    if given.ndim == 0:
        ids = np.full(batch, integer(tokens, name, "metrics"), dtype=np.int64)
    elif given.ndim == 1 and given.dtype.kind in "iu" and len(given) == batch:
        ids = given.astype(np.int64)
    else:
        raise ValueError(f"{name} is {tokens!r}, expected an id, or one for each of {batch} prompts")
    _check_ids(ids, name, logits)
    return ids


def _check_ids(ids: NDArray[Any], name: str, logits: Array) -> None:
    vocab_size = logits.shape[-1]
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise ValueError(f"{name} has the id {outside.flat[0]}, expected 0 to {vocab_size - 1}")
