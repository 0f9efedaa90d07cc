"""What somebody sees who tries the package out: names that are nearly right, completion, and what a notebook shows."""

from __future__ import annotations

import html.parser
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import llama2cpp
from llama2cpp import export


@pytest.fixture(scope="module")
def storyteller() -> llama2cpp.Model:
    return llama2cpp.load("storyteller")


def test_storyteller_is_a_name(storyteller: llama2cpp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storyteller.path == llama2cpp.load().path
    assert storyteller.has_tokenizer
    done = export.convert("storyteller", tmp_path / "story.gguf", "q8_0")
    assert llama2cpp.load(done.path).config.dim == storyteller.config.dim
    monkeypatch.chdir(tmp_path)  # what exists as a path is that path
    Path("storyteller").write_bytes(b"no model")
    with pytest.raises(llama2cpp.FormatError):
        llama2cpp.load("storyteller")


@pytest.mark.parametrize(("name", "meant"), [("storyteler", "storyteller"), ("smollm2-135", "smollm2-135m")])
def test_close_names_of_models(name: str, meant: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"close to it is {meant}"):
        llama2cpp.load(name)


def test_close_names(storyteller: llama2cpp.Model) -> None:
    _, cache = storyteller.run_with_cache([1, 2])
    keys: list[tuple[Callable[[], Any], str]] = [
        (lambda: storyteller.weights["tok_embedding.weight"], "tok_embeddings.weight"),
        (lambda: storyteller.weights["blocks.0.attn.W_q"], "blocks.0.attn.W_Q"),
        (lambda: storyteller.weights.transformer_lens["blocks.0.mlp.W_ot"], "blocks.0.mlp.W_out"),
        (lambda: storyteller.weights.info("norm.weights"), "norm.weight"),
        (lambda: storyteller.weights.head("blocks.0.attn.W_k", 0), "blocks.0.attn.W_K"),
        (lambda: storyteller.weights.release("norm.weights"), "norm.weight"),
        (lambda: cache["patterns", 0], "pattern"),
        (lambda: cache["blocks.0.hook_resid_pst"], "blocks.0.hook_resid_post"),
        (lambda: storyteller.config["n_layer"], "n_layers"),
    ]
    for call, meant in keys:
        with pytest.raises(KeyError, match=re.escape(meant)):
            call()
    with pytest.raises(ValueError, match=r"W_U"):
        storyteller.with_weights({"W_u": np.zeros(1)})
    with pytest.raises(ValueError, match=r"blocks\.0\.hook_resid_post"):
        storyteller.run_with_hooks([1], [("blocks.0.hook_resid_pst", print)])
    with pytest.raises(AttributeError, match="close to it is Session"):
        _ = llama2cpp.Sessions


def test_to_single_token_says_where_the_space_goes(stories: llama2cpp.Model) -> None:
    for text in ("Lily", "time"):
        pieces = {stories.tokenizer.piece(id) for id in range(len(stories.tokenizer))}
        assert f" {text}".encode() in pieces
        if text.encode() not in pieces:
            with pytest.raises(ValueError, match=f"' {text}' is one"):
                stories.to_single_token(text)
    with pytest.raises(ValueError, match="is not one token") as caught:
        stories.to_single_token("zqzqzq")
    assert "is one" not in str(caught.value).partition("makes")[2]


def test_tokenizer_or_why_not(storyteller: llama2cpp.Model) -> None:
    model = tiny.model(tiny.config())
    assert not model.has_tokenizer
    with pytest.raises(ValueError, match=r"no tokenizer.*: pass one"):
        _ = model.tokenizer
    assert not model.with_weights({}).has_tokenizer
    assert storyteller.with_weights({}).tokenizer is storyteller.tokenizer


def test_compare_looks_at_the_vocabularies(stories: llama2cpp.Model, stories_dir: Path) -> None:
    with pytest.raises(ValueError, match="512 and 1536 pieces"):
        export.compare(stories, llama2cpp.load(), "Once upon a time")
    other = tiny.model(tiny.config(vocab_size=512))
    assert export.compare(stories, other, "Once upon", tensors=False).tokens == 2  # it has none that could differ
    settings = stories.tokenizer.to_dict()
    pieces = settings["pieces"]
    turned = llama2cpp.Tokenizer.from_dict(settings | {"pieces": pieces[:259] + pieces[259:][::-1]})  # bytes stay
    changed = llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=turned)
    with pytest.raises(ValueError, match="the vocabularies differ in"):
        export.compare(stories, changed, "Once upon a time", tensors=False)


def test_dir_and_lazy_export() -> None:
    assert dir(llama2cpp) == sorted(llama2cpp.__all__)
    code = (
        "import sys, llama2cpp; assert 'llama2cpp.export' not in sys.modules; print(llama2cpp.export.convert.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "convert"


def test_completions_are_keys(storyteller: llama2cpp.Model) -> None:
    _, cache = storyteller.run_with_cache([1, 2])
    things: list[Any] = [storyteller.weights, storyteller.weights.transformer_lens, storyteller.config, cache]
    for thing in things:
        offered: list[Any] = thing._ipython_key_completions_()
        assert len(offered) > 10
        for key in offered:
            if thing is cache and "." not in key and not key.startswith("hook_"):
                whole: list[Any] = [key, *((key, i, kind) for i in range(5) for kind in (None, "ln1"))]
                assert any(one in thing for one in whole)
            else:
                thing[key]


class Structure(html.parser.HTMLParser):
    """Checks that tags close in order, and collects styles and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.styles = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.styles += ";".join(value or "" for name, value in attrs if name == "style") + ";"
        if tag != "wbr":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(thing: Any) -> Structure:
    structure = Structure()
    structure.feed(thing._repr_html_())
    structure.close()
    assert structure.open == []
    return structure


def test_notebook_views(storyteller: llama2cpp.Model, model: llama2cpp.Model) -> None:
    session = storyteller.session()
    session.prefill("Once")
    completion = storyteller.generate("Once", max_tokens=4, temperature=0, logprobs=2)
    views = {
        "Model": (storyteller, "storyteller.bin"),
        "arrays": (model, "ids only"),
        "Config": (storyteller.config, "n_kv_heads"),
        "Weights": (storyteller.weights, "layers.{i}.attention.wq.weight (5)"),
        "KVCache": (session.kv, "2 of 512"),
        "Completion": (completion, completion.text.strip()),
    }
    for name, (thing, expected) in views.items():
        structure = shown(thing)
        assert expected in structure.text, name
        # Readable on light and dark pages: a text colour is never set without its background, nor the other way.
        for style in structure.styles.split(";;"):
            assert ("color:#" in style.replace("background-color", "")) == ("background:#" in style), (name, style)
        assert repr(thing).isprintable()
        assert len(repr(thing)) > 20
    closed = llama2cpp.load()
    closed.close()
    assert "closed" in shown(closed).text


def test_text_of_a_model_is_escaped() -> None:
    completion = llama2cpp.Completion("<script>alert(1)</script>", [1], [-0.1], [[(1, -0.1)]], "end")
    assert "<script>" not in completion._repr_html_()
    assert "<script>" in shown(completion).text


def test_config_shows_how_it_is_made(storyteller: llama2cpp.Model) -> None:
    config = storyteller.config
    assert eval(repr(config), {"Config": llama2cpp.Config}) == config
    assert {name: config[name] for name in config.to_dict()} == config.to_dict()


def test_signatures_are_still_shown() -> None:
    assert "max_tokens" in inspect.signature(llama2cpp.generate).parameters
    assert "context" in inspect.signature(llama2cpp.load).parameters
