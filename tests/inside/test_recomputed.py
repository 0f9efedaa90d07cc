"""A cache under a limit of memory: every point has the bits of a whole cache, and no more is held than was said."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from on_metal import agree
from test_parts_of_families import FAMILIES, OTHERS

import llama2cpp

IDS = [[5, 9, 2, 30, 7], [11, 12, 13, 14, 15]]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=3))


def least(model: llama2cpp.Model, ids: Any = IDS) -> int:
    """The residual stream's bytes."""
    return 4 * np.size(ids) * model.config.dim * (model.config.n_layers + 1)


@pytest.mark.parametrize("room", [0, 3_000, 30_000])
def test_every_point_has_the_runs_bits(model: llama2cpp.Model, room: int) -> None:
    everything = lambda name: True  # noqa: E731 - with hook_result
    logits, whole = model.run_with_cache(IDS, everything)
    limit = least(model) + room
    assert whole.nbytes > limit
    again, cache = model.run_with_cache(IDS, everything, max_bytes=limit)
    assert agree(again, logits)
    assert list(cache) == list(whole)
    for order in (list(whole), list(whole)[::-1], sorted(whole)):
        for name in order:
            assert agree(cache[name], whole[name]), name
            assert not cache[name].flags.writeable
            assert cache.nbytes <= limit
    assert cache["resid_post", -1].shape == (*cache["z", -1].shape[:2], model.config.dim)
    assert cache._repr_html_().count("blocks.{i}") == whole._repr_html_().count("blocks.{i}")
    assert agree(cache.decompose_resid(), whole.decompose_resid())


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_every_family(family: str, tmp_path: Path) -> None:
    if family in OTHERS:
        config = tiny.config(n_layers=3, **OTHERS[family])
        model = llama2cpp.from_arrays(config, tiny.arrays(config), threads=1)
    else:
        model = llama2cpp.load(FAMILIES[family].save(tmp_path), threads=1)
    _, whole = model.run_with_cache([3, 4, 5, 6, 7, 8, 9])
    _, cache = model.run_with_cache([3, 4, 5, 6, 7, 8, 9], max_bytes=whole.nbytes // 2)
    assert not cache["hook_embed"].flags.writeable
    for name, array in whole.items():
        assert agree(cache[name], array), name


def test_what_fits_is_kept(model: llama2cpp.Model) -> None:
    _, whole = model.run_with_cache(IDS, ["z", "resid_pre"])
    _, cache = model.run_with_cache(IDS, ["z", "resid_pre"], max_bytes=whole.nbytes)
    assert cache["z", 0].flags.writeable
    assert cache.nbytes == whole.nbytes
    _, named = model.run_with_cache(IDS, max_bytes="1MB")
    assert named["z", 0].flags.writeable


def test_one_pass_for_the_points_of_a_layer_that_fit(model: llama2cpp.Model) -> None:
    _, whole = model.run_with_cache(IDS)
    _, cache = model.run_with_cache(IDS, max_bytes=whole.nbytes - 4)
    arrays: Any = cache._arrays
    runs = []
    real = arrays._computed
    arrays._computed = lambda name: runs.append(name) or real(name)  # type: ignore[func-returns-value]
    for name in whole:
        assert agree(cache[name], whole[name]), name
    assert len(runs) == 4  # of three layers and the last norm


def test_it_is_a_cache_like_others(model: llama2cpp.Model, tmp_path: Path) -> None:
    one = IDS[:1]
    limit = least(model, one)
    _, whole = model.run_with_cache(one, remove_batch_dim=True)
    _, cache = model.run_with_cache(one, remove_batch_dim=True, max_bytes=limit)
    assert all(agree(cache[name], array) for name, array in whole.items())
    _, later = model.run_with_cache(one, max_bytes=limit)
    assert all(agree(later.remove_batch_dim()[name], array) for name, array in whole.items())
    cache.save(tmp_path / "all.safetensors")
    assert len(llama2cpp.ActivationCache.load(tmp_path / "all.safetensors")) == len(whole)
    opened = pickle.loads(pickle.dumps(cache._arrays))
    assert opened.keys() == whole.keys()
    cache.compute_head_results()
    whole.compute_head_results()
    assert agree(cache["result", 1], whole["result", 1])
    assert agree(cache.logit_lens().values, whole.logit_lens().values)
    batched = model.run_with_cache(IDS, max_bytes=least(model))[1].apply_slice_to_batch_dim(1)
    assert agree(batched["z", 1], model.run_with_cache(IDS)[1]["z", 1][1])


@pytest.mark.cpu_bits("gradients")
def test_gradients_go_back_from_it(model: llama2cpp.Model) -> None:
    logits, whole = model.run_with_cache(IDS)
    _, cache = model.run_with_cache(IDS, max_bytes=least(model))
    _, dlogits = llama2cpp.metrics.log_prob(3)(logits)
    for name, gradient in whole.backward(dlogits, ["z", "resid_pre"]).items():
        assert agree(cache.backward(dlogits, ["z", "resid_pre"])[name], gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 100}, "max_bytes is 100, and the residual stream"),
        ({"max_bytes": "much"}, "max_bytes is 'much', expected a number of bytes"),
        ({"max_bytes": 0}, "max_bytes is 0, expected at least 1 byte"),
        ({"positions": [0]}, "max_bytes goes with whole runs"),
        ({"stop_at_layer": 1}, "max_bytes goes with whole runs"),
        ({"text_or_tokens": [[1, 2], [3]]}, "max_bytes is for prompts of one length"),
    ],
)
def test_wrong_calls(model: llama2cpp.Model, options: dict[str, Any], message: str) -> None:
    how: dict[str, Any] = {"text_or_tokens": IDS, "max_bytes": 10_000} | options
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        model.run_with_cache(**how)
    assert message in str(caught.value)


def test_hooks_that_are_on_are_refused(model: llama2cpp.Model) -> None:
    with (
        model.hooks([("z", lambda z, hook: None)]),
        pytest.raises(ValueError, match="computed again without the hooks"),
    ):
        model.run_with_cache(IDS, max_bytes=10_000)
