"""Makes C++ out of the Metal kernels; run by CMake, with no package but Python's own.

    metal_sources.py [--device] FOLDER KERNELS.metal...

Each file is a library. What it includes is put in its place, once, and the result is

- FOLDER/<library>.metal: the text, as Apple's compiler will get it;
- FOLDER/metal_source.cpp: the texts of all libraries as strings;
- with --device, FOLDER/<library>.cpp and FOLDER/libraries.cpp: the same text for the software device (tests/metal),
  with a function that calls each kernel and a table of their parameters.

A kernel that uses what Metal has not, or what we have agreed not to use, is refused: C++ would take it.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

KERNELS = Path(__file__).parent / "kernels"

# What a kernel may ask about its thread, and where soft::ThreadIds has it.
THREE = {
    "threadgroup_position_in_grid": "group",
    "thread_position_in_threadgroup": "thread",
    "threadgroups_per_grid": "groups",
    "threads_per_threadgroup": "threads",
}
ONE = {
    "thread_index_in_threadgroup": "index",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
}

# C++ that is not Metal, or that macOS 13 does not have, or that would not mean the same here and there.
REFUSED = [
    (r"\bstd\s*::", "Metal has no std"),
    (r"\bdouble\b|\blong\s+double\b", "Metal has no double"),
    (r"\bbfloat\d?\b", "bfloat is emulated on M1 and M2; widen 16 bits by a shift"),
    (r"\batomic_", "the same call must give the same bits: no atomics"),
    (r"\btexture\w*\s*<", "no textures"),
    (r"\bhost_name\b", "kernels are plain functions: no host_name"),
    (r"\b(?:try|catch|throw|new|delete|virtual|goto|dynamic_cast|typeid|thread_local)\b", "Metal has no {0}"),
    (r"\b(?:constexpr\s*\(|if\s+constexpr\b)", "Metal 3.0 is C++14: no if constexpr"),
    (r"\bthreadgroup\s+[\w:<>, ]+?\b\w+\s*\[", "shared arrays are parameters: threadgroup T* name [[threadgroup(n)]]"),
    (r"(?<![\w.])(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])", "{0} is a double in C++: write {0}f"),
]

IDENTIFIER = r"[A-Za-z_]\w*"


@dataclass
class Text:
    """The text of a library as it grows, and which file and line each of its lines is."""

    lines: list[str] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def add(self, line: str, file: str, number: int) -> None:
        """Append a line."""
        self.lines.append(line)
        self.places.append((file, number))


def refuse(place: tuple[str, int], what: str) -> None:
    """End the build, in the form of a compiler's message."""
    sys.exit(f"{place[0]}:{place[1]}: error: {what}")


def name_of(path: Path) -> str:
    """Give the name that messages have for the file: its path from kernels/, where it is in it."""
    return path.relative_to(KERNELS).as_posix() if path.is_relative_to(KERNELS) else path.name


def inline(path: Path, text: Text) -> None:
    """Append the file, and what it includes in place of the includes."""
    text.seen.add(path)
    name = name_of(path)
    text.add(f'#line 1 "{name}"', name, 1)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.fullmatch(r"\s*#\s*pragma\s+once\s*", line):
            text.add("", name, number)
            continue
        included = re.fullmatch(r'\s*#\s*include\s+"([^"]+)"\s*', line)
        if not included:
            text.add(line, name, number)
            continue
        wanted = included.group(1)
        found = [folder / wanted for folder in (path.parent, KERNELS) if (folder / wanted).is_file()]
        if not found:
            refuse((name, number), f"no {wanted} beside the file or in {KERNELS}")
        if found[0].resolve() not in {seen.resolve() for seen in text.seen}:
            inline(found[0], text)
        text.add(f'#line {number + 1} "{name}"', name, number)


def without_comments(text: str) -> str:
    """Put spaces for comments, for what is in quotes, and for what the host alone compiles."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group(0))

    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.DOTALL)
    return re.sub(r"^#ifndef __METAL_VERSION__$.*?^#endif$", blank, text, flags=re.DOTALL | re.MULTILINE)


@dataclass
class Parameter:
    """Of a kernel: `declared` is what stands before its name."""

    declared: str
    name: str
    attribute: str
    index: int

    @property
    def element(self) -> str:
        """The type that it points or refers to."""
        return re.sub(r"\b(?:device|constant|threadgroup|const)\b|[&*]", "", self.declared).strip()

    @property
    def reference(self) -> bool:
        """Whether it is one struct, not a pointer to many."""
        return "&" in self.declared

    @property
    def constant(self) -> bool:
        """Whether the kernel may only read it."""
        pointee = self.declared.split("*")[0]
        return bool(re.search(r"\b(?:constant|const)\b", pointee))


@dataclass
class Kernel:
    """A kernel function."""

    name: str
    parameters: list[Parameter]


@dataclass
class Library:
    """A library: its text and what is in it."""

    name: str
    file: str
    text: str
    kernels: list[Kernel]
    constants: list[tuple[int, str]]


def split(parameters: str) -> list[str]:
    """At the commas between parameters: none is inside of brackets."""
    return re.split(r",(?![^<(\[]*[>)\]])", parameters)


def parse(path: Path) -> Library:
    """Read a library."""
    text = Text()
    inline(path, text)
    whole = "\n".join(text.lines) + "\n"
    bare = without_comments(whole)

    def place(offset: int) -> tuple[str, int]:
        return text.places[bare.count("\n", 0, offset)]

    for pattern, why in REFUSED:
        for found in re.finditer(pattern, bare):
            refuse(place(found.start()), why.format(found.group(0)))

    constants = []
    for found in re.finditer(r"function_constant", bare):
        line_start = bare.rfind("\n", 0, found.start()) + 1
        whole_line = re.match(
            rf"\s*constant uint ({IDENTIFIER}) \[\[function_constant\((\d+)\)\]\];", bare[line_start:]
        )
        if not whole_line:
            refuse(place(found.start()), "expected `constant uint kName [[function_constant(n)]];`")
        else:
            constants.append((int(whole_line.group(2)), whole_line.group(1)))
    if len({index for index, _ in constants}) < len(constants):
        refuse((name_of(path), 1), "two function constants have the same index")

    kernels: list[Kernel] = []
    for found in re.finditer(r"\bkernel\b", bare):
        where = place(found.start())
        function = re.compile(rf"kernel\s+void\s+({IDENTIFIER})\s*\((.*?)\)\s*\{{", re.DOTALL).match(
            bare, found.start()
        )
        if not function:
            refuse(where, "expected `kernel void name(...) {`")
        else:
            kernels.append(Kernel(function.group(1), parse_parameters(function.group(1), function.group(2), where)))
    if len({kernel.name for kernel in kernels}) < len(kernels):
        refuse((name_of(path), 1), "two kernels have the same name")
    if not kernels:
        refuse((name_of(path), 1), "no kernel in this library")
    return Library(path.stem, name_of(path), whole, kernels, constants)


def parse_parameters(kernel: str, parameters: str, where: tuple[str, int]) -> list[Parameter]:
    """Read and check a kernel's parameters."""
    out = []
    for one in split(parameters):
        found = re.fullmatch(
            rf"\s*(.*?)\b({IDENTIFIER})\s*\[\[\s*({IDENTIFIER})(?:\((\d+)\))?\s*\]\]\s*", one, re.DOTALL
        )
        if not found:
            refuse(where, f"kernel {kernel}: expected `type name [[attribute]]`, got `{' '.join(one.split())}`")
            raise AssertionError
        parameter = Parameter(
            " ".join(found.group(1).split()), found.group(2), found.group(3), int(found.group(4) or -1)
        )
        wrong = what_is_wrong(parameter)
        if wrong:
            refuse(where, f"kernel {kernel}: parameter {parameter.name}: {wrong}")
        out.append(parameter)
    for attribute in ("buffer", "threadgroup"):
        indices = [p.index for p in out if p.attribute == attribute]
        if indices != list(range(len(indices))):
            refuse(where, f"kernel {kernel}: {attribute} indices are {indices}, expected 0, 1, 2, ... in this order")
    return out


def what_is_wrong(parameter: Parameter) -> str:
    """Why it cannot be passed; empty if it can."""
    pointed = re.fullmatch(r"(device|constant|threadgroup)\s(.*)", parameter.declared)
    if parameter.attribute == "buffer":
        if not pointed or pointed.group(1) == "threadgroup" or not re.search(r"[&*]", parameter.declared):
            return "a buffer is a `device T*`, `constant T*` or `constant T&`"
        if parameter.reference and pointed.group(1) == "device":
            return "a reference is to constant memory"
        if re.search(r"\bconst\s*$", parameter.declared):
            return "the pointer itself is const: leave that out"
        return ""
    if parameter.attribute == "threadgroup":
        return "" if re.fullmatch(r"threadgroup [\w:]+ ?\*", parameter.declared) else "expected `threadgroup T*`"
    if parameter.attribute in ONE:
        return "" if parameter.declared == "uint" else "expected a uint"
    if parameter.attribute in THREE or parameter.attribute == "thread_position_in_grid":
        return "" if parameter.declared in ("uint", "uint2", "uint3") else "expected a uint, uint2 or uint3"
    return f"attribute {parameter.attribute} is none that we use"


# ---- What is written

HEADER = "// Written by src/cpp/backend/metal/metal_sources.py from kernels/; changes are lost.\n"


def strings(libraries: list[Library]) -> str:
    """metal_source.cpp."""
    out = [HEADER, '#include "backend/metal/metal_source.h"\n\nnamespace llama2cpp::metal {\nnamespace {\n\n']
    for number, library in enumerate(libraries):
        # In pieces: compilers need not take long literals.
        pieces = [library.text[i : i + 8000] for i in range(0, len(library.text), 8000)]
        joined = "\n".join(f'R"metal_text({piece})metal_text"' for piece in pieces)
        out.append(f"// {library.file}\nconstexpr std::string_view text_{number} =\n{joined};\n\n")
    out.append("}  // namespace\n\nstd::string_view metal_source([[maybe_unused]] std::string_view library) {\n")
    out += [f'  if (library == "{library.name}") return text_{i};\n' for i, library in enumerate(libraries)]
    out.append("  return {};\n}\n\n}  // namespace llama2cpp::metal\n")
    return "".join(out)


def argument(parameter: Parameter) -> str:
    """Say what the device passes to a kernel for it."""
    if parameter.attribute == "buffer":
        const = "const " if parameter.constant else ""
        pointer = f"static_cast<{const}{parameter.element}*>(arguments.buffers[{parameter.index}])"
        return f"*{pointer}" if parameter.reference else pointer
    if parameter.attribute == "threadgroup":
        return f"static_cast<{parameter.element}*>(arguments.threadgroup[{parameter.index}])"
    if parameter.attribute in ONE:
        return f"ids.{ONE[parameter.attribute]}"
    axes = "xyz"[: 1 if parameter.declared == "uint" else int(parameter.declared[-1])]
    if parameter.attribute == "thread_position_in_grid":
        values = [f"ids.group.{axis} * ids.threads.{axis} + ids.thread.{axis}" for axis in axes]
    else:
        values = [f"ids.{THREE[parameter.attribute]}.{axis}" for axis in axes]
    return values[0] if len(axes) == 1 else f"metal::{parameter.declared}({', '.join(values)})"


def thunks(library: Library) -> str:
    """<library>.cpp: the same text is compiled (#include) and kept (#embed)."""
    out = [HEADER, "#include <metal_stdlib>\n\nnamespace {\n\n"]
    for _, name in library.constants:
        # The declaration in the text becomes one of a function, and so does each use.
        out.append(f"std::uint32_t {name}_value;\n#define {name} {name}()\nconst uint {name} __attribute__((const));\n")
    out.append(
        '\n#pragma clang diagnostic push\n#pragma clang diagnostic error "-Wpre-c++17-compat"\n'
        f'#include "{library.name}.metal"\n#pragma clang diagnostic pop\n\n'
    )
    for _, name in library.constants:
        out.append(f"[[gnu::noinline]] const uint {name} {{ return {name}_value; }}\n#undef {name}\n")
    out.append(
        "\n}  // namespace\n\n#undef kernel\n#undef device\n#undef constant\n#undef thread\n#undef threadgroup\n\n"
    )
    out.append('#include "kernel_table.h"\n\nnamespace {\n\nconst unsigned char source_text[] = {\n')
    out.append(f'#embed "{library.name}.metal"\n    , 0}};\n\n')
    for kernel in library.kernels:
        arguments = ",\n      ".join(argument(parameter) for parameter in kernel.parameters)
        out.append(
            f'[[maybe_unused]] __attribute__((no_sanitize("thread"))) void run_{kernel.name}(\n'
            "    [[maybe_unused]] const soft::Arguments& arguments, [[maybe_unused]] const soft::ThreadIds& ids) {\n"
            f"  ::{kernel.name}(\n      {arguments});\n}}\n"
        )
        buffers = [p for p in kernel.parameters if p.attribute == "buffer"]
        if buffers:
            rows = ",\n    ".join(
                f"{{{p.index}, sizeof({p.element}), alignof({p.element}), {str(p.reference).lower()}, "
                f'{str(not p.constant).lower()}, "{p.name}"}}'
                for p in buffers
            )
            out.append(f"const soft::BufferParameter buffers_{kernel.name}[] = {{\n    {rows}}};\n")
        shared = [str(p.index) for p in kernel.parameters if p.attribute == "threadgroup"]
        if shared:
            out.append(f"const int threadgroup_{kernel.name}[] = {{{', '.join(shared)}}};\n")
        out.append("\n")
    out.append("const soft::KernelEntry kernels[] = {\n")
    for kernel in library.kernels:
        has = {p.attribute for p in kernel.parameters}
        buffers_of = f"buffers_{kernel.name}" if "buffer" in has else "{}"
        shared_of = f"threadgroup_{kernel.name}" if "threadgroup" in has else "{}"
        out.append(f'    {{"{kernel.name}", run_{kernel.name}, {buffers_of}, {shared_of}}},\n')
    out.append("};\n")
    if library.constants:
        rows = ", ".join(f'{{{index}, &{name}_value, "{name}"}}' for index, name in sorted(library.constants))
        out.append(f"const soft::ConstantParameter constants[] = {{{rows}}};\n")
    out.append(
        "\n}  // namespace\n\nnamespace soft {\n\n"
        "#define SOFT_JOIN(a, b) a##b\n#define SOFT_NAME(a, b) SOFT_JOIN(a, b)\n"
        f"LibraryEntry SOFT_NAME(library_{library.name}_, SOFT_CONTRACTED)() {{\n"
        f'  return {{"{library.name}", reinterpret_cast<const char*>(source_text), kernels, '
        f"{'constants' if library.constants else '{}'}, SOFT_CONTRACTED != 0}};\n}}\n\n}}  // namespace soft\n"
    )
    return "".join(out)


def table(libraries: list[Library]) -> str:
    """libraries.cpp."""
    out = [HEADER, '#include <vector>\n\n#include "kernel_table.h"\n\nnamespace soft {\n\n']
    for library in libraries:
        out += [f"LibraryEntry library_{library.name}_{contracted}();\n" for contracted in (0, 1)]
    out.append("\nstd::span<const LibraryEntry> libraries(bool contracted) {\n")
    for contracted in (0, 1):
        rows = ", ".join(f"library_{library.name}_{contracted}()" for library in libraries)
        out.append(f"  static const std::vector<LibraryEntry> all_{contracted}{{{rows}}};\n")
    out.append("  return contracted ? all_1 : all_0;\n}\n\n}  // namespace soft\n")
    return "".join(out)


def write(path: Path, text: str) -> None:
    """Leaves a file that has this text already as it is: nothing is then compiled again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", action="store_true", help="also for the software device")
    parser.add_argument("files", type=Path, nargs="*")
    options = parser.parse_args()

    libraries = [parse(path.resolve()) for path in options.files]
    names = [library.name for library in libraries]
    if len(set(names)) < len(names):
        sys.exit(f"two libraries have the same name: {' '.join(sorted(names))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        write(options.folder / f"{library.name}.metal", library.text)
        if options.device:
            write(options.folder / f"{library.name}.cpp", thunks(library))
    write(options.folder / "metal_source.cpp", strings(libraries))
    if options.device:
        write(options.folder / "libraries.cpp", table(libraries))


if __name__ == "__main__":
    main()
