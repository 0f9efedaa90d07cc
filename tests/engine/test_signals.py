"""Ctrl-C while the engine computes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import on_metal
import pytest
import tiny

import llama2cpp

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself SIGINT in a test")

# Attention over 20,000 positions takes seconds on any machine; the rest is next to nothing.
CONFIG = tiny.config(dim=64, hidden_dim=16, n_layers=8, n_heads=32, n_kv_heads=1, head_dim=8, seq_len=20_000)
MANY = 1_000 if on_metal.ON_METAL else 19_000  # tokens; the software device takes minutes for as many


@contextmanager
def ctrl_c_soon() -> Iterator[None]:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG)


def test_prefill(model: llama2cpp.Model) -> None:
    """It ends before it is done, the session is as before and goes on as if nothing had happened."""
    session = model.session()
    session.prefill([1, 2, 3])
    with pytest.raises(KeyboardInterrupt), ctrl_c_soon():
        session.prefill(tiny.tokens(CONFIG, MANY))
    assert session.tokens == [1, 2, 3]
    assert session.logits is not None
    assert session.logits.tobytes() == model.session().prefill([1, 2, 3]).tobytes()
    assert on_metal.agree(session.step(4), model.session().prefill([1, 2, 3, 4]))


def test_forward(model: llama2cpp.Model) -> None:
    one, two = model.session(), model.session()
    with pytest.raises(KeyboardInterrupt), ctrl_c_soon():
        model.forward([(one, tiny.tokens(CONFIG, MANY)), (two, [1])])
    assert one.tokens == two.tokens == []


def test_other_handlers_run_and_the_call_goes_on(model: llama2cpp.Model) -> None:
    """A signal whose handler raises nothing ends nothing."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    session = model.session()
    count = 60 if on_metal.ON_METAL else 2_000
    try:
        timer.start()
        session.prefill(tiny.tokens(CONFIG, count))
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert session.position == count
    assert seen == [signal.SIGUSR1]


def test_consumer_of_a_stream(stories: llama2cpp.Model) -> None:
    pieces = stories.stream(temperature=0)
    assert next(pieces) == "Once"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert next(pieces) == " upon"
