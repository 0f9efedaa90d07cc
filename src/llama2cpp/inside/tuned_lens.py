"""Affine translators for the logit lens: a tuned lens (Belrose and others, 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..common.arguments import checked, float_array
from .activation_arrays import Array

if TYPE_CHECKING:
    from .readable_model import ReadableModel


class TunedLens:
    """What turns the residual stream before each layer into what the logit lens reads: ``x + x @ W.T + b``.

    Parameters
    ----------
    weights : array [n_layers, dim, dim], or sequence of arrays or None
        Of each layer's translator, [out, in] as PyTorch's ``Linear`` has them. None is zero, which leaves the stream as
        it is: all None is the logit lens.
    biases : array [n_layers, dim], or sequence of arrays or None, optional
        None is zero.

    Attributes
    ----------
    weights, biases : list of numpy.ndarray or None
        As given, in float32.

    Raises
    ------
    ValueError
        For shapes that do not fit each other.
    TypeError
        For weights or biases that are no sequence.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.analysis import TunedLens
    >>> model = llama2cpp.load("storyteller")
    >>> identity = TunedLens([None] * 5)
    >>> plain = llama2cpp.logit_lens(model, "Once upon a")
    >>> tuned = llama2cpp.logit_lens(model, "Once upon a", translators=identity)
    >>> bool((plain.values == tuned.values).all())
    True
    """

    def __init__(
        self,
        weights: ArrayLike | Sequence[ArrayLike | None],
        biases: ArrayLike | Sequence[ArrayLike | None] | None = None,
    ) -> None:
        for name, argument in (("weights", weights), ("biases", biases)):
            several = hasattr(argument, "__len__") and not isinstance(argument, str | bytes | Mapping)
            if not several and not (argument is None and name == "biases"):
                raise TypeError(
                    f"TunedLens: {name} is of type {type(argument).__name__}, expected an array or a sequence of them; "
                    "TunedLens.of takes arrays by name"
                )
        given: Any = weights
        self.weights = [None if weight is None else float_array(weight) for weight in given]
        of_biases: Any = [None] * len(self.weights) if biases is None else biases
        self.biases = [None if bias is None else float_array(bias) for bias in of_biases]
        if len(self.weights) != len(self.biases):
            raise ValueError(f"TunedLens: there are {len(self.weights)} weights and {len(self.biases)} biases")
        dims = {array.shape[-1] for array in (*self.weights, *self.biases) if array is not None and array.ndim}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            shapes = [None if array is None else list(array.shape) for array in (weight, bias)]
            dim = next(iter(dims), 0)
            if len(dims) > 1 or shapes[0] not in (None, [dim, dim]) or shapes[1] not in (None, [dim]):
                raise ValueError(
                    f"TunedLens: layer {i} has a weight of shape {shapes[0]} and a bias of {shapes[1]}, expected "
                    "[dim, dim] and [dim], the same for all layers"
                )
        self.dim = next(iter(dims), None)

    @classmethod
    @checked
    def of(cls, arrays: Mapping[str, ArrayLike]) -> TunedLens:
        """Make one of the arrays by name that the package ``tuned-lens`` saves: "0.weight", "0.bias", "1.weight" ...

        Parameters
        ----------
        arrays : mapping of str to array or tensor
            Such as ``torch.load("params.pt")``; other names in it are the unembedding's, and passed over.

        Returns
        -------
        TunedLens

        Raises
        ------
        ValueError
            If a layer is missing.

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp.analysis import TunedLens
        >>> lens = TunedLens.of({"0.weight": numpy.zeros((4, 4)), "0.bias": numpy.ones(4)})
        >>> lens.translate(numpy.zeros((1, 4)), 0).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
        """
        own = {name.removeprefix("layer_translators."): array for name, array in arrays.items()}
        count = sum(name.endswith(".weight") and name.split(".")[0].isdigit() for name in own)
        missing = [i for i in range(count) if f"{i}.weight" not in own]
        if not count or missing:
            raise ValueError(f"TunedLens: there is no '{(missing or [0])[0]}.weight' in {sorted(own)[:8]}")
        return cls([own[f"{i}.weight"] for i in range(count)], [own.get(f"{i}.bias") for i in range(count)])

    @checked
    def translate(self, stream: ArrayLike, layer: int) -> Array:
        """Turn the stream before a layer, [..., dim], into what is read. Behind the last layer it stays as it is.

        Raises
        ------
        ValueError
            For a layer below 0, or a stream of another width.

        Examples
        --------
        >>> from llama2cpp.analysis import TunedLens
        >>> TunedLens([[[1.0]]], [[0.5]]).translate([3.0], 0).tolist()
        [6.5]
        """
        x = float_array(stream)
        if layer < 0:
            raise ValueError(f"TunedLens.translate: layer is {layer}, expected 0 or more")
        if x.ndim == 0 or self.dim not in (None, x.shape[-1]):
            raise ValueError(f"TunedLens.translate: the stream has shape {list(x.shape)}, expected [..., {self.dim}]")
        if layer >= len(self.weights):
            return x
        weight, bias = self.weights[layer], self.biases[layer]
        made = x if weight is None else x + x @ weight.T
        return np.asarray(made if bias is None else made + bias, dtype=np.float32)

    def check(self, model: ReadableModel, function: str) -> None:
        """Refuse a model of other sizes."""
        config = model.config
        if len(self.weights) != config.n_layers or self.dim not in (None, config.dim):
            raise ValueError(
                f"{function}: the translators are of {len(self.weights)} layers and dim {self.dim}, and the model has "
                f"{config.n_layers} and {config.dim}"
            )

    def __repr__(self) -> str:
        return f"<llama2cpp.analysis.TunedLens: {len(self.weights)} layers>"
