"""Measure a model on this machine, beside what the machine can do: what ``llama2cpp bench`` prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from .._core import build_info, read_bandwidth
from ..common.parts import EMBEDDING, OUTPUT
from ..loading import load
from ..model import Model
from ..session import Session
from .display import one_line, say
from .gpu_limits import limits_of

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
    share_of_read_limit: Spread | None  # None: there is no limit to compare with


class Prefill(TypedDict):
    """Many tokens in one call."""

    tokens: int
    tokens_per_second: Spread
    teraflops: Spread  # of products: what adds up a model's matrices and its attention
    share_of_flops_limit: Spread | None


class Run(TypedDict):
    """All measurements with one number of threads."""

    threads: int
    read_limit_gigabytes_per_second: (
        Spread | None
    )  # measured on the CPU; else what was told, or what the GPU's name says
    flops_limit_teraflops: float | None
    decode: Decode
    prefill: list[Prefill]


class Report(TypedDict):
    """What ``llama2cpp bench --json`` prints."""

    model: str
    backend: str
    device: str  # the GPU's name; "" on the CPU
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


def prefill_flops(model: Model, tokens: int) -> float:
    """Count the multiplications and additions of a prompt whose last token's logits are wanted."""
    config = model.config
    names = model._core.part_names()
    shapes = {name: model.weights.info(name)["shape"] for name in model.weights}
    output = names[EMBEDDING.at() if config.tied else OUTPUT.at()]
    apart = {output, names[EMBEDDING.at()]}
    per_token = sum(shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2 and name not in apart)
    seen = min((tokens + 1) / 2, config.sliding_window or tokens)  # positions, on average: of a window at the most
    attention = 2 * config.n_layers * config.n_heads * config.head_dim * seen
    return float(2 * (tokens * (per_token + attention) + shapes[output][0] * shapes[output][1]))


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


def _shares(values: Sequence[float], limits: Sequence[float]) -> Spread | None:
    return spread([value / limit for value, limit in zip(values, limits, strict=True)]) if limits else None


class Limits(TypedDict):
    """What to compare with, where it is not to be measured or looked up."""

    gigabytes: float | None  # a second, of memory
    teraflops: float | None


def _limits(model: Model, told: Limits) -> Limits:
    if model.backend == "cpu":
        return told
    known = limits_of(device_name(model))
    return {
        "gigabytes": known.gigabytes if told["gigabytes"] is None else told["gigabytes"],
        "teraflops": known.teraflops if told["teraflops"] is None else told["teraflops"],
    }


def device_name(model: Model) -> str:
    """Get the name of the GPU that the model runs on; "" for the CPU."""
    return "" if model.backend == "cpu" else str(build_info().get("device", ""))


def _run(model: Model, prefills: Sequence[int], depth: int, steps: int, rounds: int, limits: Limits) -> Run:
    vocab_size = model.config.vocab_size
    session = model.session(context=max(depth + steps, 3, *prefills))  # 3 for what packs the weights
    session.prefill(prompt_ids(2, vocab_size))  # packs the weights
    session.step(3)
    read: list[float] = []
    decode: list[float] = []
    prefill: dict[int, list[float]] = {tokens: [] for tokens in prefills}
    size = bytes_per_token(model)
    for _ in range(rounds):
        if limits["gigabytes"] is not None:
            read.append(limits["gigabytes"])
        elif model.backend == "cpu":
            read.append(read_bandwidth(model.threads, size) / 1e9)
        decode.append(decode_speed(session, depth, steps, vocab_size))
        for tokens, speeds in prefill.items():
            speeds.append(prefill_speed(session, tokens, vocab_size))
    gigabytes = [speed * size / 1e9 for speed in decode]
    most = limits["teraflops"]
    prompts: list[Prefill] = []
    for tokens, speeds in prefill.items():
        teraflops = [speed / tokens * prefill_flops(model, tokens) / 1e12 for speed in speeds]
        prompts.append(
            {
                "tokens": tokens,
                "tokens_per_second": spread(speeds),
                "teraflops": spread(teraflops),
                "share_of_flops_limit": _shares(teraflops, [] if most is None else [most] * rounds),
            }
        )
    return {
        "threads": model.threads,
        "read_limit_gigabytes_per_second": spread(read) if read else None,
        "flops_limit_teraflops": most,
        "decode": {
            "depth": depth,
            "steps": steps,
            "tokens_per_second": spread(decode),
            "gigabytes_per_second": spread(gigabytes),
            "share_of_read_limit": _shares(gigabytes, read),
        },
        "prefill": prompts,
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
    backend: str = "auto",
    gigabytes: float | None = None,
    teraflops: float | None = None,
) -> Report:
    """Measure decoding and prompts of several sizes with each number of threads, all in turn, round after round.

    `gigabytes` and `teraflops` a second are the limits to compare with. Without them the CPU's speed of reading is
    measured, and a GPU's limits are those of its name.
    """
    limits: Limits = {"gigabytes": gigabytes, "teraflops": teraflops}
    for name, numbers in (("threads", threads), ("prefill", prefills)):
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{name} is {list(numbers)}, expected numbers of 1 and more")
    report: Report | None = None
    counts: Sequence[int | None] = [None] if backend == "metal" else threads  # which are the CPU's
    for count in counts:
        with load(
            source, backend=backend, threads=count, activation_dtype=activation_dtype, kv_dtype=kv_dtype
        ) as model:
            longest = max(depth + steps, *prefills)
            if longest > model.context:
                raise ValueError(f"{longest} positions were asked for, but the model's context is {model.context}")
            if report is None:
                report = {
                    "model": str(source),
                    "backend": model.backend,
                    "device": device_name(model),
                    "isa": model.isa,
                    "activations": model.activation_dtype,
                    "kv": model.kv_dtype,
                    "megabytes_per_token": bytes_per_token(model) / 1e6,
                    "rounds": rounds,
                    "runs": [],
                }
            report["runs"].append(_run(model, prefills, depth, steps, rounds, _limits(model, limits)))
    assert report is not None
    return report


def _cell(spread: Spread, digits: int = 0) -> str:
    return f"{spread['median']:,.{digits}f} ({spread['low']:,.{digits}f} - {spread['high']:,.{digits}f})"


def _percent(share: Spread | None) -> str:
    return "" if share is None else f"{100 * share['median']:.0f} %"


def print_table(report: Report) -> None:
    """Print the report for people."""
    on_cpu = report["backend"] == "cpu"
    reading = "reading, GB/s" if on_cpu else "limit, GB/s"
    head = ["threads", "what", "tokens a second", "GB/s of weights", reading, "share"]
    flops = any(run["flops_limit_teraflops"] is not None for run in report["runs"]) or not on_cpu
    if flops:
        head += ["TFLOP/s", "limit", "share"]
    rows = [head]
    for run in report["runs"]:
        decode, limit, most = run["decode"], run["read_limit_gigabytes_per_second"], run["flops_limit_teraflops"]
        speeds = [_cell(decode["tokens_per_second"], 1), _cell(decode["gigabytes_per_second"], 1)]
        reading = "" if limit is None else _cell(limit, 1)
        share = _percent(decode["share_of_read_limit"])
        rows.append([str(run["threads"]), f"decode after {decode['depth']}", *speeds, reading, share])
        for prefill in run["prefill"]:
            row = [
                str(run["threads"]),
                f"prefill {prefill['tokens']}",
                _cell(prefill["tokens_per_second"], 1),
                "",
                "",
                "",
            ]
            if flops:
                row += [_cell(prefill["teraflops"], 2), "" if most is None else f"{most:g}"]
                row.append(_percent(prefill["share_of_flops_limit"]))
            rows.append(row)
    where = f"{report['isa']} kernels" if on_cpu else f"on {report['device']}"
    say(
        f"{one_line(report['model'])}: {report['megabytes_per_token']:,.1f} MB of weights a token, "
        f"{where}, {report['activations']} activations, {report['kv']} keys and "
        f"values; median (least - most) of {report['rounds']} rounds"
    )
    for row in rows:
        row += [""] * (len(head) - len(row))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for threads, what, *cells in rows:
        line = [threads.rjust(widths[0]), what.ljust(widths[1])]
        line += [cell.rjust(width) for cell, width in zip(cells, widths[2:], strict=True)]
        say("  ".join(line).rstrip())
