"""What each format of one model costs and gives: size, perplexity, KL divergence from the original, tokens a second.

    python tests/bench/formats.py MODEL --folder FOLDER                  # everything
    python tests/bench/formats.py MODEL --folder FOLDER --only speed     # speeds alone, say on a quiet machine
    python tests/bench/formats.py MODEL --folder FOLDER --only table --json

Files are made in FOLDER, which is for one model, and used again when they are there; so are results, in its
formats.json, as long as model, text and tokens are the same. Beside each of llama.cpp's types is that library's own
quantization of the same model, where llama-cpp-python is installed. Both are run by this engine: the difference is the
quantizer's. Speeds are medians of rounds in which all formats take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import statistics
import sys
from pathlib import Path
from pydoc_data import topics
from typing import Any

import llama2cpp
from llama2cpp.command.speeds import decode_speed, prefill_speed
from llama2cpp.export import compare, convert
from llama2cpp.export.mixtures import MIXTURES

# format -> suffix of its target; without one it is a folder
TARGETS = {
    "f32": ".gguf",
    "f16": ".gguf",
    "bf16": ".gguf",
    "q8_0": ".gguf",
    "q6_k": ".gguf",
    "q5_k_m": ".gguf",
    "q5_1": ".gguf",
    "q5_0": ".gguf",
    "q4_k_m": ".gguf",
    "q4_1": ".gguf",
    "q4_0": ".gguf",
    "q3_k_m": ".gguf",
    "q2_k": ".gguf",
}
PREFILL, DEPTH, STEPS = 128, 16, 24

Results = dict[str, dict[str, Any]]


def evaluation_text(path: Path | None) -> str:
    """A file, or the help texts of Python's own reference: prose that is wherever Python is."""
    return "\n\n".join(topics.topics.values()) if path is None else path.read_text(encoding="utf-8")


def make(model: str, format: str, folder: Path) -> Path:
    path = folder / f"{format}{TARGETS[format]}"
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        convert(model, path, format)
    return path


def make_llama_cpp_s(f32: Path, format: str, folder: Path) -> Path | None:
    """The same type by llama.cpp's quantizer, from our file in float32."""
    if format not in MIXTURES or format in ("f32", "f16", "bf16"):
        return None
    try:
        low = importlib.import_module("llama_cpp").llama_cpp
        import gguf
    except ImportError:
        return None
    path = folder / f"llama.cpp-{format}.gguf"
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        settings = low.llama_model_quantize_default_params()
        settings.ftype = int(gguf.LlamaFileType[MIXTURES[format].file_type])
        unfinished = path.with_suffix(".part")
        if low.llama_model_quantize(os.fsencode(f32), os.fsencode(unfinished), ctypes.byref(settings)) != 0:
            raise RuntimeError(f"llama.cpp could not make {path}")
        unfinished.rename(path)
    return path


def quality(original: llama2cpp.Model, path: Path, ids: list[int]) -> dict[str, float]:
    with llama2cpp.load(path) as model:
        found = compare(original, model, ids, tensors=False)
    return {
        "bytes": sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())),
        "perplexity": found.perplexity_b,
        "mean_kl": found.mean_kl,
        "worst_kl": found.worst_kl,
        "top1_agreement": found.top1_agreement,
    }


def measure_quality(
    model: str, folder: Path, formats: list[str], text: Path | None, tokens: int, done: Results
) -> None:
    f32 = make(model, "f32", folder)
    with llama2cpp.load(f32) as original:
        assert original.tokenizer is not None
        ids = original.tokenizer.encode(evaluation_text(text)[: 16 * tokens])[:tokens]
        for format in formats:
            entry = done.setdefault(format, {})
            theirs = make_llama_cpp_s(f32, format, folder)
            for key, path in (("ours", make(model, format, folder)), ("llama.cpp", theirs)):
                if path is not None and key not in entry:
                    print(f"comparing {path}", file=sys.stderr)
                    entry[key] = quality(original, path, ids)


def measure_speed(model: str, folder: Path, formats: list[str], rounds: int, done: Results) -> None:
    sessions = {}
    for format in formats:
        opened = llama2cpp.load(make(model, format, folder))
        vocab_size = opened.config.vocab_size
        sessions[format] = opened.session(max(PREFILL, DEPTH + STEPS))
        sessions[format].prefill([1, 2])  # packs the weights
    decode: dict[str, list[float]] = {format: [] for format in formats}
    prefill: dict[str, list[float]] = {format: [] for format in formats}
    for _ in range(rounds):
        for format, session in sessions.items():
            decode[format].append(decode_speed(session, DEPTH, STEPS, vocab_size))
            prefill[format].append(prefill_speed(session, PREFILL, vocab_size))
    for format in formats:
        done.setdefault(format, {})["speed"] = {
            "decode": statistics.median(decode[format]),
            "prefill": statistics.median(prefill[format]),
        }


def table(done: Results, formats: list[str]) -> str:
    """Markdown. What has not been measured is a dash."""
    head = ["format", "MB", "perplexity", "mean KL", "worst KL", "same token", "decode tok/s", "prefill tok/s"]
    head += ["llama.cpp's: MB", "perplexity", "mean KL", "worst KL", "same token"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]

    def cells(measured: dict[str, float] | None) -> list[str]:
        if measured is None:
            return ["—"] * 5
        return [
            f"{measured['bytes'] / 1e6:.1f}",
            f"{measured['perplexity']:.3f}",
            f"{measured['mean_kl']:.5f}",
            f"{measured['worst_kl']:.3f}",
            f"{measured['top1_agreement']:.1%}",
        ]

    for format in formats:
        entry = done.get(format, {})
        speed = entry.get("speed")
        speeds = ["—"] * 2 if speed is None else [f"{speed['decode']:.0f}", f"{speed['prefill']:.0f}"]
        rows.append([format, *cells(entry.get("ours")), *speeds, *cells(entry.get("llama.cpp"))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", help="what llama2cpp.load opens, with a tokenizer")
    parser.add_argument("--folder", type=Path, required=True, help="for files and results")
    parser.add_argument("--formats", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--text", type=Path, help="to compare on; without it the help texts of Python's reference")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5, help="of the speeds")
    parser.add_argument("--only", choices=["quality", "speed", "table"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "formats.json"
    about = {"model": options.model, "text": str(options.text or "pydoc_data.topics"), "tokens": options.tokens}
    kept = json.loads(path.read_text()) if path.exists() else {}
    done: Results = kept.get("formats", {}) if {k: kept.get(k) for k in about} == about else {}
    try:
        if options.only in (None, "quality"):
            measure_quality(options.model, options.folder, options.formats, options.text, options.tokens, done)
        if options.only in (None, "speed"):
            measure_speed(options.model, options.folder, options.formats, options.rounds, done)
    finally:
        path.write_text(json.dumps(about | {"formats": done}, indent=1))
    print(json.dumps(about | {"formats": done}, indent=1) if options.json else table(done, options.formats))


if __name__ == "__main__":
    main()
