"""Who may include whom in the C++ sources, as ARCHITECTURE.md draws it."""

from __future__ import annotations

import re

from conftest import ROOT

SOURCES = ROOT / "src" / "cpp"

# A room, and what its files may include besides the room itself.
MAY_INCLUDE = {
    "core": [],
    "text": ["core/"],
    "format": ["core/"],
    "io": ["core/", "format/"],
    "backend": ["core/", "format/"],
    "model": ["core/", "format/", "io/checkpoint.h", "io/safetensors.h", "backend/backend.h"],
    "bind": ["core/", "format/", "io/", "text/", "backend/backend.h", "model/"],
}


def test_include_directions() -> None:
    files = [file for file in SOURCES.rglob("*") if file.suffix in {".h", ".cpp", ".inl"}]
    assert files
    wrong = []
    for file in files:
        name = file.relative_to(SOURCES).as_posix()
        room = name.split("/")[0]
        allowed = (f"{room}/", *MAY_INCLUDE[room])
        text = file.read_text()
        wrong += [
            f"{name} -> {path}" for path in re.findall(r'#include "([^"]+)"', text) if not path.startswith(allowed)
        ]
        if room != "bind" and "pybind11" in text:
            wrong.append(f"{name} -> pybind11")
    assert wrong == []


def test_only_backend_cpp_knows_the_backends() -> None:
    knows = [
        file.name
        for file in (SOURCES / "backend").glob("*.*")
        if re.search(r'#include "backend/(cpu|metal)/', file.read_text())
    ]
    assert knows == ["backend.cpp"]
