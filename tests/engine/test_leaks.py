"""Doing things again and again takes no more memory, file descriptors, threads or memory maps than doing them once.

Each scenario runs in a process of its own, which is this file as a program: ``python tests/engine/test_leaks.py
SCENARIO CYCLES MODELS`` with tests/support in PYTHONPATH. tests/slow.sh sets LLAMA2CPP_LEAK_CYCLES for a long run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import llama2cpp

CYCLES = int(os.environ.get("LLAMA2CPP_LEAK_CYCLES", "300"))
WARM_UP = 50

# What the memory in use may grow by after the warm-up, whatever the number of cycles: allocators keep some of what they
# got, in pieces of up to a megabyte. A leak of 30 KB in each of 300 cycles, or of 1 KB in each of 10,000, is above it.
GROWTH_BYTES = 8 << 20
GROWTH_MAPS = 32

Scenario = Callable[[], object]


def load_and_close(models: Path) -> Scenario:
    def cycle() -> None:
        with llama2cpp.load(models / "stories260K.bin", tokenizer=models / "tok512.bin"):
            pass
        llama2cpp.load(models / "stories260K_v1.bin", mmap=False).close()

    return cycle


def load_run_and_forget(models: Path) -> Scenario:
    def cycle() -> None:
        model = llama2cpp.load(models / "stories260K.bin", tokenizer=models / "tok512.bin", threads=2)
        model.generate("Once", max_tokens=3, n=2)

    return cycle


def views_outlive(models: Path) -> Scenario:
    def cycle() -> float:
        with llama2cpp.load(models / "stories260K.bin") as model:
            session = model.session()
            session.prefill([1, 2, 3])
            views = [session.kv.keys(0), session.kv.values(4), model.weights["tok_embeddings.weight"]]
        del model, session
        return float(sum(view.sum() for view in views))

    return cycle


def arrays(models: Path) -> Scenario:
    config = tiny.config()
    weights = tiny.arrays(config)

    def cycle() -> None:
        model = llama2cpp.from_arrays(config, weights, threads=3, kv_dtype="f16")
        model.session().step(1)

    return cycle


def sessions(models: Path) -> Scenario:
    model = llama2cpp.load(models / "stories260K.bin", tokenizer=models / "tok512.bin")

    def cycle() -> None:
        session = model.session(context=300)
        session.prefill(range(1, 100), all_logits=True)
        fork = session.fork()
        fork.step(5)
        session.rewind(10)
        model.forward([(session, [1, 2]), (fork, [3]), (model.session(), [4, 5, 6])])
        assert session.logits is not None
        assert session.position == len(session.tokens) == 12

    return cycle


def steps(models: Path) -> Scenario:
    """Make 10,000 arrays of logits in the default number of cycles."""
    model = tiny.model(tiny.config(vocab_size=50_000, seq_len=100, n_layers=1))
    session = model.session()

    def cycle() -> None:
        session.rewind(0)
        kept = []
        for token in range(34):
            logits = session.step(token)
            if token % 3 == 0:
                kept.append(logits)
        assert session.logits is not None

    return cycle


def generations(models: Path) -> Scenario:
    model = llama2cpp.load(models / "stories260K.bin", tokenizer=models / "tok512.bin")

    def cycle() -> None:
        pieces = model.stream("Once upon", max_tokens=50)
        next(pieces)
        del pieces  # in the middle
        model.generate("The", max_tokens=3, logprobs=2)
        model.perplexity("Once upon a time")

    return cycle


def saved_sessions(models: Path) -> Scenario:
    model = llama2cpp.load(models / "stories260K.bin")
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "session"

    def cycle(folder: tempfile.TemporaryDirectory[str] = folder) -> None:
        session = model.session()
        session.prefill([1, 2, 3])
        session.save(path)
        model.load_session(path).step(4)

    return cycle


def errors(models: Path) -> Scenario:
    model = llama2cpp.load(models / "stories260K.bin")
    session = model.session(context=2)
    folder = tempfile.TemporaryDirectory()
    cut = Path(folder.name) / "cut.bin"
    cut.write_bytes((models / "stories260K.bin").read_bytes()[:5000])
    calls: list[Scenario] = [
        lambda: llama2cpp.load(cut),
        lambda: llama2cpp.load(models / "tok512.bin", mmap=False),
        lambda: llama2cpp.load(models / "missing.bin"),
        lambda: llama2cpp.Tokenizer.from_file(cut),
        lambda: session.prefill([1, 2, 3]),
        lambda: session.step(-1),
        lambda: model.session(context=0),
        lambda: llama2cpp.from_arrays(model.config, {}),
    ]

    def cycle(folder: tempfile.TemporaryDirectory[str] = folder) -> None:
        for call in calls:
            with contextlib.suppress(ValueError, OSError, llama2cpp.ContextFullError):
                call()
                raise AssertionError("this should have failed")

    return cycle


def tokenizers(models: Path) -> Scenario:
    def cycle() -> None:
        tokenizer = llama2cpp.Tokenizer.from_file(models / "tok512.bin")
        tokenizer.decode(tokenizer.encode("Once upon a time\U0001f600"))
        llama2cpp.Sampler(seed=1).sample([0.5] * 100, history=[3])

    return cycle


def hooks(models: Path) -> Scenario:
    model = llama2cpp.load(models / "stories260K.bin", tokenizer=models / "tok512.bin")
    _, other = model.run_with_cache("The dog sat", lambda name: True)

    def fail(activation: object, hook: object) -> None:
        raise KeyError

    def cycle() -> None:
        kept = []
        changes = [llama2cpp.interventions.patch_from(other, "z"), llama2cpp.interventions.mask_pattern(1)]
        with model.hooks([(lambda name: True, lambda a, hook: kept.append(a)), *changes]):
            model.run_with_cache(["Once upon", "Once upon"], positions=-1)
            model.generate("The", max_tokens=2)
        with contextlib.suppress(KeyError), model.hooks([("result3", fail)]):
            model.run_with_cache("Once", stop_at_layer=-1)
        with contextlib.suppress(ValueError):
            model.run_with_hooks("Once", [("q1", lambda a, hook: a[0])])

    return cycle


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        load_and_close,
        load_run_and_forget,
        views_outlive,
        arrays,
        sessions,
        steps,
        generations,
        saved_sessions,
        errors,
        tokenizers,
        hooks,
    )
}


def usage() -> dict[str, int]:
    """Bytes of resident memory, and how many descriptors, threads and maps there are."""
    process = Path("/proc/self")
    return {
        "bytes": int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "maps": len((process / "maps").read_text().splitlines()),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_leaks(scenario: str, stories_dir: Path) -> None:
    command = [sys.executable, __file__, scenario, str(CYCLES), str(stories_dir)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment).stdout
    before, after = json.loads(output)
    growth = {name: after[name] - before[name] for name in before}
    print(f"{scenario}, {CYCLES} cycles: {growth}")
    assert growth["bytes"] <= GROWTH_BYTES
    assert growth["maps"] <= GROWTH_MAPS
    assert growth["descriptors"] == 0
    assert growth["threads"] == 0


def main(scenario: str, cycles: str, models: str) -> None:
    cycle = SCENARIOS[scenario](Path(models))
    for _ in range(WARM_UP):
        cycle()
    before = usage()
    for _ in range(int(cycles)):
        cycle()
    print(json.dumps([before, usage()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
