"""Texts and token ids as they are passed to a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from .. import _core
from .._core import Tokenizer

# Text, or ids: a sequence of integers, an array, or a tensor of another library's.
Prompt: TypeAlias = str | bytes | Sequence[int] | NDArray[Any]


class HasTokenizer(Protocol):
    """A `Model`, as far as texts are concerned.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.token_ids import HasTokenizer
    >>> model: HasTokenizer = llama2cpp.load()
    """

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Model`."""


def to_ids(model: HasTokenizer, text: Prompt | Iterable[int], *, begin: bool = True) -> list[int]:
    """Make ids of what a call was given.

    Parameters
    ----------
    model : Model
        Whose tokenizer a text needs.
    text : str, bytes, sequence or array of int
        Ids stay as they are.
    begin : bool
        Whether a text is the beginning: then BOS comes before it, where the tokenizer's file wants that.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If ids are no integers, or the model has no tokenizer for a text.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.token_ids import to_ids
    >>> model = llama2cpp.load()
    >>> to_ids(model, "Once")[0] == model.tokenizer.bos_id, to_ids(model, (1, 5))
    (True, [1, 5])
    """
    if not isinstance(text, str | bytes):
        return _core.token_ids(text)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, bos=begin, eos=False)
    # A model has to begin with something, even one that knows no BOS before a text.
    return [tokenizer.bos_id] if not ids and begin and tokenizer.bos_id is not None else ids
