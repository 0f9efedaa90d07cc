"""``llama2cpp bench``: what it counts, and the limits that it compares with. No test asserts a speed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import llama2cpp
from llama2cpp.command.bench import Report, limit_lines, measure, prefill_flops, print_table, spread
from llama2cpp.command.cli import app
from llama2cpp.command.gpu_limits import limits_of
from llama2cpp.command.speeds import decode_speed, go_to, pass_speed, prefill_speed, prompt_ids
from llama2cpp.command.turns import Turn, over_the_limit, phases, take_turns


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_operations_of_a_prompt(tokens: int) -> None:
    model = llama2cpp.load("storyteller")
    c = model.config
    width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    products = 0
    for position in range(tokens):
        layer = c.dim * (width + 2 * kv_width) + width * c.dim + 3 * c.dim * c.hidden_dim
        scores_and_values = 2 * c.n_heads * c.head_dim * (position + 1)
        products += c.n_layers * (layer + scores_and_values)
    products += c.dim * c.vocab_size  # of the last token only
    assert prefill_flops(model, tokens) == 2 * products


def test_limits_that_were_told() -> None:
    report = measure("storyteller", threads=[1], prefills=[4], steps=2, rounds=1, gigabytes=50.0, teraflops=2.0)
    (run,) = report["runs"]
    assert (report["backend"], report["device"]) == ("cpu", "")
    assert run["read_limit_gigabytes_per_second"] == spread([50.0])
    assert (run["reader"], run["read_megabytes"]) == ("", None)
    (phase,) = run["decode"]["phases"]
    assert (phase["turns"], phase["read_gigabytes_per_second"]) == (2, 50.0)  # a turn for each step
    (prefill,) = run["prefill"]
    assert run["flops_limit_teraflops"] == 2.0
    assert prefill["share_of_flops_limit"] == spread([prefill["teraflops"]["median"] / 2])


def test_the_command_takes_them() -> None:
    options = ["--rounds", "1", "--steps", "2", "--prefill", "4", "--threads", "1", "--bandwidth", "50", "--json"]
    said = CliRunner().invoke(app, ["bench", *options, "--backend", "cpu"])
    report = json.loads(said.stdout)
    assert report["runs"][0]["read_limit_gigabytes_per_second"]["median"] == 50
    assert report["runs"][0]["prefill"][0]["share_of_flops_limit"] is None


def test_names_of_gpus() -> None:
    assert limits_of("Apple M2") == (100, 3.6)
    assert limits_of("Apple M1 Max") == (400, 10.6)
    for unknown in ("", "M2", "Apple M99", "Apple M2 Mega", "Apple Paravirtual device", "AMD Radeon Pro 5500M"):
        assert limits_of(unknown) == (None, None)


def test_a_turn_has_the_faster_of_the_readings_around_it() -> None:
    readings = iter([10.0, 40.0, 20.0, 20.0])
    asked = []

    def decode(turn: int) -> float:
        asked.append(turn)
        return 19.0

    turns = take_turns(lambda: next(readings), decode, 3)
    assert asked == [0, 1, 2]
    assert [turn.limit for turn in turns] == [40, 40, 20]
    assert [turn.share for turn in turns] == [19 / 40, 19 / 40, 19 / 20]
    assert over_the_limit(turns) == 0
    assert over_the_limit([*turns, Turn(21.0, 20.0), Turn(20.0, 20.0)]) == 1


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [
        ([30, 31, 50, 29, 48, 52], [(3, 30), (3, 50)]),
        ([30, 50, 50], [(3, 50)]),  # too few
        ([40, 42, 45, 49], [(4, 43.5)]),  # too near
        ([50, 50, 50, 50], [(4, 50)]),
        ([20, 20, 20, 80], [(3, 20), (1, 80)]),
    ],
)
def test_phases(gigabytes: list[float], expected: list[tuple[int, float]]) -> None:
    """The share of each is the median of its turns' shares: half in a slow one, a quarter in a fast one."""
    border = 39
    turns = [Turn(limit * 1e9 * (0.5 if limit < border else 0.25), limit * 1e9) for limit in gigabytes]
    found = phases(turns)
    assert [(phase["turns"], phase["read_gigabytes_per_second"]) for phase in found] == expected
    if len(found) == 2:
        assert [phase["share"] for phase in found] == [0.5, 0.25]


def test_what_is_said_of_limits() -> None:
    """Nothing here is measured: neither a share above 1 nor a change of phase is passed over."""
    report = measure("storyteller", threads=[1], prefills=[4], steps=4, rounds=1, gigabytes=1e-9)
    (run,) = report["runs"]
    assert run["decode"]["turns_over_limit"] == 4
    (line,) = limit_lines(run)
    assert line.startswith("1 thread: decode was faster than reading in 4 turns: there the limit is too low")
    slow, fast = [Turn(9.0, 10.0)] * 3, [Turn(10e9, 20e9)] * 2
    run["decode"]["phases"] = phases([Turn(used * 1e9, limit * 1e9) for used, limit in slow] + fast)
    run["decode"]["turns_over_limit"] = 0
    run["reader"], run["read_megabytes"], run["threads"] = "2 streams a thread, huge pages", 97.4, 2
    assert limit_lines(run) == [
        "2 threads: reading 97 MB again and again, best with 2 streams a thread, huge pages",
        "2 threads: decode: 90 % of 10.0 GB/s in 3 turns, 50 % of 20.0 GB/s in 2 turns",
    ]


def test_where_a_session_is_after_each_loop() -> None:
    model = llama2cpp.load("storyteller")
    session, size = model.session(), model.config.vocab_size
    decode_speed(session, 5, 3, size)
    assert session.tokens == prompt_ids(8, size)
    go_to(session, 6, size)
    assert session.tokens == prompt_ids(6, size)
    session.rewind(2)
    session.prefill([1, 2])
    pass_speed(session, 4, 3, 2, size)
    assert session.tokens == prompt_ids(10, size)
    prefill_speed(session, 4, size)
    assert session.tokens == prompt_ids(4, size)


@pytest.mark.parametrize("known", [True, False])
def test_table_of_a_gpu(known: bool, capsys: pytest.CaptureFixture[str]) -> None:
    one = spread([1.0])
    report: Report = {
        "model": "7b.gguf",
        "backend": "metal",
        "device": "Apple M2",
        "isa": "apple8",
        "activations": "f32",
        "kv": "f16",
        "megabytes_per_token": 13000.0,
        "rounds": 1,
        "runs": [
            {
                "threads": 1,
                "read_limit_gigabytes_per_second": spread([100.0]) if known else None,
                "flops_limit_teraflops": 3.6 if known else None,
                "reader": "",
                "read_megabytes": None,
                "decode": {
                    "depth": 16,
                    "steps": 2,
                    "tokens_per_second": one,
                    "gigabytes_per_second": spread([13.0]),
                    "share_of_read_limit": spread([0.13]) if known else None,
                    "phases": [],
                    "turns_over_limit": 0,
                },
                "prefill": [
                    {
                        "tokens": 16,
                        "tokens_per_second": one,
                        "teraflops": spread([0.9]),
                        "share_of_flops_limit": spread([0.25]) if known else None,
                    }
                ],
            }
        ],
    }
    print_table(report)
    title, _, decode, prefill = capsys.readouterr().out.splitlines()
    assert ", on Apple M2," in title
    assert ("13 %" in decode, "100.0" in decode) == (known, known)
    assert "0.90 (0.90 - 0.90)" in prefill
    assert ("25 %" in prefill, "3.6" in prefill) == (known, known)
