"""How a model rounds numbers before it multiplies them: its activations, and the keys and values that it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK = 32  # numbers that share a scale; in llama2.c's files the group that the file names
_GROUPS = (_BLOCK, 64, 128, 256, 16, 8, 4, 2)


def kept(array: NDArray[np.float32], kv_dtype: str) -> NDArray[np.float32]:
    """Give keys or values as the cache holds them.

    Parameters
    ----------
    array : numpy.ndarray of float32
        Numbers of heads along its last axis.
    kv_dtype : str
        "f32", "f16", or "q8_0".
    """
    if kv_dtype == "f16":
        return array.astype(np.float16).astype(np.float32)
    if kv_dtype == "q8_0":
        steps, scales = _steps(array, _BLOCK, blocks=False)
        halved: NDArray[np.float32] = scales.astype(np.float16).astype(np.float32)
        return np.multiply(steps, halved, dtype=np.float32).reshape(array.shape)
    return array


def multiplied(x: NDArray[np.float32], activation_dtype: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Give what activations may be multiplied as, and how to call it: the first as they are.

    Parameters
    ----------
    x : numpy.ndarray of float32
        The activations, one axis.
    activation_dtype : str
        What the model rounds to where its weights allow it: "f32", "bf16", or "int8".
    """
    yield "", x
    if activation_dtype == "bf16":
        bits = x.view(np.uint32)
        yield "bf16", ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    if activation_dtype == "int8":
        for group, blocks in ((_BLOCK, True), *((group, False) for group in _GROUPS)):
            if len(x) % group == 0:
                steps, scales = _steps(x, group, blocks=blocks)
                yield f"int8 in groups of {group}", (steps * scales).reshape(x.shape)


def _steps(x: NDArray[np.float32], group: int, *, blocks: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """127 steps of the largest of each group, halves to even in blocks and else away from zero; how large a step is."""
    groups = x.reshape(-1, group)
    scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    steps = groups / np.where(scales == 0, np.float32(1), scales)
    away = np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5))
    return (np.rint(steps) if blocks else away).astype(np.float32), scales.astype(np.float32)
