"""Recordings: the bits of run_with_cache, whatever feeds the tokens and however sessions turn back."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from hook_helpers import Array, everything
from hypothesis import given, settings
from hypothesis import strategies as st
from on_metal import agree, examples

import llama2cpp
from llama2cpp import interventions


def assert_same(cache: llama2cpp.ActivationCache, expected: llama2cpp.ActivationCache) -> None:
    """Equal bits under all names; ln_final only where the recording has it."""
    assert list(cache) == list(expected)
    for name, array in cache.items():
        there = expected[name]
        assert array.shape == there.shape, name
        assert array.dtype == np.float32
        if name.startswith("ln_final"):
            missing = np.isnan(array)
            assert not missing[0, -1].any(), name  # the last token's logits are always made
            there = np.where(missing, array, there)
        assert agree(array, there), name


def cache_of(
    model: llama2cpp.Model, tokens: list[int], names: Any = everything, hooks: Any = ()
) -> llama2cpp.ActivationCache:
    with model.hooks(hooks):
        return model.run_with_cache(tokens, names)[1]


# --- what feeds the tokens


def feed_steps(session: llama2cpp.Session, tokens: list[int]) -> None:
    for token in tokens:
        session.step(token)


def feed_prefill(session: llama2cpp.Session, tokens: list[int]) -> None:
    session.prefill(tokens)


def feed_pieces(session: llama2cpp.Session, tokens: list[int]) -> None:
    session.prefill(tokens[:3], all_logits=True)
    session.step(tokens[3])
    session.prefill(tokens[4:])


@pytest.mark.parametrize("feed", [feed_steps, feed_prefill, feed_pieces])
def test_it_has_the_bits_of_a_cache(
    model: llama2cpp.Model, feed: Callable[[llama2cpp.Session, list[int]], None]
) -> None:
    tokens = tiny.tokens(model.config, 9)
    session = model.session()
    with model.record(everything) as recording:
        feed(session, tokens)
    cache = recording.cache()
    assert_same(cache, cache_of(model, tokens))
    assert cache.tokens == [tokens]
    assert cache.positions is None
    plain = model.session()
    feed(plain, tokens)
    assert session.logits is not None
    assert plain.logits is not None
    assert agree(session.logits, plain.logits)


def test_a_long_prompt_comes_in_passes(stories: llama2cpp.Model) -> None:
    tokens = [1, *range(3, 302)]
    with stories.record(everything) as recording:
        stories.session().prefill(tokens)
    assert_same(recording.cache(), cache_of(stories, tokens))


def test_generate_stream_and_chat(stories: llama2cpp.Model) -> None:
    with stories.record(everything) as recording:
        text = stories.generate("Once upon a time", max_tokens=12, temperature=0)
    assert text == stories.generate("Once upon a time", max_tokens=12, temperature=0)
    cache = recording.cache()
    assert cache["resid_post", 0].shape == (1, 5 + 11, 64)
    assert_same(cache, cache_of(stories, cache.tokens[0]))  # type: ignore[index]

    with stories.record("z") as recording:
        pieces = stories.stream("Once upon a time", max_tokens=4, temperature=0)
        next(pieces)
    assert len(recording.cache()["z", 0][0]) == 5  # up to where it was iterated
    list(pieces)
    assert len(recording.cache()["z", 0][0]) == 5

    with stories.record("z") as recording:
        stories.chat("Hello", template="llama2", max_tokens=4, temperature=0)
    assert len(recording.cache()["z", 0][0]) > 4


def test_samples_share_their_prompt(stories: llama2cpp.Model) -> None:
    with stories.record(everything) as recording:
        stories.generate("The dog", n=3, max_tokens=20, seed=1)
    caches = recording.caches()
    assert len(caches) == 3
    assert repr(recording) == "<llama2cpp.Recording: 3 sequences, 69 tokens>"
    for cache in caches:
        assert cache.tokens is not None
        assert_same(cache, cache_of(stories, cache.tokens[0]))
    assert len({tuple(cache.tokens[0]) for cache in caches if cache.tokens}) == 3
    with pytest.raises(ValueError, match="3 sequences were recorded, expected 1; name the session"):
        recording.cache()


def test_several_sessions_in_a_pass(model: llama2cpp.Model) -> None:
    sessions = [model.session() for _ in range(3)]
    tokens = [tiny.tokens(model.config, count, seed) for seed, count in enumerate((4, 1, 7))]
    with model.record(everything) as recording, sessions[1].record("z") as one:
        model.forward(list(zip(sessions, tokens, strict=True)))
        sessions[0].step(3)
    for session, ids in zip(sessions, tokens, strict=True):
        ids = [*ids, 3] if session is sessions[0] else ids
        assert_same(recording.cache(session), cache_of(model, ids))
    assert_same(one.cache(), cache_of(model, tokens[1], "z"))
    with pytest.raises(ValueError, match="nothing was recorded of"):
        one.cache(sessions[0])


# --- with edits


def test_what_edits_have_changed_is_kept(model: llama2cpp.Model) -> None:
    """Compiled and Python edits, inside and outside of the recording's block, at every point that is recorded."""

    def double(activation: Array, hook: llama2cpp.HookPoint) -> Array:
        return activation * 2

    tokens = tiny.tokens(model.config, 6)
    edits: list[Any] = [
        interventions.zero("z", layer=1, head=1),
        ("mlp_out", double),
        interventions.scale("pattern", 0.5),
    ]
    expected = cache_of(model, tokens, everything, edits)
    with model.record(everything) as outside, model.hooks(edits), model.record(everything) as inside:
        feed_pieces(model.session(), tokens)
    assert_same(outside.cache(), expected)
    assert_same(inside.cache(), expected)


# --- sessions that turn back


def test_rewound_tokens_are_replaced(model: llama2cpp.Model) -> None:
    session = model.session()
    with model.record(everything) as recording:
        session.prefill([1, 3, 4, 5])
        session.rewind(2)
        fork = session.fork()
        session.step(7)
        fork.prefill([8, 9])
    assert_same(recording.cache(session), cache_of(model, [1, 3, 7]))
    assert_same(recording.cache(fork), cache_of(model, [1, 3, 8, 9]))


def test_what_was_fed_outside_is_missing(model: llama2cpp.Model) -> None:
    session = model.session()
    session.prefill([1, 3])
    recording = model.record(["z", "pattern"])
    with recording:
        session.prefill([4, 5])
    session.step(6)
    with recording:
        session.step(7)
    cache = recording.cache()
    assert cache.positions == [2, 3, 5]
    assert cache.tokens == [[1, 3, 4, 5, 6, 7]]
    whole = cache_of(model, [1, 3, 4, 5, 6, 7], ["z", "pattern"])
    assert agree(cache["z", 1], whole["z", 1][:, cache.positions])
    assert agree(cache["pattern", 1], whole["pattern", 1][:, :, cache.positions])


def test_a_rewind_outside_is_noticed(model: llama2cpp.Model) -> None:
    session = model.session()
    recording = model.record("z")
    with recording:
        session.prefill([1, 3, 4, 5])
    session.rewind(1)
    session.prefill([9, 4, 5])  # as long as before, with other tokens
    with recording:
        session.step(6)
    cache = recording.cache()
    assert cache.positions == [0, 4]
    assert cache.tokens == [[1, 9, 4, 5, 6]]


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_it_follows_sessions_wherever_they_go(data: st.DataObject) -> None:
    """Random feeding, rewinding, forking and failing: what is recorded is what a run of the session's tokens has."""
    model = shared_model()
    names = ["resid_post", "attn_scores", "rot_k"]
    sessions = [model.session()]
    with model.record(names) as recording:
        for _ in range(data.draw(st.integers(1, 8))):
            session = data.draw(st.sampled_from(sessions))
            what = data.draw(st.sampled_from(["feed", "feed", "rewind", "fork", "fail"]))
            if what == "feed":
                session.prefill(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
            elif what == "rewind":
                session.rewind(data.draw(st.integers(0, session.position)))
            elif what == "fork":
                sessions.append(session.fork())
            else:
                with pytest.raises(ZeroDivisionError), model.hooks([("resid_pre2", fail)]):
                    session.prefill([1, 2])
    for session in sessions:
        if session.logits is None:
            continue  # rewound, and nothing fed since: it may still have what there was
        assert_same(recording.cache(session), cache_of(model, session.tokens, names))


def shared_model(made: list[llama2cpp.Model] = []) -> llama2cpp.Model:  # noqa: B006
    if not made:
        made.append(tiny.model(tiny.config(n_layers=3)))
    return made[0]


def fail(activation: Array, hook: llama2cpp.HookPoint) -> None:
    raise ZeroDivisionError


def test_a_call_that_fails_leaves_nothing(model: llama2cpp.Model) -> None:
    session = model.session(context=4)
    with model.record("z") as recording:
        session.prefill([1, 3])
        taken = recording.nbytes
        for _ in range(20):
            with pytest.raises(ZeroDivisionError), model.hooks([("resid_pre2", fail)]):
                session.prefill([4, 5])
        with pytest.raises(llama2cpp.ContextFullError):
            session.prefill([4, 5, 6])
        with pytest.raises(ValueError, match="token is"):
            session.step(10**6)
        assert recording.nbytes == taken
        session.step(7)
    assert_same(recording.cache(), cache_of(model, [1, 3, 7], "z"))
    model.run_with_cache([1, 2], (), stop_at_layer=1)


def test_a_run_that_stops_early_is_not_recorded(model: llama2cpp.Model) -> None:
    with model.record("resid_post") as recording:
        model.run_with_cache([1, 2], (), stop_at_layer=1)
        assert recording.caches() == []
        with pytest.raises(ValueError, match=r"0 sequences were recorded, expected 1$"):
            recording.cache()
        model.run_with_cache([1, 2])
    assert len(recording.caches()) == 1


# --- memory


def test_memory_is_known_before(model: llama2cpp.Model) -> None:
    tokens = tiny.tokens(model.config, 30)
    recording = model.record(None)
    promised = recording.bytes_for(len(tokens))
    assert recording.nbytes == 0
    with recording:
        model.session().prefill(tokens)
    assert recording.nbytes <= promised
    config = model.config
    streams = model.record("resid_post").bytes_for(1000)
    assert 4 * config.n_layers * config.dim * 1000 <= streams <= (4 * config.n_layers * config.dim + 60) * 1000 + 64
    with pytest.raises(ValueError, match="tokens is -1"):
        recording.bytes_for(-1)


def test_an_absurd_request_states_what_it_needs() -> None:
    model = tiny.model(tiny.config(seq_len=1 << 21))
    with pytest.raises(MemoryError, match=r"a recording needs \d+ GB, and .* GB are available: record fewer"):
        model.record("attn_scores", tokens=1 << 21)
    session = model.session()
    with model.record("attn_scores") as recording:
        with pytest.raises(MemoryError, match=r"a recording needs 105\d\d\d GB"):
            session.prefill(np.zeros(1 << 21, dtype=np.int64))
        assert session.position == 0
        session.step(1)
    assert recording.cache()["attn_scores", 0].shape[2:] == (1, 1)


def test_room_that_was_made_is_used(model: llama2cpp.Model) -> None:
    session = model.session()
    with model.record(everything, tokens=20) as recording:
        for token in tiny.tokens(model.config, 20):
            session.step(token)
    assert recording.nbytes <= recording.bytes_for(20)
    assert_same(recording.cache(), cache_of(model, session.tokens))


def test_arrays_are_copies_and_the_recordings_memory_goes(model: llama2cpp.Model) -> None:
    with model.record("z") as recording:
        session = model.session()
        session.prefill([1, 2, 3])
        first = recording.cache(session)
        first["z", 0][:] = 5
        session.step(4)
    assert not (recording.cache()["z", 0] == 5).any()
    session_gone = weakref.ref(session)
    recording_gone = weakref.ref(recording)
    del session
    assert session_gone() is None  # a recording keeps no session
    assert recording.cache()["z", 0].shape[1] == 4
    gc.disable()
    try:
        del recording
        assert recording_gone() is None  # no cycle
    finally:
        gc.enable()


# --- threads


def test_other_threads_are_not_recorded(model: llama2cpp.Model) -> None:
    def run() -> None:
        model.session().prefill([1, 2, 3])

    with model.record("z") as recording:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert recording.caches() == []


def test_one_recording_of_many_threads(model: llama2cpp.Model) -> None:
    """Each thread enters the same recording with a session of its own, while the main thread reads."""
    recording = model.record(everything)
    texts = [tiny.tokens(model.config, 12, seed) for seed in range(4)]
    sessions = [model.session() for _ in texts]

    def run(session: llama2cpp.Session, tokens: list[int]) -> None:
        with recording:
            for token in tokens:
                session.step(token)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(sessions, texts, strict=True)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for cache in recording.caches():
            assert cache["z", 0].shape[1] >= 1
    for thread in threads:
        thread.join()
    for session, tokens in zip(sessions, texts, strict=True):
        assert_same(recording.cache(session), cache_of(model, tokens))
