"""What is no Metal is refused, though C++ would take it: by metal_sources.py, the shim's header, or address spaces."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mutations
import pytest

HERE = Path(__file__).parent
METAL = HERE.parents[1] / "src/cpp/backend/metal"
COMPILER = "clang++-19"

KERNEL = """#include <metal_stdlib>
using namespace metal;
{before}
kernel void k(device const float* x [[buffer(0)]], device float* out [[buffer(1)]], constant uint& n [[buffer(2)]],
              threadgroup float* shared [[threadgroup(0)]], uint i [[thread_position_in_grid]]) {{
  {body}
}}
"""


def write(folder: Path, body: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Gives a kernel with this body to metal_sources.py; line 6 is the body's."""
    (folder / "probe.metal").write_text(KERNEL.format(body=body, before=before))
    return generate(folder / "out", folder / "probe.metal")


def generate(folder: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(METAL / "metal_sources.py"), "--device", str(folder), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


def compiler() -> str:
    if shutil.which(COMPILER) is None:
        reason = f"{COMPILER} is not here: it compiles the kernels"
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(reason)
        pytest.skip(reason)
    return COMPILER


def through_the_shim(source: Path) -> str:
    """The compiler's errors; empty where it takes the text."""
    command = [compiler(), "-std=c++20", "-fdeclspec", "-fsyntax-only", "-w", "-DSOFT_CONTRACTED=0"]
    return subprocess.run([*command, "-I", str(HERE / "shim"), str(source)], capture_output=True, text=True).stderr


def with_address_spaces(text: str, folder: Path) -> str:
    """The same, where device, constant, threadgroup and thread memory are types apart: clang's address spaces.

    Its vectors are clang's own then, which have no constructors: the text's are made calls.
    """
    text = re.sub(r"\[\[function_constant\(\d+\)\]\];", " = 1;", text)
    text = re.sub(r"\[\[[^\]]*\]\]", "", text)
    text = re.sub(r"\b((?:float|half|u?int|u?char|ushort|ulong)[234]|vec<[^<>]*>)\(", r"make<\1>(", text)
    source = folder / "spaces.cpp"
    source.write_text("#define __METAL_VERSION__ 300\n#line 1\n" + text)
    command = [compiler(), "-std=c++20", "-fsyntax-only", "-w", "-I", str(HERE / "spaces"), str(source)]
    return subprocess.run(command, capture_output=True, text=True).stderr


def libraries() -> list[Path]:
    listed = re.search(r"set\(LLAMA2CPP_METAL_LIBRARIES\n(.*?)\)", (METAL / "metal.cmake").read_text(), re.DOTALL)
    assert listed
    return [METAL / "kernels" / name for name in listed.group(1).split()]


def test_every_kernel_file_is_a_library_or_part_of_one() -> None:
    kernels = METAL / "kernels"
    included = {
        name for path in kernels.rglob("*.metal") for name in re.findall(r'#include "([^"]+\.metal)"', path.read_text())
    }
    found = {path.relative_to(kernels).as_posix() for path in kernels.rglob("*.metal")}
    listed = {path.relative_to(kernels).as_posix() for path in libraries()}
    assert found - included == listed


def test_the_pointers_of_every_library_are_of_the_right_space(tmp_path: Path) -> None:
    assert generate(tmp_path, *libraries()).stderr == ""
    for path in libraries():
        text = (tmp_path / path.name).read_text()
        assert with_address_spaces(text, tmp_path) == "", path.name


def test_a_good_kernel_passes(tmp_path: Path) -> None:
    body = (
        "threadgroup float* const p = shared; p[0] = x[i]; float4 v = float4(x[i]); v.x += 1.0f; out[i] = v.x + p[0];"
    )
    assert write(tmp_path, body).returncode == 0
    assert through_the_shim(tmp_path / "out/probe.cpp") == ""
    assert with_address_spaces((tmp_path / "out/probe.metal").read_text(), tmp_path) == ""


SPACES = {
    "device to thread": "thread const float* p = x; out[i] = p[0];",
    "threadgroup to device": "device float* p = shared; p[0] = 1.0f;",
    "device to threadgroup": "threadgroup const float* p = x; out[i] = p[0];",
    "thread to device": "float v[4]; device float* p = v; p[0] = 1.0f;",
    "constant to device": "device const uint* p = &n; out[i] = float(p[0]);",
    "constant is not written": "n = 1u;",
    "device reference": "thread const float& r = x[i]; out[i] = r;",
    "matrix from thread": "float v[64]; simdgroup_float8x8 m; simdgroup_load(m, v); simdgroup_store(m, out);",
    "array of a group": "threadgroup float v[4]; out[i] = v[0];",
    "device variable": "device float v = 1.0f; out[i] = v;",
}


@pytest.mark.parametrize("mistake", SPACES)
def test_a_pointer_of_the_wrong_space_is_found(mistake: str, tmp_path: Path) -> None:
    text = KERNEL.format(body=SPACES[mistake], before="")
    errors = with_address_spaces(text, tmp_path)
    assert re.search(r"spaces\.cpp:6:\d+: error: ", errors), errors


REFUSED = {
    "std": ("out[i] = std::sqrt(x[i]);", "Metal has no std"),
    "double": ("out[i] = float(double(x[i]));", "Metal has no double"),
    "literal": ("out[i] = x[i] * 0.5;", "0.5 is a double in C++: write 0.5f"),
    "exponent": ("out[i] = x[i] * 1.e-3;", "1.e-3 is a double in C++: write 1.e-3f"),
    "bfloat": ("bfloat b = bfloat(x[i]);", "bfloat is emulated on M1 and M2"),
    "atomic": ("atomic_fetch_add_explicit(out, 1, memory_order_relaxed);", "no atomics"),
    "if constexpr": ("if constexpr (true) out[i] = 1.0f;", "Metal 3.0 is C++14"),
    "shared array": ("threadgroup float mine[32]; out[i] = mine[0];", "shared arrays are parameters"),
    "new": ("thread float* p = new float[3];", "Metal has no new"),
    "goto": ("goto end; end:;", "Metal has no goto"),
    "throw": ("throw 1;", "Metal has no throw"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_metal_lacks_is_refused_with_its_line(what: str, tmp_path: Path) -> None:
    body, why = REFUSED[what]
    result = write(tmp_path, body)
    assert result.returncode != 0
    assert result.stderr.startswith("probe.metal:6: error: ")
    assert why in result.stderr


DECLARATIONS = {
    "kernel void a(device float* x) {}": "expected `type name [[attribute]]`",
    "kernel void a(device float* x [[buffer(1)]]) {}": "buffer indices are [1], expected 0, 1, 2",
    "kernel void a(device float* x [[threadgroup(0)]]) {}": "expected `threadgroup T*`",
    "kernel void a(device float& x [[buffer(0)]]) {}": "a reference is to constant memory",
    "kernel void a(thread float* x [[buffer(0)]]) {}": "a buffer is a `device T*`, `constant T*` or `constant T&`",
    "kernel void a(uint x [[thread_execution_width]]) {}": "attribute thread_execution_width is none that we use",
    "kernel void a(uint2 x [[thread_index_in_simdgroup]]) {}": "expected a uint",
    "kernel void a(ushort x [[thread_position_in_grid]]) {}": "expected a uint, uint2 or uint3",
    "kernel float a(uint x [[thread_position_in_grid]]) {}": "expected `kernel void name(...) {`",
    "constant bool kA [[function_constant(0)]];": "expected `constant uint kName [[function_constant(n)]];`",
    "constant uint kA [[function_constant(0)]];\nconstant uint kB [[function_constant(0)]];": "have the same index",
    "kernel void k(uint x [[thread_position_in_grid]]) {}": "two kernels have the same name",
    '#include "nowhere.h"': "no nowhere.h beside the file",
}


@pytest.mark.parametrize("before", DECLARATIONS)
def test_declarations_that_the_device_cannot_serve_are_refused(before: str, tmp_path: Path) -> None:
    result = write(tmp_path, "out[i] = x[i];", before)
    assert result.returncode != 0
    assert re.match(r"probe\.metal:\d+: error: ", result.stderr)
    assert DECLARATIONS[before] in result.stderr


# The shim is no more lenient than Metal.
STRICT = {
    "a vector of halves is no vector of floats": "float4 v = half4(half(1.0f)); out[i] = v.x;",
    "nor is it multiplied by one": "half4 h = half4(half(1.0f)); h = h * float4(1.0f); out[i] = float(h.x);",
    "a float does not fit among halves": "half4 h = half4(half(1.0f)); h = h * 2.0f; out[i] = float(h.x);",
    "two of four": "float4 v = float4(1.0f, 2.0f); out[i] = v.x;",
    "a vector of two has no z": "float2 v = float2(1.0f); out[i] = v.z;",
    "an element has no address": "float4 v = float4(1.0f); thread float* p = &v.x; out[i] = *p;",
    "bits of floats": "float4 v = float4(1.0f) & float4(2.0f); out[i] = v.x;",
    "max of two types": "out[i] = float(max(1, 2u));",
    "exp of an int": "out[i] = exp(1);",
    "as_type of another size": "out[i] = as_type<float>(ushort(1));",
    "a line for simd_sum": "out[i] = simd_sum(x[i], 3);",
    "simd_sum of a bool": "out[i] = float(simd_sum(true));",
    "a barrier without flags": "threadgroup_barrier();",
    "a barrier with a number": "threadgroup_barrier(2);",
    "a matrix of halves": "simdgroup_matrix<half, 8, 8> m; out[i] = 0.0f;",
    "a matrix from halves": "simdgroup_float8x8 m; simdgroup_load(m, (device const half*)x); out[i] = 0.0f;",
    "constant is not written": "n = 1u;",
    "const device is not written": "device float* p = x; p[0] = 1.0f;",
    "names of later C++": "auto [a, b] = float2(1.0f); out[i] = a;",
    "a vector as a truth": "out[i] = float4(1.0f) > float4(0.0f) ? 1.0f : 0.0f;",
}


@pytest.mark.parametrize("what", STRICT)
def test_the_shim_is_as_strict_as_metal(what: str, tmp_path: Path) -> None:
    result = write(tmp_path, STRICT[what])
    assert result.returncode == 0, result.stderr
    assert "error: " in through_the_shim(tmp_path / "out/probe.cpp")


def test_a_text_is_written_with_its_files_and_lines(tmp_path: Path) -> None:
    (tmp_path / "part.h").write_text("#pragma once\nconstant uint kPart = 3;\n")
    before = '#include "part.h"\n#include "part.h"\nconstant uint kWhole [[function_constant(4)]];'
    assert write(tmp_path, "out[i] = float(kWhole + kPart);", before).returncode == 0
    text = (tmp_path / "out/probe.metal").read_text()
    assert text.count("kPart = 3") == 1
    assert text.startswith('#line 1 "probe.metal"\n#include <metal_stdlib>\n')
    assert '#line 1 "part.h"\n\nconstant uint kPart = 3;\n#line 4 "probe.metal"\n' in text
    assert through_the_shim(tmp_path / "out/probe.cpp") == ""
    (tmp_path / "bad.metal").write_text((tmp_path / "probe.metal").read_text().replace("kWhole + kPart", "0.5"))
    assert generate(tmp_path / "out", tmp_path / "bad.metal").stderr.startswith("bad.metal:8: error: ")


def test_each_library_and_each_part_of_the_host_has_a_planted_fault() -> None:
    planted = {mutation.where for mutation in [*mutations.KERNELS, *mutations.HOST]}
    kernels = METAL / "kernels"
    libraries = {path.stem for path in (kernels / "formats").glob("*.metal")}
    libraries |= {path.stem for path in kernels.glob("*.metal") if "\nkernel void" in path.read_text(encoding="utf-8")}
    included = {"embed", "matmul", "matvec", "matvec_rows"}  # in those of formats
    # What holds no step of a computation: one is macOS's, one other systems', and one tests the rest.
    apart = {"apple.cpp", "no_metal.cpp", "self_test.cpp"}
    assert planted == (libraries - included) | {path.name for path in METAL.glob("*.cpp")} - apart
