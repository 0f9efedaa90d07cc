"""Every allocation of an operation fails in turn: MemoryError, everything as before, and the next call is right.

Linux with glibc only, where a library that is loaded before the C library decides which allocation fails. The C++ side
of it, for every system, is tests/cpp/test_allocations.cpp; the whole sweep is `tests/slow.sh allocations`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SUPPORT

# Each object of ours that Python sees is entered in a table of pybind11's. Where there is no memory for the entry,
# pybind11 3.1 ends the process: an object is freed twice, or the exception meets a function that may not throw. That is
# told by who asked for the memory.
ENTRY = re.compile(r"crash in (void )?pybind11::(class_<.*>::init_instance<|detail::type_caster_generic::cast)")

# Where the extension module has no symbols, by how often: so many objects does each operation make.
OBJECTS = {
    "load": 2,
    "load storyteller": 2,
    "load GGUF": 1,
    "load without mmap": 1,
    "load and run": 3,
    "close": 3,
    "load tokenizer": 1,
    "generate": 3,
    "run_with_cache": 3,
    "hooks": 5,
    "record": 5,
    "fork": 1,
    "fork and step": 1,
    "load session": 1,
    "edit weights": 2,
    "export GGUF": 1,
    "export panels": 2,
    "export folder": 1,
}

# What others make of a failing allocation, and who.
OTHERS = [
    (r"RuntimeError: can't allocate (read )?lock", "CPython's threads and buffered files"),
    (r"SystemError: error return without exception set", "NumPy's ufunc.reduce, which sets no error"),
    (r"OSError: \[Errno 12\]", "CPython's os.listdir and os.scandir: opendir allocates, and reports it as an OSError"),
]


def sweep(folder: Path, models: Path, *, threads: int, runs: int) -> list[dict[str, Any]]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or compiler is None:
        pytest.skip("needs Linux with glibc, and a C compiler")
    library, work = folder / "failing.so", folder / "work"
    work.mkdir()
    source = SUPPORT / "failing_allocations.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    arguments = [library, work, models / "stories260K.bin", models / "tok512.bin", threads, runs]
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "allocation_sweep.py"), *map(str, arguments)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


RUNS = int(os.environ.get("LLAMA2CPP_ALLOCATIONS", "2"))  # of each operation; 0: all


@pytest.mark.parametrize("threads", [1, 2] if RUNS != 2 else [1])  # two wait for each other, and each run is a process
def test_each_allocation_fails(tmp_path: Path, stories_dir: Path, threads: int) -> None:
    reports = sweep(tmp_path, stories_dir, threads=threads, runs=RUNS)
    assert len(reports) > 20
    wrong = []
    for report in reports:
        print(json.dumps(report))
        name, outcomes = report["operation"], report["outcomes"]
        assert report["allocations"] > 0, name
        for outcome, count in outcomes.items():
            # "no error": Python, C++ and we may do without what was asked for (a cache, a buffer for sorting).
            # "not reached": with several threads the numbers differ a little.
            if outcome in ("MemoryError", "no error", "not reached"):
                continue
            if ENTRY.match(outcome) or (outcome == "crash in ?" and count <= OBJECTS.get(name, 0)):
                continue
            if any(re.match(pattern, outcome) for pattern, _ in OTHERS):
                continue
            wrong.append(f"{name}: {count} x {outcome} ({report['examples'][outcome]})")
    assert wrong == []
