"""A model's parts by attribute, as in ``model.blocks[3].attn.W_Q`` and ``model.blocks[3].attn.hook_z``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import checked, close_names, float_array, integer
from .activation_names import MODULE_NAMES, by_module
from .hooks import Layer
from .places import part_inputs, points_of
from .residual_stream import norm_of_part

if TYPE_CHECKING:
    from ..model import Model
    from .added_hooks import Direction
    from .hooks import HookFunction


class ModelHookPoint:
    """An activation of a model, where hooks can be added: what `Model.hook_dict` holds.

    Attributes
    ----------
    name : str
        TransformerLens's name, such as "blocks.3.attn.hook_z".
    layer : int or None
        The layer in it, which can be called too.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> point = model.blocks[3].attn.hook_z
    >>> point.add_hook(lambda z, hook: z * 0)
    >>> point
    <llama2cpp.ModelHookPoint: blocks.3.attn.hook_z, 1 hook>
    >>> model.reset_hooks()
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        self.name = name
        parts = name.split(".")
        self.layer: Layer | None = Layer(parts[1]) if parts[0] == "blocks" else None

    @property
    def ctx(self) -> dict[str, Any]:
        """What hooks have noted here; the same dict as their ``hook.ctx``."""
        return self._model._added_hooks.context(self.name)

    def add_hook(self, hook: HookFunction, dir: Direction = "fwd", is_permanent: bool = False) -> None:
        """Do what `Model.add_hook` does, here."""
        self._model.add_hook(self.name, hook, dir, is_permanent)

    def add_perma_hook(self, hook: HookFunction, dir: Direction = "fwd") -> None:
        """Add a hook that `Model.reset_hooks` leaves."""
        self._model.add_hook(self.name, hook, dir, is_permanent=True)

    @checked
    def remove_hooks(self, dir: Literal["fwd", "bwd", "both"] = "fwd", including_permanent: bool = False) -> None:
        """Take away the hooks that have been added here."""
        self._model._added_hooks.remove(dir, name=self.name, including_permanent=including_permanent)

    def has_hooks(self, dir: Literal["fwd", "bwd", "both"] = "both") -> bool:
        """Whether hooks have been added here."""
        return any(
            self.name in added.names and dir in (added.direction, "both") for added in self._model._added_hooks.all
        )

    def __repr__(self) -> str:
        count = sum(self.name in added.names for added in self._model._added_hooks.all)
        return f"<llama2cpp.ModelHookPoint: {self.name}, {count} hook{'' if count == 1 else 's'}>"


class HookDict(dict[str, ModelHookPoint]):
    """All activations of a model by name; TransformerLens 4's names by module are found too.

    Examples
    --------
    >>> import llama2cpp
    >>> points = llama2cpp.load("storyteller").hook_dict
    >>> len(points), points["blocks.0.attn.o.hook_in"].name
    (133, 'blocks.0.attn.hook_z')
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        names = [*points_of(model.config), *part_inputs(model.config)]
        super().__init__((name, ModelHookPoint(model, name)) for name in names)

    def __missing__(self, name: str) -> ModelHookPoint:
        other = by_module(name, self._model.config) if isinstance(name, str) else name
        if other == name or other not in self:
            raise KeyError(f"the model has no activation {name!r}{close_names(name, self)}")
        return self[other]


class Part:
    """A part of a model: its weights, its activations and its own parts are attributes.

    A norm can be called: ``model.ln_final(x)`` is x [..., dim] through the norm, with its gain.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.blocks[0].attn.W_Q.shape, model.blocks[0].attn.hook_z.name, model.ln_final.w.shape
    ((6, 192, 32), 'blocks.0.attn.hook_z', (192,))
    """

    def __init__(self, model: Model, path: str) -> None:
        self._model = model
        self._path = path

    def _names(self) -> set[str]:
        start = self._path + "."
        config = self._model.config
        names = (*points_of(config), *part_inputs(config), *self._model.weights.transformer_lens, *_MODULES)
        found = {name[len(start) :].partition(".")[0] for name in names if name.startswith(start)}
        in_block = [name.partition(".{}.")[2] for name in _MODULES if name.startswith("blocks.")]
        pieces = self._path.split(".")
        if pieces[0] == "blocks":
            inner = ".".join(pieces[2:])
            found |= {
                name[len(inner) + 1 :].partition(".")[0] if inner else name.partition(".")[0]
                for name in in_block
                if not inner or name.startswith(f"{inner}.")
            }
        return found

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("_"):
            raise AttributeError(name)
        path = f"{self._path}.{name}"
        model = self._model
        if path in model.weights.transformer_lens:
            return model.weights[path]
        if name.startswith("hook_"):
            other = by_module(path, model.config)
            if other in points_of(model.config) or other in part_inputs(model.config):
                return ModelHookPoint(model, other)
        elif name in self._names():
            return Part(model, path)
        zeros = bias_that_is_none(model, path)
        if zeros is not None:
            return zeros
        raise AttributeError(f"{self._path} has no {name!r}{close_names(name, self._names())}")

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                f"{self._path}.{name} cannot be set: model.with_weights({{name: array}}) makes a model of other "
                "weights, and hooks change activations"
            )
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self._names())

    def __call__(self, x: ArrayLike) -> NDArray[np.float32]:
        """Apply a norm."""
        if not self._path.rpartition(".")[2].startswith("ln"):
            raise TypeError(
                f"{self._path} cannot be called alone: only norms can, and model.unembed; model(residual, "
                "start_at_layer=i, stop_at_layer=i + 1) runs a layer"
            )
        return norm_of_part(float_array(x), self._model, self._path)

    def __repr__(self) -> str:
        return f"<llama2cpp.Part: {self._path}: {', '.join(sorted(self._names()))}>"


# Parts that TransformerLens 4 names activations by.
_MODULES = tuple(f"blocks.{{}}.{name}" for name in MODULE_NAMES)


class Blocks(Sequence[Part]):
    """The layers of a model, by number; negative counts from the last.

    Examples
    --------
    >>> import llama2cpp
    >>> blocks = llama2cpp.load("storyteller").blocks
    >>> len(blocks), blocks[-1].mlp.W_out.shape
    (5, (512, 192))
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    @overload
    def __getitem__(self, layer: int) -> Part: ...
    @overload
    def __getitem__(self, layer: slice) -> list[Part]: ...
    def __getitem__(self, layer: int | slice) -> Part | list[Part]:
        count = self._model.config.n_layers
        if isinstance(layer, slice):
            return [self[i] for i in range(count)[layer]]
        layer = integer(layer, "layer", "blocks")
        if not -count <= layer < count:
            raise IndexError(f"there is no layer {layer}: the model has {count}")
        return Part(self._model, f"blocks.{layer % count}")

    def __iter__(self) -> Iterator[Part]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return self._model.config.n_layers

    def __repr__(self) -> str:
        return f"<llama2cpp.Blocks: {len(self)} layers>"


def bias_that_is_none(model: Model, path: str) -> NDArray[np.float32] | None:
    """Zeros for a bias that the model does not have beside a matrix that it has."""
    where, _, name = path.rpartition(".")
    matrix = f"{where}.{name.replace('b_', 'W_', 1)}"
    if not name.startswith("b_") or matrix not in model.weights.transformer_lens:
        return None
    shape = model.weights._source.shape(matrix)
    if name in ("b_Q", "b_K", "b_V"):
        return np.zeros((shape[0], shape[-1]), dtype=np.float32)
    return np.zeros(shape[-1], dtype=np.float32)
