#!/bin/bash
# TransformerLens 4.3.0 on transformers 5.23.0: hook_expert_indices of a GraniteMoE does not hold indices of experts.
#
# In OLMoE the hook holds what its name says: for each token the numbers of the experts that were chosen, integers. In
# GraniteMoE, opened the same way, it holds the router's scores of all experts, floats, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==4.3.0 transformers==5.23.0 torch==2.13.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON'
import importlib.metadata
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

EXPERTS, CHOSEN, IDS = 5, 3, [1, 7, 3, 49]


def chosen_experts(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, num_experts_per_tok=CHOSEN, pad_token_id=0,
        **{"num_experts" if kind == "olmoe" else "num_local_experts": EXPERTS},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    path = str(Path(kind).absolute())
    model.save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", pad_token="w2", bos_token="w1", eos_token="w2"
    ).save_pretrained(path)
    bridge = TransformerBridge.boot_transformers(path, hf_model=model)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    _, cache = bridge.run_with_cache(torch.tensor([IDS]))
    return cache["blocks.0.mlp.hook_expert_indices"]


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformer-lens", "transformers")))
seen = {kind: chosen_experts(kind) for kind in ("olmoe", "granitemoe")}
for kind, value in seen.items():
    print(kind, tuple(value.shape), value.dtype, value.reshape(-1)[:5].tolist())
assert seen["olmoe"].shape[-1] == CHOSEN and not seen["olmoe"].is_floating_point()
granite = seen["granitemoe"]
assert granite.shape[-1] == EXPERTS and granite.is_floating_point(), "this has changed: the hook has indices"
PYTHON
