"""A program that lets the n-th allocation of an operation fail, each n in a process of its own.

    LD_PRELOAD=LIBRARY python allocation_sweep.py LIBRARY FOLDER MODEL TOKENIZER THREADS RUNS OPERATION...

For each operation it prints a line of JSON: its name, how many allocations it makes, and for each outcome of a run how
often it came, with one example. Of a crash the outcome has the function that asked for the memory, where the extension
module has symbols and binutils are there. RUNS is how many of the allocations are tried, evenly spread; 0: all.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny

import llama2cpp
from llama2cpp import _core, export, interventions

SECONDS = 30  # after which a run hangs
IDS = [1, *range(3, 40)]


class Operations:
    """What is tried, what it works on, and how that is looked at afterwards."""

    def __init__(self, folder: Path, model: str, tokenizer: str, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.paths = {"bin": model, "tokenizer": tokenizer, "gguf": str(folder / "story.gguf")}
        self.model = self.load()
        self.story = llama2cpp.load(threads=threads)
        export.convert(self.story, self.paths["gguf"], "q8_0")
        self.large = tiny.model(tiny.config(dim=576, hidden_dim=800), threads=threads)
        self.session, self.other = self.begun(self.model), self.begun(self.model)
        self.large_session = self.begun(self.large)
        self.saved = folder / "saved.session"
        self.session.save(self.saved)
        self.bits = [self.next_bits(session) for session in (self.session, self.other, self.large_session)]
        self.files = self.written = self.contents()

    def load(self) -> llama2cpp.Model:
        return llama2cpp.load(self.paths["bin"], tokenizer=self.paths["tokenizer"], threads=self.threads)

    def begun(self, model: llama2cpp.Model) -> llama2cpp.Session:
        session = model.session()
        session.prefill(IDS[:10])
        return session

    def next_bits(self, session: llama2cpp.Session) -> bytes:
        return session.fork().prefill(IDS[10:]).tobytes()

    def contents(self) -> dict[str, bytes]:
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        return {file.relative_to(self.folder).as_posix(): file.read_bytes() for file in files}

    def put_back(self) -> None:
        """Undo what a process has written."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in self.files:
                path.unlink()
        for name, data in self.files.items():
            (self.folder / name).write_bytes(data)

    def changes(self) -> list[str]:
        """Say what is not as it was."""
        sessions = (self.session, self.other, self.large_session)
        found = [f"session {i} moved" for i, s in enumerate(sessions) if s.tokens != IDS[:10]]
        files = self.contents()
        if files != self.written:  # it may fail when all is written
            found += sorted({f"file {name}" for name, _ in files.items() ^ self.files.items()})
        if not found and [self.next_bits(session) for session in sessions] != self.bits:
            found.append("other bits")
        return found

    def recorded(self) -> object:
        with self.model.record(["resid_post", "pattern"]) as recording:
            self.session.fork().prefill(IDS[10:])
        return recording.cache()

    def loaded_and_run(self) -> object:
        return self.load().session().prefill(IDS)

    def edited(self) -> object:
        zeros = np.zeros((6, 32, 192), np.float32)
        return self.story.with_weights({"blocks.1.attn.W_O": zeros}).session().prefill(IDS)

    def closed(self) -> object:
        with self.load() as model:
            return model.session().step(3)

    def hooked(self) -> object:
        hooks: list[Any] = [
            ("resid_post1", lambda activation, hook: activation * 1.0),
            interventions.zero("z", layer=0, head=1),
        ]
        return self.model.run_with_hooks("Once upon", fwd_hooks=hooks)

    def convert(self, name: str, format: str | None = None) -> object:
        return export.convert(self.story, self.folder / name, format, force=True)

    def all(self) -> dict[str, Callable[[], object]]:
        model, session = self.model, self.session
        text = "Once upon a time there was é\U0001f600 " * 20
        return {
            "load": self.load,
            "load storyteller": lambda: llama2cpp.load(threads=self.threads),
            "load GGUF": lambda: llama2cpp.load(self.paths["gguf"], threads=self.threads),
            "load without mmap": lambda: llama2cpp.load(self.paths["gguf"], threads=self.threads, mmap=False),
            "load and run": self.loaded_and_run,
            "close": self.closed,
            "load tokenizer": lambda: llama2cpp.Tokenizer.from_file(self.paths["tokenizer"]),
            "encode": lambda: model.tokenizer.encode(text),
            "prefill": lambda: session.prefill(IDS[10:]),
            "prefill large": lambda: self.large_session.prefill(IDS[10:]),
            "all logits": lambda: session.prefill(IDS[10:], all_logits=True),
            "step": lambda: session.step(5),
            "forward": lambda: model.forward([(session, [3, 4]), (self.other, [5])]),
            "generate": lambda: model.generate("Once upon", max_tokens=8, seed=1),
            "run_with_cache": lambda: model.run_with_cache("Once upon a time"),
            "hooks": self.hooked,
            "record": self.recorded,
            "fork": lambda: session.fork(),
            "fork and step": lambda: session.fork().step(4),
            "splice": lambda: session.kv.splice(self.other.kv, 1, 3),
            "save": lambda: session.save(self.saved),
            "load session": lambda: model.load_session(self.saved),
            "edit weights": self.edited,
            "export GGUF": lambda: self.convert("story.gguf", "q4_0"),
            "export panels": lambda: self.convert("story.safetensors"),
            "export folder": lambda: self.convert("folder", "f16"),
        }


def attempt(operations: Operations, call: Callable[[], object], library: ctypes.CDLL, n: int, report: int) -> list[Any]:
    """Let the n-th allocation fail: [outcome, detail, allocations]."""
    problem: BaseException | None = None
    library.fail_after(n, report)
    try:
        call()
    except BaseException as error:
        library.stop_failing()
        problem = error
    count = library.stop_failing()
    if not library.has_failed():
        return ["not reached", "", count]
    if problem is None:
        return ["no error", "", count]  # Python and C++ may have done without what they asked for
    outcome, detail = type(problem).__name__, str(problem)[:200]
    problem.__traceback__ = None  # what it holds goes
    del problem
    if changes := operations.changes():
        return ["changed", f"{outcome}: {', '.join(changes)}", count]
    try:
        call()
    except BaseException as error:
        return ["fails again", repr(error)[:200], count]
    return [outcome, detail, count]


def run(operations: Operations, call: Callable[[], object], library: ctypes.CDLL, n: int) -> list[Any]:
    """The same in a process of its own, which leaves its files to the parent."""
    read, write = os.pipe()
    report = os.memfd_create("report")
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(report, 2)  # what C++ says before it aborts
        signal.alarm(SECONDS)
        try:
            os.write(write, json.dumps(attempt(operations, call, library, n, report)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    with os.fdopen(report, "rb") as file:
        file.seek(0)
        said = file.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return ["hangs", said, 0] if name == "SIGALRM" else [f"crash in {who_asked(said)}", f"{name}: {said}", 0]
    return json.loads(answer) if answer else ["no answer", "", 0]


def who_asked(stack: str) -> str:
    """Find the innermost function of the extension module that is none of the standard library's."""
    offsets = [
        hex(int(offset, 16) - 1)  # into the call, and not behind it
        for file, offset in re.findall(r"^(.*)\(\+(0x[0-9a-f]+)\)", stack, re.MULTILINE)
        if os.path.realpath(file) == os.path.realpath(_core.__file__)
    ]
    if not offsets or shutil.which("addr2line") is None:
        return "?"
    command = ["addr2line", "-f", "-C", "-e", _core.__file__, *offsets]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    functions = [line.replace("(anonymous namespace)::", "") for line in lines[::2]]
    names = [name for name in functions if not re.match(r"(\w+ )*(std::|operator new|__gnu_cxx::)", name)]
    asked = names[0].partition("(")[0] if names else "?"
    return "?" if asked == "PyInit__core" else asked  # a stripped module has no other name


def main() -> None:
    """Sweep."""
    library = ctypes.CDLL(sys.argv[1])
    library.fail_after.argtypes = [ctypes.c_long, ctypes.c_int]
    library.stop_failing.restype = ctypes.c_long
    threads, runs = int(sys.argv[5]), int(sys.argv[6])
    operations = Operations(Path(sys.argv[2]), sys.argv[3], sys.argv[4], threads)
    table = operations.all()
    for name in sys.argv[7:] or table:
        call = table[name]
        count = run(operations, call, library, 10**9)[2]
        operations.written = operations.contents()
        operations.put_back()
        outcomes: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for n in range(0, count, max(1, count // runs) if runs else 1):
            outcome, detail, _ = run(operations, call, library, n)
            operations.put_back()
            if outcome == "MemoryError":
                detail = ""
            plain = outcome in ("MemoryError", "no error", "not reached") or outcome.startswith(("crash", "hangs"))
            key = outcome if plain else f"{outcome}: {detail}"
            outcomes[key] += 1
            examples.setdefault(key, f"allocation {n}: {detail}")
        print(
            json.dumps({"operation": name, "allocations": count, "outcomes": outcomes, "examples": examples}),
            flush=True,
        )


if __name__ == "__main__":
    main()
