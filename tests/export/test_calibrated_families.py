"""Calibration text in each kind of layer: inputs are what transformers multiplies with, and GPTQ gains by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import CASES, TOKENS
from numpy.typing import NDArray
from reference import largest_error

import llama2cpp
from llama2cpp.export import Calibration, convert
from llama2cpp.export.calibration import Hessian, importance_of_inputs, inputs_of
from llama2cpp.export.gptq import _HALVES, _part_of_layer
from llama2cpp.export.outliers import outlier_columns
from llama2cpp.export.source import Source

# LayerNorm with biases, with gains alone and with none; norms after and both; no gate; both halves beside each other; a
# theta of layers with a window; and a plain one.
NAMES = [
    *("qwen2", "cohere", "cohere2", "olmo", "starcoder2", "stablelm", "stablelm-parallel", "nemotron-biases"),
    *("gemma2", "gemma3", "arcee", "olmo2-grouped", "olmo3-yarn", "exaone4", "glm4"),
]
MODULES = {
    "attention.wq": ("self_attn.q_proj",),
    "attention.wo": ("self_attn.o_proj",),
    "feed_forward.w3": ("mlp.up_proj", "mlp.c_fc", "mlp.gate_up_proj"),
    "feed_forward.w2": ("mlp.down_proj", "mlp.c_proj"),
}


def inputs_of_modules(model: Any) -> dict[str, NDArray[np.float64]]:
    """What transformers multiplies matrices with, [T, columns], by llama2.c's names."""
    found: dict[str, NDArray[np.float64]] = {}

    def look(name: str) -> Any:
        def keep(module: Any, args: Any) -> None:
            found[name] = args[0][0].detach().numpy().astype(np.float64)

        return keep

    for i, layer in enumerate(model.model.layers):
        for name, modules in MODULES.items():
            (module,) = [found for path, found in layer.named_modules() if path in modules]
            module.register_forward_pre_hook(look(f"layers.{i}.{name}.weight"))
    model.lm_head.register_forward_pre_hook(look("output.weight"))
    with torch.no_grad():
        model(torch.tensor([TOKENS]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = CASES[name].model()
    model.save_pretrained(tmp_path)
    expected = inputs_of_modules(model)
    ours = llama2cpp.load(tmp_path, kv_dtype="f32", activation_dtype="f32")
    importance = importance_of_inputs(ours, [TOKENS])
    columns = outlier_columns(ours, [TOKENS], threshold=1.5)
    for weight, inputs in expected.items():
        own = "tok_embeddings.weight" if ours.config.tied and weight == "output.weight" else weight
        squares = np.square(inputs).mean(axis=0)
        assert largest_error(importance[own], squares / squares.mean() + 0.01) < 1e-4, weight
        if weight != "output.weight":
            most = np.abs(inputs).max(axis=0)
            chosen = np.isin(np.arange(len(most)), columns[weight])
            far = np.abs(most - 1.5) > 1e-4  # beyond rounding
            assert np.array_equal(chosen[far], most[far] >= 1.5), weight
    assert sum(map(len, columns.values())) > 0


@pytest.mark.parametrize(
    "name", ["cohere", "olmo", "starcoder2", "stablelm-parallel", "gemma3", "arcee", "olmo2-grouped"]
)
def test_gptq_loses_less_than_rounding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the text that it has seen, next to the same search of scales for inputs that know nothing of each other."""
    source = CASES[name].save(tmp_path / "source")
    chance = np.random.default_rng(0)
    text = chance.integers(0, llama2cpp.load(source).config.vocab_size, 400).tolist()
    length = 25
    calibration = Calibration(text, length=length)

    def logits(path: Path) -> NDArray[np.float32]:
        with llama2cpp.load(path, kv_dtype="f32", activation_dtype="f32") as model:
            parts = range(0, len(text), length)
            return np.stack([model.session().prefill(text[i : i + length], all_logits=True) for i in parts])

    def error(target: str) -> float:
        done = convert(source, tmp_path / target, "gptq4", calibration=calibration, group=16, tokenizer=False)
        assert sum(format == "gptq4" for format in done.formats.values()) >= 6
        return float(np.square(logits(done.path) - expected).mean())

    expected = logits(source)
    fitted = error("fitted")
    monkeypatch.setattr(Hessian, "mean", lambda self: np.eye(self.columns))
    assert fitted < 0.8 * error("rounded")


@pytest.mark.parametrize("name", ["cohere", "starcoder2", "gemma3"])
def test_other_types_for_text(name: str, tmp_path: Path) -> None:
    source = CASES[name].save(tmp_path / "source")
    text = Calibration(TOKENS)
    for target, format in (("m.gguf", "q5_k"), ("m", "llm_int8")):
        done = convert(source, tmp_path / target, format, calibration=text, tokenizer=False)
        with llama2cpp.load(done.path) as found, llama2cpp.load(source) as model:
            logits = [each.session().prefill(TOKENS) for each in (found, model)]
        assert 0 < largest_error(*logits) < 0.3


@pytest.mark.parametrize("name", ["qwen3-biases", "granite", "granite-biases", "seed_oss-out"])
def test_what_a_half_adds_is_what_a_pass_adds(name: str, tmp_path: Path) -> None:
    """The last matrix's product alone, with its bias and the residual multiplier, has the bits of a whole pass."""
    CASES[name].model().save_pretrained(tmp_path)
    source = Source(llama2cpp.load(tmp_path, kv_dtype="f32", activation_dtype="f32"))
    rng = np.random.default_rng(0)
    streams = [rng.standard_normal((tokens, source.config.dim), np.float32) for tokens in (1, 19)]
    for scopes in _HALVES:
        part = _part_of_layer(source, 1, scopes, "half_split", None)
        *_, last = [each for each in inputs_of(source.config, source) if each.matrices[0].scope in scopes]
        added = list(part.products(last.matrices[0], list(part.inputs(streams, last))))
        for stream, each, after in zip(streams, added, part.run(streams), strict=True):
            assert np.abs(each).max() > 0
            np.testing.assert_array_equal(stream + each, after)
