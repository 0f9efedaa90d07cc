"""A Config from Python: each field by its name, from the list in src/cpp/core/config.h."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors import safe_open

import llama2cpp
from llama2cpp.export import convert

Config: Any = llama2cpp.Config  # what it is given here, its types would not allow
NEEDED: dict[str, Any] = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "seq_len": 32}
LONGROPE = {"type": "longrope", "factor": 4.0, "original_context": 16, "attention_factor": 1.25}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_context": 16,
    "attention_factor": 1.25,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "truncate": False,
}
# Every field, and no default.
SET: dict[str, Any] = NEEDED | {
    "n_kv_heads": 2,
    "head_dim": 8,
    "norm_eps": 0.5,
    "rope_theta": 500.0,
    "rope_scaling": LONGROPE,
    "rope_factors": (1.0, 1.5, 2.0),
    "sliding_window": 7,
    "rope_style": "half_split",
    "tied": True,
    "rotary_dim": 6,
    "rope_long_factors": (2.0, 3.0, 8.0),
    "qk_norm": "head",
    "full_layers": (0,),
    "no_rope_layers": (1,),
    "embedding_multiplier": 1.5,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
    "logits_scaling": 2.0,
    "n_experts": 6,
    "n_experts_used": 2,
    "router_order": "topk_softmax",
    "router_renormalise": True,
    "norm": "layer",
    "parallel": False,  # which would have norm_places "before", as the default is
    "norm_places": "both",
    "activation": "silu",  # as experts have it, and a gate
    "gated": True,
    "local_rope_theta": 50.0,
    "score_cap": 3.0,
    "logits_cap": 4.0,
}
FIELDS = list(Config(**NEEDED).to_dict())


def test_every_field_is_taken_and_shown(tmp_path: Path) -> None:
    assert sorted(SET) == sorted(FIELDS)
    config = Config(**SET)
    assert config.to_dict() == SET
    assert {name: getattr(config, name) for name in FIELDS} == SET == {name: config[name] for name in FIELDS}
    for name in FIELDS:
        assert f"{name}=" in repr(config)
        assert name in config._repr_html_()
        assert re.search(rf"^(\w+, )*{name}\b.* : ", str(Config.__doc__), flags=re.MULTILINE), name
        assert getattr(Config, name).__doc__
        other = Config(**NEEDED).to_dict()[name]
        if name not in NEEDED:
            # What a field has no meaning without, or another one has none with.
            no_factors: dict[str, Any] = {"rope_factors": (), "rope_long_factors": ()}
            more = {
                "rotary_dim": no_factors,
                "rope_scaling": {"rope_long_factors": ()},
                "n_experts": {"n_experts_used": None},
                "n_experts_used": {"n_experts": None},
                "sliding_window": {"local_rope_theta": 0.0},
                "parallel": {"norm_places": "before"},
                "activation": {"n_experts": None, "n_experts_used": None},
                "gated": {"n_experts": None, "n_experts_used": None},
                "rope_style": no_factors | {"rotary_dim": None},
            }.get(name, {})
            assert Config(**(SET | more | {name: other})) != config
    assert eval(repr(config), {"Config": Config}) == config


@pytest.mark.cpu_bits("panels are of the CPU")
def test_a_panel_file_has_the_same_fields(tmp_path: Path) -> None:
    config = Config(**(SET | {"n_experts": None, "n_experts_used": None}))  # whose models are not written
    model = llama2cpp.from_arrays(config, tiny.arrays(config))
    path = convert(model, tmp_path / "m.safetensors", "f32", tokenizer=False).path
    with safe_open(path, "np") as file:
        stored = json.loads(file.metadata()["config"])
    assert list(stored) == FIELDS
    assert list(stored["rope_scaling"]) == list(LONGROPE)
    with llama2cpp.load(path) as found:
        assert found.config == config


def test_what_is_not_given() -> None:
    config = Config(**NEEDED)
    assert (config.n_kv_heads, config.head_dim) == (4, 16)
    assert {name: value for name, value in config.to_dict().items() if name not in NEEDED} == tiny.DEFAULTS | {
        "n_kv_heads": 4,
        "head_dim": 16,
    }
    optional = {"n_kv_heads", "head_dim", "rope_scaling", "rope_factors", "sliding_window"}
    optional |= {"rotary_dim", "rope_long_factors", "full_layers", "no_rope_layers", "n_experts", "n_experts_used"}
    assert Config(**NEEDED, **dict.fromkeys(optional)) == config
    for name in set(FIELDS) - set(NEEDED) - optional:
        with pytest.raises(TypeError, match=rf"^Config: {name} is None"):
            Config(**(SET | {name: None}))


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_needed(name: str) -> None:
    rest = {other: value for other, value in NEEDED.items() if other != name}
    with pytest.raises(TypeError, match=rf"^Config\(\) needs {name}$"):
        Config(**rest)
    with pytest.raises(TypeError, match=rf"^Config: {name} is None"):
        Config(**(NEEDED | {name: None}))


def test_several_that_are_needed_are_named_together() -> None:
    with pytest.raises(TypeError, match=r"^Config\(\) needs hidden_dim, n_layers, n_heads, vocab_size, seq_len$"):
        Config(dim=64)


@pytest.mark.parametrize("name", FIELDS)
def test_a_name_that_is_written_almost_like_it(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^Config\(\) has no argument '{name}_'; close to it (is|are) .*\b{name}\b"):
        Config(**NEEDED, **{f"{name}_": 1})
    with pytest.raises(KeyError, match=rf"a Config has no '{name}_'; close to it (is|are) .*\b{name}\b"):
        Config(**NEEDED)[f"{name}_"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_named(name: str) -> None:
    wrong: Any = 4 if isinstance(SET[name], (str, dict, tuple)) else "4"
    with pytest.raises(TypeError, match=rf"^Config: {name} is '?4'? \((int|str)\), expected "):
        Config(**(SET | {name: wrong}))


@pytest.mark.parametrize("name", [name for name in YARN if name != "type"])
def test_a_scalings_value_of_another_type_is_named(name: str) -> None:
    wrong: Any = "4"
    with pytest.raises(TypeError, match=rf"^Config: {name} is '4' \(str\), expected "):
        Config(**(SET | {"rope_scaling": YARN | {name: wrong}}))
    rest = {other: value for other, value in YARN.items() if other != name}
    with pytest.raises(ValueError, match=rf"^rope_scaling has no '{name}', which type 'yarn' needs$"):
        Config(**(SET | {"rope_scaling": rest}))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 2.0}, "rope_scaling has no 'type', expected one of: linear, llama3, yarn, dynamic, longrope"),
        (
            {"type": "ntk", "factor": 2.0},
            "rope_scaling's type is 'ntk', expected one of: linear, llama3, yarn, dynamic, longrope",
        ),
        ({"type": "none"}, "rope_scaling's type is 'none', expected one of: linear, llama3, yarn, dynamic, longrope"),
        (
            {"type": "linear", "factor": 2.0, "beta_fast": 1.0},
            "rope_scaling has 'beta_fast', which type 'linear' does not know",
        ),
    ],
)
def test_scalings_that_there_are_not(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        Config(**NEEDED, rope_scaling=scaling)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
@pytest.mark.parametrize(
    "name", ["norm_eps", "rope_theta", "rope_factors", *(n for n in YARN if isinstance(YARN[n], float))]
)
def test_numbers_out_of_range_are_named(name: str, value: float) -> None:
    given: Any = {name: value} if name in SET else {"rope_scaling": YARN | {name: value}}
    if name == "rope_factors":
        given = {name: (1.0, value, 1.0, 1.0)}
    if (name, value) == ("norm_eps", 0.0):
        assert Config(**(SET | given)).norm_eps == 0.0
        return
    with pytest.raises(ValueError, match=rf"{name} is -?(nan|inf|[01]), expected a finite number"):
        Config(**(SET | given))


def test_places_do_not_stand_for_names() -> None:
    with pytest.raises(TypeError):
        Config(*NEEDED.values())


def test_integers_and_numbers_of_numpy() -> None:
    given: Any = {name: np.int32(value) for name, value in NEEDED.items()}
    config = Config(**given, norm_eps=np.float32(0.5), rope_factors=np.ones(8, np.float32), tied=np.True_)
    assert (config.norm_eps, config.rope_factors, config.tied) == (0.5, (1.0,) * 8, True)


@pytest.mark.parametrize("value", [None, 0, 1, 1.5, float("nan"), "yes", [], {}, np.int32(1)])
def test_only_truth_values_say_whether(value: Any) -> None:
    with pytest.raises(TypeError, match="tied"):
        Config(**NEEDED, tied=value)
