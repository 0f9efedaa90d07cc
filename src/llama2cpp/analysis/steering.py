"""Directions that steer a text, from contrasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked
from ..common.token_ids import Prompt, check_texts, to_ids
from ..inside.hooks import any_hooks
from ..inside.places import Names, is_pattern, name_of, places_to_keep

if TYPE_CHECKING:
    from ..model import Model

_TOGETHER = 32  # prompts of a pass


@checked
def steering_vectors(
    model: Model,
    positive: Iterable[Prompt],
    negative: Iterable[Prompt],
    names: Names = "resid_post",
    *,
    position: int | None = -1,
    special: bool | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Take directions from contrasts: the mean activation of some prompts less that of others.

    Parameters
    ----------
    model : Model
    positive, negative : iterable of str, bytes or sequences of int
        Prompts of one kind, and of the other; pairs that differ in what is to be steered give the clearest direction.
    names : str, sequence of str, or predicate
        Which activations, as in `Model.run_with_cache`; not patterns.
    position : int, optional
        Which token of each prompt, the last if not given; None for the mean over its tokens.
    special : bool, optional
        Whether texts that spell control tokens get them, as in `generate`.

    Returns
    -------
    dict of str to numpy.ndarray
        float32 [...] by full name, for `interventions.add`. Means are in double precision, each prompt counts once.

    Raises
    ------
    TypeError
        For one prompt in the place of several.
    ValueError
        If there are no prompts, or a name is of a pattern.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis, interventions
    >>> model = llama2cpp.load("storyteller")
    >>> vectors = analysis.steering_vectors(model, ["Tom was happy", "She was glad"], ["Tom was sad", "She was cross"])
    >>> steer = interventions.add("resid_post", 4 * vectors["blocks.2.hook_resid_post"], layer=2)
    >>> with model.hooks([steer]):
    ...     text = model.generate("Once upon a time", max_tokens=8, temperature=0)
    """
    patterns = [name_of(place, model.config) for place in places_to_keep(names, model.config)]
    patterns = [name for name in patterns if is_pattern(name)]
    if patterns:
        raise ValueError(f"steering_vectors: {patterns[0]} has other sizes for each prompt")
    # Together they have the same bits; but hooks that are on are to see each prompt alone.
    at_once = 1 if any_hooks(model._core) else _TOGETHER
    sides = []
    for name, prompts in (("positive", positive), ("negative", negative)):
        check_texts(prompts, name, "steering_vectors")
        sums: dict[str, NDArray[Any]] = {}
        ids = [to_ids(model, prompt, function="steering_vectors", special=special) for prompt in prompts]
        if not ids:
            raise ValueError(f"steering_vectors: {name} is empty, expected several prompts")
        where = None if position is None else [position]
        for first in range(0, len(ids), at_once):
            _, found = model._run(
                "steering_vectors", ids[first : first + at_once], names, positions=where, return_type=None
            )
            for cache in found if isinstance(found, list) else [found]:
                for key, array in cache.items():
                    for own in array:
                        sums[key] = sums.get(key, 0.0) + own.mean(axis=0, dtype=np.float64)
        sides.append({key: total / len(ids) for key, total in sums.items()})
    return {key: (sides[0][key] - sides[1][key]).astype(np.float32) for key in sides[0]}
