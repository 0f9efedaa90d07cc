"""GGUF: values against the gguf package, logits against transformers, configs, and a file of tens of gigabytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import torch
import transformers
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as Type
from gguf_files import SCALES, TYPES
from numpy.typing import NDArray
from on_metal import agree
from reference import largest_error

import llama2cpp

# What float32 loses against double in two layers: about 1e-6 of the largest logit here, and transformers' own float32
# as much. (Weights twice as large can make a softmax that is nearly a choice, where both lose ten times that.)
TOLERANCE = 1e-5

ALL_HALVES = np.arange(65536, dtype=np.uint16)


def assert_same_bits(got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal bits; of a NaN only that it is one."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def embedding_file(path: Path, data: NDArray[Any], kind: Type) -> Path:
    """A Llama whose embedding table is `data`, and that has nothing else to say."""
    rows = data.shape[0]
    columns = gguf_files.decoded(data[:1], kind).shape[1]
    sizes = gguf_files.SIZES | {"llama.embedding_length": columns, "llama.attention.head_count": 8}
    tensors: dict[str, tuple[NDArray[Any], Type]] = {"token_embd.weight": (data, kind)}
    for tensor in gguf_files.llama_tensors(sizes, rows)[1:]:
        tensors[str(tensor.name)] = (np.zeros(tensor.shape[::-1], np.float32), Type.F32)
    return gguf_files.write(path, sizes, tensors)


def values_of(path: Path) -> NDArray[np.float32]:
    with llama2cpp.load(path, threads=1) as model:
        return model.weights["token_embd.weight"]


# --- values


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_values_of_random_weights(kind: Type, tmp_path: Path) -> None:
    rng = np.random.default_rng(kind)
    data = gguf_files.encoded(rng.standard_normal((24, 512), dtype=np.float32), kind, rng)
    path = embedding_file(tmp_path / "model.gguf", data, kind)
    assert_same_bits(values_of(path), gguf_files.decoded(data, kind))
    with llama2cpp.load(path, threads=1) as model:
        assert model.weights.info("token_embd.weight") == {
            "format": kind.name.lower(),
            "shape": (24, 512),
            "bytes": data.nbytes,
        }


@pytest.mark.parametrize("kind", SCALES, ids=lambda kind: kind.name)
def test_values_of_any_bytes(kind: Type, tmp_path: Path) -> None:
    """Each of the 65,536 half floats, infinite, NaN and denormal ones too, as each of a block's scales."""
    rng = np.random.default_rng(kind)
    columns = 256
    size, _ = GGML_QUANT_SIZES[kind]
    data = gguf_files.blocks(kind, len(ALL_HALVES) * size // columns, columns, rng)
    data = gguf_files.with_scales(data, kind, [ALL_HALVES, rng.permutation(ALL_HALVES)])
    assert_same_bits(values_of(embedding_file(tmp_path / "model.gguf", data, kind)), gguf_files.decoded(data, kind))


def test_values_of_every_power_of_mxfp4(tmp_path: Path) -> None:
    data = gguf_files.blocks(Type.MXFP4, 32, 256, np.random.default_rng(3))
    data.reshape(-1, 17)[:, 0] = np.arange(256)
    path = embedding_file(tmp_path / "model.gguf", data, Type.MXFP4)
    assert_same_bits(values_of(path), gguf_files.decoded(data, Type.MXFP4))


def test_powers_of_mxfp4_that_are_not_multiplied_with(tmp_path: Path) -> None:
    model = hugging_face(**WIDE)
    path = gguf_files.write_model(tmp_path / "model.gguf", model, Type.MXFP4)
    reader = GGUFReader(path, "r+")
    data = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    data.reshape(-1, 17)[5, 0] = 200
    reader.data.flush()
    for pack in ("always", "never"):
        with llama2cpp.load(path, pack=pack) as loaded, pytest.raises(ValueError, match=r"mxfp4 has a scale of 4\.7"):
            loaded.session().prefill(tokens())
    data.reshape(-1, 17)[5, 1:] = 0x80  # zeros, of either sign
    reader.data.flush()
    assert np.isfinite(llama2cpp.load(path).session().prefill(tokens())).all()


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_values_of_all_halves(kind: Type, tmp_path: Path) -> None:
    data = ALL_HALVES.reshape(256, 256)
    data = data.view(np.float16) if kind == Type.F16 else data.view(np.uint8)
    assert_same_bits(values_of(embedding_file(tmp_path / "model.gguf", data, kind)), gguf_files.decoded(data, kind))


def test_float32_is_a_view_of_the_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(2**32, size=(8, 64), dtype=np.uint32).view(np.float32)
    values = values_of(embedding_file(tmp_path / "model.gguf", data, Type.F32))
    assert_same_bits(values, data)
    assert values.base is not None
    assert not values.flags.writeable


# --- logits

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
WIDE = SMALL | {"hidden_size": 256, "intermediate_size": 512}  # rows that blocks of 256 fill
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def hugging_face(*, mistral: bool = False, rope: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A small random model. Gains and biases are random too: transformers begins with ones and zeros."""
    torch.manual_seed(0)
    options = SMALL | {"attn_implementation": "eager"} | changes
    options["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0} | (rope or {})
    if mistral:
        model: Any = transformers.MistralForCausalLM(transformers.MistralConfig(**options))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
        else:
            torch.nn.init.normal_(parameter, 0, 1 / parameter.shape[1] ** 0.5)
    return model.eval()


def tokens(count: int = 48) -> list[int]:
    return [int(token) for token in np.random.default_rng(3).integers(SMALL["vocab_size"], size=count)]


def logits_of(model: Any) -> NDArray[Any]:
    """In double precision, so that what is left of the difference is ours. (Angles stay float32, as everywhere.)"""
    with torch.no_grad():
        return np.asarray(model.double()(torch.tensor([tokens()])).logits[0].numpy())


def check_logits(path: Path, model: Any) -> llama2cpp.Model:
    ours = llama2cpp.load(path, threads=2, activation_dtype="f32", kv_dtype="f32")
    assert largest_error(ours.session().prefill(tokens(), all_logits=True), logits_of(model)) < TOLERANCE
    return ours


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_logits_of_every_type(kind: Type, tmp_path: Path) -> None:
    model = hugging_face(**WIDE)
    check_logits(gguf_files.write_model(tmp_path / "model.gguf", model, kind), model)


def test_logits_of_mixed_types(tmp_path: Path) -> None:
    """As in files of type Q4_K_M, where matrices that one product reads together are of several types."""
    types = {"token_embd": Type.Q6_K, "output": Type.F16, "attn_v": Type.Q6_K, "attn_k": Type.Q8_0, "ffn_up": Type.F32}
    model = hugging_face(**WIDE)
    path = gguf_files.write_model(
        tmp_path / "model.gguf", model, lambda name: types.get(name.split(".")[-2], Type.Q4_K)
    )
    ours = check_logits(path, model)
    assert ours.weights.info("blk.1.attn_v.weight")["format"] == "q6_k"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="grouped"),
        pytest.param({"num_key_value_heads": 8}, id="ungrouped"),
        pytest.param({"num_key_value_heads": 1}, id="one-kv-head"),
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param({"attention_bias": True}, id="attention-biases"),
        pytest.param({"mlp_bias": True}, id="mlp-biases"),
        pytest.param({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, id="all-biases"),
        pytest.param({"head_dim": 24}, id="wide-heads"),
        pytest.param({"head_dim": 6}, id="narrow-heads"),
        pytest.param({"rms_norm_eps": 0.1}, id="epsilon"),
        pytest.param({"rope": {"rope_theta": 500000.0}}, id="theta"),
        pytest.param({"mistral": True, "sliding_window": None}, id="mistral"),
        pytest.param({"mistral": True, "sliding_window": 1}, id="window-1"),
        pytest.param({"mistral": True, "sliding_window": 7}, id="window-7"),
        pytest.param({"mistral": True, "sliding_window": 48}, id="window-48"),
    ],
)
def test_logits_of_every_config(changes: dict[str, Any], tmp_path: Path) -> None:
    model = hugging_face(**changes)
    ours = check_logits(gguf_files.write_model(tmp_path / "model.gguf", model), model)
    theirs = model.config
    config = ours.config.to_dict()
    assert config == llama2cpp.Config(**config).to_dict() | {
        "dim": theirs.hidden_size,
        "hidden_dim": theirs.intermediate_size,
        "n_layers": theirs.num_hidden_layers,
        "n_heads": theirs.num_attention_heads,
        "n_kv_heads": theirs.num_key_value_heads,
        "head_dim": theirs.head_dim,
        "vocab_size": theirs.vocab_size,
        "seq_len": theirs.max_position_embeddings,
        "norm_eps": np.float32(theirs.rms_norm_eps),
        "rope_theta": theirs.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "rope_factors": (),
        "sliding_window": getattr(theirs, "sliding_window", None),
        "rope_style": "interleaved",
        "tied": theirs.tie_word_embeddings,
    }
    assert llama2cpp.Config(**config) == ours.config


def test_a_window_is_the_same_step_by_step(tmp_path: Path) -> None:
    model = hugging_face(mistral=True, sliding_window=7)
    ours = llama2cpp.load(gguf_files.write_model(tmp_path / "model.gguf", model), threads=1)
    at_once = ours.session().prefill(tokens(), all_logits=True)
    session = ours.session()
    assert agree(np.stack([session.step(token) for token in tokens()]), at_once)


def test_logits_of_linear_scaling(tmp_path: Path) -> None:
    model = hugging_face(rope={"rope_type": "linear", "factor": 3.0})
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 3.0}
    ours = check_logits(gguf_files.write_model(tmp_path / "model.gguf", model, metadata=metadata), model)
    assert ours.config.rope_scaling == {"type": "linear", "factor": 3.0}


@pytest.mark.parametrize("betas", [None, (4.0, 0.25)])
def test_logits_of_yarn(tmp_path: Path, betas: tuple[float, float] | None) -> None:
    rope = {"rope_type": "yarn", "factor": 6.0, "original_max_position_embeddings": 40}
    metadata: dict[str, Any] = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 6.0,
        "llama.rope.scaling.original_context_length": 40,
    }
    if betas is not None:
        rope |= {"beta_fast": betas[0], "beta_slow": betas[1]}
        metadata |= {"llama.rope.scaling.yarn_beta_fast": betas[0], "llama.rope.scaling.yarn_beta_slow": betas[1]}
    model = hugging_face(rope=rope)
    ours = check_logits(gguf_files.write_model(tmp_path / "model.gguf", model, metadata=metadata), model)
    assert ours.config.rope_scaling is not None
    assert ours.config.rope_scaling["type"] == "yarn"


def test_logits_of_llama_3_scaling_as_gguf_has_it(tmp_path: Path) -> None:
    plain = hugging_face().model.rotary_emb.inv_freq
    model = hugging_face(rope=LLAMA3)
    factors = (plain / model.model.rotary_emb.inv_freq).float().numpy()
    assert factors.min() == 1
    assert factors.max() == 8
    path = gguf_files.write_model(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": (factors, Type.F32)})
    ours = check_logits(path, model)
    assert ours.config.rope_factors == tuple(factors)
    assert "rope_freqs.weight" not in ours.weights


def test_logits_of_llama_3_scaling_by_its_parameters(tmp_path: Path) -> None:
    model = hugging_face(rope=LLAMA3)
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_context": 64,
    }
    ours = llama2cpp.load(gguf_files.write_model(tmp_path / "model.gguf", model))
    scaled = llama2cpp.Config(**(ours.config.to_dict() | {"rope_scaling": scaling}))
    session = llama2cpp.from_arrays(scaled, dict(ours.weights)).session()
    assert largest_error(session.prefill(tokens(), all_logits=True), logits_of(model)) < TOLERANCE


def test_arrays_under_the_files_names_are_the_same_model(tmp_path: Path) -> None:
    model = hugging_face(attention_bias=True, mlp_bias=True)
    factors = (np.arange(4, dtype=np.float32) + 1, Type.F32)
    ours = llama2cpp.load(
        gguf_files.write_model(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": factors})
    )
    again = llama2cpp.from_arrays(ours.config, dict(ours.weights))
    expected = ours.session().prefill(tokens(), all_logits=True)
    np.testing.assert_array_equal(again.session().prefill(tokens(), all_logits=True), expected)


def test_biases_by_hugging_faces_names() -> None:
    model = hugging_face(attention_bias=True, mlp_bias=True)
    arrays = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    config = llama2cpp.Config(
        dim=64, hidden_dim=96, n_layers=2, n_heads=8, n_kv_heads=2, vocab_size=61, seq_len=128, norm_eps=1e-6,
        rope_style="half_split",
    )  # fmt: skip
    session = llama2cpp.from_arrays(config, arrays).session()
    assert largest_error(session.prefill(tokens(), all_logits=True), logits_of(model)) < TOLERANCE


# --- options


@pytest.mark.cpu_bits("int8 activations")
def test_what_auto_means(tmp_path: Path) -> None:
    model = hugging_face(**WIDE)
    expected = {
        Type.F32: ("f32", "f32"),
        Type.F16: ("f16", "f32"),
        Type.BF16: ("f16", "f32"),
        Type.Q8_0: ("f16", "int8"),
        Type.Q4_K: ("f16", "int8"),
    }
    for kind, options in expected.items():
        ours = llama2cpp.load(gguf_files.write_model(tmp_path / f"{kind.name}.gguf", model, kind))
        assert (ours.kv_dtype, ours.activation_dtype) == options, kind.name
        assert ours.file_format == "GGUF v3"


def test_read_instead_of_mapped(tmp_path: Path) -> None:
    model = hugging_face()
    path = gguf_files.write_model(tmp_path / "model.gguf", model)
    mapped, read = (llama2cpp.load(path, mmap=mmap).session().prefill(tokens()) for mmap in (True, False))
    np.testing.assert_array_equal(mapped, read)


# --- large and real files

OPEN_AND_MEASURE = """
import sys, time, llama2cpp
def resident():
    if sys.platform != "linux":
        return 0
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
before, start = resident(), time.perf_counter()
model = llama2cpp.load(sys.argv[1])
milliseconds = int(1000 * (time.perf_counter() - start))
print(model.config.n_layers, len(model.weights), resident() - before, milliseconds)
"""


def opened(path: Path) -> list[int]:
    """Layers, weights, kilobytes and milliseconds of a process that opens the file."""
    command = [sys.executable, "-c", OPEN_AND_MEASURE, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_70b_opens_without_being_read(tmp_path: Path) -> None:
    """Llama 2 70B in Q4_0: 39 GB, of which the file system holds only the header."""
    sizes = gguf_files.llama_metadata(
        llama__context_length=4096,
        llama__embedding_length=8192,
        llama__block_count=80,
        llama__feed_forward_length=28672,
        llama__attention__head_count=64,
        llama__attention__head_count_kv=8,
    )
    tensors = gguf_files.llama_tensors(sizes, vocab_size=32000, kind=Type.Q4_0, bits=4.5)
    file = gguf_files.File([gguf_files.value(key, setting) for key, setting in sizes.items()], tensors)
    path = tmp_path / "70b.gguf"
    path.write_bytes(file.header())
    os.truncate(path, len(file.header()) + file.data_bytes())
    assert path.stat().st_size > 38e9

    layers, weights, kilobytes, milliseconds = opened(path)
    print(f"70B opened in {milliseconds} ms, {kilobytes / 1024:.1f} MB more resident")
    assert (layers, weights) == (80, 80 * 9 + 2)
    assert kilobytes < 64 * 1024  # 161 gains of 8,192 floats, as a page of zeros each and as floats, are 11 MB


def test_smollm2(smollm2_path: Path) -> None:
    layers, weights, kilobytes, milliseconds = opened(smollm2_path)
    print(f"SmolLM2-135M opened in {milliseconds} ms, {kilobytes / 1024:.1f} MB more resident")
    assert (layers, weights) == (30, 272)
    model = llama2cpp.load(smollm2_path)
    assert model.file_format == "GGUF v3"
    assert model.config == llama2cpp.Config(
        dim=576, hidden_dim=1536, n_layers=30, n_heads=9, n_kv_heads=3, vocab_size=49152, seq_len=8192,
        norm_eps=1e-5, rope_theta=100000.0, tied=True,
    )  # fmt: skip
    reader = GGUFReader(smollm2_path)
    assert set(model.weights) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = gguf_files.decoded(tensor.data, tensor.tensor_type)
        assert_same_bits(np.asarray(model.weights[tensor.name]), expected)


def test_the_tokenizer_of_smollm2(smollm2_path: Path) -> None:
    core = llama2cpp.load(smollm2_path)._core
    tokenizer = core.tokenizer
    assert core.tokenizer_problem == ""
    assert tokenizer is not None
    assert tokenizer.vocab_size == 49152
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert tokenizer.piece(2) == b"<|im_end|>"
