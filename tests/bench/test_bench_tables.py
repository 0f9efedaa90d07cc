"""tests/bench/tables.py: the table of speeds in docs/benchmarks.md, from numbers that can be divided in the head."""

from __future__ import annotations

import compare
import tables


def result(threads: int, **speeds: dict[str, list[float]]) -> dict[str, object]:
    return {
        "file": "tiny.q4_0.gguf",
        "bytes_per_token": 2e6,
        "threads": threads,
        "read": [4e9, 2e9, 5e9],
        "speeds": speeds,
    }


OURS = {"decode": [1000.0, 800.0, 1200.0], "prefill 64": [30.0, 10.0, 20.0], "prefill 512": [9.0, 9.5, 8.0]}
THEIRS = {"decode": [500.0, 100.0, 300.0], "prefill 64": [10.0, 5.0, 10.0]}


def test_a_line_for_each_file_and_number_of_threads() -> None:
    """Shares are of each round's own limit (50, 80 and 48 %), ratios of each round (2, 8 and 4; 3, 2 and 2)."""
    both = result(1, llama2cpp=OURS, llama_cpp=THEIRS)
    alone = result(2, llama2cpp=OURS)
    head, _, first, second = tables.summary([both, alone])
    assert head.count("llama.cpp") == 2
    assert "OpenVINO" not in head
    assert first == "| tiny Q4_0, 2 MB | 1 | 1,000 | 50 % | 4.00 | 9.0 | — / 2.00 / — |"
    assert second == "| tiny Q4_0, 2 MB | 2 | 1,000 | 50 % |  | 9.0 |  |"


def test_every_number() -> None:
    head, _, decode, *prompts = compare.table_of_speeds([result(1, llama2cpp=OURS, llama_cpp=THEIRS)])
    assert head.count("|") == decode.count("|")
    assert len(prompts) == 2
    assert "1,000 (800 - 1,200) | 50 % of 4.0 (2.0 - 5.0) GB/s | 300 (100 - 500) | **4.00**" in decode
