"""``llama2cpp explore`` in a thread of the tests, and questions to it; a GGUF that nobody has seen."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import tiny
import uvicorn
from gguf import GGMLQuantizationType as Type

import llama2cpp
from llama2cpp.explorer.app import Page, make_app
from llama2cpp.server.running import listen, url_of

TOKEN = "the-token-of-these-tests"
# Texts of tokens that a page could take for something else: markup, control characters, marks of direction.
ODD_TEXTS = [
    "<img src=x>",
    "<b>bold</b>",
    "&amp;",
    "\x07",
    "\u202eback",
    "\u200b",
    "a\nb",
    "'\"`",
    "${1}",
    "\u4e2d\u6587",
]
PIECES = ["<unk>", "<s>", "</s>", *ODD_TEXTS, *"abcdefghijklmnopqrstuvwxyz", "\u2581", *"ABC.,"]


class Explored:
    """A page that is served."""

    def __init__(
        self, model: llama2cpp.Model, opened: str = "llama2cpp.load('storyteller')", name: str = "tales"
    ) -> None:
        self.model = model
        self._socket = listen("127.0.0.1", 0)
        self.origin = url_of(self._socket)
        self.url = f"{self.origin}/?token={TOKEN}"
        app, self._worker = make_app(model, Page(name, opened, TOKEN))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        self._worker.close()
        self._socket.close()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.origin.removeprefix("http://"), timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else json.dumps(body).encode(), named)
        answer = connection.getresponse()
        told = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return told

    def ask(self, view: str, status: int = 200, **body: Any) -> Any:
        """A view's numbers; of a stream its pieces."""
        found, headers, data = self.send("POST", f"/api/{view}", body, Authorization=f"Bearer {TOKEN}")
        assert found == status, data
        if headers["content-type"] == "application/x-ndjson":
            return [json.loads(line) for line in data.splitlines()]
        return json.loads(data)


@contextmanager
def explored(model: llama2cpp.Model, **options: Any) -> Iterator[Explored]:
    page = Explored(model, **options)
    try:
        yield page
    finally:
        page.close()


def odd_gguf(path: Path) -> Path:
    """Three layers of random weights, grouped heads, and a vocabulary of an odd size with odd texts."""
    config = tiny.config(n_layers=3, vocab_size=len(PIECES), seq_len=128)
    tensors: dict[str, tuple[Any, Type]] = {
        gguf_files.gguf_name(name): (array, Type.F32)
        for name, array in tiny.hugging_face_names(tiny.arrays(config, seed=24)).items()
    }
    kinds = [2, 3, 3, *[1] * (len(PIECES) - 3)]
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": config.seq_len,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [float(-i) for i in range(len(PIECES))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    del metadata["general.architecture"]  # gguf's writer says it
    return gguf_files.write(path, metadata, tensors)


def probabilities(logits: Any) -> Any:
    """Softmax in double precision, as anybody would write it."""
    e = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits))
    return e / e.sum()
