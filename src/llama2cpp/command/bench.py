"""Measure a model on this machine, beside what the machine can read: what ``llama2cpp bench`` prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from .._core import read_bandwidth
from ..common.parts import EMBEDDING
from ..model import Model, load
from ..session import Session
from .display import one_line, say

_ENOUGH = 0.1  # seconds that one measurement should take


class Spread(TypedDict):
    """The median of the rounds, and the least and the most."""

    median: float
    low: float
    high: float


class Decode(TypedDict):
    """Steps of one token each."""

    depth: int  # positions before the first step
    steps: int
    tokens_per_second: Spread
    gigabytes_per_second: Spread  # of weights
    share_of_read_limit: Spread


class Prefill(TypedDict):
    """Many tokens in one call."""

    tokens: int
    tokens_per_second: Spread


class Run(TypedDict):
    """All measurements with one number of threads."""

    threads: int
    read_limit_gigabytes_per_second: Spread
    decode: Decode
    prefill: list[Prefill]


class Report(TypedDict):
    """What ``llama2cpp bench --json`` prints."""

    model: str
    isa: str
    activations: str
    kv: str
    megabytes_per_token: float
    rounds: int
    runs: list[Run]


def spread(values: Sequence[float]) -> Spread:
    """Summarise the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def bytes_per_token(model: Model) -> int:
    """Get how many bytes of weights a step reads: all, but of an embedding table that is nothing else one row only."""
    infos = {name: model.weights.info(name) for name in model.weights}
    total = sum(info["bytes"] for info in infos.values())
    if not model.config.tied:
        total -= infos[model._core.part_names()[EMBEDDING.at()]]["bytes"]
    return int(total)


def prompt_ids(count: int, vocab_size: int) -> list[int]:
    """Make up ids, the same for each engine; which ones does not matter to the speed."""
    return [3 + 7919 * i % (vocab_size - 3) for i in range(count)]


def decode_speed(session: Session, depth: int, steps: int, vocab_size: int) -> float:
    """Measure steps after a prompt of `depth` tokens, in tokens a second."""
    ids = prompt_ids(depth + steps, vocab_size)
    session.rewind(0)
    session.prefill(ids[:depth])
    started = time.perf_counter()
    for token in ids[depth:]:
        session.step(token)
    return steps / (time.perf_counter() - started)


def prefill_speed(session: Session, tokens: int, vocab_size: int) -> float:
    """Measure a prompt of so many tokens from an empty session, in tokens a second; short ones several times."""
    ids = prompt_ids(tokens, vocab_size)

    def once() -> None:
        session.rewind(0)
        session.prefill(ids)

    return tokens / seconds_of(once)


def seconds_of(call: Callable[[], None]) -> float:
    """How long a call takes, of as many as fill a tenth of a second."""
    calls = 0
    started = time.perf_counter()
    while True:
        call()
        calls += 1
        took = time.perf_counter() - started
        if took > _ENOUGH:
            return took / calls


def _run(model: Model, prefills: Sequence[int], depth: int, steps: int, rounds: int) -> Run:
    vocab_size = model.config.vocab_size
    session = model.session(context=max(depth + steps, 3, *prefills))  # 3 for what packs the weights
    session.prefill(prompt_ids(2, vocab_size))  # packs the weights
    session.step(3)
    read: list[float] = []
    decode: list[float] = []
    prefill: dict[int, list[float]] = {tokens: [] for tokens in prefills}
    size = bytes_per_token(model)
    for _ in range(rounds):
        read.append(read_bandwidth(model.threads, size) / 1e9)
        decode.append(decode_speed(session, depth, steps, vocab_size))
        for tokens, speeds in prefill.items():
            speeds.append(prefill_speed(session, tokens, vocab_size))
    gigabytes = [speed * size / 1e9 for speed in decode]
    return {
        "threads": model.threads,
        "read_limit_gigabytes_per_second": spread(read),
        "decode": {
            "depth": depth,
            "steps": steps,
            "tokens_per_second": spread(decode),
            "gigabytes_per_second": spread(gigabytes),
            "share_of_read_limit": spread([got / limit for got, limit in zip(gigabytes, read, strict=True)]),
        },
        "prefill": [{"tokens": tokens, "tokens_per_second": spread(speeds)} for tokens, speeds in prefill.items()],
    }


def measure(
    source: str | Path,
    *,
    threads: Sequence[int],
    prefills: Sequence[int],
    depth: int = 16,
    steps: int = 64,
    rounds: int = 5,
    activation_dtype: str = "auto",
    kv_dtype: str = "auto",
) -> Report:
    """Measure decoding and prompts of several sizes with each number of threads, all in turn, round after round."""
    for name, numbers in (("threads", threads), ("prefill", prefills)):
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{name} is {list(numbers)}, expected numbers of 1 and more")
    report: Report | None = None
    for count in threads:
        with load(source, threads=count, activation_dtype=activation_dtype, kv_dtype=kv_dtype) as model:
            longest = max(depth + steps, *prefills)
            if longest > model.context:
                raise ValueError(f"{longest} positions were asked for, but the model's context is {model.context}")
            if report is None:
                report = {
                    "model": str(source),
                    "isa": model.isa,
                    "activations": model.activation_dtype,
                    "kv": model.kv_dtype,
                    "megabytes_per_token": bytes_per_token(model) / 1e6,
                    "rounds": rounds,
                    "runs": [],
                }
            report["runs"].append(_run(model, prefills, depth, steps, rounds))
    assert report is not None
    return report


def _cell(spread: Spread, digits: int = 0) -> str:
    return f"{spread['median']:,.{digits}f} ({spread['low']:,.{digits}f} - {spread['high']:,.{digits}f})"


def print_table(report: Report) -> None:
    """Print the report for people."""
    head = ("threads", "what", "tokens a second", "GB/s of weights", "reading, GB/s", "share")
    rows = [head]
    for run in report["runs"]:
        decode, limit = run["decode"], run["read_limit_gigabytes_per_second"]
        share = f"{100 * decode['share_of_read_limit']['median']:.0f} %"
        speeds = [_cell(decode["tokens_per_second"], 1), _cell(decode["gigabytes_per_second"], 1), _cell(limit, 1)]
        rows.append((str(run["threads"]), f"decode after {decode['depth']}", speeds[0], speeds[1], speeds[2], share))
        for prefill in run["prefill"]:
            speed = _cell(prefill["tokens_per_second"], 1)
            rows.append((str(run["threads"]), f"prefill {prefill['tokens']}", speed, "", "", ""))
    say(
        f"{one_line(report['model'])}: {report['megabytes_per_token']:,.1f} MB of weights a token, "
        f"{report['isa']} kernels, {report['activations']} activations, {report['kv']} keys and "
        f"values; median (least - most) of {report['rounds']} rounds"
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for threads, what, *cells in rows:
        line = [threads.rjust(widths[0]), what.ljust(widths[1])]
        line += [cell.rjust(width) for cell, width in zip(cells, widths[2:], strict=True)]
        say("  ".join(line).rstrip())
