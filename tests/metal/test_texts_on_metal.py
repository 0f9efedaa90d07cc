"""Greedy text on Metal is the CPU's, 64 tokens of it, for the models that are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2cpp

pytestmark = pytest.mark.skipif("metal" not in llama2cpp.build_info()["backends"], reason="no Metal in this build")

# |logit - the CPU's| / max |logit|: four times the largest that was seen, of both models, with products and sums fused
# and not. Only where the CPU's two best tokens are that near may the choice differ.
LIMIT = 4e-6
TOKENS = 64


def opened(name: str, models_dir: Path, backend: str) -> llama2cpp.Model:
    options: dict[str, Any] = {"backend": backend, "activation_dtype": "f32", "context": 128}
    if name == "storyteller":
        return llama2cpp.load("storyteller", **options)
    folder = models_dir / "stories260K"
    return llama2cpp.load(folder / "stories260K.bin", tokenizer=folder / "tok512.bin", **options)


@pytest.mark.parametrize("name", ["storyteller", "stories260K"])
def test_greedy_text(name: str, models_dir: Path) -> None:
    """Both are fed what the CPU chooses, so that one near choice does not end the comparison."""
    models = [opened(name, models_dir, backend) for backend in ("cpu", "metal")]
    assert models[1].backend == "metal"
    sessions = [model.session() for model in models]
    prompt = models[0].tokenizer.encode("Once upon a time")
    logits = [np.asarray(session.prefill(prompt)).reshape(-1) for session in sessions]
    largest, differing = 0.0, 0
    for _ in range(TOKENS):
        cpu, metal = logits
        size = float(np.abs(cpu).max())
        largest = max(largest, float(np.abs(cpu - metal).max()) / size)
        choice = int(cpu.argmax())
        if int(metal.argmax()) != choice:
            best = np.sort(cpu)[-2:]
            assert best[1] - best[0] <= 2 * LIMIT * size, "the texts differ, and not because two tokens are as good"
            differing += 1
        logits = [np.asarray(session.step(choice)) for session in sessions]
    print(f"{name}: the largest difference of a logit is {largest:.2e} of the largest logit; {differing} tokens differ")
    assert largest <= LIMIT
