"""What Python adds to a token: step and generate beside the same loops in C++.

    python tests/bench/python_cost.py MODEL STEP_PROGRAM

STEP_PROGRAM is bench_step, built with the C++ tests (tests/bench/step.cpp). Beside `generate` it makes a session, feeds
it and draws from its logits with the same sampler, so that both compute the same text. All take turns, on one thread,
and the rounds' medians count, in CPU time: what other programs take is their own.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import time
from collections.abc import Callable

import llama2cpp

TOP_P = 0.9
TRIES = 5  # of which the fastest counts, here and there


def microseconds(run: Callable[[], object], steps: int) -> float:
    """CPU time of one of so many steps."""
    times = []
    for _ in range(TRIES):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times) * 1e6 / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("step_program")
    parser.add_argument("-z", "--tokenizer", help="tokenizer file, where the model has none")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    steps: int = options.steps

    def load() -> llama2cpp.Model:
        return llama2cpp.load(options.model, tokenizer=options.tokenizer, threads=1)

    def step_by_step(model: llama2cpp.Model) -> Callable[[], object]:
        session = model.session()

        def run() -> None:
            session.rewind(0)
            for _ in range(steps):
                session.step(5)  # as bench_step does

        return run

    def generate(temperature: float, seed: int, model: llama2cpp.Model) -> Callable[[], object]:
        # The prompt is one step, and the last token is not fed: so many steps and draws.
        return lambda: model.generate([first], max_tokens=steps, temperature=temperature, top_p=TOP_P, seed=seed)

    def fitting_seed(temperature: float) -> int:
        """A seed whose text does not end too early."""
        for seed in range(1, 1000):
            whole = model.generate(
                [first], max_tokens=steps, temperature=temperature, top_p=TOP_P, seed=seed, logprobs=0
            )
            if len(whole.tokens) == steps:
                return seed
        raise SystemExit(f"the model writes no text of {steps} tokens: choose fewer --steps")

    def in_cpp(*sampling: float) -> float:
        numbers = [str(number) for number in (steps, TRIES, *sampling)]
        command = [options.step_program, options.model, *numbers]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    with load() as model:
        assert model.tokenizer is not None
        first = model.tokenizer.bos_id or 0
        seeds = {temperature: fitting_seed(temperature) for temperature in (0.0, 1.0)}
    ways: dict[str, tuple[Callable[[llama2cpp.Model], Callable[[], object]], tuple[float, ...]]] = {
        "session.step": (step_by_step, ()),
        "generate, greedy": (functools.partial(generate, 0.0, seeds[0.0]), (0.0, TOP_P, seeds[0.0], first)),
        "generate, as it samples by default": (
            functools.partial(generate, 1.0, seeds[1.0]),
            (1.0, TOP_P, seeds[1.0], first),
        ),
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(options.rounds + 1):
        for name, (way, sampling) in ways.items():
            theirs = in_cpp(*sampling)
            with load() as model:  # anew, as in C++: where its pages lie makes a step some per cent faster or slower
                run = way(model)
                run()
                pair = theirs, microseconds(run, steps)
            if round_number > 0:
                rows[name].append(pair)
    for name, pairs in rows.items():
        base, taken = (statistics.median(column) for column in zip(*pairs, strict=True))
        extra = taken - base
        print(f"{name}: {taken:.2f} microseconds, C++ {base:.2f}, {extra:+.2f} ({100 * extra / base:+.2f} %)")
    plain, greedy, sampled = (statistics.median(theirs for theirs, _ in pairs) for pairs in rows.values())
    print(f"in C++, the largest logit and a session per text: {greedy - plain:+.2f}, sampling: {sampled - plain:+.2f}")


if __name__ == "__main__":
    main()
