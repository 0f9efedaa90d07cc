"""The sampler against its rule written plainly in NumPy with a full sort, torch's softmax, and what it refuses."""

from __future__ import annotations

import copy
import ctypes
import ctypes.util
import pickle
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llama2cpp import Sampler

Floats = NDArray[np.float32]

F32 = np.float32
MASK = (1 << 64) - 1
STATE_OF_SEED_ZERO = 0x9E3779B97F4A7C15


def load_expf() -> Any:
    """The C library's expf. The sampler's is that of the GNU C library; others may differ in the last bit."""
    library = "ucrtbase" if sys.platform == "win32" else ctypes.util.find_library("m")
    expf = ctypes.CDLL(library).expf
    expf.argtypes, expf.restype = [ctypes.c_float], ctypes.c_float
    return expf


EXPF = load_expf()


class Xorshift:
    """The generator, in Python's integers."""

    def __init__(self, seed: int) -> None:
        self.state = seed or STATE_OF_SEED_ZERO

    def coin(self) -> float:
        self.state ^= self.state >> 12
        self.state ^= (self.state << 25) & MASK
        self.state ^= self.state >> 27
        return (((self.state * 0x2545F4914F6CDD1D) & MASK) >> 32 >> 8) / 16777216  # 24 bits: exact in float32


def running_sum(values: Floats) -> Floats:
    """Float32, from the first on. (np.sum goes pairwise.)"""
    return np.add.accumulate(values, dtype=F32)


def first_above(p: Floats, ids: NDArray[np.int64], target: np.float32) -> int:
    above = np.flatnonzero(target < running_sum(p[ids]))
    return int(ids[above[0]] if len(above) else ids[-1])


def plain_sample(
    logits: Floats,
    random: Xorshift,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float = 1.0,
    history: tuple[int, ...] = (),
) -> int:
    """State the rule of the sampler again, step by step."""
    values = logits.copy()
    for i in set(history):
        values[i] = values[i] / F32(repetition_penalty) if values[i] > 0 else values[i] * F32(repetition_penalty)
    if temperature == 0:
        return int(np.argmax(values))
    values /= F32(temperature)
    values -= values.max()
    p = np.array([EXPF(value) for value in values.tolist()], dtype=F32)
    p /= running_sum(p)[-1]
    coin = F32(random.coin())

    n = len(p)
    k_on, p_on = 0 < top_k < n, 0 < F32(top_p) < 1
    if not k_on and not p_on and min_p == 0:
        drawable = np.arange(n)[: np.flatnonzero(logits > -np.inf)[-1] + 1]
        return first_above(p, drawable, coin)
    ids = np.argsort(-p, kind="stable") if k_on or p_on else np.arange(n)
    if k_on:
        ids = ids[:top_k]
    if p_on:
        mass = running_sum(p[ids])[-1] if k_on else F32(1)
        if not k_on:
            cutoff = (F32(1) - F32(top_p)) / F32(n - 1) if n > 1 else F32(np.inf)
            ids = ids[p[ids] >= cutoff] if (p >= cutoff).any() else ids[:1]
        exceeds = np.flatnonzero(running_sum(p[ids]) > F32(top_p) * mass)
        ids = ids[: exceeds[0] + 1] if len(exceeds) else ids
    ids = ids[(p[ids] >= F32(min_p) * p.max()) & (p[ids] > 0)]
    return first_above(p, ids, coin * running_sum(p[ids])[-1])


# Whole numbers and halves give many ties; others none.
LOGITS = st.one_of(
    hnp.arrays(F32, st.integers(1, 200), elements=st.floats(-30, 30, width=32)),
    hnp.arrays(F32, st.integers(1, 200), elements=st.integers(-6, 6).map(lambda value: value / 2)),
)
SEEDS = st.integers(0, MASK)
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.7, 10.0]),
        "top_p": st.sampled_from([-0.5, 0.0, 1e-9, 0.01, 0.5, 0.9, 0.99, 1.0, 7.0]),
        "top_k": st.sampled_from([0, 1, 2, 7, 50, 199, 10**6]),
        "min_p": st.sampled_from([0.0, 1e-4, 0.05, 0.5, 1.0]),
    }
)


@given(logits=LOGITS, options=OPTIONS, seed=SEEDS)
def test_draws_are_those_of_the_plain_rule(logits: Floats, options: dict[str, Any], seed: int) -> None:
    sampler, random = Sampler(seed=seed, **options), Xorshift(seed)
    for _ in range(5):
        assert sampler.sample(logits) == plain_sample(logits, random, **options)


@given(logits=LOGITS, options=OPTIONS, seed=SEEDS, penalty=st.sampled_from([0.5, 1.0, 1.1, 2.0]), data=st.data())
def test_the_penalty_comes_first(
    logits: Floats, options: dict[str, Any], seed: int, penalty: float, data: st.DataObject
) -> None:
    history = tuple(data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=10)))
    sampler, random = Sampler(seed=seed, repetition_penalty=penalty, **options), Xorshift(seed)
    expected = plain_sample(logits, random, repetition_penalty=penalty, history=history, **options)
    assert sampler.sample(logits, history) == expected


@given(data=st.data(), options=OPTIONS, seed=SEEDS)
def test_forbidden_ids_are_never_drawn(data: st.DataObject, options: dict[str, Any], seed: int) -> None:
    logits = data.draw(LOGITS)
    allowed = data.draw(hnp.arrays(bool, len(logits)).filter(np.any))
    logits = np.where(allowed, logits, F32(-np.inf))
    sampler, random = Sampler(seed=seed, **options), Xorshift(seed)
    for _ in range(5):
        drawn = sampler.sample(logits)
        assert allowed[drawn]
        assert drawn == plain_sample(logits, random, **options)


@pytest.mark.parametrize("top_p", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("top_k", [0, 40, 30_000])
@pytest.mark.parametrize("min_p", [0.0, 0.01])
def test_a_large_vocabulary_draws_as_with_a_full_sort(top_p: float, top_k: int, min_p: float) -> None:
    logits = np.random.default_rng(3).normal(0, 2.5, 49_152).astype(F32)
    options: dict[str, Any] = {"temperature": 0.9, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    sampler, random = Sampler(seed=99, **options), Xorshift(99)
    for _ in range(3):
        assert sampler.sample(logits) == plain_sample(logits, random, **options)


@pytest.mark.parametrize("seed", [0, 1, 133742, 1 << 63, MASK])
def test_the_generator_is_xorshift(seed: int) -> None:
    # equal logits: the drawn id is the coin, in steps of 1 / n
    n = 4096
    sampler, random = Sampler(top_p=0, seed=seed), Xorshift(seed)
    drawn = [sampler.sample(np.zeros(n, dtype=F32)) for _ in range(200)]
    assert drawn == [int(random.coin() * n) for _ in range(200)]


def chi_square(counts: Counter[int], expected: NDArray[np.float64]) -> float:
    found = np.array([counts[i] for i in range(len(expected))])
    return float((((found - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_distribution_is_torchs_softmax(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 1, 16).astype(F32)
    draws = 40_000
    sampler = Sampler(temperature=temperature, top_p=0, seed=20)
    counts = Counter(sampler.sample(logits) for _ in range(draws))
    p = torch.softmax(torch.from_numpy(logits).double() / temperature, dim=0).numpy()
    assert chi_square(counts, draws * p) < 37.7  # 15 degrees of freedom: one in 1000 by chance; the seed is fixed


def test_the_nucleus_is_renormalised() -> None:
    p = np.array([0.05, 0.4, 0.1, 0.3, 0.15])
    draws = 40_000
    logits = np.log(p).astype(F32)
    sampler = Sampler(top_p=0.8, seed=4)
    counts = Counter(sampler.sample(logits) for _ in range(draws))
    assert set(counts) == {1, 3, 4}  # 0.4 + 0.3 does not exceed 0.8, with 0.15 it does
    kept = p[[1, 3, 4]] / 0.85
    found = np.array([counts[i] for i in (1, 3, 4)])
    assert float(((found - draws * kept) ** 2 / (draws * kept)).sum()) < 13.8  # 2 degrees of freedom


def test_ties_go_to_the_lower_id() -> None:
    logits = np.array([1, 3, 3, 2, 3], dtype=F32)
    assert Sampler(temperature=0).sample(logits) == 1
    sampler = Sampler(top_p=0, top_k=2, seed=1)
    assert {sampler.sample(logits) for _ in range(100)} == {1, 2}
    sampler = Sampler(top_p=0.4, seed=1)  # each of the three has about 0.29
    assert {sampler.sample(logits) for _ in range(100)} == {1, 2}
    sampler = Sampler(top_p=0, min_p=1, seed=1)
    assert {sampler.sample(logits) for _ in range(100)} == {1, 2, 4}


def test_greedy_draws_no_random_number() -> None:
    logits = np.zeros(1000, dtype=F32)
    sampler = Sampler(temperature=0, seed=5)
    before = pickle.dumps(sampler)
    assert [sampler.sample(logits) for _ in range(5)] == [0] * 5
    assert pickle.dumps(sampler) == before


def test_logits_are_not_changed() -> None:
    logits = np.random.default_rng(1).normal(size=50).astype(F32)
    kept = logits.copy()
    Sampler(repetition_penalty=1.3, seed=1).sample(logits, [1, 2, 3])
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, Sampler.copy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_where_the_sampler_is(how: Any) -> None:
    logits = np.zeros(1000, dtype=F32)
    sampler = Sampler(temperature=0.7, top_p=0.8, top_k=900, min_p=0.1, seed=3, repetition_penalty=1.2)
    sampler.sample(logits)
    twin = how(sampler)
    assert repr(twin) == repr(sampler)
    assert [twin.sample(logits) for _ in range(20)] == [sampler.sample(logits) for _ in range(20)]


def test_properties_tell_what_was_asked_for() -> None:
    sampler = Sampler(temperature=0.7, top_p=0.85, top_k=40, min_p=0.05, seed=MASK, repetition_penalty=1.1)
    assert (sampler.temperature, sampler.top_p, sampler.top_k) == (0.7, 0.85, 40)
    assert (sampler.min_p, sampler.seed, sampler.repetition_penalty) == (0.05, MASK, 1.1)
    assert repr(sampler) == (
        f"Sampler(temperature=0.7, top_p=0.85, top_k=40, min_p=0.05, seed={MASK}, repetition_penalty=1.1)"
    )
    with pytest.raises(AttributeError):
        sampler.top_k = 3  # type: ignore[misc]


def test_without_a_seed_the_system_chooses() -> None:
    first, second = Sampler(), Sampler()
    assert first.seed != second.seed
    logits = np.zeros(1000, dtype=F32)
    again = Sampler(seed=first.seed)
    assert [first.sample(logits) for _ in range(5)] == [again.sample(logits) for _ in range(5)]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("temperature", -1.0, "temperature is -1"),
        ("temperature", float("nan"), "temperature is nan"),
        ("temperature", float("inf"), "temperature is inf"),
        ("temperature", 1e39, "temperature is 1e[+]39, which float32 cannot hold"),
        ("top_p", float("nan"), "top_p is nan"),
        ("top_p", float("-inf"), "top_p is -inf"),
        ("top_k", -5, "top_k is -5"),
        ("min_p", float("nan"), "min_p is nan"),
        ("min_p", -0.1, "min_p is -0.1"),
        ("min_p", 1.1, "min_p is 1.1"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0"),
        ("repetition_penalty", -1.0, "repetition_penalty is -1"),
        ("repetition_penalty", float("nan"), "repetition_penalty is nan"),
        ("seed", -1, "seed is -1, expected 0 to 2[*][*]64 - 1"),
        ("seed", 1 << 64, "seed is 18446744073709551616"),
    ],
)
def test_bad_options_say_what_was_received(option: str, value: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampler(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_a_seed_is_an_integer(seed: Any) -> None:
    with pytest.raises(TypeError, match=r"seed is .*expected an integer or None"):
        Sampler(seed=seed)


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (np.zeros((2, 3), dtype=F32), r"shape \(2, 3\), expected one dimension"),
        (np.zeros((), dtype=F32), r"shape \(\), expected one dimension"),
        (np.zeros(3), "dtype float64, expected float32"),
        (np.zeros(3, dtype=np.int64), "dtype int64, expected float32"),
        (np.zeros(3, dtype=np.complex64), "dtype complex64, expected float32"),
        (np.zeros(3, dtype=object), "dtype object, expected float32"),
        ("logits", "dtype <U6, expected float32"),
        (None, "dtype object, expected float32"),
        ([[1.0, 2.0], [3.0]], "type list, expected a float32 array"),
        (["a", "b"], "type list, expected a float32 array"),
        (np.zeros(0, dtype=F32), "logits are empty"),
        (np.array([0, 1, np.nan, 2], dtype=F32), r"logits\[2\] is nan"),
        (np.array([0, 1, np.inf], dtype=F32), r"logits\[2\] is inf"),
        (np.full(4, -np.inf, dtype=F32), "all 4 logits are -inf"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_logits_say_what_was_received(logits: Any, said: str, temperature: float) -> None:
    sampler = Sampler(temperature=temperature, seed=1)
    before = pickle.dumps(sampler)
    with pytest.raises(ValueError, match=said):
        sampler.sample(logits)
    assert pickle.dumps(sampler) == before


@pytest.mark.parametrize(
    "logits",
    [
        np.array([0, 5, 1], dtype=np.float16),
        np.array([0, 5, 1], dtype=np.int8),
        np.array([0, 5, 1], dtype=">f4"),
        np.array([0, 9, 5, 9, 1, 9], dtype=F32)[::2],
        torch.tensor([0.0, 5.0, 1.0]),
        [0.0, 5.0, 1.0],
        (0, 5, 1),
    ],
    ids=["float16", "int8", "big-endian", "strided", "torch", "list", "tuple"],
)
def test_what_becomes_float32_without_loss_is_taken(logits: Any) -> None:
    assert Sampler(temperature=0).sample(logits) == 1


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([0, 3], r"history\[1\] is 3, expected an id from 0 to 2"),
        ([-1], r"history\[0\] is -1"),
        (np.array([0, 1 << 40]), "1099511627776"),
        ([1.0], "1.0"),
        (np.array([1.0]), "float64"),
        (np.array([[1], [1]]), r"\(2, 1\)"),
        ("01", "str"),
    ],
)
@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_bad_histories_say_what_was_received(history: Any, said: str, penalty: float) -> None:
    with pytest.raises(ValueError, match=said):
        Sampler(repetition_penalty=penalty, seed=1).sample(np.zeros(3, dtype=F32), history)


@pytest.mark.parametrize("history", [[1], (1, 1), np.array([1]), np.array([1, 1], dtype=np.uint16), range(1, 2)])
def test_histories_are_sequences_of_integers(history: Any) -> None:
    logits = np.array([1.0, 1.5, 0.0], dtype=F32)
    assert Sampler(temperature=0, repetition_penalty=2.0).sample(logits, history) == 0


def test_threads_that_share_a_sampler_take_turns() -> None:
    logits = np.zeros(2000, dtype=F32)
    shared = Sampler(seed=8)
    drawn: list[int] = []

    def draw() -> None:
        for _ in range(50):
            drawn.append(shared.sample(logits))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = Sampler(seed=8)
    assert Counter(drawn) == Counter(alone.sample(logits) for _ in range(200))
