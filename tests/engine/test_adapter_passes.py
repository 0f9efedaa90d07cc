"""LoRA adapters in sessions, passes, requests and caches: each sequence has the bits that it has alone."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import attribution, interventions, patching

PROMPTS = ["Once upon a time", "The dog", "The girl was sad. She", "One day a boy named Tom went to", "The cat"]
SHAPES = {"q_proj": (192, 192), "k_proj": (64, 192), "v_proj": (64, 192), "o_proj": (192, 192)}
MLP = {"gate_proj": (512, 192), "up_proj": (512, 192), "down_proj": (192, 512)}


def factors(seed: int, rank: int, names: Any = (*SHAPES, *MLP), layers: Any = range(5)) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {}
    for layer in layers:
        for name in names:
            rows, cols = (SHAPES | MLP)[name]
            part = "self_attn" if name in SHAPES else "mlp"
            a, b = rng.normal(size=(rank, cols)) / cols**0.5, rng.normal(size=(rows, rank)) * 0.2
            found[f"model.layers.{layer}.{part}.{name}"] = (a, b)
    return found


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return llama2cpp.load("storyteller", backend="cpu")


@pytest.fixture(scope="module")
def adapters(model: llama2cpp.Model) -> list[llama2cpp.Adapter | None]:
    made = [
        llama2cpp.Adapter.from_arrays(model, factors(1, 8), alpha=8),
        llama2cpp.Adapter.from_arrays(model, factors(2, 3, ("q_proj", "v_proj")), alpha=16, rslora=True),
        llama2cpp.Adapter.from_arrays(model, factors(3, 16, ("down_proj",), (1, 4))),
    ]
    return [None, *made, made[0]]


def prefilled(model: llama2cpp.Model, prompt: str, adapter: llama2cpp.Adapter | None) -> NDArray[np.float32]:
    return model.session(adapter=adapter).prefill(prompt, all_logits=True)


def test_it_is_what_folding_it_into_the_weights_gives(model: llama2cpp.Model) -> None:
    """The product in double precision, rounded once, and put in the place of the weights."""
    plain = llama2cpp.load("storyteller", backend="cpu", precision="exact")
    names = ("v_proj", "o_proj", "up_proj", "down_proj")  # in no rotary order
    given = factors(5, 4, names)
    edits = {}
    for module, (a, b) in given.items():
        layer, name = module.split(".")[2], module.split(".")[-1]
        stored = {"v_proj": "attention.wv", "o_proj": "attention.wo", "up_proj": "feed_forward.w3"}
        full = f"layers.{layer}.{stored.get(name, 'feed_forward.w2')}.weight"
        file_name = plain._core.part_names()[full]
        edits[file_name] = plain.weights[file_name] + 1.5 * (b.astype(np.float32) @ a.astype(np.float32).astype(float))
    adapter = llama2cpp.Adapter.from_arrays(plain, given, alpha=6)
    folded = plain.with_weights(edits)
    for prompt in PROMPTS:
        found, expected = prefilled(plain, prompt, adapter), folded.session().prefill(prompt, all_logits=True)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        assert np.abs(found - prefilled(plain, prompt, None)).max() > 0.01 * np.abs(expected).max()


def test_many_adapters_in_one_pass_have_the_bits_of_each_alone(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]
) -> None:
    alone = [prefilled(model, prompt, adapter) for prompt, adapter in zip(PROMPTS, adapters, strict=True)]
    for order in ([0, 1, 2, 3, 4], [4, 1, 3, 0, 2], [1, 4], [2, 2, 0, 1]):
        sessions = [model.session(adapter=adapters[i]) for i in order]
        rows = [(session, PROMPTS[i]) for session, i in zip(sessions, order, strict=True)]
        for i, found in zip(order, model.forward(rows, all_logits=True), strict=True):
            assert found.tobytes() == alone[i].tobytes(), (order, i)
        steps = model.forward([(session, [260]) for session in sessions])
        for i, found in zip(order, steps, strict=True):
            session = model.session(adapter=adapters[i])
            session.prefill(PROMPTS[i])
            assert found.tobytes() == session.step(260).tobytes()


@pytest.mark.parametrize("pack", ["never", "always"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_for_any_threads_chunks_and_packing(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None], threads: int, pack: str
) -> None:
    ids = model.tokenizer.encode(" ".join(PROMPTS) * 14)  # more than a pass
    assert len(ids) > 300
    expected = model.session(adapter=adapters[1]).prefill(ids, all_logits=True)
    with llama2cpp.load("storyteller", backend="cpu", threads=threads, pack=pack) as other:
        adapter = llama2cpp.Adapter.from_arrays(other, factors(1, 8), alpha=8)
        assert adapter.fingerprint == adapters[1].fingerprint  # type: ignore[union-attr]
        for cut in (1, 130, 257):
            session = other.session(adapter=adapter)
            parts = [session.prefill(ids[:cut], all_logits=True), session.prefill(ids[cut:], all_logits=True)]
            assert np.concatenate(parts).tobytes() == expected.tobytes()


@pytest.mark.parametrize("isa", ["scalar", "reference"])
def test_the_reference_in_plain_loops_gives_the_same_bits(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prefilled(model, PROMPTS[2], adapters[1])
    monkeypatch.setenv("LLAMA2CPP_ISA", isa)
    with llama2cpp.load("storyteller", backend="cpu") as other:
        adapter = llama2cpp.Adapter.from_arrays(other, factors(1, 8), alpha=8)
        assert other.isa == isa
        assert prefilled(other, PROMPTS[2], adapter).tobytes() == expected.tobytes()


def test_texts_samples_and_lists(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    adapter = adapters[1]
    options: Any = {"max_tokens": 16, "seed": 3, "adapter": adapter}
    alone = [model.generate(prompt, **options) for prompt in PROMPTS]
    assert alone != [model.generate(prompt, max_tokens=16, seed=3) for prompt in PROMPTS]
    assert model.generate(PROMPTS, **options) == alone
    assert ["".join(model.stream(prompt, **options)) for prompt in PROMPTS] == alone
    assert [completion.text for completion in model.complete(PROMPTS, **options)] == alone
    assert model.generate(PROMPTS[0], **options, n=2)[0] == alone[0]
    assert model.generate(PROMPTS[0], **options, speculate="prompt") == alone[0]
    chat: Any = {"template": "llama2", "max_tokens": 8, "temperature": 0}
    assert model.chat("Hello", **chat, adapter=adapter) != model.chat("Hello", **chat)
    assert "".join(model.chat_stream("Hello", **chat, adapter=adapter)) == model.chat("Hello", **chat, adapter=adapter)
    talk = llama2cpp.Conversation(model, **chat, adapter=adapter)
    assert talk.say("Hello") == model.chat("Hello", **chat, adapter=adapter)
    with pytest.raises(ValueError, match=r"Conversation.say: adapter is the whole conversation's"):
        talk.say("Hello", adapter=adapters[2])

    async def told() -> str:
        return "".join([piece async for piece in model.astream(PROMPTS[0], **options)])

    assert asyncio.run(told()) == alone[0]


def test_scores_and_embeddings(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    for adapter in adapters[:3]:
        score = model.score("Once upon a", " time there", adapter=adapter)
        ids = model.tokenizer.encode("Once upon a time there")
        logits = model.session(adapter=adapter).prefill(ids, all_logits=True).astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        count = len(score.tokens)
        expected = [logprobs[len(ids) - count - 1 + i, token] for i, token in enumerate(score.tokens)]
        np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
        found = model.embed("The dog ran.", "last", adapter=adapter)
        _, cache = model.run_with_cache("The dog ran.", adapter=adapter)
        last = cache["ln_final.hook_normalized"][0, -1] * model.weights["ln_final.w"]
        np.testing.assert_allclose(found, last, rtol=1e-5, atol=1e-6)


def test_perplexity_is_that_of_its_session(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    text = "The girl was sad. She went to the park with a dog."
    ids = model.tokenizer.encode(text)
    found = [model.perplexity(text, adapter=adapter) for adapter in adapters]
    for adapter, value in zip(adapters, found, strict=True):
        logits = prefilled(model, text, adapter).astype(np.float64)[:-1]
        logits -= logits.max(axis=-1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        mean = -chances[np.arange(len(ids) - 1), ids[1:]].mean()
        assert value == pytest.approx(float(np.exp(mean)), rel=1e-5)
    assert found[1] == found[4]
    assert len(set(found)) == 4


def test_explanations_are_of_the_run_with_it(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    """Its logit is the session's, and what heads and MLPs add sums to it, most of it not as a remainder."""
    exact = llama2cpp.load("storyteller", backend="cpu", precision="exact")
    logits = []
    for adapter in (None, llama2cpp.Adapter.from_arrays(exact, factors(1, 8))):
        found = exact.explain("The girl was sad. She", " was", adapter=adapter)
        last = exact.session(adapter=adapter).prefill("The girl was sad. She")
        assert found.logit == last[found.answer]
        assert sum(part.value for part in found.contributions) == pytest.approx(found.logit, abs=1e-4)
        [remainder] = [part.value for part in found.contributions if part.label == "remainder"]
        assert abs(remainder) < 1e-3
        logits.append(found.logit)
    assert logits[0] != logits[1]


@pytest.mark.parametrize("pool", [None, "last"])
def test_extracted_activations_are_those_of_its_runs(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None], tmp_path: Path, pool: str | None
) -> None:
    folder = tmp_path / "rows"
    data = model.extract(PROMPTS, "resid_post", [1, 4], out=folder, pool=pool, dtype="f32", adapter=adapters[1])
    for i, prompt in enumerate(PROMPTS):
        _, cache = model.run_with_cache(prompt, adapter=adapters[1])
        for layer in (1, 4):
            rows = cache["resid_post", layer][0]
            assert np.array_equal(data["resid_post", layer][data["text"] == i], rows[-1:] if pool else rows)
    again = model.extract(PROMPTS, "resid_post", [1, 4], out=folder, pool=pool, dtype="f32", adapter=adapters[4])
    assert len(again) == len(data)  # another object, with the same factors
    for other in (None, adapters[2]):
        with pytest.raises(FileExistsError, match="is of another run: its adapter is"):
            model.extract(PROMPTS, "resid_post", [1, 4], out=folder, pool=pool, dtype="f32", adapter=other)


def test_means_are_of_its_runs(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    found = model.mean_activations(PROMPTS, "mlp_out", 2, adapter=adapters[1])
    caches = [model.run_with_cache(prompt, adapter=adapters[1])[1] for prompt in PROMPTS]
    rows = np.concatenate([cache["mlp_out", 2][0] for cache in caches]).astype(np.float64)
    assert np.allclose(found.mean["mlp_out", 2][0, 0], rows.mean(axis=0), atol=1e-6)
    assert np.allclose(found.variance["mlp_out", 2][0, 0], rows.var(axis=0), atol=1e-6)
    assert found.mean.adapter is adapters[1]


def test_spliced_keys_and_values_stay_what_their_adapter_made(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]
) -> None:
    """Between sessions with other adapters: it is looked at as it is, and what comes has the session's own."""
    source, plain = model.session(adapter=adapters[1]), model.session()
    source.prefill("The girl")
    plain.prefill("The girl")
    plain.kv.splice(source.kv, 0, source.position)
    for layer in range(5):
        assert np.array_equal(plain.kv.keys(layer), source.kv.keys(layer))
        assert np.array_equal(plain.kv.values(layer), source.kv.values(layer))
    assert plain.adapter is None
    mixed, own = plain.step(260), source.step(260)
    assert not np.array_equal(mixed, own)
    # The same keys and values written by hand.
    expected, other = model.session(), model.session(adapter=adapters[1])
    expected.prefill("The girl")
    other.prefill("The girl")
    for layer in range(5):
        expected.kv.keys(layer)[:] = other.kv.keys(layer)
        expected.kv.values(layer)[:] = other.kv.values(layer)
    assert np.array_equal(mixed, expected.step(260))


def test_requests_have_the_bits_of_each_alone_under_load(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]
) -> None:
    """With and without adapters, beginning alike: what one has computed is no other's prefix."""
    long = "Once upon a time, in a green village, there lived a little boy named"
    cases = [(prompt, adapter) for prompt in (long, f"{long} Jonas.", *PROMPTS) for adapter in adapters]
    expected = [model.generate(p, max_tokens=12, seed=i, adapter=a) for i, (p, a) in enumerate(cases)]
    with llama2cpp.Engine(model, rows=6) as engine:
        requests = [
            engine.submit(prompt, max_tokens=12, seed=i, adapter=adapter, logits="last")
            for i, (prompt, adapter) in enumerate(cases)
        ]
        assert [request.result().text for request in requests] == expected
        assert engine.stats.reused_tokens > 0
        for (prompt, adapter), request in zip(cases, requests, strict=True):
            assert request.logits is not None
            assert request.logits.tobytes() == model.session(adapter=adapter).prefill(prompt).tobytes()


def test_prefixes_are_kept_by_adapter(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    prompt = "Once upon a time, in a green village, there lived a little boy named Jonas"
    same = llama2cpp.Adapter.from_arrays(model, factors(1, 8), alpha=8)  # another object of the same numbers
    with llama2cpp.Engine(model) as engine:
        reused = []
        for adapter in (adapters[1], None, adapters[2], adapters[1], None, same):
            engine.submit(prompt, max_tokens=2, seed=0, adapter=adapter).result()
            reused.append(engine.stats.reused_tokens)
    assert reused[:3] == [0, 0, 0]
    length = len(model.tokenizer.encode(prompt))
    assert np.diff(reused).tolist() == [0, 0, length - 1, length - 1, length - 1]


def test_forks_and_files_keep_it(
    model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None], tmp_path: Path
) -> None:
    session = model.session(adapter=adapters[1])
    session.prefill(PROMPTS[0])
    fork = session.fork()
    session.save(tmp_path / "s.safetensors")
    model.session().save(tmp_path / "none.safetensors")
    again = model.load_session(tmp_path / "s.safetensors", adapter=adapters[1])
    assert fork.adapter is again.adapter is session.adapter is adapters[1]
    expected = session.step(260).tobytes()
    assert fork.step(260).tobytes() == again.step(260).tobytes() == expected
    for adapter, name, said in (
        (None, "s", "has an adapter, which is to be given"),
        (adapters[2], "s", "has another adapter"),
        (adapters[1], "none", "has no adapter, and one is given"),
    ):
        with pytest.raises(llama2cpp.FormatError, match=said):
            model.load_session(tmp_path / f"{name}.safetensors", adapter=adapter)


def test_caches_know_it(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None], tmp_path: Path) -> None:
    exact = llama2cpp.load("storyteller", backend="cpu", precision="exact")
    adapter = llama2cpp.Adapter.from_arrays(exact, factors(1, 8), alpha=8)
    logits, cache = exact.run_with_cache(PROMPTS[2], adapter=adapter)
    assert logits[0].tobytes() == exact.session(adapter=adapter).prefill(PROMPTS[2], all_logits=True).tobytes()
    assert cache.adapter is adapter
    for layer in range(5):
        heads = cache.stack_head_results(layer + 1)[-6:].sum(axis=0)
        np.testing.assert_allclose(heads, cache["attn_out", layer], rtol=1e-5, atol=1e-4)
        neurons = cache.get_neuron_results(layer).sum(axis=-2)
        np.testing.assert_allclose(neurons, cache["mlp_out", layer], rtol=1e-5, atol=1e-4)
    with exact.record("resid_post") as recording:
        exact.generate(PROMPTS[0], max_tokens=2, temperature=0, adapter=adapter)
    assert recording.cache().adapter is adapter
    both = exact.run_with_cache([PROMPTS[0], PROMPTS[2]], "z0", adapter=adapter)
    caches: Any = both[1]
    assert [one.adapter for one in caches] == [adapter, adapter]
    ran = exact.run_with_hooks(PROMPTS[2], [interventions.zero("mlp_out", layer=0)], adapter=adapter)
    assert not np.array_equal(ran, logits)
    assert np.array_equal(exact(PROMPTS[2], adapter=adapter), logits)
    # What would be wrong is refused by name.
    with pytest.raises(ValueError, match="a run with an adapter has no gradients"):
        cache.backward(np.zeros_like(logits))
    with pytest.raises(ValueError, match="a run with an adapter has no gradients"):
        exact.run_with_cache(PROMPTS[0], adapter=adapter, incl_bwd=True, return_type="loss")
    with pytest.raises(ValueError, match=r"blocks.0.attn.hook_result.*the adapter has factors of it"):
        exact.run_with_cache(PROMPTS[0], "result0", adapter=adapter)
    with pytest.raises(ValueError, match="the run had an adapter, which the file does not hold"):
        cache.save(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"hook_q_input.*has an adapter"):
        exact.run_with_hooks(PROMPTS[0], [("q_input0", lambda x, hook: x * 2)], adapter=adapter)


def test_copies_are_the_adapter_itself(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    """Nothing changes one; so caches and options that have one can be copied."""
    _, cache = model.run_with_cache(PROMPTS[0], "resid_post", adapter=adapters[1])
    for own in (copy.copy, copy.deepcopy):
        assert own(adapters[1]) is adapters[1]
        assert own(cache).adapter is adapters[1]
        options: Any = own({"max_tokens": 1, "adapter": adapters[1]})
        assert model.generate("The dog", **options)


def test_caches_with_adapters_in_runs_without(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    exact = llama2cpp.load("storyteller", backend="cpu", precision="exact")
    adapter = llama2cpp.Adapter.from_arrays(exact, factors(1, 8))
    _, cache = exact.run_with_cache("Lily ran to", adapter=adapter)
    calls: dict[str, Any] = {
        "activation_patch": lambda c: patching.activation_patch(exact, "Tom ran to", c, largest, "z", "layer"),
        "path_patch": lambda c: patching.path_patch(exact, "Tom ran to", c, largest, "z", "resid_post-1", "layer"),
        "ablate": lambda c: patching.ablate(exact, "Tom ran to", largest, "z", "layer", how="mean", reference=c),
        "attribution_patch": lambda c: attribution.attribution_patch(exact, "Tom ran to", c, largest, "z", "layer"),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: the (cache|reference) is of a run with an adapter"):
            call(cache)
    cache.adapter = None
    for call in calls.values():
        assert len(call(cache)) == 5


CLEAN, CORRUPT = "Lily and Tom ran. Lily saw", "Lily and Tom ran. Tom saw"


def of_every_bit(logits: Any) -> float:
    """Of every number: a bit that differs shows."""
    return float((logits.astype(np.float64) * np.linspace(-1, 1, logits.size).reshape(logits.shape)).sum())


@pytest.mark.parametrize("precision", ["exact", "auto"])
@pytest.mark.parametrize(
    ("name", "over"),
    [("resid_pre", "position"), ("z", "head"), ("mlp_out", "position"), ("k", "head"), ("pattern", "head")],
)
def test_each_patched_cell_is_a_whole_run_with_it(precision: Any, name: str, over: str) -> None:
    exact = llama2cpp.load("storyteller", backend="cpu", precision=precision)
    adapter = llama2cpp.Adapter.from_arrays(exact, factors(1, 8), alpha=8)
    _, cache = exact.run_with_cache(CLEAN, name, adapter=adapter)
    layers = [0, 3]
    grid = patching.activation_patch(
        exact, CORRUPT, cache, of_every_bit, name, {"layer": layers, over: None}, adapter=adapter
    )
    for i, j in np.ndindex(grid.shape):
        address = {"layer": layers[i], over: j}
        cell = exact.run_with_hooks(CORRUPT, [interventions.patch_from(cache, name, **address)], adapter=adapter)
        assert grid[i, j] == of_every_bit(cell)
    assert len(np.unique(grid)) > 2
    reference = {"how": "mean", "reference": cache} if name in ("z", "mlp_out") else {"how": "zero"}
    ablated = patching.ablate(exact, CORRUPT, of_every_bit, name, ["layer"], adapter=adapter, **reference)
    for i in layers:
        one = (
            interventions.mean(name, cache, layer=i) if "reference" in reference else interventions.zero(name, layer=i)
        )
        assert ablated[i] == of_every_bit(exact.run_with_hooks(CORRUPT, [one], adapter=adapter))


def folded(exact: llama2cpp.Model, seed: int) -> tuple[llama2cpp.Model, llama2cpp.Adapter]:
    """A model whose weights have an adapter's products in them, and that adapter."""
    given = factors(seed, 4, ("v_proj", "o_proj", "up_proj", "down_proj"))  # in no rotary order
    edits = {}
    for module, (a, b) in given.items():
        layer, name = module.split(".")[2], module.split(".")[-1]
        own = {"v_proj": "wv", "o_proj": "wo", "up_proj": "w3", "down_proj": "w2"}[name]
        part = "feed_forward" if own in ("w2", "w3") else "attention"
        matrix = f"layers.{layer}.{part}.{own}.weight"
        edits[matrix] = (exact.weights[matrix].astype(np.float64) + b @ a).astype(np.float32)
    return exact.with_weights(edits), llama2cpp.Adapter.from_arrays(exact, given)


def test_paths_with_it_are_those_of_weights_that_have_it() -> None:
    exact = llama2cpp.load("storyteller", backend="cpu", precision="exact")
    whole, adapter = folded(exact, 5)
    found = []
    for model, own in ((exact, adapter), (whole, None)):
        clean, corrupt = (model.run_with_cache(text, adapter=own)[1] for text in (CLEAN, CORRUPT))
        options: dict[str, Any] = {"last_only": True, "adapter": own}
        grids = [
            patching.path_patch(model, CORRUPT, clean, largest, "z1", "resid_post-1", freeze_mlp=True, **options),
            patching.path_patch(model, CORRUPT, clean, largest, "z1", "a3.h4<k>", **options),
            patching.activation_patch(
                model, CORRUPT, clean, largest, "v", {"layer": [1, 4], "query_head": None}, **options
            ),
            patching.get_act_patch_direct_path(model, CORRUPT, clean, corrupt, largest, 2, 1, "v", **options),
            patching.get_act_patch_block_every(model, CORRUPT, clean, largest, **options),
            patching.get_act_patch_attn_head_all_pos_every(model, CORRUPT, clean, largest, **options),
        ]
        found.append(grids)
    for ours, theirs in zip(*found, strict=True):
        assert np.ptp(theirs) > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_caches_of_runs_with_others_are_refused() -> None:
    exact = llama2cpp.load("storyteller", backend="cpu", precision="exact")
    one, same, other = (llama2cpp.Adapter.from_arrays(exact, factors(seed, 8)) for seed in (1, 1, 2))
    _, cache = exact.run_with_cache(CLEAN, "z", adapter=one)

    def patch(cache: llama2cpp.ActivationCache, adapter: llama2cpp.Adapter | None) -> Any:
        return patching.activation_patch(exact, CORRUPT, cache, largest, "z", "layer", adapter=adapter)

    np.testing.assert_array_equal(patch(cache, one), patch(cache, same))
    with pytest.raises(ValueError, match=r"is of a run with another adapter: pass adapter=cache.adapter, or set"):
        patch(cache, other)
    _, plain = exact.run_with_cache(CLEAN, "z")
    with pytest.raises(ValueError, match="is of a run without an adapter, and the model runs with one here"):
        patch(plain, one)
    plain.adapter = one  # what the model itself has, in the run with the adapter
    expected = exact.run_with_hooks(CORRUPT, [interventions.patch_from(plain, "z", layer=2)], adapter=one)
    assert patch(plain, one)[2] == largest(expected)
    model = llama2cpp.load("storyteller", backend="cpu")
    with pytest.raises(ValueError, match="activation_patch: the adapter was loaded for another model"):
        patching.activation_patch(model, CORRUPT, cache, largest, "z", adapter=one)


def largest(logits: Any) -> Any:
    return logits[0, -1].max()


def test_what_is_no_adapter_of_the_model(model: llama2cpp.Model, adapters: list[llama2cpp.Adapter | None]) -> None:
    other = llama2cpp.load("storyteller", backend="cpu")
    theirs = llama2cpp.Adapter.from_arrays(other, factors(1, 8))
    calls: dict[str, Any] = {
        "generate": lambda a: model.generate("The dog", max_tokens=1, adapter=a),
        "stream": lambda a: model.stream("The dog", max_tokens=1, adapter=a),
        "chat": lambda a: model.chat("The dog", template="llama2", max_tokens=1, adapter=a),
        "score": lambda a: model.score("The dog", " ran", adapter=a),
        "embed": lambda a: model.embed("The dog", adapter=a),
        "run_with_cache": lambda a: model.run_with_cache("The dog", adapter=a),
        "perplexity": lambda a: model.perplexity("The dog", adapter=a),
        "explain": lambda a: model.explain("The dog", adapter=a),
        "extract": lambda a: model.extract(["The dog"], "resid_post", out="nowhere", adapter=a),
        "mean_activations": lambda a: model.mean_activations(["The dog"], "resid_post", adapter=a),
        "Model.session": lambda a: model.session(adapter=a),
        "Conversation": lambda a: llama2cpp.Conversation(model, template="llama2", adapter=a),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: the adapter was loaded for another model"):
            call(theirs)
        for wrong in ("a/path", 3, model):
            with pytest.raises(TypeError, match=f"{name}: adapter is .* expected an Adapter"):
                call(wrong)
    for no_model in (None, "storyteller", adapters[1]):
        with pytest.raises(TypeError, match=r"Adapter.from_arrays: model is .* expected a Model"):
            llama2cpp.Adapter.from_arrays(no_model, factors(1, 8))  # type: ignore[arg-type]
    for key in (3, b"x", "\ud800"):
        with pytest.raises(TypeError, match=r"Adapter.from_arrays: arrays has the key .* expected a module's name"):
            llama2cpp.Adapter.from_arrays(model, {key: (np.ones((2, 192)), np.ones((192, 2)))})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"Adapter.from_arrays: a factor of 'x' .* complex"):
        llama2cpp.Adapter.from_arrays(model, {"x": (np.ones((2, 192)) * 1j, np.ones((192, 2)))})
    with pytest.raises(TypeError, match=r"Adapter: model.load_adapter\(path\) opens one"):
        llama2cpp.Adapter("my-adapter")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Model.load_adapter: path is ''"):
        model.load_adapter("")
    # A model that shares its weights takes it.
    edited = model.with_weights({"blocks.0.attn.W_O": model.weights["blocks.0.attn.W_O"]})
    edited.generate("The dog", max_tokens=1, adapter=adapters[1])
    with pytest.raises(TypeError, match=r"load it again with model.load_adapter"):
        __import__("pickle").dumps(theirs)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "no factors of any matrix"),
        ({"model.layers.0.self_attn.q_proj": ("a", "b")}, "'model.layers.0.self_attn.q_proj' is no array of numbers"),
        ({"model.layers.0.self_attn.q_proj": ([[1], [1, 2]], [])}, "is no array of numbers"),
        ({"model.layers.0.self_attn.q_proj": (np.full((2, 192), 1e300), np.ones((192, 2)))}, "not finite"),
        ({"model.layers.0.self_attn.q_proj": np.ones((2, 192))}, "expected a pair"),
        ({"model.layers.0.self_attn.q_proj": (np.ones(192), np.ones((192, 1)))}, r"shapes \[192\] and \[192, 1\]"),
        ({"model.layers.0.self_attn.q_proj": (np.ones((2, 192)), np.ones((192, 3)))}, "expected .rank, columns."),
        ({"model.layers.0.self_attn.q_proj": (np.ones((0, 192)), np.ones((192, 0)))}, "expected .rank, columns."),
        ({"model.layers.0.self_attn.q_proj": (np.ones((2, 190)), np.ones((192, 2)))}, "for this model"),
        ({"model.layers.9.self_attn.q_proj": (np.ones((2, 192)), np.ones((192, 2)))}, "layer 9, and the model has 5"),
        ({"model.layers.0.self_attn.q_proj": (np.ones((2, 192)), np.full((192, 2), np.nan))}, "not finite"),
        ({"lm_head": (np.ones((2, 192)), np.ones((1536, 2)))}, "'lm_head' belongs to no layer"),
        ({"model.norm": (np.ones((2, 192)), np.ones((1, 2)))}, "'model.norm' belongs to no layer"),
        ({"nothing": (np.ones((2, 192)), np.ones((192, 2)))}, "is no matrix of this model"),
    ],
)
def test_arrays_that_are_no_adapter(model: llama2cpp.Model, arrays: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"Adapter.from_arrays: .*{said}"):
        llama2cpp.Adapter.from_arrays(model, arrays)
