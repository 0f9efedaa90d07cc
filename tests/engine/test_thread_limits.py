"""Threads that the system does not give, and how many are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SUPPORT

import llama2cpp

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")

# The model is in memory before the limit: what it needs later is threads alone. Root is not limited, so it becomes
# another user, of whom there are this process's threads and no others.
LIMITED = """
import os, resource, sys, threading, time, warnings
sys.path.insert(0, {support!r})
import tiny, llama2cpp
config = tiny.config(dim=576, hidden_dim=800)
tokens = list(range(3, 43))
expected = tiny.model(config, threads=1).session().prefill(tokens).tobytes()

def count():
    return len(os.listdir("/proc/self/task"))

def limit(more):
    if os.getuid() == 0:
        os.setresuid(*3 * [40_000 + os.getpid() % 20_000])
    here = count()
    resource.setrlimit(resource.RLIMIT_NPROC, (here + more, here + more))
    done, threads, refused = threading.Event(), [], False
    try:
        for _ in range(more + 1):
            thread = threading.Thread(target=done.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        refused = True
    done.set()
    for thread in threads:
        thread.join()
    while count() > here:
        time.sleep(0.001)
    if not refused:
        print("not limited")
        sys.exit()
"""

CALLS = """
model = tiny.model(config, threads=8)
limit({more})
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        session = model.session()
        assert session.prefill(tokens).tobytes() == expected
        session.step(1)
    model.with_weights({{"norm.weight": model.weights["norm.weight"]}}).session().step(1)
    model.unembed([[0.0] * 576] * 40)
print([(w.category.__name__, str(w.message)) for w in seen])
"""

ERRORS = """
model = tiny.model(config, threads=8)
limit(1)
warnings.simplefilter("error")
session = model.session()
try:
    session.prefill(tokens)
except RuntimeWarning as warning:
    print(session.position, warning)
assert session.prefill(tokens).tobytes() == expected  # it was said once
"""

IN_A_CHILD = """
model = tiny.model(config, threads=8)
assert model.session().prefill(tokens).tobytes() == expected  # all threads are there
limit(2)  # the child itself, and one thread
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert model.session().prefill(tokens).tobytes() == expected
    print([str(w.message) for w in seen], flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""

OTHERS = """
import numpy as np
from llama2cpp import _core
array = np.ones((2000, 2048), np.float32)
limit(0)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    _core.encode("q8_0", array, threads=6)
    _core.gptq_factor(np.eye(600), 0.01, threads=5)
    _core.ReadLimit(4, 10_000_000).measure(0.01)
    _core.gram(np.ones((300, 400), np.float32), threads=3)
print([str(w.message)[:22] for w in seen])
"""

BAR = """
from llama2cpp.command.progress import progress_bar
from rich.progress import BarColumn
limit({more})
with progress_bar(BarColumn()) as bar:
    task = bar.add_task("a task", total=3)
    for done in range(4):
        bar.update(task, completed=done)
print(bar.tasks[0].completed, bar.live.auto_refresh)
"""


def limited(script: str) -> str:
    """What a script prints in a process of its own, where threads are few."""
    begin = LIMITED.format(support=str(SUPPORT))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("LLAMA2CPP_THREADS", None)
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", begin + script],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    if result.stdout == "not limited\n":
        pytest.skip("this system does not limit the threads of a user")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("more", [0, 1, 3, 6])
def test_calls_go_on_with_fewer_threads(more: int) -> None:
    """The same bits, and one warning that names both numbers."""
    seen = limited(CALLS.format(more=more))
    assert seen.count("RuntimeWarning") == 1
    assert f"only {more + 1} of 8 threads could be started" in seen


def test_nothing_is_said_where_all_threads_start() -> None:
    assert limited(CALLS.format(more=7)) == "[]\n"


def test_a_warning_that_is_an_error_leaves_the_session_as_it_was() -> None:
    assert limited(ERRORS).startswith("0 only 2 of 8 threads")


def test_children_of_fork_go_on_with_fewer_threads() -> None:
    assert "of 8 threads could be started" in limited(IN_A_CHILD)


def test_threads_beside_the_models() -> None:
    """Encoders, GPTQ and the measuring of memory have threads of their own."""
    seen = limited(OTHERS)
    for threads in (6, 5, 4, 3):
        assert f"only 1 of {threads} threads" in seen


@pytest.mark.parametrize(("more", "expected"), [(0, "3 False\n"), (1, "3 True\n")])
def test_progress_bars_do_without_a_thread(more: int, expected: str) -> None:
    assert limited(BAR.format(more=more)) == expected


@pytest.mark.cpu_bits("threads")
def test_environment_variable(monkeypatch: pytest.MonkeyPatch, stories_dir: Path) -> None:
    """It beats the default and loses to threads=."""
    path = stories_dir / "stories260K.bin"
    monkeypatch.setenv("LLAMA2CPP_THREADS", "3")
    assert llama2cpp.load(path).threads == 3
    assert llama2cpp.load(path, threads=2).threads == 2
    assert llama2cpp.build_info()["threads"] == 3
    monkeypatch.setenv("LLAMA2CPP_THREADS", "")
    with_empty = llama2cpp.load(path).threads
    monkeypatch.delenv("LLAMA2CPP_THREADS")
    assert llama2cpp.load(path).threads == with_empty


@pytest.mark.cpu_bits("threads")
@pytest.mark.parametrize("value", ["0", "-1", "1025", "99999999999999999999", "two", "2.0", " 2", "2 ", "0x2", "é"])
def test_environment_variable_that_is_no_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, stories_dir: Path, value: str
) -> None:
    monkeypatch.setenv("LLAMA2CPP_THREADS", value)
    path = stories_dir / "stories260K.bin"
    with pytest.raises(ValueError, match=r"LLAMA2CPP_THREADS is .*, expected 1 to 1024"):
        llama2cpp.load(path)
    assert llama2cpp.load(path, threads=2).threads == 2
