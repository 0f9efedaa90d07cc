#!/bin/bash
# llama.cpp (in xllamacpp 2026.10.11549) beside tokenizers 0.23.3: text that is not in NFC, for a GGUF of Qwen2's tokenizer.
#
# tokenizer.json of Qwen2 and Qwen3 asks for NFC before anything else. A GGUF file says only `tokenizer.ggml.pre = qwen2`;
# llama.cpp knows that name's cuts and leaves the text as it is: a letter and its combining mark, as macOS writes file names,
# become other tokens than those that the model was trained on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q xllamacpp==2026.10.11549 gguf==0.19.0 tokenizers==0.23.3 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON'
import importlib.metadata
import json
import urllib.request

import gguf
import numpy as np
import xllamacpp
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

# Byte-level BPE: 256 bytes, one merge (the two bytes of U+00E9), one end token.
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = iter(range(256, 512))
BYTES = [chr(byte if byte in printable else next(others)) for byte in range(256)]
MERGE = (BYTES[0xC3], BYTES[0xA9])
PIECES = [*BYTES, "".join(MERGE), "<end>"]

LAYER = {f"self_attn.{name}_proj": (32, 32) for name in "qkvo"}
LAYER |= {f"mlp.{name}_proj": (32, 32) for name in ("gate", "up", "down")}
LAYER |= {"input_layernorm": (32,), "post_attention_layernorm": (32,)}
SHAPES = {"model.embed_tokens": (len(PIECES), 32), "model.norm": (32,)}
SHAPES |= {f"model.layers.0.{name}": shape for name, shape in LAYER.items()}
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
writer = gguf.GGUFWriter("model.gguf", "qwen2")
for add, value in (
    (writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 32),
    (writer.add_feed_forward_length, 32), (writer.add_head_count, 1), (writer.add_head_count_kv, 1),
    (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "qwen2"),
    (writer.add_token_list, PIECES), (writer.add_token_types, [1] * 257 + [3]),
    (writer.add_token_merges, [" ".join(MERGE)]), (writer.add_eos_token_id, 257),
):  # fmt: skip
    add(value)
for name, shape in SHAPES.items():
    writer.add_tensor(names.get_name(name) + ".weight", np.full(shape, 0.01, np.float32))
for name in "qkv":
    writer.add_tensor(names.get_name(f"model.layers.0.self_attn.{name}_proj") + ".bias", np.zeros(32, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

settings = xllamacpp.CommonParams()
settings.model.path = "model.gguf"
settings.n_parallel = 1
settings.warmup = False
server = xllamacpp.Server(settings)


def llama_cpp(text):
    body = json.dumps({"content": text}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[MERGE]))
tokenizer.normalizer = normalizers.NFC()
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("xllamacpp", "tokenizers")))
for text in ("\u00e9", "e\u0301"):
    print(ascii(text), "tokenizers", tokenizer.encode(text).ids, "llama.cpp", llama_cpp(text))
assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids == llama_cpp("\u00e9") == [256]
assert llama_cpp("e\u0301") == [ord("e"), 0xCC, 0x81], "this has changed: llama.cpp composes the pair"
PYTHON
