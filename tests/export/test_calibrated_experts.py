"""Calibration text in layers with experts: each one's inputs are transformers', and what GPTQ writes is read by all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpt_oss_models
import numpy as np
import pytest
import torch
from expert_models import CASES, EXPERTS
from family_models import TOKENS, expected_logits
from gptq_twins import float_twin
from hf_folders import tensors_of
from numpy.typing import NDArray
from reference import largest_error
from safetensors.numpy import load_file, save_file

import llama2cpp
from llama2cpp.export import Calibration, convert, gptq
from llama2cpp.export.calibration import Hessian, importance_of_inputs
from llama2cpp.export.gptq import Rounded, Settings, quantize
from llama2cpp.export.source import Source

Products = NDArray[np.float64]

NAMES = ["mixtral", "qwen3_moe", "olmoe", "granitemoe"]
LENGTH = 25
CHANCE = np.random.default_rng(0)
VOCABULARY = 50
TEXT: list[int] = CHANCE.integers(0, VOCABULARY, 400).tolist()
OTHER: list[int] = CHANCE.integers(0, VOCABULARY, 400).tolist()


def modules_of(layer: Any) -> tuple[Any, Any]:
    """Attention, and the tensors of all experts."""
    block = layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe
    return layer.self_attn, block.experts


def inputs_by_transformers(model: Any, sequences: list[list[int]]) -> dict[str, NDArray[np.float64]]:
    """What each matrix is multiplied with, [n, columns], by llama2.c's names: of experts, by their own tokens."""
    owners: dict[int, str] = {}
    for i, layer in enumerate(model.model.layers):
        attention, experts = modules_of(layer)
        owners[attention.q_proj.weight.data_ptr()] = f"layers.{i}.attention.wq.weight"
        owners[attention.o_proj.weight.data_ptr()] = f"layers.{i}.attention.wo.weight"
        for e in range(EXPERTS):
            owners[experts.gate_up_proj[e].data_ptr()] = f"layers.{i}.feed_forward.experts.{e}.w3.weight"
            owners[experts.down_proj[e].data_ptr()] = f"layers.{i}.feed_forward.experts.{e}.w2.weight"
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in owners.values()}
    linear: Callable[..., torch.Tensor] = torch.nn.functional.linear

    def look(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if (name := owners.get(weight.data_ptr())) is not None:
            found[name].append(x.reshape(-1, x.shape[-1]).double().numpy())
        return linear(x, weight, bias)

    model.set_experts_implementation("eager")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "linear", look)
        for ids in sequences:
            model(torch.tensor([ids]))
    return {name: np.concatenate(rows) if rows else np.empty((0, 1)) for name, rows in found.items()}


def cut(text: list[int]) -> list[list[int]]:
    return [text[begin : begin + LENGTH] for begin in range(0, len(text), LENGTH)]


def knows_nothing(hessian: Hessian, mean: Callable[[Hessian], Products] = Hessian.mean) -> Products:
    """In place of `Hessian.mean`: GPTQ is rounding then."""
    return np.eye(len(mean(hessian)))


def logits(path: Path, text: list[int]) -> NDArray[np.float32]:
    with llama2cpp.load(path, kv_dtype="f32", activation_dtype="f32") as model:
        return np.stack([model.session().prefill(ids, all_logits=True) for ids in cut(text)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: CASES[name].save(tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_products_are_of_what_transformers_multiplies(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is rounded, in all layers: so the residual stream behind experts is transformers' too."""
    found: dict[str, Products] = {}

    def keep(weights: dict[str, Any], hessian: Products, *_: Any) -> dict[str, Rounded]:
        found.update(dict.fromkeys(weights, hessian))
        return {name: Rounded({}, weight, 0.0, 0.0) for name, weight in weights.items()}

    monkeypatch.setattr(gptq, "round_matrices", keep)
    with llama2cpp.load(folders[name]) as model:
        seen = {name: each.inputs for name, each in quantize(Source(model), cut(TEXT), Settings())}
        measured = importance_of_inputs(
            llama2cpp.load(folders[name], kv_dtype="f32", activation_dtype="f32"), cut(TEXT)
        )
    expected = inputs_by_transformers(CASES[name].model(), cut(TEXT))
    assert sum(map(len, expected.values())) > len(TEXT)
    for weight, inputs in expected.items():
        assert seen[weight] == len(inputs), weight
        assert largest_error(found[weight], inputs.T @ inputs / len(inputs)) < 1e-5, weight
        squares = np.square(inputs).mean(axis=0)
        assert largest_error(measured[weight], squares / squares.mean() + 0.01) < 1e-4, weight
        if weight.endswith("w3.weight"):
            np.testing.assert_array_equal(found[weight], found[weight.replace("w3", "w1")])
    assert set(found) == {weight for weight in measured if weight not in ("output.weight", "tok_embeddings.weight")}


@pytest.mark.parametrize("name", NAMES)
def test_gptq_loses_less_than_rounding(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the text that it has seen and on another, next to the same search of scales for inputs that know nothing."""

    def error(target: str) -> tuple[float, float]:
        text = Calibration(TEXT, length=LENGTH)
        done = convert(folders[name], tmp_path / target, "gptq4", calibration=text, group=16, tokenizer=False)
        assert done.formats["layers.1.feed_forward.experts.4.w2.weight"] == "gptq4"
        assert done.formats["layers.1.feed_forward.gate.weight"] == "f16"
        assert not any("expert" in note for note in done.notes)
        seen, other = (np.square(logits(done.path, ids) - logits(folders[name], ids)).mean() for ids in (TEXT, OTHER))
        return float(seen), float(other)

    fitted = error("fitted")
    monkeypatch.setattr(Hessian, "mean", knows_nothing)
    rounded = error("rounded")
    assert fitted[0] < 0.75 * rounded[0]
    assert fitted[1] < 0.85 * rounded[1]


def test_little_text_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    """By what each expert sees of it, with what was measured of so little; enough text is not remarked on."""
    for format, text, expected in (("gptq4", TEXT[:50], True), ("q4_k", TEXT[:50], False), ("gptq4", TEXT, None)):
        target = tmp_path / f"{format}-{len(text)}{'.gguf' if format == 'q4_k' else ''}"
        done = convert(folders["mixtral"], target, format, calibration=Calibration(text), tokenizer=False)
        notes = [note for note in done.notes if "calibration text" in note]
        assert len(notes) == (expected is not None)
        for note in notes:
            assert re.search(
                r"has 50 tokens, about \d+ for each of \d+ experts, and matrices have up to \d+ columns", note
            )
            assert note.endswith("with 400 tokens 0.73 to 0.79 times") == expected


@pytest.mark.parametrize("options", [{}, {"symmetric": False, "act_order": False}], ids=["v1", "v2"])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_and_panels_compute_the_same(
    name: str, options: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    text = Calibration(TEXT, length=LENGTH)
    folder = convert(
        folders[name], tmp_path / "m", "gptq4", calibration=text, group=16, tokenizer=False, **options
    ).path
    import transformers

    twin = transformers.AutoModelForCausalLM.from_pretrained(
        float_twin(folder, tmp_path / "floats"), dtype=torch.float32, attn_implementation="eager"
    )
    with llama2cpp.load(folder, kv_dtype="f32", activation_dtype="f32") as model:
        found = model.session().prefill(TOKENS, all_logits=True)
        assert largest_error(found, expected_logits(twin, TOKENS)) < 1e-5
        experts = [weight for weight in model.weights if ".experts." in weight]
        kinds = {model.weights.info(weight)["format"] for weight in experts}
        assert kinds == {"gptq4_v2" if options else "gptq4"}
        for threads in (1, 3):
            with llama2cpp.load(folder, kv_dtype="f32", activation_dtype="f32", threads=threads) as other:
                np.testing.assert_array_equal(other.session().prefill(TOKENS, all_logits=True), found)
    panels = convert(folder, tmp_path / "m.safetensors", tokenizer=False).path
    with llama2cpp.load(panels, kv_dtype="f32", activation_dtype="f32") as packed:
        np.testing.assert_array_equal(packed.session().prefill(TOKENS, all_logits=True), found)


def test_names_are_those_of_gptqmodel(folders: dict[str, Path], tmp_path: Path) -> None:
    """As its definitions of these models have them; a router is none of its modules."""
    stems = {
        "mixtral": ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w2", "block_sparse_moe.gate"),
        "qwen3_moe": ("mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj", "mlp.gate"),
        "olmoe": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.down_proj", "mlp.gate"),
        "granitemoe": (
            "block_sparse_moe.input_linear.{}.linear",
            "block_sparse_moe.output_linear.{}.linear",
            "block_sparse_moe.router.layer",
        ),
    }
    for name, (first, last, router) in stems.items():
        convert(folders[name], tmp_path / name, "gptq8", calibration=Calibration(TEXT), group=8, tokenizer=False)
        tensors = load_file(tmp_path / name / "model.safetensors")
        for stem in (first, last):
            for expert in range(EXPERTS):
                for part in ("qweight", "qzeros", "scales", "g_idx"):
                    assert f"model.layers.1.{stem.format(expert)}.{part}" in tensors
        assert tensors[f"model.layers.1.{router}.weight"].dtype == np.float16


def test_little_text_says_which_experts_saw_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expert without tokens is rounded; few tokens count for less, and less is lost on other text by it."""

    def made(target: str, text: list[int]) -> llama2cpp.export.Conversion:
        few = Calibration(text, length=LENGTH)
        return convert(folders["mixtral"], tmp_path / target, "gptq4", calibration=few, group=16, tokenizer=False)

    done = made("few", [7] * 4)
    (unseen,) = [note for note in done.notes if "saw no token" in note]
    (little,) = [note for note in done.notes if "saw fewer tokens" in note]
    expert = re.search(r"experts? (\d) of layer (\d)", unseen)
    assert expert is not None
    assert re.search(r"\d tokens, 32 columns", little)
    expected = logits(folders["mixtral"], OTHER)
    paths = [made("damped", TEXT[:50]).path]
    with monkeypatch.context() as patch:
        patch.setattr(Settings, "damping", lambda self, inputs, columns: self.damp)
        paths.append(made("plain", TEXT[:50]).path)
    errors = [np.square(logits(path, OTHER) - expected).mean() for path in paths]
    assert errors[0] < errors[1]
    monkeypatch.setattr(Hessian, "mean", knows_nothing)
    weight = f"layers.{expert[2]}.feed_forward.experts.{expert[1]}.w3.weight"
    sources = [Source(llama2cpp.load(path)) for path in (done.path, made("rounded", TEXT[:50]).path)]
    arrays = [source.array(weight, "half_split") for source in sources]
    np.testing.assert_array_equal(arrays[0], arrays[1])


def test_one_expert_s_products_at_a_time(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    most = 0
    made, gone = Hessian.__post_init__, Hessian.mean

    def begin(self: Hessian) -> None:
        nonlocal most
        made(self)
        alive.append(id(self))
        most = max(most, len(set(alive)))

    def end(self: Hessian) -> Products:
        if id(self) in alive:
            alive.remove(id(self))
        return gone(self)

    monkeypatch.setattr(Hessian, "__post_init__", begin)
    monkeypatch.setattr(Hessian, "mean", end)
    with llama2cpp.load(folders["olmoe"]) as model:
        assert sum(1 for _ in quantize(Source(model), cut(TEXT), Settings(group=16))) == 2 * (4 + 3 * EXPERTS)
    assert most == 1


@pytest.mark.parametrize("name", [*NAMES, "gpt_oss"])
def test_other_types_for_text(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Importance of columns, of each expert its own: less is lost on the text."""
    if name == "gpt_oss":
        gpt_oss_models.made().save_pretrained(tmp_path / "gpt_oss")
    source = folders.get(name, tmp_path / "gpt_oss")
    expected = logits(source, TEXT)
    errors = []
    for target, text in (("plain", None), ("fitted", Calibration(TEXT, length=LENGTH))):
        done = convert(source, tmp_path / f"{target}.safetensors", "q4_0", calibration=text, tokenizer=False, pure=True)
        errors.append(float(np.square(logits(done.path, TEXT) - expected).mean()))
    assert errors[1] < errors[0]


@pytest.fixture
def quantized(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A folder of GPTQ whose tensors can be changed."""

    def make(name: str, change: Callable[[dict[str, NDArray[Any]]], object]) -> Path:
        folder = tmp_path / f"{name}-changed"
        text = Calibration(TEXT, length=LENGTH)
        convert(folders[name], folder, "gptq4", calibration=text, group=16, tokenizer=False, force=True)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def test_biases_of_zeros_are_passed_over(quantized: Callable[..., Path]) -> None:
    """AutoGPTQ's Mixtral has them; others are no model that transformers has."""
    name = "model.layers.0.block_sparse_moe.experts.0.w1.bias"

    def logits_with(bias: NDArray[np.float16] | None) -> NDArray[np.float32]:
        folder = quantized("mixtral", lambda tensors: None if bias is None else tensors.update({name: bias}))
        return logits(folder, TOKENS)

    np.testing.assert_array_equal(logits_with(np.zeros(32, np.float16)), logits_with(None))
    with pytest.raises(llama2cpp.FormatError, match=r"is there, but config\.json has no mlp_bias"):
        logits_with(np.ones(32, np.float16))


def test_a_quantized_router_is_read(tmp_path: Path) -> None:
    """As in folders whose writer took every Linear. Its planes are those of an expert's first rows."""
    settings = CASES["qwen3_moe"].settings | {"num_local_experts": 8, "num_experts": 8}
    source = replace(CASES["qwen3_moe"], settings=settings).save(tmp_path / "floats")
    text = Calibration(TEXT, length=LENGTH)
    folder = convert(source, tmp_path / "m", "gptq4", calibration=text, group=16, tokenizer=False).path
    tensors = load_file(folder / "model.safetensors")
    rows = {"qweight": slice(8), "scales": slice(8), "qzeros": slice(1)}
    for i in range(2):
        expert, router = f"model.layers.{i}.mlp.experts.0.up_proj", f"model.layers.{i}.mlp.gate"
        del tensors[f"{router}.weight"]
        for part in gptq.PARTS:
            plane = tensors[f"{expert}.{part}"]
            tensors[f"{router}.{part}"] = np.ascontiguousarray(plane[:, rows[part]]) if part in rows else plane.copy()
    save_file(tensors, folder / "model.safetensors")
    with llama2cpp.load(folder) as model:
        for i in range(2):
            weights = [model.weights[f"model.layers.{i}.mlp.{stem}.weight"] for stem in ("gate", "experts.0.up_proj")]
            np.testing.assert_array_equal(weights[0], weights[1][:8])
        assert np.isfinite(model.session().prefill(TOKENS)).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen3_moe", "mlp.experts.3.up_proj.qzeros", r"experts\.3\.up_proj\.qzeros\" is missing"),
        ("qwen3_moe", "mlp.experts.3.up_proj.qweight", r"experts\.3\.up_proj\.qweight\" is missing"),
        ("mixtral", "block_sparse_moe.experts.2.w2.scales", r"experts\.2\.down_proj\.scales\" is missing"),
        ("granitemoe", "block_sparse_moe.input_linear.4.linear.qzeros", r"experts\.4\.\w+\.qzeros\" is missing"),
    ],
)
def test_missing_planes(name: str, change: str, message: str, quantized: Callable[..., Path]) -> None:
    with pytest.raises(llama2cpp.FormatError, match=message):
        llama2cpp.load(quantized(name, lambda tensors: tensors.pop(f"model.layers.1.{change}")))


@pytest.mark.parametrize(
    ("stem", "changed", "message"),
    [
        ("input_linear.4.linear.qweight", lambda plane: plane[:, :-1], r"expected 64 rows of 2 weights"),
        ("input_linear.4.linear.qzeros", lambda plane: plane[:, :-1], "no whole number of its columns"),
        ("input_linear.4.linear.g_idx", lambda plane: plane[:-1], "g_idx"),
        ("output_linear.4.linear.scales", lambda plane: plane[:, :-1], r"expected 32 rows of 1 weights"),
        ("input_linear.5.linear.qweight", None, "has no place"),
        ("input_linear.-1.linear.qweight", None, "has no place"),
        ("input_linear.linear.qweight", None, "has no place"),
    ],
)
def test_misshapen_modules(stem: str, changed: Any, message: str, quantized: Callable[..., Path]) -> None:
    name = f"model.layers.1.block_sparse_moe.{stem}"

    def change(tensors: dict[str, NDArray[Any]]) -> None:
        usual = tensors["model.layers.1.block_sparse_moe.input_linear.4.linear.qweight"]
        tensors[name] = np.ascontiguousarray(usual if changed is None else changed(tensors[name]))

    with pytest.raises(llama2cpp.FormatError, match=message):
        llama2cpp.load(quantized("granitemoe", change))


def test_what_is_not_done_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    gpt_oss_models.made().save_pretrained(tmp_path / "gpt_oss")
    text = Calibration(TOKENS)
    with pytest.raises(ValueError, match=r"gpt-oss's experts, whose gate and up are one matrix .*n_experts 5"):
        convert(tmp_path / "gpt_oss", tmp_path / "m", "gptq4", calibration=text, group=16, tokenizer=False)
    file = tmp_path / "gpt_oss" / "config.json"
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    with pytest.raises(llama2cpp.FormatError, match="gptq4, of gate and up in turn"):
        llama2cpp.load(tmp_path / "gpt_oss")
    with pytest.raises(ValueError, match="llm_int8 is not implemented for models with experts"):
        convert(folders["mixtral"], tmp_path / "m", "llm_int8", calibration=text, tokenizer=False)
    assert tensors_of(folders["mixtral"])
