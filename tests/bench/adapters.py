"""What LoRA adapters cost: passes with 1 and 16 of them beside the same passes with none, in turns.

    python tests/bench/adapters.py MODEL [--threads 1] [--rounds 5] [--ranks 8 16 64] [--parts all|attention]

CPU time in units of the pass without adapters of the same round (medians; in brackets the middle half): a step of one
sequence, a step of 16 sequences (all with one adapter, or each with its own), and a prompt of 512. Factors are random
and beside all matrices of all layers, or those of attention.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import llama2cpp

ROWS = 16
PROMPT = 512
STEPS = 8


def made(model: llama2cpp.Model, rank: int, seed: int, parts: str) -> llama2cpp.Adapter:
    """An adapter of random factors."""
    c = model.config
    q, kv, dim, hidden = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.dim, c.hidden_dim
    shapes = {"q_proj": (q, dim), "k_proj": (kv, dim), "v_proj": (kv, dim), "o_proj": (dim, q)}
    if parts == "all":
        shapes |= {"gate_proj": (hidden, dim), "up_proj": (hidden, dim), "down_proj": (dim, hidden)}
    rng = np.random.default_rng(seed)
    factors = {}
    for layer in range(c.n_layers):
        for name, (rows, cols) in shapes.items():
            block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            pair = (rng.normal(size=(rank, cols)) / cols**0.5, rng.normal(size=(rows, rank)) * 0.01)
            factors[f"model.layers.{layer}.{block}.{name}"] = pair
    return llama2cpp.Adapter.from_arrays(model, factors)


class Together:
    """Sessions that step in one pass."""

    def __init__(self, model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
        self._model = model
        self._sessions = [model.session(adapter=adapter) for adapter in adapters]
        for session in self._sessions:
            session.prefill([1, *range(5, 36)])

    def __call__(self) -> None:
        for _ in range(STEPS):
            self._model._core.feed([(session._core, [7]) for session in self._sessions])
        for session in self._sessions:
            session.rewind(32)


class OnePrompt:
    """A prompt in a session."""

    def __init__(self, model: llama2cpp.Model, adapter: llama2cpp.Adapter | None) -> None:
        self._session = model.session(adapter=adapter)
        self._ids = np.random.default_rng(1).integers(5, model.config.vocab_size, PROMPT).tolist()

    def __call__(self) -> None:
        self._session.rewind(0)
        self._session.prefill(self._ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--parts", choices=["all", "attention"], default="all")
    given = parser.parse_args()
    model = llama2cpp.load(given.model, threads=given.threads, context=1024)
    print("| rank | step | 16 sequences, one adapter | 16 sequences, 16 adapters | prompt of 512 |")
    print("|---:|---:|---:|---:|---:|")
    for rank in given.ranks:
        many = [made(model, rank, seed, given.parts) for seed in range(ROWS)]
        runs: dict[str, tuple[Callable[[], None], list[Callable[[], None]]]] = {
            "step": (Together(model, [None]), [Together(model, [many[0]])]),
            "rows": (Together(model, [None] * ROWS), [Together(model, [many[0]] * ROWS), Together(model, [*many])]),
            "prompt": (OnePrompt(model, None), [OnePrompt(model, many[0])]),
        }
        columns: list[list[float]] = [[] for _ in range(4)]
        for _ in range(given.rounds + 1):
            ratios: list[float] = []
            for plain, others in runs.values():
                times = []
                for run in (plain, *others, plain):
                    begin = time.process_time()
                    run()
                    times.append(time.process_time() - begin)
                ratios += [own / ((times[0] + times[-1]) / 2) for own in times[1:-1]]
            for column, ratio in zip(columns, ratios, strict=True):
                column.append(ratio)
        cells = []
        for column in columns:
            low, middle, high = np.quantile(column[1:], [0.25, 0.5, 0.75])  # the first packs and touches memory
            cells.append(f"{middle:.2f} ({low:.2f} - {high:.2f})")
        print(f"| {rank} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
