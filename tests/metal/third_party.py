"""Runs other people's Metal kernels on the shim: what Apple's compiler made of them, and their source.

PyPI's wheel mlx-metal has kernels compiled by Apple (LLVM bitcode within mlx.metallib) and their source. clang reads
that bitcode and compiles it for x86-64, so both run on the same fibers (shim/fibers.h). Where they give the same bits,
the shim's types, promotions, vectors, control flow and barriers mean what Apple's compiler takes them to mean. What it
leaves to the GPU (simd_sum, exp, the product of 8 x 8 matrices) is the shim's own on both sides: NumPy says whether
that is right.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
AIR = HERE / "air"
SHIM = HERE / "shim"
COMPILER = "clang++-19"
HEADERS = Path("mlx/include/mlx/backend/metal/kernels")

Array = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True)
class Compiled:
    """A kernel of the metallib: what it is called there and here, and the function constants that are true."""

    name: str
    symbol: str
    true: tuple[int, ...] = ()


GEMM = "steel_gemm_fused_nt_float32_float32_bm64_bn64_bk16_wm2_wn2"
ATTENTION = "sdpa_vector_float16_t_64_64"
KERNELS = [
    Compiled("rmsfloat32", "air_rms"),
    Compiled("block_softmax_float32", "air_softmax"),
    Compiled("affine_qmv_fast_float_gs_64_b_4_batch_0_pr_0_hgs_0_r_4", "air_matvec"),
    Compiled(ATTENTION, "air_attention"),
    Compiled(ATTENTION, "air_attention_causal", (22,)),
    Compiled(GEMM, "air_gemm"),
    Compiled(GEMM, "air_gemm_aligned", (200, 201, 202)),
]
SOURCES = ["source_attention", "source_gemm", "source_matvec", "source_softmax"]


def bitcode(metallib: Path, names: set[str]) -> dict[str, bytes]:
    """Reads the bitcode of some functions of a .metallib.

    It begins with where its list of functions and its bitcode are. The list is of entries of tagged fields: NAME, MDSZ
    (how large its bitcode is), OFFT (three offsets, the last of them the bitcode's) and others, to ENDT.
    """
    out = {}
    with metallib.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"MTLB":
            raise ValueError(f"{metallib} begins with {data[:4]!r}, expected b'MTLB'")
        functions, *_, code, _ = struct.unpack_from("<8Q", data, 0x18)
        (count,) = struct.unpack_from("<I", data, functions)
        entry = functions + 4
        for _ in range(count):
            fields = {}
            at = entry + 4
            while data[at : at + 4] != b"ENDT":
                (length,) = struct.unpack_from("<H", data, at + 4)
                fields[data[at : at + 4]] = data[at + 6 : at + 6 + length]
                at += 6 + length
            name = fields[b"NAME"].rstrip(b"\0").decode()
            if name in names:
                begin = code + struct.unpack("<3Q", fields[b"OFFT"])[2]
                out[name] = data[begin : begin + struct.unpack("<Q", fields[b"MDSZ"])[0]]
            entry += struct.unpack_from("<I", data, entry)[0]
    if missing := names - set(out):
        raise ValueError(f"{metallib} lacks {sorted(missing)}")
    return out


def clang(*arguments: str | Path) -> None:
    """Runs the compiler; for x86-64, whatever the input was for."""
    command = [COMPILER, "--target=x86_64-linux-gnu", "-Wno-override-module", "-O2", "-march=x86-64-v3", "-fPIC"]
    # On: as Apple's compiler does, which leaves multiply-add where one expression has both.
    subprocess.run([*command, "-ffp-contract=on", *map(str, arguments)], check=True)


def for_this_machine(kernel: Compiled, code: bytes, folder: Path) -> Path:
    """Compiles a kernel's bitcode to an object file that has it under our name, with its function constants set."""
    (folder / "kernel.bc").write_bytes(code)
    text_file = folder / f"{kernel.symbol}.ll"
    clang("-x", "ir", "-S", "-emit-llvm", folder / "kernel.bc", "-o", text_file)
    text = text_file.read_text()

    def value(found: re.Match[str]) -> str:
        return f"{found.group(1)}{int(int(found.group(2)) in kernel.true)}"

    text = re.sub(r"(@\S+\.MTL_FC_INIT_(\d+)_b = .* constant i8 )undef", value, text)
    text = re.sub(rf"@{re.escape(kernel.name)}(?=[(,])", f"@{kernel.symbol}", text)
    text_file.write_text(text)
    out = folder / f"{kernel.symbol}.o"
    clang("-x", "ir", "-c", text_file, "-o", out)
    return out


def headers(wheel: Path, folder: Path) -> Path:
    """Copies the source; shared arrays that kernels declare become static, function constants variables."""
    for path in (wheel / HEADERS).rglob("*.h"):
        name = Path("mlx/backend/metal/kernels") / path.relative_to(wheel / HEADERS)
        if (AIR / "include" / name).exists():
            continue
        text = path.read_text()
        text = re.sub(r"^(\s+)threadgroup (\w+ \w+\[)", r"\1static \2", text, flags=re.M)
        text = re.sub(r"^constant (\w+ \w+) \[\[function_constant\(\d+\)\]\];", r"extern \1;", text, flags=re.M)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def build(wheel: Path, folder: Path) -> Path:
    """Builds the library with both forms of each kernel."""
    codes = bitcode(wheel / "mlx/lib/mlx.metallib", {kernel.name for kernel in KERNELS})
    objects = [for_this_machine(kernel, codes[kernel.name], folder) for kernel in KERNELS]
    include = headers(wheel, folder / "include")
    flags = ["-std=c++20", "-fdeclspec", "-fno-math-errno", "-w", "-Xclang", "-ffloat16-excess-precision=none"]
    for folder_of_headers in (AIR / "include", AIR, SHIM, include):
        flags += ["-I", str(folder_of_headers)]
    for source in [*(AIR / f"{name}.cpp" for name in [*SOURCES, "air_builtins", "runs"]), SHIM / "fibers.cpp"]:
        objects.append(folder / f"{source.stem}.o")
        clang(*flags, "-c", source, "-o", objects[-1])
    objects.append(folder / "matrix.o")
    clang("-x", "ir", "-c", AIR / "matrix.ll", "-o", objects[-1])
    library = folder / "third_party.so"
    clang("-shared", *objects, "-o", library)
    return library


def pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """What ctypes passes for it."""
    return array.ctypes.data_as(ctypes.c_void_p)


@dataclass
class Case:
    """A kernel with inputs."""

    name: str
    like: Array  # the result's shape and type
    expected: npt.NDArray[np.float64]
    bound: npt.NDArray[np.float64]  # of the difference from it
    run: Callable[[int, int, Array], int]  # air, order, out
    has_source: bool = True


def cases(library: ctypes.CDLL) -> Iterator[Case]:
    """All that is run."""
    random = np.random.default_rng(5)
    unit = 2.0**-24

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    for columns in (64, 100, 768, 2048):
        x, gain = normal(3, columns), normal(columns)
        wide = x.astype(np.float64)
        expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * gain

        def rms(air: int, order: int, out: Array, x: Array = x, gain: Array = gain) -> int:
            return int(library.run_rms(order, pointer(x), pointer(gain), pointer(out), *x.shape, ctypes.c_float(1e-5)))

        yield Case(f"rms {columns}", x, expected, (columns / 128 + 16) * unit * np.abs(expected), rms, has_source=False)

    for columns in (32, 77, 1000):
        x = normal(3, columns) * 3
        wide = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
        expected = wide / wide.sum(1, keepdims=True)

        def softmax(air: int, order: int, out: Array, x: Array = x) -> int:
            return int(library.run_softmax(air, order, pointer(x), pointer(out), *x.shape))

        # exp of a rounded difference of up to 20
        yield Case(f"softmax {columns}", x, expected, (columns / 128 + 48) * unit * expected, softmax)

    for rows, columns, tokens in ((64, 512, 1), (32, 1024, 2), (128, 2048, 1)):
        codes = random.integers(0, 16, (rows, columns), dtype=np.uint32)
        scales = (random.random((rows, columns // 64)) * 0.1).astype(np.float32)
        biases = normal(rows, columns // 64)
        weights = codes * np.repeat(scales, 64, 1).astype(np.float64) + np.repeat(biases, 64, 1)
        sizes = codes * np.repeat(scales, 64, 1).astype(np.float64) + np.abs(np.repeat(biases, 64, 1))
        packed = np.zeros((rows, columns // 8), np.uint32)
        for i in range(8):
            packed |= codes[:, i::8] << np.uint32(4 * i)
        x = normal(tokens, columns)

        def matvec(
            air: int,
            order: int,
            out: Array,
            inputs: tuple[npt.NDArray[np.generic], ...] = (packed, scales, biases, x),
            sizes: tuple[int, ...] = (columns, rows, tokens),
        ) -> int:
            return int(library.run_matvec(air, order, *map(pointer, inputs), pointer(out), *sizes))

        bound = (columns / 32 + 24) * unit * (np.abs(x).astype(np.float64) @ sizes.T)
        yield Case(
            f"4-bit matvec {rows}x{columns} T={tokens}",
            np.empty((tokens, rows), np.float32),
            x @ weights.T,
            bound,
            matvec,
        )

    for heads, kv_heads, keys, tokens, causal in (
        (4, 2, 5, 1, 0),
        (4, 1, 77, 1, 0),
        (2, 2, 300, 1, 0),
        (4, 2, 40, 4, 1),
    ):
        q, k, v = (
            random.standard_normal(shape).astype(np.float16)
            for shape in ((heads, tokens, 64), (kv_heads, keys, 64), (kv_heads, keys, 64))
        )
        scores = q.astype(np.float64) @ np.repeat(k, heads // kv_heads, 0).astype(np.float64).transpose(0, 2, 1) * 0.125
        if causal:
            scores[:, np.triu(np.ones((tokens, keys), bool), keys - tokens + 1)] = -np.inf
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        wide_v = np.repeat(v, heads // kv_heads, 0).astype(np.float64)
        expected = pattern @ wide_v

        def attention(
            air: int,
            order: int,
            out: Array,
            inputs: tuple[Array, ...] = (q, k, v),
            sizes: tuple[int, int, int] = (heads, kv_heads, keys),
            causal: int = causal,
            tokens: int = tokens,
        ) -> int:
            arguments = (*map(pointer, inputs), pointer(out), *sizes)
            return int(library.run_attention(air, order, *arguments, ctypes.c_float(0.125), causal, tokens))

        # half of the last bit of a half, and what float32 loses
        bound = 2.0**-11 * np.abs(expected) + 2.0**-25 + 200 * unit * (pattern @ np.abs(wide_v))
        name = f"attention {heads}/{kv_heads} heads, {keys} keys, T={tokens}{', causal' if causal else ''}"
        yield Case(name, q, expected, bound, attention)

    for rows, columns, inner in ((64, 64, 64), (128, 64, 32), (70, 80, 96), (33, 128, 40)):
        a, b = normal(rows, inner), normal(columns, inner)

        def gemm(
            air: int,
            order: int,
            out: Array,
            a: Array = a,
            b: Array = b,
            sizes: tuple[int, int, int] = (rows, columns, inner),
        ) -> int:
            return int(library.run_gemm(air, order, pointer(a), pointer(b), pointer(out), *sizes))

        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        bound = (inner + 2) * unit * (np.abs(wide_a) @ np.abs(wide_b).T)
        yield Case(
            f"gemm {rows}x{columns}x{inner}", np.empty((rows, columns), np.float32), wide_a @ wide_b.T, bound, gemm
        )


def check(library: ctypes.CDLL, case: Case) -> str:
    """Runs a case in all orders and both forms; the line that says how it went. Raises AssertionError."""
    results = []
    for air in (1, 0) if case.has_source else (1,):
        for order in (0, 1, 2):
            out = np.full_like(case.like, np.nan)
            if case.run(air, order, out):
                raise AssertionError(f"{case.name}: {library.last_fault().decode()}")
            results.append(out)
    for out in results[1:]:
        differing = int((out.view(f"u{out.itemsize}") != results[0].view(f"u{out.itemsize}")).sum())
        if differing:
            raise AssertionError(
                f"{case.name}: {differing} of {out.size} numbers differ between orders, or from the source"
            )
    error = np.abs(results[0] - case.expected)
    if not (error <= case.bound).all():
        raise AssertionError(f"{case.name}: {np.nanmax(error / case.bound):.2f} times what rounding explains")
    same = "the source's bits" if case.has_source else "no source in the wheel"
    return f"{case.name}: {same}; error {np.max(error / case.bound):.3f} of its bound"


def load(path: Path) -> ctypes.CDLL:
    """Loads what build() has built."""
    library = ctypes.CDLL(str(path))
    library.last_fault.restype = ctypes.c_char_p
    return library


def main() -> None:
    """`third_party.py WHEEL FOLDER`: the unpacked wheel, and a folder to build in."""
    wheel, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    library = load(build(wheel, folder))
    lines = [check(library, case) for case in cases(library)]
    print("\n".join(lines))
    print(f"third party: {len(lines)} cases equal")


if __name__ == "__main__":
    main()
