"""``llama2cpp explore`` on a real model of 30 layers, with a prompt longer than a view: numbers, and bytes sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explored import TOKEN, Explored, explored, probabilities

import llama2cpp

MOST = 5_000_000  # bytes that a view sends
WORDS = "The museum opens at nine, and the guide tells visitors about the ships in the harbour. "


@pytest.fixture(scope="module")
def page(smollm2_path: Path) -> Iterator[Explored]:
    with (
        llama2cpp.load(smollm2_path, backend="cpu", context=1024) as model,
        explored(model, opened="llama2cpp.load('smollm2-135m')", name="smollm2-135m") as page,
    ):
        yield page


@pytest.fixture(scope="module")
def ids(page: Explored) -> list[int]:
    made = [int(id) for id in page.model.to_tokens(WORDS * 12)[0]]
    assert len(made) > 200
    return made


def ask(page: Explored, view: str, **body: Any) -> Any:
    """A view's numbers, which are few enough."""
    status, _, data = page.send("POST", f"/api/{view}", body, Authorization=f"Bearer {TOKEN}")
    assert status == 200, data
    assert len(data) < MOST, view
    return json.loads(data)


def test_what_comes_next(page: Explored, ids: list[int]) -> None:
    told = ask(page, "next", ids=ids, rows=200)
    logits = page.model(ids)[0, -1]
    assert [row["id"] for row in told["rows"]] == np.argsort(-logits, kind="stable")[:200].tolist()
    p = probabilities(logits)
    np.testing.assert_allclose([row["p"] for row in told["rows"]], p[[row["id"] for row in told["rows"]]], rtol=1e-12)
    edits = [{"what": "layer", "do": "off", "layer": 3}]
    told = ask(page, "compare", ids=ids, edits=edits, rows=10)
    assert told["best_before"]["id"] == int(logits.argmax())
    hooks = [llama2cpp.interventions.zero(name, layer=3) for name in ("attn_out", "mlp_out")]
    assert told["best_after"]["id"] == int(page.model.run_with_hooks(ids, hooks)[0, -1].argmax())


def test_every_view_is_small(page: Explored, ids: list[int]) -> None:
    begin, last = len(ids) - 64, len(ids) - 1
    token = page.model.to_single_token(" the")
    ask(page, "about")
    assert len(ask(page, "tokens", ids=ids)["tokens"]) == len(ids)
    ask(page, "flow", ids=ids, begin=begin)
    ask(page, "layer", ids=ids, layer=29, position=last)
    ask(page, "head", ids=ids, layer=29, head=8, position=last, begin=begin)
    for kind in ("q", "k", "v", "score", "mix", "attn_out", "gate", "up", "mlp_out", "logit"):
        for layer in (0, 15):  # activations in int8, keys and values in f16
            told = ask(page, "product", ids=ids, kind=kind, position=last, layer=layer, rows=200)
            assert told["rounded"] == ("" if kind in ("score", "mix") else "int8 in groups of 32")
            assert told["result"] == pytest.approx(told["measured"], rel=1e-5, abs=5e-5)
    ask(page, "attention_grid", ids=ids, begin=begin)
    ask(page, "attribution", ids=ids, position=last, token=token)
    ask(page, "neurons", ids=ids, position=last, token=token, rows=200)
    ask(page, "python", ids=ids, edits=[{"what": "head", "do": "off", "layer": 4, "head": 2}])


def test_attention_and_lens(page: Explored, ids: list[int]) -> None:
    begin = len(ids) - 64
    _, cache = page.model.run_with_cache(ids, ["pattern17", "resid_pre6"])
    told = ask(page, "attention_head", ids=ids, layer=17, head=4, begin=begin)
    pattern = cache["pattern", 17][0, 4, begin:, begin:]
    assert told["pattern"] == pattern.tolist()
    told = ask(page, "lens", ids=ids, begin=begin)
    lens = page.model.unembed(cache["resid_pre", 6][0, begin:], apply_ln=True)
    assert told["labels"][6] == "layer 5"
    assert told["ids"][6] == lens.argmax(axis=-1).tolist()
