"""tokenizer.json of a SentencePiece vocabulary with pieces of every type, against `sentencepiece` and `tokenizers`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import open_bytes
from unigram import PARTS, SPACE, model_of

from llama2cpp import Tokenizer
from llama2cpp.export.gguf_file import write_vocabulary
from llama2cpp.export.hf_tokenizer import tokenizer_json
from llama2cpp.export.kept import probing_texts
from llama2cpp.export.vocabulary import CONTROL, USER_DEFINED, Vocabulary

# What text is to be found before anything is merged.
PIECES = {
    "words": ["<u>", "@@", "run"],
    "spaces": [SPACE * 2, SPACE * 4, f"<a{SPACE}b>", f"x{SPACE}"],
    "plain spaces, which are in no text": ["  ", "x y", f"a {SPACE}"],
    "lines": ["\n", "\n\n", "\t"],
    "overlapping": ["<u>", "<u><u>", "u>", "unhap", "happiness"],
    "also-merged": ["the", "in", "unn"],
}


def trained(symbols: list[str], *, prefix: bool, byte_fallback: bool) -> bytes:
    return model_of(
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        byte_fallback=byte_fallback,
        user_defined_symbols=",".join(symbols),
        control_symbols="<c>",
    )


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("symbols", PIECES.values(), ids=PIECES)
def test_ids(symbols: list[str], byte_fallback: bool, tmp_path: Path) -> None:
    """The library's ids of a written file are sentencepiece's of its source, and so are ours."""
    data = trained(symbols, prefix=False, byte_fallback=byte_fallback)
    source = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = open_bytes(data)
    kinds = Vocabulary.of(ours).types
    assert kinds.count(USER_DEFINED) == len(symbols)
    text = json.dumps(tokenizer_json(Vocabulary.of(ours)))
    written, library = open_bytes(text.encode()), tokenizers.Tokenizer.from_str(text)
    library.encode_special_tokens = True
    write_vocabulary(tmp_path / "vocabulary.gguf", Vocabulary.of(ours))
    through_gguf = Tokenizer.from_file(tmp_path / "vocabulary.gguf")
    parts = [*PARTS, *symbols, *(symbol.replace(" ", SPACE) for symbol in symbols)]
    parts += [symbol.replace(SPACE, " ") for symbol in symbols]

    @given(st.lists(st.one_of(st.sampled_from(parts), st.text(max_size=4)), max_size=14).map("".join))
    def check(text: str) -> None:
        ids = source.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == ids
        for tokenizer in (ours, written, through_gguf):
            assert tokenizer.encode(text, bos=False) == ids
            if byte_fallback:  # nothing is unknown, whose text these files do not hold
                assert tokenizer.decode(ids) == source.decode(ids)

    check()
    for text in [*parts, "".join(parts)]:
        assert library.encode(text, add_special_tokens=False).ids == source.encode(text), text


@pytest.mark.parametrize("kind", ["words", "spaces", "lines", "overlapping", "also-merged"])
def test_a_space_before_the_text(kind: str) -> None:
    """`tokenizers` puts one behind each added token, too: refused by name, and without such pieces taken."""
    symbols = PIECES[kind]
    source = open_bytes(trained(symbols, prefix=True, byte_fallback=True))
    with pytest.raises(ValueError, match=r"a space behind each user-defined piece.*\(types, add_space_prefix\)"):
        tokenizer_json(Vocabulary.of(source))
    tokenizer_json(Vocabulary.of(open_bytes(trained([], prefix=True, byte_fallback=True))))


def test_probing_texts_with_many_control_pieces() -> None:
    """However many control pieces there are, texts with user-defined pieces are compared, too."""
    vocabulary = Vocabulary.of(open_bytes(trained(["<u>"], prefix=False, byte_fallback=True)))
    user_defined = vocabulary.types.index(USER_DEFINED)
    many = [*vocabulary.types[:user_defined], *[CONTROL] * 300, *vocabulary.types[user_defined:]]
    names = [f"[{i}]".encode() for i in range(300)]
    pieces = [*vocabulary.pieces[:user_defined], *names, *vocabulary.pieces[user_defined:]]
    texts = probing_texts(replace(vocabulary, types=many, pieces=pieces, scores=[0.0] * len(many)))
    assert "x<u>y" in texts
    assert "x<c>y" in texts
