"""Every checkpoint to every other: the model stays the same, and others read what we write."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import numpy as np
import pytest
import tiny
from examples import run_examples
from gguf import GGMLQuantizationType as Type
from gptq_files import quantize_folder
from hf_folders import Spec
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import _core
from llama2cpp.export import convert
from llama2cpp.export.gguf_file import formats_of
from llama2cpp.export.mixtures import MIXTURES, MXFP4
from llama2cpp.export.source import Source, reorder_rows

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
FLOATS = ("f32", "f16", "bf16")


def sizes(**changed: Any) -> llama2cpp.Config:
    """Grouped heads, two biggest powers of 2 that rows have, and no output matrix shared."""
    usual = {"dim": 64, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 96}
    return tiny.config(**(usual | changed))


def logits_of(model: llama2cpp.Model, count: int = 24) -> NDArray[np.float32]:
    return model.session().prefill(tiny.tokens(model.config, count), all_logits=True)


def opened(path: Path, **options: Any) -> llama2cpp.Model:
    return llama2cpp.load(path, activation_dtype="f32", kv_dtype="f32", **options)


# Each source is the same model, and so is each target.

SOURCES = {
    "llama2.c v0": ("source.bin", "v0"),
    "llama2.c v1": ("source.bin", "v1"),
    "llama2.c v2": ("source.bin", "v2"),
    "GGUF": ("source.gguf", "f32"),
    "GGUF q8_0": ("source.gguf", "q8_0"),
    "folder": ("source", "f32"),
    "folder bf16": ("source", "bf16"),
}
TARGETS = {
    "v0": ("target.bin", "v0", 1e-6),
    "v1": ("target.bin", "v1", 1e-6),
    "v2": ("target.bin", "v2", 0.05),
    "GGUF f32": ("target.gguf", "f32", 1e-6),
    "GGUF bf16": ("target.gguf", "bf16", 0.03),
    "GGUF q4_1": ("target.gguf", "q4_1", 0.4),
    "folder f32": ("target", "f32", 1e-6),
    "folder f16": ("target", "f16", 0.003),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_source_to_every_target(tmp_path: Path, source: str, target: str) -> None:
    tied = (list(SOURCES).index(source) + list(TARGETS).index(target)) % 2 == 0  # each of both with some of the other
    name, format = SOURCES[source]
    begin = convert(tiny.model(sizes(tied=tied)), tmp_path / name, format).path
    name, format, tolerance = TARGETS[target]
    done = convert(begin, tmp_path / name, format)
    with opened(begin) as before, opened(done.path) as after:
        assert after.config.tied == tied
        expected = logits_of(before)
        assert np.linalg.norm(logits_of(after) - expected) < tolerance * np.linalg.norm(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({begin.name, done.path.name})
    assert done.bytes == sum(path.stat().st_size for path in [*done.path.glob("*"), done.path] if path.is_file())


@pytest.mark.parametrize("between", [("m.gguf", "f32"), ("m", "f32"), ("m.bin", "v1")])
def test_float32_comes_back_to_the_byte(tmp_path: Path, between: tuple[str, str]) -> None:
    begin = convert(tiny.model(sizes()), tmp_path / "begin.bin", "v0").path
    middle = convert(begin, tmp_path / between[0], between[1]).path
    end = convert(middle, tmp_path / "end.bin", "v0").path
    assert end.read_bytes() == begin.read_bytes()


@pytest.mark.parametrize("format", ["f16", "bf16"])
def test_half_precision_comes_back_to_the_byte(tmp_path: Path, format: str) -> None:
    begin = convert(tiny.model(sizes()), tmp_path / "begin", format).path
    middle = convert(begin, tmp_path / "middle.gguf").path
    end = convert(middle, tmp_path / "end").path  # the same format without being told
    assert (end / "model.safetensors").read_bytes() == (begin / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_are_reordered_by_heads(kv_heads: int) -> None:
    """As transformers' own conversion of Meta's files permutes them, which llama2.c's gets wrong for grouped heads."""
    rows = np.arange(kv_heads * 16 * 3, dtype=np.float32).reshape(kv_heads * 16, 3)
    half_split = reorder_rows(rows, 16, "half_split")
    expected = rows.reshape(kv_heads, 16 // 2, 2, 3).transpose(0, 2, 1, 3).reshape(kv_heads * 16, 3)
    np.testing.assert_array_equal(half_split, expected)
    np.testing.assert_array_equal(reorder_rows(half_split, 16, "interleaved"), rows)


def test_gptq_folder(tmp_path: Path) -> None:
    folder = Spec(settings={"hidden_size": 128, "intermediate_size": 160}).save(tmp_path / "gptq")
    quantize_folder(folder, 4, 32, 1, True)
    for name, format in (("m.gguf", "f32"), ("m", "f32")):
        done = convert(folder, tmp_path / name, format)
        with opened(folder) as before, opened(done.path) as after:
            expected = logits_of(before)
            assert np.linalg.norm(logits_of(after) - expected) < 1e-5 * np.linalg.norm(expected)
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())


# llama2.c


@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("tied", [False, True])
def test_llama2c_files_are_the_other_writer_s(tmp_path: Path, tied: bool, group: int | None) -> None:
    config = sizes(tied=tied)
    arrays = tiny.arrays(config)
    fields = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len", "tied")
    header = checkpoints.Sizes(**{name: getattr(config, name) for name in fields})
    model = llama2cpp.from_arrays(config, arrays)
    for version in (1, 2):
        done = convert(model, tmp_path / f"v{version}.bin", f"v{version}", group=group)
        assert done.path.read_bytes() == checkpoints.checkpoint_bytes(version, header, arrays, group or 32)


def test_real_checkpoint_comes_back(tmp_path: Path, stories_dir: Path) -> None:
    """stories260K as its author wrote it, but for the rotary tables, which differ in the last bits."""
    begin = stories_dir / "stories260K.bin"
    end = convert(begin, tmp_path / "end.bin", tokenizer=stories_dir / "tok512.bin")
    ours, theirs = (np.frombuffer(path.read_bytes()[28:], dtype=np.float32) for path in (end.path, begin))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    tables = slice(ours.size - 2 * 512 * 4, None)
    np.testing.assert_array_equal(np.delete(ours, tables), np.delete(theirs, tables))
    v1 = convert(begin, tmp_path / "v1.bin", "v1").path
    assert v1.read_bytes() == (stories_dir / "stories260K_v1.bin").read_bytes()
    assert end.tokenizer == tmp_path / "end.tokenizer.bin"
    assert end.tokenizer.read_bytes() == (stories_dir / "tok512.bin").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rope_theta": 500000.0}, "rope_theta 500000"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06"),
        ({"head_dim": 8}, "heads of 8"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled rotary frequencies"),
        ({"sliding_window": 16}, "a sliding window"),
    ],
)
def test_llama2c_cannot_say_everything(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(tiny.model(sizes(**changed)), tmp_path / "m.bin")
    assert not list(tmp_path.iterdir())


# GGUF


@pytest.mark.parametrize("format", sorted(set(MIXTURES) - {MXFP4}))  # which is for experts
def test_gguf_library_agrees_on_every_tensor(tmp_path: Path, format: str) -> None:
    model = tiny.model(sizes(dim=256, hidden_dim=352, n_layers=3))
    done = convert(model, tmp_path / "m.gguf", format)
    reader = gguf.GGUFReader(done.path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    source = Source(model)
    with llama2cpp.load(done.path) as ours:
        assert set(tensors) == set(ours.weights)
        for name in source.names():
            tensor = tensors[str(_core.rename_weight(name, "gguf"))]
            expected = source.array(name, "interleaved")
            assert tensor.tensor_type.name.lower() == done.formats[name] == ours.weights.info(tensor.name)["format"]
            theirs = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
            np.testing.assert_array_equal(ours.weights[tensor.name], theirs)
            assert np.linalg.norm(theirs - expected) <= 0.35 * np.linalg.norm(expected)
            if tensor.tensor_type.name.lower() not in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"):
                stored = np.asarray(gguf.quantize(expected, tensor.tensor_type)).view(np.uint8)
                np.testing.assert_array_equal(tensor.data.view(np.uint8).ravel(), stored.ravel())


def llama_cpp_types(begin: Path, end: Path, format: str) -> dict[str, str]:
    """The type that llama.cpp's own quantizer gives each tensor."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    low = llama_cpp.llama_cpp
    settings = low.llama_model_quantize_default_params()
    settings.ftype = int(gguf.LlamaFileType[MIXTURES[format].file_type])
    assert low.llama_model_quantize(os.fsencode(begin), os.fsencode(end), ctypes.byref(settings)) == 0
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(end).tensors}


@pytest.mark.parametrize(("tied", "kv_heads", "hidden_dim"), [(False, 4, 352), (True, 1, 512)])
def test_mixtures_are_llama_cpp_s(tmp_path: Path, tied: bool, kv_heads: int, hidden_dim: int) -> None:
    model = tiny.model(sizes(dim=256, hidden_dim=hidden_dim, n_layers=17, n_kv_heads=kv_heads, tied=tied))
    begin = convert(model, tmp_path / "begin.gguf", "f16").path
    for format in sorted(
        set(MIXTURES) - {*FLOATS, MXFP4, "q2_k_s"}
    ):  # which llama.cpp makes with an importance matrix only
        formats = formats_of(Source(model), format, pure=False, fused={})
        ours = {str(_core.rename_weight(name, "gguf")): kind for name, kind in formats.items()}
        theirs = llama_cpp_types(begin, tmp_path / "theirs.gguf", format)
        assert ours == {name: "q4_0" if kind == "iq4_nl" else kind for name, kind in theirs.items()}, format


def test_pure(tmp_path: Path) -> None:
    model = tiny.model(sizes(dim=256, hidden_dim=512, n_layers=3))
    formats = convert(model, tmp_path / "m.gguf", "q4_k", pure=True).formats
    assert {kind for name, kind in formats.items() if "norm" not in name} == {"q4_k"}
    assert {kind for name, kind in formats.items() if "norm" in name} == {"f32"}


def test_importance_reaches_the_search(tmp_path: Path) -> None:
    model = tiny.model(sizes(dim=256, hidden_dim=512))
    name = "layers.0.feed_forward.w1.weight"
    importance = np.where(np.arange(256) < 32, 100.0, 0.01).astype(np.float32)
    errors = []
    for chosen in (None, {name: importance}):
        done = convert(model, tmp_path / "m.gguf", "q2_k", pure=True, importance=chosen, force=True)
        with llama2cpp.load(done.path) as after:
            difference = after.weights["blk.0.ffn_gate.weight"] - model.weights[name]
        errors.append(float(np.mean(difference[:, :32] ** 2)))
    assert errors[1] < errors[0]


ROTARY = {
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_context": 8192,
    },
}


@pytest.mark.parametrize("kind", ROTARY)
def test_rotary_scaling_goes_along(tmp_path: Path, kind: str) -> None:
    model = tiny.model(sizes(rope_scaling=ROTARY[kind], rope_theta=500000.0, head_dim=32), activation_dtype="f32")
    middle = convert(model, tmp_path / "m.gguf", "f32").path
    end = convert(middle, tmp_path / "m").path
    for path in (middle, end):
        with opened(path) as after:
            np.testing.assert_allclose(logits_of(after), logits_of(model), atol=2e-5, rtol=1e-5)
    assert opened(end).config.rope_scaling == ROTARY[kind]


def test_unknown_rotary_factors_have_no_folder(tmp_path: Path) -> None:
    model = tiny.model(sizes(rope_factors=np.linspace(1, 3, 8).tolist()))
    with pytest.raises(ValueError, match="no setting for this model's rotary frequencies"):
        convert(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_biases_go_along(tmp_path: Path) -> None:
    config = sizes()
    arrays = tiny.arrays(config)
    rng = np.random.default_rng(5)
    for layer in range(config.n_layers):
        for part, rows in (("wq", 64), ("wk", 32), ("wv", 32)):
            arrays[f"layers.{layer}.attention.{part}.bias"] = rng.standard_normal(rows).astype(np.float32)
    model = llama2cpp.from_arrays(config, arrays)
    middle = convert(model, tmp_path / "m.gguf", "f32").path
    end = convert(middle, tmp_path / "m", "f32").path
    for path in (middle, end):
        with opened(path) as after:
            np.testing.assert_allclose(logits_of(after), logits_of(model), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="biases"):
        convert(model, tmp_path / "m.bin")


# Other programs


def transformers_logits(path: Path, ids: list[int]) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tied": True},
        {"head_dim": 32, "rope_theta": 500000.0},
        {"rope_scaling": ROTARY["llama3"]},
        {"rope_scaling": ROTARY["linear"]},
        {"sliding_window": 8, "norm_eps": 1e-6},
    ],
    ids=["usual", "tied", "wide heads", "llama3", "linear", "window"],
)
def test_transformers_has_equal_logits(tmp_path: Path, changed: dict[str, Any]) -> None:
    model = tiny.model(sizes(**changed))
    path = convert(model, tmp_path / "m", "f32").path
    ids = tiny.tokens(model.config, 24)
    np.testing.assert_allclose(transformers_logits(path, ids), logits_of(model), atol=2e-5, rtol=1e-4)


def test_transformers_has_equal_logits_with_biases(tmp_path: Path) -> None:
    config = sizes()
    arrays = tiny.arrays(config)
    for layer in range(config.n_layers):
        arrays[f"layers.{layer}.attention.wk.bias"] = np.linspace(-1, 1, 32, dtype=np.float32)
    model = llama2cpp.from_arrays(config, arrays)
    path = convert(model, tmp_path / "m", "f32").path
    ids = tiny.tokens(config, 24)
    np.testing.assert_allclose(transformers_logits(path, ids), logits_of(model), atol=2e-5, rtol=1e-4)


def llama_cpp_text(path: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens, one after another."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False, logits_all=True)
    try:
        model.eval(ids)
        tokens = []
        for _ in range(count):
            tokens.append(int(np.argmax(model.scores[model.n_tokens - 1])))
            model.eval(tokens[-1:])
        return tokens
    finally:
        model.close()


def our_text(path: Path, ids: list[int], count: int) -> list[int]:
    with opened(path) as model:
        session = model.session()
        logits = session.prefill(ids)
        tokens = []
        for _ in range(count):
            tokens.append(int(np.argmax(logits)))
            logits = session.step(tokens[-1])
        return tokens


@pytest.mark.parametrize("format", ["f32", "f16", "q8_0", "q5_1", "q4_k"])
def test_llama_cpp_writes_the_same_text(tmp_path: Path, stories: llama2cpp.Model, format: str) -> None:
    path = convert(stories, tmp_path / "m.gguf", format).path
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode("Once upon a time")
    assert our_text(path, ids, 40) == llama_cpp_text(path, ids, 40)


@pytest.mark.parametrize("format", ["f16", "q4_k_m"])
def test_llama_cpp_writes_the_same_text_as_smollm2(tmp_path: Path, smollm2_path: Path, format: str) -> None:
    path = convert(smollm2_path, tmp_path / "m.gguf", format).path
    with llama2cpp.load(path) as model:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("The capital of France is", special=True)
    assert our_text(path, ids, 24) == llama_cpp_text(path, ids, 24)


# Writing


@pytest.mark.parametrize(("name", "format"), [("m.bin", "v2"), ("m.gguf", "q4_0"), ("m", "f16")])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, name: str, format: str) -> None:
    model = tiny.model(sizes())

    def interrupt(weight: str, done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / name, format, progress=interrupt)
    assert list(tmp_path.iterdir()) == []

    before = convert(model, tmp_path / name, format).path
    kept = {file: file.read_bytes() for file in [before, *before.glob("*")] if file.is_file()}
    with pytest.raises(KeyboardInterrupt):
        convert(tiny.model(sizes(), seed=1), tmp_path / name, format, force=True, progress=interrupt)
    assert list(tmp_path.iterdir()) == [before]
    assert {file: file.read_bytes() for file in [before, *before.glob("*")] if file.is_file()} == kept


@pytest.mark.parametrize(("name", "format"), [("m.bin", "v2"), ("m.gguf", "q4_0"), ("m", "f16")])
def test_replaces_only_with_force(tmp_path: Path, name: str, format: str) -> None:
    first, second = tiny.model(sizes()), tiny.model(sizes(), seed=1)
    path = convert(first, tmp_path / name, format).path
    with pytest.raises(FileExistsError, match="--force"):
        convert(second, path, format)
    convert(second, path, format, force=True)
    with opened(path) as after:
        assert np.abs(logits_of(after) - logits_of(second)).mean() < np.abs(logits_of(after) - logits_of(first)).mean()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no folder of a model"):
        convert(tiny.model(sizes()), tmp_path / "m", force=True)
    assert (tmp_path / "m" / "thesis.txt").read_text() == "years of work"


def test_a_model_can_replace_its_own_file(tmp_path: Path) -> None:
    path = convert(tiny.model(sizes()), tmp_path / "m.gguf", "f32").path
    expected = logits_of(opened(path))
    convert(path, path, "f32", force=True)
    np.testing.assert_array_equal(logits_of(opened(path)), expected)


def test_progress_counts_every_parameter(tmp_path: Path) -> None:
    model = tiny.model(sizes())
    calls: list[tuple[str, int, int]] = []
    convert(model, tmp_path / "m.gguf", progress=lambda *call: calls.append(call))
    parameters = sum(model.weights[name].size for name in model.weights)
    assert [total for _, _, total in calls] == [parameters] * len(model.weights)
    assert calls[-1][1] == parameters
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})


@pytest.mark.parametrize(
    ("target", "format", "message"),
    [
        ("m.gguf", "int8", "a .gguf file .* has no format 'int8'"),
        ("m.bin", "q4_k", "a .bin file .* has no format 'q4_k'"),
        ("m", "q8_0", "a Hugging Face folder .* has no format 'q8_0'"),
        ("m.safetensors", "int8", "a .safetensors file of panels"),
        ("m.gguf", "nonsense", "expected one of: f32"),
        ("m.pth", "f32", "expected .gguf, .bin or a folder"),
    ],
)
def test_suffix_and_format_must_fit(tmp_path: Path, target: str, format: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(tiny.model(sizes()), tmp_path / target, format)


def test_other_errors(tmp_path: Path) -> None:
    model = tiny.model(sizes())
    with pytest.raises(FileNotFoundError, match="is no folder"):
        convert(model, tmp_path / "missing" / "m.gguf")
    with pytest.raises(ValueError, match="group is 7"):
        convert(model, tmp_path / "m.bin", "int8", group=7)
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "missing.bin", tmp_path / "m.gguf")
    arrays = tiny.arrays(sizes())
    arrays["layers.1.attention.wv.weight"][3, 4] = 1e6
    large = llama2cpp.from_arrays(sizes(), arrays)
    for name, format in (("m.gguf", "f16"), ("m.gguf", "q4_0"), ("m", "f16")):
        with pytest.raises(ValueError, match=r"layers\.1\.attention\.wv\.weight has a magnitude of 1e\+06"):
            convert(large, tmp_path / name, format)
    assert list(tmp_path.iterdir()) == []
    assert convert(large, tmp_path / "m", "bf16").formats["layers.1.attention.wv.weight"] == "bf16"


def test_rows_that_no_block_divides(tmp_path: Path) -> None:
    done = convert(tiny.model(tiny.config()), tmp_path / "m.gguf", "q4_k")
    assert {kind for name, kind in done.formats.items() if "norm" not in name} == {"f16"}
    assert json.loads(json.dumps(done.formats)) == done.formats
    assert Type.F16.name.lower() in done.formats.values()


def test_import_is_light() -> None:
    heavy = ["gguf", "torch", "transformers", "safetensors", "rich"]
    code = f"import sys, llama2cpp.export; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


THINGS = [convert, llama2cpp.export.compare, llama2cpp.export.Comparison.to_dict]
THINGS += [_core.encode, _core.decode, _core.encode_int8_group, _core.row_bytes, _core.rename_weight]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: str(thing.__name__))
def test_examples(thing: Any, stories_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stories_dir)
    assert run_examples(thing) > 0
