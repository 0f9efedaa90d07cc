#!/bin/bash
# tokenizers 0.23.3, encode_special_tokens = True: a Unigram model, as UnigramTrainer makes it.
#
# With that setting a special token's text is to be cut like other text, so that a user's words cannot become control
# tokens. UnigramTrainer puts the special tokens among the model's own pieces, where the best cut finds them: the text
# gives the control token's id all the same. A BPE model of the same texts does as it is told.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata

from tokenizers import Tokenizer, models, trainers

TEXTS = ["hello <world> / end", "the end < of > a world"] * 9
SPECIAL = "<end>"
MADE = {
    "Unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=40, special_tokens=["<unk>", SPECIAL], unk_token="<unk>", show_progress=False)),
    "BPE": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=40, special_tokens=["<unk>", SPECIAL], show_progress=False)),
}
print("tokenizers", importlib.metadata.version("tokenizers"))
spelled = {}
for name, (model, trainer) in MADE.items():
    tokenizer = Tokenizer(model)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.encode_special_tokens = True
    control = tokenizer.token_to_id(SPECIAL)
    ids = tokenizer.encode("a " + SPECIAL).ids
    print(name, "id of", SPECIAL, control, "ids of the text", ids)
    spelled[name] = control in ids
assert not spelled["BPE"]
assert spelled["Unigram"], "this has changed: the text gives no control token"
PYTHON
