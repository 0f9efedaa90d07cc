"""What extracting activations costs beside the forward pass alone: CPU time, interleaved.

    python tests/bench/extract.py MODEL [--rounds 7] [--texts 64] [--length 128]

Each round runs the same texts as the extraction does, in the same passes: without keeping anything, and then writing
rows to a folder. The table has the median of the rounds' ratios. It is CPU time of the process, the disk's not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import numpy as np

import llama2cpp
from llama2cpp.activation_data.passes import TOGETHER

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("resid_post of one layer, f16", {"points": "resid_post", "layers": -1}),
    ("resid_post of one layer, f16, shuffled", {"points": "resid_post", "layers": -1, "shuffle": 1}),
    ("resid_post of one layer, mean", {"points": "resid_post", "layers": -1, "pool": "mean"}),
    ("resid_post of all layers, last", {"points": "resid_post", "pool": "last"}),
    ("resid_post of all layers, f16", {"points": "resid_post"}),
    ("resid_post of all layers, f32", {"points": "resid_post", "dtype": "f32"}),
    ("resid_post, z, mlp_out of all layers, f16", {"points": ["resid_post", "z", "mlp_out"]}),
    ("means of resid_post, z, mlp_out", {"points": ["resid_post", "z", "mlp_out"], "mean": True}),
)


def forward(model: llama2cpp.Model, texts: list[list[int]]) -> None:
    """The passes without anything that is kept; the sessions are used again, as the extraction does."""
    sessions = [model.session() for _ in range(TOGETHER)]
    for first in range(0, len(texts), TOGETHER):
        batch = texts[first : first + TOGETHER]
        for session in sessions:
            session.rewind(0)
        rows = [(session._core, ids) for session, ids in zip(sessions, batch, strict=False)]
        model._core.run_with_cache(rows, [], None, model.config.n_layers, None, None, None, False)


def extract(model: llama2cpp.Model, texts: list[list[int]], mean: bool = False, **options: Any) -> None:
    if mean:
        model.mean_activations(texts, progress=False, **options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model.extract(texts, out=folder, progress=False, **options)


def seconds(function: Any, *arguments: Any, **options: Any) -> float:
    began = time.process_time()
    function(*arguments, **options)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="mean tokens of a text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--case", help="only those whose name has this")
    options = parser.parse_args()
    model = llama2cpp.load(options.model, threads=options.threads)
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.length // 2, options.length * 3 // 2, size=options.texts)
    texts = [rng.integers(1, model.config.vocab_size, size=length).tolist() for length in lengths]
    forward(model, texts[:TOGETHER])  # packs the weights
    print(f"{sum(lengths)} tokens of {len(texts)} texts, {model!r}")
    for name, case in CASES:
        if options.case and options.case not in name:
            continue
        ratios, alone = [], []
        for _ in range(options.rounds):
            alone.append(seconds(forward, model, texts))
            ratios.append(seconds(extract, model, texts, **case) / alone[-1])
        print(
            f"{name:45} {statistics.median(ratios):6.3f} of the forward's {statistics.median(alone):.2f} s "
            f"({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
