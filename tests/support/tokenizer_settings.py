"""A small tokenizer of each kind, and by setting what can be changed in it."""

from __future__ import annotations

import struct
from math import inf
from typing import Any

from vocabularies import CUTS

from llama2cpp import Tokenizer, _core
from llama2cpp.export.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    AddedToken,
    Split,
    TextStep,
    Vocabulary,
)

KINDS = tuple(_core.tokenizer_settings())
PREFIXES = ("none", "always", "where_none", "first_where_none")
BEHAVIORS = ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}".encode()


def tokenizer_of(v: Vocabulary) -> Tokenizer:
    return Tokenizer.from_dict(v.to_dict())


def _base(kind: str) -> Vocabulary:
    """A small tokenizer of each kind, with two special pieces at the end: a control piece and a user-defined one."""
    marks = [b"<c>", b"<u>"]
    if kind == "byte_bpe":
        words = [b"he", b"ll", b" he", b"hell"]
        pieces = [bytes([byte]) for byte in range(256)] + words + [b"<s>", b"</s>"] + marks
        types = [NORMAL] * 260 + [CONTROL] * 3 + [USER_DEFINED]
        pairs = [(b"h", b"e"), (b"l", b"l"), (b" ", b"he"), (b"he", b"ll")]
        bos, end, unknown = 260, 261, -1
    else:
        letters = [SPACE, *(bytes([letter]) for letter in b"helo123")]
        pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256)), *letters]
        types = [
            UNKNOWN if kind not in ("ranked_bpe", "unigram") else CONTROL,
            CONTROL,
            CONTROL,
            *[BYTE] * 256,
            *[NORMAL] * 12,
        ]
        pieces += [b"he", b"ll", SPACE + b"he", b"hell"]
        pairs = [(b"h", b"e"), (b"l", b"l"), (SPACE, b"he"), (b"he", b"ll")]
        bos, end, unknown = 1, 2, 0
        if kind != "llama2.c":
            pieces, types = [*pieces, *marks], [*types, CONTROL, CONTROL]
    ids = {piece: id for id, piece in enumerate(pieces)}
    merges = [(ids[left], ids[right], ids[left + right]) for left, right in pairs]
    scores = [0.0] * len(pieces)
    for rank, (_, _, both) in enumerate(merges):
        scores[both] = -1.0 - rank
    for id in range(len(pieces)):
        if types[id] == NORMAL and not scores[id] and kind != "byte_bpe":
            scores[id] = -100.0 - id
    if kind == "llama2.c":
        pieces = [piece.replace(SPACE, b" ") for piece in pieces]
        pieces[1], pieces[2] = b"\n<s>\n", b"\n</s>\n"
    given: dict[str, Any] = {"scores": scores} if kind in ("llama2.c", "sentencepiece") else {"merges": merges}
    if kind == "sentencepiece":
        given |= {"add_space_prefix": True}
    if kind == "unigram":
        model = len(pieces) - len(marks)
        given = {"log_probs": [*scores[:model], inf, inf], "prefix": "where_none", "cuts_spaces": True}
    if kind == "ranked_bpe":
        given |= {"prefix": "always", "normalizes": True}
    return Vocabulary(
        kind=kind,
        pieces=pieces,
        types=types,
        bos_id=bos,
        eos_ids=[end],
        unk_id=unknown,
        unk_surface=b" \xe2\x81\x87 " if kind != "llama2.c" else b"<unk>",
        add_bos=kind != "byte_bpe",
        add_eos=False,
        chat_template="",
        **given,
    )


# "h" becomes "l": a unit for the root, which has its children 1 further, one for "h", and one for its value.
_UNITS = [1 << 10, *[0] * 127]
_UNITS[1 ^ ord("h")], _UNITS[1 ^ ord("h") ^ 1] = 1 << 10 | 1 << 8 | ord("h"), 1 << 31
CHARSMAP = struct.pack(f"<{1 + len(_UNITS)}I", 4 * len(_UNITS), *_UNITS) + b"l\0"

BASES = {kind: _base(kind) for kind in KINDS}
MARK = len(BASES["ranked_bpe"].pieces) - 2  # <c>
BYTE_MARK = len(BASES["byte_bpe"].pieces) - 2


def _typed(kind: str, id: int, type: str) -> list[str]:
    return [type if i == id else old for i, old in enumerate(BASES[kind].types)]


# By field: (kind, what is changed).
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "kind": [(kind, {}) for kind in KINDS],
    "pieces": [
        ("ranked_bpe", {"pieces": [*BASES["ranked_bpe"].pieces[:-1], b"<a mark>"]}),
        ("sentencepiece", {"pieces": [*BASES["sentencepiece"].pieces[:-1], b"<a mark>"]}),
        ("byte_bpe", {"pieces": [*BASES["byte_bpe"].pieces[:-1], b"<a mark>"]}),
    ],
    "scores": [("sentencepiece", {"scores": [-score for score in BASES["sentencepiece"].scores]})],
    "types": [
        ("sentencepiece", {"types": _typed("sentencepiece", MARK, USER_DEFINED)}),
        ("sentencepiece", {"types": _typed("sentencepiece", MARK - 1, UNUSED)}),
        ("sentencepiece", {"types": _typed("sentencepiece", MARK - 4, UNUSED)}),
        ("sentencepiece", {"types": _typed("sentencepiece", 10, NORMAL)}),
        ("ranked_bpe", {"types": _typed("ranked_bpe", MARK, USER_DEFINED)}),
        ("ranked_bpe", {"types": _typed("ranked_bpe", MARK, USER_DEFINED), "prefix": "none"}),
        ("byte_bpe", {"types": _typed("byte_bpe", BYTE_MARK, USER_DEFINED)}),
    ],
    "bos_id": [
        ("sentencepiece", {"bos_id": -1}),
        ("sentencepiece", {"bos_id": MARK}),
        ("ranked_bpe", {"bos_id": -1}),
        ("ranked_bpe", {"bos_id": -1, "add_bos": False}),
        ("byte_bpe", {"bos_id": -1}),
        ("byte_bpe", {"bos_id": BYTE_MARK, "add_bos": True}),
    ],
    "eos_ids": [
        ("sentencepiece", {"eos_ids": []}),
        ("sentencepiece", {"eos_ids": [MARK, 2]}),
        ("ranked_bpe", {"eos_ids": [MARK, 2, MARK + 1, 1]}),
        ("byte_bpe", {"eos_ids": []}),
        ("byte_bpe", {"eos_ids": [BYTE_MARK, 261]}),
    ],
    "unk_id": [
        ("sentencepiece", {"unk_id": -1, "types": _typed("sentencepiece", 0, CONTROL)}),
        ("sentencepiece", {"unk_id": -1, "types": _typed("sentencepiece", 10, NORMAL)}),
        ("ranked_bpe", {"unk_id": -1}),
        ("byte_bpe", {"unk_id": BYTE_MARK}),
    ],
    "unk_surface": [("sentencepiece", {"unk_surface": b"?"})],
    "add_space_prefix": [("sentencepiece", {"add_space_prefix": False})],
    "remove_extra_whitespaces": [("sentencepiece", {"remove_extra_whitespaces": True})],
    "prefix": [
        *(("ranked_bpe", {"prefix": prefix, "normalizes": False}) for prefix in PREFIXES if prefix != "always"),
        ("ranked_bpe", {"prefix": "none"}),
        ("unigram", {"prefix": "none"}),
        ("unigram", {"prefix": "first_where_none"}),
    ],
    "log_probs": [("unigram", {"log_probs": [0.1 - score for score in BASES["unigram"].log_probs[:-2]] + [inf] * 2})],
    "charsmap": [
        ("sentencepiece", {"charsmap": CHARSMAP}),
        ("unigram", {"charsmap": CHARSMAP, "steps": [TextStep("charsmap")]}),
    ],
    "unigram": [("sentencepiece", {"unigram": True}), ("sentencepiece", {"unigram": True, "charsmap": CHARSMAP})],
    "steps": [
        ("unigram", {"steps": steps})
        for steps in (
            [TextStep("nfc"), TextStep("strip_left"), TextStep("strip_right")],
            [TextStep("prepend", content=SPACE), TextStep("replace", rb" {2,}|\"", "é".encode())],
        )
    ],
    "cuts_white_space": [("unigram", {"cuts_white_space": True})],
    "cuts_spaces": [("unigram", {"cuts_spaces": False})],
    "normalizes": [("ranked_bpe", {"prefix": "none", "normalizes": normalizes}) for normalizes in (False, True)],
    "added": [
        (kind, {"added": [AddedToken(mark, lstrip, rstrip, normalized)]} | more)
        for kind, mark in (("ranked_bpe", MARK), ("byte_bpe", BYTE_MARK), ("unigram", MARK))
        for lstrip, rstrip, normalized in [(True, False, False), (False, True, False), (False, False, True)]
        for more in ({}, {"types": _typed(kind, mark, USER_DEFINED)})
    ],
    "pre_tokenizer": [
        ("byte_bpe", {"pre_tokenizer": cut, "ignore_merges": whole}) for cut in CUTS for whole in (False, True)
    ],
    "nfc": [("byte_bpe", {"nfc": True})],
    "splits": [
        ("byte_bpe", {"pre_tokenizer": "splits", "splits": [Split(pattern, behavior, invert)]})
        for pattern in (rb"\p{L}+|\s", '"\\\\[é\x7f]"+'.encode())
        for behavior in BEHAVIORS
        for invert in (False, True)
    ]
    + [("byte_bpe", {"pre_tokenizer": "splits"})],
    "merges": [
        ("byte_bpe", {"merges": []}),
        ("ranked_bpe", {"merges": []}),
        ("ranked_bpe", {"merges": BASES["ranked_bpe"].merges[::-1]}),
        ("byte_bpe", {"merges": BASES["byte_bpe"].merges[::-1]}),
    ],
    "merges_by_id": [("byte_bpe", {"merges_by_id": True, "merges": []})],
    "ignore_merges": [("byte_bpe", {"ignore_merges": True})],
    "add_bos": [
        ("sentencepiece", {"add_bos": False}),
        ("ranked_bpe", {"add_bos": False}),
        ("byte_bpe", {"add_bos": True}),
        ("byte_bpe", {"add_bos": True, "pre_tokenizer": "llama3", "ignore_merges": True}),
    ],
    "add_eos": [(kind, {"add_eos": True}) for kind in KINDS if kind != "llama2.c"],
    "chat_template": [(kind, {"chat_template": "{{ messages }}"}) for kind in KINDS],
    "template_names": [(kind, {"template_names": ["rag-2"], "template_texts": ["{{ documents }}"]}) for kind in KINDS],
    "template_texts": [
        (
            "byte_bpe",
            {"chat_template": "{{ 1 }}", "template_names": ["", "tool_use"], "template_texts": ["a", "{{ é }}"]},
        )
    ],
}
TOKENIZERS = {
    f"{name}-{i}-{kind}": (name, kind, changes)
    for name, cases in CASES.items()
    for i, (kind, changes) in enumerate(cases)
}
