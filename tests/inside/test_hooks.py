"""Hooks: what they are shown, what they may and may not do to a run, and what a failing one leaves."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hook_helpers import PROMPT, Array, PlannedError, everything, ids_of, same_bits, stop

import llama2cpp
from llama2cpp import interventions
from llama2cpp.inside import places
from llama2cpp.inside.hooks import HookPoint

# --- hooks that look


def test_identity_leaves_the_bits_alone(any_stories: llama2cpp.Model) -> None:
    """At every point: in place, as a returned copy, in another layout and type, and compiled."""
    ids = ids_of(any_stories)
    text = any_stories.generate(PROMPT, max_tokens=12, temperature=0)
    session = any_stories.session()
    expected = [session.prefill(ids, all_logits=True), session.step(3), session.step(4)]
    identities: list[Any] = [
        lambda a, hook: None,
        lambda a, hook: a,
        lambda a, hook: np.asfortranarray(a.astype(np.float64)),
        lambda a, hook: np.copyto(a, a.copy()),
        lambda a, hook: torch.from_numpy(a),
    ]
    hooks: list[Any] = [(everything, identity) for identity in identities]
    hooks.append(interventions.scale(everything, 1.0))
    for hook in hooks:
        with any_stories.hooks([hook]):
            session = any_stories.session()
            got = [session.prefill(ids, all_logits=True), session.step(3), session.step(4)]
            assert all(map(same_bits, got, expected))
            assert any_stories.generate(PROMPT, max_tokens=12, temperature=0) == text
            assert "".join(any_stories.stream(PROMPT, max_tokens=12, temperature=0)) == text


def test_identity_at_each_point_alone(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 9)

    def run() -> list[Array]:
        session = model.session()
        return [session.prefill(ids), session.step(3), session.kv.keys(2).copy(), session.kv.values(2).copy()]

    expected = run()
    for name in places.points_of(tiny.config(n_layers=3)):
        with model.hooks([(name, lambda a, hook: a * 1)]):
            assert all(map(same_bits, run(), expected)), name


def test_what_a_hook_is_told(model: llama2cpp.Model) -> None:
    calls: list[tuple[str, int | None, int | None, tuple[int, ...]]] = []
    session = model.session()

    def look(activation: Array, hook: HookPoint) -> None:
        assert hook.session is session
        assert session.position == position  # what has been finished
        assert activation.dtype == np.float32
        assert activation.flags.writeable
        calls.append((hook.name, hook.layer, hook.position, activation.shape))

    c = model.config
    names = ["hook_embed", "q1", "k1", "pattern1", "result1", "pre1", "ln_final.hook_scale"]
    position = 0
    for ids in ([1, 2, 3, 4], [5]):
        calls.clear()
        with model.hooks([(names, look)]):
            session.prefill(ids)
        count = len(ids)
        assert calls == [
            ("hook_embed", None, position, (1, count, c.dim)),
            ("blocks.1.attn.hook_q", 1, position, (1, count, c.n_heads, c.head_dim)),
            ("blocks.1.attn.hook_k", 1, position, (1, count, c.n_kv_heads, c.head_dim)),
            ("blocks.1.attn.hook_pattern", 1, position, (1, c.n_heads, count, position + count)),
            ("blocks.1.attn.hook_result", 1, position, (1, count, c.n_heads, c.dim)),
            ("blocks.1.mlp.hook_pre", 1, position, (1, count, c.hidden_dim)),
            ("ln_final.hook_scale", None, position + count - 1, (1, 1, 1)),  # only the last token's logits are made
        ]
        position += count


def test_masked_scores_are_minus_infinity(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache([1, 2, 3, 4], "attn_scores")
    above = np.triu(np.ones((4, 4), dtype=bool), 1)
    for array in cache.values():
        assert (array[..., above] == -np.inf).all()
        assert np.isfinite(array[..., ~above]).all()


def test_rotary_styles_show_the_same(model: llama2cpp.Model) -> None:
    """The same matrices in file order and in half-split order give equal caches."""
    c = model.config
    weights = tiny.arrays(c)
    order = np.arange(c.head_dim)
    other = "half_split" if c.rope_style == "interleaved" else "interleaved"
    if other == "half_split":
        order = np.concatenate([order[0::2], order[1::2]])
    else:
        order = np.stack(np.split(order, 2), axis=-1).ravel()
    for name in list(weights):
        if name.endswith(("wq.weight", "wk.weight")):
            heads = weights[name].reshape(-1, c.head_dim, c.dim)
            weights[name] = np.ascontiguousarray(heads[:, order].reshape(-1, c.dim))
    turned = llama2cpp.from_arrays(llama2cpp.Config(**(c.to_dict() | {"rope_style": other})), weights)
    ids = tiny.tokens(c, 8)
    ours, theirs = model.run_with_cache(ids, everything)[1], turned.run_with_cache(ids, everything)[1]
    for name, array in ours.items():
        # Later layers differ by the order of the sums of the scores.
        if name.startswith("blocks.0.") and name.endswith(("hook_q", "hook_k")):
            assert same_bits(array, theirs[name]), name
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-5)


def test_several_sessions_in_a_pass(model: llama2cpp.Model) -> None:
    """Hooks fire once per session; one session's hooks leave the others alone."""
    sessions = [model.session() for _ in range(3)]
    sessions[1].prefill([5, 6])
    calls: list[tuple[int, int | None, int]] = []

    def look(activation: Array, hook: HookPoint) -> None:
        assert hook.session is not None
        calls.append((sessions.index(hook.session), hook.position, activation.shape[1]))

    def zero(activation: Array, hook: HookPoint) -> None:
        assert hook.session is sessions[2]
        activation[:] = 0

    rows = [(sessions[0], [1, 2, 3]), (sessions[1], [4]), (sessions[2], [1, 2, 3])]
    plain = model.forward([(session.fork(), ids) for session, ids in rows])
    with model.hooks([("z1", look)]), sessions[2].hooks([("mlp_out1", zero)]):
        got = model.forward(rows)
    assert calls == [(0, 0, 3), (1, 2, 1), (2, 0, 3)]
    assert same_bits(got[0], plain[0])
    assert same_bits(got[1], plain[1])
    alone = model.run_with_hooks([1, 2, 3], [interventions.zero("mlp_out1")])
    assert same_bits(got[2], alone[0, -1])


# --- hooks that change


def test_returned_and_in_place_edits_are_equal(model: llama2cpp.Model) -> None:
    ids = tiny.tokens(model.config, 7)
    plain = model.run_with_hooks(ids)

    def in_place(activation: Array, hook: HookPoint) -> None:
        activation[..., 0] = 0.5

    def returned(activation: Array, hook: HookPoint) -> Array:
        other = activation.copy()
        other[..., 0] = 0.5
        activation[:] = np.nan  # what is returned counts
        return np.asarray(other)

    for name in places.points_of(tiny.config(n_layers=3)):
        edited = model.run_with_hooks(ids, [(name, in_place)])
        assert same_bits(edited, model.run_with_hooks(ids, [(name, returned)])), name
        assert not same_bits(edited, plain), name


@pytest.mark.parametrize("name", ["hook_embed", "blocks.1.attn.hook_q", "blocks.0.attn.hook_pattern"])
def test_wrong_results(model: llama2cpp.Model, name: str) -> None:
    session = model.session()
    session.prefill([1, 2])
    before = (session.tokens, session.logits, session.step(3))
    session.rewind(2)
    cases: list[tuple[Callable[[Array, HookPoint], Any], str]] = [
        (lambda a, hook: a[0], r"returned an array of shape \(.*\), expected None or an array of shape \(1, "),
        (lambda a, hook: a[:, :0], r"returned an array of shape .*, expected None or an array of shape "),
        (lambda a, hook: 3.0, r"returned an array of shape \(\), expected"),
        (lambda a, hook: "text", "expected None or an array of shape"),
        (lambda a, hook: object(), "expected None or an array of shape"),
        (lambda a, hook: a.astype(complex), "returned an array of dtype complex128"),
    ]
    for hook, message in cases:
        with session.hooks([(name, hook)]), pytest.raises(ValueError, match=message) as error:
            session.step(3)
        assert name in str(error.value)
        assert session.tokens == before[0]
    assert same_bits(session.step(3), before[2])


def test_misuse_of_the_view(model: llama2cpp.Model) -> None:
    """Whatever is done to the array object, the memory stays what it is."""
    plain = model.run_with_hooks([1, 2, 3])

    def resize(activation: Array, hook: HookPoint) -> None:
        with pytest.raises(ValueError, match="does not own its data"):
            activation.resize((1000, 1000), refcheck=False)
        activation.setflags(write=False)

    assert same_bits(model.run_with_hooks([1, 2, 3], [(everything, resize)]), plain)


def test_kept_arrays_never_change(stories: llama2cpp.Model) -> None:
    kept: list[tuple[Array, Array]] = []

    def keep(activation: Array, hook: HookPoint) -> None:
        kept.append((activation, activation.copy()))

    def spoil(activation: Array, hook: HookPoint) -> None:
        activation *= 0.5

    with stories.hooks([(everything, keep), (everything, spoil)]):
        stories.generate(PROMPT, max_tokens=5, temperature=0)
    stories.generate(PROMPT, max_tokens=50)
    assert len(kept) > 500
    assert all(same_bits(array, copy) for array, copy in kept)


def test_hooks_act_in_order(model: llama2cpp.Model) -> None:
    seen: list[tuple[str, float]] = []

    def note(label: str) -> Callable[[Array, HookPoint], None]:
        return lambda a, hook: seen.append((label, float(a[0, 0, 0])))

    two, three = interventions.set("resid_mid1", 2.0), interventions.scale("resid_mid1", 3.0)
    with (
        model.hooks([("resid_mid1", note("outer")), two, ("resid_mid1", note("set")), three]),
        model.hooks([("resid_mid1", note("inner")), interventions.add("resid_mid1", 1.0)]),
    ):
        _, cache = model.run_with_cache([1, 2], "resid_mid1")
    assert seen[1:] == [("set", 2.0), ("inner", 6.0)]
    assert seen[0][0] == "outer"
    assert (cache["resid_mid", 1] == 7.0).all()  # what is kept is what the model went on with


def test_results_of_heads(any_stories: llama2cpp.Model) -> None:
    """They sum to attn_out; zeroing one takes away what it adds; other tokens keep their bits."""
    config = any_stories.config
    _, cache = any_stories.run_with_cache(PROMPT, everything)
    for layer in range(config.n_layers):
        result, attn_out = cache["result", layer], cache["attn_out", layer]
        np.testing.assert_allclose(result.sum(2), attn_out, atol=3e-6 * np.abs(result).max() * config.n_heads)
        if any_stories.activation_dtype == "f32":
            wo = any_stories.weights[f"layers.{layer}.attention.wo.weight"]
            by_head = wo.reshape(config.dim, config.n_heads, config.head_dim).astype(np.float64)
            expected = np.einsum("bthd,ohd->btho", cache["z", layer], by_head)
            np.testing.assert_allclose(result, expected, atol=1e-5)

    def zero(activation: Array, hook: HookPoint) -> None:
        activation[:, 2, 5] = 0

    with any_stories.hooks([("result1", zero)]):
        _, edited = any_stories.run_with_cache(PROMPT, ["attn_out1", "result1"])
    rows = [0, 1, 3, 4]
    assert same_bits(edited["attn_out", 1][:, rows], cache["attn_out", 1][:, rows])
    others = np.delete(cache["result", 1][0, 2], 5, axis=0)
    np.testing.assert_allclose(edited["attn_out", 1][0, 2], others.sum(0), atol=1e-5)


@pytest.mark.cpu_bits("int8 activations")
def test_results_on_a_quantized_model(smollm2_path: Path) -> None:
    """In the arithmetic of the product itself, rounding to int8 included, so the sum is as close as floats can be."""
    for activations in ("int8", "f32"):
        model = llama2cpp.load(smollm2_path, activation_dtype=activations)
        ids = [1, 4093, 253, 655, 28, 665]
        logits, cache = model.run_with_cache(ids, ["result3", "attn_out3", "result29", "attn_out29"])
        assert same_bits(logits[0], model.session().prefill(ids, all_logits=True))
        for layer in (3, 29):
            result, attn_out = cache["result", layer], cache["attn_out", layer]
            np.testing.assert_allclose(result.sum(2), attn_out, atol=2e-6 * np.abs(result).max() * 9)


# --- failures


@pytest.mark.parametrize("kind", [PlannedError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_the_session_as_it_was(model: llama2cpp.Model, kind: type[BaseException]) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    before = session.logits
    expected = session.fork().step(4)
    assert before is not None

    def fail(activation: Array, hook: HookPoint) -> None:
        activation[:] = np.nan
        raise kind("planned")

    for name in places.points_of(tiny.config(n_layers=3)):
        with session.hooks([(name, fail)]), pytest.raises(kind, match="planned"):
            session.prefill([4, 5])
        assert session.tokens == [1, 2, 3]
        assert session.logits is not None
        assert same_bits(session.logits, before)
    assert same_bits(session.step(4), expected)


def test_a_session_cannot_be_used_in_its_own_hook(model: llama2cpp.Model) -> None:
    session = model.session()
    uses: list[Callable[[], Any]] = [
        lambda: session.step(1),
        lambda: session.rewind(0),
        session.fork,
        lambda: model.forward([(session, [1])]),
    ]

    def fails(activation: Array, hook: HookPoint) -> None:
        uses.pop()()

    while uses:
        with session.hooks([("z1", fails)]), pytest.raises(RuntimeError, match="own"):
            session.step(1)
    assert session.position == 0


def test_another_session_can(model: llama2cpp.Model) -> None:
    expected = model.session().step(7)
    inner: list[Array] = []
    depth = 0

    def run_another(activation: Array, hook: HookPoint) -> None:
        nonlocal depth
        depth += 1
        if depth < 3:  # hooks are on in here too
            inner.append(model.session().step(7))
        depth -= 1

    with model.hooks([("attn_scores1", run_another)]):
        assert same_bits(model.session().step(7), expected)
    assert len(inner) == 2
    assert all(same_bits(logits, expected) for logits in inner)


def test_what_is_no_hook(model: llama2cpp.Model) -> None:
    for wrong in [3, "z", ("z",), ("z", 3), ("z", None), (1, 2, 3)]:
        with pytest.raises(ValueError, match="hook"):
            model.hooks([wrong])  # type: ignore[list-item]


# --- memory


def test_nothing_is_kept_after_a_call() -> None:
    class Big:
        pass

    model = tiny.model(tiny.config())
    references: list[weakref.ref[Any]] = []

    def run() -> Iterator[None]:
        for name in ("z", "pattern"):
            big = Big()
            references.append(weakref.ref(big))

            def hook(activation: Array, hook: HookPoint, big: Big = big) -> Array:
                references.append(weakref.ref(activation))
                return activation * 1

            with model.hooks([(name, hook)]):
                session = model.session()
                references.append(weakref.ref(session))
                session.prefill([1, 2])
                with contextlib.suppress(PlannedError), model.hooks([("mlp_out1", stop)]):
                    session.step(3)
            yield

    for _ in run():
        pass
    gc.collect()
    assert len(references) > 8
    assert [reference() for reference in references if reference() is not None] == []
