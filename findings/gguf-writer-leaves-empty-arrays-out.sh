#!/bin/bash
# gguf 0.19.0 (ggml's Python package), GGUFWriter.add_array, add_token_merges and add_string.
#
# An array of no elements and an empty string are values that GGUF can hold ("this tokenizer has no merges"). They are
# not written and nothing is said: the keys are missing in the file, which readers take for another kind of file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata

import gguf
import numpy as np

writer = gguf.GGUFWriter("x.gguf", "llama")
writer.add_tokenizer_model("gpt2")
writer.add_token_list(["a", "b"])
writer.add_token_merges([])
writer.add_array("some.list", [])
writer.add_string("some.text", "")
writer.add_tensor("x", np.zeros(4, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
keys = [key for key in gguf.GGUFReader("x.gguf").fields if not key.startswith("GGUF.")]
print("gguf", importlib.metadata.version("gguf"), keys)
assert "some.text" not in keys, "this has changed"
assert "tokenizer.ggml.merges" not in keys, "this has changed"
assert "some.list" not in keys, "this has changed"
PYTHON
