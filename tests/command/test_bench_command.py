"""``llama2cpp bench``: what it counts, and the limits that it compares with. No test asserts a speed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import llama2cpp
from llama2cpp.command.bench import Report, measure, prefill_flops, print_table, spread
from llama2cpp.command.cli import app
from llama2cpp.command.gpu_limits import limits_of


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
    assert run["decode"]["share_of_read_limit"] == spread([run["decode"]["gigabytes_per_second"]["median"] / 50])
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
                "decode": {
                    "depth": 16,
                    "steps": 2,
                    "tokens_per_second": one,
                    "gigabytes_per_second": spread([13.0]),
                    "share_of_read_limit": spread([0.13]) if known else None,
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
