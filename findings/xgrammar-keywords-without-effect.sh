#!/bin/bash
# xgrammar 0.2.9, compile_json_schema with keywords that it has no grammar for.
#
# Where a schema cannot be kept, llguidance refuses it by the keyword's name. Here "not", "uniqueItems", "if" and "dependentRequired",
# a required property that "properties" does not list, and what stands beside "$ref" have no effect: what the schema forbids
# is let through, without an error.
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


integers = {"a": {"type": "integer"}, "b": {"type": "integer"}}
whole = {"type": "object", "properties": integers}
for schema, forbidden in (
    ({"type": "integer", "not": {"const": 3}}, "3"),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]"),
    ({**whole, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, '{"a": 1}'),
    ({**whole, "dependentRequired": {"a": ["b"]}}, '{"a": 1}'),
    ({**whole, "required": ["c"]}, '{"a": 1}'),
    ({"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 5}, "3"),
):
    assert accepts(schema, forbidden), "this has changed"
assert not accepts({**whole, "required": ["b"]}, '{"a": 1}')  # what it has a grammar for is kept
assert not accepts({"type": "integer", "minimum": 5}, "3")
PYTHON
