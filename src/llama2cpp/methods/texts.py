"""Methods of `Model` that turn texts into ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.arguments import checked, naming
from ..common.token_ids import Rows, batch_of, listed, to_ids
from ..inside.html_views import TokenList, token_list

if TYPE_CHECKING:
    from ..generation import Prompt
    from ..model import Model


@checked
def to_single_token(self: Model, text: str) -> int:
    """Find the one token that has this text.

    Parameters
    ----------
    text : str
        With its leading space, if it has one: " Lily" and "Lily" are different tokens.

    Returns
    -------
    int
        The id. Where several tokens have the text, the one that the tokenizer would use for it, or the last.

    Raises
    ------
    ValueError
        If no token has this text, or the model has no tokenizer.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.tokenizer.piece(model.to_single_token(" time"))
    b' time'
    """
    tokenizer = self.tokenizer
    with naming("to_single_token"):
        ids = tokenizer.encode(text, bos=False, eos=False)
    wanted = text.encode()
    if len(ids) == 1 and tokenizer.piece(ids[0]) == wanted:
        return ids[0]
    found = [id for id in range(tokenizer.vocab_size) if tokenizer.piece(id) == wanted]
    if not found:
        pieces = [tokenizer.piece(id).decode("utf-8", "replace") for id in ids]
        other = text[1:] if text.startswith(" ") else f" {text}"
        hint = (
            f"; {other!r} is one"
            if any(tokenizer.piece(id) == other.encode() for id in range(tokenizer.vocab_size))
            else ""
        )
        raise ValueError(f"{text!r} is not one token: the tokenizer makes {pieces} of it{hint}")
    return found[-1]


@overload
def to_str_tokens(
    self: Model, text: Prompt, prepend_bos: bool | None = ..., special: bool | None = ...
) -> TokenList: ...
@overload
def to_str_tokens(
    self: Model, text: list[str], prepend_bos: bool | None = ..., special: bool | None = ...
) -> list[TokenList]: ...
@checked
def to_str_tokens(
    self: Model, text: Prompt | list[str], prepend_bos: bool | None = None, special: bool | None = None
) -> Any:
    """Cut a text into tokens, and show the text of each.

    Parameters
    ----------
    text : str, bytes or sequence of int, or a sequence of texts
        Text, or ids; for several texts the result is a list with a list for each.
    prepend_bos, special
        As in `to_tokens`.

    Returns
    -------
    TokenList
        A list of str that also has the ids, and shows itself in colours in a notebook.

    Raises
    ------
    ValueError
        If the model has no tokenizer, or an id is outside the vocabulary.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.to_str_tokens("Once upon a time")
    ['<s>', ' Once', ' upon', ' a', ' time']
    """
    if isinstance(text, list) and text and isinstance(text[0], str | bytes):
        return [self.to_str_tokens(each, prepend_bos, special) for each in text]
    return token_list(self.tokenizer, _ids(self, "to_str_tokens", cast("Prompt", text), prepend_bos, special))


@checked
def to_tokens(
    self: Model, input: Prompt | Sequence[Prompt], prepend_bos: bool | None = None, special: bool | None = None
) -> NDArray[np.int64]:
    """Turn a text into ids, as TransformerLens does: a row for each text.

    Parameters
    ----------
    input : str, bytes, sequence of int, or a sequence of those
        Text; ids stay as they are. Several must have equally many tokens.
    prepend_bos : bool, optional
        Whether BOS comes before each text; if not given, where the model is used to one.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.

    Returns
    -------
    numpy.ndarray
        int64 [texts, T]; [1, T] for one text. `generate` and `run_with_cache` take it.

    Raises
    ------
    ValueError
        If the texts differ in length, or the model has no tokenizer, or no BOS where one is asked for.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.to_tokens("Once upon a time")
    array([[  1, 508, 509, 260, 420]])
    >>> model.to_tokens(["Once", "The"], prepend_bos=False).shape
    (2, 1)
    """
    rows = rows_of_ids(self, "to_tokens", input, prepend_bos, special)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(
            f"to_tokens: the texts have from {lengths[0]} to {lengths[-1]} tokens, and the rows of an array are of "
            "one length: take them one by one"
        )
    return np.array(rows, dtype=np.int64)


def rows_of_ids(
    model: Model,
    function: str,
    input: Any,  # noqa: ANN401
    prepend_bos: bool | None,
    special: bool | None,
) -> list[list[int]]:
    """Give the ids of each text, for the function that messages are to name."""
    given = listed(input)
    many = batch_of(given)
    return [_ids(model, function, text, prepend_bos, special) for text in ([given] if many is None else many)]


def to_string(self: Model, tokens: Rows) -> Any:  # noqa: ANN401
    """Turn ids into the text that they stand for, as TransformerLens does. BOS and other control tokens are in it.

    Parameters
    ----------
    tokens : int, sequence or array of int, or a sequence of those
        An id, ids [T], or rows of ids [B, T].

    Returns
    -------
    str or list of str
        The text; for rows of ids a list with the text of each.

    Raises
    ------
    ValueError
        If they are no ids, one is outside the vocabulary, or the model has no tokenizer.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.to_string(model.to_tokens("Once upon a time"))
    ['<s> Once upon a time']
    >>> model.to_string([508, 509])
    ' Once upon'
    """
    given = listed(tokens)
    rows = batch_of(given)
    if rows is not None:
        return [self.to_string(row) for row in rows]
    tokenizer = self.tokenizer
    with naming("to_string"):
        ids = [given] if np.ndim(given) == 0 and not isinstance(given, str | bytes) else given
        pieces = [tokenizer.piece(id) for id in _core.token_ids(ids)]
    marks = {tokenizer.piece(id) for id in (tokenizer.bos_id, *tokenizer.eos_ids) if id is not None}
    # llama2.c's tokenizers have line ends around the names of BOS and EOS.
    return b"".join(piece.strip() if piece in marks else piece for piece in pieces).decode("utf-8", "replace")


def _ids(model: Model, function: str, text: Prompt, prepend_bos: bool | None, special: bool | None) -> list[int]:
    """Give the ids of one text, with or without BOS, as is asked for."""
    ids = to_ids(model, text, function=function, begin=prepend_bos is not False, special=special)
    if prepend_bos and isinstance(text, str | bytes):
        bos = model.tokenizer.bos_id
        if bos is None:
            raise ValueError(f"{function}: the tokenizer has no BOS, so prepend_bos cannot be True")
        ids = ids if ids[:1] == [bos] else [bos, *ids]
    return ids
