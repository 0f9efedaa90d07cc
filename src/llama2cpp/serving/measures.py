"""What texts are worth to a model: log probabilities of continuations, and vectors of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter, check_adapter
from ..common.token_ids import Prompt, batch_of, listed, several, to_ids
from ..inside.residual_stream import last_norm
from .jobs import EmbedJob, ScoreJob

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Score:
    """What a model makes of a continuation: what `Model.score` returns.

    Attributes
    ----------
    logprob : float
        The natural logarithm of the probability of all of it.
    logprobs : tuple of float
        That of each token.
    tokens : tuple of int
        Its ids.
    greedy : bool
        Whether each token is the likeliest at its place, so that greedy decoding would give it.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> good, bad = model.score("Once upon a", [" time", " dog"])
    >>> good.logprob > bad.logprob, good.greedy
    (True, True)
    """

    logprob: float
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    greedy: bool


def score(
    engine: Engine,
    context: Prompt,
    continuations: Prompt | Sequence[Prompt],
    special: bool | None,
    adapter: Adapter | None = None,
) -> Score | list[Score]:
    """Do what `Model.score` does, on an engine."""
    function = "score"
    check_adapter(function, adapter, engine._model)
    given = listed(continuations)
    many = several(given)
    if many is None and hasattr(given, "__len__") and not isinstance(given, str | bytes) and len(given) == 0:
        return []
    pairs = [_pair(engine, context, one, special) for one in ([given] if many is None else many)]
    jobs = []
    for before, all_ids in pairs:
        engine._check_ids(function, all_ids[:-1])
        engine._check_ids(function, all_ids[-1:])
        jobs.append(ScoreJob(all_ids, before, adapter))
    engine._measure(function, jobs)
    scores = [
        Score(sum(job.logprobs), tuple(job.logprobs), tuple(all_ids[before:]), job.greedy)
        for job, (before, all_ids) in zip(jobs, pairs, strict=True)
    ]
    return scores[0] if many is None else scores


def _pair(engine: Engine, context: Prompt, continuation: Prompt, special: bool | None) -> tuple[int, list[int]]:
    """Give how many ids are the context's, and the ids of both.

    Two texts are encoded as one, in which a space belongs to the word behind it: so a context's last spaces are the
    continuation's.
    """
    model = engine._model
    before = to_ids(model, context, function="score: context", special=special)
    if isinstance(context, str) and isinstance(continuation, str):
        kept = context.rstrip(" ")
        if kept != context:
            before = to_ids(model, kept, function="score: context", special=special)
        ids = to_ids(model, context + continuation, function="score: continuation", special=special)
    else:
        ids = [*before, *to_ids(model, continuation, function="score: continuation", begin=False, special=special)]
    if not before:
        raise ValueError("score: the context has no tokens, expected at least one: what would the first one follow?")
    if len(ids) <= len(before):
        raise ValueError(f"score: the continuation {continuation!r:.80} has no tokens of its own")
    return len(before), ids


def embed(
    engine: Engine,
    texts: Prompt | Sequence[Prompt],
    pooling: str,
    normalize: bool,
    special: bool | None,
    adapter: Adapter | None = None,
) -> NDArray[np.float32]:
    """Do what `Model.embed` does, on an engine."""
    function = "embed"
    if pooling not in ("mean", "last"):
        raise ValueError(f"{function}: pooling is {pooling!r}, expected 'mean' or 'last'")
    model = engine._model
    check_adapter(function, adapter, model)
    given: Any = listed(texts)
    many = batch_of(given)
    if many is None and not isinstance(given, str | bytes) and hasattr(given, "__len__") and len(given) == 0:
        many = []  # no texts, as in `generate`
    jobs = []
    for i, text in enumerate([given] if many is None else many):
        where = function if many is None else f"{function}: text {i}"
        ids = to_ids(model, text, function=where, special=special)
        engine._check_ids(where, ids)
        jobs.append(EmbedJob(ids, model._core, adapter))
    engine._measure(function, jobs)
    if not jobs:
        return np.empty((0, model.config.dim), dtype=np.float32)
    vectors = np.stack([_pooled(last_norm(job.stream, model), pooling) for job in jobs])
    if normalize:
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    return np.asarray(vectors if many is not None else vectors[0], dtype=np.float32)


def _pooled(states: NDArray[np.float32], pooling: str) -> NDArray[np.float64]:
    """[T, dim] -> [dim]."""
    rows = states[-1:] if pooling == "last" else states
    return np.asarray(rows.mean(axis=0, dtype=np.float64))
