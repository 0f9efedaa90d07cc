"""The weights of a Llama by their part in it: the core's table (``core/parts.inc``), and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from .. import _core

_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,8})\.(.+)", flags=re.ASCII)
_EXPERT = re.compile(r"(.*\.experts\.)(0|[1-9]\d{0,8})(\..+)", flags=re.ASCII)


@dataclass(frozen=True)
class Part:
    """One row of the table.

    Attributes
    ----------
    name : str
        What the engine calls it: "wq".
    pattern : str
        llama2.c's name, {} is the layer: "layers.{}.attention.wq.weight".
    scope : str
        "model": the model has one. "attention", "mlp": each layer has one, in that half.
    kind : str
        "table" is read row by row, "matrix" is multiplied with, "gain" and "bias" are vectors. "experts": a matrix for
        each expert; "expert_biases": a bias for each. "sinks" is a vector with one more score of each head.
    rows, columns : str
        Sizes, by the names of what a config gives; "one" for the rows of vectors.
    need : str
        "always"; "untied", which a model without an output matrix of its own lacks; "optional"; "qk_norm" and so
        on, where the config has such norms or a gate.
    rotary : bool
        Whether its rows, or its numbers, are in the order of ``config.rope_style``.
    lens : str
        TransformerLens's name, without "blocks.{i}.".
    reads : str
        The hook point whose activation it is multiplied with, without "blocks.{i}."; "" where there is none.

    Examples
    --------
    >>> from llama2cpp.common.parts import get_part
    >>> get_part("wq").at(3), get_part("wq").lens
    ('layers.3.attention.wq.weight', 'attn.W_Q')
    """

    name: str
    pattern: str
    scope: Literal["model", "attention", "mlp"]
    kind: Literal["table", "matrix", "gain", "bias", "experts", "expert_biases", "sinks"]
    rows: str
    columns: str
    need: Literal[
        "always",
        "untied",
        "optional",
        "qk_norm",
        "routed",
        "routed_bias",
        "sinks",
        "norm_before",
        "norm_mlp",
        "norm_after",
        "norm_gain",
        "norm_bias",
        "norm_last_bias",
        "norm_mlp_bias",
        "gate",
        "gate_bias",
    ]
    rotary: bool
    lens: str
    reads: str

    @property
    def in_layers(self) -> bool:
        """Whether each layer has one."""
        return self.scope != "model"

    @property
    def in_every_llama(self) -> bool:
        """Whether a Llama without switches has it, but for an output matrix of its own."""
        return self.need in ("always", "norm_before", "norm_mlp", "norm_gain", "gate")

    @property
    def is_optional(self) -> bool:
        """Whether the model's file says that it has one."""
        needs = ("optional", "norm_bias", "norm_last_bias", "norm_mlp_bias", "gate_bias", "routed_bias", "sinks")
        return self.need in needs

    @property
    def is_vector(self) -> bool:
        """Whether its array has one dimension."""
        return self.kind in ("gain", "bias", "expert_biases", "sinks")

    @property
    def per_expert(self) -> bool:
        """Whether each expert of a layer has one."""
        return self.kind in ("experts", "expert_biases")

    def at(self, layer: int = 0, expert: int = 0) -> str:
        """Give llama2.c's name of the one in a layer, or of the model's; of an expert's, where each has one."""
        return self.pattern.format(layer, expert)

    def in_layer(self, layer: int, n_experts: int) -> list[str]:
        """Give llama2.c's names of all that a layer has: one, or one for each of so many experts."""
        return [self.at(layer, expert) for expert in range(n_experts if self.per_expert else 1)]

    def in_model(self, n_layers: int) -> list[str]:
        """Give llama2.c's names of all that a model of so many layers has."""
        return [self.at(layer) for layer in range(n_layers)] if self.in_layers else [self.pattern]

    def shape(self, config: _core.Config) -> tuple[int, ...]:
        """Give (rows, columns), or (length,) of a vector, in a model of these sizes."""
        return _core.part_shape(self.name, config)


PARTS = tuple(Part(**row) for row in _core.parts())
"""All of them, in the order in which llama2.c's files have them."""

EXPERT_PARTS = tuple(Part(**row) for row in _core.expert_parts())
"""What layers with experts have in place of w1, w2 and w3: a second {} of ``pattern`` is an expert's number."""

MODEL_PARTS = tuple(part for part in PARTS if not part.in_layers)
LAYER_PARTS = tuple(part for part in PARTS if part.in_layers)
LAYER_MATRICES = tuple(part for part in LAYER_PARTS if part.kind == "matrix")
LAYER_GAINS = tuple(part for part in LAYER_PARTS if part.kind == "gain")

_BY_NAME = {part.name: part for part in (*PARTS, *EXPERT_PARTS)}
_BY_PATTERN = {part.pattern: part for part in _BY_NAME.values()}


def get_part(name: str) -> Part:
    """Get one by the engine's name of it. KeyError for one that no Llama has."""
    return _BY_NAME[name]


def in_forward_order(parts: Iterable[Part]) -> list[Part]:
    """Sort parts of layers by what a forward does with them: biases behind the matrices of their half of a layer."""
    points = [name.removeprefix("blocks.0.") for name, _, _ in _core.hook_points()]

    def key(part: Part) -> tuple[str, bool, int]:
        if part.kind == "sinks":
            return part.scope, True, points.index("attn.hook_pattern")
        is_bias = part.kind == "bias"
        reads = _BY_PATTERN[part.pattern.removesuffix("bias") + "weight"].reads if is_bias else part.reads
        return part.scope, is_bias, points.index(reads)

    return sorted(parts, key=key)


EMBEDDING = get_part("tok_embeddings")
NORM = get_part("norm")
NORM_B = get_part("norm_b")
OUTPUT = get_part("output")


@cache
def _place(name: str) -> tuple[Part, int | None, int | None] | None:
    match = _LAYER.fullmatch(name)
    pattern, layer = (name, None) if match is None else (f"layers.{{}}.{match[2]}", int(match[1]))
    numbered = _EXPERT.fullmatch(pattern)
    expert = None if numbered is None else int(numbered[2])
    found = _BY_PATTERN.get(pattern if numbered is None else f"{numbered[1]}{{}}{numbered[3]}")
    return None if found is None or found.in_layers != (layer is not None) else (found, layer, expert)


def find_part(name: str) -> Part | None:
    """Find the part of a weight by llama2.c's name of it."""
    found = _place(name)
    return None if found is None else found[0]


def family_of(stored: str) -> str:
    """Tell whose name of a weight this is: "llama2.c", "hugging_face" or "gguf"; of a name that two have, the first."""
    return next(family for family in _core.NAMINGS if _core.rename_weight(stored, family) == stored)


def layer_of(name: str) -> int | None:
    """Give the layer in llama2.c's name of a weight, None where it has none."""
    found = _place(name)
    return None if found is None else found[1]


def expert_of(name: str) -> int | None:
    """Give the expert in llama2.c's name of a weight, None where it has none.

    Examples
    --------
    >>> from llama2cpp.common.parts import expert_of, find_part
    >>> name = "layers.3.feed_forward.experts.7.w1.weight"
    >>> find_part(name).name, expert_of(name), expert_of("layers.3.feed_forward.gate.weight")
    ('e1', 7, None)
    """
    found = _place(name)
    return None if found is None else found[2]
