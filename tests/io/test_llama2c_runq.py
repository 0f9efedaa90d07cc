"""An int8 checkpoint of llama2.c says what llama2.c's runq says with it, byte for byte, on every instruction set."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import llama2c_runq
import pytest
import tiny
from typer.testing import CliRunner

import llama2cpp
from llama2cpp.command import cli

GOLDENS: dict[str, dict[str, Any]] = {case["model"]: case for case in json.loads(llama2c_runq.GOLDENS.read_text())}
MODELS = list(GOLDENS)


@pytest.fixture(scope="module")
def files(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoint and tokenizer of each model."""
    written = {name: llama2c_runq.write(tmp_path_factory.mktemp("runq"), name, stories_dir) for name in MODELS}
    for name, (path, _) in written.items():
        assert zlib.crc32(path.read_bytes()) == GOLDENS[name]["file"], "not the file that runq was given"
    return written


@pytest.mark.parametrize("options", llama2c_runq.OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_run_says_what_runq_says(files: dict[str, tuple[Path, Path]], name: str, options: str) -> None:
    path, tokenizer = files[name]
    arguments = ["run", str(path), "-z", str(tokenizer), "-n", str(llama2c_runq.STEPS), *options.split()]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.stdout_bytes == GOLDENS[name]["texts"][options].encode("latin-1")
    assert result.exit_code == 0


@pytest.mark.cpu_bits("llama2.c's arithmetic")
@pytest.mark.parametrize("isa", tiny.ISAS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_runq_s_to_the_bit(
    files: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, name: str, isa: str
) -> None:
    """In one call, in uneven chunks and on several threads, with packed weights and without."""
    tiny.choose_isa(monkeypatch, isa)
    tokens = llama2c_runq.some_tokens(512)
    whole = llama2cpp.load(files[name][0], threads=1)
    logits = whole.session().prefill(tokens, all_logits=True).tobytes()
    assert llama2c_runq.bits(logits) == GOLDENS[name]["logits"]

    session = llama2cpp.load(files[name][0], threads=3, pack="never").session()
    chunks = [tokens[:100], tokens[100:117], *([token] for token in tokens[117:])]
    assert b"".join(session.prefill(chunk, all_logits=True).tobytes() for chunk in chunks) == logits


@pytest.mark.cpu_bits("llama2.c's arithmetic")
def test_company_in_a_pass(files: dict[str, tuple[Path, Path]]) -> None:
    model = llama2cpp.load(files["grouped heads"][0])
    tokens = llama2c_runq.some_tokens(512)
    first, second = model.session(), model.session()
    first.prefill(tokens[:40])
    together = model.forward([(first, tokens[40:43]), (second, tokens[:25])])
    assert together[0].tobytes() == model.session().prefill(tokens[:43]).tobytes()
    assert together[1].tobytes() == model.session().prefill(tokens[:25]).tobytes()


def test_floats_keep_the_contract_s_order(files: dict[str, tuple[Path, Path]]) -> None:
    """With activation_dtype="f32" an int8 file is a float model of what its weights stand for, bit for bit."""
    model = llama2cpp.load(files["wide heads"][0], activation_dtype="f32")
    tokens = llama2c_runq.some_tokens(512)
    logits = model.session().prefill(tokens, all_logits=True).tobytes()
    decoded = llama2cpp.from_arrays(model.config, dict(model.weights))
    assert logits == decoded.session().prefill(tokens, all_logits=True).tobytes()
    assert llama2c_runq.bits(logits) != GOLDENS["wide heads"]["logits"]
