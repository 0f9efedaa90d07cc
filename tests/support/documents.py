"""What Markdown documents hold that can be run: snippets with what they print, and commands. Needs no pytest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple


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


def console_commands(document: Path) -> Iterator[tuple[list[str], str]]:
    """The arguments of each ``$ llama2cpp`` of a document, and what the document shows below it."""
    for block in blocks(document, "console"):
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, flags=re.MULTILINE):
            program, *arguments = shlex.split(command)
            if program == "llama2cpp":
                yield arguments, output


def expected_lines(snippet: Block) -> list[str]:
    """What a snippet is said to print: what follows ``# ->``."""
    return re.findall(r"# -> (.*)$", snippet.text, flags=re.MULTILINE)


def run_snippet(snippet: Block, document: Path, names: dict[str, Any]) -> list[str]:
    """The lines that a snippet prints. Its names are kept in `names`, for the next one."""
    printed = StringIO()
    padded = "\n" * (snippet.line - 1) + snippet.text  # so that a traceback shows the document's line
    with redirect_stdout(printed):
        exec(compile(padded, str(document), "exec"), names)
    return printed.getvalue().splitlines()
