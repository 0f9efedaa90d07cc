"""llama2.c's version 2: int8 weights that meet int8 activations, and what they have to equal."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
import reference
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2cpp

# Matrices of no round size; rows longer than a block of 1,024 weights, in groups of 64.
SIZES = checkpoints.Sizes(
    dim=192, hidden_dim=1344, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=151, seq_len=150, tied=False
)
INT8 = pytest.mark.cpu_bits("int8 activations")
TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, SIZES.vocab_size, 140)]


def write(path: Path, sizes: checkpoints.Sizes, group: int, seed: int = 0) -> Path:
    path.write_bytes(checkpoints.v2_bytes(sizes, checkpoints.random_arrays(sizes, seed), group))
    return path


def rounded_to_int8(group: int, x: torch.Tensor) -> torch.Tensor:
    """What the matmuls see of their input: each group in 127 steps of its largest, halves away from zero."""
    groups = x.reshape(*x.shape[:-1], -1, group)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    steps = groups / torch.where(scale == 0, 1.0, scale)
    return ((steps.abs() + 0.5).floor() * steps.sign() * scale).reshape(x.shape)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("int8") / "v2.bin", SIZES, 64)


@pytest.fixture(scope="module")
def expected(file: Path) -> bytes:
    model = llama2cpp.load(file)
    assert model.activation_dtype == "int8"
    return model.session().prefill(TOKENS, all_logits=True).tobytes()


@INT8
@pytest.mark.parametrize("isa", tiny.ISAS)
@pytest.mark.parametrize("pack", ["always", "never"])
def test_isa_and_pack(file: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, isa: str, pack: str) -> None:
    tiny.choose_isa(monkeypatch, isa)
    model = llama2cpp.load(file, pack=pack)
    assert model.session().prefill(TOKENS, all_logits=True).tobytes() == expected


@INT8
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_and_steps(file: Path, expected: bytes, threads: int) -> None:
    session = llama2cpp.load(file, threads=threads).session()
    first = session.prefill(TOKENS[:37], all_logits=True).tobytes()
    assert first + b"".join(session.step(token).tobytes() for token in TOKENS[37:]) == expected


@INT8
@given(group=st.sampled_from([1, 2, 3, 4, 6, 12, 28, 42, 84]), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_any_group_that_divides(group: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Near a double-precision Llama whose matmuls see rounded inputs.

    A value on the edge between two steps may fall either way, which moves one input by a 127th of its group's largest;
    so the distance is bounded by a few such steps and not by rounding errors.
    """
    sizes = checkpoints.Sizes(dim=84, hidden_dim=168, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=33, seq_len=16)
    path = write(tmp_path_factory.mktemp("groups") / "v2.bin", sizes, group, seed)
    model = llama2cpp.load(path)
    tokens = [seed % 33, 5, 32, 0]
    got = model.session().prefill(tokens, all_logits=True)
    exact = reference.run(model.config, model.weights, tokens, lambda x: rounded_to_int8(group, x))
    assert reference.largest_error(got, exact.logits) < 2e-2
    if group > 3:  # fewer than that and rounding loses next to nothing
        unrounded = reference.run(model.config, model.weights, tokens)
        assert reference.largest_error(got, unrounded.logits) > 1e-4


def test_f32_activations_are_the_decoded_weights(file: Path) -> None:
    """The same bits as a float model of what the weights stand for."""
    model = llama2cpp.load(file, activation_dtype="f32")
    decoded = llama2cpp.from_arrays(model.config, dict(model.weights))
    got = model.session().prefill(TOKENS, all_logits=True)
    assert got.tobytes() == decoded.session().prefill(TOKENS, all_logits=True).tobytes()


@INT8
def test_int8_activations_need_quantized_weights() -> None:
    with pytest.raises(
        ValueError, match=r"activation_dtype is 'int8', but tensor 'layers\.0\.attention\.wq\.weight' is f32"
    ):
        tiny.model(tiny.config(), activation_dtype="int8")


@INT8
@pytest.mark.parametrize("threads", [1, 3])
def test_an_infinite_activation_shows(file: Path, threads: int) -> None:
    """A group with an infinity has no scale: the output is NaN and not a plausible number."""
    session = llama2cpp.load(file, threads=threads).session()
    session.prefill(TOKENS[:3])
    session.kv.values(1)[:] = np.inf
    assert np.isnan(session.step(1)).all()


@pytest.mark.cpu_bits("the same bits with all kernels of the CPU")
@pytest.mark.parametrize("isa", tiny.ISAS)
def test_half_precision_keys_and_values(stories_dir: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    """f16 caches hold the f32 ones rounded to nearest even, and give the same bits on every instruction set."""
    path = stories_dir / "stories260K.bin"
    tokens = tiny.tokens(llama2cpp.load(path).config, 90)
    best = llama2cpp.load(path, kv_dtype="f16").session()
    expected = best.prefill(tokens, all_logits=True)
    tiny.choose_isa(monkeypatch, isa)
    session = llama2cpp.load(path, kv_dtype="f16").session()
    assert session.prefill(tokens, all_logits=True).tobytes() == expected.tobytes()

    full = llama2cpp.load(path, kv_dtype="f32").session()
    exact = full.prefill(tokens, all_logits=True)
    assert session.kv.keys(0).dtype == np.float16
    np.testing.assert_array_equal(session.kv.keys(0), full.kv.keys(0).astype(np.float16))
    np.testing.assert_array_equal(session.kv.values(0), full.kv.values(0).astype(np.float16))
    assert 1e-6 < reference.largest_error(expected, exact) < 2e-3  # 11 bits of a key instead of 24
