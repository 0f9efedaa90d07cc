#!/bin/bash
# tiktoken 0.14.0, an Encoding two of whose special tokens begin alike.
#
# Hugging Face's tokenizers takes the longest special token that fits. tiktoken tries them in the order of a hash table: of the
# pairs <|k|> and <|k|>+ below, some texts "<|k|>+" become the one token, others the shorter one and a plus sign.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tiktoken==0.14.0 tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata

import tiktoken
import tokenizers

BYTES = {bytes([byte]): byte for byte in range(256)}
longest = shorter = 0
for k in range(100):
    text = f"<|{k}|>+"
    special = {text[:-1]: 300, text: 301}
    encoding = tiktoken.Encoding("x", pat_str=r"[\s\S]+", mergeable_ranks=BYTES, special_tokens=special)
    ids = encoding.encode(text, allowed_special="all")
    assert ids in ([301], [300, ord("+")]), ids
    longest, shorter = longest + (ids == [301]), shorter + (ids != [301])
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"+": 0}, []))
    other.add_special_tokens(list(special))
    assert other.encode(text).tokens == [text]
print("tiktoken", importlib.metadata.version("tiktoken"), longest, "times the longest,", shorter, "times the shorter")
assert shorter > 0, "this has changed: the longest is taken"
assert longest > 0, "this has changed: the longest is never taken"
PYTHON
