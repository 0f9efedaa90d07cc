"""LLM.int8() folders: bitsandbytes' bytes and logits, planted outliers, the same bits, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hf_folders import Json, Spec, change_json, read_json, replace_tensor, tensors_of, write_tensors
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import llama2cpp
from llama2cpp import _core
from llama2cpp.export import Calibration, convert
from llama2cpp.export.outliers import outlier_columns

Floats = NDArray[np.float32]

LOUD = (3, 17, 30)  # columns that the planted gains make large

# Sums longer than a block of 256 weights, no round size anywhere.
CONFIG = tiny.config(dim=276, hidden_dim=530, n_heads=6, n_kv_heads=2, vocab_size=301, seq_len=300)
TOKENS = tiny.tokens(CONFIG, 140)


def planted(config: llama2cpp.Config = CONFIG) -> tiny.Arrays:
    """Norms make three columns some forty times as large as the others, and what follows multiplies them by less."""
    weights = tiny.arrays(config)
    for name, array in weights.items():
        if name.endswith("_norm.weight"):
            array[list(LOUD)] = 40.0
        elif name.endswith(("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight")):
            array[:, list(LOUD)] /= 8
    return weights


@pytest.fixture(scope="module")
def exact() -> llama2cpp.Model:
    return llama2cpp.from_arrays(CONFIG, planted())


@pytest.fixture(scope="module", params=["own", "fixed"])
def folder(request: pytest.FixtureRequest, exact: llama2cpp.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outliers of each token's own, or fixed ones."""
    path = tmp_path_factory.mktemp("int8") / "model"
    convert(exact, path, "llm_int8", calibration=Calibration(TOKENS) if request.param == "fixed" else None)
    return path


def logits_of(model: llama2cpp.Model, count: int = len(TOKENS)) -> Floats:
    return model.session().prefill(TOKENS[:count], all_logits=True)


@pytest.fixture(scope="module")
def expected(folder: Path) -> bytes:
    model = llama2cpp.load(folder)
    assert model.activation_dtype == "int8"
    return logits_of(model).tobytes()


# --- near float where plain int8 is not


def test_planted_outliers(exact: llama2cpp.Model, folder: Path, tmp_path: Path) -> None:
    """Fixed columns: within 3 % of float, and at least eight times as near as the same int8 without outliers.

    Each token's own: within 7 %, and at least three times as near; what is left is the rounding of their weights.
    """
    fixed = "llama2cpp_fixed_outliers" in read_json(folder / "config.json")["quantization_config"]
    plain = tmp_path / "plain"
    convert(exact, plain, "llm_int8")
    settings = read_json(plain / "config.json")["quantization_config"]
    change_json(plain / "config.json", quantization_config=settings | {"llm_int8_threshold": 0.0})
    float_logits = logits_of(exact)

    def error(path: Path) -> float:
        return float(np.linalg.norm(logits_of(llama2cpp.load(path, kv_dtype="f32")) - float_logits))

    assert error(folder) < (0.03 if fixed else 0.07) * np.linalg.norm(float_logits)
    assert error(plain) > (8 if fixed else 3) * error(folder)


def test_calibration_finds_what_was_planted(exact: llama2cpp.Model) -> None:
    found = outlier_columns(exact, [TOKENS])
    for layer in range(CONFIG.n_layers):
        for name in ("attention.wq", "attention.wv", "feed_forward.w1", "feed_forward.w3"):
            columns = found[f"layers.{layer}.{name}.weight"]
            assert columns.dtype == np.int32
            assert set(LOUD) <= set(columns.tolist())
            assert np.all(np.diff(columns) > 0)
    # By other means: the inputs of one matrix, at once.
    _, cache = exact.run_with_cache(TOKENS[:140])
    inputs = np.abs(np.asarray(cache["blocks.1.mlp.hook_post"])).reshape(140, -1).max(axis=0)
    np.testing.assert_array_equal(found["layers.1.feed_forward.w2.weight"], np.flatnonzero(inputs >= 6))
    with pytest.raises(ValueError, match="has no tokens"):
        outlier_columns(exact, [])
    with pytest.raises(ValueError, match=r"threshold is 0"):
        outlier_columns(exact, [TOKENS], threshold=0)


# --- the formula, in NumPy


def formula(x: Floats, q: Floats, largest: Floats, threshold: float) -> NDArray[np.float64]:
    """One row of x times int8 weights [rows, cols], as the paper has it."""
    outliers = np.abs(x) >= threshold
    rest = np.where(outliers, 0, x).astype(np.float64)
    scale = max(np.abs(rest).max() / 127, 1e-30)
    weights = q.astype(np.float64) * (largest / 127)[:, None]
    result: NDArray[np.float64] = weights @ (np.rint(rest / scale) * scale) + weights[:, outliers] @ x[outliers]
    return result


def test_the_formula(exact: llama2cpp.Model, tmp_path: Path) -> None:
    convert(exact, tmp_path / "m", "llm_int8")
    stored = tensors_of(tmp_path / "m")
    names = ["blocks.0.ln1.hook_normalized", "blocks.0.attn.hook_q"]
    with llama2cpp.load(tmp_path / "m", kv_dtype="f32") as model:
        _, cache = model.run_with_cache(TOKENS[:30], names)
        x, out = (np.asarray(cache[name]).reshape(30, -1) for name in names)
    x = x * stored["model.layers.0.input_layernorm.weight"].float().numpy()
    assert (np.abs(x) >= 6).any(axis=1).all()
    module = "model.layers.0.self_attn.q_proj"
    q, largest = stored[f"{module}.weight"].numpy(), stored[f"{module}.SCB"].numpy()
    for t in range(30):
        wanted = formula(x[t], q, largest, 6.0)
        assert np.abs(out[t] - wanted).max() < 1e-5 * np.abs(wanted).max()


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1e-3, 1.0, 100.0]))
def test_rounding_of_weights(seed: int, scale: float) -> None:
    """To float16 first, then 127 steps of each row's largest, halves to even."""
    rng = np.random.default_rng(seed)
    array = (rng.standard_normal((5, 23)) * scale).astype(np.float32)
    array[1] = 0
    array[2, :4] = [2.0, -1.0, 1.0, 0.5]
    values, largest = _core.encode_llm_int8(array)
    halves = array.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(largest, np.abs(halves).max(axis=1))
    inverse = np.divide(np.float32(1), largest, out=np.zeros_like(largest), where=largest > 0)
    np.testing.assert_array_equal(values, np.rint(halves * (inverse * np.float32(127))[:, None]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70000.0])
def test_weights_that_float16_has_not(bad: float) -> None:
    array = np.ones((2, 3), np.float32)
    array[1, 1] = bad
    with pytest.raises(ValueError, match="number 4 is"):
        _core.encode_llm_int8(array)


# --- files


def test_a_folder_comes_back(exact: llama2cpp.Model, folder: Path) -> None:
    stored = tensors_of(folder)
    fixed = "model.layers.0.mlp.up_proj.outlier_columns" in stored
    with llama2cpp.load(folder) as model:
        assert model.file_format == "Hugging Face folder, llm_int8"
        for name in model.weights:
            info, weight = model.weights.info(name), model.weights[name]
            module = name.removesuffix(".weight")
            if f"{module}.SCB" not in stored:
                assert info["format"] == "f16"
                continue
            assert info["format"] == "llm_int8"
            scales = stored[f"{module}.SCB"].numpy() / np.float32(127)
            wanted = stored[name].numpy().astype(np.float32) * scales[:, None]
            if fixed:
                columns = stored[f"{module}.outlier_columns"].numpy()
                wanted[:, columns] = stored[f"{module}.outlier_weight"].numpy()
            np.testing.assert_array_equal(weight, wanted)
            theirs = exact.weights[str(_core.rename_weight(name, "llama2.c"))]
            assert stored[f"{module}.weight_format"].item() == 0
            assert np.linalg.norm(wanted) == pytest.approx(np.linalg.norm(theirs), rel=1e-3)
        assert sum(model.weights.info(name)["format"] == "llm_int8" for name in model.weights) == 7 * CONFIG.n_layers
    if fixed:
        columns = stored["model.layers.0.mlp.up_proj.outlier_columns"].numpy()
        wanted = exact.weights["layers.0.feed_forward.w3.weight"][:, columns].astype(np.float16)
        np.testing.assert_array_equal(stored["model.layers.0.mlp.up_proj.outlier_weight"].numpy(), wanted)


def test_exported_further(folder: Path, tmp_path: Path) -> None:
    """To float32, the weights that the folder stands for; as GGUF too."""
    with llama2cpp.load(folder, activation_dtype="f32", kv_dtype="f32") as model:
        wanted = logits_of(model, 20)
        for target in ("back", "back.gguf"):
            done = convert(folder, tmp_path / target, "f32")
            with llama2cpp.load(done.path, kv_dtype="f32") as back:
                assert np.abs(logits_of(back, 20) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_calibrate_is_for_this_format(exact: llama2cpp.Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"calibration text is for GPTQ, llm_int8 .* the format is f16"):
        convert(exact, tmp_path / "m", "f16", calibration=Calibration(TOKENS))
    with pytest.raises(ValueError, match="tokenizer"):
        convert(exact, tmp_path / "m", "llm_int8", calibration=__file__)
    assert not (tmp_path / "m").exists()


def test_biases_and_tied_output(tmp_path: Path) -> None:
    source = Spec(settings={"attention_bias": True, "tie_word_embeddings": True}).save(tmp_path / "source")
    done = convert(source, tmp_path / "int8", "llm_int8")
    assert done.formats["layers.0.attention.wq.bias"] == "f16"
    ids = list(range(1, 20))
    with llama2cpp.load(source, kv_dtype="f32") as before, llama2cpp.load(done.path, kv_dtype="f32") as after:
        assert after.config.tied
        wanted = before.session().prefill(ids, all_logits=True)
        got = after.session().prefill(ids, all_logits=True)
    assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)


# --- the same bits


@pytest.mark.parametrize("isa", tiny.ISAS)
@pytest.mark.parametrize("pack", ["always", "never"])
def test_isa_and_pack(folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, isa: str, pack: str) -> None:
    tiny.choose_isa(monkeypatch, isa)
    assert logits_of(llama2cpp.load(folder, pack=pack)).tobytes() == expected


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_and_steps(folder: Path, expected: bytes, threads: int) -> None:
    session = llama2cpp.load(folder, threads=threads).session()
    assert b"".join(session.step(token).tobytes() for token in TOKENS) == expected


@pytest.mark.parametrize("cut", [1, 7, 12, 13, 100])
def test_chunked_prefill_and_batch(folder: Path, expected: bytes, cut: int) -> None:
    """Other sessions in the pass, among them one whose outliers are elsewhere, have no part in a row's."""
    model = llama2cpp.load(folder)
    session = model.session()
    got = [session.prefill(TOKENS[:cut], all_logits=True)]
    others = [model.session() for _ in range(3)]
    last = model.forward(
        [(others[0], TOKENS[50:63]), (session, TOKENS[cut:139]), (others[1], [5]), (others[2], [6, 7])]
    )
    wanted = np.frombuffer(expected, np.float32).reshape(len(TOKENS), -1)
    assert got[0].tobytes() == wanted[:cut].tobytes()
    assert last[1].tobytes() == wanted[138].tobytes()


def test_hooks_that_look_and_that_change_nothing(folder: Path, expected: bytes) -> None:
    model = llama2cpp.load(folder)
    logits, _ = model.run_with_cache(TOKENS)
    assert logits.tobytes() == expected
    same = model.run_with_hooks(TOKENS, [(lambda name: "hook_z" in name or "hook_post" in name, lambda a, hook: a)])
    assert same.tobytes() == expected


def test_the_threshold_belongs_to_the_model(folder: Path, tmp_path: Path) -> None:
    """A session goes on with the same arithmetic or not at all."""
    settings = read_json(folder / "config.json")["quantization_config"]
    if "llama2cpp_fixed_outliers" in settings:
        pytest.skip("fixed outliers have no threshold")
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    change_json(other / "config.json", quantization_config=settings | {"llm_int8_threshold": 5.0})
    with llama2cpp.load(folder) as one, llama2cpp.load(other) as two:
        session = one.session()
        session.prefill(TOKENS[:5])
        session.save(tmp_path / "session.safetensors")
        with pytest.raises(llama2cpp.FormatError, match="model"):
            two.load_session(tmp_path / "session.safetensors")


# --- bitsandbytes itself

IDS = [1, 7, 3, 49, 0, 12, 30, 8, 2]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, NDArray[np.float64]]:
    """A float16 folder, what transformers and bitsandbytes make of it, and its logits for each token alone."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the extra int8-test)")
    pytest.importorskip("accelerate", reason="accelerate is not installed (the extra int8-test)")
    import transformers
    from transformers import LlamaForCausalLM

    settings: Any = transformers.BitsAndBytesConfig  # has no types
    root = tmp_path_factory.mktemp("bitsandbytes")
    source = Spec(settings={"hidden_size": 64, "intermediate_size": 96}, dtype=torch.float16)
    model = source.model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[5] = layer.post_attention_layernorm.weight[9] = 12.0
    model.save_pretrained(root / "float16")
    quantized: Any = LlamaForCausalLM.from_pretrained(
        root / "float16",
        quantization_config=settings(load_in_8bit=True),
        device_map="cpu",
        dtype=torch.float16,
    )
    quantized.save_pretrained(root / "int8")
    # One token at a time: bitsandbytes takes a column for an outlier of all tokens of a call.
    logits, past = [], None
    with torch.no_grad():
        for token in IDS:
            out = quantized(torch.tensor([[token]]), past_key_values=past, use_cache=True)
            logits.append(out.logits[0, 0].double().numpy())
            past = out.past_key_values
    return root / "float16", root / "int8", np.array(logits)


def test_their_files_and_logits(theirs: tuple[Path, Path, NDArray[np.float64]]) -> None:
    """Within 2.5 %: they compute in float16. Int8 without outliers is at least three times as far from theirs."""
    _, folder, wanted = theirs

    def error() -> float:
        with llama2cpp.load(folder, kv_dtype="f32") as model:
            assert model.file_format == "Hugging Face folder, llm_int8"
            assert model.activation_dtype == "int8"
            got = model.session().prefill(IDS, all_logits=True)
        return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))

    ours = error()
    assert ours < 0.025
    settings = read_json(folder / "config.json")["quantization_config"]
    change_json(folder / "config.json", quantization_config=settings | {"llm_int8_threshold": 0.0})
    plain = error()
    change_json(folder / "config.json", quantization_config=settings)
    assert plain > 3 * ours


def test_our_bytes_are_theirs(theirs: tuple[Path, Path, NDArray[np.float64]], tmp_path: Path) -> None:
    source, folder, _ = theirs
    convert(source, tmp_path / "ours", "llm_int8")
    ours, stored = tensors_of(tmp_path / "ours"), tensors_of(folder)
    assert set(ours) == set(stored)
    for name, tensor in stored.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("calibrate", [None, IDS])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_they_read_our_folder(
    theirs: tuple[Path, Path, NDArray[np.float64]], tmp_path: Path, calibrate: list[int] | None, shard_size: str
) -> None:
    """Also one with fixed outliers, which they pass over, and one of several files."""
    from transformers import LlamaForCausalLM

    source, folder, _ = theirs
    text = Calibration(calibrate) if calibrate else None
    convert(source, tmp_path / "ours", "llm_int8", calibration=text, shard_size=shard_size)
    assert (len(list((tmp_path / "ours").glob("*.safetensors"))) > 1) == (shard_size != "5GB")
    with torch.no_grad():
        got, wanted = (
            LlamaForCausalLM.from_pretrained(path, device_map="cpu")(torch.tensor([IDS])).logits
            for path in (tmp_path / "ours", folder)
        )
    assert torch.equal(got, wanted)


# --- refusals


@pytest.fixture
def file(tmp_path: Path) -> Path:
    source = Spec(settings={"hidden_size": 64, "num_hidden_layers": 1}).save(tmp_path / "source")
    return convert(source, tmp_path / "int8", "llm_int8", calibration=Calibration([1, 2, 3])).path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, r'load_in_4bit .*4 bits \("nf4"\) are not implemented'),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, r'"fp4"'),
        ({"load_in_4bit": True, "quant_method": ...}, r"4 bits \(fp4 or nf4\)"),
        ({"load_in_8bit": False}, r"neither load_in_8bit nor load_in_4bit"),
        ({"llm_int8_has_fp16_weight": True}, r"llm_int8_has_fp16_weight .*it is set"),
        ({"llama2cpp_fixed_outliers": False}, r"outlier_columns\" is there, but config.json has no"),
        ({"llama2cpp_fixed_outliers": ..., "llm_int8_threshold": -1.0}, r"threshold .*-1, expected a number of 0"),
        ({"llama2cpp_fixed_outliers": ..., "llm_int8_threshold": 1e300}, r"threshold .*inf, expected a number"),
        ({"llama2cpp_fixed_outliers": ..., "llm_int8_threshold": "6"}, r"threshold .*expected a number"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, r"\.SCB\".* has no place"),
        ({"quant_method": "quanto"}, r'"quanto", expected "gptq" or "bitsandbytes"'),
    ],
)
def test_refused_by_name(file: Path, changes: Json, said: str) -> None:
    settings = read_json(file / "config.json")["quantization_config"] | changes
    kept = {key: value for key, value in settings.items() if value is not ...}
    change_json(file / "config.json", quantization_config=kept)
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(file)


def test_settings_from_before_quant_method(file: Path) -> None:
    settings = read_json(file / "config.json")["quantization_config"]
    del settings["quant_method"]
    change_json(file / "config.json", quantization_config=settings)
    assert llama2cpp.load(file).file_format == "Hugging Face folder, llm_int8"


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("part", "tensor", "said"),
    [
        ("SCB", None, r'q_proj\.SCB" is missing, beside'),
        ("SCB", torch.ones(64).half(), r"is F16 \[64\], expected F32 \[64\]"),
        ("SCB", torch.ones(63), r"is F32 \[63\], expected F32 \[64\]"),
        ("SCB", torch.ones(64, 1), r"is F32 \[64, 1\], expected F32 \[64\]"),
        ("weight", torch.ones(64, 63).to(torch.int8), r"is I8 \[64, 63\], expected I8 \[64, 64\]"),
        ("weight", torch.ones(64, 64).to(torch.uint8), r"has no place|is U8"),
        ("weight", None, r"has no place"),
        ("weight_format", torch.tensor(2, dtype=torch.uint8), r"is 2 \(col_turing\), expected 0 \(row\)"),
        ("weight_format", torch.tensor(77, dtype=torch.uint8), r"is 77, expected 0 \(row\)"),
        ("weight_format", torch.zeros(1, dtype=torch.uint8), r"is U8 \[1\], expected U8 \[\]"),
        ("outlier_columns", None, r'outlier_columns" is missing'),
        ("outlier_columns", numbers(1).long(), r"is I64 \[1\], expected I32 \[1\]"),
        ("outlier_columns", numbers(64), r"number 0 is 64, expected columns of 64 in ascending order"),
        ("outlier_columns", numbers(-1), r"number 0 is -1, expected columns"),
        ("outlier_columns", numbers(2, 2), r"number 1 is 2, expected columns"),
        ("outlier_columns", numbers(1, 2, 3), r'outlier_weight" is F16 \[64, \d+\], expected F16 \[64, 3\]'),
        ("outlier_weight", None, r'outlier_weight" is missing'),
        ("extra", torch.ones(64), r"has no place in a Llama"),
    ],
)
def test_tensors_that_do_not_fit(file: Path, part: str, tensor: torch.Tensor | None, said: str) -> None:
    replace_tensor(file, f"model.layers.0.self_attn.q_proj.{part}", tensor)
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(file)


def test_int8_where_it_does_not_belong(file: Path) -> None:
    tensors = tensors_of(file)
    name = "model.embed_tokens.weight"
    tensors[name] = torch.ones_like(tensors[name]).to(torch.int8)
    write_tensors(file, tensors)
    with pytest.raises(llama2cpp.FormatError, match=r'embed_tokens\.weight" is I8 .*expected F32, F16 or BF16'):
        llama2cpp.load(file)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder, and what its weights' file was before it was damaged."""
    path = tmp_path_factory.mktemp("bytes")
    source = Spec(settings={"num_hidden_layers": 1}).save(path / "source")
    folder = convert(source, path / "int8", "llm_int8", calibration=Calibration([1, 2])).path
    return folder / "model.safetensors", (folder / "model.safetensors").read_bytes()


@given(at=st.floats(0, 1), value=st.integers(0, 255))
def test_any_byte_may_be_wrong(damaged: tuple[Path, bytes], at: float, value: int) -> None:
    """It opens and gives numbers, or it is a FormatError."""
    file, data = damaged
    place = min(int(at * len(data)), len(data) - 1)
    file.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
    try:
        model = llama2cpp.load(file.parent, mmap=False)
    except llama2cpp.FormatError:
        return
    assert model.session().prefill([1, 2, 3]).shape == (50,)
