"""What a tokenizer is made of, for writers of tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .._core import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(6)
_KINDS = ("llama2.c", "sentencepiece", "byte_bpe", "ranked_bpe")
_PREFIXES = ("none", "always", "where_none", "first_where_none")
_PRE_TOKENIZERS = ("gpt2", "llama3", "smollm", "ggml_default", "qwen2", "seed_coder")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}".encode()  # how SentencePiece writes a space

# Bytes as characters that can be seen, as files of byte-level BPE write them.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
STAND_INS = {byte: chr(byte) for byte in _SEEN} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's pieces and rules; the fields mean what those of the C++ Vocabulary mean.

    Attributes
    ----------
    kind : str
        "llama2.c", "sentencepiece", "byte_bpe" or "ranked_bpe". Pieces of byte_bpe are raw bytes, those of the others
        text, in which all but llama2.c's write a space as U+2581.
    merges : list of (int, int, int)
        Left id, right id and the id of both; the earlier ones first.
    """

    kind: str
    pieces: list[bytes]
    scores: list[float]
    types: list[int]
    bos_id: int
    eos_ids: list[int]
    unk_id: int
    add_space_prefix: bool
    remove_extra_whitespaces: bool
    pre_tokenizer: str
    merges: list[tuple[int, int, int]]
    merges_by_id: bool
    ignore_merges: bool
    add_bos: bool
    add_eos: bool
    chat_template: str
    prefix: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Take a tokenizer apart: what its pickle holds."""
        reduced = tokenizer.__reduce_ex__(2)
        assert isinstance(reduced, tuple)
        kind, pieces, scores, types, bos, eos, unk, _, prefix_space, extra, pre, merges, by_id, *rest = reduced[2]
        ignore, add_bos, add_eos, template, prefix = rest[:5]
        return cls(
            kind=_KINDS[kind],
            pieces=list(pieces),
            scores=list(scores),
            types=list(types),
            bos_id=bos,
            eos_ids=list(eos),
            unk_id=unk,
            add_space_prefix=prefix_space,
            remove_extra_whitespaces=extra,
            pre_tokenizer=_PRE_TOKENIZERS[pre],
            merges=[(left, right, both) for left, right, both in merges],
            merges_by_id=by_id,
            ignore_merges=ignore,
            add_bos=add_bos,
            add_eos=add_eos,
            chat_template=template.decode("utf-8", "replace"),
            prefix=_PREFIXES[prefix],
        )

    def with_escaped_spaces(self) -> Vocabulary:
        """Spell llama2.c's pieces as SentencePiece would: they are its pieces with spaces, and names between lines."""
        if self.kind != "llama2.c":
            return self
        pieces = [
            piece.strip(b"\n") if kind == CONTROL else piece if kind == UNKNOWN else piece.replace(b" ", _SPACE)
            for piece, kind in zip(self.pieces, self.types, strict=True)
        ]
        return replace(self, kind="sentencepiece", pieces=pieces, prefix="always")

    def with_merges(self) -> Vocabulary:
        """List the merges that follow from ids (tiktoken) or from scores (SentencePiece)."""
        if self.kind == "byte_bpe":
            return replace(self, merges=list(_merges_by_id(self)), merges_by_id=False) if self.merges_by_id else self
        if self.kind == "ranked_bpe":
            return self
        return replace(self, kind="ranked_bpe", merges=_merges_by_score(self))

    def with_scores(self) -> Vocabulary:
        """Turn the rank of merges into SentencePiece's scores: what is merged first has the highest."""
        if self.kind != "ranked_bpe":
            return self
        ranks: dict[int, int] = {}
        for rank, (_, _, both) in enumerate(self.merges):
            ranks.setdefault(both, rank)
        lowest = float(len(self.merges))
        scores = [-float(ranks[id]) if id in ranks else -lowest for id in range(len(self.pieces))]
        return replace(self, kind="sentencepiece", scores=scores, add_space_prefix=self.prefix != "none")

    def spelled(self, id: int) -> bytes:
        """Give a piece as files spell it: byte-level ones in stand-ins."""
        if self.kind == "byte_bpe" and self.types[id] == NORMAL:
            return "".join(STAND_INS[byte] for byte in self.pieces[id]).encode()
        return self.pieces[id]

    def spelled_merges(self) -> Iterator[tuple[str, str]]:
        """Give the merges as files spell them."""
        for left, right, _ in self.merges:
            yield self.spelled(left).decode(), self.spelled(right).decode()


def _merges_by_id(vocabulary: Vocabulary) -> Iterator[tuple[int, int, int]]:
    """For each piece the two that it is last merged from, if only pieces before it exist."""
    ids: dict[bytes, int] = {}
    for id, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True)):
        if kind == NORMAL:
            ids.setdefault(piece, id)
    for piece, id in ids.items():
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 2:
            pairs = [(ids.get(parts[i] + parts[i + 1], id), i) for i in range(len(parts) - 1)]
            best, at = min(pairs)
            if best >= id:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2 and parts[0] in ids and parts[1] in ids:
            yield ids[parts[0]], ids[parts[1]], id


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[int, int, int]]:
    """Every way to cut a piece in two pieces; of higher score first, then in the order of ids."""
    ids: dict[str, int] = {}
    for id, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True)):
        if kind in (NORMAL, UNUSED):
            ids.setdefault(piece.decode("utf-8", "surrogateescape"), id)
    merges = [
        (ids[piece[:cut]], ids[piece[cut:]], id)
        for piece, id in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return sorted(merges, key=lambda merge: (-vocabulary.scores[merge[2]], merge[2], merge[0], merge[1]))
