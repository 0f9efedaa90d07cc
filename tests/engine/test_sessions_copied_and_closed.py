"""Sessions in Python's own ways: copy, copy.copy, with."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny

import llama2cpp


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=3), threads=1)


@pytest.mark.parametrize("of", [llama2cpp.Session.fork, llama2cpp.Session.copy, copy.copy])
def test_copies_are_forks(of: Callable[[llama2cpp.Session], llama2cpp.Session], model: llama2cpp.Model) -> None:
    session = model.session(20)
    session.prefill([1, 2, 3])
    other = of(session)
    expected = session.fork().step(4)
    assert (other.step(4) == expected).all()
    assert (other.tokens, session.tokens, other.context) == ([1, 2, 3, 4], [1, 2, 3], 20)
    other.kv.keys(0)[:] = 0
    assert session.kv.keys(0).any()
    with model.record("resid_post") as recording:
        session.step(5)
        assert recording.cache(of(session))["resid_post", 0].shape[1] == 1  # it begins with what its parent had


def test_a_session_closes_at_the_end_of_its_block(model: llama2cpp.Model) -> None:
    with model.session() as session:
        session.prefill([1, 2, 3])
        keys = session.kv.keys(0)
        values, fork = keys.copy(), session.fork()
        freed = weakref.ref(session._core)
    gc.collect()
    assert freed() is None
    assert (keys == values).all()  # an array keeps what it needs
    assert fork.position == 3
    assert repr(session) == "<llama2cpp.Session: closed>"
    assert "closed" in session._repr_html_()
    session.close()  # again
    with pytest.raises(KeyError), model.session() as other:
        raise KeyError
    assert repr(other) == "<llama2cpp.Session: closed>"


def test_nothing_works_on_a_closed_session(model: llama2cpp.Model) -> None:
    session = model.session()
    session.close()
    given: dict[str, Any] = {"token": 1, "tokens": [1], "position": 0, "path": "x", "fwd_hooks": []}
    still = {"close"}
    for name, member in inspect.getmembers(llama2cpp.Session):
        if name.startswith("_") or name in still:
            continue
        if not isinstance(member, property):
            parameters = list(inspect.signature(member).parameters.values())[1:]
            needed = {p.name: given[p.name] for p in parameters if p.default is p.empty}
        with pytest.raises(ValueError, match="the session is closed"):
            _ = getattr(session, name) if isinstance(member, property) else member(session, **needed)
    with pytest.raises(ValueError, match="the session is closed"):
        model.forward([(session, [1])])
