"""Measure a model on this machine, beside what the machine can do: what ``llama2cpp bench`` prints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from .._core import ReadLimit, build_info
from ..common.parts import EMBEDDING, OUTPUT
from ..loading import load
from ..model import Model
from .display import one_line, say
from .gpu_limits import limits_of
from .speeds import decode_speed, prefill_speed, prompt_ids
from .turns import Phase, Turn, over_the_limit, phases, take_turns

_SECONDS = 0.1  # that a turn of reading should take
_TURNS = 4  # of reading and decoding in a round, among which its steps are divided


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
    phases: list[Phase]  # two where the speed of reading changed
    turns_over_limit: int  # in which decoding was faster than any reader: a fault of the bench


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
    reader: str  # the fastest, in most turns; "" where nothing is measured
    read_megabytes: float | None  # that readers go through, again and again
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
    readers: list[str] = []
    turns: list[Turn] = []
    decode: list[float] = []
    prefill: dict[int, list[float]] = {tokens: [] for tokens in prefills}
    size = bytes_per_token(model)
    told = limits["gigabytes"]
    memory = ReadLimit(model.threads, size) if told is None and model.backend == "cpu" else None
    count = min(_TURNS, steps)

    def read() -> float:
        if memory is None:
            return math.inf if told is None else told * 1e9
        speed, reader = memory.measure(_SECONDS)
        readers.append(reader)
        return speed

    parts = [steps * (turn + 1) // count - steps * turn // count for turn in range(count)]

    def decode_part(turn: int) -> float:
        return size * decode_speed(session, depth + sum(parts[:turn]), parts[turn], vocab_size)

    for _ in range(rounds):
        taken = take_turns(read, decode_part, count)
        turns += taken
        decode.append(statistics.harmonic_mean([turn.used for turn in taken], weights=parts) / size)
        for tokens, speeds in prefill.items():
            speeds.append(prefill_speed(session, tokens, vocab_size))
    gigabytes = [speed * size / 1e9 for speed in decode]
    limited = math.isfinite(turns[0].limit)
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
        "read_limit_gigabytes_per_second": spread([turn.limit / 1e9 for turn in turns]) if limited else None,
        "reader": statistics.mode(readers) if readers else "",
        "read_megabytes": None if memory is None else memory.bytes / 1e6,
        "flops_limit_teraflops": most,
        "decode": {
            "depth": depth,
            "steps": steps,
            "tokens_per_second": spread(decode),
            "gigabytes_per_second": spread(gigabytes),
            "share_of_read_limit": spread([turn.share for turn in turns]) if limited else None,
            "phases": phases(turns) if limited else [],
            "turns_over_limit": over_the_limit(turns),
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


def limit_lines(run: Run) -> list[str]:
    """Say what was read, and what the share was where the speed of reading changed."""
    lines = []
    prefix = f"{run['threads']} threads: " if run["threads"] > 1 else "1 thread: "
    if run["read_megabytes"] is not None:
        lines.append(f"{prefix}reading {run['read_megabytes']:,.0f} MB again and again, best with {run['reader']}")
    if len(run["decode"]["phases"]) > 1:
        parts = [
            f"{_percent_of(phase['share'])} of {phase['read_gigabytes_per_second']:,.1f} GB/s in {phase['turns']} turns"
            for phase in run["decode"]["phases"]
        ]
        lines.append(f"{prefix}decode: {', '.join(parts)}")
    if run["decode"]["turns_over_limit"]:
        lines.append(
            f"{prefix}decode was faster than reading in {run['decode']['turns_over_limit']} turns: "
            "there the limit is too low, which is a fault of this bench or of --bandwidth"
        )
    return lines


def _cell(spread: Spread, digits: int = 0) -> str:
    return f"{spread['median']:,.{digits}f} ({spread['low']:,.{digits}f} - {spread['high']:,.{digits}f})"


def _percent_of(share: float) -> str:
    return f"{100 * share:.0f} %"


def _percent(share: Spread | None) -> str:
    return "" if share is None else _percent_of(share["median"])


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
    for run in report["runs"]:
        for told in limit_lines(run):
            say(told)
