"""The notebooks run from the first cell to the last, on the model in the package, and are stored as one opens them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_some() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_step_by_token", "02_attention_and_kv_cache", "03_logit_lens"]


@each_notebook
def test_it_runs(notebook: Path, tmp_path: Path) -> None:
    """By nbmake, in a process and a kernel of its own."""
    copy = tmp_path / notebook.name  # so that nothing is left beside it
    copy.write_bytes(notebook.read_bytes())
    options = ["--nbmake", "--nbmake-timeout=300", "--overwrite", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:]
    cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert [output for output in outputs if output.get("name") == "stderr"] == []


@each_notebook
def test_it_says_no_path_of_ours(notebook: Path) -> None:
    """Whoever runs them again before committing may leave some."""
    text = notebook.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert "site-packages" not in text
    assert "Traceback" not in text
