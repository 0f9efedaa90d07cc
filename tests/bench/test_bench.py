"""llama2cpp bench says what it measured: shapes and consistency of the report, never how fast."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llama2cpp
from llama2cpp import _core
from llama2cpp.command import bench

SMALL = ["--prefill", "3", "--prefill", "8", "--steps", "4", "--depth", "2", "--rounds", "2"]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "llama2cpp", "bench", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return result.returncode, result.stdout, result.stderr


def check_spread(spread: dict[str, float]) -> None:
    assert set(spread) == {"median", "low", "high"}
    assert 0 < spread["low"] <= spread["median"] <= spread["high"] < math.inf


def test_json(stories_dir: Path) -> None:
    path = stories_dir / "stories260K.bin"
    code, text, errors = call(path, *SMALL, "--threads", "1", "--threads", "2", "--json")
    assert (code, errors) == (0, "")
    report: dict[str, Any] = json.loads(text)
    assert set(report) == set(bench.Report.__annotations__)
    assert report["model"] == str(path)
    assert report["rounds"] == 2
    assert [run["threads"] for run in report["runs"]] == [1, 2]
    for run in report["runs"]:
        assert set(run) == set(bench.Run.__annotations__)
        assert (run["decode"]["depth"], run["decode"]["steps"]) == (2, 4)
        assert [prefill["tokens"] for prefill in run["prefill"]] == [3, 8]
        check_spread(run["read_limit_gigabytes_per_second"])
        check_spread(run["decode"]["share_of_read_limit"])
        assert sum(phase["turns"] for phase in run["decode"]["phases"]) == 8  # four in each round
        assert 0 <= run["decode"]["turns_over_limit"] <= 8
        assert run["reader"].endswith(("pages", "turns"))
        assert run["read_megabytes"] == pytest.approx(1.04, abs=0.01)
        for measured in (run["decode"], *run["prefill"]):
            check_spread(measured["tokens_per_second"])
        speed, gigabytes = run["decode"]["tokens_per_second"], run["decode"]["gigabytes_per_second"]
        for key in speed:
            assert gigabytes[key] == pytest.approx(speed[key] * report["megabytes_per_token"] / 1e3)


def test_table(stories_dir: Path) -> None:
    code, text, errors = call(stories_dir / "stories260K.bin", *SMALL, "--threads", "1")
    assert (code, errors) == (0, "")
    head, columns, *rows = [line for line in text.splitlines() if not line.startswith("1 thread: ")]
    assert "1 thread: reading 1 MB again and again, best with " in text
    assert "stories260K.bin: 1.0 MB of weights a token" in head
    assert columns.split()[:2] == ["threads", "what"]
    assert [row.split()[1:3] for row in rows] == [["decode", "after"], ["prefill", "3"], ["prefill", "8"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefill", "513"], "513 positions were asked for, but the model's context is 512"),
        (["--steps", "512"], "528 positions were asked for, but the model's context is 512"),
    ],
)
def test_what_cannot_be_measured(stories_dir: Path, arguments: list[str], message: str) -> None:
    code, text, errors = call(stories_dir / "stories260K.bin", *arguments)
    assert (code, text) == (1, "")
    assert errors == f"llama2cpp: error: {message}\n"


@pytest.mark.parametrize("option", ["--threads", "--prefill", "--depth", "--steps", "--rounds"])
def test_numbers_begin_at_1(stories_dir: Path, option: str) -> None:
    code, text, errors = call(stories_dir / "stories260K.bin", option, "0")
    assert (code, text) == (2, "")
    assert errors.startswith(f"llama2cpp: error: Invalid value for '{option}'")


def test_bytes_per_token(stories: llama2cpp.Model, smollm2_path: Path) -> None:
    assert bench.bytes_per_token(stories) == 4 * 260_032  # tied: the table is the output matrix
    with llama2cpp.load(smollm2_path) as model:
        infos = [model.weights.info(name) for name in model.weights]
        assert model.config.tied
        assert bench.bytes_per_token(model) == sum(info["bytes"] for info in infos)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 1 << 20, 9 << 20])
def test_read_limit_is_a_speed(threads: int, size: int) -> None:
    limit = _core.ReadLimit(threads, size)
    assert 0 <= limit.bytes - size < 2048  # whole steps of all readers
    for seconds in (0.0, 0.01):
        speed, reader = limit.measure(seconds)
        assert 0 < speed < math.inf
        turns = ", threads in turns" if threads == 2 and size > 8 << 20 else ""
        assert re.fullmatch(rf"[1248] streams? a thread, (huge|small) pages({turns})?", reader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1), "threads is 0"), ((1, 0), "bytes is 0")],
)
def test_read_limit_refuses(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.ReadLimit(*arguments)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_read_limit_refuses_such_times(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"seconds is {'nan' if seconds != seconds else ''}"):
        _core.ReadLimit(1, 64).measure(seconds)
