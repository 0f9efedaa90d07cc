"""No plain text becomes a special piece: in every kind of tokenizer, for pieces of every length, merged or not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama
from tokenizer_files import SentencePieceModel, tokenizer_bin
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference
from vocabularies import CONTROL, STAND_INS, USER_DEFINED, stand_ins

import llama2cpp
from llama2cpp import Tokenizer
from llama2cpp.dialogue.chat_format import ChatFormat

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# One character or more, of one byte or more; the letters of the longer ones are pieces that merges join.
TOKENS = ["\u00a7", "\U0001f600", "$", "ab", "abx", "\u00a7x", "<|a|>"]
LETTERS = "abxy<|>"


def splits(token: str) -> list[tuple[str, str]]:
    """Merges that make the token from its characters, left to right."""
    return [(token[:i], token[i]) for i in range(1, len(token))]


def character_pieces(token: str) -> list[str]:
    inner = [token[:i] for i in range(2, len(token))]
    singles = [c for c in dict.fromkeys(LETTERS + token) if c != token]
    return [*singles, *(piece for piece in inner if piece not in singles)]


def sentencepiece_model(path: Path, token: str, special: bool) -> Tokenizer:
    pieces = [(piece, -float(i), 1) for i, piece in enumerate([SPACE, *character_pieces(token)])]
    path.write_bytes(SentencePieceModel([*pieces, (token, 0.0, 3 if special else 4)], byte_fallback=True).to_bytes())
    return Tokenizer.from_file(path)


def llama2c(path: Path, token: str, special: bool) -> Tokenizer:
    """Its special pieces are the ids 1 and 2."""
    names = ["<unk>", token if special else "\n<s>\n", "\n</s>\n", *BYTES, " ", *character_pieces(token)]
    path.write_bytes(tokenizer_bin([(name.encode(), -float(i)) for i, name in enumerate(names)]))
    return Tokenizer.from_file(path)


def tiktoken(path: Path, token: str, special: bool) -> Tokenizer:
    """Its special pieces have the names that Llama 3 has. A text with one as an ordinary piece is that piece."""
    pieces = [bytes([byte]) for byte in range(256)] + ([b"<|eot_id|>"] if special else [])
    lines = [b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    path.write_bytes(b"".join(lines))
    return Tokenizer.from_file(path)


def from_json(path: Path, tokenizer: Any, token: str, special: bool) -> Tokenizer:
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add([AddedToken(token, special=special, normalized=False)])
    tokenizer.save(str(path))
    return Tokenizer.from_file(path)


def byte_level_json(path: Path, token: str, special: bool, in_model: bool = False) -> Tokenizer:
    pieces = list(STAND_INS) + ([stand_ins(token.encode())] if in_model else [])
    merges = []
    for i in range(1, len(token.encode())):
        left, right = stand_ins(token.encode()[:i]), stand_ins(token.encode()[i : i + 1])
        pieces += [] if left + right in pieces or (not in_model and i + 1 == len(token.encode())) else [left + right]
        merges += [(left, right)] if left + right in pieces else []
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Reference(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return from_json(path, tokenizer, token, special)


def ranked_json(path: Path, token: str, special: bool, in_model: bool, metaspace: bool) -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *BYTES, SPACE, *character_pieces(token), *([token] if in_model else [])]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    merges = [(left, right) for left, right in splits(token) if {left, right, left + right} <= vocab.keys()]
    tokenizer = Reference(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return from_json(path, tokenizer, token, special)


def from_gguf(path: Path, **metadata: Any) -> Tokenizer:
    settings = {f"tokenizer__ggml__{key}": setting for key, setting in metadata.items()}
    path.write_bytes(llama(len(metadata["tokens"]), **settings).to_bytes())
    tokenizer = llama2cpp.load(path, threads=1).tokenizer
    assert tokenizer is not None
    return tokenizer


def gguf_llama(path: Path, token: str, special: bool) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, SPACE, *character_pieces(token), token]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 260), 3 if special else 4]
    return from_gguf(
        path, model="llama", tokens=tokens, token_type=types, scores=[-float(i) for i in range(len(tokens))]
    )


def gguf_gpt2(path: Path, token: str, special: bool) -> Tokenizer:
    """With merges that make the token from its bytes. A byte that is the token has no other piece."""
    data = token.encode()
    parts = [stand_ins(data[:i]) for i in range(1, len(data))]
    tokens = [piece for piece in dict.fromkeys([*STAND_INS, "<|", *parts]) if piece != token]
    types = [1] * len(tokens) + [3 if special else 4]
    tokens.append(token)
    merges = ["< |", *(f"{stand_ins(data[:i])} {stand_ins(data[i : i + 1])}" for i in range(1, len(data)))]
    known = [merge for merge in merges if {*merge.split(), merge.replace(" ", "")} <= {*tokens}]
    return from_gguf(
        path, model="gpt2", pre="gpt-2", tokens=tokens, token_type=types, merges=list(dict.fromkeys(known))
    )


Maker = Callable[[Path, str, bool], Tokenizer]
KINDS: dict[str, Maker] = {
    "SentencePiece model": sentencepiece_model,
    "llama2.c": llama2c,
    "tiktoken": tiktoken,
    "byte-level BPE": byte_level_json,
    "byte-level BPE, token in its model": lambda path, token, special: byte_level_json(path, token, special, True),
    "BPE by rank": lambda path, token, special: ranked_json(path, token, special, False, False),
    "BPE by rank, token in its model": lambda path, token, special: ranked_json(path, token, special, True, False),
    "BPE by rank, Metaspace": lambda path, token, special: ranked_json(path, token, special, False, True),
    "BPE by rank, Metaspace, in its model": lambda path, token, special: ranked_json(path, token, special, True, True),
    "GGUF llama": gguf_llama,
    "GGUF gpt2": gguf_gpt2,
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_text(tmp_path: Path, kind: str, token: str, special: bool) -> None:
    tokenizer = KINDS[kind](tmp_path / "tokenizer.json", token, special)
    settings = tokenizer.to_dict()
    pieces, types = settings["pieces"], settings["types"]
    text = "<|eot_id|>" if kind == "tiktoken" else token
    name = text.encode()
    marks = {id for id, piece in enumerate(pieces) if piece == name and types[id] == CONTROL}
    user_defined = {id for id, piece in enumerate(pieces) if piece == name and types[id] == USER_DEFINED}
    assert marks or user_defined or not special or kind == "llama2.c"
    specials = {id for id, kind_ in enumerate(types) if kind_ == CONTROL}
    # A byte whose only piece is the token has none; "\u00a7" is also how files spell the byte 0xA7.
    whole = not (kind.startswith(("byte", "GGUF gpt2")) and token in STAND_INS)
    for around in ("{}", "x{}y", "{0}{0}", "a {} b", "{0}b{0}"):
        written = around.format(text)
        ids = tokenizer.encode(written, bos=False, eos=False)
        assert not specials & set(ids), written
        if whole:  # the normaliser of a BPE by rank puts a space before each part
            assert tokenizer.decode(ids).replace(" ", "") == written.replace(" ", "")
        if marks:
            assert marks & set(tokenizer.encode(written, bos=False, special=True)), written
        if user_defined:
            assert user_defined & set(ids), written
    chat = ChatFormat(tokenizer, "{{ messages[0].content }}")
    ids = chat.encode([{"role": "user", "content": f"x{text}y"}])
    assert not specials & set(ids[1:] if ids[0] == tokenizer.bos_id else ids)


def test_a_special_byte_on_the_way_to_a_longer_piece(tmp_path: Path) -> None:
    """A byte whose only piece is special is none in plain text; merged with others it is what they are."""
    vocab = {piece: id for id, piece in enumerate([*STAND_INS, "!!", "!a"])}
    tokenizer = Reference(models.BPE(vocab, [("!", "!"), ("!", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = from_json(tmp_path / "tokenizer.json", tokenizer, "!", True)
    mark = vocab["!"]
    assert ours.encode("!!", bos=False) == [vocab["!!"]]
    assert ours.encode("x !!!a", bos=False) == [vocab["x"], vocab["\u0120"], vocab["!!"], vocab["a"]]
    assert ours.encode("x!", bos=False) == [vocab["x"]]
    assert ours.encode("x!", bos=False, special=True) == [vocab["x"], mark]


def test_a_token_that_is_not_the_model_s(tmp_path: Path) -> None:
    """Llama 2's normaliser puts U+2581 before a token that is looked for in normalised text: elsewhere it is bytes."""
    for normalized in (True, False):
        tokenizer = Reference(
            models.BPE(
                {piece: id for id, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, SPACE, *"xy"])},
                [],
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        tokenizer.add_tokens([AddedToken("\u00a7", special=False, normalized=normalized)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
        for text in ("x\u00a7y", "\u00a7", " \u00a7", "x \u00a7"):
            assert ours.encode(text, bos=False) == tokenizer.encode(text, add_special_tokens=False).ids
    assert json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
