"""Runs notebooks. ``python tests/support/notebook_runs.py`` saves them with the outputs of the present code."""

from __future__ import annotations

import base64
import copy
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs_of(cells: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """What cells have shown, without the counters, and with text that came in pieces put together."""
    return [_outputs(cell) for cell in cells]


def _outputs(cell: Any) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for output in copy.deepcopy(cell["outputs"]):
        output.pop("execution_count", None)
        if output["output_type"] == "stream":
            output["text"] = "".join(output["text"])
            if shown and shown[-1].get("name") == output["name"]:
                shown[-1]["text"] += output["text"]
                continue
        elif "data" in output:
            output["data"] = {kind: "".join(value) for kind, value in output["data"].items()}
        shown.append(dict(output))
    return shown


def run(path: Path, order: Sequence[int]) -> list[list[dict[str, Any]]]:
    """Run code cells, counted from 0, in an order and a kernel of its own. An exception of a cell is one here."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    cells = code_cells(notebook)
    notebook.cells = [copy.deepcopy(cells[number]) for number in order]
    for place, cell in enumerate(notebook.cells):
        cell.id = f"run-{place}"
        cell.outputs = []
    # A busy machine takes its time to start a kernel; and no output may be left out because it came late.
    patience: dict[str, Any] = {
        "timeout": 600,
        "startup_timeout": 600,
        "iopub_timeout": 120,
        "raise_on_iopub_timeout": True,
    }
    NotebookClient(notebook, kernel_name="python3", **patience).execute()
    return outputs_of(notebook.cells)


def save(path: Path) -> None:
    """Run it from the first cell to the last, and save what the cells have shown."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    for count, (cell, shown) in enumerate(zip(cells, run(path, range(len(cells))), strict=True), 1):
        cell["execution_count"] = count
        cell["outputs"] = [_stored(output, count) for output in shown]
    notebook["metadata"] = METADATA
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def smaller(picture: str) -> str:
    """Write a PNG, as base64, with 32 colours: a quarter of its bytes, which each wheel carries."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        few = image.convert("RGB").quantize(32, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _stored(output: dict[str, Any], count: int) -> dict[str, Any]:
    """As Jupyter stores it: text as a list of lines."""
    stored = dict(output)
    if "text" in stored:
        stored["text"] = stored["text"].splitlines(keepends=True)
    if "data" in stored:
        text = {kind: value.splitlines(keepends=True) for kind, value in stored["data"].items()}
        stored["data"] = text | {kind: smaller(stored["data"][kind]) for kind in text if kind.startswith("image/")}
        stored["metadata"] = {}
    if stored["output_type"] == "execute_result":
        stored["execution_count"] = count
    return dict(sorted(stored.items()))


if __name__ == "__main__":
    for notebook_path in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        save(notebook_path)
