"""What a row costs in `llama2cpp.ray.map_prompts` beside the same rows in one process: docs/scale.md has the figures.

    python tests/bench/ray_overhead.py [ROUNDS]

Runs a cluster on this machine, with one actor of one thread. Both sides take the same two numbers of rows in turn; the
difference of their times, by the difference of rows, is what a row costs without what begins a run.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import ray
import ray.data

import llama2cpp
from llama2cpp.ray import map_prompts

FEW, MANY = 64, 12352  # so many that a second more or less at the start matters little
STARTS = ["Once upon a time", "The dog", "Tim and Lily", "One day"]


def main(rounds: int) -> None:
    """Measure, and print medians."""
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    model = llama2cpp.load("storyteller", threads=1)
    prompts = [STARTS[i % len(STARTS)] for i in range(MANY)]

    def here(count: int, how: dict[str, Any]) -> float:
        begin = time.perf_counter()
        model.generate(prompts[:count], seed=0, **how)
        return time.perf_counter() - begin

    def mapped(count: int, how: dict[str, Any]) -> float:
        begin = time.perf_counter()
        rows = ray.data.from_items([{"prompt": prompt} for prompt in prompts[:count]], override_num_blocks=4)
        assert map_prompts(rows, seed=0, **how).materialize().count() == count
        return time.perf_counter() - begin

    for tokens in (16,):
        how = {"max_tokens": tokens}
        costs: dict[str, list[float]] = {"here": [], "mapped": []}
        starts = []
        for _ in range(rounds):
            times = {(side.__name__, n): side(n, how) for n in (FEW, MANY) for side in (here, mapped)}
            for side, found in costs.items():
                found.append((times[side, MANY] - times[side, FEW]) / (MANY - FEW) * 1e3)
            starts.append(times["mapped", FEW] - times["here", FEW])
        own, theirs = (statistics.median(costs[side]) for side in ("here", "mapped"))
        print(
            f"{tokens} tokens: a row takes {own:.2f} ms here and {theirs:.2f} ms mapped, in rounds "
            f"{[round(one, 2) for one in costs['here']]} and {[round(one, 2) for one in costs['mapped']]}; "
            f"a run begins in {statistics.median(starts):.1f} s"
        )
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
