"""The residual stream of a run, whole and as what each layer added. `heads_and_neurons.py` goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from ..common.arguments import checked, float_array
from ..common.parts import NORM, NORM_B
from .activation_arrays import ActivationArrays, Array, Selection, need_memory, select
from .activation_names import get_act_name
from .weights import computed

if TYPE_CHECKING:
    from .readable_model import ReadableModel


class LinearNorm(NamedTuple):
    """A norm with the divisors of a run: what it makes of parts sums to what it makes of their sum.

    Attributes
    ----------
    scale : array [B, T, 1]
        By what it divides.
    gain : array [dim]
        What it multiplies with.
    centers : bool
        Whether it subtracts the mean: LayerNorm.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp.inside.residual_stream import LinearNorm
    >>> LinearNorm(numpy.float32([[2.0]]), numpy.float32([1.0, 3.0]), False).of(numpy.float32([[4.0, 6.0]])).tolist()
    [[2.0, 9.0]]
    """

    scale: Array
    gain: Array
    centers: bool

    def at_positions(self, pos_slice: Selection) -> LinearNorm:
        """Take the divisors of some positions only."""
        return self._replace(scale=select(self.scale, pos_slice, -2))

    def of(self, parts: Array) -> Array:
        """Normalise parts [..., B, T, dim]."""
        return np.asarray(self.before_division(parts) / self.scale, dtype=np.float32)

    def before_division(self, parts: Array) -> Array:
        """Do what is the same at all positions: parts [..., dim]."""
        return np.asarray(_centered(parts, self.centers) * self.gain)

    def of_directions(self, directions: Array) -> Array:
        """Turn directions [dim] or [dim, n]: products with `before_division` of parts are those of parts with these."""
        scaled = directions.T * self.gain
        return np.asarray(_centered(scaled, self.centers).T)


class ResidualStream(ActivationArrays):
    """What `ActivationCache` can say about whole layers.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache([1, 508, 509])
    >>> cache.decompose_resid().shape
    (11, 1, 3, 192)
    """

    def _layers(self, layer: int | None, what: str = "layer") -> int:
        """Check a layer that is the first not to be counted: None and -1 stand for all, -2 for all but the last."""
        n_layers = self._need_model().config.n_layers
        if layer is None:
            return n_layers
        if not -n_layers - 1 <= layer <= n_layers:
            raise ValueError(
                f"{what} is {layer}, expected 0 to {n_layers}, from the end -1 to {-n_layers - 1}, or None for all"
            )
        return layer % (n_layers + 1)

    def _stream(self, layer: int, mlp_input: bool = False) -> Array:
        """Get the residual stream that enters a layer's attention or its MLP; n_layers: that enters the last norm."""
        if mlp_input:
            return self["resid_mid", layer]
        if get_act_name("resid_pre", layer) in self:
            return self["resid_pre", layer]
        return self["resid_post", layer - 1] if layer > 0 else self["hook_embed"]

    def _check_mlp_input(self, layer: int, mlp_input: bool) -> None:
        if mlp_input and layer >= self._need_model().config.n_layers:
            raise ValueError(f"layer is {layer}: there is no MLP after the last layer, so mlp_input must be False")
        if mlp_input:
            self._check_resid_mid("mlp_input")

    def _check_resid_mid(self, argument: str) -> None:
        if self._need_model().config.parallel:
            raise ValueError(
                f"in this model (parallel) MLPs read what attention reads, and there is no stream between the two, so "
                f"{argument} must be False"
            )

    def _norm(self, layer: int, mlp_input: bool) -> LinearNorm | None:
        """Get the norm that a layer's input goes through; None where it is read as it is."""
        self._check_mlp_input(layer, mlp_input)
        config = self._need_model().config
        if layer == config.n_layers:
            return self._norm_at("ln_final", NORM.lens)
        norm = f"blocks.{layer}.ln{2 if mlp_input else 1}"
        return None if config.norm_places == "after" else self._norm_at(norm, f"{norm}.w")

    def _norm_after(self, layer: int, half: Literal["attn", "mlp"]) -> LinearNorm | None:
        """Get the norm between what a half of a layer computes and what it adds to the stream; None without one."""
        norm = f"blocks.{layer}.ln{1 if half == 'attn' else 2}_post"
        return None if self._need_model().config.norm_places == "before" else self._norm_at(norm, f"{norm}.w")

    def _norm_at(self, norm: str, gain: str) -> LinearNorm:
        model = self._need_model()
        return LinearNorm(self[f"{norm}.hook_scale"], _gain(model, gain), model.config.norm != "rms")

    @checked
    def apply_ln_to_stack(
        self,
        residual_stack: ArrayLike,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Selection = None,
        batch_slice: Selection = None,
        has_batch_dim: bool | None = None,
        recompute_ln: bool = False,
    ) -> Array:
        """Put parts of the residual stream through the norm of the layer that they go into.

        The norm divides by one number a position, which depends on the whole stream, so each part is divided by the
        number of the run, and the parts still sum to what the layer saw. The gain is applied too, so that
        ``@ model.W_U`` gives logits. (TransformerLens leaves the gain to weights that it has been folded into; ours are
        the file's.) A LayerNorm's bias, where it has one, is no part's and is left out. A layer without a norm before
        it (``config.norm_places`` is "after") reads the stream as it is, and so parts stay as they are.

        Parameters
        ----------
        residual_stack : array [parts, B, T, dim]
            Without the axes that the cache or a selection took away. `pos_slice` has been applied to it already.
        layer : int, optional
            0 to n_layers; None, -1 and n_layers stand for the last norm.
        mlp_input : bool
            The norm before the MLP instead of the one before attention.
        pos_slice, batch_slice : int, tuple, slice, list or None
            Which positions and prompts the parts have; `batch_slice` is applied to them.
        has_batch_dim : bool, optional
            Whether the stack has the axis B; that of the cache if not given.
        recompute_ln : bool
            For the last norm: divide each part by its own root mean square, as a logit lens does.

        Returns
        -------
        numpy.ndarray
            float32 [parts, B, T, dim].

        Raises
        ------
        KeyError
            If the divisor (``hook_scale``) was not kept.

        Examples
        --------
        >>> import llama2cpp, numpy
        >>> model = llama2cpp.load("storyteller", activation_dtype="f32")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> parts = cache.apply_ln_to_stack(cache.decompose_resid())
        >>> bool(numpy.allclose(parts.sum(axis=0) @ model.W_U, logits, atol=1e-3))
        True
        """
        model = self._need_model()
        layer = self._layers(layer)
        stack = float_array(residual_stack)
        batched = self.has_batch_dim if has_batch_dim is None else has_batch_dim
        if batched:
            stack = select(stack, batch_slice, 1)
        if recompute_ln and layer == model.config.n_layers:
            return _rms_norm(stack, model)
        norm = self._norm(layer, mlp_input)
        if norm is None:
            return np.array(stack, dtype=np.float32)
        norm = norm.at_positions(pos_slice)
        if self.has_batch_dim:
            norm = norm._replace(scale=select(norm.scale, batch_slice, 0))
        return norm.of(stack)

    @overload
    def accumulated_resid(
        self,
        layer: int | None = ...,
        incl_mid: bool = ...,
        apply_ln: bool = ...,
        pos_slice: Selection = ...,
        mlp_input: bool = ...,
        return_labels: Literal[False] = ...,
    ) -> Array: ...
    @overload
    def accumulated_resid(
        self,
        layer: int | None = ...,
        incl_mid: bool = ...,
        apply_ln: bool = ...,
        pos_slice: Selection = ...,
        mlp_input: bool = ...,
        *,
        return_labels: Literal[True],
    ) -> tuple[Array, list[str]]: ...
    @checked
    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Selection = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Array | tuple[Array, list[str]]:
        """Stack the residual stream as it was before each layer, and after the last.

        Parameters
        ----------
        layer : int, optional
            The last one is the input of this layer; None, -1 and n_layers stand for the whole model.
        incl_mid : bool
            Between attention and MLP too.
        apply_ln : bool
            Apply the norm of `layer`: for the whole model the last norm, by each stream's own size.
        pos_slice : int, tuple, slice, list or None
            Which positions.
        mlp_input : bool
            Include the stream between attention and MLP of `layer`.
        return_labels : bool
            Return labels too.

        Returns
        -------
        numpy.ndarray
            float32 [streams, B, T, dim].
        list of str
            If asked for: "0_pre", "0_mid", ..., "final_post".

        Raises
        ------
        KeyError
            If an activation that it takes was not kept.
        ValueError
            For a layer that the model has not, or a cache without a model.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> streams, labels = cache.accumulated_resid(pos_slice=-1, return_labels=True)
        >>> streams.shape, labels
        ((6, 1, 192), ['0_pre', '1_pre', '2_pre', '3_pre', '4_pre', 'final_post'])
        """
        n_layers = self._need_model().config.n_layers
        layer = self._layers(layer)
        self._check_mlp_input(layer, mlp_input)
        if incl_mid:
            self._check_resid_mid("incl_mid")
        streams, labels = [], []
        for i in range(layer + 1):
            streams.append(self._stream(i))
            labels.append("final_post" if i == n_layers else f"{i}_pre")
            if i < n_layers and ((incl_mid and i < layer) or (mlp_input and i == layer)):
                streams.append(self["resid_mid", i])
                labels.append(f"{i}_mid")
        stack = self._stacked([select(stream, pos_slice, -2) for stream in streams], pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice, recompute_ln=layer == n_layers)
        return (stack, labels) if return_labels else stack

    @overload
    def decompose_resid(
        self,
        layer: int | None = ...,
        mlp_input: bool = ...,
        mode: Literal["all", "mlp", "attn"] = ...,
        apply_ln: bool = ...,
        pos_slice: Selection = ...,
        incl_embeds: bool = ...,
        return_labels: Literal[False] = ...,
    ) -> Array: ...
    @overload
    def decompose_resid(
        self,
        layer: int | None = ...,
        mlp_input: bool = ...,
        mode: Literal["all", "mlp", "attn"] = ...,
        apply_ln: bool = ...,
        pos_slice: Selection = ...,
        incl_embeds: bool = ...,
        *,
        return_labels: Literal[True],
    ) -> tuple[Array, list[str]]: ...
    @checked
    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Selection = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Array | tuple[Array, list[str]]:
        """Take the residual stream that enters a layer apart into what each layer before added.

        With ``mode="all"`` the parts sum to the stream, within the rounding of the additions: with int8 activations
        too, because what a layer's matrices made is what was added.

        Parameters
        ----------
        layer : int, optional
            0 to n_layers; None, -1 and n_layers stand for the whole model.
        mlp_input : bool
            Take the stream that enters the layer's MLP, which its attention has added to.
        mode : str
            "all", "attn" or "mlp".
        apply_ln : bool
            Apply the norm of the layer, by the divisor of the run.
        pos_slice : int, tuple, slice, list or None
            Which positions.
        incl_embeds : bool
            Begin with the embeddings.
        return_labels : bool
            Return labels too.

        Returns
        -------
        numpy.ndarray
            float32 [parts, B, T, dim].
        list of str
            If asked for: "embed", "0_attn_out", "0_mlp_out", ...

        Raises
        ------
        KeyError
            If an activation that it takes was not kept.
        ValueError
            For a layer that the model has not, a `mode` that there is not, or a cache without a model.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> parts, labels = cache.decompose_resid(layer=1, return_labels=True)
        >>> parts.shape, labels
        ((3, 1, 3, 192), ['embed', '0_attn_out', '0_mlp_out'])
        """
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f"mode is {mode!r}, expected one of: all, mlp, attn")
        layer = self._layers(layer)
        self._check_mlp_input(layer, mlp_input)
        parts: list[Array] = []
        labels: list[str] = []
        if incl_embeds:
            parts.append(self["hook_embed"])
            labels.append("embed")
        for i in range(layer):
            for kind in ("attn", "mlp"):
                if mode in ("all", kind):
                    parts.append(self[f"{kind}_out", i])
                    labels.append(f"{i}_{kind}_out")
        if mlp_input and mode != "mlp":
            parts.append(self["attn_out", layer])
            labels.append(f"{layer}_attn_out")
        stack = self._stacked([select(part, pos_slice, -2) for part in parts], pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        return (stack, labels) if return_labels else stack

    def _stacked(self, parts: Sequence[Array], pos_slice: Selection) -> Array:
        """[parts, B, T, dim], also of no parts."""
        if parts:
            need_memory(sum(part.size for part in parts), f"an array of {len(parts)} parts of the residual stream")
            return np.stack(parts)
        return np.zeros((0, *select(self._stream(0), pos_slice, -2).shape), dtype=np.float32)


def last_norm(x: Array, model: ReadableModel) -> Array:
    """Apply all of the last norm, a bias included: x [..., dim]."""
    normed = _rms_norm(x, model)
    return normed + model.weights[NORM_B.lens] if NORM_B.lens in model.weights else normed


def norm_of_part(x: Array, model: ReadableModel, norm: str) -> Array:
    """Apply a norm, such as "blocks.0.ln1", with its gain and its bias: x [..., dim]."""
    weights = computed(model.weights)
    x = _centered(x, model.config.norm != "rms")
    scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(model.config.norm_eps))
    gain, bias = f"{norm}.w", f"{norm}.b"
    normed = x / scale * weights[gain] if gain in weights else x / scale
    return np.asarray(normed + weights[bias] if bias in weights else normed, dtype=np.float32)


def _rms_norm(x: Array, model: ReadableModel) -> Array:
    """Apply the last norm, with its gain and without a bias: x [..., dim]."""
    x = _centered(x, model.config.norm != "rms")
    scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(model.config.norm_eps))
    return np.asarray(x / scale * _gain(model, NORM.lens), dtype=np.float32)


def _centered(x: Array, centers: bool) -> Array:
    """Subtract the mean of [..., dim], if that is asked for."""
    return np.asarray(x - x.mean(axis=-1, keepdims=True)) if centers else x


def _gain(model: ReadableModel, name: str) -> Array:
    """Get a norm's gain [dim]: ones where norms have none."""
    if model.config.norm == "layer_plain":
        return np.ones(model.config.dim, dtype=np.float32)
    return model.weights[name]
