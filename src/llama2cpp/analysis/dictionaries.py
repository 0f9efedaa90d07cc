"""What a sparse autoencoder or transcoder leaves of a model's predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..common.arguments import checked
from ..common.token_ids import Prompt, check_texts, to_ids
from ..inside.hooks import ActiveHooks
from ..interventions import Intervention, Replacement, zero

if TYPE_CHECKING:
    from ..model import Model

_TOGETHER = 32  # prompts of a pass
_PASS_TOKENS = 512  # whose logits are in memory at a time


class LossRecovered(NamedTuple):
    """What `loss_recovered` has found.

    Attributes
    ----------
    recovered : float
        (ablated - replaced) / (ablated - clean): 1 where the replacement does no harm, 0 where it is no better than
        the ablation. NaN where the ablation changes nothing.
    clean, replaced, ablated : float
        Mean -log p of each token but the first of each text, in nats.
    tokens : int
        How many these were.

    Examples
    --------
    >>> from llama2cpp.analysis import LossRecovered
    >>> LossRecovered._fields
    ('recovered', 'clean', 'replaced', 'ablated', 'tokens')
    """

    recovered: float
    clean: float
    replaced: float
    ablated: float
    tokens: int


@checked
def loss_recovered(
    model: Model,
    texts: Iterable[Prompt],
    replacement: Replacement,
    ablation: Intervention | None = None,
    *,
    special: bool | None = None,
) -> LossRecovered:
    """Measure how much of the model's predictions a sparse autoencoder or transcoder keeps.

    Three runs of each text: the model's own, one with the replacement, and one with the activation taken away. Hooks
    that are on act in all three.

    Parameters
    ----------
    model : Model
    texts : iterable of str, bytes or sequences of int
        Each with at least two tokens.
    replacement : Replacement
        What `interventions.replace_with` makes.
    ablation : Intervention, optional
        What to compare with; if not given, zeros in the place of the activation. The mean over some texts is the other
        usual one: ``interventions.mean(name, cache)``.
    special : bool, optional
        Whether texts that spell control tokens get them, as in `generate`.

    Returns
    -------
    LossRecovered

    Raises
    ------
    TypeError
        For one text in the place of several.
    ValueError
        If there are no texts, one has fewer than two tokens, or the replacement does not fit the model.

    Examples
    --------
    >>> import numpy
    >>> import llama2cpp
    >>> from llama2cpp import analysis, interventions
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> eye = numpy.eye(192)  # a dictionary that keeps all there is
    >>> both = numpy.hstack([eye, -eye])
    >>> coder = interventions.replace_with("resid_pre2", both, None, both.T, None)
    >>> found = analysis.loss_recovered(model, ["Once upon a time, there was a dog."], coder)
    >>> round(found.recovered, 3), found.tokens
    (1.0, 11)
    """
    check_texts(texts, "texts", "loss_recovered")
    if ablation is None:
        ablation = zero(replacement.place(model.config))
    ids = [to_ids(model, text, function="loss_recovered", special=special) for text in texts]
    if not ids:
        raise ValueError("loss_recovered: there are no texts")
    short = next((i for i, own in enumerate(ids) if len(own) < 2), None)
    if short is not None:
        raise ValueError(f"loss_recovered: text {short} has {len(ids[short])} tokens, expected at least 2")
    count = sum(len(own) - 1 for own in ids)
    losses = []
    for hooks in ([], [replacement], [ablation]):
        total = 0.0
        with ActiveHooks(model._core, None, hooks):
            for batch in _batches(ids):
                found, _ = model._run("loss_recovered", batch, [], return_type="loss", loss_per_token=True)
                total += sum(
                    float(own.sum(dtype=np.float64)) for own in (found if isinstance(found, list) else [found])
                )
        losses.append(total / count)
    clean, replaced, ablated = losses
    recovered = (ablated - replaced) / (ablated - clean) if ablated != clean else float("nan")
    return LossRecovered(recovered, clean, replaced, ablated, count)


def _batches(texts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Take texts together, of so many tokens in all that their logits fit."""
    batch: list[list[int]] = []
    for ids in texts:
        if batch and (len(batch) == _TOGETHER or sum(map(len, batch)) + len(ids) > _PASS_TOKENS):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch
