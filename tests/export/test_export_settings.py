"""No export drops a setting: of the config and of a tokenizer, every field is kept by every target, or refused by name.

The fields are enumerated from the two classes. One that is new has no case here, and the first test says so.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import meta_files
import numpy as np
import pytest
import tiny
import torch
from hf_folders import Spec, read_json, transformers_logits
from numpy.typing import NDArray
from tokenizer_settings import BASES, BYTE_MARK, CASES, MARK, TOKENIZERS, tokenizer_of
from tokenizers import AddedToken as TheirToken
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers, trainers

import llama2cpp
from llama2cpp import Tokenizer, _core
from llama2cpp.export import Calibration, Conversion, compare, convert
from llama2cpp.export.opening import open_checkpoint, runnable
from llama2cpp.export.report import unexplained
from llama2cpp.export.vocabulary import NORMAL, AddedToken, Vocabulary

# --- the config

SIZES: dict[str, Any] = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64}
YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 4.0,
    "original_context": 16,
    "attention_factor": 1.2,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "truncate": True,
}
LLAMA3: dict[str, Any] = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_context": 32,
}
LINEAR: dict[str, Any] = {"type": "linear", "factor": 3.0}
DYNAMIC: dict[str, Any] = {"type": "dynamic", "factor": 3.0, "original_context": 64}
LONGROPE: dict[str, Any] = {"type": "longrope", "factor": 3.0, "original_context": 64, "attention_factor": 1.2}
OTHERWISE: dict[str, Any] = {
    "factor": 6.0,
    "original_context": 24,
    "attention_factor": 0.9,
    "beta_fast": 16.0,
    "beta_slow": 1.5,
    "truncate": False,
    "low_freq_factor": 0.5,
    "high_freq_factor": 3.0,
}

# By field: what it is set to, one after another.
FIELDS: dict[str, list[Any]] = {
    "dim": [128],
    "hidden_dim": [160],
    "n_layers": [3],
    "n_heads": [8],
    "n_kv_heads": [4],
    "head_dim": [8],
    "vocab_size": [96],
    "seq_len": [300],
    "norm_eps": [1e-3],
    "rope_theta": [500.0],
    "rope_scaling": [
        scaling | change
        for scaling in (LINEAR, LLAMA3, YARN)
        for change in [{}, *({name: OTHERWISE[name]} for name in scaling if name != "type")]
    ],
    "rope_factors": [(1.0, 1.5, 1.5, 2.0, 2.0, 3.0, 4.0, 4.0)],
    "sliding_window": [7],
    "rope_style": ["half_split"],
    "tied": [True],
    "rotary_dim": [8],
    "rope_long_factors": [(1.0, 1.5, 1.5, 2.0, 2.0, 3.0, 4.0, 4.0)],
    "qk_norm": ["head"],
    "full_layers": [(1,)],
    "no_rope_layers": [(0,)],
    "embedding_multiplier": [3.5],
    "residual_multiplier": [0.3],
    "attention_multiplier": [0.4],
    "logits_scaling": [2.5],
    "norm": ["layer"],
    "parallel": [True],
    "norm_places": ["after"],
    "activation": ["gelu_tanh"],
    "gated": [False],
    "local_rope_theta": [50.0],
    "score_cap": [2.0],
    "logits_cap": [2.0],
}
CONFIGS = {f"{name}-{i}": (name, value) for name, values in FIELDS.items() for i, value in enumerate(values)}
TOGETHER: dict[str, dict[str, Any]] = {
    "yarn and divisors": {"rope_scaling": YARN, "rope_factors": FIELDS["rope_factors"][0]},
    "linear and divisors": {"rope_scaling": LINEAR, "rope_factors": FIELDS["rope_factors"][0]},
    "yarn without a change of length": {"rope_scaling": YARN | {"attention_factor": 1.0}},
    "yarn that changes no frequency": {"rope_scaling": YARN | {"factor": 1.0}},
    "yarn of a factor below 1": {"rope_scaling": YARN | {"factor": 0.5}},
    "dynamic": {"rope_scaling": DYNAMIC},
    "dynamic of a longer context": {"rope_scaling": DYNAMIC, "seq_len": 128},
    "longrope": {"rope_scaling": LONGROPE, "rope_factors": FIELDS["rope_factors"][0]},
    "longrope without divisors": {"rope_scaling": LONGROPE},
}
TARGETS = [
    *(("m.gguf", format) for format in ("f32", "q8_0", "q4_k_m")),
    *(("m", format) for format in ("f32", "llm_int8", "gptq8")),
    *(("m.bin", format) for format in ("f32", "v1", "int8")),
    *(("m.safetensors", format) for format in ("f32", "q8_0")),
]
LOSSLESS = [("m.gguf", "f32"), ("m", "f32"), ("m.bin", "f32"), ("m.safetensors", "f32")]


# What a field has no meaning without.
NEEDS: dict[str, dict[str, Any]] = {
    "rotary_dim": {"rope_style": "half_split"},
    "rope_long_factors": {"rope_scaling": LONGROPE, "rope_factors": FIELDS["rope_factors"][0]},
    "full_layers": {"sliding_window": 7},
    "local_rope_theta": {"sliding_window": 7},
}


def config_of(changes: dict[str, Any]) -> llama2cpp.Config:
    needed = {name: value for field in changes for name, value in NEEDS.get(field, {}).items()}
    return tiny.config(**{**SIZES, "seq_len": 64, **needed, **changes})


def logits_of(source: Any, tokens: list[int]) -> NDArray[np.float32]:
    """[T, vocab_size], without rounding of activations."""
    with llama2cpp.load(source, threads=1, kv_dtype="f32", activation_dtype="f32") as model:
        return model.session().prefill(tokens, all_logits=True)


def error_of(source: Any, path: Path, tokens: list[int]) -> float:
    expected, found = logits_of(source, tokens), logits_of(path, tokens)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def made(folder: Path, config: llama2cpp.Config) -> Path:
    """A file of panels: the source that holds every field as it is."""
    return convert(tiny.model(config), folder / "source.safetensors", "f32").path


def export_error(source: Path, target: Path, format: str, tokens: list[int], text: Path) -> float | str:
    """How far the target's logits are from the source's, or why there is no target."""
    calibration = Calibration(text, 2, 16) if format.startswith("gptq") else None
    options: dict[str, Any] = {"group": 32} if calibration else {}
    try:
        done = convert(source, target, format, calibration=calibration, threads=1, **options)
    except ValueError as error:
        assert not target.exists()
        return str(error)
    return error_of(source, done.path, tokens)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("abcdefgh ijklmnop qrstuvwx yz" * 8)
    return path


@pytest.fixture(scope="module")
def usual_errors(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[tuple[str, str], float]:
    """What quantization costs without any setting."""
    found = {}
    for name, format in TARGETS:
        folder = tmp_path_factory.mktemp("usual")
        config = config_of({})
        error = export_error(with_letters(folder, config), folder / name, format, tiny.tokens(config, 60), text)
        assert isinstance(error, float)
        found[name, format] = error
    return found


def with_letters(folder: Path, config: llama2cpp.Config) -> Path:
    """The same, with a tokenizer that GPTQ can read its calibration text with."""
    pieces = [bytes([byte]) for byte in range(97, 97 + 26)]
    pieces += [f"[{i}]".encode() for i in range(config.vocab_size - len(pieces) - 1)] + [b" "]
    vocabulary = replace(
        BASES["byte_bpe"],
        pieces=pieces,
        scores=[0.0] * len(pieces),
        types=[NORMAL] * len(pieces),
        merges=[],
        bos_id=-1,
        eos_ids=[],
    )
    model = tiny.model(config, tokenizer=tokenizer_of(vocabulary))
    return convert(model, folder / "source.safetensors", "f32").path


def test_every_field_has_a_case() -> None:
    config = config_of({"rope_scaling": YARN})
    # Models with experts are in tests/io/test_expert_models.py.
    of_experts = {"n_experts", "n_experts_used", "router_order", "router_renormalise"}
    assert set(FIELDS) | of_experts == set(config.to_dict())
    for scaling in (LINEAR, LLAMA3, YARN):
        assert list(scaling) == list(config_of({"rope_scaling": scaling}).rope_scaling or {})
    for name, value in CONFIGS.values():
        assert getattr(config_of({name: value}), name) != getattr(config_of({}), name), name


@pytest.mark.parametrize("case", CONFIGS)
def test_a_field_is_kept_or_refused(
    case: str, tmp_path: Path, text: Path, usual_errors: dict[tuple[str, str], float]
) -> None:
    name, value = CONFIGS[case]
    config = config_of({name: value})
    source = with_letters(tmp_path, config)
    tokens = tiny.tokens(config, 60)
    for target, format in TARGETS:
        error = export_error(source, tmp_path / f"{format}-{target}", format, tokens, text)
        if isinstance(error, str):
            assert name in error, (target, format, error)
        else:
            assert error <= max(1e-5, 4 * usual_errors[target, format]), (target, format)


# What the target has no place for by itself, as no family has it without others; llama2.c's has many.
ALONE = {"parallel", "norm_places", "activation", "gated", "local_rope_theta", "score_cap", "logits_cap"}
LACKS = {"m.gguf": {"full_layers", "no_rope_layers"} | ALONE, "m": {"rope_factors"} | ALONE}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("name", LACKS)
def test_what_a_target_can_hold_is_not_refused(case: str, name: str, tmp_path: Path) -> None:
    field, value = CONFIGS[case]
    lacks = field in LACKS[name] or (field == "rope_scaling" and not value.get("truncate", True) and name == "m.gguf")
    model = tiny.model(config_of({field: value}))
    if not lacks:
        convert(model, tmp_path / name, "f32")
        return
    with pytest.raises(ValueError, match=field):
        convert(model, tmp_path / name, "f32")


@pytest.mark.parametrize("case", TOGETHER)
def test_settings_together(case: str, tmp_path: Path, text: Path) -> None:
    config = config_of(TOGETHER[case])
    source = made(tmp_path, config)
    for name, format in LOSSLESS:
        error = export_error(source, tmp_path / name, format, tiny.tokens(config, 60), text)
        assert "rope_" in error if isinstance(error, str) else error <= 1e-5, (name, error)


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("m.gguf", {"rope_scaling": DYNAMIC}, False),
        ("m", {"rope_scaling": DYNAMIC}, True),
        ("m", {"rope_scaling": DYNAMIC, "seq_len": 128}, False),  # transformers' begins where the model's context ends
        ("m.gguf", {"rope_scaling": LONGROPE}, False),
        ("m", {"rope_scaling": LONGROPE}, False),
        ("m.bin", {"rope_scaling": DYNAMIC}, False),
        ("m.bin", {"rope_scaling": LONGROPE}, False),
        ("m.safetensors", {"rope_scaling": DYNAMIC}, True),
        ("m.safetensors", {"rope_scaling": LONGROPE, "rope_factors": FIELDS["rope_factors"][0]}, True),
    ],
)
def test_scaling_that_ends_with_its_context(name: str, settings: dict[str, Any], kept: bool, tmp_path: Path) -> None:
    model = tiny.model(config_of(settings))
    if not kept:
        with pytest.raises(ValueError, match="rope_scaling"):
            convert(model, tmp_path / name, "f32")
        assert not (tmp_path / name).exists()
        return
    with llama2cpp.load(convert(model, tmp_path / name, "f32").path) as written:
        assert written.config.rope_scaling == model.config.rope_scaling
        assert written.config.rope_factors == model.config.rope_factors


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3, YARN])
def test_through_two_containers(scaling: dict[str, Any] | None, tmp_path: Path, text: Path) -> None:
    """Every container that holds it as the source of every other."""
    config = config_of({"rope_scaling": scaling})
    first, tokens = made(tmp_path, config), tiny.tokens(config, 60)
    sources = []
    for name, format in LOSSLESS:
        error = export_error(first, tmp_path / name, format, tokens, text)
        if isinstance(error, float):
            sources.append(tmp_path / name)
    assert len(sources) == (4 if scaling is None else 3)
    for source in sources:
        for name, format in LOSSLESS:
            target = tmp_path / f"of {source.name.replace('.', ' ')} {name}"
            error = export_error(source, target, format, tokens, text)
            if isinstance(error, str):
                assert (name, scaling is None) == ("m.bin", False) or "rope_factors" in error
            else:
                assert error_of(first, target, tokens) <= 1e-5


@pytest.mark.parametrize("format", ["llm_int8", "gptq8"])
def test_from_quantized_folders(format: str, tmp_path: Path, text: Path) -> None:
    """Their weights as floats, with the settings, in every target that holds them."""
    config = config_of({"rope_scaling": YARN})
    calibration = Calibration(text, 2, 16) if format == "gptq8" else None
    options: dict[str, Any] = {"group": 32} if calibration else {}
    source = convert(with_letters(tmp_path, config), tmp_path / "of", format, calibration=calibration, **options).path
    tokens = tiny.tokens(config, 60)
    for name in ("m.gguf", "m", "m.safetensors"):
        assert error_of(source, convert(source, tmp_path / name, "f32").path, tokens) <= 1e-5, name
    # And as they are.
    assert error_of(source, convert(source, tmp_path / "kept.safetensors").path, tokens) <= 1e-5


def test_from_pytorch_s_files(tmp_path: Path) -> None:
    """Meta's params.json and llama2.c's model_args, all fields that differ from a target's own."""
    config = config_of({"rope_theta": 500000.0, "norm_eps": 1e-6, "tied": True})
    weights = {name: torch.from_numpy(array) for name, array in tiny.arrays(config).items()}
    sizes = {name: SIZES[name] for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")}
    params = sizes | {"norm_eps": 1e-6, "rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 16}
    folder = meta_files.save_meta_folder(tmp_path / "meta", meta_files.shard(weights, 1, embedding_axis=1), params)
    training = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", config, tiny.arrays(config))
    tokens = tiny.tokens(config, 60)
    for source in (folder, training):
        with closing(open_checkpoint(source)) as opened:
            model = runnable(opened, 1)
            assert model is not None
            expected = model.session().prefill(tokens, all_logits=True)
        for name in ("m.gguf", "m", "m.safetensors"):
            target = tmp_path / f"of {source.stem} {name}"
            convert(source, target, "f32")
            found = logits_of(target, tokens)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match=r"norm_eps 1e-06.*rope_theta 500000.*rope_scaling"):
        convert(folder, tmp_path / "m.bin", "f32")


@pytest.mark.parametrize("scaling", [YARN, YARN | {"truncate": False}, LLAMA3, LINEAR])
@pytest.mark.parametrize("window", [None, 9])
def test_transformers_reads_the_rotary_settings(scaling: dict[str, Any], window: int | None, tmp_path: Path) -> None:
    config = config_of({"rope_scaling": scaling, "sliding_window": window})
    source, tokens = made(tmp_path, config), tiny.tokens(config, 60)
    convert(source, tmp_path / "m", "f32")
    expected = transformers_logits(tmp_path / "m", tokens)
    found = logits_of(source, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("extra", [{}, {"attention_factor": 0.8}, {"mscale": 2.0, "mscale_all_dim": 1.0}])
def test_yarn_of_transformers_through_every_container(extra: dict[str, float], tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0, **extra}
    folder = Spec(settings={"rope_parameters": rope}).save(tmp_path / "theirs")
    tokens = [i % 50 for i in range(3, 60)]
    expected = transformers_logits(folder, tokens)
    for name in ("m.gguf", "m", "m.safetensors"):
        convert(folder, tmp_path / name, "f32")
        found = logits_of(tmp_path / name, tokens)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_yarn_in_gguf_has_llama_cpp_s_keys(tmp_path: Path) -> None:
    """What its readers multiply cos and sin by beside what follows from the factor, as attn_factor."""
    gguf = pytest.importorskip("gguf")
    convert(tiny.model(config_of({"rope_scaling": YARN})), tmp_path / "m.gguf", "f32")
    found = gguf.GGUFReader(tmp_path / "m.gguf").fields
    values = {
        name.removeprefix("llama.rope.scaling."): field.contents()
        for name, field in found.items()
        if name.startswith("llama.rope.scaling.")
    }
    assert values.pop("attn_factor") == pytest.approx(1.2 / (0.1 * np.log(4.0) + 1))
    assert values == {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 16,
        "yarn_beta_fast": 8.0,
        "yarn_beta_slow": 2.0,
    }


def test_a_folder_with_biases_and_a_window_is_refused_by_name(tmp_path: Path) -> None:
    config = config_of({"sliding_window": 9, "rope_style": "half_split"})
    arrays = tiny.arrays(config)
    arrays |= {f"layers.{i}.attention.wq.bias": np.ones(64, np.float32) for i in range(2)}
    model = llama2cpp.from_arrays(config, arrays, threads=1)
    with pytest.raises(ValueError, match=r"sliding_window.*biases"):
        convert(model, tmp_path / "m", "f32")


@pytest.mark.cpu_bits("int8 activations")
def test_a_difference_that_no_weight_accounts_for_is_reported(tmp_path: Path) -> None:
    arrays = tiny.arrays(config_of({}))
    plain, scaled = (llama2cpp.from_arrays(config_of(one), arrays, threads=1) for one in ({}, {"rope_scaling": YARN}))
    tokens = tiny.tokens(plain.config, 60)
    assert "with no weight changed: a setting has been lost" in unexplained(compare(plain, scaled, tokens))
    assert not unexplained(compare(scaled, scaled, tokens))
    convert(plain, tmp_path / "m.gguf", "q8_0")
    convert(tmp_path / "m.gguf", tmp_path / "m", "f32")
    with llama2cpp.load(tmp_path / "m.gguf") as eight, llama2cpp.load(tmp_path / "m") as floats:
        assert not unexplained(compare(plain, eight, tokens))  # weights have changed
        assert "activations are rounded for one of them" in unexplained(compare(eight, floats, tokens))


# --- tokenizers

NO_PLACE = {"m.bin": ("chat_template", "template_names", "template_texts")}  # and a note says so
TEXTS = [
    *["", " ", "hello", " hello", "  hello  hell ", "x<c>y", "x <c> y", "x<u>y", "x <u> y", "<c> hello", "<u> hello"],
    *[
        "<c><u>",
        " <c>",
        "hello<c> ",
        "<s>hello",
        "a</s> hello",
        "h1e2 123",
        "I'LL don't",
        "naïve 日本 🚀",
        "x <a mark>y",
    ],
]


def ids_of(tokenizer: Tokenizer) -> list[Any]:
    found: list[Any] = []
    for text in TEXTS:
        for special in (False, True):
            try:
                found.append((text, special, tokenizer.encode(text, special=special)))
            except ValueError:
                found.append((text, special, "no id for it"))
    return found


def test_every_setting_has_a_case() -> None:
    names = {name for settings in _core.tokenizer_settings().values() for name in settings}
    assert set(CASES) == {"kind", *names} == {field.name for field in fields(Vocabulary)}
    flags = {field.name for field in fields(AddedToken)} - {"id"}
    tried = {
        flag for _, changes in CASES["added"] for token in changes["added"] for flag in flags if getattr(token, flag)
    }
    assert tried == flags
    for name, kind, changes in TOKENIZERS.values():
        vocabulary = replace(BASES[kind], **changes)
        assert Vocabulary.of(tokenizer_of(vocabulary)) == vocabulary, name


def convert_or_refuse(model: llama2cpp.Model, target: Path, format: str) -> Conversion | str:
    try:
        return convert(model, target, format)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_setting_is_kept_or_refused(case: str, tmp_path: Path) -> None:
    name, kind, changes = TOKENIZERS[case]
    for target, format in LOSSLESS:
        wanted = replace(BASES[kind], **changes)
        if target == "m.bin" and kind != "byte_bpe" and not {"types", "added"} & set(changes):
            wanted = replace(wanted, types=[NORMAL if i >= MARK else old for i, old in enumerate(wanted.types)])
        tokenizer = tokenizer_of(wanted)
        config = config_of({"vocab_size": tokenizer.vocab_size, "n_layers": 1})
        model = tiny.model(config, tokenizer=tokenizer)
        done = convert_or_refuse(model, tmp_path / target, format)
        if isinstance(done, str):
            assert target != "m.safetensors"
            flags = ["types"] if target == "m.bin" else []  # it has no special pieces but its three
            flags += ["log_probs"] if kind == "unigram" and target in ("m.bin", "m.gguf") else []  # none of its kind
            flags += [flag for token in wanted.added for flag, value in vars(token).items() if value is True]
            assert any(word in done for word in [name, *changes, *flags]), (target, done)
            continue
        if done.tokenizer is None:
            assert (target, kind) == ("m.bin", "byte_bpe")
            assert "byte-level BPE" in done.notes[0]
            continue
        with llama2cpp.load(done.path, tokenizer=done.tokenizer if target == "m.bin" else None) as written:
            found = written.tokenizer
            assert ids_of(found) == ids_of(tokenizer), target
            if target == "m.safetensors":
                assert Vocabulary.of(found) == wanted
            for part in ("chat_template", "eos_ids", "bos_id"):
                if getattr(found, part) != getattr(tokenizer, part):
                    assert any(part in note for note in done.notes), (target, part, done.notes)


def test_plain_tokenizers_go_everywhere(tmp_path: Path) -> None:
    """What each container has a place for is not refused."""
    for kind, base in BASES.items():
        tokenizer = tokenizer_of(base)
        config = config_of({"vocab_size": tokenizer.vocab_size, "n_layers": 1})
        for name, format in LOSSLESS:
            if name == "m.bin" and kind != "llama2.c":
                continue
            if name == "m.gguf" and kind == "unigram":
                with pytest.raises(ValueError, match="not written with the Unigram model"):
                    convert(tiny.model(config, tokenizer=tokenizer), tmp_path / name, format)
                continue
            done = convert(tiny.model(config, tokenizer=tokenizer), tmp_path / f"{kind} {name}", format)
            assert done.notes == ()


def test_a_tokenizer_can_be_left_behind(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(replace(BASES["byte_bpe"], added=[AddedToken(BYTE_MARK, True, False, False)]))
    model = tiny.model(config_of({"vocab_size": tokenizer.vocab_size}), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"lstrip of the added token '<c>'; pass tokenizer=False \(--no-tokenizer\)"):
        convert(model, tmp_path / "m.gguf", "f32")
    done = convert(model, tmp_path / "m.gguf", "f32", tokenizer=False)
    assert done.tokenizer is None
    assert done.notes == ("no tokenizer goes along: it was to be left behind",)


def test_bpe_without_merges_in_gguf(tmp_path: Path) -> None:
    """The gguf library leaves lists without members out, and readers miss the merges then."""
    gguf = pytest.importorskip("gguf")
    tokenizer = tokenizer_of(replace(BASES["byte_bpe"], merges=[]))
    model = tiny.model(config_of({"vocab_size": tokenizer.vocab_size}), tokenizer=tokenizer)
    path = convert(model, tmp_path / "m.gguf", "f32").path
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.merges"].types[0] == gguf.GGUFValueType.ARRAY
    with llama2cpp.load(path) as written:
        assert ids_of(written.tokenizer) == ids_of(tokenizer)


def folder_with(folder: Path, tokenizer: Theirs) -> Path:
    size = tokenizer.get_vocab_size()
    Spec(settings={"vocab_size": size, "num_hidden_layers": 1, "rms_norm_eps": 1e-5}).save(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    return folder


@pytest.mark.parametrize("middle", ["m.safetensors", None])
def test_flags_of_added_tokens_in_a_folder_are_tokenizers_s(middle: str | None, tmp_path: Path) -> None:
    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        ["the cat sat on the mat"] * 9, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet)
    )
    theirs.add_special_tokens(["<s>", TheirToken("<mask>", lstrip=True), TheirToken("<sep>", rstrip=True)])
    theirs.add_tokens([TheirToken("<word>", normalized=False), TheirToken("<norm>", normalized=True)])
    source = folder_with(tmp_path / "theirs", theirs)
    if middle is not None:
        source = convert(source, tmp_path / middle, "f32").path
        convert(source, tmp_path / "m", "f32")
        source = tmp_path / "m"
    written = Theirs.from_file(str(source / "tokenizer.json"))
    with llama2cpp.load(source) as model:
        for text in ("the cat <mask> sat <sep>  on", "x<word>y <norm>z", " <mask>", "<sep> <mask>"):
            ids = theirs.encode(text).ids
            assert written.encode(text).ids == ids
            assert model.tokenizer.encode(text, special=True, bos=False) == ids


@pytest.mark.parametrize("scheme", ["always", "never", "first"])
def test_metaspace_s_schemes_in_a_folder_are_tokenizers_s(scheme: Any, tmp_path: Path) -> None:
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}}
    for letter in "\u2581helo":
        pieces.setdefault(letter, len(pieces))
    pieces["\u2581\u2581"] = len(pieces)
    merges = [("\u2581", "\u2581")]
    theirs = Theirs(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    theirs.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", scheme, split=False)
    theirs.add_special_tokens(["<unk>", "<s>", "</s>"])
    source = folder_with(tmp_path / "theirs", theirs)
    convert(source, tmp_path / "m.safetensors", "f32")
    convert(tmp_path / "m.safetensors", tmp_path / "m", "f32")
    written = Theirs.from_file(str(tmp_path / "m" / "tokenizer.json"))
    for text in (" hello", "hello", "<s>hello", "a</s> hello", "  he"):
        assert written.encode(text, add_special_tokens=False).ids == theirs.encode(text).ids
    if scheme == "never":
        assert convert(source, tmp_path / "m.gguf", "f32").tokenizer is not None
        return
    with pytest.raises(ValueError, match=f"Metaspace's prepend_scheme '{scheme}'"):
        convert(source, tmp_path / "m.gguf", "f32")
    assert not (tmp_path / "m.gguf").exists()


def test_a_folder_s_settings_are_those_of_the_config(tmp_path: Path) -> None:
    """Nothing of rotary settings is in a folder of a model that has none."""
    convert(tiny.model(config_of({})), tmp_path / "m", "f32")
    assert read_json(tmp_path / "m" / "config.json")["rope_scaling"] is None
    torch.manual_seed(0)
    assert transformers_logits(tmp_path / "m", [1, 2, 3]).shape == (3, 64)
