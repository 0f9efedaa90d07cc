#!/bin/bash
# transformers 5.23.0, LlamaTokenizer read from a tokenizer.model.
#
# Its documentation says of add_bos_token "defaults to True", and Llama models expect BOS. In a folder whose
# tokenizer_config.json does not name the setting, as older ones do not, no BOS is added.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
import transformers

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the quick brown fox said hello"] * 50),
    model_writer=model,
    vocab_size=300,
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    character_coverage=1.0,
    minloglevel=2,
    user_defined_symbols=["<fox>"],
)


def pieces(**settings):
    folder = Path(tempfile.mkdtemp())
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    names = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer.convert_ids_to_tokens(tokenizer("hello <fox>")["input_ids"])
    print("transformers", transformers.__version__, "with", settings, "->", found)
    return found


assert "defaults to `True`" in transformers.LlamaTokenizer.__doc__.split("add_bos_token")[1][:80], "documented otherwise now"
assert pieces(add_bos_token=True)[0] == "<s>"
assert pieces()[0] != "<s>", "this has changed: BOS is added"
PYTHON
