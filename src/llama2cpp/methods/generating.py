"""Methods of `Model` that continue texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from .. import generation
from ..common.arguments import spelled_out
from ..common.sampling import Sampling

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..common.sampling import SamplingOptions
    from ..decoding import Completion, TextStream
    from ..generation import Prompt
    from ..model import Model


@overload
def generate(
    self: Model,
    prompt: Prompt = ...,
    *,
    n: None = ...,
    echo: bool = ...,
    special: bool | None = ...,
    logprobs: None = ...,
    **options: Unpack[SamplingOptions],
) -> str: ...
@overload
def generate(
    self: Model,
    prompt: Prompt = ...,
    *,
    n: int,
    echo: bool = ...,
    special: bool | None = ...,
    logprobs: None = ...,
    **options: Unpack[SamplingOptions],
) -> list[str]: ...
@overload
def generate(
    self: Model,
    prompt: Prompt | Sequence[Prompt] = ...,
    *,
    n: int | None = ...,
    echo: bool = ...,
    special: bool | None = ...,
    logprobs: int | None = ...,
    **options: Unpack[SamplingOptions],
) -> Any: ...  # noqa: ANN401
@spelled_out(Sampling)
def generate(
    self: Model,
    prompt: Prompt | Sequence[Prompt] = "",
    *,
    n: int | None = None,
    echo: bool = False,
    special: bool | None = None,
    logprobs: int | None = None,
    **options: Unpack[SamplingOptions],
) -> Any:
    """Continue a prompt with this model, or several at once.

    Parameters, result and errors are those of `llama2cpp.generate`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.generate("Once upon a time", max_tokens=12, temperature=0)
    ', in a green village, there lived a little boy named'
    """
    return generation.generate(prompt, model=self, n=n, echo=echo, special=special, logprobs=logprobs, **options)


@spelled_out(Sampling)
def complete(
    self: Model,
    prompt: Prompt | Sequence[Prompt] = "",
    *,
    n: int | None = None,
    echo: bool = False,
    special: bool | None = None,
    logprobs: int = 0,
    **options: Unpack[SamplingOptions],
) -> list[Completion]:
    """Continue a prompt with this model, or several at once, and say what is known about each token.

    Parameters, result and errors are those of `llama2cpp.complete`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> [completion] = model.complete("Once upon a", max_tokens=1, temperature=0)
    >>> completion.text, round(completion.logprobs[0], 2) + 0
    (' time', 0.0)
    """
    return generation.complete(prompt, model=self, n=n, echo=echo, special=special, logprobs=logprobs, **options)


@spelled_out(Sampling)
def stream(
    self: Model,
    prompt: Prompt = "",
    *,
    echo: bool = False,
    special: bool | None = None,
    logprobs: int | None = None,
    **options: Unpack[SamplingOptions],
) -> TextStream:
    """Continue a prompt with this model, and give the text as it comes.

    Parameters, result and errors are those of `llama2cpp.stream`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> list(model.stream("Once upon a", max_tokens=2, temperature=0))
    [' time', ',']
    """
    return generation.stream(prompt, model=self, echo=echo, special=special, logprobs=logprobs, **options)
