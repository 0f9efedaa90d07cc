"""Weights that the files of some families hold as one tensor, the rows of each behind those of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import _core
from ..common.parts import find_part, get_part, layer_of


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes
    ----------
    name : str
        As the file calls it.
    weights : tuple of str
        llama2.c's names of the weights that it holds.
    """

    name: str
    weights: tuple[str, ...]


def stored_tensors(names: Sequence[str], fused: Mapping[str, Sequence[str]], naming: str) -> list[Stored]:
    """Give the tensors that hold some weights.

    Parameters
    ----------
    names : sequence of str
        llama2.c's names.
    fused : mapping of str to sequence of str
        Which parts are one tensor, by what its name has in place of theirs: of `_core.gguf_family` or
        `_core.hugging_face_family`.
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
    >>> [tensor.name for tensor in stored_tensors(names, {"mlp.gate_up_proj": ["w1", "w3"]}, "hugging_face")]
    ['model.layers.3.mlp.gate_up_proj.weight', 'model.norm.weight']
    """
    together = {part: (stem, parts) for stem, parts in fused.items() for part in parts}
    tensors = {}
    for name in names:
        part, layer = find_part(name), layer_of(name)
        own = str(_core.rename_weight(name, naming))
        if part is None or layer is None or part.name not in together:
            tensors[own] = Stored(own, (name,))
            continue
        stem, parts = together[part.name]
        prefix = own.split(".")[: -1 - len(stem.split("."))]
        whole = ".".join([*prefix, stem, "weight"])
        tensors.setdefault(whole, Stored(whole, tuple(get_part(each).at(layer) for each in parts)))
    return list(tensors.values())
