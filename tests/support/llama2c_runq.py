"""Int8 models, and what llama2.c's runq says with them: tests/data/llama2c_runq.json.

As a program (``python tests/support/llama2c_runq.py path/to/llama2.c/runq.c STORIES``, where STORIES is the folder with
stories260K.bin and tok512.bin) it makes that file anew. It compiles runq with ``gcc -O3`` and nothing else, as
llama2.c's ``make runq`` does; other flags (-Ofast, -march=native) give other roundings, and so other texts. Made with
gcc 12.2 and glibc 2.36 on x86-64.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
from numpy.typing import NDArray
from tokenizer_files import tokenizer_bin

import llama2cpp

GOLDENS = Path(__file__).parents[1] / "data" / "llama2c_runq.json"
STEPS = 256


@dataclass(frozen=True)
class Source:
    """Sizes None: stories260K's weights; else noise."""

    sizes: checkpoints.Sizes | None
    group: int


def sizes(dim: int, hidden_dim: int, n_layers: int, n_heads: int, n_kv_heads: int, tied: bool) -> checkpoints.Sizes:
    return checkpoints.Sizes(dim, hidden_dim, n_layers, n_heads, n_kv_heads, 512, STEPS, tied)


SOURCES = {
    "stories260K": Source(None, 4),
    "grouped heads": Source(sizes(64, 160, 3, 8, 2, False), 32),
    "wide heads": Source(sizes(96, 256, 2, 2, 2, True), 16),
    "odd sizes": Source(sizes(60, 100, 2, 6, 1, False), 20),
    "one head": Source(sizes(128, 192, 1, 1, 1, True), 64),
    "groups of one": Source(sizes(24, 36, 2, 3, 3, False), 1),
}
OPTIONS = ["-t 0", "-t 1 -p 0.9 -s 1", "-t 1 -p 0.9 -s 8", "-t 0.7 -p 1 -s 11"]


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Numbers in [-1, 1) from integers alone (the finalizer of splitmix64): the same in every version of NumPy."""
    x = (np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(31))) >> np.uint64(40)
    values = x.astype(np.float32) / np.float32(2**23) - np.float32(1)
    return np.asarray(values.reshape(shape), dtype=np.float32)


def noisy_arrays(sizes: checkpoints.Sizes) -> checkpoints.Arrays:
    """Large enough that attention chooses and texts vary."""
    arrays: checkpoints.Arrays = {}
    for seed, (name, shape) in enumerate(checkpoints.shapes(sizes).items()):
        values = noise(shape, seed)
        if len(shape) == 1:
            arrays[name] = values * np.float32(0.5) + np.float32(1)
        else:
            table = name == "tok_embeddings.weight"
            arrays[name] = values * np.float32(0.5 if table else 3 / np.sqrt(shape[-1]))
    return arrays


def write(folder: Path, name: str, stories_dir: Path) -> tuple[Path, Path]:
    """A model's checkpoint and its tokenizer."""
    source = SOURCES[name]
    path = folder / "model.bin"
    if source.sizes is None:
        v0 = llama2cpp.load(stories_dir / "stories260K.bin")
        c = v0.config
        same = checkpoints.Sizes(c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len)
        path.write_bytes(checkpoints.v2_bytes(same, dict(v0.weights), source.group))
        return path, stories_dir / "tok512.bin"
    path.write_bytes(checkpoints.v2_bytes(source.sizes, noisy_arrays(source.sizes), source.group))
    words = [bytes([97 + i // 26, 97 + i % 26]) for i in range(source.sizes.vocab_size)]
    tokenizer = folder / "tokenizer.bin"
    special = [b"<unk>", b"<s>", b"</s>"]
    tokenizer.write_bytes(tokenizer_bin([(piece, 0.0) for piece in special + words[3:]]))
    return path, tokenizer


def some_tokens(vocab_size: int) -> list[int]:
    return [1, *(i * 37 % vocab_size for i in range(1, STEPS))]


def bits(logits: bytes) -> int:
    """What stands for the logits [STEPS, vocab_size] of some_tokens."""
    return zlib.crc32(logits)


# Feeds ids to runq's forward and writes each position's logits.
SHIM = """
#define TESTING
#include RUNQ
int main(int count, char **ids) {
    Transformer model;
    build_transformer(&model, ids[1]);
    for (int i = 2; i < count; i++) fwrite(forward(&model, atoi(ids[i]), i - 2), 4, model.config.vocab_size, stdout);
    return 0;
}
"""


def make(runq_c: Path, stories_dir: Path) -> None:
    goldens: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        runq, logits = folder / "runq", folder / "logits"
        subprocess.run(["gcc", "-O3", "-o", runq, runq_c, "-lm"], check=True)
        (folder / "shim.c").write_text(SHIM)
        define = f'-DRUNQ="{runq_c.resolve()}"'
        subprocess.run(["gcc", "-O3", define, "-o", logits, folder / "shim.c", "-lm"], check=True)
        for name in SOURCES:
            path, tokenizer = write(folder, name, stories_dir)
            command = [str(logits), str(path), *map(str, some_tokens(512))]
            crc = bits(subprocess.run(command, capture_output=True, check=True).stdout)
            texts = {}
            for options in OPTIONS:
                command = [str(runq), str(path), "-z", str(tokenizer), "-n", str(STEPS), *options.split()]
                texts[options] = subprocess.run(command, capture_output=True, check=True).stdout.decode("latin-1")
            goldens.append({"model": name, "file": zlib.crc32(path.read_bytes()), "logits": crc, "texts": texts})
    GOLDENS.write_text(json.dumps(goldens, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
