"""Sizes of files as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(size: int | str, name: str = "shard_size") -> int:
    """Give a number of bytes.

    Parameters
    ----------
    size : int or str
        Bytes, or a text such as "5GB", "500 MB" or "2GiB".
    name : str
        What it is, for messages.

    Raises
    ------
    ValueError
        For another text, or no bytes at all.

    Examples
    --------
    >>> from llama2cpp.common.byte_sizes import parse_size
    >>> parse_size("1.5GB")
    1500000000
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b)?\s*", size, flags=re.IGNORECASE | re.ASCII)
        if match is None:
            raise ValueError(f"{name} is {size!r}, expected a number of bytes, or a text such as '5GB' or '500MB'")
        size = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if size < 1:
        raise ValueError(f"{name} is {size}, expected at least 1 byte")
    return size
