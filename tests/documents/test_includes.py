"""Who may include whom in the C++ sources, as ARCHITECTURE.md draws it."""

from __future__ import annotations

import re

from conftest import ROOT

SOURCES = ROOT / "src" / "cpp"

BACKEND = ["backend/backend.h", "backend/gradient_ops.h"]
# A room, and what its files may include besides the room itself.
MAY_INCLUDE = {
    "core": [],
    "text": ["core/"],
    "format": ["core/"],
    "io": ["core/", "format/", "text/readers.h", "text/pattern.h"],
    "backend": ["core/", "format/"],
    "observe": ["core/", "backend/backend.h"],
    "sample": ["core/"],
    "model": ["core/", "format/", "io/checkpoint.h", "io/safetensors.h", *BACKEND, "observe/"],
    "bind": ["core/", "format/", "io/", "text/", "backend/backend.h", "observe/", "sample/", "model/"],
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


# Of <algorithm>, and not of the headers that bring some of it along in one C++ library and not in another.
ALGORITHMS = r"""std::(?:min|max|clamp|minmax|sort|stable_sort|partial_sort|nth_element|is_sorted|copy|copy_n|copy_if
    |fill|fill_n|any_of|all_of|none_of|find|find_if|count|count_if|lower_bound|upper_bound|equal_range|binary_search|equal|mismatch|search
    |reverse|rotate|transform|max_element|min_element|unique|remove_if|replace|for_each|ranges::\w+)\s*[(<]"""


def test_algorithms_are_included() -> None:
    sources = [file for folder in (SOURCES, ROOT / "tests" / "cpp") for file in folder.rglob("*")]
    files = [file for file in sources if file.suffix in {".h", ".cpp"}]
    used = re.compile(ALGORITHMS, flags=re.VERBOSE)
    wrong = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        code = re.sub(r"//.*", "", text)
        if "#include <algorithm>" not in text and (found := sorted(set(used.findall(code)))):
            wrong[file.relative_to(ROOT).as_posix()] = found
    assert wrong == {}


def test_only_backend_cpp_knows_the_backends() -> None:
    knows = [
        file.name
        for file in (SOURCES / "backend").glob("*.*")
        if re.search(r'#include "backend/(cpu|metal)/', file.read_text())
    ]
    assert knows == ["backend.cpp"]


# What the kernels of every instruction set see of the rest: plain data. A function in a header would be compiled with
# each one's instructions, and the linker would take one of the copies for the whole program.
PLAIN_DATA = {
    "backend/arithmetic.h",
    "backend/cpu/block_panels.h",
    "backend/cpu/kernel_table.h",
    "backend/cpu/llm_int8.h",
    "core/activation.h",
    "core/glibc_float.h",
    "core/q8_block.h",
    "format/block_layout.h",
}


def included(name: str) -> set[str]:
    """Our headers and the system's that `name` includes, itself or by way of others."""
    text = (SOURCES / name).read_text()
    ours = set(re.findall(r'#include "([^"]+)"', text))
    return ours.union(re.findall(r"#include <([^>]+)>", text), *(included(header) for header in ours))


def test_kernels_see_plain_data_only() -> None:
    isas = [file for file in (SOURCES / "backend/cpu/isa").glob("*.cpp") if "kernels.inl" in file.read_text()]
    assert len(isas) >= 7
    for file in isas:
        seen = {name for name in included(file.relative_to(SOURCES).as_posix()) if not name.endswith(".inl")}
        allowed = PLAIN_DATA | {"cstdint", "limits"}
        # Any machine can run the scalar kernels' copies.
        allowed |= (
            {"cmath", "cstring", "bit", "core/half.h"} if file.stem == "scalar" else {"immintrin.h", "arm_neon.h"}
        )
        assert seen - allowed == set(), file.name
    for header in PLAIN_DATA:
        code = re.sub(r"//.*", "", (SOURCES / header).read_text())
        assert re.findall(r".*(?:\)[a-z ]*\{|\boperator\b).*", code) == [], header


def test_every_kernel_file_is_in_the_list() -> None:
    """A file of kernels that nothing includes would not even be compiled."""
    folder = SOURCES / "backend/cpu"
    lists = [folder / "kernels.inl", *(folder / "isa").glob("*.*")]
    named = {name for file in lists for name in re.findall(r'#include "(.+\.inl)"', file.read_text())}
    assert {file.relative_to(SOURCES).as_posix() for file in folder.rglob("*.inl")} == named
