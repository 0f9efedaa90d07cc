"""What the build says where a machine lacks something: one line, with the command that installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CMake finds compilers elsewhere than on the path")


def standing_alone(name: str) -> Path:
    """The first program of that name that runs with no other in reach, as a version manager's shim does not."""
    for folder in os.get_exec_path():
        program = Path(folder) / name
        if program.is_file() and os.access(program, os.X_OK):
            tried = subprocess.run([program, "--version"], env={"PATH": "/none"}, capture_output=True, timeout=60)
            if tried.returncode == 0:
                return program
    reason = f"{name} cannot be found, to configure a build with"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def configured(tmp_path: Path, programs: list[str], *options: str) -> str:
    """What CMake says on the standard error on a machine that has these programs only. It must fail."""
    (tmp_path / "bin").mkdir()
    for name in ("cmake", "ninja", *programs):
        (tmp_path / "bin" / name).symlink_to(standing_alone(name))
    result = subprocess.run(
        [tmp_path / "bin" / "cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", *options],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert "llama2cpp needs" in result.stderr, result.stderr
    return result.stderr


def test_no_compiler(tmp_path: Path) -> None:
    lines = configured(tmp_path, []).splitlines()
    (said,) = [line for line in lines if "llama2cpp needs" in line]
    assert "a C++20 compiler, and none was found" in said
    assert "`apt install g++`" in said


def test_a_compiler_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "old-g++"
    refuse = 'case "$*" in *c++20*) exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{refuse}\nPATH={os.environ["PATH"]} exec g++ "$@"\n')
    old.chmod(0o755)
    lines = configured(tmp_path, ["g++", "as", "ld", "ar"], f"-DCMAKE_CXX_COMPILER={old}").splitlines()
    (said,) = [line for line in lines if "llama2cpp needs" in line]
    assert "a C++20 compiler and library" in said
    assert str(old) in said
    assert "g++ 12" in said


def test_no_headers(tmp_path: Path) -> None:
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DPython_INCLUDE_DIR={tmp_path / 'none'}"]
    lines = configured(tmp_path, ["g++", "as", "ld", "ar"], *options).splitlines()
    (said,) = [line for line in lines if "llama2cpp needs" in line]
    assert "Python.h" in said
    assert "`apt install python3-dev`" in said
