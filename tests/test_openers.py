"""Every opener, given every kind of path that is no file: an error that says so, at once. openers.py has the lists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openers
import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these kinds of files are POSIX's")


def run(stories_dir: Path, tmp_path: Path, what: str) -> str:
    """Give what the program has said; where it does not end, the last line names the opener that waits."""
    command = [sys.executable, str(ROOT / "tests" / "openers.py"), what, str(tmp_path)]
    files = {
        "OPENERS_TOKENIZER": str(stories_dir / "tok512.bin"),
        "OPENERS_MODEL": str(stories_dir / "stories260K.bin"),
    }
    try:
        done = subprocess.run(command, env=os.environ | files, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode().splitlines()
        pytest.fail(f"it waits for ever: {said[-1:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", openers.KINDS)
def test_a_clear_error_at_once(stories_dir: Path, tmp_path: Path, kind: str) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    lines = run(stories_dir, tmp_path, kind).splitlines()
    tried = [line.removesuffix(": begins") for line in lines if line.endswith(": begins")]
    found = [line for line in lines if not line.endswith(": begins")]
    assert len(tried) == len(found) > 30
    # A folder's file has its name, whatever the path; an empty text is a prompt of one token.
    for name, line in zip(tried, found, strict=True):
        assert line.startswith(f"{name}: ")
        outcome = line.removeprefix(f"{name}: ")
        assert ": True: " in outcome, line
        assert len(outcome.split(": True: ", 1)[1]) > 10, line


def test_interrupted_system_calls(stories_dir: Path, tmp_path: Path) -> None:
    assert run(stories_dir, tmp_path, "interrupted") == "True\n"
