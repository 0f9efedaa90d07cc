"""Names of activations: those of the forward, and what short names and patterns stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny

import llama2cpp
from llama2cpp.inside import places


def test_names_are_those_of_the_forward(model: llama2cpp.Model) -> None:
    names = list(places.points_of(tiny.config(n_layers=2)))
    assert names[0] == "hook_embed"
    assert names[-2:] == ["ln_final.hook_scale", "ln_final.hook_normalized"]
    assert names[1:22] == [f"blocks.0.{part}" for part in BLOCK]
    assert names[22:-2] == [f"blocks.1.{part}" for part in BLOCK]


BLOCK = [
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("hook_embed", ["hook_embed"]),
        ("embed", ["hook_embed"]),
        ("blocks.1.attn.hook_z", ["blocks.1.attn.hook_z"]),
        ("z1", ["blocks.1.attn.hook_z"]),
        ("z", ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]),
        ("attn", ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]),
        ("pre1", ["blocks.1.mlp.hook_pre"]),
        ("blocks.*.hook_resid_post", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]),
        (["z1", "hook_embed", "z1"], ["hook_embed", "blocks.1.attn.hook_z"]),
        (lambda name: name.endswith("mlp_out"), ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]),
        (
            "scale",
            [*(f"blocks.{layer}.ln{norm}.hook_scale" for layer in (0, 1) for norm in (1, 2)), "ln_final.hook_scale"],
        ),
        ((), []),
    ],
)
def test_what_names_stand_for(names: Any, found: list[str]) -> None:
    assert [
        places.name_of(place, tiny.config()) for place in places.find_places(names, tiny.config(n_layers=2))
    ] == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (3, r"names of activations are 3 \(int\), expected a name, several, or a function"),
        (None, r"names of activations are None \(NoneType\)"),
        (("z", 0), r"names of activations have 0 \(int\) in them, expected str, such as 'resid_post'"),
        ([b"z"], r"names of activations have b'z' \(bytes\) in them"),
    ],
)
def test_names_of_another_type(names: Any, message: str, model: llama2cpp.Model) -> None:
    calls: list[Callable[[], object]] = [
        lambda: places.find_places(names, tiny.config(n_layers=2)),
        lambda: model.add_hook(names, print),
        lambda: model.extract([[1, 2]], names, out="nowhere"),
        lambda: model.mean_activations([[1, 2]], names),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("name", ["z2", "blocks.2.attn.hook_z", "hook_zz", "blocks.*.hook_nothing", ""])
def test_a_name_that_no_activation_has(name: str, model: llama2cpp.Model) -> None:
    with pytest.raises(ValueError, match="no activation of a model with 2 layers"):
        places.find_places(name, tiny.config(n_layers=2))
    with pytest.raises(ValueError, match=r"close to it are blocks\.1\.attn\.hook_z"):
        model.hooks([("blocks.1.attn.hook_zz", print)])
