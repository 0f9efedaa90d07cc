"""``llama2cpp serve`` as a process: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from adapter_folder import save_adapter

import llama2cpp

SERVE = [sys.executable, "-m", "llama2cpp", "serve"]


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and where it listens."""
    command = [*SERVE, "--port", "0", "--threads", "1", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert " x 1 threads" in process.stdout.readline()
            yield process, url
        finally:
            process.kill()


def ask(url: str, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
    answer = connection.getresponse()
    told = answer.status, json.loads(answer.read())
    connection.close()
    return told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process could catch")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_what_it_has_begun_and_ends(number: signal.Signals) -> None:
    with server() as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert ask(url, "GET", "/health")[0] == 200
        body = {"prompt": "The dog", "seed": 1, "max_tokens": 400, "stop": ["no such text"]}
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body).encode())
        while not ask(url, "GET", "/health")[1]["running"]:
            time.sleep(0.001)
        process.send_signal(number)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        _, err = process.communicate(timeout=60)
    assert answer["choices"][0]["text"] == llama2cpp.load().generate("The dog", seed=1, max_tokens=400)
    assert process.returncode == 0
    assert err == ""


@pytest.mark.cpu_bits("speculation is the CPU's")
@pytest.mark.parametrize("draft", ["prompt", "storyteller"])
def test_speculation(draft: str) -> None:
    """The same answers, with what was proposed in their usage and in the metrics."""
    prompt = "Tim, Tim, Tim, Tim, Tim"
    with server("--speculate", draft) as (_, url):
        accepted = 0
        for seed in range(3):
            body = {"prompt": prompt, "seed": seed, "max_tokens": 40, "temperature": 0.5}
            status, answer = ask(url, "POST", "/v1/completions", body)
            assert status == 200
            expected = llama2cpp.load().generate(prompt, seed=seed, max_tokens=40, temperature=0.5)
            assert answer["choices"][0]["text"] == expected
            told = answer["usage"].get("completion_tokens_details", {"accepted_prediction_tokens": 0})
            accepted += told["accepted_prediction_tokens"]
        assert accepted > 0
        with urllib.request.urlopen(f"{url}/metrics") as metrics:
            assert f"llama2cpp_accepted_tokens_total {float(accepted)}" in metrics.read().decode()


def test_adapters(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "style")
    model = llama2cpp.load("storyteller")
    expected = model.generate("The dog", seed=1, max_tokens=8, adapter=model.load_adapter(folder), special=False)
    with server("--adapter", f"style={folder}", "--adapter", f"again={folder}") as (process, url):
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line == f"style: storyteller with an adapter of rank 4, {folder}"
        assert [found["id"] for found in ask(url, "GET", "/v1/models")[1]["data"]] == ["storyteller", "style", "again"]
        body = {"model": "style", "prompt": "The dog", "seed": 1, "max_tokens": 8}
        status, told = ask(url, "POST", "/v1/completions", body)
        assert (status, told["model"], told["choices"][0]["text"]) == (200, "style", expected)
        assert (
            ask(url, "POST", "/v1/completions", {**body, "model": "storyteller"})[1]["choices"][0]["text"] != expected
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--adapter", "style"], "'style', expected NAME=PATH"),
        (["--adapter", "=path"], "'=path', expected NAME=PATH"),
        (["--adapter", " =path"], "' =path', expected NAME=PATH"),
        (["--adapter", "a=x", "--adapter", "a=y"], "'a' is the name of another model here"),
        (["--adapter", "storyteller=x"], "'storyteller' is the name of another model here"),
        (["--adapter", "a=nowhere"], "nowhere"),
        # Before the model is opened.
        (["no-such-model.gguf", "--adapter", "a=nowhere"], "error: nowhere: No such file or directory"),
    ],
)
def test_adapters_that_cannot_be(arguments: list[str], said: str) -> None:
    ended = subprocess.run([*SERVE, "--port", "0", *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert said in " ".join(ended.stderr.replace("\u2502", " ").split())
    assert "Traceback" not in ended.stderr


def test_key_and_name() -> None:
    with server("--name", "tales", LLAMA2CPP_API_KEY="secret") as (_, url):
        assert ask(url, "GET", "/v1/models")[0] == 401
        status, listed = ask(url, "GET", "/v1/models", key="secret")
        assert (status, listed["data"][0]["id"]) == (200, "tales")
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        status, told = ask(url, "POST", "/v1/chat/completions", body, key="secret")
        assert status == 400  # the storyteller was made for no chat
        assert "no chat template" in told["error"]["message"]


def run(*arguments: str, code: str = "") -> tuple[int, str]:
    command = [sys.executable, "-c", code, *arguments] if code else [*SERVE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_without_its_packages(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from llama2cpp.command.cli import main; main()"
    status, told = run("serve", code=code)
    assert status == 2
    assert told == f"llama2cpp: error: serve needs the package {package}: pip install 'llama2cpp[server]'\n"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, told = run("--port", str(port))
    assert status == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in told
    assert told.count("\n") == 1


def test_wrong_calls(tmp_path: Path) -> None:
    for arguments, message, expected in [
        (["--host", "no.such.host.invalid"], "no.such.host.invalid is no address of this machine", (1, 2)),
        (["--port", "70000"], "70000", (2,)),
        (["--rows", "0"], "0", (2,)),
        (["--speculate", str(tmp_path / "no.gguf"), "--port", "0"], "no.gguf", (2,)),
        ([str(tmp_path / "no.gguf"), "--port", "0"], "no.gguf", (1,)),
        (["--template", "{% no", "--port", "0"], "template", (1, 2)),
    ]:
        status, told = run(*arguments)
        assert status in expected
        assert message in told
        assert told.count("\n") == 1


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    model = tiny.model(tiny.config())
    llama2cpp.export.convert(model, path)
    status, told = run(str(path), "--port", "0")
    assert status == 1
    assert "the model has no tokenizer" in told
