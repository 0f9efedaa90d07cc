"""`complete`, and `generate` of several prompts: each gives what it gives alone; what comes back has one rule."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2cpp
from llama2cpp.common.sampling import Sampling, SamplingOptions
from llama2cpp.serving.scheduler import ROWS

torch = pytest.importorskip("torch")

TEXTS = ["", "Once upon a time", "Tim saw a", "Zoë", "\n", "The end. The end."]
SAMPLINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.8, 2.0]),
        "top_k": st.sampled_from([0, 5]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "seed": st.integers(0, 2**64 - 1),
        "stop": st.sampled_from([(), ".", ["a ", "the"]]),
        "max_tokens": st.integers(0, 25),
    }
)


@pytest.mark.cpu_bits("answers of a batch have the bits of each alone")
@settings(max_examples=25)
@given(data=st.data(), options=SAMPLINGS)
def test_each_prompt_and_sample_is_what_it_is_alone(
    stories: llama2cpp.Model, data: st.DataObject, options: dict[str, Any]
) -> None:
    prompts: list[Any] = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
    prompts = [stories.tokenizer.encode(text) if data.draw(st.booleans()) else text for text in prompts]
    n = data.draw(st.integers(1, 3))
    seed = options.pop("seed")

    def alone(prompt: Any, j: int) -> llama2cpp.Completion:
        [completion] = stories.complete(prompt, seed=(seed + j) % 2**64, logprobs=2, **options)
        return completion

    expected = [[alone(prompt, j) for j in range(n)] for prompt in prompts]
    texts = [[completion.text for completion in row] for row in expected]
    assert stories.generate(prompts, n=n, seed=seed, **options) == texts
    assert stories.generate(prompts, seed=seed, **options) == [row[0] for row in texts]
    assert stories.generate(prompts[0], n=n, seed=seed, **options) == texts[0]
    assert stories.generate(prompts[0], seed=seed, **options) == texts[0][0]
    together = stories.complete(prompts, n=n, seed=seed, logprobs=2, **options)
    assert together == [completion for row in expected for completion in row]


def test_what_comes_back(stories: llama2cpp.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 2, "seed": 1}
    ids = stories.tokenizer.encode("Once")
    ones: list[Any] = ["Once", b"Once", ids, tuple(ids), np.array(ids), np.array([ids]), torch.tensor([ids]), iter(ids)]
    for one in ones:
        assert isinstance(stories.generate(one, **options), str)
    lists: list[Any] = [
        ["Once"],
        ("Once",),
        [ids],
        [np.array(ids)],
        iter(["Once"]),
        [b"Once"],
        (text for text in ["Once"]),
    ]
    for many in lists:
        assert [type(text) for text in stories.generate(many, **options)] == [str]
    both: Any = ["Once", ids]
    for n in (1, 2):
        assert [type(text) for text in stories.generate("Once", n=n, **options)] == [str] * n
        assert [len(row) for row in stories.generate(both, n=n, **options)] == [n, n]
        assert len(stories.complete(both, n=n, **options)) == 2 * n
        assert [type(item) for item in stories.generate("Once", n=n, logprobs=0, **options)] == [
            llama2cpp.Completion
        ] * n
    assert [type(item) for item in stories.complete("Once", **options)] == [llama2cpp.Completion]
    assert llama2cpp.complete("Once", model=stories, **options) == stories.complete("Once", **options)


def test_without_a_seed_prompts_differ(stories: llama2cpp.Model) -> None:
    assert len(set(stories.generate(["Once"] * 6, max_tokens=40))) > 1


def test_a_wrong_prompt_of_several_is_named(stories: llama2cpp.Model) -> None:
    wrongs: list[tuple[Any, str]] = [
        ([1, 512], "512"),
        ([1.5], "1.5"),
        ([], "no tokens"),
        ([1] * 600, "600"),
        ("a\ud800", "surr"),
    ]
    for wrong, told in wrongs:
        with pytest.raises((ValueError, llama2cpp.ContextFullError), match=told) as caught:
            stories.generate(["Once", wrong])
        assert str(caught.value).startswith("generate: prompt 1: ")
    number: Any = ["Once", 5]
    with pytest.raises((ValueError, TypeError), match="prompt 1"):
        stories.complete(number)
    texts: Any = ["Once", "Tim"]
    with pytest.raises(TypeError, match=r"stream: prompt is a list of 2.*generate\(\) takes several"):
        stories.stream(texts)


def test_a_hook_s_own_error_is_left_alone(stories: llama2cpp.Model) -> None:
    def fail(activation: object, hook: object) -> None:
        raise ValueError("mine")

    with stories.hooks([("resid_post0", fail)]), pytest.raises(ValueError, match=r"^mine$"):
        stories.generate("Once")


# --- one list of arguments


def test_types_are_the_dataclass_s() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Sampling)}
    assert {name: hint.__forward_arg__ for name, hint in SamplingOptions.__annotations__.items()} == fields
    assert typing.get_type_hints(SamplingOptions).keys() == fields.keys()


@pytest.mark.parametrize(
    "function",
    [
        *(getattr(llama2cpp, name) for name in ("generate", "complete", "stream", "chat", "chat_stream")),
        *(getattr(llama2cpp.Model, name) for name in ("generate", "complete", "stream", "chat", "chat_stream")),
        llama2cpp.Conversation.__init__,
    ],
)
def test_all_arguments_are_in_the_signature(function: Callable[..., Any]) -> None:
    """For help() and completion; with the defaults that a call has."""
    shown = inspect.signature(function).parameters
    chats = "chat" in function.__qualname__ or "Conversation" in function.__qualname__
    defaults = {field.name: field.default for field in dataclasses.fields(Sampling)}
    defaults |= {"max_tokens": 1024, "temperature": 0.7} if chats else {}
    assert {name: shown[name].default for name in defaults} == defaults
    assert ("template_variables" in shown) == chats


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", ["hot", b"1", None, [1.0], object()])
def test_numbers_are_numbers(name: str, value: Any, stories: llama2cpp.Model) -> None:
    options: Any = {name: value}
    for call, label in (
        (lambda: stories.generate("Once", **options), "generate"),
        (lambda: stories.complete("Once", **options), "complete"),
        (lambda: stories.stream("Once", **options), "stream"),
        (lambda: stories.chat("Hello", template="llama2", **options), "chat"),
        (lambda: llama2cpp.Conversation(stories, template="llama2", **options), "Conversation"),
    ):
        with pytest.raises(TypeError, match=f"^{label}: {name} is "):
            call()
    right: dict[str, Any] = {name: 0.5 if name != "temperature" else 1}
    good = stories.generate("Once", max_tokens=3, seed=1, **right)
    for kind in (np.float32, np.float64, np.array, torch.tensor):
        right[name] = kind(0.5 if name != "temperature" else 1.0)
        assert stories.generate("Once", max_tokens=3, seed=1, **right) == good


@pytest.mark.cpu_bits("answers of a batch have the bits of each alone")
def test_more_prompts_than_run_at_a_time(stories: llama2cpp.Model) -> None:
    """Long ones are read beside texts that go on, and what they begin with is shared."""
    tale = "Once upon a time, there was a little girl named Lily. "
    prompts = [tale * (i % 5) + f"She had {i} dogs" for i in range(ROWS + 5)]
    together = stories.complete(prompts, seed=3, max_tokens=6, logprobs=1, echo=True)
    for i in (0, 1, 4, ROWS - 1, ROWS, ROWS + 4):
        assert [together[i]] == stories.complete(prompts[i], seed=3, max_tokens=6, logprobs=1, echo=True)
    assert all(completion.usage.completion_tokens == 6 for completion in together)
    assert together[-1].usage.reused_tokens > 0


def test_an_error_of_one_of_many(stories: llama2cpp.Model) -> None:
    """It is raised as it is, and ends the call."""

    def fail(ids: list[int], logits: Any) -> None:
        if len(ids) > 12:
            raise ValueError("as it is")

    with pytest.raises(ValueError, match=r"^as it is$"):
        stories.generate(["Once", "Once upon a time"], logits_processor=fail, max_tokens=50, temperature=0)


@pytest.mark.parametrize("n", [2**40, 2**62])
def test_more_texts_than_there_is_memory_for(n: int) -> None:
    """Samplers and requests are made before the first pass: billions of them would fill the memory first."""
    with pytest.raises(MemoryError, match=f"generate: a run of {n} texts needs .*: ask for fewer at a time"):
        llama2cpp.generate("Once", n=n, max_tokens=1)
