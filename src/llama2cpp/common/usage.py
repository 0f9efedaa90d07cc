"""What a text took, in tokens and passes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a text took, in tokens and passes.

    Attributes
    ----------
    prompt_tokens : int
        Those of the prompt.
    reused_tokens : int
        How many of them were not computed again, because an earlier request began with them too.
    completion_tokens : int
        Those that were sampled.
    passes : int
        Passes over the weights since the prompt was read. Without `speculate` there is one for each token that another
        follows.
    proposed_tokens : int
        How many tokens `speculate` proposed.
    accepted_tokens : int
        How many of those were what was sampled, so that the token after each needed no pass of its own.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> [completion] = model.complete("Once upon a time", max_tokens=3, temperature=0)
    >>> completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.passes
    (5, 3, 2)
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    passes: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
