"""Every type of rotary scaling that transformers knows, in every spelling, against transformers; others by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import CASES
from hf_folders import Json, Spec, change_json, read_json, transformers_logits
from on_metal import agree
from reference import largest_error
from test_hf_folder import LINEAR, LLAMA3, TOKENS, YARN, logits_of
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import llama2cpp
from llama2cpp import FormatError

CONTEXT = 64  # of the model; TOKENS are 20
PAIRS = 8

LONGROPE: Json = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}

TYPES: dict[str, list[Json]] = {
    "default": [{"rope_theta": 5e5}, {"rope_theta": 1e4, "factor": 3.0, "finetuned": True}],
    "linear": [LINEAR, LINEAR | {"finetuned": True, "beta_fast": 3.0}],
    "dynamic": [
        {"factor": 2.0, "rope_theta": 1e4},
        {"factor": 3.7, "rope_theta": 5e5, "original_max_position_embeddings": 16},
    ],
    "yarn": [YARN, YARN | {"finetuned": True}, YARN | {"attention_factor": 0.8, "finetuned": False}],
    "llama3": [LLAMA3, LLAMA3 | {"attention_factor": 0.5}],
    "longrope": [
        LONGROPE,
        LONGROPE | {"factor": 3.0},
        LONGROPE | {"attention_factor": 0.7},
        LONGROPE | {"original_max_position_embeddings": 64},
    ],
    "proportional": [
        {"rope_theta": 1e4},
        {"rope_theta": 1e4, "factor": 2.0},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.3, "factor": 1.5},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.0},
    ],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Spec(settings={"head_dim": 2 * PAIRS}).save(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def agrees(folder: Path) -> None:
    assert largest_error(logits_of(folder), transformers_logits(folder, TOKENS)) < 1e-5


def without_theta(settings: Json) -> Json:
    return {key: value for key, value in settings.items() if key != "rope_theta"}


def test_every_type_is_here() -> None:
    assert set(TYPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, each in TYPES.items() for i in range(len(each))])
@pytest.mark.parametrize("spelling", ["now", "before", "type", "both", "equal"])
def test_every_spelling(folder: Path, name: str, index: int, spelling: str) -> None:
    settings = TYPES[name][index] | {"rope_type": name}
    theta = settings["rope_theta"]
    old = without_theta(settings)
    with_type = {key: value for key, value in old.items() if key != "rope_type"} | {"type": name}
    changes: dict[str, Json] = {
        "now": {"rope_parameters": settings},
        "before": {"rope_parameters": ..., "rope_scaling": old, "rope_theta": theta},
        "type": {"rope_parameters": ..., "rope_scaling": with_type, "rope_theta": theta},
        "both": {"rope_parameters": settings, "rope_scaling": with_type | {"rope_type": name}, "rope_theta": theta},
        "equal": {"rope_parameters": settings, "rope_scaling": settings},
    }
    change_json(folder / "config.json", **changes[spelling])
    agrees(folder)


@pytest.mark.parametrize(
    "other",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        YARN | {"beta_fast": 16.0},
        YARN | {"rope_theta": 5e5},
        YARN | {"truncate": False},
    ],
)
def test_two_that_say_otherwise(folder: Path, other: Json) -> None:
    change_json(folder / "config.json", rope_parameters=YARN, rope_scaling=other)
    with pytest.raises(FormatError, match=r"rope_scaling .*: there are rope_parameters too, which say otherwise"):
        llama2cpp.load(folder)


def test_longrope_on_both_sides_of_the_original_context(folder: Path, tmp_path: Path) -> None:
    """A session's context chooses the divisors, once: transformers chooses by the prompt's length."""
    change_json(folder / "config.json", rope_parameters=LONGROPE)
    tokens = [(7 * i) % 50 for i in range(CONTEXT)]
    llama2cpp.export.convert(folder, tmp_path / "m", "f32")
    llama2cpp.export.convert(folder, tmp_path / "m.safetensors", "f32")
    for path in (folder, tmp_path / "m", tmp_path / "m.safetensors"):
        with llama2cpp.load(path, kv_dtype="f32") as model:
            assert model.context == 32
            assert llama2cpp.Config(**model.config.to_dict()) == model.config
            short, long = model.session(), model.session(context=CONTEXT)
            found = short.prefill(tokens[:32], all_logits=True)
            assert largest_error(found, transformers_logits(folder, tokens[:32])) < 1e-5
            whole = long.prefill(tokens, all_logits=True)
            assert largest_error(whole, transformers_logits(folder, tokens)) < 1e-5
            assert largest_error(whole[:32], found) > 1e-3
            # With chunked prefill, and in one pass with a session of the other divisors.
            parts = model.session(context=CONTEXT)
            cut = [parts.prefill(tokens[:20], all_logits=True), parts.prefill(tokens[20:], all_logits=True)]
            assert agree(np.concatenate(cut), whole)
            pair = [model.session(), model.session(context=CONTEXT)]
            both = model.forward([(session, tokens[:9]) for session in pair])
            assert agree(np.stack(both), np.stack([found[8], whole[8]]))
            with pytest.raises(llama2cpp.ContextFullError):
                short.step(1)
            short.save(tmp_path / "session")
            with pytest.raises(ValueError, match="beyond 32 positions rotary frequencies are others"):
                model.load_session(tmp_path / "session", context=CONTEXT)
    with pytest.raises(ValueError, match="longrope"):
        llama2cpp.export.convert(folder, tmp_path / "m.gguf", "f32")


@pytest.mark.parametrize(("name", "limit"), [("dynamic", CONTEXT)])
def test_up_to_the_original_context(folder: Path, tmp_path: Path, name: str, limit: int) -> None:
    """Beyond it the frequencies of all positions would be others: refused, by the name of the type."""
    change_json(folder / "config.json", rope_parameters=TYPES[name][0] | {"rope_type": name})
    tokens = [(7 * i) % 50 for i in range(limit)]
    said = f"rotary scaling of type {name} is implemented up to its original context only, which is {limit}"
    with llama2cpp.load(folder, kv_dtype="f32") as model:
        assert model.context == limit
        assert model.config.rope_scaling is not None
        assert model.config.rope_scaling["type"] == name
        assert llama2cpp.Config(**model.config.to_dict()) == model.config
        session = model.session()
        assert largest_error(session.prefill(tokens, all_logits=True), transformers_logits(folder, tokens)) < 1e-5
        with pytest.raises(llama2cpp.ContextFullError):
            session.step(1)
        with pytest.raises(ValueError, match=said):
            model.session(context=limit + 1)
        session.save(tmp_path / "session")
        with pytest.raises(ValueError, match=said):
            model.load_session(tmp_path / "session", context=limit + 1)
    with pytest.raises(ValueError, match=said):
        llama2cpp.load(folder, context=limit + 1)
    panels = tmp_path / "panels.safetensors"
    llama2cpp.export.convert(folder, panels)
    with llama2cpp.load(panels, kv_dtype="f32") as model:
        assert model.config.rope_scaling == llama2cpp.load(folder).config.rope_scaling
        with pytest.raises(ValueError, match=said):
            model.session(context=limit + 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rope_type": "dynamic"}, 'expected a member "factor"'),
        (LONGROPE | {"short_factor": [1.0]}, r"short_factor .*expected 8 factors, half of head_dim, found 1"),
        ({key: value for key, value in LONGROPE.items() if key != "long_factor"}, 'expected a member "long_factor"'),
        (LONGROPE | {"short_factor": [0.0] * 8}, "one of rope_factors is 0"),
        (YARN | {"short_factor": [1.0] * 8}, r"short_factor .*: not known"),
        (
            {"rope_type": "proportional", "partial_rotary_factor": 1.5},
            r"is 1\.5, expected 0 to 1",
        ),
        (LINEAR | {"partial_rotary_factor": 0.5}, r"partial_rotary_factor .*: 0\.5, and only 1"),
        (YARN | {"mrope_section": [1]}, r"mrope_section .*: not known"),
        ({"full_attention": YARN}, r"full_attention .*: not known"),
    ],
)
def test_refused_by_name(folder: Path, settings: dict[str, Any], said: str) -> None:
    change_json(folder / "config.json", rope_parameters=settings)
    with pytest.raises(FormatError, match=said):
        llama2cpp.load(folder)


@pytest.mark.parametrize("before", [False, True])
def test_truncate_where_layers_with_a_window_have_settings_of_their_own(before: bool, tmp_path: Path) -> None:
    """transformers passes over false there: findings/transformers-yarn-truncate-by-layer-type.sh."""
    path = CASES["olmo3-yarn"].save(tmp_path)
    settings = read_json(path / "config.json")["rope_parameters"]
    for truncate in (True, False):
        full = settings["full_attention"] | {"truncate": truncate}
        if before:
            theta = {"rope_theta": 500000.0}
            change_json(path / "config.json", rope_parameters=None, rope_scaling=full | theta, **theta)
        else:
            change_json(path / "config.json", rope_parameters=settings | {"full_attention": full})
        if truncate:
            llama2cpp.load(path).close()
        else:
            with pytest.raises(FormatError, match=r"truncate .*: false, and whether that counts here"):
                llama2cpp.load(path)
