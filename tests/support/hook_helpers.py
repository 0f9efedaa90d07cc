"""What tests of hooks share: arrays and their bits, names, and a hook that fails."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from on_metal import agree

import llama2cpp
from llama2cpp.inside.hooks import HookPoint

Array = NDArray[np.float32]
PROMPT = "Once upon a time"


def everything(name: str) -> bool:
    return True


def ids_of(model: llama2cpp.Model, text: str = PROMPT) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def same_bits(a: Array, b: Array) -> bool:
    """But on Metal, where they are near."""
    return agree(a, b)


class PlannedError(Exception):
    pass


def stop(activation: Array, hook: HookPoint) -> None:
    raise PlannedError
