"""Engine: many requests on one model, each with the bits that it has alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from on_metal import examples

import llama2cpp
from llama2cpp import Engine, Request, interventions
from llama2cpp.serving.scheduler import LEAST, PASS

BEGINNINGS = ["", "Once upon a time", "Once upon a time, there was a little girl named Lily.", "The dog", "One day, "]
LONG = "Once upon a time, there was a little girl named Lily. She liked to play outside in the park. " * 6


@pytest.fixture(scope="module")
def model() -> Iterator[llama2cpp.Model]:
    # On the CPU, where it gives the bits that a request has alone; tests/metal has what it gives on Metal.
    with llama2cpp.load("storyteller", backend="cpu", threads=1, context=400) as model:
        yield model


class ByHand:
    """An engine whose passes the test computes, one at a time, and whose rows it sees."""

    def __init__(self, model: llama2cpp.Model, **options: Any) -> None:
        self.engine = Engine(model, **options)
        self.engine._thread = threading.current_thread()  # so that it starts none
        self.scheduler = self.engine._scheduler
        self.passes: list[tuple[int, int]] = []  # rows of texts that go on, tokens of prompts
        feed = self.scheduler._feed

        def seen(feeds: list[Any]) -> None:
            going_on = sum(not feed.row.reading for feed in feeds)
            self.passes.append((going_on, sum(len(feed.tokens) for feed in feeds) - going_on))
            feed(feeds)

        self.scheduler._feed = seen  # type: ignore[method-assign]

    def step(self) -> None:
        while self.engine._incoming:
            self.scheduler.add(self.engine._incoming.popleft())
        self.scheduler.step()

    def finish(self) -> None:
        self.step()
        while self.scheduler.busy:
            self.step()

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine._thread = None
        self.engine.close()


def test_each_is_what_it_is_alone(model: llama2cpp.Model) -> None:
    with Engine(model, rows=5) as engine:
        asked = [(text, seed) for seed in range(4) for text in BEGINNINGS]
        requests = [engine.submit(text, seed=seed, max_tokens=12, logprobs=2) for text, seed in asked]
        for request, (text, seed) in zip(requests, asked, strict=True):
            (alone,) = model.complete(text, seed=seed, max_tokens=12, logprobs=2)
            completion = request.result(60)
            assert completion == alone
            pieces = list(request)
            assert "".join(pieces) == completion.text == request.text
            assert [token for piece in pieces for token in piece.tokens] == completion.tokens
            assert [number for piece in pieces for number in piece.logprobs] == completion.logprobs
            assert request.usage.completion_tokens == len(completion.tokens)
    assert engine.stats.running == engine.stats.waiting == 0


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Requests that come and are cancelled, with passes between."""
    request = st.tuples(
        st.just("ask"),
        st.sampled_from(BEGINNINGS),
        st.text("abc. ", max_size=30),
        st.fixed_dictionaries(
            {
                "seed": st.integers(0, 3),
                "max_tokens": st.integers(0, 10),
                "temperature": st.sampled_from([0, 0.8, 1.5]),
                "top_k": st.sampled_from([0, 5]),
                "repetition_penalty": st.sampled_from([1.0, 1.3]),
                "stop": st.sampled_from([(), (".",), ("a", "the")]),
            }
        ),
        st.sampled_from([None, None, None, [interventions.scale("mlp_out", 0.5, layer=1)]]),
    )
    return draw(
        st.lists(
            request | st.tuples(st.just("step"), st.integers(1, 4)) | st.tuples(st.just("cancel"), st.integers(0, 9)),
            min_size=2,
            max_size=14,
        )
    )


@settings(max_examples=examples(25), deadline=None)
@given(arrivals(), st.integers(1, 4), st.sampled_from([0, 1 << 19, 1 << 26]))
def test_any_load(model: llama2cpp.Model, events: list[tuple[Any, ...]], rows: int, prefix_bytes: int) -> None:
    """Arrivals, cancels, lengths, seeds, prefixes: every answer is the one that the request has alone."""
    asked: list[tuple[Request, str, dict[str, Any], Any]] = []
    with ByHand(model, rows=rows, prefix_bytes=prefix_bytes) as hand:
        for what, *rest in events:
            if what == "ask":
                begin, text, options, hooks = rest
                asked.append((hand.engine.submit(begin + text, options, hooks=hooks), begin + text, options, hooks))
            elif what == "step":
                for _ in range(rest[0]):
                    hand.step()
            elif rest[0] < len(asked):
                asked[rest[0]][0].cancel()
        hand.finish()
        assert hand.engine.stats.prefix_bytes <= prefix_bytes
    for request, prompt, options, hooks in asked:
        with model.hooks(hooks):
            alone = model.generate(prompt, **options)
        if request.finish_reason == "cancelled":
            assert alone.startswith(request.text) or options["stop"]
        else:
            assert request.text == alone


def test_texts_that_go_on_do_not_wait_for_long_prompts(model: llama2cpp.Model) -> None:
    with ByHand(model, prefix_bytes=0) as hand:
        running = [hand.engine.submit("The dog", seed=seed, max_tokens=30) for seed in range(5)]
        hand.step()
        for i in range(3):
            hand.engine.submit(f"{i} {LONG}", max_tokens=2)
        hand.finish()
        assert all(request.done for request in running)
        beside = [tokens for going_on, tokens in hand.passes if going_on]
        assert max(beside) <= PASS
        assert all(going_on + tokens <= PASS + LEAST for going_on, tokens in hand.passes if going_on)
        assert sum(tokens > 0 for tokens in beside) > 2  # prompts were read beside them, in pieces


def test_first_come_first_served(model: llama2cpp.Model) -> None:
    with ByHand(model, rows=2) as hand:
        requests = [hand.engine.submit("The dog", seed=1, max_tokens=count) for count in (3, 6, 2, 2, 2)]
        ended: list[int] = []
        while not all(request.done for request in requests):
            hand.step()
            assert hand.scheduler.running <= 2
            ended += [i for i, request in enumerate(requests) if request.done and i not in ended]
        assert [i for i in ended if i != 1] == [0, 2, 3, 4]


def test_cancel_frees_the_row_within_one_pass(model: llama2cpp.Model) -> None:
    with ByHand(model, rows=1) as hand:
        first, second = (hand.engine.submit("The dog", seed=1, max_tokens=50) for _ in range(2))
        for _ in range(3):
            hand.step()
        first.cancel()
        hand.step()
        assert first.finish_reason == "cancelled"
        assert first.result().tokens == model.complete("The dog", seed=1, max_tokens=3)[0].tokens
        assert hand.scheduler.running == 1
        waiting = hand.engine.submit("The dog")
        waiting.cancel()
        hand.step()
        assert waiting.done
        assert waiting.text == ""
        hand.finish()
        assert second.text == model.generate("The dog", seed=1, max_tokens=50)


def test_a_full_context_ends_its_own_request(model: llama2cpp.Model) -> None:
    ids = model.tokenizer.encode(LONG)
    with Engine(model) as engine:
        full = engine.submit([*ids, *ids][:395], max_tokens=None, seed=3)
        other = engine.submit("The dog", seed=3, max_tokens=40)
        assert full.result(60).finish_reason == "context"
        assert full.usage.prompt_tokens + full.usage.completion_tokens == model.context + 1
        assert other.result(60).text == model.generate("The dog", seed=3, max_tokens=40)
        with pytest.raises(llama2cpp.ContextFullError, match=r"Engine\.submit: there are 401 tokens.* 400"):
            engine.submit([5] * 401)


def test_a_hooks_exception_ends_its_own_request(model: llama2cpp.Model) -> None:
    seen: list[int] = []

    def fails(activation: Any, hook: llama2cpp.HookPoint) -> None:
        seen.append(activation.shape[1])
        if (hook.position or 0) > 6:
            raise KeyError("of the hook")

    with Engine(model) as engine:
        others = [engine.submit("The dog", seed=seed, max_tokens=20) for seed in range(3)]
        request = engine.submit("The dog", seed=1, max_tokens=20, hooks=[("blocks.0.hook_mlp_out", fails)])
        with pytest.raises(KeyError, match="of the hook"):
            request.result(60)
        with pytest.raises(KeyError):
            list(request)
        for seed, other in enumerate(others):
            assert other.result(60).text == model.generate("The dog", seed=seed, max_tokens=20)
    assert seen == [4, 1, 1, 1, 1]  # each once, the failing one too


def test_hooks_belong_to_one_request(model: llama2cpp.Model) -> None:
    hooks = [interventions.zero("mlp_out", layer=0, position=-1)]

    def louder(activation: Any, hook: llama2cpp.HookPoint) -> Any:
        return activation * 1.5

    with Engine(model) as engine:
        plain = engine.submit("The dog", seed=1, max_tokens=20)
        compiled = engine.submit("The dog", seed=1, max_tokens=20, hooks=hooks)
        called = engine.submit("The dog", seed=1, max_tokens=20, hooks=[("blocks.1.hook_mlp_out", louder)])
        with model.hooks(hooks):  # what is on where a request comes from is the request's
            inherited = engine.submit("The dog", seed=1, max_tokens=20)
        again = engine.submit("The dog", seed=1, max_tokens=20)
        texts = [request.result(60).text for request in (plain, compiled, called, inherited, again)]
    with model.hooks(hooks):
        changed = model.generate("The dog", seed=1, max_tokens=20)
    with model.hooks([("blocks.1.hook_mlp_out", louder)]):
        loud = model.generate("The dog", seed=1, max_tokens=20)
    usual = model.generate("The dog", seed=1, max_tokens=20)
    assert texts == [usual, changed, loud, changed, usual]
    assert len({usual, changed, loud}) == 3


def test_activations_of_one_request(model: llama2cpp.Model) -> None:
    with model.record(["resid_post", "pattern"]) as recording:
        model.generate(LONG, seed=2, max_tokens=6)
    expected = recording.cache()
    with Engine(model) as engine:
        engine.submit(LONG, seed=1, max_tokens=6)
        request = engine.submit(LONG, seed=2, max_tokens=6, record=["resid_post", "pattern"])
        request.result(60)
        found = request.cache()
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    with pytest.raises(ValueError, match="nothing was recorded"):
        Request().cache()


@pytest.mark.parametrize("prompt", ["Once upon a time", LONG])
def test_logits_of_the_prompt(prompt: str, model: llama2cpp.Model) -> None:
    expected = model.session().prefill(prompt, all_logits=True)
    with Engine(model) as engine:
        for _ in range(2):  # the second time the beginning is there already
            requests = [engine.submit(prompt, max_tokens=1, logits=logits) for logits in ("none", "last", "all")]
            none, last, each = (request.result(60) and request.logits for request in requests)
            assert none is None
            np.testing.assert_array_equal(last, expected[-1])
            np.testing.assert_array_equal(each, expected)


def test_a_common_beginning_is_computed_once(model: llama2cpp.Model) -> None:
    ids = model.tokenizer.encode(LONG)[:100]
    with ByHand(model) as hand:
        first = hand.engine.submit([*ids, 300], max_tokens=2)
        beside = hand.engine.submit([*ids, 301], max_tokens=2)  # reads what the first one is reading
        hand.finish()
        after = hand.engine.submit([*ids, 302, 303], max_tokens=2)
        hand.finish()
        used = [request.usage.reused_tokens for request in (first, beside, after)]
        assert used == [0, 100, 100]
        stats = hand.engine.stats
        assert (stats.prompt_tokens, stats.reused_tokens) == (101 + 1 + 2, 200)
        assert 0 < stats.prefix_bytes <= hand.engine._limits.prefix_bytes
        first.cancel()
        leader = hand.engine.submit([*ids[::-1], 5], max_tokens=2)
        follower = hand.engine.submit([*ids[::-1], 6], seed=1, max_tokens=2)
        leader.cancel()  # whose turn never comes: the other reads it itself
        hand.finish()
        assert follower.text == model.generate([*ids[::-1], 6], seed=1, max_tokens=2)
    with ByHand(model, prefix_bytes=0) as hand:
        for _ in range(2):
            request = hand.engine.submit(ids, max_tokens=2)
            hand.finish()
        assert request.usage.reused_tokens == 0


def test_the_least_recently_used_prefix_goes_first(model: llama2cpp.Model) -> None:
    one = Engine(model)
    size = one._scheduler.bytes_for(60)
    one.close()
    prompts = [[300 + i] * 50 for i in range(3)]
    with ByHand(model, prefix_bytes=2 * size) as hand:
        for prompt in (0, 1, 0, 2):  # 1 makes room for 2
            hand.engine.submit(prompts[prompt], max_tokens=1)
            hand.finish()
        reused = []
        for prompt in (0, 2, 1):
            request = hand.engine.submit(prompts[prompt], max_tokens=1)
            hand.finish()
            reused.append(request.usage.reused_tokens > 0)
        assert reused == [True, True, False]


def test_memory_is_counted_before_a_request_is_let_in(model: llama2cpp.Model) -> None:
    probe = Engine(model)
    kv_bytes = 2 * probe._scheduler.bytes_for(60) + 1000
    probe.close()
    with ByHand(model, kv_bytes=kv_bytes) as hand:
        requests = [hand.engine.submit([5] * 50, seed=seed, max_tokens=10) for seed in range(5)]
        while not all(request.done for request in requests):
            hand.step()
            assert hand.scheduler.running <= 2
        with pytest.raises(MemoryError, match=r"Engine\.submit: keys and values of 400 tokens are .* kv_bytes="):
            hand.engine.submit([5] * 50, max_tokens=None)


def test_async(model: llama2cpp.Model) -> None:
    async def tell(seed: int) -> str:
        return "".join([piece async for piece in model.astream("The dog", seed=seed, max_tokens=15)])

    async def leave() -> None:
        async for _ in model.astream("The dog", seed=1, max_tokens=None):
            break

    async def all_of_them() -> list[str]:
        await leave()
        return await asyncio.gather(*(tell(seed) for seed in range(6)))

    assert asyncio.run(all_of_them()) == [model.generate("The dog", seed=seed, max_tokens=15) for seed in range(6)]
    with pytest.raises(ValueError, match="max_tokens must not be negative"):
        model.astream("The dog", max_tokens=-1)


def test_await_and_timeout(model: llama2cpp.Model) -> None:
    with ByHand(model) as hand:
        request = hand.engine.submit("The dog", seed=4, max_tokens=5)
        with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
            request.result(0.01)
        hand.finish()

        async def wait() -> llama2cpp.Completion:
            completion: llama2cpp.Completion = await request
            return completion

        assert asyncio.run(wait()).text == model.generate("The dog", seed=4, max_tokens=5)


def test_chat(model: llama2cpp.Model) -> None:
    options: dict[str, Any] = {"template": "llama2", "seed": 1, "max_tokens": 12}
    begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Once"}]
    with Engine(model) as engine:
        asked = [engine.submit_chat("Hello", **options)]
        asked.append(engine.submit_chat(begun, continue_final_message=True, template="chatml", seed=1, max_tokens=12))
        texts = [request.result(60).text for request in asked]
    continued = model.chat(begun, continue_final_message=True, template="chatml", seed=1, max_tokens=12)
    assert texts == [model.chat("Hello", **options), continued]


def test_wrong_calls(model: llama2cpp.Model) -> None:
    for arguments, message in [
        ({"rows": 0}, "rows is 0, expected 1 or more"),
        ({"kv_bytes": -1}, "kv_bytes is -1, expected 0 or more"),
        ({"prefix_bytes": -5}, "prefix_bytes is -5"),
    ]:
        with pytest.raises(ValueError, match=message):
            Engine(model, **arguments)
    with Engine(model) as engine:
        with pytest.raises(ValueError, match="the model has an engine already"):
            Engine(model)
        cases: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"logits": "some"}, ValueError, "logits is 'some', expected 'none', 'last' or 'all'"),
            ({"logprobs": -1}, ValueError, "logprobs must not be negative"),
            ({"max_tokens": -1}, ValueError, r"Engine\.submit: max_tokens must not be negative"),
            ({"temperature_": 1}, TypeError, "temperature_.*temperature"),
            ({"options": {"temperature_": 1}}, TypeError, "temperature_.*temperature"),
            ({"record": "no_such"}, ValueError, "no activation .* is called 'no_such'"),
            ({"hooks": [("no_such", print)]}, ValueError, "no activation .* is called 'no_such'"),
            ({"prompt": []}, ValueError, "there are no tokens"),
            ({"prompt": [100_000]}, ValueError, "a token is 100000, expected 0 to"),
        ]
        for wrong, error, message in cases:
            with pytest.raises(error, match=message):
                engine.submit(**{"prompt": "The dog", **wrong})
    with pytest.raises(ValueError, match="the engine is closed"):
        engine.submit("The dog")
    Engine(model).close()  # another one, now that the first is closed


def test_close_cancels_and_drain_waits(model: llama2cpp.Model) -> None:
    engine = Engine(model)
    request = engine.submit("The dog", seed=1, max_tokens=30)
    assert engine.drain()
    assert request.text == model.generate("The dog", seed=1, max_tokens=30)
    engine.close()
    asked: list[Request] = []

    def ask_and_fail() -> None:
        with Engine(model) as engine:
            asked.append(engine.submit("The dog", max_tokens=None, stop="no such text"))
            raise KeyError

    with pytest.raises(KeyError):
        ask_and_fail()
    assert asked[0].finish_reason in ("cancelled", "end", "context")


def test_one_that_is_not_used_has_no_thread(model: llama2cpp.Model) -> None:
    with Engine(model) as engine:
        engine.submit("The dog", max_tokens=3).result(60)
        with engine._lock:
            assert engine._lock.wait_for(lambda: engine._thread is None, 10)
    assert not [thread for thread in threading.enumerate() if thread.name == "llama2cpp engine"]


def test_a_model_goes_with_its_last_name() -> None:
    """Nothing of an engine is in a circle: weights would stay until the garbage collector comes."""
    gc.collect()
    gc.disable()
    try:
        for use in (
            lambda model: model.embed("Once"),
            lambda model: model.score("Once", [5]),
            lambda model: Engine(model).submit("Once", max_tokens=2).result(),
        ):
            model = llama2cpp.load("storyteller", backend="cpu", threads=1)
            use(model)
            core = weakref.ref(model._core)
            del model
            for _ in range(200):  # the engine's thread lets go of it a moment after the last result
                if core() is None:
                    break
                time.sleep(0.01)
            assert core() is None
    finally:
        gc.enable()


def test_a_closed_model_lets_go_of_its_own_engine() -> None:
    model = llama2cpp.load("storyteller", backend="cpu", threads=1)
    model.embed("Once")
    core = weakref.ref(model._core)
    model.close()
    for _ in range(200):
        if core() is None:
            break
        time.sleep(0.01)
    assert core() is None
