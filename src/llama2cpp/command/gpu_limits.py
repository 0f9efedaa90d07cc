"""What Apple's GPUs read and compute at the most, by their names: estimates, for shares of a limit."""

from __future__ import annotations

import re
from typing import NamedTuple


class Limits(NamedTuple):
    """Gigabytes and teraflops (float32) a second; None where they are not known."""

    gigabytes: float | None
    teraflops: float | None


# The largest variant of each chip: the bandwidth that Apple names, and 256 float32 operations a core and clock.
_CHIPS = {
    "M1": Limits(68, 2.6),
    "M1 Pro": Limits(200, 5.3),
    "M1 Max": Limits(400, 10.6),
    "M1 Ultra": Limits(800, 21.2),
    "M2": Limits(100, 3.6),
    "M2 Pro": Limits(200, 6.8),
    "M2 Max": Limits(400, 13.6),
    "M2 Ultra": Limits(800, 27.2),
    "M3": Limits(100, 3.5),
    "M3 Pro": Limits(150, 6.4),
    "M3 Max": Limits(400, 14.1),
    "M3 Ultra": Limits(819, 28.3),
    "M4": Limits(120, 3.8),
    "M4 Pro": Limits(273, 8.1),
    "M4 Max": Limits(546, 16.1),
    "M5": Limits(153, 4.0),
}


def limits_of(device: str) -> Limits:
    """Estimate the limits of the GPU that Metal calls so.

    Examples
    --------
    >>> from llama2cpp.command.gpu_limits import limits_of
    >>> limits_of("Apple M2")
    Limits(gigabytes=100, teraflops=3.6)
    >>> limits_of("Apple Paravirtual device")
    Limits(gigabytes=None, teraflops=None)
    """
    chip = re.fullmatch(r"Apple (M\d+(?: (?:Pro|Max|Ultra))?)", device)
    return _CHIPS.get(chip[1], Limits(None, None)) if chip else Limits(None, None)
