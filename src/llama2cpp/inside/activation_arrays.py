"""A mapping of activations by name: short keys, batches, files. `cache.py` adds what can be computed from them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.arguments import checked, close_names, instead_of, integer
from . import cache_file
from .activation_names import by_module, from_first, get_act_name
from .html_views import size_text, table
from .places import is_pattern, part_inputs
from .recomputed import RecomputedArrays

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..adapters import Adapter
    from .readable_model import ReadableModel

Array: TypeAlias = NDArray[np.float32]
Key: TypeAlias = str | tuple[Any, ...]
# Which positions, neurons or batch items: None for all, an int for one (its axis goes away), a tuple for
# slice(*tuple), a slice, or a list or array of indices.
Selection: TypeAlias = int | tuple[int | None, ...] | slice | Sequence[int] | NDArray[Any] | None


def select(array: NDArray[Any], selection: Selection, axis: int) -> NDArray[Any]:
    """Take part of one axis, as TransformerLens's ``Slice`` does."""
    if selection is None:
        return array
    if isinstance(selection, tuple):
        selection = slice(*selection)
    elif isinstance(selection, Sequence):
        selection = np.asarray(selection, dtype=np.int64)
    index: list[Any] = [slice(None)] * array.ndim
    index[axis] = selection
    part: NDArray[Any] = array[tuple(index)]
    return part


def need_memory(floats: float, what: str) -> None:
    """Raise MemoryError where so many float32 do not fit. NumPy would take them, and the system end the process."""
    _core.need_memory(4.0 * floats, what, "select fewer layers, positions, neurons or tokens")


def _plain(tokens: Any) -> Any:  # noqa: ANN401 - an id, or a list of ids
    """Make plain numbers of whatever has been passed."""
    if isinstance(tokens, Sequence | np.ndarray):
        return [integer(id, "tokens", "ActivationCache") for id in tokens]
    return integer(tokens, "tokens", "ActivationCache")


# What caches of TransformerLens have, and what to use instead.
_INSTEAD = {
    "to": "its arrays are NumPy's: cache.to_numpy() is a dict of them",
    "toggle_autodiff": "cache.backward gives gradients whenever it is called",
}


class ActivationArrays(Mapping[str, NDArray[np.float32]]):
    """What `ActivationCache` is without its mathematics.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp.inside.activation_arrays import ActivationArrays
    >>> arrays = ActivationArrays({"blocks.0.attn.hook_q": numpy.zeros((1, 3, 8, 8), dtype=numpy.float32)}, None)
    >>> arrays["q", 0].shape
    (1, 3, 8, 8)
    """

    @checked
    def __init__(
        self,
        arrays: Mapping[str, Array],
        model: ReadableModel | None,
        *,
        has_batch_dim: bool = True,
        positions: Sequence[int] | None = None,
        tokens: Sequence[Any] | None = None,
    ) -> None:
        self._arrays: MutableMapping[str, Array] = arrays if isinstance(arrays, RecomputedArrays) else dict(arrays)
        self.model = model
        self.has_batch_dim = has_batch_dim
        self.positions = None if positions is None else [int(position) for position in positions]
        self.tokens = None if tokens is None else [_plain(item) for item in tokens]
        self._why_no_gradients = ""  # what `backward` raises
        self._changed: list[str] = []  # where hooks changed the run,
        self._replaced: list[str] = []  # and where a dictionary left nothing of it
        self.adapter: Adapter | None = None  # of the run: what heads and neurons add is computed with it

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401
            kind, instead = type(self).__name__, instead_of(name, _INSTEAD)
            raise AttributeError(f"{kind!r} object has no attribute {name!r}{instead}", name=name, obj=self)

    @property
    def cache_dict(self) -> dict[str, Array]:
        """The activations by full names, as a dict; see `to_numpy`."""
        return dict(self.items())

    def _length(self) -> int | None:
        """Count the tokens of a prompt; None where the cache does not know."""
        if self.tokens:
            return len(self.tokens[0] if isinstance(self.tokens[0], list) else self.tokens)
        if self.positions is not None or not self._arrays:
            return None
        name, array = next(iter(self._arrays.items()))
        return int(array.shape[-2 if is_pattern(name) else int(self.has_batch_dim)])

    def __getstate__(self) -> dict[str, Any]:
        # A closed model cannot be opened again; what needs none works without it.
        closed = getattr(self.model, "_open_core", self.model) is None
        return {**vars(self), "model": None} if closed else vars(self)

    def _need_model(self) -> ReadableModel:
        if self.model is None:
            raise ValueError("the cache has no model: pass one to ActivationCache.load, or set cache.model")
        return self.model

    def _name(self, key: Key) -> str:
        if isinstance(key, str):
            if key not in self._arrays and self.model is not None:
                key = from_first(key, self.model.config.n_layers)
            if key in self._arrays:
                return key
            if self.model is not None:
                key = by_module(key, self.model.config)
            return get_act_name(key)
        if not 1 <= len(key) <= 3:
            raise KeyError(f"{key!r}: expected a name, (name, layer) or (name, layer, layer type)")
        name, layer, *layer_type = key
        if layer is not None and not isinstance(layer, str):
            layer = integer(layer, "layer", "ActivationCache")
            n_layers = self._need_model().config.n_layers if layer < 0 else 0
            layer = n_layers + layer if -n_layers <= layer < 0 else layer
        return get_act_name(name, layer, *layer_type)

    def __getitem__(self, key: Key) -> Array:
        name = self._name(key if isinstance(key, str) or len(key) > 1 else key[0])
        if name not in self._arrays:
            copied = self._input_of_part(name)
            if copied is not None:
                return copied
            raise KeyError(f"no {name!r} among the {len(self)} activations that were kept{self._hint(key, name)}")
        return self._arrays[name]

    def _input_of_part(self, name: str) -> Array | None:
        """Show the residual stream that a part reads, for each of its heads: read-only views."""
        if self.model is None or not name.endswith(("_in", "_input")):
            return None
        config = self.model.config
        stream = self._arrays.get(part_inputs(config).get(name, ""))
        if stream is None or name.endswith("mlp_in"):
            return stream
        heads = config.n_heads if name.endswith(("q_input", "attn_in")) else config.n_kv_heads
        return np.broadcast_to(stream[..., None, :], (*stream.shape[:-1], heads, stream.shape[-1]))

    def _hint(self, key: Key, name: str) -> str:
        shorts = sorted({full.rpartition("hook_")[2] for full in self._arrays})
        if not isinstance(key, str):
            key = key[0]
        return close_names(key, shorts) or close_names(name, self._arrays)

    def _ipython_key_completions_(self) -> list[str]:
        return [*self._arrays, *sorted({full.rpartition("hook_")[2] for full in self._arrays})]

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str | tuple):
            return False
        try:
            name = self._name(key if isinstance(key, str) or len(key) > 1 else key[0])
            return name in self._arrays or self._input_of_part(name) is not None
        except (KeyError, IndexError, TypeError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        """How much memory the arrays take, in bytes; of those that are computed again, what is held now."""
        if isinstance(self._arrays, RecomputedArrays):
            return self._arrays.nbytes
        return sum(array.nbytes for array in self._arrays.values())

    def _shape(self, name: str) -> tuple[int, ...]:
        if isinstance(self._arrays, RecomputedArrays):
            return self._arrays.shape(name)
        return self._arrays[name].shape

    def __repr__(self) -> str:
        return f"<llama2cpp.ActivationCache: {len(self)} activations, {size_text(self.nbytes)}>"

    def _repr_html_(self) -> str:
        families: dict[str, list[tuple[int, ...]]] = {}
        for name in self._arrays:
            families.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name), []).append(self._shape(name))
        rows = [
            (
                name,
                len(shapes),
                " or ".join(sorted({str(list(shape)) for shape in shapes})),
                size_text(sum(4 * math.prod(shape) for shape in shapes)),
            )
            for name, shapes in families.items()
        ]
        return f"<p>{size_text(self.nbytes)} of activations</p>{table(('name', 'layers', 'shape', 'memory'), rows)}"

    def _batch_size(self) -> int:
        counts = Counter(self._shape(name)[0] for name in self._arrays)
        return counts.most_common(1)[0][0] if counts else 1

    def remove_batch_dim(self) -> Self:
        """Take away the first axis of every array, if it is of length one. Changes this cache and returns it.

        Returns
        -------
        ActivationCache

        Raises
        ------
        ValueError
            If the batch holds several prompts.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> cache.remove_batch_dim()["q", 0].shape
        (3, 6, 32)
        """
        if self.has_batch_dim:
            if self._batch_size() != 1:
                raise ValueError(f"the batch holds {self._batch_size()} prompts, expected 1")
            if isinstance(self._arrays, RecomputedArrays):
                self._arrays.batched = False
            else:
                self._arrays = {name: array[0] for name, array in self._arrays.items()}
            self.has_batch_dim = False
            if self.tokens and isinstance(self.tokens[0], list):
                self.tokens = self.tokens[0]
        return self

    @checked
    def apply_slice_to_batch_dim(self, batch_slice: Selection) -> Self:
        """Keep some prompts of a batch.

        Parameters
        ----------
        batch_slice : int, tuple, slice, list or None
            Which; an int takes the axis away.

        Returns
        -------
        ActivationCache
            A new one, with views of these arrays where that is possible.

        Raises
        ------
        ValueError
            If there is no batch axis.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([[1, 508], [1, 509]])
        >>> cache.apply_slice_to_batch_dim(1)["q", 0].shape
        (2, 6, 32)
        """
        if not self.has_batch_dim:
            raise ValueError("the cache has no batch axis")
        tokens = self.tokens
        if tokens and isinstance(tokens[0], list):
            tokens = np.asarray(select(np.asarray(tokens), batch_slice, 0)).tolist()
        part = type(self)(
            {name: select(array, batch_slice, 0) for name, array in self._arrays.items()},
            self.model,
            has_batch_dim=not isinstance(batch_slice, int | np.integer),
            positions=self.positions,
            tokens=tokens,
        )
        part._why_no_gradients = self._why_no_gradients
        part._changed, part._replaced = self._changed, self._replaced
        part.adapter = self.adapter
        return part

    def to_numpy(self) -> dict[str, Array]:
        """Get the arrays as a plain dict by full name. They are not copied.

        Returns
        -------
        dict of str to numpy.ndarray

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508], names_filter="hook_embed")
        >>> {name: array.shape for name, array in cache.to_numpy().items()}
        {'hook_embed': (1, 2, 192)}
        """
        return dict(self._arrays)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the arrays to a file, which appears when it is complete.

        Parameters
        ----------
        path : str or path
            ``.npz`` (NumPy's, not compressed) or ``.safetensors``.

        Raises
        ------
        ValueError
            For another suffix, or of a run with an adapter.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import llama2cpp
        >>> import tempfile
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache.save(f"{folder}/cache.safetensors")
        ...     again = llama2cpp.ActivationCache.load(f"{folder}/cache.safetensors", model)
        >>> len(again) == len(cache), bool((again["z", 4] == cache["z", 4]).all())
        (True, True)
        """
        facts = {"has_batch_dim": self.has_batch_dim, "positions": self.positions, "tokens": self.tokens}
        of_hooks: dict[str, Any] = {
            "changed": self._changed,
            "replaced": self._replaced,
            "why_no_gradients": self._why_no_gradients,
        }
        facts |= {name: fact for name, fact in of_hooks.items() if fact}
        if self.adapter is not None:
            raise ValueError(
                "ActivationCache.save: the run had an adapter, which the file does not hold: set cache.adapter = None "
                "to save the activations alone"
            )
        cache_file.save(path, self._arrays, facts)

    @classmethod
    def load(cls, path: str | PathLike[str], model: ReadableModel | None = None) -> Self:
        """Open a file that `save` has written.

        Parameters
        ----------
        path : str or path
            Its name; the suffix says what it is.
        model : Model, optional
            Whose activations these are: for what needs weights, and for negative layers.

        Returns
        -------
        ActivationCache

        Raises
        ------
        FormatError
            If the file is damaged, or not written by `save`.
        ValueError
            For another suffix.
        OSError
            If the file cannot be read.

        Examples
        --------
        See `save`.

        >>> import llama2cpp
        >>> try:
        ...     llama2cpp.ActivationCache.load("cache.bin")
        ... except ValueError as error:
        ...     print(error)
        cache.bin: expected a name that ends in .npz or .safetensors
        """
        arrays, facts = cache_file.load(path)
        cache = cls(
            arrays,
            model,
            has_batch_dim=facts["has_batch_dim"],
            positions=facts["positions"],
            tokens=facts["tokens"],
        )
        cache._changed, cache._replaced = facts.get("changed", []), facts.get("replaced", [])
        cache._why_no_gradients = facts.get("why_no_gradients", "")
        return cache
