"""``tests/support/macho.py`` finds what a Mac would refuse. tests/slow.sh macos shows it with real files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from macho import LIB_SYSTEM, Library, faults

METAL = "/System/Library/Frameworks/Metal.framework/Versions/A/Metal"
KNOWN = Library(imports={"_MTLCreateSystemDefaultDevice": METAL, "_malloc": LIB_SYSTEM})
GOOD = Library(
    libraries=[METAL, LIB_SYSTEM],
    imports={
        "_PyLong_FromLong": None,
        "__Py_NoneStruct": None,
        "_MTLCreateSystemDefaultDevice": METAL,
        "_malloc": LIB_SYSTEM,
    },
    exports=["_PyInit__core", "__Znwm"],
    signed=True,
    least_macos=(13, 0),
)


def test_a_good_module() -> None:
    assert faults(GOOD, KNOWN, {"_malloc"}) == []


@pytest.mark.parametrize(
    ("symbol", "library", "said"),
    [
        ("_PyLong_FromNowhere", None, "none that CPython"),
        ("__Py_NoSuch", None, "none that CPython"),
        ("_valloc_of_linux", LIB_SYSTEM, "none that libSystem exports"),
        ("_malloc_anywhere", None, "looked for in every library"),
        ("_MTLNoSuch", METAL, "known to export"),
        ("_MTLCreateSystemDefaultDevice", "/usr/lib/libobjc.A.dylib", "known to export"),
    ],
)
def test_an_import_that_nothing_has(symbol: str, library: str | None, said: str) -> None:
    (fault,) = faults(replace(GOOD, imports=GOOD.imports | {symbol: library}), KNOWN, {"_malloc"})
    assert fault.startswith(f"{symbol} is ")
    assert said in fault


def test_other_faults() -> None:
    def only_fault(file: Library) -> str:
        (fault,) = faults(file, KNOWN, {"_malloc"})
        return fault

    assert "needs macOS (14, 0)" in only_fault(replace(GOOD, least_macos=(14, 0)))
    assert "signature" in only_fault(replace(GOOD, signed=False))
    assert "_visible is exported" in only_fault(replace(GOOD, exports=["_PyInit__core", "_visible"]))
    assert "_PyInit__core is not exported" in only_fault(replace(GOOD, exports=[]))
