"""Modules of the package that need what the tests' own environment may lack."""

from __future__ import annotations

import importlib.util
import pkgutil

import llama2cpp

# What their names begin with, and what they import; .ci/run installs it for its own tests only.
NEEDS = {"llama2cpp.lens_bridge.": "transformer_lens", "llama2cpp.llm_plugin": "llm"}


def importable_modules() -> list[str]:
    """The names of the package's modules, without those whose library is not there."""
    lacking = tuple(begin for begin, library in NEEDS.items() if importlib.util.find_spec(library) is None)
    names = [found.name for found in pkgutil.walk_packages(llama2cpp.__path__, "llama2cpp.")]
    return [name for name in names if not name.startswith(lacking)] if lacking else names
