"""Measure the tokens a second of a checkpoint, for each set of kernels and each number of threads.

    python tests/bench/stories.py stories260K.bin
    python tests/bench/stories.py stories260K.bin --llama2c path/to/llama2.c/run -z tok512.bin

The cases take turns, round after round, so that a machine which slows down slows them all; of each case the best round
counts. Numbers of one table can be compared with each other, and with nothing else: quote ratios.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import llama2cpp

TOGETHER = 8  # sessions in one pass
KERNELS = ("scalar", "neon", "avx2", "avx512")


class Case:
    """One model on some kernels and threads, and its best speeds so far in tokens a second."""

    def __init__(self, checkpoint: Path, kernels: str, threads: int) -> None:
        os.environ["LLAMA2CPP_ISA"] = kernels
        self.name = f"{kernels} x {threads}"
        self._model = llama2cpp.load(checkpoint, threads=threads)
        self._sessions = [self._model.session() for _ in range(TOGETHER)]
        self._tokens = min(256, self._model.context)
        self._prompt = [i % self._model.config.vocab_size for i in range(self._tokens)]
        self.best = {"step": 0.0, "together": 0.0, "prefill": 0.0}
        self.round()
        self.best = dict.fromkeys(self.best, 0.0)  # that round was for warming up

    def round(self) -> None:
        self._note("step", self._tokens, self._step)
        self._note("together", self._tokens // TOGETHER * TOGETHER, self._together)
        self._note("prefill", self._tokens, self._prefill)

    def _step(self) -> None:
        """Greedy decoding, as a Python loop writes it."""
        session, token = self._sessions[0], 1
        for _ in range(self._tokens):
            token = int(session.step(token).argmax())

    def _together(self) -> None:
        for token in self._prompt[: self._tokens // TOGETHER]:
            self._model.forward([(session, [token]) for session in self._sessions])

    def _prefill(self) -> None:
        self._sessions[0].prefill(self._prompt)

    def _note(self, what: str, tokens: int, run: Callable[[], None]) -> None:
        for session in self._sessions:
            session.rewind(0)
        started = time.perf_counter()
        run()
        self.best[what] = max(self.best[what], tokens / (time.perf_counter() - started))


def run_llama2c(run: str, checkpoint: Path, tokenizer: str) -> float:
    """Get llama2.c's own figure for 256 greedy tokens."""
    command = [run, str(checkpoint), "-z", tokenizer, "-t", "0", "-n", "256"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"achieved tok/s: ([\d.]+)", told)
    if found is None:
        raise RuntimeError(f"{run} told no speed: {told!r}")
    return float(found[1])


def usable(checkpoint: Path) -> list[str]:
    """Name the kernels that this machine has."""
    names = []
    for name in KERNELS:
        os.environ["LLAMA2CPP_ISA"] = name
        try:
            llama2cpp.load(checkpoint)
        except ValueError:
            continue
        names.append(name)
    return names


def main() -> None:
    default_threads = llama2cpp.build_info()["threads"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, default_threads}))
    parser.add_argument("--kernels", nargs="+", help="scalar, neon, avx2, avx512; all that the machine has")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--llama2c", metavar="RUN", help="llama2.c's program, to measure beside")
    parser.add_argument("-z", "--tokenizer", default="tokenizer.bin", help="for llama2.c")
    options = parser.parse_args()

    names = options.kernels or usable(options.checkpoint)
    cases = [Case(options.checkpoint, name, threads) for name in names for threads in options.threads]
    theirs = 0.0
    for _ in range(options.rounds):
        for case in cases:
            case.round()
        if options.llama2c:
            theirs = max(theirs, run_llama2c(options.llama2c, options.checkpoint, options.tokenizer))

    first = cases[0].best
    print(f"{'tokens a second':18}{'step':>18}{f'{TOGETHER} together':>18}{'prefill':>18}   (times the first row)")
    for case in cases:
        cells = [f"{speed:,.0f} ({speed / first[what]:.2f})" for what, speed in case.best.items()]
        print(f"{case.name:18}" + "".join(f"{cell:>18}" for cell in cells))
    if theirs:
        cell = f"{theirs:,.0f} ({theirs / first['step']:.2f})"
        print(f"{'llama2.c':18}{cell:>18}")


if __name__ == "__main__":
    main()
