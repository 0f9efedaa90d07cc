"""Which module of the Python package may import which: one direction, but for annotations that have a reason."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from graphlib import TopologicalSorter

from conftest import ROOT

import llama2cpp

PACKAGE = ROOT / "src" / "llama2cpp"

METHODS = ["asking", "chatting", "classic", "extracting", "generating", "measuring", "observing", "sequences", "texts"]

# Arrows upward, in annotations only: nothing is imported when the package runs.
UPWARD = {
    ("generation", "model"): "what is sampled from",
    ("decoding", "model"): "what is sampled from",
    ("dialogue.answers", "model"): "what answers",
    ("inside.hooks", "session"): "HookPoint.session is one",
    ("inside.added_hooks", "inside.hooks"): "what is kept acts as they say",
    ("inside.gradients", "model"): "what is gone back through",
    ("inside.head_patterns", "model"): "whose heads they are",
    ("inside.model_parts", "model"): "whose parts they are",
    ("inside.shown_gradients", "model"): "what is gone back through",
    ("inside.observation", "model"): "what runs",
    ("inside.replacement", "inside.hooks"): "what it makes",
    ("interventions", "inside.hooks"): "what functions of features are given",
    **{
        (f"analysis.{name}", "model"): "what is looked at"
        for name in ("dictionaries", "differences", "harms", "heads", "lenses", "steering")
    },
    ("inside.explanation", "model"): "what is explained",
    **{(f"activation_data.{name}", "model"): "what runs the texts" for name in ("extraction", "means", "passes")},
    ("activation_data.torch_dataset", "activation_data.reading"): "what is read",
    **{(f"methods.{name}", "model"): "whose methods they are" for name in METHODS},
    **{(f"serving.{name}", "model"): "what runs the requests" for name in ("engine", "scheduler")},
    ("serving.measures", "serving.engine"): "on which they are computed",
    ("inside.tracks", "session"): "they are kept by session",
    ("inside.recording", "session"): "Recording.cache takes one",
}


def modules() -> dict[str, ast.Module]:
    """The package's modules by their names without its own; a folder has the name of its __init__.py."""
    files = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    del files["__init__"], files["__main__"]
    return {name.removesuffix(".__init__"): ast.parse(file.read_text("utf-8")) for name, file in files.items()}


def arrows() -> Iterator[tuple[str, str, bool]]:
    """Give (module, module that it imports, whether for annotations only)."""
    trees = modules()
    assert {"model", "export.conversion", "inside.hooks"} <= trees.keys()
    for module, tree in trees.items():
        is_folder = (PACKAGE / module.replace(".", "/")).is_dir()
        guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        for_types = {inner for node in guarded for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            parts = module.split(".")
            folder = parts[: len(parts) - node.level + is_folder]
            origin = [*folder, *([node.module] if node.module else [])]
            for imported in [".".join(origin), *(".".join([*origin, alias.name]) for alias in node.names)]:
                if imported in trees and not f"{module}.".startswith(f"{imported}."):  # not the folder around it
                    yield module, imported, node in for_types


def test_imports_go_one_way() -> None:
    """Inside functions, too: what is imported late is no less needed."""
    below: dict[str, set[str]] = {}
    for module, imported, for_types in arrows():
        below.setdefault(module, set())
        if (module, imported) not in UPWARD:
            below[module].add(imported)
        else:
            assert for_types, f"{module} -> {imported} is no annotation"
    TopologicalSorter(below).prepare()  # a CycleError names the circle


def test_each_arrow_upward_is_there() -> None:
    assert set(UPWARD) <= {(module, imported) for module, imported, _ in arrows()}


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Importing such a module would put it in the function's place."""
    public = [name for name in llama2cpp.__all__ if not inspect.ismodule(getattr(llama2cpp, name))]
    assert {"chat", "generate", "load"} <= set(public)
    assert {name for module in modules() for name in module.split(".")} & set(public) == set()
