"""Greedy text on Metal is the CPU's, for the models that are at hand: also where products and sums are fused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SUPPORT
from metal_texts import NAMES, Comparison

import llama2cpp

INFO = llama2cpp.build_info()
pytestmark = pytest.mark.skipif("metal" not in INFO["backends"], reason="no Metal in this build")

# |logit - the CPU's| / max |logit|: four times the largest that was seen, of both models. It is the same with products
# and sums fused: kernels write what is to be fused as fma(), and the compiler finds no more. Only where the two best
# tokens are that near may the choice differ.
LIMIT = 4e-6
SOFT = INFO.get("device", "").startswith("Software")  # what a GPU fuses its compiler decides


@pytest.fixture(scope="module")
def table() -> Iterator[list[Comparison]]:
    """Written to the file that LLAMA2CPP_TEXTS_TABLE names."""
    found: list[Comparison] = []
    yield found
    path = os.environ.get("LLAMA2CPP_TEXTS_TABLE")
    if path is not None:
        Path(path).write_text(json.dumps([dataclasses.asdict(one) for one in found]), encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", ["off", "on"] if SOFT else ["off"])
def test_greedy_text(name: str, fused: str, models_dir: Path, table: list[Comparison]) -> None:
    knobs = ",".join(filter(None, [os.environ.get("LLAMA2CPP_SOFT_METAL"), f"contract={fused}"]))
    done = subprocess.run(
        [sys.executable, SUPPORT / "metal_texts.py", name, models_dir, fused],
        env=os.environ | {"LLAMA2CPP_SOFT_METAL": knobs},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = Comparison(**json.loads(done.stdout))
    print(found)
    assert found.largest <= LIMIT
    assert all(nearness <= 2 * LIMIT for nearness in found.differ), "not because two tokens are as good"
    table.append(found)
