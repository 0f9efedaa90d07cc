"""Which module of the Python package may import which: one direction, but for a few arrows that have a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

from conftest import ROOT

PACKAGE = ROOT / "src" / "llama2cpp"

# Arrows upward: in annotations, or inside a function.
UPWARD = {
    ("generation", "model"): "whose default it opens",
    ("dialogue.conversation", "model"): "whose default it opens",
    ("inside.hooks", "session"): "HookPoint.session is one",
    ("inside.tracks", "session"): "they are kept by session",
    ("inside.recording", "session"): "Recording.cache takes one",
}


def arrows() -> Iterator[tuple[str, str, bool]]:
    """Give (module, module that it imports, whether that is when it is itself imported)."""
    files = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in PACKAGE.rglob("*.py")
        if file.stem not in ("__init__", "__main__")
    }
    assert {"model", "export.conversion"} <= files.keys()
    for module, file in files.items():
        tree = ast.parse(file.read_text())
        at_once = set(tree.body)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            folder = module.split(".")[: -node.level]
            origin = [*folder, *([node.module] if node.module else [])]
            names = [".".join(origin), *(".".join([*origin, alias.name]) for alias in node.names)]
            for imported in names:
                if imported in files:
                    yield module, imported, node in at_once


def test_imports_go_one_way() -> None:
    below: dict[str, set[str]] = {}
    for module, imported, at_once in arrows():
        below.setdefault(module, set())
        if (module, imported) not in UPWARD:
            below[module].add(imported)
        else:
            assert not at_once, f"{module} -> {imported} runs when {module} is imported"
    TopologicalSorter(below).prepare()  # a CycleError names the circle


def test_each_arrow_upward_is_there() -> None:
    assert set(UPWARD) <= {(module, imported) for module, imported, _ in arrows()}
