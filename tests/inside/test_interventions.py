"""Interventions: the bits of the Python hooks that say the same, and addresses as NumPy has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from hook_helpers import Array, everything, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from on_metal import examples

import llama2cpp
from llama2cpp import interventions
from llama2cpp.inside import places
from llama2cpp.inside.hooks import HookPoint

VECTOR = np.linspace(-1, 2, 36).astype(np.float32)
UNIT = VECTOR.astype(np.float64) / np.sqrt(np.cumsum(VECTOR.astype(np.float64) ** 2)[-1])


def set_rows(a: Array, rows: Any, value: Any) -> None:
    a[rows] = value


def project(a: Array, hook: HookPoint) -> Array:
    along = np.cumsum(a * UNIT, axis=-1)[..., -1:]
    return np.asarray(a - along * UNIT, dtype=np.float32)


def mask_two_keys(a: Array, hook: HookPoint) -> None:
    rows = a[0, [1, 4]]  # [heads, T, keys], a copy
    rows[..., [k for k in (0, 2) if k < a.shape[-1]]] = 0
    sums = np.cumsum(rows.astype(np.float64), axis=-1)[..., -1:]
    a[0, [1, 4]] = np.where(sums == 0, rows, rows / np.where(sums == 0, 1, sums))


def at_positions(*positions: int) -> Callable[[Array, HookPoint], list[int]]:
    def rows(a: Array, hook: HookPoint) -> list[int]:
        count = a.shape[1]
        found = [count + p if p < 0 else p - (hook.position or 0) for p in positions]
        return [t for t in found if 0 <= t < count]

    return rows


PAIRS: dict[str, tuple[Any, Any]] = {
    "zero": (interventions.zero("mlp_out", layer=1), ("mlp_out1", lambda a, h: a.fill(0))),
    "zero heads": (
        interventions.zero("z", layer=[0, 2], head=[1, -1]),
        (["z0", "z2"], lambda a, h: set_rows(a, np.s_[:, :, [1, 5]], 0)),
    ),
    "zero a neuron at the last position": (
        interventions.zero("post", position=-1, neuron=7),
        ("post", lambda a, h: set_rows(a, np.s_[:, -1, 7], 0)),
    ),
    "set": (interventions.set("q1", 0.1, head=2), ("q1", lambda a, h: set_rows(a, np.s_[:, :, 2], 0.1))),
    "set with a value for each position": (
        interventions.set("resid_mid", np.stack([VECTOR, -VECTOR]), layer=1, position=[3, 0]),
        ("resid_mid1", lambda a, h: set_rows(a, np.s_[0, [3, 0]], [VECTOR, -VECTOR]) if not h.position else None),
    ),
    "scale": (interventions.scale("attn_out", 0.3), ("attn_out", lambda a, h: a * np.float32(0.3))),
    "scale by a vector": (interventions.scale("resid_pre2", VECTOR), ("resid_pre2", lambda a, h: a * VECTOR)),
    "scale scores": (
        interventions.scale("attn_scores", 1.5, layer=0, head=0),
        ("attn_scores0", lambda a, h: set_rows(a, np.s_[:, 0], a[:, 0] * np.float32(1.5))),
    ),
    "add": (interventions.add("resid_post0", VECTOR), ("resid_post0", lambda a, h: a + VECTOR)),
    "add at positions": (
        interventions.add("resid_post0", 0.7, position=[2, -1, 100]),
        (
            "resid_post0",
            lambda a, h: set_rows(
                a, np.s_[0, at_positions(2, -1)(a, h)], a[0, at_positions(2, -1)(a, h)] + np.float32(0.7)
            ),
        ),
    ),
    "mean": (
        interventions.mean("v", np.full((2, 6), 0.25), layer=1),
        ("v1", lambda a, h: set_rows(a, np.s_[:], np.float32(0.25))),
    ),
    "project_out": (interventions.project_out("resid_mid", VECTOR), ("resid_mid", project)),
    "mask_pattern": (interventions.mask_pattern([0, 2], head=[1, 4]), ("pattern", mask_two_keys)),
    "results": (interventions.zero("result1", head=3), ("result1", lambda a, h: set_rows(a, np.s_[:, :, 3], 0))),
    "scale of a norm": (interventions.scale("ln_final.hook_scale", 2), ("ln_final.hook_scale", lambda a, h: a * 2)),
}


def run_all(model: llama2cpp.Model, hooks: list[Any]) -> list[Array]:
    with model.hooks(hooks):
        session = model.session()
        logits, cache = model.run_with_cache(tiny.tokens(model.config, 6), everything)
        return [logits, *cache.values(), session.prefill(tiny.tokens(model.config, 5)), session.step(3)]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_compiled_and_python_forms_give_equal_bits(model: llama2cpp.Model, pair: tuple[Any, Any]) -> None:
    intervention, hook = pair
    compiled = run_all(model, [intervention])
    assert all(map(same_bits, compiled, run_all(model, [hook])))
    assert not all(map(same_bits, compiled, run_all(model, [])))


def test_all_of_them_mixed(model: llama2cpp.Model) -> None:
    compiled = [intervention for intervention, _ in PAIRS.values()]
    mixed = [pair[i % 2] for i, pair in enumerate(PAIRS.values())]
    assert all(map(same_bits, run_all(model, compiled), run_all(model, mixed)))


def test_patch_from(model: llama2cpp.Model) -> None:
    here, there = tiny.tokens(model.config, 7, 1), tiny.tokens(model.config, 7, 2)
    other_logits, cache = model.run_with_cache(there, everything)
    plain, own = model.run_with_cache(here, everything)
    for name in places.points_of(tiny.config(n_layers=3)):

        def by_hand(activation: Array, hook: HookPoint, name: str = name) -> Array:
            return cache[name]

        patched = model.run_with_hooks(here, [interventions.patch_from(cache, name)])
        assert same_bits(patched, model.run_with_hooks(here, [(name, by_hand)])), name
        assert same_bits(plain, model.run_with_hooks(here, [interventions.patch_from(own, name)])), name
    assert same_bits(model.run_with_hooks(here, [interventions.patch_from(cache, "resid_pre0")]), other_logits)

    _, few = model.run_with_cache(there, "z1", positions=[5, 2])
    some = interventions.patch_from(few, "z1", position=2, head=[4, 0], neuron=[1, 3])

    def some_by_hand(activation: Array, hook: HookPoint) -> None:
        for head in (4, 0):
            activation[0, 2, head, [1, 3]] = cache["z", 1][0, 2, head, [1, 3]]

    assert same_bits(model.run_with_hooks(here, [some]), model.run_with_hooks(here, [("z1", some_by_hand)]))
    with pytest.raises(ValueError, match="the cache has no position 3"):
        model.hooks([interventions.patch_from(few, "z1", position=[3])])
    with pytest.raises(KeyError):
        model.hooks([interventions.patch_from(few, "q1")])


def test_patches_in_decode_and_beyond_the_cache(model: llama2cpp.Model) -> None:
    """Positions are absolute: the patched run step by step is the patched run at once; later tokens are free."""
    here = tiny.tokens(model.config, 9, 1)
    _, cache = model.run_with_cache(tiny.tokens(model.config, 6, 2), everything)
    for name in ("resid_mid1", "pattern1", "v0", "z2"):
        patch = interventions.patch_from(cache, name, position=[1, 4, 5])
        with model.hooks([patch]):
            whole = model.run_with_hooks(here)
            session = model.session()
            steps = np.stack([session.step(token) for token in here])
        assert same_bits(whole[0], steps)


def test_mean_of_a_cache(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache([tiny.tokens(model.config, 6, seed) for seed in (1, 2, 3)], everything)
    mean = np.asarray(cache["z", 1].astype(np.float64).mean(axis=(0, 1)), dtype=np.float32)

    def by_hand(activation: Array, hook: HookPoint) -> None:
        activation[:, :, [0, 3]] = mean[[0, 3]]

    ablated = model.run_with_hooks([1, 2, 3], [interventions.mean("z1", cache, head=[0, 3])])
    assert same_bits(ablated, model.run_with_hooks([1, 2, 3], [("z1", by_hand)]))
    with pytest.raises(ValueError, match="patterns of different tokens have no mean"):
        model.hooks([interventions.mean("pattern1", cache)])


def test_masking_every_key_leaves_zeros(model: llama2cpp.Model) -> None:
    with model.hooks([interventions.mask_pattern([0, 1, 2], layer=0, position=[0, 2])]):
        logits, cache = model.run_with_cache([1, 2, 3, 4], "pattern0")
    assert np.isfinite(logits).all()
    assert (cache["pattern", 0][0, :, [0, 2]] == 0).all()
    np.testing.assert_allclose(cache["pattern", 0][0, :, [1, 3]].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interventions.zero("mlp_out", head=0), "blocks.0.hook_mlp_out has no heads"),
        (lambda: interventions.zero("z", head=6), "head is 6, expected -6 to 5"),
        (lambda: interventions.zero("z", layer=3), "layer is 3, expected -3 to 2"),
        (lambda: interventions.zero("z0", layer=1), "names no activation"),
        (lambda: interventions.zero("post", neuron=50), "neuron is 50"),
        (lambda: interventions.set("z", np.zeros(5)), r"the value has shape \(5,\)"),
        (lambda: interventions.set("z", np.zeros((3, 6)), head=[1, 2]), r"the value has shape \(3, 6\)"),
        (lambda: interventions.set("pattern", np.zeros(5)), r"the value has shape \(5,\)"),
        (lambda: interventions.project_out("mlp_out", np.zeros(36)), "the direction is zero"),
        (lambda: interventions.project_out("mlp_out", 1.0), "the direction is a number"),
        (lambda: interventions.mask_pattern(-1), "a key is -1"),
        (lambda: interventions.mask_pattern(None), "key is None"),
    ],
)
def test_what_cannot_be_addressed(model: llama2cpp.Model, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.hooks([make()])


def optional(values: st.SearchStrategy[int], most: int = 3) -> st.SearchStrategy[list[int] | None]:
    return st.none() | st.lists(values, min_size=1, max_size=most, unique=True)


@settings(max_examples=examples(60))
@given(
    name=st.sampled_from(["q1", "z0", "v2", "resid_mid1", "post1", "ln2.hook_scale", "result2", "k0"]),
    change=st.sampled_from(["set", "scale", "add"]),
    head=optional(st.integers(0, 1)),
    position=optional(st.integers(-4, 9)),
    neuron=optional(st.integers(0, 5)),
    value=st.floats(-4, 4, width=32),
)
def test_addresses_are_numpys(
    name: str,
    change: str,
    head: list[int] | None,
    position: list[int] | None,
    neuron: list[int] | None,
    value: float,
) -> None:
    """Any address gives what the same indices give in NumPy."""
    model = tiny_model()
    full = "blocks.1.ln2.hook_scale" if name == "ln2.hook_scale" else name
    (place,) = places.find_places(full, tiny.config(n_layers=3))
    by_head = any(mark in name for mark in ("q", "z", "v2", "result", "k0"))
    head = head if by_head else None
    neuron = [0] if neuron is not None and "scale" in name else neuron
    number = np.float32(value)

    def by_hand(a: Array, hook: HookPoint) -> None:
        rows = range(a.shape[1]) if position is None else dict.fromkeys(at_positions(*position)(a, hook))
        if position is not None and change != "set":
            rows = at_positions(*position)(a, hook)  # type: ignore[assignment]  # named twice, changed twice
        for t in rows:
            for part in [a[0, t]] if not by_head else [a[0, t, h] for h in (head or range(a.shape[2]))]:
                which = slice(None) if neuron is None else neuron
                part[which] = {"set": number, "scale": part[which] * number, "add": part[which] + number}[change]

    function = {"set": interventions.set, "scale": interventions.scale, "add": interventions.add}[change]
    intervention = function(full, value, head=head, position=position, neuron=neuron)
    ids = tiny.tokens(model.config, 6)
    assert place is not None
    with model.hooks([intervention]):
        expected = model.run_with_cache(ids, full)
    with model.hooks([(full, by_hand)]):
        got = model.run_with_cache(ids, full)
    assert same_bits(got[0], expected[0])
    assert all(map(same_bits, got[1].values(), expected[1].values()))


def tiny_model(made: list[llama2cpp.Model] = []) -> llama2cpp.Model:  # noqa: B006
    if not made:
        made.append(tiny.model(tiny.config(n_layers=3)))
    return made[0]


def test_patches_that_count_from_the_end(model: llama2cpp.Model) -> None:
    """From the end of the call's tokens and of the cache's, which may be of other lengths."""
    here, there = tiny.tokens(model.config, 9, 1), tiny.tokens(model.config, 6, 2)
    _, cache = model.run_with_cache(there, everything)
    _, few = model.run_with_cache(there, everything, positions=[-1, 2, -5])
    for name in ("resid_mid1", "z2", "mlp_out0"):
        full = places.find_places(name, model.config)[0]
        own = cache[places.name_of(full, model.config)]

        def by_hand(activation: Array, hook: HookPoint, own: Array = own) -> None:
            activation[0, [-1, -5]] = own[0, [-1, -5]]

        wanted = model.run_with_hooks(here, [(name, by_hand)])
        for source in (cache, few):
            patch = interventions.patch_from(source, name, position=[-1, -5])
            assert same_bits(model.run_with_hooks(here, [patch]), wanted)
        one = interventions.patch_from(cache, name, position=-5)
        assert same_bits(
            model.run_with_hooks(there[::-1], [one]),
            model.run_with_hooks(there[::-1], [interventions.patch_from(cache, name, position=1)]),
        )
    with pytest.raises(ValueError, match="the cache has no position -7"):
        model.hooks([interventions.patch_from(cache, "z1", position=-7)])
    with pytest.raises(ValueError, match="the cache has no position -2"):
        model.hooks([interventions.patch_from(few, "z1", position=[-1, -2])])
