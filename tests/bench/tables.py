"""Print compare.py's numbers as docs/benchmarks.md has them: a line for each file and number of threads; or all.

python tests/bench/compare.py model.gguf 1.1b:q4_0 --json speeds.json
python tests/bench/tables.py speeds.json           # the table of docs/benchmarks.md
python tests/bench/tables.py speeds.json --whole   # results.md's: each size of prompt, the least and the most
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import compare
from engines import ENGINES

from llama2cpp.command.turns import phases

SIZES = ("prefill 16", "prefill 64", "prefill 512")


def title(result: dict[str, Any], own: str) -> str:
    """Make "SmolLM2-135M Q4_0, 90 MB" of the name of a file and what a token reads."""
    name = Path(result["file"])
    model, _, form = (name.stem if name.suffix in {".gguf", ".bin"} else name.name).rpartition(".")
    activations = own.partition(" ")[2]
    size = f", {result['bytes_per_token'] / 1e6:,.0f} MB"
    return f"{model} {form.upper()}".strip() + size + (f", {activations} activations" if activations else "")


def ratio(result: dict[str, Any], own: str, engine: str, what: str) -> str:
    """Tell how many times as fast this engine is, in the median of the rounds."""
    ours, theirs = result["speeds"][own].get(what), result["speeds"].get(engine, {}).get(what)
    if ours is None or theirs is None:
        return ""
    return f"{statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)):.2f}"


def median(result: dict[str, Any], own: str, what: str) -> str:
    values = result["speeds"][own].get(what)
    if values is None:
        return ""
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def share(result: dict[str, Any], own: str) -> str:
    """Tell how much of what the machine can read in that time the weights are, in each phase of its speed."""
    turns = compare.turns_of(result, own, "decode")
    return " / ".join(f"{100 * phase['share']:.0f} %" for phase in phases(turns))


def summary(results: list[dict[str, Any]]) -> list[str]:
    """Write the table of docs/benchmarks.md. `results` are compare.py's."""
    peers = compare.peers_of(results)
    labels = [ENGINES[name].label for name in peers]
    head = ["weights a token", "threads", "decode", "of the read limit", *(f"x {label}" for label in labels)]
    head += ["prompt of 512", *(f"x {label}, 16 / 64 / 512" for label in labels)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for result, own in ((each, own) for each in results for own in compare.ours_of(each)):
        cells = [title(result, own), str(result["threads"]), median(result, own, "decode"), share(result, own)]
        cells += [ratio(result, own, name, "decode") for name in peers]
        cells.append(median(result, own, SIZES[-1]))
        for name in peers:
            ratios = [ratio(result, own, name, size) or "—" for size in SIZES]
            cells.append("" if set(ratios) == {"—"} else " / ".join(ratios))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what compare.py has written with --json")
    parser.add_argument("--whole", action="store_true", help="every number")
    options = parser.parse_args()
    results = [result for file in options.files for result in json.loads(file.read_text())["results"]]
    print("\n".join((compare.table_of_speeds if options.whole else summary)(results)))


if __name__ == "__main__":
    main()
