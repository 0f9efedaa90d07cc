"""A conversion that cannot be finished leaves no half file, and leaves alone what was there."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import meta_files
import numpy as np
import pytest
import tiny

import llama2cpp
from llama2cpp.export import convert

TARGETS = [
    ("m.bin", {"format": "v0"}),
    ("m.bin", {"format": "int8"}),
    ("m.gguf", {"format": "f32"}),
    ("m.gguf", {"format": "q4_k_m"}),
    ("m", {"format": "f16"}),
    ("m", {"format": "f32", "shard_size": "40KB"}),
    ("m", {"format": "llm_int8", "shard_size": "20KB"}),
    ("m.safetensors", {}),
]


def config() -> llama2cpp.Config:
    return tiny.config(dim=64, hidden_dim=96, n_heads=4, vocab_size=96)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(("name", "options"), TARGETS)
def test_a_full_disk(tmp_path: Path, name: str, options: dict[str, Any], share: float) -> None:
    """The system refuses bytes after a while: an OSError, and nothing changed."""
    source = convert(tiny.model(config()), tmp_path / "source.bin").path
    folder = tmp_path / "targets"
    folder.mkdir()
    whole = convert(source, folder / name, **options).path
    largest = max(path.stat().st_size for path in [whole, *whole.glob("*")] if path.is_file())
    before = everything(folder)
    code = f"""
        import errno, resource, signal, sys
        import gguf, llama2cpp
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({int(largest * share)}, resource.RLIM_INFINITY))
        for force in (False, True):
            target = {str(folder)!r} + ("/{name}" if force else "/new-{name}")
            try:
                llama2cpp.export.convert({str(source)!r}, target, force=force, **{options!r})
            except OSError as error:
                print(type(error).__name__, error.errno, error.filename == target)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=True
    )
    assert len(result.stdout.splitlines()) == 2, (result.stdout, result.stderr)
    assert all(line.split()[1:] == [str(errno.EFBIG), "True"] for line in result.stdout.splitlines())
    assert everything(folder) == before


@pytest.mark.parametrize(("name", "options"), TARGETS)
def test_an_interrupt_at_every_weight(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """From a source of PyTorch's, whose files are let go of too."""
    source = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", config(), tiny.arrays(config()))
    whole = convert(source, tmp_path / "before" if name == "m" else tmp_path / f"before{Path(name).suffix}", **options)
    kept = everything(tmp_path)
    for stop in range(1, len(whole.formats), 5):

        class Stop:
            left = stop

            def __call__(self, weight: str, done: int, total: int) -> None:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        for target, force in ((tmp_path / name, False), (whole.path, True)):
            with pytest.raises(KeyboardInterrupt):
                convert(source, target, force=force, progress=Stop(), **options)
            assert everything(tmp_path) == kept
            assert sorted(path.name for path in tmp_path.iterdir()) == sorted({whole.path.name, "ckpt.pt"})


def command(*arguments: Any, prepare: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, after some Python."""
    code = f"{prepare}\nimport sys\nfrom llama2cpp.command.cli import main\nsys.argv[0] = 'llama2cpp'\nmain()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def refused(result: subprocess.CompletedProcess[str], said: str) -> None:
    """One line, and no traceback; 2 is the exit code of a wrong command line."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == (2 if said.startswith("Invalid value") else 1)
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("llama2cpp: ")
    assert said in lines[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no locks by flock")
@pytest.mark.parametrize(("name", "options"), TARGETS)
def test_what_a_killed_process_leaves_goes_with_the_next(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    source = convert(tiny.model(config()), tmp_path / "source.bin").path
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / f".{name}.other.part").write_bytes(b"no name that is made here")
    code = f"""
        import os, signal, llama2cpp
        def kill(weight, done, total):
            if done > total / 2:
                os.kill(os.getpid(), signal.SIGKILL)
        llama2cpp.export.convert({str(source)!r}, {str(folder / name)!r}, progress=kill, **{options!r})
    """
    for _ in range(2):  # no more of them come together
        killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=300)
        assert killed.returncode == -signal.SIGKILL
        left = [path for path in folder.iterdir() if path.name != f".{name}.other.part"]
        assert [path.name.startswith(".llama2cpp-") and path.name.endswith(".part") for path in left] == [True]
    done = convert(source, folder / name, **options)
    there = {f".{name}.other.part", name} | ({done.tokenizer.name} if done.tokenizer is not None else set())
    assert {path.name for path in folder.iterdir()} == there


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks by flock")
@pytest.mark.parametrize("name", ["m.gguf", "m"])
def test_two_at_a_time_leave_each_other_alone(tmp_path: Path, name: str) -> None:
    """One begins and ends while the other is at work; the target is that of the last to end."""
    model = tiny.model(config())
    inner: list[Path] = []

    def again(weight: str, done: int, total: int) -> None:
        if not inner:
            inner.append(convert(model, tmp_path / name, "f32").path)

    outer = convert(model, tmp_path / name, "f16", force=True, progress=again)
    assert [outer.path] == inner
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert llama2cpp.load(outer.path).weights.info(next(iter(llama2cpp.load(outer.path).weights)))["format"] == "f16"


@pytest.mark.parametrize("name", ["m.gguf", "m.bin", "m.safetensors", "m"])
def test_a_model_that_is_open_goes_on_when_its_file_is_replaced(tmp_path: Path, name: str) -> None:
    """Also where source and target are one."""
    target = convert(tiny.model(config()), tmp_path / name).path
    ids = tiny.tokens(config(), 12)
    first = llama2cpp.load(target, pack="never")
    expected = first.session().prefill(ids)
    before = everything(tmp_path)
    format = {"m.bin": "int8", "m": "llm_int8"}.get(name, "q8_0")
    refused(command("export", target, target, "-f", format), f"{target} exists; pass --force")
    assert everything(tmp_path) == before
    forced = command("export", target, target, "-f", format, "--force", "--json")
    assert forced.returncode == 0, forced.stderr
    assert 0 < json.loads(forced.stdout)["comparison"]["mean_kl"] < 0.1
    assert everything(tmp_path) != before
    np.testing.assert_array_equal(first.session().prefill(ids), expected)
    assert np.any(llama2cpp.load(target).session().prefill(ids) != expected)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folders_that_hold_something_else_are_not_replaced(tmp_path: Path) -> None:
    source = convert(tiny.model(config()), tmp_path / "source.gguf").path
    folder = convert(source, tmp_path / "m", "f16").path
    for name, said in (("notes.txt", "m has notes.txt"), ("source.gguf", "m has source.gguf"), ("more", "m has more")):
        (folder / name).mkdir() if name == "more" else (folder / name).write_bytes(source.read_bytes())
        before = everything(tmp_path)
        refused(command("export", source, folder, "-f", "f32", "--force"), said)
        assert everything(tmp_path) == before
        (folder / name).rmdir() if name == "more" else (folder / name).unlink()
    inside = f"import os; os.chdir({str(folder)!r})"
    for target in (".", "..", folder, folder.parent):
        refused(command("export", source, target, "-f", "f32", "--force", prepare=inside), "is not replaced")
    assert convert(source, folder, "f32", force=True).path == folder


def test_errors_of_the_command_are_one_line_and_come_first(tmp_path: Path) -> None:
    source = convert(tiny.model(config()), tmp_path / "source.gguf").path
    shards = convert(source, tmp_path / "shards", "f16", shard_size="20KB").path
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text.txt").write_text("Once upon a time")
    before = everything(tmp_path)
    target, missing = tmp_path / "m.gguf", tmp_path / "missing"
    for arguments, said in (
        ((shards, target), f"{gone.name} is missing"),
        ((missing, target), f"{missing}: No such file or directory"),
        ((source, missing / "m.gguf"), f"{missing} is no folder"),
        ((source, tmp_path / "folder.gguf", "--force"), "folder.gguf is a folder"),
        ((source, tmp_path / "m.ggfu"), ".ggfu is no file that is written; expected .gguf, .bin, .safetensors or"),
        ((source, tmp_path / "m.pt"), "m.pt would be PyTorch's file"),
        ((source, target, "--text", missing), f"{missing}: No such file or directory"),
        ((source, target, "--text", tmp_path / "text.txt"), f"--text needs a tokenizer, which {source} has not"),
        ((source, target, "--calibrate", missing, "-f", "q4_0"), f"{missing}: No such file or directory"),
        ((source, target, "--tokens", "-3"), "Invalid value for '--tokens'"),
    ):
        refused(command("export", *arguments), said)
        assert everything(tmp_path) == before
    without = "import sys; sys.modules['gguf'] = None"
    refused(command("export", source, target, prepare=without), "writing GGUF needs the gguf library: run")
    assert everything(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes of folders")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    """The error names the target. Root may write everywhere: it becomes nobody, once all modules are there."""
    source = convert(tiny.model(config()), tmp_path / "source.gguf").path
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for place in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        place.chmod(0o755)
    drop = textwrap.dedent("""
        import contextlib, os, sys
        from llama2cpp.command.cli import main
        arguments = sys.argv[:]
        sys.argv[3] = sys.argv[3].replace("closed", "open")
        with contextlib.suppress(SystemExit):
            main()
        sys.argv = arguments
        if os.getuid() == 0:
            os.seteuid(65534)
    """)
    (tmp_path / "open").mkdir()
    for name in ("m.gguf", "m.bin", "m.safetensors", "m"):
        result = command("export", source, closed / name, "--no-report", prepare=drop)
        refused(result, f"{closed / name}: Permission denied")
    assert not list(closed.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak of a process")
def test_memory_stays_near_one_weight(tmp_path: Path) -> None:
    """Pages of a mapped source count as memory, so they are let go of after each weight."""
    big = tiny.config(dim=512, hidden_dim=1408, n_layers=12, n_heads=8, n_kv_heads=8, vocab_size=512, tied=True)
    source = convert(tiny.model(big), tmp_path / "source.bin", "v1").path
    size = source.stat().st_size
    for target, format in (("m.gguf", "q8_0"), ("m.bin", "f32"), ("m", "f32")):
        code = f"""
            import gguf, llama2cpp
            def peak():
                lines = open("/proc/self/status").read().splitlines()
                return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
            begin = peak()
            llama2cpp.export.convert({str(source)!r}, {str(tmp_path / target)!r}, {format!r}, threads=1)
            print(peak() - begin)
        """
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=True
        )
        assert int(result.stdout) < size / 3, (target, size)
