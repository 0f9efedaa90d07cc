"""What the README and ARCHITECTURE.md say is so: snippets run, commands print what is shown, and names exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from documents import blocks, console_commands, expected_lines, prose, run_snippet
from test_includes import MAY_INCLUDE

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


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
        printed = run_snippet(snippet, README, names)
        assert printed == expected_lines(snippet), f"README.md, the snippet of line {snippet.line}"


def test_commands(here: Path) -> None:
    """Each ``$ llama2cpp`` prints what the README shows below it."""
    commands = list(console_commands(README))
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
