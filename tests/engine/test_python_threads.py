"""Many Python threads at once on what they share: models, weights, hooks, tokenizers, samplers, the table of names."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from on_metal import ON_METAL, agree

import llama2cpp
from llama2cpp import _core, defaults, interventions

THREADS = 3 if ON_METAL else 6
ROUNDS = int(os.environ.get("LLAMA2CPP_STRESS_ROUNDS", "1" if ON_METAL else "2"))  # tests/slow.sh has more

Work = Callable[[llama2cpp.Model, int], Any]


def tokenizer_of(model: llama2cpp.Model) -> llama2cpp.Tokenizer:
    assert model.tokenizer is not None
    return model.tokenizer


def hooked(model: llama2cpp.Model, seed: int) -> Any:
    """What a hook of this thread's saw, and of no other's."""
    seen: list[bytes] = []
    with model.hooks([("resid_post", lambda activation, hook: seen.append(activation.tobytes()))]):
        session = model.session()
        session.prefill(tokenizer_of(model).encode(f"Once {seed}"))
        session.step(seed)
    return b"".join(seen), session.tokens


def ablated(model: llama2cpp.Model, seed: int) -> Any:
    session = model.session()
    with session.hooks([interventions.zero("z", layer=seed % 5, head=seed % 8)]):
        return session.prefill([1, 403, 407 + seed]).tobytes()


def recorded(model: llama2cpp.Model, seed: int) -> Any:
    session = model.session()
    with session.record(["resid_post", "pattern"]) as recording:
        session.prefill([1, 403, seed])
        fork = session.fork()
        session.step(5)
        fork.step(6)
    return {name: array.tobytes() for name, array in recording.cache().items()}


def looked_at(model: llama2cpp.Model, seed: int) -> Any:
    logits, cache = model.run_with_cache([1, 403, seed + 2], ["z", "pattern"])
    return logits.tobytes(), {name: array.tobytes() for name, array in cache.items()}


def read_weights(model: llama2cpp.Model, seed: int) -> Any:
    names = sorted(model.weights)
    name = names[seed % len(names)]
    return name, model.weights[name].tobytes(), model.W_O[seed % 5].tobytes(), model._core.matrix_bytes


def edited(model: llama2cpp.Model, seed: int) -> Any:
    gain = model.weights["norm.weight"] + np.float32(seed)
    return model.with_weights({"norm.weight": gain}).session().step(1).tobytes()


def saved(model: llama2cpp.Model, seed: int) -> Any:
    session = model.session()
    session.prefill([1, 2, 3 + seed])
    session.rewind(2)
    session.step(seed)
    return session.kv.keys(1).tobytes(), session.tokens


def text_both_ways(model: llama2cpp.Model, seed: int) -> Any:
    tokenizer = tokenizer_of(model)
    ids = tokenizer.encode(f"Lily and Tom {seed} went to the park. " * 40)
    decoder = _core.StreamDecoder(tokenizer)
    return ids, "".join(decoder.push(id) for id in ids) + decoder.flush()


WORK: dict[str, Work] = {
    "generate": lambda model, seed: model.generate("Once", max_tokens=12, seed=seed),
    "stream": lambda model, seed: list(model.stream("One day", max_tokens=8, seed=seed)),
    "n at once": lambda model, seed: model.generate("Tom", n=3, max_tokens=6, seed=seed),
    "perplexity": lambda model, seed: model.perplexity("Once upon a time there was a cat." * (1 + seed % 2)),
    "unembed": lambda model, seed: model.unembed(np.full((5, 64), seed, np.float32), apply_ln=True).tobytes(),
    "hooks": hooked,
    "ablation": ablated,
    "recording": recorded,
    "run_with_cache": looked_at,
    "weights": read_weights,
    "with_weights": edited,
    "sessions": saved,
    "text": text_both_ways,
}


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """What each of some threads got, which began at the same moment."""
    start = threading.Barrier(threads)

    def begin(i: int) -> Any:
        start.wait(60)
        return work(i)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def open_model(stories_dir: Path, threads: int = 2) -> llama2cpp.Model:
    return llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=stories_dir / "tok512.bin", threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_everything_at_once(stories_dir: Path, threads: int) -> None:
    """Each thread does all of it, in an order of its own, on one model that nobody has used yet: the same as alone."""
    alone = open_model(stories_dir, 1)
    expected = {(name, seed): work(alone, seed) for name, work in WORK.items() for seed in range(THREADS)}
    for _ in range(ROUNDS):
        model = open_model(stories_dir, threads)

        def all_of_it(i: int, model: llama2cpp.Model = model) -> dict[tuple[str, int], Any]:
            names = list(WORK)
            return {(name, i): WORK[name](model, i) for name in names[2 * i :] + names[: 2 * i]}

        for results in together(all_of_it):
            for key, result in results.items():
                assert result == expected[key], key


@pytest.mark.parametrize("name", list(WORK))
def test_first_use_by_all_at_once(stories_dir: Path, name: str) -> None:
    """Packing, the tokenizer and the tables of names are made by the first call: all threads make it."""
    expected = WORK[name](open_model(stories_dir, 1), 3)
    for _ in range(ROUNDS):
        model = open_model(stories_dir)

        def work(i: int, model: llama2cpp.Model = model) -> Any:
            return WORK[name](model, 3)

        assert together(work) == [expected] * THREADS


def test_loading_at_once(stories_dir: Path) -> None:
    texts = together(lambda i: open_model(stories_dir).generate("Once", max_tokens=5, seed=1))
    assert texts == [open_model(stories_dir).generate("Once", max_tokens=5, seed=1)] * THREADS
    models = together(lambda i: defaults.default_model())
    assert all(model is models[0] for model in models)


def test_one_session_of_many_threads() -> None:
    """Its tokens come in some order, and its logits are theirs."""
    model = tiny.model(tiny.config(seq_len=400), threads=2)
    session = model.session()

    def feed(i: int) -> None:
        for t in range(20):
            session.step((7 * i + t) % 53)
            tokens, logits = session.tokens, session.logits
            assert logits is not None
            assert len(tokens) <= session.position
            session.fork().step(1)

    together(feed)
    assert session.position == 20 * THREADS
    assert session.logits is not None
    assert agree(session.logits, model.session().prefill(session.tokens))


def test_one_sampler_and_one_decoder_of_many_threads() -> None:
    """Threads take turns: together they draw what one would, in some order."""
    logits = np.zeros(1000, np.float32)
    shared, alone = llama2cpp.Sampler(seed=5), llama2cpp.Sampler(seed=5)
    drawn = together(lambda i: [shared.sample(logits) for _ in range(200)])
    expected = [alone.sample(logits) for _ in range(200 * THREADS)]
    assert sorted(id for ids in drawn for id in ids) == sorted(expected)
    assert shared.copy().sample(logits) == alone.sample(logits)


@pytest.mark.cpu_bits("Metal does not survive fork()")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_children_of_fork_while_threads_do_all_of_it(stories_dir: Path) -> None:
    """Whatever the other threads are in the middle of, a child can use the model, the default one too."""
    model = open_model(stories_dir)
    expected = WORK["generate"](open_model(stories_dir, 1), 1)
    stop = threading.Event()

    def busy(i: int) -> None:
        names = list(WORK)
        while not stop.is_set():
            fresh = open_model(stories_dir)  # packs each time
            for name in names[i:] + names[:i]:
                if not stop.is_set():
                    WORK[name](fresh if i % 2 else model, i)
            with defaults._lock:
                pass

    threads = [threading.Thread(target=busy, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6 * ROUNDS):
            child = os.fork()
            if child == 0:
                good = False
                try:
                    good = WORK["generate"](model, 1) == expected
                    good = good and len(llama2cpp.generate("One", max_tokens=2, seed=1)) > 0
                finally:
                    os._exit(0 if good else 1)
            killer = threading.Timer(60, os.kill, (child, 9))
            killer.start()
            status = os.waitpid(child, 0)[1]
            killer.cancel()
            assert status == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
