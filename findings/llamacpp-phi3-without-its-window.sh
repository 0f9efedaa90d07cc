#!/bin/bash
# llama.cpp (in xllamacpp 2026.10.11549) beside transformers 5.23.0: a Phi-3 with a sliding window.
#
# Phi-3's config.json names a sliding window (2,047 for Phi-3-mini-4k), its GGUF files have it as phi3.attention.sliding_window,
# and llama.cpp reads the key and sees all positions: past the window its logits are another model's. The key of a file
# whose architecture is llama (Mistral 7B) has no effect either.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q xllamacpp==2026.10.11549 gguf==0.19.0 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON'
import importlib.metadata

import gguf
import numpy as np
import torch
import transformers
import xllamacpp

VOCAB, DIM, HEADS, LAYERS, WINDOW = 64, 64, 4, 2, 8
IDS = [3 + i % 60 for i in range(40)]


def of_transformers(window, name):
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=128, original_max_position_embeddings=128,
        sliding_window=window, pad_token_id=0, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Phi3ForCausalLM(config).eval()
    for matrix in model.parameters():
        matrix.data *= 8 if matrix.ndim > 1 else 1
    write(model, window, name)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([IDS])).logits[0, -1], -1).numpy()


def write(model, window, path):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, LAYERS)
    writer = gguf.GGUFWriter(path, "phi3")
    for add, value in (
        (writer.add_block_count, LAYERS), (writer.add_context_length, 128), (writer.add_embedding_length, DIM),
        (writer.add_feed_forward_length, 96), (writer.add_head_count, HEADS), (writer.add_head_count_kv, HEADS),
        (writer.add_rope_dimension_count, DIM // HEADS), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_sliding_window, window or 0), (writer.add_tokenizer_model, "llama"),
        (writer.add_token_list, ["<unk>", "<s>", "</s>", *(f"piece{i}" for i in range(VOCAB - 3))]),
        (writer.add_token_scores, [0.0] * VOCAB), (writer.add_token_types, [2, 3, 3] + [1] * (VOCAB - 3)),
    ):  # fmt: skip
        add(value)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_llama_cpp(path):
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_parallel = 1
    settings.warmup = False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(settings).handle_completions({"prompt": IDS, "max_tokens": 1, "logprobs": VOCAB})
    logprobs = np.empty(VOCAB, np.float32)
    for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        logprobs[entry["id"]] = entry["logprob"]
    return logprobs


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("xllamacpp", "transformers")))
reference = {window: of_transformers(window, f"{window}.gguf") for window in (None, WINDOW)}
seen = {window: of_llama_cpp(f"{window}.gguf") for window in (None, WINDOW)}
for window in reference:
    print("window", window, "largest difference from transformers", np.abs(seen[window] - reference[window]).max())
print("what the key changes in llama.cpp", np.abs(seen[WINDOW] - seen[None]).max())
assert np.abs(seen[None] - reference[None]).max() < 1e-3
assert np.abs(reference[WINDOW] - reference[None]).max() > 0.1
assert (seen[WINDOW] == seen[None]).all(), "this has changed: llama.cpp uses the window"
PYTHON
