"""Activation patching, ablations and path patching: many runs with one change each, for a fraction of their cost.

The result of each cell has the bits of a whole run with that change. Only tokens from the first one that changes, and
layers from the one that changes on, are computed, and up to 32 cells share a pass over the weights.

A metric takes logits, float32 [batch, T, vocab_size], and gives a number (or a pair that begins with one, as the
functions of `llama2cpp.metrics` do). Differences between cells are small: open quantized models with
``load(..., precision="exact")``, since by default their activations are rounded to int8.

The functions with names of TransformerLens, `get_act_patch_resid_pre` and so on, take and give what its do, as NumPy
arrays. Where a model has fewer heads of keys and values than of queries (GQA), heads of "k" and "v" are those; the axis
"query_head" of `activation_patch` and `ablate`, and nodes such as "a3.h1<k>", are one head of queries' own.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import patching
>>> model = llama2cpp.load("storyteller", precision="exact")
>>> clean = model.to_tokens("When Lily and Tom went to the park, Lily gave the ball to")
>>> corrupt = model.to_tokens("When Lily and Tom went to the park, Tom gave the ball to")
>>> tom, lily = model.to_single_token(" Tom"), model.to_single_token(" Lily")
>>> def metric(logits):
...     return logits[0, -1, tom] - logits[0, -1, lily]
>>> _, cache = model.run_with_cache(clean)
>>> grid = patching.get_act_patch_resid_pre(model, corrupt, cache, metric)
>>> grid.shape
(5, 16)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .common.arguments import checked, index
from .common.parts import get_part
from .inside.cache import ActivationCache
from .inside.cells import (
    Address,
    Addressed,
    BaseRun,
    Change,
    Grid,
    Over,
    cut,
    for_own_heads,
    held,
    in_outputs_of_heads,
    made_together,
    sweep,
    warn_interrupted,
    with_own_heads,
)
from .inside.heads_and_neurons import with_factors
from .inside.observation import prompts_of
from .inside.places import Place, find_places, is_pattern, name_of

if TYPE_CHECKING:
    from .adapters import Adapter
    from .inside.observation import Prompts
    from .model import Model

Metric: TypeAlias = Callable[[Any], Any]
Result: TypeAlias = NDArray[np.float64]

__all__ = [
    "ablate",
    "activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
    "path_patch",
]


@checked
def activation_patch(
    model: Model,
    corrupt: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    name: str,
    over: Over | None = None,
    *,
    last_only: bool = False,
    out: Result | None = None,
    progress: bool | None = None,
    special: bool | None = None,
    adapter: Adapter | None = None,
) -> Result:
    """Put activations of a clean run into a corrupt one, one cell at a time, and measure each.

    Parameters
    ----------
    model : Model
    corrupt : str, ids, or several of one length
        What is run, [batch, T].
    clean_cache : ActivationCache
        Of as many prompts of the same length, or of one for all, with the activation `name`.
    metric : callable
        Of logits [batch, T, vocab_size]; gives a number. See the module.
    name : str
        Which activation, as in `Model.run_with_cache`: "resid_pre", "z", "mlp_out", "pattern", or "z3" of one layer.
    over : sequence of str, or mapping of str to sequence of int, optional
        What the cells are: "layer", "position" (also "pos", "dest_pos"), "head", "neuron" or, for patterns, "key"
        ("src_pos"). For "k" and "v" of a model in which heads share them (GQA), "query_head" is one head's own: the
        others that share it keep theirs. What is not named is patched as a whole. A mapping chooses some of an axis, as
        ``{"layer": [0, 1], "position": None}``. Without it layers, and heads or positions.
    last_only : bool
        Make the logits of the last token only, [batch, 1, vocab_size], which is faster: for metrics that read
        ``logits[:, -1]``.
    out : numpy.ndarray, optional
        The result of a call that was interrupted, to go on with: what is NaN in it is computed, in place.
    progress : bool, optional
        Show a bar on stderr; if not given, where that is a terminal.
    special : bool, optional
        As in `Model.run_with_cache`.
    adapter : Adapter, optional
        A LoRA adapter of the model that acts in the run and in all cells. The cache is of a run with the same; to put
        in what a run with another had, or one without, set ``cache.adapter`` to this one.

    Returns
    -------
    numpy.ndarray
        float64, an axis for each of `over`. After Ctrl-C it holds what was computed, and NaN, and there is a warning.

    Raises
    ------
    ValueError
        For names and axes that there are not, prompts of other lengths, a cache that lacks the activation, or hooks
        that are on.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, cache = model.run_with_cache("Lily ran to")
    >>> patching.activation_patch(model, "Tom ran to", cache, lambda logits: logits[0, -1].max(), "z").shape
    (5, 6)
    """
    return _patch(
        "activation_patch",
        model,
        corrupt,
        clean_cache,
        metric,
        name,
        over,
        last_only=last_only,
        out=out,
        progress=progress,
        special=special,
        adapter=adapter,
    )


def _patch(
    function: str,
    model: Model,
    corrupt: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    name: str,
    over: Over | None,
    *,
    last_only: bool = False,
    out: Result | None = None,
    progress: bool | None = None,
    special: bool | None = None,
    adapter: Adapter | None = None,
    one_of_many: bool = False,
) -> Result:
    base = BaseRun(model, function, corrupt, _needed(name, over), special, adapter)
    grid = Grid.of(function, name, over, model.config, base.length)
    clean = {place: base.of_other_run(clean_cache, place) for place in grid.places}
    changes_of = for_own_heads(base, grid, _from_arrays(clean, model.config))
    return sweep(
        base, grid, changes_of, metric, last_only=last_only, out=out, progress=progress, one_of_many=one_of_many
    )


def _needed(name: str, over: Over | None) -> list[str]:
    """Name what of the run a sweep reads: a head's own keys or values change its ``hook_z`` alone."""
    return [name, "z"] if isinstance(over, Sequence | Mapping) and "query_head" in over else [name]


def _from_arrays(arrays: dict[Place, NDArray[np.float32]], config: _core.Config) -> Callable[[Addressed], list[Change]]:
    """Make the changes of a cell: what it addresses becomes what these activations of whole places have there."""

    def changes_of(addressed: Addressed) -> list[Change]:
        return [Change(place, address, cut(arrays[place], place, address, config)) for place, address in addressed]

    return changes_of


@checked
def path_patch(
    model: Model,
    corrupt: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    senders: str,
    receivers: str | Sequence[str | tuple[str, int]],
    over: Over | None = None,
    *,
    freeze_mlp: bool = False,
    last_only: bool = False,
    out: Result | None = None,
    progress: bool | None = None,
    special: bool | None = None,
    adapter: Adapter | None = None,
) -> Result:
    """Measure what a sender says to receivers directly: with all heads between them, and MLPs perhaps, held fast.

    Each cell is two runs. In the first the sender has its activation of the clean run, ``hook_z`` of all other heads in
    its layer and after it, with `freeze_mlp` ``hook_mlp_out`` too, that of the corrupt run. In the second the receivers
    have what they had in the first; its logits are measured.

    Parameters
    ----------
    model, corrupt, clean_cache, metric, over, last_only, out, progress, special, adapter
        As in `activation_patch`.
    senders : str
        Which activation sends, as `name` in `activation_patch`: "z", "mlp_out", or "z3" of one layer. What is inside
        attention, as "v", sends by the ``z`` that comes of it.
    receivers : str, or sequence of str or of (str, int)
        Which activations receive: names as in `Model.run_with_cache`, or names and a head: ``[("q4", 2)]``;
        "resid_post-1" is what the logits are made of. Nodes are named as in `llama2cpp.attribution`: "a4.h2<k>" is what
        head 2 of queries has for keys, and no other head that shares them. Such nodes are of one layer.
    freeze_mlp : bool
        Hold the MLPs fast as well. Without it what the sender says through MLPs counts as direct.

    Returns
    -------
    numpy.ndarray
        As in `activation_patch`.

    Raises
    ------
    ValueError
        As in `activation_patch`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, cache = model.run_with_cache("Lily ran to")
    >>> metric = lambda logits: logits[0, -1].max()
    >>> patching.path_patch(model, "Tom ran to", cache, metric, "z", "resid_post-1").shape
    (5, 6)
    """
    config = model.config
    targets: list[tuple[Place, Address]] = []
    for receiver in _listed(receivers):
        node = _node(receiver, config) if isinstance(receiver, str) else None
        if node is not None:
            targets.append(node)
            continue
        name, head = (receiver, None) if isinstance(receiver, str) else receiver
        for place in find_places(name, config):
            heads, _ = _core.point_shape(place[0], config)
            if head is not None and not heads:
                raise ValueError(f"path_patch: {name_of(place, config)} has no heads")
            targets.append((place, Address(head=None if head is None else index(head, heads, "head", "path_patch"))))
    if any(address.query_head is not None for _, address in targets) and len({place[1] for place, _ in targets}) > 1:
        raise ValueError("path_patch: receivers with a head's own keys or values are of one layer")
    names = [senders, "z", "mlp_out", *(name_of(place, config) for place, _ in targets)]
    base = BaseRun(model, "path_patch", corrupt, names, special, adapter)
    grid = Grid.of("path_patch", senders, over, config, base.length)
    clean = {place: base.of_other_run(clean_cache, place) for place in grid.places}
    sent_by = for_own_heads(base, grid, _from_arrays(clean, config))
    held_fast = find_places(["z", "mlp_out"] if freeze_mlp else "z", config)

    def changes_of(cells: list[Addressed], start: int) -> list[list[Change]]:
        frozen = [place for place in held_fast if place[1] >= start]
        sent = in_outputs_of_heads(base, [sent_by(cell) for cell in cells])
        reached = [(place, address) for place, address in targets if place[1] >= start]
        received = [
            [
                Change(place, address, cut(arrays[name_of(place, config)], place, address, config))
                for place, address in reached
            ]
            for arrays in base.values_after(sent, start, frozen, [place for place, _ in reached])
        ]
        return with_own_heads(base, received)

    return sweep(
        base, grid, made_together(base, grid, changes_of), metric, last_only=last_only, out=out, progress=progress
    )


def _listed(receivers: object) -> list[str | tuple[str, int]]:
    """Check what is given as receivers: names, or names and heads."""
    given = [receivers] if isinstance(receivers, str) else receivers
    if not isinstance(given, Sequence):
        raise TypeError(f"path_patch: receivers is {given!r:.80} ({type(given).__name__}), expected names, as 'q4'")
    for one in given:
        if not isinstance(one, str) and not (isinstance(one, tuple | list) and len(one) == 2):
            raise TypeError(f"path_patch: receivers has {one!r:.80} in it, expected a name, or a name and a head")
    if not given:
        raise ValueError("path_patch: receivers is empty, expected one or more")
    return list(given)


def _node(name: str, config: _core.Config) -> tuple[Place, Address] | None:
    """Find what a node such as "a3.h1<k>" has, where a name is one."""
    found = re.fullmatch(r"a(\d{1,6})\.h(\d{1,6})<([qkv])>", name, flags=re.ASCII)
    if found is None:
        return None
    layer = index(int(found[1]), config.n_layers, "layer", "path_patch")
    head = index(int(found[2]), config.n_heads, "head", "path_patch")
    [place] = find_places(f"blocks.{layer}.attn.hook_{found[3]}", config)
    if found[3] == "q":
        return place, Address(head=head)
    return place, Address(head=head * config.n_kv_heads // config.n_heads, query_head=head)


@checked
def ablate(
    model: Model,
    tokens: Prompts,
    metric: Metric,
    name: str,
    over: Over | None = None,
    *,
    how: str = "zero",
    reference: ActivationCache | None = None,
    seed: int = 0,
    last_only: bool = False,
    out: Result | None = None,
    progress: bool | None = None,
    special: bool | None = None,
    adapter: Adapter | None = None,
) -> Result:
    """Take activations away, one cell at a time, and measure what is left.

    Parameters
    ----------
    model : Model
    tokens : str, ids, or several of one length
        What is run.
    metric, name, over, last_only, out, progress, special, adapter
        As in `activation_patch`.
    how : str
        "zero"; "mean": the mean of `reference` over its prompts and positions, as in `interventions.mean`; "resample":
        the activation of another prompt of `reference`, drawn for each prompt here.
    reference : ActivationCache, optional
        For "mean" and "resample". The latter wants prompts of the same length.
    seed : int
        For "resample". The draw is the same for all cells.

    Returns
    -------
    numpy.ndarray
        As in `activation_patch`.

    Raises
    ------
    ValueError
        As in `activation_patch`; and without a reference where there has to be one.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> losses = patching.ablate(model, "Once upon a time", lambda logits: logits[0, -1].max(), "mlp_out", ["layer"])
    >>> losses.shape
    (5,)
    """
    if how not in ("zero", "mean", "resample"):
        raise ValueError(f"ablate: how is {how!r}, expected 'zero', 'mean' or 'resample'")
    if how != "zero" and reference is None:
        raise ValueError(f"ablate: how={how!r} needs a reference, a cache of other prompts")
    base = BaseRun(model, "ablate", tokens, _needed(name, over), special, adapter)
    grid = Grid.of("ablate", name, over, model.config, base.length)
    full: dict[Place, NDArray[np.float32]] = {}
    for place in grid.places:
        shape = base.arrays[name_of(place, model.config)].shape
        if how == "zero":
            full[place] = np.broadcast_to(np.float32(0), shape)
        elif how == "mean":
            full[place] = np.broadcast_to(_mean_of(reference, place, base), shape)
        else:
            full[place] = _resampled(reference, place, base, seed)
    changes_of = for_own_heads(base, grid, _from_arrays(full, model.config))
    return sweep(base, grid, changes_of, metric, last_only=last_only, out=out, progress=progress)


def _mean_of(cache: ActivationCache | None, place: Place, base: BaseRun) -> NDArray[np.float32]:
    name = name_of(place, base.model.config)
    array = held("ablate: the reference", cache, name, base.adapter)
    if is_pattern(name):
        raise ValueError("ablate: patterns of different tokens have no mean")
    return np.asarray(array.astype(np.float64).mean(axis=(0, 1)), dtype=np.float32)


def _resampled(cache: ActivationCache | None, place: Place, base: BaseRun, seed: int) -> NDArray[np.float32]:
    name = name_of(place, base.model.config)
    array = held("ablate: the reference", cache, name, base.adapter)
    shape = base.arrays[name].shape
    if array.shape[1:] != shape[1:] or (cache is not None and cache.positions is not None):
        raise ValueError(f"ablate: {name!r} of the reference has shape {list(array.shape)}, expected {list(shape)}")
    rows = np.random.default_rng(seed).integers(len(array), size=shape[0])
    return np.asarray(array[rows])


def _named(own_name: str, name: str, over: Sequence[str], what: str, shape: str) -> Callable[..., Result]:
    """Make one of TransformerLens's functions, which differ in what they patch."""

    def function(
        model: Model,
        corrupted_tokens: Prompts,
        clean_cache: ActivationCache,
        patching_metric: Metric,
        *,
        last_only: bool = False,
        out: Result | None = None,
        progress: bool | None = None,
        adapter: Adapter | None = None,
    ) -> Result:
        return _patch(
            own_name,
            model,
            corrupted_tokens,
            clean_cache,
            patching_metric,
            name,
            over,
            last_only=last_only,
            out=out,
            progress=progress,
            adapter=adapter,
        )

    function.__name__ = function.__qualname__ = own_name
    function.__doc__ = f"""Patch {what} as TransformerLens's function of this name does.

    Parameters
    ----------
    model, corrupted_tokens, clean_cache, patching_metric, last_only, out, progress, adapter
        As model, corrupt, clean_cache, metric and the others of `activation_patch`.

    Returns
    -------
    numpy.ndarray
        float64 {shape}.

    Raises
    ------
    ValueError
        As in `activation_patch`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, cache = model.run_with_cache("Lily")
    >>> grid = patching.{own_name}(model, "Tom", cache, lambda logits: logits[0, -1].max())
    >>> len(grid)
    5
    """
    return function


_ROWS = ("layer", "position")
_HEADS = ("layer", "head")
_HEADS_BY_POSITION = ("layer", "position", "head")
_BY_POSITION = "[n_layers, T, heads]"

get_act_patch_resid_pre = _named(
    "get_act_patch_resid_pre", "resid_pre", _ROWS, "the residual stream into each layer", "[n_layers, T]"
)
get_act_patch_resid_mid = _named(
    "get_act_patch_resid_mid", "resid_mid", _ROWS, "the stream between attention and MLP", "[n_layers, T]"
)
get_act_patch_attn_out = _named(
    "get_act_patch_attn_out", "attn_out", _ROWS, "the output of each attention layer", "[n_layers, T]"
)
get_act_patch_mlp_out = _named("get_act_patch_mlp_out", "mlp_out", _ROWS, "the output of each MLP", "[n_layers, T]")
get_act_patch_attn_head_out_by_pos = _named(
    "get_act_patch_attn_head_out_by_pos", "z", _HEADS_BY_POSITION, "each head's output, by position,", _BY_POSITION
)
get_act_patch_attn_head_q_by_pos = _named(
    "get_act_patch_attn_head_q_by_pos", "q", _HEADS_BY_POSITION, "each head's queries, by position,", _BY_POSITION
)
get_act_patch_attn_head_k_by_pos = _named(
    "get_act_patch_attn_head_k_by_pos", "k", _HEADS_BY_POSITION, "each head's keys, by position,", _BY_POSITION
)
get_act_patch_attn_head_v_by_pos = _named(
    "get_act_patch_attn_head_v_by_pos", "v", _HEADS_BY_POSITION, "each head's values, by position,", _BY_POSITION
)
get_act_patch_attn_head_pattern_by_pos = _named(
    "get_act_patch_attn_head_pattern_by_pos",
    "pattern",
    ("layer", "head", "position"),
    "each head's pattern, by query,",
    "[n_layers, n_heads, T]",
)
get_act_patch_attn_head_pattern_dest_src_pos = _named(
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "pattern",
    ("layer", "head", "position", "key"),
    "each head's pattern, by query and key,",
    "[n_layers, n_heads, T, T]",
)
get_act_patch_attn_head_out_all_pos = _named(
    "get_act_patch_attn_head_out_all_pos", "z", _HEADS, "each head's output", "[n_layers, n_heads]"
)
get_act_patch_attn_head_q_all_pos = _named(
    "get_act_patch_attn_head_q_all_pos", "q", _HEADS, "each head's queries", "[n_layers, n_heads]"
)
get_act_patch_attn_head_k_all_pos = _named(
    "get_act_patch_attn_head_k_all_pos", "k", _HEADS, "each head's keys", "[n_layers, n_kv_heads]"
)
get_act_patch_attn_head_v_all_pos = _named(
    "get_act_patch_attn_head_v_all_pos", "v", _HEADS, "each head's values", "[n_layers, n_kv_heads]"
)
get_act_patch_attn_head_pattern_all_pos = _named(
    "get_act_patch_attn_head_pattern_all_pos", "pattern", _HEADS, "each head's pattern", "[n_layers, n_heads]"
)


def _every(
    function: str,
    names: Sequence[str],
    over: Sequence[str],
    model: Model,
    corrupt: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    *,
    last_only: bool,
    adapter: Adapter | None,
) -> Result:
    """Do several sweeps, of which the first has most heads: 0 for those that others do not have. Ctrl-C ends all."""
    length = len(prompts_of(model, function, corrupt, None)[0])
    shapes = [Grid.of(function, name, over, model.config, length).shape for name in names]
    result = np.zeros((len(names), *shapes[0]))
    parts = [whole[..., : shape[-1]] for whole, shape in zip(result, shapes, strict=True)]
    for part in parts:
        part[...] = np.nan
    try:
        for name, part in zip(names, parts, strict=True):
            _patch(
                function,
                model,
                corrupt,
                clean_cache,
                metric,
                name,
                over,
                last_only=last_only,
                out=part,
                adapter=adapter,
                one_of_many=True,
            )
    except KeyboardInterrupt:
        warn_interrupted(function, result)
    return result


@checked
def get_act_patch_attn_head_all_pos_every(
    model: Model,
    corrupted_tokens: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    *,
    last_only: bool = False,
    adapter: Adapter | None = None,
) -> Result:
    """Patch output, queries, keys, values and pattern of each head, as TransformerLens's function of this name does.

    Parameters
    ----------
    model, corrupted_tokens, clean_cache, metric, last_only, adapter
        As in `activation_patch`.

    Returns
    -------
    numpy.ndarray
        float64 [5, n_layers, n_heads]; 0 for heads of keys and values that the model does not have. After Ctrl-C it
        holds what was computed, and NaN.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, cache = model.run_with_cache("Lily")
    >>> metric = lambda logits: logits[0, -1].max()
    >>> patching.get_act_patch_attn_head_all_pos_every(model, "Tom", cache, metric).shape
    (5, 5, 6)
    """
    return _every(
        "get_act_patch_attn_head_all_pos_every",
        ("z", "q", "k", "v", "pattern"),
        _HEADS,
        model,
        corrupted_tokens,
        clean_cache,
        metric,
        last_only=last_only,
        adapter=adapter,
    )


@checked
def get_act_patch_attn_head_by_pos_every(
    model: Model,
    corrupted_tokens: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    *,
    last_only: bool = False,
    adapter: Adapter | None = None,
) -> Result:
    """Patch what `get_act_patch_attn_head_all_pos_every` does, by position.

    Parameters
    ----------
    model, corrupted_tokens, clean_cache, metric, last_only, adapter
        As in `activation_patch`.

    Returns
    -------
    numpy.ndarray
        float64 [5, n_layers, T, n_heads]; 0 for heads of keys and values that the model does not have. After Ctrl-C it
        holds what was computed, and NaN.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, cache = model.run_with_cache("Lily")
    >>> metric = lambda logits: logits[0, -1].max()
    >>> patching.get_act_patch_attn_head_by_pos_every(model, "Tom", cache, metric).shape
    (5, 5, 2, 6)
    """
    return _every(
        "get_act_patch_attn_head_by_pos_every",
        ("z", "q", "k", "v", "pattern"),
        _HEADS_BY_POSITION,
        model,
        corrupted_tokens,
        clean_cache,
        metric,
        last_only=last_only,
        adapter=adapter,
    )


@checked
def get_act_patch_block_every(
    model: Model,
    corrupted_tokens: Prompts,
    clean_cache: ActivationCache,
    metric: Metric,
    *,
    last_only: bool = False,
    adapter: Adapter | None = None,
) -> Result:
    """Patch the residual stream into each layer, and what attention and MLP add, as TransformerLens's function does.

    Parameters
    ----------
    model, corrupted_tokens, clean_cache, metric, last_only, adapter
        As in `activation_patch`.

    Returns
    -------
    numpy.ndarray
        float64 [3, n_layers, T]. After Ctrl-C it holds what was computed, and NaN.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, cache = model.run_with_cache("Lily")
    >>> patching.get_act_patch_block_every(model, "Tom", cache, lambda logits: logits[0, -1].max()).shape
    (3, 5, 2)
    """
    return _every(
        "get_act_patch_block_every",
        ("resid_pre", "attn_out", "mlp_out"),
        _ROWS,
        model,
        corrupted_tokens,
        clean_cache,
        metric,
        last_only=last_only,
        adapter=adapter,
    )


@checked
def get_act_patch_direct_path(
    model: Model,
    corrupted_tokens: Prompts,
    clean_cache: ActivationCache,
    corrupted_cache: ActivationCache,
    patching_metric: Metric,
    src_layer: int,
    src_head: int,
    component: str = "q",
    verbose: bool = True,
    *,
    last_only: bool = False,
    adapter: Adapter | None = None,
) -> Result:
    """Patch what a head adds into each later head's queries, keys or values alone, as TransformerLens's function does.

    What a later head reads gets the difference of the source's output in the two runs, all others read the corrupt run.
    Where heads share keys and values, it is one head of queries' own that change.

    Parameters
    ----------
    model, corrupted_tokens, clean_cache, patching_metric, last_only, adapter
        As model, corrupt, clean_cache, metric, last_only and adapter of `activation_patch`.
    corrupted_cache : ActivationCache
        Of the corrupt run. Both have ``z`` of the source's layer.
    src_layer, src_head : int
        The source.
    component : str
        "q", "k" or "v" of the later heads.
    verbose : bool
        Show a bar on stderr, where that is a terminal.

    Returns
    -------
    numpy.ndarray
        float64 [n_layers, n_heads]; 0 in layers up to the source's. After Ctrl-C it holds what was computed, and NaN.

    Raises
    ------
    ValueError
        As in `activation_patch`; for another component, and models with a norm after attention, where a head alone
        adds nothing.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, clean = model.run_with_cache("Lily ran to", "z")
    >>> _, corrupt = model.run_with_cache("Tom ran to", "z")
    >>> metric = lambda logits: logits[0, -1].max()
    >>> patching.get_act_patch_direct_path(model, "Tom ran to", clean, corrupt, metric, 3, 0).shape
    (5, 6)
    """
    function = "get_act_patch_direct_path"
    source = (
        index(src_layer, model.config.n_layers, "src_layer", function),
        index(src_head, model.config.n_heads, "src_head", function),
    )
    base = _run_of_direct_paths(function, model, corrupted_tokens, component, adapter)
    caches = (clean_cache, corrupted_cache)
    result = np.full((model.config.n_layers, model.config.n_heads), np.nan)
    try:
        _direct_paths(base, caches, patching_metric, source, component, result, verbose=verbose, last_only=last_only)
    except KeyboardInterrupt:
        warn_interrupted(function, result)
    return result


def _run_of_direct_paths(
    function: str, model: Model, tokens: Prompts, component: str, adapter: Adapter | None
) -> BaseRun:
    if component not in ("q", "k", "v"):
        raise ValueError(f"{function}: component is {component!r}, expected 'q', 'k' or 'v'")
    if model.config.norm_places != "before":
        raise ValueError(f"{function}: the model has a norm after attention, so a head alone adds nothing")
    return BaseRun(model, function, tokens, [component, "z"], None, adapter)


def _direct_paths(
    base: BaseRun,
    caches: tuple[ActivationCache, ActivationCache],
    metric: Metric,
    source: tuple[int, int],
    component: str,
    result: Result,
    *,
    verbose: bool,
    last_only: bool,
) -> None:
    """Patch what one head adds into each later head's queries, keys or values, into a result full of NaN."""
    (src_layer, src_head), model, config = source, base.model, base.model.config
    result[: src_layer + 1] = 0
    later = range(src_layer + 1, config.n_layers)
    if not later:
        return
    [place_of_z] = find_places(f"blocks.{src_layer}.attn.hook_z", config)
    z = [base.of_other_run(cache, place_of_z)[:, :, src_head] for cache in caches]
    weights = model.weights[f"blocks.{src_layer}.{get_part('wo').lens}"]
    weight = with_factors(weights, base.adapter, "wo", src_layer)[src_head] * np.float32(config.residual_multiplier)
    added = z[0] @ weight - z[1] @ weight
    axis = "head" if component == "q" else "query_head"
    grid = Grid.of(base.function, component, {"layer": later, axis: None}, config, base.length)
    read: dict[Place, NDArray[np.float32]] = {}

    def changes_of(addressed: Addressed) -> list[Change]:
        [(place, address)] = addressed
        if place not in read:
            read.clear()
            read[place] = base.reading(place, base.entering(place[1]) + added)
        return [Change(place, address, cut(read[place], place, address, config))]

    sweep(
        base,
        grid,
        for_own_heads(base, grid, changes_of),
        metric,
        last_only=last_only,
        out=result[src_layer + 1 :],
        progress=None if verbose else False,
        one_of_many=True,
    )


@checked
def get_act_patch_direct_path_all_sources(
    model: Model,
    corrupted_tokens: Prompts,
    clean_cache: ActivationCache,
    corrupted_cache: ActivationCache,
    patching_metric: Metric,
    component: str = "q",
    verbose: bool = True,
    *,
    last_only: bool = False,
    adapter: Adapter | None = None,
) -> Result:
    """Do what `get_act_patch_direct_path` does from every head, as TransformerLens's function of this name.

    Parameters
    ----------
    model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric, component, verbose, last_only, adapter
        As in `get_act_patch_direct_path`.

    Returns
    -------
    numpy.ndarray
        float64 [n_layers, n_heads, n_layers, n_heads]: of the source, and then of the head that reads. After Ctrl-C it
        holds what was computed, and NaN.

    Raises
    ------
    ValueError
        As in `get_act_patch_direct_path`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import patching
    >>> model = llama2cpp.load("storyteller", precision="exact")
    >>> _, clean = model.run_with_cache("Lily", "z")
    >>> _, corrupt = model.run_with_cache("Tom", "z")
    >>> metric = lambda logits: logits[0, -1].max()
    >>> patching.get_act_patch_direct_path_all_sources(model, "Tom", clean, corrupt, metric, last_only=True).shape
    (5, 6, 5, 6)
    """
    function = "get_act_patch_direct_path_all_sources"
    base = _run_of_direct_paths(function, model, corrupted_tokens, component, adapter)
    caches, shape = (clean_cache, corrupted_cache), (model.config.n_layers, model.config.n_heads)
    result = np.full(shape + shape, np.nan)
    try:
        for source in np.ndindex(shape):
            _direct_paths(
                base,
                caches,
                patching_metric,
                source,
                component,
                result[source],
                verbose=verbose,
                last_only=last_only,
            )
    except KeyboardInterrupt:
        warn_interrupted(function, result)
    return result
