"""Every opener, given every kind of path that is no file: an error that says so, at once. openers.py has the lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openers
import pytest
from conftest import SUPPORT
from typer.testing import CliRunner

import llama2cpp
from llama2cpp.command import cli
from llama2cpp.export import convert

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these kinds of files are POSIX's")


def run(stories_dir: Path, *words: str) -> str:
    """Give what the program has said, to its end or until it waits for ever."""
    files = {
        "OPENERS_TOKENIZER": str(stories_dir / "tok512.bin"),
        "OPENERS_MODEL": str(stories_dir / "stories260K.bin"),
    }
    command = [sys.executable, str(SUPPORT / "openers.py"), *words]
    process = subprocess.Popen(
        command, env=os.environ | files, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        said, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    return said


@pytest.fixture(scope="module")
def found(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    lines = run(stories_dir, str(tmp_path_factory.mktemp("openers"))).splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", openers.KINDS)
def test_a_clear_error_at_once(found: list[list[object]], kind: str) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    tried = [cell[1] for cell in found if len(cell) == 2 and cell[0] == kind]
    outcomes = {cell[1]: cell[2:] for cell in found if len(cell) > 2 and cell[0] == kind}
    assert list(outcomes) == tried, f"waits for ever, or ends the process: {found[-1]}"
    assert len(tried) > 30
    wrong = {name: told for name, (clear, told) in outcomes.items() if not clear}
    assert wrong == {}


def test_a_prompt_that_is_longer_than_a_file_name() -> None:
    done = CliRunner().invoke(cli.app, ["generate", "Once upon a time " * 40, "-n", "1"])
    assert done.exception is None
    assert done.stdout.startswith("Once upon a time Once")


def test_interrupted_system_calls(stories_dir: Path, tmp_path: Path) -> None:
    assert run(stories_dir, "interrupted", str(tmp_path)) == "True\n"


def test_no_control_character_of_a_path_is_in_a_message(tmp_path: Path, stories_dir: Path) -> None:
    """What a file is called cannot reach a terminal or a log as a command, whoever raises the error."""
    stories = llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=stories_dir / "tok512.bin")
    conversation = llama2cpp.Conversation(stories, template="llama2")
    opened: list[tuple[str, Callable[[Path], Any]]] = [
        *((suffix, llama2cpp.load) for suffix in (".gguf", ".bin", ".safetensors")),
        *((suffix, llama2cpp.Tokenizer.from_file) for suffix in (".bin", ".model", ".json", ".gguf")),
        (".safetensors", stories.load_session),
        (".json", conversation.load),
        (".npz", llama2cpp.ActivationCache.load),
        (".safetensors", llama2cpp.ActivationCache.load),
        (".pt", lambda path: convert(path, tmp_path / "out.gguf")),
    ]
    for suffix, opener in opened:
        path = tmp_path / f"a\x1b[31m\n\x9b{suffix}"
        path.write_bytes(b"GGUF" if suffix == ".gguf" else b"\x1b[31m, which is nothing\n" * 3)
        with pytest.raises(llama2cpp.FormatError) as caught:
            opener(path)
        assert r"a\x1b[31m\n\x9b" in str(caught.value), str(caught.value)
        assert str(caught.value).isprintable()
