"""Methods of `Model` that measure: how a text surprises it, and what vectors of its residual stream say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..adapters import Adapter, check_adapter
from ..common.arguments import checked, float_array
from ..common.probabilities import log_softmax
from ..common.token_ids import to_ids

if TYPE_CHECKING:
    from ..common.token_ids import Prompt
    from ..model import Model

_PERPLEXITY_CHUNK = 128  # tokens whose logits are in memory at a time


@checked
def perplexity(self: Model, text: Prompt, special: bool | None = None, *, adapter: Adapter | None = None) -> float:
    """How surprised the model is by a text: exp of the mean of -log p over its tokens.

    A text longer than the context is cut into pieces that fill it, each begun with the first token again
    (for a string that is BOS). The first token is given and not counted.

    Parameters
    ----------
    text : str, bytes or sequence of int
        Text, or ids that are taken as they are.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in this call.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If there are not at least two tokens, text is given and the model has no tokenizer, or the adapter is another
        model's.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> story = model.perplexity("Once upon a time, there was a little girl named Lily.")
    >>> noise = model.perplexity("girl Lily named upon time a little was, a. there Once")
    >>> story < 3, noise > 100
    (True, True)
    """
    check_adapter("perplexity", adapter, self)
    ids = to_ids(self, text, function="perplexity", special=special)
    if len(ids) < 2:
        raise ValueError(f"perplexity needs at least 2 tokens, got {len(ids)}")
    wrong = next((id for id in ids if not 0 <= id < self.config.vocab_size), None)
    if wrong is not None:
        raise ValueError(f"perplexity: a token is {wrong}, expected 0 to {self.config.vocab_size - 1}")
    session = self.session(adapter=adapter)
    if session.context < 2:
        raise ValueError("perplexity needs a context of at least 2 tokens, the model's is 1")
    total = 0.0
    for begin in range(1, len(ids), session.context - 1):
        session.rewind(0)
        window = ids[:1] + ids[begin : begin + session.context - 1]
        for at in range(0, len(window) - 1, _PERPLEXITY_CHUNK):
            targets = window[at + 1 : at + 1 + _PERPLEXITY_CHUNK]
            logits = session.prefill(window[at : at + len(targets)], all_logits=True)  # [T, vocab_size]
            total -= float(log_softmax(logits)[np.arange(len(targets)), targets].sum())
    return float(np.exp(total / (len(ids) - 1)))


@checked
def unembed(self: Model, x: ArrayLike, apply_ln: bool = False) -> NDArray[np.float32]:
    """Turn vectors of the residual stream into logits: what the model would say if it stopped there.

    Runs on the packed weights, in the same arithmetic as a forward pass, so that the last residual stream with
    ``apply_ln=True`` gives the bits of the model's own logits.

    Parameters
    ----------
    x : array [..., dim]
        Residual stream vectors; without `apply_ln` ones that the last norm has been applied to.
    apply_ln : bool
        Apply the last norm, with its gain, first.

    Returns
    -------
    numpy.ndarray
        float32 [..., vocab_size].

    Raises
    ------
    ValueError
        If the last axis of `x` is not dim long, or the model is closed.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.unembed([[0.0] * 192, [1.0] * 192]).shape
    (2, 1536)
    """
    return self._core.unembed(float_array(x), apply_ln)
