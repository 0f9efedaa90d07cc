#!/bin/bash
# llama.cpp (in xllamacpp 2026.10.11549): whether a GGUF opens depends on general.name, a text for people.
#
# Where the name contains "phi3" or "phi-3", pieces of Phi-3's own vocabulary such as "</s>" are looked up. A Llama whose
# vocabulary has none is refused then ("error loading model vocabulary"); the same file under another name opens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON'
import importlib.metadata
import subprocess
import sys

import gguf
import numpy as np

# In a process of its own, which ends there.
OPEN = """
import os
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = "model.gguf"
settings.n_parallel = 1
settings.warmup = False
try:
    server = xllamacpp.Server(settings)
    print("opens", flush=True)
except RuntimeError as error:
    print(error, flush=True)
os._exit(0)
"""

VOCAB, DIM = 30, 32
SHAPES = {"token_embd": (VOCAB, DIM), "output_norm": (DIM,), "blk.0.attn_norm": (DIM,), "blk.0.ffn_norm": (DIM,)}
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
SHAPES |= {f"blk.0.{name}": (DIM, DIM) for name in MATRICES}


def opens(name):
    writer = gguf.GGUFWriter("model.gguf", "llama")
    for add, value in (
        (writer.add_name, name), (writer.add_context_length, 64), (writer.add_embedding_length, DIM),
        (writer.add_block_count, 1), (writer.add_feed_forward_length, DIM), (writer.add_head_count, 2),
        (writer.add_head_count_kv, 2), (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "default"), (writer.add_token_list, [chr(97 + i) for i in range(26)] + list("ABCD")),
        (writer.add_token_types, [1] * VOCAB), (writer.add_token_merges, ["a b"]),
    ):  # fmt: skip
        add(value)
    for tensor, shape in SHAPES.items():
        writer.add_tensor(f"{tensor}.weight", np.full(shape, 0.1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = subprocess.run([sys.executable, "-c", OPEN], capture_output=True, text=True, check=True)
    return done.stdout.strip()


print("xllamacpp", importlib.metadata.version("xllamacpp"))
seen = {name: opens(name) for name in ("model", "my-phi3-tune")}
for name, outcome in seen.items():
    print(f"{name}: {outcome}")
assert seen["model"] == "opens"
assert seen["my-phi3-tune"] != "opens", "this has changed: it opens under either name"
PYTHON
