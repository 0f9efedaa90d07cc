"""Where hooks are on: in their block, for a model or a session, in one thread, in streams and chats."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import tiny
from hook_helpers import PROMPT, Array, PlannedError, ids_of, same_bits, stop

import llama2cpp
from llama2cpp import interventions
from llama2cpp.inside.hooks import HookPoint


def test_hooks_end_with_their_block(model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    with pytest.raises(PlannedError), model.hooks([("z", stop)]):
        model.session().step(1)
    model.session().step(1)
    with model.hooks([("z", stop)]):
        stories.session().step(1)  # another model
        with pytest.raises(PlannedError):
            model.run_with_cache([1])
    block = model.hooks([("z", stop)])
    with block, block, contextlib.suppress(PlannedError):
        model.session().step(1)
    model.session().step(1)


def test_hooks_of_a_session(model: llama2cpp.Model) -> None:
    session, other = model.session(), model.session()
    with session.hooks([("z", stop)]):
        other.step(1)
        session.fork().step(1)
        with pytest.raises(PlannedError):
            session.step(1)
        with pytest.raises(PlannedError):
            model.forward([(other, [1]), (session, [1])])
    assert other.position == 1


def test_other_threads_do_not_see_them(model: llama2cpp.Model) -> None:
    expected = model.session().step(1)
    inside, done = threading.Event(), threading.Event()
    results: list[Array] = []

    def other() -> None:
        inside.wait(30)
        results.append(model.session().step(1))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def wait(activation: Array, hook: HookPoint) -> None:
        inside.set()
        assert done.wait(30)  # the other thread runs the same model meanwhile, without this hook

    model.run_with_hooks([1], [("z1", wait)])
    thread.join()
    assert same_bits(results[0], expected)


def test_many_threads_with_hooks_of_their_own(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 10)
    expected = {f: model.run_with_hooks(ids, [interventions.scale("mlp_out", f)]) for f in (0.5, 2.0, 3.0)}
    wrong: list[float] = []

    def work(factor: float) -> None:
        def scale(activation: Array, hook: HookPoint) -> Array:
            return np.asarray(activation * np.float32(factor))

        for _ in range(10):
            with model.hooks([("mlp_out", scale)]):
                session = model.session()
                session.prefill(ids[:5])
                logits = session.prefill(ids[5:])
            if not same_bits(logits, expected[factor][0, -1]):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stream_is_hooked_while_it_is_iterated_in_the_block(stories: llama2cpp.Model) -> None:
    calls: list[int] = []

    def look(activation: Array, hook: HookPoint) -> None:
        calls.append(activation.shape[1])

    with stories.hooks([("z0", look)]):
        pieces = stories.stream(PROMPT, max_tokens=6, temperature=0)
        next(pieces)
        next(pieces)
    inside = list(calls)
    assert inside[0] == 5
    assert set(inside[1:]) == {1}
    list(pieces)
    assert calls == inside


def test_edits_act_in_generate_and_chat(stories: llama2cpp.Model) -> None:
    plain = stories.generate(PROMPT, max_tokens=10, temperature=0)
    token = ids_of(stories, " dog")[-1]

    def always(activation: Array, hook: HookPoint) -> None:
        direction = stories.weights["tok_embeddings.weight"][token]
        activation[:] = direction / np.abs(direction).max()

    with stories.hooks([("resid_post4", always)]):
        steered = stories.generate(PROMPT, max_tokens=10, temperature=0)
        said = stories.chat("Hello", template="llama2", max_tokens=10, temperature=0)
    assert steered != plain
    assert len(set(ids_of(stories, steered)[1:])) <= 2  # one token again and again
    assert len(set(ids_of(stories, said)[1:])) <= 2
