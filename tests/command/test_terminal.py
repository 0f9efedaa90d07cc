"""What others have written reaches a terminal as text: names, tokenizers, templates, metadata. And how commands end."""

from __future__ import annotations

import ast
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from llama2cpp.command import cli, display
from llama2cpp.command.word_wrap import WordWrap

COMMAND = [sys.executable, "-m", "llama2cpp"]
PACKAGE = ROOT / "src" / "llama2cpp"
NAMES = {command.__name__ for command, _ in cli._COMMANDS}
posix = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals and signals are POSIX's")

# A window's title, a colour, C1's begin of a sequence, a backspace, a return, an override of direction; markup.
EVIL = "\x1b]0;pwned\x07\x1b[31m\u009b31m\x08\r\u202e[red][/x]"


def obeyed(text: str) -> set[str]:
    """What of a text a terminal would act on, or which would turn what is read around; of Unicode's own tables."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        character
        for character in text
        if (unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t")
        or unicodedata.bidirectional(character) in turning
        or character in "\u061c\u200e\u200f"
    }


# --- the filter


def test_all_code_points() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert obeyed(display.visible(everything)) == set()
    assert obeyed(display.one_line(everything)) == set()
    assert not {"\n", "\t"} & set(display.one_line(everything))
    kept = [character for character in everything if display.visible(character) == character]
    # All letters, marks, numbers, punctuation, symbols and spaces are left alone, and what emoji are joined by.
    wrong = {c for c in everything if unicodedata.category(c)[0] in "LMNPS" or c in "\u200d\u200c \n\t"} - set(kept)
    assert wrong == set()


@given(st.text(st.sampled_from(["\x1b", "[", "3", "1", "m", "\u009b", "é", "日", "🐶", "\u202e", "\n"]), max_size=12))
def test_pieces_cut_anywhere(text: str) -> None:
    data = text.encode()
    for cut in range(len(data) + 1):
        decode = display.TextFilter().feed
        assert decode(data[:cut]) + decode(data[cut:]) == display.visible(text)


def test_only_one_module_prints() -> None:
    """Everything that is written to a terminal goes through the filter."""
    doors = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        found = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console"):
                found.add(node.func.id)
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "secho"):
                found.add(node.attr)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TextColumn":
                markup = {key.arg: getattr(key.value, "value", None) for key in node.keywords}.get("markup")
                found |= set() if markup is False else {"markup"}
        if found:
            doors[file.relative_to(PACKAGE).as_posix()] = found
    assert doors == {
        "command/display.py": {"stdout", "stderr", "Console"},
        "command/cli.py": {"stdout"},  # is there one, can it be flushed
        "command/terminal.py": {"stdout"},  # is it a terminal; notes are dim
        "utils.py": {"print"},  # test_prompt's table, for notebooks: texts as repr shows them
    }


# --- each command on a terminal


class Case(NamedTuple):
    arguments: list[str | Path]
    typed: str = ""
    shown: str = ""  # must be in what is seen


@pytest.fixture(scope="module")
def evil(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of bad names, and with bad words in them."""
    folder = tmp_path_factory.mktemp("evil")
    model = folder / f"{EVIL}.bin"
    model.parent.mkdir()
    shutil.copy(stories_dir / "stories260K.bin", model)
    shutil.copy(stories_dir / "tok512.bin", folder / "tok512.bin")
    data = (stories_dir / "tok512.bin").read_bytes()
    pieces, at, number = struct.pack("<i", 64), 4, 0
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        piece = data[at + 8 : at + 8 + length] if number < 259 else EVIL.encode() + bytes([65 + number % 26])
        pieces += struct.pack("<fi", score, len(piece)) + piece
        at += 8 + length
        number += 1
    (folder / "evil_tok.bin").write_bytes(pieces)
    (folder / "t.jinja").write_text('{{ raise_exception("bad ' + EVIL + '") }}', encoding="utf-8")
    good = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    good |= {"num_hidden_layers": 1, "vocab_size": 64}
    for name, config in {
        "type": good | {"model_type": EVIL},
        "scaling": good | {"rope_scaling": {"rope_type": EVIL, "factor": 2.0}},
        "act": good | {"hidden_act": EVIL},
        "tensor": good,
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        arrays = {f"model.{EVIL}": np.zeros((2, 2), np.float32)}
        safetensors.numpy.save_file(arrays, folder / name / "model.safetensors")
    (folder / "meta").mkdir()
    (folder / "meta" / "params.json").write_text(json.dumps({EVIL: 1}))
    (folder / "meta" / "consolidated.00.pth").write_bytes(b"")
    (folder / "arch.gguf").write_bytes(gguf_of_architecture(EVIL))
    return folder


def gguf_of_architecture(name: str) -> bytes:
    key, value = b"general.architecture", name.encode()
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair


def model_cases() -> dict[str, Callable[[Path], Case]]:
    z, evil_z = ("-z", "tok512.bin"), ("-z", "evil_tok.bin")
    bench = ("--rounds", "1", "--steps", "2", "--prefill", "4", "--threads", "1")
    model = f"{EVIL}.bin"
    chatml: tuple[str, ...] = ("--template", "chatml", "-t", "0", "-n", "4")
    return {
        "info": lambda _: Case(["info", model], shown="[red][/x].bin"),
        "info, missing": lambda _: Case(["info", f"no{model}"], shown="[red][/x].bin: No such"),
        "info, json": lambda _: Case(["info", model, "--json"], shown="\\u001b"),
        "run": lambda _: Case(["run", model, *z, "-n", "5"], shown="tok/s"),
        "run, missing": lambda _: Case(["run", f"no{model}", *z], shown="[red][/x]"),
        "run, tokenizer": lambda _: Case(["run", model, *evil_z, "-n", "9", "-s", "1"], shown="[red][/x]"),
        "run, chat": lambda _: Case(["run", model, *evil_z, "-m", "chat", "-n", "50"], "\nHello\n" * 9, "[red][/x]"),
        "run, option": lambda _: Case(["run", model, "-m", EVIL], shown="[red][/x]"),
        "generate": lambda _: Case(["generate", "-m", model, *evil_z, "-n", "5", EVIL], shown="[red][/x]"),
        "generate, no tokenizer": lambda _: Case(["generate", model, "-n", "5"], shown="no tokenizer"),
        "generate, option": lambda _: Case(["generate", f"--no{EVIL}"], shown="[red][/x]"),
        "chat": lambda _: Case(["chat", model, *z, *chatml], "hi\n/exit\n", "[red][/x]"),
        "chat, tokenizer": lambda _: Case(["chat", model, *evil_z, *chatml], "hi\n/exit\n", "[/x]H"),
        "chat, template": lambda _: Case(
            ["chat", model, *z, "--template", "t.jinja"], "hi\n/load no[/x]\n/a[/x]\n/exit\n", "\\x1b[31m\\x9b31m"
        ),
        "chat, no template": lambda _: Case(["chat", model, *z, "--template", EVIL], shown="[red][/x]"),
        "explain": lambda _: Case(["explain", model, *evil_z, EVIL], shown="[red][/x]"),
        "explain, answer": lambda _: Case(["explain", model, *z, "Once", "--answer", EVIL], shown="[red][/x]"),
        "extract": lambda _: Case(
            ["extract", model, *z, "--texts", EVIL, "--points", "resid_post", "--out", "out"], shown="[red][/x]"
        ),
        "extract, points": lambda _: Case(
            ["extract", model, *z, "--texts", "-", "--points", EVIL, "--out", "out"], shown="[red][/x]"
        ),
        "explore, missing": lambda _: Case(["explore", f"no{model}", "--no-browser"], shown="[red][/x].bin: No such"),
        "serve, missing": lambda _: Case(["serve", f"no{model}", "--port", "0"], shown="[red][/x].bin: No such"),
        "pull": lambda _: Case(["pull", EVIL], shown="[red][/x]"),
        "export": lambda _: Case(["export", model, "out.gguf", *z, "--force"], shown="out.gguf: f32"),
        "export, target": lambda _: Case(["export", model, f"{EVIL}.gguf", *z, "--force"], shown="[red][/x].gguf: f32"),
        "export, format": lambda _: Case(["export", model, "a.gguf", "-f", EVIL], shown="[red][/x]"),
        "compare": lambda _: Case(["compare", model, model, *z, "--tokens", "20"], shown="[red][/x].bin against"),
        "bench": lambda _: Case(["bench", model, *bench], shown="[red][/x].bin: 1.0 MB"),
        "notebooks": lambda _: Case(["notebooks", EVIL, "--force"], shown="[red][/x]/0"),
        "no command": lambda _: Case([f"x{EVIL}"], shown="[red][/x]"),
        **{
            f"info, {name}": lambda _, name=name: Case(["info", name], shown="[red][/x]")  # type: ignore[misc]
            for name in ("type", "scaling", "act", "arch.gguf", "tensor")
        },
        "export, params": lambda _: Case(["export", "meta", "a.gguf"], shown="[red][/x]"),
    }


def on_terminal(case: Case, folder: Path) -> str:
    """All that a terminal sees of a command, which runs in a fork of this process."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            os.environ |= {"TERM": "dumb", "LLAMA2CPP_HISTORY": "0", "COLUMNS": "300"}
            sys.stdin, sys.stdout, sys.stderr = (open(i, mode) for i, mode in enumerate("rww"))  # noqa: PTH123, SIM115
            sys.argv = ["llama2cpp", *map(str, case.arguments)]
            cli.main()
        except SystemExit as error:
            sys.stdout.flush()
            os._exit(error.code if isinstance(error.code, int) else 99)
        finally:
            os._exit(98)
    seen, typed = b"", case.typed.splitlines(keepends=True)
    end = time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(terminal, 65536)
            except OSError:  # Linux's way to say that nobody is there any more
                data = b""
            if not data:
                break
            seen += data
            if typed and seen.endswith((b"> ", b": ")):
                os.write(terminal, typed.pop(0).encode())
        else:
            raise AssertionError(f"the command does not end: {seen!r}")
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 1, 2), seen
    return seen.decode().replace("\r\n", "\n")


def test_the_cases_are_of_all_commands() -> None:
    assert {name.partition(",")[0] for name in model_cases()} == NAMES | {"no command"}


@posix
@pytest.mark.parametrize("name", model_cases())
def test_a_terminal_gets_no_controls(evil: Path, name: str) -> None:
    case = model_cases()[name](evil)
    seen = on_terminal(case, evil)
    # Where lines are edited, the terminal itself is driven; its own words are return and an end of colours.
    assert obeyed(seen.replace("\r", "") if case.typed else seen) == set()
    assert case.shown in seen, seen
    assert "Traceback" not in seen


def test_what_is_piped_is_the_model_s(evil: Path) -> None:
    """Names and messages are filtered there too, the text is not."""
    command = [*COMMAND, "generate", "-m", f"{EVIL}.bin", "-z", "evil_tok.bin", "-n", "9", "-s", "1"]
    result = subprocess.run(command, capture_output=True, cwd=evil, timeout=120, stdin=subprocess.DEVNULL)
    assert EVIL.encode() in result.stdout
    result = subprocess.run([*COMMAND, "info", f"no{EVIL}"], capture_output=True, cwd=evil, timeout=120)
    assert (result.returncode, result.stdout, obeyed(result.stderr.decode())) == (1, b"", set())
    assert b"[red][/x]" in result.stderr


# --- how commands end


@posix
@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["info"], ["info", "--json"], ["generate", "-n", "9"]]
)
def test_a_reader_that_has_left(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, timeout=120
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


@posix
def test_streams_that_are_closed() -> None:
    command = f'"{sys.executable}" -m llama2cpp info >&- 2>&- <&-'
    assert subprocess.run(["/bin/sh", "-c", command], timeout=120).returncode == 0


INTERRUPTED = """
import os, signal, sys
sys.argv = ["llama2cpp", "info"]
class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
from llama2cpp.command.cli import main
main()
"""


@posix
@pytest.mark.parametrize(
    "name", ["numpy", "llama2cpp._core", "llama2cpp.session", "typer", "llama2cpp.command.cli", "rich.table"]
)
def test_ctrl_c_while_importing(name: str) -> None:
    result = subprocess.run([sys.executable, "-c", INTERRUPTED.format(name=name)], capture_output=True, timeout=120)
    assert (result.returncode, result.stderr) == (130, b"")


def test_importing_leaves_signals_alone() -> None:
    code = "import signal, llama2cpp; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- words


@given(st.text(st.sampled_from("ab日 \n"), max_size=60), st.integers(2, 12))
def test_lines_end_between_words(text: str, width: int) -> None:
    whole, pieces = WordWrap(width), WordWrap(width)
    wrapped = whole.feed(text) + whole.end()
    assert "".join(map(pieces.feed, text)) + pieces.end() == wrapped
    assert "".join(wrapped.split()) == "".join(text.split())
    if "日" not in text:
        assert wrapped.split() == text.split()
    for line in wrapped.split("\n"):
        words = [cells(word) for word in line.split(" ")]
        assert cells(line) <= width or max(words) >= width or not words[0]  # one that no line holds, or an indent


def cells(text: str) -> int:
    return sum(2 if character == "日" else 1 for character in text)
