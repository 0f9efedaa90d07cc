"""Tokens a second with `speculate` and without, in turns.

    python tests/bench/speculation.py MODEL [--draft MODEL] [--tokens 200] [--threads 1] [--rounds 5]

Two texts: one that repeats what the prompt has, greedy, and one that is free, at temperature 0.8. Texts are compared,
too. The prompt is read before the clock runs. The best of the rounds counts, of wall-clock time or, with --cpu-time, of
the processor's, for a machine that does other things beside (with one thread).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import llama2cpp

TEXT = (
    "The harbour of Marseille has been in use for two thousand and six hundred years. Greek sailors from "
    "Phocaea founded the town in about 600 BC and called it Massalia. They traded wine, olive oil and pottery "
    "with the people who lived along the Rhone, and their ships went as far as Britain to bring back tin. When "
    "Caesar besieged the city in 49 BC it had taken the side of Pompey, and so it lost most of its lands. In "
    "the Middle Ages it was a port of the crusaders; later the kings of France built galleys there. The "
    "nineteenth century brought steamships, soap factories and a new harbour north of the old one, which had "
    "become too small. Today ferries leave for Corsica, Algeria and Tunisia, and fishermen still sell their "
    "catch on the quay each morning, as their grandfathers did before the war. "
)
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "repeats, greedy": (f"{TEXT}\n\n{TEXT[:40]}", {"temperature": 0}),
    "free, 0.8": ("Once upon a time", {"temperature": 0.8, "seed": 2, "min_tokens": 10}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.cpu_time else time.perf_counter
    model = llama2cpp.load(given.model, threads=given.threads)
    ways: dict[str, Any] = {"without": None, "prompt": "prompt"}
    if given.draft:
        ways["draft"] = llama2cpp.load(given.draft, threads=given.threads)
    print(f"{'text':16} {'speculate':10} {'tok/s':>7} {'times':>6} {'passes':>7} {'proposed':>9} {'accepted':>9}")
    for name, (prompt, options) in TEXTS.items():
        best = dict.fromkeys(ways, float("inf"))
        streams: dict[str, llama2cpp.TextStream] = {}
        for _ in range(given.rounds):
            for way, speculate in ways.items():
                pieces = model.stream(prompt, max_tokens=given.tokens, speculate=speculate, **options)
                began = clock()
                for _piece in pieces:
                    pass
                best[way] = min(best[way], clock() - began)
                streams[way] = pieces
        for way, pieces in streams.items():
            assert pieces.text == streams["without"].text, f"{way} gives another text"
            usage = pieces.usage
            print(
                f"{name:16} {way:10} {usage.completion_tokens / best[way]:7.1f} {best['without'] / best[way]:6.2f} "
                f"{usage.passes:7} {usage.proposed_tokens:9} {usage.accepted_tokens:9}"
            )


if __name__ == "__main__":
    main()
