"""What Python adds to a token: a step, generate and stream beside the same steps of a loop in C++.

    python tests/bench/python_cost.py MODEL STEP_PROGRAM

STEP_PROGRAM is bench_step, built with the C++ tests (tests/bench/step.cpp). All take turns, on one thread, and the
median of the rounds' differences counts, in CPU time: other programs take turns too, but their time is their own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable

import llama2cpp

PROMPT = 5  # the token that bench_step feeds


def microseconds(run: Callable[[], object], steps: int) -> float:
    """CPU time of one of so many steps."""
    begin = time.process_time()
    run()
    return (time.process_time() - begin) * 1e6 / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("step_program")
    parser.add_argument("-z", "--tokenizer", help="tokenizer file, where the model has none")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    steps: int = options.steps
    model = llama2cpp.load(options.model, tokenizer=options.tokenizer, threads=1)
    session = model.session()

    def in_cpp() -> float:
        command = [options.step_program, options.model, str(steps), "5"]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    def step_by_step() -> None:
        session.rewind(0)
        for _ in range(steps):
            session.step(PROMPT)

    def generate(temperature: float, seed: int) -> str:  # an empty prompt is a step, and the last token is not fed
        return llama2cpp.generate(model=model, max_tokens=steps, temperature=temperature, seed=seed)

    def fitting_seed(temperature: float) -> int:
        """A seed whose text does not end too early."""
        for seed in range(1, 1000):
            whole = llama2cpp.generate(model=model, max_tokens=steps, temperature=temperature, seed=seed, logprobs=0)
            if len(whole.tokens) == steps:
                return seed
        raise SystemExit(f"the model writes no text of {steps} tokens: choose fewer --steps")

    seeds = {temperature: fitting_seed(temperature) for temperature in (0.0, 1.0)}
    ways: dict[str, Callable[[], object]] = {
        "session.step": step_by_step,
        "generate, greedy": lambda: generate(0.0, seeds[0.0]),
        "generate, as it samples by default": lambda: generate(1.0, seeds[1.0]),
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(options.rounds + 1):
        base = in_cpp()
        for name, way in ways.items():
            taken = min(microseconds(way, steps) for _ in range(5))
            if round_number > 0:
                rows[name].append((base, taken))
    for name, pairs in rows.items():
        base, taken = (statistics.median(column) for column in zip(*pairs, strict=True))
        extra = statistics.median(mine - theirs for theirs, mine in pairs)
        print(f"{name}: {taken:.2f} microseconds, C++ {base:.2f}, {extra:+.2f} ({100 * extra / base:+.2f} %)")


if __name__ == "__main__":
    main()
