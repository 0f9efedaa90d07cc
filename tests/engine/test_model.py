"""Opening models from files and arrays, what they tell about themselves, and what is refused."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import llama2cpp

CONFIG = tiny.config()


def test_config(stories: llama2cpp.Model) -> None:
    config = stories.config
    assert config.to_dict() == tiny.DEFAULTS | {
        "dim": 64,
        "hidden_dim": 172,
        "n_layers": 5,
        "n_heads": 8,
        "n_kv_heads": 4,
        "head_dim": 8,
        "vocab_size": 512,
        "seq_len": 512,
        "tied": True,
    }
    for name, value in config.to_dict().items():
        assert getattr(config, name) == value


def test_config_of_long_contexts() -> None:
    llama3 = {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_context": 8192,
    }
    yarn = {
        "type": "yarn",
        "factor": 4.0,
        "original_context": 4096,
        "attention_factor": 1.125,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    for scaling in (llama3, yarn, {"type": "linear", "factor": 2.0}, None):
        config = tiny.config(rope_scaling=scaling, rope_factors=[1.0, 2.0, 3.0], sliding_window=5)
        assert config.rope_scaling == scaling
        assert config.rope_factors == (1.0, 2.0, 3.0)
        assert config.sliding_window == 5
        assert pickle.loads(pickle.dumps(config)) == config
        assert config != tiny.config()


def test_config_fills_in_heads() -> None:
    config = llama2cpp.Config(dim=48, hidden_dim=9, n_layers=1, n_heads=4, vocab_size=7, seq_len=5)
    assert (config.n_kv_heads, config.head_dim) == (4, 12)


@pytest.mark.parametrize(
    ("sizes", "received"),
    [
        ({"dim": 0}, "dim"),
        ({"n_layers": -1}, "n_layers"),
        ({"n_heads": 6, "n_kv_heads": 4}, "n_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_style": "sideways"}, "sideways"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling has no 'type'"),
        ({"rope_scaling": {"type": "su"}}, "type is 'su', expected one of: linear, llama3, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "has no 'factor', which type 'linear' needs"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "rope_scaling's factor is 0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1}},
            "has 'mscale', which type 'linear' does not",
        ),
        ({"rope_factors": (1.0,)}, "1 rope_factors, expected head_dim / 2, which is 3"),
        ({"rope_factors": (1.0, -1.0, 1.0)}, "one of rope_factors is -1"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"dim": 2**62}, "dim"),
    ],
)
def test_config_that_cannot_be(sizes: dict[str, Any], received: str) -> None:
    with pytest.raises(ValueError, match=received):
        tiny.config(**sizes)


@pytest.mark.cpu_bits("says which backend and kernels it has")
def test_a_model_tells_about_itself(stories: llama2cpp.Model, stories_dir: Path) -> None:
    path = stories_dir / "stories260K.bin"
    assert stories.path == str(path)
    assert stories.file_format == "llama2.c v0"
    assert (stories.backend, stories.kv_dtype, stories.context) == ("cpu", "f32", 512)
    assert stories.threads >= 1
    assert stories.isa == llama2cpp.build_info()["isa"]
    for part in (str(path), "llama2.c v0", "5 layers", "dim 64", "vocabulary 512", stories.isa):
        assert part in repr(stories)


def test_weights_are_the_file_s(stories: llama2cpp.Model, stories_dir: Path) -> None:
    """The embedding table comes right after the header of 7 integers."""
    table = np.fromfile(stories_dir / "stories260K.bin", dtype="<f4", offset=28, count=512 * 64).reshape(512, 64)
    weight = stories.weights["tok_embeddings.weight"]
    assert (weight == table).all()
    assert not weight.flags.writeable
    assert "output.weight" not in stories.weights
    assert stories.weights.info("tok_embeddings.weight") == {"shape": (512, 64), "format": "f32", "bytes": 4 * 512 * 64}
    assert sorted(stories.weights) == sorted(tiny.arrays(stories.config))
    with pytest.raises(KeyError, match="nothing"):
        stories.weights["nothing"]
    with pytest.raises(KeyError, match="nothing"):
        stories.weights.info("nothing")


def test_arrays_are_not_copied() -> None:
    weights = tiny.arrays(CONFIG)
    model = llama2cpp.from_arrays(CONFIG, weights)
    for name, weight in weights.items():
        assert np.shares_memory(model.weights[name], weight)
        assert not model.weights[name].flags.writeable


def without(name: str) -> tiny.Arrays:
    weights = tiny.arrays(CONFIG)
    del weights[name]
    return weights


def replaced(name: str, value: Any) -> tiny.Arrays:
    return tiny.arrays(CONFIG) | {name: value}


@pytest.mark.parametrize(
    ("weights", "received"),
    [
        ({}, "name"),
        (without("layers.1.attention.wq.weight"), r"layers\.1\.attention\.wq\.weight"),
        (without("output.weight"), r"output\.weight"),
        (replaced("norm.weight", np.ones(35, np.float32)), r"norm\.weight.*35"),
        (replaced("tok_embeddings.weight", np.ones((36, 53), np.float32)), r"36.*53"),
        (replaced("tok_embeddings.weight", np.ones((53, 36), np.float64)), "float64"),
        (replaced("tok_embeddings.weight", np.ones((36, 53), np.float32).T), "contiguous"),
        (replaced("tok_embeddings.weight", np.ones((53, 36, 1), np.float32)), r"53.*36.*1"),
        (replaced("layers.2.ffn_norm.weight", np.ones(36, np.float32)), r"layers\.2\.ffn_norm"),
        (replaced("something", np.ones(3, np.float32)), "something"),
        (replaced("lm_head.weight", np.ones((53, 36), np.float32)), "lm_head"),
    ],
)
def test_arrays_that_do_not_fit(weights: tiny.Arrays, received: str) -> None:
    with pytest.raises(ValueError, match=received):
        llama2cpp.from_arrays(CONFIG, weights)


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"backend": "abacus"}, "abacus"),
        ({"threads": 0}, "threads.*0"),
        ({"threads": -2}, "-2"),
        ({"context": 0}, "context.*0"),
        ({"kv_dtype": "f64"}, "f64"),
        ({"activation_dtype": "f99"}, "f99"),
        ({"pack": "maybe"}, "maybe"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], received: str) -> None:
    with pytest.raises(ValueError, match=received):
        tiny.model(CONFIG, **options)


def test_isa_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2CPP_ISA", "mmx")
    with pytest.raises(ValueError, match=r"mmx.*scalar"):
        tiny.model(CONFIG, backend="cpu")


def test_files_that_are_not_there(tmp_path: Path, stories_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin"):
        llama2cpp.load(tmp_path / "nothing.bin")
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin"):
        llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=tmp_path / "nothing.bin")
    with pytest.raises(OSError, match=str(tmp_path)):
        llama2cpp.load(tmp_path)


def test_a_file_of_another_kind(stories_dir: Path) -> None:
    with pytest.raises(llama2cpp.FormatError):
        llama2cpp.load(stories_dir / "tok512.bin")


def test_tokenizer_given_as_path_or_object(stories_dir: Path) -> None:
    path = stories_dir / "tok512.bin"
    tokenizer = llama2cpp.Tokenizer.from_file(path)
    for given in (path, str(path), tokenizer):
        model = llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=given)
        assert model.tokenizer is not None
        assert model.tokenizer.encode("Once upon a time") == tokenizer.encode("Once upon a time")


def test_tokenizer_of_another_size(models_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"512.*53"):
        tiny.model(CONFIG, tokenizer=llama2cpp.Tokenizer.from_file(models_dir / "stories260K" / "tok512.bin"))
    with pytest.raises(ValueError, match=r"512.*32000"):
        llama2cpp.load(
            models_dir / "stories260K" / "stories260K.bin", tokenizer=models_dir / "llama2" / "tokenizer.model"
        )


def test_closing() -> None:
    model = tiny.model(CONFIG)
    with model as same:
        assert same is model
    assert repr(model) == "<llama2cpp.Model: closed>"
    for use in (model.session, lambda: model.config, lambda: model.weights, lambda: model.isa):
        with pytest.raises(ValueError, match="closed"):
            use()
    model.close()


def test_build_info() -> None:
    info = llama2cpp.build_info()
    assert info["version"] == llama2cpp.__version__
    assert info["backends"] == (("cpu", "metal") if "device" in info else ("cpu",))
    assert info.get("device") or info.get("no_metal")
    assert info["threads"] >= 1


def test_methods_have_the_names_of_their_class() -> None:
    """They are written in modules of their own; messages, help and pickles say what users call."""
    things = vars(llama2cpp.Model).items()
    methods = {name: value for name, value in things if inspect.isfunction(value) and name[0] != "_"}
    assert {"generate", "run_with_cache", "to_tokens", "with_weights"} <= methods.keys()
    for name, method in methods.items():
        inner = inspect.unwrap(method)
        assert method.__qualname__ == inner.__qualname__ == f"Model.{name}"
        assert method.__module__ == inner.__module__ == "llama2cpp.model"
        assert pickle.loads(pickle.dumps(method)) is method
    with pytest.raises(TypeError, match=r"^Model\.to_tokens\(\) missing 1 required"):
        llama2cpp.load().to_tokens()  # type: ignore[call-arg]
