"""Arrays of logits: the memory of large ones is used again. That it does not grow is in test_leaks.py."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from on_metal import ON_METAL, agree

import llama2cpp
from llama2cpp import Sampler

# 80 KB of logits; fewer of all where the software device computes.
CONFIG = tiny.config(vocab_size=2_011 if ON_METAL else 20_011, seq_len=4096, n_layers=1)
COUNT = 40 if ON_METAL else 200
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG, threads=2)


@pytest.fixture(scope="module")
def expected(model: llama2cpp.Model) -> Floats:
    """The logits after each of so many tokens [COUNT, vocab_size]."""
    return model.session().prefill(tiny.tokens(CONFIG, COUNT), all_logits=True)


def test_arrays_that_are_kept_never_change(model: llama2cpp.Model, expected: Floats) -> None:
    tokens = tiny.tokens(CONFIG, COUNT)
    session = model.session()
    kept: deque[tuple[int, Floats]] = deque(maxlen=37)  # more than the pool keeps
    for turn in range(2 if ON_METAL else 15):
        session.rewind(0)
        for i, token in enumerate(tokens):
            logits = session.step(token)
            if i % (turn + 2) == 0:
                kept.append((i, logits))
            if i % 50 == 0:
                again = session.logits
                assert again is not None
                kept.append((i, again))
        for i, logits in kept:
            assert agree(logits, expected[i])


def test_what_a_caller_writes_reaches_no_one(model: llama2cpp.Model, expected: Floats) -> None:
    tokens = tiny.tokens(CONFIG, COUNT)
    session = model.session()
    for i, token in enumerate(tokens[:50]):
        logits = session.step(token)
        assert agree(logits, expected[i])
        logits[:] = np.nan
        again = session.logits
        assert again is not None
        assert agree(again, expected[i])
        with pytest.raises(ValueError, match="read-only"):
            again[:] = np.inf
        (theirs,) = model.forward([(session.fork(), [1])])
        assert np.isfinite(theirs).all()


def test_arrays_outlive_session_and_model() -> None:
    model = tiny.model(CONFIG)
    session = model.session()
    arrays = [session.step(1), session.prefill([2, 3]), *model.forward([(session, [4])]), session.logits]
    kept = [array.tobytes() for array in arrays if array is not None]
    model.close()
    del model, session
    gc.collect()
    other = tiny.model(CONFIG, seed=1).session()
    for _ in range(20):
        other.step(5)
    assert [array.tobytes() for array in arrays if array is not None] == kept


def test_threads_take_and_give_back_at_once(model: llama2cpp.Model, expected: Floats) -> None:
    tokens = tiny.tokens(CONFIG, COUNT)
    wrong: list[int] = []

    def run(keep: int) -> None:
        kept: deque[tuple[int, Floats]] = deque(maxlen=keep)
        session = model.session()
        for i, token in enumerate(tokens):
            kept.append((i, session.step(token)))
            wrong.extend(j for j, logits in kept if not agree(logits[::97], expected[j, ::97]))

    threads = [threading.Thread(target=run, args=(keep,)) for keep in (1, 2, 5, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_call_that_fails_leaves_the_logits(model: llama2cpp.Model, expected: Floats) -> None:
    tokens = tiny.tokens(CONFIG, COUNT)
    session = model.session()
    for token in tokens[:3]:
        session.step(token)

    def fail(activation: object, hook: object) -> None:
        raise KeyError

    calls: list[Callable[[], Floats]] = [lambda: session.step(7), lambda: session.prefill([7] * COUNT, all_logits=True)]
    for call in calls:
        # After the output matrix there is no point to fail at: this is the last before it.
        with pytest.raises(KeyError), model.hooks([("ln_final.hook_normalized", fail)]):
            call()
        assert session.logits is not None
        assert agree(session.logits, expected[2])
    with pytest.raises(ValueError, match="expected 0 to"):
        session.step(CONFIG.vocab_size)
    assert agree(session.step(tokens[3]), expected[3])


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drawing_in_the_session_is_drawing_from_its_array(
    model: llama2cpp.Model, temperature: float, penalty: float
) -> None:
    session = model.session()
    samplers = [Sampler(temperature=temperature, repetition_penalty=penalty, seed=5) for _ in range(2)]
    logits = session.prefill([9, 8, 9])
    for _ in range(20):
        token = session._core.sample(samplers[0])
        assert token == samplers[1].sample(logits, session.tokens)
        logits = session.step(token)


def test_a_session_without_logits_draws_nothing(model: llama2cpp.Model) -> None:
    session = model.session()
    with pytest.raises(ValueError, match="the session has no logits"):
        session._core.sample(Sampler())
    session.step(1)
    session.rewind(1)
    with pytest.raises(ValueError, match="the session has no logits"):
        session._core.sample(Sampler())


@pytest.mark.parametrize("rows", [[(None, 1)], [("session", 1)], [("session", "1")], [("session",)], [3]])
def test_feeding_checks_what_it_gets(model: llama2cpp.Model, rows: list[object]) -> None:
    session = model.session()
    given = [
        tuple(session._core if x == "session" else x for x in row) if isinstance(row, tuple) else row for row in rows
    ]
    if rows == [("session", 1)]:
        model._core.feed(given)  # type: ignore[arg-type]
        assert session.tokens == [1]
        return
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        model._core.feed(given)  # type: ignore[arg-type]
    assert session.tokens == []
