#!/bin/bash
# llguidance 1.9.1, a JSON schema for numbers with a bound.
#
# {"type": "number"} lets a model write 1e2 or 1e-3. With a minimum or a maximum that they keep, it may not: 0.001 is the only
# way, and a model that has begun with 1 can no longer mean it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llguidance==1.9.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import json

import llguidance


class Bytes:  # a token for each byte
    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def accepts(schema, text):
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.is_error(), matcher.get_error()
    accepted = matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()
    print("llguidance", importlib.metadata.version("llguidance"), json.dumps(schema), text, accepted)
    return accepted


for text in ("1e2", "1E+2", "1e-3"):
    assert accepts({"type": "number"}, text)
    assert not accepts({"type": "number", "minimum": 0}, text), "this has changed"
    assert not accepts({"type": "number", "maximum": 1000}, text), "this has changed"
assert accepts({"type": "number", "minimum": 0}, "100")
assert accepts({"type": "number", "minimum": 0}, "0.001")
PYTHON
