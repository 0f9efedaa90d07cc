#!/bin/bash
# safetensors 0.8.0, safetensors.numpy.save and save_file of an array that is not in C order.
#
# Its documentation asks for contiguous arrays; 0.7.0 wrote any order, and safetensors.torch refuses what is not contiguous by
# an error. 0.8.0 writes the memory as it lies under the array's shape: a transposed weight, an array in Fortran order (what
# linear algebra returns) or every second row come back as other numbers, and nothing is said. numpy.ascontiguousarray before
# saving is the way round.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 0.7.0 0.8.0; do
  "$folder/venv/bin/pip" install -q "safetensors==$version" numpy==2.4.6
  "$folder/venv/bin/python" - "$version" <<'PYTHON'
import sys

import numpy as np
import safetensors
import safetensors.numpy

assert safetensors.__version__ == sys.argv[1]
array = np.arange(6, dtype=np.float32).reshape(3, 2)
kinds = {
    "C order": array,
    "transposed": array.T,
    "Fortran order": np.asfortranarray(array),
    "every second row": np.arange(8, dtype=np.float32).reshape(4, 2)[::2],
}
same = {}
for name, given in kinds.items():
    back = safetensors.numpy.load(safetensors.numpy.save({"x": given}))["x"]
    same[name] = bool(np.array_equal(back, given))
    print("safetensors", safetensors.__version__, f"{name}: saved {given.tolist()}, loaded {back.tolist()}")
assert same["C order"]
if safetensors.__version__ == "0.7.0":
    assert all(same.values())
else:
    assert not any(same[name] for name in list(kinds)[1:]), "this has changed"
PYTHON
done
