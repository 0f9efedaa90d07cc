"""What a session is from outside: its state, its errors, its views, and its use from threads."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from on_metal import ON_METAL, agree, examples

import llama2cpp

CONFIG = tiny.config()


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG)


def test_begins_empty(model: llama2cpp.Model) -> None:
    session = model.session()
    assert (session.position, session.tokens, session.logits) == (0, [], None)
    assert session.context == CONFIG.seq_len
    assert session.kv.keys(0).shape == (0, CONFIG.n_kv_heads, CONFIG.head_dim)
    assert repr(session) == "<llama2cpp.Session: position 0 of 64>"


def test_context_from_load_or_session() -> None:
    model = tiny.model(CONFIG, context=10)
    assert model.context == model.session().context == 10
    assert model.session(100).context == 100


@pytest.mark.parametrize("context", [0, -1])
def test_context_must_be_positive(model: llama2cpp.Model, context: int) -> None:
    with pytest.raises(ValueError, match=str(context)):
        model.session(context)


class SessionMachine(RuleBasedStateMachine):
    """Any sequence of calls against the plainest model of a session: a list of tokens."""

    ids = st.integers(0, CONFIG.vocab_size - 1)

    @initialize()
    def begin(self) -> None:
        self.model = tiny.model(CONFIG)
        self.session = self.model.session(30)
        self.tokens: list[int] = []
        self.has_logits = False

    @rule(token=ids)
    def step(self, token: int) -> None:
        self.feed([token], lambda: self.session.step(token))

    @rule(tokens=st.lists(ids, min_size=1, max_size=12), all_logits=st.booleans())
    def prefill(self, tokens: list[int], all_logits: bool) -> None:
        self.feed(tokens, lambda: self.session.prefill(tokens, all_logits))

    @rule(tokens=st.lists(ids, min_size=1, max_size=12))
    def forward(self, tokens: list[int]) -> None:
        self.feed(tokens, lambda: self.model.forward([(self.session, tokens)])[0])

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(0, len(self.tokens)))
        self.session.rewind(keep)
        del self.tokens[keep:]
        self.has_logits = False

    @rule()
    def fork(self) -> None:
        before, self.session = self.session, self.session.fork()
        if before.position < before.context:
            before.step(0)  # which the fork does not see

    @rule(bad=st.sampled_from([-1, CONFIG.vocab_size, 2**31, -(2**40)]))
    def wrong_token(self, bad: int) -> None:
        with pytest.raises(ValueError, match=str(bad)):
            self.session.prefill([1, bad])

    def feed(self, tokens: list[int], call: Any) -> None:
        if len(self.tokens) + len(tokens) > 30:
            with pytest.raises(llama2cpp.ContextFullError):
                call()
            return
        call()
        self.tokens += tokens
        self.has_logits = True

    @invariant()
    def agrees(self) -> None:
        assert self.session.tokens == self.tokens
        assert self.session.position == len(self.tokens)
        assert self.session.kv.values(1).shape == (len(self.tokens), CONFIG.n_kv_heads, CONFIG.head_dim)
        if not self.has_logits:
            assert self.session.logits is None
            return
        expected = self.model.session().prefill(self.tokens)
        assert self.session.logits is not None
        assert agree(self.session.logits, expected)


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=examples(30), stateful_step_count=15, deadline=None)


def test_shapes_and_types(model: llama2cpp.Model) -> None:
    session = model.session()
    last = session.prefill([1, 2, 3])
    every = session.prefill(np.array([4, 5], dtype=np.int64), all_logits=True)
    assert last.dtype == every.dtype == np.float32
    assert last.shape == (CONFIG.vocab_size,)
    assert every.shape == (2, CONFIG.vocab_size)
    assert session.tokens == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_any_integer_array(model: llama2cpp.Model, dtype: Any) -> None:
    session = model.session()
    session.prefill(np.array([9, 1, 8, 2, 7], dtype=dtype)[::2])
    assert session.tokens == [9, 8, 7]


@pytest.mark.parametrize(
    ("tokens", "received"),
    [
        ([], "token"),
        ([1.5], "1.5|float"),
        (["a"], "a|str"),
        ([None], "None"),
        (np.array([1.0, 2.0]), "float"),
        (np.array([[1, 2], [3, 4]]), "2|shape"),
        (np.array([True]), "bool"),
        ([1, 10**30], "1000000"),
    ],
)
def test_tokens_that_are_none(model: llama2cpp.Model, tokens: Any, received: str) -> None:
    session = model.session()
    session.step(1)
    with pytest.raises(ValueError, match=received):
        session.prefill(tokens)
    assert session.tokens == [1]


@pytest.mark.parametrize("token", [-1, CONFIG.vocab_size, 10**30])
def test_step_with_a_token_out_of_range(model: llama2cpp.Model, token: int) -> None:
    with pytest.raises(ValueError, match=str(token)):
        model.session().step(token)


@pytest.mark.parametrize("position", [-1, 4])
def test_rewind_out_of_range(model: llama2cpp.Model, position: int) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    with pytest.raises(ValueError, match=str(position)):
        session.rewind(position)
    assert session.position == 3


def test_full_context_says_so_and_changes_nothing(model: llama2cpp.Model) -> None:
    session = model.session(4)
    before = session.prefill([1, 2, 3])
    with pytest.raises(llama2cpp.ContextFullError, match=r"3 of 4.* 2 "):
        session.prefill([4, 5])
    assert session.tokens == [1, 2, 3]
    assert session.logits is not None
    assert session.logits.tobytes() == before.tobytes()
    session.step(4)
    with pytest.raises(llama2cpp.ContextFullError):
        session.step(5)


def test_logits_are_copies(model: llama2cpp.Model) -> None:
    session = model.session()
    first = session.step(1)
    kept = first.copy()
    first[:] = 0
    assert session.logits is not None
    assert session.logits.tobytes() == kept.tobytes()
    second = session.logits
    session.step(2)
    assert second.tobytes() == kept.tobytes()


def test_views_show_and_change_the_cache(model: llama2cpp.Model) -> None:
    session = model.session()
    session.prefill([1, 2])
    keys = session.kv.keys(1)
    assert keys.shape == (2, CONFIG.n_kv_heads, CONFIG.head_dim)
    assert keys.dtype == np.float32
    assert keys.flags.writeable
    assert not keys.flags.owndata
    keys[1] = 5
    assert (session.kv.keys(1)[1] == 5).all()
    session.step(3)
    assert keys.shape[0] == 2
    assert (session.kv.keys(1)[:2] == keys).all()


@pytest.mark.parametrize("layer", [-CONFIG.n_layers - 1, CONFIG.n_layers])
def test_no_such_layer(model: llama2cpp.Model, layer: int) -> None:
    session = model.session()
    with pytest.raises(ValueError, match=str(layer)):
        session.kv.keys(layer)
    with pytest.raises(ValueError, match=str(layer)):
        session.kv.values(layer)


def test_views_outlive_everything() -> None:
    model = tiny.model(CONFIG)
    session = model.session()
    session.prefill([1, 2, 3])
    view, weight = session.kv.values(0), model.weights["norm.weight"]
    kept, kept_weight = view.copy(), weight.copy()
    model.close()
    del session, model
    gc.collect()
    assert (view == kept).all()
    assert (weight == kept_weight).all()
    view[:] = 7


def test_sessions_outlive_their_model(model: llama2cpp.Model) -> None:
    expected = model.session().prefill([1, 2, 3])
    with tiny.model(CONFIG) as short:
        session = short.session()
    del short
    gc.collect()
    assert session.prefill([1, 2, 3]).tobytes() == expected.tobytes()


def test_forward_refuses(model: llama2cpp.Model) -> None:
    session, other = model.session(), tiny.model(CONFIG).session()
    with pytest.raises(ValueError, match="twice"):
        model.forward([(session, [1]), (session, [2])])
    with pytest.raises(ValueError, match="model"):
        model.forward([(session, [1]), (other, [2])])
    with pytest.raises(ValueError, match="model"):
        model.forward([(other, [2])])
    with pytest.raises(ValueError, match="token"):
        model.forward([(session, [])])
    full = model.session(1)
    with pytest.raises(llama2cpp.ContextFullError):
        model.forward([(session, [1]), (full, [1, 2])])
    assert session.position == full.position == other.position == 0
    assert model.forward([]) == []


def test_two_threads_with_two_sessions(model: llama2cpp.Model) -> None:
    prompts = [tiny.tokens(CONFIG, 60, seed) for seed in range(8)]

    def run(prompt: list[int]) -> bytes:
        session = model.session()
        return b"".join(session.step(token).tobytes() for token in prompt)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, prompts)) == [run(prompt) for prompt in prompts]


def test_one_session_from_many_threads(model: llama2cpp.Model) -> None:
    """They take turns: each token comes once, and each step gives the logits of its own place."""
    session = model.session()
    tokens = list(range(50))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(session.step, tokens))
    assert sorted(session.tokens) == tokens
    expected = model.session().prefill(session.tokens, all_logits=True)
    for token, logits in zip(tokens, results, strict=True):
        assert agree(logits, expected[session.tokens.index(token)])


def test_looking_at_a_session_while_it_computes(model: llama2cpp.Model) -> None:
    """What another thread sees is the state before a call or after it."""
    length = 200 if ON_METAL else 2000  # all positions are attended to again and again
    chunk = length // 40
    session = model.session(length)
    tokens = tiny.tokens(CONFIG, length)
    with ThreadPoolExecutor(1) as pool:
        for begin in range(0, length, chunk):
            call = pool.submit(session.prefill, tokens[begin : begin + chunk])
            while not call.done():
                seen = session.tokens
                assert len(seen) in (begin, begin + chunk)
                assert seen == tokens[: len(seen)]
                assert session.position in (begin, begin + chunk)
                session.kv.keys(1).sum()
                _ = session.logits
            call.result()
