"""Kernels that Apple's compiler has compiled, and their source through the shim: the same bits, and NumPy's numbers."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import sys
from ctypes import CDLL
from pathlib import Path

import numpy as np
import pytest
import third_party
from downloads import downloaded_wheel

if sys.platform != "linux" or platform.machine() != "x86_64":
    pytest.skip("the shim's fibers are for Linux on x86-64", allow_module_level=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    if shutil.which(third_party.COMPILER) is None:
        reason = f"{third_party.COMPILER} is not here: it compiles the kernels"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return third_party.load(third_party.build(downloaded_wheel("mlx-metal"), tmp_path_factory.mktemp("third_party")))


def test_apples_compiler_and_the_shim_agree_and_numpy_with_them(library: CDLL) -> None:
    cases = list(third_party.cases(library))
    lines = [third_party.check(library, case) for case in cases]
    assert sum("the source's bits" in line for line in lines) == 14
    assert {case.name.split()[0] for case in cases} == {"rms", "softmax", "4-bit", "attention", "gemm"}


def test_a_wrong_number_is_found(library: CDLL) -> None:
    case = next(case for case in third_party.cases(library) if case.has_source)
    run = case.run

    def one_bit_off(air: int, order: int, out: third_party.Array) -> int:
        code = run(air, order, out)
        if not air and order == 2:
            out.view(np.uint32)[0, 0] ^= 1
        return code

    case.run = one_bit_off
    with pytest.raises(AssertionError, match=r"softmax 32: 1 of 96 numbers differ between orders, or from the source"):
        third_party.check(library, case)
    case.run = run
    case.expected = case.expected * (1 + 1e-4)
    with pytest.raises(AssertionError, match="times what rounding explains"):
        third_party.check(library, case)


def test_what_is_no_metallib_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.metallib"
    path.write_bytes(b"MTLX" + bytes(200))
    with pytest.raises(ValueError, match=r"begins with b'MTLX', expected b'MTLB'"):
        third_party.bitcode(path, {"f"})
    path.write_bytes(b"MTLB" + bytes(20) + struct.pack("<8Q", 100, 4, 0, 0, 0, 0, 104, 0) + bytes(100))
    with pytest.raises(ValueError, match=r"lacks \['f'\]"):
        third_party.bitcode(path, {"f"})
