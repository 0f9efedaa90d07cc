#!/bin/bash
# TransformerLens 4.3.0 on transformers 5.23.0: an edit at hook_resid_mid of a TransformerBridge changes what the MLP reads,
# and not the residual stream.
#
# A layer gives resid_post = resid_mid + mlp_out. So where a hook sets resid_mid to 0, resid_post has to be mlp_out. Here the
# stream goes past the hook: resid_post is the resid_mid of before the edit and the MLP's output after it. Activation
# patching over resid_mid measures the paths through the MLPs alone. (An edit at hook_resid_pre does reach the stream.)
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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=50,
    max_position_embeddings=64,
)  # fmt: skip
model = LlamaForCausalLM(config).eval()
path = str(Path("llama").absolute())
model.save_pretrained(path)
words = Tokenizer(WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="w0", pad_token="w2", bos_token="w1", eos_token="w2"
).save_pretrained(path)
bridge = TransformerBridge.boot_transformers(path, hf_model=model)
bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
TOKENS = torch.tensor([[3, 4, 5]])


def run(zeroed):
    """What the first layer's hooks see where one of them is set to 0."""
    seen = {}

    def note(name):  # the hook's own name is another: these are aliases
        return lambda value, hook: seen.update({name: value.detach().clone()})

    names = [f"blocks.0.hook_{name}" for name in ("resid_mid", "mlp_out", "resid_post")]
    hooks = [(zeroed, lambda value, hook: value * 0)] if zeroed else []
    with torch.no_grad():
        bridge.run_with_hooks(TOKENS, fwd_hooks=[*hooks, *((name, note(name)) for name in names)])
    return [seen[name] for name in names]


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformer-lens", "transformers")))
middle, out, after = run(None)
assert torch.allclose(after, middle + out, atol=1e-6)
_, edited_out, edited_after = run("blocks.0.hook_resid_mid")
kept = (edited_after - edited_out).abs().max().item()
print(f"resid_mid is set to 0, and resid_post differs from mlp_out by {kept:.4f}")
print(f"from the resid_mid of before the edit + mlp_out by {(edited_after - edited_out - middle).abs().max().item():.1e}")
assert kept > 0.01, "this has changed: the edit reaches the residual stream"
assert torch.allclose(edited_after, middle + edited_out, atol=1e-6)
PYTHON
