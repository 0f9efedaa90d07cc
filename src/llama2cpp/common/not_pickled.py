"""What cannot be pickled, because it lives in a model's memory or in a call, says what to use in its place."""

from __future__ import annotations

from typing import Any, ClassVar


class NotPickled:
    """A base of classes whose objects cannot leave the process.

    Examples
    --------
    >>> import pickle
    >>> from llama2cpp.common.not_pickled import NotPickled
    >>> class Place(NotPickled):
    ...     _instead = "write it down"
    >>> try:
    ...     pickle.dumps(Place())
    ... except TypeError as error:
    ...     print(error)
    Place cannot be pickled: write it down
    """

    _instead: ClassVar[str]

    def __copy__(self) -> Any:  # noqa: ANN401
        raise TypeError(f"{type(self).__name__} cannot be copied: {self._instead}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # noqa: ANN401
        return self.__copy__()

    def __reduce__(self) -> Any:  # noqa: ANN401
        raise TypeError(f"{type(self).__name__} cannot be pickled: {self._instead}")
