#!/bin/bash
# transformers 5.23.0: YaRN's truncate, which is documented among the other settings of rope_parameters, is passed over
# where they are those of one kind of layers, as in an OLMo 3 and in a Gemma 3: its ends stay whole numbers whatever it says.
# In a Llama, whose layers have one set of settings, false gives other angles.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
from importlib.metadata import version

from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 128}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def frequencies(kind, truncate):
    full = YARN | {"truncate": truncate}
    by_layer = kind != "llama"
    settings = {"full_attention": full, "sliding_attention": PLAIN} if by_layer else full
    config = AutoConfig.for_model(kind, head_dim=16, rope_parameters=settings, **SIZES)
    found, _ = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu", **({"layer_type": "full_attention"} if by_layer else {}))
    return [round(float(value), 6) for value in found]


print("transformers", version("transformers"))
for kind, counts in (("llama", True), ("olmo3", False), ("gemma3_text", False)):
    whole, exact = frequencies(kind, True), frequencies(kind, False)
    print(f"{kind}: truncate true {whole}")
    print(f"{kind}: truncate false {exact}")
    assert (whole != exact) == counts, kind
print("as described")
PYTHON
