"""All that write a file or a folder, by name; and a program that kills each at random moments: `writers.py ROUNDS`."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny

import llama2cpp
from llama2cpp import _core
from llama2cpp.common import new_files
from llama2cpp.export import convert

Content = dict[str, Any]  # what a target holds: bytes by name, or arrays


@dataclass(frozen=True)
class Writer:
    """One way to write. `write(path, version)` writes one of two contents, which `read` gives back."""

    name: str  # of a target
    write: Callable[[Path, int], object]
    read: Callable[[Path], Content] = lambda path: {"": path.read_bytes()}
    folder: bool = False


def _model(seed: int) -> llama2cpp.Model:
    config = tiny.config(dim=64, hidden_dim=96, n_heads=4, vocab_size=96)
    return llama2cpp.from_arrays(config, tiny.arrays(config, seed), threads=1)


def _read_folder(path: Path) -> Content:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _read_npz(path: Path) -> Content:
    with np.load(path) as arrays:  # its bytes hold the time
        return {name: arrays[name].tobytes() for name in arrays}


def _write_by_hand(path: Path, version: int) -> None:
    """As `new_folder` does, where the system cannot exchange folders in one step."""
    writer = _core.FolderWriter(path, exchange=False)
    try:
        for name in ("config.json", "model.safetensors"):
            (writer.temporary_path / name).write_bytes(b"%d" % version * 1000)
        writer.commit()
    finally:
        writer.close()


def all_writers(stories: llama2cpp.Model) -> dict[str, Writer]:
    """Each writer of the package but `pull`, which test_hub.py has."""
    models = [_model(0), _model(1)]
    sessions = []
    for model in models:
        sessions.append(model.session())
        sessions[-1].prefill([1, 2, 3])
    caches = [model.run_with_cache([1, 2, 3])[1] for model in models]
    talks = []
    for seed in (1, 2):
        talks.append(llama2cpp.Conversation(stories, template="chatml", max_tokens=4, seed=seed))
        talks[-1].say("Hello" * seed)

    def exported(format: str, **options: Any) -> Callable[[Path, int], object]:
        return lambda path, version: convert(models[version], path, format, force=True, threads=1, **options)

    return {
        "session": Writer("s", lambda path, version: sessions[version].save(path)),
        "conversation": Writer("talk.json", lambda path, version: talks[version].save(path)),
        "conversation with session": Writer("t.json", lambda path, version: talks[version].save(path, session=True)),
        "cache npz": Writer("c.npz", lambda path, version: caches[version].save(path), _read_npz),
        "cache safetensors": Writer("c.safetensors", lambda path, version: caches[version].save(path)),
        "file": Writer("f", lambda path, version: new_files.write_file(path, b"%d" % version * 1000)),
        "llama2.c": Writer("m.bin", exported("v0")),
        "llama2.c int8": Writer("m.bin", exported("int8")),
        "gguf": Writer("m.gguf", exported("q8_0")),
        "panels": Writer("m.safetensors", exported("f32")),
        "folder": Writer("m", exported("f32", shard_size="40KB"), _read_folder, folder=True),
        "llm_int8": Writer("m", exported("llm_int8"), _read_folder, folder=True),
        "without exchange": Writer("m", _write_by_hand, _read_folder, folder=True),
    }


def kill(writer: Writer, folder: Path, rounds: int, seed: int) -> int:
    """Kill it `rounds` times, and check what is there after each. Gives how many left something behind."""
    random_delay = random.Random(seed)
    target = folder / writer.name
    whole = []
    begun = time.perf_counter()
    for version in (0, 1):
        writer.write(target, version)
        whole.append(writer.read(target))
    takes = (time.perf_counter() - begun) / 2
    assert whole[0] != whole[1]
    beside = {path.name for path in folder.iterdir()}
    interrupted = 0
    for i in range(rounds):
        child = os.fork()
        if child == 0:
            while True:
                writer.write(target, i % 2)
                i += 1
        time.sleep(random_delay.random() * takes * 2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += {path.name for path in folder.iterdir()} != beside
        if not target.exists():  # allowed where there is no exchange alone; whoever writes there next puts it back
            assert writer.write is _write_by_hand
            _core.FolderWriter(target).close()
        assert writer.read(target) in whole
    writer.write(target, 0)
    assert writer.read(target) == whole[0]
    assert {path.name for path in folder.iterdir()} == beside, "what killed processes left is still there"
    return interrupted


def main(rounds: int, stories: Path) -> None:
    model = llama2cpp.load(stories / "stories260K.bin", tokenizer=stories / "tok512.bin", threads=1)
    for number, (name, writer) in enumerate(all_writers(model).items()):
        with tempfile.TemporaryDirectory() as folder:
            left = kill(writer, Path(folder), rounds, number)
        print(f"{name}: killed {rounds} times, {left} times in the middle", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
