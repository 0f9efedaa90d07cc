#!/bin/bash
# lm-format-enforcer 0.11.3, JsonSchemaParser with a list of types.
#
# {"type": ["object", "null"], ...} is how a value that may be null is written, in schemas for tools above all. Where "type" is
# a list, even of one name, what stands beside it has no effect: properties, required, items, pattern and the limits of
# length. Where the same is written with anyOf, they are kept.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q lm-format-enforcer==0.11.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import json

from lmformatenforcer import JsonSchemaParser


def accepts(schema, text):
    parser = JsonSchemaParser(schema)
    for character in text:
        if character not in parser.get_allowed_characters():
            return False
        parser = parser.add_character(character)
    return parser.can_end()


PERSON = {"properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
print("lm-format-enforcer", importlib.metadata.version("lm-format-enforcer"))
for kind, rest, allowed, forbidden in (
    ("object", PERSON, '{"age": 3}', "{}"),
    ("object", PERSON, '{"age": 3}', '{"age": "x"}'),
    ("object", PERSON, '{"age": 3}', '{"name": [1]}'),
    ("array", {"items": {"type": "integer"}}, "[1]", '["a"]'),
    ("array", {"items": {"type": "integer"}, "maxItems": 1}, "[1]", "[1, 2]"),
    ("string", {"maxLength": 2}, '"ab"', '"abc"'),
    ("string", {"pattern": "a+"}, '"aa"', '"b"'),
):
    one = {"type": kind, **rest}
    either = {"anyOf": [one, {"type": "null"}]}
    for schema in (one, either):
        assert accepts(schema, allowed) and not accepts(schema, forbidden)
    for types in ([kind, "null"], [kind]):
        listed = {"type": types, **rest}
        print(json.dumps(listed), "accepts", forbidden)
        assert accepts(listed, allowed)
        assert accepts(listed, forbidden), "this has changed"
PYTHON
