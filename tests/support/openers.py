"""Everything that opens a path, each given paths that are no file of its kind. A program: test_openers.py runs it.

    python openers.py FOLDER    prints JSON: [kind, opener] before each, [kind, opener, is clear, error] after it

It is a process of its own, so that a test can end it where an opener waits for ever.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny
from typer.testing import CliRunner

import llama2cpp
from llama2cpp import export
from llama2cpp.command import cli

Opener = Callable[[str], Any]

# --- kinds of paths; each makes what is there and gives the path, which ends in `suffix`


def fifo(folder: Path, suffix: str) -> str:
    os.mkfifo(folder / f"fifo{suffix}")
    return str(folder / f"fifo{suffix}")


def device(folder: Path, suffix: str, name: str) -> str:
    """Give a link, since openers look at the suffix."""
    (folder / f"{name}{suffix}").symlink_to(f"/dev/{name}")
    return str(folder / f"{name}{suffix}")


def directory(folder: Path, suffix: str) -> str:
    (folder / f"directory{suffix}").mkdir()
    return str(folder / f"directory{suffix}")


def a_socket(folder: Path, suffix: str) -> str:
    path = folder / f"socket{suffix}"
    here = Path.cwd()
    os.chdir(folder)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)
    return str(path)


def missing(folder: Path, suffix: str) -> str:
    return str(folder / f"missing{suffix}")


def nul(folder: Path, suffix: str) -> str:
    (folder / f"before{suffix}").write_bytes(b"what a path that ends at the NUL would open")
    return str(folder / f"before{suffix}") + f"\0{suffix}"


def empty_path(folder: Path, suffix: str) -> str:
    return ""


def empty_file(folder: Path, suffix: str) -> str:
    (folder / f"empty{suffix}").touch()
    return str(folder / f"empty{suffix}")


def circle(folder: Path, suffix: str) -> str:
    (folder / f"circle{suffix}").symlink_to(f"circle{suffix}")
    return str(folder / f"circle{suffix}")


def unreadable(folder: Path, suffix: str) -> str:
    path = folder / f"unreadable{suffix}"
    path.write_bytes(b"what nobody may read")
    path.chmod(0)
    return str(path)


def huge(folder: Path, suffix: str) -> str:
    """A terabyte of zeros, which takes no room."""
    path = folder / f"huge{suffix}"
    path.touch()
    os.truncate(path, 1 << 40)
    return str(path)


KINDS: dict[str, Callable[[Path, str], str]] = {
    "a pipe": fifo,
    "zeros without end": lambda folder, suffix: device(folder, suffix, "zero"),
    "the null device": lambda folder, suffix: device(folder, suffix, "null"),
    "a directory": directory,
    "a socket": a_socket,
    "missing": missing,
    "a NUL byte": nul,
    "an empty path": empty_path,
    "an empty file": empty_file,
    "a circle of links": circle,
    "unreadable": unreadable,
    "huge": huge,
}
# --- openers


def command(*words: str) -> None:
    """Run a command; its error is ours."""
    done = CliRunner().invoke(cli.app, list(words))
    if done.exit_code == 2 and "Usage: " in done.output:  # what the parser of arguments refuses, with a message
        raise ValueError(done.output)
    if done.exception is not None:
        raise done.exception


def openers(folder: Path) -> dict[str, tuple[str, Opener]]:
    """Each with the suffix that its files have."""
    config = tiny.config(dim=64, hidden_dim=96, n_heads=4, vocab_size=512)
    source = export.convert(tiny.model(config), folder / "model.gguf", "f32").path
    tokenizer = Path(os.environ["OPENERS_TOKENIZER"])
    model = llama2cpp.load(source, tokenizer=tokenizer)
    beside = export.convert(model, folder / "beside", "f16").path

    def in_a_folder(name: str, *, keep: tuple[str, ...] = ()) -> Opener:
        """The path takes the place of a file in a folder of Hugging Face's."""

        def load(path: str) -> None:
            target = folder / f"folder-{name}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(beside, target)
            for gone in keep:
                (target / gone).unlink()
            (target / name).unlink(missing_ok=True)
            if os.path.lexists(path) and path:
                Path(path).rename(target / name)
            opened = llama2cpp.load(target)
            if not opened.has_tokenizer:  # a model without a tokenizer opens, and says why
                raise llama2cpp.FormatError(opened.tokenizer_problem)

        return load

    def meta(name: str) -> Opener:
        def load(path: str) -> None:
            target = folder / f"meta-{name}"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            (target / "params.json").write_text('{"dim": 8, "n_layers": 1, "n_heads": 1}')
            (target / name).unlink(missing_ok=True)
            if os.path.lexists(path) and path:
                Path(path).rename(target / name)
            export.convert(target, folder / "never.gguf")

        return load

    return {
        **{
            f"load{suffix}{' read' if not mmap else ''}": (
                suffix,
                partial(llama2cpp.load, mmap=mmap),
            )
            for suffix in (".bin", ".gguf", ".safetensors", "")
            for mmap in (True, False)
        },
        **{
            f"load, folder with {name}": (
                name,
                in_a_folder(name, keep=("model.safetensors",) if name.endswith("index.json") else ()),
            )
            for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json")
        },
        **{
            f"load, tokenizer {suffix}": (suffix, lambda path: llama2cpp.load(source, tokenizer=path))
            for suffix in (".bin", ".model", ".json", ".gguf")
        },
        "Tokenizer.from_file": (".model", llama2cpp.Tokenizer.from_file),
        "load_session": (".safetensors", model.load_session),
        "ActivationCache.load npz": (".npz", llama2cpp.ActivationCache.load),
        "ActivationCache.load safetensors": (".safetensors", llama2cpp.ActivationCache.load),
        "Conversation.load": (".json", llama2cpp.Conversation(model, template="llama2").load),
        "Calibration": (".txt", lambda path: export.Calibration(path).tokens(model)),
        **{
            f"convert {suffix}": (suffix, lambda path: export.convert(path, folder / "never.gguf"))
            for suffix in (".bin", ".gguf", ".pt", ".pth")
        },
        **{f"convert, Meta's {name}": (name, meta(name)) for name in ("params.json", "consolidated.00.pth")},
        "llama2cpp info": (".gguf", lambda path: command("info", path)),
        "llama2cpp run": (".bin", lambda path: command("run", path)),
        "llama2cpp run -z": (".bin", lambda path: command("run", str(source), "-z", path)),
        "llama2cpp chat": (".gguf", lambda path: command("chat", path)),
        "llama2cpp chat --template": (
            ".jinja",
            lambda path: command("chat", str(source), "-z", str(tokenizer), "--template", path),
        ),
        "llama2cpp compare": (".gguf", lambda path: command("compare", path, str(source))),
        "llama2cpp compare b": (".gguf", lambda path: command("compare", str(source), path)),
        "llama2cpp compare --text": (
            ".txt",
            lambda path: command("compare", str(source), str(source), "-z", str(tokenizer), "--text", path),
        ),
        "llama2cpp export --text": (
            ".txt",
            lambda path: command(
                "export", str(source), str(folder / "never.gguf"), "-z", str(tokenizer), "--text", path
            ),
        ),
        "llama2cpp export --calibrate": (
            ".txt",
            lambda path: command(
                "export", str(source), str(folder / "never"), "-z", str(tokenizer), "--format", "gptq4",
                "--group-size", "32", "--calibrate", path,
            ),
        ),
    }  # fmt: skip


def run(folder: Path) -> None:
    """Try each opener with each kind."""
    for number, (name, (suffix, open_path)) in enumerate(openers(folder).items()):
        for kind, make in KINDS.items():
            print(json.dumps([kind, name]), flush=True)
            place = folder / f"{number}-{kind}"
            place.mkdir()
            error: BaseException | None = None
            try:
                open_path(make(place, suffix))
            except BaseException as raised:
                error = raised
            clear = isinstance(error, OSError | ValueError | MemoryError)  # a terabyte does not fit
            told = f"{type(error).__name__}: {error}" if error is not None else "no error"
            print(json.dumps([kind, name, clear, told]), flush=True)


def interrupted(folder: Path) -> None:
    """Good files, while a signal comes every 0.3 ms and system calls are not started again."""
    source = Path(os.environ["OPENERS_MODEL"])
    tokenizer = Path(os.environ["OPENERS_TOKENIZER"])
    model = llama2cpp.load(source, tokenizer=tokenizer)
    wanted = model.session().prefill([1, 5, 9])
    saved, text = folder / "saved.safetensors", folder / "text.txt"
    session = model.session()
    session.prefill([1, 5, 9])
    session.save(saved)
    text.write_text("Once upon a time " * 1000)
    signals = 0

    def count(signum: int, frame: object) -> None:
        nonlocal signals
        signals += 1

    signal.signal(signal.SIGALRM, count)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    for _ in range(10):
        for mmap in (True, False):
            for pack in ("always", "never"):
                opened = llama2cpp.load(source, tokenizer=tokenizer, mmap=mmap, pack=pack)
                assert (opened.session().prefill([1, 5, 9]) == wanted).all()
        assert model.load_session(saved).position == 3
        assert len(export.Calibration(text).tokens(model)) > 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{signals > 100}")


if __name__ == "__main__":
    if sys.argv[1] == "interrupted":
        interrupted(Path(sys.argv[2]))
    else:
        run(Path(sys.argv[1]))
