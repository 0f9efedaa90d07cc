"""Loops that are measured. They need nothing but a session: tests/bench runs them with other builds of this package."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..session import Session

_ENOUGH = 0.1  # seconds that one measurement should take


def prompt_ids(count: int, vocab_size: int) -> list[int]:
    """Make up ids, the same for each engine; which ones does not matter to the speed."""
    return [3 + 7919 * i % (vocab_size - 3) for i in range(count)]


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes, of as many as fill a tenth of a second."""
    calls = 0
    started = time.perf_counter()
    while True:
        call()
        calls += 1
        took = time.perf_counter() - started
        if took > _ENOUGH:
            return took / calls


def go_to(session: Session, depth: int, vocab_size: int) -> None:
    """Have the first `depth` made up ids in a session, and none else; what is there of them stays."""
    ids = prompt_ids(depth, vocab_size)
    there = session.tokens[:depth]
    keep = len(there) if there == ids[: len(there)] else 0
    session.rewind(keep)
    if keep < depth:
        session.prefill(ids[keep:])


def decode_speed(session: Session, depth: int, steps: int, vocab_size: int) -> float:
    """Measure steps after `depth` tokens, in tokens a second. What came before may have emptied the caches."""
    ids = prompt_ids(depth + steps, vocab_size)
    go_to(session, depth, vocab_size)
    session.step(ids[depth])
    session.rewind(depth)
    started = time.perf_counter()
    for token in ids[depth:]:
        session.step(token)
    return steps / (time.perf_counter() - started)


def pass_speed(session: Session, depth: int, rows: int, passes: int, vocab_size: int) -> float:
    """Measure passes of `rows` tokens each after `depth` tokens, in tokens a second."""
    ids = prompt_ids(depth + rows * passes, vocab_size)
    go_to(session, depth, vocab_size)
    session.prefill(ids[depth : depth + rows])
    session.rewind(depth)
    started = time.perf_counter()
    for at in range(depth, depth + rows * passes, rows):
        session.prefill(ids[at : at + rows])
    return rows * passes / (time.perf_counter() - started)


def prefill_speed(session: Session, tokens: int, vocab_size: int) -> float:
    """Measure a prompt of so many tokens from an empty session, in tokens a second; short ones several times."""
    ids = prompt_ids(tokens, vocab_size)

    def once() -> None:
        session.rewind(0)
        session.prefill(ids)

    return tokens / seconds_of(once)
