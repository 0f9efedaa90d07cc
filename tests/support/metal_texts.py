"""Greedy text on Metal beside the CPU's, for the models that are at hand.

python tests/support/metal_texts.py NAME MODELS FUSED   one model, as JSON
python tests/support/metal_texts.py --line TABLE         whether all texts of test_texts_on_metal.py were equal
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import llama2cpp

NAMES = ("storyteller", "stories260K")
TOKENS = 64


@dataclasses.dataclass
class Comparison:
    """What came out."""

    name: str
    fused: str  # whether the device fuses products and sums: off, on
    tokens: int
    largest: float  # difference of a logit, of the largest logit
    differ: list[float]  # where the choice differs: how much worse the CPU's second best is, of the largest logit


def opened(name: str, models: Path, backend: str) -> llama2cpp.Model:
    options: dict[str, Any] = {"backend": backend, "activation_dtype": "f32", "context": 128}
    if name == "storyteller":
        return llama2cpp.load("storyteller", **options)
    folder = models / name
    return llama2cpp.load(folder / f"{name}.bin", tokenizer=folder / "tok512.bin", **options)


def compare(name: str, models: Path, fused: str) -> Comparison:
    """Both are fed what the CPU chooses, so that one near choice does not end the comparison."""
    pair = [opened(name, models, backend) for backend in ("cpu", "metal")]
    assert [model.backend for model in pair] == ["cpu", "metal"]
    sessions = [model.session() for model in pair]
    prompt = pair[0].tokenizer.encode("Once upon a time")
    logits = [np.asarray(session.prefill(prompt)).reshape(-1) for session in sessions]
    found = Comparison(name, fused, TOKENS, 0.0, [])
    for _ in range(TOKENS):
        cpu, metal = logits
        size = float(np.abs(cpu).max())
        found.largest = max(found.largest, float(np.abs(cpu - metal).max()) / size)
        choice = int(cpu.argmax())
        if int(metal.argmax()) != choice:
            second, best = np.sort(cpu)[-2:]
            found.differ.append(float(best - second) / size)
        logits = [np.asarray(session.step(choice)) for session in sessions]
    return found


def line(table: Path) -> str:
    """Say that all texts are equal; an error where one is not, or is missing."""
    found = [Comparison(**row) for row in json.loads(table.read_text(encoding="utf-8"))]
    assert {one.name for one in found} == set(NAMES), f"texts were made of {[one.name for one in found]}"
    assert any(one.fused == "on" for one in found), "no text was made with products and sums fused"
    unequal = [one for one in found if one.differ]
    assert not unequal, f"texts differ: {unequal}"
    return f"{len(found)} texts of {TOKENS} tokens equal"


if __name__ == "__main__":
    if sys.argv[1] == "--line":
        print(line(Path(sys.argv[2])))
    else:
        print(json.dumps(dataclasses.asdict(compare(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))))
