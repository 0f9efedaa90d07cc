"""Ctrl-C while a call waits for another thread, and threads that would wait for each other for ever."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny

import llama2cpp

Call = Callable[[llama2cpp.Model, llama2cpp.Session, Path], Any]

# Every call of the package that takes a session's turn; `stories` has a tokenizer.
WAITS: dict[str, Call] = {
    "step": lambda model, session, folder: session.step(3),
    "prefill": lambda model, session, folder: session.prefill([3, 4]),
    "prefill(all_logits=True)": lambda model, session, folder: session.prefill([3, 4], all_logits=True),
    "rewind": lambda model, session, folder: session.rewind(0),
    "fork": lambda model, session, folder: session.fork(),
    "save": lambda model, session, folder: session.save(folder / "session.safetensors"),
    "forward": lambda model, session, folder: model.forward([(model.session(), [1]), (session, [3, 4])]),
    "feed": lambda model, session, folder: model._core.feed([(session._core, 3)], None),
    "hooks": lambda model, session, folder: hooked(session),
    "record": lambda model, session, folder: recorded(session),
}


def hooked(session: llama2cpp.Session) -> None:
    with session.hooks([("resid_post0", lambda activation, hook: None)]):
        session.step(3)


def recorded(session: llama2cpp.Session) -> None:
    with session.record("resid_post0"):
        session.step(3)


@contextmanager
def busy(session: llama2cpp.Session) -> Iterator[None]:
    """Another thread is in the middle of a call of this session, until the end of the block."""
    begun, done = threading.Event(), threading.Event()

    def stay(activation: object, hook: object) -> None:
        begun.set()
        done.wait(60)

    def call() -> None:
        with session.hooks([("resid_post0", stay)]):
            session.step(2)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(), threads=2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself SIGINT in a test")
@pytest.mark.parametrize("name", list(WAITS))
def test_ctrl_c_ends_waiting(model: llama2cpp.Model, name: str, tmp_path: Path) -> None:
    session = model.session()
    logits = session.prefill([1, 5])
    with busy(session):
        timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            WAITS[name](model, session, tmp_path)
        timer.join()
        assert session.tokens == [1, 5]  # looking waits for nothing
        assert session.position == 2
        assert session.logits is not None
        assert session.logits.tobytes() == logits.tobytes()
        assert session.kv.keys(0).shape[0] == 2
    assert not list(tmp_path.iterdir())
    assert session.tokens == [1, 5, 2]
    assert session.logits.tobytes() == model.session().prefill([1, 5, 2]).tobytes()
    WAITS[name](model, session, tmp_path)  # and nothing waits any more


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself SIGUSR1")
def test_other_handlers_run_while_a_call_waits(model: llama2cpp.Model) -> None:
    """A signal whose handler raises nothing ends nothing; it may use sessions itself."""
    session, other = model.session(), model.session()
    with busy(session):
        release = threading.Event()

        def handle(number: int, frame: object) -> None:
            other.step(1)
            release.set()

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()

            def interrupt_then() -> None:
                release.wait(60)
                os.kill(os.getpid(), signal.SIGINT)

            interrupt = threading.Thread(target=interrupt_then)
            interrupt.start()
            with pytest.raises(KeyboardInterrupt):
                session.step(3)
            timer.join()
            interrupt.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert other.tokens == [1]
    assert session.tokens == [2]


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_hooks_that_use_each_others_sessions(model: llama2cpp.Model, threads: int) -> None:
    """One of them gets a RuntimeError that names all sessions of the circle; the others go on."""
    sessions = [model.session(context=20 + i) for i in range(threads)]
    all_in = threading.Barrier(threads)
    errors: list[str] = []

    def call(i: int) -> None:
        def use_next(activation: object, hook: object) -> None:
            all_in.wait(60)
            sessions[(i + 1) % threads].step(3)

        try:
            with sessions[i].hooks([("resid_post0", use_next)]):
                sessions[i].step(5)
        except RuntimeError as error:
            errors.append(str(error))

    running = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert not any(thread.is_alive() for thread in running)
    assert len(errors) == 1
    assert "would wait for ever" in errors[0]
    for session in sessions:
        assert f"of {session.context}" in errors[0]
    assert sum(session.position for session in sessions) == 2 * (threads - 1)


def test_a_hook_that_fails_so_may_go_on(model: llama2cpp.Model) -> None:
    """The error is one of the hook's own: caught there, both calls succeed."""
    a, b = model.session(context=21), model.session(context=22)
    both_in = threading.Barrier(2)
    caught: list[str] = []

    def call(mine: llama2cpp.Session, other: llama2cpp.Session) -> None:
        def use_other(activation: object, hook: object) -> None:
            both_in.wait(60)
            try:
                other.step(3)
            except RuntimeError as error:
                caught.append(str(error))

        with mine.hooks([("resid_post0", use_other)]):
            mine.step(5)

    running = [threading.Thread(target=call, args=pair, daemon=True) for pair in ((a, b), (b, a))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert len(caught) == 1
    assert sorted([a.tokens, b.tokens]) == [[5], [5, 3]]


def test_one_thread_and_its_own_session(model: llama2cpp.Model) -> None:
    session = model.session()

    def use_own(activation: object, hook: object) -> None:
        session.step(1)

    with session.hooks([("resid_post0", use_own)]), pytest.raises(RuntimeError, match="in the middle of a call"):
        session.step(1)
    assert session.position == 0
