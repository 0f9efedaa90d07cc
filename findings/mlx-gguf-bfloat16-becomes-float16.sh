#!/bin/bash
# mlx 0.32.4 (its CPU build for Linux), mx.load of a GGUF file with a BF16 tensor.
#
# MLX has bfloat16, and reads BF16 out of safetensors as that. Out of GGUF the same numbers arrive as float16: what is above
# 65,504 is infinite, what is small is zero, and nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlx==0.32.4 mlx-cpu==0.32.4 gguf==0.19.0 safetensors==0.8.0 ml_dtypes==0.6.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gguf
import ml_dtypes
import mlx.core as mx
import numpy as np
import safetensors.numpy

values = np.array([98304.0, 2.0**-40, 3.0], np.float32)  # all of them are bfloat16 numbers
bf16 = gguf.GGMLQuantizationType.BF16
writer = gguf.GGUFWriter("x.gguf", "llama")
writer.add_tensor("x", gguf.quantize(values, bf16), raw_dtype=bf16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
safetensors.numpy.save_file({"x": values.astype(ml_dtypes.bfloat16)}, "x.safetensors")

stored = gguf.GGUFReader("x.gguf").tensors[0]
assert gguf.dequantize(stored.data, stored.tensor_type).tolist() == values.tolist()
same, other = mx.load("x.safetensors")["x"], mx.load("x.gguf")["x"]
print("mlx", mx.__version__, "safetensors:", same, "GGUF:", other)
assert same.dtype == mx.bfloat16
assert same.astype(mx.float32).tolist() == values.tolist()
assert other.dtype == mx.float16, "this has changed: GGUF's BF16 is bfloat16"
assert other.tolist() == [float("inf"), 0.0, 3.0]
PYTHON
