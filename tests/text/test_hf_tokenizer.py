"""tokenizer.json against `tokenizers`, which wrote it: byte-level BPE, BPE over characters, and what is around them."""

from __future__ import annotations

import json
import pickle
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece  # type: ignore[import-untyped, unused-ignore]
from hf_folders import Json, Spec, change_json
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_byte_bpe import small_vocabularies
from tokenizer_files import SPACE
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Reference
from transformers import AutoTokenizer
from vocabularies import (
    TEXTS,
    ByteBpe,
    characters,
    first_difference,
    gguf_vocabulary,
    mixed_text,
    reference_ids,
)

import llama2cpp
from llama2cpp import FormatError, Tokenizer


def opened(data: Json | str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return Tokenizer.from_file(path)


def agree(ours: Tokenizer, theirs: Any, text: str) -> None:
    for special in (False, True):
        ids = reference_ids(theirs, text, special)
        assert ours.encode(text, bos=False, eos=False, special=special) == ids
    assert ours.decode(ids) == theirs.decode(ids)


# --- byte-level BPE


@settings(max_examples=150)
@given(small_vocabularies(), st.text("abc \u00e9", max_size=80) | TEXTS)
def test_byte_level(vocabulary: ByteBpe, text: str) -> None:
    reference = vocabulary.reference()
    ours = opened(reference.to_str())
    for special in (False, True):
        ids = reference_ids(reference, text, special)
        assert ours.encode(text, bos=False, special=special) == ids


def test_smollm2(smollm2_path: Path) -> None:
    """Its tokenizer.json, made again from its GGUF."""
    vocabulary = gguf_vocabulary(smollm2_path, "smollm")
    reference = vocabulary.reference()
    ours = opened(reference.to_str())
    text = mixed_text(300_000)
    for special in (False, True):
        ids = ours.encode(text, bos=False, special=special)
        assert first_difference(ids, reference_ids(reference, text, special)) is None

    @given(TEXTS)
    def check(text: str) -> None:
        agree(ours, reference, text)

    check()


@cache
def trained_text() -> str:
    tokenizer = Reference(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([mixed_text(20_000, seed=1)], trainer)
    text: str = tokenizer.to_str()
    return text


def trained() -> Any:
    return Reference.from_str(trained_text())


@given(TEXTS)
def test_trained_in_the_test(text: str) -> None:
    agree(TRAINED_OURS, TRAINED, text)


TRAINED = trained()
TRAINED.add_tokens([AddedToken("<foo>", normalized=False), "bar"])
TRAINED_OURS = opened(TRAINED.to_str())


# --- BPE over characters


@st.composite
def character_bpe(draw: st.DrawFn) -> Any:
    pieces = [SPACE, "a", "b", "c", "\u00e9"]
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 16))):
        pair = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        if pair not in merges and len(pair[0] + pair[1]) < 12:
            merges.append(pair)
            pieces.append(pair[0] + pair[1])
    return characters(
        merges,
        byte_fallback=draw(st.booleans()),
        prefix=draw(st.sampled_from(["Prepend", "Replace", "always", "first", "never"])),
        added=draw(st.sampled_from([(), ("<foo>",), ("ab", "abc"), ("b c",)])),
    )


SENTENCES = st.lists(
    st.sampled_from(
        ["a", "b", "c", "\u00e9", " ", "  ", SPACE, "aaa", "d", "dd", "\U0001f680", "<s>", "<unk>", "<foo>"]
    ),
    max_size=24,
).map("".join)


@settings(max_examples=400)
@given(character_bpe(), SENTENCES)
@example(characters([("aa", "a"), ("a", "a"), ("a", "aa")]), "aaaaaaa aaaa")
@example(characters([("a", "a"), ("a", "aa"), ("aa", "a")]), "aaaaaaa aaaa")
@example(characters([], prefix="first"), "<s> a<s>a")
@example(characters([], prefix="always"), " a<s>a")
def test_characters(reference: Any, text: str) -> None:
    ours = opened(reference.to_str())
    for special in (False, True):
        ids = reference_ids(reference, text, special)
        assert ours.encode(text, bos=False, special=special) == ids
        with_eos = ours.encode(text, eos=True, special=special)
        assert with_eos[: len(ids)] == ids


ADDED = st.builds(
    AddedToken,
    st.sampled_from(["<foo>", "<bar>", "ab", "abc", "b c", " b", "b ", "<s>a", "s>", SPACE, f"{SPACE}a", "\u00e9"]),
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    normalized=st.booleans(),
    special=st.booleans(),
)
SPACED = st.lists(
    st.sampled_from(
        [
            *("a", "b", "c", "\u00e9", "d", " ", "  ", SPACE, "\n", "\u00a0", "\u3000", "\t "),
            "<s>",
            "</s>",
            "<foo>",
            "<bar>",
        ]
    ),
    max_size=24,
).map("".join)


def same_but_for_special_pieces(ours: Tokenizer, reference: Any, tokens: list[AddedToken], text: str) -> None:
    """The library's ids; but where it merges plain text to a piece that is special, ours stops before."""
    found = reference_ids(reference, text, special=True)
    # Special pieces that are not found in the text, but that the model makes of it and of the prefix.
    merged = [token for token in tokens if token.special and (token.normalized or token.content == f"{SPACE}a")]
    if not any(reference.token_to_id(token.content) in found for token in merged):
        assert ours.encode(text, bos=False, special=True) == found
    special = {reference.token_to_id(token.content) for token in tokens if token.special and token.content != SPACE}
    ids = reference_ids(reference, text)
    if special & set(ids):
        assert not special & set(ours.encode(text, bos=False))
    else:
        assert ours.encode(text, bos=False) == ids


@settings(max_examples=400)
@given(
    st.lists(ADDED, max_size=4, unique_by=lambda token: token.content),
    st.sampled_from(["Prepend", "Replace", "always", "first", "never"]),
    st.booleans(),
    SPACED,
)
@example([], "Prepend", True, "<s>a</s> </s><s> <s>")
@example([AddedToken("<foo>", lstrip=True, rstrip=True, normalized=False)], "Prepend", False, "a  <foo>\n <foo> b")
def test_added_tokens_of_characters(tokens: list[AddedToken], prefix: str, normalized: bool, text: str) -> None:
    """With the white space beside them, and looked for in the text as it is or as it is normalised."""
    merges = [("a", "b"), ("ab", "c"), (SPACE, "a"), (SPACE, SPACE)]
    reference = characters(merges, prefix=prefix, tokens=tokens, normalized=normalized)
    ours = opened(reference.to_str())
    same_but_for_special_pieces(ours, reference, tokens, text)
    again = pickle.loads(pickle.dumps(ours))
    assert again.encode(text, special=True) == ours.encode(text, special=True)


@settings(max_examples=200)
@given(st.lists(ADDED, max_size=4, unique_by=lambda token: token.content), SPACED)
def test_added_tokens_of_bytes(tokens: list[AddedToken], text: str) -> None:
    reference = trained()
    reference.add_special_tokens([token for token in tokens if token.special])
    reference.add_tokens([token for token in tokens if not token.special])
    same_but_for_special_pieces(opened(reference.to_str()), reference, tokens, text)


def converted(path: Path) -> Any:
    """A SentencePiece model as transformers converts it: all ways to make a piece, in the order of the scores."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = {library.id_to_piece(id): id for id in range(len(library))}
    merges = []
    for piece, id in vocab.items():
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        merges += [
            (-library.get_score(id), *pair) for pair in sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ]
    merges.sort(key=lambda merge: merge[0])
    tokenizer = Reference(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def test_llama2(models_dir: Path) -> None:
    """Converted from its SentencePiece model, in both spellings of merges."""
    reference = converted(models_dir / "llama2" / "tokenizer.model")
    data = json.loads(reference.to_str())
    ours = opened(data)
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    older = opened(data)
    assert older == ours
    text = mixed_text(100_000)
    assert first_difference(ours.encode(text, bos=False), reference_ids(reference, text)) is None
    assert ours.vocab_size == 32000

    @given(TEXTS)
    def check(text: str) -> None:
        agree(ours, reference, text)

    check()


# --- what is around a text


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_template(single: str) -> None:
    reference = trained()
    reference.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)]),
        ]
    )
    ours = opened(reference.to_str())
    assert (ours.add_bos, ours.add_eos) == (single.startswith("<s>"), single.endswith("</s>"))
    for text in ("", "hello", " a"):
        assert ours.encode(text) == reference.encode(text).ids


def folder_with(tmp_path: Path, reference: Any, **config: Any) -> Path:
    reference.save(str(tmp_path / "tokenizer.json"))
    change_json(tmp_path / "tokenizer_config.json", **config)
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("single", [None, "<s> $A", "$A </s>"])
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "LlamaTokenizer"])
def test_settings_as_transformers_takes_them(
    tmp_path: Path, flags: dict[str, bool], single: str | None, tokenizer_class: str
) -> None:
    """transformers 5 goes by tokenizer.json's template alone."""
    reference = trained()
    if single is not None:
        reference.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    eos = {"__type": "AddedToken", "content": "</s>"}
    path = folder_with(tmp_path, reference, tokenizer_class=tokenizer_class, bos_token="<s>", eos_token=eos, **flags)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_file(path)
    assert ours.bos_id == theirs.bos_token_id == 0
    assert ours.eos_ids == (theirs.eos_token_id,) == (1,)
    assert ours.encode("hello") == theirs("hello")["input_ids"]


def test_ends_and_templates_of_a_folder(tmp_path: Path) -> None:
    folder = Spec(settings={"vocab_size": 410, "eos_token_id": [5, 1]}).save(tmp_path)
    folder_with(folder, TRAINED, bos_token="<s>", eos_token="</s>", chat_template="{{ messages }}")
    change_json(folder / "generation_config.json", eos_token_id=[1, 7, 9000])
    model = llama2cpp.load(folder)
    assert model.tokenizer is not None
    assert model.tokenizer.vocab_size == 410  # the model's: ids that the file lacks are nothing
    assert model.tokenizer.bos_id == 0
    assert model.tokenizer.eos_ids == (1, 5, 7)
    assert model.tokenizer.chat_template == "{{ messages }}"
    assert model.tokenizer.encode("hello bar") == reference_ids(TRAINED, "hello bar")
    assert isinstance(model.generate("hello", max_tokens=4, seed=1), str)

    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    assert llama2cpp.load(folder).tokenizer.chat_template == "chat"
    (folder / "chat_template.jinja").write_text("from a file")
    assert llama2cpp.load(folder).tokenizer.chat_template == "from a file"


def test_special_tokens_map(tmp_path: Path) -> None:
    path = folder_with(tmp_path, trained())
    change_json(tmp_path / "special_tokens_map.json", bos_token={"content": "<s>"}, eos_token="<pad>")
    ours = Tokenizer.from_file(path)
    assert (ours.bos_id, ours.eos_ids, ours.add_bos) == (0, (2,), False)


# --- what is refused


def changed(reference: Any, *path: str | int, to: Any) -> Json:
    data: Json = json.loads(reference.to_str())
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return data


REGEX = {"type": "Split", "pattern": {"Regex": r"\b"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (["model", "type"], "WordLevel", r'model\.type .*: "WordLevel", expected "BPE"'),
        (["model", "dropout"], 0.5, r"dropout .*: 0\.5, and dropout gives other ids every time"),
        (["model", "continuing_subword_prefix"], "##", r"continuing_subword_prefix .*: \"##\", which is not"),
        (["model", "vocab"], ..., 'expected a member "vocab"'),
        (["model", "vocab"], {}, "is not in the vocabulary|no pieces|an id"),
        (["model", "vocab", "zz"], 5, r"the id 5 has two pieces"),
        (["model", "vocab", "zz"], -1, r"-1 is no id"),
        (["model", "vocab", "zz"], 2**31 - 1, r"is no id"),
        (["model", "vocab", "zz"], 2**31 - 2, r"ids up to 2147483646"),
        (["model", "merges", 0], "nospace", r"merges\[0\] .*expected two pieces"),
        (["model", "merges", 0], ["a"], r"merges\[0\] .*expected two pieces, found 1"),
        (["model", "merges", 0], ["qq", "a"], r'merges\[0\] .*the piece "qq" is not in the vocabulary'),
        (["model", "merges", 0], ["", "a"], r"a piece without text"),
        (["normalizer"], {"type": "NFKC"}, r'normalizer .*: of type "NFKC", expected NFC or none before ByteLevel'),
        (["pre_tokenizer"], {"type": "BertPreTokenizer"}, r'of type "BertPreTokenizer", expected ByteLevel, Metaspace'),
        (["pre_tokenizer"], None, "neither a normalizer nor a pre_tokenizer"),
        (["pre_tokenizer", "add_prefix_space"], True, r"add_prefix_space .*: true, and only false"),
        (
            ["pre_tokenizer"],
            {"type": "Sequence", "pretokenizers": [REGEX, BYTE_LEVEL]},
            r'the pattern "\\\\b" has, at byte',
        ),
        (["post_processor"], {"type": "BertProcessing"}, r'of type "BertProcessing", expected one TemplateProcessing'),
        (["added_tokens", 0, "single_word"], True, r"added_tokens\[0\]\.single_word .*: true, and only false"),
        (["added_tokens", 0, "id"], 17, r'id .*: 17, but the piece "<s>" has the id 0'),
        (["added_tokens", 0, "content"], "new", r'id .*: 0, which is that of the piece "<s>"'),
    ],
)
def test_refused_by_name(path: list[str | int], to: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        opened(changed(TRAINED, *path, to=to))


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (["model", "fuse_unk"], False, "only an unk_token with"),
        (["model", "unk_token"], None, "only an unk_token with"),
        (["normalizer", "normalizers", 0, "prepend"], "x", r'of type "Prepend", expected Prepend of U\+2581'),
        (["normalizer", "normalizers", 1, "content"], "x", r'of type "Replace", expected Prepend of U\+2581'),
        (["pre_tokenizer"], {"type": "Metaspace"}, r'of type "Metaspace", expected none, or a Split at'),
    ],
)
def test_refused_of_characters(path: list[str | int], to: Any, said: str) -> None:
    reference = characters([("a", "b")], byte_fallback=False)
    with pytest.raises(FormatError, match=said):
        opened(changed(reference, *path, to=to))


def test_a_model_with_an_unknown_tokenizer_opens(tmp_path: Path) -> None:
    folder = Spec().save(tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(changed(trained(), "model", "type", to="WordPiece")))
    model = llama2cpp.load(folder)
    assert not model.has_tokenizer
    assert '"WordPiece", expected "BPE"' in model.tokenizer_problem
    with pytest.raises(ValueError, match=r"no tokenizer.*WordPiece"):  # the error carries the reason
        _ = model.tokenizer
    model.session().step(1)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in llama2cpp.load(folder).tokenizer_problem
    (folder / "tokenizer.json").write_text(TRAINED.to_str())
    assert "but the model has a vocabulary of 50" in llama2cpp.load(folder).tokenizer_problem


def test_a_folder_with_sentencepiece_alone(tmp_path: Path, models_dir: Path) -> None:
    """tokenizer.model stands in for a tokenizer.json that is missing or not known."""
    source = models_dir / "llama2" / "tokenizer.model"
    folder = Spec(settings={"vocab_size": 32016, "hidden_size": 8, "eos_token_id": [2, 5]}).save(tmp_path)
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    (folder / "chat_template.jinja").write_text("chat")
    same = Tokenizer.from_file(source)
    for content in (None, '{"model": {"type": "Unigram"}}'):
        if content is not None:
            (folder / "tokenizer.json").write_text(content)
        tokenizer = llama2cpp.load(folder).tokenizer
        assert tokenizer is not None
        assert tokenizer.vocab_size == 32016
        assert tokenizer.encode("Once upon a time") == same.encode("Once upon a time")
        assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (1, (2, 5), "chat")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x01")
    assert "; tokenizer.model: " in llama2cpp.load(folder).tokenizer_problem
