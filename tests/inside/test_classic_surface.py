"""What TransformerLens's users call on a model: hooks that stay, parts by attribute, circuits, utils."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any, Literal

import numpy as np
import pytest

import llama2cpp
from llama2cpp import FactoredMatrix, interventions, metrics, utils
from llama2cpp.inside.activation_names import by_module
from llama2cpp.inside.places import part_inputs, points_of

PROMPT = "Once upon a time there was a girl named Lily. Lily"


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return llama2cpp.load("storyteller", precision="exact", backend="cpu")


@pytest.fixture(autouse=True)
def _no_hooks(model: llama2cpp.Model) -> Any:
    yield
    model.reset_hooks(including_permanent=True)


def zero(activation: Any, hook: Any) -> Any:
    return activation * 0


# --- hooks that stay


def test_added_hooks_act_until_they_are_reset(model: llama2cpp.Model) -> None:
    plain = model(PROMPT)
    expected = model.run_with_hooks(PROMPT, [("z1", zero)])
    text = model.generate(PROMPT, max_tokens=6, temperature=0)
    model.add_hook("blocks.1.attn.hook_z", zero)
    np.testing.assert_array_equal(model(PROMPT), expected)
    np.testing.assert_array_equal(model.run_with_cache(PROMPT, "z1")[1]["z", 1], 0)
    np.testing.assert_array_equal(model.session().prefill(PROMPT), expected[0, -1])
    assert model.generate(PROMPT, max_tokens=6, temperature=0) != text
    elsewhere: list[Any] = []
    thread = threading.Thread(target=lambda: elsewhere.append(model(PROMPT)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(elsewhere[0], expected)
    with model.hooks([("z1", lambda z, hook: z + 0)]):
        np.testing.assert_array_equal(model(PROMPT), expected)
    model.reset_hooks()
    np.testing.assert_array_equal(model(PROMPT), plain)
    assert model.generate(PROMPT, max_tokens=6, temperature=0) == text


def test_an_engine_takes_each_added_hook_once(model: llama2cpp.Model) -> None:
    calls: list[str] = []
    model.add_hook("blocks.0.hook_mlp_out", lambda x, hook: calls.append(hook.name))
    with llama2cpp.Engine(model) as engine:
        engine.submit(PROMPT, max_tokens=1, temperature=0).result()
    assert calls == ["blocks.0.hook_mlp_out"] * len(calls)
    tokens = len(model.to_tokens(PROMPT)[0])
    assert 1 <= len(calls) <= tokens


def test_permanent_hooks_directions_and_single_points(model: llama2cpp.Model) -> None:
    plain = model(PROMPT)
    model.add_perma_hook("z1", zero)
    model.add_hook("z", zero, "bwd")
    model.reset_hooks(direction="bwd")
    model.reset_hooks()
    assert model.hook_dict["blocks.1.attn.hook_z"].has_hooks()
    assert not np.array_equal(model(PROMPT), plain)
    model.reset_hooks(including_permanent=True)
    np.testing.assert_array_equal(model(PROMPT), plain)

    model.add_hook(lambda name: name.endswith("hook_z"), zero)
    model.blocks[1].attn.hook_z.remove_hooks()
    expected = model.run_with_hooks(PROMPT, [(["z0", "z2", "z3", "z4"], lambda z, hook: z)])
    assert [name for name, point in model.hook_dict.items() if point.has_hooks()] == [
        f"blocks.{i}.attn.hook_z" for i in (0, 2, 3, 4)
    ]
    model.reset_hooks()
    model.add_hook(interventions.zero("mlp_out", layer=0))
    np.testing.assert_array_equal(model(PROMPT), model.run_with_hooks(PROMPT, [("mlp_out0", zero)]))
    assert not np.array_equal(model(PROMPT), expected)


def test_truth_values_of_single_points(model: llama2cpp.Model) -> None:
    point = model.hook_dict["blocks.1.attn.hook_z"]
    with pytest.raises(TypeError, match="is_permanent is 'no'"):
        point.add_hook(zero, is_permanent="no")  # type: ignore[arg-type]
    assert not point.has_hooks()
    point.add_perma_hook(zero)
    with pytest.raises(TypeError, match="remove_hooks: including_permanent is 'no'"):
        point.remove_hooks(including_permanent="no")  # type: ignore[arg-type]
    assert point.has_hooks()


def test_hooks_share_notes(model: llama2cpp.Model) -> None:
    model.run_with_hooks(PROMPT, [("z1", lambda z, hook: hook.ctx.update(mean=float(z.mean())))])
    seen: list[float] = []
    model.run_with_hooks(PROMPT, [("z1", lambda z, hook: seen.append(hook.ctx["mean"]))])
    assert seen == [model.blocks[1].attn.hook_z.ctx["mean"]]
    model.reset_hooks()
    assert model.blocks[1].attn.hook_z.ctx == {}


def test_a_hook_that_knows_its_model_does_not_keep_it() -> None:
    def hooked() -> weakref.ref[llama2cpp.Model]:
        model = llama2cpp.load("storyteller")
        model.add_hook("z0", lambda z, hook: z * model.config.n_layers)
        return weakref.ref(model)

    gone = hooked()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("z9", zero), "no activation"),
        (("z0", None), "there is no function"),
        (("z0", 3), "cannot be called"),
        (("z0", zero, "both"), "expected 'fwd' or 'bwd'"),
        ((interventions.zero("z"), zero), "without a function"),
        (("mlp_in", zero, "bwd"), "no gradient of its own"),
    ],
)
def test_hooks_that_cannot_be_added(model: llama2cpp.Model, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.add_hook(*arguments)


def test_dicts_that_hooks_fill(model: llama2cpp.Model) -> None:
    metric = metrics.log_prob(model.to_single_token(" Tom"))
    logits, expected = model.run_with_cache(PROMPT)
    grads = expected.backward(metric(logits)[1], ["z", "resid_pre"])
    cache, fwd_hooks, bwd_hooks = model.get_caching_hooks()
    assert (cache, bwd_hooks) == ({}, [])
    model.run_with_hooks(PROMPT, fwd_hooks)
    assert set(cache) == set(expected)
    for name, array in cache.items():
        np.testing.assert_array_equal(array, expected[name])
    some: dict[str, Any] = {"before": 1}
    given = model.add_caching_hooks(["z1", "resid_pre0"], incl_bwd=True, remove_batch_dim=True, cache=some)
    assert given is some
    model.run_with_cache(PROMPT, ["z", "resid_pre"], incl_bwd=True, metric=metric)
    model.reset_hooks()
    names = ["blocks.1.attn.hook_z", "blocks.0.hook_resid_pre"]
    assert set(some) == {"before", *names, *(f"{name}_grad" for name in names)}
    for name in names:
        np.testing.assert_array_equal(some[name], expected[name][0])
        np.testing.assert_array_equal(some[f"{name}_grad"], grads[name][0])
    kept = some[names[0]].copy()
    model("The dog")
    np.testing.assert_array_equal(some[names[0]], kept)
    with pytest.raises(ValueError, match="no activation"):
        model.get_caching_hooks("z9")


def test_attributes_that_say_what_to_use_instead(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache(PROMPT, "z0")
    wrongs: list[tuple[Any, str, str]] = [
        (model, "W_pos", "positions are rotary"),
        (model, "to", "arrays are NumPy's"),
        (model, "state_dict", "model.weights is a mapping"),
        (model, "generate_stream", r"model.stream\(prompt\)"),
        (cache, "to", "its arrays are NumPy's"),
        (cache, "toggle_autodiff", "cache.backward"),
        (utils, "sample_logits", "model.generate"),
    ]
    for thing, name, message in wrongs:
        assert not hasattr(thing, name)
        with pytest.raises(AttributeError, match=f"no attribute '{name}': {message}"):
            getattr(thing, name)
    things: list[Any] = [model, cache, utils]
    for thing in things:
        with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
            _ = thing.nothing
    with pytest.raises(TypeError, match=r"Model.forward: rows are pairs .* model\(tokens\)"):
        model.forward(model.to_tokens(PROMPT))  # type: ignore[arg-type]
    anything: Any = model
    with pytest.raises(TypeError, match="no argument 'pos_slice': positions="):
        anything.run_with_cache(PROMPT, pos_slice=-1)
    with pytest.raises(TypeError, match=r"start_at_layer=i, stop_at_layer=i \+ 1\) runs a layer"):
        model.blocks[0].mlp(np.zeros(192))
    closed = llama2cpp.load("storyteller")
    closed.close()
    with pytest.raises(ValueError, match="the model is closed"):
        _ = closed.cfg


def test_properties_say_themselves_why_they_are_not_there() -> None:
    class Own(llama2cpp.Model):
        @property
        def broken(self) -> int:
            raise AttributeError("for a reason")

    made = Own(llama2cpp.load("storyteller")._core)
    with pytest.raises(AttributeError, match=r"^for a reason$"):
        _ = made.broken


# --- gradients


def test_backward_hooks_are_shown_gradients(model: llama2cpp.Model) -> None:
    metric = metrics.log_prob(model.to_single_token(" Tom"))
    logits, cache = model.run_with_cache(PROMPT, ["z", "resid_pre"])
    grads = cache.backward(metric(logits)[1])
    seen: dict[str, Any] = {}

    def note(gradient: Any, hook: Any) -> None:
        seen[hook.name] = gradient

    given = model.run_with_hooks(PROMPT, [("z", lambda z, hook: None)], bwd_hooks=[("z", note)], metric=metric)
    np.testing.assert_array_equal(given, logits)
    assert list(seen) == [f"blocks.{i}.attn.hook_z" for i in (4, 3, 2, 1, 0)]
    for name, gradient in seen.items():
        np.testing.assert_array_equal(gradient, grads[name])
        with pytest.raises(ValueError, match="read-only"):
            gradient[0] = 0

    seen.clear()
    model.add_hook("z3", note, "bwd")
    kept = cache.backward(metric(logits)[1], "resid_pre")
    assert list(seen) == ["blocks.3.attn.hook_z"]
    assert set(kept) == {f"blocks.{i}.hook_resid_pre" for i in range(5)}
    np.testing.assert_array_equal(kept["resid_pre", 2], grads["resid_pre", 2])

    seen.clear()
    tokens = model.to_tokens(PROMPT)
    loss = model.run_with_hooks(tokens, return_type="loss", bwd_hooks=[("resid_pre0", note)])
    value, dlogits = metrics.loss(tokens)(logits)
    assert loss == pytest.approx(value)
    np.testing.assert_array_equal(seen["blocks.0.hook_resid_pre"], cache.backward(dlogits)["resid_pre", 0])


def test_gradients_after_hooks_that_only_look(model: llama2cpp.Model) -> None:
    metric = metrics.log_prob(model.to_single_token(" Tom"))
    _, plain = model.run_with_cache(PROMPT, "resid_pre", incl_bwd=True, metric=metric)
    with model.hooks([("z", lambda z, hook: z)]):
        _, cache = model.run_with_cache(PROMPT, "resid_pre", incl_bwd=True, metric=metric)
    np.testing.assert_array_equal(cache["blocks.0.hook_resid_pre_grad"], plain["blocks.0.hook_resid_pre_grad"])
    hooks: list[Any] = [("z0", zero), interventions.zero("z", layer=0), ("mlp_in0", zero)]
    for hook in hooks:
        with model.hooks([hook]), pytest.raises(ValueError, match=r"hooks (may have )?changed the run at 'blocks\.0"):
            model.run_with_cache(PROMPT, "resid_pre", incl_bwd=True, metric=metric)


def test_backward_hooks_that_cannot_be(model: llama2cpp.Model) -> None:
    metric = metrics.log_prob(5)
    with pytest.raises(ValueError, match="returned something"):
        model.run_with_hooks(PROMPT, bwd_hooks=[("z", zero)], metric=metric)
    with pytest.raises(ValueError, match="there are none"):
        model.run_with_hooks(PROMPT, metric=metric)
    with pytest.raises(ValueError, match="come together"):
        model.run_with_hooks(PROMPT, bwd_hooks=[("z", zero)])
    with pytest.raises(ValueError, match="is an intervention"):
        model.run_with_hooks(PROMPT, bwd_hooks=[interventions.zero("z")], metric=metric)


# --- inputs of parts, and names by module


def test_identity_at_inputs_of_parts_leaves_the_bits_alone(model: llama2cpp.Model) -> None:
    names = list(part_inputs(model.config))
    assert len(names) == 5 * model.config.n_layers
    np.testing.assert_array_equal(model.run_with_hooks(PROMPT, [(names, lambda x, hook: x)]), model(PROMPT))


@pytest.mark.parametrize("batch", [[PROMPT], [PROMPT, PROMPT], [PROMPT, "Once"]])
@pytest.mark.parametrize(
    ("inputs", "norm"), [(["q_input2", "k_input2", "v_input2"], "ln1"), (["attn_in2"], "ln1"), (["mlp_in2"], "ln2")]
)
def test_inputs_of_parts_are_seen_by_the_part_alone(
    model: llama2cpp.Model, batch: list[str], inputs: list[str], norm: str
) -> None:
    """An edit of all heads' inputs, or of the MLP's, is one of the norm before."""
    streams: list[Any] = []

    def normed(x: Any, hook: Any) -> Any:
        stream = streams.pop(0)
        return stream / np.sqrt(np.square(stream).mean(axis=-1, keepdims=True) + model.config.norm_eps)

    same = [
        ("resid_pre2" if norm == "ln1" else "resid_mid2", lambda x, hook: streams.append(np.square(x) + 1)),
        (f"blocks.2.{norm}.hook_normalized", normed),
    ]
    given = model.run_with_hooks(batch, [(inputs, lambda x, hook: np.square(x) + 1)])
    expected = model.run_with_hooks(batch, same)
    for ours, theirs in zip(given, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.abs(given[0] - model(batch)[0]).max() > 1e-2


def test_one_head_of_an_input(model: llama2cpp.Model) -> None:
    def second(x: Any, hook: Any) -> Any:
        x[:, :, 1] *= -1
        return x

    _, plain = model.run_with_cache(PROMPT, "q2")
    with model.hooks([("q_input2", second)]):
        _, cache = model.run_with_cache(PROMPT, "q2")
    np.testing.assert_array_equal(np.delete(cache["q", 2], 1, axis=2), np.delete(plain["q", 2], 1, axis=2))
    np.testing.assert_allclose(cache["q", 2][:, :, 1], -plain["q", 2][:, :, 1], atol=1e-4)
    with pytest.raises(ValueError, match="share the keys"):
        model.run_with_hooks(PROMPT, [("attn_in2", second)])
    with pytest.raises(ValueError, match="returned shape"):
        model.run_with_hooks(PROMPT, [("q_input2", lambda x, hook: x[:, :, 0])])
    with pytest.raises(ValueError, match="is for functions in hooks"):
        model.run_with_hooks(PROMPT, [interventions.zero("q_input")])


def test_inputs_of_parts_in_a_cache(model: llama2cpp.Model) -> None:
    _, cache = model.run_with_cache(PROMPT, ["mlp_in", "blocks.-1.hook_k_input", "q_input0"])
    assert set(cache) == {f"blocks.{i}.hook_resid_mid" for i in range(5)} | {
        "blocks.0.hook_resid_pre",
        "blocks.4.hook_resid_pre",
    }
    np.testing.assert_array_equal(cache["mlp_in", 3], cache["resid_mid", 3])
    assert cache["k_input", -1].shape == (1, cache["mlp_in", 3].shape[1], 2, 192)
    np.testing.assert_array_equal(cache["q_input", 0][:, :, 5], cache["resid_pre", 0])
    with pytest.raises(KeyError, match="q_input"):
        cache["q_input", 1]


def test_every_name_by_module(model: llama2cpp.Model) -> None:
    names = ["hook_in", "hook_out", "ln2.hook_in", "attn.hook_out", "mlp.hook_out", "mlp.gate.hook_out"]
    names += [f"attn.{part}.hook_out" for part in "qkvo"] + ["attn.o.hook_in", "mlp.in.hook_out", "mlp.out.hook_in"]
    full = [f"blocks.3.{name}" for name in names] + ["embed.hook_out", "ln_final.hook_in"]
    _, cache = model.run_with_cache(PROMPT, full)
    for name in full:
        ours = by_module(name, model.config)
        assert ours in points_of(model.config) or ours in part_inputs(model.config)
        np.testing.assert_array_equal(cache[name], cache[ours])
        assert model.hook_dict[name].name == ours
    np.testing.assert_array_equal(
        model.run_with_hooks(PROMPT, [("blocks.-1.attn.o.hook_in", zero)]),
        model.run_with_hooks(PROMPT, [("z4", zero)]),
    )
    assert model.blocks[3].attn.o.hook_in.name == "blocks.3.attn.hook_z"
    with pytest.raises(KeyError, match="no activation"):
        model.hook_dict["blocks.3.attn.p.hook_in"]


# --- weights by attribute, circuits


def test_parts_have_all_weights_and_activations(model: llama2cpp.Model) -> None:
    for name, array in model.weights.transformer_lens.items():
        if name.startswith(("blocks", "ln_final")):
            part: Any = model
            for step in name.split("."):
                part = part[int(step)] if step.isdecimal() else getattr(part, step)
            np.testing.assert_array_equal(part, array)
    for name in model.hook_dict:
        if name.startswith("blocks.4."):
            part = model.blocks[-1]
            for step in name.split(".")[2:]:
                part = getattr(part, step)
            assert part.name == name
    assert "W_Q" in dir(model.blocks[0].attn)
    with pytest.raises(AttributeError, match="W_Q"):
        model.blocks[0].attn.W_q  # noqa: B018
    with pytest.raises(IndexError, match="has 5"):
        model.blocks[5]
    for wrong in ("0", 1.5, True):
        with pytest.raises(TypeError, match=r"blocks: layer is .*expected an integer"):
            model.blocks[wrong]  # type: ignore[index]
    with pytest.raises(TypeError, match="only norms"):
        model.blocks[0].mlp(np.zeros(192))
    for name in ("W_Q", "hook_z", "w_q"):
        with pytest.raises(AttributeError, match=rf"blocks\.0\.attn\.{name} cannot be set: model\.with_weights"):
            setattr(model.blocks[0].attn, name, np.zeros((6, 192, 32)))


def test_biases_that_are_none_are_zeros(model: llama2cpp.Model) -> None:
    config = model.config
    shapes = {
        "b_Q": (config.n_heads, config.head_dim),
        "b_K": (config.n_kv_heads, config.head_dim),
        "b_V": (config.n_kv_heads, config.head_dim),
        "b_O": (config.dim,),
        "b_in": (config.hidden_dim,),
        "b_out": (config.dim,),
    }
    for name, shape in shapes.items():
        array = getattr(model, name)
        assert array.shape == (config.n_layers, *shape)
        assert not array.any()
    assert model.b_U.shape == (config.vocab_size,)


def test_norms_can_be_called(model: llama2cpp.Model) -> None:
    logits, cache = model.run_with_cache(PROMPT)
    np.testing.assert_allclose(model.unembed(model.ln_final(cache["resid_post", -1])), logits, atol=1e-4)
    normed = model.blocks[2].ln1(cache["resid_pre", 2]) @ model.blocks[2].attn.W_V[1]
    np.testing.assert_allclose(normed, cache["v", 2][:, :, 1], atol=1e-5)


def test_factored_matrices() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 1, 6, 2)), rng.standard_normal((4, 2, 6))
    matrix = FactoredMatrix(a, b)
    dense = a @ b
    assert matrix.shape == dense.shape == (3, 4, 6, 6)
    np.testing.assert_allclose(matrix.AB, dense)
    np.testing.assert_allclose(matrix.T.AB, np.swapaxes(dense, -1, -2))
    u, s, v = matrix.svd()
    np.testing.assert_allclose((u * s[..., None, :]) @ np.swapaxes(v, -1, -2), dense, atol=1e-12)
    np.testing.assert_allclose(s, np.linalg.svd(dense)[1][..., :2], atol=1e-12)
    np.testing.assert_allclose(matrix.norm(), np.linalg.norm(dense, axis=(-2, -1)))
    np.testing.assert_allclose(matrix.make_even().AB, dense, atol=1e-12)
    largest = np.sort_complex(np.linalg.eigvals(dense[1, 2]))
    ours = np.sort_complex(matrix[1, 2].eigenvalues)
    np.testing.assert_allclose(ours, np.sort_complex(sorted(largest, key=abs)[-2:]), atol=1e-10)
    other, vector = rng.standard_normal((6, 5)), rng.standard_normal(6)
    np.testing.assert_allclose((matrix @ other).AB, dense @ other)
    np.testing.assert_allclose((other.T @ matrix).AB, other.T @ dense)
    np.testing.assert_allclose(matrix @ vector, dense @ vector)
    np.testing.assert_allclose(vector @ matrix, vector @ dense)
    np.testing.assert_allclose((matrix @ matrix.T).AB, dense @ np.swapaxes(dense, -1, -2))
    np.testing.assert_allclose((2 * matrix * 3).AB, 6 * dense)
    keys: list[Any] = [1, (0, 1), (slice(1, 3), 2), (..., slice(0, 2), slice(3, 5)), (slice(None), slice(None), [1, 4])]
    for key in keys:
        np.testing.assert_allclose(matrix[key].AB, dense[key])
    np.testing.assert_allclose(matrix[0, 1, -1, 2].AB, dense[0, 1, -1:, 2:3])
    assert matrix.unsqueeze(0).shape == (1, 3, 4, 6, 6)
    np.testing.assert_allclose(matrix.get_corner(2), dense[..., :2, :2])
    with pytest.raises(ValueError, match="shape"):
        FactoredMatrix(a, a)
    with pytest.raises(ValueError, match="shape"):
        matrix @ np.ones((5, 5))
    with pytest.raises(ValueError, match="shape"):
        matrix * np.ones(2)


def test_circuits_and_composition(model: llama2cpp.Model) -> None:
    group = model.config.n_heads // model.config.n_kv_heads
    np.testing.assert_allclose(model.OV[2, 5].AB, model.W_V[2, 5 // group] @ model.W_O[2, 5], atol=1e-6)
    np.testing.assert_allclose(model.QK[1, 4].AB, model.W_Q[1, 4] @ model.W_K[1, 4 // group].T, atol=1e-6)
    modes: list[Literal["Q", "K", "V"]] = ["Q", "K", "V"]
    for mode in modes:
        scores = model.all_composition_scores(mode)
        read = {"Q": model.QK, "K": model.QK.T, "V": model.OV}[mode][3, 2].AB
        written = model.OV[1, 4].AB
        expected = np.linalg.norm(written @ read) / np.linalg.norm(written) / np.linalg.norm(read)
        assert scores[1, 4, 3, 2] == pytest.approx(expected, rel=1e-5)
        assert not scores[3, :, 1].any()
        assert not scores[2, :, 2].any()
    with pytest.raises(ValueError, match="expected 'Q'"):
        model.all_composition_scores("O")  # type: ignore[arg-type]


# --- texts, losses, heads


def test_texts(model: llama2cpp.Model) -> None:
    tokens = model.to_tokens(PROMPT)
    assert model.get_token_position(" Lily", PROMPT) < model.get_token_position(" Lily", tokens, mode="last")
    assert model.get_token_position(int(tokens[0, 2]), tokens[0]) == 2
    assert model.to_str_tokens([PROMPT, "Once"]) == [model.to_str_tokens(PROMPT), model.to_str_tokens("Once")]
    assert model.to_single_str_token(model.to_single_token(" Lily")) == " Lily"
    with pytest.raises(ValueError, match="is not among"):
        model.get_token_position(" Tom", PROMPT)


def test_whether_bos_is_put_before_texts(model: llama2cpp.Model) -> None:
    bare = model.to_tokens(PROMPT, prepend_bos=False)
    np.testing.assert_array_equal(model(PROMPT, prepend_bos=False), model(bare))
    np.testing.assert_array_equal(
        model.run_with_hooks(PROMPT, [("z1", zero)], prepend_bos=True), model.run_with_hooks(PROMPT, [("z1", zero)])
    )
    _, caches = model.run_with_cache([PROMPT, "The dog"], "z0", prepend_bos=False)
    several: Any = caches
    lengths = [len(model.to_tokens(text, prepend_bos=False)[0]) for text in (PROMPT, "The dog")]
    assert [cache["z", 0].shape[1] for cache in several] == lengths
    both = np.repeat(bare, 2, axis=0)  # ids stay as they are
    np.testing.assert_array_equal(model(both, prepend_bos=True), model(both))
    np.testing.assert_array_equal(model.to_tokens(both), both)


def test_losses(model: llama2cpp.Model) -> None:
    tokens = model.to_tokens(PROMPT)
    logits = model(tokens)
    assert model.loss_fn(logits, tokens) == model(tokens, return_type="loss")
    np.testing.assert_array_equal(
        model.loss_fn(logits, tokens, per_token=True), model(tokens, return_type="loss", loss_per_token=True)
    )
    assert utils.lm_cross_entropy_loss(logits[0], tokens[0]) == model.loss_fn(logits, tokens)
    accuracy = utils.lm_accuracy(logits, tokens)
    assert accuracy == (logits[0, :-1].argmax(-1) == tokens[0, 1:]).mean()
    for wrong in [(logits, tokens[:, :-1]), (logits[:, :1], tokens[:, :1]), (logits, tokens + 5000)]:
        with pytest.raises(ValueError, match="loss_fn"):
            model.loss_fn(*wrong)


def test_detect_head(model: llama2cpp.Model) -> None:
    tokens = model.to_tokens(PROMPT)[0]
    patterns = model.run_with_cache(PROMPT, "pattern")[1].stack_activation("pattern")[:, 0]
    pairs = [(q, k) for q in range(len(tokens)) for k in range(q)]
    looks = {
        "previous_token_head": {(q, k) for q, k in pairs if k == q - 1},
        "duplicate_token_head": {(q, k) for q, k in pairs if tokens[q] == tokens[k]},
        "induction_head": {(q, k) for q, k in pairs if k > 0 and tokens[q] == tokens[k - 1]},
    }
    for name, cells in looks.items():
        assert cells
        given = np.sum([patterns[:, :, q, k] for q, k in cells], axis=0) / len(tokens)
        np.testing.assert_allclose(utils.detect_head(model, PROMPT, name), given, atol=1e-5)
    own = np.eye(len(tokens))
    scores = utils.detect_head(model, PROMPT, own, heads={1: [2]}, error_measure="abs")
    assert scores[1, 2] == pytest.approx(1 - np.abs(patterns[1, 2] - own).sum() / len(tokens), abs=1e-5)
    assert (np.delete(scores.ravel(), 8) == -1).all()
    rest = patterns[:, :, :, 1:].sum(axis=(-2, -1))
    kept = utils.detect_head(model, PROMPT, "previous_token_head", exclude_bos=True)
    given = np.sum([patterns[:, :, q, k] for q, k in looks["previous_token_head"] if k > 0], axis=0)
    np.testing.assert_allclose(kept, given / rest, atol=1e-5)
    wrongs: list[Any] = ["tail_head", np.ones((len(tokens), len(tokens))), np.eye(2)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"pattern|kind of head"):
            utils.detect_head(model, PROMPT, wrong)


def test_prompts_are_tried(model: llama2cpp.Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert utils.test_prompt("Once upon a", "time", model, top_k=3) == [(" time", 0)]
    assert "top 2" in capsys.readouterr().out
    ranks = utils.test_prompt("Once upon a", ["time", "girl"], model, print_details=False)
    logits = model("Once upon a")[0, -1]
    expected = [(text, int((logits > logits[model.to_single_token(text)]).sum())) for text in (" time", " girl")]
    assert ranks == [expected]
