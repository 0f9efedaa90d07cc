"""Ids in every form that holds integers in order, wherever ids are taken; numbers of any float type from hooks."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import tiny
from on_metal import agree

import llama2cpp
from llama2cpp import export

torch = pytest.importorskip("torch")

IDS = [1, 5, 7, 3]
WIDTHS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4", "<u8"]
FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(IDS),
    "tuple": lambda: tuple(IDS),
    "range-like": lambda: array.array("q", IDS),
    "scalars": lambda: [np.int16(id) for id in IDS],
    "0-d arrays": lambda: [np.array(id) for id in IDS],
    "strided": lambda: np.repeat(IDS, 2)[::2],
    "read-only": lambda: np.frombuffer(np.array(IDS, dtype=np.int32).tobytes(), dtype=np.int32),
    **{f"array {width}": partial(np.array, IDS, dtype=width) for width in WIDTHS},
    **{f"array [1, T] {width}": partial(np.array, [IDS], dtype=width) for width in WIDTHS},
    **{
        f"tensor {name}": partial(torch.tensor, IDS, dtype=getattr(torch, name))
        for name in ("int8", "uint8", "int16", "int32", "int64")
    },
    "tensor [1, T]": lambda: torch.tensor([IDS]),
    "list of tensors": lambda: list(torch.tensor(IDS)),
    "iterator": lambda: iter(IDS),
    "generator": lambda: (id for id in IDS),
    "map": lambda: map(int, IDS),
    "list [1, T]": lambda: [list(IDS)],
    "tuple [1, T]": lambda: (tuple(IDS),),
    "list of an array": lambda: [np.array(IDS)],
    "iterator of a list": lambda: iter([list(IDS)]),
}
WRONG: dict[str, Callable[[], Any]] = {
    "floats": lambda: [1.0, 2.0],
    "float array": lambda: np.array([1.0, 2.0]),
    "float tensor": lambda: torch.tensor([1.0, 2.0]),
    "bools": lambda: np.array([True, False]),
    "two rows": lambda: np.array([IDS, IDS]),
    "no dimension": lambda: np.array(3),
    "too large": lambda: np.array([2**63], dtype=np.uint64),
    "far too large": lambda: [2**70],
    "text": lambda: ["1"],
    "none": lambda: [None],
    "a number": lambda: 5,
    "nothing": lambda: None,
    "bytes in memory": lambda: bytearray(b"abc"),
    "a view of bytes": lambda: memoryview(b"abc"),
    "a list of bytes in memory": lambda: [bytearray(b"abc")],
    "a list of bools": lambda: [True, False],
    "a tensor of bools": lambda: torch.tensor([True, False]),
    "tensors of a bool": lambda: [torch.tensor(True), torch.tensor(False)],
    "NumPy's bools": lambda: [np.bool_(True), np.bool_(False)],
    "two rows of lists": lambda: [[1, 2], [3, 4.5]],
}


PROMPTS = (WRONG["text"], WRONG["two rows of lists"])  # what is a list of prompts, and no ids

# Which take one sequence of ids only.
FROM_CORE: tuple[str, ...] = (
    "Session.prefill",
    "Model.forward",
    "Tokenizer.decode",
    "Tokenizer.decode_bytes",
    "Sampler.sample",
)
FROM_CORE += ("Model.perplexity", "stream", "Model.to_str_tokens", "compare", "Calibration")


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(vocab_size=97))


def takers(model: llama2cpp.Model, stories: llama2cpp.Model) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Every place that takes ids."""
    yield "Session.prefill", lambda ids: model.session().prefill(ids)
    yield "Model.forward", lambda ids: model.forward([(model.session(), ids)])[0]
    yield "Model.run_with_cache", lambda ids: model.run_with_cache(ids)[0]
    yield "Model.run_with_hooks", lambda ids: model.run_with_hooks(ids)
    yield "Model.perplexity", lambda ids: model.perplexity(ids)
    yield "generate", lambda ids: stories.generate(ids, max_tokens=3, temperature=0)
    yield "complete", lambda ids: [c.text for c in stories.complete(ids, max_tokens=3, temperature=0)]
    yield "Model.to_tokens", lambda ids: stories.to_tokens(ids)
    yield "Model.to_string", lambda ids: stories.to_string(ids)
    yield "stream", lambda ids: list(stories.stream(ids, max_tokens=3, temperature=0))
    yield "Model.to_str_tokens", lambda ids: stories.to_str_tokens(ids)
    yield "Tokenizer.decode", lambda ids: stories.tokenizer.decode(ids)
    yield "Tokenizer.decode_bytes", lambda ids: stories.tokenizer.decode_bytes(ids)
    yield "logit_lens", lambda ids: llama2cpp.logit_lens(model, ids).values
    yield "compare", lambda ids: export.compare(model, model, ids, tensors=False).perplexity_a
    yield "Calibration", lambda ids: export.Calibration(ids, length=3).tokens(model)[0]
    yield "Sampler.sample", lambda ids: llama2cpp.Sampler(temperature=0, repetition_penalty=9).sample([2, 3] * 5, ids)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_ids(form: Callable[[], Any], model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    for name, take in takers(model, stories):
        given = form()
        if name in FROM_CORE and hasattr(given, "__next__") and not isinstance(next(form()), int):
            given = list(given)  # an iterator of rows is for those that take several prompts
        np.testing.assert_array_equal(take(given), take(IDS), err_msg=name)


@pytest.mark.parametrize("form", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_ids(form: Callable[[], Any], model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    rows = ("Model.run_with_cache", "Model.run_with_hooks", "logit_lens", "Model.to_tokens")  # where rows are a batch
    for name, take in takers(model, stories):
        wrong = form()
        if name in rows and isinstance(wrong, np.ndarray) and wrong.ndim == 2:
            continue
        if wrong is None and name in ("Sampler.sample", "logit_lens"):
            continue
        if form in PROMPTS and name in ("generate", "complete", "Model.to_tokens"):  # which take several
            continue
        if form is WRONG["text"] and name == "Model.to_str_tokens":  # which takes several texts
            continue
        if name == "Model.to_string" and np.shape(wrong) in ((), (2, 4)) and wrong is not None:  # one id, or rows
            continue
        with pytest.raises((ValueError, TypeError)):
            take(wrong)


def test_bytes_are_no_ids(model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    """Prompts may be bytes, which are text; where only ids are taken, the message says what to do."""
    texts = {"Model.run_with_cache", "Model.run_with_hooks", "logit_lens", "generate", "stream", "complete", "compare"}
    texts |= {"Session.prefill", "Model.forward", "Model.perplexity", "Model.to_str_tokens", "Model.to_tokens"}
    for name, take in takers(stories, stories):
        if name in texts or name == "Calibration":
            continue
        with pytest.raises(TypeError, match=r"token ids are b'abc' \(bytes\).*decode\(\) it to a str"):
            take(b"abc")
    for form in (bytearray(b"abc"), memoryview(b"abc")):
        for name, take in takers(model, stories):
            if name != "Calibration":
                with pytest.raises(TypeError, match=r"decode\(\) it"):
                    take(form)


@pytest.mark.parametrize("wrong", [True, np.bool_(True), np.array(True), torch.tensor(True)], ids=repr)
def test_bools_are_no_ids(wrong: Any, model: llama2cpp.Model, stories: llama2cpp.Model) -> None:
    lens = llama2cpp.logit_lens(model, IDS, targets=[1, 2])
    stack, cache = np.zeros((1, 1, 4, 64)), model.run_with_cache(IDS)[1]
    for take in (
        model.session().step,
        stories.tokenizer.piece,
        model.tokens_to_residual_directions,
        lens.rank_trajectory,
        stories.to_string,
        lambda id: llama2cpp.logit_lens(model, IDS, targets=id),
        lambda id: llama2cpp.logit_lens(model, IDS, targets=[id]),
        lambda id: llama2cpp.logit_lens(model, IDS, vocab=[id]),
        lambda id: cache.logit_attrs(stack, id),
        lambda id: llama2cpp.ActivationCache({}, None, tokens=[id]),
        lambda id: model.session().prefill([1, id]),
    ):
        with pytest.raises((ValueError, TypeError)):
            take(wrong)


def test_a_list_of_bools_is_no_list_of_numbers(model: llama2cpp.Model) -> None:
    """A mask, which would be read as the numbers 0 and 1."""
    mask = [True, False, True, False]
    for wrong in (mask, np.array(mask), torch.tensor(mask)):
        with pytest.raises(TypeError, match="positions"):
            model.run_with_cache(IDS, positions=wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            llama2cpp.interventions.zero("z", position=wrong)
    cache = model.run_with_cache(IDS)[1]
    chosen = cache.accumulated_resid(pos_slice=np.array(mask))  # where NumPy selects, a mask is one
    np.testing.assert_array_equal(chosen, cache.accumulated_resid(pos_slice=[0, 2]))


def test_single_ids(model: llama2cpp.Model) -> None:
    expected = model.session().step(5)
    forms: list[Any] = [np.int8(5), np.uint64(5), np.array(5), torch.tensor(5), torch.tensor([5], dtype=torch.int16)]
    for id in forms:
        np.testing.assert_array_equal(model.session().step(id), expected)
        np.testing.assert_array_equal(
            model.tokens_to_residual_directions(id).reshape(-1), model.tokens_to_residual_directions(5)
        )


def test_prefill_takes_text(stories: llama2cpp.Model, model: llama2cpp.Model) -> None:
    ids = stories.tokenizer.encode("Once upon")
    whole, parts = stories.session(), stories.session()
    np.testing.assert_array_equal(whole.prefill("Once upon"), stories.session().prefill(ids))
    assert whole.tokens == ids
    parts.prefill("Once")
    parts.prefill(b" upon")  # goes on: no second BOS
    assert [id for id in parts.tokens if id == stories.tokenizer.bos_id] == [stories.tokenizer.bos_id]
    np.testing.assert_array_equal(stories.forward([(stories.session(), "Once upon")])[0], whole.logits)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.session().prefill("Once")


def test_no_hooks(model: llama2cpp.Model) -> None:
    expected = model.run_with_hooks([1, 2])
    np.testing.assert_array_equal(model.run_with_hooks([1, 2], None), expected)
    with model.hooks(None), model.session().hooks(None):
        assert agree(model.run_with_cache([1, 2])[0], expected)


ml_dtypes = None if find_spec("ml_dtypes") is None else import_module("ml_dtypes")
FLOATS: dict[str, Callable[[Any], Any]] = {
    "torch bfloat16": lambda a: torch.tensor(a).to(torch.bfloat16),
    "torch float16": lambda a: torch.tensor(a).to(torch.float16),
    "torch float64": lambda a: torch.tensor(a).double(),
    "torch gradient": lambda a: torch.tensor(a).to(torch.bfloat16).requires_grad_(),
    "ml_dtypes bfloat16": lambda a: a.astype(getattr(ml_dtypes, "bfloat16")),  # noqa: B009 - may not be there
    "ml_dtypes float8": lambda a: a.astype(getattr(ml_dtypes, "float8_e4m3fn")),  # noqa: B009
    "float16": lambda a: a.astype(np.float16),
    "float64": lambda a: a.astype(np.float64),
    "big-endian": lambda a: a.astype(">f4"),
    "list": lambda a: a.tolist(),
    "int8": lambda a: a.astype(np.int8),
}


@pytest.mark.parametrize("of", FLOATS.values(), ids=FLOATS.keys())
def test_float_types(of: Callable[[Any], Any], model: llama2cpp.Model) -> None:
    """Multiples of a quarter are exact in all of them, and whole numbers in int8."""
    from llama2cpp import interventions

    if ml_dtypes is None and of in (FLOATS["ml_dtypes bfloat16"], FLOATS["ml_dtypes float8"]):
        pytest.skip("ml_dtypes is not installed")
    dim = model.config.dim
    values = (np.arange(dim, dtype=np.float32) % 8 - 4) / (1 if of is FLOATS["int8"] else 4)

    def put(activation: Any, hook: Any) -> Any:
        return of(np.broadcast_to(values, activation.shape).copy())

    def put_float32(activation: Any, hook: Any) -> Any:
        return np.broadcast_to(values, activation.shape)

    expected = model.run_with_hooks([1, 2], [("blocks.0.hook_resid_post", put_float32)])
    np.testing.assert_array_equal(model.run_with_hooks([1, 2], [("blocks.0.hook_resid_post", put)]), expected)
    by_intervention = [interventions.set("blocks.0.hook_resid_post", of(values))]
    np.testing.assert_array_equal(model.run_with_hooks([1, 2], by_intervention), expected)
    np.testing.assert_array_equal(model.unembed(of(values)), model.unembed(values))
    gain = {"blocks.0.ln1.w": of(values)}
    np.testing.assert_array_equal(model.with_weights(gain).weights["blocks.0.ln1.w"], values)
    np.testing.assert_array_equal(
        model.run_with_hooks([1, 2], [interventions.project_out("resid_post0", of(values))]),
        model.run_with_hooks([1, 2], [interventions.project_out("resid_post0", values)]),
    )
