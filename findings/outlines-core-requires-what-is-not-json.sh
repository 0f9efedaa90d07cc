#!/bin/bash
# outlines-core 0.2.14, json_schema.build_regex_from_schema, which turns a JSON schema into a regular expression for what a model
# may write.
#
# A property's name and a pattern go into the expression without JSON's escapes, so a quote in one of them must be written
# as a bare quote: the only text that is let through is no JSON, and the right one is forbidden. A dot of a pattern lets a bare
# quote through. Of "allOf" with two objects each is written, one behind the other. Values of enum and const are escaped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q outlines-core==0.2.14
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import json
import re

from outlines_core.json_schema import build_regex_from_schema


def accepts(schema, text):
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def is_json(text):
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def thing(name):
    return {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]}


print("outlines-core", importlib.metadata.version("outlines-core"))
for schema, right, wrong in (
    (thing('a"b'), r'{"a\"b": 1}', '{"a"b": 1}'),
    ({"type": "string", "pattern": '^5" pipe$'}, r'"5\" pipe"', '"5" pipe"'),
    ({"type": "string", "pattern": "^.$"}, r'"\""', '"""'),
    ({"allOf": [thing("a"), thing("b")]}, '{"a": 1, "b": 2}', '{"a": 1}{"b": 2}'),
):
    print(json.dumps(schema), "lets through:", wrong, "forbids:", right)
    assert is_json(right) and not is_json(wrong)
    assert accepts(schema, wrong) and not accepts(schema, right), "this has changed"
assert accepts({"enum": ['a"b']}, r'"a\"b"') and not accepts({"enum": ['a"b']}, '"a"b"')
assert accepts({"type": "string"}, r'"a\"b"') and not accepts({"type": "string"}, '"a"b"')
PYTHON
