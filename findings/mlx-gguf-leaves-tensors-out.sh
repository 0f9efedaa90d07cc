#!/bin/bash
# mlx 0.32.4 (its CPU build for Linux), mx.load of a GGUF file with a tensor in one of ggml's ternary formats.
#
# For some formats that it cannot read (Q5_0) the whole file is refused by an error. For others the file is read, and the
# tensor is missing in what is returned, without an error or a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlx==0.32.4 mlx-cpu==0.32.4 gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gguf
import mlx.core as mx
import numpy as np


def load(format):
    writer = gguf.GGUFWriter("x.gguf", "llama")
    writer.add_tensor("plain", np.ones((1, 256), np.float32))
    writer.add_tensor("packed", gguf.quantize(np.ones((1, 256), np.float32), format), raw_dtype=format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [tensor.name for tensor in gguf.GGUFReader("x.gguf").tensors] == ["plain", "packed"]
    try:
        found = sorted(mx.load("x.gguf"))
    except RuntimeError as error:
        found = str(error)
    print("mlx", mx.__version__, format.name, "->", found)
    return found


formats = gguf.GGMLQuantizationType
assert "failed" in load(formats.Q5_0)
assert load(formats.TQ1_0) == ["plain"], "this has changed"
assert load(formats.TQ2_0) == ["plain"], "this has changed"
PYTHON
