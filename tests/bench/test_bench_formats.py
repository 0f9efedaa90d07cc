"""tests/bench/formats.py: the table of formats, on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import llama2cpp
from llama2cpp.export import compare, convert

SCRIPT = Path(__file__).with_name("formats.py")


def call(*arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.cpu_bits("what a program measures there, of int8 activations")
def test_formats(tmp_path: Path, stories: llama2cpp.Model) -> None:
    model = convert(stories, tmp_path / "stories.gguf", "f32").path
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
    usual = [model, "--folder", tmp_path / "made", "--formats", "f32", "q4_0", "--text", text, "--rounds", 1]
    facts = json.loads(call(*usual, "--json"))
    entry = facts["formats"]["q4_0"]
    made = tmp_path / "made" / "q4_0.gguf"
    with llama2cpp.load(made) as after:
        found = compare(stories, after, text.read_bytes(), tensors=False)
    assert entry["ours"]["mean_kl"] == pytest.approx(found.mean_kl)
    assert entry["ours"]["bytes"] == made.stat().st_size
    assert entry["speed"]["decode"] > 0
    assert facts["formats"]["f32"]["ours"]["mean_kl"] == 0
    assert "llama.cpp" not in facts["formats"]["f32"]
    rows = call(*usual, "--only", "table").splitlines()  # of what is kept
    assert [row.split("|")[1].strip() for row in rows] == ["format", "---", "f32", "q4_0"]
    assert f"{found.perplexity_b:.3f}" in rows[3]
