#!/bin/bash
# transformers 5.23.0, LlamaConfig.
#
# Since version 5 a config.json has the rotary settings in rope_parameters, with the base (rope_theta) among them; before,
# they were in rope_scaling, and rope_theta stood beside it. One would write both, so that old and new programs read the
# file. But where both are there, rope_scaling replaces rope_parameters as a whole, and the base, which rope_scaling never
# had, silently becomes the default of 10,000: another model, without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import transformers

new = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
old = {key: value for key, value in new.items() if key != "rope_theta"}
seen = []
for settings in ({"rope_parameters": dict(new)}, {"rope_parameters": dict(new), "rope_scaling": dict(old)}):
    config = transformers.LlamaConfig.from_dict({"model_type": "llama", "max_position_embeddings": 131072, **settings})
    seen.append(config.rope_parameters["rope_theta"])
    print("transformers", transformers.__version__, "with", sorted(settings), "-> rope_theta", seen[-1])
assert seen == [500000.0, 10000.0], f"this has changed: {seen}"
PYTHON
