"""Tokenizer files for the tests: llama2.c's tokenizer.bin, SentencePiece's .model and tiktoken's lines."""

from __future__ import annotations

import base64
import struct
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama2cpp import Tokenizer

SPACE = "\u2581"
ALL_BYTES = [bytes([byte]) for byte in range(256)]


def open_bytes(data: bytes, vocab_size: int = 0) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer"
        path.write_bytes(data)
        return Tokenizer.from_file(path, vocab_size)


Pieces = Sequence[tuple[bytes, float]]


def tokenizer_bin(pieces: Pieces) -> bytes:
    """llama2.c's file."""
    longest = max(len(piece) for piece, _ in pieces)
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", score, len(text)) + text for text, score in pieces)


def read_tokenizer_bin(data: bytes) -> list[tuple[bytes, float]]:
    pieces = []
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append((data[at + 8 : at + 8 + length], score))
        at += 8 + length
    return pieces


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_PIECES = [f"<0x{value:02X}>" for value in range(256)]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(fields: Iterable[tuple[int, int | float | bytes]]) -> bytes:
    """A protocol buffer: ints are varints, floats are fixed32."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3) + varint(value)
    return out


@dataclass
class SentencePieceModel:
    """A .model: <unk>, <s>, </s>, the byte pieces if wanted, then `pieces` as (text, score, type)."""

    pieces: list[tuple[str, float, int]]
    byte_fallback: bool = False
    dummy_prefix: bool = True
    tidy: bool = False
    trainer: list[tuple[int, int | float | bytes]] = field(default_factory=list)
    normalizer: list[tuple[int, int | float | bytes]] = field(default_factory=list)

    def all_pieces(self) -> list[tuple[str, float, int]]:
        first = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
        return first + [(text, 0.0, BYTE) for text in BYTE_PIECES if self.byte_fallback] + self.pieces

    def to_bytes(self) -> bytes:
        pieces = [message([(1, text.encode()), (2, score), (3, kind)]) for text, score, kind in self.all_pieces()]
        trainer = message([(3, 2), (35, int(self.byte_fallback)), *self.trainer])
        normalizer = message([(1, b"identity"), (3, int(self.dummy_prefix)), (4, int(self.tidy)), *self.normalizer])
        return message([(1, piece) for piece in pieces] + [(2, trainer), (3, normalizer)])


def lines_of(pieces: list[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces))
