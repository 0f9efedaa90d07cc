"""Model.score and Model.embed, held against transformers."""

from __future__ import annotations

from pathlib import Path

import family_models
import numpy as np
import pytest
import torch
from on_metal import agree

import llama2cpp
from llama2cpp import interventions

TOKENS = family_models.TOKENS
# One of each kind of last norm: RMS, LayerNorm with a bias, LayerNorm without gain.
CASES = ["qwen2", "starcoder2", "olmo"]


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("model")
    family_models.CASES[request.param].save(path)
    return path, request.param


def test_scores_are_transformers(folder: tuple[Path, str]) -> None:
    path, case = folder
    logprobs = torch.log_softmax(
        torch.from_numpy(family_models.expected_logits(family_models.CASES[case].model(), TOKENS)), dim=-1
    ).numpy()
    with llama2cpp.load(path, precision="exact") as model:
        for cut in (1, 7, len(TOKENS) - 1):
            for end in (cut + 1, len(TOKENS)):
                score = model.score(TOKENS[:cut], TOKENS[cut:end])
                expected = [logprobs[at - 1, TOKENS[at]] for at in range(cut, end)]
                np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
                np.testing.assert_allclose(score.logprob, sum(expected), atol=1e-4)
                assert score.tokens == tuple(TOKENS[cut:end])
                assert score.greedy == all(logprobs[at - 1].argmax() == TOKENS[at] for at in range(cut, end))


def test_vectors_are_transformers(folder: tuple[Path, str]) -> None:
    path, case = folder
    with torch.no_grad():
        base = family_models.CASES[case].model().model
        states = base(torch.tensor([TOKENS])).last_hidden_state[0].numpy()
    with llama2cpp.load(path, precision="exact") as model:
        np.testing.assert_allclose(model.embed(TOKENS), states.mean(axis=0), atol=2e-5)
        np.testing.assert_allclose(model.embed(TOKENS, "last"), states[-1], atol=5e-5)
        both = model.embed([TOKENS, TOKENS[:4]], normalize=True)
        np.testing.assert_allclose(np.linalg.norm(both, axis=-1), 1, rtol=1e-6)


@pytest.mark.cpu_bits("no sequence's bits depend on others of its pass")
def test_scores_do_not_depend_on_their_company() -> None:
    model = llama2cpp.load("storyteller")
    together = model.score("Once upon a", [" time", " dog", " big dog ran away"])
    alone = [model.score("Once upon a", text) for text in (" time", " dog", " big dog ran away")]
    assert together == alone
    assert model.score("Once upon a", []) == []
    ids = model.tokenizer.encode("Once upon a")
    assert model.score(ids, together[2].tokens) == together[2]
    assert model.score("Once upon a ", "time") == together[0]  # the space is the word's
    with model.hooks([interventions.zero("mlp_out")]):
        assert model.score("Once upon a", " time") == together[0]  # hooks are for texts


def test_texts_share_a_call_and_not_their_vectors() -> None:
    model = llama2cpp.load("storyteller")
    texts = ["The dog ran.", "A cat.", "Once upon a time, " * 40]
    many = model.embed(texts)
    for text, vector in zip(texts, many, strict=True):
        assert agree(model.embed(text), vector)


def test_wrong_calls() -> None:
    model = llama2cpp.load("storyteller")
    with pytest.raises(ValueError, match="pooling is 'max', expected 'mean' or 'last'"):
        model.embed("The dog", "max")
    with pytest.raises(ValueError, match=r"embed: text 1: there are no tokens"):
        model.embed([[1, 2], []])
    with pytest.raises(ValueError, match=r"the continuation .* has no tokens of its own"):
        model.score("The dog", "")
    with pytest.raises(ValueError, match="the context has no tokens"):
        model.score([], [5])
    with pytest.raises(ValueError, match="score: a token is 100000"):
        model.score([1], [100_000])
    with pytest.raises(llama2cpp.ContextFullError, match="score: there are 600 tokens"):
        model.score([1], [5] * 600)
