"""Hooks and weights of every family against TransformerLens's bridge, which has adapters for nearly all of them."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any, NamedTuple

import expert_models
import family_models
import gpt_oss_models
import numpy as np
import pytest
from family_models import PLUS_ONE, TOKENS, Case
from numpy.typing import NDArray

import llama2cpp

with warnings.catch_warnings():  # its imports', and theirs
    warnings.simplefilter("ignore")
    pytest.importorskip("transformer_lens", reason='TransformerLens is not installed: pip install ".[lens-test]"')
    import torch
    from lens_bridge import bridge, difference

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
ALL = expert_models.CASES | family_models.CASES | {"gpt_oss": Case("gpt_oss", gpt_oss_models.SETTINGS)}
# One of each family, and others that have hooks or layers of their own.
CASES = sorted(
    {
        *{case.model_type: name for name, case in reversed(ALL.items())}.values(),
        *("granite-biases", "olmo2-grouped", "stablelm-parallel", "phi3-longrope"),
    }
)
# Families that TransformerLens 4.3 has no adapter for, with its error; and one whose adapter has no names of its own.
UNKNOWN = {"ministral", "helium", "cwm"}
NO_ADAPTER = "Could not determine supported architecture"
NAMELESS = {"vaultgemma"}
# What some adapters do not show: their attention is transformers' own.
NOT_SHOWN = {
    "phi3": {"attn.hook_rot_q", "attn.hook_rot_k"},
    "vaultgemma": {"attn.hook_result"},
}
# With experts their names are what goes into all of them and comes out, and scores and outputs of experts have none.
EXPERTS = {"mlp.hook_pre", "mlp.hook_post", "mlp.hook_pre_linear", "mlp.hook_router_scores", "mlp.hook_expert_out"}


class Pair(NamedTuple):
    case: family_models.Case
    ours: llama2cpp.Model
    cache: llama2cpp.ActivationCache
    logits: NDArray[np.float32]
    theirs: Any
    their_cache: Any
    their_logits: Any


@pytest.fixture(scope="module", params=[name for name in CASES if ALL[name].model_type not in UNKNOWN])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case = ALL[request.param]
    folder = tmp_path_factory.mktemp("model")
    model = case.model()
    model.save_pretrained(folder)
    ours = llama2cpp.load(folder, kv_dtype="f32", activation_dtype="f32")
    logits, cache = ours.run_with_cache(TOKENS, names_filter=lambda name: True)
    named = case.model_type not in NAMELESS
    theirs = bridge(model, folder, names=named)
    if named:
        theirs.set_use_attn_result(True)
    with torch.no_grad():
        their_logits, their_cache = theirs.run_with_cache(torch.tensor([TOKENS]))
    return Pair(case, ours, cache, logits, theirs, their_cache, their_logits)


def half_split(array: Any, rotary: int, axis: int = -1) -> Any:
    """Theirs in the order of ours: of the first `rotary` numbers those of even places, then of odd ones."""
    order = [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, array.shape[axis])]
    return array.index_select(axis, torch.tensor(order))


def as_ours(pair: Pair, point: str, theirs: Any) -> Any:
    config = pair.ours.config
    heads = config.n_heads if point.endswith("q_normed") else config.n_kv_heads
    if point.endswith("_normed"):  # they have heads first, or all heads in one row
        whole = theirs.ndim == 3
        theirs = theirs.unflatten(-1, (heads, config.head_dim)) if whole else theirs.transpose(1, 2)
    if re.search(r"hook_(rot_)?[qk](_normed)?$", point) and config.rope_style == "interleaved":
        theirs = half_split(theirs, config.rotary_dim or config.head_dim)
    if "hook_expert" not in point:
        return theirs
    # Of all rows of a batch in one, and the ids in order of their weights. GraniteMoE's router gives these in another
    # order than the bridge takes: its name of ids has scores, and its name of weights those of the chosen ones alone.
    if pair.case.model_type == "granitemoe":
        scores, weights = (
            pair.their_cache[re.sub("hook_.*", f"hook_expert_{what}", point)] for what in ("indices", "weights")
        )
        chosen = scores.topk(weights.shape[-1]).indices
        theirs = chosen if point.endswith("indices") else torch.zeros_like(scores).scatter(-1, chosen, weights)
    return (theirs.sort(-1).values.float() if point.endswith("indices") else theirs)[None]


def test_every_activation(pair: Pair) -> None:
    """All that we have, they have, within rounding, but for what is named above."""
    assert difference(pair.logits, pair.their_logits) < TOLERANCE
    not_shown = NOT_SHOWN.get(pair.case.model_type, set()) | (EXPERTS if pair.ours.config.n_experts else set())
    gaps: dict[str, float] = {}
    for name, array in pair.cache.items():
        point = re.sub(r"^blocks\.\d+\.", "", name)
        if point not in not_shown:
            gaps[name] = difference(array, as_ours(pair, name, pair.their_cache[name]))
    assert len(gaps) >= 15 * pair.ours.config.n_layers
    assert {name: gap for name, gap in gaps.items() if not gap < TOLERANCE} == {}
    for layer in range(pair.ours.config.n_layers if pair.ours.config.n_experts else 0):
        out = pair.their_cache[f"blocks.{layer}.mlp.hook_post"] * pair.ours.config.residual_multiplier
        assert difference(pair.cache["mlp_out", layer], out) < TOLERANCE


def test_every_weight(pair: Pair) -> None:
    """Nothing is folded in either; ours are in half-split order, and their gains of Gemma's kind are without the 1."""
    config = pair.ours.config
    checked = 0
    for name, ours in pair.ours.weights.transformer_lens.items():
        if ".experts." in name or ".mlp.gate." in name:  # they have no such names
            continue
        where, _, leaf = name.rpartition(".")
        part = pair.theirs
        for step in where.split("."):
            part = part[int(step)] if step.isdecimal() else getattr(part, step)
        theirs = getattr(part, leaf)
        if leaf in ("W_Q", "W_K", "b_Q", "b_K") and config.rope_style == "interleaved":
            theirs = half_split(theirs, config.rotary_dim or config.head_dim)
        if leaf == "w" and pair.case.model_type in PLUS_ONE:
            theirs = theirs + 1
        assert difference(ours, theirs) == 0, name
        checked += 1
    assert checked > 7 * config.n_layers


def test_an_edit(pair: Pair) -> None:
    """A head switched off, what is added to the stream doubled, and normed queries: in both by callbacks."""
    edits: dict[str, Any] = {"blocks.0.attn.hook_z": (slice(None), slice(None), 1)}
    if not pair.ours.config.n_experts:
        edits["blocks.1.mlp.hook_post"] = (slice(None), slice(3, None), slice(5, 9))
    if pair.ours.config.norm_places != "before":
        edits["blocks.1.ln1_post.hook_normalized"] = (slice(None), slice(None), slice(3, 11))

    def edit(activation: Any, hook: Any, where: Any) -> Any:
        activation = activation.clone() if isinstance(activation, torch.Tensor) else activation
        activation[where] = 0
        return activation

    hooks = [(name, partial(edit, where=where)) for name, where in edits.items()]
    with torch.no_grad():
        expected = pair.theirs.run_with_hooks(torch.tensor([TOKENS]), fwd_hooks=hooks)
    logits = pair.ours.run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert difference(logits, expected) < TOLERANCE
    assert np.abs(logits - pair.logits).max() > 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if ALL[name].model_type in UNKNOWN])
def test_families_without_an_adapter(name: str, tmp_path: Any) -> None:
    """When this fails, TransformerLens has learned the family."""
    model = ALL[name].model()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=NO_ADAPTER):
        bridge(model, tmp_path)
