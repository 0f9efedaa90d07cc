"""Encoders: byte for byte what the gguf library writes, and K-quants with no more error than llama.cpp's."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from llama2cpp import _core

Floats = NDArray[np.float32]

REFERENCE = {
    "f32": Type.F32,
    "f16": Type.F16,
    "bf16": Type.BF16,
    "q8_0": Type.Q8_0,
    "q4_0": Type.Q4_0,
    "q4_1": Type.Q4_1,
    "q5_0": Type.Q5_0,
    "q5_1": Type.Q5_1,
    "mxfp4": Type.MXFP4,
}
K_QUANTS = {"q2_k": Type.Q2_K, "q3_k": Type.Q3_K, "q4_k": Type.Q4_K, "q5_k": Type.Q5_K, "q6_k": Type.Q6_K}
FLOATS = ("f32", "f16", "bf16")
QUANTIZED = sorted({*REFERENCE, *K_QUANTS} - {*FLOATS})

# Magnitudes whose scales are neither infinite in f16 nor without an inverse in f32, and zero. No -0: which of two equal
# zeros is the least of a block is the reference's secret.
numbers = st.one_of(
    st.just(0.0),
    st.floats(2.0**-90, 60000.0, width=32),
    st.floats(-60000.0, -(2.0**-90), width=32),
    st.sampled_from([1.0, -1.0, 0.5, -0.5, 127.0, 63.5, -8.0, 15.0, 31.0, 2.0**-24, 2.0**-14]),
)
blocks = st_numpy.arrays(np.float32, (2, 64), elements=numbers, fill=st.just(0.0))


def reference(values: Floats, name: str) -> NDArray[np.uint8]:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(gguf.quantize(values, REFERENCE[name])).view(np.uint8)


def error(values: Floats, stored: NDArray[np.uint8], kind: Type) -> float:
    return float(np.mean((gguf.dequantize(stored, kind).astype(np.float64) - values) ** 2))


@pytest.mark.parametrize("name", REFERENCE)
@given(values=blocks, scale=st.sampled_from([1.0, 1e-3, 1e-6, 1e-9]))
def test_equal_to_gguf(name: str, values: Floats, scale: float) -> None:
    values = values * np.float32(scale) + np.float32(0)
    np.testing.assert_array_equal(_core.encode(name, values), reference(values, name))


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("scale", [1.0, 0.02, 3e-7, 300.0])
def test_equal_to_gguf_on_random_rows(name: str, scale: float) -> None:
    values = (np.random.default_rng(1).standard_normal((301, 1024)) * scale).astype(np.float32)
    stored = _core.encode(name, values)
    np.testing.assert_array_equal(stored, reference(values, name))
    np.testing.assert_array_equal(stored, _core.encode(name, values, threads=1))


@pytest.mark.parametrize("name", REFERENCE)
def test_zeros(name: str) -> None:
    zeros = np.zeros((2, 64), dtype=np.float32)
    stored = _core.encode(name, zeros)
    np.testing.assert_array_equal(stored, reference(zeros, name))
    assert not _core.decode(name, stored).any()


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_all_float_patterns(name: str) -> None:
    """Each exponent with mantissas around every point where rounding changes, both signs, infinities and NaN."""
    mantissas = np.array([m << s & 0x7FFFFF for m in (1, 3, 5, 0x7FF, 0xFFF, 0x1000, 0x1001) for s in range(24)])
    bits = (np.arange(512, dtype=np.uint64)[:, None] << 23 | np.unique(mantissas).astype(np.uint64)).astype(np.uint32)
    values = bits.view(np.float32).ravel()
    ours = _core.encode(name, values).view(np.uint16)
    theirs = reference(values, name).view(np.uint16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(ours[number], theirs[number])
    back = _core.decode(name, ours.view(np.uint8))
    assert np.isnan(back[~number]).all()


@pytest.mark.parametrize("name", [*REFERENCE, *K_QUANTS])
def test_decode_is_gguf_s(name: str) -> None:
    kind = (REFERENCE | K_QUANTS)[name]
    values = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32)
    stored = _core.encode(name, values)
    assert stored.shape == (5, _core.row_bytes(name, 512))
    theirs = gguf.dequantize(stored.view(np.float16) if name == "f16" else stored, kind)
    np.testing.assert_array_equal(_core.decode(name, stored), theirs.reshape(5, 512))
    np.testing.assert_array_equal(_core.decode(name, stored[0]), theirs.reshape(5, 512)[0])


@pytest.mark.parametrize("name", FLOATS)
@given(data=st.data())
def test_floats_come_back_to_the_bit(name: str, data: st.DataObject) -> None:
    width = np.uint32 if name == "f32" else np.uint16
    stored = data.draw(st_numpy.arrays(width, 40, elements=st.integers(0, np.iinfo(width).max)))
    values = _core.decode(name, stored.view(np.uint8))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(_core.encode(name, values).view(width)[number], stored[number])


# K-quants


def shapes(kind: str) -> Floats:
    rng = np.random.default_rng(3)
    values = {
        "gaussian": rng.standard_normal((64, 512)) * 0.02,
        "laplace": rng.laplace(size=(64, 512)) * 0.02,
        "heavy": rng.standard_t(3, size=(64, 512)),
        "positive": rng.uniform(0, 1, (64, 512)),
        "negative": rng.uniform(-3, -1, (64, 512)),
        "small": rng.standard_normal((64, 512)) * 1e-5,
    }[kind]
    return values.astype(np.float32)


def llama_cpp_s(values: Floats, kind: Type) -> NDArray[np.uint8]:
    """What llama.cpp's own quantizer makes of rows, without an importance matrix."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    (path, *_) = (Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*")
    quantize = ctypes.CDLL(str(path)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.empty((values.shape[0], values.shape[1] // block * size), dtype=np.uint8)
    assert quantize(int(kind), values.ctypes.data, stored.ctypes.data, 0, *values.shape, None) == stored.nbytes
    return stored


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "heavy", "positive", "negative", "small"])
@pytest.mark.parametrize("name", K_QUANTS)
def test_no_more_error_than_llama_cpp(name: str, kind: str) -> None:
    values = shapes(kind)
    ours = error(values, _core.encode(name, values), K_QUANTS[name])
    assert ours <= error(values, llama_cpp_s(values, K_QUANTS[name]), K_QUANTS[name])


@pytest.mark.parametrize("name", K_QUANTS)
def test_no_more_error_than_llama_cpp_on_smollm2(name: str, smollm2_path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_path).tensors}
    for layer in (0, 14, 29):
        tensor = tensors[f"blk.{layer}.ffn_down.weight"]
        values = np.ascontiguousarray(gguf.dequantize(tensor.data[:64], tensor.tensor_type))
        ours = error(values, _core.encode(name, values), K_QUANTS[name])
        assert ours <= error(values, llama_cpp_s(values, K_QUANTS[name]), K_QUANTS[name])


@pytest.mark.parametrize(
    ("name", "bound"), [("q2_k", 0.3), ("q3_k", 0.17), ("q4_k", 0.08), ("q5_k", 0.04), ("q6_k", 0.02)]
)
def test_error_is_near_what_the_bits_allow(name: str, bound: float) -> None:
    values = shapes("gaussian")
    assert error(values, _core.encode(name, values), K_QUANTS[name]) < bound**2 * float(np.mean(values**2))


@pytest.mark.parametrize("name", K_QUANTS)
@settings(max_examples=30)
@given(values=st_numpy.arrays(np.float32, (1, 256), elements=numbers, fill=st.just(0.0)))
def test_k_quants_are_finite_and_better_than_nothing(name: str, values: Floats) -> None:
    decoded = _core.decode(name, _core.encode(name, values)).astype(np.float64)
    assert np.isfinite(decoded).all()
    assert ((decoded - values) ** 2).sum() <= (values.astype(np.float64) ** 2).sum() * (1 + 1e-6)


@pytest.mark.parametrize("name", K_QUANTS)
def test_values_that_the_format_can_store_come_back(name: str) -> None:
    """256 equal numbers need no more than a scale or a minimum, which are halves."""
    for value in (0.5, -0.5, 2.0):
        values = np.full((1, 256), value, dtype=np.float32)
        np.testing.assert_allclose(_core.decode(name, _core.encode(name, values)), values, rtol=2e-3)


@pytest.mark.parametrize("name", K_QUANTS)
def test_importance_moves_the_error(name: str) -> None:
    values = shapes("laplace")
    importance = np.where(np.arange(512) % 4 == 0, 100.0, 0.1).astype(np.float32)

    def weighed(stored: NDArray[np.uint8]) -> float:
        return float(np.mean(importance * (_core.decode(name, stored).astype(np.float64) - values) ** 2))

    with_importance, without = _core.encode(name, values, importance), _core.encode(name, values)
    assert weighed(with_importance) < 0.9 * weighed(without)
    np.testing.assert_array_equal(_core.encode(name, values, np.ones(512, dtype=np.float32)), without)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
@pytest.mark.parametrize("shape", ["laplace", "far from 0", "huge", "zeros"])
def test_importance_never_makes_a_block_of_32_worse(name: str, shape: str) -> None:
    """Than ggml's rounding, by the errors that count."""
    rows = shapes("laplace")
    values = {"laplace": rows, "far from 0": rows + 50, "huge": rows * np.float32(60000 / np.abs(rows).max())}
    weight = values.get(shape, np.zeros_like(rows)).astype(np.float32)
    importance = np.where(np.arange(512) % 4 == 0, 100.0, 0.1).astype(np.float32)

    def weighed(stored: NDArray[np.uint8]) -> NDArray[np.float64]:
        errors = importance * (_core.decode(name, stored).astype(np.float64) - weight) ** 2
        return np.asarray(errors.reshape(-1, 32).sum(axis=1))

    with_importance, without = weighed(_core.encode(name, weight, importance)), weighed(_core.encode(name, weight))
    assert (with_importance <= without * (1 + 1e-5)).all()
    if shape == "laplace":
        assert with_importance.sum() < 0.8 * without.sum()
    nothing = _core.encode(name, weight, np.zeros(512, np.float32))
    np.testing.assert_array_equal(nothing, _core.encode(name, weight))


# llama2.c's version 2


@pytest.mark.parametrize("group", [1, 4, 32, 64])
def test_int8_group_is_llama2c_s(group: int) -> None:
    """The same sums in torch, as llama2.c's export writes them: absmax / 127, then round to nearest even."""
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(4).standard_normal((33, 64)).astype(np.float32)
    values[3] = 0
    groups = torch.from_numpy(values).reshape(-1, group)
    scale = groups.abs().max(dim=1).values / 127.0
    expected = torch.nan_to_num(torch.round(groups / scale[:, None])).to(torch.int8).numpy()
    ours, scales = _core.encode_int8_group(values, group)
    np.testing.assert_array_equal(ours.reshape(-1, group), expected)
    np.testing.assert_array_equal(scales.ravel(), scale.numpy())


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q9_9", np.zeros(32, np.float32)), "unknown weight format 'q9_9'"),
        (("gptq4", np.zeros(32, np.float32)), "has no rows of its own"),
        (("q4_0", np.zeros(33, np.float32)), "33 columns, which q4_0's group of 32 does not divide"),
        (("q4_0", np.full(32, np.nan, np.float32)), "number 0 is nan"),
        (("q4_k", np.full(256, 1e9, np.float32)), "number 0 is 1e"),
        (("q4_0", np.zeros((1, 1, 32), np.float32)), "one or two dimensions"),
        (("q4_k", np.zeros(256, np.float32), np.zeros(3, np.float32)), "importance has shape"),
        (("q4_k", np.zeros(256, np.float32), np.full(256, -1, np.float32)), "importance 0 is -1"),
        (("q4_0", np.zeros(32, np.float32), None, 0), "threads is 0"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.encode(*arguments)


def test_other_types_of_array_are_refused() -> None:
    with pytest.raises(TypeError):
        _core.encode("f32", np.zeros(32))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.encode("f32", np.zeros((4, 8), np.float32).T)


def test_bad_bytes() -> None:
    with pytest.raises(ValueError, match="whole groups of 18"):
        _core.decode("q4_0", np.zeros(17, np.uint8))
    with pytest.raises(ValueError, match="group is 3"):
        _core.encode_int8_group(np.zeros((1, 32), np.float32), 3)
    with pytest.raises(ValueError, match="number 0 is inf"):
        _core.encode_int8_group(np.full((1, 32), np.inf, np.float32), 4)


@pytest.mark.parametrize(
    ("name", "gguf_name"),
    [("tok_embeddings.weight", "token_embd.weight"), ("layers.7.attention.wq.bias", "blk.7.attn_q.bias")],
)
def test_rename(name: str, gguf_name: str) -> None:
    assert _core.rename_weight(name, "gguf") == gguf_name
    assert _core.rename_weight(gguf_name, "llama2.c") == name
    assert _core.rename_weight("rope_freqs.weight", "gguf") is None
    with pytest.raises(ValueError, match="family is 'x'"):
        _core.rename_weight(name, "x")
