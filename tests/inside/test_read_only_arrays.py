"""Writing into an array that the package hands out has an effect on what it shows, or is refused with advice."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

import llama2cpp
from llama2cpp.inside.read_only_arrays import read_only
from llama2cpp.inside.weights import StackedWeights

torch = pytest.importorskip("torch")

Write = Callable[[NDArray[Any]], object]

# Every way in which NumPy writes into an array [n] or [n, m], and what names no array.
WRITES: dict[str, Write] = {
    "item": lambda a: a.__setitem__(0, 0),
    "slice": lambda a: a.__setitem__(slice(1, 3), 0),
    "mask": lambda a: a.__setitem__(a > 0, 0),
    "view": lambda a: a[1:].__setitem__(0, 0),
    "transposed": lambda a: a.T.__setitem__(0, 0),
    "reshaped": lambda a: a.reshape(-1)[:4].__setitem__(0, 0) if a.flags.c_contiguous else a.__setitem__(0, 0),
    "ufunc": lambda a: np.add(a, 1, out=a),
    "at": lambda a: np.add.at(a, [0], 1),
    "copyto": lambda a: np.copyto(a, 0),
    "put": lambda a: np.put(a, [0], 1),
    "place": lambda a: np.place(a, np.ones(a.shape, dtype=bool), [1]),
    "putmask": lambda a: np.putmask(a, np.ones(a.shape, dtype=bool), [1]),
    "fill": lambda a: a.fill(0),
    "sort": lambda a: a.sort(),
    "partition": lambda a: a.partition(1),
    "clip": lambda a: np.clip(a, 0, 1, out=a),
    "flags": lambda a: a.setflags(write=True),
}
for _operator in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    WRITES[f"in place {_operator}"] = operator.methodcaller(f"__i{_operator}__", 1)
STACKED = [name for name, value in vars(StackedWeights).items() if isinstance(value, property)]


@pytest.fixture(params=["file", "int8", "arrays"])
def any_weights(request: pytest.FixtureRequest, stories: llama2cpp.Model) -> llama2cpp.Model:
    """Views of a mapped file, decoded copies, and views of a user's own arrays."""
    if request.param == "file":
        return stories
    return llama2cpp.load() if request.param == "int8" else tiny.model(tiny.config())


def weights(model: llama2cpp.Model) -> dict[str, NDArray[Any]]:
    found = {f"weights[{name!r}]": array for name, array in model.weights.items()}
    found |= {f"lens[{name!r}]": array for name, array in model.weights.transformer_lens.items()}
    found |= {name: getattr(model, name) for name in STACKED}
    found |= {f"head {name}": model.weights.head(f"blocks.0.attn.{name}", 0) for name in ("W_Q", "W_K", "W_V", "W_O")}
    return found


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_weights_refuse(write: Write, any_weights: llama2cpp.Model) -> None:
    found = weights(any_weights)
    assert len(STACKED) >= 9
    for name, array in found.items():
        before = array.copy()
        with pytest.raises(ValueError, match="with_weights"):
            write(array)
        np.testing.assert_array_equal(array, before, err_msg=name)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_copies_of_a_session_refuse(write: Write, model: llama2cpp.Model) -> None:
    session = model.session()
    session.prefill([1, 2, 3, 4])
    assert session.logits is not None
    with pytest.raises(ValueError, match=r"session\.logits"):
        write(session.logits)
    with pytest.raises(ValueError, match=r"kv\.keys"):
        write(session.kv.unrotated_keys(0))


def test_what_is_computed_is_plain(any_weights: llama2cpp.Model) -> None:
    array = any_weights.weights["blocks.0.attn.W_Q"]
    results = [array * 2, -array, array @ array.swapaxes(1, 2), array.sum(axis=0), array.copy(), array.astype("f8")]
    results += [np.stack([array, array]), np.concatenate([array]), np.asarray(array), np.exp(array), array.mean(axis=1)]
    results += [copy.copy(array), copy.deepcopy(array), pickle.loads(pickle.dumps(array)), np.linalg.svd(array)[1]]
    for result in results:
        assert type(result) is np.ndarray
    for result in (array.copy(), array * 2, copy.deepcopy(array), pickle.loads(pickle.dumps(array))):
        result[0] = 0
        result += 1
    assert isinstance(array.sum(), np.float32)
    assert isinstance(array.max(), np.float32)
    assert repr(array) == repr(np.asarray(array))
    np.testing.assert_array_equal(array + 0, np.asarray(array) + 0)
    own = np.zeros(array.shape, dtype=np.float32)
    own += array
    np.add(own, array, out=own)
    np.testing.assert_array_equal(own, np.asarray(array) * 2)


def test_dlpack_gets_a_copy(any_weights: llama2cpp.Model) -> None:
    for array in weights(any_weights).values():
        before = array.copy()
        tensor = torch.from_dlpack(array)
        tensor.zero_()  # ends the process where it is a mapped file's memory
        np.from_dlpack(array)
        np.testing.assert_array_equal(array, before)
        with pytest.raises(BufferError, match="with_weights"):
            array.__dlpack__(copy=False)


def test_what_can_be_written_has_an_effect(model: llama2cpp.Model) -> None:
    session, plain = model.session(), model.session()
    for one in (session, plain):
        one.prefill([1, 2, 3])
    session.kv.values(0)[:] = 0
    session.kv.keys(0)[1] = 1
    assert not np.array_equal(session.step(4), plain.step(4))
    _, cache = model.run_with_cache([1, 2, 3])
    before = cache.accumulated_resid().copy()
    cache["resid_post", -1][:] = 0
    assert not np.array_equal(cache.accumulated_resid(), before)


def test_a_whole_weight_is_not_assigned(model: llama2cpp.Model) -> None:
    weights: Any = model.weights
    for name in next(iter(weights)), "W_E", "no such weight":
        with pytest.raises(TypeError, match="with_weights"):
            weights[name] = np.zeros(3, np.float32)
        with pytest.raises(TypeError, match="with_weights"):
            del weights[name]


def test_an_edited_copy_makes_a_model(model: llama2cpp.Model) -> None:
    edited = model.weights["blocks.0.attn.W_O"].copy()
    edited[0] = 0
    other = model.with_weights({"blocks.0.attn.W_O": edited})
    assert not np.array_equal(other.session().step(1), model.session().step(1))


def test_no_number_is_copied() -> None:
    array = np.arange(4.0)
    assert np.shares_memory(read_only(array, "take a copy"), array)
