#!/bin/bash
# torch 2.13.0 (CPU) beside ml_dtypes 0.6.0: float32 to float8_e4m3fn, the format of FP8 checkpoints.
#
# The format has no infinity. ml_dtypes makes NaN of what is too large, and so did torch 2.12.0 (Float8_e4m3fn.h). torch
# 2.13.0 makes 448 of it, the largest number, and of infinity too: an overflow in what is quantized cannot be found in the
# result. Of its other FP8 types float8_e5m2 has infinity then, and float8_e4m3fnuz NaN, as in ml_dtypes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

import ml_dtypes
import numpy as np
import torch

VALUES = np.array([448, 464, 465, 1e9, np.inf, -np.inf, np.nan], np.float32)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ml_dtypes")), VALUES.tolist())
seen = {}
for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"):
    for rows in (1, 64):  # a few numbers, and enough for vector instructions
        cast = torch.tensor(VALUES).repeat(rows, 1).to(getattr(torch, name)).float().numpy()
        assert np.array_equal(cast, np.tile(cast[0], (rows, 1)), equal_nan=True)
    with np.errstate(all="ignore"):
        other = VALUES.astype(getattr(ml_dtypes, name)).astype(np.float32)
    seen[name] = cast[0], other
    print(f"{name}: torch {cast[0].tolist()}, ml_dtypes {other.tolist()}")
ours, other = seen.pop("float8_e4m3fn")
assert ours[:6].tolist() == [448, 448, 448, 448, 448, -448], "this has changed"
assert np.isnan(ours[6])
assert other[:2].tolist() == [448, 448] and np.isnan(other[2:]).all()
for ours, other in seen.values():
    assert np.array_equal(ours, other, equal_nan=True)
    assert not np.isfinite(ours[3:]).any()
PYTHON
