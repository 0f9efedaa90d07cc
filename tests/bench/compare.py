"""Print how fast this engine is beside others, on the same files, with the same threads, in turns.

    pip install ".[bench]"
    python tests/bench/compare.py model.gguf 1.1b:q4_0 1.1b:q8_0 1.1b:gptq4 7b:q4_0
    python tests/bench/compare.py 15m:f32 --llama2c path/to/llama2.c/run
    python tests/bench/compare.py 15m:int8 --llama2c path/to/llama2.c/runq
    python tests/bench/compare.py model.bf16.gguf --activation-dtype auto bf16 --baseline old/llama2cpp-0.2.0-*.whl
    python tests/bench/compare.py model.gguf --depth 16 4096 --rows 2 4 8 16 --ik path/to/ik_llama.cpp/llama-bench

A case is a file or a shape, which is made with random weights in a cache folder (see shapes.py). Every engine sits in
a process of its own and waits; in each round they are measured one after another. Before and after this engine decodes,
so many threads read as much memory as a token takes weights, in several ways: the fastest is the limit of decoding. A
number is the median of the rounds with the least and the most; a ratio is the median of the rounds' ratios. Engines
that are not installed are named, and so are those that cannot open a file.
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
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import shapes
from engines import ENGINES

import llama2cpp
from llama2cpp import _core
from llama2cpp.command import bench
from llama2cpp.command.turns import Turn, over_the_limit, phases

PEERS = ("llama_cpp", "transformers", "openvino_genai", "llama2c", "ik_llama", "baseline")
PASSES = 16  # of several rows each
MOST_FOR_TRANSFORMERS = 4e9  # parameters: twice as many bytes


class Process:
    """An engine in a process of its own."""

    def __init__(
        self, name: str, path: Path, threads: int, context: int, activations: str = "auto", python: Path | None = None
    ) -> None:
        engines = Path(__file__).with_name("engines.py")
        environment = dict(os.environ)
        if python is not None:
            environment.pop("PYTHONPATH", None)  # it would bring this tree's package
        self._process = subprocess.Popen(
            [python or sys.executable, engines, name, path.absolute(), str(threads), str(context), activations],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
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
        with self._process:  # its end closes what was written to it, and waits
            pass


def usable_peers(path: Path, options: argparse.Namespace, parameters: float) -> tuple[list[str], str]:
    """Choose those that can run the file, and say why the others do not."""
    usable, missing = [], []
    for name in options.peers:
        if name == "llama2c":
            if path.suffix == ".bin" and options.llama2c:
                usable.append(name)
        elif name == "ik_llama":
            if path.suffix == ".gguf" and options.ik:
                usable.append(name)
        elif name == "baseline":
            if options.baseline:
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


def ours(activations: str) -> str:
    """Name this engine with such activations among all that are measured."""
    return "llama2cpp" if activations == "auto" else f"llama2cpp {activations}"


def ours_of(result: dict[str, Any]) -> list[str]:
    return [name for name in result["speeds"] if name.split()[0] == "llama2cpp"]


def requests_for(options: argparse.Namespace, context: int) -> list[tuple[str, tuple[object, ...]]]:
    """What is measured of a model with so many positions, and the words in which engines are asked for it."""
    depths = [depth for depth in options.depth if depth < context]
    requests: list[tuple[str, tuple[object, ...]]] = []
    for depth in depths:
        what = "decode" if depth == depths[0] else f"decode after {depth:,}"
        requests.append((what, ("decode", depth, min(options.steps, context - depth))))
    for rows in options.rows:
        passes = min(PASSES, (context - depths[0]) // rows)
        if passes > 0:
            requests.append((f"{rows} rows", ("pass", depths[0], rows, passes)))
    return requests + [(f"prefill {n}", ("prefill", n)) for n in options.prefill if n <= context]


def take_rounds(
    processes: dict[str, Any],
    requests: Sequence[tuple[str, tuple[object, ...]]],
    read: Callable[[], float],
    rounds: int,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, list[float]]]]:
    """Ask each engine in turn, another first in each round. Gives speeds, and limits of what decodes: [name][what]."""
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in processes}
    reads: dict[str, dict[str, list[float]]] = {name: {} for name in processes if name.split()[0] == "llama2cpp"}
    for number in range(rounds + 1):  # the first is for warming up
        order = list(processes)
        shift = number % len(order)
        for what, request in requests:
            for name in order[shift:] + order[:shift]:
                limited = name in reads and request[0] == "decode"
                before = read() if limited else 0.0
                speed = processes[name].ask(*request)
                if number == 0:
                    continue
                if limited:
                    reads[name].setdefault(what, []).append(max(before, read()))
                if speed is not None:
                    speeds[name].setdefault(what, []).append(speed)
    return speeds, reads


def measure(path: Path, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one file with one number of threads."""
    with llama2cpp.load(path) as model:
        bytes_per_token = bench.bytes_per_token(model)
        parameters = float(sum(model.weights.info(name)["bytes"] for name in model.weights)) * 2
        most = max(options.depth) + max(options.steps, *(PASSES * rows for rows in options.rows), 0)
        longest = min(model.context, max(most, *options.prefill))
    peers, missing = usable_peers(path, options, parameters)
    processes: dict[str, Process] = {}
    for name, engine, activations in [
        *((ours(word), "llama2cpp", word) for word in options.activation_dtype),
        *((peer, peer, "auto") for peer in peers),
    ]:
        python = options.baseline_python if name == "baseline" else None
        try:
            processes[name] = Process(engine, path, threads, longest, activations, python)
        except RuntimeError as error:
            missing += ("; " if missing else "") + f"{label(name)}: {error}"
    memory = _core.ReadLimit(threads, bytes_per_token)
    speeds, reads = take_rounds(processes, requests_for(options, longest), lambda: memory.measure()[0], options.rounds)
    opened = {name: process.opened | {"memory": process.ask("memory")} for name, process in processes.items()}
    for process in processes.values():
        process.close()
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size if path.is_file() else None,
        "bytes_per_token": bytes_per_token,
        "threads": threads,
        "read": reads,
        "read_bytes": memory.bytes,
        "speeds": speeds,
        "opened": opened,
        "missing": missing,
    }


def label(name: str) -> str:
    """How an engine is named in tables."""
    engine, _, activations = name.partition(" ")
    return ENGINES[engine].label + (f", {activations} activations" if activations else "")


def turns_of(result: dict[str, Any], name: str, what: str) -> list[Turn]:
    """What each round's decoding used of its limit."""
    size = result["bytes_per_token"]
    pairs = zip(result["speeds"][name][what], result["read"][name][what], strict=True)
    return [Turn(speed * size, read) for speed, read in pairs]


def cell(values: Sequence[float]) -> str:
    """Median (least - most)."""

    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"

    return f"{short(statistics.median(values))} ({short(min(values))} - {short(max(values))})"


def share_cell(turns: Sequence[Turn]) -> str:
    """The median share of the limit; where the limit changed, that of each phase."""
    limits = cell([turn.limit / 1e9 for turn in turns])
    parts = [f"{100 * phase['share']:.0f} %" for phase in phases(turns)]
    over = f", {over_the_limit(turns)} over it" if over_the_limit(turns) else ""
    return f"{' / '.join(parts)} of {limits} GB/s{over}"


def rows(result: dict[str, Any], engines: Sequence[str]) -> list[list[str]]:
    table = []
    megabytes = result["bytes_per_token"] / 1e6
    for name in ours_of(result):
        activations = name.partition(" ")[2]
        title = f"{result['file']}, {megabytes:,.0f} MB" + (f", {activations} activations" if activations else "")
        for what, mine in result["speeds"][name].items():
            row = [title, str(result["threads"]), what, cell(mine)]
            if what.startswith("decode"):
                row.append(share_cell(turns_of(result, name, what)))
            elif what.endswith(" rows") and "decode" in result["speeds"][name]:
                steps = zip(result["speeds"][name]["decode"], mine, strict=True)
                count = int(what.split()[0])
                row.append(f"{statistics.median(count * step / speed for step, speed in steps):.2f} steps")
            else:
                row.append("")
            for engine in engines:
                theirs = result["speeds"].get(engine, {}).get(what)
                if theirs is None:
                    row += ["", ""]
                else:
                    ratio = statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
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
            if name in ("llama2c", "ik_llama"):  # which are started anew each time
                continue
            memory = "" if opened["memory"] is None else f"{opened['memory'] / 1e6:,.0f}"
            cells = [result["file"], str(result["threads"]), label(name)]
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


def environment_of(wheel: Path, folder: Path) -> Path:
    """Install another build of this package in an environment of its own, and give its Python."""
    venv.create(folder, clear=True, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    told = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise RuntimeError(f"{wheel} cannot be installed: {told.stderr.strip()}")
    return python


def main() -> None:
    default_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llama2cpp-bench"
    default_threads = sorted({1, llama2cpp.build_info()["threads"]})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="files, or shapes such as 7b:q4_0")
    parser.add_argument("--threads", type=int, nargs="+", default=default_threads)
    parser.add_argument("--prefill", type=int, nargs="+", default=[16, 64, 512], help="sizes of prompts, in tokens")
    parser.add_argument("--depth", type=int, nargs="+", default=[16], help="positions before the steps")
    parser.add_argument("--rows", type=int, nargs="+", default=[], help="tokens in one pass, after the first depth")
    parser.add_argument("--steps", type=int, default=64, help="tokens that are decoded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument(
        "--activation-dtype", nargs="+", default=["auto"], metavar="DTYPE", help="this engine's; each is measured"
    )
    parser.add_argument("--baseline", type=Path, metavar="WHEEL", help="another build of this package")
    parser.add_argument("--ik", metavar="LLAMA_BENCH", help="ik_llama.cpp's program")
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

    if options.ik:
        os.environ["IK_LLAMA_BENCH"] = options.ik

    results = []
    with tempfile.TemporaryDirectory() as folder:
        options.baseline_python = environment_of(options.baseline, Path(folder)) if options.baseline else None
        for case in options.cases:
            path = Path(case) if Path(case).exists() else shapes.make(case, options.cache)
            for threads in options.threads:
                results.append(measure(path, threads, options))
                lines = [" | ".join(row) for row in rows(results[-1], options.peers)]
                print("\n".join(lines), file=sys.stderr, flush=True)
    report = {"machine": machine(), "command": sys.argv[1:], "results": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    print(markdown(report))


if __name__ == "__main__":
    main()
