"""Which tensors of a family's files hold which weights: some hold several, and some have a name of the family's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.parts import expert_of, find_part, get_part, layer_of


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes
    ----------
    name : str
        As the file calls it.
    weights : tuple of str
        llama2.c's names of the weights that it holds, the rows of each behind those of the one before.
    experts : int
        How many experts' matrices it holds, by its first dimension; 0 for a tensor without one for them.
    turned : bool
        An expert's columns come first, and its rows are one of each of its weights in turn.
    """

    name: str
    weights: tuple[str, ...]
    experts: int = 0
    turned: bool = False

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Give its shape: from those of its weights, all their rows."""
        rows = sum(shape[0] for shape in shapes)
        if not self.experts:
            return (rows, *shapes[0][1:])
        of_one = (rows // self.experts, *shapes[0][1:])
        return (self.experts, *(reversed(of_one) if self.turned else of_one))

    def of_each_expert(self) -> list[tuple[str, ...]]:
        """Give the weights of each, or of all that is no expert's."""
        count = len(self.weights) // max(self.experts, 1)
        return [self.weights[begin : begin + count] for begin in range(0, len(self.weights), count)]


def in_turn(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put a row of each in turn, [rows, ...] of each to [rows * n, ...].

    Examples
    --------
    >>> import numpy as np
    >>> from llama2cpp.export.fused import in_turn
    >>> in_turn([np.array([1, 2]), np.array([10, 20])]).tolist()
    [1, 10, 2, 20]
    """
    return np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def stored_tensors(names: Sequence[str], family: Mapping[str, Any], naming: str) -> list[Stored]:
    """Give the tensors that hold some weights.

    Parameters
    ----------
    names : sequence of str
        llama2.c's names.
    family : mapping
        What `_core.gguf_family` or `_core.hugging_face_family` says: of it ``fused``, which parts are one tensor, by
        what its name has in place of theirs; ``stacked``, the same of all experts', with the name's ending, and
        ``turned``, which of those are; ``names``, what parts are called that other families call otherwise. What is
        missing is empty.
    naming : str
        Whose files they are: "gguf" or "hugging_face".

    Returns
    -------
    list of Stored
        Each at the place of its first weight.

    Examples
    --------
    >>> from llama2cpp.export.fused import stored_tensors
    >>> names = ["layers.3.feed_forward.w1.weight", "layers.3.feed_forward.w3.weight", "norm.weight"]
    >>> family = {"fused": {"mlp.gate_up_proj": ["w1", "w3"]}}
    >>> [tensor.name for tensor in stored_tensors(names, family, "hugging_face")]
    ['model.layers.3.mlp.gate_up_proj.weight', 'model.norm.weight']
    >>> [tensor.name for tensor in stored_tensors(names[1:2], {"names": {"w3": "mlp.c_fc"}}, "hugging_face")]
    ['model.layers.3.mlp.c_fc.weight']
    """
    fused = {part: (stem, parts) for stem, parts in family.get("fused", {}).items() for part in parts}
    stacked = {part: (stem, parts) for stem, parts in family.get("stacked", {}).items() for part in parts}
    turned, called = family.get("turned", ()), family.get("names", {})
    tensors: dict[str, Stored] = {}
    of_experts: dict[str, list[str]] = {}
    for name in names:
        part, layer = find_part(name), layer_of(name)
        own = str(_core.rename_weight(name, naming))
        if part is None or layer is None:
            tensors[own] = Stored(own, (name,))
        elif part.name in fused:
            stem, parts = fused[part.name]
            whole = _in_layer(own, layer, f"{stem}.weight")
            tensors.setdefault(whole, Stored(whole, tuple(get_part(each).at(layer) for each in parts)))
        elif part.name in stacked:
            whole = _in_layer(own, layer, stacked[part.name][0])
            tensors.setdefault(whole, Stored(whole, (), turned=stacked[part.name][0] in turned))  # more follows
            of_experts.setdefault(whole, []).append(name)
        else:
            if part.name in called:
                ending = name.rpartition(".")[2]  # "weight" or "bias"
                own = _in_layer(own, layer, f"{called[part.name].format(expert_of(name))}.{ending}")
            tensors[own] = Stored(own, (name,))

    def place(name: str) -> tuple[int, int]:
        part, expert = find_part(name), expert_of(name)
        assert part is not None
        assert expert is not None
        return expert, stacked[part.name][1].index(part.name)

    for whole, weights in of_experts.items():
        count = len({expert_of(name) for name in weights})
        tensors[whole] = replace(tensors[whole], weights=tuple(sorted(weights, key=place)), experts=count)
    return list(tensors.values())


def _in_layer(own: str, layer: int, rest: str) -> str:
    """Put something else behind a layer's prefix in the name of one of its tensors."""
    mark = f".{layer}."
    return own[: own.index(mark) + len(mark)] + rest
