"""Byte-level BPE for tests: our tokenizer and the `tokenizers` library's of one vocabulary, and texts for both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from cuts import MORE_PATTERNS
from hypothesis import strategies as st
from tokenizer_files import BYTE_PIECES, SPACE
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

from llama2cpp import Tokenizer

PRE_TOKENIZERS = (
    "gpt2",
    "llama3",
    "smollm",
    "ggml_default",
    "qwen2",
    "seed_coder",
    "tekken",
    "deepseek_coder",
)
TYPES = ("normal", "unknown", "control", "user_defined", "unused", "byte")  # as SentencePiece numbers them from 1 on
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = TYPES
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As the tokenizer.json files of Llama 3, Qwen 2 and Seed-Coder have them, and what llama.cpp does by default: four, one
# after the other.
PATTERNS = {
    "llama3": [LLAMA3_PATTERN],
    "qwen2": [LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")],
    "seed_coder": [
        LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}{1}").replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+"),
    ],
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "deepseek_coder": [
        "[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ],
    "ggml_default": [
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
}

PATTERNS |= MORE_PATTERNS
# All that have a name; the first of them are tried at greater length.
CUTS = (*PRE_TOKENIZERS, *MORE_PATTERNS)

# What `tokenizers` 0.23 takes for digits in SmolLM2's pre-tokeniser, and neither its own \p{N} nor we do: the numbers
# that Unicode 17 has added. The docstring of llama2cpp.Tokenizer lists them.
LISTED = frozenset({*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)})

# Bytes as characters that can be seen.
STAND_INS = [chr(byte) if 33 <= byte <= 126 or (161 <= byte <= 255 and byte != 173) else "" for byte in range(256)]
for number, byte in enumerate([byte for byte, character in enumerate(STAND_INS) if not character]):
    STAND_INS[byte] = chr(256 + number)
BYTE_OF = {character: byte for byte, character in enumerate(STAND_INS)}


def stand_ins(data: bytes) -> str:
    return "".join(STAND_INS[byte] for byte in data)


def from_stand_ins(text: str) -> bytes:
    return bytes(BYTE_OF[character] for character in text)


@dataclass
class ByteBpe:
    """A vocabulary: pieces as bytes with their types, merges as pairs of bytes."""

    pieces: list[bytes]
    merges: list[tuple[bytes, bytes]] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # empty: all normal
    pre: str = "gpt2"
    ignore_merges: bool = False
    merges_by_id: bool = False
    bos: int = -1
    eos: tuple[int, ...] = ()
    add_bos: bool = True
    add_eos: bool = False
    template: bytes = b""

    def kinds(self) -> list[str]:
        return self.types or [NORMAL] * len(self.pieces)

    def ids(self) -> dict[bytes, int]:
        return {
            piece: id for id, (piece, kind) in enumerate(zip(self.pieces, self.kinds(), strict=True)) if kind == NORMAL
        }

    def settings(self) -> dict[str, Any]:
        """What Tokenizer.to_dict gives, and a pickle holds."""
        ids = self.ids()
        return {
            "kind": "byte_bpe",
            "pieces": self.pieces,
            "types": self.kinds(),
            "bos_id": self.bos,
            "eos_ids": list(self.eos),
            "unk_id": -1,
            "unk_surface": b"",
            "add_bos": self.add_bos,
            "add_eos": self.add_eos,
            "chat_template": self.template,
            "template_names": [],
            "template_texts": [],
            "nfc": False,
            "pre_tokenizer": self.pre,
            "splits": [],
            "merges": [(ids[left], ids[right], ids[left + right]) for left, right in self.merges],
            "merges_by_id": self.merges_by_id,
            "ignore_merges": self.ignore_merges,
            "added": [],
        }

    def ours(self) -> Tokenizer:
        return Tokenizer.from_dict(self.settings())

    def reference(self) -> Any:
        """Normal pieces make the model, user-defined and control pieces are added tokens."""
        vocab = {stand_ins(piece): id for piece, id in self.ids().items()}
        merges = [(stand_ins(left), stand_ins(right)) for left, right in self.merges]
        specials = [
            (piece.decode(), id, kind)
            for id, (piece, kind) in enumerate(zip(self.pieces, self.kinds(), strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ]
        # An added token keeps the id that the model has for it. No text becomes one without it: they have no merges.
        vocab |= {text: id for text, id, _ in specials if text not in vocab}
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=self.ignore_merges)
        tokenizer = Reference(model)
        tokenizer.pre_tokenizer = reference_pre_tokenizer(self.pre)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False) for text, _, kind in specials if kind == CONTROL]
        )
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text, _, kind in specials if kind == USER_DEFINED])
        return tokenizer


def reference_pre_tokenizer(pre: str) -> Any:
    """As tokenizer.json files have them."""
    if pre == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in PATTERNS:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PATTERNS[pre]]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def reference_words(pre_tokenizer: Any, text: str) -> list[bytes]:
    return [from_stand_ins(word) for word, _ in pre_tokenizer.pre_tokenize_str(text)]


def reference_ids(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    tokenizer.encode_special_tokens = not special
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def gguf_vocabulary(path: Path, pre: str) -> ByteBpe:
    """The byte-level BPE that a GGUF holds, by the gguf library."""
    fields = gguf.GGUFReader(path).fields
    types = [TYPES[kind - 1] for kind in fields["tokenizer.ggml.token_type"].contents()]
    tokens = fields["tokenizer.ggml.tokens"].contents()
    pieces = [
        from_stand_ins(token) if kind == NORMAL else token.encode() for token, kind in zip(tokens, types, strict=True)
    ]
    merges = [tuple(map(from_stand_ins, merge.split(" "))) for merge in fields["tokenizer.ggml.merges"].contents()]
    return ByteBpe(pieces, merges, types, pre)  # type: ignore[arg-type]


# Texts.

PARTS = [
    *["'s", "'S", "'t", "'T", "'re", "'RE", "'vE", "'m", "'ll", "'Ll", "'d", "'l", "'r", "'", "''", "'\u017f", "'s'"],
    *[" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b"],
    *["a", "Z", "word", "Word", "\u00e9", "e\u0301", "\u017f", "\u212a", "\u00df", "\ufb06", "\u0130", "\u0149"],
    *["1", "12", "123", "1234", "12345", "\u0661", "\u00bd", "\u2164", "\u00b2", "\u4e09", "\U0001d7d8", "\u200b"],
    *["!", "...", "_", "-", "\u2014", "$", "<", "|>", "\\", "\0", "\ufffd", "\ufeff", "\u0300", "\u0903", "\u2019s"],
    *["\u65e5\u672c", "\ud55c\uad6d", "\u0928\u093f", "\u0e44\u0e17\u0e22", "\u0627\u0644", "\u05e2\u05d1"],
    *["\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "\u2764\ufe0f", "\U00020000"],
]
CHARACTERS = st.characters(codec="utf-8").filter(lambda character: ord(character) not in LISTED)
TEXTS = st.lists(st.sampled_from(PARTS) | CHARACTERS, max_size=24).map("".join)
BYTES = st.lists(TEXTS.map(str.encode) | st.binary(max_size=6), max_size=4).map(b"".join)

SENTENCES = [
    "The quick brown fox jumps over the lazy dog; isn't that what they'd say? We'll see, I'VE been told 'so'.",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "Der Fluß fließt größer als üblich, während die Bäume rauschen. Ça va très bien, où êtes-vous déjà allé ?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "色は匂へど散りぬるを我が世誰ぞ常ならむ。今天天气很好,我们去公园散步吧。키스의 고유조건은 입술끼리 만나야 한다.",
    "نص حكيم له سر قاطع وذو شأن عظيم. דג סקרן שט בים מאוכזב ולפתע מצא חברה. ऋषियों को सताने वाले दुष्ट राक्षसों।",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน 🚀🚀🎉 👨‍👩‍👧‍👦 🇫🇷🇯🇵 ❤️ ☃",
    "def f(x: int) -> list[int]:\n    return [i**2 for i in range(x) if i % 3 != 0]  # squares\n\n\n",
    "\tif (a[i] != nullptr && *p++ == '\\0') {\r\n\t\tstd::printf(\"%08x\\n\", 0xDEADBEEF);\r\n\t}\r\n",
    '{"id": 1234567890123456789, "price": 19.99, "tags": ["a-b", "c_d"], "url": "https://example.org/?q=1&r=%20"}',
    "3.14159265358979323846264338327950288419716939937510 1,000,000 2026-11-21T13:54:41Z ½ Ⅷ ٣٤٥",
    "WHY IS EVERYTHING IN CAPITALS?!?!?! don't SHOUT, it'S RUDE... they'LL HEAR'EM -- isn\u2019t it",
]


def mixed_text(characters: int, seed: int = 0) -> str:
    """Many scripts, emoji, code, runs of white space and of digits, apostrophes, and made-up words."""
    random_ = random.Random(seed)
    parts: list[str] = []
    length = 0
    while length < characters:
        kind = random_.random()
        if kind < 0.70:
            part = random_.choice(SENTENCES) + random_.choice([" ", "\n", "\n\n", "  ", " \t"])
        elif kind < 0.80:
            part = "".join(random_.choices("etaoinshrdlucmfwypvbgkqjxzETAOIN", k=random_.randint(2, 14))) + " "
        elif kind < 0.85:
            part = "".join(random_.choices("0123456789", k=random_.randint(1, 60)))
        elif kind < 0.90:
            part = "".join(random_.choices([" ", "\t", "\n", "\r\n", "\u00a0", "\u3000"], k=random_.randint(1, 30)))
        elif kind < 0.98:
            part = "".join(random_.choices(PARTS, k=random_.randint(1, 12)))
        else:
            part = "".join(chr(code) for code in random_.choices(ASSIGNED, k=8))
        parts.append(part)
        length += len(part)
    return "".join(parts)


ASSIGNED = [*range(0x20, 0xD800, 7), *range(0xE000, 0x11000, 11), *range(0x11000, 0x30000, 101)]
ASSIGNED = [code for code in ASSIGNED if code not in LISTED]


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Where two long lists of ids part: what pytest would take minutes to show."""
    a, b = np.array(ours), np.array(theirs)
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    if len(different):
        return int(different[0])
    return None if len(a) == len(b) else size


def characters(
    merges: list[tuple[str, str]],
    alphabet: str = "abc\u00e9",
    byte_fallback: bool = True,
    prefix: str = "Prepend",
    added: tuple[str, ...] = (),
    tokens: Sequence[AddedToken] = (),
    normalized: bool = False,
) -> Any:
    """A tokenizer of the `tokenizers` library whose BPE is over characters, as Llama 2's is."""
    pieces = ["<unk>", "<s>", "</s>", *(BYTE_PIECES if byte_fallback else []), SPACE, *alphabet]
    pieces += [left + right for left, right in merges if left + right not in pieces]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Reference(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    )
    if prefix == "Prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    elif prefix == "Replace":
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=prefix, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if prefix in ("Replace", "never") else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    tokenizer.add_special_tokens([AddedToken(text, normalized=normalized) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer.add_special_tokens([token for token in tokens if token.special])
    tokenizer.add_tokens([token for token in tokens if not token.special])
    return tokenizer
