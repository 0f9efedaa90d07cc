"""Unigram vocabularies for tests: sentencepiece's own models, and what `tokenizers` makes of the same pieces."""

from __future__ import annotations

import functools
import io
import random
from typing import Any

import sentencepiece
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = [
    *["the", "cat", "sat", "on", "a", "mat", "while", "it", "rained", "and", "hello", "worlds", "of", "naïve", "cafés"],
    *["gave", "élan", "to", "unhappy", "unhappiness", "antidisestablishmentarianism", "running", "runner", "ran"],
    *["12", "345", "6789", "ﬁne", "½", "straße", "日本語", "日本", "語", "привет", "мир", "한국어", "don't", "it's"],
]
PARTS = (
    *WORDS,
    *(
        "  ",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\u3000",
        "\u00a0",
        SPACE,
        "\0",
        "\x1f",
        "\u200d",
        "\u0301",
        "e\u0301",
        "a\u0308\u0304",
    ),
    *(
        "\uff46\uff55ll",
        "①",
        "ﬂ ",
        "ﬂ",
        "fl  ",
        "\u1100\u1161\u11a8",
        "가\u0301",
        "\u0600a",
        "क्षि",
        "👩\u200d👧",
        "é",
        "<s>",
        "<unk>",
        "<0x41>",
        "<u>",
        "<c>",
    ),
)
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=14).map("".join)


def corpus() -> list[str]:
    choice = random.Random(7)
    return [" ".join(choice.choices(WORDS, k=choice.randrange(3, 14))) for _ in range(1500)]


@functools.cache
def model_of(**settings: Any) -> bytes:
    """Train a .model with the sentencepiece library."""
    out = io.BytesIO()
    given: dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": 150,
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 3,
    }
    given |= settings
    if given.get("byte_fallback"):
        given["vocab_size"] += 256
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=out, **given)
    return out.getvalue()


def proto_of(model: bytes) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    return proto


def charsmap() -> bytes:
    """Give the map of sentencepiece's usual normaliser, nmt_nfkc."""
    found: bytes = proto_of(model_of()).normalizer_spec.precompiled_charsmap
    return found


def _pieces(model: bytes) -> list[tuple[str, float]]:
    return [(piece.piece, piece.score) for piece in proto_of(model).pieces]


def reference(cut: str, **settings: Any) -> Reference:
    """Make a `tokenizers` tokenizer of sentencepiece's pieces.

    `cut`: "t5", "metaspace-always", "metaspace-first", "metaspace-never", "whole" or "replaced".
    """
    model = model_of(**settings)
    tokenizer = Reference(models.Unigram(_pieces(model), 0, "byte_fallback" in settings))
    scheme = cut.removeprefix("metaspace-") if cut.startswith("metaspace") else "always"
    space = pre_tokenizers.Metaspace(SPACE, scheme, split=cut != "whole")
    charsmaps = normalizers.Precompiled(charsmap())
    runs = normalizers.Replace(Regex(" {2,}"), " ")
    if cut == "t5":
        tokenizer.normalizer = charsmaps
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    elif cut == "metaspace-first":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(left=False, right=True), charsmaps, runs])
        tokenizer.pre_tokenizer = space
    elif cut == "metaspace-never":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip(left=True, right=False)])
        tokenizer.pre_tokenizer = space
    elif cut == "replaced":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.normalizer = normalizers.Sequence([charsmaps, runs])
        tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([] if cut == "metaspace-never" else [decoders.Strip(" ", 1, 0)]),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<c>"])
    tokenizer.add_tokens([AddedToken("<u>", normalized=True, lstrip=True), AddedToken("ﬂ ", normalized=True)])
    return tokenizer
