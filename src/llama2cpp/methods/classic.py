"""What `Model` has for code that was written for TransformerLens: hooks that stay, parts by attribute, circuits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..common.arguments import checked, float_array, instead_of
from ..inside.added_hooks import Added, AddedHooks, Direction
from ..inside.factored_matrix import FactoredMatrix, composition_scores
from ..inside.hooks import ActiveHooks
from ..inside.model_parts import Blocks, HookDict, ModelHookPoint, Part
from ..inside.next_token_loss import next_token_loss
from ..inside.places import find_places, name_of, places_to_keep, split_inputs
from ..inside.weights import StackedWeights
from .texts import rows_of_ids

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..generation import Prompt
    from ..inside.hooks import Hook, HookFunction
    from ..inside.observation import Prompts
    from ..inside.places import Names
    from ..interventions import Intervention, Replacement
    from ..model import Model

Array = NDArray[np.float32]

# What models of TransformerLens have, and what to use instead.
_WEIGHTS = "model.weights is a mapping of them, and model.weights.transformer_lens has the names"
_NOT_TRAINED = "there are no gradients of weights here, and activations' are those of cache.backward"
INSTEAD_OF_ATTRIBUTES = {
    "W_pos": "positions are rotary: model.session().rotary(n) has their angles",
    "W_E_pos": "positions are rotary, and model.W_E has the embeddings",
    "to": "arrays are NumPy's; load(backend=) says where the model runs",
    "cpu": "arrays are NumPy's; load(backend=) says where the model runs",
    "cuda": "arrays are NumPy's; load(backend=) says where the model runs",
    "mps": "arrays are NumPy's; load(backend='metal') runs on the GPU",
    "train": _NOT_TRAINED,
    "zero_grad": _NOT_TRAINED,
    "requires_grad_": _NOT_TRAINED,
    "parameters": _WEIGHTS,
    "named_parameters": _WEIGHTS,
    "state_dict": _WEIGHTS,
    "tl_parameters": _WEIGHTS,
    "tl_named_parameters": _WEIGHTS,
    "get_params": _WEIGHTS,
    "stack_params_for": "model.W_Q and its like are the stacked weights of all layers",
    "load_state_dict": "model.with_weights({name: array}) makes a model of other weights",
    "process_weights": "weights are the file's: norms apply their gains in cache.apply_ln_to_stack and logit_attrs",
    "process_weights_": "weights are the file's: norms apply their gains in cache.apply_ln_to_stack and logit_attrs",
    "enable_compatibility_mode": "names of TransformerLens 3 and 4 are both known",
    "cache_all": "model.add_caching_hooks(cache=cache), or run_with_cache",
    "cache_some": "model.add_caching_hooks(names, cache=cache), or run_with_cache",
    "list_hooks": "model.hook_dict has the points, each with has_hooks()",
    "mod_dict": "model.hook_dict has the points",
    "clear_contexts": "model.reset_hooks() clears them too",
    "remove_all_hook_fns": "model.reset_hooks(including_permanent=True)",
    "generate_stream": "model.stream(prompt)",
    "hf_generate": "model.generate(prompt)",
    "sample_datapoint": "any text will do: model.to_tokens(text)",
    "set_tokenizer": "llama2cpp.load(path, tokenizer=...)",
    "set_ungroup_grouped_query_attention": "patching's axis 'query_head' is one head's own keys or values",
    "from_pretrained": "llama2cpp.load(path)",
    "from_pretrained_no_processing": "llama2cpp.load(path)",
    "boot_transformers": "llama2cpp.load(path)",
    "QK_for_attn_layers": "every layer has attention: model.QK",
    "OV_for_attn_layers": "every layer has attention: model.OV",
}


@checked
def add_hook(
    self: Model,
    name: Names | Intervention | Replacement,
    hook: HookFunction | None = None,
    dir: Direction = "fwd",
    is_permanent: bool = False,
) -> None:
    """Add a hook that acts in all calls of the model, in all threads, until `reset_hooks`.

    Hooks of a ``with`` block of `hooks` act after these, and `hooks` says what a hook is given.

    Parameters
    ----------
    name : str, sequence of str, predicate, Intervention or Replacement
        As in `hooks`. An intervention comes without a function.
    hook : callable
        ``fn(activation, hook)``.
    dir : str
        "fwd", or "bwd" for a function that is shown gradients wherever some are computed, as `hooks` says.
    is_permanent : bool
        Whether `reset_hooks` leaves it, unless it is told not to.

    Raises
    ------
    ValueError
        For a name that no activation has, or a hook that cannot be called.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    >>> model.reset_hooks()
    """
    from ..interventions import Intervention, Replacement

    if dir not in ("fwd", "bwd"):
        raise ValueError(f"add_hook: dir is {dir!r}, expected 'fwd' or 'bwd'")
    core = self._core
    config = core.config
    if isinstance(name, Intervention | Replacement):
        if hook is not None or dir == "bwd":
            raise ValueError("add_hook: an intervention comes without a function, and has no dir='bwd'")
        change = _scope(core, name, dir)
        self._added_hooks.all += (Added(change, frozenset(), dir, is_permanent, lambda names: change),)
        return
    if hook is None:
        raise ValueError("add_hook: there is no function, expected fn(activation, hook)")
    inputs, rest = split_inputs(name, config)
    function = hook

    def at(names: list[str]) -> Any:  # noqa: ANN401 - a Scope
        return _scope(core, (names, function), dir)

    scope = _scope(core, (name, hook), dir)
    names = frozenset([*inputs, *(name_of(place, config) for place in find_places(rest, config))])
    self._added_hooks.all += (Added(scope, names, dir, is_permanent, at),)


def _scope(core: _core.Model, hook: Hook, dir: Direction) -> Any:  # noqa: ANN401
    return (ActiveHooks(core, None, [hook]) if dir == "fwd" else ActiveHooks(core, None, (), [hook]))._scope


def add_perma_hook(self: Model, name: Names, hook: HookFunction, dir: Direction = "fwd") -> None:
    """Add a hook that `reset_hooks` leaves: `add_hook` with ``is_permanent=True``.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.add_perma_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    >>> model.reset_hooks(including_permanent=True)
    """
    self.add_hook(name, hook, dir, is_permanent=True)


@checked
def reset_hooks(
    self: Model,
    clear_contexts: bool = True,
    direction: Literal["fwd", "bwd", "both"] = "both",
    including_permanent: bool = False,
) -> None:
    """Take away what `add_hook` has added. Hooks of a ``with`` block stay until its end.

    Parameters
    ----------
    clear_contexts : bool
        Forget what hooks have noted in ``hook.ctx``, too.
    direction : str
        "fwd", "bwd" or "both".
    including_permanent : bool
        Take those away that were added with ``is_permanent``, too.

    Raises
    ------
    ValueError
        For another direction.

    Examples
    --------
    See `add_hook`.

    >>> import llama2cpp
    >>> llama2cpp.load("storyteller").reset_hooks(direction="bwd")
    """
    if direction not in ("fwd", "bwd", "both"):
        raise ValueError(f"reset_hooks: direction is {direction!r}, expected 'fwd', 'bwd' or 'both'")
    self._added_hooks.remove(direction, including_permanent=including_permanent)
    if clear_contexts:
        self._added_hooks.clear_contexts()


@checked
def get_caching_hooks(
    self: Model,
    names_filter: Names | None = None,
    incl_bwd: bool = False,
    remove_batch_dim: bool = False,
    cache: dict[str, Array] | None = None,
) -> tuple[dict[str, Array], list[Hook], list[Hook]]:
    """Make hooks that put activations into a dict as the model runs. `run_with_cache` does so at less cost.

    Parameters
    ----------
    names_filter : str, sequence of str, or predicate, optional
        Which activations, as in `run_with_cache`.
    incl_bwd : bool
        Make hooks for gradients too, which are kept under ``name + "_grad"``.
    remove_batch_dim : bool
        Keep those of a single prompt without the batch axis.
    cache : dict, optional
        Where they go; a new one, if not given.

    Returns
    -------
    cache : dict of str to numpy.ndarray
        Copies, by full names; empty until the model runs.
    fwd_hooks, bwd_hooks : list
        What `run_with_hooks` and `hooks` take.

    Raises
    ------
    ValueError
        For a name that no activation has.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> cache, fwd_hooks, _ = model.get_caching_hooks("z0")
    >>> logits = model.run_with_hooks("Once upon a time", fwd_hooks)
    >>> cache["blocks.0.attn.hook_z"].shape
    (1, 5, 6, 32)
    """
    kept: dict[str, Array] = {} if cache is None else cache

    def keeping(suffix: str) -> Any:  # noqa: ANN401
        def keep(activation: Array, hook: Any) -> None:  # noqa: ANN401
            one = remove_batch_dim and len(activation) == 1
            kept[hook.name + suffix] = np.array(activation[0] if one else activation)

        return keep

    names = [name_of(place, self.config) for place in places_to_keep(names_filter, self.config)]
    fwd_hooks: list[Hook] = [(name, keeping("")) for name in names]
    return kept, fwd_hooks, [(name, keeping("_grad")) for name in names] if incl_bwd else []


@checked
def add_caching_hooks(
    self: Model,
    names_filter: Names | None = None,
    incl_bwd: bool = False,
    remove_batch_dim: bool = False,
    cache: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Add the hooks of `get_caching_hooks`, until `reset_hooks`: each run puts its activations into the dict.

    Parameters
    ----------
    names_filter, incl_bwd, remove_batch_dim, cache
        As in `get_caching_hooks`.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    ValueError
        For a name that no activation has.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> cache = model.add_caching_hooks("resid_post4")
    >>> logits = model("Once upon a time")
    >>> model.reset_hooks()
    >>> cache["blocks.4.hook_resid_post"].shape
    (1, 5, 192)
    """
    kept, fwd_hooks, bwd_hooks = get_caching_hooks(self, names_filter, incl_bwd, remove_batch_dim, cache)
    for dir, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
        for name, hook in hooks:  # type: ignore[misc]  # pairs, since they are made above
            add_hook(self, name, hook, "fwd" if dir == "fwd" else "bwd")
    return kept


@checked
def input_to_embed(
    self: Model, input: Prompts, prepend_bos: bool | None = None, special: bool | None = None
) -> tuple[Array, NDArray[np.int64], None, None]:
    """Give the residual stream that enters the first layer, for ``model(residual, start_at_layer=0)``.

    Parameters
    ----------
    input : str, ids, or several of one length
        The prompts.
    prepend_bos, special : bool, optional
        As in `to_tokens`.

    Returns
    -------
    residual : numpy.ndarray
        float32 [B, T, dim].
    tokens : numpy.ndarray
        int64 [B, T].
    None, None
        Where TransformerLens has embeddings of positions and a mask.

    Raises
    ------
    ValueError
        If the prompts differ in length.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> residual, tokens, _, _ = model.input_to_embed("Once upon a time")
    >>> bool((model(residual, start_at_layer=0) == model(tokens)).all())
    True
    """
    tokens = self.to_tokens(input, prepend_bos, special)
    return self(tokens, stop_at_layer=0), tokens, None, None


@checked
def loss_fn(
    self: Model, logits: ArrayLike, tokens: Sequence[Any] | NDArray[Any], per_token: bool = False
) -> float | Array:
    """Compute the mean of -log p of each next token, as `Model.__call__` does with ``return_type="loss"``.

    Parameters
    ----------
    logits : array [B, T, vocab_size]
        After each token; [T, vocab_size] for one prompt.
    tokens : array of int [B, T]
        The prompts; [T] for one.
    per_token : bool
        Give -log p of each, float32 [B, T - 1].

    Returns
    -------
    float or numpy.ndarray

    Raises
    ------
    ValueError
        If the shapes do not fit, there are fewer than two tokens, or one is outside the vocabulary.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> tokens = model.to_tokens("Once upon a time")
    >>> model.loss_fn(model(tokens), tokens) == model(tokens, return_type="loss")
    True
    """
    return loss_of(logits, tokens, per_token, "loss_fn")


def loss_of(logits: ArrayLike, tokens: Any, per_token: bool, function: str) -> float | Array:  # noqa: ANN401
    """Do what `loss_fn` does, for the function that was called."""
    array, ids = float_array(logits), np.asarray(tokens)
    array = array[None] if array.ndim == 2 else array
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.dtype.kind not in "iu" or array.ndim != 3 or ids.shape != array.shape[:2]:
        raise ValueError(
            f"{function}: logits have shape {list(array.shape)} and tokens {list(ids.shape)} of {ids.dtype}, expected "
            "[B, T, vocab_size] and [B, T] of integers"
        )
    if ids.shape[1] < 2:
        raise ValueError(
            f"{function}: there is {ids.shape[1]} token, expected at least 2: each but the first has a loss"
        )
    if ids.min() < 0 or ids.max() >= array.shape[2]:
        raise ValueError(f"{function}: a token is outside of 0 to {array.shape[2] - 1}")
    found: float | Array = next_token_loss(array, ids, per_token)
    return found


@checked
def to_single_str_token(self: Model, int_token: int) -> str:
    """Get the text of one token.

    Parameters
    ----------
    int_token : int
        Its id.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the id is outside the vocabulary, or the model has no tokenizer.

    Examples
    --------
    >>> import llama2cpp
    >>> llama2cpp.load("storyteller").to_single_str_token(508)
    ' Once'
    """
    return str(self.to_str_tokens([int_token])[0])


@checked
def get_token_position(
    self: Model,
    single_token: str | int,
    input: Prompt | NDArray[Any],
    mode: Literal["first", "last"] = "first",
    prepend_bos: bool | None = None,
    special: bool | None = None,
) -> int:
    """Find where a token is in a prompt.

    Parameters
    ----------
    single_token : str or int
        Its text or its id.
    input : str, ids [T] or [1, T]
        The prompt.
    mode : str
        Which, if there are several: "first" or "last".
    prepend_bos, special : bool, optional
        As in `to_tokens`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it is not there, the text is not one token, or there are several prompts.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.get_token_position(" time", "Once upon a time")
    4
    """
    if mode not in ("first", "last"):
        raise ValueError(f"get_token_position: mode is {mode!r}, expected 'first' or 'last'")
    rows = rows_of_ids(self, "get_token_position", input, prepend_bos, special)
    if len(rows) != 1:
        raise ValueError(f"get_token_position: there are {len(rows)} prompts, expected one")
    id = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
    found = np.flatnonzero(np.asarray(rows[0]) == id)
    if not len(found):
        raise ValueError(f"get_token_position: token {single_token!r} is not among {self.to_str_tokens(rows[0])}")
    return int(found[0 if mode == "first" else -1])


@checked
def all_composition_scores(self: Model, mode: Literal["Q", "K", "V"]) -> NDArray[np.float64]:
    """How much each head reads of what each earlier head writes, by the weights alone.

    Parameters
    ----------
    mode : str
        Whether it reads it as "Q", "K" or "V".

    Returns
    -------
    numpy.ndarray
        float64 [n_layers, n_heads, n_layers, n_heads], the writing head first; 0 where it does not come earlier.

    Raises
    ------
    ValueError
        For another mode.

    Examples
    --------
    >>> import llama2cpp
    >>> scores = llama2cpp.load("storyteller").all_composition_scores("K")
    >>> scores.shape, float(scores[3, 0, 2, 0])
    ((5, 6, 5, 6), 0.0)
    """
    if mode not in ("Q", "K", "V"):
        raise ValueError(f"all_composition_scores: mode is {mode!r}, expected 'Q', 'K' or 'V'")
    written = self.OV
    read = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: written}[mode]()
    scores = composition_scores(written, read)
    layers = np.arange(self.config.n_layers)
    earlier = layers[:, None, None, None] < layers[:, None]
    return np.where(earlier, scores, 0.0)


class ClassicSurface(StackedWeights):
    """What `Model` has of TransformerLens's attributes, beside the weights of `StackedWeights`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.all_head_labels[:2], model.blocks[0].attn.W_O.shape
    (['L0H0', 'L0H1'], (6, 32, 192))
    """

    if TYPE_CHECKING:
        _added_hooks: AddedHooks
    else:

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401
            if hasattr(type(self), name):  # a property, which has raised this: it says why
                return object.__getattribute__(self, name)
            kind, instead = type(self).__name__, instead_of(name, INSTEAD_OF_ATTRIBUTES)
            raise AttributeError(f"{kind!r} object has no attribute {name!r}{instead}", name=name, obj=self)

    @property
    def blocks(self: Any) -> Blocks:
        """The layers: ``model.blocks[3].attn.W_Q``, ``model.blocks[3].attn.hook_z``, ``model.blocks[3].ln1``."""
        return Blocks(self)

    @property
    def ln_final(self: Any) -> Part:
        """The last norm: ``model.ln_final.w``, and ``model.ln_final(x)``, for ``model.unembed(model.ln_final(x))``."""
        return Part(self, "ln_final")

    @property
    def hook_dict(self: Any) -> HookDict:
        """All activations by name, each with ``add_hook``, ``remove_hooks`` and ``ctx``."""
        return HookDict(self)

    @property
    def hook_embed(self: Any) -> ModelHookPoint:
        """The embeddings, where hooks can be added."""
        return ModelHookPoint(self, "hook_embed")

    def get_hook_point(self, hook_name: str) -> ModelHookPoint | None:
        """Give what `hook_dict` has of this name; None, if nothing.

        Parameters
        ----------
        hook_name : str
            A full name.

        Returns
        -------
        ModelHookPoint or None

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").get_hook_point("blocks.0.attn.hook_z")
        <llama2cpp.ModelHookPoint: blocks.0.attn.hook_z, 0 hooks>
        """
        try:
            return self.hook_dict[hook_name]
        except KeyError:
            return None

    def eval(self) -> Self:
        """Give the model itself: there is nothing in it that trains.

        Returns
        -------
        Model

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.eval() is model
        True
        """
        return self

    def hook_points(self) -> Iterable[ModelHookPoint]:
        """Give what `hook_dict` holds.

        Returns
        -------
        iterable of ModelHookPoint

        Examples
        --------
        >>> import llama2cpp
        >>> next(iter(llama2cpp.load("storyteller").hook_points())).name
        'hook_embed'
        """
        return self.hook_dict.values()

    def _by_query_head(self, stacked: Array) -> Array:
        return np.repeat(stacked, self.config.n_heads // self.config.n_kv_heads, axis=1)

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """What each head compares: W_Q @ W_K^T, [n_layers, n_heads, dim, dim], without rotary embedding."""
        return FactoredMatrix(self.W_Q, np.swapaxes(self._by_query_head(self.W_K), -1, -2))

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """What each head does to what it reads: W_V @ W_O, [n_layers, n_heads, dim, dim]."""
        return FactoredMatrix(self._by_query_head(self.W_V), self.W_O)

    @property
    def all_head_labels(self) -> list[str]:
        """Names of heads, "L0H0" and so on."""
        return [f"L{layer}H{head}" for layer in range(self.config.n_layers) for head in range(self.config.n_heads)]

    @property
    def attn_head_labels(self) -> list[str]:
        """Names of heads, as `all_head_labels`: every layer has attention."""
        return self.all_head_labels

    def _biases(self, half: str, name: str) -> Array:
        return np.stack([getattr(getattr(block, half), name) for block in self.blocks])

    @property
    def b_Q(self) -> Array:  # noqa: N802
        """Biases of queries, [n_layers, n_heads, head_dim]; here and in the others zeros where a model has none."""
        return self._biases("attn", "b_Q")

    @property
    def b_K(self) -> Array:  # noqa: N802
        """Biases of keys, [n_layers, n_kv_heads, head_dim]."""
        return self._biases("attn", "b_K")

    @property
    def b_V(self) -> Array:  # noqa: N802
        """Biases of values, [n_layers, n_kv_heads, head_dim]."""
        return self._biases("attn", "b_V")

    @property
    def b_O(self) -> Array:  # noqa: N802
        """Biases of attention's output, [n_layers, dim]."""
        return self._biases("attn", "b_O")

    @property
    def b_in(self) -> Array:
        """Biases of the MLPs' input, [n_layers, hidden_dim]."""
        return self._biases("mlp", "b_in")

    @property
    def b_out(self) -> Array:
        """Biases of the MLPs' output, [n_layers, dim]."""
        return self._biases("mlp", "b_out")

    @property
    def b_U(self) -> Array:  # noqa: N802
        """Bias of the logits, [vocab_size]: zeros but in a model that has one."""
        if "unembed.b_U" in self.weights.transformer_lens:
            return self.weights["unembed.b_U"]
        return np.zeros(self.config.vocab_size, dtype=np.float32)

    @checked
    def set_use_attn_result(self, use: bool) -> None:
        """Do nothing: ``hook_result`` is there whenever it is asked for by name.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").set_use_attn_result(True)
        """

    @checked
    def set_use_split_qkv_input(self, use: bool) -> None:
        """Do nothing: ``hook_q_input``, ``hook_k_input`` and ``hook_v_input`` are there whenever asked for.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").set_use_split_qkv_input(True)
        """

    @checked
    def set_use_attn_in(self, use: bool) -> None:
        """Do nothing: ``hook_attn_in`` is there whenever it is asked for by name.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").set_use_attn_in(True)
        """

    @checked
    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Do nothing: ``hook_mlp_in`` is there whenever it is asked for by name.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").set_use_hook_mlp_in(True)
        """
