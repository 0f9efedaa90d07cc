#!/bin/bash
# datasets 5.2.0, Dataset.with_format("numpy") of a table whose columns are uint64 and float64.
#
# One row holds a column's numbers as they are stored. A column or a batch of the same rows holds integers as int64 and floats as
# float32: a uint64 (the hash of a text, an id) of 2**63 or more is negative there, a float64 has lost more than half of its digits,
# and a row that is looked for among a column's values is not found. Nothing is said; with_format("numpy", dtype=...) is one
# dtype for all columns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile datasets==5.2.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

import datasets
import numpy as np
import pyarrow

HASHES, SCORES = np.array([2**63 + 5, 7], np.uint64), np.array([0.1, 2.0**24 + 1])
plain = datasets.Dataset(pyarrow.table({"hash": HASHES, "score": SCORES}))
assert plain[:]["hash"] == HASHES.tolist() and plain[:]["score"] == SCORES.tolist()  # all of it is stored
table = plain.with_format("numpy")

print("datasets", importlib.metadata.version("datasets"), table.features)
row, batch = table[0], table[:]
for name in ("hash", "score"):
    print(f"{name}: row {row[name]!r}, batch {batch[name]!r}")
assert row["hash"].dtype == np.uint64 and row["hash"] == HASHES[0]
assert row["score"].dtype == np.float64 and row["score"] == SCORES[0]
assert batch["hash"].dtype == np.int64 and batch["hash"].tolist() == [5 - 2**63, 7], "this has changed"
assert batch["score"].dtype == np.float32 and batch["score"].tolist() == [float(np.float32(0.1)), 2.0**24], "this has changed"
PYTHON
