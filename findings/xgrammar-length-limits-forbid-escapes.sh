#!/bin/bash
# xgrammar 0.2.9, compile_json_schema with "minLength" or "maxLength".
#
# Without a limit, strings may hold line ends, quotes and backslashes as JSON's escapes. With any limit on their length, however
# far off, they may not: a model that is asked for at most 1,000 characters can write none of the three.
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


for text in (r'"a\nb"', r'"a\"b"', r'"a\\b"'):
    assert json.loads(text) in ("a\nb", 'a"b', "a\\b")
    assert accepts({"type": "string"}, text)
    assert not accepts({"type": "string", "maxLength": 1000}, text), "this has changed"
    assert not accepts({"type": "string", "minLength": 1}, text), "this has changed"
assert accepts({"type": "string", "maxLength": 1000}, '"ab"')
PYTHON
