"""Texts and token ids as they are passed to a model."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import Tokenizer
from .arguments import level_of_caller, naming

# Text, or ids: a sequence of integers, an array, or a tensor of another library's.
Prompt: TypeAlias = str | bytes | Sequence[int] | NDArray[Any]

Rows: TypeAlias = int | Sequence[Any] | NDArray[Any]  # an id, ids, or rows of ids

_told: weakref.WeakKeyDictionary[Tokenizer, bool] = weakref.WeakKeyDictionary()  # those whose warning has been given


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


def to_ids(
    model: HasTokenizer,
    text: Prompt | Iterable[int],
    *,
    function: str = "to_ids",
    begin: bool | None = True,
    special: bool | None = None,
) -> list[int]:
    """Make ids of what a call was given.

    Parameters
    ----------
    model : Model
        Whose tokenizer a text needs.
    text : str, bytes, sequence or array of int
        Ids stay as they are.
    function : str
        What was called, for messages.
    begin : bool
        Whether a text is the beginning: then BOS comes before it, where the tokenizer's file wants that.
    special : bool, optional
        Whether a text that spells control tokens gets them. By default it does not, and the first one that spells some
        is a UserWarning.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If ids are no integers, or the model has no tokenizer for a text.
    TypeError
        For bytes in another type than bytes.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.token_ids import to_ids
    >>> model = llama2cpp.load()
    >>> to_ids(model, "Once")[0] == model.tokenizer.bos_id, to_ids(model, (1, 5))
    (True, [1, 5])
    """
    if not isinstance(text, str | bytes):
        with naming(function):
            return _core.token_ids(text)
    check_prompt(text, function)
    tokenizer = model.tokenizer
    with naming(function):
        ids = tokenizer.encode(text, bos=bool(begin), eos=False, special=bool(special))
        if special is None:
            _warn_of_special(tokenizer, text, ids, bool(begin), function)
    # A model has to begin with something, even one that knows no BOS before a text.
    return [tokenizer.bos_id] if not ids and begin and tokenizer.bos_id is not None else ids


def check_texts(texts: object, name: str, function: str) -> None:
    """Refuse one text where several are expected: its characters would each be one.

    Parameters
    ----------
    texts : object
        What was passed.
    name, function : str
        Of what, for the message.

    Raises
    ------
    TypeError
        For one text, and for what is no iterable.

    Examples
    --------
    >>> from llama2cpp.common.token_ids import check_texts
    >>> try:
    ...     check_texts("Once", "texts", "extract")
    ... except TypeError as error:
    ...     print(error)
    extract: texts is of type str, expected several texts: a list or another iterable
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        found = f"of type {type(texts).__name__}"
        raise TypeError(f"{function}: {name} is {found}, expected several texts: a list or another iterable")


def check_prompt(prompt: object, function: str) -> None:
    r"""Refuse what no tokenizer can read, before there is one: half of a UTF-16 pair, which Python's str can hold.

    Parameters
    ----------
    prompt : object
        A prompt; all but a str is left alone.
    function : str
        What was called, for the message.

    Raises
    ------
    ValueError
        For a lone surrogate, with its place.

    Examples
    --------
    >>> from llama2cpp.common.token_ids import check_prompt
    >>> try:
    ...     check_prompt("Once \ud83d", "generate")
    ... except ValueError as error:
    ...     print(error)
    generate: text has the lone surrogate U+D83D at character 5, which stands for no character and has no tokens
    """
    if isinstance(prompt, str):
        with naming(function):
            _core.check_text(prompt)


def several(given: Any) -> list[Any] | None:  # noqa: ANN401
    """Give the prompts of a list of prompts; None for one prompt.

    Parameters
    ----------
    given : object
        A prompt, or an iterable of prompts that is no array.

    Returns
    -------
    list or None

    Examples
    --------
    >>> from llama2cpp.common.token_ids import several
    >>> several(["Once", [1, 5]]), several([1, 5]), several("Once")
    (['Once', [1, 5]], None, None)
    """
    if isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray | memoryview) and len(given) > 0:
        first = given[0]
        if isinstance(first, str | bytes) or np.iterable(first):
            return list(given)
    return None


def batch_of(given: Any) -> list[Any] | None:  # noqa: ANN401
    """Give the prompts of a list of prompts, or of an array [batch, T]; None for one prompt.

    Parameters
    ----------
    given : object
        A prompt, or several, as `listed` gives it.

    Returns
    -------
    list or None

    Examples
    --------
    >>> import numpy as np
    >>> from llama2cpp.common.token_ids import batch_of
    >>> batch_of(np.array([[1, 5], [1, 7]]))[1].tolist(), batch_of(np.array([1, 5])), batch_of(["Once"])
    ([1, 7], None, ['Once'])
    """
    rows = hasattr(given, "__array__") and len(getattr(given, "shape", ())) > 1
    return list(given) if rows else several(given)


def listed(given: Any) -> Any:  # noqa: ANN401
    """Make a list of an iterator, which can be read only once.

    Parameters
    ----------
    given : object
        A prompt, or several.

    Returns
    -------
    object
        The same for everything else.

    Examples
    --------
    >>> from llama2cpp.common.token_ids import listed
    >>> listed(iter([1, 5])), listed("Once")
    ([1, 5], 'Once')
    """
    if hasattr(given, "__len__") or hasattr(given, "__array__") or not hasattr(given, "__iter__"):
        return given
    return list(given)


def _warn_of_special(tokenizer: Tokenizer, text: str | bytes, ids: list[int], begin: bool, function: str) -> None:
    """Say once that a text spells control tokens and does not get them."""
    if tokenizer in _told:
        return
    meant = tokenizer.encode(text, bos=begin, eos=False, special=True)
    if meant == ids:
        return
    _told[tokenizer] = True
    spelled = tokenizer.encode(text, bos=False, eos=False, special=True)  # a BOS that is there is one of the text
    found = next((id for id in dict.fromkeys(spelled) if _is_control(tokenizer, id)), spelled[0])
    name = tokenizer.piece(found).decode(errors="replace").strip("\n")
    warnings.warn(
        f"{function}: the text spells {name!r}, which this tokenizer has as one token, and it was read as "
        f"{len(ids)} tokens of plain text, not as {len(meant)}: pass special=True (--special) to mean the token, "
        "or special=False (--no-special) if it is text",
        UserWarning,
        stacklevel=level_of_caller(),
    )


def _is_control(tokenizer: Tokenizer, id: int) -> bool:
    """Whether only ``special=True`` gives the token to a text that spells it."""
    piece = tokenizer.piece(id)
    as_token, as_text = (tokenizer.encode(piece, bos=False, eos=False, special=special) for special in (True, False))
    return id in as_token and id not in as_text
