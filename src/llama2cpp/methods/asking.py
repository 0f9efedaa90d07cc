"""Methods of `Model` that run on its engine, beside whatever else that has to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter
from ..common.arguments import checked, spelled_out
from ..common.piece import Piece
from ..common.sampling import Sampling
from ..serving import measures
from ..serving.engine import engine_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..common.sampling import SamplingOptions
    from ..generation import Prompt
    from ..model import Model
    from ..serving.requests import Request


@checked
@spelled_out(Sampling)
def astream(
    self: Model,
    prompt: Prompt = "",
    *,
    special: bool | None = None,
    logprobs: int | None = None,
    **options: Unpack[SamplingOptions],
) -> AsyncIterator[Piece]:
    """Continue a prompt, and give the text as it comes to ``async for``, beside other tasks of the loop.

    Texts of several tasks share their passes, and each is what `generate` gives with its seed. Leaving the loop ends
    the text.

    Parameters
    ----------
    prompt, special, max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop
        As in `generate`.
    logprobs : int, optional
        Give the log probability of each token, and of this many likeliest alternatives, as attributes of the pieces.

    Returns
    -------
    async iterator of Piece
        Each is a str with the ids that end in it (``tokens``), and ``logprobs`` and ``top_logprobs``.

    Raises
    ------
    ValueError, TypeError, ContextFullError
        As in `generate`, at the call.

    Examples
    --------
    >>> import asyncio
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> async def tell(prompt: str) -> str:
    ...     return "".join([piece async for piece in model.astream(prompt, max_tokens=4, temperature=0)])
    >>> async def both() -> list[str]:
    ...     return await asyncio.gather(tell("Once upon a"), tell("The dog"))
    >>> asyncio.run(both())
    [' time, in a', ', and a little']
    """
    return _pieces(engine_of(self)._submit("astream", prompt, {**options}, special, logprobs))


async def _pieces(request: Request) -> AsyncIterator[Piece]:
    try:
        async for piece in request:
            yield piece
    finally:
        request.cancel()


@checked
def score(
    self: Model,
    context: Prompt,
    continuations: Prompt | Sequence[Prompt],
    special: bool | None = None,
    adapter: Adapter | None = None,
) -> Any:  # noqa: ANN401
    """Say how likely continuations of a context are.

    What they share is computed once. A text is encoded together with its context, in which a space belongs to the word
    behind it; ids are taken as they are.

    Parameters
    ----------
    context : str, bytes or sequence of int
        What comes before. A text gets BOS before it where the model is used to one.
    continuations : str, bytes, sequence of int, or a sequence of those
        One, or several.
    special : bool, optional
        Whether texts that spell control tokens get them, as in `generate`.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in this call.

    Returns
    -------
    Score or list of Score
        For several a list.

    Raises
    ------
    ValueError
        If the context or a continuation has no tokens.
    ContextFullError
        If both do not fit in the context.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> scores = model.score("Once upon a", [" time", " dog", " big dog"])
    >>> [len(score.tokens) for score in scores], max(scores, key=lambda score: score.logprob) is scores[0]
    ([1, 2, 3], True)
    """
    return measures.score(engine_of(self), context, continuations, special, adapter)


@checked
def embed(
    self: Model,
    texts: Prompt | Sequence[Prompt],
    pooling: str = "mean",
    *,
    normalize: bool = False,
    special: bool | None = None,
    adapter: Adapter | None = None,
) -> NDArray[np.float32]:
    """Turn texts into vectors: the last hidden states, after the last norm, of their tokens.

    Parameters
    ----------
    texts : str, bytes, sequence of int, or a sequence of those
        One, or several of any lengths.
    pooling : str
        "mean" of all tokens, BOS included where there is one, or "last": the last token's.
    normalize : bool
        Give each vector the length 1.
    special : bool, optional
        Whether texts that spell control tokens get them, as in `generate`.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in this call.

    Returns
    -------
    numpy.ndarray
        float32 [dim], or [texts, dim] for several; [0, dim] for ``[]``.

    Raises
    ------
    ValueError
        For another pooling, or a text without tokens.
    ContextFullError
        If a text does not fit in the context.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.embed(["The dog ran.", "A cat."]).shape, model.embed("The dog ran.", "last").shape
    ((2, 192), (192,))
    """
    return measures.embed(engine_of(self), texts, pooling, normalize, special, adapter)
