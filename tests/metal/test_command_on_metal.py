"""The command's --backend: the same text, and refusals of one line that name the option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import panel_sources
import pytest

import llama2cpp

HAS_METAL = "metal" in llama2cpp.build_info()["backends"]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "llama2cpp", *arguments]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.fixture
def generate(models_dir: Path) -> list[str | Path]:
    folder = models_dir / "stories260K"
    return ["generate", folder / "stories260K.bin", "Once", "-z", folder / "tok512.bin", "-t", "0", "-n", "8"]


@pytest.mark.skipif(not HAS_METAL, reason="no Metal in this build")
def test_the_text_is_the_cpus(generate: list[str | Path]) -> None:
    on_cpu = call(*generate, "--backend", "cpu")
    assert on_cpu[0] == 0
    assert on_cpu[1].startswith("Once upon a time")
    assert call(*generate, "--backend", "metal") == on_cpu


def test_a_backend_that_is_none_is_one_line(generate: list[str | Path]) -> None:
    code, text, errors = call(*generate, "--backend", "gpu")
    assert (code, text) == (2, "")
    assert errors == "llama2cpp: error: --backend is 'gpu', expected one of: auto, cpu, metal\n"


@pytest.mark.skipif(HAS_METAL, reason="this build has Metal")
def test_a_build_without_it_says_so(generate: list[str | Path]) -> None:
    code, text, errors = call(*generate, "--backend", "metal")
    assert (code, text) == (2, "")
    assert errors == "llama2cpp: error: --backend is 'metal', but this build does not have it; use 'cpu'\n"


@pytest.mark.skipif(not HAS_METAL, reason="no Metal in this build")
def test_what_metal_cannot_do_names_the_options(generate: list[str | Path], tmp_path: Path) -> None:
    errors = call(*generate, "--backend", "metal", "--activation-dtype", "int8")[2]
    assert errors == (
        "llama2cpp: error: --activation-dtype is 'int8', but the metal backend multiplies floats only; "
        "use 'f32', or --backend cpu\n"
    )
    errors = call(*generate, "--backend", "metal", "--threads", "2")[2]
    assert errors == (
        "llama2cpp: error: --threads is 2, but the metal backend computes on the GPU; "
        "leave it out, or use --backend cpu\n"
    )
    errors = call("generate", panel_sources.llm_int8(tmp_path), "Once", "--backend", "metal")[2]
    assert errors.endswith("there is no Metal kernel for weights of format llm_int8; use --backend cpu\n")
    assert errors.count("\n") == 1


@pytest.mark.skipif(not HAS_METAL, reason="no Metal in this build")
def test_bench_names_the_gpu(models_dir: Path) -> None:
    path = models_dir / "stories260K" / "stories260K.bin"
    options = ["--prefill", "3", "--steps", "1", "--depth", "1", "--rounds", "1"]
    code, text, errors = call("bench", path, "--backend", "metal", *options)
    assert (code, errors) == (0, "")
    device = llama2cpp.build_info()["device"]
    assert f"MB of weights a token, on {device}, f32 activations" in text.splitlines()[0]
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [["1", "decode"], ["1", "prefill"]]


@pytest.mark.skipif(not HAS_METAL, reason="no Metal in this build")
def test_a_model_says_that_it_runs_on_metal(models_dir: Path) -> None:
    model = llama2cpp.load(models_dir / "stories260K" / "stories260K.bin", backend="metal")
    assert repr(model).endswith(f"context 512, metal ({model.isa})>")
