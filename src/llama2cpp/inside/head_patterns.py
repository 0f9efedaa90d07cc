"""TransformerLens's ``detect_head`` on a model: what `head_detection.py` says of the patterns of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked
from .head_detection import closeness, wanted_pattern

if TYPE_CHECKING:
    from ..model import Model
    from .cache import ActivationCache

Array: TypeAlias = NDArray[np.float32]


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
        A kind of head: "previous_token_head", "duplicate_token_head" or "induction_head"; or a
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
    if length < 2:
        raise ValueError("detect_head: the text has one token, expected at least two")
    wanted = wanted_pattern(detection_pattern, tokens) if isinstance(detection_pattern, str) else detection_pattern
    if cache is None:
        _, cache = model.run_with_cache(tokens, "pattern", return_type=None)
    config = model.config
    scores = np.full((config.n_layers, config.n_heads), -1, dtype=np.float32)
    for layer, head in _pairs(heads, config.n_layers, config.n_heads):
        scores[layer, head] = closeness(
            cache["pattern", layer].reshape(-1, length, length)[head],
            wanted,
            exclude_bos=exclude_bos,
            exclude_current_token=exclude_current_token,
            measure=error_measure,
        )
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
