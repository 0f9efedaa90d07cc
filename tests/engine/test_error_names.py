"""A message calls a function what was called, and tells a wrong type by the name of its argument."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llama2cpp
from llama2cpp import export

BAD: dict[str, Any] = {
    "no ids": [],
    "a float": [1, 2.5],
    "beyond the vocabulary": [1, 100_000],
    "below it": [-1],
    "too many": [5] * 600,
    "bytes in memory": bytearray(b"abc"),
    "a number": 5,
    "None": None,
    "a text among ids": [1, "a"],
    "a lone surrogate": "a\ud800",
}
# Words of the surface that a message about one function may not say of another.
NAMES = ["generate", "complete", "stream", "prefill", "run_with_cache", "run_with_hooks", "perplexity", "forward"]
NAMES += ["to_str_tokens", "to_tokens", "to_string", "logit_lens", "compare", "step"]


def takers(model: llama2cpp.Model) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    session = model.session
    yield "generate", lambda p: model.generate(p, max_tokens=2)
    yield "generate", lambda p: model.generate(["Once", p], max_tokens=2)
    yield "complete", lambda p: model.complete(p, max_tokens=2)
    yield "stream", lambda p: model.stream(p, max_tokens=2)
    yield "prefill", lambda p: session().prefill(p)
    yield "prefill", lambda p: session().prefill(p, all_logits=True)
    yield "forward", lambda p: model.forward([(session(), p)])
    yield "run_with_cache", model.run_with_cache
    yield "run_with_hooks", model.run_with_hooks
    yield "perplexity", model.perplexity
    yield "to_str_tokens", model.to_str_tokens
    yield "to_tokens", model.to_tokens
    yield "logit_lens", lambda p: llama2cpp.logit_lens(model, p)
    yield "compare", lambda p: export.compare(model, model, p, tensors=False)


@pytest.mark.parametrize("prompt", BAD.values(), ids=BAD.keys())
def test_prompts(prompt: Any, stories: llama2cpp.Model) -> None:
    for name, take in takers(stories):
        long = isinstance(prompt, list) and len(prompt) > 512
        if (long and name in ("perplexity", "compare", "to_str_tokens", "to_tokens")) or (
            name == "to_tokens" and isinstance(prompt, list) and all(type(id) is int for id in prompt)
        ):
            continue  # that is right
        if (prompt is None and name == "logit_lens") or (
            prompt == [] and name in ("to_str_tokens", "generate", "complete")
        ):
            continue  # no input, no texts
        with pytest.raises((ValueError, TypeError, llama2cpp.ContextFullError)) as caught:
            take(prompt)
        told = set(re.findall(r"\w+", str(caught.value))) & set(NAMES)
        assert told <= {name}, (name, str(caught.value))


def test_no_ids_among_prompts(stories: llama2cpp.Model) -> None:
    none: list[str] = []
    mixed: list[Any] = ["Once", []]
    assert stories.generate(none, max_tokens=2) == []
    with pytest.raises(ValueError, match=r"^generate: "):
        stories.generate(mixed, max_tokens=2)


def test_numbers_of_sampling(stories: llama2cpp.Model) -> None:
    for options in ({"temperature": -1.0}, {"top_k": -1}, {"seed": -1}, {"stop": ""}, {"stop": 5}, {"max_tokens": -1}):
        for name in ("generate", "complete", "stream"):
            with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
                getattr(stories, name)("Once", **options)
        for name in ("chat", "chat_stream"):
            with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
                getattr(stories, name)("Hello", template="llama2", **options)
        with pytest.raises((ValueError, TypeError), match=r"^Conversation: "):
            llama2cpp.Conversation(stories, template="llama2", **options)
        talk = llama2cpp.Conversation(stories, template="llama2")
        for name in ("say", "stream"):
            with pytest.raises((ValueError, TypeError), match=f"^Conversation.{name}: "):
                getattr(talk, name)("Hello", **options)


KINDS = ("str", "None", "PathLike[str]", "Mapping", "Tokenizer", "Config", "Model", "Opened", "Calibration")


def arguments(function: Callable[..., Any]) -> list[str]:
    """Those whose annotation is made of texts, paths, mappings and the package's own classes."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        parts = [part.strip() for part in str(parameter.annotation).split("|")]
        if all(part.startswith(KINDS) for part in parts):
            found.append(name)
    return found


@pytest.mark.parametrize("name", ["load", "from_arrays", "convert", "compare"])
def test_wrong_types(name: str, stories: llama2cpp.Model, tmp_path: Path) -> None:
    functions: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "load": (llama2cpp.load, {}),
        "from_arrays": (llama2cpp.from_arrays, {"config": stories.config, "arrays": dict(stories.weights)}),
        "convert": (export.convert, {"source": stories, "target": tmp_path / "a.gguf"}),
        "compare": (export.compare, {"a": stories, "b": stories, "text": [1, 2]}),
    }
    function, right = functions[name]
    checked = arguments(function)
    assert checked
    if name == "convert":
        assert {"importance", "calibration", "format", "target"} <= set(checked)
    for argument in checked:
        for wrong in (5, 2.5, ["a"], object()):
            with pytest.raises(TypeError, match=f"{name}: {argument} is .*, expected one of: "):
                function(**{**right, argument: wrong})
    if name == "convert":
        with pytest.raises(TypeError, match="convert: importance is 'f'"):
            export.convert(**right, importance="f")  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "meant"), [("overwrite", "force"), ("exist_ok", "force"), ("forc", "force")])
def test_what_other_libraries_call_it(word: str, meant: str, stories: llama2cpp.Model, tmp_path: Path) -> None:
    options: Any = {word: True}
    with pytest.raises(TypeError, match=f"'{word}'.*{meant}"):
        export.convert(stories, tmp_path / "a.gguf", **options)
