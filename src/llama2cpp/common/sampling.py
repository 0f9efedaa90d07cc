"""How tokens are drawn and where a text ends: the arguments that `generate`, `chat` and their sisters share."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypedDict

from .._core import Sampler
from .arguments import naming, seed_message

Stop: TypeAlias = str | Sequence[str | None] | None

_SEEDS = 2**64


class SamplingOptions(TypedDict, total=False):
    """`Sampling` as keyword arguments, for type checkers."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: Stop


@dataclass(frozen=True)
class Sampling:
    """What a caller asked for; `llama2cpp.generate` says what each means.

    Examples
    --------
    >>> from llama2cpp.common.sampling import Sampling
    >>> len(Sampling(temperature=0, stop=[".", None]).samplers(3)), Sampling(stop=".").stops
    (3, ('.',))
    """

    max_tokens: int | None = 512
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Stop = ()

    def samplers(self, n: int) -> list[Sampler]:
        """Make a sampler for each of n samples, the i-th with the seed + i; without a seed, with a random one.

        Parameters
        ----------
        n : int
            How many.

        Returns
        -------
        list of Sampler

        Raises
        ------
        ValueError
            For a number that cannot be.

        Examples
        --------
        >>> from llama2cpp.common.sampling import Sampling
        >>> [sampler.seed for sampler in Sampling(seed=2**64 - 1).samplers(2)]
        [18446744073709551615, 0]
        """
        seed = int.from_bytes(os.urandom(8), "little") if self.seed is None else self.seed
        seed = operator.index(seed)  # NumPy's integers would overflow below
        if not 0 <= seed < _SEEDS:
            raise ValueError(seed_message(seed))
        return [
            Sampler(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                seed=(seed + i) % _SEEDS,
                repetition_penalty=self.repetition_penalty,
            )
            for i in range(n)
        ]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; None, alone or among them, is none."""
        given = self.stop if isinstance(self.stop, Iterable) and not isinstance(self.stop, str) else [self.stop]
        stops = tuple(one for one in given if one is not None)
        for one in stops:
            if not isinstance(one, str):
                raise TypeError(f"stop is {one!r} ({type(one).__name__}), expected str, a sequence of str, or None")
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        return stops

    def checked(self, function: str) -> Sampling:
        """Refuse what cannot be, before anything is computed.

        Parameters
        ----------
        function : str
            What was called, for the message.

        Returns
        -------
        Sampling
            The same, with its stop strings in a tuple.

        Raises
        ------
        ValueError, TypeError
            For an argument that cannot be.

        Examples
        --------
        >>> from llama2cpp.common.sampling import Sampling
        >>> try:
        ...     Sampling(max_tokens=-1).checked("generate")
        ... except ValueError as error:
        ...     print(error)
        generate: max_tokens must not be negative, got -1
        """
        with naming(function):
            if self.max_tokens is not None and self.max_tokens < 0:
                raise ValueError(f"max_tokens must not be negative, got {self.max_tokens}")
            self.samplers(1)
            return replace(self, stop=self.stops)
