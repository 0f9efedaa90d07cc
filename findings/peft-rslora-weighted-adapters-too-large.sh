#!/bin/bash
# peft 0.21.2, add_weighted_adapter of adapters with use_rslora.
#
# An adapter's update is B A times its scale: alpha / r, or alpha / sqrt(r) with use_rslora. add_weighted_adapter multiplies
# the scales into the sum and gives the new adapter alpha = r, which is a scale of 1 without use_rslora and of sqrt(r) with
# it. So one adapter with weight 1 should be itself again, and with rank 16 it is four times as large, whatever the
# combination type.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

RANK = 16


def ratio(rslora, combination):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    adapter = LoraConfig(r=RANK, lora_alpha=32, target_modules=["q_proj"], use_rslora=rslora, init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), adapter, adapter_name="one")
    model.add_weighted_adapter(["one"], [1.0], "same", combination_type=combination)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    one, same = layer.get_delta_weight("one"), layer.get_delta_weight("same")
    found = float(same.norm() / one.norm())
    assert torch.allclose(same, found * one, atol=1e-4)  # larger and nothing else
    return found


print("peft", importlib.metadata.version("peft"))
for combination in ("linear", "cat", "svd"):
    plain, stabilized = ratio(False, combination), ratio(True, combination)
    print(f"{combination}, rank {RANK}: weight 1 is {plain:.4f} times the adapter, {stabilized:.4f} with use_rslora")
    assert abs(plain - 1) < 1e-4
    assert abs(stabilized - RANK**0.5) < 1e-3, "this has changed"
PYTHON
