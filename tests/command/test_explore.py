"""``llama2cpp explore`` as a process: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import tiny

import llama2cpp

EXPLORE = [sys.executable, "-m", "llama2cpp", "explore"]


def ask(url: str, view: str, body: Any) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    token = parse_qs(parts.query).get("token", [""])[0]
    connection.request("POST", f"/api/{view}", json.dumps(body), {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    told = answer.status, json.loads(answer.read())
    connection.close()
    return told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process could catch")
def test_it_prints_a_url_and_ends() -> None:
    command = [*EXPLORE, "--no-browser", "--threads", "1", "--backend", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rstrip("\n")
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", url)
            status, told = ask(url, "next", {"text": "Once upon a", "rows": 1})  # who comes early waits for the model
            assert (status, told["rows"][0]["text"]) == (200, " time")
            assert ask(url.partition("?")[0], "about", {})[0] == 403
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert err == ""
    assert out.startswith("storyteller, context 512")


def run(*arguments: str, code: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "-c", code, *arguments] if code else [*EXPLORE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_packages(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from llama2cpp.command.cli import main; main()"
    status, out, told = run("explore", "--no-browser", code=code)
    assert (status, out) == (2, "")
    assert told == f"llama2cpp: error: explore needs the package {package}: pip install 'llama2cpp[server]'\n"


def test_a_port_in_use_and_wrong_calls(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, told = run("--no-browser", "--port", str(port))
    assert (status, out) == (1, "")
    assert f"port {port} of 127.0.0.1 cannot be used" in told
    for arguments, message in [
        (["--port", "70000"], "70000"),
        ([str(tmp_path / "no.gguf"), "--no-browser"], "no.gguf"),
    ]:
        status, _, told = run(*arguments)
        assert status in (1, 2)
        assert message in told
        assert told.count("\n") == 1


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    """Ids are written in place of texts."""
    from explored import explored

    config = tiny.config()
    llama2cpp.export.convert(tiny.model(config), tmp_path / "model.bin")
    with llama2cpp.load(tmp_path / "model.bin", backend="cpu") as model, explored(model) as page:
        told = page.ask("tokens", text="5, 7 9")
        assert [token["id"] for token in told["tokens"]] == [5, 7, 9]
        logits = model([5, 7, 9])[0, -1]
        assert page.ask("next", text="5 7 9", rows=1)["rows"][0]["id"] == int(logits.argmax())
        assert "write ids" in page.ask("next", status=400, text="hello")["error"]["message"]
        assert len(page.ask("generate", ids=[5, 7], max_tokens=3)) == 3
