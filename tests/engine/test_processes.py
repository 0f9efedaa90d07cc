"""Models across processes: children of fork(), pickles, and interpreters that end in the middle of things."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tiny
from on_metal import ON_METAL

import llama2cpp

TOKENS = list(range(3, 60))
forks = pytest.mark.cpu_bits("Metal does not survive fork()")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


def story_model(stories_dir: Path, **options: object) -> llama2cpp.Model:
    return llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=stories_dir / "tok512.bin", **options)  # type: ignore[arg-type]


def in_child(work: Callable[[], bytes]) -> bytes:
    """What `work` gives in a child of fork(), which has 60 seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    timer = threading.Timer(60, os.kill, (child, 9))
    timer.start()
    with os.fdopen(read, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    timer.cancel()
    return result


@forks
@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_children_of_fork(threads: int) -> None:
    """A child has none of its parent's threads; it makes its own, and gets the same bits."""
    config = tiny.config(dim=576, hidden_dim=800)  # large enough for threads to be woken
    model = tiny.model(config, threads=threads)
    session = model.session()
    session.prefill(TOKENS[:10])
    fork = session.fork()
    expected = session.prefill(TOKENS[10:40]).tobytes()
    assert in_child(lambda: fork.prefill(TOKENS[10:40]).tobytes()) == expected
    assert in_child(lambda: in_child(lambda: fork.prefill(TOKENS[10:40]).tobytes())) == expected
    assert fork.prefill(TOKENS[10:40]).tobytes() == expected  # the parent's threads are still there


@forks
@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_computes() -> None:
    model = tiny.model(tiny.config(dim=576, hidden_dim=800, seq_len=6000), threads=2)
    expected = model.session().step(1).tobytes()
    stop = threading.Event()

    def busy() -> None:
        session = model.session()
        while not stop.is_set():
            session.rewind(0)
            session.prefill([5] * 2000)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: model.session().step(1).tobytes()) == expected
    finally:
        stop.set()
        thread.join()


def first_step(model: llama2cpp.Model) -> bytes:
    return model.session().step(1).tobytes()


@forks
@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_packs() -> None:
    """The first call copies the weights: a child that has half of them begins anew."""
    config = tiny.config(dim=504, hidden_dim=2000, vocab_size=20000)
    arrays = tiny.arrays(config)
    expected = first_step(llama2cpp.from_arrays(config, arrays, pack="never"))
    for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.04):
        model = llama2cpp.from_arrays(config, arrays, threads=2, pack="always")
        thread = threading.Thread(target=partial(first_step, model))
        thread.start()
        time.sleep(delay)
        assert in_child(partial(first_step, model)) == expected
        thread.join()


def test_pickle_opens_the_file_again(stories_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(stories_dir)
    model = llama2cpp.load(
        "stories260K.bin", tokenizer="tok512.bin", threads=3, context=77, kv_dtype="f16", pack="never"
    )
    data = pickle.dumps(model)
    assert len(data) < 50_000  # the path and the tokenizer, not the weights
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(data)
    assert (copy.threads, copy.context, copy.kv_dtype) == (1 if ON_METAL else 3, 77, "f16")
    assert copy.generate("Once", max_tokens=20, seed=1) == model.generate("Once", max_tokens=20, seed=1)


def test_what_cannot_be_pickled(stories_dir: Path) -> None:
    with pytest.raises(TypeError, match="a model of arrays or edited weights"):
        pickle.dumps(tiny.model(tiny.config()))
    model = story_model(stories_dir)
    model.close()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(model)


def generated(model: llama2cpp.Model) -> str:
    return model.generate("One day", max_tokens=30, seed=3)


# With a fork of a process that has used Metal there is none.
METHODS = [method for method in multiprocessing.get_all_start_methods() if not (ON_METAL and method == "fork")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_pool_of_processes(stories_dir: Path, method: str) -> None:
    model = story_model(stories_dir)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(generated, [model] * 3) == [generated(model)] * 3


ENDINGS = {
    "threads waiting for work": "session.prefill([1] * 300)",
    "a daemon thread computing": """
import threading, time
def run():
    while True:
        session.rewind(0)
        session.prefill([1] * 300)
threading.Thread(target=run, daemon=True).start()
time.sleep(0.3)
""",
    "daemon threads waiting for a session": """
import threading, time
def stay(activation, hook):
    time.sleep(60)
def run():
    with session.hooks([("resid_post0", stay)]):
        session.step(1)
for work in (run, lambda: session.step(2), session.fork, lambda: session.rewind(0)):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
""",
    "a stream half read": "stream = model.stream('Once'); next(stream)",
    "views alive": """
import atexit
session.step(1)
atexit.register(print, session.kv.keys(0).sum())
""",
}


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_interpreter_ends_cleanly(stories_dir: Path, ending: str) -> None:
    script = (
        "import llama2cpp\n"
        f"model = llama2cpp.load({str(stories_dir / 'stories260K.bin')!r},"
        f" tokenizer={str(stories_dir / 'tok512.bin')!r}, threads=2)\n"
        "session = model.session()\n" + ENDINGS[ending]
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
