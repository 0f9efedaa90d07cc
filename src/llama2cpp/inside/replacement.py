"""A sparse autoencoder or transcoder in the place of an activation: what `interventions.replace_with` makes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..common.arguments import checked, float_array
from ..common.parts import NORM_B
from .places import Names, find_places, is_pattern, name_of, points_of
from .weights import Weights, computed

if TYPE_CHECKING:
    from .hooks import HookFunction, HookPoint

Array: TypeAlias = NDArray[np.float32]

_MLP_INPUT = "mlp.hook_in"
ACTIVATIONS = ("relu", "topk", "jumprelu")


class Replacement:
    """A dictionary of features, and where in a model its reconstruction takes an activation's place.

    Made by `interventions.replace_with`, whose arguments are its attributes. `encode` and `decode` work on any vectors.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import interventions
    >>> eye = numpy.eye(3)
    >>> both = interventions.replace_with("resid_pre2", numpy.hstack([eye, -eye]), None, [*eye, *-eye], None)
    >>> both.encode([2.0, -1.0, 0.0]).tolist(), both.decode(both.encode([2.0, -1.0, 0.0])).tolist()
    ([2.0, 0.0, 0.0, 0.0, 1.0, 0.0], [2.0, -1.0, 0.0])
    """

    @checked
    def __init__(
        self,
        names: Names,
        W_enc: ArrayLike,  # noqa: N803 - as the field writes them
        b_enc: ArrayLike | None,
        W_dec: ArrayLike,  # noqa: N803
        b_dec: ArrayLike | None,
        *,
        layer: int | None = None,
        reads: str | None = None,
        activation: str = "relu",
        k: int | None = None,
        threshold: ArrayLike | None = None,
        W_skip: ArrayLike | None = None,  # noqa: N803
        subtract_b_dec: bool = False,
        error_term: bool = False,
        features: Callable[[Array, HookPoint], object] | None = None,
        when: Literal["prompt", "generated"] | None = None,
    ) -> None:
        self.names, self.layer, self.reads, self.when = names, layer, reads, when
        self.W_enc, self.W_dec = float_array(W_enc), float_array(W_dec)
        shapes = [list(matrix.shape) for matrix in (self.W_enc, self.W_dec)]
        two = [len(shape) for shape in shapes] == [2, 2]
        if not two or shapes[0][1] != shapes[1][0] or 0 in (*shapes[0], *shapes[1]):
            raise ValueError(
                f"replace_with: W_enc has shape {shapes[0]} and W_dec {shapes[1]}, expected [d_in, n] and [n, d_out]"
            )
        self.d_in, self.n_features, self.d_out = shapes[0][0], shapes[0][1], shapes[1][1]
        self.b_enc = self._vector("b_enc", b_enc, self.n_features)
        self.b_dec = self._vector("b_dec", b_dec, self.d_out)
        if activation not in ACTIVATIONS:
            raise ValueError(f"replace_with: activation is {activation!r}, expected one of: {', '.join(ACTIVATIONS)}")
        if (activation == "topk") != (k is not None) or not 1 <= (1 if k is None else k) <= self.n_features:
            raise ValueError(f"replace_with: k is {k}, expected 1 to {self.n_features} with 'topk', and None without")
        if (activation == "jumprelu") != (threshold is not None):
            raise ValueError("replace_with: threshold goes with activation='jumprelu', and that with it")
        self.activation, self.k = activation, k
        self.threshold = None if threshold is None else self._vector("threshold", threshold, self.n_features)
        self.W_skip = None if W_skip is None else float_array(W_skip)
        if self.W_skip is not None and self.W_skip.shape != (self.d_in, self.d_out):
            raise ValueError(
                f"replace_with: W_skip has shape {list(self.W_skip.shape)}, expected [{self.d_in}, {self.d_out}]"
            )
        if subtract_b_dec and self.d_in != self.d_out:
            raise ValueError("replace_with: subtract_b_dec is for dictionaries that write what they read")
        if features is not None and not callable(features):
            raise TypeError(f"replace_with: features is of type {type(features).__name__}, which cannot be called")
        if when not in (None, "prompt", "generated"):
            raise ValueError(f"when is {when!r}, expected 'prompt', 'generated' or None")
        self.subtract_b_dec, self.error_term, self.features = subtract_b_dec, error_term, features

    def __repr__(self) -> str:
        names = self.names if isinstance(self.names, str) else repr(self.names)
        layer = "" if self.layer is None else f", layer={self.layer}"
        reads = "" if self.reads is None else f", reads={self.reads!r}"
        return f"Replacement({names}{layer}{reads}, {self.n_features} features, {self.activation})"

    @staticmethod
    def _vector(name: str, given: ArrayLike | None, size: int) -> Array:
        array = float_array(0.0 if given is None else given)
        if array.ndim > 1 or (array.ndim == 1 and len(array) != size):
            raise ValueError(f"replace_with: {name} has shape {list(array.shape)}, expected [{size}]")
        return np.ascontiguousarray(np.broadcast_to(array, size))

    @staticmethod
    def _rows(function: str, name: str, given: ArrayLike, width: int) -> Array:
        array = float_array(given)
        if array.ndim == 0 or array.shape[-1] != width:
            raise ValueError(f"{function}: {name} has shape {list(array.shape)}, expected [..., {width}]")
        return array

    def encode(self, x: ArrayLike) -> Array:
        """Give the features of what is read: [..., d_in] -> float32 [..., n].

        Examples
        --------
        >>> from llama2cpp import interventions
        >>> coder = interventions.replace_with("resid_pre0", [[1.0, -1.0]], [0.5, 0.0], [[1.0], [-1.0]], None)
        >>> coder.encode([[2.0], [-3.0]]).tolist()
        [[2.5, 0.0], [0.0, 3.0]]
        """
        read = self._rows("encode", "x", x, self.d_in)
        before = (read - self.b_dec if self.subtract_b_dec else read) @ self.W_enc + self.b_enc
        if self.threshold is not None:
            return np.asarray(np.where(before > self.threshold, np.maximum(before, 0), 0), dtype=np.float32)
        found = np.maximum(before, 0)
        if self.k is not None and self.k < self.n_features:
            flat = found.reshape(-1, self.n_features)
            kept = np.argsort(-flat, axis=-1, kind="stable")[:, : self.k]  # of equal ones the first
            sparse = np.zeros_like(flat)
            np.put_along_axis(sparse, kept, np.take_along_axis(flat, kept, axis=-1), axis=-1)
            found = sparse.reshape(found.shape)
        return np.asarray(found, dtype=np.float32)

    def decode(self, features: ArrayLike, x: ArrayLike | None = None) -> Array:
        """Give what features stand for: [..., n] -> float32 [..., d_out]; `x` is what was read, for `W_skip`.

        Examples
        --------
        >>> from llama2cpp import interventions
        >>> coder = interventions.replace_with("resid_pre0", [[1.0, -1.0]], None, [[1.0], [-1.0]], [0.25])
        >>> coder.decode([2.0, 0.0]).tolist()
        [2.25]
        """
        made = self._rows("decode", "features", features, self.n_features) @ self.W_dec + self.b_dec
        if self.W_skip is not None:
            if x is None:
                raise ValueError("decode: with W_skip it needs x, what was read")
            made = made + self._rows("decode", "x", x, self.d_in) @ self.W_skip
        return np.asarray(made, dtype=np.float32)

    def place(self, config: _core.Config) -> str:
        """Name the activation of a model that is replaced.

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp import interventions
        >>> coder = interventions.replace_with("mlp_out", [[1.0]], None, [[1.0]], None, layer=-1)
        >>> coder.place(llama2cpp.load("storyteller").config)
        'blocks.4.hook_mlp_out'
        """
        places = find_places(self.names, config)
        if self.layer is not None:
            layer = self.layer + config.n_layers if self.layer < 0 else self.layer
            places = [place for place in places if place[1] == layer]
        if len(places) != 1:
            raise ValueError(
                f"replace_with: {self.names!r} with layer={self.layer} are {len(places)} activations, expected one: a "
                "dictionary is trained at one"
            )
        return name_of(places[0], config)

    def hooks(self, core: _core.Model) -> list[tuple[str, HookFunction, bool]]:
        """Make what acts in a run: (name, function, whether it does without what it is shown).

        Examples
        --------
        >>> import numpy
        >>> import llama2cpp
        >>> from llama2cpp import interventions
        >>> arrays = (numpy.ones((192, 2)), None, numpy.ones((2, 192)), None)
        >>> coder = interventions.replace_with("mlp_out3", *arrays, reads="mlp_in")
        >>> [(name, replaces) for name, _, replaces in coder.hooks(llama2cpp.load("storyteller")._core)]
        [('blocks.3.hook_resid_mid', False), ('blocks.3.hook_mlp_out', True)]
        """
        config = core.config
        target = self.place(config)
        source, gain, bias = self._source(target, core)
        for what, name, width in (("d_in", source, self.d_in), ("d_out", target, self.d_out)):
            if is_pattern(name):
                raise ValueError(f"replace_with: {name} has as many numbers as there are tokens: no {what} fits it")
            heads, size = _core.point_shape(points_of(config)[name][0], config)
            if max(heads, 1) * size != width:
                raise ValueError(f"replace_with: {name} has {max(heads, 1) * size} numbers, and {what} is {width}")
        if source == target:
            return [(target, lambda x, point: self._made(x, x, point), False)]
        read: dict[tuple[int, int], Array] = {}  # by thread and session: calls may run beside each other

        def look(x: Array, point: HookPoint) -> None:
            x = x if gain is None else x * gain
            read[threading.get_ident(), id(point.session)] = x if bias is None else x + bias

        def put(x: Array, point: HookPoint) -> object:
            return self._made(read.pop((threading.get_ident(), id(point.session))), x, point)

        return [(source, look, False), (target, put, not self.error_term)]

    def _made(self, read: Array, written: Array, point: HookPoint) -> Array | None:
        """Give what takes the place of `written`; None leaves it."""
        flat = read.reshape(*read.shape[:2], -1)
        found = self.encode(flat)
        changed = found
        if self.features is not None:
            own = found.copy()
            given = self.features(own, point)
            changed = own if given is None else np.asarray(given, dtype=np.float32)
            if changed.shape != found.shape:
                raise ValueError(
                    f"replace_with: features returned shape {list(changed.shape)}, expected {list(found.shape)}"
                )
        if not self.error_term:
            return self.decode(changed, flat).reshape(written.shape)
        if changed is found:
            return None
        return np.asarray(written + ((changed - found) @ self.W_dec).reshape(written.shape), dtype=np.float32)

    def _source(self, target: str, core: _core.Model) -> tuple[str, Array | None, Array | None]:
        """Name the activation that is read, and what it is multiplied with and added to."""
        if self.reads is None:
            return target, None, None
        config, points = core.config, points_of(core.config)
        block = ".".join(target.split(".")[:2])
        stream = f"{block}.hook_{'resid_pre' if config.parallel else 'resid_mid'}"
        gain = bias = None
        if self.reads in ("mlp_in", "hook_mlp_in") or (self.reads == _MLP_INPUT and config.norm_places == "after"):
            source = stream
        elif self.reads == _MLP_INPUT:
            norm = f"{block}.ln{1 if config.parallel else 2}"
            source = f"{norm}.hook_normalized"
            weights = computed(Weights(core))
            gain, bias = (weights.get(name) for name in (f"{norm}.w", f"{norm}.{NORM_B.lens.rpartition('.')[2]}"))
        elif f"{block}.{self.reads}" in points:
            source = f"{block}.{self.reads}"
        else:
            layer = points[target][1]
            found = [place for place in find_places(self.reads, config) if place[1] == layer]
            if len(found) != 1:
                raise ValueError(f"replace_with: reads is {self.reads!r}, {len(found)} activations of layer {layer}")
            source = name_of(found[0], config)
        names = list(points)
        if source not in points or names.index(source) > names.index(target):
            raise ValueError(f"replace_with: reads is {source!r}, expected an activation before {target!r}")
        return source, gain, bias
