"""A conversion that cannot be finished leaves no half file, and leaves alone what was there."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import meta_files
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
                print(type(error).__name__, error.errno)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=True
    )
    assert len(result.stdout.splitlines()) == 2, (result.stdout, result.stderr)
    assert all(line.split()[1] == str(errno.EFBIG) for line in result.stdout.splitlines())
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
