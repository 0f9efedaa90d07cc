"""What `Model` has for code that was written for TransformerLens: hooks that stay, parts by attribute, circuits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..common.arguments import checked, float_array
from ..inside.added_hooks import Added, AddedHooks, Direction
from ..inside.factored_matrix import FactoredMatrix, composition_scores
from ..inside.hooks import ActiveHooks
from ..inside.model_parts import Blocks, HookDict, ModelHookPoint, Part
from ..inside.next_token_loss import next_token_loss
from ..inside.places import find_places, name_of, split_inputs
from ..inside.weights import StackedWeights
from .texts import rows_of_ids

if TYPE_CHECKING:
    from ..generation import Prompt
    from ..inside.hooks import Hook, HookFunction
    from ..inside.places import Names
    from ..interventions import Intervention, Replacement
    from ..model import Model

Array = NDArray[np.float32]


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
