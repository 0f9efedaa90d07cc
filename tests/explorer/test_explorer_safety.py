"""Who may use the page of ``llama2cpp explore``, and what it makes of questions that cannot be answered."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explored import TOKEN, Explored, explored

import llama2cpp
import llama2cpp.explorer
from llama2cpp.explorer.worker import Worker
from llama2cpp.server.errors import ApiError

STATIC = Path(llama2cpp.explorer.__file__).parent / "static"


@pytest.fixture(scope="module")
def page() -> Iterator[Explored]:
    with llama2cpp.load("storyteller", backend="cpu") as model, explored(model) as made:
        yield made


GOOD = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer "},
        {**GOOD, "Host": "evil.example"},
        {**GOOD, "Host": "127.0.0.1.evil.example:80"},
        {**GOOD, "Host": ""},
        {**GOOD, "Origin": "http://evil.example"},
        {**GOOD, "Origin": "null"},
        {**GOOD, "Origin": "http://127.0.0.1:1"},
        {**GOOD, "Origin": "http://localhost"},
        {**GOOD, "Sec_Fetch_Site": "cross-site"},
        {**GOOD, "Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
def test_strangers_are_refused(page: Explored, headers: dict[str, str]) -> None:
    status, _, data = page.send("POST", "/api/about", {}, **headers)
    assert status == 403
    assert TOKEN not in data.decode()


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
def test_the_page_itself_is_for_this_host_only(page: Explored, path: str) -> None:
    status, headers, data = page.send("GET", path)
    assert status == 200
    assert TOKEN.encode() not in data
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert page.send("GET", path, Host="evil.example")[0] == 403
    assert page.send("GET", path, Origin="http://evil.example")[0] == 403


def test_its_own_origin_is_let_in(page: Explored) -> None:
    assert page.send("POST", "/api/about", {}, **GOOD, Origin=page.origin, Sec_Fetch_Site="same-origin")[0] == 200
    port = page.origin.rpartition(":")[2]
    local = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert page.send("POST", "/api/about", {}, **GOOD, **local)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/about", 405),
        ("OPTIONS", "/api/about", 405),
        ("POST", "/api/nothing", 404),
        ("GET", "/static/nothing.js", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
    ],
)
def test_there_is_nothing_else(page: Explored, method: str, path: str, status: int) -> None:
    assert page.send(method, path, {} if method == "POST" else None, **GOOD)[0] == status


IDS = [1, 591, 862]
HEAD = {"what": "head", "do": "off", "layer": 1, "head": 1}


@pytest.mark.parametrize(
    ("view", "body", "said"),
    [
        ("next", {}, "pass one of ids and text"),
        ("next", {"ids": IDS, "text": "a"}, "pass one of ids and text"),
        ("next", {"ids": []}, "no token"),
        ("next", {"ids": [1536]}, "0 to 1535"),
        ("next", {"ids": [-1]}, "0 to 1535"),
        ("next", {"ids": [True]}, "0 to 1535"),
        ("next", {"ids": [1.5]}, "0 to 1535"),
        ("next", {"ids": [1] * 513}, "at most 512"),
        ("next", {"ids": IDS, "rows": 0}, "rows is 0"),
        ("next", {"ids": IDS, "rows": 10**9}, "rows is"),
        ("next", {"ids": IDS, "temperature": -1}, "temperature is -1"),
        ("next", {"ids": IDS, "temperature": 0.001}, "below 0.01"),
        ("next", {"ids": IDS, "top_p": 2}, "top_p is 2"),
        ("next", {"ids": IDS, "min_p": "x"}, "min_p"),
        ("next", {"ids": IDS, "nothing": 1}, "unrecognized field 'nothing'"),
        ("next", {"ids": IDS, "edits": {}}, "edits is no array"),
        ("next", {"ids": IDS, "edits": [HEAD] * 65}, "at most 64"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "layer": 5}]}, "0 to 4"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "layer": True}]}, "0 to 4"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "head": None}]}, "0 to 5"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "what": "__class__"}]}, "expected head"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "do": "scale"}]}, "expected a number"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "do": "set", "value": 1}]}, "would set a head"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "do": "add"}]}, "would add a head"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "do": "scale", "factor": 1e300}]}, "at most 1,000,000"),
        ("next", {"ids": IDS, "edits": [{**HEAD, "code": "x"}]}, "has the field 'code'"),
        ("next", {"ids": IDS, "edits": [{"what": "key", "do": "off", "layer": 0, "head": 0}]}, "no position"),
        (
            "next",
            {"ids": IDS, "edits": [{"what": "direction", "do": "add", "layer": 0, "strength": 1}]},
            "one of token",
        ),
        (
            "next",
            {
                "ids": IDS,
                "edits": [{"what": "direction", "do": "add", "layer": 0, "strength": 1, "token": 5, "minus": 5}],
            },
            "the direction is 0",
        ),
        ("flow", {"ids": IDS, "begin": 3}, "begin is 3"),
        ("layer", {"ids": IDS, "layer": 5, "position": 0}, "layer is 5"),
        ("layer", {"ids": IDS, "layer": 0}, "position is missing"),
        ("product", {"ids": IDS, "position": 0}, "kind is missing"),
        ("product", {"ids": IDS, "position": 0, "kind": "q", "output": 32}, "0 to 31"),
        ("product", {"ids": IDS, "position": 0, "kind": "k", "head": 2}, "0 to 1"),
        ("product", {"ids": IDS, "position": 0, "kind": "score", "key": 2}, "does not look at"),
        ("attribution", {"ids": IDS, "position": 0, "token": 1536}, "1535"),
        ("token", {"text": "no such token"}, "not one token"),
        ("token", {"text": "#1536"}, "0 to 1535"),
        ("patch", {"clean": IDS, "corrupt": IDS}, "answer and wrong"),
    ],
    ids=lambda value: str(value)[:70],
)
def test_what_cannot_be_is_refused_by_name(page: Explored, view: str, body: dict[str, Any], said: str) -> None:
    assert said in page.ask(view, status=400, **body)["error"]["message"]
    assert page.ask("next", ids=IDS, rows=1)["rows"]  # it goes on


def test_prompts_of_other_lengths_are_refused_in_the_stream(page: Explored) -> None:
    (piece,) = page.ask("patch", clean=IDS, corrupt=IDS[:2], answer=5, wrong=6)
    assert "3 and 2 tokens" in piece["error"]["message"]


def test_bodies_that_are_no_json(page: Explored) -> None:
    for body, status in [(b"{", 400), (b"[]", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b" " * (5 << 20), 413)]:
        connection = http.client.HTTPConnection(page.origin.removeprefix("http://"), timeout=60)
        connection.request("POST", "/api/next", body, GOOD)
        assert connection.getresponse().status == status
        connection.close()


def test_what_is_out_of_date_is_not_begun() -> None:
    """The newest question of a view is answered; older ones that wait are not, and streams end."""
    worker, gate, done = Worker(), threading.Event(), []

    async def play() -> list[Any]:
        first = asyncio.create_task(worker.run("a:other", gate.wait))
        await asyncio.sleep(0)
        asked = [asyncio.create_task(worker.run("a:view", lambda i=i: done.append(i))) for i in range(4)]  # type: ignore[misc]
        other = asyncio.create_task(worker.run("b:view", lambda: done.append("other page")))
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(first, other)
        pieces: list[int] = []
        later: list[asyncio.Task[Any]] = []

        async def read() -> None:
            async for piece in worker.stream("a:stream", iter(range(10))):
                pieces.append(piece)
                if piece == 2:
                    gate.clear()
                    held = asyncio.create_task(worker.run("a:other", gate.wait))
                    await asyncio.sleep(0)
                    newer = asyncio.create_task(worker.run("a:stream", lambda: None))
                    await asyncio.sleep(0)
                    later.extend([held, newer])
                    asyncio.get_running_loop().call_later(0.01, gate.set)

        with pytest.raises(ApiError, match="newer"):
            await read()
        await asyncio.gather(*later)
        assert pieces == [0, 1, 2]
        return found

    found = asyncio.run(play())
    assert done == [3, "other page"]
    assert [isinstance(one, ApiError) and one.status == 409 for one in found] == [True, True, True, False]
    worker.close()


def test_static_files() -> None:
    """Small, complete, and with nothing from elsewhere; text is never markup."""
    files = sorted(STATIC.iterdir())
    assert {"index.html", "style.css", "app.js"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 300_000
    for file in files:
        text = file.read_text("utf-8")
        outside = text.replace("http://www.w3.org/", "")
        assert "http://" not in outside, file.name
        assert "https://" not in outside, file.name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("):
            assert word not in text, f"{file.name}: {word}"


def test_links_say_nothing_of_the_token(page: Explored) -> None:
    told = page.ask("about")
    assert TOKEN not in json.dumps(told)
