"""What heads and neurons added to the residual stream. `cache.py` puts all its parts together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from ..common.arguments import checked, float_array
from ..common.parts import get_part
from .activation_arrays import Array, Selection, need_memory, select
from .activation_names import get_act_name
from .residual_stream import ResidualStream

if TYPE_CHECKING:
    from ..adapters import Adapter


def with_factors(weights: Array, adapter: Adapter | None, part: str, layer: int) -> Array:
    """Add what an adapter has beside one of the model's matrices.

    Parameters
    ----------
    weights : array [..., dim]
        The matrix, turned as TransformerLens's are.
    adapter : Adapter, optional
    part : str
        Which matrix, "wo" or "w2".
    layer : int

    Returns
    -------
    array [..., dim]

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp.inside.heads_and_neurons import with_factors
    >>> with_factors(numpy.ones((2, 3)), None, "w2", 0).shape
    (2, 3)
    """
    factors = None if adapter is None else adapter._core.factors(part, layer)
    if factors is None:
        return weights
    a, b, scale = factors
    return np.asarray(weights + ((b @ a) * np.float32(scale)).T.reshape(weights.shape), dtype=np.float32)


class HeadsAndNeurons(ResidualStream):
    """What `ActivationCache` can say about single heads and neurons.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache([1, 508, 509])
    >>> cache.stack_head_results().shape, cache.get_neuron_results(0).shape
    ((30, 1, 3, 192), (1, 3, 512, 192))
    """

    def compute_head_results(self) -> None:
        """Add ``hook_result`` of every layer, what each head gives, where it is missing.

        It is z times the head's part of W_O: what the head adds to the residual stream, or gives to the norm after
        attention where there is one (then `stack_head_results` has what it adds). With int8 activations the model has
        rounded z first, so there it is what the head would give in floats; what was kept in the run is left as it is.

        Raises
        ------
        KeyError
            If ``hook_z`` was not kept.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509], names_filter=lambda name: name.endswith("hook_z"))
        >>> cache.compute_head_results()
        >>> cache["result", 0].shape
        (1, 3, 6, 192)
        """
        for i in range(self._need_model().config.n_layers):
            name = get_act_name("result", i)
            if name not in self._arrays:
                self._arrays[name] = self._head_results(i)

    def _head_results(self, layer: int) -> Array:
        """[B, T, n_heads, dim]: those of the run, or computed, and not kept."""
        if get_act_name("result", layer) in self:
            return self["result", layer]
        weights = self._need_model().weights[f"blocks.{layer}.{get_part('wo').lens}"]  # [n_heads, head_dim, dim]
        weights = with_factors(weights, self.adapter, "wo", layer)
        by_head = np.moveaxis(self["z", layer], -2, 0)  # [n_heads, B, T, head_dim]
        need_memory(2 * by_head.size // by_head.shape[-1] * weights.shape[-1], "an array of heads' results")
        weights = weights * np.float32(self._need_model().config.residual_multiplier)
        return np.stack([z @ w for z, w in zip(by_head, weights, strict=True)], axis=-2)

    def _added_by_heads(self, layer: int, pos_slice: Selection) -> Array:
        """[n_heads, B, T, dim]: results, after the norm that may be between them and the stream."""
        results = np.moveaxis(select(self._head_results(layer), pos_slice, -3), -2, 0)
        norm = self._norm_after(layer, "attn")
        return results if norm is None else norm.at_positions(pos_slice).of(results)

    @overload
    def stack_head_results(
        self,
        layer: int | None = ...,
        return_labels: Literal[False] = ...,
        incl_remainder: bool = ...,
        pos_slice: Selection = ...,
        apply_ln: bool = ...,
    ) -> Array: ...
    @overload
    def stack_head_results(
        self,
        layer: int | None = ...,
        *,
        return_labels: Literal[True],
        incl_remainder: bool = ...,
        pos_slice: Selection = ...,
        apply_ln: bool = ...,
    ) -> tuple[Array, list[str]]: ...
    @checked
    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Selection = None,
        apply_ln: bool = False,
    ) -> Array | tuple[Array, list[str]]:
        """Stack what each head of the layers before `layer` added to the residual stream.

        That is ``hook_result``; in models with norms after attention (``config.norm_places``) it is what the norm made
        of it, which divides heads' results by the number of the run.

        Parameters
        ----------
        layer : int, optional
            1 to n_layers; None, -1 and n_layers stand for all layers.
        return_labels : bool
            Return labels too.
        incl_remainder : bool
            End with the rest of the stream that enters `layer`: embeddings, MLPs, biases and, with int8 activations,
            what was rounded away.
        pos_slice : int, tuple, slice, list or None
            Which positions.
        apply_ln : bool
            Apply the norm of `layer`, by the divisor of the run.

        Returns
        -------
        numpy.ndarray
            float32 [layer * n_heads, B, T, dim].
        list of str
            If asked for: "L0H0", "L0H1", ..., "remainder".

        Raises
        ------
        KeyError
            If neither ``hook_result`` nor ``hook_z`` was kept, or not the divisor of a norm after attention
            (``ln1_post.hook_scale``).

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> heads, labels = cache.stack_head_results(return_labels=True)
        >>> heads.shape, labels[:2]
        ((30, 1, 3, 192), ['L0H0', 'L0H1'])
        """
        layer = self._layers(layer)
        n_heads = self._need_model().config.n_heads
        labels = [f"L{i}H{h}" for i in range(layer) for h in range(n_heads)]
        parts: list[Array] = []
        for i in range(layer):
            parts.extend(self._added_by_heads(i, pos_slice))
        stack = self._stacked(parts, pos_slice)
        if incl_remainder:
            stack = self._with_remainder(stack, select(self._stream(layer), pos_slice, -2))
            labels.append("remainder")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    @staticmethod
    def _with_remainder(stack: Array, whole: Array) -> Array:
        need_memory(stack.size + 2 * whole.size, "an array of parts and their remainder")
        return np.concatenate([stack, (whole - stack.sum(axis=0))[None]])

    @checked
    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Selection = None,
        pos_slice: Selection = None,
        project_output_onto: ArrayLike | None = None,
    ) -> Array:
        """Get what each neuron of one layer added to the residual stream: its activation times its row of W_out.

        Where a norm comes after the MLP (``config.norm_places``), it is what the norm made of that, which divides by
        the number of the run.

        Parameters
        ----------
        layer : int
            From 0.
        neuron_slice, pos_slice : int, tuple, slice, list or None
            Which neurons and positions.
        project_output_onto : array [dim] or [dim, n], optional
            Directions; then only the product with them is computed, which takes less memory.

        Returns
        -------
        numpy.ndarray
            float32 [B, T, neurons, dim]; [B, T, neurons, n] or [B, T, neurons] for directions.

        Raises
        ------
        KeyError
            If ``hook_post`` was not kept, or not the divisor of a norm after the MLP (``ln2_post.hook_scale``).
        ValueError
            For a model with experts: what they give is ``mlp.hook_expert_out``.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> cache.get_neuron_results(2, pos_slice=-1).shape
        (1, 512, 192)
        """
        if self._need_model().config.n_experts is not None:
            raise ValueError("neurons' results are of models without experts; mlp.hook_expert_out is what experts give")
        neurons = select(select(self["post", layer], pos_slice, -2), neuron_slice, -1)
        name = f"blocks.{layer}.{get_part('w2').lens}"
        weights = with_factors(self._need_model().weights[name], self.adapter, "w2", layer)
        weights = select(weights, neuron_slice, 0)  # [neurons, dim]
        weights = weights * np.float32(self._need_model().config.residual_multiplier)
        if (norm := self._norm_after(layer, "mlp")) is not None:
            weights = norm.before_division(weights)
            neurons = neurons / norm.at_positions(pos_slice).scale
        if project_output_onto is None:
            need_memory(neurons.size * weights.shape[-1], "an array of neurons' results")
            return np.asarray(neurons[..., None] * weights)
        directions = float_array(project_output_onto)
        need_memory(
            neurons.size * (1 if directions.ndim == 1 else directions.shape[-1]), "an array of neurons' results"
        )
        projected: Array = np.asarray(weights @ directions)
        results: Array = neurons * projected if directions.ndim == 1 else neurons[..., None] * projected
        return results

    @overload
    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Selection = ...,
        neuron_slice: Selection = ...,
        return_labels: Literal[False] = ...,
        incl_remainder: bool = ...,
        apply_ln: bool = ...,
        project_output_onto: ArrayLike | None = ...,
        mlp_input: bool = ...,
    ) -> Array: ...
    @overload
    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Selection = ...,
        neuron_slice: Selection = ...,
        *,
        return_labels: Literal[True],
        incl_remainder: bool = ...,
        apply_ln: bool = ...,
        project_output_onto: ArrayLike | None = ...,
        mlp_input: bool = ...,
    ) -> tuple[Array, list[str]]: ...
    @checked
    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Selection = None,
        neuron_slice: Selection = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: ArrayLike | None = None,
        mlp_input: bool = False,
    ) -> Array | tuple[Array, list[str]]:
        """Stack what each neuron of the layers before `layer` added to the residual stream.

        That is layer * hidden_dim * dim numbers a position: take few positions or neurons, or directions.

        Parameters
        ----------
        layer : int or None
            0 to n_layers; None, -1 and n_layers stand for all layers.
        pos_slice, neuron_slice : int, tuple, slice, list or None
            Which positions, and which neurons of each layer; one neuron keeps its axis.
        return_labels : bool
            Return labels too.
        incl_remainder : bool
            End with the rest of the stream that enters `layer`: embeddings, attention, biases and, with int8
            activations, what was rounded away.
        apply_ln : bool
            Apply the norm of `layer`, by the divisor of the run.
        project_output_onto : array [dim] or [dim, n], optional
            Directions, such as those of ``model.tokens_to_residual_directions``: parts are multiplied with them, after
            the norm if there is one, and no part is made in full.
        mlp_input : bool
            The norm and the remainder are those of the input of the layer's MLP.

        Returns
        -------
        numpy.ndarray
            float32 [layer * neurons, B, T, dim]; the last axis is n long, or missing, for directions.
        list of str
            If asked for: "L0N0", "L0N1", ..., "remainder".

        Raises
        ------
        KeyError
            If ``hook_post`` was not kept, or not the divisor of a norm after the MLP (``ln2_post.hook_scale``).
        ValueError
            For a model with experts: what they give is ``mlp.hook_expert_out``.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> direction = model.tokens_to_residual_directions(260)
        >>> neurons = cache.stack_neuron_results(5, pos_slice=-1, apply_ln=True, project_output_onto=direction)
        >>> neurons.shape  # what each says for token 260
        (2560, 1)
        """
        layer = self._layers(layer)
        self._check_mlp_input(layer, mlp_input)
        if self._need_model().config.n_experts is not None:
            raise ValueError("neurons' results are of models without experts; mlp.hook_expert_out is what experts give")
        if isinstance(neuron_slice, int | np.integer):
            neuron_slice = [int(neuron_slice)]
        hidden_dim = self._need_model().config.hidden_dim
        numbers = select(np.arange(hidden_dim), neuron_slice, 0)
        labels = [f"L{i}N{n}" for i in range(layer) for n in numbers]
        whole = select(self._stream(layer, mlp_input), pos_slice, -2)[None]  # [1, B, T, dim]
        if project_output_onto is None:
            need_memory(2 * layer * len(numbers) * whole.size, "an array of neurons' results")
            parts: list[Array] = []
            for i in range(layer):
                parts.extend(np.moveaxis(self.get_neuron_results(i, neuron_slice, pos_slice), -2, 0))
            stack = self._stacked(parts, pos_slice)
            if apply_ln:
                stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
                whole = self.apply_ln_to_stack(whole, layer, mlp_input, pos_slice)
        else:
            stack, whole = self._projected_neurons(
                layer, neuron_slice, pos_slice, float_array(project_output_onto), apply_ln, mlp_input
            )
        if incl_remainder:
            stack = self._with_remainder(stack, whole[0])
            labels.append("remainder")
        return (stack, labels) if return_labels else stack

    def _projected_neurons(
        self,
        layer: int,
        neuron_slice: Selection,
        pos_slice: Selection,
        directions: Array,
        apply_ln: bool,
        mlp_input: bool,
    ) -> tuple[Array, Array]:
        """Products with directions [dim, n] or [dim], of the neurons and of the whole stream [1, ...]."""
        whole = select(self._stream(layer, mlp_input), pos_slice, -2)[None]
        if apply_ln:
            whole = self.apply_ln_to_stack(whole, layer, mlp_input, pos_slice)
        whole = np.asarray(whole @ directions)
        norm = self._norm(layer, mlp_input) if apply_ln else None
        if norm is not None:  # neuron * w / scale * gain . direction = neuron / scale * (w . (gain * direction))
            directions = norm.of_directions(directions)
        parts: list[Array] = []
        for i in range(layer):
            results = self.get_neuron_results(i, neuron_slice, pos_slice, directions)  # [B, T, neurons(, n)]
            parts.extend(np.moveaxis(results, -1 if directions.ndim == 1 else -2, 0))
        need_memory(2 * sum(part.size for part in parts), "an array of neurons' results")
        stack = np.stack(parts) if parts else np.zeros((0, *whole.shape[1:]), dtype=np.float32)
        if norm is not None:
            divisor = norm.at_positions(pos_slice).scale
            stack = stack / (divisor[..., 0] if directions.ndim == 1 else divisor)
        return stack, whole
