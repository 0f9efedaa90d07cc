"""activation_dtype="bf16": activations and weights of 16 bits as bf16, with the same bits everywhere."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import expert_models
import numpy as np
import panel_sources
import pytest
import reference
import tiny
import torch
from gguf import GGMLQuantizationType as Type

import llama2cpp
from llama2cpp.export import convert

pytestmark = pytest.mark.cpu_bits("bf16 activations")

# An odd number of columns, more than a block of 256, no whole number of panels.
CONFIG = tiny.config(dim=276, hidden_dim=531, vocab_size=301, seq_len=90)
TOKENS = tiny.tokens(CONFIG, 61)
QUICK = ("--threads", "1", "--prefill", "2", "--steps", "1", "--rounds", "1", "--depth", "1", "--json")


@pytest.fixture(scope="module", params=["bf16", "f16"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / f"{request.param}.gguf"
    return Path(convert(tiny.model(CONFIG), path, request.param).path)


@pytest.fixture(scope="module")
def expected(file: Path) -> bytes:
    model = llama2cpp.load(file, activation_dtype="bf16")
    assert model.activation_dtype == "bf16"
    return model.session().prefill(TOKENS, all_logits=True).tobytes()


@pytest.mark.parametrize("isa", tiny.ISAS)
def test_isa_and_pack(file: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    tiny.choose_isa(monkeypatch, isa)
    for pack in ("always", "never"):
        model = llama2cpp.load(file, activation_dtype="bf16", pack=pack, threads=2)
        assert model.session().prefill(TOKENS, all_logits=True).tobytes() == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_chunks_and_steps(file: Path, expected: bytes, threads: int) -> None:
    session = llama2cpp.load(file, activation_dtype="bf16", threads=threads).session()
    parts = [session.prefill(TOKENS[a:b], all_logits=True) for a, b in ((0, 2), (2, 5), (5, 40))]
    parts += [session.step(token)[None] for token in TOKENS[40:]]
    assert np.concatenate(parts).tobytes() == expected


def test_near_a_llama_whose_products_have_rounded_inputs(file: Path) -> None:
    """torch rounds, and computes in double precision."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.float().bfloat16().to(x.dtype)

    model = llama2cpp.load(file, activation_dtype="bf16", kv_dtype="f32")
    got = model.session().prefill(TOKENS, all_logits=True)
    weights = tiny.arrays(CONFIG)
    for name, weight in weights.items():
        if weight.ndim == 2:
            kept = torch.from_numpy(weight).to(torch.bfloat16 if file.stem == "bf16" else torch.float16)
            if name != "tok_embeddings.weight":
                kept = kept.bfloat16()  # as packed
            weights[name] = kept.float().numpy()
    exact = reference.run(CONFIG, weights, TOKENS, rounded)
    unrounded = reference.run(CONFIG, weights, TOKENS)
    error = reference.largest_error(got, exact.logits)  # a value between two steps may fall either way
    assert error < 2e-2
    assert error < reference.largest_error(got, unrounded.logits)


def test_a_packed_file_gives_the_same_bits(file: Path, expected: bytes, tmp_path: Path) -> None:
    packed = convert(file, tmp_path / "panels.safetensors").path
    model = llama2cpp.load(packed, activation_dtype="bf16")
    assert model.session().prefill(TOKENS, all_logits=True).tobytes() == expected


def test_auto_and_f32_do_not_round(file: Path, expected: bytes) -> None:
    models = [llama2cpp.load(file), llama2cpp.load(file, activation_dtype="f32", kv_dtype="f16")]
    found = {model.session().prefill(TOKENS, all_logits=True).tobytes() for model in models}
    assert [model.activation_dtype for model in models] == ["f32", "f32"]
    assert len(found) == 1
    assert expected not in found


def test_the_logit_lens_ends_in_the_logits(file: Path) -> None:
    model = llama2cpp.load(file, activation_dtype="bf16")
    logits, cache = model.run_with_cache(TOKENS[:9])
    labels = cache.get_full_resid_decomposition(return_labels=True)[1]
    assert labels[-1] == "remainder"  # heads and neurons are computed from unrounded numbers
    assert np.isfinite(logits).all()


def test_an_edited_weight_stays_float32_and_the_others_bf16(file: Path) -> None:
    model = llama2cpp.load(file, activation_dtype="bf16")
    name = "blk.0.attn_q.weight"
    edited = model.with_weights({name: np.asarray(model.weights[name]) * 2})
    assert edited.activation_dtype == "bf16"
    logits = [m.session().prefill(TOKENS[:3]) for m in (model, edited)]
    assert not np.array_equal(logits[0], logits[1])
    same = edited.with_weights({name: np.asarray(model.weights[name])}).session().prefill(TOKENS[:3])
    assert reference.largest_error(same, logits[0]) < 2e-2


@pytest.mark.parametrize("kind", [Type.BF16, Type.F16])
def test_experts(tmp_path: Path, kind: Type) -> None:
    """Experts of 16 bits, and all else of float32."""
    path = tmp_path / "m.gguf"
    expert_models.write_gguf(path, "qwen3_moe", kind)
    packs = (("never", 1), ("always", 3))
    models = [llama2cpp.load(path, activation_dtype="bf16", pack=pack, threads=threads) for pack, threads in packs]
    prompt = models[0].session().prefill(range(3, 12), all_logits=True)
    session = models[1].session()
    steps = np.stack([session.step(token) for token in range(3, 12)])
    assert steps.tobytes() == prompt.tobytes()
    assert steps.tobytes() != llama2cpp.load(path).session().prefill(range(3, 12), all_logits=True).tobytes()


@pytest.mark.parametrize("source", panel_sources.SOURCES)
def test_every_source_takes_it_or_is_refused_by_name(tmp_path: Path, source: str) -> None:
    """Weights of bf16 and f16 take it, and none else does; float32 beside them stays."""
    path = panel_sources.SOURCES[source](tmp_path)
    plain = llama2cpp.load(path)
    formats = {plain.weights.info(name)["format"] for name in plain.weights if plain.weights[name].ndim == 2}
    if formats & {"bf16", "f16"} and formats <= {"bf16", "f16", "f32"}:
        model = llama2cpp.load(path, activation_dtype="bf16")
        assert model.activation_dtype == "bf16"
        assert model.session().step(1).tobytes() != plain.session().step(1).tobytes()
        return
    message = "activation_dtype is 'bf16', but tensor '.*' is (.*), and only weights of bf16 and f16 take bf16"
    with pytest.raises(ValueError, match=message) as error:
        llama2cpp.load(path, activation_dtype="bf16")
    assert any(f"is {format}, and" in str(error.value) for format in formats)


def test_exact_is_not_bf16(file: Path) -> None:
    with pytest.raises(ValueError, match="load: activation_dtype is 'bf16', but precision='exact' stands for 'f32'"):
        llama2cpp.load(file, precision="exact", activation_dtype="bf16")


def test_pickles_keep_it(file: Path, expected: bytes) -> None:
    again = pickle.loads(pickle.dumps(llama2cpp.load(file, activation_dtype="bf16")))
    assert again.activation_dtype == "bf16"
    assert again.session().prefill(TOKENS, all_logits=True).tobytes() == expected


def test_the_command_line(file: Path) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "llama2cpp", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    code, text, errors = call("bench", str(file), "--activation-dtype", "bf16", *QUICK)
    assert (code, errors) == (0, "")
    assert json.loads(text)["activations"] == "bf16"
    code, _, errors = call("bench", "--activation-dtype", "bf16", *QUICK)  # of int8
    assert code == 2
    assert errors.startswith("llama2cpp: error: --activation-dtype is 'bf16', but tensor '")
    assert errors.endswith("' is int8_group, and only weights of bf16 and f16 take bf16\n")


def test_other_words_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="'fp8', expected one of: auto, f32, bf16, int8"):
        llama2cpp.load(file, activation_dtype="fp8")


def test_a_session_of_it_is_no_session_of_f32(file: Path, tmp_path: Path) -> None:
    model = llama2cpp.load(file, activation_dtype="bf16")
    session = model.session()
    session.prefill(TOKENS[:5])
    session.save(tmp_path / "session")
    assert model.load_session(tmp_path / "session").step(3).tobytes() == session.step(3).tobytes()
    with pytest.raises(llama2cpp.FormatError, match='metadata \'activations\' is "bf16", expected "f32"'):
        llama2cpp.load(file).load_session(tmp_path / "session")
