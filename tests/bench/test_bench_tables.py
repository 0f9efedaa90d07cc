"""tests/bench/tables.py and compare.py: tables of numbers that are divided in the head, and what engines are asked."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import compare
import engines
import pytest
import tables


def result(threads: int, **speeds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "file": "tiny.q4_0.gguf",
        "bytes_per_token": 2e6,
        "threads": threads,
        "read": {name: {"decode": [4e9, 2e9, 5e9]} for name in speeds},
        "speeds": speeds,
    }


OURS = {"decode": [1000.0, 800.0, 1200.0], "prefill 64": [30.0, 10.0, 20.0], "prefill 512": [9.0, 9.5, 8.0]}
THEIRS = {"decode": [500.0, 100.0, 300.0], "prefill 64": [10.0, 5.0, 10.0]}


def test_a_line_for_each_file_and_number_of_threads() -> None:
    """Shares are of each round's own limit (50, 80 and 48 %: too few for phases), ratios of each round.

    The latter are 2, 8 and 4; 3, 2 and 2.
    """
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


def test_each_type_of_activations_has_its_rows() -> None:
    speeds = {
        "llama2cpp": OURS,
        "llama2cpp bf16": {"decode": [2000.0] * 3, "4 rows": [4000.0] * 3},
        "llama_cpp": THEIRS,
    }
    first, second = tables.summary([result(1, **speeds)])[2:]
    assert first.startswith("| tiny Q4_0, 2 MB | 1 |")
    assert second.startswith("| tiny Q4_0, 2 MB, bf16 activations | 1 | 2,000 | 100 % | 6.67 |")
    *_, decode, rows = compare.table_of_speeds([result(1, **speeds)])
    assert (
        "bf16 activations | 1 | decode | 2,000 (2,000 - 2,000) | 100 % of 4.0 (2.0 - 5.0) GB/s, 1 over it |" in decode
    )
    assert "| 4 rows | 4,000 (4,000 - 4,000) | 2.00 steps |" in rows


def test_phases_in_a_table() -> None:
    both = result(1, llama2cpp={"decode": [900.0, 900.0, 1500.0, 1500.0]})
    both["read"]["llama2cpp"]["decode"] = [2e9, 2e9, 4e9, 4e9]
    assert "| 90 % / 75 % |" in tables.summary([both])[2]
    assert "| 90 % / 75 % of 3.0 (2.0 - 4.0) GB/s |" in compare.table_of_speeds([both])[2]


def asked(**changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"depth": [16], "steps": 64, "rows": [], "prefill": [16, 512]} | changed))


def test_what_is_asked_for() -> None:
    """What does not fit into the model's context is left out, or shorter."""
    requests = compare.requests_for(asked(depth=[16, 400, 4096], rows=[4, 64, 600]), 512)
    assert requests == [
        ("decode", ("decode", 16, 64)),
        ("decode after 400", ("decode", 400, 64)),
        ("4 rows", ("pass", 16, 4, 16)),
        ("64 rows", ("pass", 16, 64, 7)),
        ("prefill 16", ("prefill", 16)),
        ("prefill 512", ("prefill", 512)),
    ]


def test_engines_take_turns() -> None:
    """Each begins a round in turn, the first round counts for nothing, and readings stand around our decoding."""
    order: list[str] = []

    class Made:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, what: str, *_: object) -> float | None:
            order.append(f"{self.name} {what}")
            return None if (self.name, what) == ("llama_cpp", "prefill") else float(len(order))

    def read() -> float:
        order.append("read")
        return float(len(order))

    processes = {name: Made(name) for name in ("llama2cpp", "llama2cpp bf16", "llama_cpp")}
    requests = [("decode", ("decode", 16, 64)), ("prefill 16", ("prefill", 16))]
    speeds, reads = compare.take_rounds(processes, requests, read, 1)
    assert order[:8] == [
        "read", "llama2cpp decode", "read", "llama2cpp bf16 decode", "llama_cpp decode",
        "llama2cpp prefill", "llama2cpp bf16 prefill", "llama_cpp prefill",
    ]  # fmt: skip
    assert order[8:] == [
        "read", "llama2cpp bf16 decode", "read", "llama_cpp decode", "read", "llama2cpp decode", "read",
        "llama2cpp bf16 prefill", "llama_cpp prefill", "llama2cpp prefill",
    ]  # fmt: skip
    assert speeds["llama_cpp"] == {"decode": [12.0]}
    assert speeds["llama2cpp"] == {"decode": [14.0], "prefill 16": [18.0]}
    assert reads == {"llama2cpp": {"decode": [15.0]}, "llama2cpp bf16": {"decode": [11.0]}}


LLAMA_BENCH = """#!/bin/sh
case "$*" in
  *"-rtr 0"*) speed=10 ;;
  *) speed=20 ;;
esac
case "$*" in
  *"-p 999"*) echo "error: no room" >&2; exit 1 ;;
esac
printf '======= a notice\n[\n  {"test": "%s", "avg_ts": 1, "samples_ts": [ 99, '$speed', 1 ]\n  }\n]\n' "$*"
"""


def test_ik_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The better of plain and repacked, each the median of its repetitions."""
    program = tmp_path / "llama-bench"
    program.write_text(LLAMA_BENCH)
    program.chmod(0o755)
    monkeypatch.setenv("IK_LLAMA_BENCH", str(program))
    engine = engines.IkLlamaCpp(tmp_path / "m.gguf", 2, 512, "auto")
    assert (engine.decode(16, 64), engine.prefill(512), engine.passes(16, 4, 16)) == (20.0, 20.0, None)
    with pytest.raises(RuntimeError, match="llama-bench: error: no room"):
        engine.prefill(999)
    for told in ("", "nothing", "[\n]", json.dumps([{"avg_ts": 1}])):
        with pytest.raises(RuntimeError, match="llama-bench told no speed"):
            engines.ik_speed(told)


OTHER_BUILD = """
class _Session:
    tokens = []
    def step(self, token): self.tokens.append(token)
    def prefill(self, ids): self.tokens += ids
    def rewind(self, position): del self.tokens[position:]

class _Model:
    class config: vocab_size = 50
    def session(self): return _Session()

def load(path, *, threads, context): return _Model()
"""


def test_a_baseline_has_its_own_package(tmp_path: Path) -> None:
    """Another build, here one without a core, in a wheel; what measures it is this tree's."""
    wheel = tmp_path / "llama2cpp-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("llama2cpp/__init__.py", OTHER_BUILD)
        info = "llama2cpp-0.0.1.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llama2cpp\nVersion: 0.0.1\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    python = compare.environment_of(wheel, tmp_path / "environment")
    process = compare.Process("baseline", tmp_path / "any", 1, 64, python=python)
    assert process.ask("decode", 2, 3) > 0
    assert process.ask("pass", 2, 4, 2) > 0
    process.close()
    with pytest.raises(RuntimeError, match=r"none\.whl cannot be installed: "):
        compare.environment_of(tmp_path / "none.whl", tmp_path / "environment")
