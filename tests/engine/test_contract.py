"""The numerics contract: batch-invariant, and the same bits with any threads, chunks, packing and SIMD level.

On Metal, of which less is promised, the same numbers but for roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from on_metal import ON_METAL, agree

import llama2cpp

# Sums longer than a block of 256 weights, attention over more than a tile of 256 positions, no round size anywhere.
CONFIG = tiny.config(dim=276, hidden_dim=530, n_heads=6, n_kv_heads=2, vocab_size=301, seq_len=300)
TOKENS = tiny.tokens(CONFIG, 280)
if ON_METAL:  # a token of so large a model takes the software device a while
    CONFIG = tiny.config(vocab_size=301, seq_len=300)
    TOKENS = tiny.tokens(CONFIG, 100)
Logits = NDArray[np.float32]


def logits_of(model: llama2cpp.Model, tokens: Sequence[int] = TOKENS) -> Logits:
    return model.session().prefill(tokens, all_logits=True)


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG)


@pytest.fixture(scope="module")
def expected(model: llama2cpp.Model) -> Logits:
    return logits_of(model)


@pytest.mark.cpu_bits("threads")
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads(expected: Logits, threads: int) -> None:
    model = tiny.model(CONFIG, threads=threads)
    assert model.threads == threads
    assert agree(logits_of(model), expected)


@pytest.mark.cpu_bits("kernels and packing of the CPU")
@pytest.mark.parametrize("isa", tiny.ISAS)
@pytest.mark.parametrize("pack", ["always", "never"])
def test_isa_and_pack(expected: Logits, monkeypatch: pytest.MonkeyPatch, isa: str, pack: str) -> None:
    tiny.choose_isa(monkeypatch, isa)
    model = tiny.model(CONFIG, pack=pack)
    assert model.isa == isa.partition("-")[0]
    assert agree(logits_of(model), expected)


@given(chunks=st.lists(st.integers(1, 90), max_size=6))
def test_chunked_prefill(model: llama2cpp.Model, expected: Logits, chunks: list[int]) -> None:
    session = model.session()
    parts = []
    for size in [*chunks, len(TOKENS)]:
        chunk = TOKENS[session.position : session.position + size]
        if chunk:
            parts.append(session.prefill(chunk, all_logits=True))
    assert agree(np.concatenate(parts), expected)


def test_step_by_step(model: llama2cpp.Model, expected: Logits) -> None:
    session = model.session()
    assert agree(np.stack([session.step(token) for token in TOKENS]), expected)


@given(
    prompts=st.lists(st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=40), min_size=1, max_size=9)
)
def test_sessions_in_one_pass(model: llama2cpp.Model, prompts: list[list[int]]) -> None:
    sessions = [model.session() for _ in prompts]
    for session in sessions[::2]:
        session.prefill([7, 8, 9])  # so that they stand at different positions
    together = model.forward(list(zip(sessions, prompts, strict=True)))
    for i, (prompt, logits) in enumerate(zip(prompts, together, strict=True)):
        alone = model.session().prefill(prompt if i % 2 else [7, 8, 9, *prompt])
        assert agree(logits, alone)
        after = sessions[i].logits
        assert after is not None
        assert agree(after, alone)


@given(keep=st.integers(0, 60), other=st.lists(st.integers(0, CONFIG.vocab_size - 1), max_size=20))
def test_rewind(model: llama2cpp.Model, keep: int, other: list[int]) -> None:
    """What was there after the position has no part in what comes."""
    session = model.session()
    session.prefill(TOKENS[:60])
    session.rewind(keep)
    if other:
        session.prefill(other)
        session.kv.keys(0)[keep:] = np.nan
        session.kv.values(1)[keep:] = np.nan
        session.rewind(keep)
    assert agree(session.prefill(TOKENS[keep:70]), model.session().prefill(TOKENS[:70]))


def test_fork(model: llama2cpp.Model) -> None:
    session = model.session()
    session.prefill(TOKENS[:50])
    fork = session.fork()
    session.step(1)
    session.kv.values(0)[:] = 0
    assert agree(fork.prefill(TOKENS[50:70]), model.session().prefill(TOKENS[:70]))


def test_keys_and_values_written(model: llama2cpp.Model) -> None:
    """A session with another's keys and values continues as that other."""
    one, two = model.session(), model.session()
    one.prefill(TOKENS[:20])
    two.prefill(TOKENS[20:40])
    before = one.fork().step(3)
    for layer in range(CONFIG.n_layers):
        one.kv.keys(layer)[:] = two.kv.keys(layer)
        one.kv.values(layer)[:] = two.kv.values(layer)
    after = one.step(3)
    assert agree(after, two.step(3))
    assert not agree(after, before)


def test_mmap_or_read(stories_dir: Path) -> None:
    path = stories_dir / "stories260K.bin"
    tokens = tiny.tokens(llama2cpp.load(path).config, 100)
    mapped, read = (logits_of(llama2cpp.load(path, mmap=mmap), tokens) for mmap in (True, False))
    assert mapped.tobytes() == read.tobytes()


@pytest.mark.cpu_bits("the floating-point mode of the CPU")
@pytest.mark.parametrize("threads", [1, 2])
def test_caller_that_flushes_denormals(threads: int) -> None:
    """The floating-point mode of the caller neither reaches the bits nor is changed."""
    config = tiny.config()
    weights = tiny.arrays(config)
    weights["tok_embeddings.weight"] *= np.float32(1e-41)  # the residual stream begins denormal
    tokens = tiny.tokens(config, 40)

    def flushing() -> bool:
        return float(torch.tensor([1e-30]) * torch.tensor([1e-10])) == 0.0

    def run() -> tuple[bytes, bytes]:
        session = llama2cpp.from_arrays(config, weights, threads=threads).session()
        return session.prefill(tokens).tobytes(), session.kv.values(1).tobytes()

    expected = run()
    assert any(expected[0])
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        assert flushing()
        got = run()
        assert flushing()
    finally:
        torch.set_flush_denormal(False)
    assert not flushing()
    assert got == expected
