#!/bin/bash
# pyvene 0.1.8 with transformers 5.23.0: the component mlp_activation, between an MLP's two matrices.
#
# In a GPT-2 it is what the second matrix reads, so an interchange of it at one position is an interchange of mlp_output. In a
# Llama it is the output of the activation function, before it is multiplied by up_proj's: after an interchange that other factor
# is still the base's, and the logits are others than with mlp_output interchanged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyvene==0.1.8 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata

import pyvene
import torch
import transformers

BASE, SOURCE, POSITION = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[9, 8, 7, 6]]), 2
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, **ENDS),
    "llama": transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **ENDS
    ),
}


def interchanged(model, component):
    settings = pyvene.IntervenableConfig([{"layer": 0, "component": component}], pyvene.VanillaIntervention)
    edited = pyvene.IntervenableModel(settings, model=model)
    with torch.no_grad():
        base, counterfactual = edited(
            {"input_ids": BASE}, [{"input_ids": SOURCE}], {"sources->base": POSITION}, output_original_output=True
        )
    return base.logits[0, POSITION], counterfactual.logits[0, POSITION]


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pyvene", "transformers")))
for kind, config in MODELS.items():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for matrix in model.parameters():
        matrix.data *= 5 if matrix.ndim > 1 else 1
    base, outputs = interchanged(model, "mlp_output")
    _, activations = interchanged(model, "mlp_activation")
    apart, effect = float((outputs - activations).abs().max()), float((outputs - base).abs().max())
    print(f"{kind}: mlp_output changes logits by {effect:.3f}, mlp_activation gives others by {apart:.3f}")
    assert effect > 0.1
    assert apart < 1e-4 if kind == "gpt2" else apart > 0.1, "this has changed"
PYTHON
