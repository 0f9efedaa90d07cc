"""A model's weights as PyTorch's tensors, by TransformerLens's attributes."""

# ruff: noqa: ANN401 - parts have anything
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.parts import OUTPUT, get_part
from ..inside.model_parts import bias_that_is_none
from ..inside.weights import computed

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[np.float32]


class BridgeWeights:
    """The weights by name, with norms folded into what reads them where that is asked for.

    Examples
    --------
    See `llama2cpp.transformer_lens`.
    """

    def __init__(self, model: Model, fold_ln: bool) -> None:
        self.model = model
        self.fold_ln = fold_ln
        self._weights = computed(model.weights)

    def get(self, name: str) -> torch.Tensor | None:
        """Decode a weight, or zeros for a bias that the model has not beside a matrix that it has."""
        where, _, own = name.rpartition(".")
        array = self._array(name)
        if array is None:
            return None
        norm = self._norm_before(where, own) if self.fold_ln else None
        if norm is not None:
            array = self._folded(array, where, own, norm)
        elif self.fold_ln and re.fullmatch(r"(blocks\.\d+\.)?ln(1|2|_final)", where):
            array = np.ones_like(array) if own == "w" else np.zeros_like(array)
        if name == OUTPUT.lens and self.model.config.logits_scaling != 1:
            array = array / np.float32(self.model.config.logits_scaling)
        return torch.from_numpy(np.array(array))

    def _array(self, name: str) -> Array | None:
        if name in self._weights:
            return self._weights[name]
        if name == "unembed.b_U":
            return self.model.b_U
        return bias_that_is_none(self.model, name)

    def _norm_before(self, where: str, own: str) -> str | None:
        """Which norm's output a weight is multiplied with."""
        block, _, part = where.rpartition(".")
        norm = None
        if part == "attn" and own[2:] in ("Q", "K", "V"):
            norm = f"{block}.ln1"
        elif part == "mlp" and own[2:] in ("gate", "in"):
            own_norm = f"{block}.{get_part('ffn_norm').lens}" in self._weights
            norm = f"{block}.ln{1 if self.model.config.parallel and not own_norm else 2}"
        elif where == "unembed":
            norm = "ln_final"
        return norm if norm is not None and f"{norm}.w" in self._weights else None

    def _folded(self, array: Array, where: str, own: str, norm: str) -> Array:
        if own.startswith("W_"):
            return array * self._weights[f"{norm}.w"][:, None]
        bias = f"{norm}.b"
        if bias not in self._weights:
            return array
        return array + self._weights[bias] @ self._weights[f"{where}.{own.replace('b_', 'W_')}"]

    def part(self, path: str, points: Mapping[str, Any]) -> Part:
        """Give a part by attribute."""
        kind = (
            Norm
            if re.fullmatch(r"ln.*", path.rpartition(".")[2])
            else {"embed": Embed, "unembed": Unembed}.get(path, Part)
        )
        return kind(self, path, points)


class Part(torch.nn.Module):
    """A part of the model: weights, points and smaller parts are attributes.

    Examples
    --------
    See `llama2cpp.transformer_lens`.
    """

    def __init__(self, weights: BridgeWeights, path: str, points: Mapping[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(_of=weights, _path=path, _points=points)
        self.eval()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        of, path, points = self.__dict__["_of"], self.__dict__["_path"], self.__dict__["_points"]
        if name in ("residual_contribution_scale", "_result_contribution_scale"):
            return of.model.config.residual_multiplier
        full = f"{path}.{name}"
        if full in points:
            return points[full]
        found = of.get(full)
        if found is not None:
            return found
        known = (*points, *of.model.weights.transformer_lens)
        if any(other.startswith(f"{full}.") for other in known):
            return of.part(full, points)
        raise AttributeError(f"{path} has no {name!r}")


class Norm(Part):
    """A norm, which can be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it: without its gain, where that is folded into what comes after."""
        of, path = self.__dict__["_of"], self.__dict__["_path"]
        config = of.model.config
        wide = x.double()
        if config.norm != "rms":
            wide = wide - wide.mean(dim=-1, keepdim=True)
        normed = (wide / (wide.square().mean(dim=-1, keepdim=True) + config.norm_eps).sqrt()).to(x.dtype)
        gain, bias = of.get(f"{path}.w"), of.get(f"{path}.b")
        normed = normed if gain is None else normed * gain
        return torch.as_tensor(normed if bias is None else normed + bias)


class Embed(Part):
    """The embeddings, which can be called."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up rows."""
        found: torch.Tensor = self.W_E[tokens] * self.__dict__["_of"].model.config.embedding_multiplier
        return found


class Unembed(Part):
    """The output matrix, which can be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Make logits of what the last norm gives."""
        made: torch.Tensor = x @ self.W_U + self.b_U
        return made
