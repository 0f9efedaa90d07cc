"""What hooks cost: a captured residual stream, caches, and hook points where nobody looks.

    python tests/bench/hooks_cost.py MODEL [--steps WITH WITHOUT] [--rounds 7]

WITH and WITHOUT are two builds of bench_step (tests/bench/step.cpp), the second with -DLLAMA2CPP_NO_HOOKS=ON. They take
turns, and the least CPU time of a round counts, so that other programs disturb little. With valgrind on the machine the
instructions of a step are counted too, on AVX2 kernels (it knows no AVX-512). Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import llama2cpp

STEPS = 200
PREFILL = 128


def least(run: Callable[[], object], times: int) -> float:
    """The least CPU time of a call, in milliseconds."""
    best = float("inf")
    for _ in range(times):
        begin = time.thread_time()
        run()
        best = min(best, time.thread_time() - begin)
    return best * 1e3


def measure(path: str) -> dict[str, float]:
    """Milliseconds of everything that Python can look at."""
    model = llama2cpp.load(path, threads=1)
    session = model.session()
    steps = min(STEPS, session.context - 2)
    session.step(1)
    result = {"step": least(lambda: session.step(5), steps)}
    kept: list[object] = []

    def keep(activation: object, hook: object) -> None:
        kept.append(activation)

    session.rewind(1)
    with model.hooks([("resid_post", keep)]):
        result["step, residual stream kept"] = least(lambda: session.step(5), steps)
    kept.clear()
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, PREFILL)

    def cache_of(names: Any) -> Callable[[], object]:
        return lambda: model.run_with_cache(ids, names)

    for label, names in {"nothing": (), "resid_post": "resid_post", "all but results": None, "all": bool}.items():
        result[f"cache of {label}"] = least(cache_of(names), 5)
    return result


def instructions(program: Path, model: str) -> float:
    """Count those of one step: the difference between a run of many steps and one of few."""
    counts = []
    for steps in (20, 120):
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={os.devnull}",
            str(program),
            model,
            str(steps),
        ]
        env = os.environ | {"LLAMA2CPP_ISA": "avx2"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found is not None, done.stderr
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / 100


def main() -> None:
    """Read the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--steps", type=Path, nargs=2, metavar=("WITH", "WITHOUT"))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()

    for name, value in measure(given.model).items():
        print(f"{name:32} {value:9.4f} ms")
    if not given.steps:
        return
    best = [float("inf")] * 2
    for _ in range(given.rounds):
        for i, program in enumerate(given.steps):
            done = subprocess.run([program, given.model, "200", "20"], capture_output=True, text=True, check=True)
            best[i] = min(best[i], float(done.stdout))
    print(
        f"step with and without hook points: {best[0]:.2f} and {best[1]:.2f} us, {100 * (best[0] / best[1] - 1):+.2f} %"
    )
    if shutil.which("valgrind"):
        ours, plain = (instructions(program, given.model) for program in given.steps)
        print(f"instructions of a step:            {ours:,.0f} and {plain:,.0f}, {100 * (ours / plain - 1):+.2f} %")


if __name__ == "__main__":
    main()
