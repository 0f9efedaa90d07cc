"""What is made when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """Stands for something that costs time, in a call that may yet turn out to be wrong.

    Parameters
    ----------
    make : callable
        What makes it.

    Examples
    --------
    >>> from llama2cpp.common.later import Later, now
    >>> now(Later(lambda: 5)), now(5)
    (5, 5)
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make


def now(given: T | Later[T]) -> T:
    """Give what something stands for, and anything else as it is.

    Parameters
    ----------
    given : object
        Which may be a `Later`.

    Returns
    -------
    object

    Examples
    --------
    >>> from llama2cpp.common.later import now
    >>> now("Once")
    'Once'
    """
    return given.make() if isinstance(given, Later) else given
