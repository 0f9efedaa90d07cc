"""Logits, keys and values against PyTorch: a reference written from the papers, and transformers' Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from on_metal import ON_METAL, examples

import llama2cpp

TOLERANCE = 1e-5  # of the largest value


@st.composite
def configs(draw: st.DrawFn) -> llama2cpp.Config:
    n_kv_heads = draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 20))
    return llama2cpp.Config(
        dim=draw(st.just(n_heads * head_dim) | st.integers(8, 90)),
        hidden_dim=draw(st.integers(1, 150)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=draw(st.integers(10, 150)),
        seq_len=draw(st.integers(24, 40)),
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.sampled_from([1e4, 5e5])),
        rope_style=draw(st.sampled_from(["interleaved", "half_split"])),
        tied=draw(st.booleans()),
    )


def check(config: llama2cpp.Config, model: llama2cpp.Model, tokens: list[int], expected: reference.Result) -> None:
    """Half of the tokens in one prefill, the others step by step."""
    session = model.session()
    half = len(tokens) // 2
    logits = [*session.prefill(tokens[:half], all_logits=True), *(session.step(token) for token in tokens[half:])]
    assert reference.largest_error(np.stack(logits), expected.logits) < TOLERANCE
    for layer in range(config.n_layers):
        assert reference.largest_error(session.kv.keys(layer), expected.keys[layer]) < TOLERANCE
        assert reference.largest_error(session.kv.values(layer), expected.values[layer]) < TOLERANCE


@settings(max_examples=examples(60))
@given(config=configs(), seed=st.integers(0, 10**6))
def test_reference(config: llama2cpp.Config, seed: int) -> None:
    weights = tiny.arrays(config, seed)
    tokens = tiny.tokens(config, 24, seed)
    check(config, llama2cpp.from_arrays(config, weights), tokens, reference.run(config, weights, tokens))


@settings(max_examples=examples(30))
@given(config=configs(), seed=st.integers(0, 10**6))
def test_transformers(config: llama2cpp.Config, seed: int) -> None:
    """Weights out of a Hugging Face model, under its names and in its order of rotary pairs."""
    whole = (
        -(-config.dim // config.n_heads) * config.n_heads
    )  # they want dim to be a multiple of the heads all the same
    config = llama2cpp.Config(**(config.to_dict() | {"dim": whole, "rope_style": "half_split"}))
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
    }
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    arrays = {name: weight.detach().numpy() for name, weight in theirs.state_dict().items()}
    if config.tied:
        arrays.pop("lm_head.weight", None)
    tokens = tiny.tokens(config, 24, seed)
    with torch.no_grad():  # in double: its own float32 is up to 1.4e-5 away from that on such wild weights
        expected = theirs.double()(torch.tensor([tokens])).logits[0]
    session = llama2cpp.from_arrays(config, arrays).session()
    logits = [*session.prefill(tokens[:12], all_logits=True), *(session.step(token) for token in tokens[12:])]
    # Twice: on a hidden_dim of 1 and the like, float32 itself goes that far (1.07e-5 has been seen of ours).
    assert reference.largest_error(np.stack(logits), expected) < 2 * TOLERANCE


def test_both_families_of_names_are_one_model() -> None:
    config = tiny.config()
    weights = tiny.arrays(config)
    tokens = tiny.tokens(config, 10)
    ours = llama2cpp.from_arrays(config, weights).session().prefill(tokens)
    theirs = llama2cpp.from_arrays(config, tiny.hugging_face_names(weights)).session().prefill(tokens)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("file", ["stories260K.bin", "stories260K_v1.bin"])
def test_stories(stories_dir: Path, file: str) -> None:
    """A trained model over its whole context (on Metal a part); both versions of llama2.c's file."""
    model = llama2cpp.load(stories_dir / file)
    length = 100 if ON_METAL else model.config.seq_len
    tokens = [1, *tiny.tokens(model.config, length - 1)]
    weights = dict(model.weights)
    check(model.config, model, tokens, reference.run(model.config, weights, tokens))
