"""_core.pyi says what the extension module has, by mypy's stubtest and by inspect.signature; help() shows no C++."""

from __future__ import annotations

import ast
import inspect
import os
import pydoc
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import llama2cpp
from llama2cpp import _core

STUB = ROOT / "src" / "llama2cpp" / "_core.pyi"

# pybind11's classes have a metaclass of their own, and an __init__ that refuses where C++ gives no constructor.
PYBIND = re.compile(r"metaclass differs|(Model|Session|Tokenizer)\.__init__ is inconsistent, stub does not have \*args")


def test_names(tmp_path: Path) -> None:
    # The stub alone: to check the whole package, and all that it imports, is what `mypy --strict` is for.
    (tmp_path / "llama2cpp").mkdir()
    (tmp_path / "llama2cpp" / "__init__.pyi").touch()
    shutil.copy(STUB, tmp_path / "llama2cpp")
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "llama2cpp._core", "--concise"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(tmp_path)},
        timeout=300,
    )
    assert [line for line in result.stdout.splitlines() if not PYBIND.search(line)] == []
    assert result.stderr == ""


def functions(body: list[ast.stmt], owner: Any, prefix: str = "") -> Iterator[Any]:
    """Each function of the stub that is not a property, with the module's."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, getattr(owner, node.name), f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and "property" not in map(ast.unparse, node.decorator_list):
            yield pytest.param(node, getattr(owner, node.name), id=f"{prefix}{node.name}")


def parameters(function: ast.FunctionDef) -> list[tuple[str, str, Any]]:
    """Name, kind and default of each parameter but self."""
    arguments = function.args
    placed = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(placed) - len(arguments.defaults)) + [*arguments.defaults]
    kinds = [("placed", *pair) for pair in zip(placed, defaults, strict=True)]
    kinds += [("named", *pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [
        (argument.arg, kind, "required" if default is None else approximately(ast.literal_eval(default)))
        for kind, argument, default in kinds
        if argument.arg != "self"
    ]


def approximately(value: Any) -> Any:
    """1e-5 may have come through a float32."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def real_parameters(function: Any) -> list[tuple[str, str, Any]]:
    """The same of what runs."""
    return [
        (
            name,
            "named" if parameter.kind is parameter.KEYWORD_ONLY else "placed",
            "required" if parameter.default is parameter.empty else approximately(parameter.default),
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]


@pytest.mark.parametrize(("stub", "real"), list(functions(ast.parse(STUB.read_text()).body, _core)))
def test_parameters(stub: ast.FunctionDef, real: Any) -> None:
    assert real_parameters(real) == parameters(stub)


CLASSES = [value for value in vars(_core).values() if isinstance(value, type) and not issubclass(value, Exception)]


@pytest.mark.parametrize("thing", CLASSES)
def test_a_class_has_the_signature_of_its_constructor(thing: type) -> None:
    if type(thing.__init__).__name__ == "instancemethod":  # type: ignore[misc]
        assert real_parameters(thing) == real_parameters(thing.__init__)  # type: ignore[misc]
    else:  # it is made by other means
        with pytest.raises(ValueError, match="signature"):
            inspect.signature(thing)


@pytest.mark.parametrize("thing", [*CLASSES, *filter(inspect.isbuiltin, vars(_core).values())])
def test_help_shows_no_cpp(thing: Any) -> None:
    shown = pydoc.plain(pydoc.render_doc(thing))
    lines = shown.splitlines()[1:]  # the first says where it is from
    noise = re.compile(r"arg\d|llama2cpp\._core\.\w|self: |-> |typing\.|collections\.abc|\$self|^--$", re.MULTILINE)
    found = [line for line in lines if noise.search(line) and not re.search(r"^ *\|? *(>>>|class |from )", line)]
    assert found == []


def test_what_users_read() -> None:
    assert str(inspect.signature(_core.Sampler)) == (
        "(temperature=1.0, top_p=0.9, top_k=0, min_p=0.0, seed=None, repetition_penalty=1.0, presence_penalty=0.0, "
        "frequency_penalty=0.0, logit_bias=None)"
    )
    assert str(inspect.signature(_core.Tokenizer.encode)) == (
        "(self, text, bos=True, eos=None, special=False, prefix_space=True)"
    )
    bound = llama2cpp.load("storyteller").tokenizer.encode
    assert str(inspect.signature(bound)) == "(text, bos=True, eos=None, special=False, prefix_space=True)"
    assert str(inspect.signature(_core.Tokenizer.from_file)) == "(path, vocab_size=0)"
    assert (_core.Sampler.__doc__ or "").startswith("Draws token ids from logits.\n")
    assert (_core.Sampler.sample.__doc__ or "").startswith("Draw one id.\n")
    assert _core.Sampler.__copy__.__doc__ is None
