#!/bin/bash
# transformers 5.23.0, a Llama that is called with position_ids that leave positions out.
#
# A rotary model may be asked what a longer distance does: positions 0, 1, 2, 10, 11 for five tokens. With use_cache=True (the
# default), or with an attention_mask of ones, the tokens behind the gap see those before it. With use_cache=False (as in
# training and in many measurements) and no mask they do not, and the logits are those of two texts: two arguments that
# should change no number change the attention, and nothing is said. The documentation describes this for training by
# FlashAttention on texts in a row, whose positions begin anew; the default attention does it at every step other than 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=100
)
model = LlamaForCausalLM(config).eval()
ids, changed = torch.tensor([[5, 9, 33, 7, 8]]), torch.tensor([[6, 9, 33, 7, 8]])  # another first token
ones = torch.ones_like(ids)


def reach(positions, **arguments):
    """How far each position's logits move when the first token is another."""
    with torch.no_grad():
        logits = [model(x, position_ids=torch.tensor([positions]), **arguments).logits for x in (ids, changed)]
    return (logits[0] - logits[1]).abs().amax(-1)[0]


print("transformers", version("transformers"), "torch", version("torch"))
for positions in ([0, 1, 2, 3, 4], [0, 1, 2, 10, 11]):
    for name, arguments in (
        ("use_cache=True", {"use_cache": True}),
        ("use_cache=False, mask of ones", {"use_cache": False, "attention_mask": ones}),
        ("use_cache=False", {"use_cache": False}),
    ):
        moved = reach(positions, **arguments)
        print(f"positions {positions}, {name}: logits move by", [f"{x:.1e}" for x in moved.tolist()])
        if positions[-1] == 11 and name == "use_cache=False":
            assert (moved[:3] > 0).all() and (moved[3:] == 0).all(), "this has changed: a gap cuts nothing"
        else:
            assert (moved > 0).all(), "this has changed"
PYTHON
