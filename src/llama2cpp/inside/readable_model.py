"""What caches and lenses ask of a model, so that their modules lie below `model.py` and need not import it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core import Config, Tokenizer
from .html_views import TokenList
from .places import Names
from .weights import Weights


class ReadableModel(Protocol):
    """A `Model`, as far as arrays of its activations are read with it: sizes, weights and the texts of tokens.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.readable_model import ReadableModel
    >>> def n_weights(model: ReadableModel) -> int:
    ...     return sum(array.size for array in model.weights.values())
    >>> n_weights(llama2cpp.load("storyteller"))
    2263104
    """

    @property
    def config(self) -> Config:
        """See `Model`."""

    @property
    def weights(self) -> Weights:
        """See `Model`."""

    @property
    def activation_dtype(self) -> str:
        """See `Model`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Model`."""

    @property
    def has_tokenizer(self) -> bool:
        """See `Model`."""

    def to_single_token(self, text: str) -> int:
        """See `Model`."""

    def to_str_tokens(self, text: str | bytes | Sequence[int]) -> TokenList:
        """See `Model`."""

    def tokens_to_residual_directions(self, tokens: int | str | Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
        """See `Model`."""

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> NDArray[np.float32]:
        """See `Model`."""

    def _gradients(
        self,
        batch: Sequence[Sequence[int]],
        dlogits: ArrayLike,
        names_filter: Names,
        positions: Sequence[int] | None,
        stop_grad: Names,
        held: Mapping[str, NDArray[np.float32]],
        changed: Sequence[str] = (),
    ) -> dict[str, NDArray[np.float32]]: ...  # gradients.py's

    def unembed(self, x: ArrayLike, apply_ln: bool = False) -> NDArray[np.float32]:
        """See `Model`."""
