"""The README: its snippets run, its commands print what is shown, and it can be read on a page of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from documents import blocks, console_commands, expected_lines, prose, run_snippet

README = ROOT / "README.md"


@pytest.fixture
def here(stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files that the README uses."""
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copy(stories_dir / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.cpu_bits("what documents show")
def test_python_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order and in one namespace, as a reader pastes them. What follows ``# ->`` is what they print."""
    monkeypatch.chdir(tmp_path)
    snippets = list(blocks(README, "python"))
    assert len(snippets) >= 5
    names: dict[str, Any] = {}
    for snippet in snippets:
        printed = run_snippet(snippet, README, names)
        assert printed == expected_lines(snippet), f"README.md, the snippet of line {snippet.line}"


def test_commands(here: Path) -> None:
    """Each ``$ llama2cpp`` prints what the README shows below it."""
    commands = list(console_commands(README))
    assert len(commands) >= 2
    for arguments, output in commands:
        command = [sys.executable, "-m", "llama2cpp", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8", timeout=120)
        assert result.stdout == output


def test_the_first_two_commands() -> None:
    """Each is a line that does all that is needed. .ci/run takes the second one from here."""
    first, second = [block for block in blocks(README) if block.language in ("sh", "console")][:2]
    assert first.text == 'pip install . && llama2cpp generate "Once upon a time"\n'
    assert second.text == 'pip install ".[test]" && pytest\n'
    assert second.before == "<!-- ci: tests -->"


def test_length() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 250


def test_nothing_leads_nowhere_on_a_package_index() -> None:
    """Its page there has no other file, anchor or diagram of this folder."""
    links = re.findall(r"\]\(([^)]+)\)", prose(README))
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    assert "mermaid" not in {block.language for block in blocks(README)}
