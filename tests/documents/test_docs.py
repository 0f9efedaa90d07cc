"""What the documents say is so: snippets run, links lead somewhere, what is named exists, and all folders are named."""

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
from documents import blocks, expected_lines, prose, run_snippet
from test_docstrings import INNER
from test_includes import MAY_INCLUDE

import llama2cpp

DOCS = ROOT / "docs"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
PAGES = sorted(page for page in DOCS.rglob("*.md") if DOCS / "notebooks" not in page.parents)
DOCUMENTS = [ROOT / "README.md", ARCHITECTURE, ROOT / "CHANGELOG.md", *PAGES]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())

WITH_SNIPPETS = [page for page in PAGES if list(blocks(page, "python"))]


@pytest.mark.cpu_bits("what documents show")
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_python_snippets(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one namespace for each page. What follows ``# ->`` is what they print."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for snippet in blocks(page, "python"):
        printed = run_snippet(snippet, page, names)
        assert printed == expected_lines(snippet), f"{page.name}, the snippet of line {snippet.line}"


def test_pages_have_snippets() -> None:
    assert len(WITH_SNIPPETS) >= 4


def test_benchmark(stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that measures instruction sets makes a table."""
    shutil.copy(stories_dir / "stories260K.bin", tmp_path)
    monkeypatch.chdir(tmp_path)
    command = next(
        line
        for block in blocks(DOCS / "benchmarks.md", "sh")
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
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each_document
def test_named_files_and_tests_exist(document: Path) -> None:
    missing = []
    named = r"`((?:src|tests|docs|export|notebooks|findings|\.ci)/[^`]+|[A-Z]+\.md|CMakeLists\.txt)`"
    for name in re.findall(named, prose(document)):
        path, _, test = name.partition("::")
        file = ROOT / path
        if not file.exists() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
            missing.append(name)
    assert missing == []


def test_lines_to_touch_exist() -> None:
    """The page that says how to add something writes ``file``: ``line``."""
    pairs = re.findall(r"`((?:src|tests)/[^`]+|CMakeLists\.txt)`:\s+`([^`]+)`", prose(DOCS / "internals" / "adding.md"))
    assert len(pairs) >= 15
    assert [f"{file}: {line}" for file, line in pairs if line not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_the_house_is_drawn_as_it_is_enforced() -> None:
    """The diagram's arrows are what test_includes.py allows."""
    house = next(block.text for block in blocks(ARCHITECTURE, "mermaid") if "bind --> core" in block.text)
    drawn = {(room, label or f"{to}/") for room, label, to in re.findall(r'(\w+) -->(?:\|"(.*)"\|)? (\w+)', house)}
    assert drawn == {(room, path) for room, paths in MAY_INCLUDE.items() for path in paths}


def folders(parent: str) -> set[str]:
    """The folders of one of ours, but for what tools make (.gitignore has the list)."""
    made = re.compile(r"[._]|build$|dist$|.*\.egg-info$")
    return {
        folder.relative_to(ROOT).as_posix()
        for folder in (ROOT / parent).iterdir()
        if folder.is_dir() and not made.match(folder.name)
    }


@pytest.mark.parametrize(
    ("document", "parents"),
    [(ARCHITECTURE, [".", "src/cpp", "src/llama2cpp"]), (DOCS / "internals" / "map.md", ["tests", "docs"])],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_every_folder_is_on_the_map(document: Path, parents: list[str]) -> None:
    """A row of a table begins with its name."""
    rows = set(re.findall(r"^\| `([\w/]+)` \|", document.read_text(encoding="utf-8"), flags=re.MULTILINE))
    there = set().union(*(folders(parent) for parent in parents)) - {"src", "docs/notebooks"}
    assert len(there) >= 3 * len(parents) - 2
    assert sorted(there - rows) == []


def test_architecture_is_short() -> None:
    assert len(ARCHITECTURE.read_bytes()) < 25_000


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    described = set(re.findall(r"^\.\. auto\w+:: llama2cpp\.(.+)$", pages, flags=re.MULTILINE))
    public = {name for name in llama2cpp.__all__ if not name.startswith("__")}
    public |= {f"export.{name}" for name in llama2cpp.export.__all__}
    assert sorted(public - described) == []
    assert sorted(set(INNER) - {name.rpartition(".")[2] for name in described} - BASES) == []


# Bases of public classes: their methods are described there.
BASES = {"ActivationArrays", "ResidualStream", "HeadsAndNeurons", "Observation"}


def column(page: Path, heading: str) -> set[str]:
    """The names that begin the rows of the table below a heading."""
    section = page.read_text(encoding="utf-8").split(f"\n{heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))


def test_every_environment_variable_is_described() -> None:
    sources = [file for file in (ROOT / "src").rglob("*") if file.suffix in {".py", ".cpp", ".h"}]
    read = re.compile(r'(?:environ(?:\.get\()?\[?|getenv\()"(LLAMA2CPP_\w+)"')
    found = {name for file in sources for name in read.findall(file.read_text(encoding="utf-8"))}
    assert len(found) >= 5
    assert column(DOCS / "guide" / "install.md", "## Environment variables") == found | {"LLAMA2CPP_TEST_MODELS"}


def test_every_extra_is_described() -> None:
    extras = re.search(
        r"^\[project\.optional-dependencies\]\n(.*?)^\[",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert extras is not None
    names = set(re.findall(r"^([\w-]+) = \[", extras[1], flags=re.MULTILINE))
    assert {"test", "docs"} <= names
    assert column(DOCS / "guide" / "install.md", "## Extras") == names


def test_every_format_is_named() -> None:
    """By the README and by the page of what is supported: by GGUF's name, or by the origin of a row of formats.cpp."""
    source = (ROOT / "src" / "cpp" / "format" / "formats.cpp").read_text(encoding="utf-8")
    rows = set(re.findall(r"&k(\w+)", source.split("kFormats[] = {")[1].split("}")[0]))
    assert len(rows) >= 20
    origins = {"Int8Group": "llama2.c", "Gptq": "GPTQ", "LlmInt8": "LLM.int8()"}
    names = {next((origins[key] for key in origins if row.startswith(key)), row) for row in rows}
    files = (DOCS / "guide" / "files.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if name not in files] == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names - {"F64"}) if name not in readme] == []


def test_every_command_is_named() -> None:
    from llama2cpp.command.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    text = (DOCS / "guide" / "files.md").read_text(encoding="utf-8")
    assert {"generate", "export"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_decisions_are_dated() -> None:
    records = [page for page in (DOCS / "decisions").glob("*.md") if page.name != "index.md"]
    assert len(records) >= 30
    for record in records:
        heading, _, dated, *_ = record.read_text(encoding="utf-8").splitlines()
        assert heading.startswith("# "), record.name
        date = re.match(r"Date: (\d{4}-\d\d-\d\d)\. Status: (?:in force|replaced by `[\w-]+`)\.$", dated)
        assert date is not None, record.name
        assert record.name.startswith(f"{date[1]}-"), record.name


# What was written once -> what is written, because people search for it.
WORDS = {
    r"quantis(?:e|ing|ation)": "quantize",
    r"\bshare_out\b": "parallel_for",
    r"\bis_runq_s\b": "llama2c_arithmetic",
    r"\bforeign hook\b": "callback",
    r"\bprompt(?:s? (?:is|are))? cuts?\b": "chunked prefill",
    r"\bwhoever else\b": "batch-invariant",
}


def test_the_words_of_the_field() -> None:
    """One spelling, in prose and in code."""
    texts = {".py", ".pyi", ".h", ".cpp", ".inl", ".md", ".sh", ".c", ".txt", ".cmake"}
    sources = [file for folder in ("src", "tests", "export", "docs") for file in (ROOT / folder).rglob("*")]
    files = [*DOCUMENTS, ROOT / "pyproject.toml", *(file for file in sources if file.suffix in texts)]
    files.remove(Path(__file__))
    old = re.compile("|".join(WORDS), flags=re.IGNORECASE)
    found = {
        (file.relative_to(ROOT).as_posix(), word) for file in files for word in old.findall(file.read_text("utf-8"))
    }
    assert sorted(found) == []
