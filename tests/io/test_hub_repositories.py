"""Whole repositories: every file that a model needs and no other, with a stand-in for Hugging Face's client and it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from test_hub import Hub, put

import llama2cpp
import llama2cpp.export
from llama2cpp import hub
from llama2cpp.common import hf_cache
from llama2cpp.common.repository_files import check_hash

# What repositories have beside a model's folder, most of it the same weights again.
OTHERS = [
    *("README.md", ".gitattributes", "LICENSE", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"),
    *("original/consolidated.00.pth", "original/params.json", "original/tokenizer.model", "original/x.safetensors"),
    *("onnx/model.onnx", "onnx/config.json", "consolidated.safetensors", "model.fp32-00001-of-00002.safetensors"),
    *("additional_chat_templates/deep/x.jinja", "adapter/model.safetensors", "runs/config.json"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in shards, with all that may be beside it."""
    folder = tmp_path_factory.mktemp("sharded") / "m"
    llama2cpp.export.convert(tiny.model(tiny.config(dim=72, hidden_dim=128)), folder, "f32", shard_size=100_000)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len([name for name in found if name.endswith(".safetensors")]) > 2
    found |= {"chat_template.jinja": b"usual{# #}", "additional_chat_templates/rag.jinja": b"rag{# #}"}
    return found | {"generation_config.json": b'{"top_k": 3}', "tokenizer_config.json": b"{}"}


def ids_of(model: llama2cpp.Model) -> bytes:
    return model.session().prefill([1, 2, 3]).tobytes()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Hub:
    made = Hub({**files, **dict.fromkeys(OTHERS, b"x")})
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_in_shards(stand_in: Hub, files: dict[str, bytes]) -> None:
    """All shards that the index names and what is beside them, and nothing twice."""
    folder = hub.pull("org/repo")
    assert names_in(folder) == set(files)
    model = llama2cpp.load("org/repo", threads=1)
    assert model.sampling_defaults == {"top_k": 3}
    (folder / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    shard = next(path for path in folder.glob("model-*") if path.name.endswith(".safetensors"))
    shard.unlink()  # an interrupted download
    with pytest.raises(FileNotFoundError, match="run `llama2cpp pull org/repo`"):
        hub.find("org/repo")
    assert hub.pull("org/repo") == hub.find("org/repo") == folder


def test_one_file_of_weights(stand_in: Hub, files: dict[str, bytes]) -> None:
    """Where there are both it is the one that is read, here and by transformers."""
    stand_in.files["model.safetensors"] = b"y"
    wanted = {name for name in files if not name.startswith("model")} | {"model.safetensors"}
    assert names_in(hub.pull("org/repo")) == wanted


def test_an_index_of_what_is_not_there(stand_in: Hub) -> None:
    stand_in.files = {name: data for name, data in stand_in.files.items() if "00001" not in name}
    with pytest.raises(ValueError, match=r"names model-00001-of-\d+\.safetensors, which the repository does not have"):
        hub.pull("org/repo")
    stand_in.files["model.safetensors.index.json"] = b"{}"
    with pytest.raises(ValueError, match="names no files"):
        hub.pull("org/repo")


PARTS = {f"m-Q8_0-0000{i}-of-00003.gguf": b"part %d" % i for i in (1, 2, 3)}


@pytest.mark.parametrize("name", ["org/repo", "org/repo:Q8_0", *(f"org/repo:{part}" for part in PARTS)])
def test_all_parts_of_a_gguf(stand_in: Hub, name: str) -> None:
    stand_in.files = {**PARTS, "README.md": b""}
    path = hub.pull(name)
    assert names_in(path.parent) == set(PARTS)
    assert path.name == (name.partition(":")[2] if ".gguf" in name else next(iter(PARTS)))
    assert hub.find(name) == path
    (path.parent / "m-Q8_0-00003-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError, match=f"run `llama2cpp pull {name}`"):
        hub.find(name)
    del stand_in.files["m-Q8_0-00002-of-00003.gguf"]
    with pytest.raises(ValueError, match=r"has not all parts of m-Q8_0-0000.*: m-Q8_0-00002-of-00003.gguf is missing"):
        hub.pull(name)


def test_what_is_damaged_is_removed(stand_in: Hub) -> None:
    """By the hashes that files in the cache are named by: SHA-256, and Git's for small files."""
    path = hub.pull("org/repo") / "config.json"
    content, blobs = path.read_bytes(), path.resolve().parent
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    for name in (hashlib.sha256(content).hexdigest(), git):
        blob = blobs / name
        blob.write_bytes(content)
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(blob, path.parent))
        check_hash(path)
        blob.write_bytes(content[:-1])
        with pytest.raises(RuntimeError, match=rf"config\.json is not what it should be: expected the hash {name}"):
            check_hash(path)
        assert not path.is_symlink()
        assert not blob.exists()
    assert (hub.pull("org/repo") / "config.json").read_bytes() == content


def test_room_on_the_disk(stand_in: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def tree(repository: str, *, recursive: bool) -> list[Any]:
        entries = [SimpleNamespace(path=name, size=10**12 if name in files else 5) for name in stand_in.files]
        return [*entries, SimpleNamespace(path="original")]

    monkeypatch.setattr(stand_in, "list_repo_tree", tree, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1_500_000_000))
    with pytest.raises(RuntimeError, match=r"org/repo needs \d+000\.0 GB more in .*hub, and 1\.5 GB are free there"):
        hub.pull("org/repo")
    assert (
        not hf_cache.folder().joinpath("models--org--repo", "snapshots").is_dir()
        or not hf_cache.snapshots("org/repo")[0].joinpath("config.json").exists()
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**15))
    hub.pull("org/repo")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    hub.pull("org/repo")  # all of it is here


@pytest.mark.parametrize("error", [ConnectionError("no route\nmore"), TimeoutError("too late")])
def test_without_a_network(stand_in: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What was pulled before is taken; else it is an error of one line."""
    folder = hub.pull("org/repo")

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    for name in ("list_repo_files", "hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(stand_in, name, fail)
    with pytest.warns(UserWarning, match="org/repo: .*what was downloaded before is taken"):
        assert hub.pull("org/repo") == folder
    with pytest.raises(RuntimeError, match=r"^could not get org/other: (no route|too late)$"):
        hub.pull("org/other")
    put("org/half", "config.json")
    with pytest.raises(RuntimeError, match=r"^could not get org/half: "):
        hub.pull("org/half")


# --- the client itself


class _Server(http.server.BaseHTTPRequestHandler):
    """What the client asks of the hub, of one repository, whose first large answer breaks off."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    broken: set[str]
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, sha = self.path.partition("?")[0], "c" * 40
        if path.startswith("/api/models/org/repo/tree/"):
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in self.files.items()
                ]
                + [{"type": "directory", "path": "original", "oid": "0" * 40}]
            )
        if path.startswith("/api/models/org/repo"):
            return self._json({"id": "org/repo", "sha": sha, "siblings": [{"rfilename": name} for name in self.files]})
        found = re.fullmatch(r"/org/repo/resolve/[^/]+/(.*)", path)
        if found is None or found[1] not in self.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = self.files[found[1]]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.asked.append(found[1])
        begin = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "")
        if begin is not None and self.command == "GET":
            headers["Content-Range"] = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[int(begin[1]) :], headers)
        if self.command == "GET" and len(data) > 50_000 and not self.broken:
            self.broken.add(found[1])
            self.send_response(200)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[:30_000])
            self.close_connection = True
            return None
        return self._send(200, data, headers)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[tuple[type[_Server], str]]:
    handler = type(
        "Handler", (_Server,), {"files": {**files, **dict.fromkeys(OTHERS, b"x")}, "broken": set(), "asked": []}
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_the_client_itself(server: tuple[type[_Server], str], files: dict[str, bytes], tmp_path: Path) -> None:
    """From a hub of our own: connections that break off are survived, all has arrived, and stays without a network."""
    pytest.importorskip("huggingface_hub")
    handler, url = server
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def pull(**more: str) -> str:
        code = "from llama2cpp import hub; print(hub.pull('org/repo'))"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    folder = Path(pull())
    assert names_in(folder) == set(files)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert handler.broken
    assert {name for name in files if handler.asked.count(name) > 1} >= handler.broken
    assert ids_of(llama2cpp.load("org/repo", threads=1)) == ids_of(llama2cpp.load(folder, threads=1))
    assert Path(pull(HF_HUB_OFFLINE="1")) == folder
