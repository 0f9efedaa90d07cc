"""`generate`, `complete`, `stream`, `chat` and `chat_stream` as users call them: without a model it is the storyteller.

It lies on top, so that none of the modules below has to import what opens models.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from . import generation
from .common.later import Later
from .dialogue import answers
from .loading import load
from .model import Model

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.Lock()
_model: Model | None = None


def _new_lock() -> None:
    """In a child of fork(), which has none of the threads that may have had the old one."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def default_model() -> Model:
    """Get the storyteller for calls that name no model. It is opened once, and again if somebody has closed it."""
    global _model
    with _lock:
        if _model is None or _model._open_core is None:
            _model = load()
        return _model


def _with_default(function: Function) -> Function:
    @functools.wraps(function)
    def call(*args: Any, model: Model | None = None, **options: Any) -> Any:  # noqa: ANN401
        # It is opened when the other arguments have been found right.
        return function(*args, model=Later(default_model) if model is None else model, **options)

    return cast(Function, call)


generate = _with_default(generation.generate)
complete = _with_default(generation.complete)
stream = _with_default(generation.stream)
chat = _with_default(answers.chat)
chat_stream = _with_default(answers.chat_stream)
