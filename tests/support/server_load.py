"""Load on ``llama2cpp serve``: many clients for a while, some of which leave, read slowly or send what is no request.

    python tests/support/server_load.py [--clients 64] [--seconds 180]

Every answer that is read to its end is compared with the one that `generate` gives alone. At the end nothing runs or
waits, memory is where it was after the first tenth, and the server ends well when it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import llama2cpp

PROMPTS = ["The dog", "Once upon a time", "One day, ", "Lily and Tom went to the park. " * 5]
SEEDS = 6
TOKENS = 40
GROWTH = 64 << 20  # bytes that may be added after the first tenth: prefixes, and pieces of the allocator's
BAD = [b"{", b"[]", b'{"prompt": 5}', b"\xff", b'{"prompt": "a", "n": -1}', b"[" * 9000]


class Load:
    """Clients of one server, and what became of their requests."""

    def __init__(self, port: int, seconds: float, seed: int) -> None:
        self.port = port
        self.end = time.monotonic() + seconds
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        model = llama2cpp.load("storyteller")
        self.expected = {
            (prompt, seed): model.generate(prompt, seed=seed, max_tokens=TOKENS)
            for prompt in PROMPTS
            for seed in range(SEEDS)
        }

    async def client(self) -> None:
        while time.monotonic() < self.end:
            kind = self.random.choice(["whole", "stream", "stream", "slow", "leaves", "leaves at once", "bad"])
            try:
                await self.one(kind)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                raise AssertionError(f"{kind}: the connection was lost: {error!r}") from error
            self.counts[kind] += 1

    async def one(self, kind: str) -> None:
        prompt, seed = self.random.choice(PROMPTS), self.random.randrange(SEEDS)
        body = json.dumps(
            {"prompt": prompt, "seed": seed, "max_tokens": TOKENS, "stream": kind not in ("whole", "bad")}
        ).encode()
        if kind == "bad":
            body = self.random.choice(BAD)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
            if kind == "leaves at once":
                return
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            if kind == "bad":
                assert status == 400, (status, body)
                return
            assert status == 200, (status, await reader.read())
            if kind == "leaves":
                await reader.read(self.random.randrange(1, 400))
                return
            text = await self.slowly(reader) if kind == "slow" else await reader.read()
            assert answer_in(text, kind == "whole") == self.expected[prompt, seed], (prompt, seed)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def slowly(self, reader: asyncio.StreamReader) -> bytes:
        text = b""
        while part := await reader.read(300):
            text += part
            await asyncio.sleep(0.02)
        return text


def answer_in(body: bytes, whole: bool) -> str:
    body = unchunked(body)
    if whole:
        return str(json.loads(body)["choices"][0]["text"])
    events = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    assert events[-1] == b"[DONE]", events[-1]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def unchunked(body: bytes) -> bytes:
    if not re.match(rb"[0-9a-f]+\r\n", body):
        return body
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        whole, body = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return whole


def resident(process: int) -> int:
    """Bytes of memory that it has; Linux alone tells."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def measure(clients: int, seconds: float) -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llama2cpp", "serve", "--port", "0", "--prefix-bytes", str(16 << 20), "--rows", "16"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        url = (await server.stdout.readline()).decode()
        load = Load(int(url.rpartition(":")[2]), seconds, seed=1)
        tasks = [asyncio.create_task(load.client()) for _ in range(clients)]
        await asyncio.sleep(seconds / 10)
        early = resident(server.pid)
        await asyncio.gather(*tasks)
        while True:  # those that were left may still be there for a pass
            reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            health = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
            writer.close()
            if health["running"] == health["waiting"] == 0:
                break
            await asyncio.sleep(0.05)
        late = resident(server.pid)
        server.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(server.wait(), 60)
    finally:
        if server.returncode is None:
            server.kill()
    print(f"{clients} clients, {seconds:g} s: {dict(load.counts)}")
    print(f"memory {early / 1e6:.0f} MB after a tenth, {late / 1e6:.0f} MB at the end; exit code {code}")
    assert code == 0
    assert late - early < GROWTH, "memory grows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    given = parser.parse_args()
    asyncio.run(measure(given.clients, given.seconds))


if __name__ == "__main__":
    main()
