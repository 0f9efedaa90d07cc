"""Writes the small good files that a fuzz target starts from: ``python tests/fuzz_corpus.py TARGET FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import checkpoints
from test_tokenizer import NORMAL, USER_DEFINED, SentencePieceModel, tokenizer_bin


def tokenizers(folder: Path) -> None:
    """Two bytes (flags and the length of a text), the text, and the file: see fuzz_tokenizer.cpp."""
    texts = ["a", "b", "c", "ab", "abc", "é", " ", " a"]
    pieces = [(text.encode(), -float(i)) for i, text in enumerate(texts)]
    special = [(text, 0.0) for text in (b"<unk>", b"\n<s>\n", b"\n</s>\n")]
    raw_bytes = [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    model = [(text.replace(" ", "\u2581"), -float(i), NORMAL) for i, text in enumerate(texts)]
    files = {
        "bin": tokenizer_bin([*special, *raw_bytes, *pieces]),
        "bin_small": tokenizer_bin(pieces),
        "model": SentencePieceModel([*model, ("cab", 0.0, USER_DEFINED)]).to_bytes(),
        "model_bytes": SentencePieceModel(model, byte_fallback=True, dummy_prefix=False, tidy=True).to_bytes(),
    }
    for name, data in files.items():
        for flags in range(8):
            text = b"abc ab\xc3\xa9<s>"
            (folder / f"{name}_{flags}").write_bytes(bytes([flags, len(text)]) + text + data)


def main(target: str, folder: str) -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if target == "fuzz_checkpoint":
        checkpoints.write_corpus(path)
    elif target == "fuzz_tokenizer":
        tokenizers(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
