"""Print how fast this engine is beside others, on the same files, with the same threads, in turns.

    pip install ".[bench]"
    python tests/bench/compare.py model.gguf 1.1b:q4_0 1.1b:q8_0 1.1b:gptq4 7b:q4_0
    python tests/bench/compare.py 15m:f32 --llama2c path/to/llama2.c/run
    python tests/bench/compare.py 15m:int8 --llama2c path/to/llama2.c/runq

A case is a file or a shape, which is made with random weights in a cache folder (see shapes.py). Every engine sits in
a process of its own and waits; in each round they are measured one after another, and so is how fast so many threads
read as much memory as a token takes weights (one sequential stream each): that is the limit of decoding. A number is
the median of the rounds with the least and the most; a ratio is the median of the rounds' ratios. Engines that are not
installed are named, and so are those that cannot open a file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shapes
from engines import ENGINES

import llama2cpp
from llama2cpp import _core
from llama2cpp.command import bench

PEERS = ("llama_cpp", "transformers", "openvino_genai", "llama2c")
MOST_FOR_TRANSFORMERS = 4e9  # parameters: twice as many bytes


class Process:
    """An engine in a process of its own."""

    def __init__(self, name: str, path: Path, threads: int, context: int) -> None:
        self.label = ENGINES[name].label
        command = [sys.executable, str(Path(__file__).with_name("engines.py")), name, str(path), str(threads)]
        self._process = subprocess.Popen(
            [*command, str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.opened: dict[str, float] = self._answer()

    def ask(self, *request: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            raise RuntimeError(next(reversed(errors.strip().splitlines()), "it ended without a word"))
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def usable_peers(path: Path, wanted: Sequence[str], llama2c: str | None, parameters: float) -> tuple[list[str], str]:
    """Choose those that can run the file, and say why the others do not."""
    usable, missing = [], []
    for name in wanted:
        if name == "llama2c":
            if path.suffix == ".bin" and llama2c:
                usable.append(name)
        elif name in ("llama_cpp", "openvino_genai") and path.suffix != ".gguf":
            continue
        elif name == "transformers" and parameters > MOST_FOR_TRANSFORMERS:
            missing.append("transformers bf16: the model is too large")
        elif importlib.util.find_spec(name) is None:
            missing.append(f"{ENGINES[name].label}: not installed")
        else:
            usable.append(name)
    return usable, "; ".join(missing)


def measure(path: Path, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one file with one number of threads."""
    with llama2cpp.load(path) as model:
        bytes_per_token = bench.bytes_per_token(model)
        parameters = float(sum(model.weights.info(name)["bytes"] for name in model.weights)) * 2
        longest = min(model.context, max(options.depth + options.steps, *options.prefill))
    peers, missing = usable_peers(path, options.peers, options.llama2c, parameters)
    sizes = [tokens for tokens in options.prefill if tokens <= longest]
    steps = min(options.steps, longest - options.depth)
    processes: dict[str, Process] = {}
    for name in ("llama2cpp", *peers):
        try:
            processes[name] = Process(name, path, threads, longest)
        except RuntimeError as error:
            missing += ("; " if missing else "") + f"{ENGINES[name].label}: {error}"
    reads: list[float] = []
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in processes}
    requests: list[tuple[str, tuple[object, ...]]] = [("decode", ("decode", options.depth, steps))]
    requests += [(f"prefill {tokens}", ("prefill", tokens)) for tokens in sizes]
    for number in range(options.rounds + 1):  # the first is for warming up
        order = list(processes)
        shift = number % len(order)
        read = _core.read_bandwidth(threads, bytes_per_token)
        if number > 0:
            reads.append(read)
        for what, request in requests:
            for name in order[shift:] + order[:shift]:
                speed = processes[name].ask(*request)
                if speed is not None and number > 0:
                    speeds[name].setdefault(what, []).append(speed)
    opened = {name: process.opened | {"memory": process.ask("memory")} for name, process in processes.items()}
    for process in processes.values():
        process.close()
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size if path.is_file() else None,
        "bytes_per_token": bytes_per_token,
        "threads": threads,
        "read": reads,
        "speeds": speeds,
        "opened": opened,
        "missing": missing,
    }


def cell(values: Sequence[float]) -> str:
    """Median (least - most)."""

    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"

    return f"{short(statistics.median(values))} ({short(min(values))} - {short(max(values))})"


def rows(result: dict[str, Any], engines: Sequence[str]) -> list[list[str]]:
    table = []
    limit = result["read"]
    megabytes = result["bytes_per_token"] / 1e6
    for what in result["speeds"]["llama2cpp"]:
        ours = result["speeds"]["llama2cpp"][what]
        row = [f"{result['file']}, {megabytes:,.0f} MB", str(result["threads"]), what, cell(ours)]
        if what == "decode":
            shares = [speed * result["bytes_per_token"] / read for speed, read in zip(ours, limit, strict=True)]
            read = cell([value / 1e9 for value in limit])
            row.append(f"{100 * statistics.median(shares):.0f} % of {read} GB/s")
        else:
            row.append("")
        for name in engines:
            theirs = result["speeds"].get(name, {}).get(what)
            if theirs is None:
                row += ["", ""]
            else:
                ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
                row += [cell(theirs), f"**{ratio:.2f}**"]
        table.append(row)
    return table


def peers_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """Name the engines that have been measured beside this one."""
    return [name for name in PEERS if any(name in result["speeds"] for result in results)]


def table_of_speeds(results: Sequence[dict[str, Any]]) -> list[str]:
    """Write every speed, with the least and the most of the rounds."""
    engines = peers_of(results)
    head = ["file, weights a token", "threads", "tokens a second", "llama2cpp", "share of the read limit"]
    for name in engines:
        head += [ENGINES[name].label, "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        lines += ["| " + " | ".join(row) + " |" for row in rows(result, engines)]
    return lines


def markdown(report: dict[str, Any]) -> str:
    """Two tables: tokens a second, and how files are opened."""
    lines = [
        report["machine"],
        "",
        *table_of_speeds(report["results"]),
        "",
        "| file | threads | engine | seconds until open | until the first token | most memory, MB |",
    ]
    lines.append("|" + "---|" * 6)
    for result in report["results"]:
        for name, opened in result["opened"].items():
            if name == "llama2c":
                continue
            memory = "" if opened["memory"] is None else f"{opened['memory'] / 1e6:,.0f}"
            cells = [result["file"], str(result["threads"]), ENGINES[name].label]
            lines.append("| " + " | ".join([*cells, f"{opened['open']:.2f}", f"{opened['first']:.2f}", memory]) + " |")
    lines += [f"\n{result['file']}: {result['missing']}" for result in report["results"] if result["missing"]]
    return "\n".join(lines)


def machine() -> str:
    """The processor, what it runs, and the versions that were measured."""
    name = platform.processor()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(": ")[2]
                break
    versions = [f"llama2cpp {llama2cpp.__version__} ({llama2cpp.build_info()['isa']})"]
    for package in ("llama-cpp-python", "transformers", "torch", "openvino-genai"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return f"{today}, {name}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}"


def main() -> None:
    default_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llama2cpp-bench"
    default_threads = sorted({1, llama2cpp.build_info()["threads"]})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="files, or shapes such as 7b:q4_0")
    parser.add_argument("--threads", type=int, nargs="+", default=default_threads)
    parser.add_argument("--prefill", type=int, nargs="+", default=[16, 64, 512], help="sizes of prompts, in tokens")
    parser.add_argument("--depth", type=int, default=16, help="positions before the steps")
    parser.add_argument("--steps", type=int, default=64, help="tokens that are decoded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--llama2c", metavar="RUN", help="llama2.c's program for the .bin files among the cases")
    parser.add_argument("--tokenizer", metavar="BIN", help="llama2.c's tokenizer; one is made where there is none")
    parser.add_argument("--cache", type=Path, default=default_cache, help="folder for the files that are made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all numbers go")
    options = parser.parse_args()
    if options.llama2c:
        tokenizer = Path(options.tokenizer) if options.tokenizer else options.cache / "tokenizer.bin"
        if not options.tokenizer:
            options.cache.mkdir(parents=True, exist_ok=True)
            shapes.write_llama2c_tokenizer(tokenizer, 32000)
        os.environ |= {"LLAMA2C": options.llama2c, "LLAMA2C_TOKENIZER": str(tokenizer)}

    results = []
    for case in options.cases:
        path = Path(case) if Path(case).exists() else shapes.make(case, options.cache)
        for threads in options.threads:
            results.append(measure(path, threads, options))
            print("\n".join(" | ".join(row) for row in rows(results[-1], options.peers)), file=sys.stderr, flush=True)
    report = {"machine": machine(), "command": sys.argv[1:], "results": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    print(markdown(report))


if __name__ == "__main__":
    main()
