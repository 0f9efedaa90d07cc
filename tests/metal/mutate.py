"""Plants one fault at a time in the Metal backend and checks that a test of the ops finds each.

    python tests/metal/mutate.py BUILD [--only TEXT] [--every N] [--jobs N]

BUILD has been configured with -DLLAMA2CPP_SOFT_METAL=ON and llama2cpp_ops is built in it. A fault of a kernel costs the
compilation of one library, one of the host's that of one file, and either a link of llama2cpp_ops, somewhere else.
The last line is `caught N of N`; a fault that nobody notices, or whose place is not found any more, is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import HOST, KERNELS, Mutation

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOST_FOLDER = ROOT / "src" / "cpp" / "backend" / "metal"


def run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{(result.stderr + result.stdout)[-3000:]}")


class Build:
    """What is built, and how its pieces are compiled and linked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        commands = json.loads((self.folder / "compile_commands.json").read_text(encoding="utf-8"))
        self.of_file = {entry["file"]: shlex.split(entry["command"]) for entry in commands}
        text = subprocess.run(
            ["ninja", "-C", str(self.folder), "-t", "commands", "llama2cpp_ops"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        self.link = next(line for line in reversed(text) if "llama2cpp_ops" in line and "-shared" in line)
        self.of_kernel = {
            found.group(1): line for line in text if (found := re.search(r"-c \S*/metal/(\w+)\.cpp -o \S*_0\.o", line))
        }

    def missing(self, mutation: Mutation) -> str:
        """Why the fault cannot be planted; empty if it can."""
        host = mutation.where.endswith(".cpp")
        path = HOST_FOLDER / mutation.where if host else self.folder / "metal" / f"{mutation.where}.metal"
        try:
            replaced(mutation, path.read_text(encoding="utf-8"))
        except (RuntimeError, OSError) as error:
            return f"{mutation.where}: {mutation.what}: {error}"
        return ""

    def compiled(self, mutation: Mutation, folder: Path) -> list[Path]:
        """The objects that the fault makes different."""
        if mutation.where.endswith(".cpp"):
            source = HOST_FOLDER / mutation.where
            changed = folder / mutation.where
            changed.write_text(replaced(mutation, source.read_text(encoding="utf-8")), encoding="utf-8")
            command = [str(changed) if word == str(source) else word for word in self.of_file[str(source)]]
            target = folder / "changed.o"
            command[command.index("-o") + 1] = str(target)
            run([*(word for word in command if word not in ("-Werror", "-O3")), "-O1"], self.folder)
            return [target]
        texts = self.folder / "metal"
        text = replaced(mutation, (texts / f"{mutation.where}.metal").read_text(encoding="utf-8"))
        (folder / f"{mutation.where}.metal").write_text(text, encoding="utf-8")
        # The device knows the library by the text that the host gives it, which stays as it is.
        thunks = (texts / f"{mutation.where}.cpp").read_text(encoding="utf-8")
        thunks = thunks.replace(f'#embed "{mutation.where}.metal"', f'#embed "{texts / mutation.where}.metal"')
        source = folder / f"{mutation.where}.cpp"
        source.write_text(thunks, encoding="utf-8")
        line = self.of_kernel[mutation.where].split("&&")
        command = shlex.split(next(part for part in line if " -c " in part))
        target = folder / f"{mutation.where}_0.o"
        words = list(command)
        words[words.index("-c") + 1] = str(source)
        words[words.index("-o") + 1] = str(target)
        for option in ("-MD", "-Werror"):
            if option in words:
                words.remove(option)
        for option in ("-MF", "-MT"):
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
        run([*words, "-w"], self.folder)
        return [target]

    def linked(self, objects: list[Path], folder: Path) -> None:
        """llama2cpp_ops with these objects before the libraries, whose own are then not taken."""
        part = next(part for part in self.link.split("&&") if "-shared" in part)
        words = shlex.split(part)
        module = folder / Path(words[words.index("-o") + 1]).name
        words[words.index("-o") + 1] = str(module)
        first = next(i for i, word in enumerate(words) if word.endswith(".a"))
        run([*words[:first], *map(str, objects), *words[first:]], self.folder)


def replaced(mutation: Mutation, text: str) -> str:
    count = text.count(mutation.old)
    if count != 1:
        raise RuntimeError(f"its place is there {count} times in {mutation.where}")
    return text.replace(mutation.old, mutation.new)


def caught_by(mutation: Mutation, folder: Path) -> str:
    """The test that fails, and why; empty if none does."""
    environment = os.environ | {
        "LLAMA2CPP_OPS": str(folder),
        "LLAMA2CPP_OP_EXAMPLES": os.environ.get("LLAMA2CPP_OP_EXAMPLES", "6"),
        "LLAMA2CPP_OP_MUTATION": "1",
        "CI": "1",  # Hypothesis draws the same examples each time
    }
    pattern = "(metal- or metal])" + (f" and ({mutation.pattern})" if mutation.pattern else "")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", "-k", pattern]
    try:
        result = subprocess.run(
            [*command, str(HERE / mutation.tests)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
    except subprocess.TimeoutExpired:
        return "no test: it does not end"
    if result.returncode == 0:
        return ""
    if result.returncode < 0 or result.returncode >= 128:
        return f"the process ended by signal {-result.returncode}"
    found = re.search(r"^(?:FAILED|ERROR) \S*::(\S+?)(?: - (.*))?$", result.stdout, re.MULTILINE)
    if result.returncode != 1 or found is None:
        raise RuntimeError(f"pytest ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-500:]}")
    return f"{found.group(1)}: {(found.group(2) or '')[:110]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--only", default="", help="those that have this in their description or place")
    parser.add_argument("--every", type=int, default=1, help="each N-th")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--places", action="store_true", help="only look whether each can still be planted")
    options = parser.parse_args()
    build = Build(options.build)
    chosen = [m for m in [*KERNELS, *HOST] if options.only in f"{m.what} {m.where} {m.tests}"][:: options.every]

    if options.places:
        sys.exit("\n".join(filter(None, map(build.missing, chosen))) or None)

    def one(mutation: Mutation) -> tuple[bool, str]:
        begin = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                build.linked(build.compiled(mutation, folder), folder)
                by = caught_by(mutation, folder)
        except RuntimeError as error:
            return False, f"BROKEN  {mutation.where}: {mutation.what}: {error}"
        seconds = time.monotonic() - begin
        verdict = f"caught by {by}" if by else "NOT CAUGHT"
        return bool(by), f"{seconds:4.0f} s  {mutation.where}: {mutation.what}: {verdict}"

    caught = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for good, line in pool.map(one, chosen):
            caught += good
            print(line, flush=True)
    print(f"caught {caught} of {len(chosen)} mutations")
    sys.exit(0 if chosen and caught == len(chosen) else 1)


if __name__ == "__main__":
    main()
