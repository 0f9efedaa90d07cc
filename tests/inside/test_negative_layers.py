"""Wherever a layer is taken, a negative one counts from the last.

The list of takers is read from the code: everything public with an argument called layer, layers, or names of
activations or weights, which hold one.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import tiny
from numpy.testing import assert_array_equal

import llama2cpp
from llama2cpp import interventions, plot
from llama2cpp.inside.activation_names import from_first, get_act_name
from llama2cpp.inside.weights import LensWeights, Weights
from llama2cpp.session import KVCache

Row: TypeAlias = tuple[str, str, Callable[[int], Any]]  # function, argument, call with a layer

N = 4
IDS = [1, 5, 7, 3]
SHORTS = ["resid_pre", "resid_mid", "resid_post", "q", "k", "v", "z", "pattern", "attn_scores", "attn_out", "mlp_out"]
SHORTS += ["pre", "pre_linear", "post", "rot_q", "rot_k", "result"]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=N), threads=1)


@pytest.fixture(scope="module")
def cache(model: llama2cpp.Model) -> llama2cpp.ActivationCache:
    cache = model.run_with_cache(IDS)[1]
    cache.compute_head_results()
    return cache


def same(take: Callable[[int], Any], layers: range = range(N), zero: int = N) -> None:
    """Layer i is layer i - N, and there is none before or behind."""
    for layer in layers:
        assert_array_equal(take(layer - zero), take(layer))
    for layer in (-zero - 1, zero + 1, 10**6, -(10**6)):
        with pytest.raises((ValueError, KeyError)):
            take(layer)


def test_errors_of_the_cache_name_the_function(model: llama2cpp.Model) -> None:
    kv = model.session().kv
    for function in (kv.keys, kv.values, kv.unrotated_keys):
        with pytest.raises(
            ValueError, match=rf"^KVCache\.{function.__name__}: layer is {N}, expected -{N} to {N - 1}$"
        ):
            function(N)


def with_splice(model: llama2cpp.Model, layer: int) -> Any:
    a, b = model.session(), model.session()
    a.prefill([1, 2, 3])
    b.prefill([4, 5, 6])
    a.kv.splice(b.kv, 0, 2, layers=[layer])
    return np.stack([a.kv.keys(i) for i in range(N)])


def after(model: llama2cpp.Model, *hooks: Any) -> Any:
    return model.run_with_hooks(IDS, list(hooks))


def recorded(model: llama2cpp.Model, name: str) -> Any:
    with model.record(name) as recording:
        model.session().prefill(IDS)
    [array] = recording.cache().to_numpy().values()
    return array


def session_recorded(model: llama2cpp.Model, name: str) -> Any:
    session = model.session()
    with session.record(name) as recording:
        session.prefill(IDS)
    return recording.cache(session)[name]


def hooked(model: llama2cpp.Model, name: str, at: str) -> list[int | None]:
    layers: list[int | None] = []

    def note(activation: Any, hook: llama2cpp.HookPoint) -> None:
        layers.append(hook.layer)

    session = model.session()
    with model.hooks([(name, note)]) if at == "model" else session.hooks([(name, note)]):
        session.prefill(IDS)
    return layers


def extracted(model: llama2cpp.Model, layer: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        data = model.extract([IDS], "resid_post", layer, out=folder)
        [name] = data.points
        return data[name]


def meant(model: llama2cpp.Model, layer: int) -> Any:
    [array] = model.mean_activations([IDS], "resid_post", layer).mean.to_numpy().values()
    return array


def ablated(model: llama2cpp.Model, name: str) -> Any:
    array = np.zeros_like(model.weights[name])
    return model.with_weights({name: array}).session().prefill(IDS)


def by_name(model: llama2cpp.Model, name: str, layer: int) -> Any:
    return model.run_with_cache(IDS, f"{name}{layer}")[1][name, layer]


def at_layer(take: Callable[[str], Any], name: str, layer: int) -> Any:
    return take(name.format(layer))


def takers(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> Iterator[Row]:
    """Give (function, argument, call with a layer) of everything that takes a layer and has n_layers of them."""
    session = model.session()
    session.prefill(IDS)
    kv = session.kv
    yield "KVCache.keys", "layer", kv.keys
    yield "KVCache.values", "layer", kv.values
    yield "KVCache.unrotated_keys", "layer", kv.unrotated_keys
    yield "KVCache.splice", "layers", lambda i: with_splice(model, i)
    yield "ActivationCache.__getitem__", "key", lambda i: cache["z", i]
    yield "ActivationCache.__getitem__", "key", lambda i: cache[f"z{i}"]
    yield "ActivationCache.__getitem__", "key", lambda i: cache[f"blocks.{i}.hook_resid_post"]
    yield "ActivationCache.__getitem__", "key", lambda i: cache["scale", i, "ln2"]
    yield "HeadsAndNeurons.get_neuron_results", "layer", cache.get_neuron_results
    yield "attention_patterns", "layer", lambda i: [axes.get_title() for axes in plot.attention_patterns(cache, i).axes]
    for name in ("z", "resid_post", "pattern"):
        yield "Model.run_with_cache", "names_filter", partial(by_name, model, name)
    yield "Model.run_with_cache", "names_filter", lambda i: list(model.run_with_cache(IDS, [f"blocks.{i}.*"])[1])
    yield "Model.run_with_cache", "names_filter", lambda i: list(model.run_with_cache(IDS, f"scale{i}ln1")[1])
    yield "Model.extract", "layers", lambda i: extracted(model, i)
    yield "Model.mean_activations", "layers", lambda i: meant(model, i)
    yield "Model.record", "names_filter", lambda i: recorded(model, f"blocks.{i}.hook_mlp_out")
    yield "Session.record", "names_filter", lambda i: session_recorded(model, f"z{i}")
    yield "Model.hooks", "fwd_hooks", lambda i: hooked(model, f"resid_post{i}", "model")
    yield "Session.hooks", "fwd_hooks", lambda i: hooked(model, f"blocks.{i}.attn.hook_z", "session")
    yield "Model.run_with_hooks", "fwd_hooks", lambda i: after(model, (f"z{i}", lambda z, hook: z * 0))
    yield "zero", "layer", lambda i: after(model, interventions.zero("z", layer=i))
    yield "zero", "names", lambda i: after(model, interventions.zero(f"z{i}"))
    yield "set", "layer", lambda i: after(model, interventions.set("post", 1.0, layer=[i], neuron=3))
    yield "scale", "layer", lambda i: after(model, interventions.scale("mlp_out", 0.5, layer=i))
    yield "add", "layer", lambda i: after(model, interventions.add("resid_mid", 1.0, layer=i))
    yield "mean", "layer", lambda i: after(model, interventions.mean("z", cache, layer=i))
    yield (
        "project_out",
        "layer",
        lambda i: after(model, interventions.project_out("resid_post", np.ones(model.config.dim), layer=i)),
    )
    dictionary = (np.ones((model.config.dim, 2)), None, np.ones((2, model.config.dim)), None)
    yield (
        "replace_with",
        "layer",
        lambda i: after(model, interventions.replace_with("mlp_out", *dictionary, layer=i)),
    )
    yield "patch_from", "layer", lambda i: after(model, interventions.patch_from(other(model), "z", layer=i))
    yield "mask_pattern", "layer", lambda i: after(model, interventions.mask_pattern(1, layer=i))
    for name in ("blocks.{}.attn.W_Q", "blocks.{}.ln2.w", "layers.{}.feed_forward.w2.weight"):
        yield "Weights.__getitem__", "name", partial(at_layer, model.weights.__getitem__, name)
        yield "Weights.info", "name", partial(at_layer, lambda name: str(model.weights.info(name)), name)
        yield "Model.with_weights", "weights", partial(at_layer, lambda name: ablated(model, name), name)
    yield "LensWeights.__getitem__", "name", lambda i: model.weights.transformer_lens[f"blocks.{i}.mlp.W_in"]
    yield "Weights.head", "name", lambda i: model.weights.head(f"blocks.{i}.attn.W_O", 1)
    yield "Weights.release", "name", lambda i: model.weights.release(f"layers.{i}.ffn_norm.weight")


def other(model: llama2cpp.Model) -> llama2cpp.ActivationCache:
    return model.run_with_cache([1, 9, 2, 8])[1]


def streams(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> Iterator[Row]:
    """The same of those that take the layer before which to stop, of which there are n_layers + 1."""
    stack = cache.decompose_resid()
    yield "ActivationCache.stack_activation", "layer", lambda i: cache.stack_activation("z", i)
    yield "ActivationCache.get_full_resid_decomposition", "layer", cache.get_full_resid_decomposition
    yield "ResidualStream.apply_ln_to_stack", "layer", lambda i: cache.apply_ln_to_stack(stack, i)
    yield "ResidualStream.accumulated_resid", "layer", cache.accumulated_resid
    yield "ResidualStream.decompose_resid", "layer", cache.decompose_resid
    yield "HeadsAndNeurons.stack_head_results", "layer", cache.stack_head_results
    yield "HeadsAndNeurons.stack_neuron_results", "layer", cache.stack_neuron_results
    yield "StackedWeights.accumulated_bias", "layer", model.accumulated_bias
    yield "logit_lens", "layers", lambda i: llama2cpp.logit_lens(cache, layers=[i]).values
    yield "ActivationCache.logit_lens", "layers", lambda i: cache.logit_lens(layers=[i]).values


def test_layers(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    for _, _, take in takers(model, cache):
        same(take)


def test_streams(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    for name, _, take in streams(model, cache):
        first = 1 if name.endswith(("stack_activation", "head_results", "neuron_results")) else 0
        same(take, range(first, N + 1), N + 1)


def test_stop_at_layer(model: llama2cpp.Model) -> None:
    for layer in range(1, N):
        assert_array_equal(
            model.run_with_cache(IDS, stop_at_layer=layer - N)[0], model.run_with_cache(IDS, stop_at_layer=layer)[0]
        )


def test_the_tables_are_whole(model: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    """Each public function with an argument for a layer is in one of them."""
    listed = {(name, argument) for name, argument, _ in [*takers(model, cache), *streams(model, cache)]}
    things: list[Any] = [getattr(llama2cpp, name) for name in llama2cpp.__all__]
    things += [KVCache, Weights, LensWeights, *(getattr(interventions, name) for name in interventions.__all__)]
    things += [thing for name, thing in vars(plot).items() if not name.startswith("_")]
    for thing in things:
        members = [thing]
        if inspect.isclass(thing) and thing.__module__.startswith("llama2cpp."):
            members = [m for name, m in inspect.getmembers(thing, inspect.isfunction) if not name.startswith("_")]
        for function in members:
            if not inspect.isfunction(function) or not function.__module__.startswith("llama2cpp"):
                continue
            for argument in {"layer", "layers"} & inspect.signature(function).parameters.keys():
                assert (function.__qualname__, argument) in listed, function.__qualname__


def test_names(model: llama2cpp.Model) -> None:
    for name in SHORTS:
        for layer in range(N):
            full = get_act_name(name, layer)
            assert from_first(get_act_name(name, layer - N), N) == full
            [found] = model.run_with_cache(IDS, f"{name}{layer - N}")[1]
            assert found == full
    for name in ("Weird-1name", "z-5", "blocks.-5.hook_z", "-1", "a--1", "blocks.--1.hook_z", "", "z-"):
        assert from_first(name, N) == name
    both = dict.fromkeys(("blocks.-1.ln1.w", f"blocks.{N - 1}.ln1.w"), np.ones(model.config.dim))
    with pytest.raises(ValueError, match="same weight"):
        model.with_weights(both)


@pytest.mark.parametrize("name", ["foo", "W_Q", "w_q", "blocks.0.attn.W_q", "blocks.9.attn.W_Q", 5, None, ""])
def test_names_that_there_are_not(name: Any, model: llama2cpp.Model) -> None:
    """The message names one that there is."""
    for take in (model.weights.__getitem__, model.weights.transformer_lens.__getitem__, model.weights.info):
        with pytest.raises(KeyError) as caught:
            take(name)
        message = str(caught.value)
        assert any(known in message for known in [*model.weights, *model.weights.transformer_lens])
        if str(name).lower() == "w_q":
            assert "blocks.0.attn.W_Q" in message
    assert name not in model.weights
