"""What a notebook shows: every view escapes what a model says, and has colours for light and dark pages."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import numpy as np
import pytest
import tiny
from optional_modules import importable_modules
from tokenizer_files import tokenizer_bin

import llama2cpp
from llama2cpp import analysis

NASTY = "<script>alert('\"&')</script>"


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each class that has a view, of a model whose every token, and whose path, is a script."""
    folder = tmp_path_factory.mktemp("<b onclick=x>")
    config = tiny.config()
    pieces = [(f"{NASTY}{number}".encode(), 0.0) for number in range(config.vocab_size)]
    (folder / "t.bin").write_bytes(tokenizer_bin(pieces))
    model = llama2cpp.load(tiny.write_v0(folder / "m.bin", config, tiny.arrays(config)), tokenizer=folder / "t.bin")
    session = model.session()
    session.prefill([3, 4, 5])
    _, cache = model.run_with_cache([3, 4, 5])
    return {
        "Model": model,
        "Config": model.config,
        "Weights": model.weights,
        "Session": session,
        "KVCache": session.kv,
        "TokenList": model.to_str_tokens([3, 4]),
        "ActivationCache": llama2cpp.ActivationCache({NASTY: np.zeros((1, 2), np.float32)}, None),
        "LogitLens": cache.logit_lens(top_k=2),
        "Completion": llama2cpp.Completion(NASTY, [1], [-0.1], [[(1, -0.1)]], "end"),
        "Explanation": model.explain([3, 4, 5]),
        "Difference": analysis.diff(
            model, model.with_weights({"output.weight": model.weights["output.weight"] * 2}), [3, 4]
        ),
        "Harm": analysis.harm(model, model, [3, 4]),
        "HeadDirections": analysis.head_directions(model, 0, 0),
    }


def test_the_list_is_whole(views: dict[str, Any]) -> None:
    names = [name for name in importable_modules() if "__" not in name]
    classes = {
        value
        for name in names
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and hasattr(value, "_repr_html_") and value.__module__.startswith("llama2cpp")
    }
    assert len(classes) >= len(views)
    assert [kind for kind in classes if not any(isinstance(view, kind) for view in views.values())] == []
    assert list(views) == NAMES


TAGS = {"p", "b", "div", "span", "wbr", "table", "tr", "th", "td", "details", "summary"}
NAMES = ["Model", "Config", "Weights", "Session", "KVCache", "TokenList", "ActivationCache", "LogitLens", "Completion"]
NAMES += ["Explanation", "Difference", "Harm", "HeadDirections"]


@pytest.mark.parametrize("name", NAMES)
def test_a_view(views: dict[str, Any], name: str) -> None:
    html = views[name]._repr_html_()
    assert set(re.findall(r"<(\w+)", html)) <= TAGS
    assert not re.search(r"\son\w+=(?!x&gt;)", html)
    for style in re.findall(r'style="([^"]*)"', html):
        # Black text comes with its own pale ground; all else takes the page's colours.
        colours = dict(part.split(":") for part in style.split(";") if ":" in part)
        ours = {colours.get("color", "inherit"), colours.get("background", "transparent")} - {"inherit", "transparent"}
        assert len(ours) in (0, 2), style
    if name in ("Session", "TokenList", "ActivationCache", "LogitLens", "Completion"):
        assert "&lt;script&gt;" in html
    if name == "Model":
        assert "&lt;b onclick=x&gt;" in html
