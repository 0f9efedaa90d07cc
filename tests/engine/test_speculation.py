"""Speculation: the text is that of plain decoding, whatever was proposed; only the passes are fewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2cpp
from llama2cpp import Engine, interventions
from llama2cpp.common.sampling import Sampling
from llama2cpp.speculation import FEW, MOST, Pace, PromptLookup, check_speculation

TALE = "One day, Lily saw a big red dog. The big red dog saw Lily. "
PROMPTS = ["", "Once upon a time", TALE * 3, "Tim, Tim, Tim, Tim", "{}"]
DRAFTS = ["prompt", "itself", "nearly", "another"]


@pytest.fixture(scope="module")
def model() -> Iterator[llama2cpp.Model]:
    with llama2cpp.load("storyteller", backend="cpu", threads=1, context=300) as model:
        yield model


@pytest.fixture(scope="module")
def drafts(model: llama2cpp.Model) -> dict[str, Any]:
    """What may propose: models that are right always, mostly and hardly ever."""
    random = np.random.default_rng(1)
    name = "blocks.2.mlp.W_out"
    weight = model.weights[name]
    nearly = model.with_weights({name: weight + random.normal(0, 0.02, weight.shape).astype(np.float32)})
    another = model.with_weights({f"blocks.{i}.mlp.W_out": np.zeros_like(weight) for i in range(4)})
    return {"prompt": "prompt", "itself": model, "nearly": nearly, "another": another}


def at_most_all(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "min_tokens": min(options["min_tokens"], options["max_tokens"])}


OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**64 - 1),
        "temperature": st.sampled_from([0.0, 0.0, 0.3, 0.8, 1.5]),
        "top_k": st.sampled_from([0, 0, 5]),
        "top_p": st.sampled_from([0.0, 0.9]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, -0.4]),
        "logit_bias": st.sampled_from([None, None, {420: 3.0, 7: -np.inf}]),
        "stop": st.sampled_from([(), (), ".", ["a ", "the"]]),
        "stop_ids": st.sampled_from([(), (), [420]]),
        "max_tokens": st.integers(0, 70),
        "min_tokens": st.sampled_from([0, 0, 20]),
    }
).map(at_most_all)
FORMS = st.sampled_from(
    [{}, {}, {}, {"regex": "(One|two|, |saw a |dog){3,30}"}, {"json_schema": {"type": "array", "maxItems": 4}}]
)


def counts_add_up(completion: llama2cpp.Completion) -> bool:
    """Each pass gives a token, and one for each that was accepted; one that ends the text is none of it."""
    usage = completion.usage
    tokens = 1 + usage.passes + usage.accepted_tokens - usage.completion_tokens
    return tokens in ((0, 1) if usage.completion_tokens else (0, 1, 2)) and (
        0 <= usage.accepted_tokens <= usage.proposed_tokens
    )


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(PROMPTS), OPTIONS, FORMS, st.sampled_from(DRAFTS), st.integers(1, 3))
def test_the_text_is_that_of_plain_decoding(
    model: llama2cpp.Model,
    drafts: dict[str, Any],
    prompt: str,
    options: dict[str, Any],
    form: dict[str, Any],
    draft: str,
    n: int,
) -> None:
    """With its log probabilities, its reason for the end and its pieces."""
    plain = model.complete(prompt, n=n, logprobs=2, **options, **form)
    guessed = model.complete(prompt, n=n, logprobs=2, speculate=drafts[draft], **options, **form)
    assert guessed == plain
    assert [completion.usage.proposed_tokens for completion in plain] == [0] * n
    assert all(counts_add_up(completion) for completion in [*plain, *guessed] if options["max_tokens"])
    pieces = model.stream(prompt, logprobs=2, speculate=drafts[draft], **options, **form)
    told = list(pieces)
    assert told == list(model.stream(prompt, **options, **form))
    assert (pieces.text, pieces.tokens, pieces.logprobs, pieces.top_logprobs, pieces.finish_reason) == (
        plain[0].text,
        plain[0].tokens,
        plain[0].logprobs,
        plain[0].top_logprobs,
        plain[0].finish_reason,
    )


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PROMPTS), OPTIONS, st.sampled_from([None, *DRAFTS])), min_size=1, max_size=6))
def test_requests_of_an_engine_are_those_of_plain_decoding(
    model: llama2cpp.Model, drafts: dict[str, Any], asked: list[tuple[str, dict[str, Any], str | None]]
) -> None:
    with Engine(model, rows=3) as engine:
        requests = [
            engine.submit(prompt, logprobs=1, speculate=drafts.get(str(draft)), **options)
            for prompt, options, draft in asked
        ]
        for request, (prompt, options, draft) in zip(requests, asked, strict=True):
            (alone,) = model.complete(prompt, logprobs=1, **options)
            assert request.result(60) == alone
            assert request.usage.completion_tokens == len(alone.tokens)
            assert draft is not None or request.usage.proposed_tokens == 0
        accepted = sum(request.usage.accepted_tokens for request in requests)
        assert engine.stats.accepted_tokens == accepted


def test_what_repeats_takes_few_passes(model: llama2cpp.Model) -> None:
    tale = model.tokenizer.encode("One day, Lily saw a big red dog.", bos=False)

    def tell_it_again(ids: list[int], logits: Any) -> None:
        logits[tale[(len(ids) - 1) % len(tale)]] += 1e4

    [completion] = model.complete("", speculate="prompt", logits_processor=tell_it_again, seed=1, max_tokens=120)
    assert completion.tokens == [tale[i % len(tale)] for i in range(120)]
    assert completion.usage.passes < len(completion.tokens) / 3
    assert completion.usage.accepted_tokens > 2 * completion.usage.passes


def test_a_draft_that_is_right_takes_few_passes(model: llama2cpp.Model, drafts: dict[str, Any]) -> None:
    """With the random numbers of the model's own draws, at a temperature too."""
    [completion] = model.complete("The dog", speculate=drafts["itself"], seed=1, temperature=1.2, max_tokens=100)
    assert completion.usage.proposed_tokens == completion.usage.accepted_tokens > 50
    assert completion.usage.passes < len(completion.tokens) / 2
    [completion] = model.complete("The dog", speculate=drafts["nearly"], seed=1, temperature=0.5, max_tokens=100)
    assert completion.usage.accepted_tokens > 5


def test_a_draft_that_is_wrong_is_left_alone(model: llama2cpp.Model, drafts: dict[str, Any]) -> None:
    [completion] = model.complete(
        "The dog", speculate=drafts["another"], seed=1, temperature=1.2, max_tokens=200, logit_bias={2: -9.0}
    )
    assert completion.usage.proposed_tokens < 40


@pytest.mark.parametrize("left_at", range(8))
def test_an_answer_that_is_broken_off(model: llama2cpp.Model, drafts: dict[str, Any], left_at: int) -> None:
    """The conversation goes on as it does without speculation, with the same tokens in its session."""
    sessions: list[Any] = []
    for speculate in (None, drafts["itself"]):
        talk = llama2cpp.Conversation(
            model, template="llama2", temperature=0.9, seed=4, max_tokens=12, speculate=speculate
        )
        pieces = talk.stream("Hello")
        first = [next(pieces) for _ in range(left_at)]
        pieces.close()
        sessions.append((first, talk._session.tokens, talk.history, talk.say("Tell me more"), talk.last_turn))
    (*plain, one), (*guessed, two) = sessions
    assert plain == guessed
    assert (one.tokens, one.reused_tokens, one.finish_reason) == (two.tokens, two.reused_tokens, two.finish_reason)


def test_a_function_for_logits_is_called_alike(model: llama2cpp.Model, drafts: dict[str, Any]) -> None:
    calls: list[list[tuple[list[int], bytes]]] = []

    def note(ids: list[int], logits: Any) -> None:
        calls[-1].append((ids, logits.tobytes()))
        logits[ids[-1]] -= 2  # in place

    texts = []
    for speculate in (None, "prompt", drafts["itself"]):
        calls.append([])
        texts.append(
            model.complete(TALE * 2, logits_processor=note, seed=2, max_tokens=30, logprobs=1, speculate=speculate)
        )
    assert texts[0] == texts[1] == texts[2]
    assert calls[0] == calls[1] == calls[2]


def test_nothing_is_proposed_while_hooks_look(model: llama2cpp.Model, drafts: dict[str, Any]) -> None:
    seen: list[list[tuple[int, int]]] = []

    def look(activation: Any, hook: llama2cpp.HookPoint) -> None:
        assert hook.position is not None
        seen[-1].append((hook.position, activation.shape[1]))

    for speculate in (None, drafts["itself"]):
        seen.append([])
        with model.hooks([("blocks.1.hook_mlp_out", look)]):
            [completion] = model.complete("The dog", temperature=0, max_tokens=20, speculate=speculate)
        assert completion.usage.proposed_tokens == 0
    assert seen[0] == seen[1]
    scaled = [interventions.scale("mlp_out", 0.5, layer=1)]
    with Engine(model) as engine:
        own = engine.submit("The dog", temperature=0, max_tokens=20, hooks=scaled, speculate=drafts["itself"])
        kept = engine.submit("The dog", temperature=0, max_tokens=20, record="resid_post", speculate=drafts["itself"])
        assert own.result(60).usage.proposed_tokens == kept.result(60).usage.proposed_tokens == 0
        assert kept.cache()["resid_post", 0].shape[1] == kept.usage.prompt_tokens + 19


def test_chats_too(model: llama2cpp.Model, drafts: dict[str, Any]) -> None:
    options: dict[str, Any] = {"template": "llama2", "seed": 3, "max_tokens": 25}
    plain = model.chat("Hello", logprobs=1, **options)
    guessed = model.chat("Hello", logprobs=1, speculate=drafts["itself"], **options)
    assert guessed == plain
    assert guessed.usage.accepted_tokens > 0
    assert model.chat("Hello", speculate="prompt", **options) == plain.text
    assert "".join(model.chat_stream("Hello", speculate=drafts["nearly"], **options)) == plain.text
    with Engine(model) as engine:
        assert engine.submit_chat("Hello", logprobs=1, speculate=drafts["nearly"], **options).result(60) == plain


# --- what cannot be


def test_what_cannot_be(model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    calls: dict[str, Callable[[Any], object]] = {
        "generate": lambda speculate: model.generate("Once", speculate=speculate),
        "complete": lambda speculate: model.complete("Once", speculate=speculate),
        "stream": lambda speculate: model.stream("Once", speculate=speculate),
        "chat": lambda speculate: model.chat("Once", template="llama2", speculate=speculate),
        "chat_stream": lambda speculate: model.chat_stream("Once", template="llama2", speculate=speculate),
        "Conversation": lambda speculate: llama2cpp.Conversation(model, template="llama2", speculate=speculate).say(""),
        "Engine.submit": lambda speculate: Engine(model).submit("Once", speculate=speculate),
        "Engine.submit_chat": lambda speculate: Engine(model).submit_chat("O", template="llama2", speculate=speculate),
        "astream": lambda speculate: model.astream("Once", speculate=speculate),
    }
    closed = model.with_weights({"blocks.0.mlp.W_out": model.weights["blocks.0.mlp.W_out"]})
    closed.close()
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"{name}.*: speculate is 'ngram', expected 'prompt', a Model or None"):
            call("ngram")
        with pytest.raises(TypeError, match=rf"{name}.*: speculate is 5 \(int\), expected 'prompt', a Model or None"):
            call(5)
        with pytest.raises(TypeError, match=rf"{name}.*: speculate is <llama2cpp.Session: .* \(Session\), expected"):
            call(model.session())
        with pytest.raises(ValueError, match=rf"{name}.*: speculate is a model .* needs the same vocabulary"):
            call(stories)
        with pytest.raises(ValueError, match="the model is closed"):
            call(closed)


def test_it_is_refused_on_metal() -> None:
    metal: Any = SimpleNamespace(_core=SimpleNamespace(backend="metal"))
    with pytest.raises(ValueError, match="generate: speculate is not possible on metal"):
        check_speculation("generate", "prompt", metal)
    check_speculation("generate", None, metal)


# --- how many are proposed


@given(st.floats(0, 1), st.integers(1, 64), st.floats(0, 2))
def test_a_pace(rate: float, rows: int, cost: float) -> None:
    """More is never proposed by more rows, by a dearer draft, or by a lower rate."""
    pace = Pace(rate, cost)
    assert 0 <= pace.count(rows) <= MOST
    assert pace.count(rows + 1) <= pace.count(rows)
    assert Pace(rate, cost + 0.1).count(rows) <= pace.count(rows)
    assert Pace(rate * 0.9, cost).count(rows) <= pace.count(rows)
    assert Pace(0.0, cost).count(rows) == 0
    assert Pace(1.0, cost).count(rows) == MOST


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5))
def test_a_lookup_gives_what_followed(ids: list[int], step: int) -> None:
    lookup = PromptLookup()
    for end in range(1, len(ids) + 1, step):
        part = ids[:end]
        guesses = list(lookup.propose(part, 1, 4, lambda logits, ids: None))
        assert len(guesses) <= FEW
        if guesses:  # behind a pair that was there before
            text = part + guesses
            places = [i for i in range(2, end) if text[i - 2 : i] == part[-2:]]
            assert any(text[i : i + len(guesses)] == guesses for i in places)


def test_the_option_is_of_all_that_sample() -> None:
    assert Sampling().speculate is None
    assert Sampling(speculate="prompt").checked("generate").speculate == "prompt"
