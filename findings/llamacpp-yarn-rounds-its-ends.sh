#!/bin/bash
# llama.cpp (in xllamacpp 2026.10.11549) beside transformers 5.23.0: gpt-oss's YaRN.
#
# gpt-oss's config.json says rope_parameters.truncate false: YaRN's two ends, between which frequencies are blended, stay
# fractions. llama.cpp always rounds them to whole numbers, and GGUF has no key that could say otherwise, so a converted
# gpt-oss has other rotary angles than the original; where truncate is true both agree.
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

VOCAB, DIM, HEADS, KV_HEADS, HEAD, LAYERS, EXPERTS, TRAINED = 50, 32, 4, 2, 16, 2, 4, 64
IDS = list(range(1, 21))


def of_transformers(truncate, path):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD, num_local_experts=EXPERTS, num_experts_per_tok=2, sliding_window=128,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": truncate, "original_max_position_embeddings": TRAINED,
        },
    )  # fmt: skip
    model = transformers.GptOssForCausalLM._from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm" in name))
        write(model, config, path)
        return torch.log_softmax(model(torch.tensor([IDS])).logits[0, -1], -1).numpy()


def write(model, config, path):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, LAYERS)
    writer = gguf.GGUFWriter(path, "gpt-oss")
    for add, value in (
        (writer.add_block_count, LAYERS), (writer.add_context_length, 256), (writer.add_embedding_length, DIM),
        (writer.add_feed_forward_length, 64), (writer.add_expert_feed_forward_length, 64),
        (writer.add_expert_count, EXPERTS), (writer.add_expert_used_count, 2), (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV_HEADS), (writer.add_key_length, HEAD), (writer.add_value_length, HEAD),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps), (writer.add_sliding_window, 128),
        (writer.add_rope_freq_base, 150000.0), (writer.add_rope_scaling_type, gguf.RopeScalingType.YARN),
        (writer.add_rope_scaling_factor, 4.0), (writer.add_rope_scaling_orig_ctx_len, TRAINED),
        (writer.add_vocab_size, VOCAB), (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "default"),
        (writer.add_token_list, [chr(97 + i) for i in range(26)] + [f"[{i}]" for i in range(VOCAB - 26)]),
        (writer.add_token_types, [1] * VOCAB), (writer.add_token_merges, ["a b"]), (writer.add_add_bos_token, False),
    ):  # fmt: skip
        add(value)

    def tensor(name, value):
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(value.numpy()))

    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if "experts" not in name:
            tensor(name + ".weight" if name.endswith("sinks") else name, value)
            continue
        bias = name.endswith("_bias")
        stem, end = name.removesuffix("_bias"), ".bias" if bias else ".weight"
        value = value if bias else value.transpose(1, 2)
        if "gate_up" in stem:  # rows of gate and up in turn
            tensor(stem.replace("gate_up", "gate") + end, value[:, 0::2])
            tensor(stem.replace("gate_up", "up") + end, value[:, 1::2])
        else:
            tensor(stem + end, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_llama_cpp(path):
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_ctx = 256
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
differences = {}
for truncate in (True, False):
    reference = of_transformers(truncate, f"{truncate}.gguf")
    differences[truncate] = np.abs(of_llama_cpp(f"{truncate}.gguf") - reference).max()
    print("truncate", truncate, "largest difference of log-probabilities", differences[truncate])
assert differences[True] < 1e-3
assert differences[False] > 0.1, "this has changed: llama.cpp's YaRN has ends that are no whole numbers"
PYTHON
