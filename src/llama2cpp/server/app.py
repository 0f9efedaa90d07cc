"""The endpoints, and what stands before all of them: keys, hosts, errors."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from .activations import activations
from .chat_completions import chat_completions
from .completions import completions
from .embeddings import embeddings
from .errors import ApiError
from .metrics import registry_of
from .service import Service, Settings, not_served

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..common.sampling import DraftModel
    from ..model import Model
    from ..serving.engine import Engine

Endpoint = Callable[[Service, HttpRequest], Awaitable[Response]]

UNEQUAL_BITS = (
    "on Metal the last bits of results depend on the shape of a pass, and so on what else is asked at the time; "
    "on the CPU they do not (--backend cpu)"
)
_CLIENT_HAS_LEFT = 499  # nobody reads it


def make_app(
    engine: Engine,
    model: Model,
    settings: Settings,
    speculate: str | DraftModel | None = None,
    adapters: Mapping[str, Adapter] | None = None,
) -> Starlette:
    """Make the ASGI application of a model.

    Parameters
    ----------
    engine : Engine
        What runs requests.
    model : Model
        Its model.
    settings : Settings
        What is allowed.
    speculate : "prompt" or Model, optional
        What proposes tokens for all requests.
    adapters : mapping of str to Adapter, optional
        LoRA adapters by the names that requests call them.

    Returns
    -------
    Starlette
    """
    service = Service(engine, model, settings, speculate, adapters)
    registry = registry_of(engine)

    async def models(service: Service, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.names]})

    async def one_model(service: Service, request: HttpRequest) -> Response:
        name = request.path_params["name"]
        if name not in service.names:
            raise not_served(name, service.names)
        return JSONResponse(_model(service, name))

    async def health(service: Service, request: HttpRequest) -> Response:
        stats = service.engine.stats
        return JSONResponse({"status": "ok", "running": stats.running, "waiting": stats.waiting})

    async def metrics(service: Service, request: HttpRequest) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def route(path: str, endpoint: Endpoint, method: str, open_to_all: bool = False) -> Route:
        async def run(request: HttpRequest) -> Response:
            try:
                _check_caller(request, settings, open_to_all)
                return await endpoint(service, request)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_HAS_LEFT)

        return Route(path, run, methods=[method])

    return Starlette(
        routes=[
            route("/v1/chat/completions", chat_completions, "POST"),
            route("/v1/completions", completions, "POST"),
            route("/v1/embeddings", embeddings, "POST"),
            route("/v1/activations", activations, "POST"),
            route("/v1/models", models, "GET"),
            route("/v1/models/{name:path}", one_model, "GET"),
            route("/health", health, "GET", open_to_all=True),
            route("/metrics", metrics, "GET"),
        ],
        exception_handlers={ApiError: _told, HTTPException: _http_error, Exception: _failed},
    )


def _model(service: Service, name: str) -> dict[str, Any]:
    model = service.model
    equal = model.backend == "cpu"
    told: dict[str, Any] = {
        "version": __version__,
        "backend": model.backend,
        "context": model.context,
        "batch_invariant": equal,
    }
    if not equal:
        told["note"] = UNEQUAL_BITS
    found = {
        "id": name,
        "object": "model",
        "created": service.began,
        "owned_by": "llama2cpp",
        "llama2cpp": told,
    }
    if name != service.settings.name:
        found["parent"] = service.settings.name
        told["adapter"] = {"rank": service.adapters[name].rank, "fingerprint": service.adapters[name].fingerprint}
    return found


def _check_caller(request: HttpRequest, settings: Settings, open_to_all: bool) -> None:
    """Refuse those without the key, and web pages of other sites, which a browser sends with their origin."""
    host = urlsplit(f"//{request.headers.get('host', '')}")
    if settings.hosts is not None and (host.hostname or "") not in settings.hosts:
        raise ApiError(
            403, f"the host is {host.hostname!r:.80}, and this server is at {', '.join(sorted(settings.hosts))}"
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host.netloc:
        raise ApiError(403, f"pages of {origin!r:.80} may not use this server")
    if open_to_all or settings.api_key is None:
        return
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), settings.api_key.encode()):
        raise ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key")


async def _told(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    """Say in the same shape what the router has found."""
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is no {request.url.path!r:.200}",
        405: f"{request.method} is not for {request.url.path!r:.200}",
    }
    response = ApiError(error.status_code, words.get(error.status_code, error.detail)).response
    response.headers.update(error.headers or {})
    return response


async def _failed(request: HttpRequest, error: Exception) -> Response:
    return ApiError(500, f"the server failed: {type(error).__name__}: {error}").response
