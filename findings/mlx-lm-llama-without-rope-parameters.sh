#!/bin/bash
# mlx-lm 0.32.2 beside transformers 5.23.0: models that transformers 5 saved.
#
# Since version 5 transformers writes the rotary settings of a config.json into rope_parameters, rope_theta among them. mlx-lm
# reads that in a Qwen 3. In a Llama, a Mistral, a Mixtral, a Qwen 2, an OLMo 2 and a Phi 3 it does not, and takes its
# defaults without a word: a theta of 10,000 (Qwen 2: 1,000,000) and no scaling. With rope_theta and rope_scaling written into
# config.json as well, its logits are those of transformers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlx-lm==0.32.2 "mlx[cpu]==0.32.4" transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.utils import load_model

IDS = [3 + i % 50 for i in range(40)]
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def difference(folder, wanted):
    model, _ = load_model(folder)
    logits = torch.tensor(np.array(model(mx.array([IDS])).astype(mx.float32)))
    return float((torch.log_softmax(logits[0], -1) - wanted).abs().max())


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("mlx-lm", "transformers")))
CASES = [(kind, PLAIN) for kind in ("llama", "mistral", "mixtral", "qwen2", "olmo2", "phi3", "qwen3")]
for kind, settings in [*CASES, ("llama", LLAMA3)]:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, rope_parameters=dict(settings), **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for matrix in model.parameters():
        matrix.data *= 5 if matrix.ndim > 1 else 1
    folder = Path(f"{kind}-{settings['rope_type']}").absolute()
    model.save_pretrained(folder)
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.tensor([IDS])).logits[0], -1)
    saved = difference(folder, wanted)
    file = json.loads((folder / "config.json").read_text())
    assert settings.items() <= file["rope_parameters"].items() and "rope_theta" not in file
    file["rope_theta"] = settings["rope_theta"]
    if settings is LLAMA3:
        file["rope_scaling"] = settings
    (folder / "config.json").write_text(json.dumps(file))
    both = difference(folder, wanted)
    print(f"{folder.name}: log probabilities differ by {saved:.2g} as saved, {both:.2g} with the older keys beside")
    assert both < 1e-4
    assert saved < 1e-4 if kind == "qwen3" else saved > 0.1, "this has changed"
PYTHON
