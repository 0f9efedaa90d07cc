"""Plants small mistakes in the kernels' source, one at a time, and checks that the C++ tests find each.

Run by tests/slow.sh with a build folder that has the C++ tests: ``python tests/support/mutate_kernels.py BUILD``, and
with a pattern behind it (``matmul_blocks.inl``) for some of the files only; ``--every 20`` takes each twentieth
mistake. Each is one that a reviewer could miss: a product rounded before it is added, a constant one unit off, a tail
that is dropped, a neighbour's scale, a sum that goes on over the border of a block; in llama2.c's order, a product
that is not rounded.

As many as can be are compiled together, each behind a switch, into the scalar kernels and into the best that
the machine has. tests/cpp/mutants.cpp turns them on one after another and compares the kernels' outputs
with the reference's, as the tests do; what it does not notice the tests themselves get to see.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernel_mistakes import Mistake, mistakes

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "src" / "cpp"
KERNELS = CPP / "backend" / "cpu"
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno"]

# Which outputs tell, as tests/cpp/mutants.cpp names them.
GROUPS = {
    "activations.inl": "vectors",
    "activation_gradients.inl": "vectors",
    "attention.inl": "vectors",
    "attention_q8.inl": "vectors",
    "elementwise.inl": "vectors",
    "llama2c_order.inl": "llama2c",
    "llama2c_q8.inl": "llama2c",
    "llm_int8.inl": "llm_int8",
    "matmul.inl": "matmul",
    "matmul_pairs.inl": "matmul",
    "matmul_blocks.inl": "blocks",
    "unpack_blocks.inl": "blocks",
    "scores_of_few.inl": "vectors",
    "scores_of_many.inl": "vectors",
    "wide_blocks.inl": "blocks",
}
# The file, its name for LLAMA2CPP_ISA and what the processor must have. Of each group the first that it has: registers
# are many and wide, bytes are multiplied in pairs, whose sums have 16 bits, or four at a time. Scalar kernels take one
# panel and few tokens at a time, so that some mistakes do not exist there.
ISAS: list[list[tuple[str, str, set[str]]]] = [
    [
        ("avx512", "avx512-base", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
        ("avx2", "avx2-base", {"avx2", "fma", "f16c"}),
        ("neon", "neon-base", {"asimd"}),
    ],
    [
        ("avx512_vnni", "avx512-vnni", {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}),
        ("avx2_vnni", "avx2-vnni", {"avx2", "fma", "f16c", "avx_vnni"}),
        ("neon_dotprod", "neon-dotprod", {"asimddp"}),
    ],
    [("scalar", "scalar", set())],
]
# Where no bytes are multiplied, one way to do so is enough.
WITHOUT_BYTES = {"vectors", "llama2c"}
SWITCH = """#include <type_traits>
extern "C" int llama2cpp_planted;
constexpr bool planted(int mistake) {
  if (std::is_constant_evaluated()) return false;
  return llama2cpp_planted == mistake;
}
"""
CHOICE = """#include <cstdlib>
extern "C" { int llama2cpp_planted = std::getenv("PLANTED") ? std::atoi(std::getenv("PLANTED")) : 0; }
"""


@dataclasses.dataclass
class Isa:
    file: str
    name: str
    flags: list[str]


@dataclasses.dataclass
class Place:
    """Where a build lies, the copies of the kernels that mistakes go into, and what the compiler makes of them."""

    build: Path
    folder: Path
    isas: list[Isa]

    def compile(self, source: Path, flags: list[str] | None = None) -> Path:
        target = self.folder / f"{source.stem}.o"
        # The changed copies shadow the real ones.
        includes = [f"-I{self.folder}", f"-I{CPP}", f"-I{ROOT / 'tests' / 'cpp'}"]
        command = ["c++", *FLAGS, *(flags or []), *includes, "-c", str(source), "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:3000]}")
        return target

    def link(self, name: str, objects: list[Path]) -> Path:
        library = self.build / "libllama2cpp_core.a"
        program = self.folder / name
        subprocess.run(["c++", "-pthread", *objects, library, "-o", program], check=True)
        return program

    def compile_kernels(self, isas: list[Isa]) -> list[Path]:
        switch = ["-include", str(self.folder / "switch.h"), "-w"]
        isa = self.folder / "backend" / "cpu" / "isa"
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda each: self.compile(isa / f"{each.file}.cpp", switch + each.flags), isas))

    def runner(self, kernels: list[Path]) -> Path:
        return self.link("runner", [*kernels, self.folder / "mutants.o", self.folder / "choice.o"])

    def tests(self, kernels: list[Path]) -> Path:
        objects = [path for name in ("main", "test_kernels") for path in (self.build / "tests").rglob(f"{name}.cpp.o")]
        return self.link("tests", [*kernels, *objects, self.folder / "choice.o"])


def place(build: Path, folder: Path) -> Place:
    processor = set(Path("/proc/cpuinfo").read_text().split())
    commands = json.loads((build / "compile_commands.json").read_text())
    flags = {Path(entry["file"]).stem: entry["command"].split() for entry in commands if "/isa/" in entry["file"]}
    made = Place(build, folder, [])
    for group in ISAS:
        for file, name, needs in group:
            if needs <= processor:
                made.isas.append(Isa(file, name, [word for word in flags[file] if word.startswith("-m")]))
                break
    # No ISA takes several panels there yet; the kernels could.
    for path in (folder / "backend" / "cpu" / "isa").glob("*.inl"):
        path.write_text(path.read_text().replace("kFewPanels = 1", "kFewPanels = 2"))
    (folder / "switch.h").write_text(SWITCH)
    (folder / "choice.cpp").write_text(CHOICE)
    made.compile(folder / "choice.cpp")
    made.compile(ROOT / "tests" / "cpp" / "mutants.cpp")
    return made


def together(planted: list[Mistake]) -> Iterator[list[Mistake]]:
    """Mistakes that can be compiled at once: they are apart, or one is inside the other."""
    while planted:
        batch: list[Mistake] = []
        left: list[Mistake] = []
        for mistake in planted:
            crosses = any(a.begin < b.begin < a.end < b.end for m in batch for a, b in ((m, mistake), (mistake, m)))
            alone = batch and (mistake.fixed or batch[0].fixed)
            (left if crosses or alone else batch).append(mistake)
        yield batch
        planted = left


def with_switches(text: str, begin: int, end: int, batch: list[tuple[int, Mistake]]) -> str:
    """The source from `begin` to `end` with numbered mistakes, each behind its number's switch."""
    parts, at = [], begin
    while batch:
        outer = min((mistake.begin, -mistake.end) for _, mistake in batch)
        first, last = outer[0], -outer[1]
        here = [(number, mistake) for number, mistake in batch if (mistake.begin, mistake.end) == (first, last)]
        inside = [entry for entry in batch if entry not in here and entry[1].begin < last]
        right = with_switches(text, first, last, inside)
        switches = "".join(f"planted({number}) ? ({mistake.wrong}) : " for number, mistake in here)
        parts.append(f"{text[at:first]}({switches}({right}))")
        at = last
        batch = [entry for entry in batch if entry not in here and entry not in inside]
    return "".join([*parts, text[at:end]])


def missed(place: Place, group: str, batch: list[Mistake]) -> list[Mistake]:
    """Those that the tests do not find."""
    isas = [isa for isa in place.isas if group not in WITHOUT_BYTES or not isa.file.endswith(("_vnni", "_dotprod"))]
    fixed = batch[0].fixed  # then they are there without a switch, and in one ISA's kernels only
    if fixed:
        isas = isas[:1]
    kernels = place.compile_kernels(isas)
    numbers = [0] if fixed else list(range(len(batch) + 1))
    command = [str(place.runner(kernels)), ",".join(isa.name for isa in isas), group, *map(str, numbers)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    left = [int(line) for line in result.stdout.split()]
    if not fixed:
        if 0 not in left:
            raise RuntimeError("the kernels differ from the reference without any mistake")
        left.remove(0)
    if left:
        tests = [str(place.tests(kernels)), "-tc=every ISA*"]
        results = {n: subprocess.run(tests, capture_output=True, env={"PLANTED": str(n)}) for n in left}
        left = [number for number in left if results[number].returncode == 0]
    return [batch[max(number - 1, 0)] for number in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("only", nargs="?", default="*.inl", help="a pattern of files")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth mistake")
    options = parser.parse_args()
    survivors: list[str] = []
    count = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = folder / "backend" / "cpu"
        shutil.copytree(KERNELS, copies)
        here = place(options.build.resolve(), folder)
        for path in sorted(copies.glob(options.only)):
            if path.name == "kernels.inl":
                continue
            if path.name.startswith("scores_of_") and not here.isas[0].file.startswith("avx512"):
                print(f"NOT RUN: {path.name}, which needs AVX-512")
                continue
            original = path.read_text()
            planted = mistakes(path.name, original)[:: options.every]
            for batch in together(planted):
                whole = batch[0].wrong if batch[0].fixed else ""
                path.write_text(whole or with_switches(original, 0, len(original), list(enumerate(batch, 1))))
                unnoticed = missed(here, GROUPS[path.name], batch)
                count += len(batch)
                for mistake in batch:
                    line = original.count("\n", 0, mistake.begin) + 1
                    verdict = "MISSED" if mistake in unnoticed else "found"
                    print(f"{verdict:7}{path.name}:{line}: {' '.join(mistake.what.split())}", flush=True)
                    if mistake in unnoticed:
                        survivors.append(mistake.what)
            path.write_text(original)
    print(f"{count - len(survivors)} of {count} mistakes found")
    return 1 if survivors or count < 5 else 0


if __name__ == "__main__":
    sys.exit(main())
