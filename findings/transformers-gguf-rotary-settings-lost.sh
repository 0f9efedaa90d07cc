#!/bin/bash
# transformers 5.23.0, from_pretrained(gguf_file=...): a Llama whose rotary embedding is scaled, and a StarCoder2 with a base.
#
# The keys llama.rope.scaling.* and starcoder2.rope.freq_base, and the tensor rope_freqs.weight in which GGUF files keep the
# scaling of Llama 3.1 and later, are left out: the model loads, and computes something else. A message "Some keys of the
# GGUF file were not considered" exists for the keys, at a level that is not shown unless asked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 accelerate gguf==0.19.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import gguf
import numpy as np
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)  # fmt: skip
IDS = torch.arange(3, 63)[None].repeat(1, 2)


def pairs(rows, heads):  # GGUF's order of a Llama's query and key rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def largest_difference(kind, architecture, rope, keys=lambda writer: None, factors=None):
    torch.manual_seed(0)
    config = getattr(transformers, kind + "Config")(**SIZES, rope_parameters=rope, tie_word_embeddings=False)
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    for matrix in model.parameters():
        matrix.data *= 8 if matrix.ndim > 1 else 1
    arch = getattr(gguf.MODEL_ARCH, architecture)
    names = gguf.get_tensor_name_map(arch, 2)
    writer = gguf.GGUFWriter("model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-5))
    writer.add_layer_norm_eps(getattr(config, "norm_epsilon", 1e-5))
    writer.add_vocab_size(64)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(64)])
    writer.add_token_scores([0.0] * 64)
    writer.add_token_types([1] * 64)
    keys(writer)
    for name, value in model.state_dict().items():
        value = value.numpy()
        if kind == "Llama" and ("q_proj" in name or "k_proj" in name):
            value = pairs(value, 4 if "q_proj" in name else 2)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(value))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        right, found = model(IDS).logits, read(IDS).logits
    difference = float((found - right).abs().max() / right.abs().max())
    print(f"transformers {transformers.__version__} {kind} {rope}: {difference:.3f} of the largest logit")
    return difference


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


plain = {"rope_type": "default", "rope_theta": 10000.0}
assert largest_difference("Llama", "LLAMA", plain) < 1e-5
assert largest_difference("Llama", "LLAMA", {**plain, "rope_theta": 500000.0}) < 1e-5
scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
assert largest_difference("Llama", "LLAMA", scaled, linear) > 0.1, "this has changed"
llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
config = transformers.LlamaConfig(**SIZES, rope_parameters=llama3)
frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
factors = (10000.0 ** -(torch.arange(0, 8, 2) / 8) / frequencies).numpy()
assert largest_difference("Llama", "LLAMA", llama3, factors=factors) > 0.1, "this has changed"
assert largest_difference("Starcoder2", "STARCODER2", plain) < 1e-5
assert largest_difference("Starcoder2", "STARCODER2", {**plain, "rope_theta": 1e6}) > 0.05, "this has changed"
PYTHON
