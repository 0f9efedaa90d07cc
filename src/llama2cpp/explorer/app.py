"""The page's addresses: its files, and the JSON that all of its numbers come from."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..server.errors import ApiError, failure_of, refusals
from ..server.fields import Fields
from .access import HEADERS, check_host, check_token
from .edits import Edit, edits_of, python_of
from .products import KINDS, Products
from .runs import Runs
from .views import MOST_ROWS, WINDOW, Views
from .worker import Worker

if TYPE_CHECKING:
    from ..model import Model

_STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_MOST_BODY = 4 << 20
_MOST_NEW = 256  # tokens that one request may draw
_LEFT = 499  # nobody reads it
_PATCHED = ("resid_pre", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class Page:
    """What a page is about.

    Attributes
    ----------
    name : str
        What the model is called.
    opened : str
        The Python expression that opens it.
    token : str
        What every request for a number has to show.
    """

    name: str
    opened: str
    token: str


class _Asked:
    """A request's fields, as the views take them."""

    def __init__(self, fields: Fields, views: Views) -> None:
        self.fields, self.views, self.config = fields, views, views.config
        self.view = None
        page, view = fields.text("page"), fields.text("view")
        if page is not None and view is not None:
            self.view = f"{page[:64]}:{view[:64]}"

    def ids(self, name: str = "ids", text: str = "text") -> list[int]:
        """Read a prompt: ids, or a text."""
        given, said = self.fields.array(name), self.fields.text(text)
        special = self.fields.flag("special")
        if (given is None) == (said is None):
            raise ApiError(400, f"pass one of {name} and {text}", param=name)
        ids = self.views.ids_of(said or "", special) if given is None else given
        n, most = self.config.vocab_size, self.views.model.context
        if not all(type(id) is int and 0 <= id < n for id in ids):
            raise ApiError(400, f"{name} is no array of ids from 0 to {n - 1}", param=name)
        if not ids:
            raise ApiError(400, f"{name} has no token: write something", param=name, code="empty")
        if len(ids) > most:
            raise ApiError(400, f"{name} has {len(ids)} tokens, and the model takes at most {most}", param=name)
        return ids

    def edits(self) -> tuple[Edit, ...]:
        """Read the changes."""
        return edits_of(self.fields.raw("edits"), self.config, self.config.n_experts is not None)

    def index(self, name: str, count: int, default: int | None = None) -> int:
        """Read a number from 0 to before a count."""
        found = self.fields.integer(name, 0, count - 1)
        if found is None and default is None:
            raise ApiError(400, f"{name} is missing, expected 0 to {count - 1}", param=name)
        return found if found is not None else default if default is not None else 0

    def token(self, name: str) -> int | None:
        """Read an id that need not be there."""
        return self.fields.integer(name, 0, self.config.vocab_size - 1)

    def window(self, ids: Sequence[int]) -> tuple[int, int]:
        """Read which positions are shown: at most `WINDOW` of them, the last ones if nothing is said."""
        begin = self.index("begin", len(ids), max(0, len(ids) - WINDOW))
        return begin, min(len(ids), begin + WINDOW)

    def sampling(self) -> dict[str, Any]:
        """Read temperature, top-k, top-p and min-p; what is not there cuts nothing."""
        number, fields = self.fields.number, self.fields
        temperature, top_p, min_p = number("temperature"), number("top_p"), number("min_p")
        told = {
            "temperature": 1.0 if temperature is None else float(temperature),
            "top_k": fields.integer("top_k", 0, 2**31 - 1) or 0,
            "top_p": 1.0 if top_p is None else float(top_p),
            "min_p": 0.0 if min_p is None else float(min_p),
        }
        for name, least, most in [("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1)]:
            if not least <= told[name] <= most:
                raise ApiError(400, f"{name} is {told[name]}, expected {least} to {most}", param=name)
        if 0 < told["temperature"] < 0.01:
            raise ApiError(400, "temperature is below 0.01: 0 takes the likeliest token", param="temperature")
        return told


def make_app(model: Model, page: Page) -> tuple[Starlette, Worker]:
    """Make the ASGI application of a page, and the thread that its model runs in.

    Parameters
    ----------
    model : Model
        What is looked at.
    page : Page
        What it is called, and who may look.
    """
    runs = Runs(model)
    views, products, worker = Views(runs, page.name), Products(runs), Worker()
    files = {file.name: file for file in _STATIC.iterdir() if file.suffix in _TYPES}

    def static(name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"there is no {name!r:.80}")
        file = files[name]
        return Response(file.read_bytes(), media_type=_TYPES[file.suffix])

    async def index(request: Request) -> Response:
        return static("index.html")

    async def asset(request: Request) -> Response:
        return static(request.path_params["name"])

    async def answer(request: Request) -> Response:
        asked = _Asked(Fields(await _body(request)), views)
        name = request.path_params["name"]
        if name in _STREAMS:
            pieces = _STREAMS[name]
            with refusals():
                made = await worker.run(None, lambda: pieces(asked))
            asked.fields.refuse_others()
            return StreamingResponse(_lines(worker.stream(asked.view, made)), media_type="application/x-ndjson")
        if name not in _VIEWS:
            raise ApiError(404, f"there is no view {name!r:.80}")
        view = _VIEWS[name]

        def compute() -> bytes:
            told = view(asked)
            asked.fields.refuse_others()
            return json.dumps(told, ensure_ascii=False, allow_nan=False).encode()

        with refusals():
            body = await worker.run(asked.view, compute)
        return Response(body, media_type="application/json")

    def about(asked: _Asked) -> Any:  # noqa: ANN401
        return {**views.about(), "opened": page.opened}

    def tokens(asked: _Asked) -> Any:  # noqa: ANN401
        return {"tokens": views.tokens(asked.ids())}

    def single(asked: _Asked) -> Any:  # noqa: ANN401
        return views.single_token(asked.fields.text("text") or "")

    def next_tokens(asked: _Asked) -> Any:  # noqa: ANN401
        rows, begin = asked.fields.integer("rows", 1, MOST_ROWS) or 20, asked.index("begin", 1 << 31, 0)
        return views.next(asked.ids(), asked.edits(), asked.sampling(), rows, begin)

    def compare(asked: _Asked) -> Any:  # noqa: ANN401
        return views.compare(asked.ids(), asked.edits(), asked.fields.integer("rows", 1, MOST_ROWS) or 10)

    def flow(asked: _Asked) -> Any:  # noqa: ANN401
        ids = asked.ids()
        return views.flow(ids, asked.edits(), *asked.window(ids))

    def one_layer(asked: _Asked) -> Any:  # noqa: ANN401
        ids, config = asked.ids(), asked.config
        return views.layer(ids, asked.edits(), asked.index("layer", config.n_layers), asked.index("position", len(ids)))

    def one_head(asked: _Asked) -> Any:  # noqa: ANN401
        ids, config = asked.ids(), asked.config
        layer, head = asked.index("layer", config.n_layers), asked.index("head", config.n_heads)
        return views.head(ids, asked.edits(), layer, head, asked.index("position", len(ids)), *asked.window(ids))

    def product(asked: _Asked) -> Any:  # noqa: ANN401
        ids, config = asked.ids(), asked.config
        kind = asked.fields.choice("kind", KINDS)
        if kind is None:
            raise ApiError(400, f"kind is missing, expected one of {', '.join(KINDS)}", param="kind")
        return products.product(
            ids,
            asked.edits(),
            kind,
            asked.index("position", len(ids)),
            layer=asked.index("layer", config.n_layers, 0),
            head=asked.index("head", config.n_heads, 0),
            key=asked.index("key", len(ids), 0),
            output=asked.index("output", 1 << 31, 0),
            begin=asked.index("begin", 1 << 31, 0),
            rows=asked.fields.integer("rows", 1, MOST_ROWS) or 12,
        )

    def attention_grid(asked: _Asked) -> Any:  # noqa: ANN401
        ids = asked.ids()
        layer = asked.index("layer", asked.config.n_layers, 0)
        return views.attention_grid(ids, asked.edits(), *asked.window(ids), layer)

    def attention_head(asked: _Asked) -> Any:  # noqa: ANN401
        ids, config = asked.ids(), asked.config
        where = [asked.index("layer", config.n_layers), asked.index("head", config.n_heads)]
        return views.attention_head(ids, asked.edits(), *asked.window(ids), *where)

    def lens(asked: _Asked) -> Any:  # noqa: ANN401
        ids = asked.ids()
        return views.lens(ids, asked.edits(), *asked.window(ids), asked.token("target"))

    def attribution(asked: _Asked) -> Any:  # noqa: ANN401
        ids, edits = asked.ids(), asked.edits()
        position = asked.index("position", len(ids))
        return views.attribution(
            ids, edits, position, asked.index("token", asked.config.vocab_size), asked.token("versus")
        )

    def neurons(asked: _Asked) -> Any:  # noqa: ANN401
        ids, edits = asked.ids(), asked.edits()
        position, most = asked.index("position", len(ids)), asked.fields.integer("rows", 1, MOST_ROWS) or 20
        return views.neurons(
            ids, edits, position, asked.index("token", asked.config.vocab_size), asked.token("versus"), most
        )

    def python(asked: _Asked) -> Any:  # noqa: ANN401
        return {"python": python_of(page.opened, asked.ids(), asked.edits())}

    def generate(asked: _Asked) -> Iterator[dict[str, Any]]:
        most = asked.fields.integer("max_tokens", 1, _MOST_NEW) or 1
        seed = asked.fields.integer("seed", 0, 2**64 - 1)
        return views.generate(asked.ids(), asked.edits(), asked.sampling(), seed, most)

    def patch(asked: _Asked) -> Iterator[dict[str, Any]]:
        name = asked.fields.choice("name", _PATCHED) or _PATCHED[0]
        answer, wrong = asked.token("answer"), asked.token("wrong")
        if answer is None or wrong is None:
            raise ApiError(400, "answer and wrong are missing: the ids whose logits are compared", param="answer")
        return views.patch(asked.ids("clean", "clean_text"), asked.ids("corrupt", "corrupt_text"), name, answer, wrong)

    _VIEWS: dict[str, Callable[[_Asked], Any]] = {  # noqa: N806
        "about": about,
        "tokens": tokens,
        "token": single,
        "next": next_tokens,
        "compare": compare,
        "flow": flow,
        "layer": one_layer,
        "head": one_head,
        "product": product,
        "attention_grid": attention_grid,
        "attention_head": attention_head,
        "lens": lens,
        "attribution": attribution,
        "neurons": neurons,
        "python": python,
    }
    _STREAMS: dict[str, Callable[[_Asked], Iterator[dict[str, Any]]]] = {"generate": generate, "patch": patch}  # noqa: N806

    def guarded(endpoint: Callable[[Request], Awaitable[Response]], *, secret: bool) -> Any:  # noqa: ANN401
        async def run(request: Request) -> Response:
            try:
                check_host(request)
                if secret:
                    check_token(request, page.token)
                response = await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=_LEFT)
            except ApiError as error:
                # What nobody waits for is no error: a browser would write one of 409 to its console.
                response = Response(status_code=204) if error.code == "out_of_date" else error.response
            response.headers.update(HEADERS)
            return response

        return run

    app = Starlette(
        routes=[
            Route("/", guarded(index, secret=False), methods=["GET"]),
            Route("/static/{name}", guarded(asset, secret=False), methods=["GET"]),
            Route("/api/{name}", guarded(answer, secret=True), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _failed},
    )
    return app, worker


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY:
            raise ApiError(413, f"the body has more than {_MOST_BODY} bytes, which is the most", code="too_large")
    return bytes(body) or b"{}"


async def _lines(pieces: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Write pieces as JSON, one a line; the last line is an error if there was one."""
    try:
        async for piece in pieces:
            yield json.dumps(piece, ensure_ascii=False).encode() + b"\n"
    except Exception as error:
        yield json.dumps(failure_of(error).body, ensure_ascii=False).encode() + b"\n"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = ApiError(error.status_code, error.detail).response
    response.headers.update(HEADERS)
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return ApiError(500, f"the page failed: {type(error).__name__}: {error}").response
