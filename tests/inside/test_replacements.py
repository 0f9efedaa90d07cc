"""Sparse autoencoders and transcoders in a run: against PyTorch's own dictionary in double, and hooks by hand."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import expert_models
import numpy as np
import pytest
import tiny
import torch
from on_metal import agree

import llama2cpp
from llama2cpp import analysis, interventions

IDS = [5, 9, 2, 30, 7, 11]
TEXTS = [IDS, [1, 2, 3], [4, 5, 6], [40, 41]]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=3))


def arrays(d_in: int, n: int, d_out: int, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    w_enc, w_dec = rng.normal(size=(d_in, n)) / d_in**0.5, rng.normal(size=(n, d_out)) / n**0.5
    return w_enc, rng.normal(size=n) / 4, w_dec, rng.normal(size=d_out) / 4


def in_torch(x: Any, given: tuple[Any, Any, Any, Any], kind: str, subtract: bool, k: int, threshold: Any) -> Any:
    w_enc, b_enc, w_dec, b_dec = map(torch.from_numpy, given)
    wide = torch.from_numpy(np.asarray(x)).double()
    before = (wide - b_dec if subtract else wide) @ w_enc + b_enc
    if kind == "relu":
        f = before.relu()
    elif kind == "topk":
        best = before.topk(k, dim=-1)
        f = torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())
    else:
        f = before.relu() * (before > torch.from_numpy(threshold))
    return f, f @ w_dec + b_dec


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out", "blocks.0.attn.hook_z"])
def test_an_autoencoder_is_what_torch_computes(model: llama2cpp.Model, name: str, kind: str, subtract: bool) -> None:
    _, cache = model.run_with_cache(IDS)
    x = cache[name].reshape(1, len(IDS), -1)
    given = arrays(x.shape[-1], 90, x.shape[-1])
    threshold = np.random.default_rng(1).uniform(0, 0.5, size=90)
    options: dict[str, dict[str, Any]] = {"relu": {}, "topk": {"k": 7}, "jumprelu": {"threshold": threshold}}
    coder = interventions.replace_with(name, *given, activation=kind, subtract_b_dec=subtract, **options[kind])
    features, expected = in_torch(x, given, kind, subtract, 7, threshold)
    np.testing.assert_allclose(coder.encode(x), features, atol=2e-5)
    np.testing.assert_allclose(coder.decode(coder.encode(x)), expected, atol=2e-5)
    assert ((coder.encode(x) > 0) == (features > 0).numpy()).all()
    if kind == "topk":
        assert (np.count_nonzero(coder.encode(x), axis=-1) <= 7).all()
    with model.hooks([coder]):
        logits, found = model.run_with_cache(IDS)
    np.testing.assert_allclose(found[name].reshape(x.shape), expected, atol=2e-5)
    by_hand = coder.decode(coder.encode(x)).reshape(cache[name].shape)
    assert agree(model.run_with_hooks(IDS, [(name, lambda a, hook: by_hand)]), logits)


@pytest.mark.parametrize("reads", ["mlp_in", "mlp.hook_in", "ln2.hook_normalized", "resid_mid", "attn_out"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_reads_what_it_says(model: llama2cpp.Model, reads: str, skip: bool) -> None:
    _, cache = model.run_with_cache(IDS)
    dim, block = model.config.dim, "blocks.1"
    given = arrays(dim, 64, dim)
    w_skip = np.random.default_rng(2).normal(size=(dim, dim)) if skip else None
    coder = interventions.replace_with("mlp_out", *given, layer=-2, reads=reads, W_skip=w_skip)
    normed = cache[f"{block}.ln2.hook_normalized"]
    read = {
        "mlp_in": cache["resid_mid", 1],
        "mlp.hook_in": normed * model.weights[f"{block}.ln2.w"],
        "ln2.hook_normalized": normed,
        "resid_mid": cache["resid_mid", 1],
        "attn_out": cache["attn_out", 1],
    }[reads]
    _, expected = in_torch(read, given, "relu", False, 0, None)
    if w_skip is not None:
        expected = expected + torch.from_numpy(read).double() @ torch.from_numpy(w_skip)
    with model.hooks([coder]):
        logits, found = model.run_with_cache(IDS, ["mlp_out", "resid_post"])
        everything, whole = model.run_with_cache(IDS)  # of which the MLP is computed, for its neurons
        alone = [model.run_with_cache(ids, "mlp_out")[0] for ids in TEXTS]
        together, _ = model.run_with_cache(TEXTS, "mlp_out")
        session = model.session()
        stepped = [session.step(id) for id in IDS]
    np.testing.assert_allclose(found["mlp_out", 1], expected, atol=3e-5)
    assert agree(everything, logits)
    assert agree(whole["mlp_out", 1], found["mlp_out", 1])
    assert agree(whole["post", 1], cache["post", 1])
    assert all(agree(a, b) for a, b in zip(alone, together, strict=True))
    # BLAS may sum a row of one token in another order.
    np.testing.assert_allclose(np.stack(stepped), logits[0], atol=1e-4)


def poisoned(arrays_of: Any, layer: int) -> Any:
    """Weights whose MLP in one layer gives NaN wherever it is computed."""
    bad = dict(arrays_of)
    for name in bad:
        if name.startswith(f"layers.{layer}.feed_forward."):
            bad[name] = np.full_like(bad[name], np.nan)
    return bad


REPLACED: dict[str, dict[str, Any]] = {
    "gated": {},
    "no gate, LayerNorm": {"gated": False, "activation": "gelu_tanh", "norm": "layer"},
    "parallel": {"parallel": True},
    "norms on both sides": {"norm_places": "both", "residual_multiplier": 0.7},
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_mlp_is_not_computed(name: str) -> None:
    """Its weights may be anything, in runs, batches, sessions, generation and the engine."""
    config = tiny.config(n_layers=3, **REPLACED[name])
    arrays_of = tiny.arrays(config)
    good = llama2cpp.from_arrays(config, arrays_of)
    bad = llama2cpp.from_arrays(config, poisoned(arrays_of, 1))
    assert np.isnan(bad(IDS)).all()
    dim = config.dim
    coder = interventions.replace_with("mlp_out1", *arrays(dim, 64, dim), reads="attn_out")
    zero = interventions.zero("mlp_out1")
    constant = interventions.set("mlp_out", np.linspace(-1, 1, dim), layer=1)
    for hook in (coder, zero, constant):
        assert (bad.run_with_hooks(IDS, [hook]) == good.run_with_hooks(IDS, [hook])).all()
        results = []
        for model in (good, bad):
            with model.hooks([hook]):
                session = model.session()
                steps = [session.step(id) for id in IDS]
                logits, caches = model.run_with_cache(TEXTS, "mlp_out")
                kept: Any = caches  # one for each text
                results.append([*steps, *logits, *(cache["mlp_out", 1] for cache in kept)])
        assert all((a == b).all() for a, b in zip(*results, strict=True))


def test_a_replaced_layer_of_experts_is_not_computed(tmp_path: Any) -> None:
    """Neither the router nor its experts."""
    expert_models.CASES["qwen3_moe"].save(tmp_path)
    with llama2cpp.load(tmp_path) as good:
        edited = {
            name: np.full(good.weights[name].shape, np.nan, dtype=np.float32)
            for name in good.weights.transformer_lens
            if name.startswith("blocks.1.mlp.")
        }
        bad = good.with_weights(edited)
        assert np.isnan(bad(IDS)).any()
        zero = interventions.zero("mlp_out1")
        assert (bad.run_with_hooks(IDS, [zero]) == good.run_with_hooks(IDS, [zero])).all()


def test_an_mlp_is_computed_where_somebody_looks(model: llama2cpp.Model) -> None:
    """A function inside, or one that is shown the output before the dictionary is, sees what the MLP gives."""
    dim = model.config.dim
    coder = interventions.replace_with("mlp_out1", *arrays(dim, 64, dim), reads="mlp.hook_in")
    seen: list[Any] = []
    real: Any = coder._made

    def made(read: Any, written: Any, point: Any) -> Any:
        seen.append(written.copy())
        return real(read, written, point)

    coder._made = made  # type: ignore[method-assign]
    _, cache = model.run_with_cache(IDS, "mlp_out1")
    own = cache["mlp_out", 1]
    logits = model.run_with_hooks(IDS, [coder])
    assert (seen.pop() == 0).all()
    for beside in (("post1", lambda x, hook: None), ("mlp_out1", lambda x, hook: None)):
        assert (model.run_with_hooks(IDS, [beside, coder]) == logits).all()
        assert (seen.pop() == own).all()
    assert (model.run_with_hooks(IDS, [coder, ("mlp_out1", lambda x, hook: None)]) == logits).all()
    assert (seen.pop() == 0).all()
    part = interventions.set("mlp_out1", 0.0, position=2)  # of which something is left
    by_hand = ("mlp_out1", lambda x, hook: x * (np.arange(x.shape[1]) != 2)[:, None])
    assert (model.run_with_hooks(IDS, [part]) == model.run_with_hooks(IDS, [by_hand])).all()


def test_some_sequences_of_a_pass_are_replaced() -> None:
    """The others have the bits that they have alone, and are shown what is inside theirs; at either end or between."""
    config = tiny.config(n_layers=2, seq_len=64)
    arrays_of = tiny.arrays(config)
    model = llama2cpp.from_arrays(config, arrays_of)
    dim = config.dim
    coder = interventions.replace_with("mlp_out1", *arrays(dim, 64, dim), reads="mlp.hook_in")
    texts = [IDS, [1, 2, 3], [4, 5, 6, 7], [40, 41]]

    def alone(ids: list[int], replaced: bool) -> Any:
        session = model.session()
        with session.hooks([coder] if replaced else []):
            return session.prefill(ids)

    for chosen in ([0], [3], [0, 1], [1, 2], [0, 3], [1, 2, 3], [0, 1, 2, 3], [2]):
        sessions = [model.session() for _ in texts]
        inside: dict[int, Any] = {}

        def look(x: Any, hook: Any, sessions: Any = sessions, inside: Any = inside) -> None:
            inside[sessions.index(hook.session)] = x.copy()

        with ExitStack() as stack:
            for i, session in enumerate(sessions):
                stack.enter_context(session.hooks([coder] if i in chosen else [("post1", look)]))
            found = model.forward(list(zip(sessions, texts, strict=True)))
        for i, ids in enumerate(texts):
            assert agree(found[i], alone(ids, i in chosen)), (chosen, i)
            if i not in chosen:
                assert agree(inside[i], model.run_with_cache(ids, "post1")[1]["post", 1])
        if chosen == [0, 1, 2, 3]:
            bad = llama2cpp.from_arrays(config, poisoned(arrays_of, 1))
            with bad.hooks([coder]):
                ours = bad.forward([(bad.session(), ids) for ids in texts])
            assert all(agree(a, b) for a, b in zip(ours, found, strict=True))


def test_an_engine_replaces_for_one_request() -> None:
    model = llama2cpp.load("storyteller")
    dim = model.config.dim
    nan = {f"blocks.1.mlp.W_{part}": np.full((dim, model.config.hidden_dim), np.nan) for part in ("gate", "in")}
    bad = model.with_weights(nan)
    coder = interventions.replace_with("mlp_out1", *arrays(dim, 64, dim), reads="attn_out")
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logits": "all"}
    with llama2cpp.Engine(model) as engine:
        requests = [engine.submit("The dog", hooks=[coder] if i % 2 else None, **given) for i in range(4)]
        texts = [request.result().text for request in requests]
    with llama2cpp.Engine(bad) as engine:
        alone = engine.submit("The dog", hooks=[coder], **given)
        assert texts[1] == texts[3] == alone.result().text
    assert texts[0] == texts[2] == model.generate("The dog", max_tokens=8, temperature=0)
    assert texts[0] != texts[1]
    np.testing.assert_array_equal(requests[1].logits, alone.logits)


def test_an_error_term_alone_changes_no_bit(model: llama2cpp.Model) -> None:
    dim = model.config.dim
    kept = interventions.replace_with("mlp_out1", *arrays(dim, 64, dim), reads="mlp.hook_in", error_term=True)
    assert (model.run_with_hooks(IDS, [kept]) == model(IDS)).all()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_whole_mlp_that_is_set_has_the_bits_of_a_hook(model: llama2cpp.Model, value: float) -> None:
    change = interventions.set("mlp_out", value, layer=[0, 2])

    def by_hand(activation: Any, hook: Any) -> Any:
        return np.full_like(activation, value)

    expected = model.run_with_hooks(IDS, [(["mlp_out0", "mlp_out2"], by_hand)])
    assert (model.run_with_hooks(IDS, [change]) == expected).all()
    assert (model.run_with_hooks(IDS, [("post", lambda x, hook: None), change]) == expected).all()


def test_features_are_edited_beside_an_error_term(model: llama2cpp.Model) -> None:
    name, dim = "blocks.1.hook_resid_pre", model.config.dim
    given = arrays(dim, 64, dim)
    _, cache = model.run_with_cache(IDS, name)
    points = []

    def without(f: Any, hook: Any) -> None:
        points.append((hook.name, hook.layer))
        f[..., 3] = 0

    coder = interventions.replace_with(name, *given, error_term=True, features=without)
    features = coder.encode(cache[name])
    assert (features[..., 3] > 0).any()
    with model.hooks([coder]):
        _, found = model.run_with_cache(IDS, name)
    expected = cache[name] - features[..., 3:4] * coder.W_dec[3]
    np.testing.assert_allclose(found[name], expected, atol=1e-5)
    assert points == [(name, 1)]
    moved = interventions.replace_with(name, *given, features=lambda f, hook: f * 2)
    with model.hooks([moved]):
        _, found = model.run_with_cache(IDS, name)
    np.testing.assert_allclose(found[name], moved.decode(2 * features), atol=1e-6)


def test_when_and_added_hooks(model: llama2cpp.Model) -> None:
    dim = model.config.dim
    given = arrays(dim, 64, dim)
    coder = interventions.replace_with("mlp_out1", *given, reads="mlp.hook_in")
    prompt = interventions.replace_with("mlp_out1", *given, reads="mlp.hook_in", when="prompt")
    own = model(IDS)
    replaced = model.run_with_hooks(IDS, [coder])
    assert (replaced != own).any()
    with model.hooks([prompt]):
        session = model.session()
        assert (session.prefill(IDS) == replaced[0, -1]).all()
        after = session.step(3)
    with model.hooks([coder]):
        session = model.session()
        session.prefill(IDS)
        assert (session.step(3) != after).any()
    model.add_hook(coder)
    assert (model(IDS) == replaced).all()
    model.reset_hooks()
    assert (model(IDS) == own).all()
    with model.hooks([coder]):
        logits, cache = model.run_with_cache(IDS, "resid_pre")
    with pytest.raises(ValueError, match=r"hooks changed the run at 'blocks\.1\.hook_mlp_out'"):
        cache.backward(np.ones_like(logits))


def test_loss_recovered_is_the_fields_ratio(model: llama2cpp.Model) -> None:
    name, dim = "blocks.1.hook_resid_mid", model.config.dim
    coder = interventions.replace_with(name, *arrays(dim, 64, dim))
    found = analysis.loss_recovered(model, TEXTS, coder)

    def loss(hooks: Any) -> float:
        total = 0.0
        for ids in TEXTS:
            logits = torch.from_numpy(np.array(model.run_with_hooks(ids, hooks)))[0].double()
            total += float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum"))
        return total / found.tokens

    assert found.tokens == sum(len(ids) - 1 for ids in TEXTS)
    zeros = [(name, lambda x, hook: x * 0)]
    clean, replaced, ablated = loss([]), loss([coder]), loss(zeros)
    assert found[1:4] == pytest.approx((clean, replaced, ablated), abs=1e-6)
    assert found.recovered == pytest.approx((ablated - replaced) / (ablated - clean), abs=1e-5)
    with_mean = analysis.loss_recovered(model, TEXTS, coder, interventions.set(name, 0.25))
    assert with_mean[1:3] == found[1:3]
    assert with_mean.ablated == pytest.approx(loss([(name, lambda x, hook: x * 0 + 0.25)]), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "resid_pre"}, "are 3 activations, expected one"),
        ({"names": "pattern0"}, "blocks.0.attn.hook_pattern has as many numbers as there are tokens"),
        ({"names": "post0"}, "blocks.0.mlp.hook_post has 50 numbers, and d_in is 36"),
        ({"names": "z0", "reads": "resid_mid"}, "expected an activation before 'blocks.0.attn.hook_z'"),
        ({"reads": "ln_final.hook_scale"}, "0 activations of layer 0"),
        ({"reads": "no_such"}, "no activation of a model with 3 layers is called 'no_such'"),
    ],
)
def test_what_does_not_fit_the_model(model: llama2cpp.Model, change: dict[str, Any], message: str) -> None:
    dim = model.config.dim
    names = change.pop("names", "mlp_out0")
    coder = interventions.replace_with(names, *arrays(dim, 20, dim), **change)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        model.run_with_hooks(IDS, [coder])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"W_dec": np.ones((4, 3))}, "W_enc has shape [3, 5] and W_dec [4, 3]"),
        ({"b_enc": np.ones(4)}, "b_enc has shape [4], expected [5]"),
        ({"activation": "gelu"}, "activation is 'gelu', expected one of: relu, topk, jumprelu"),
        ({"activation": "topk"}, "k is None, expected 1 to 5 with 'topk'"),
        ({"activation": "topk", "k": 6}, "k is 6"),
        ({"activation": "topk", "k": 0}, "k is 0"),
        ({"W_enc": np.ones((3, 0)), "W_dec": np.ones((0, 3))}, "W_enc has shape [3, 0]"),
        ({"k": 2}, "k is 2"),
        ({"threshold": 1.0}, "threshold goes with activation='jumprelu'"),
        ({"W_skip": np.ones((3, 4))}, "W_skip has shape [3, 4], expected [3, 3]"),
        ({"when": "later"}, "when"),
    ],
)
def test_what_does_not_fit_itself(given: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {"W_enc": np.ones((3, 5)), "b_enc": None, "W_dec": np.ones((5, 3)), "b_dec": None} | given
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        interventions.replace_with("resid_pre0", **whole)
    assert message in str(caught.value)


def test_texts_that_are_too_short(model: llama2cpp.Model) -> None:
    coder = interventions.replace_with("resid_pre1", np.ones((36, 2)), None, np.ones((2, 36)), None)
    with pytest.raises(ValueError, match="text 1 has 1 tokens, expected at least 2"):
        analysis.loss_recovered(model, [[1, 2], [1]], coder)
    with pytest.raises(ValueError, match="there are no texts"):
        analysis.loss_recovered(model, [], coder)


def test_wrong_types_and_widths(model: llama2cpp.Model) -> None:
    eye = np.eye(36)
    with pytest.raises(TypeError, match="features is of type str, which cannot be called"):
        interventions.replace_with("resid_pre0", eye, None, eye, None, features="no function")  # type: ignore[arg-type]
    for complex_ones in (eye + 0j, torch.ones(36, 36, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="complex"):
            interventions.replace_with("resid_pre0", complex_ones, None, eye, None)
    coder = interventions.replace_with("resid_pre0", eye, None, eye, None, W_skip=eye)
    calls: list[tuple[Any, str]] = [
        (lambda: coder.encode(np.ones(5)), r"encode: x has shape \[5\], expected \[..., 36\]"),
        (lambda: coder.encode(1.0), r"encode: x has shape \[\]"),
        (lambda: coder.decode(np.ones(5)), r"decode: features has shape \[5\]"),
        (lambda: coder.decode(np.ones(36), np.ones(5)), r"decode: x has shape \[5\]"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="replacement is 'x'"):
        analysis.loss_recovered(model, [IDS], "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ablation is 3"):
        analysis.loss_recovered(model, [IDS], coder, 3)  # type: ignore[arg-type]
