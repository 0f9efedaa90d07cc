"""How much memory keys and values take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._core import Config


def kv_bytes(config: Config, kv_dtype: str, positions: int = 1) -> int:
    """Bytes of the keys and values of so many positions, in all layers."""
    numbers = 2 * config.n_layers * positions * config.n_kv_heads * config.head_dim
    if kv_dtype == "q8_0":
        return numbers // 32 * 34  # with a scale of two bytes for each 32
    return numbers * (2 if kv_dtype == "f16" else 4)
