"""A server in a thread of this process, for clients that are tested."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import uvicorn

import llama2cpp
from llama2cpp.server.app import make_app
from llama2cpp.server.running import listen, url_of
from llama2cpp.server.service import Settings


def _adapter(model: llama2cpp.Model, seed: int) -> llama2cpp.Adapter:
    rng = np.random.default_rng(seed)
    factors = {
        f"model.layers.{i}.mlp.down_proj": (rng.normal(size=(4, 512)) / 22, rng.normal(size=(192, 4)) / 2)
        for i in range(5)
    }
    return llama2cpp.Adapter.from_arrays(model, factors)


class Served:
    """A server in a thread of this process, and clients for it."""

    def __init__(self, adapters: int = 0, **settings: Any) -> None:
        options = {"name": "tales", "rows": 4, "queue": 64, "max_body": 1 << 16, "template": "llama2", **settings}
        self.model = llama2cpp.load("storyteller", threads=1, context=400)
        self.engine = llama2cpp.Engine(self.model, rows=options["rows"])
        self._socket = listen("127.0.0.1", 0)
        self.url = url_of(self._socket)
        self.adapters = {f"style-{i}": _adapter(self.model, i) for i in range(adapters)}
        app = make_app(self.engine, self.model, Settings(**options), None, self.adapters)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(60)
        self.engine.close()
        self._socket.close()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Any request; a body that is no bytes is JSON."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        told = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return told

    def wait_until_idle(self) -> None:
        until = time.monotonic() + 60
        while self.engine.stats.running or self.engine.stats.waiting:
            assert time.monotonic() < until
            time.sleep(0.01)


@contextmanager
def serving(**settings: Any) -> Iterator[Served]:
    served = Served(**settings)
    try:
        yield served
    finally:
        served.close()
