"""generate and stream: against a plain loop over a session, and over models that say what the test wants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from on_metal import ON_METAL, examples

import llama2cpp

BOS, EOS = 1, 2
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def tokenizer(stories_dir: Path) -> llama2cpp.Tokenizer:
    return llama2cpp.Tokenizer.from_file(stories_dir / "tok512.bin")


def scripted(tokenizer: llama2cpp.Tokenizer, ids: Sequence[int]) -> llama2cpp.Model:
    """A model that says `ids` after BOS at temperature 0."""
    followers = dict(zip([BOS, *ids], ids, strict=False))
    assert len(followers) == len(ids), "an id that comes twice would be followed twice"
    return llama2cpp.from_arrays(*tiny.script(tokenizer.vocab_size, followers), tokenizer)


def ids_of(tokenizer: llama2cpp.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, bos=False)


# --- the text


def test_the_text_is_llama2c_s(stories: llama2cpp.Model) -> None:
    expected = (DATA / "stories260K_t0_n200.txt").read_text().removesuffix("\n")
    assert stories.generate(max_tokens=200, temperature=0) == expected
    assert "".join(stories.stream(max_tokens=200, temperature=0)) == expected


@settings(max_examples=examples(50))
@given(
    prompt=st.sampled_from(["", "Once upon a time", "Zoë", "\n"]),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.7, 1.0, 3.0]),
            "top_p": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
            "top_k": st.sampled_from([0, 1, 5]),
            "min_p": st.sampled_from([0.0, 0.1]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "seed": st.integers(0, 2**64 - 1),
        }
    ),
)
def test_a_plain_loop(stories: llama2cpp.Model, prompt: str, options: dict[str, Any]) -> None:
    tokenizer, sampler, session = stories.tokenizer, llama2cpp.Sampler(**options), stories.session()
    assert tokenizer is not None
    sampled: list[int] = []
    logits = session.prefill(tokenizer.encode(prompt))
    while len(sampled) < 30:
        token = sampler.sample(logits, session.tokens)
        if token in (BOS, EOS):
            break
        sampled.append(token)
        logits = session.step(token)

    completion = stories.generate(prompt, max_tokens=30, logprobs=0, **options)
    assert completion.tokens == sampled
    everything = tokenizer.decode([*tokenizer.encode(prompt), *sampled])
    assert tokenizer.decode(tokenizer.encode(prompt)) + completion.text == everything
    pieces = list(stories.stream(prompt, max_tokens=30, **options))
    assert "".join(pieces) == completion.text
    assert "" not in pieces


def test_a_character_in_several_tokens_comes_whole(tokenizer: llama2cpp.Tokenizer) -> None:
    text = "a🐶é日"
    model = scripted(tokenizer, [*ids_of(tokenizer, text), EOS])
    assert list(model.stream(temperature=0)) == ["a", "🐶", "é", "日"]


def test_half_a_character_at_the_end(tokenizer: llama2cpp.Tokenizer) -> None:
    ids = ids_of(tokenizer, "a🐶")
    model = scripted(tokenizer, [*ids[:-1], EOS])
    assert list(model.stream(temperature=0)) == ["a", "\ufffd"]
    model = scripted(tokenizer, ids)
    assert model.generate(temperature=0, max_tokens=len(ids) - 1) == "a\ufffd"


def test_a_prompt_that_ends_in_half_a_character(tokenizer: llama2cpp.Tokenizer) -> None:
    ids = ids_of(tokenizer, "a🐶")
    model = scripted(tokenizer, [*ids, EOS])
    assert model.generate([BOS, *ids[:-2]], temperature=0) == "🐶"
    assert model.generate([BOS, *ids[:-2]], temperature=0, echo=True) == "a🐶"


def test_echo(stories: llama2cpp.Model) -> None:
    assert stories.tokenizer is not None
    text = stories.generate("One day, Zoë", max_tokens=10, temperature=0)
    ids = stories.tokenizer.encode("One day, Zoë")
    for prompt in ("One day, Zoë", "One day, Zoë".encode(), ids, np.array(ids)):
        assert stories.generate(prompt, max_tokens=10, temperature=0, echo=True) == "One day, Zoë" + text
    pieces = list(stories.stream("One day, Zoë", max_tokens=10, temperature=0, echo=True))
    assert (pieces[0], "".join(pieces[1:])) == ("One day, Zoë", text)


def test_bytes_that_are_no_text(stories: llama2cpp.Model) -> None:
    assert stories.generate(b"a\xff", max_tokens=0, echo=True) == "a\ufffd"


# --- where it ends


@pytest.mark.parametrize("end", [BOS, EOS])
def test_ends_at_eos_and_bos(tokenizer: llama2cpp.Tokenizer, end: int) -> None:
    ids = ids_of(tokenizer, "abc")
    completion = scripted(tokenizer, [*ids, end]).generate(temperature=0, logprobs=0)
    assert (completion.text, completion.tokens, completion.finish_reason) == ("abc", ids, "end")


def test_max_tokens(stories: llama2cpp.Model) -> None:
    completion = stories.generate(max_tokens=5, temperature=0, logprobs=0)
    assert (len(completion.tokens), completion.finish_reason) == (5, "length")
    nothing = stories.generate("Once", max_tokens=0, logprobs=0)
    assert (nothing.text, nothing.tokens, nothing.finish_reason) == ("", [], "length")


def test_context_ends_the_text(stories_dir: Path) -> None:
    """The token after a full context is still known, as in llama2.c: it needs no room."""
    model = llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=stories_dir / "tok512.bin", context=10)
    completion = model.generate([BOS, 403, 407], max_tokens=None, temperature=0, logprobs=0)
    assert (len(completion.tokens), completion.finish_reason) == (8, "context")
    full = model.generate([BOS] + [403] * 9, temperature=0, logprobs=0)
    assert (len(full.tokens), full.finish_reason) == (1, "context")
    with pytest.raises(llama2cpp.ContextFullError):
        model.generate([BOS] + [403] * 10)
    with pytest.raises(llama2cpp.ContextFullError):  # at the call, not at the first piece
        model.stream([BOS] + [403] * 10)


@pytest.fixture(scope="module")
def story(stories: llama2cpp.Model) -> str:
    return stories.generate(max_tokens=60, temperature=0)


@given(data=st.data())
def test_stop_strings(stories: llama2cpp.Model, story: str, data: st.DataObject) -> None:
    """Parts of the text itself, so that they begin and end anywhere in a token."""
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(story) - 1))
        part = story[start : start + data.draw(st.integers(1, 12))]
        stops.append(part + data.draw(st.sampled_from(["", "", "#"])))  # with # it only begins to come
    ends = [(story.index(stop) + len(stop), story.index(stop)) for stop in stops if stop in story]
    expected = story[: min(ends)[1]] if ends else story
    completion = stories.generate(max_tokens=60, temperature=0, stop=stops, logprobs=0)
    assert completion.text == expected
    assert completion.finish_reason == ("stop" if ends else "length")
    assert "".join(stories.stream(max_tokens=60, temperature=0, stop=stops)) == expected


def test_a_stop_string_alone_and_not_in_the_prompt(stories: llama2cpp.Model) -> None:
    text = stories.generate("Once upon a time", max_tokens=20, temperature=0, stop="time", echo=True)
    assert text.startswith("Once upon a time, there was")


def test_text_is_held_back_only_while_it_may_begin_a_stop_string(tokenizer: llama2cpp.Tokenizer) -> None:
    model = scripted(tokenizer, [*ids_of(tokenizer, "1235"), EOS])
    assert list(model.stream(temperature=0, stop="234")) == ["1", "235"]
    assert list(model.stream(temperature=0, stop="35")) == ["1", "2"]


# --- several samples, probabilities


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_sample_i_is_what_seed_plus_i_gives(stories: llama2cpp.Model, penalty: float) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "repetition_penalty": penalty, "stop": "."}
    together = stories.generate("Tim saw", n=6, seed=11, **options)
    assert together == [stories.generate("Tim saw", seed=11 + i, **options) for i in range(6)]
    assert len(set(together)) > 1


def test_seeds_wrap_around(stories: llama2cpp.Model) -> None:
    last = 2**64 - 1
    assert stories.generate(n=2, seed=last, max_tokens=9)[1] == stories.generate(seed=0, max_tokens=9)
    assert stories.generate(n=2, seed=int(np.uint64(last)), max_tokens=9) == stories.generate(
        n=2,
        seed=np.uint64(last),
        max_tokens=9,
    )


def test_no_seed_is_another_text_each_time(stories: llama2cpp.Model) -> None:
    assert len({stories.generate(max_tokens=40) for _ in range(5)}) > 1


def test_logprobs(stories: llama2cpp.Model) -> None:
    completion = stories.generate("Once", max_tokens=12, seed=5, temperature=1.5, top_k=40, logprobs=3)
    assert stories.tokenizer is not None
    prompt = stories.tokenizer.encode("Once")
    ids = [*prompt, *completion.tokens]
    logits = torch.tensor(stories.session().prefill(ids, all_logits=True))[len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1)
    rows = range(len(completion.tokens))
    near = 1e-4 if ON_METAL else 1e-9  # a prompt and steps have other kernels there
    np.testing.assert_allclose(completion.logprobs, expected[rows, completion.tokens], rtol=near)
    for row, top in zip(rows, completion.top_logprobs, strict=True):
        values, best = expected[row].topk(3)
        assert [token for token, _ in top] == best.tolist()
        np.testing.assert_allclose([value for _, value in top], values, rtol=near)


def test_what_comes_back(stories: llama2cpp.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 3, "seed": 1}
    assert isinstance(stories.generate(**options), str)
    assert [type(text) for text in stories.generate(n=2, **options)] == [str, str]
    assert isinstance(stories.generate(logprobs=0, **options), llama2cpp.Completion)
    assert [type(item) for item in stories.generate(n=2, logprobs=1, **options)] == [llama2cpp.Completion] * 2
    assert llama2cpp.generate(model=stories, **options) == stories.generate(**options)
    assert list(llama2cpp.stream(model=stories, **options)) == list(stories.stream(**options))


# --- perplexity


def nll(stories: llama2cpp.Model, ids: list[int]) -> torch.Tensor:
    logits = torch.tensor(stories.session().prefill(ids[:-1], all_logits=True)).double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")


def test_perplexity(stories: llama2cpp.Model, story: str) -> None:
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode(story)
    assert stories.perplexity(story) == pytest.approx(float((nll(stories, ids) / (len(ids) - 1)).exp()))
    assert stories.perplexity(ids) == stories.perplexity(story)


@pytest.mark.cpu_bits("2,400 tokens take the software device minutes, and the pieces are the host's")
def test_perplexity_beyond_the_context(stories: llama2cpp.Model) -> None:
    """In pieces that fill the context, each after BOS."""
    ids = [BOS, *tiny.tokens(stories.config, 1200)]
    parts = [[BOS, *ids[1:512]], [BOS, *ids[512:1023]], [BOS, *ids[1023:]]]
    total = sum(nll(stories, part) for part in parts)
    assert stories.perplexity(ids) == pytest.approx(float(torch.as_tensor(total / 1200).exp()))


def test_perplexity_of_too_little(stories: llama2cpp.Model) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        stories.perplexity("")


# --- errors


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"n": 0}, "0"),
        ({"max_tokens": -1}, "-1"),
        ({"logprobs": -2}, "-2"),
        ({"stop": ""}, "empty"),
        ({"stop": ["a", ""]}, "empty"),
        ({"seed": -1}, "-1"),
        ({"seed": 2**64}, str(2**64)),
        ({"temperature": float("nan")}, "nan"),
        ({"temperature": -1.0}, "-1"),
        ({"top_p": float("nan")}, "nan"),
        ({"top_k": -1}, "-1"),
        ({"min_p": float("nan")}, "nan"),
        ({"repetition_penalty": float("inf")}, "inf"),
        ({"prompt": np.array([], dtype=np.int32)}, "token"),
        ({"prompt": [1, 512]}, "512"),
    ],
)
def test_arguments_that_cannot_be(stories: llama2cpp.Model, options: dict[str, Any], received: str) -> None:
    with pytest.raises(ValueError, match=received):
        stories.generate(**options)
    if not options.keys() & {"n", "logprobs"}:
        with pytest.raises(ValueError, match=received):  # at the call, not at the first piece
            stories.stream(**options)


def test_without_a_tokenizer(stories_dir: Path) -> None:
    model = llama2cpp.load(stories_dir / "stories260K.bin")
    assert not model.has_tokenizer
    with pytest.raises(ValueError, match="no tokenizer"):
        _ = model.tokenizer
    assert model.session().prefill([1, 2]).shape == (512,)
    for call in (model.generate, model.stream, model.perplexity):
        with pytest.raises(ValueError, match=r"no tokenizer.*tokenizer="):
            call("Once")
    assert model.perplexity([1, 403, 407]) > 1


def test_without_a_model_it_is_the_storyteller() -> None:
    told = llama2cpp.generate("Once", seed=1, max_tokens=20)
    assert told == "".join(llama2cpp.stream("Once", seed=1, max_tokens=20))
    assert told == llama2cpp.load().generate("Once", seed=1, max_tokens=20)


# --- no prompts, and what a stream shows of itself


@pytest.mark.parametrize("none", [[], ()])
def test_no_prompts_have_no_texts(stories: llama2cpp.Model, none: Sequence[Any]) -> None:
    assert stories.generate(none) == []
    assert stories.generate(none, n=3) == []
    assert stories.complete(none) == []
    with pytest.raises(ValueError, match="temperature"):
        stories.generate(none, temperature=-1)
    with pytest.raises(ValueError, match="stream: there are no tokens"):
        stories.stream(none)
    with pytest.raises(ValueError, match="generate: there are no tokens"):
        stories.generate(np.array([], dtype=np.int32))


def test_a_stream_shows_how_far_it_is(stories: llama2cpp.Model) -> None:
    pieces = stories.stream("Once upon a time", max_tokens=3, temperature=0)
    assert repr(pieces) == "<llama2cpp.TextStream: 0 tokens>"
    next(pieces)
    assert re.fullmatch(r"<llama2cpp\.TextStream: [12] tokens>", repr(pieces))
    list(pieces)
    assert repr(pieces) == "<llama2cpp.TextStream: 3 tokens, ended (length)>"
