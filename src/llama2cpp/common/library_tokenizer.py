"""A tokenizer of the `tokenizers` library in the place of one of ours, for what ours do not read."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from .. import _core
from .._core import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    import tokenizers

# What the files beside a tokenizer.json say of it.
_BESIDE = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "*.jinja")
_BESIDE_FOLDERS = ("additional_chat_templates",)
_SPACE = "\u2581"
_NOTHING = "\ufffd"  # where a character is not finished
_HINT = "save it as a tokenizer.json and pass its path, if its parts are known here, or leave the tokenizer out"


class _Facts(TypedDict):
    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    chat_templates: dict[str, str]


def is_of_library(tokenizer: object) -> bool:
    """Whether this is a ``tokenizers.Tokenizer``; the library is not imported to tell.

    Examples
    --------
    >>> from llama2cpp.common.library_tokenizer import is_of_library
    >>> is_of_library("tokenizer.json")
    False
    """
    return any(
        kind.__module__.partition(".")[0] == "tokenizers" and kind.__name__ == "Tokenizer"
        for kind in type(tokenizer).__mro__
    )


class LibraryTokenizer:
    """Has the methods of `Tokenizer`, whose ids and texts are the library's.

    Parameters
    ----------
    library : str
        What ``tokenizers.Tokenizer.to_str`` gives. Truncation and padding are left out.
    facts : dict
        What the library does not know: see `from_library`.

    Examples
    --------
    >>> import llama2cpp, tokenizers
    >>> from llama2cpp.common.library_tokenizer import LibraryTokenizer
    >>> library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "Once": 1}, unk_token="[UNK]"))
    >>> LibraryTokenizer.from_library(library, 2).encode("Once")
    [1]
    """

    def __init__(self, library: str, facts: _Facts) -> None:
        from tokenizers import Tokenizer as Library

        self._json = library
        self._facts = facts
        # One that finds special tokens in a text, and one that does not: it is a setting, and threads share these.
        self._special, self._plain = Library.from_str(library), Library.from_str(_without_special(library))
        for one in (self._special, self._plain):
            one.no_truncation()
            one.no_padding()
        self._plain.encode_special_tokens = True
        unknown = _unknown(json.loads(library)["model"])
        self._control = {
            id
            for id, token in self._special.get_added_tokens_decoder().items()
            if token.special and token.content != unknown
        }
        self._in_bytes = '"ByteLevel"' in json.dumps(json.loads(library)["decoder"])

    @classmethod
    def from_library(
        cls, library: tokenizers.Tokenizer, vocab_size: int, path: str = "", own: Tokenizer | None = None
    ) -> LibraryTokenizer:
        """Find out what `Tokenizer` knows and the library does not.

        Parameters
        ----------
        library : tokenizers.Tokenizer
            It is copied, and may change afterwards.
        vocab_size : int
            How many ids the model has. There may be fewer pieces, but not more.
        path : str
            The model's, where files may lie that name BOS, EOS and a chat template.
        own : Tokenizer, optional
            The model's own: it says what those files do not.

        Raises
        ------
        ValueError
            For a tokenizer that puts more around a text than BOS and EOS, or has more pieces than the model ids.
        """
        text = library.to_str()
        pieces = max(library.get_vocab().values(), default=-1) + 1
        if pieces > vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {pieces - 1} and the model a vocabulary of {vocab_size}: "
                "they do not belong together"
            )
        before, after = _around(library)
        found = _beside(library, before, after, vocab_size, path)
        from_own = own is not None and not found.eos_ids
        eos = own.eos_ids if own is not None and from_own else found.eos_ids
        template = found.chat_template
        templates = dict(found.chat_templates)
        if own is not None and not templates:
            template, templates = own.chat_template, dict(own.chat_templates)
        return cls(
            text,
            {
                "vocab_size": vocab_size,
                "bos_id": found.bos_id if found.bos_id is not None or own is None else own.bos_id,
                "eos_ids": tuple(eos),
                "add_bos": bool(before),
                "add_eos": bool(after),
                "chat_template": template,
                "chat_templates": templates,
            },
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return LibraryTokenizer, (self._json, self._facts)

    def library(self) -> tokenizers.Tokenizer:
        """Give a copy of the library's tokenizer."""
        from tokenizers import Tokenizer as Library

        return Library.from_str(self._json)

    def encode(
        self,
        text: str | bytes,
        bos: bool = True,
        eos: bool | None = None,
        special: bool = False,
        prefix_space: bool = True,
    ) -> list[int]:
        """Give the ids of a text: see `Tokenizer.encode`. Bytes have to be UTF-8.

        Raises
        ------
        ValueError
            For bytes or a str that are no text; if the library makes a special token of plain text; or for
            ``prefix_space=False``, which the library has no word for.
        """
        if not prefix_space:
            raise ValueError(
                "prefix_space=False: a tokenizer of the tokenizers library puts what it puts before a text"
            )
        if isinstance(text, bytes):
            text = text.decode()
        else:
            _core.check_text(text)
        ids = list((self._special if special else self._plain).encode(text, add_special_tokens=False).ids)
        if not special and not self._control.isdisjoint(ids):
            name = self._special.id_to_token(next(id for id in ids if id in self._control))
            raise ValueError(f"the library makes the special token {name!r} of plain text, even where none are wanted")
        if bos and self.add_bos and self.bos_id is not None and not (special and ids[:1] == [self.bos_id]):
            ids.insert(0, self.bos_id)
        if (self.add_eos if eos is None else eos) and self.eos_ids:
            ids.append(self.eos_ids[0])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of ids, without special tokens: see `Tokenizer.decode`."""
        return str(self._special.decode([self._checked(id) for id in _core.token_ids(ids)], skip_special_tokens=True))

    def piece(self, id: int) -> bytes:
        """Give the bytes that one id stands for: see `Tokenizer.piece`. An id without a piece has none."""
        piece = self._special.id_to_token(self._checked(id))
        if piece is None:
            return b""
        if self._in_bytes:
            return b"".join(_BYTE_OF[c] if c in _BYTE_OF else c.encode() for c in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace(_SPACE, " ").encode()

    def added_ids(self) -> list[int]:
        """Give the ids of the pieces that are looked for in a text before anything else."""
        return sorted(self._special.get_added_tokens_decoder())

    def token_texts(self) -> list[bytes | None]:
        """Give for each id the bytes that it adds to a text which has begun; None for those that spell nothing."""
        kinds = set(_decoders(json.loads(self._json)["decoder"]))
        if not kinds <= _IN_PIECES:
            raise ValueError(
                f"a decoder of the tokenizers library, {', '.join(sorted(kinds - _IN_PIECES))}, does more than to join "
                "pieces: grammars need what each token adds to a text"
            )
        unknown = _unknown(json.loads(self._json)["model"])
        silent = self._control | ({self._special.token_to_id(unknown)} if unknown is not None else set())
        return [None if id in silent else self.piece(id) or None for id in range(self.vocab_size)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Refused: the library gives text."""
        raise ValueError("decode_bytes: a tokenizer of the tokenizers library gives text, not bytes: use decode")

    def piece_after(self, prev: int, id: int) -> bytes:
        """Refused: it is what llama2.c prints."""
        raise ValueError("piece_after: llama2.c has no tokenizer of the tokenizers library: use piece")

    def words(self, text: str | bytes) -> list[bytes]:
        """Refused: only some of the library's cut a text so."""
        raise ValueError("words: a tokenizer of the tokenizers library does not say what words it cuts a text into")

    def to_dict(self) -> dict[str, Any]:
        """Refused: no file of ours has a place for what the library does."""
        raise ValueError(f"a tokenizer of the tokenizers library cannot be exported: {_HINT}")

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self._facts["vocab_size"]

    @property
    def bos_id(self) -> int | None:
        """The id of BOS, if there is one."""
        return self._facts["bos_id"]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a generation."""
        return self._facts["eos_ids"]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of control tokens, which `decode` leaves out."""
        return tuple(sorted(self._control))

    @property
    def add_bos(self) -> bool:
        """Whether BOS belongs before a text."""
        return self._facts["add_bos"]

    @property
    def add_eos(self) -> bool:
        """Whether EOS belongs behind a text."""
        return self._facts["add_eos"]

    @property
    def chat_template(self) -> str | None:
        """The chat template, if the files beside the model have one."""
        return self._facts["chat_template"]

    @property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name."""
        return dict(self._facts["chat_templates"])

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        kind = type(self._special.model).__name__
        return f"<Tokenizer of {self.vocab_size} pieces, {kind} of the tokenizers library>"

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"id {id} is not in the vocabulary of {self.vocab_size} pieces")
        return id


class LibraryStream:
    """Does what `StreamDecoder` does: all that it gives, joined, is the text of all ids.

    Parameters
    ----------
    tokenizer : LibraryTokenizer

    Examples
    --------
    >>> import llama2cpp, tokenizers
    >>> from llama2cpp.common.library_tokenizer import LibraryStream, LibraryTokenizer
    >>> library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    >>> stream = LibraryStream(LibraryTokenizer.from_library(library, 2))
    >>> [stream.push(0), stream.push(1), stream.flush()]
    ['a', ' b', '']
    """

    def __init__(self, tokenizer: LibraryTokenizer) -> None:
        self._decode = tokenizer.decode
        self._ids: list[int] = []  # those of the last text that was given, then those since
        self._given = 0  # how many of them have been given

    def push(self, id: int) -> str:
        """Give the text that this id completes."""
        self._ids.append(id)
        before, text = self._decode(self._ids[: self._given]), self._decode(self._ids)
        if len(text) <= len(before) or text.endswith(_NOTHING):
            return ""
        # A text may change with what stands before it, a space at its beginning above all: some of it is kept.
        if self._decode(self._ids[self._given :]):
            del self._ids[: self._given]
        self._given = len(self._ids)
        return text[len(before) :]

    def flush(self) -> str:
        """Give what is left, and begin anew."""
        rest = self._decode(self._ids)[len(self._decode(self._ids[: self._given])) :]
        self._ids, self._given = [], 0
        return rest


def stream_decoder(tokenizer: Tokenizer | LibraryTokenizer) -> StreamDecoder | LibraryStream:
    """Make the decoder for ids that come one by one.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.library_tokenizer import stream_decoder
    >>> stream_decoder(llama2cpp.load().tokenizer).push(508)
    'Once'
    """
    return LibraryStream(tokenizer) if isinstance(tokenizer, LibraryTokenizer) else StreamDecoder(tokenizer)


def special_candidates(tokenizer: Tokenizer | LibraryTokenizer) -> Sequence[int]:
    """Give the ids that special pieces are among.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.library_tokenizer import special_candidates
    >>> len(special_candidates(llama2cpp.load().tokenizer))
    1536
    """
    return tokenizer.added_ids() if isinstance(tokenizer, LibraryTokenizer) else range(tokenizer.vocab_size)


# What decoders of the library do that join the bytes of pieces, but for the beginning of a text.
_IN_PIECES = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}


def _decoders(decoder: dict[str, Any] | None) -> Iterable[str]:
    """Give the kinds of a decoder's parts; "Join" where there is none, which puts spaces between pieces."""
    if decoder is None:
        yield "Join"
    elif decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoders(part)
    else:
        yield decoder["type"]


def _unknown(model: dict[str, Any]) -> str | None:
    """Give the piece for what has none, which plain text may become."""
    if isinstance(model["vocab"], list) and model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _without_special(library: str) -> str:
    """Rename the special tokens, so that no text spells them: models make pieces of them, whatever the setting says."""
    parts = json.loads(library)
    model, nonce = parts["model"], f"\ufdd0{secrets.token_hex(8)}"
    merged = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in model.get("merges", ())}
    names = {
        token["content"]: f"{nonce}{token['id']}"
        for token in parts["added_tokens"]
        if token["special"] and token["content"] not in {*merged, _unknown(model)}
    }
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    parts["post_processor"] = None  # it has their names
    return json.dumps(parts)


def _around(library: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Find what the library puts before and behind a text."""
    own = list(library.encode("a", add_special_tokens=False).ids)
    all_ids = list(library.encode("a").ids)
    extra = len(all_ids) - len(own)
    for count in range(extra + 1):
        if all_ids[count : count + len(own)] == own:
            before, after = all_ids[:count], all_ids[count + len(own) :]
            break
    else:
        raise ValueError("the tokenizer changes a text that it puts special tokens around, which is not implemented")
    if len(before) > 1 or len(after) > 1:
        raise ValueError(
            f"the tokenizer puts {len(before)} tokens before a text and {len(after)} behind it, and only BOS and EOS "
            "are implemented"
        )
    return before, after


def _beside(
    library: tokenizers.Tokenizer, before: list[int], after: list[int], vocab_size: int, path: str
) -> Tokenizer:
    """Read the files beside the model as for a tokenizer.json there, of the same pieces without merges."""
    added = [
        {"id": id, "content": token.content, "special": token.special, "normalized": False}
        for id, token in library.get_added_tokens_decoder().items()
    ]
    known = {token["id"] for token in added}
    vocab = {piece or f"[EMPTY_{id}]": id for piece, id in library.get_vocab().items() if id not in known}
    around = [{"SpecialToken": {"id": str(id), "type_id": 0}} for id in [*before, *after]]
    around.insert(len(before), {"Sequence": {"id": "A", "type_id": 0}})
    ids = {str(id): {"id": str(id), "ids": [id], "tokens": [str(id)]} for id in [*before, *after]}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    processor = {"type": "TemplateProcessing", "single": around, "pair": [], "special_tokens": ids}
    pieces = {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "post_processor": processor,
    }
    folder = Path(path) if not path or Path(path).is_dir() else Path(path).parent
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        if path and (folder / "config.json").is_file():
            for pattern in _BESIDE:
                for file in folder.glob(pattern):
                    shutil.copyfile(file, copy / file.name)
            for inner in _BESIDE_FOLDERS:
                if (folder / inner).is_dir():
                    shutil.copytree(folder / inner, copy / inner)
        (copy / "tokenizer.json").write_text(json.dumps(pieces), encoding="utf-8")
        return Tokenizer.from_file(copy / "tokenizer.json", vocab_size)


def _byte_alphabet() -> dict[str, bytes]:
    """Give the bytes that GPT-2's printable characters stand for."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(byte): bytes([byte]) for byte in shown}
    return alphabet | {chr(256 + i): bytes([byte]) for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
