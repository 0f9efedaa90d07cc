"""What a library for macOS needs of the system and of Python, judged without a Mac.

``macho.py stubs KNOWN FOLDER`` writes text stubs of Apple's frameworks, for a linker that has none. They list what
KNOWN imports of each: a library that Apple's linker linked to the real ones.

``macho.py check FILE KNOWN`` fails if FILE imports a symbol that neither libSystem (as ziglang lists it), nor the
framework that KNOWN imports it from, nor this Python has; if it needs a newer macOS than 13; or if it exports anything
but Python's entry. ziglang's list is a recent macOS's: what libSystem gained after the 13th is not seen.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

LIB_SYSTEM = "/usr/lib/libSystem.B.dylib"
LEAST_MACOS = (13, 0)
_FLAT = 0xFE  # a symbol's library, where any loaded one will do
# Operators new and delete of the C++ library that zig links in, which any program may replace; and the linker's own.
_NOT_OURS = re.compile(r"__Z(da|dl|na|nw)|__mh_dylib_header$|___dso_handle$")


@dataclass
class Library:
    """The facts of one Mach-O file that the check needs."""

    libraries: list[str] = field(default_factory=list)  # in the order of their ordinals, which begin with 1
    imports: dict[str, str | None] = field(default_factory=dict)  # symbol -> library; None: any
    exports: list[str] = field(default_factory=list)
    signed: bool = False
    least_macos: tuple[int, int] = (0, 0)


def read(path: Path) -> Library:
    """Read a 64-bit library for Apple silicon: load commands, then the symbol table."""
    data = path.read_bytes()
    magic, cpu, _, kind, n_commands = struct.unpack_from("<5I", data)
    if (magic, cpu) != (0xFEEDFACF, 0x0100000C) or kind not in (6, 8):
        raise ValueError(f"{path} is no dynamic library or bundle for macOS on arm64")
    found = Library()
    table = None
    at = 32
    for _ in range(n_commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command in (0x0C, 0x80000018, 0x8000001F):  # LC_LOAD_DYLIB, weakly, re-exported
            (name,) = struct.unpack_from("<I", data, at + 8)
            found.libraries.append(data[at + name : at + size].split(b"\0")[0].decode())
        elif command == 0x02:  # LC_SYMTAB
            table = struct.unpack_from("<4I", data, at + 8)
        elif command == 0x1D:  # LC_CODE_SIGNATURE
            found.signed = True
        elif command == 0x32:  # LC_BUILD_VERSION
            _, version = struct.unpack_from("<2I", data, at + 8)
            found.least_macos = (version >> 16, version >> 8 & 0xFF)
        at += size
    if table is None:
        raise ValueError(f"{path} has no symbol table")
    symbols, count, strings, _ = table
    for index in range(count):
        name, kind, _, description, _ = struct.unpack_from("<IBBHQ", data, symbols + 16 * index)
        if kind & 0xE0 or not kind & 0x01:  # for debuggers, or seen in this file only
            continue
        symbol = data[strings + name : data.index(b"\0", strings + name)].decode()
        if kind & 0x0E:
            if not kind & 0x10:
                found.exports.append(symbol)
        else:
            ordinal = description >> 8  # zig's linker writes 0 where any library will do
            flat = ordinal == _FLAT or not 0 < ordinal <= len(found.libraries)
            found.imports[symbol] = None if flat else found.libraries[ordinal - 1]
    return found


def system_symbols() -> set[str]:
    """Collect what libSystem exports on arm64, by the text stub that ziglang links with."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("ziglang is not installed")
    text = (Path(spec.origin).parent / "lib/libc/darwin/libSystem.tbd").read_text()
    symbols: set[str] = set()
    for section in re.split(r"- targets:", text)[1:]:
        targets, _, rest = section.partition("]")
        if re.search(r"\barm64e?-macos", targets):
            symbols.update(re.findall(r"[_A-Za-z][\w$.]*", rest))
    return symbols


def write_stubs(known: Library, folder: Path) -> None:
    """Write FOLDER/Metal.framework/Metal.tbd and its like, of everything but libSystem and the C++ library."""
    for library in known.libraries:
        if "/lib/libSystem" in library or "/lib/libc++" in library or library.startswith("@"):
            continue
        name = Path(library).name.split(".")[0]
        stub = folder / (f"{name}.tbd" if "/lib/" in library else f"{name}.framework/{name}.tbd")
        stub.parent.mkdir(parents=True, exist_ok=True)
        symbols = sorted(symbol for symbol, where in known.imports.items() if where == library)
        stub.write_text(
            f"--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '{library}'\nexports:\n"
            f"  - targets: [ arm64-macos ]\n    symbols: [ {', '.join(map(repr, symbols))} ]\n...\n"
        )


def is_python(symbol: str) -> bool:
    """Tell whether the name is in CPython's hands."""
    return re.match(r"__?Py", symbol) is not None


def faults(file: Library, known: Library, system: set[str]) -> list[str]:
    """Say everything that a Mac would refuse, or that a module of Python should not have."""
    said = []
    for symbol, library in sorted(file.imports.items()):
        if is_python(symbol):
            if not hasattr(ctypes.pythonapi, symbol[1:]):
                said.append(f"{symbol} is none that CPython {sys.version_info[0]}.{sys.version_info[1]} exports")
        elif library is None:
            said.append(f"{symbol} is looked for in every library, which is for Python's own only")
        elif library == LIB_SYSTEM:
            if symbol not in system:
                said.append(f"{symbol} is none that libSystem exports")
        elif known.imports.get(symbol) != library:
            said.append(f"{symbol} is none that {library} is known to export")
    if file.least_macos[0] == 0 or file.least_macos > LEAST_MACOS:
        said.append(f"it needs macOS {file.least_macos}, expected {LEAST_MACOS} at most")
    if not file.signed:
        said.append("it has no signature, without which arm64 does not load it")
    for symbol in file.exports:
        if symbol != "_PyInit__core" and not _NOT_OURS.match(symbol):
            said.append(f"{symbol} is exported, expected _PyInit__core alone")
    if "_PyInit__core" not in file.exports:
        said.append("_PyInit__core is not exported")
    return said


def main(arguments: list[str]) -> int:
    """Do what the module's docstring says."""
    if len(arguments) != 3 or arguments[0] not in ("stubs", "check"):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "stubs":
        write_stubs(read(Path(arguments[1])), Path(arguments[2]))
        return 0
    file = read(Path(arguments[1]))
    said = faults(file, read(Path(arguments[2])), system_symbols())
    for line in said:
        print(f"{arguments[1]}: {line}", file=sys.stderr)
    if said:
        return 1
    imports = [f"{sum(map(is_python, file.imports))} of Python"]
    for library in file.libraries:
        imports.append(f"{list(file.imports.values()).count(library)} of {Path(library).name}")
    size = Path(arguments[1]).stat().st_size
    print(f"{Path(arguments[1]).name}: {size:,} bytes; imports, all of them known: {', '.join(imports)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
