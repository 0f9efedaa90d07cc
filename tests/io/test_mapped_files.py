"""Files that change under an open model: the same bits as before, or a FormatError with the file's name, and no crash.

Each kind of file, each change, each stage of a model's life.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from on_metal import ON_METAL

import llama2cpp
from llama2cpp.export import Calibration, convert

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody write to an open file")

Made = Callable[[str], Path]

CONTAINERS = {
    "llama2.c v0": ("model.bin", "v0"),
    "llama2.c v2": ("model.bin", "v2"),
    "GGUF f32": ("model.gguf", "f32"),
    "GGUF q4_0": ("model.gguf", "q4_0"),
    "folder": ("model", "bf16"),
    "shards": ("model", "f16"),
    "GPTQ": ("model", "gptq4"),
    "LLM.int8()": ("model", "llm_int8"),
    "panels f32": ("model.safetensors", None),
    "panels q8_0": ("model.safetensors", "q8_0"),
}
IDS = [1, 5, 9, 14, 20, 3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make each container once."""
    paths: dict[str, Path] = {}

    def make(container: str) -> Path:
        if container not in paths:
            name, format = CONTAINERS[container]
            sizes = {"dim": 64, "hidden_dim": 96, "n_heads": 4, "vocab_size": 1024, "tied": container == "GGUF q4_0"}
            options: dict[str, Any] = {"shard_size": "20KB"} if container == "shards" else {}
            if format == "gptq4":
                options |= {"calibration": Calibration(list(range(1, 60))), "group": 32}
            target = tmp_path_factory.mktemp("made") / name
            paths[container] = convert(tiny.model(tiny.config(**sizes)), target, format, **options).path
        return paths[container]

    return make


def copy(path: Path, to: Path) -> Path:
    target = to / path.name
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copyfile(path, target)
    return target


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


def files_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def overwrite(path: Path) -> None:
    """Other numbers in its second half, the length as it was."""
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 4)


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 100_000)


def touch(path: Path) -> None:
    os.utime(path)


def rename_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


def unlink(path: Path) -> None:
    path.unlink()


CHANGES = (overwrite, truncate, grow, touch)
NO_CHANGES = (rename_over, unlink)  # of what is open


def before_any_call(model: llama2cpp.Model) -> Callable[[], NDArray[np.float32]]:
    return lambda: model.session().prefill(IDS)


def before_another_session(model: llama2cpp.Model) -> Callable[[], NDArray[np.float32]]:
    model.session().prefill(IDS)
    return lambda: model.session().prefill(IDS)


def in_a_session(model: llama2cpp.Model) -> Callable[[], NDArray[np.float32]]:
    session = model.session()
    session.prefill(IDS[:-1])

    def go_on() -> NDArray[np.float32]:
        try:
            return session.step(IDS[-1])
        except llama2cpp.FormatError:
            assert session.position == len(IDS) - 1
            raise

    return go_on


PACKS = ["never"] if ON_METAL else ["always", "never"]
STAGES = (before_any_call, before_another_session, in_a_session)


@pytest.mark.parametrize("change", [*CHANGES, *NO_CHANGES])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_change_is_told(tmp_path: Path, made: Made, container: str, change: Callable[[Path], None]) -> None:
    with llama2cpp.load(made(container), threads=1) as model:
        wanted = model.session().prefill(IDS)
    for stage in STAGES:
        for pack in PACKS:
            path = copy(made(container), made_folder(tmp_path / f"{stage.__name__}-{pack}"))
            with llama2cpp.load(path, pack=pack, threads=2) as model:
                call = stage(model)
                for file in files_of(path):
                    change(file)
                if change in NO_CHANGES:
                    np.testing.assert_array_equal(call(), wanted)
                    continue
                with pytest.raises((llama2cpp.FormatError, OSError), match=r"model") as error:
                    call()
                assert any(str(file) in str(error.value) for file in files_of(path))
                with pytest.raises(llama2cpp.FormatError):  # and it stays so
                    model.session().prefill(IDS)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_what_was_read_into_memory_does_not_change(
    tmp_path: Path, made: Made, container: str, change: Callable[[Path], None]
) -> None:
    path = copy(made(container), tmp_path)
    for pack in PACKS:
        with llama2cpp.load(path, pack=pack, mmap=False) as model, llama2cpp.load(made(container)) as same:
            for file in files_of(path):
                change(file)
            np.testing.assert_array_equal(model.session().prefill(IDS), same.session().prefill(IDS))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy(made(container), tmp_path)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_whatever_else_reads_weights_tells_it_too(
    tmp_path: Path, made: Made, container: str, change: Callable[[Path], None]
) -> None:
    path = copy(made(container), tmp_path)
    with llama2cpp.load(path) as model:
        session = model.session()
        session.prefill(IDS)
        for file in files_of(path):
            change(file)
        readers: dict[str, Callable[[], Any]] = {
            "a weight": lambda: model.weights[list(model.weights)[-1]],
            "one head": lambda: model.weights.head("blocks.1.attn.W_Q", 1),
            "embeddings": lambda: model.W_E,
            "logits of a vector": lambda: model.unembed(np.ones(64, dtype=np.float32)),
            "an export": lambda: convert(model, tmp_path / "export.gguf", "f32"),
            "a saved session": lambda: session.save(tmp_path / "session.safetensors"),
            "a cache": lambda: model.run_with_cache(IDS, names_filter="result"),
        }
        for read in readers.values():
            with pytest.raises((llama2cpp.FormatError, OSError), match=re.escape(str(tmp_path))):
                read()
        assert not (tmp_path / "export.gguf").exists()
        assert not (tmp_path / "session.safetensors").exists()


@pytest.mark.parametrize("change", [overwrite, truncate])
@pytest.mark.parametrize("pack", PACKS)
def test_a_change_during_a_call(tmp_path: Path, made: Made, change: Callable[[Path], None], pack: str) -> None:
    path = copy(made("GGUF f32"), tmp_path)
    with llama2cpp.load(path, pack=pack) as model:
        session = model.session()
        before = session.prefill(IDS[:2])
        hook = ("blocks.0.hook_attn_out", lambda _, hook: change(path))
        with model.hooks([hook]), pytest.raises(llama2cpp.FormatError, match=r"model\.gguf"):
            session.prefill(IDS[2:])
        assert session.position == 2
        np.testing.assert_array_equal(session.logits, before)


@pytest.mark.parametrize("pack", PACKS)
def test_a_file_is_shortened_while_threads_read_it(tmp_path: Path, made: Made, pack: str) -> None:
    path = copy(made("panels f32"), tmp_path)
    with llama2cpp.load(path, pack=pack, threads=2) as model:
        started = threading.Barrier(5)
        problems: list[BaseException] = []

        def run() -> None:
            session = model.session()
            started.wait()
            try:
                while True:
                    session.rewind(0)
                    session.prefill(IDS)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        truncate(path)
        for thread in threads:
            thread.join()
        assert len(problems) == 4
        assert all(isinstance(problem, llama2cpp.FormatError) and str(path) in str(problem) for problem in problems)


def test_files_that_are_written_again_and_again(tmp_path: Path, made: Made) -> None:
    """Even within one tick of the file system's clock a change shows."""
    path = copy(made("llama2.c v0"), tmp_path)
    content = path.read_bytes()
    for _ in range(20):
        path.write_bytes(content)
        with llama2cpp.load(path, pack="never", threads=1) as model:
            overwrite(path)
            with pytest.raises(llama2cpp.FormatError, match="written to"):
                model.session().step(1)


@pytest.mark.parametrize("container", ["GGUF q4_0", "panels q8_0"])
def test_sessions_and_tokenizers_are_read_once(tmp_path: Path, made: Made, container: str) -> None:
    with llama2cpp.load(made(container)) as model:
        session = model.session()
        wanted = session.prefill(IDS)
        session.save(tmp_path / "session.safetensors")
        again = model.load_session(tmp_path / "session.safetensors")
        truncate(tmp_path / "session.safetensors")
        np.testing.assert_array_equal(again.logits, wanted)
        with pytest.raises(llama2cpp.FormatError, match=r"session\.safetensors"):
            model.load_session(tmp_path / "session.safetensors")


# --- the handler for SIGBUS, each in a process of its own


def in_a_process(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    begin = f"""
import mmap, os, signal, sys
import numpy as np
path = {str(path)!r}
def shortened(pack="never"):
    import llama2cpp
    model = llama2cpp.load(path, pack=pack)
    os.truncate(path, os.path.getsize(path) // 2)  # behind the embeddings, which are read
    return model
"""
    command = [sys.executable, "-c", begin + code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_an_address_outside_a_call_ends_the_process_and_names_the_file(tmp_path: Path, made: Made) -> None:
    path = copy(made("llama2.c v0"), tmp_path)
    code = """
import llama2cpp
model = llama2cpp.load(path)
view = model.weights["tok_embeddings.weight"]
os.truncate(path, 100)
print(float(view.sum()))
"""
    done = in_a_process(code, path)
    assert done.returncode == -signal.SIGBUS
    assert f"{path}: byte " in done.stderr
    assert done.stdout == ""


def test_the_handler_shows_no_control_characters(tmp_path: Path, made: Made) -> None:
    folder = tmp_path / "a\x1b[2Jb\nc\x7f"
    folder.mkdir()
    path = copy(made("llama2.c v0"), folder)
    code = """
import llama2cpp
view = llama2cpp.load(path).weights["tok_embeddings.weight"]
os.truncate(path, 100)
print(float(view.sum()))
"""
    done = in_a_process(code, path)
    assert done.returncode == -signal.SIGBUS
    (line,) = [line for line in done.stderr.splitlines() if "SIGBUS" in line]
    assert r"a\u001b[2Jb\u000ac\u007f/" in line
    assert line.isprintable()


def test_without_the_handler(tmp_path: Path, made: Made) -> None:
    path = copy(made("llama2.c v0"), tmp_path)
    code = "shortened().session().step(1)"
    done = in_a_process(code, path, LLAMA2CPP_SIGBUS="0")
    assert done.returncode == -signal.SIGBUS
    path = copy(made("llama2.c v0"), tmp_path)
    done = in_a_process(code, path)
    assert done.returncode == 1
    assert "FormatError" in done.stderr


FOREIGN = {
    "a map of someone else's": """
with open(path + ".other", "wb+") as file:
    file.write(bytes(100_000))
    file.flush()
    other = mmap.mmap(file.fileno(), 100_000)
    os.truncate(file.name, 0)
""",
    "sent": "",
}
TOUCH = {"a map of someone else's": "print(other[50_000])", "sent": "os.kill(os.getpid(), signal.SIGBUS)"}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("before", [True, False], ids=["a handler before", "none before"])
def test_the_handler_before_gets_what_is_not_ours(tmp_path: Path, made: Made, what: str, before: bool) -> None:
    path = copy(made("llama2.c v0"), tmp_path)
    code = FOREIGN[what] + ("import faulthandler\nfaulthandler.enable()\n" if before else "")
    code += """
model = shortened()
try:
    model.session().step(1)
except ValueError as error:
    print(type(error).__name__, flush=True)
"""
    done = in_a_process(code + TOUCH[what], path)
    assert done.returncode == -signal.SIGBUS
    assert done.stdout == "FormatError\n"
    assert ("Fatal Python error: Bus error" in done.stderr) == before


def test_an_ignored_signal_stays_ignored(tmp_path: Path, made: Made) -> None:
    path = copy(made("llama2.c v0"), tmp_path)
    code = """
signal.signal(signal.SIGBUS, signal.SIG_IGN)
model = shortened()
os.kill(os.getpid(), signal.SIGBUS)
print("alive")
"""
    assert in_a_process(code, path).stdout == "alive\n"


def mapped(path: Path) -> Iterator[str]:
    name = str(path)
    with Path("/proc/self/smaps").open() as file:
        inside = False
        for line in file:
            if "-" in line.split(" ")[0]:
                inside = line.rstrip().endswith(name)
            elif inside and line.startswith("Rss:"):
                yield line.split()[1]


@pytest.mark.cpu_bits("packing")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_packed_model_touches_no_page_of_its_file(tmp_path: Path, made: Made) -> None:
    path = copy(made("GGUF q4_0"), tmp_path)
    with llama2cpp.load(path, pack="always") as model:
        opened = sum(map(int, mapped(path)))
        session = model.session()
        session.prefill(IDS)
        session.step(3)
        assert sum(map(int, mapped(path))) <= opened
