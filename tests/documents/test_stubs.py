"""_core.pyi says what the extension module has: names by mypy's stubtest, parameters by pybind11's docstrings."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from llama2cpp import _core

STUB = ROOT / "src" / "llama2cpp" / "_core.pyi"

# pybind11's classes have a metaclass of their own, and an __init__ that refuses where C++ gives no constructor.
PYBIND = re.compile(r"metaclass differs|(Model|Session|Tokenizer)\.__init__ is inconsistent, stub does not have \*args")


def test_names(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "llama2cpp._core", "--concise"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT / "src")},
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
    """1e-5 has come through a float32."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.mark.parametrize(("stub", "real"), list(functions(ast.parse(STUB.read_text()).body, _core)))
def test_parameters(stub: ast.FunctionDef, real: Any) -> None:
    signature = real.__doc__.strip().splitlines()[0].replace("::", ".")  # a class registered later has its C++ name
    (parsed,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    if [name for name, *_ in parameters(parsed)] == ["arg0"]:  # an operator, whose operand has no name
        assert len(parameters(stub)) == 1
    else:
        assert parameters(parsed) == parameters(stub)
