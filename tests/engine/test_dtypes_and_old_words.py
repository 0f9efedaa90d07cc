"""activation_dtype, kv_dtype and precision; the words that were used before work, and warn."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from on_metal import ON_METAL

import llama2cpp
from llama2cpp.common.arguments import RENAMED

CONFIG: dict[str, Any] = {"n_layers": 2}


def opened(how: str, **options: Any) -> llama2cpp.Model:
    if how == "load":
        return llama2cpp.load("storyteller", threads=1, **options)
    config = tiny.config(**CONFIG)
    return llama2cpp.from_arrays(config, dict(tiny.model(config).weights), threads=1, **options)


@pytest.mark.parametrize("how", ["load", "from_arrays"])
@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_words(how: str, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"^{how}: {old} is now {new}") as told:
        model = opened(how, **{old: "f32"})
    assert ON_METAL or [Path(warning.filename) for warning in told] == [Path(__file__)]  # there conftest.py calls
    assert getattr(model, new) == "f32"
    with pytest.warns(DeprecationWarning, match=f"Model.{old} is now Model.{new}"):
        assert getattr(model, old) == "f32"
    assert new in dir(model)
    assert old not in dir(model)
    with pytest.raises(TypeError, match=f"{old!r} and {new!r}, which are one argument"):
        opened(how, **{old: "f32", new: "f32"})
    with pytest.raises(ValueError, match=f"{new} is 'f99'"):
        opened(how, **{new: "f99"})


@pytest.mark.cpu_bits("int8 activations")
def test_each_value() -> None:
    assert opened("load").activation_dtype == "int8"
    for dtype in ("f32", "int8"):
        assert opened("load", activation_dtype=dtype).activation_dtype == dtype
    for dtype in ("f32", "f16"):
        model = opened("from_arrays", kv_dtype=dtype)
        assert model.kv_dtype == dtype
        session = model.session()
        session.step(1)
        assert session.kv.keys(0).dtype == {"f32": np.float32, "f16": np.float16}[dtype]


@pytest.mark.parametrize("how", ["load", "from_arrays"])
def test_precision(how: str) -> None:
    exact = opened(how, precision="exact")
    assert (exact.activation_dtype, exact.kv_dtype) == ("f32", "f32")
    both = opened(how, activation_dtype="f32", kv_dtype="f32")
    assert exact.session().prefill([1, 2, 3]).tobytes() == both.session().prefill([1, 2, 3]).tobytes()
    assert opened(how, precision="exact", kv_dtype="f32").kv_dtype == "f32"
    default = opened(how, precision="auto")
    assert (default.activation_dtype, default.kv_dtype) == (opened(how).activation_dtype, opened(how).kv_dtype)
    for name, value in (("kv_dtype", "f16"), ("activation_dtype", "int8"), ("kv_dtype", "f64")):
        with pytest.raises(ValueError, match=f"^{how}: {name} is '{value}', but precision='exact'"):
            opened(how, precision="exact", **{name: value})
    for wrong in ("Exact", "", "f32"):
        with pytest.raises(ValueError, match=f"{how}: precision is '{wrong}', expected one of: auto, exact"):
            opened(how, precision=wrong)


def test_pickles_of_before() -> None:
    """They hold the words that `load` was given."""
    model = opened("load", kv_dtype="f16", activation_dtype="f32")
    again = pickle.loads(pickle.dumps(model))
    assert (again.kv_dtype, again.activation_dtype) == ("f16", "f32")
    function, (path, tokenizer, options) = model.__reduce__()
    before = {{"kv_dtype": "kv", "activation_dtype": "activations"}.get(k, k): v for k, v in options.items()}
    with pytest.warns(DeprecationWarning, match="load: "):
        again = function(path, tokenizer, before)
    assert (again.kv_dtype, again.activation_dtype) == ("f16", "f32")


def test_session_files_of_before(tmp_path: Path) -> None:
    """Their words are the file's own, and stay."""
    model = opened("from_arrays", kv_dtype="f16")
    session = model.session()
    session.prefill([1, 2, 3])
    session.save(tmp_path / "s.safetensors")
    data = (tmp_path / "s.safetensors").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert (metadata["kv"], metadata["activations"]) == ("f16", "f32")
    assert model.load_session(tmp_path / "s.safetensors").tokens == [1, 2, 3]


def run(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "llama2cpp", *words], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


QUICK = ("--threads", "1", "--prefill", "2", "--steps", "1", "--rounds", "1", "--depth", "1", "--json")


def test_the_command_line() -> None:
    code, out, told = run("bench", *QUICK, "--activations", "f32")
    assert (code, json.loads(out)["activations"]) == (0, "f32")
    assert told.strip() == "llama2cpp: warning: --activations is now --activation-dtype; the old name will go"
    code, out, told = run("bench", *QUICK, "--activation-dtype", "f32", "--kv-dtype", "f16")
    assert (code, json.loads(out)["activations"], json.loads(out)["kv"], told) == (0, "f32", "f16", "")
    for command in ("generate", "chat", "bench"):
        shown = run(command, "--help")[1]
        assert "--activation-dtype" in shown
        assert "--kv-dtype" in shown
        assert "--activations" not in shown
    code, out, told = run("generate", "Once", "-n", "2", "--kv-dtype", "f99")
    assert (code, out) == (2, "")
    assert told.startswith("llama2cpp: error: --kv-dtype is 'f99', expected one of")


@pytest.mark.parametrize("how", ["load", "from_arrays"])
@pytest.mark.parametrize("context", [2**62, 2**63 - 1])
def test_a_context_that_no_session_can_have(how: str, context: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MemoryError, match=f"a context of {context} tokens needs"):
            opened(how, context=context)
