#!/bin/bash
# tokenizers 0.23.3, normalizers.NFC: tables of a Unicode that is older than version 11 (2018).
#
# Pairs that later versions compose stay apart, and later combining marks stay in the order in which they came, so equal texts
# become different tokens. Where a model's tokenizer.json asks for NFC, Python's unicodedata (Unicode 14 in Python 3.11) and
# tokenizers disagree on them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys
import unicodedata

from tokenizers.normalizers import NFC

assert unicodedata.unidata_version >= "13", "needs Python 3.9 or later"
nfc = NFC().normalize_str
pairs = []
for code in range(sys.maxunicode + 1):
    if 0xD800 <= code < 0xE000:
        continue
    apart = unicodedata.normalize("NFD", chr(code))
    if len(apart) == 2 and unicodedata.normalize("NFC", apart) == chr(code) and nfc(apart) != chr(code):
        pairs.append(f"U+{code:04X}")
marks = []
for code in range(sys.maxunicode + 1):
    kind = unicodedata.combining(chr(code))
    if kind == 0:
        continue
    other = "\u0334" if kind > 1 else "\u0301"  # of class 1, of class 230
    text = "a" + (chr(code) + other if kind > 1 else other + chr(code))
    if nfc(text) != unicodedata.normalize("NFC", text):
        marks.append(f"U+{code:04X}")
print("tokenizers", importlib.metadata.version("tokenizers"), "Unicode of Python", unicodedata.unidata_version)
print(len(pairs), "pairs are not composed:", *pairs[:6])
print(len(marks), "combining marks are not put in order, from", marks[0], "to", marks[-1])
assert pairs, "this has changed: all pairs are composed"
assert "U+07FD" in marks, "this has changed: a mark of Unicode 11 is put in order"
PYTHON
