"""What kinds of attention heads a model has: how well their patterns match what such a head would look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked, close_names, float_array

if TYPE_CHECKING:
    from ..model import Model
    from .cache import ActivationCache

Array: TypeAlias = NDArray[np.float32]
HEAD_NAMES = ("previous_token_head", "duplicate_token_head", "induction_head")


def head_pattern(tokens: Sequence[int] | NDArray[Any], name: str) -> Array:
    """Make the pattern that a kind of head would have on some tokens: 1 where it looks, else 0.

    Parameters
    ----------
    tokens : sequence of int [T]
        The prompt.
    name : str
        "previous_token_head" looks at the token before; "duplicate_token_head" at earlier places of the same token;
        "induction_head" at the tokens that came after those.

    Returns
    -------
    numpy.ndarray
        float32 [T, T], lower triangular.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> from llama2cpp.inside.head_patterns import head_pattern
    >>> head_pattern([5, 6, 5], "induction_head").tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    ids = np.asarray(tokens).ravel()
    if name == "previous_token_head":
        return np.eye(len(ids), k=-1, dtype=np.float32)
    same = np.tril(ids[:, None] == ids[None], k=-1)
    if name == "duplicate_token_head":
        return np.asarray(same, dtype=np.float32)
    if name == "induction_head":
        after = np.zeros_like(same)
        after[:, 1:] = same[:, :-1]
        return np.asarray(np.tril(after), dtype=np.float32)
    raise ValueError(f"no kind of head is called {name!r}{close_names(name, HEAD_NAMES)}, expected {HEAD_NAMES}")


@checked
def detect_head(
    model: Model,
    seq: str | Sequence[str],
    detection_pattern: str | NDArray[Any],
    heads: Any = None,  # noqa: ANN401 - pairs, or a mapping
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: Literal["mul", "abs"] = "mul",
) -> Array:
    """Score how well each head's pattern on a text matches a given one, as TransformerLens does.

    Parameters
    ----------
    model : Model
    seq : str or sequence of str
        The text. Scores of several are averaged.
    detection_pattern : str or array [T, T]
        A kind of head, see `head_pattern`: "previous_token_head", "duplicate_token_head" or "induction_head"; or a
        pattern of your own, lower triangular.
    heads : sequence of (layer, head), or mapping of layer to heads, optional
        Only these are scored, the others get -1.
    cache : ActivationCache, optional
        Of a run on the text, with the patterns.
    exclude_bos, exclude_current_token : bool
        Leave out what heads give to the first token, and to the token itself.
    error_measure : str
        "mul": the share of a head's attention that is where the pattern is 1. "abs": 1 less the mean over tokens of
        the absolute differences.

    Returns
    -------
    numpy.ndarray
        float32 [n_layers, n_heads].

    Raises
    ------
    ValueError
        For an unknown name or measure, a pattern that is not lower triangular or of another size, a prompt of fewer
        than two tokens, a cache with several texts, or a head that the model has not.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.utils import detect_head
    >>> model = llama2cpp.load("storyteller")
    >>> scores = detect_head(model, "Once upon a time there was a cat. Once upon a time", "previous_token_head")
    >>> scores.shape, bool(scores.max() <= 1)
    ((5, 6), True)
    """
    if error_measure not in ("mul", "abs"):
        raise ValueError(f"detect_head: error_measure is {error_measure!r}, expected 'mul' or 'abs'")
    if not isinstance(seq, str):
        if cache is not None:
            raise ValueError("detect_head: a cache is of one text, and there are several")
        if not seq:
            raise ValueError("detect_head: there is no text")
        options: dict[str, Any] = {
            "exclude_bos": exclude_bos,
            "exclude_current_token": exclude_current_token,
            "error_measure": error_measure,
        }
        return np.asarray(
            np.mean([detect_head(model, text, detection_pattern, heads, **options) for text in seq], axis=0)
        )
    tokens = model.to_tokens(seq)[0]
    length = len(tokens)
    wanted = (
        head_pattern(tokens, detection_pattern)
        if isinstance(detection_pattern, str)
        else float_array(detection_pattern)
    )
    if length < 2:
        raise ValueError("detect_head: the text has one token, expected at least two")
    if wanted.shape != (length, length) or np.triu(wanted, k=1).any():
        raise ValueError(
            f"detect_head: the pattern has shape {list(wanted.shape)}, expected [{length}, {length}], lower triangular"
        )
    if cache is None:
        _, cache = model.run_with_cache(tokens, "pattern", return_type=None)
    config = model.config
    pairs = _pairs(heads, config.n_layers, config.n_heads)
    scores = np.full((config.n_layers, config.n_heads), -1, dtype=np.float32)
    for layer, head in pairs:
        pattern = cache["pattern", layer].reshape(-1, length, length)[head].astype(np.float64)
        counted = np.ones_like(pattern)
        if exclude_bos:
            counted[:, 0] = 0
        if exclude_current_token:
            np.fill_diagonal(counted, 0)
        if error_measure == "mul":
            scores[layer, head] = (pattern * wanted * counted).sum() / (pattern * counted).sum()
        else:
            scores[layer, head] = 1 - (np.abs(pattern - wanted) * counted).sum() / length
    return scores


def _pairs(
    heads: Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None, n_layers: int, n_heads: int
) -> list[tuple[int, int]]:
    if heads is None:
        return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, some in heads.items() for head in some]
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"detect_head: there is no head {head} of layer {layer}: it is {n_layers} by {n_heads}")
    return list(heads)
