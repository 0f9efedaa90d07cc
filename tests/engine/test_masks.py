"""Masks, biases and penalties of the sampler, and the texts that they make."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import regex
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import Sampler
from llama2cpp.common.grammar import TokenTexts


@pytest.mark.parametrize("seed", range(150))
def test_draws_are_those_from_changed_logits(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 80))
    logits = random.uniform(-20, 20, size).astype(np.float32)
    history = random.integers(0, size, random.integers(12)).tolist()
    prompt = int(random.integers(len(history) + 1))
    presence, frequency = random.uniform(-3, 3, 2).tolist()
    biased = random.integers(0, size, 5).tolist()
    bias = {id: -np.inf if random.random() < 0.2 else random.uniform(-9, 9) for id in biased}
    mask = random.random(size) < random.choice([0.1, 0.6, 1.0])

    expected = logits.copy()
    for id in set(history[prompt:]):
        expected[id] -= np.float32(frequency) * np.float32(history[prompt:].count(id)) + np.float32(presence)
    for id, value in bias.items():
        expected[id] += np.float32(value)
    expected[~mask] = -np.inf

    same: dict[str, Any] = {"temperature": [0, 0.7, 1.5][seed % 3], "top_p": [0, 0.9][seed % 2], "seed": seed}
    sampler = Sampler(presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias, **same)
    packed = np.packbits(np.resize(mask, 96) & (np.arange(96) < size), bitorder="little").view(np.uint32)
    if np.isneginf(expected).all():
        with pytest.raises(ValueError, match="every id is forbidden"):
            sampler.sample(logits, history, prompt, mask)
        return
    id = Sampler(**same).sample(expected)
    assert sampler.copy().sample(logits, history, prompt, mask) == id
    assert sampler.sample(logits, history, prompt, packed) == id
    assert mask[id]


@pytest.mark.parametrize(
    "mask",
    [np.ones(9, bool), np.ones((1, 10), bool), np.ones(10), np.ones(0, np.uint32), np.ones(1, np.uint64), [True] * 10],
)
def test_masks_of_another_shape_are_refused(mask: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="mask"):
        Sampler().sample(np.zeros(10, np.float32), mask=mask)


# --- texts


class Model:
    """Greedy decoding by the definition: of the tokens that an independent check allows, the likeliest."""

    def __init__(self, model: llama2cpp.Model) -> None:
        self.model = model
        self.texts = TokenTexts.of(model.tokenizer, model.config.vocab_size).texts
        self.ends = {model.tokenizer.bos_id, *model.tokenizer.eos_ids}

    def greedy(self, prompt: str, pattern: str, count: int) -> str:
        session, text = self.model.session(), ""
        logits = session.prefill(prompt)
        compiled = regex.compile(pattern)
        for _ in range(count):
            for id in np.argsort(-logits, kind="stable").tolist():
                if id in self.ends and compiled.fullmatch(text):
                    return text
                added = self.texts[id]
                if added and added.isascii() and compiled.fullmatch(text + added.decode(), partial=True):
                    break
            else:
                return text
            text += added.decode()
            logits = session.step(id)
        return text


@pytest.mark.parametrize("pattern", ["( [a-z]+){3,6}[.!]", " [A-Z][a-z ]{20,30}", "(, and| the)+( dog)?"])
def test_greedy_text_is_the_likeliest_that_matches(any_stories: llama2cpp.Model, pattern: str) -> None:
    [found] = any_stories.complete("Once upon a time", regex=pattern, temperature=0, max_tokens=12)
    assert found.text == Model(any_stories).greedy("Once upon a time", pattern, 12)
    complete = regex.fullmatch(pattern, found.text) is not None
    assert complete or regex.fullmatch(pattern, found.text, partial=True)
    assert found.finish_reason in ({"end", "length"} if complete else {"incomplete"})


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "maximum": 99, "minimum": 1},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def storyteller() -> llama2cpp.Model:
    return llama2cpp.load("storyteller")


def test_samples_prompts_streams_and_chats_satisfy_a_schema(storyteller: llama2cpp.Model) -> None:
    many = storyteller.complete(["Once", "The dog"], json_schema=SCHEMA, n=2, seed=5, max_tokens=60)
    for completion in many:
        assert completion.finish_reason == "end"
        jsonschema.validate(json.loads(completion.text), SCHEMA)
    alone = [
        storyteller.generate(prompt, json_schema=SCHEMA, seed=5 + i) for prompt in ("Once", "The dog") for i in (0, 1)
    ]
    assert [completion.text for completion in many] == alone
    assert "".join(storyteller.stream("Once", json_schema=SCHEMA, seed=5)) == alone[0]
    with llama2cpp.Engine(storyteller) as engine:
        requests = [
            engine.submit(prompt, json_schema=SCHEMA, seed=5 + i) for prompt in ("Once", "The dog") for i in (0, 1)
        ]
        assert [request.result().text for request in requests] == alone
        with pytest.raises(ValueError, match="logit_bias has the id 1536"):
            engine.submit("Once", logit_bias={1536: 1.0})
    with llama2cpp.load("storyteller", threads=1) as other:
        assert other.generate("Once", json_schema=SCHEMA, seed=5) == alone[0]

    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked: Any = {"template": "llama2", "json_schema": SCHEMA, "seed": 1}
    answer = storyteller.chat("Hello", tools=tools, **asked)
    jsonschema.validate(json.loads(answer), SCHEMA)
    assert "".join(storyteller.chat_stream("Hello", **asked)) == storyteller.chat("Hello", **asked)
    conversation = llama2cpp.Conversation(storyteller, template="llama2", seed=1)
    jsonschema.validate(json.loads(conversation.say("Hello", json_schema=SCHEMA)), SCHEMA)
    assert conversation.last_turn is not None
    assert conversation.last_turn.finish_reason == "end"


def test_a_space_at_the_beginning_of_an_answer(storyteller: llama2cpp.Model) -> None:
    """The decoder takes it off there, and the mask knows."""
    assert storyteller.chat("Hello", template="llama2", regex="(Once|Yes) upon", temperature=0) == "Once upon"
    assert storyteller.generate("", regex="(Once|Yes) upon", temperature=0) == "Once upon"


def test_what_ends_within_its_grammar_says_so(storyteller: llama2cpp.Model) -> None:
    def reason(**options: Any) -> str:
        [completion] = storyteller.complete("Once upon", temperature=0, **options)
        return completion.finish_reason

    assert reason(regex=" [a-z ]{40}", max_tokens=3) == "incomplete"
    assert reason(regex=" [a-z ]{40}", stop="time") == "incomplete"
    assert reason(regex=" a t?.*", stop="time") == "stop"
    assert reason(regex="( [a-z]+)+", max_tokens=3) == "length"
    assert reason(regex="", max_tokens=3) == "end"
    assert storyteller.session(context=6).context == 6
    [full] = llama2cpp.load("storyteller", context=8).complete("Once upon", temperature=0, regex=" [a-z ]{90}")
    assert full.finish_reason == "incomplete"


def test_ends_come_where_they_may(storyteller: llama2cpp.Model) -> None:
    end = storyteller.tokenizer.eos_ids[0]

    def eager(ids: list[int], logits: NDArray[np.float32]) -> None:
        logits[end] = 100

    assert storyteller.generate("Once", logits_processor=eager) == ""
    [found] = storyteller.complete("Once", logits_processor=eager, regex="( [a-z]+){3}", seed=1)
    assert regex.fullmatch("( [a-z]+){3}", found.text)
    assert found.finish_reason == "end"
    [found] = storyteller.complete("Once upon", logits_processor=eager, min_tokens=4, seed=1)
    assert (len(found.tokens), found.finish_reason) == (4, "end")

    plain = storyteller.complete("Once upon", temperature=0, max_tokens=10)[0]
    [stopped] = storyteller.complete("Once upon", temperature=0, max_tokens=10, stop_ids=plain.tokens[3])
    assert (stopped.tokens, stopped.finish_reason) == (plain.tokens[:3], "stop")
    [later] = storyteller.complete("Once upon", temperature=0, stop=plain.text[:3], min_tokens=6, max_tokens=10)
    assert later.tokens[:6] == plain.tokens[:6]


def test_penalties_and_bias_reach_the_sampler(storyteller: llama2cpp.Model) -> None:
    """Against the loop written out. The prompt's tokens do not count for two of the penalties."""
    options: dict[str, Any] = {
        "presence_penalty": 2.0,
        "frequency_penalty": 1.5,
        "logit_bias": {1493: 3.0, 260: -np.inf},
    }
    options |= {"seed": 4, "repetition_penalty": 1.2}
    session, sampler = storyteller.session(), Sampler(**options)
    logits = session.prefill("Once upon a time, a dog")
    begin, ids = session.position, list[int]()
    for _ in range(25):
        ids.append(sampler.sample(logits, session.tokens, begin))
        logits = session.step(ids[-1])
    [found] = storyteller.complete("Once upon a time, a dog", max_tokens=25, **options)
    assert found.tokens == ids
    assert 260 not in ids

    seen = []

    def look(given: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(len(given))
        return logits

    [same] = storyteller.complete("Once upon a time, a dog", max_tokens=25, logits_processor=look, **options)
    assert same.tokens == ids
    assert seen == list(range(begin, begin + 25))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {1536: 1.0}}, "logit_bias has the id 1536"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias has the id -1"),
    ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ({"logit_bias": {1: float("inf")}}, "logit_bias"),
    ({"logit_bias": {1: "x"}}, "logit_bias"),
    ({"logit_bias": {"a": 1.0}}, "logit_bias"),
    ({"logit_bias": [1.0]}, "logit_bias"),
    ({"stop_ids": 1536}, "stop_ids has the id 1536"),
    ({"stop_ids": [1.5]}, "stop_ids"),
    ({"stop_ids": "x"}, "stop_ids"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5"),
    ({"presence_penalty": float("nan")}, "presence_penalty"),
    ({"frequency_penalty": float("inf")}, "frequency_penalty"),
    ({"logits_processor": 5}, "logits_processor"),
    ({"temperature": 10**400}, "temperature is an integer of 1329 bits, which no float holds"),
    ({"json_schema": {"enum": []}}, "json_schema"),
    ({"regex": "("}, "regex"),
    ({"grammar": "start: x"}, "grammar"),
]


@pytest.mark.parametrize(("options", "said"), BAD, ids=str)
def test_what_cannot_be_is_an_error_before_the_first_token(
    storyteller: llama2cpp.Model, options: dict[str, Any], said: str
) -> None:
    calls = []
    with storyteller.hooks([("embed", lambda activation, hook: calls.append(1))]):
        for call in (storyteller.generate, storyteller.complete, storyteller.stream):
            with pytest.raises((ValueError, TypeError), match=said):
                call("Once", **options)
        for chat in (storyteller.chat, storyteller.chat_stream):
            with pytest.raises((ValueError, TypeError), match=said):
                chat("Hello", template="llama2", **options)
    assert calls == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda ids, logits: logits[:3], r"\[3\], expected \[1536\]"),
        (lambda ids, logits: logits * np.nan, "nan"),
        (lambda ids, logits: "x", r"logits_processor has given 'x' \(str\), expected an array of numbers \[1536\] or"),
    ],
)
def test_what_a_processor_gives_is_checked(storyteller: llama2cpp.Model, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        storyteller.generate("Once", logits_processor=given)
