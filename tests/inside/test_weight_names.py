"""Weights under TransformerLens's names: what they are is checked by what a run did with them. And edited models."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import tiny
from checkpoints import SMALL, checkpoint_bytes, random_arrays
from gguf import GGMLQuantizationType as Type
from hf_folders import Spec
from numpy.typing import NDArray
from on_metal import agree

import llama2cpp

BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}


def from_arrays(folder: Path, **sizes: Any) -> llama2cpp.Model:
    return tiny.model(tiny.config(**sizes))


def from_folder(folder: Path, **settings: Any) -> llama2cpp.Model:
    return llama2cpp.load(Spec(settings=settings).save(folder / "hf"))


def from_gguf(folder: Path, kind: Type = Type.F32, **settings: Any) -> llama2cpp.Model:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    return llama2cpp.load(gguf_files.write_model(folder / "m.gguf", Spec(settings=sizes | settings).model(), kind))


def from_int8(folder: Path, activations: str) -> llama2cpp.Model:
    path = folder / "m.bin"
    path.write_bytes(checkpoint_bytes(2, SMALL, random_arrays(SMALL)))
    return llama2cpp.load(path, activation_dtype=activations)


MODELS: dict[str, Callable[[Path], llama2cpp.Model]] = {
    "arrays": from_arrays,
    "arrays, half split": lambda folder: from_arrays(folder, rope_style="half_split"),
    "arrays, tied": lambda folder: from_arrays(folder, tied=True),
    "arrays, wide heads": lambda folder: from_arrays(folder, head_dim=8),
    "folder with biases": lambda folder: from_folder(folder, **BIASED),
    "GGUF with biases": lambda folder: from_gguf(folder, **BIASED),
    "GGUF, q8_0, floats": lambda folder: llama2cpp.load(
        from_gguf(folder, Type.Q8_0, **BIASED).path, activation_dtype="f32"
    ),
    "llama2.c's int8, floats": lambda folder: from_int8(folder, "f32"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> llama2cpp.Model:
    return MODELS[request.param](tmp_path_factory.mktemp("model"))


def numbers_of(model: llama2cpp.Model) -> NDArray[np.float32]:
    tokens = tiny.tokens(model.config, 7)
    return model.session().prefill(tokens, all_logits=True)


def logits_of(model: llama2cpp.Model) -> bytes:
    return numbers_of(model).tobytes()


def test_they_are_what_the_model_multiplies_with(model: llama2cpp.Model) -> None:
    logits, cache = model.run_with_cache(
        tiny.tokens(model.config, 9), remove_batch_dim=True, names_filter=lambda _: True
    )
    weights = model.weights.transformer_lens

    def close(ours: Any, name: str | tuple[Any, ...]) -> None:
        np.testing.assert_allclose(ours, cache[name], rtol=0, atol=2e-4 * np.abs(cache[name]).max(), err_msg=str(name))

    def bias(name: str) -> Any:
        return weights.get(name, 0)

    np.testing.assert_array_equal(weights["embed.W_E"][tiny.tokens(model.config, 9)], cache["embed"])
    for i in range(model.config.n_layers):
        block = f"blocks.{i}."
        x = cache["normalized", i, "ln1"] * weights[f"{block}ln1.w"]
        for letter in "QKV":
            product = np.einsum("td,hde->the", x, weights[f"{block}attn.W_{letter}"])
            close(product + bias(f"{block}attn.b_{letter}"), (letter.lower(), i))
        results = np.einsum("the,hed->thd", cache["z", i], weights[f"{block}attn.W_O"])
        close(results, ("result", i))
        close(results.sum(axis=1) + bias(f"{block}attn.b_O"), ("attn_out", i))
        x = cache["normalized", i, "ln2"] * weights[f"{block}ln2.w"]
        close(x @ weights[f"{block}mlp.W_gate"] + bias(f"{block}mlp.b_gate"), ("pre", i))
        close(x @ weights[f"{block}mlp.W_in"] + bias(f"{block}mlp.b_in"), ("pre_linear", i))
        close(cache["post", i] @ weights[f"{block}mlp.W_out"] + bias(f"{block}mlp.b_out"), ("mlp_out", i))
    x = cache["normalized"] * weights["ln_final.w"]
    np.testing.assert_allclose(x @ weights["unembed.W_U"], logits[0], rtol=0, atol=2e-4 * np.abs(logits).max())


def test_every_weight_has_a_name(model: llama2cpp.Model) -> None:
    """And only one, but for the tied output, so that nothing is out of reach."""
    names = list(model.weights.transformer_lens)
    assert len(set(names)) == len(names) == len(model.weights) + model.config.tied
    assert len(model.weights.transformer_lens) == len(names)
    numbers = sum(model.weights[name].size for name in model.weights)
    assert sum(model.weights[name].size for name in names if not model.config.tied or name != "unembed.W_U") == numbers
    assert [name for name in names if name not in model.weights] == []
    assert next(iter(model.weights)) not in names


def test_writing_back_what_was_read(model: llama2cpp.Model) -> None:
    """Under the names of the file and under TransformerLens's: the same bits on float arithmetic."""
    by_file = model.with_weights(dict(model.weights))
    by_lens = model.with_weights(dict(model.weights.transformer_lens))
    assert agree(numbers_of(by_file), numbers_of(model))
    assert agree(numbers_of(by_lens), numbers_of(model))
    for name in model.weights.transformer_lens:
        np.testing.assert_array_equal(by_lens.weights[name], model.weights[name])


def test_an_edit_is_what_a_new_file_would_be() -> None:
    config = tiny.config()
    arrays = tiny.arrays(config)
    model = llama2cpp.from_arrays(config, arrays)
    before = logits_of(model)
    queries = model.weights["blocks.1.attn.W_Q"].copy()
    queries[2] *= 3
    name = "layers.0.feed_forward.w2.weight"
    edited = model.with_weights({"blocks.1.attn.W_Q": queries, name: -arrays[name]})
    head = slice(2 * config.head_dim, 3 * config.head_dim)
    changed = {key: array.copy() for key, array in arrays.items()}
    changed["layers.1.attention.wq.weight"][head] *= 3
    changed[name] *= -1
    assert logits_of(edited) == logits_of(llama2cpp.from_arrays(config, changed)) != before
    assert logits_of(model) == before
    np.testing.assert_array_equal(
        edited.weights["layers.1.attention.wq.weight"], changed["layers.1.attention.wq.weight"]
    )


def test_what_is_not_edited_is_shared(stories: llama2cpp.Model) -> None:
    edited = stories.with_weights({"ln_final.w": np.ones(64, dtype=np.float32)})
    for name in stories.weights:
        assert np.shares_memory(stories.weights[name], edited.weights[name]) == (name != "norm.weight")
    assert edited.config == stories.config
    assert edited.tokenizer is stories.tokenizer
    assert edited.threads == stories.threads
    again = edited.with_weights({"ln_final.w": stories.weights["ln_final.w"]})
    assert logits_of(again) == logits_of(stories) != logits_of(edited)


def test_later_changes_of_the_array_do_not_matter() -> None:
    model = tiny.model(tiny.config())
    gain = np.full(model.config.dim, 2, dtype=np.float32)
    matrix = np.array(model.weights["layers.0.attention.wo.weight"])
    edited = model.with_weights({"norm.weight": gain, "layers.0.attention.wo.weight": matrix})
    gain[:] = np.nan
    matrix[:] = np.nan
    assert np.isfinite(edited.session().step(1)).all()


@pytest.mark.parametrize("activations", [pytest.param("int8", marks=pytest.mark.cpu_bits("int8 activations")), "f32"])
def test_one_matrix_of_a_quantized_model(tmp_path: Path, activations: str) -> None:
    """The edited one becomes floats; the others keep their format, and their arithmetic."""
    model = llama2cpp.load(from_gguf(tmp_path, Type.Q4_0).path, activation_dtype=activations)
    zeros = np.zeros_like(model.weights["blocks.1.attn.W_O"])
    edited = model.with_weights({"blocks.1.attn.W_O": zeros})
    assert edited.weights.info("blk.1.attn_output.weight")["format"] == "f32"
    assert edited.weights.info("blk.0.attn_output.weight")["format"] == "q4_0"
    assert edited.activation_dtype == activations
    _, cache = edited.run_with_cache([3, 1, 4])
    _, original = model.run_with_cache([3, 1, 4])
    assert not cache["attn_out", 1].any()
    assert agree(cache["resid_pre", 1], original["resid_pre", 1])


def test_a_tied_output() -> None:
    """TransformerLens's names are two matrices, the file's name is one."""
    model = tiny.model(tiny.config(tied=True))
    table = model.weights["tok_embeddings.weight"]
    untied = model.with_weights({"W_U": 2 * model.W_U})
    np.testing.assert_allclose(untied.session().step(3), 2 * model.session().step(3), rtol=1e-5)
    assert not untied.config.tied
    np.testing.assert_array_equal(untied.W_E, table)
    embedded = model.with_weights({"embed.W_E": np.roll(table, 1, axis=0)})
    assert agree(embedded.session().step(4), model.session().step(3))
    np.testing.assert_array_equal(embedded.W_U, table.T)
    both = model.with_weights({"tok_embeddings.weight": 2 * table})
    assert both.config.tied
    np.testing.assert_array_equal(both.W_U, 2 * table.T)


def test_what_cannot_be(tmp_path: Path) -> None:
    model = tiny.model(tiny.config())
    gain = np.ones(model.config.dim, dtype=np.float32)
    for edits, message in [
        ({"blocks.2.ln1.w": gain}, "no weight 'blocks.2.ln1.w'"),
        ({"blocks.0.attn.b_Q": gain}, "no weight"),
        ({"blocks.00.ln1.w": gain}, "no weight"),
        ({"ln_final.w": gain[1:]}, r"'ln_final.w' has shape \[35\], expected \[36\]"),
        ({"ln_final.w": gain, "norm.weight": gain}, "'norm.weight' and 'ln_final.w' are the same weight"),
        ({"W_E": model.W_U}, r"shape \[36, 53\], expected \[53, 36\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.with_weights(edits)
    with pytest.raises(KeyError):
        model.weights["blocks.2.attn.W_Q"]
    with pytest.raises(KeyError):
        model.weights.info("W_X")
    with pytest.raises(AttributeError, match="b_Q"):
        model._stack("attn.b_Q")
    assert not model.weights.__contains__(3)
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.with_weights({})


def test_a_head_alone(model: llama2cpp.Model) -> None:
    """What decoding the whole gives, at every head of every matrix that has heads."""
    for name, whole in model.weights.transformer_lens.items():
        if ".attn.W_" not in name and ".attn.b_" not in name:
            continue
        if name.endswith("b_O"):
            continue
        for head in (*range(len(whole)), -1):
            part = model.weights.head(name, head)
            assert part.shape == whole.shape[1:]
            assert part.tobytes() == whole[head].tobytes(), (name, head)
    for name in ("blocks.0.ln1.w", "embed.W_E", "blocks.0.mlp.W_in"):
        with pytest.raises(ValueError, match="has no heads"):
            model.weights.head(name, 0)
    with pytest.raises(ValueError, match=r"head is 99, but 'blocks\.0\.attn\.W_O' has"):
        model.weights.head("blocks.0.attn.W_O", 99)
    with pytest.raises(KeyError):
        model.weights.head("blocks.0.attn.W_X", 0)


def test_the_whole_is_not_decoded_for_a_head(tmp_path: Path) -> None:
    """What NumPy allocates is some copies of the head, one of 16, and never the matrix."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 32}
    model = from_gguf(tmp_path, Type.Q8_0, **sizes)
    tracemalloc.start()
    try:
        for name in ("blocks.0.attn.W_O", "blocks.0.attn.W_Q"):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            part = model.weights.head(name, 1)
            taken = tracemalloc.get_traced_memory()[1] - before
            assert part.nbytes <= taken < 4 * part.nbytes
            assert part.tobytes() == model.weights[name][1].tobytes()
    finally:
        tracemalloc.stop()


def test_stacked(model: llama2cpp.Model) -> None:
    for i in range(model.config.n_layers):
        np.testing.assert_array_equal(model.W_K[i], model.weights[f"blocks.{i}.attn.W_K"])
        np.testing.assert_array_equal(model.W_out[i], model.weights[f"blocks.{i}.mlp.W_out"])


def test_residual_directions(model: llama2cpp.Model) -> None:
    columns = model.W_U.T
    np.testing.assert_array_equal(model.tokens_to_residual_directions(5), columns[5])
    np.testing.assert_array_equal(
        model.tokens_to_residual_directions(np.array([[1, 2], [3, 3]])), columns[[[1, 2], [3, 3]]]
    )
    for tokens in (model.config.vocab_size, -1, [0.5]):
        with pytest.raises(ValueError, match=r"row is|dtype"):
            model.tokens_to_residual_directions(tokens)  # type: ignore[arg-type]


def test_accumulated_bias(tmp_path: Path) -> None:
    model = from_folder(tmp_path, **BIASED)
    attention = [model.weights[f"blocks.{i}.attn.b_O"] for i in range(2)]
    mlp = [model.weights[f"blocks.{i}.mlp.b_out"] for i in range(2)]
    np.testing.assert_allclose(model.accumulated_bias(2), sum(attention) + sum(mlp), atol=1e-6)
    np.testing.assert_allclose(model.accumulated_bias(1, mlp_input=True), sum(attention) + mlp[0], atol=1e-6)
    np.testing.assert_allclose(model.accumulated_bias(1, include_mlp_biases=False), attention[0], atol=1e-6)


def test_unembed(model: llama2cpp.Model) -> None:
    """From the last residual stream it gives the bits of the model's logits, for any number of rows."""
    logits, cache = model.run_with_cache([tiny.tokens(model.config, 5), tiny.tokens(model.config, 5, seed=1)])
    stream = cache["resid_post", -1]
    assert agree(model.unembed(stream, apply_ln=True), logits)
    many = np.tile(stream[0], (40, 1))
    assert agree(model.unembed(many, apply_ln=True), np.tile(logits[0], (40, 1)))
    assert agree(model.unembed(stream[1, 2], apply_ln=True), logits[1, 2])
    assert model.unembed(np.zeros((0, model.config.dim))).shape == (0, model.config.vocab_size)
    vector = stream[0, 0].astype(np.float64)
    np.testing.assert_allclose(model.unembed(vector), vector @ model.W_U, rtol=0, atol=1e-3 * np.abs(logits).max())
    for shape in ((), (model.config.dim + 1,), (2, 0)):
        with pytest.raises(ValueError, match="expected"):
            model.unembed(np.zeros(shape))


def test_single_tokens(stories: llama2cpp.Model) -> None:
    tokenizer = stories.tokenizer
    assert tokenizer is not None
    for id in range(3, stories.config.vocab_size):
        text = tokenizer.piece(id).decode("utf-8", "replace")
        if "\ufffd" not in text:
            assert tokenizer.piece(stories.to_single_token(text)) == tokenizer.piece(id)
    for text in ("", "Once upon", "\u4e2d"):
        with pytest.raises(ValueError, match="not one token"):
            stories.to_single_token(text)
    with pytest.raises(ValueError, match="no tokenizer"):
        tiny.model(tiny.config()).to_single_token("a")


def test_str_tokens(stories: llama2cpp.Model) -> None:
    tokens = stories.to_str_tokens("Lily & <b>Tom</b>")
    assert "".join(tokens) == "<s> Lily & <b>Tom</b>"
    assert stories.tokenizer is not None
    assert tokens.ids == stories.tokenizer.encode("Lily & <b>Tom</b>")
    html = tokens._repr_html_()
    assert "<b>" not in html
    assert "&lt;" in html
    assert html.count("<span") == len(tokens)


def test_an_edited_model_stands_alone(tmp_path: Path) -> None:
    """It outlives the one it was made from, and does not take the other's sessions for its own."""
    model = tiny.model(tiny.config())
    edited = model.with_weights({"blocks.0.mlp.W_out": np.zeros_like(model.weights["blocks.0.mlp.W_out"])})
    session = model.session()
    session.step(1)
    session.save(tmp_path / "session")
    with pytest.raises(llama2cpp.FormatError, match="another model"):
        edited.load_session(tmp_path / "session")
    expected = logits_of(edited)
    del session
    model.close()
    del model
    assert logits_of(edited) == expected
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(edited)
