"""Plants small mistakes in the kernels' source, one at a time, and checks that the C++ tests find each.

Run by tests/slow.sh with a build folder that has the C++ tests: ``python tests/mutate_kernels.py BUILD``, and with a
pattern behind it (``matmul_blocks.inl``) for some of the files only. Each mistake is one that a reviewer could miss: a
product rounded before it is added, a constant one unit off, a sum that goes on over the border of a block; in
llama2.c's order, a product that is not rounded. The scalar kernels are compiled with it, linked before the library and
run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "src" / "cpp"
KERNELS = CPP / "backend" / "cpu"
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno"]

# Not mistakes: products that are exact, and the first step of exp's polynomial, where a rounding reaches the result
# for one value in thirty million.
EQUAL = {
    ("zero", "poison"),
    ("number", "minimum"),
    ("zero", "mul(a, zero)"),
    ("set1(-0.693145752F)", "x"),
    ("r", "set1(1.0F / 720.0F)"),
}
# The same for a unit in the polynomial's last coefficients.
FAINT = {"1.0F / 5040.0F", "1.0F / 720.0F"}
# What arithmetic on bytes gets wrong: a neighbour's bits, the other half's sum, a stride that fits some formats only.
SWAPS = [
    ("J % 2 * 4", "(J + 1) % 2 * 4"),
    ("J % 4 * 2 - to", "J % 4 * 2 - to + 1"),
    ("shift<J - to>", "shift<J - to + 1>"),
    ("15 * kOnes", "7 * kOnes"),
    ("(3 << to) * kOnes", "(1 << to) * kOnes"),
    ("kOffset == 4 ? 2", "kOffset == 4 ? 3"),
    ("kOffset == 16 ? 4", "kOffset == 16 ? 3"),
    ("starts + kHalf * N + n", "starts + n"),
    ("sums[kHalf * N + n]", "sums[n]"),
    ("input.starts += L.halves * N", "input.starts += N"),
    ("input.sums += L.halves * N", "input.sums += N"),
    ("part % 2 == 1", "part % 2 == 0"),
    ("* L.halves + half) * 16", "* L.halves) * 16"),
    ("(bytes + 63) / 64 * 64", "bytes"),
    ("quad * layout.halves / 8 * 64", "quad / 8 * 64"),
    ("x += J * 4 * N", "x += J * 4"),
    ("x[I * N + n]", "x[I + n]"),
    ("x += kBlockCols * N", "x += kBlockCols"),
    ("b.first && begin == 0", "b.first"),
    ("magic = set1(12582912.0F)", "magic = set1(12582913.0F)"),
]


def arguments(text: str, begin: int) -> tuple[list[str], int]:
    """The arguments of the call whose parenthesis opens at `begin`, and where it ends."""
    parts: list[str] = []
    depth, start = 0, begin + 1
    for i in range(begin, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return [*parts, text[start:i].strip()], i + 1
        elif text[i] == "," and depth == 1:
            parts.append(text[start:i].strip())
            start = i + 1
    raise ValueError(f"no end to the call at {begin}")


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """What was done, and the source with it."""
    for call in re.finditer(r"\bfma\(", text):
        if text[: call.start()].endswith("inline f32x16 "):
            continue
        (a, b, c), end = arguments(text, call.end() - 1)
        if (b, c) in EQUAL:
            continue
        yield f"fma({a}, {b}, {c}) rounded twice", f"{text[: call.start()]}add(mul({a}, {b}), {c}){text[end:]}"
    for constant in re.finditer(r"set1\((-?[0-9.e+-]+F(?: / [0-9.]+F)?)\)", text):
        value = constant[1]
        if value in {"0.0F", "-0.5F", "0.5F", "127.0F", "-127.0F", "1.0F"} and "fma" not in line_of(text, constant):
            continue  # borders that are exact, not factors
        changed = f"set1({value} * 1.0000001F)"
        if value in FAINT or "magic" in line_of(text, constant):
            continue  # a unit more of the latter is two, and still even
        yield f"{value} one unit off", f"{text[: constant.start()]}{changed}{text[constant.end() :]}"
    for right, wrong in SWAPS:
        for place in re.finditer(re.escape(right), text):
            yield f"{wrong} for {right}", f"{text[: place.start()]}{wrong}{text[place.end() :]}"
    for border in re.finditer(r"tile \+ kKeyTile", text):
        yield "a tile one position longer", f"{text[: border.end()]} + 1{text[border.end() :]}"


def mutants_in_llama2c_order(text: str) -> Iterator[tuple[str, str]]:
    """The same for the kernels where nothing is fused, but in the doubles of the exponential.

    A unit in a double there reaches the result for one value in hundreds of millions; so its constants change by more.
    """
    for call in re.finditer(r"\badd\(", text):
        (x, product), end = arguments(text, call.end() - 1)
        if not product.startswith("mul("):
            continue
        (a, b), _ = arguments(product, 3)
        yield f"add({x}, mul({a}, {b})) fused", f"{text[: call.start()]}fma({a}, {b}, {x}){text[end:]}"
    for constant in re.finditer(r"(set1|all_f64)\((kExp\w+)\)", text):
        kind, name = constant[1], constant[2]
        factor = "1.0001" if kind == "all_f64" else "0.9999F"  # one unit too far out, the results are 0 and inf anyway
        changed = f"{kind}({name} * {factor})"
        yield f"{name} off", f"{text[: constant.start()]}{changed}{text[constant.end() :]}"
    for before, after in (
        ("sum = sum + x[i] * x[i]", "sum = __builtin_fmaf(x[i], x[i], sum)"),
        ("mul(mul(gate, div(one, add(one, e))), up)", "mul(mul(gate, up), div(one, add(one, e)))"),
        ("mul(mul(gate, div(one, add(one, e))), up)", "mul(div(gate, add(one, e)), up)"),
        ("div(sum[g], root)", "mul(sum[g], div(set1(1.0F), root))"),
        ("store_part(out, div(sum, root), n)", "store_part(out, mul(sum, div(set1(1.0F), root)), n)"),
        ("j < 16; ++j) sum = sum + out[p + j]", "j < 16; ++j) sum = sum + out[p + 15 - j]"),
    ):
        if text.count(before) != 1:
            raise ValueError(f"{text.count(before)} times in the source: {before}")
        yield f"{before} -> {after}", text.replace(before, after)


def line_of(text: str, match: re.Match[str]) -> str:
    return text[text.rfind("\n", 0, match.start()) + 1 : text.find("\n", match.end())]


def survives(build: Path, folder: Path) -> bool:
    """Whether the tests still pass with the kernels in `folder`."""
    objects = [folder / "scalar.o", *sorted((build / "tests" / "cpp").rglob("main.cpp.o"))]
    objects += sorted((build / "tests" / "cpp").rglob("test_kernels.cpp.o"))
    source = folder / "backend" / "cpu" / "isa" / "scalar.cpp"
    # The changed copies shadow the real ones.
    subprocess.run(
        ["c++", *FLAGS, f"-I{folder}", f"-I{CPP}", "-c", source, "-o", objects[0]], check=True, capture_output=True
    )
    program = folder / "tests"
    library = build / "libllama2cpp_core.a"
    subprocess.run(["c++", "-pthread", *objects, library, "-o", program], check=True, capture_output=True)
    result = subprocess.run([program, "-tc=every ISA*"], capture_output=True)
    return result.returncode == 0


def main(build: Path, only: str = "*.inl") -> int:
    survivors, count = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = folder / "backend" / "cpu"
        shutil.copytree(KERNELS, copies)
        if not survives(build, folder):
            print("the tests fail without any mistake")
            return 1
        for path in sorted(copies.glob(only)):
            original = path.read_text()
            planted = mutants_in_llama2c_order if path.name == "llama2c_order.inl" else mutants
            for what, changed in planted(original):
                path.write_text(changed)
                count += 1
                found = not survives(build, folder)
                print(f"{'found' if found else 'MISSED':7}{path.name}: {what}", flush=True)
                if not found:
                    survivors.append(what)
            path.write_text(original)
    print(f"{count - len(survivors)} of {count} mistakes found")
    return 1 if survivors or count < 20 else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
