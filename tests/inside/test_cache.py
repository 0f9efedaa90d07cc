"""Caches: short keys, batches, files, and parts of the residual stream that sum to it."""

from __future__ import annotations

import copy
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import tiny
import torch
from checkpoints import SMALL, checkpoint_bytes, random_arrays
from gguf import GGMLQuantizationType as Type
from hf_folders import Spec
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from on_metal import agree
from safetensors.numpy import load_file

import llama2cpp
from llama2cpp import ActivationCache, FormatError
from llama2cpp.inside.activation_names import get_act_name

CONFIG = tiny.config(n_layers=3)
TOKENS = tiny.tokens(CONFIG, 6)


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG)


@pytest.fixture
def cache(model: llama2cpp.Model) -> ActivationCache:
    return model.run_with_cache(TOKENS, names_filter=lambda name: True)[1]


@pytest.fixture(scope="module", params=["floats", "biases", "q8_0", "llama2.c's int8"])
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> llama2cpp.Model:
    """Two of them have int8 activations."""
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    if request.param == "floats":
        return tiny.model(CONFIG)
    if request.param == "llama2.c's int8":
        path.write_bytes(checkpoint_bytes(2, SMALL, random_arrays(SMALL)))
        return llama2cpp.load(path)
    biased = request.param == "biases"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "attention_bias": biased, "mlp_bias": biased}
    kind = Type.F32 if biased else Type.Q8_0
    return llama2cpp.load(gguf_files.write_model(path, Spec(settings=sizes).model(), kind))


# --- keys


def test_short_keys(cache: ActivationCache) -> None:
    for short, full in [
        (("pattern", 1), "blocks.1.attn.hook_pattern"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
        (("resid_post", -1), "blocks.2.hook_resid_post"),
        (("q", 0, "attn"), "blocks.0.attn.hook_q"),
        (("scale", -3, "ln1"), "blocks.0.ln1.hook_scale"),
        (("normalized", 1, "ln2"), "blocks.1.ln2.hook_normalized"),
        (("post", np.int64(2)), "blocks.2.mlp.hook_post"),
        (("embed",), "hook_embed"),
        ("embed", "hook_embed"),
        ("hook_embed", "hook_embed"),
        ("k2", "blocks.2.attn.hook_k"),
        ("scale1ln2", "blocks.1.ln2.hook_scale"),
        ("normalized", "ln_final.hook_normalized"),
        (("scale", None), "ln_final.hook_scale"),
    ]:
        assert cache[short] is cache.to_numpy()[full]  # type: ignore[index]
        assert short in cache


def test_it_is_a_mapping(cache: ActivationCache) -> None:
    assert len(cache) == len(list(cache)) == 3 + 21 * CONFIG.n_layers
    assert [name for name, array in cache.items() if array is not cache[name]] == []
    assert cache.get("hook_nothing") is None
    for key in ("q", ("q", 3), ("q", 0, "attn", 0), (), 5):
        assert key not in cache
    for key in ("q7", ("q", 3), ("resid_post", -4)):
        with pytest.raises(KeyError, match="among the 66"):
            cache[key]
    for layer in (-4, -10, CONFIG.n_layers):  # as it was given
        with pytest.raises(KeyError, match=rf"blocks\.{layer}\.hook_resid_post"):
            cache["resid_post", layer]
    assert repr(cache).startswith("<llama2cpp.ActivationCache: 66 activations, ")
    assert cache.nbytes == sum(array.nbytes for array in cache.values())


def test_shapes_are_those_of_the_docstring() -> None:
    """Every row of the table but experts', at a batch of 2, 6 positions of which 2 are kept."""
    batch = [TOKENS, tiny.tokens(CONFIG, 6, seed=3)]
    all_norms = tiny.config(n_layers=3, qk_norm="head", norm_places="both")
    _, cache = tiny.model(all_norms).run_with_cache(batch, names_filter=lambda name: True, positions=[2, 5])
    config = CONFIG.to_dict() | {"B": 2, "T": 2, "S": 6, "1": 1}
    table = re.split(r"={20,}.*", ActivationCache.__doc__ or "")[2]
    documented: dict[str, tuple[int, ...]] = {}
    names: list[str] = []
    text = re.sub(r"\n\s{20,}", " ", table)  # no row of its own
    columns = [[line[4:45], line[45:74]] for line in table.splitlines() if line.strip()]
    assert text
    rows: list[list[str]] = []
    for name, shape in columns:
        if name.strip().startswith("``hook_normalized"):
            rows[-1][0] += " " + name.strip()
        elif not name.strip():
            rows[-1][1] += " " + shape.strip()
        else:
            rows.append([name.strip(), shape.strip()])
    for name_cell, shape_cell in rows:
        if re.search("hook_(router|expert)", name_cell):  # test_expert_models.py
            continue
        names = re.findall(r"``([^`]+)``", name_cell)
        shapes = [
            tuple(config[size.strip()] for size in shape.split(",")) for shape in re.findall(r"\[([^]]+)\]", shape_cell)
        ]
        place = names[0].rpartition("hook_")[0]
        for name, shape in zip(names, shapes if len(shapes) > 1 else shapes * len(names), strict=True):
            full = name if name.startswith(place) and place else place + name
            documented[(full if "hook" in full else name).replace("{i}", "1")] = shape
    expected = {name: array.shape for name, array in cache.items() if "blocks" not in name or "blocks.1." in name}
    assert documented == expected


# --- batches


def test_batch_axis(model: llama2cpp.Model) -> None:
    other = tiny.tokens(CONFIG, 6, seed=5)
    _, both = model.run_with_cache([TOKENS, other])
    _, alone = model.run_with_cache(other, remove_batch_dim=True)
    second = both.apply_slice_to_batch_dim(1)
    assert (second.has_batch_dim, second.tokens) == (False, other)
    assert [name for name in alone if not agree(second[name], alone[name])] == []
    assert both.apply_slice_to_batch_dim([1])["q", 0].shape == (1, 6, 6, 6)
    assert both.apply_slice_to_batch_dim([1]).tokens == [other]
    with pytest.raises(ValueError, match="2 prompts"):
        both.remove_batch_dim()
    one = both.apply_slice_to_batch_dim((1, 2))
    assert one.remove_batch_dim() is one
    assert agree(one.remove_batch_dim()["q", 0], alone["q", 0])
    assert one.tokens == other
    with pytest.raises(ValueError, match="no batch axis"):
        one.apply_slice_to_batch_dim(0)


def test_arrays_go_to_torch_without_a_copy(cache: ActivationCache) -> None:
    tensor: Any = torch.utils.dlpack.from_dlpack(cache["z", 0])
    tensor[0, 0] = 7
    assert (cache["z", 0][0, 0] == 7).all()


# --- the residual stream


def streams(model: llama2cpp.Model, cache: ActivationCache) -> dict[tuple[int, bool], NDArray[Any]]:
    """By (layer, mlp_input), the stream that enters."""
    found = {
        (i, mid): cache["resid_mid" if mid else "resid_pre", i]
        for i in range(model.config.n_layers)
        for mid in (False, True)
    }
    return {**found, (model.config.n_layers, False): cache["resid_post", -1]}


def assert_sum(parts: NDArray[Any], whole: NDArray[Any], rounding: float = 1e-5) -> None:
    np.testing.assert_allclose(parts.sum(axis=0), whole, rtol=0, atol=rounding * np.abs(whole).max())


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "no batch"])
def test_parts_sum_to_the_stream(any_model: llama2cpp.Model, batched: bool) -> None:
    """Layers exactly so; heads and neurons too, and with int8 activations there is a remainder that says so."""
    int8 = any_model.activation_dtype == "int8"
    _, cache = any_model.run_with_cache([3, 1, 4, 1, 5], remove_batch_dim=not batched)
    for (layer, mlp_input), whole in streams(any_model, cache).items():
        assert_sum(cache.decompose_resid(layer, mlp_input), whole)
        for expand in (True, False):
            parts, labels = cache.get_full_resid_decomposition(layer, mlp_input, expand, return_labels=True)
            assert len(parts) == len(labels)
            assert_sum(parts, whole)
            assert (labels[-1] == "remainder") == int8
            assert int8 or np.abs(parts[-1]).max() >= 0
            always, labels = cache.get_full_resid_decomposition(
                layer, mlp_input, expand, return_labels=True, incl_remainder=True
            )
            assert labels[-1] == "remainder"
            assert_sum(always, whole)
            if not int8:
                assert np.abs(always[-1]).max() < 1e-5 * np.abs(whole).max()
        if not mlp_input and layer > 0:
            heads, labels = cache.stack_head_results(layer, return_labels=True, incl_remainder=True)
            assert len(labels) == len(heads) == layer * any_model.config.n_heads + 1
            assert_sum(heads, whole)
        neurons, labels = cache.stack_neuron_results(
            layer, return_labels=True, incl_remainder=True, mlp_input=mlp_input
        )
        assert len(labels) == len(neurons) == layer * any_model.config.hidden_dim + 1
        assert_sum(neurons, whole)


@pytest.mark.cpu_bits("what int8 activations round away")
def test_what_int8_rounds_away_is_seen(tmp_path: Path) -> None:
    """The remainder is not nothing, and without it the parts do not sum to the stream."""
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    path = gguf_files.write_model(tmp_path / "m.gguf", Spec(settings=sizes).model(), Type.Q8_0)
    _, cache = llama2cpp.load(path).run_with_cache([3, 1, 4])
    parts = cache.get_full_resid_decomposition()
    whole = cache["resid_post", -1]
    assert np.abs(parts[:-1].sum(axis=0) - whole).max() > 1e-4 * np.abs(whole).max()
    floats, labels = (
        llama2cpp.load(path, activation_dtype="f32")
        .run_with_cache([3, 1, 4])[1]
        .get_full_resid_decomposition(return_labels=True)
    )
    assert labels[-1] == "bias"
    assert len(floats) == len(parts) - 1


def test_attributions_sum_to_the_logits(any_model: llama2cpp.Model) -> None:
    """To those of the float32 output matrix: the model's own where activations are floats."""
    logits: Any
    logits, cache = any_model.run_with_cache([[3, 1, 4, 1], [2, 7, 1, 8]])
    if any_model.activation_dtype == "int8":
        logits = cache["normalized"] * any_model.weights["ln_final.w"] @ any_model.W_U
    parts = cache.decompose_resid()
    bound = 1e-4 * np.abs(logits).max()
    cases: list[tuple[Any, Any]] = [
        (5, logits[..., 5]),
        ([5, 9], np.stack([logits[0, :, 5], logits[1, :, 9]])),  # one for each prompt
        ([5, 9, 2, 7], logits[:, range(4), [5, 9, 2, 7]]),  # one for each position
        (
            np.array([[5, 9, 2, 7], [1, 2, 3, 4]]),
            np.take_along_axis(logits, np.array([[5, 9, 2, 7], [1, 2, 3, 4]])[..., None], -1)[..., 0],
        ),
    ]
    for tokens, expected in cases:
        np.testing.assert_allclose(cache.logit_attrs(parts, tokens).sum(axis=0), expected, rtol=0, atol=bound)
    difference = cache.logit_attrs(parts, 5, 9).sum(axis=0)
    np.testing.assert_allclose(difference, logits[..., 5] - logits[..., 9], rtol=0, atol=2 * bound)
    last = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), 5, pos_slice=-1)
    np.testing.assert_allclose(last.sum(axis=0), logits[:, -1, 5], rtol=0, atol=bound)
    second = cache.logit_attrs(parts, [5, 9, 2, 7], batch_slice=1)
    np.testing.assert_allclose(second.sum(axis=0), logits[1, range(4), [5, 9, 2, 7]], rtol=0, atol=bound)
    with pytest.raises(ValueError, match="expected the same"):
        cache.logit_attrs(parts, 5, [1, 2])


def test_norm_of_parts(model: llama2cpp.Model, cache: ActivationCache) -> None:
    """What a layer's matrices are multiplied with is the sum of the parts, normalised."""
    for layer, norm in [(1, "blocks.1.ln1"), (None, "ln_final")]:
        seen = cache[f"{norm}.hook_normalized"] * model.weights[f"{norm}.w"]
        assert_sum(cache.decompose_resid(layer, apply_ln=True), seen)
        assert_sum(cache.stack_head_results(layer, incl_remainder=True, apply_ln=True), seen)
        assert_sum(cache.get_full_resid_decomposition(layer, apply_ln=True), seen)
    assert_sum(
        cache.decompose_resid(1, mlp_input=True, apply_ln=True),
        cache["normalized", 1, "ln2"] * model.weights["blocks.1.ln2.w"],
    )
    streams, labels = cache.accumulated_resid(apply_ln=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    np.testing.assert_allclose(streams[-1], cache["normalized"] * model.weights["ln_final.w"], rtol=1e-5, atol=1e-6)


def test_projection_is_the_product(cache: ActivationCache) -> None:
    rng = np.random.default_rng(0)
    for directions in (rng.standard_normal(CONFIG.dim), rng.standard_normal((CONFIG.dim, 2))):
        for apply_ln in (False, True):
            arguments: dict[str, Any] = {"layer": 2, "pos_slice": (1, None), "apply_ln": apply_ln}
            full = cache.get_full_resid_decomposition(**arguments) @ directions
            fused = cache.get_full_resid_decomposition(**arguments, project_output_onto=directions)
            np.testing.assert_allclose(fused, full, rtol=0, atol=1e-4 * np.abs(full).max())


def test_head_results_without_their_point(model: llama2cpp.Model, cache: ActivationCache) -> None:
    """From z they are what the run itself has."""
    _, from_z = model.run_with_cache(TOKENS, names_filter=["z", "embed", "resid_post"])
    assert get_act_name("result", 0) not in from_z
    expected = cache.stack_head_results()
    np.testing.assert_allclose(from_z.stack_head_results(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert get_act_name("result", 0) not in from_z
    from_z.compute_head_results()
    np.testing.assert_allclose(from_z["result", 1], cache["result", 1], rtol=0, atol=1e-5)
    before = cache["result", 0]
    cache.compute_head_results()
    assert cache["result", 0] is before


def test_a_filter_that_keeps_one_stream_a_layer(model: llama2cpp.Model, cache: ActivationCache) -> None:
    """What enters a layer is what left the one before."""
    _, few = model.run_with_cache(TOKENS, names_filter=["embed", "resid_post"])
    assert agree(few.accumulated_resid(), cache.accumulated_resid())
    with pytest.raises(KeyError, match="resid_mid"):
        few.accumulated_resid(incl_mid=True)


def test_stacks(cache: ActivationCache) -> None:
    assert cache.stack_activation("pattern").shape == (3, 1, 6, 6, 6)
    np.testing.assert_array_equal(cache.stack_activation("scale", 2, "ln2")[1], cache["scale", 1, "ln2"])


@pytest.mark.parametrize(
    "selection", [2, -1, (1, 4), (3, None), (0, 6, 2), slice(None, None, 2), [0, 5], np.array([1])]
)
def test_selections(cache: ActivationCache, selection: Any) -> None:
    index = slice(*selection) if isinstance(selection, tuple) else selection
    np.testing.assert_array_equal(cache.decompose_resid(pos_slice=selection), cache.decompose_resid()[:, :, index])
    np.testing.assert_array_equal(
        cache.stack_head_results(pos_slice=selection), cache.stack_head_results()[:, :, index]
    )
    neurons = cache.stack_neuron_results(1, neuron_slice=selection)
    wanted = index if not isinstance(index, int) else [index]
    np.testing.assert_array_equal(neurons, cache.stack_neuron_results(1)[wanted])


def test_what_cannot_be(model: llama2cpp.Model, cache: ActivationCache) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: cache.decompose_resid(4), "layer is 4, expected 0 to 3"),
        (lambda: cache.decompose_resid(3, mlp_input=True), "no MLP after the last layer"),
        (lambda: cache.decompose_resid(mode="both"), "mode is 'both'"),  # type: ignore[call-overload]
        (lambda: ActivationCache({}, None).decompose_resid(), "no model"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()


# --- files


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "no batch"])
def test_files(model: llama2cpp.Model, tmp_path: Path, suffix: str, batched: bool) -> None:
    _, cache = model.run_with_cache(TOKENS, positions=[1, 5], remove_batch_dim=not batched)
    path = tmp_path / f"cache.{suffix}"
    path.write_text("what was there before")
    cache.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again = ActivationCache.load(path, model)
    assert list(again) == list(cache)
    assert [name for name in cache if again[name].tobytes() != cache[name].tobytes()] == []
    assert [name for name in cache if again[name].shape != cache[name].shape] == []
    assert (again.has_batch_dim, again.positions, again.tokens) == (batched, [1, 5], cache.tokens)
    again["q", 0][:] = 0  # they are one's own


def test_safetensors_reads_them(cache: ActivationCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "cache.safetensors")
    theirs = load_file(tmp_path / "cache.safetensors")
    assert sorted(theirs) == sorted(cache)
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, cache[name])


def test_foreign_files(tmp_path: Path, cache: ActivationCache) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    (tmp_path / "other.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for name in ("empty.npz", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
    for path in tmp_path.iterdir():
        with pytest.raises(FormatError, match=rf"{path.name}: expected llama2cpp activations, but"):
            ActivationCache.load(path)
    for name in ("cache", "cache.pt"):
        with pytest.raises(ValueError, match=r"ends in \.npz or \.safetensors"):
            cache.save(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        ActivationCache.load(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        cache.save(tmp_path / "no folder" / "cache.npz")


SMALL_CACHE = ActivationCache({"hook_embed": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}, None, tokens=[[1, 2]])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@given(data=st.data())
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject) -> None:
    """Any change of bytes, and any cut: an error that names the file, or arrays."""
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    SMALL_CACHE.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        loaded = ActivationCache.load(path)
    except FormatError as error:
        said = str(error)
    else:
        said = path.name if all(array.dtype == np.float32 for array in loaded.values()) else ""
    assert path.name in said


def test_an_offset_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.npz"
    SMALL_CACHE.save(path)
    content = bytearray(path.read_bytes())
    directory = slice(-6, -2)  # where the table of contents begins, as its end says
    begin = int.from_bytes(content[directory], "little")
    content[directory] = (begin + 9).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"cache\.npz: expected"):
        ActivationCache.load(path)


def test_a_cache_outlives_its_model(tmp_path: Path) -> None:
    """A pickle of one whose model was closed has the arrays, and no model."""
    path = tmp_path / "model.bin"
    path.write_bytes(checkpoint_bytes(2, SMALL, random_arrays(SMALL)))
    with llama2cpp.load(path, tokenizer=None) as model:
        _, cache = model.run_with_cache([1, 2, 3], ["z", "resid_pre", "resid_post-1"])
        opened = pickle.loads(pickle.dumps(cache))
        assert opened.model.config == model.config
    for again in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert (again["z", 0] == cache["z", 0]).all()
        assert again.tokens == cache.tokens
        assert again.model is None
    assert cache.model is model  # its own is as it was
    with pytest.raises(ValueError, match="the cache has no model"):
        pickle.loads(pickle.dumps(cache)).logit_lens()


# --- what a notebook shows


def test_html(cache: ActivationCache, stories: llama2cpp.Model) -> None:
    html = cache._repr_html_()
    assert html.count("<tr>") == 1 + 3 + 21
    assert "blocks.{i}.attn.hook_pattern" in html
    nasty = ActivationCache({"<script>": np.zeros((1, 2), np.float32)}, None)._repr_html_()
    assert "<script>" not in nasty
    assert "&lt;script&gt;" in nasty
    session = stories.session()
    assert stories.tokenizer is not None
    session.prefill(stories.tokenizer.encode("<i>Lily"))
    shown = session._repr_html_()
    assert "position" in shown
    assert "<i>" not in shown
    without = tiny.model(CONFIG).session()
    without.prefill([3, 4])
    assert ">3</span>" in without._repr_html_()
