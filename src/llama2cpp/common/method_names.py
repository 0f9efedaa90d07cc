"""Methods that are written outside of their class, in modules with one subject each."""

from __future__ import annotations

import types
from typing import TypeVar

Class = TypeVar("Class", bound=type)


def named_after_class(cls: Class) -> Class:
    """Give functions of other modules that are put into a class the names of its methods.

    Messages, `help` and pickles then call them what users call them.

    Parameters
    ----------
    cls : class
        With functions of other modules in its body.

    Returns
    -------
    class
        The same.

    Examples
    --------
    >>> from llama2cpp.common.method_names import named_after_class
    >>> def speak(self: object) -> str:
    ...     return "miau"
    >>> @named_after_class
    ... class Cat:
    ...     talk = speak
    >>> Cat.talk.__qualname__
    'Cat.talk'
    """
    for name, method in vars(cls).items():
        function = method
        while isinstance(function, types.FunctionType):  # what `checked` has made, and what it was made of
            function.__name__, function.__qualname__ = name, f"{cls.__qualname__}.{name}"
            function.__module__ = cls.__module__
            function = getattr(function, "__wrapped__", None)
    return cls
