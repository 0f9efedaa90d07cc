"""Every tensor of every family's folder is ``weights[name]`` by the name that the file has for it, with its numbers."""

from __future__ import annotations

from pathlib import Path

import expert_models
import family_models
import gpt_oss_models
import numpy as np
import pytest
from family_models import TOKENS, Case, logits_of
from safetensors.numpy import load_file

import llama2cpp

ALL = family_models.CASES | expert_models.CASES | {"gpt_oss": Case("gpt_oss", gpt_oss_models.SETTINGS)}
# One case of each family.
CASES = {case.model_type: case for case in reversed(ALL.values())}


@pytest.mark.parametrize("model_type", CASES)
def test_every_tensor_has_its_name(model_type: str, tmp_path: Path) -> None:
    folder = CASES[model_type].save(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    with llama2cpp.load(folder) as model:
        weights = model.weights
        for name, array in tensors.items():
            assert name in weights, name
            assert np.array_equal(weights[name], array), name
            assert tuple(weights.info(name)["shape"]) == array.shape, name
        # And none is listed that the file does not have, but for parts of tensors that hold several.
        for name in set(weights) - set(tensors):
            assert not model._core.file_tensors().get(name, ([],))[0], name
            assert any(name in whole[0] for whole in model._core.file_tensors().values()), name


def test_edits_by_the_files_names(tmp_path: Path) -> None:
    """Gemma 2's norms, of which one is called as a Llama's other, without the 1 that is added to gains."""
    folder = CASES["gemma2"].save(tmp_path / "m")
    with llama2cpp.load(folder, kv_dtype="f32") as model:
        for norm in ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            name = f"model.layers.1.{norm}.weight"
            gain = model.weights[name] * 2 + 0.25
            edited = model.with_weights({name: gain})
            assert np.abs(edited.weights[name] - gain).max() < 1e-6
            case = CASES["gemma2"].model()
            parameter = dict(case.named_parameters())[name]
            parameter.data[:] = parameter.data.new_tensor(gain)
            case.save_pretrained(tmp_path / norm)
            expected = logits_of(tmp_path / norm, TOKENS)
            found = edited.session().prefill(TOKENS, all_logits=True)
            assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
            assert np.array_equal(
                model.weights["blocks.1.ln1_post.w"],
                1 + model.weights["model.layers.1.post_attention_layernorm.weight"],
            )


def test_several_weights_are_not_edited_as_one(tmp_path: Path) -> None:
    folder = CASES["phi3"].save(tmp_path / "m")
    with llama2cpp.load(folder) as model:
        name = "model.layers.0.self_attn.qkv_proj.weight"
        with pytest.raises(ValueError, match=r"holds several weights: give them by their names, such as .*q_proj"):
            model.with_weights({name: model.weights[name]})
