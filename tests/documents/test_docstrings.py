"""Every public thing has a docstring with an example, and the examples run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import run_examples
from optional_modules import importable_modules

import llama2cpp
from llama2cpp import _core, attribution, interventions, metrics, patching, plot
from llama2cpp.inside import activation_names
from llama2cpp.inside.activation_arrays import ActivationArrays
from llama2cpp.inside.heads_and_neurons import HeadsAndNeurons
from llama2cpp.inside.residual_stream import ResidualStream
from llama2cpp.inside.weights import LensWeights, StackedWeights, Weights
from llama2cpp.session import KVCache

INNER = {"Weights": Weights, "LensWeights": LensWeights, "KVCache": KVCache, "StackedWeights": StackedWeights}
INNER |= {"ActivationArrays": ActivationArrays, "ResidualStream": ResidualStream}
INNER |= {"HeadsAndNeurons": HeadsAndNeurons, "EdgeAttribution": attribution.EdgeAttribution}
FUNCTIONS = [getattr(plot, name) for name in plot.__all__]
FUNCTIONS += [activation_names.get_act_name]
FUNCTIONS += [getattr(interventions, name) for name in interventions.__all__]
FUNCTIONS += [getattr(patching, name) for name in patching.__all__]
FUNCTIONS += [getattr(metrics, name) for name in metrics.__all__]
FUNCTIONS += [getattr(attribution, name) for name in attribution.__all__ if name != "EdgeAttribution"]


def documented() -> Iterator[tuple[str, Any]]:
    """Public names and, of classes, their public methods."""
    yield "llama2cpp", llama2cpp
    things = {name: getattr(llama2cpp, name) for name in llama2cpp.__all__ if not name.startswith("__")}
    things |= {f"{function.__module__}.{function.__name__}": function for function in FUNCTIONS}
    for name, thing in {**things, **INNER}.items():
        yield name, thing
        if inspect.isclass(thing):
            for member, value in inspect.getmembers(thing):
                if callable(value) and not member.startswith("_") and member in vars(thing):
                    yield f"{name}.{member}", value


@pytest.mark.cpu_bits("what documents show")
@pytest.mark.parametrize(("name", "thing"), list(documented()), ids=[name for name, _ in documented()])
def test_examples(name: str, thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a new user has no file of the tests
    assert inspect.getdoc(thing), f"{name} has no docstring"
    needs_example = not (inspect.isclass(thing) and issubclass(thing, Exception))
    assert run_examples(thing) > 0 or not needs_example, f"{name} has no example"


def everything() -> Iterator[tuple[str, Any]]:
    """Every function, class and method of the package that has an example, public or not."""
    names = [name for name in importable_modules() if not name.endswith("__main__")]
    for module in map(importlib.import_module, names):
        yield module.__name__, module
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", None) != module.__name__ and module is not _core:
                continue
            yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                yield from ((f"{module.__name__}.{name}.{key}", value) for key, value in vars(thing).items())


OTHERS = {name: thing for name, thing in everything() if ">>>" in str(getattr(thing, "__doc__", None))}
PUBLIC = {id(thing) for _, thing in documented()}
OTHERS = {name: thing for name, thing in OTHERS.items() if id(thing) not in PUBLIC}


@pytest.mark.cpu_bits("what documents show")
@pytest.mark.parametrize("thing", OTHERS.values(), ids=OTHERS.keys())
def test_inner_examples(thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_examples(thing) > 0


@pytest.mark.parametrize("thing", [llama2cpp.Model, llama2cpp.Session, llama2cpp.Config, llama2cpp.Tokenizer])
def test_properties_are_documented(thing: type) -> None:
    assert [
        name
        for name, value in vars(thing).items()
        if isinstance(value, property) and not name.startswith("_") and not value.__doc__
    ] == []
