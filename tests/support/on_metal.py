"""Whether the tests run with --backend metal, and how near numbers are then that are the same bits on the CPU.

On Metal prefill and step, a pass with hooks and one without, one sequence and several take other kernels, or sum in
another order: what is the same bits on the CPU differs there by a few roundings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ON_METAL = False  # set by conftest.py
FEW = 8  # examples of a property: the software device takes a hundred times as long as the CPU
NEAR = 2e-5  # of the largest number: f32 sums in another order, through all layers


def examples(count: int) -> int:
    """How many examples of a property, where a test says so itself."""
    return min(count, FEW) if ON_METAL else count


def agree(a: NDArray[np.float32], b: NDArray[np.float32], near: float = NEAR) -> bool:
    """The same bits; on Metal the same numbers but for roundings."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not ON_METAL or a.dtype.kind != "f" or not a.size:
        return a.tobytes() == b.tobytes()
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    x, y = a[finite].astype(np.float64), b[finite].astype(np.float64)
    return not x.size or bool(np.abs(x - y).max() <= near * np.abs(y).max())
