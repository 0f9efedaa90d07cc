"""Exports from PyTorch's files: Meta's folders, against transformers, and llama2.c's training checkpoints."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import meta_files
import numpy as np
import pytest
import tiny
import torch
from hf_folders import Spec
from tokenizer_files import ALL_BYTES, lines_of

import llama2cpp
from llama2cpp import FormatError
from llama2cpp.export import convert
from llama2cpp.export.opening import open_checkpoint
from llama2cpp.export.source import Source

# hidden sizes that Meta's formula gives: 256 -> 682 -> 704 (Llama 2); 682 * 1.3 = 886 -> 896 (Llama 3)
LLAMA2 = {
    "vocab_size": 48,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LLAMA3 = {
    "vocab_size": 48,
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
PARAMS2 = {"dim": 256, "multiple_of": 32, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-05, "vocab_size": -1}
PARAMS3 = {
    "dim": 256,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 2,
    "vocab_size": 48,
    "multiple_of": 128,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
# name: settings of transformers', params.json, the axis by which embeddings are cut, what the context must be
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int, int]] = {
    "Llama 1": (LLAMA2 | {"rms_norm_eps": 1e-6}, PARAMS2 | {"norm_eps": 1e-6}, 1, 2048),
    "Llama 2": (LLAMA2 | {"rms_norm_eps": 1e-5}, PARAMS2, 1, 4096),
    "Llama 3": (LLAMA3 | {"rms_norm_eps": 1e-5, "rope_parameters": PLAIN}, PARAMS3, 0, 8192),
    "Llama 3.1": (
        LLAMA3 | {"rms_norm_eps": 1e-5, "rope_parameters": SCALED},
        PARAMS3 | {"use_scaled_rope": True, "vocab_size": -1},
        0,
        131072,
    ),
    "Llama 3.2": (
        LLAMA3 | {"rms_norm_eps": 1e-5, "rope_parameters": SCALED | {"factor": 32.0}, "tie_word_embeddings": True},
        PARAMS3 | {"use_scaled_rope": True},
        0,
        131072,
    ),
}


def meta_folder(folder: Path, kind: str, shards: int, dtype: torch.dtype = torch.float32) -> tuple[Path, Any]:
    settings, params, axis, _ = KINDS[kind]
    model = Spec(settings=settings, dtype=dtype).model()
    weights = meta_files.shard(meta_files.of_transformers(model), shards, embedding_axis=axis)
    return meta_files.save_meta_folder(folder, weights, params), model


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_meta_folders_have_transformers_logits(tmp_path: Path, kind: str, shards: int) -> None:
    source, model = meta_folder(tmp_path / "meta", kind, shards)
    done = convert(source, tmp_path / "m.gguf")
    assert done.format == "f32"
    ids = tiny.tokens(llama2cpp.load(done.path).config, 40)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    with llama2cpp.load(done.path, kv_dtype="f32") as after:
        logits = after.session(64).prefill(ids, all_logits=True)
        assert after.config.seq_len == KINDS[kind][3]
        assert after.config.tied == (kind == "Llama 3.2")
    np.testing.assert_allclose(logits, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_meta_numbers_come_through_unchanged(tmp_path: Path, dtype: torch.dtype) -> None:
    """Half precision of four shards, to the bit; and the folder of the same width is chosen without being told."""
    source, model = meta_folder(tmp_path / "meta", "Llama 2", 4, dtype)
    done = convert(source, tmp_path / "folder")
    assert done.format == {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    with llama2cpp.load(done.path) as after:
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(after.weights[name], tensor.float().numpy())


def test_one_shard_or_several_are_one_model(tmp_path: Path) -> None:
    written = []
    for shards in (1, 2, 4):
        source, _ = meta_folder(tmp_path / f"meta{shards}", "Llama 2", shards)
        written.append(convert(source, tmp_path / f"{shards}.bin"))
    assert len({done.path.read_bytes() for done in written}) == 1


def test_a_file_of_a_meta_folder_stands_for_it(tmp_path: Path) -> None:
    source, _ = meta_folder(tmp_path / "meta", "Llama 2", 2)
    by_file = convert(source / "consolidated.01.pth", tmp_path / "file.bin").path
    assert by_file.read_bytes() == convert(source, tmp_path / "folder.bin").path.read_bytes()


def test_meta_tokenizers(tmp_path: Path, models_dir: Path) -> None:
    """SentencePiece beside the shards or above them; tiktoken; one of another size stays behind with a note."""
    text = "Once upon a time, there was a little girl named Lily."
    settings: dict[str, Any] = LLAMA2 | {
        "rms_norm_eps": 1e-5,
        "vocab_size": 32000,
        "hidden_size": 32,
        "intermediate_size": 96,
    }
    model = Spec(settings=settings).model()
    params: dict[str, Any] = PARAMS2 | {"dim": 32}
    weights = meta_files.shard(meta_files.of_transformers(model), 1, embedding_axis=1)
    source = meta_files.save_meta_folder(tmp_path / "meta", weights, params)
    sentencepiece = models_dir / "llama2" / "tokenizer.model"
    expected = llama2cpp.Tokenizer.from_file(sentencepiece).encode(text)
    shutil.copy(sentencepiece, tmp_path / "tokenizer.model")
    done = convert(source, tmp_path / "above.gguf")
    assert (done.notes, done.tokenizer) == ((), done.path)
    (tmp_path / "tokenizer.model").rename(source / "tokenizer.model")
    done = convert(source, tmp_path / "beside.gguf")
    for name in ("above.gguf", "beside.gguf"):
        tokenizer = llama2cpp.load(tmp_path / name).tokenizer
        assert tokenizer is not None
        assert tokenizer.encode(text) == expected
    (source / "tokenizer.model").write_bytes(lines_of([*ALL_BYTES, b"On"]))
    done = convert(source, tmp_path / "other.gguf")
    assert done.tokenizer is None
    assert "513 pieces and the model a vocabulary of 32000" in done.notes[0]

    settings = LLAMA3 | {"vocab_size": 513, "rms_norm_eps": 1e-5, "rope_parameters": PLAIN}
    weights = meta_files.shard(meta_files.of_transformers(Spec(settings=settings).model()), 1, embedding_axis=0)
    llama3 = meta_files.save_meta_folder(tmp_path / "llama3", weights, PARAMS3 | {"vocab_size": 513})
    shutil.copy(source / "tokenizer.model", llama3 / "tokenizer.model")
    for target in ("llama3.gguf", "llama3-folder"):
        done = convert(llama3, tmp_path / target)
        tokenizer = llama2cpp.load(done.path).tokenizer
        assert tokenizer is not None
        assert tokenizer.encode("On!", bos=True) == [257, 256, ord("!")]


def test_a_training_checkpoint_is_its_model(tmp_path: Path, stories_dir: Path) -> None:
    """stories260K as PyTorch saves it becomes the files that its numbers came from."""
    begin = stories_dir / "stories260K.bin"
    with llama2cpp.load(begin) as stories:
        source = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", stories.config, dict(stories.weights))
    for format in ("v0", "v1", "v2"):
        ours = convert(source, tmp_path / "ours.bin", format, tokenizer=stories_dir / "tok512.bin", force=True)
        theirs = convert(begin, tmp_path / "theirs.bin", format, force=True)
        assert ours.path.read_bytes() == theirs.path.read_bytes()
        assert ours.formats == theirs.formats
    v1 = convert(source, tmp_path / "v1.bin", "v1").path
    assert v1.read_bytes() == (stories_dir / "stories260K_v1.bin").read_bytes()
    assert ours.tokenizer is not None
    assert ours.tokenizer.read_bytes() == (stories_dir / "tok512.bin").read_bytes()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_training_checkpoints_of_both_kinds(tmp_path: Path, prefix: str, tied: bool) -> None:
    config = tiny.config(tied=tied)
    arrays = tiny.arrays(config)
    source = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", config, arrays, prefix=prefix)
    done = convert(source, tmp_path / "m.bin")
    assert done.path.read_bytes() == convert(tiny.model(config), tmp_path / "e.bin").path.read_bytes()
    with llama2cpp.load(done.path) as after:
        assert after.config.to_dict() == config.to_dict()


def test_a_file_of_panels_is_that_of_the_model(tmp_path: Path, stories_dir: Path) -> None:
    """Of a training checkpoint, byte for byte: whether the engine could run the source leaves no trace."""
    begin, tokenizer = stories_dir / "stories260K.bin", stories_dir / "tok512.bin"
    with llama2cpp.load(begin) as stories:
        source = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", stories.config, dict(stories.weights))
    for format in (None, "bf16", "q8_0"):
        ours = convert(source, tmp_path / "ours.safetensors", format, tokenizer=tokenizer, force=True)
        theirs = convert(begin, tmp_path / "theirs.safetensors", format, tokenizer=tokenizer, force=True)
        assert ours.path.read_bytes() == theirs.path.read_bytes()
        assert ours.formats == theirs.formats
        assert ours.tokenizer == ours.path


@pytest.mark.cpu_bits("panels")
@pytest.mark.parametrize("format", [None, "f32", "q4_k_m", "q5_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_panels_of_meta_folders(tmp_path: Path, dtype: torch.dtype, format: str | None) -> None:
    """The logits of a GGUF of these types, to the bit; without a format every number stays what it was."""
    source, model = meta_folder(tmp_path / "meta", "Llama 3", 2, dtype)
    done = convert(source, tmp_path / "m.safetensors", format)
    own = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    gguf = convert(source, tmp_path / "m.gguf", format or own)
    ids = tiny.tokens(llama2cpp.load(gguf.path).config, 20)
    with llama2cpp.load(done.path, kv_dtype="f32") as packed, llama2cpp.load(gguf.path, kv_dtype="f32") as file:
        assert packed.file_format == "panels v4"
        expected = file.session(64).prefill(ids, all_logits=True)
        np.testing.assert_array_equal(packed.session(64).prefill(ids, all_logits=True), expected)
        if format is None:
            assert set(done.formats.values()) == {own}
            for name, tensor in meta_files.of_transformers(model).items():
                np.testing.assert_array_equal(packed.weights[name], tensor.float().numpy())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak of a process")
def test_memory_of_a_file_of_panels(tmp_path: Path) -> None:
    """Near one weight's size: its numbers in float32, as they are stored, and in panels."""
    big = tiny.config(dim=512, hidden_dim=1408, n_layers=12, n_heads=8, n_kv_heads=8, vocab_size=512, tied=True)
    source = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", big, tiny.arrays(big))
    code = f"""
        import torch, llama2cpp
        from llama2cpp.export import torch_files
        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        torch_files._TOUCHED = 4 << 20
        torch.zeros(1).copy_(torch.zeros(1, dtype=torch.bfloat16))
        begin = peak()
        llama2cpp.export.convert({str(source)!r}, {str(tmp_path / "m.safetensors")!r}, threads=1)
        print(peak() - begin)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=True
    )
    assert int(result.stdout) < source.stat().st_size / 3


def test_pages_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is mapped anew all the time here, and the numbers stay the same."""
    source, _ = meta_folder(tmp_path / "meta", "Llama 2", 2)
    expected = convert(source, tmp_path / "a.bin").path.read_bytes()
    monkeypatch.setattr("llama2cpp.export.torch_files._TOUCHED", 1000)
    assert convert(source, tmp_path / "b.bin").path.read_bytes() == expected


def test_command_and_report(tmp_path: Path, stories_dir: Path) -> None:
    with llama2cpp.load(stories_dir / "stories260K.bin") as stories:
        source = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", stories.config, dict(stories.weights))
    command = [sys.executable, "-m", "llama2cpp", "export", source, tmp_path / "m.gguf", "-f", "q8_0", "--json"]
    command += ["-z", stories_dir / "tok512.bin"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["formats"]["layers.0.attention.wq.weight"] == "q8_0"
    assert 0 < facts["comparison"]["mean_kl"] < 0.01
    assert facts["comparison"]["tensors"][0]["format_a"] == "f32"


def test_load_points_to_export(tmp_path: Path) -> None:
    source, _ = meta_folder(tmp_path / "meta", "Llama 2", 1)
    for path in (source, source / "consolidated.00.pth"):
        with pytest.raises(FormatError, match="`llama2cpp export` reads"):
            llama2cpp.load(path)


def change_params(folder: Path, **changes: Any) -> None:
    path = folder / "params.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}))


def change_shard(folder: Path, changes: dict[str, torch.Tensor | None], shard: int = 0) -> None:
    path = folder / f"consolidated.{shard:02}.pth"
    tensors = torch.load(path, weights_only=True) | changes
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


WQ = "layers.1.attention.wq.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_params(f, dim=...), "'dim' is missing"),
        (lambda f: change_params(f, dim="256"), "'dim' is '256', expected a number"),
        (lambda f: change_params(f, moe={"num_experts": 8}), "'moe' is a setting that this version does not know"),
        (lambda f: change_params(f, n_heads=5), "params.json: .*n_heads"),
        (lambda f: change_params(f, multiple_of=256), r"w1.weight has shape \[352, 256\] in each of 2 files, expected"),
        (lambda f: change_params(f, vocab_size=49), r"tok_embeddings.weight has shape \[48, 128\]"),
        (lambda f: (f / "params.json").write_text("{"), r"params.json: Expecting property name"),
        (lambda f: (f / "params.json").write_text("[]"), "expected an object of settings, found list"),
        (lambda f: change_shard(f, {WQ: None}), "attention.wq.weight is in 1 of 2 shards"),
        (lambda f: change_shard(f, {WQ: torch.zeros(3, 3)}), r"has shape \[.*\] and \[.*\] in each of 2 files"),
        (lambda f: change_shard(f, {"layers.0.attention.wq.scales": torch.zeros(3)}), "wq.scales' has no place"),
        (lambda f: change_shard(f, {"layers.2.attention.wq.weight": torch.zeros(3)}), "is in 1 of 2 shards"),
        (lambda f: change_shard(f, {WQ: torch.zeros(128, 256, dtype=torch.int8)}), "has type torch.int8"),
        (lambda f: (f / "consolidated.01.pth").write_bytes(b"nonsense"), "expected a file of torch.save"),
        (lambda f: (f / "consolidated.01.pth").write_bytes(b""), "expected a file of torch.save"),
        (lambda f: (f / "consolidated.01.pth").write_bytes(pickle.dumps(shutil.rmtree)), "expected a file of torch"),
        (lambda f: (f / "consolidated.00.pth").rename(f / "consolidated.02.pth"), "but no consolidated.00.pth"),
        (lambda f: torch.save([1, 2], f / "consolidated.01.pth"), "expected a dict of tensors, found list"),
        (lambda f: torch.save({WQ: 7}, f / "consolidated.01.pth"), "expected a tensor, found int"),
    ],
)
def test_damaged_meta_folders(tmp_path: Path, damage: Any, message: str) -> None:
    source, _ = meta_folder(tmp_path / "meta", "Llama 2", 2)
    damage(source)
    with pytest.raises((FormatError, FileNotFoundError), match=message):
        convert(source, tmp_path / "m.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


def test_what_has_no_place_is_no_model(tmp_path: Path) -> None:
    """More layers than params.json says, and biases: a file without them would be another model."""
    for i, extra in enumerate(("layers.2.attention.wq.weight", "layers.0.attention.wq.bias")):
        source, _ = meta_folder(tmp_path / f"meta{i}", "Llama 2", 1)
        change_shard(source, {extra: torch.zeros(256)})
        with pytest.raises(FormatError, match=f"{extra} has no place in a Llama of 2 layers without biases"):
            convert(source, tmp_path / "m.bin")


def test_other_errors(tmp_path: Path) -> None:
    source, _ = meta_folder(tmp_path / "meta", "Llama 2", 1)
    (source / "consolidated.00.pth").rename(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="no consolidated"):
        convert(source, tmp_path / "m.bin")
    with pytest.raises(
        FormatError, match=r"expected a training checkpoint of llama2.c \('model', 'model_args'\), found"
    ):
        convert(tmp_path / "weights.pth", tmp_path / "m.bin")
    config = tiny.config()
    ckpt = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", config, tiny.arrays(config))
    content = torch.load(ckpt, weights_only=True)
    del content["model_args"]["n_heads"]
    torch.save(content, ckpt)
    with pytest.raises(FormatError, match="model_args has no 'n_heads'"):
        convert(ckpt, tmp_path / "m.bin")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "missing.pt", tmp_path / "m.bin")


def test_without_torch(tmp_path: Path) -> None:
    config = tiny.config()
    ckpt = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", config, tiny.arrays(config))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import llama2cpp\n"
        f"llama2cpp.export.convert({str(ckpt)!r}, {str(tmp_path / 'm.bin')!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert "ImportError: reading .pth and .pt files needs PyTorch: run `pip install torch`" in result.stderr


def test_a_source_reads_one_weight_at_a_time(tmp_path: Path) -> None:
    """Names, shapes and formats are known before anything is decoded."""
    source, model = meta_folder(tmp_path / "meta", "Llama 3", 2, torch.bfloat16)
    checkpoint = open_checkpoint(source)
    numbers = Source(checkpoint)
    assert numbers.names()[:2] == ["tok_embeddings.weight", "layers.0.attention_norm.weight"]
    assert numbers.shape("layers.0.attention.wk.weight") == (64, 256)
    assert numbers.stored_format(WQ) == "bf16"
    assert checkpoint.weights.info(WQ)["bytes"] == 256 * 256 * 2
    theirs = model.state_dict()["model.layers.1.self_attn.q_proj.weight"].float().numpy()
    np.testing.assert_array_equal(numbers.array(WQ, "half_split"), theirs)
    checkpoint.close()
