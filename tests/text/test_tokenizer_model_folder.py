"""Hugging Face folders with a tokenizer.model: what stands beside it counts as in transformers' LlamaTokenizer."""

from __future__ import annotations

import io
import itertools
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece  # type: ignore[import-untyped, unused-ignore]
import transformers
from hf_folders import Json, Spec
from vocabularies import SENTENCES

import llama2cpp
from llama2cpp import Tokenizer

VOCAB = 320  # of the model; tokens that are added come after it
ROWS = 330


@cache
def trained() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox said hello to the user im start end"] * 50),
        model_writer=model,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        character_coverage=1.0,
        minloglevel=2,
        user_defined_symbols=["<fox>"],
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    settings: Json = {"vocab_size": ROWS, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return Spec(settings=settings | {"eos_token_id": 2, "bos_token_id": 1}).save(folder)


def folder_of(model_folder: Path, path: Path, files: dict[str, Json]) -> Path:
    path.mkdir()
    for file in model_folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "generation_config.json").unlink(missing_ok=True)
    (path / "tokenizer.model").write_bytes(trained())
    for name, content in files.items():
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path


def token(text: str, special: bool = True, **flags: bool) -> Json:
    defaults = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": text, "special": special} | defaults | flags


BASE: Json = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "unk_token": "<unk>", "add_bos_token": True}
PLAIN: Json = BASE | {"eos_token": "</s>"}
IM: Json = BASE | {"eos_token": "<|im_end|>"}
NEW = {"<|im_start|>": 320, "<|im_end|>": 321}
DECODER = {"320": token("<|im_start|>"), "321": token("<|im_end|>")}
LISTED = {str(id): token(text) for id, text in enumerate(["<unk>", "<s>", "</s>"])} | DECODER

WHERE: dict[str, dict[str, Json]] = {
    "nothing": {"tokenizer_config.json": PLAIN},
    "added_tokens.json": {"tokenizer_config.json": IM, "added_tokens.json": NEW},
    "added_tokens_decoder": {"tokenizer_config.json": IM | {"added_tokens_decoder": DECODER}},
    "decoder of all": {"tokenizer_config.json": IM | {"added_tokens_decoder": LISTED}},
    "both": {"tokenizer_config.json": IM | {"added_tokens_decoder": DECODER}, "added_tokens.json": {"<no>": 320}},
    "eos of special_tokens_map.json": {
        "tokenizer_config.json": PLAIN,
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "extra_special_tokens": ["<|im_start|>"]},
        "added_tokens.json": NEW,
    },
    "map of objects": {
        "tokenizer_config.json": PLAIN,
        "special_tokens_map.json": {"eos_token": token("<|im_end|>", lstrip=True), "bos_token": token("<s>")},
    },
    "a map beside a decoder": {
        "tokenizer_config.json": PLAIN | {"added_tokens_decoder": DECODER},
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
    },
    "named alone": {"tokenizer_config.json": IM | {"additional_special_tokens": ["<|im_start|>"]}},
    "pad and mask": {"tokenizer_config.json": IM | {"mask_token": "<mask>", "pad_token": "<pad>"}},
    "extra": {"tokenizer_config.json": PLAIN | {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
    "a token of the model's name": {"tokenizer_config.json": PLAIN | {"image_token": "<|im_start|>"}},
    "not special": {
        "tokenizer_config.json": PLAIN
        | {"added_tokens_decoder": {"320": token("<|im_start|>", False), "321": token("im_end", False)}}
    },
    "normalized": {
        "tokenizer_config.json": PLAIN
        | {"added_tokens_decoder": {"320": token("<|im_start|>", False, normalized=True), "321": token("|>")}}
    },
    "strips": {
        "tokenizer_config.json": PLAIN
        | {
            "added_tokens_decoder": {
                "320": token("<|im_start|>", lstrip=True),
                "321": token("<|im_end|>", False, rstrip=True),
            }
        }
    },
    "one character": {
        "tokenizer_config.json": PLAIN | {"added_tokens_decoder": {"320": token("\u00a7"), "321": token("$", False)}}
    },
}
TEXTS = [
    "hello <|im_start|>user<|im_end|>",
    "hello",
    " hello  the<|im_end|> user <|im_start|> the",
    "<|im_start|>user\nhello the fox<|im_end|>\n<|im_start|>the",
    "</s>hello <fox>the <fox> fox",
    "x\u00a7y $ the$ <mask><pad>im_end naïve 日本 🚀",
    "aaaaaaa hhhhhhhhellllllo the the",
    "",
    " ",
    *SENTENCES[:3],
]
SETTINGS = [
    dict(zip(("add_bos_token", "add_eos_token", "legacy", "add_prefix_space"), values, strict=True))
    for values in itertools.product([True, False], [None, True, False], [None, True, False], [None, True, False])
]


def theirs(folder: Path) -> Any:
    pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
    return transformers.AutoTokenizer.from_pretrained(folder)


def names_more(folder: Path) -> bool:
    """Whether a list of special tokens is given: then transformers no longer knows the model's own.

    That is a loss which ours does not have: what SentencePiece calls control or user-defined is found all the same.
    """
    names = ("tokenizer_config.json", "special_tokens_map.json")
    texts = [(folder / name).read_text() for name in names if (folder / name).exists()]
    return any("extra_special_tokens" in text or "additional_special_tokens" in text for text in texts)


def agree(folder: Path) -> None:
    reference = theirs(folder)
    ours = llama2cpp.load(folder, threads=1).tokenizer
    assert ours is not None
    assert ours.eos_ids[0] == reference.eos_token_id
    assert ours.bos_id == reference.bos_token_id
    for text in TEXTS:
        if names_more(folder) and ("</s>" in text or "<fox>" in text):
            continue
        ids = reference(text)["input_ids"]
        assert ours.encode(text, special=True) == ids, text
        if text.strip():
            assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("where", WHERE)
def test_tokens(tmp_path: Path, model_folder: Path, where: str) -> None:
    agree(folder_of(model_folder, tmp_path / "f", WHERE[where]))


@pytest.mark.parametrize("part", range(6))
def test_settings(tmp_path: Path, model_folder: Path, part: int) -> None:
    """Every combination of the settings, each with one way to add tokens."""
    ways = list(WHERE)
    for i, settings in list(enumerate(SETTINGS))[part::6]:
        files = WHERE[ways[i % len(ways)]]
        files = files | {"tokenizer_config.json": files["tokenizer_config.json"] | settings}
        agree(folder_of(model_folder, tmp_path / str(i), files))


def test_random_tables(tmp_path: Path, model_folder: Path) -> None:
    """Tokens of random texts and flags, in random places."""
    random_ = random.Random(0)
    texts = ["<|im_start|>", "<|im_end|>", "<mask>", "hello ", "ox f", "the ", "$", "|>", "\u00a7"]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained())
    texts = [text for text in texts if pieces.id_to_piece(pieces.piece_to_id(text)) != text]
    assert len(texts) > 5
    for i in range(40):
        chosen = random_.sample(texts, random_.randint(1, 4))
        added = {
            str(VOCAB + n): token(text, random_.random() < 0.5)
            | {flag: random_.random() < 0.3 for flag in ("lstrip", "rstrip", "normalized")}
            for n, text in enumerate(chosen)
        }
        config = PLAIN | {"added_tokens_decoder": added, "legacy": random_.random() < 0.5}
        if random_.random() < 0.5:
            config |= {"eos_token": random_.choice(chosen)}
        if random_.random() < 0.3:
            config |= {"pad_token": "<pad>"}
        agree(folder_of(model_folder, tmp_path / str(i), {"tokenizer_config.json": config}))


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast", None])
def test_where_transformers_differs(tmp_path: Path, model_folder: Path, name: str | None) -> None:
    """Of what its documentation says: BOS is put where nothing is said of it; and a space is, where no class is named.

    docs/decisions/2026-11-21-hugging-face-folders.md has the table. When this fails, transformers may be mended.
    """
    config = PLAIN | ({} if name is None else {"tokenizer_class": name})
    config = {key: value for key, value in config.items() if key != "add_bos_token"}
    if name is None:
        config.pop("tokenizer_class", None)
    folder = folder_of(model_folder, tmp_path / "f", {"tokenizer_config.json": config})
    documented = config | {"add_bos_token": True}
    if name != "GemmaTokenizer":
        documented |= {"tokenizer_class": "LlamaTokenizer"}
    reference = theirs(folder_of(model_folder, tmp_path / "g", {"tokenizer_config.json": documented}))
    ours = llama2cpp.load(folder, threads=1).tokenizer
    assert ours is not None
    other = theirs(folder)
    for text in ("hello", "the quick brown fox", " hello  the"):
        ids = reference(text)["input_ids"]
        assert ours.encode(text, special=True) == ids
        assert ids[0] == 1 != other(text)["input_ids"][0]


def test_ends(tmp_path: Path, model_folder: Path) -> None:
    """What the tokenizer's files call the end, the model's own end, and the ids of the other files."""
    files = WHERE["added_tokens.json"] | {"generation_config.json": {"eos_token_id": [2, 320]}}
    model = llama2cpp.load(folder_of(model_folder, tmp_path / "f", files), threads=1)
    assert model.tokenizer is not None
    assert model.tokenizer.eos_ids == (321, 2, 320)


def test_a_model_alone(tmp_path: Path, model_folder: Path) -> None:
    """Without settings it is what SentencePiece makes of it."""
    folder = folder_of(model_folder, tmp_path / "f", {})
    ours = llama2cpp.load(folder, threads=1).tokenizer
    same = Tokenizer.from_file(folder / "tokenizer.model")
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text) == same.encode(text)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"added_tokens.json": {"<a>": 322}}, 'the added token "<a>" has the id 322, expected 320'),
        ({"added_tokens.json": {"<a>": 5}}, 'the added token "<a>" has the id 5, which is that of \'<0x'),
        ({"added_tokens.json": {"</s>": 320}}, 'the added token "</s>" has the id 320, expected 2'),
        ({"added_tokens.json": {"": 320}}, "a token without text"),
        ({"added_tokens.json": {"<a>": -1}}, "-1 is no id"),
        ({"added_tokens.json": {"<a>": 320, "<b>": 320}}, "the id 320 has two tokens"),
        ({"added_tokens.json": {"<a>": "x"}}, "expected an integer"),
        ({"tokenizer_config.json": PLAIN | {"added_tokens_decoder": {"x": token("<a>")}}}, '"x" is no id'),
        (
            {"tokenizer_config.json": PLAIN | {"added_tokens_decoder": {"320": token("a", single_word=True)}}},
            "single_word",
        ),
        ({"tokenizer_config.json": PLAIN | {"add_bos_token": 1}}, "expected a boolean"),
    ],
)
def test_settings_that_contradict(tmp_path: Path, model_folder: Path, files: dict[str, Json], said: str) -> None:
    """The model opens for ids."""
    model = llama2cpp.load(folder_of(model_folder, tmp_path / "f", files), threads=1)
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        _ = model.tokenizer
    assert said in model.tokenizer_problem
    assert len(model.session().step(1)) == ROWS


def test_a_token_beyond_the_model(tmp_path: Path, model_folder: Path) -> None:
    """A token that the model has no row for is left out."""
    files: dict[str, Json] = {"added_tokens.json": {f"<{i}>": VOCAB + i for i in range(ROWS - VOCAB + 2)}}
    model = llama2cpp.load(folder_of(model_folder, tmp_path / "f", files), threads=1)
    with pytest.warns(UserWarning, match='ids up to 331, but .* of 330: the tokens from "<10>" on are left out'):
        tokenizer = model.tokenizer
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.encode("<9>", bos=False, special=True)) == (ROWS, [ROWS - 1])
