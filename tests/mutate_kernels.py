"""Plants small mistakes in the kernels' source, one at a time, and checks that the C++ tests find each.

Run by tests/slow.sh with a build folder that has the C++ tests: ``python tests/mutate_kernels.py BUILD``. Each mistake
is one that a reviewer could miss: a product rounded before it is added, a constant one unit off, a sum that goes on
over the border of a block. The scalar kernels are compiled with it, linked before the library and run.
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
EQUAL = {("zero", "poison"), ("set1(-0.693145752F)", "x"), ("r", "set1(1.0F / 720.0F)")}
# The same for a unit in the polynomial's last coefficients.
FAINT = {"1.0F / 5040.0F", "1.0F / 720.0F"}


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
        if value in FAINT:
            continue
        yield f"{value} one unit off", f"{text[: constant.start()]}{changed}{text[constant.end() :]}"
    for border in re.finditer(r"tile \+ kKeyTile", text):
        yield "a tile one position longer", f"{text[: border.end()]} + 1{text[border.end() :]}"


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


def main(build: Path) -> int:
    survivors, count = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = folder / "backend" / "cpu"
        shutil.copytree(KERNELS, copies)
        if not survives(build, folder):
            print("the tests fail without any mistake")
            return 1
        for path in sorted(copies.glob("*.inl")):
            original = path.read_text()
            for what, changed in mutants(original):
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
    sys.exit(main(Path(sys.argv[1])))
