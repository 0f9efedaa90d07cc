"""Calls that are wrong are refused by the argument's name, before anything is opened, and say what to use instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import llama2cpp
from llama2cpp import defaults, export

SURROGATE = "half \ud83d of one"


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> llama2cpp.Model:
        raise AssertionError("the storyteller was opened")

    monkeypatch.setattr(defaults, "load", fail)
    monkeypatch.setattr(defaults, "_model", None)


WRONG: list[dict[str, Any]] = [
    {"n": 0},
    {"n": True},
    {"max_tokens": 2.5},
    {"max_tokens": -1},
    {"temperature": -1.0},
    {"temperature": "hot"},
    {"seed": -1},
    {"seed": 2**64},
    {"top_k": 1.5},
    {"stop": ""},
    {"stop": 5},
    {"special": "yes"},
    {"echo": 1},
    {"max_token": 1},
    {"prompt": SURROGATE},
    {"prompt": ["Once", SURROGATE]},
]


GENERATE: list[tuple[Callable[..., Any], dict[str, Any]]] = [(llama2cpp.generate, wrong) for wrong in WRONG] + [
    (llama2cpp.complete, wrong) for wrong in WRONG
]
GENERATE += [(llama2cpp.stream, wrong) for wrong in WRONG if "n" not in wrong and wrong != WRONG[-1]]  # it takes one


@pytest.mark.parametrize(("function", "options"), GENERATE, ids=str)
def test_nothing_is_opened_for_a_wrong_prompt(
    function: Callable[..., Any], options: dict[str, Any], nothing_opens: None
) -> None:
    name = "text" if "prompt" in options else "max_tokens" if "max_token" in options else next(iter(options))
    with pytest.raises((TypeError, ValueError), match="stop string" if options == {"stop": ""} else name) as caught:
        function(**options)
    assert function.__name__ in str(caught.value)


WRONG_CHATS: list[dict[str, Any]] = [
    {"messages": 5},
    {"messages": []},
    {"messages": [5]},
    {"tools": "x"},
    {"tools": {"name": "x"}},
    {"tools": [5]},
    {"documents": "x"},
    {"documents": ["x"]},
    {"special_in_content": "no"},
    {"template": 5},
    {"max_tokens": True},
    {"seed": -1},
]


CHATS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (chat, {"messages": "Hello", **wrong}) for chat in (llama2cpp.chat, llama2cpp.chat_stream) for wrong in WRONG_CHATS
]
CHATS += [(llama2cpp.Conversation, wrong) for wrong in WRONG_CHATS if "messages" not in wrong]  # it has none yet


@pytest.mark.parametrize(("function", "options"), CHATS, ids=str)
def test_nothing_is_opened_for_a_wrong_chat(
    function: Callable[..., Any], options: dict[str, Any], nothing_opens: None
) -> None:
    name = next(name for name in options if options[name] != "Hello")
    with pytest.raises((TypeError, ValueError), match=name.removesuffix("s")) as caught:
        function(**options)
    assert function.__name__ in str(caught.value)


def test_seeds_are_refused_in_one_wording(stories: llama2cpp.Model) -> None:
    calls: list[Callable[[int], Any]] = [
        lambda seed: stories.generate("Once", seed=seed),
        lambda seed: stories.complete("Once", seed=seed),
        lambda seed: stories.stream("Once", seed=seed),
        lambda seed: stories.chat("Once", template="llama2", seed=seed),
        lambda seed: llama2cpp.Conversation(stories, template="llama2", seed=seed),
        lambda seed: llama2cpp.Sampler(seed=seed),
    ]
    for call in calls:
        for seed in (-1, 2**64, -(2**70)):
            with pytest.raises(ValueError, match=rf"\w: seed is {seed}, expected 0 to 2\*\*64 - 1$"):
                call(seed)


def test_half_a_character_is_named_with_its_place(stories: llama2cpp.Model) -> None:
    session, tokenizer = stories.session(), stories.tokenizer
    conversation = llama2cpp.Conversation(stories, template="llama2")
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: stories.generate(SURROGATE),
        "generate: prompt 1|generate": lambda: stories.generate(["Once", SURROGATE]),
        "complete": lambda: stories.complete(SURROGATE),
        "stream": lambda: stories.stream(SURROGATE),
        "chat": lambda: stories.chat(SURROGATE, template="llama2"),
        "chat_stream": lambda: stories.chat_stream(SURROGATE, template="llama2"),
        "Conversation.say": lambda: conversation.say(SURROGATE),
        "Session.prefill": lambda: session.prefill(SURROGATE),
        "Model.forward": lambda: stories.forward([(session, SURROGATE)]),
        "run_with_cache": lambda: stories.run_with_cache(SURROGATE),
        "run_with_hooks": lambda: stories.run_with_hooks(SURROGATE),
        "perplexity": lambda: stories.perplexity(SURROGATE),
        "to_tokens": lambda: stories.to_tokens(SURROGATE),
        "to_str_tokens": lambda: stories.to_str_tokens(SURROGATE),
        "to_single_token": lambda: stories.to_single_token(SURROGATE),
        "logit_lens": lambda: llama2cpp.logit_lens(stories, SURROGATE),
        "compare": lambda: export.compare(stories, stories, SURROGATE),
        "": lambda: tokenizer.encode(SURROGATE),
    }
    for function, call in calls.items():
        with pytest.raises(ValueError, match=rf"({function}).*lone surrogate U\+D83D at character 5, which") as caught:
            call()
        assert type(caught.value) is ValueError
    assert (session.position, conversation.history) == (0, [])


def test_what_cannot_be_pickled_says_what_to_use(stories: llama2cpp.Model) -> None:
    session = stories.session()
    things: dict[str, Any] = {
        r"model\.load_session\(path\)": session,
        r"session\.save\(path\)": session.kv,
        r"dict\(weights\)": stories.weights,
        r"dict\(weights\).*": stories.weights.transformer_lens,
        r"load\(path\)": llama2cpp.Conversation(stories, template="llama2"),
        "the list that they were made of": stories.hooks([]),
        r"cache\(\)": stories.record("z"),
        "it has no file": stories.with_weights({"ln_final.w": np.ones(stories.config.dim)}),
    }
    for instead, thing in things.items():
        with pytest.raises(TypeError, match=f"cannot be pickled.*{instead}"):
            pickle.dumps(thing)


def test_conversations_are_not_copied(stories: llama2cpp.Model) -> None:
    """Two would write into one session."""
    conversation = llama2cpp.Conversation(stories, template="llama2")
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"Conversation cannot be copied: save\(path\) writes it"):
            copied(conversation)


def test_biases_of_ids_that_there_are_not(stories: llama2cpp.Model) -> None:
    with pytest.raises(ValueError, match=r"^generate: logit_bias has the id -1, expected 0 or more$"):
        stories.generate("a", logit_bias={-1: 0.0})
    with pytest.raises(ValueError, match=r"^generate: logit_bias has the id 512, expected 0 to 511$"):
        stories.generate("a", logit_bias={512: 0.0})


def test_copies_of_sessions_and_models(stories: llama2cpp.Model) -> None:
    session = stories.session()
    session.prefill("Once upon a")
    for other in (copy.copy(session), copy.deepcopy(session), copy.deepcopy({"a": session})["a"]):
        other.step(5)
        assert session.tokens == other.tokens[:-1]
    edited = stories.with_weights({"ln_final.w": np.ones(stories.config.dim)})
    for model in (copy.copy(edited), copy.deepcopy(edited)):
        assert (model.session().step(1) == edited.session().step(1)).all()
        model.close()
    assert edited.session().position == 0
