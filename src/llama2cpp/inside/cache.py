"""What a model thought: the activations of one run, by name, and the ways to take the residual stream apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import checked, float_array
from ..common.parts import get_part
from .activation_arrays import Array, Selection, need_memory, select
from .heads_and_neurons import HeadsAndNeurons
from .lens import LogitLens, logit_lens
from .places import Names, find_places, name_of, residual_streams
from .recomputed import RecomputedArrays

if TYPE_CHECKING:
    from typing_extensions import Self


class ActivationCache(HeadsAndNeurons):
    """The activations of one run by name, as float32 arrays under TransformerLens's names and in its shapes.

    Got from `Model.run_with_cache`. Keys are full names, or TransformerLens's short ones: ``cache["pattern", 3]``,
    ``cache["resid_post", -1]``, ``cache["scale", 0, "ln1"]``, ``cache["embed"]``, ``cache["k6"]``; a negative layer
    counts from the last. Arrays may be changed; ``torch.from_dlpack(cache["z", 0])`` shares their memory.

    B is the batch, T the positions that were kept, S all positions up to the last one; the axis B is missing after
    `remove_batch_dim`. The short key is in brackets.

    =======================================  ===========================  =============================================
    name                                     shape                        what it is
    =======================================  ===========================  =============================================
    ``hook_embed``                           [B, T, dim]                  embeddings (``embed``)
    ``blocks.{i}.hook_resid_pre``            [B, T, dim]                  residual stream into layer i (``resid_pre``)
    ``blocks.{i}.ln1.hook_scale``            [B, T, 1]                    divisor of the norm (``scale``, i, ``ln1``)
    ``blocks.{i}.ln1.hook_normalized``       [B, T, dim]                  normalised, before the gain
                                                                          (``normalized``, i, ``ln1``)
    ``blocks.{i}.attn.hook_q``               [B, T, n_heads, head_dim]    queries before rotary embedding (``q``)
    ``blocks.{i}.attn.hook_k``, ``hook_v``   [B, T, n_kv_heads,           keys before rotary embedding, values
                                             head_dim]                    (``k``, ``v``)
    ``blocks.{i}.attn.hook_q_normed``        [B, T, n_heads, head_dim]    queries as their norm leaves them, in models
                                                                          that have one (``q_normed``)
    ``blocks.{i}.attn.hook_k_normed``        [B, T, n_kv_heads,           keys (``k_normed``)
                                             head_dim]
    ``blocks.{i}.attn.hook_rot_q``           [B, T, n_heads, head_dim]    queries after it (``rot_q``)
    ``blocks.{i}.attn.hook_rot_k``           [B, T, n_kv_heads,           keys after it (``rot_k``)
                                             head_dim]
    ``blocks.{i}.attn.hook_attn_scores``     [B, n_heads, T, S]           -inf where a position may not look
                                                                          (``attn_scores``)
    ``blocks.{i}.attn.hook_pattern``         [B, n_heads, T, S]           softmax of the scores (``pattern``, ``attn``)
    ``blocks.{i}.attn.hook_z``               [B, T, n_heads, head_dim]    values mixed by the pattern (``z``)
    ``blocks.{i}.attn.hook_result``          [B, T, n_heads, dim]         what each head adds, or gives to the norm
                                                                          after attention (``result``)
    ``blocks.{i}.ln1_post.hook_scale``,      [B, T, 1], [B, T, dim]       of the norm after attention, in models that
    ``hook_normalized``                                                   have one (``scale``, i, ``ln1_post``)
    ``blocks.{i}.hook_attn_out``             [B, T, dim]                  what attention adds (``attn_out``)
    ``blocks.{i}.hook_resid_mid``            [B, T, dim]                  residual stream between (``resid_mid``)
    ``blocks.{i}.ln2.hook_scale``,           [B, T, 1], [B, T, dim]       of the norm before the MLP
    ``hook_normalized``                                                   (``scale``, i, ``ln2``)
    ``blocks.{i}.mlp.hook_pre``              [B, T, hidden_dim]           the gate, before silu (``pre``)
    ``blocks.{i}.mlp.hook_pre_linear``       [B, T, hidden_dim]           what it is multiplied with (``pre_linear``)
    ``blocks.{i}.mlp.hook_post``             [B, T, hidden_dim]           the neurons: silu(gate) * linear (``post``)
    ``blocks.{i}.mlp.hook_router_scores``    [B, T, n_experts]            before softmax, in models with experts; there
                                                                          the three above are [B, T, k, hidden_dim], of
                                                                          the k experts that a token goes to
    ``blocks.{i}.mlp.hook_expert_weights``   [B, T, n_experts]            0 for experts that it does not go to
    ``blocks.{i}.mlp.hook_expert_indices``   [B, T, k]                    the experts' numbers, ascending
    ``blocks.{i}.mlp.hook_expert_out``       [B, T, k, dim]               what each gives, before its weight
    ``blocks.{i}.ln2_post.hook_scale``,      [B, T, 1], [B, T, dim]       of the norm after the MLP, in models that have
    ``hook_normalized``                                                   one
    ``blocks.{i}.hook_mlp_out``              [B, T, dim]                  what the MLP adds (``mlp_out``)
    ``blocks.{i}.hook_resid_post``           [B, T, dim]                  residual stream after layer i (``resid_post``)
    ``ln_final.hook_scale``,                 [B, T, 1], [B, T, dim]       of the last norm (``scale``, ``normalized``)
    ``hook_normalized``
    =======================================  ===========================  =============================================

    What parts of a layer read of the residual stream has names too, for functions in hooks, whose edits the part alone
    sees: ``hook_mlp_in``, and for each head ``hook_attn_in``, ``hook_q_input``, ``hook_k_input`` and ``hook_v_input``
    [B, T, heads, dim]. In a cache they are views of the stream. TransformerLens 4's names by module, such as
    ``blocks.{i}.attn.o.hook_in``, stand for these names.

    Parameters
    ----------
    arrays : mapping of str to array
        By full name.
    model : Model, optional
        Whose activations these are. Without it what needs weights cannot be done.
    has_batch_dim : bool
        Whether the first axis is the batch.
    positions : sequence of int, optional
        The positions that the axis T stands for; None for all from 0.
    tokens : sequence of int or of such, optional
        The ids of the run, [S], or [B][S] for several prompts: what pictures are labelled with.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache("Once upon a time")
    >>> cache["pattern", 0].shape, cache["resid_post", -1].shape
    ((1, 6, 5, 5), (1, 5, 192))
    >>> bool((cache["blocks.4.hook_resid_post"] == cache["resid_post", -1]).all())
    True
    """

    @checked
    def backward(
        self,
        dlogits: ArrayLike,
        names_filter: Names | None = None,
        stop_grad: Names = (),
    ) -> Self:
        """Go back from the logits of the run: the gradient of a number with respect to its activations.

        Everything that the model does has its gradient, in float32; with ``precision="exact"`` the run itself has no
        more rounding than that. Otherwise gradients are passed straight through the rounding of activations to int8,
        and of keys and values to float16. They have the same bits for any number of threads. Weights have none.

        What the cache holds of the residual stream, before each layer and after the last, is used; without it the
        prompts are run again. Each layer is run again from there, so that only one layer's activations are in memory,
        beside the gradients that are kept.

        After hooks that changed the run the cache has to hold the residual stream, "resid_pre" and "resid_post-1", and
        each activation within a layer that they changed, such as "z". Gradients go through a change as if it had added
        a constant; `stop_grad` with its place makes what is there a constant, as a patch does, and is needed where
        `interventions.replace_with` left nothing of what the model computes. Changes of what a part reads
        (``hook_mlp_in`` and its like) are refused by name.

        Parameters
        ----------
        dlogits : array [B, T, vocab_size]
            The number's gradient with respect to the logits, as a function of `llama2cpp.metrics` gives it. T are all
            tokens, also where the cache has some positions only.
        names_filter : str, sequence of str, or predicate, optional
            Whose gradients are kept, as in `Model.run_with_cache`; if not given, those of the activations in the cache.
        stop_grad : str, sequence of str, or predicate
            Activations whose gradients are kept but go no further, as if the run had found them there as constants:
            ``["attn_scores", "scale"]`` freezes patterns and norms, and what is left of the model is linear in between
            its activation functions.

        Returns
        -------
        ActivationCache
            Gradients under the names, and in the shapes, of the activations; 0 where the run did not read one, as in
            the masked part of a pattern.

        Raises
        ------
        ValueError
            If `dlogits` has another shape, hooks may have changed the run, the cache has no model or no tokens, or the
            model has no gradients: on another backend than the CPU's.
        MemoryError
            If more memory is needed than is available; it says how much.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller", precision="exact", backend="cpu")
        >>> logits, cache = model.run_with_cache("Once upon a", "resid_pre")
        >>> value, dlogits = llama2cpp.metrics.log_prob(model.to_single_token(" time"))(logits)
        >>> grads = cache.backward(dlogits, ["resid_pre", "z"])
        >>> grads["z", 3].shape
        (1, 4, 6, 32)
        """
        model = self._need_model()
        if self.adapter is not None:
            raise ValueError("backward: a run with an adapter has no gradients")
        if self._why_no_gradients:
            raise ValueError(f"backward: {self._why_no_gradients}")
        if not self.tokens:
            raise ValueError("backward: the cache has no tokens: it is of no run")
        batch = self.tokens if isinstance(self.tokens[0], list) else [self.tokens]
        stopped = {name_of(place, model.config) for place in find_places(stop_grad, model.config)}
        constant = [name for name in self._replaced if name not in stopped]
        if constant:
            raise ValueError(
                f"backward: a dictionary took the place of {constant[0]!r}, and its own gradient is not known: "
                "stop_grad with that name makes what it put there a constant"
            )
        if isinstance(self._arrays, RecomputedArrays):
            held = self._arrays.streams
        else:
            wanted = (*residual_streams(model.config), *self._changed)
            there = {name: self._arrays[name] for name in wanted if name in self._arrays}
            held = {name: array if self.has_batch_dim else array[None] for name, array in there.items()}
        arrays = model._gradients(
            batch,
            dlogits,
            list(self._arrays) if names_filter is None else names_filter,
            self.positions,
            stop_grad,
            held if self.positions is None else {},
            self._changed,
        )
        if not self.has_batch_dim:
            arrays = {name: array[0] for name, array in arrays.items()}
        grads = type(self)(
            arrays, model, has_batch_dim=self.has_batch_dim, positions=self.positions, tokens=self.tokens
        )
        grads._why_no_gradients = "these are gradients, and have none themselves"
        return grads

    @checked
    def stack_activation(self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None) -> Array:
        """Stack one activation of the layers before `layer`.

        Parameters
        ----------
        activation_name : str
            The short name.
        layer : int, optional
            1 to n_layers; None, -1 and n_layers stand for all layers.
        sublayer_type : str, optional
            "ln1" or "ln2" for "scale" and "normalized".

        Returns
        -------
        numpy.ndarray
            float32 [layer, ...].

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
        >>> cache.stack_activation("pattern").shape
        (5, 1, 6, 3, 3)
        """
        layers = [self[activation_name, i, sublayer_type] for i in range(self._layers(layer))]
        need_memory(sum(array.size for array in layers), f"an array of {activation_name} of {len(layers)} layers")
        return np.stack(layers)

    @overload
    def get_full_resid_decomposition(
        self,
        layer: int | None = ...,
        mlp_input: bool = ...,
        expand_neurons: bool = ...,
        apply_ln: bool = ...,
        pos_slice: Selection = ...,
        return_labels: Literal[False] = ...,
        project_output_onto: ArrayLike | None = ...,
        incl_remainder: bool | None = ...,
    ) -> Array: ...
    @overload
    def get_full_resid_decomposition(
        self,
        layer: int | None = ...,
        mlp_input: bool = ...,
        expand_neurons: bool = ...,
        apply_ln: bool = ...,
        pos_slice: Selection = ...,
        *,
        return_labels: Literal[True],
        project_output_onto: ArrayLike | None = ...,
        incl_remainder: bool | None = ...,
    ) -> tuple[Array, list[str]]: ...
    @checked
    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Selection = None,
        return_labels: bool = False,
        project_output_onto: ArrayLike | None = None,
        incl_remainder: bool | None = None,
    ) -> Array | tuple[Array, list[str]]:
        """Take the residual stream that enters a layer apart into heads, neurons, embeddings and biases.

        Float activations: the parts sum to the stream, within rounding. Int8 activations: the model has multiplied
        rounded numbers, and heads and neurons are what the unrounded ones give, so a last part, "remainder", says what
        rounding has done, and with it they sum to the stream.

        Parameters
        ----------
        layer, mlp_input, apply_ln, pos_slice, return_labels
            As in `decompose_resid`.
        expand_neurons : bool
            Every neuron apart; else each MLP as a whole.
        project_output_onto : array [dim] or [dim, n], optional
            As in `stack_neuron_results`.
        incl_remainder : bool, optional
            Whether to end with the stream less all other parts; if not given, where activations are int8.

        Returns
        -------
        numpy.ndarray
            float32 [parts, B, T, dim].
        list of str
            If asked for: heads "L0H0", ..., neurons "L0N0", ... or "0_mlp_out", ..., "embed", "bias", and "remainder".

        Raises
        ------
        KeyError
            If an activation that it takes was not kept.
        ValueError
            For a layer that the model has not, the MLP of a layer that is none, or a cache without a model.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache([1, 508, 509])
        >>> parts, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
        >>> parts.shape, labels[-4:]
        ((38, 1, 3, 192), ['4_mlp_out', 'embed', 'bias', 'remainder'])
        """
        model = self._need_model()
        layer = self._layers(layer)
        self._check_mlp_input(layer, mlp_input)
        directions = None if project_output_onto is None else float_array(project_output_onto)

        def finished(stack: Array) -> Array:
            if apply_ln:
                stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
            return stack if directions is None else np.asarray(stack @ directions)

        heads, labels = (
            self.stack_head_results(layer + (1 if mlp_input else 0), pos_slice=pos_slice, return_labels=True)
            if layer or mlp_input
            else (self._stacked([], pos_slice), [])
        )
        parts = [finished(heads)]
        if layer > 0 and expand_neurons:
            neurons, more = self.stack_neuron_results(
                layer,
                pos_slice,
                return_labels=True,
                apply_ln=apply_ln,
                project_output_onto=directions,
                mlp_input=mlp_input,
            )
            parts.append(neurons)
            labels += more
        elif layer > 0:
            mlps, more = self.decompose_resid(
                layer, mode="mlp", pos_slice=pos_slice, incl_embeds=False, return_labels=True
            )
            parts.append(finished(mlps))
            labels += more
        embed = select(self["hook_embed"], pos_slice, -2)
        bias = self._added_by_biases(layer, mlp_input, expand_neurons, pos_slice)
        parts += [finished(embed[None]), finished(np.broadcast_to(bias, (1, *embed.shape)))]
        labels += ["embed", "bias"]
        need_memory(sum(part.size for part in parts), f"an array of {len(labels)} parts of the residual stream")
        stack = np.concatenate(parts)
        if incl_remainder or (incl_remainder is None and model.activation_dtype != "f32"):
            whole = finished(select(self._stream(layer, mlp_input), pos_slice, -2)[None])
            stack = self._with_remainder(stack, whole[0])
            labels.append("remainder")
        return (stack, labels) if return_labels else stack

    def _added_by_biases(self, layer: int, mlp_input: bool, include_mlp: bool, pos_slice: Selection) -> Array:
        """[dim], or where norms come after [B, T, dim]: what biases of the layers before added to the stream."""
        model = self._need_model()
        if model.config.norm_places == "before":
            return model.accumulated_bias(layer, mlp_input, include_mlp_biases=include_mlp)
        total: Array = np.zeros(model.config.dim, dtype=np.float32)
        halves: list[tuple[Literal["attn", "mlp"], str]] = [("attn", "bo"), ("mlp", "b2")]
        for i in range(layer + (1 if mlp_input else 0)):
            for half, part in halves:
                name = f"blocks.{i}.{get_part(part).lens}"
                norm = self._norm_after(i, half)
                if name in model.weights and norm is not None and (half == "attn" or (include_mlp and i < layer)):
                    bias = model.weights[name] * np.float32(model.config.residual_multiplier)
                    total = total + norm.at_positions(pos_slice).of(bias)
        return total

    @checked
    def logit_attrs(
        self,
        residual_stack: ArrayLike,
        tokens: int | str | Sequence[int] | NDArray[Any],
        incorrect_tokens: int | str | Sequence[int] | NDArray[Any] | None = None,
        pos_slice: Selection = None,
        batch_slice: Selection = None,
        has_batch_dim: bool | None = None,
    ) -> Array:
        """How much each part of the residual stream adds to the logit of a token: direct logit attribution.

        The parts go through the last norm by the divisor of the run, with its gain; so the attributions of parts that
        sum to the last stream sum to the logit (to that of the float32 output matrix, with int8 activations). Two
        things are no part's: what a LayerNorm's bias adds to the logit, ``weights["ln_final.b"] @ W_U[:, token]``, and
        a cap of logits (``config.logits_cap``): attributions are to the logit before it.

        Parameters
        ----------
        residual_stack : array [parts, B, T, dim]
            From `decompose_resid`, `stack_head_results` or their like, of the whole model and without ``apply_ln``.
        tokens : int, str or array of int
            The token: one for all, [B] one for each prompt, or [B, T] one for each position. A 1-D array whose length
            is not B is one for each position.
        incorrect_tokens : int, str or array of int, optional
            Of the same shape: then it is the difference of the two logits.
        pos_slice, batch_slice : int, tuple, slice, list or None
            Which positions the stack has; `batch_slice` is applied to it.
        has_batch_dim : bool, optional
            Whether the stack has the axis B; that of the cache if not given.

        Returns
        -------
        numpy.ndarray
            float32 [parts, B, T].

        Raises
        ------
        ValueError
            If the two have different shapes, or a token is none of the model's.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache("Once upon a")
        >>> parts, labels = cache.decompose_resid(return_labels=True, pos_slice=-1)
        >>> attrs = cache.logit_attrs(parts, " time", pos_slice=-1)
        >>> bool(abs(attrs.sum() - logits[0, -1, model.to_single_token(" time")]) < 1e-3)
        True
        """
        model = self._need_model()
        batched = self.has_batch_dim if has_batch_dim is None else has_batch_dim
        directions = model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            others = model.tokens_to_residual_directions(incorrect_tokens)
            if others.shape != directions.shape:
                raise ValueError(
                    f"tokens have shape {list(directions.shape[:-1])} and incorrect_tokens "
                    f"{list(others.shape[:-1])}, expected the same"
                )
            directions = directions - others
        stack = self.apply_ln_to_stack(residual_stack, None, False, pos_slice, batch_slice, batched)
        one_batch = isinstance(batch_slice, int | np.integer)
        if batched and not one_batch and stack.ndim == 4 and directions.ndim == 2 and len(directions) == stack.shape[1]:
            directions = directions[:, None]  # one for each prompt, at all its positions
        return np.asarray((stack * directions).sum(axis=-1))

    def logit_lens(self, **options: Any) -> LogitLens:  # noqa: ANN401
        """Read the residual stream before each layer as if the model stopped there.

        Parameters and result are those of `llama2cpp.logit_lens`, which this is of the cache.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache("Once upon a")
        >>> cache.logit_lens(top_k=1).top_tokens()["final_post"]
        [[' time']]
        """
        return logit_lens(self, **options)
