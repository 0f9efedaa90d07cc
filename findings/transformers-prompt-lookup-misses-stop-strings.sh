#!/bin/bash
# transformers 5.23.0, generate with prompt_lookup_num_tokens and stop_strings.
#
# Prompt lookup takes several tokens at a time out of the prompt and keeps those that greedy decoding would have chosen, so
# the text should be that of greedy decoding. But stop strings (and criteria of one's own that look at the last token) are
# checked after a whole run of tokens only, at its end: a stop string that ends within the run does not stop the text. An
# end-of-sequence token stops it within a run as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata
import string

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, StoppingCriteria

LETTERS = string.ascii_lowercase
file = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="a"))
file.pre_tokenizer = pre_tokenizers.Split("", "isolated")
file.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=file)

# A model that writes the alphabet: its one layer adds nothing, and the output matrix is the next letter's row.
config = LlamaConfig(
    vocab_size=26, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
model = LlamaForCausalLM(config).eval()
with torch.no_grad():
    for matrix in model.model.layers.parameters():
        matrix.zero_()
    for matrix, rows in ((model.model.embed_tokens, torch.eye(26)), (model.lm_head, torch.eye(26).roll(1, 0))):
        matrix.weight.zero_()[:, :26] = rows
PROMPT = tokenizer(LETTERS + "abc", return_tensors="pt")


class StopAtG(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == LETTERS.index("g")


def written(**settings):
    ids = model.generate(**PROMPT, max_new_tokens=20, do_sample=False, **settings)
    return tokenizer.decode(ids[0, PROMPT["input_ids"].shape[1] :])


print("transformers", importlib.metadata.version("transformers"), "prompt:", tokenizer.decode(PROMPT["input_ids"][0]))
STOPS = {
    "stop string g": {"stop_strings": ["g"], "tokenizer": tokenizer},
    "own criterion g": {"stopping_criteria": [StopAtG()]},
    "end of sequence g": {"eos_token_id": LETTERS.index("g")},
}
texts = {}
for name, settings in STOPS.items():
    texts[name] = written(**settings), written(**settings, prompt_lookup_num_tokens=8)
    print(f"{name}: greedy {texts[name][0]}, with prompt lookup {texts[name][1]}")
assert all(greedy == "defg" for greedy, _ in texts.values())
assert texts["end of sequence g"][1] == "defg"
for name in ("stop string g", "own criterion g"):
    assert texts[name][1] == "defghijklmnopqrstuvw", "this has changed"
assert written() == written(prompt_lookup_num_tokens=8) == "defghijklmnopqrstuvw"  # without a stop they are equal
PYTHON
