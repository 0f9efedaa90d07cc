"""A tokenizer as a dict: every setting by its name, and nothing else is taken. Pickles hold the same."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_settings import BASES, TOKENIZERS, tokenizer_of

import llama2cpp
from llama2cpp import FormatError, Tokenizer, _core

KINDS = _core.tokenizer_settings()
DICTS = {kind: base.to_dict() for kind, base in BASES.items()}
SETTINGS = [(kind, name) for kind, names in KINDS.items() for name in names]
WITH_FLAGS = [{"id": 1, "lstrip": True, "rstrip": False, "normalized": False}]


def test_kinds_and_settings() -> None:
    assert set(KINDS) == {"llama2.c", "sentencepiece", "byte_bpe", "ranked_bpe", "unigram"}
    for kind, names in KINDS.items():
        assert list(Tokenizer.from_dict(DICTS[kind]).to_dict()) == ["kind", *names]


@pytest.mark.parametrize("case", TOKENIZERS)
def test_there_and_back(case: str) -> None:
    _, kind, changes = TOKENIZERS[case]
    settings = replace(BASES[kind], **changes).to_dict()
    tokenizer = Tokenizer.from_dict(settings)
    assert tokenizer.to_dict() == settings
    for same in (
        Tokenizer.from_dict(tokenizer.to_dict()),
        *(pickle.loads(pickle.dumps(tokenizer, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy(tokenizer),
        copy.deepcopy(tokenizer),
    ):
        assert same == tokenizer
        assert hash(same) == hash(tokenizer)
        assert same.to_dict() == settings
        assert same.encode("hello <c>he</s>", special=True) == tokenizer.encode("hello <c>he</s>", special=True)


def test_a_changed_setting_is_another_tokenizer() -> None:
    found = {case: tokenizer_of(replace(BASES[kind], **changes)) for case, (_, kind, changes) in TOKENIZERS.items()}
    for case, (_, kind, changes) in TOKENIZERS.items():
        same = replace(BASES[kind], **changes) == BASES[kind]
        assert (found[case] == tokenizer_of(BASES[kind])) == same, case
    things: list[object] = [*DICTS.values(), None, "byte_bpe"]
    assert not any(one == thing for one in found.values() for thing in things)


def test_nothing_in_it_is_a_number_that_means_a_name() -> None:
    for kind, settings in DICTS.items():
        assert settings["kind"] == kind
        assert set(map(type, settings["types"])) == {str}
        assert all(isinstance(settings[name], str) for name in ("pre_tokenizer", "prefix") if name in settings)


def test_a_pickle_has_each_name_once() -> None:
    settings = llama2cpp.load("storyteller").tokenizer.to_dict()
    assert pickle.dumps(settings["types"]).count(b"normal") == 1


# --- what is refused


def refused(settings: Any, said: str) -> None:
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_dict(settings)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_a_missing_setting(kind: str, name: str) -> None:
    refused({key: value for key, value in DICTS[kind].items() if key != name}, f"tokenizer: {name} is missing")


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
@pytest.mark.parametrize(
    "value", [None, 2.5, "text", object(), {}, {1}, [None], [[]], [{}], [2.5j], 2**31, -(2**31) - 1, 2**64, [2**40]]
)
def test_a_value_of_another_type(kind: str, name: str, value: Any) -> None:
    refused(DICTS[kind] | {name: value}, name)


@pytest.mark.parametrize("name", {name for names in KINDS.values() for name in names})
def test_a_setting_of_another_kind(name: str) -> None:
    for kind, names in KINDS.items():
        if name not in names:
            refused(DICTS[kind] | {name: None}, f"{kind} has no '{name}'")


def test_flags_of_added_tokens() -> None:
    settings = DICTS["byte_bpe"]
    assert Tokenizer.from_dict(settings | {"added": WITH_FLAGS}).to_dict()["added"] == WITH_FLAGS
    others: tuple[Any, ...] = (None, "1", 1.5, [])
    for name in WITH_FLAGS[0]:
        for value in others:
            refused(settings | {"added": [*WITH_FLAGS, WITH_FLAGS[0] | {name: value}]}, f"added[1].{name} is ")
        refused(settings | {"added": [{key: 1 for key in WITH_FLAGS[0] if key != name}]}, "added[0].")
    refused(settings | {"added": [WITH_FLAGS[0] | {"strip": True}]}, "added[0] has no 'strip'")
    refused(
        settings | {"added": [(1, True, False, False)]}, "added[0] is (1, True, False, False) (tuple), expected a dict"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "bpe"}, "kind is 'bpe' (str), expected one of: llama2.c, sentencepiece, byte_bpe, ranked_bpe"),
        ({"kind": 2}, "kind is 2 (int)"),
        ({"kind": "\ud800"}, "kind is '\\ud800'"),
        ({"pre_tokenizer": "gpt3"}, "pre_tokenizer is 'gpt3' (str), expected one of: gpt2, llama3,"),
        ({"pre_tokenizer": 0}, "pre_tokenizer is 0 (int)"),
        ({"types": [0] * 264}, "types[0] is 0 (int), expected one of: normal, unknown,"),
        ({"pieces": ["a"] * 264}, "pieces[0] is 'a' (str), expected bytes"),
        ({"bos_id": True}, "bos_id is True (bool), expected an integer"),
        ({"bos_id": -2}, "the id of BOS is -2"),
        ({"eos_ids": [261, 264]}, "an id of EOS is 264, expected an id below 264"),
        ({"add_bos": 1}, "add_bos is 1 (int), expected a bool"),
        ({"merges": [(0, 1)]}, "merges[0] has 2 ids, expected 3"),
        ({"merges": [(0, 1, 2**31)]}, "merges[0][2] is 2147483648 (int), expected a 32-bit integer"),
        ({"merges": [(0, 1, 2.0)]}, "merges[0][2] is 2.0 (float), expected an integer"),
        ({"merges": [b"abc"]}, "merges[0] is b'abc' (bytes), expected a list"),
        ({"types": ["normal"]}, "264 pieces, but 1 types"),
        ({1: 2}, "byte_bpe has no 1 (int)"),
    ],
)
def test_wrong_values(changes: dict[Any, Any], said: str) -> None:
    refused(DICTS["byte_bpe"] | changes, said)


@pytest.mark.parametrize("score", [1e39, -1e300, 2**200, 10**400, "1", None, True])
def test_scores_are_32_bit_floats(score: Any) -> None:
    settings = DICTS["sentencepiece"]
    refused(settings | {"scores": [score, *settings["scores"][1:]]}, "scores[0] is ")
    refused(settings | {"scores": [*settings["scores"][1:], float("nan")]}, "is NaN")


@pytest.mark.parametrize("state", [None, (), (2, [b"a"], [0.0], [0]), [], "kind", 5])
def test_what_is_no_dict(state: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a dict, as Tokenizer\.to_dict makes it"):
        Tokenizer.from_dict(state)
    with pytest.raises(TypeError, match="a pickle of an older version has to be made again"):
        Tokenizer.__new__(Tokenizer).__setstate__(state)  # type: ignore[attr-defined]


class Shrinks(list[Any]):
    """A list whose first item empties it when it is looked at."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self[0] = Emptying(self)


class Emptying:
    def __init__(self, list_: list[Any]) -> None:
        self.list_ = list_

    def __index__(self) -> int:
        self.list_.clear()
        return 0

    def __float__(self) -> float:
        return float(self.__index__())


@pytest.mark.parametrize("name", ["eos_ids", "merges", "scores"])
def test_lists_that_change_while_they_are_read(name: str) -> None:
    kind = "sentencepiece" if name == "scores" else "byte_bpe"
    settings = DICTS[kind]
    items = [Shrinks([0, 0, 0])] if name == "merges" else Shrinks(settings[name] * 2)
    try:
        Tokenizer.from_dict(settings | {name: items})
    except FormatError as error:
        assert name.removesuffix("s") in str(error)  # noqa: PT017


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@given(st.sampled_from(SETTINGS), ANYTHING, st.integers(0, 300))
def test_any_change_is_a_tokenizer_or_an_error(setting: tuple[str, str], value: Any, at: int) -> None:
    kind, name = setting
    settings = dict(DICTS[kind])
    if isinstance(settings[name], list) and at < len(settings[name]):
        settings[name] = [*settings[name][:at], value, *settings[name][at + 1 :]]
    else:
        settings[name] = value
    try:
        tokenizer = Tokenizer.from_dict(settings)
    except FormatError:
        return
    tokenizer.decode(range(len(tokenizer)))
    assert Tokenizer.from_dict(tokenizer.to_dict()).to_dict().keys() == settings.keys()
