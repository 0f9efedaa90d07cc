#!/bin/bash
# gguf 0.19.0 (ggml's Python package), the command gguf-new-metadata, which copies a file and changes only what it is told to.
#
# GGUF's arrays may hold arrays. GGUFReader's contents() joins the inner ones to one, so the copy of a file that has such
# an array holds another value of another type under the same key.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gguf
import numpy as np

writer = gguf.GGUFWriter("x.gguf", "llama")
writer.add_array("some.lists", [[1, 2], [3]])
writer.add_tensor("x", np.zeros(4, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
PYTHON
"$folder/venv/bin/gguf-new-metadata" --general-name "a copy" x.gguf y.gguf >/dev/null 2>&1
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata

import gguf

fields = [gguf.GGUFReader(name).fields["some.lists"] for name in ("x.gguf", "y.gguf")]
types = [[kind.name for kind in field.types] for field in fields]
print("gguf", importlib.metadata.version("gguf"), "file:", types[0], "copy:", types[1], fields[1].contents())
assert types[0] == ["ARRAY", "ARRAY", "INT32"]
assert types[1] == ["ARRAY", "INT32"], "this has changed"
assert fields[1].contents() == [1, 2, 3]
PYTHON
