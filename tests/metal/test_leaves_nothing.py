"""A process that used Metal has given back every object of it, and nothing went wrong where nothing can be raised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llama2cpp

# The software device's environment variable: on a Mac nobody counts.
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "metal" not in llama2cpp.build_info()["backends"], reason="no software Metal device"
)

USE = """
import ctypes, gc, sys
import llama2cpp

def use(path, **options):
    model = llama2cpp.load(path, backend="metal", activation_dtype="f32", **options)
    session = model.session()
    session.prefill([1, 403, 407])
    other = session.fork()
    session.step(261)
    other.step(378)
    session.rewind(2)
    session.step(31)
    try:
        model.session(context=1).prefill([1, 2, 3])
    except llama2cpp.ContextFullError:
        pass
    if sys.argv[2] == "keeps":
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))  # a reference that nobody gives back
    if sys.argv[2] == "closes":
        model.close()

use(sys.argv[1])
use(sys.argv[1], mmap=False)
gc.collect()
"""


def run(models_dir: Path, how: str, knobs: str = "") -> subprocess.CompletedProcess[str]:
    path = models_dir / "stories260K" / "stories260K.bin"
    environment = {**os.environ, "LLAMA2CPP_SOFT_METAL": f"exit=on{knobs}"}
    return subprocess.run(
        [sys.executable, "-c", USE, str(path), how], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("how", ["drops", "closes"])
def test_a_model_that_goes_takes_its_metal_objects_along(models_dir: Path, how: str) -> None:
    done = run(models_dir, how)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("failure", ["timeout@2", "out_of_memory@1"])
def test_so_it_does_after_an_error_of_the_gpu(models_dir: Path, failure: str) -> None:
    done = run(models_dir, "drops", f",fail={failure}")
    assert done.returncode == 1
    assert "RuntimeError: the GPU did not finish" in done.stderr
    assert "soft Metal" not in done.stderr


def test_what_is_kept_is_counted(models_dir: Path) -> None:
    done = run(models_dir, "keeps")
    assert done.returncode == 70
    assert "never released" in done.stderr
    assert "2 CommandQueue" in done.stderr
