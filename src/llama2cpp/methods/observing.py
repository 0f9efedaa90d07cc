"""Methods of `Model` that show and change its activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter
from ..common.arguments import checked
from ..inside import explanation
from ..inside.hooks import ActiveHooks
from ..inside.recording import Recording
from .texts import rows_of_ids

if TYPE_CHECKING:
    from ..common.token_ids import Prompt
    from ..inside.cache import ActivationCache
    from ..inside.explanation import Explanation
    from ..inside.gradients import Metric
    from ..inside.hooks import Hook
    from ..inside.observation import Prompts, ReturnType
    from ..inside.places import Names
    from ..model import Model


@overload
def run_with_cache(
    self: Model,
    text_or_tokens: Prompts,
    names_filter: Names | None = ...,
    remove_batch_dim: bool = ...,
    stop_at_layer: int | None = ...,
    positions: int | slice | Sequence[int] | None = ...,
    special: bool | None = ...,
    incl_bwd: bool = ...,
    metric: Metric | None = ...,
    *,
    return_type: Literal["logits"] = ...,
    start_at_layer: int | None = ...,
    tokens: Prompts | None = ...,
    max_bytes: int | str | None = ...,
    adapter: Adapter | None = ...,
    prepend_bos: bool | None = ...,
) -> tuple[NDArray[np.float32], ActivationCache]: ...
@overload
def run_with_cache(
    self: Model,
    text_or_tokens: Prompts,
    names_filter: Names | None = ...,
    remove_batch_dim: bool = ...,
    stop_at_layer: int | None = ...,
    positions: int | slice | Sequence[int] | None = ...,
    special: bool | None = ...,
    incl_bwd: bool = ...,
    metric: Metric | None = ...,
    *,
    return_type: ReturnType,
    start_at_layer: int | None = ...,
    tokens: Prompts | None = ...,
    max_bytes: int | str | None = ...,
    adapter: Adapter | None = ...,
    prepend_bos: bool | None = ...,
) -> tuple[Any, ActivationCache]: ...
@checked
def run_with_cache(
    self: Model,
    text_or_tokens: Prompts,
    names_filter: Names | None = None,
    remove_batch_dim: bool = False,
    stop_at_layer: int | None = None,
    positions: int | slice | Sequence[int] | None = None,
    special: bool | None = None,
    incl_bwd: bool = False,
    metric: Metric | None = None,
    *,
    return_type: ReturnType = "logits",
    start_at_layer: int | None = None,
    tokens: Prompts | None = None,
    max_bytes: int | str | None = None,
    adapter: Adapter | None = None,
    prepend_bos: bool | None = None,
) -> tuple[Any, Any]:
    """Run on whole prompts, and keep the activations.

    The names and shapes are TransformerLens's; `ActivationCache` lists them. What is not asked for is neither
    computed apart nor copied. Hooks that are on act too, and what they have changed is what is kept.

    Parameters
    ----------
    text_or_tokens : str, bytes, sequence of int, or a sequence of those
        Text, which gets BOS before it where the tokenizer wants that, or ids [T]. Several of one length, or an
        array [batch, T], are a batch. Prompts of different lengths are run together too, 32 in a pass.
    names_filter : str, sequence of str, or predicate, optional
        Which activations: full names ("blocks.0.attn.hook_z"), patterns for them ("blocks.*.hook_resid_post"),
        short names ("z3", or "z" for all layers), or a function of the full name. A negative layer, as in "z-1" or
        "blocks.-1.attn.hook_z", counts from the last. Without it all but ``hook_result``, which is large and has to
        be computed apart.
    remove_batch_dim : bool
        Keep the activations of a single prompt without the batch axis. The logits have it anyway.
    stop_at_layer : int, optional
        Run the layers before this one only, and return the residual stream there instead of logits. Negative
        counts from the end.
    positions : int, slice or sequence of int, optional
        Keep the activations of these tokens only; negative counts from the end. For ``hook_attn_scores`` and
        ``hook_pattern`` it is the queries, and all keys are kept. The logits are all there.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `llama2cpp.generate`.
    incl_bwd : bool
        Whether the cache has each activation's gradient too, under its name and ``_grad``: that of `metric`, as
        `ActivationCache.backward` computes it.
    metric : callable, optional
        A function of the logits [batch, T, vocab_size] that returns a number and its gradient with respect to them, as
        those of `llama2cpp.metrics` do; or a function of PyTorch's tensors that returns a number, where PyTorch is
        installed.
    return_type : str or None
        "logits", "loss" (the mean of -log p over each token but the first, in double precision), "both" as a pair, or
        None, which computes no logits.
    start_at_layer : int, optional
        `text_or_tokens` is the residual stream [batch, T, dim] and enters at this layer, where
        ``blocks.{i}.hook_resid_pre`` is. The layers before it do not run. Negative counts from the end; n_layers is the
        last norm. Of a ``hook_resid_pre`` from another run, each bit is as in that run.
    tokens : as `text_or_tokens`, optional
        With `start_at_layer`, the tokens that the residual stream is of: for the loss, and for labels.
    max_bytes : int or str, optional
        How much memory the cache may hold, such as "500MB". Where its activations take more, only the residual stream
        before each layer is kept, and others are computed again when they are asked for, as many of a layer together as
        there is room for: with the same bits on the CPU, on Metal the same but for roundings. They are read-only. An
        array that takes more is given, and not kept. Not with `positions`, other layers, gradients, an adapter, or
        hooks that are on.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in this run; the cache knows it (``cache.adapter``). Such a run has no
        gradients.
    prepend_bos : bool, optional
        Whether texts get BOS before them, as in `to_tokens`; ids stay as they are.

    Returns
    -------
    logits : numpy.ndarray
        float32 [batch, T, vocab_size]; with `stop_at_layer` [batch, T, dim]; or what `return_type` says.
    cache : ActivationCache
        float32 arrays [batch, T, ...] by name. They are parts of one piece of memory, which is freed with the last
        of them.

        For prompts of different lengths both are lists, of what each prompt gives alone.

    Raises
    ------
    ValueError
        For a name that no activation has, or an argument that cannot be. With `incl_bwd`, what
        `ActivationCache.backward` raises.
    ContextFullError
        If a prompt does not fit in the context.
    MemoryError
        If more memory is needed than is available; it says how much. Nothing has been computed then.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> logits, cache = model.run_with_cache("Once upon a time", names_filter=["pattern", "resid_post4"])
    >>> cache["blocks.2.attn.hook_pattern"].shape, cache["blocks.4.hook_resid_post"].shape
    ((1, 6, 5, 5), (1, 5, 192))
    >>> _, caches = model.run_with_cache(["Once upon a time", "The dog"], "z0", return_type=None)
    >>> [cache["z", 0].shape for cache in caches]
    [(1, 5, 6, 32), (1, 4, 6, 32)]
    """
    return self._run(
        "run_with_cache",
        _with_bos(self, "run_with_cache", text_or_tokens, prepend_bos, special),
        names_filter,
        remove_batch_dim,
        stop_at_layer,
        positions,
        special,
        start_at_layer,
        return_type,
        tokens,
        False,
        incl_bwd,
        metric,
        max_bytes,
        adapter,
    )


def _with_bos(model: Model, function: str, given: Any, prepend_bos: bool | None, special: bool | None) -> Any:  # noqa: ANN401
    """Give ids where it is said whether BOS comes before a text, as TransformerLens's calls do."""
    if prepend_bos is None:
        return given
    rows = rows_of_ids(model, function, given, prepend_bos, special)
    return rows[0] if len(rows) == 1 else rows


@overload
def run_with_hooks(
    self: Model,
    text_or_tokens: Prompts,
    fwd_hooks: Sequence[Hook] | None = ...,
    special: bool | None = ...,
    *,
    bwd_hooks: Sequence[Hook] | None = ...,
    metric: Metric | None = ...,
    return_type: Literal["logits"] = ...,
    start_at_layer: int | None = ...,
    stop_at_layer: int | None = ...,
    tokens: Prompts | None = ...,
    adapter: Adapter | None = ...,
    prepend_bos: bool | None = ...,
) -> NDArray[np.float32]: ...
@overload
def run_with_hooks(
    self: Model,
    text_or_tokens: Prompts,
    fwd_hooks: Sequence[Hook] | None = ...,
    special: bool | None = ...,
    *,
    bwd_hooks: Sequence[Hook] | None = ...,
    metric: Metric | None = ...,
    return_type: ReturnType,
    start_at_layer: int | None = ...,
    stop_at_layer: int | None = ...,
    tokens: Prompts | None = ...,
    adapter: Adapter | None = ...,
    prepend_bos: bool | None = ...,
) -> Any: ...  # noqa: ANN401
@checked
def run_with_hooks(
    self: Model,
    text_or_tokens: Prompts,
    fwd_hooks: Sequence[Hook] | None = (),
    special: bool | None = None,
    *,
    bwd_hooks: Sequence[Hook] | None = (),
    metric: Metric | None = None,
    return_type: ReturnType = "logits",
    start_at_layer: int | None = None,
    stop_at_layer: int | None = None,
    tokens: Prompts | None = None,
    adapter: Adapter | None = None,
    prepend_bos: bool | None = None,
) -> Any:
    """Run on whole prompts with hooks that act in this call only.

    Parameters
    ----------
    text_or_tokens : str, bytes, sequence of int, or a sequence of those
        As in `run_with_cache`. Functions are shown all prompts of a batch at once, [batch, T, ...], as `hooks` says.
    fwd_hooks, bwd_hooks : sequence
        As in `hooks`. With `bwd_hooks` the run is followed by its way back.
    metric : callable, optional
        With `bwd_hooks`: what gradients are of, as in `run_with_cache`; the loss, if not given and it is what
        `return_type` asks for.
    special, return_type, start_at_layer, stop_at_layer, tokens, adapter, prepend_bos
        As in `run_with_cache`.

    Returns
    -------
    numpy.ndarray
        float32 [batch, T, vocab_size], the logits after every token; or what `return_type` or `stop_at_layer` say. For
        prompts of different lengths a list of what each gives alone.

    Raises
    ------
    ValueError
        As in `run_with_cache` and `hooks`; for a `metric` without `bwd_hooks`, or these without anything to go back
        from.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> def without_head_3(z, hook):
    ...     z[:, :, 3] = 0
    >>> logits = model.run_with_hooks("Once upon a time", [("blocks.0.attn.hook_z", without_head_3)])
    >>> logits.shape
    (1, 5, 1536)
    """
    if metric is not None and not bwd_hooks:
        raise ValueError("run_with_hooks: metric= is what bwd_hooks are shown gradients of, and there are none")
    with self.hooks(fwd_hooks, bwd_hooks):
        return self._run(
            "run_with_hooks",
            _with_bos(self, "run_with_hooks", text_or_tokens, prepend_bos, special),
            (),
            incl_bwd=bool(bwd_hooks),
            metric=metric,
            stop_at_layer=stop_at_layer,
            special=special,
            start_at_layer=start_at_layer,
            return_type=return_type,
            tokens=tokens,
            adapter=adapter,
        )[0]


@overload
def call(
    self: Model,
    input: Prompts,
    return_type: Literal["logits"] = ...,
    *,
    start_at_layer: int | None = ...,
    stop_at_layer: int | None = ...,
    tokens: Prompts | None = ...,
    loss_per_token: bool = ...,
    special: bool | None = ...,
    adapter: Adapter | None = ...,
    prepend_bos: bool | None = ...,
) -> NDArray[np.float32]: ...
@overload
def call(
    self: Model,
    input: Prompts,
    return_type: ReturnType,
    *,
    start_at_layer: int | None = ...,
    stop_at_layer: int | None = ...,
    tokens: Prompts | None = ...,
    loss_per_token: bool = ...,
    special: bool | None = ...,
    adapter: Adapter | None = ...,
    prepend_bos: bool | None = ...,
) -> Any: ...  # noqa: ANN401
@checked
def call(
    self: Model,
    input: Prompts,
    return_type: ReturnType = "logits",
    *,
    start_at_layer: int | None = None,
    stop_at_layer: int | None = None,
    tokens: Prompts | None = None,
    loss_per_token: bool = False,
    special: bool | None = None,
    adapter: Adapter | None = None,
    prepend_bos: bool | None = None,
) -> Any:
    """Run on whole prompts, as TransformerLens's models are called. Hooks that are on act.

    Parameters
    ----------
    input : str, bytes, sequence of int, or a sequence of those
        As `text_or_tokens` in `run_with_cache`.
    return_type, start_at_layer, stop_at_layer, tokens, special, adapter, prepend_bos
        As in `run_with_cache`.
    loss_per_token : bool
        The loss is that of each token, float32 [batch, T - 1].

    Returns
    -------
    numpy.ndarray, float, pair of those, or None
        As in `run_with_hooks`.

    Raises
    ------
    ValueError
        As in `run_with_cache`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model("Once upon a time").shape, model("Once upon a time", return_type="loss") < 2
    ((1, 5, 1536), True)
    """
    return self._run(
        "Model",
        _with_bos(self, "Model", input, prepend_bos, special),
        (),
        stop_at_layer=stop_at_layer,
        special=special,
        start_at_layer=start_at_layer,
        return_type=return_type,
        tokens=tokens,
        loss_per_token=loss_per_token,
        adapter=adapter,
    )[0]


@checked
def hooks(self: Model, fwd_hooks: Sequence[Hook] | None = (), bwd_hooks: Sequence[Hook] | None = ()) -> ActiveHooks:
    """Switch hooks on for a ``with`` block: they act in every call on this model's sessions, `generate` included.

    A hook is a pair of a name and a function ``fn(activation, hook)``. The activation is a float32 array, writable:
    what the function leaves in it, or an array of the same shape that it returns, is what the model goes on with. One
    that it keeps never changes afterwards. `hook` is a `HookPoint`.

    In `run_with_hooks`, `run_with_cache` and a call of the model, with prompts of one length, it is [batch, T, ...]
    of all prompts, as in TransformerLens. In calls on sessions, in `forward` and `generate`, and for prompts of
    different lengths it is [1, T, ...], and the function is called for each session. T is the number of tokens of the
    call: in `generate` first the prompt's, then 1.

    Hooks act in the order of the list, those of an inner block after those of an outer one. They act in the context
    of the block: not in other threads, and on a `stream` only while it is iterated in there.

    Parameters
    ----------
    fwd_hooks : sequence of (names, function) or Intervention
        Names are as in `run_with_cache`. `llama2cpp.interventions` has changes that need no Python while the model
        runs. ``hook_mlp_in``, ``hook_q_input`` and their like, too: see `ActivationCache`.
    bwd_hooks : sequence of (names, function), optional
        Functions that are shown gradients, [B, T, ...], read-only, wherever some are computed in the block: by
        ``run_with_cache(..., incl_bwd=True)``, `ActivationCache.backward` and ``run_with_hooks(..., bwd_hooks=...)``,
        from the last activation to the first. They return None: gradients can be looked at, not changed.

    Returns
    -------
    context manager

    Raises
    ------
    ValueError
        For a name that no activation has, or a hook that cannot be called; and in calls, if a hook returns an array
        of another shape. An exception in a hook ends the call, whose session is then as it was before it.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> def louder(activation, hook):
    ...     return activation * 3
    >>> with model.hooks([("blocks.1.hook_mlp_out", louder)]):
    ...     text = model.generate("Once upon a time", max_tokens=8, temperature=0)
    >>> text == model.generate("Once upon a time", max_tokens=8, temperature=0)
    False
    """
    return ActiveHooks(self._core, None, fwd_hooks, bwd_hooks)


@checked
def record(self: Model, names_filter: Names | None = None, tokens: int | None = None) -> Recording:
    """Keep the activations of everything that is fed in a ``with`` block: `run_with_cache` for decoding.

    C++ code appends them token by token, in sessions, `forward`, `generate`, `stream` and `chat`, and a step costs
    hardly more than without. As with `hooks` it is the calls of this context that are recorded, and what edits
    have changed is what is kept.

    Parameters
    ----------
    names_filter : str, sequence of str, or predicate, optional
        As in `run_with_cache`. The residual stream of all layers is 4 * n_layers * dim bytes a token.
    tokens : int, optional
        Make room for so many before anything runs. Without it, memory is taken as tokens come.

    Returns
    -------
    Recording
        A context manager, from which `Recording.cache` gets an `ActivationCache`, within the block or after it.
        `Recording.bytes_for` tells beforehand how much memory tokens take.

    Raises
    ------
    ValueError
        For a name that no activation has.
    MemoryError
        If there is no room for `tokens`, or, in calls, for those that are fed; it says how much is needed. The
        call has computed nothing then, and its sessions are as they were.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> with model.record("resid_post") as recording:
    ...     text = model.generate("Once upon a time", max_tokens=8, temperature=0)
    >>> recording.cache()["resid_post", -1].shape  # 5 tokens of the prompt, 7 more that were fed
    (1, 12, 192)
    """
    return Recording(self._core, None, names_filter, tokens, self)


@checked
def explain(
    self: Model,
    prompt: Prompt,
    answer: int | str | None = None,
    *,
    instead: int | str | None = None,
    top_k: int = 10,
    special: bool | None = None,
    adapter: Adapter | None = None,
) -> Explanation:
    """Say what comes next, what of the prompt was surprising, and which heads and layers speak for the answer.

    What a part adds is its direct logit attribution: its vector, through the last norm by the divisor of the run, along
    the answer's direction (`ActivationCache.logit_attrs`). Parts sum to the logit. What is said of later layers is not
    in it: `llama2cpp.patching` finds what a part causes.

    Parameters
    ----------
    prompt : str, bytes or sequence of int
    answer : int or str, optional
        The token that is explained, by its id or its text; the likeliest if not given.
    instead : int or str, optional
        A token that it is compared with: then what is explained is the difference of the two logits.
    top_k : int
        How many next tokens are shown.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in this run: what heads and MLPs add has its part.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        For a token that there is not, a prompt without tokens, or another model's adapter.
    ContextFullError
        If the prompt does not fit in the context.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> found = model.explain("Once upon a", " time")
    >>> found.next_tokens[0].text, len(found.heads()), found.contributions[-1].label
    (' time', 30, 'remainder')
    """
    return explanation.explain(self, prompt, answer, instead, top_k, special, adapter)
