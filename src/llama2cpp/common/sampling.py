"""How tokens are drawn and where a text ends: the arguments that `generate`, `chat` and their sisters share."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import Sampler, Tokenizer, token_ids
from .arguments import integer, naming, seed_message
from .grammar import JsonSchema, grammar_text

Stop: TypeAlias = str | Sequence[str | None] | None

# Gets the ids so far and the model's logits [vocab_size], which it edits, or gives others.
LogitsProcessor: TypeAlias = Callable[[list[int], NDArray[np.float32]], Any]

_SEEDS = 2**64


class DraftModel(Protocol):
    """A model that proposes tokens for another: a `Model`, of which this much is needed."""

    @property
    def _core(self) -> _core.Model: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """What its ids mean."""


class LoadedAdapter(Protocol):
    """What is computed beside a model's weights: an `Adapter`, of which this much is needed."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What it is beside."""


def _is_model(given: object) -> bool:
    """Whether it can be a draft; sessions and others have a core, too, and no tokenizer."""
    return hasattr(type(given), "_core") and hasattr(type(given), "tokenizer")


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
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    min_tokens: int
    stop_ids: int | Sequence[int] | None
    logits_processor: LogitsProcessor | None
    json_schema: JsonSchema | None
    grammar: str | None
    regex: str | None
    speculate: str | DraftModel | None
    adapter: LoadedAdapter | None


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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    min_tokens: int = 0
    stop_ids: int | Sequence[int] | None = ()
    logits_processor: LogitsProcessor | None = None
    json_schema: JsonSchema | None = None
    grammar: str | None = None
    regex: str | None = None
    speculate: str | DraftModel | None = None
    adapter: LoadedAdapter | None = None

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
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=self.logit_bias,
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

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text beside those of the model; `stop_ids` in a tuple."""
        given: Any = self.stop_ids
        if given is None:
            return ()
        one = np.ndim(given) == 0 and not isinstance(given, str | bytes)
        return tuple(token_ids([given] if one else given))

    @property
    def grammar_text(self) -> str | None:
        """The schema, grammar or expression as `common.grammar` has it; None without one. An error if it is wrong."""
        return grammar_text(self.json_schema, self.grammar, self.regex)

    def _check_ids(self, vocab_size: int) -> None:
        """Refuse ids that a model does not have."""
        for name, ids in (("logit_bias", self.logit_bias or ()), ("stop_ids", self.end_ids)):
            for id in ids:
                if not 0 <= id < vocab_size:
                    raise ValueError(f"{name} has the id {id}, expected 0 to {vocab_size - 1}")

    def checked(self, function: str, vocab_size: int | None = None) -> Sampling:
        """Refuse what cannot be, before anything is computed.

        Parameters
        ----------
        function : str
            What was called, for the message.
        vocab_size : int, optional
            The model's, which ids have to be below.

        Returns
        -------
        Sampling
            The same, with its stop strings and ids in tuples.

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
            if self.min_tokens < 0:
                raise ValueError(f"min_tokens must not be negative, got {self.min_tokens}")
            if self.max_tokens is not None and self.min_tokens > self.max_tokens:
                raise ValueError(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}")
            if self.logits_processor is not None and not callable(self.logits_processor):
                raise TypeError(
                    f"logits_processor is {self.logits_processor!r:.80} ({type(self.logits_processor).__name__}), "
                    "expected a callable or None"
                )
            given = self.speculate
            if isinstance(given, str) and given != "prompt":
                raise ValueError(f"speculate is {given!r:.80}, expected 'prompt', a Model or None")
            if given is not None and not isinstance(given, str) and not _is_model(given):
                raise TypeError(
                    f"speculate is {given!r:.80} ({type(given).__name__}), expected 'prompt', a Model or None"
                )
            if self.adapter is not None and not isinstance(getattr(self.adapter, "_core", None), _core.Adapter):
                raise TypeError(
                    f"adapter is {self.adapter!r:.80} ({type(self.adapter).__name__}), expected an Adapter or None: "
                    "model.load_adapter(path) makes one"
                )
            for id in self.logit_bias or ():
                if integer(id, "an id of logit_bias", function) < 0:
                    least = "0 or more" if vocab_size is None else f"0 to {vocab_size - 1}"
                    raise ValueError(f"logit_bias has the id {id}, expected {least}")
            self.samplers(1)
            if vocab_size is not None:
                self._check_ids(vocab_size)
            self.grammar_text  # noqa: B018  # an error if it is wrong
            return replace(self, stop=self.stops, stop_ids=self.end_ids)
