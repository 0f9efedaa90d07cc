"""The places of a model where activations can be seen, and what names stand for them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn, TypeAlias

from .. import _core
from .activation_names import by_module, from_first, get_act_name

Names: TypeAlias = str | Sequence[str] | Callable[[str], bool]
Place: TypeAlias = tuple[int, int]  # (point, layer), as the core counts them


_POINTS: dict[str, dict[str, Place]] = {}  # by the text of a config


def points_of(config: _core.Config) -> dict[str, Place]:
    """Names of all places of a model, in the order of the forward."""
    key = repr(config)
    if key not in _POINTS:
        if len(_POINTS) >= 64:
            _POINTS.clear()
        _POINTS[key] = {name: (point, layer) for name, point, layer in _core.hook_points(config)}
    return _POINTS[key]


def find_places(names: Names, config: _core.Config) -> list[Place]:
    """Find the places that names stand for, in the order of the forward.

    A name is a full one ("blocks.3.attn.hook_z"), a pattern for full ones ("blocks.*.hook_resid_post") or a short one
    ("z", "z3", "resid_post4"), which without a layer stands for all layers. Layers of -1 and less count from the last.
    """
    points = points_of(config)
    if callable(names):
        return [place for name, place in points.items() if names(name)]
    chosen: set[str] = set()
    for name in names_of_activations(names):
        found = _matching(by_module(name, config), points, config.n_layers)
        if not found and _matching(by_module(name, config), part_inputs(config), config.n_layers):
            raise ValueError(f"{name!r} is for functions in hooks, and for activations to be kept")
        chosen.update(found or _unknown(name, points, config.n_layers))
    return [place for name, place in points.items() if name in chosen]


def places_to_keep(names_filter: Names | None, config: _core.Config) -> list[Place]:
    """Find the places of a filter, or without one all but ``hook_result``, which is large and computed apart."""
    if names_filter is None:
        return find_places(lambda name: not name.endswith("hook_result"), config)
    inputs, rest = split_inputs(names_filter, config)
    if not inputs or callable(rest):
        return find_places(rest, config)
    return find_places([*rest, *dict.fromkeys(part_inputs(config)[name] for name in inputs)], config)


def part_inputs(config: _core.Config) -> dict[str, str]:
    """Names of what parts of layers read of the residual stream, each its own copy -> the name of that stream.

    Only where a norm is between: elsewhere, and in parallel layers for MLPs, there is no place of its own for it.
    """
    if config.norm_places == "after":
        return {}
    names = {}
    for i in range(config.n_layers):
        for what in ("attn_in", "q_input", "k_input", "v_input"):
            names[f"blocks.{i}.hook_{what}"] = f"blocks.{i}.hook_resid_pre"
        if not config.parallel:
            names[f"blocks.{i}.hook_mlp_in"] = f"blocks.{i}.hook_resid_mid"
    return names


def split_inputs(names: Names, config: _core.Config) -> tuple[list[str], Names]:
    """Take the names of `part_inputs` out of others. A predicate chooses none of them."""
    if callable(names):
        return [], names
    known = part_inputs(config)
    inputs: list[str] = []
    rest: list[str] = []
    for name in names_of_activations(names):
        found = _matching(by_module(name, config), known, config.n_layers)
        # A pattern, as in "blocks.0.*", means what each model has.
        if found and not any(mark in name for mark in "*?["):
            inputs += found
        else:
            rest.append(name)
    return inputs, rest


def names_of_activations(names: object) -> list[str]:
    """One name or several as a list."""
    if isinstance(names, str):
        return [names]
    if not isinstance(names, Iterable):
        raise TypeError(
            f"names of activations are {names!r:.80} ({type(names).__name__}), expected a name, several, or a function "
            "that chooses among them"
        )
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(
                f"names of activations have {name!r:.80} ({type(name).__name__}) in them, expected str, such as "
                "'resid_post' for all layers or 'resid_post3' for one"
            )
    return found


def _matching(name: str, points: Mapping[str, object], n_layers: int) -> list[str]:
    name = from_first(name, n_layers)
    if name in points:
        return [name]
    if any(mark in name for mark in "*?["):
        return fnmatch.filter(points, name)
    layers = [None, *range(n_layers)]
    kinds = [None, "ln1", "ln2", "ln1_post", "ln2_post"] if name in ("scale", "normalized") else [None]
    shorts = {get_act_name(name, layer, kind) for layer in layers for kind in kinds}
    numbered = re.fullmatch(r"([a-z_]+)(\d+)", name)
    if numbered is not None:  # "resid_post4", which TransformerLens's own rule does not see
        shorts.add(get_act_name(numbered[1], int(numbered[2])))
    return [full for full in points if full in shorts]


def _unknown(name: str, points: Mapping[str, object], n_layers: int) -> NoReturn:
    names = [*points, *dict.fromkeys(full.rpartition("hook_")[2] for full in points)]
    close = difflib.get_close_matches(from_first(name, n_layers), names, n=3, cutoff=0.5)
    hint = f"; close to it are {', '.join(close)}" if close else ""
    raise ValueError(f"no activation of a model with {n_layers} layers is called {from_first(name, n_layers)!r}{hint}")


def is_pattern(name: str) -> bool:
    """Whether an activation is [B, heads, T, keys]; all others are [B, T, ...]."""
    return name.endswith(("hook_pattern", "hook_attn_scores"))


def residual_streams(config: _core.Config) -> list[str]:
    """Name the residual stream into each layer, and what the last norm gets."""
    before = [f"blocks.{i}.hook_resid_pre" for i in range(config.n_layers)]
    return [*before, f"blocks.{config.n_layers - 1}.hook_resid_post"]


def between_layers(config: _core.Config) -> set[str]:
    """Name the residual stream where it is no layer's own: a change there is one of `residual_streams`."""
    after = (f"blocks.{i}.hook_resid_post" for i in range(config.n_layers))
    return {"hook_embed", *residual_streams(config), *after}


def layer_or_end(layer: int, n_layers: int, name: str) -> int:
    """Count a layer from the first; n_layers stands for what is behind the last."""
    if not -n_layers <= layer <= n_layers:
        raise ValueError(f"{name} is {layer}, expected {-n_layers} to {n_layers}")
    return layer + n_layers if layer < 0 else layer


def name_of(place: Place, config: _core.Config) -> str:
    """TransformerLens's name of a place."""
    return next(name for name, other in points_of(config).items() if other == place)
