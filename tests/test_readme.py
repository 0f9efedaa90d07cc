"""What the README and ARCHITECTURE.md say is so: snippets run, commands print what is shown, and names exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT
from test_includes import MAY_INCLUDE

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


class Block(NamedTuple):
    before: str  # the line above the fence
    language: str
    text: str
    line: int  # of the first line of the text, from 1


def blocks(document: Path, language: str = "") -> Iterator[Block]:
    """The fenced blocks of a document."""
    lines = document.read_text(encoding="utf-8").splitlines()
    opened = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = i
            continue
        block = Block(lines[opened - 1], lines[opened][3:], "\n".join(lines[opened + 1 : i]) + "\n", opened + 2)
        if language in ("", block.language):
            yield block
        opened = None
    assert opened is None, f"{document.name}: the fence of line {opened} is not closed"


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files that the README uses."""
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copy(stories_dir / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets(here: Path) -> None:
    """In their order and in one namespace, as a reader pastes them. What follows ``# ->`` is what they print."""
    torch.manual_seed(0)
    snippets = list(blocks(README, "python"))
    assert len(snippets) >= 5
    names: dict[str, Any] = {}
    for snippet in snippets:
        printed = StringIO()
        padded = "\n" * (snippet.line - 1) + snippet.text  # so that a traceback shows the README's line
        with redirect_stdout(printed):
            exec(compile(padded, str(README), "exec"), names)
        expected = re.findall(r"# -> (.*)$", snippet.text, flags=re.MULTILINE)
        assert printed.getvalue().splitlines() == expected, f"README.md, the snippet of line {snippet.line}"


def test_commands(here: Path) -> None:
    """Each ``$ llama2cpp`` prints what the README shows below it."""
    shown = [
        (shlex.split(command), output)
        for block in blocks(README, "console")
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, flags=re.MULTILINE)
    ]
    commands = [(words[1:], output) for words, output in shown if words[0] == "llama2cpp"]
    assert commands
    for arguments, output in commands:
        command = [sys.executable, "-m", "llama2cpp", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8", timeout=120)
        assert result.stdout == output


def test_the_command_that_runs_the_tests() -> None:
    """.ci/run takes it from here."""
    marked = [block for block in blocks(README) if block.before == "<!-- ci: tests -->"]
    assert [block.text for block in marked] == ['pip install ".[test]"\npytest\n']


def test_benchmark(here: Path) -> None:
    """The README's command for speeds makes a table."""
    command = next(
        line
        for block in blocks(README, "sh")
        for line in block.text.splitlines()
        if line.startswith("python tests/bench/stories")
    )
    _, script, *arguments = shlex.split(command)
    options = ["--rounds", "1", "--threads", "1", "--kernels", "scalar"]
    result = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert re.search(r"^scalar x 1( +[\d,]+ \(1\.00\)){3}$", result.stdout, flags=re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The headings as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", prose(document)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each_document
def test_named_files_and_tests_exist(document: Path) -> None:
    missing = []
    for name in re.findall(r"`((?:src|tests)/[^`]+|CMakeLists\.txt)`", prose(document)):
        path, _, test = name.partition("::")
        file = ROOT / path
        if not file.exists() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
            missing.append(name)
    assert missing == []


def test_lines_to_touch_exist() -> None:
    """ARCHITECTURE.md writes ``file``: ``line``."""
    pairs = re.findall(r"`((?:src|tests)/[^`]+|CMakeLists\.txt)`:\s+`([^`]+)`", prose(ROOT / "ARCHITECTURE.md"))
    assert len(pairs) >= 15
    assert [f"{file}: {line}" for file, line in pairs if line not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_the_house_is_drawn_as_it_is_held() -> None:
    """The diagram's arrows are what test_includes.py allows."""
    house = next(block.text for block in blocks(ROOT / "ARCHITECTURE.md", "mermaid") if "bind --> core" in block.text)
    drawn = {(room, label or f"{to}/") for room, label, to in re.findall(r'(\w+) -->(?:\|"(.*)"\|)? (\w+)', house)}
    assert drawn == {(room, path) for room, paths in MAY_INCLUDE.items() for path in paths}
