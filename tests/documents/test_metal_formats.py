"""What is said of a weight format twice, to the Metal backend's host and to its kernels, is the same."""

from __future__ import annotations

import re

from conftest import ROOT

METAL = ROOT / "src" / "cpp" / "backend" / "metal"


def formats() -> list[tuple[str, str, str, int]]:
    """The host's table: format, library, kind, rows of a simdgroup."""
    found = re.findall(r'\{"(\w+)", Kind::(\w+), \d+, (\d+)\}', (METAL / "products.cpp").read_text())
    return [(name, name.removesuffix("_v2"), kind, int(rows)) for name, kind, rows in found]


def test_every_format_file_is_in_the_table_and_is_compiled() -> None:
    files = {file.stem for file in (METAL / "kernels" / "formats").glob("*.metal")}
    assert len(formats()) > len(files) > 15
    assert {library for _, library, _, _ in formats()} == files
    assert set(re.findall(r"^  formats/(\w+)\.metal$", (METAL / "metal.cmake").read_text(), re.MULTILINE)) == files


def test_host_and_kernel_agree_on_the_rows_of_a_simdgroup() -> None:
    for _, library, kind, rows in formats():
        text = (METAL / "kernels" / "formats" / f"{library}.metal").read_text()
        if kind == "gptq":  # lanes are rows
            assert '#include "gptq.metal"' in text
            assert rows == 0
        else:
            assert re.findall(r"\bkRows = (\d+);", text) == [str(rows)], library
