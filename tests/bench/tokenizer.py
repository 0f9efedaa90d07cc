"""Measure the megabytes a second that encoding takes, beside `tokenizers` and tiktoken, on one thread.

    python tests/bench/tokenizer.py smollm2.gguf llama3/tokenizer.model
    python tests/bench/tokenizer.py smollm2.gguf --text some.txt

Without --text it is a megabyte of mixed text: half of it many scripts, emoji and runs of this and that, half of it the
sources of Python's standard library. The cases take turns, round after round; of each the best round counts. All give
the same ids, or the script says so and stops.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import tiktoken
from vocabularies import LISTED, LLAMA3_PATTERN, gguf_vocabulary, mixed_text

Encode = Callable[[str], list[int]]


def default_text() -> str:
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    code = "\n".join(source.read_text(encoding="utf-8", errors="replace") for source in sources)[:500_000]
    text = mixed_text(350_000) + code
    return "".join(character for character in text if ord(character) not in LISTED)


def cases_of(path: Path) -> dict[str, Encode]:
    """Ways to the ids of one vocabulary; the first is ours."""
    if path.suffix == ".gguf":
        vocabulary = gguf_vocabulary(path, "smollm")
        ours, theirs = vocabulary.ours(), vocabulary.reference()
        theirs.encode_special_tokens = True
        return {
            "llama2cpp": lambda text: ours.encode(text, bos=False),
            "tokenizers encode": lambda text: theirs.encode(text, add_special_tokens=False).ids,
            "tokenizers encode_batch_fast": lambda text: (
                theirs.encode_batch_fast([text], add_special_tokens=False)[0].ids
            ),
        }
    from llama2cpp import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, path.read_bytes().splitlines())}
    library = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return {"llama2cpp": lambda text: tokenizer.encode(text, bos=False), "tiktoken": library.encode_ordinary}


def measure(cases: dict[str, Encode], text: str, rounds: int) -> dict[str, float]:
    """The best seconds of each."""
    expected = next(iter(cases.values()))(text)
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, encode in cases.items():
            started = time.perf_counter()
            ids = encode(text)
            best[name] = min(best[name], time.perf_counter() - started)
            if ids != expected:
                raise SystemExit(f"{name} gives other ids")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="SmolLM2's GGUF, Llama 3's tokenizer.model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    text = default_text() if arguments.text is None else arguments.text.read_text(encoding="utf-8")
    size = len(text.encode())
    print(f"{size} bytes of text, one thread, the best of {arguments.rounds} rounds")
    for path in arguments.files:
        best = measure(cases_of(path), text, arguments.rounds)
        ours = next(iter(best.values()))
        print(path.name)
        for name, seconds in best.items():
            print(f"  {name:28} {size / seconds / 1e6:8.1f} MB/s  {seconds / ours:5.1f} x our time")


if __name__ == "__main__":
    main()
