"""Which heads look where: against definitions written out token by token."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from llama2cpp.inside.head_detection import KINDS, closeness, wanted_pattern

tokens = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(tokens, st.sampled_from(KINDS))
def test_patterns_are_as_defined(ids: list[int], kind: str) -> None:
    def looks(query: int, key: int) -> bool:
        if kind == "previous_token_head":
            return key == query - 1
        at = key if kind == "duplicate_token_head" else key - 1
        return key <= query and 0 <= at < query and ids[at] == ids[query]

    expected = [[float(looks(query, key)) for key in range(len(ids))] for query in range(len(ids))]
    assert wanted_pattern(kind, ids).tolist() == expected


@given(tokens, st.sampled_from(KINDS), st.booleans(), st.booleans(), st.sampled_from(["mul", "abs"]))
def test_closeness_is_as_defined(ids: list[int], kind: str, bos: bool, current: bool, measure: str) -> None:
    rng = np.random.default_rng(len(ids))
    pattern = np.tril(rng.random((3, len(ids), len(ids))))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    wanted = wanted_pattern(kind, ids)
    counted = [
        (query, key)
        for query in range(len(ids))
        for key in range(len(ids))
        if not (bos and key == 0) and not (current and key == query)
    ]
    got = closeness(pattern, wanted, exclude_bos=bos, exclude_current_token=current, measure=measure)
    for head, score in zip(pattern, got, strict=True):
        if measure == "abs":
            expected = 1 - sum(abs(head[at] - wanted[at]) for at in counted) / len(ids)
        else:
            whole = sum(head[at] for at in counted)
            expected = sum(head[at] * wanted[at] for at in counted) / whole if whole else 0
        assert score == pytest.approx(expected, abs=1e-12)


@given(tokens, st.sampled_from(KINDS))
def test_a_head_of_the_kind_is_as_close_as_can_be(ids: list[int], kind: str) -> None:
    wanted = wanted_pattern(kind, ids)
    assert float(closeness(wanted, wanted, measure="abs")) == 1
    assert float(closeness(wanted, wanted)) == (1 if wanted.any() else 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wanted_pattern("name_mover_head", [1]), "no kind of heads .name_mover_head., expected one"),
        (
            lambda: wanted_pattern("induction_head", np.eye(2, dtype=int)),
            r"shape \[2, 2\], expected those of one prompt",
        ),
        (lambda: closeness(np.eye(3), np.eye(2)), r"shape \[2, 2\], and those of heads \[3, 3\]"),
        (lambda: closeness(np.eye(3), np.ones((3, 3))), "lower triangular"),
        (lambda: closeness(np.eye(3), np.eye(3), measure="max"), "measure is 'max', expected one of: mul, abs"),
    ],
)
def test_wrong_calls(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
