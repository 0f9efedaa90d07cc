#!/bin/bash
# transformers 5.23.0 beside tokenizers 0.23.3: one tokenizer.json of Llama 2's form, whose class is LlamaTokenizer.
#
# AutoTokenizer takes the vocabulary and the merges out of tokenizer.json and builds the rest anew: the file's normalizer
# (a space before the text, spaces as U+2581) and pre-tokenizer are passed over. Texts that begin with a space, and text
# behind a special token, get other ids than tokenizers gives with the very same file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON'
import importlib.metadata
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

SPECIAL = ["<unk>", "<s>", "</s>"]
model = Path("model")
model.mkdir()
trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
trained.train_from_iterator(["Hello world hi x"] * 9, trainers.BpeTrainer(vocab_size=320, special_tokens=pieces))
file = json.loads(trained.to_str())
file["added_tokens"] = file["added_tokens"][: len(SPECIAL)]
file["pre_tokenizer"] = None
steps = [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
file["normalizer"] = {"type": "Sequence", "normalizers": steps}
(model / "tokenizer.json").write_text(json.dumps(file))
names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
(model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers")))
rebuilt = AutoTokenizer.from_pretrained(model)
of_file = Tokenizer.from_file(str(model / "tokenizer.json"))
equal = {}
for text in ("Hello", " Hello", "<s>hi</s>x"):
    ids = rebuilt(text, add_special_tokens=False)["input_ids"], of_file.encode(text, add_special_tokens=False).ids
    print(repr(text), "transformers", ids[0], "tokenizers", ids[1])
    equal[text] = ids[0] == ids[1]
assert equal["Hello"]
assert not equal[" Hello"] and not equal["<s>hi</s>x"], "this has changed: the ids are equal"
PYTHON
