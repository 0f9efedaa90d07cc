"""``import llama2cpp`` is light."""

from __future__ import annotations

import ast
import importlib
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

import llama2cpp

HEAVY = ["typer", "click", "rich", "torch", "transformers", "jinja2", "matplotlib", "asyncio", "urllib.request"]
# Of Python's own: what takes a millisecond or more each.
SLOW = ["dataclasses", "difflib", "hashlib", "html", "json", "pathlib", "shutil", "subprocess", "tempfile", "zipfile"]


def test_import_pulls_in_nothing_heavy() -> None:
    code = f"import sys, llama2cpp; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_import_is_the_extension_and_little_more() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import llama2cpp; new = set(sys.modules) - before;"
        f"print(sorted(name for name in new if name.startswith('llama2cpp') or name in {SLOW}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = ["llama2cpp", "llama2cpp._core", "llama2cpp.command", "llama2cpp.command.early_interrupt"]
    assert ast.literal_eval(result.stdout) == imported


def test_what_is_imported_when_used_is_what_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "src" / "llama2cpp" / "__init__.py").read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {node.module: [alias.name for alias in node.names] for node in imports if node.module}
    assert seen == llama2cpp._IMPORTED_WHEN_USED
    for module, names in seen.items():
        for name in names:
            assert getattr(llama2cpp, name) is getattr(importlib.import_module(f"llama2cpp.{module}"), name)
            assert name in vars(llama2cpp)


def test_a_module_is_there_without_importing_it_and_no_other_name_is() -> None:
    code = (
        "import llama2cpp; print(llama2cpp.inside.__name__, llama2cpp.hub.__name__)\n"
        "try: llama2cpp.loadd\nexcept AttributeError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [modules, error] = result.stdout.splitlines()
    assert modules == "llama2cpp.inside llama2cpp.hub"
    assert error == "module 'llama2cpp' has no attribute 'loadd'; close to it is load"


def test_every_public_name_is_there() -> None:
    code = "from llama2cpp import *; import llama2cpp; print(sorted(set(llama2cpp.__all__) - set(globals())))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif((sys.platform, platform.machine()) != ("darwin", "arm64"), reason="Metal is on Apple silicon only")
def test_a_build_for_a_mac_has_metal() -> None:
    """Whether there is a GPU to use it is another question: hosted runners have none."""
    assert llama2cpp.build_info().get("no_metal") != "this build does not have it"


def test_imports_where_every_object_has_an_attribute_save() -> None:
    """As nnsight makes it: pybind11 takes what a class inherits for an overload of a method of that name."""
    code = """
import ctypes, gc
gc.get_referents(object.__dict__)[0]["save"] = property(lambda self: None)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(object))
import llama2cpp
print(llama2cpp.load().session().position)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.returncode) == ("0", 0), result.stderr
