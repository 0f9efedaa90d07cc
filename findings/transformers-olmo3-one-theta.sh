#!/bin/bash
# transformers 5.23.0: an OLMo 3 whose config.json has one rope_theta turns by it in its full layers only. Its layers with
# a window get the default, 500,000, without a word. In an OLMo 2 and in a Mistral, whose layers are all turned alike, the
# same key is the theta of every layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import json
from importlib.metadata import version
from pathlib import Path

from transformers import AutoConfig

THETA = 10000.0


def opened(kind):
    folder = Path(kind)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "num_hidden_layers": 4, "rope_theta": THETA}))
    return AutoConfig.from_pretrained(str(folder.absolute()))


print("transformers", version("transformers"))
for kind in ("olmo2", "mistral"):
    theta = opened(kind).rope_parameters["rope_theta"]
    print(f"{kind}: rope_theta {THETA:g} in config.json, {theta:g} in all layers")
    assert theta == THETA
olmo3 = opened("olmo3")
thetas = {layers: parameters["rope_theta"] for layers, parameters in olmo3.rope_parameters.items()}
print(f"olmo3: rope_theta {THETA:g} in config.json, {thetas}, layers {olmo3.layer_types}")
assert thetas == {"full_attention": THETA, "sliding_attention": 500000.0}, thetas
assert set(olmo3.layer_types) == set(thetas)
print("as described")
PYTHON
