#!/bin/bash
# TransformerLens 4.3.0 on transformers 5.23.0: under grouped-query attention an edit of one head's hook_attn_in changes the
# keys and values of other heads.
#
# With use_attn_in each head of queries has an input of its own. Of 4 heads that share 2 heads of keys and values, head 1
# reads keys and values 0, as head 0 does. Its copy of the input makes keys and values 1, which heads 2 and 3 read; copies of
# heads 2 and 3 make none.
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
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
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
bridge.set_use_attn_in(True)
TOKENS = torch.tensor([[3, 4, 5]])


def run(zeroed=None):
    """The first layer's queries, keys and values where one head's input is set to 0."""
    seen = {}

    def note(name):
        return lambda value, hook: seen.update({name: value.detach().clone()})

    def zero(value, hook):
        value = value.clone()
        value[:, :, zeroed] = 0
        return value

    names = [f"blocks.0.attn.hook_{name}" for name in "qkv"]
    hooks = [("blocks.0.hook_attn_in", zero)] if zeroed is not None else []
    with torch.no_grad():
        bridge.run_with_hooks(TOKENS, fwd_hooks=[*hooks, *((name, note(name)) for name in names)])
    return [seen[name] for name in names]


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformer-lens", "transformers")))
before = run()
changed = {}
for head in range(4):
    after = run(head)
    changed[head] = [
        [i for i in range(a.shape[2]) if not torch.equal(a[:, :, i], b[:, :, i])] for a, b in zip(before, after, strict=True)
    ]
    print(f"input of head {head} set to 0: other are queries {changed[head][0]}, keys {changed[head][1]}, values {changed[head][2]}")
assert all(changed[head][0] == [head] for head in range(4))
assert changed[0][1:] == [[0], [0]]
assert changed[1][1:] == [[1], [1]], "this has changed: head 1 has keys and values 0"
assert changed[2][1:] == changed[3][1:] == [[], []], "this has changed"
PYTHON
