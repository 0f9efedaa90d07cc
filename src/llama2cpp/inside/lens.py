"""The logit lens: what the model would say next if it stopped after each layer (nostalgebraist, 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked, integer
from .activation_arrays import Array, Selection, need_memory, select
from .html_views import table, visible
from .readable_model import ReadableModel
from .residual_stream import ResidualStream
from .tuned_lens import TunedLens

ReturnType: TypeAlias = Literal["logits", "log_probs", "probs"]
Targets: TypeAlias = int | str | Sequence[int | str] | NDArray[Any]
Prompts: TypeAlias = str | bytes | Sequence[int] | Sequence[Sequence[int]]

_ROWS = 64  # rows of [vocab_size] in memory at a time


class RunnableModel(ReadableModel, Protocol):
    """A `Model` that can also run for the residual streams that a lens reads.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.lens import RunnableModel
    >>> model: RunnableModel = llama2cpp.load("storyteller")
    >>> model._run("logit_lens", [1, 508], lambda name: "resid" in name)[1].accumulated_resid().shape
    (6, 1, 2, 192)
    """

    def _run(
        self,
        function: str,
        text_or_tokens: Prompts,
        names_filter: Callable[[str], bool],
        *,
        special: bool | None = None,
    ) -> tuple[Array, ResidualStream]:
        """See `Model`."""


@dataclass(frozen=True)
class LogitLens:
    """What `logit_lens` has read. Names are TransformerLens's.

    In the shapes below, B and T are there as the selections left them: an int takes its axis away.

    Attributes
    ----------
    labels : list of str
        The streams, "0_pre", "0_mid", ..., "final_post"; the first axis of everything below.
    values : numpy.ndarray
        float32 [streams, B, T, n]: of the targets, of the k likeliest, of ``vocab``, or of the whole vocabulary.
    return_type : str
        What they are: "logits", "log_probs" (natural) or "probs".
    entropy : numpy.ndarray
        float32 [streams, B, T], in nats, over the whole vocabulary.
    top_ids : numpy.ndarray or None
        int64 like `values`: the likeliest tokens, for ``top_k``.
    target_ids : numpy.ndarray or None
        int64 [n], or [B, T] where each position has its own.
    target_ranks : numpy.ndarray or None
        int64 like `values`: how many tokens are likelier than the target, in the whole vocabulary.
    has_batch_dim : bool
        Whether the axis B is there.
    model : Model
        Whose logits these are.
    tokens : list or None
        The ids that were read, as the cache has them.
    positions : list of int or None
        The positions that the axis T stands for; None if that is not there.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> lens = llama2cpp.logit_lens(model, "Once upon a", targets=" time")
    >>> lens.labels[0], lens.labels[-1], int(lens.rank_trajectory()[-1, 0])
    ('0_pre', 'final_post', 0)
    """

    labels: list[str]
    values: Array
    return_type: ReturnType
    entropy: Array
    top_ids: NDArray[np.int64] | None
    target_ids: NDArray[np.int64] | None
    target_ranks: NDArray[np.int64] | None
    has_batch_dim: bool
    model: ReadableModel
    tokens: list[Any] | None = None
    positions: list[int] | None = None
    target_names: tuple[str | None, ...] = ()

    @checked
    def rank_trajectory(self, target: int | str | None = None) -> NDArray[np.int64]:
        """Get the rank of one target in each stream: 0 is the likeliest token.

        Parameters
        ----------
        target : int or str, optional
            One of the targets; not needed if there was one.

        Returns
        -------
        numpy.ndarray
            int64 [streams, B, T].

        Raises
        ------
        ValueError
            If there were no targets, or not this one.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> lens = llama2cpp.logit_lens(model, "Once upon a", targets=[" time", " day"])
        >>> lens.rank_trajectory(" time").shape
        (6, 1)
        """
        if self.target_ids is None or self.target_ranks is None:
            raise ValueError("the lens has no targets")
        if self.target_ranks.shape[-1] == 1 and target is None:
            return self.target_ranks[..., 0]
        if isinstance(target, str) and target in self.target_names:
            return self.target_ranks[..., self.target_names.index(target)]
        ids = [] if self.target_ids.ndim != 1 else self.target_ids.tolist()
        if target not in ids:
            raise ValueError(f"target is {target!r}, expected one of {[*filter(None, self.target_names), *ids]}")
        return self.target_ranks[..., ids.index(target)]

    def top_tokens(self) -> dict[str, Any]:
        """Get the likeliest tokens of each stream as text.

        Returns
        -------
        dict of str to nested list of str
            By label: [B][T][k].

        Raises
        ------
        ValueError
            If the lens was made without ``top_k``, or the model has no tokenizer.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> llama2cpp.logit_lens(model, "Once upon a", top_k=1).top_tokens()["final_post"]
        [[' time']]
        """
        if self.top_ids is None:
            raise ValueError("the lens was made without top_k")
        texts = self.model.to_str_tokens(self.top_ids.ravel().tolist())
        nested = np.array([*texts, ""], dtype=object)[:-1].reshape(self.top_ids.shape)
        return {label: part.tolist() for label, part in zip(self.labels, nested, strict=True)}

    def __repr__(self) -> str:
        return f"<llama2cpp.LogitLens: {self.return_type} {list(self.values.shape)} of {len(self.labels)} streams>"

    def _repr_html_(self) -> str:
        shape = f"{self.return_type} {list(self.values.shape)}"
        if self.top_ids is None or not self.model.has_tokenizer:
            return table(("stream", shape), [(label, "") for label in self.labels])
        rows = []
        for label, ids in zip(self.labels, self.top_ids, strict=True):
            last = ids.reshape(-1, ids.shape[-1])[-1].tolist()
            rows.append((label, "  ".join(visible(text) for text in self.model.to_str_tokens(last))))
        return table(("stream", "likeliest at the last position"), rows)


@checked
def logit_lens(
    model: RunnableModel | ResidualStream,
    input: Prompts | None = None,
    *,
    cache: ResidualStream | None = None,
    layers: Sequence[int] | None = None,
    incl_mid: bool = False,
    positions: Selection = -1,
    batch_slice: Selection = None,
    apply_ln: bool = True,
    vocab: Sequence[int] | NDArray[Any] | None = None,
    targets: Targets | None = None,
    return_type: ReturnType = "logits",
    top_k: int | None = None,
    special: bool | None = None,
    translators: TunedLens | None = None,
) -> LogitLens:
    """Read the residual stream before each layer, and after the last, as if the model stopped there.

    Each stream goes through the last norm and the output matrix, in the model's own arithmetic (`Model.unembed`): the
    last one gives the bits of the model's own logits. Names of arguments are TransformerLens's.

    Parameters
    ----------
    model : Model or ActivationCache
        A model with an `input` or a `cache`; or a cache alone.
    input : str, bytes or sequence of int, optional
        What to run. Only residual streams are kept.
    cache : ActivationCache, optional
        What to read instead.
    layers : sequence of int, optional
        Which streams, by their place in ``accumulated_resid``; negative ones count from the end.
    incl_mid : bool
        Between attention and MLP too.
    positions, batch_slice : int, tuple, slice, list or None
        Which positions (the last one if not given) and prompts.
    apply_ln : bool
        Apply the last norm.
    vocab : sequence of int, optional
        Give the values of these ids only.
    targets : int, str, sequence of them, or array of int, optional
        Give values and ranks of these tokens; an array [B, T] has one for each position.
    return_type : str
        "logits", "log_probs" or "probs".
    top_k : int, optional
        Give the likeliest tokens only.
    special : bool, optional
        Whether an input that spells control tokens gets them, as in `generate`.
    translators : TunedLens, optional
        What each stream is turned into first: a tuned lens. `analysis.TunedLens` reads one, and
        `analysis.fit_tuned_lens` makes one.

    Returns
    -------
    LogitLens

    Raises
    ------
    ValueError
        For more than one of `vocab`, `targets` and `top_k`, for ids outside the vocabulary, not one thing to read, or
        translators of another model's sizes or with `incl_mid`.
    KeyError
        If the residual streams were not kept.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> lens = llama2cpp.logit_lens(model, "Once upon a", positions=None, top_k=3)
    >>> lens.values.shape
    (6, 1, 4, 3)
    """
    if isinstance(model, ResidualStream):
        if input is not None or cache is not None:
            raise ValueError("pass a cache, or a model with an input or a cache")
        cache, reader = model, model._need_model()
    elif (input is None) == (cache is None):
        raise ValueError("pass a model with an input or with a cache")
    else:
        reader = model
    if return_type not in ("logits", "log_probs", "probs"):
        raise ValueError(f"return_type is {return_type!r}, expected one of: logits, log_probs, probs")
    if sum(choice is not None for choice in (vocab, targets, top_k)) > 1:
        raise ValueError("pass one of vocab, targets and top_k")
    if translators is not None:
        translators.check(reader, "logit_lens")
        if incl_mid:
            raise ValueError("translators are for streams between layers, and incl_mid asks for those within")
    if cache is None:
        assert input is not None
        assert not isinstance(model, ResidualStream)
        kept = ("hook_resid_pre", "hook_resid_post", "hook_resid_mid")[: 3 if incl_mid else 2]
        _, cache = model._run("logit_lens", input, lambda name: name.endswith(kept), special=special)

    stack, labels = cache.accumulated_resid(incl_mid=incl_mid, pos_slice=positions, return_labels=True)
    chosen = range(len(labels)) if layers is None else [_index(layer, labels) for layer in layers]
    if not chosen:
        raise ValueError("logit_lens: layers is empty, expected one or more")
    stack = stack[list(chosen)]
    if translators is not None:
        stack = np.stack([translators.translate(stream, i) for stream, i in zip(stack, chosen, strict=True)])
    labels = [labels[i] for i in chosen]
    if cache.has_batch_dim:
        stack = select(stack, batch_slice, 1)
    read = _Reader(reader, stack.shape[:-1], vocab, targets, return_type, top_k)
    rows = stack.reshape(-1, stack.shape[-1])
    for begin in range(0, len(rows), _ROWS):
        read.add(reader.unembed(rows[begin : begin + _ROWS], apply_ln))
    n_positions = cache._stream(0).shape[-2]
    all_positions = np.asarray(cache.positions if cache.positions is not None else range(n_positions))
    kept_positions = np.asarray(select(all_positions, positions, 0))
    return LogitLens(
        labels=labels,
        values=read.joined(read.values),
        return_type=return_type,
        entropy=read.joined(read.entropy)[..., 0],
        top_ids=read.joined(read.top_ids) if top_k is not None else None,
        target_ids=read.target_ids,
        target_ranks=read.joined(read.ranks) if targets is not None else None,
        has_batch_dim=cache.has_batch_dim and not isinstance(batch_slice, int | np.integer),
        model=reader,
        tokens=cache.tokens,
        positions=None if kept_positions.ndim == 0 else kept_positions.tolist(),
        target_names=read.target_names,
    )


def _index(layer: int, labels: list[str]) -> int:
    if not -len(labels) <= layer < len(labels):
        raise ValueError(f"layer is {layer}, expected one of the {len(labels)} streams {labels}")
    return layer % len(labels)


class _Reader:
    """Takes logits [rows, vocab_size] piece by piece, and keeps what was asked for."""

    def __init__(
        self,
        model: ReadableModel,
        lead: tuple[int, ...],
        vocab: Sequence[int] | NDArray[Any] | None,
        targets: Targets | None,
        return_type: ReturnType,
        top_k: int | None,
    ) -> None:
        self._vocab_size = model.config.vocab_size
        self._lead = lead
        self._return_type = return_type
        self._top_k = top_k
        if top_k is not None and not 1 <= top_k <= self._vocab_size:
            raise ValueError(f"top_k is {top_k}, expected 1 to {self._vocab_size}")
        self.target_ids: NDArray[np.int64] | None = None
        self.target_names: tuple[str | None, ...] = ()
        self._columns: NDArray[np.int64] | None = None  # [n] the same for each row, or [rows, n]
        if isinstance(targets, np.ndarray) and targets.ndim > 0:
            self.target_ids = self._ids(targets)
            self._columns = np.broadcast_to(self.target_ids, lead).reshape(-1, 1)
        elif targets is not None:
            several = targets if isinstance(targets, Sequence) and not isinstance(targets, str) else [targets]
            self.target_names = tuple(one if isinstance(one, str) else None for one in several)
            ids = [
                model.to_single_token(one) if isinstance(one, str) else integer(one, "targets", "logit_lens")
                for one in several
            ]
            self.target_ids = self._columns = self._ids(np.array(ids))
        elif vocab is not None:
            self._columns = self._ids(np.asarray(vocab))
        # Pieces, and the whole that they are joined to: for the likeliest, their ids of eight bytes too.
        values = self._vocab_size if self._columns is None else self._columns.shape[-1]
        values = values if top_k is None else 3 * top_k
        need_memory(2.0 * math.prod(lead) * values, f"a lens of {math.prod(lead)} rows")
        self._targets = targets is not None
        self._row = 0
        self.values: list[Array] = []
        self.entropy: list[Array] = []
        self.top_ids: list[NDArray[np.int64]] = []
        self.ranks: list[NDArray[np.int64]] = []

    def _ids(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        if ids.dtype.kind not in "iu" or ids.size == 0 or ids.min() < 0 or ids.max() >= self._vocab_size:
            raise ValueError(f"ids are {ids.tolist()}, expected integers from 0 to {self._vocab_size - 1}")
        return ids.astype(np.int64)

    def add(self, logits: Array) -> None:
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        probs = np.exp(log_probs)
        self.entropy.append(-(probs * log_probs).sum(axis=-1, keepdims=True))
        wanted = {"logits": logits, "log_probs": log_probs, "probs": probs}[self._return_type]
        columns = self._columns
        if self._top_k is not None:
            columns = np.stack([_likeliest(row, self._top_k) for row in logits])
            self.top_ids.append(columns)
        elif columns is not None:
            columns = (
                columns[self._row : self._row + len(logits)]
                if columns.ndim == 2
                else columns[None].repeat(len(logits), 0)
            )
        if self._targets and columns is not None:
            theirs = np.take_along_axis(logits, columns, axis=-1)  # [rows, n]
            self.ranks.append((logits[:, None, :] > theirs[..., None]).sum(axis=-1))
        self._row += len(logits)
        self.values.append(wanted if columns is None else np.take_along_axis(wanted, columns, axis=-1))

    def joined(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        """[rows, n] in pieces -> [streams, B, T, n]."""
        return np.concatenate(parts).reshape(*self._lead, -1)


def _likeliest(row: Array, count: int) -> NDArray[np.int64]:
    """Find the largest of [vocab_size], best first, ties to the lower id. Most are never sorted."""
    least = np.partition(row, -count)[-count]
    found = np.flatnonzero(row >= least)
    order = np.argsort(-row[found], kind="stable")
    best: NDArray[np.int64] = found[order[:count]]
    return best
