"""tokenizer.json, the format of Hugging Face's tokenizers library."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict
from typing import Any

from .. import _core
from .vocabulary import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Split, TextStep, Vocabulary

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Make a tokenizer.json.

    Parameters
    ----------
    vocabulary : Vocabulary
        Any kind. SentencePiece's scores become merges as transformers derives them.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        For a vocabulary with pieces that are no text or come twice, or a setting that the format does not have.
    """
    if vocabulary.remove_extra_whitespaces:
        raise ValueError("tokenizer.json has no setting that removes extra spaces (remove_extra_whitespaces)")
    vocabulary = as_stored(vocabulary)
    _refuse_unused(vocabulary)
    bytes_known = vocabulary.types.count(BYTE)
    if vocabulary.kind != "byte_bpe" and 0 < bytes_known < 256:
        raise ValueError(
            f"tokenizer.json falls back to bytes where all have pieces, and this has {bytes_known} (types)"
        )
    if vocabulary.kind != "byte_bpe" and bytes_known == 0 and vocabulary.unk_id < 0:
        raise ValueError("there are neither pieces for bytes nor an unknown piece (unk_id)")
    try:
        spelled = [vocabulary.spelled(id).decode() for id in range(len(vocabulary.pieces))]
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer.json holds text, and a piece is none: {error.object!r}") from None
    ids: dict[str, int] = {}
    for id, piece in enumerate(spelled):
        if ids.setdefault(piece, id) != id:
            raise ValueError(f"tokenizer.json has no place for two pieces {piece!r}, ids {ids[piece]} and {id}")
    bytes_alone = vocabulary.kind == "byte_bpe"
    flags = {token.id: asdict(token) for token in vocabulary.added}
    end = _end_of_model(vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(id, spelled[id], kind in (CONTROL, UNKNOWN), flags.get(id, {}))
            for id, kind in enumerate(vocabulary.types)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ],
        "normalizer": _normalizer(vocabulary),
        "pre_tokenizer": _pre_tokenizer(vocabulary),
        "post_processor": _post_processor(vocabulary, spelled),
        "decoder": _byte_level(use_regex=True) if bytes_alone else _decoder(vocabulary.prefix),
        "model": _unigram_model(vocabulary, spelled)
        if vocabulary.kind == "unigram"
        else {
            "type": "BPE",
            "dropout": None,
            "unk_token": spelled[vocabulary.unk_id] if vocabulary.unk_id >= 0 and not bytes_alone else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": not bytes_alone,
            "byte_fallback": vocabulary.types.count(BYTE) >= 256,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": {piece: id for piece, id in ids.items() if id < end},
            "merges": [list(merge) for merge in vocabulary.spelled_merges()],
        },
    }


def as_stored(vocabulary: Vocabulary) -> Vocabulary:
    """Give what the file holds of a tokenizer: merges, for all kinds."""
    return vocabulary.with_escaped_spaces().without_lost_pieces().with_merges()


def _refuse_unused(vocabulary: Vocabulary) -> None:
    """Pieces that merges pass through and that are no ids of a text are SentencePiece's alone."""
    if vocabulary.kind == "byte_bpe":
        return
    made = {both for _, _, both in vocabulary.merges}
    for id, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True)):
        if kind == UNUSED and (id in made or len(piece.decode("utf-8", "replace")) == 1):
            raise ValueError(
                f"tokenizer.json has no unused pieces, such as {piece.decode('utf-8', 'replace')!r} (types)"
            )


def _end_of_model(vocabulary: Vocabulary) -> int:
    """Give the number of pieces that are the model's. Special ones at the end are not, as in Llama 3's file.

    The library numbers added tokens itself, from the end of the model on, unless the model has them.
    """
    end = len(vocabulary.types)
    while vocabulary.kind == "byte_bpe" and end > 0 and vocabulary.types[end - 1] in (CONTROL, UNKNOWN, USER_DEFINED):
        end -= 1
    return end


def _added(id: int, content: str, special: bool, flags: dict[str, Any]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **plain, **flags, "special": special}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _byte_level_cuts(vocabulary: Vocabulary) -> dict[str, Any]:
    cut = vocabulary.pre_tokenizer
    if cut == "gpt2":
        return _byte_level(use_regex=True)
    if cut == "smollm":
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [first, _byte_level(use_regex=True)]}
    if cut == "splits":
        splits = vocabulary.splits
    else:
        splits = [Split(pattern.encode(), "isolated", invert=False) for pattern in _core.pre_tokenizers()[cut]]
    return {"type": "Sequence", "pretokenizers": [*map(_split, splits), _byte_level(use_regex=False)]}


def _split(split: Split) -> dict[str, Any]:
    behavior = "".join(word.capitalize() for word in split.behavior.split("_"))
    return {
        "type": "Split",
        "pattern": {"Regex": split.pattern.decode()},
        "behavior": behavior,
        "invert": split.invert,
    }


def _unigram_model(vocabulary: Vocabulary, spelled: list[str]) -> dict[str, Any]:
    """Give the pieces that are the model's, which are those with a score, and come before all others."""
    known = [not math.isinf(score) for score in vocabulary.log_probs]
    end = known.count(True)
    if not all(known[:end]):
        raise ValueError(
            f"tokenizer.json numbers a Unigram model's pieces from 0 on, and piece {known.index(False)} is none"
        )
    if vocabulary.unk_id >= end:
        raise ValueError(f"the unknown piece (unk_id) is none of the {end} pieces of the model")
    return {
        "type": "Unigram",
        "unk_id": vocabulary.unk_id if vocabulary.unk_id >= 0 else None,
        "vocab": [[piece, score] for piece, score in zip(spelled[:end], vocabulary.log_probs[:end], strict=True)],
        "byte_fallback": BYTE in vocabulary.types,
    }


def _pre_tokenizer(vocabulary: Vocabulary) -> dict[str, Any] | None:
    if vocabulary.kind == "byte_bpe":
        return _byte_level_cuts(vocabulary)
    if not vocabulary.cuts_white_space:
        return _metaspace(vocabulary)
    return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _metaspace(vocabulary)]}


def _step(vocabulary: Vocabulary, step: TextStep) -> dict[str, Any]:
    content = step.content.decode()
    if step.kind == "charsmap":
        return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(vocabulary.charsmap).decode()}
    if step.kind == "replace":
        return {"type": "Replace", "pattern": {"Regex": step.pattern.decode()}, "content": content}
    if step.kind == "prepend":
        return {"type": "Prepend", "prepend": content}
    if step.kind == "nfc":
        return {"type": "NFC"}
    return {"type": "Strip", "strip_left": step.kind == "strip_left", "strip_right": step.kind == "strip_right"}


def _normalizer(vocabulary: Vocabulary) -> dict[str, Any] | None:
    if vocabulary.kind == "unigram":
        steps = [_step(vocabulary, step) for step in vocabulary.steps]
        return {"type": "Sequence", "normalizers": steps} if steps else None
    if vocabulary.nfc:
        return {"type": "NFC"}
    if not vocabulary.normalizes:
        return None
    if vocabulary.prefix == "always":
        return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, _REPLACE]}
    return _REPLACE


_SCHEMES = {"none": "never", "where_none": "always", "first_where_none": "first"}


def _metaspace(vocabulary: Vocabulary) -> dict[str, Any] | None:
    if vocabulary.normalizes:
        return None
    scheme = _SCHEMES[vocabulary.prefix]
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": vocabulary.cuts_spaces}


def _decoder(prefix: str) -> dict[str, Any]:
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix != "none":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


def _post_processor(vocabulary: Vocabulary, spelled: list[str]) -> dict[str, Any] | None:
    begin = [spelled[vocabulary.bos_id]] if vocabulary.add_bos and vocabulary.bos_id >= 0 else []
    end = [spelled[vocabulary.eos_ids[0]]] if vocabulary.add_eos and vocabulary.eos_ids else []
    if not begin and not end:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        token = [{"SpecialToken": {"id": piece, "type_id": type_id}} for piece in begin]
        text: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        return [*token, *text, *({"SpecialToken": {"id": piece, "type_id": type_id}} for piece in end)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            piece: {"id": piece, "ids": [spelled.index(piece)], "tokens": [piece]} for piece in {*begin, *end}
        },
    }
