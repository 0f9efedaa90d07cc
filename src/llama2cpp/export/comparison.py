"""What one model says against another of the same vocabulary, and how their weights differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked
from ..common.probabilities import kl_divergence, log_softmax
from ..common.token_ids import to_ids
from .source import Source

if TYPE_CHECKING:
    from ..common.token_ids import Prompt
    from ..model import Model

_FEW = 0.1  # the share of a vocabulary that may differ, if the text has none of it
_CHUNK = 128  # tokens whose logits are in memory at a time


@dataclass(frozen=True)
class TensorDifference:
    """How a weight of B differs from A's.

    Attributes
    ----------
    name : str
        llama2.c's name.
    format_a, format_b : str
        How each model stores it.
    relative_error : float
        The root of the sum of squared differences, over that of A's squares.
    largest : float
        The largest difference of two numbers.
    at : tuple of int
        Where that is: [row, column] or [column], rows as interleaved rotary pairs have them.
    """

    name: str
    format_a: str
    format_b: str
    relative_error: float
    largest: float
    at: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """What `compare` has found.

    Attributes
    ----------
    tokens : int
        Predictions that were compared.
    perplexity_a, perplexity_b : float
        Of each model, over the same tokens.
    mean_kl, worst_kl : float
        Kullback-Leibler divergence of B's prediction from A's, in nats: its mean and its largest.
    worst_at : int
        The index, in the text's tokens, of the token that the worst one predicts.
    top1_agreement : float
        The share of predictions in which both find the same token likeliest.
    kl : tuple of float
        The divergence of each prediction: of the text's tokens from the second on.
    tensors : tuple of TensorDifference
        Each weight that both have.
    """

    tokens: int
    perplexity_a: float
    perplexity_b: float
    mean_kl: float
    worst_kl: float
    worst_at: int
    top1_agreement: float
    kl: tuple[float, ...]
    tensors: tuple[TensorDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as what JSON can hold.

        Returns
        -------
        dict

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> llama2cpp.export.compare(model, model, "Once upon a time").to_dict()["mean_kl"]
        0.0
        """
        return asdict(self)


@checked
def compare(
    a: Model,
    b: Model,
    text: Prompt,
    *,
    window: int = 512,
    max_tokens: int | None = None,
    tensors: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Measure what B, say a quantized A, has lost.

    Parameters
    ----------
    a, b : Model
        Of the same vocabulary. A's tokenizer, or B's where A has none, turns the text into ids.
    text : str, bytes or sequence of int
        Text, or ids that are taken as they are.
    window : int
        The text is cut into pieces of so many tokens (or the models' context if that is less), each begun with the
        first token again.
    max_tokens : int, optional
        Compare the beginning of the text only.
    tensors : bool
        Compare weight by weight too.
    progress : callable, optional
        Called with what is compared ("predictions" or a weight's name), what is done and what there is in all.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If the vocabularies differ, or there are not at least two tokens, or no tokenizer for a text.

    Examples
    --------
    >>> import llama2cpp
    >>> import tempfile
    >>> story = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    >>> model = llama2cpp.load("storyteller")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = llama2cpp.export.convert(model, f"{folder}/stories.bin", "int8")
    ...     found = llama2cpp.export.compare(model, llama2cpp.load(done.path), story)
    >>> found.mean_kl < 0.01, found.top1_agreement > 0.9, found.tensors[0].relative_error < 0.01
    (True, True, True)
    """
    _check_sizes(a, b)
    ids = to_ids(a if a.has_tokenizer else b, text, function="compare", special=False)
    _check_pieces(a, b, ids)
    if max_tokens is not None:
        ids = ids[: max(0, max_tokens)]
    window = min(window, a.context, b.context)
    if len(ids) < 2 or window < 2:
        raise ValueError(f"a comparison needs at least 2 tokens, got {len(ids)} in windows of {window}")

    wrong = next((id for id in ids if not 0 <= id < a.config.vocab_size), None)
    if wrong is not None:
        raise ValueError(f"compare: a token is {wrong}, expected 0 to {a.config.vocab_size - 1}")
    surprise_a = surprise_b = 0.0
    agreed = done = 0
    divergences: list[NDArray[np.float64]] = []
    for targets, log_a, log_b in _predictions(a, b, ids, window):
        rows = np.arange(len(targets))
        surprise_a -= float(log_a[rows, targets].sum())
        surprise_b -= float(log_b[rows, targets].sum())
        kl = np.maximum(kl_divergence(log_a, log_b), 0.0)
        divergences.append(kl)
        agreed += int((log_a.argmax(axis=1) == log_b.argmax(axis=1)).sum())
        done += len(targets)
        if progress is not None:
            progress("predictions", done, len(ids) - 1)
    each = np.concatenate(divergences)
    return Comparison(
        tokens=done,
        perplexity_a=float(np.exp(surprise_a / done)),
        perplexity_b=float(np.exp(surprise_b / done)),
        mean_kl=float(each.mean()),
        worst_kl=float(each.max()),
        worst_at=1 + int(each.argmax()),
        top1_agreement=agreed / done,
        kl=tuple(each.tolist()),
        tensors=tuple(_differences(Source(a), Source(b), progress)) if tensors else (),
    )


def _check_sizes(a: Model, b: Model) -> None:
    if a.config.vocab_size != b.config.vocab_size:
        raise ValueError(
            f"the vocabularies have {a.config.vocab_size} and {b.config.vocab_size} pieces: only models of one "
            "vocabulary can be compared"
        )


def _check_pieces(a: Model, b: Model, ids: Sequence[int]) -> None:
    """Refuse models whose ids mean other texts. A few that differ outside of the text are padding."""
    if not (a.has_tokenizer and b.has_tokenizer):
        return
    first, second = a.tokenizer, b.tokenizer
    count = min(first.vocab_size, second.vocab_size)
    marks = {first.bos_id, second.bos_id, *first.eos_ids, *second.eos_ids}  # formats write their names differently
    other = {id for id in range(count) if id not in marks and first.piece(id) != second.piece(id)}
    in_text = [id for id in ids if id in other]
    if in_text or len(other) > count * _FEW:
        id = in_text[0] if in_text else min(other)
        raise ValueError(
            f"the vocabularies differ in {len(other)} of {count} pieces (id {id} is {first.piece(id)!r} in the one and "
            f"{second.piece(id)!r} in the other): only models of one vocabulary can be compared"
        )


_LogProbabilities = NDArray[np.float64]


def _predictions(
    a: Model, b: Model, ids: Sequence[int], window: int
) -> Iterator[tuple[list[int], _LogProbabilities, _LogProbabilities]]:
    """Give targets, one after another from the second token on, and float64 [targets, vocab_size] of both models."""
    session_a, session_b = a.session(window), b.session(window)
    for begin in range(1, len(ids), window - 1):
        session_a.rewind(0)
        session_b.rewind(0)
        piece = [ids[0], *ids[begin : begin + window - 1]]
        for at in range(0, len(piece) - 1, _CHUNK):
            targets = piece[at + 1 : at + 1 + _CHUNK]
            tokens = piece[at : at + len(targets)]
            log_a, log_b = (log_softmax(session.prefill(tokens, all_logits=True)) for session in (session_a, session_b))
            yield targets, log_a, log_b


def _differences(a: Source, b: Source, progress: Callable[[str, int, int], None] | None) -> Iterator[TensorDifference]:
    names = [name for name in a.names() if name in b and a.shape(name) == b.shape(name)]
    for done, name in enumerate(names, 1):
        first = a.array(name, "interleaved")
        difference = b.array(name, "interleaved") - first
        size = float(np.linalg.norm(first.ravel()))
        error = float(np.linalg.norm(difference.ravel()))
        np.abs(difference, out=difference)
        at = np.unravel_index(int(difference.argmax()), difference.shape)
        yield TensorDifference(
            name=name,
            format_a=a.stored_format(name),
            format_b=b.stored_format(name),
            relative_error=error / size if size else error,
            largest=float(difference[at]),
            at=tuple(int(i) for i in at),
        )
        if progress is not None:
            progress(name, done, len(names))
