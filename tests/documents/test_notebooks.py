"""The notebooks: they run, cells can be run again, what is saved is what the code shows, and the package has them."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from notebook_runs import METADATA, NOTEBOOKS, code_cells, outputs_of, run, save

import llama2cpp

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
MOST_PICTURES, MOST_WHEEL = 1_000_000, 6_000_000  # bytes


def read(notebook: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    return content


def comparable(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures count as there or not: their bytes are another matplotlib's elsewhere."""
    return [
        output | {"data": {kind: "" if kind == "image/png" else text for kind, text in output["data"].items()}}
        if "data" in output
        else output
        for output in outputs
    ]


def test_there_are_some() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_step_by_token",
        "02_attention_and_kv_cache",
        "03_logit_lens",
        "04_find_the_name_mover",
        "05_attribution_and_gradients",
        "06_steering_and_a_probe",
        "07_what_quantization_changes",
        "08_compare_with_pytorch",
        "09_a_class_of_your_own",
    ]


@each_notebook
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By nbmake, in a process and a kernel of its own, with nothing but the storyteller."""
    monkeypatch.setenv("LLAMA2CPP_CACHE", str(tmp_path / "nothing pulled"))
    copy = tmp_path / notebook.name  # so that nothing is left beside it
    copy.write_bytes(notebook.read_bytes())
    options = ["--nbmake", "--nbmake-timeout=300", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:]


@each_notebook
def test_cells_can_be_run_again(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each cell twice in a row, and then all once more from the last to the first: always what is saved.

    What the text claims is asserted in cells: they are among these. A run that fails raises nbclient's error.
    """
    monkeypatch.setenv("LLAMA2CPP_CACHE", str(tmp_path))
    if "smollm2-135m" in notebook.read_text(encoding="utf-8"):
        path = request.getfixturevalue("smollm2_path")
        there = tmp_path / "models" / "smollm2-135m" / path.name
        there.parent.mkdir(parents=True)
        there.symlink_to(path)
    if notebook.stem == "08_compare_with_pytorch":
        for module in ("torch", "transformers"):
            pytest.importorskip(module, reason="what is saved was run with PyTorch")
    cells = code_cells(read(notebook))
    numbers = range(len(cells))
    order = [number for number in numbers for _ in range(2)] + [*reversed(numbers)]
    saved = [comparable(outputs) for outputs in outputs_of(cells)]
    for number, outputs in zip(order, run(notebook, order), strict=True):
        source = "".join(cells[number]["source"])
        assert comparable(outputs) == saved[number], (
            f"{source}\n-- shows what is not saved: tests/support/notebook_runs.py saves"
        )


@each_notebook
def test_it_is_saved_as_it_was_run(notebook: Path) -> None:
    content = read(notebook)
    cells = code_cells(content)
    assert content["metadata"] == METADATA
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["metadata"] == {} for cell in content["cells"])
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) >= 2
    assert sum("".join(cell["source"]).startswith("assert ") for cell in cells) >= 5
    text = notebook.read_text(encoding="utf-8")
    assert not re.search(
        r'"(stderr|error)"|Traceback|site-packages|[^\w.:/]/(home|root|tmp|usr|work|Users)/|[A-Z]:\\', text
    )
    assert str(Path.home()) not in text


def test_a_class_of_your_own() -> None:
    """Twelve questions, each answered in fewer than five lines, whose answer is asserted."""
    cells = read(next(path for path in NOTEBOOKS if path.stem == "09_a_class_of_your_own"))["cells"]
    asked = [place for place, cell in enumerate(cells) if "".join(cell["source"]).startswith("## ")]
    assert ["".join(cells[place]["source"]).split(".")[0] for place in asked] == [f"## {n}" for n in range(1, 13)]
    for place in asked:
        question, answer, _, check = cells[place : place + 4]
        assert "".join(question["source"]).endswith("?")
        assert (answer["cell_type"], check["cell_type"]) == ("code", "code")
        assert len(answer["source"]) < 5
        assert answer["outputs"]
        assert "".join(check["source"]).startswith(("assert ", "tokens = ", "ranks = "))


def test_a_cell_that_changes_what_others_use_is_found(tmp_path: Path) -> None:
    """Of the test above: a loop that goes on where it was shows something else the second time."""
    lesson = tmp_path / "lesson.ipynb"
    sources = ["steps = []", "steps.append(1)\nprint(steps)"]
    code: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [code | {"id": f"c{i}", "source": source} for i, source in enumerate(sources)]
    lesson.write_text(json.dumps({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}))
    save(lesson)
    saved = outputs_of(code_cells(read(lesson)))
    assert saved[1] == [{"name": "stdout", "output_type": "stream", "text": "[1]\n"}]
    again = run(lesson, [0, 1, 1])
    assert again[1] == saved[1]
    assert again[2] != saved[1]


def test_pictures_are_small() -> None:
    pictures = [
        output["data"]["image/png"]
        for notebook in NOTEBOOKS
        for cell in code_cells(read(notebook))
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 10
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert sum(map(len, pictures)) < MOST_PICTURES


def test_the_wheel_is_small() -> None:
    """By its files, each deflated as a wheel does it; .ci/release measures a wheel."""
    package = Path(llama2cpp.__file__).parent
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert any(path.name == "storyteller.bin" for path in files)
    assert any(path.name.startswith("_core.") and path.suffix in (".so", ".pyd") for path in files)
    if not (package / "notebooks").is_dir():  # a package in the source tree; an installed one has its copies
        files += NOTEBOOKS
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < MOST_WHEEL


def test_the_wheel_has_them() -> None:
    """By scikit-build-core's setting; .ci/release runs the command with a wheel."""
    packages = re.search(
        r"^wheel\.packages = \{(.*)\}$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert packages is not None
    folders = dict(re.findall(r'"([^"]+)" = "([^"]+)"', packages[1]))
    assert folders["llama2cpp"] == "src/llama2cpp"
    assert sorted((ROOT / folders["llama2cpp/notebooks"]).glob("*.ipynb")) == NOTEBOOKS


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "llama2cpp", "notebooks", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_command_copies_them(tmp_path: Path) -> None:
    done = command("new/lessons", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    copies = sorted((tmp_path / "new" / "lessons").iterdir())
    assert [str(tmp_path / line) for line in done.stdout.splitlines()] == [str(path) for path in copies]
    assert {path.name: path.read_bytes() for path in copies} == {path.name: path.read_bytes() for path in NOTEBOOKS}


def test_the_command_replaces_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    mine = tmp_path / NOTEBOOKS[1].name
    mine.write_text("my notes")
    refused = command(folder=tmp_path)
    assert refused.returncode != 0
    assert re.fullmatch(rf"llama2cpp: error: {re.escape(mine.name)} exists; .*--force.*\n", refused.stderr)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name], "nothing was written"
    assert mine.read_text() == "my notes"
    assert command("--force", folder=tmp_path).returncode == 0
    assert mine.read_bytes() == NOTEBOOKS[1].read_bytes()
    file = command(mine.name, folder=tmp_path)
    assert file.returncode != 0
    assert file.stderr.startswith("llama2cpp: ")
    assert file.stderr.count("\n") == 1
