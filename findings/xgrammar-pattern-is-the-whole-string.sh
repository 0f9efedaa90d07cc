#!/bin/bash
# xgrammar 0.2.9, compile_json_schema with "pattern".
#
# A pattern of JSON Schema is searched for anywhere in the string, unless it has ^ and $. Here it is the whole string: {"pattern": "b"}
# lets a model write "b" and nothing else, and "^b" no string that goes on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q xgrammar==0.2.9 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import json

import xgrammar

VOCABULARY = [bytes([byte]) for byte in range(256)] + [b"<end>"]  # a token for each byte: nothing is out of reach
TOKENIZER = xgrammar.TokenizerInfo(VOCABULARY, vocab_type=xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[256])
COMPILER = xgrammar.GrammarCompiler(TOKENIZER)


def accepts(schema, text):
    matcher = xgrammar.GrammarMatcher(COMPILER.compile_json_schema(json.dumps(schema), strict_mode=False))
    accepted = all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)
    print("xgrammar", importlib.metadata.version("xgrammar"), json.dumps(schema), text, accepted)
    return accepted


assert accepts({"type": "string", "pattern": "b"}, '"b"')
assert not accepts({"type": "string", "pattern": "b"}, '"abc"'), "this has changed"
assert not accepts({"type": "string", "pattern": "^b"}, '"bc"'), "this has changed"
PYTHON
