"""Analysis of activations: where two models part, and directions that steer a text.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import analysis
>>> model = llama2cpp.load("storyteller")
>>> exact = llama2cpp.load("storyteller", precision="exact", backend="cpu")
>>> found = analysis.diff(exact, model, "Once upon a time")
>>> found.points[0].name, found.points[0].largest
('hook_embed', 0.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .common.arguments import checked
from .common.probabilities import kl_divergence, log_softmax
from .common.token_ids import Prompt, to_ids
from .inside.hooks import any_hooks
from .inside.html_views import table
from .inside.places import Names, is_pattern, name_of, places_to_keep

if TYPE_CHECKING:
    from .model import Model

_TOGETHER = 32  # prompts of a pass

__all__ = ["Difference", "PointDifference", "diff", "steering_vectors"]


class PointDifference(NamedTuple):
    """How an activation of one model differs from that of another.

    Attributes
    ----------
    name : str
        TransformerLens's.
    largest : float
        The largest absolute difference of two numbers.
    relative : float
        The root of the sum of squared differences, by that of the first model's squares.
    cosine : float
        Of the angle between the two activations; 1 where both are zero.

    Examples
    --------
    >>> from llama2cpp.analysis import PointDifference
    >>> PointDifference("hook_embed", 0.0, 0.0, 1.0).cosine
    1.0
    """

    name: str
    largest: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Difference:
    """What `diff` has found; in a notebook a table.

    Attributes
    ----------
    points : list of PointDifference
        In the order of the forward pass.
    kl : numpy.ndarray
        float64 [T]: the Kullback-Leibler divergence, in nats, from the first model's predictions to the second's.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> analysis.diff(model, model, "Once upon a time").first is None
    True
    """

    points: list[PointDifference]
    kl: NDArray[np.float64]

    @property
    def first(self) -> PointDifference | None:
        """The first point at which a number differs; None if none does."""
        return next((point for point in self.points if point.largest > 0), None)

    def __repr__(self) -> str:
        first = self.first
        where = "no difference" if first is None else f"from {first.name} on"
        return f"<llama2cpp.analysis.Difference: {where}, KL {self.kl.mean():.3g} of {len(self.kl)} tokens>"

    def _repr_html_(self) -> str:
        rows = [(p.name, f"{p.largest:.3g}", f"{p.relative:.3g}", f"{p.cosine:.6f}") for p in self.points]
        return f"<p>KL {self.kl.mean():.4g}</p>{table(('activation', 'largest', 'relative', 'cosine'), rows)}"


@checked
def diff(
    model_a: Model,
    model_b: Model,
    text: Prompt,
    names_filter: Names | None = None,
    *,
    special: bool | None = None,
) -> Difference:
    """Run two models on the same tokens, and say where and how far their activations part.

    Such as a quantized model and its original, or one model with two kinds of arithmetic.

    Parameters
    ----------
    model_a, model_b : Model
        Of the same sizes.
    text : str, bytes or sequence of int
        A text is tokenized by the first model.
    names_filter : str, sequence of str, or predicate, optional
        Which activations, as in `Model.run_with_cache`.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.

    Returns
    -------
    Difference

    Raises
    ------
    ValueError
        If an activation or the vocabulary has another size in the other model.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> values = model.weights["blocks.2.attn.W_V"].copy()
    >>> values[0] = 0
    >>> other = model.with_weights({"blocks.2.attn.W_V": values})
    >>> analysis.diff(model, other, "Once upon a time", ["v", "z"]).first.name
    'blocks.2.attn.hook_v'
    """
    sizes = [model.config.vocab_size for model in (model_a, model_b)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"diff: the vocabularies have {sizes[0]} and {sizes[1]} tokens")
    ids = to_ids(model_a, text, function="diff", special=special)
    runs = [model._run("diff", ids, names_filter) for model in (model_a, model_b)]
    (logits_a, cache_a), (logits_b, cache_b) = runs
    names = list(cache_a)
    if names != list(cache_b) or any(cache_a[name].shape != cache_b[name].shape for name in names):
        raise ValueError("diff: the models have other activations, or of other sizes")
    a, b = (log_softmax(logits[0]) for logits in (logits_a, logits_b))
    return Difference([_difference(name, cache_a[name], cache_b[name]) for name in names], kl_divergence(a, b))


def _difference(name: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> PointDifference:
    one, two = (np.where(np.isneginf(x), 0, x).astype(np.float64).ravel() for x in (a, b))  # scores that are masked
    error = one - two
    lengths = [float(np.sqrt((x * x).sum())) for x in (one, two, error)]
    both = lengths[0] * lengths[1]
    cosine = float((one * two).sum()) / both if both > 0 else float(lengths[0] == lengths[1])
    relative = lengths[2] / lengths[0] if lengths[0] > 0 else float(lengths[2] > 0)
    return PointDifference(name, float(np.abs(error).max(initial=0)), relative, cosine)


@checked
def steering_vectors(
    model: Model,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    names: Names = "resid_post",
    *,
    position: int | None = -1,
    special: bool | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Take directions from contrasts: the mean activation of some prompts less that of others.

    Parameters
    ----------
    model : Model
    positive, negative : sequence of str, bytes or sequences of int
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
        if isinstance(prompts, str | bytes) or len(prompts) == 0:
            raise ValueError(f"steering_vectors: {name} is {prompts!r}, expected several prompts")
        sums: dict[str, NDArray[Any]] = {}
        ids = [to_ids(model, prompt, function="steering_vectors", special=special) for prompt in prompts]
        where = None if position is None else [position]
        for first in range(0, len(ids), at_once):
            _, found = model._run(
                "steering_vectors", ids[first : first + at_once], names, positions=where, return_type=None
            )
            for cache in found if isinstance(found, list) else [found]:
                for key, array in cache.items():
                    for own in array:
                        sums[key] = sums.get(key, 0.0) + own.mean(axis=0, dtype=np.float64)
        sides.append({key: total / len(prompts) for key, total in sums.items()})
    return {key: (sides[0][key] - sides[1][key]).astype(np.float32) for key in sides[0]}
