"""The installed wheel does what the README says, where there is no compiler: .ci/release runs this.

    python tests/support/release_check.py MODELS

In an empty folder; MODELS holds stories260K.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from documents import blocks, console_commands, expected_lines, run_snippet

README = Path(__file__).parents[2] / "README.md"
COMPILERS = ["cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "ninja"]


def check_commands() -> int:
    """Run the README's commands, as the program that pip has put on the path."""
    program = shutil.which("llama2cpp")
    assert program is not None
    assert Path(program).parent == Path(sys.prefix) / "bin", program
    commands = list(console_commands(README))
    for arguments, output in commands:
        if arguments[0] == "chat":  # a conversation, with a model that has to be fetched
            continue
        result = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, timeout=120)
        assert result.stdout == output, f"{arguments} printed {result.stdout!r}, expected {output!r}"
        print("ran: llama2cpp", *arguments)
    return len(commands)


def check_notebooks() -> int:
    """Copy the notebooks that the wheel has brought."""
    subprocess.run(["llama2cpp", "notebooks", "lessons"], check=True, timeout=120)
    return len(list(Path("lessons").glob("*.ipynb")))


def check_snippets() -> int:
    """Run the README's snippets in one namespace, in order."""
    names: dict[str, Any] = {}
    count = 0
    for snippet in blocks(README, "python"):
        printed = run_snippet(snippet, README, names)
        assert printed == expected_lines(snippet), f"the snippet of line {snippet.line} printed {printed}"
        count += 1
    return count


def main() -> None:
    """Copy the files that the README uses to this folder, and run what it shows."""
    there = [name for name in COMPILERS if shutil.which(name)]
    assert not there, f"this is to show that no compiler is needed, and {there} can be found"
    import llama2cpp

    assert Path(llama2cpp.__file__).is_relative_to(sys.prefix), f"{llama2cpp.__file__} is not what was installed"
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copy(Path(sys.argv[1]) / "stories260K" / name, ".")
    commands, snippets = check_commands(), check_snippets()
    assert commands >= 2
    assert snippets >= 5
    assert check_notebooks() == 9
    print(f"llama2cpp {llama2cpp.__version__}: {commands} commands and {snippets} snippets of the README")


if __name__ == "__main__":
    main()
