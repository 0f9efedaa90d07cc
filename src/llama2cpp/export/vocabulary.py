"""What a tokenizer is made of, for writers of tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .._core import Tokenizer, tokenizer_settings

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    *("normal", "unknown", "control"),
    *("user_defined", "unused", "byte"),
)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}".encode()  # how SentencePiece writes a space

# Bytes as characters that can be seen, as files of byte-level BPE write them.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
STAND_INS = {byte: chr(byte) for byte in _SEEN} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}


@dataclass(frozen=True)
class AddedToken:
    """What a tokenizer.json says of a token that is found in the text before anything is merged.

    Attributes
    ----------
    id : int
        Which piece it is.
    lstrip, rstrip : bool
        It takes the white space before it, or behind it.
    normalized : bool
        It is looked for after the others, in the text as it then is.
    """

    id: int
    lstrip: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True)
class Split:
    """One step of cutting a text into words.

    Attributes
    ----------
    pattern : bytes
        A regular expression, as UTF-8.
    behavior : str
        What becomes of its matches: "isolated", "removed", "merged_with_previous", "merged_with_next" or "contiguous".
    invert : bool
        What lies between the matches is taken for the matches.
    """

    pattern: bytes
    behavior: str
    invert: bool


@dataclass(frozen=True)
class TextStep:
    """One step of normalising a text.

    Attributes
    ----------
    kind : str
        "charsmap", "nfc", "replace", "prepend", "strip_left" or "strip_right".
    pattern : bytes
        replace: a regular expression, as UTF-8.
    content : bytes
        replace, prepend: the text, as UTF-8.
    """

    kind: str
    pattern: bytes = b""
    content: bytes = b""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's pieces and rules, by the names of `Tokenizer.to_dict`; they mean what those in C++ mean.

    Attributes
    ----------
    kind : str
        "llama2.c", "sentencepiece", "byte_bpe", "ranked_bpe" or "unigram". Pieces of byte_bpe are raw bytes, those of
        the others text, in which all but llama2.c's write a space as U+2581.
    types : list of str
        NORMAL, CONTROL, ... for each piece.
    merges : list of (int, int, int)
        Left id, right id and the id of both; the earlier ones first.
    """

    kind: str
    pieces: list[bytes]
    types: list[str]
    bos_id: int
    eos_ids: list[int]
    unk_id: int
    unk_surface: bytes
    add_bos: bool
    add_eos: bool
    chat_template: str
    template_names: list[str] = field(default_factory=list)  # of chat templates for other uses
    template_texts: list[str] = field(default_factory=list)
    # Those that not every kind has: see `settings`.
    scores: list[float] = field(default_factory=list)
    unigram: bool = False
    charsmap: bytes = b""
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    nfc: bool = False
    pre_tokenizer: str = "gpt2"
    splits: list[Split] = field(default_factory=list)
    merges: list[tuple[int, int, int]] = field(default_factory=list)
    merges_by_id: bool = False
    ignore_merges: bool = False
    added: list[AddedToken] = field(default_factory=list)
    prefix: str = "none"
    normalizes: bool = False
    log_probs: list[float] = field(default_factory=list)
    steps: list[TextStep] = field(default_factory=list)
    cuts_white_space: bool = False
    cuts_spaces: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Take a tokenizer apart. What that has more than this knows is an error."""
        settings = tokenizer.to_dict()
        settings["chat_template"] = settings["chat_template"].decode("utf-8", "replace")
        for name in ("template_names", "template_texts"):
            settings[name] = [text.decode("utf-8", "replace") for text in settings[name]]
        if "added" in settings:
            settings["added"] = [AddedToken(**token) for token in settings["added"]]
        if "splits" in settings:
            settings["splits"] = [Split(**split) for split in settings["splits"]]
        if "steps" in settings:
            settings["steps"] = [TextStep(**step) for step in settings["steps"]]
        return cls(**settings)

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of what its kind has, without the kind itself."""
        return tokenizer_settings()[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Give what `Tokenizer.from_dict` makes a tokenizer of."""
        settings = {name: getattr(self, name) for name in ("kind", *self.settings)}
        settings["chat_template"] = self.chat_template.encode()
        for name in ("template_names", "template_texts"):
            settings[name] = [text.encode() for text in settings[name]]
        if "added" in settings:
            settings["added"] = [asdict(token) for token in self.added]
        if "splits" in settings:
            settings["splits"] = [asdict(split) for split in self.splits]
        if "steps" in settings:
            settings["steps"] = [asdict(step) for step in self.steps]
        return settings

    def with_escaped_spaces(self) -> Vocabulary:
        """Spell llama2.c's pieces as SentencePiece would: they are its pieces with spaces, and names between lines."""
        if self.kind != "llama2.c":
            return self
        pieces = [
            piece.strip(b"\n") if kind == CONTROL else piece if kind == UNKNOWN else piece.replace(b" ", _SPACE)
            for piece, kind in zip(self.pieces, self.types, strict=True)
        ]
        return replace(self, kind="sentencepiece", pieces=pieces, add_space_prefix=True)

    def without_lost_pieces(self) -> Vocabulary:
        """Call user-defined pieces with plain spaces unused: SentencePiece looks for them where spaces are U+2581."""
        lost = [
            self.kind == "sentencepiece" and kind == USER_DEFINED and b" " in piece
            for piece, kind in zip(self.pieces, self.types, strict=True)
        ]
        if self.charsmap and any(lost):
            piece = self.pieces[lost.index(True)].decode("utf-8", "replace")
            raise ValueError(
                f"the user-defined piece {piece!r} is in no text and keeps its characters as they are (types, charsmap)"
            )
        return replace(self, types=[UNUSED if gone else kind for gone, kind in zip(lost, self.types, strict=True)])

    def with_merges(self) -> Vocabulary:
        """List the merges that follow from ids (tiktoken) or from scores (SentencePiece).

        SentencePiece asks for the joined piece alone, and merges by rank for the two that it is joined of: texts of
        many equal letters may get other ids, as in transformers' own conversion. User-defined pieces, which
        SentencePiece finds before it merges, become added tokens.

        Raises
        ------
        ValueError
            For a Unigram model or a table of characters, and for user-defined pieces where a space is put before a
            text: `tokenizers` puts one before what follows an added token, too.
        """
        if self.kind == "byte_bpe":
            return replace(self, merges=list(_merges_by_id(self)), merges_by_id=False) if self.merges_by_id else self
        if self.kind in ("ranked_bpe", "unigram"):
            return self
        if self.unigram or self.charsmap:
            name = "unigram" if self.unigram else "charsmap"
            raise ValueError(f"tokenizer.json has no place for SentencePiece's own rules of these ({name})")
        found = [id for id, kind in enumerate(self.types) if kind == USER_DEFINED]
        if found and self.add_space_prefix:
            piece = self.pieces[found[0]].decode("utf-8", "replace")
            raise ValueError(
                f"tokenizer.json would put a space behind each user-defined piece, such as {piece!r}, where a space is "
                "put before a text (types, add_space_prefix)"
            )
        return replace(
            self,
            kind="ranked_bpe",
            merges=_merges_by_score(self),
            prefix="always" if self.add_space_prefix else "none",
            normalizes=True,
            # SentencePiece looks for them where spaces are U+2581 already, as they are in the pieces.
            added=[AddedToken(id, lstrip=False, rstrip=False, normalized=True) for id in found],
        )

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

    @property
    def templates(self) -> dict[str, str]:
        """All chat templates by name, "default" among them."""
        usual = {"default": self.chat_template} if self.chat_template else {}
        return usual | dict(zip(self.template_names, self.template_texts, strict=True))

    @property
    def puts_bos(self) -> bool:
        """Whether BOS is put before a text, which takes that there is one."""
        return self.add_bos and self.bos_id >= 0

    @property
    def puts_eos(self) -> bool:
        """Whether EOS is put behind a text, which takes that there is one."""
        return self.add_eos and bool(self.eos_ids)

    def check_scores(self) -> None:
        """Raise ValueError for what files of scores have no place for, and the same pieces with merges have."""
        if self.kind == "unigram":
            raise ValueError(
                "it is not written with the Unigram model of a tokenizer.json, whose sums and steps of normalising are "
                "not SentencePiece's (log_probs)"
            )
        for token in self.added:
            for name in ("lstrip", "rstrip"):
                if getattr(token, name):
                    piece = self.pieces[token.id].decode("utf-8", "replace")
                    raise ValueError(f"it has no place for {name} of the added token {piece!r}")
        if self.kind == "byte_bpe":
            return
        if self.kind == "ranked_bpe" and self.prefix not in ("always", "none"):
            scheme = {"where_none": "always", "first_where_none": "first"}[self.prefix]
            raise ValueError(
                f"it has no place for Metaspace's prepend_scheme {scheme!r} (prefix): it puts a space before every "
                "text, or before none"
            )
        problem = self._why_no_scores()
        if problem:
            raise ValueError(f"it has scores in the place of merges, and {problem}")

    def _why_no_scores(self) -> str:
        """Say why scores would not merge as these merges do; empty if they would.

        With scores any two neighbours that spell a piece become it. So any two pieces or characters that spell a piece
        must be a merge, and all merges to a piece must come before or behind all merges to another.
        """
        if self.kind != "ranked_bpe":
            return ""
        found = [merge for merge in self.merges if self.types[merge[2]] in (NORMAL, UNUSED)]
        given = {(self.pieces[left], self.pieces[right]) for left, right, _ in found}
        texts = [
            piece.decode("utf-8", "surrogateescape")
            for piece, kind in zip(self.pieces, self.types, strict=True)
            if kind in (NORMAL, UNUSED)
        ]
        known = set(texts)
        for piece in texts:
            for cut in range(1, len(piece)):
                halves = (piece[:cut], piece[cut:])
                if not all(half in known or len(half) == 1 for half in halves):
                    continue
                if tuple(half.encode("utf-8", "surrogateescape") for half in halves) not in given:
                    return f"its merges leave out {halves[0]!r} and {halves[1]!r}, which scores would join"
        last: dict[int, int] = {}
        for rank, (_, _, both) in enumerate(found):
            if last.setdefault(both, rank) not in (rank, rank - 1):
                return f"its merges to {self.pieces[both].decode('utf-8', 'replace')!r} do not follow each other"
            last[both] = rank
        return ""

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
