"""Models whose output matrix is the embedding table, under whichever of the two names a file has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import Spec, change_json, replace_tensor, tensors_of, transformers_logits, write_tensors
from meta_files import of_transformers, save_meta_folder
from reference import largest_error
from safetensors.torch import save_file, save_model
from test_hf_folder import TOKENS, logits_of
from transformers import AutoModelForCausalLM

import llama2cpp
from llama2cpp import FormatError, export

TIED = {"tie_word_embeddings": True}


def only_output(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write_tensors(folder, tensors)


@pytest.mark.parametrize("mistral", [False, True])
def test_what_save_model_writes(tmp_path: Path, mistral: bool) -> None:
    """safetensors' own writer keeps one name of two: the output's."""
    spec = Spec(mistral, TIED)
    spec.save(tmp_path)
    wanted = transformers_logits(tmp_path, TOKENS)
    save_model(spec.model(), str(tmp_path / "model.safetensors"))
    assert "model.embed_tokens.weight" not in tensors_of(tmp_path)
    assert largest_error(transformers_logits(tmp_path, TOKENS), wanted) < 1e-6
    assert largest_error(logits_of(tmp_path), wanted) < 1e-5
    with llama2cpp.load(tmp_path) as model:
        assert model.config.tied
        assert "model.embed_tokens.weight" in model.weights
        assert "lm_head.weight" not in model.weights


def test_in_shards(tmp_path: Path) -> None:
    Spec(settings=TIED).save(tmp_path)
    wanted = transformers_logits(tmp_path, TOKENS)
    only_output(tmp_path)
    tensors = tensors_of(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    change_json(tmp_path / "model.safetensors.index.json", metadata={}, weight_map=weight_map)
    assert largest_error(logits_of(tmp_path), wanted) < 1e-5


def test_a_model_that_is_not_tied_needs_both(tmp_path: Path) -> None:
    Spec().save(tmp_path)
    replace_tensor(tmp_path, "model.embed_tokens.weight", None)
    with pytest.raises(FormatError, match=r"'model\.embed_tokens\.weight' is missing"):
        llama2cpp.load(tmp_path)


@pytest.mark.parametrize("mistral", [False, True])
def test_the_base_model_alone(tmp_path: Path, mistral: bool) -> None:
    """LlamaModel: no output matrix, and names without "model."."""
    model = Spec(mistral, TIED).model()
    model.model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in tensors_of(tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    theirs.eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([TOKENS])).logits[0].double().numpy()
    assert largest_error(logits_of(tmp_path), wanted) < 1e-5


def test_the_base_model_of_one_that_is_not_tied(tmp_path: Path) -> None:
    Spec().model().model.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"'lm_head\.weight' is missing"):
        llama2cpp.load(tmp_path)


def test_arrays(tmp_path: Path) -> None:
    Spec(settings=TIED).save(tmp_path)
    wanted = logits_of(tmp_path)
    only_output(tmp_path)
    arrays = {name: tensor.numpy() for name, tensor in tensors_of(tmp_path).items()}
    config = llama2cpp.load(tmp_path).config
    with llama2cpp.from_arrays(config, arrays, kv_dtype="f32") as model:
        assert np.array_equal(model.session().prefill(TOKENS, all_logits=True), wanted)


def test_files_of_pytorch(tmp_path: Path) -> None:
    model = Spec(settings=TIED).model()
    Spec(settings=TIED).save(tmp_path / "hf")
    wanted = transformers_logits(tmp_path / "hf", TOKENS)
    weights = of_transformers(model)
    del weights["tok_embeddings.weight"]
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "norm_eps": 1e-6}
    meta = save_meta_folder(tmp_path / "meta", [weights], params | {"vocab_size": 50})
    training = tmp_path / "ckpt.pt"
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64, "norm_eps": 1e-6}
    torch.save({"model": weights, "model_args": args}, training)
    for source in (meta, training):
        target = tmp_path / f"{source.name}.gguf"
        export.convert(source, target, "f32")
        assert llama2cpp.load(target).config.tied
        assert largest_error(logits_of(target), wanted) < 1e-5
