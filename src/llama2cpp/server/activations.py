"""``/v1/activations``: named activations of a prompt or an answer, as safetensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .. import _core
from ..inside.places import find_places, is_pattern, name_of
from .chat_completions import messages_of
from .completions import prompts_of
from .errors import ApiError, refusals
from .fields import MOST_TOKENS, Fields, sampling_of
from .interventions_json import interventions_of
from .service import Service, completions_of, reason_of

if TYPE_CHECKING:
    from ..serving.requests import Request

MOST_BYTES = 1 << 30  # of an answer


async def activations(service: Service, http: HttpRequest) -> Response:
    """Run a prompt, or continue it, and give what was seen."""
    fields = await service.fields(http)
    names = _names(fields, service)
    positions = fields.array("positions")
    if positions is not None and not (positions and all(type(one) is int for one in positions)):
        raise ApiError(400, "positions is no array of integers", param="positions")
    hooks = interventions_of(fields)
    arguments = sampling_of(fields)
    arguments["max_tokens"] = fields.integer("max_tokens", 0, MOST_TOKENS) or 0
    chat = fields.raw("messages") is not None
    if chat and fields.raw("prompt") is not None:
        raise ApiError(400, "prompt and messages exclude each other", param="prompt")
    what: Any = messages_of(fields) if chat else prompts_of(fields, "prompt")
    if not chat and len(what) != 1:
        raise ApiError(400, f"prompt has {len(what)} texts, expected one", param="prompt")
    name, adapter = service.chosen(fields)
    fields.refuse_others()

    def make() -> Request:
        asked: dict[str, Any] = {"hooks": hooks or None, "record": names, "adapter": adapter, **arguments}
        if chat:
            return service.engine.submit_chat(what, template=service.settings.template, **asked)
        return service.engine.submit(what[0], special=False, **asked)

    _check_size(service, names, make_length(service, what, chat) + arguments["max_tokens"])
    (request,) = await service.ask([make])
    (completion,) = await completions_of(http, [request])
    cache = request.cache()
    tokens = list(cache.tokens[0]) if cache.tokens is not None else []
    kept = _kept(positions, len(tokens))
    arrays = {name: _rows(name, np.asarray(cache[name]), kept) for name in names}
    metadata = {
        "model": name,
        "tokens": json.dumps([int(token) for token in tokens]),
        "positions": json.dumps(kept),
        "prompt_tokens": str(request.usage.prompt_tokens),
        "text": completion.text,
        "finish_reason": reason_of(completion),
    }
    header = _core.safetensors_header(metadata, [(name, array.shape) for name, array in arrays.items()])
    body = header + b"".join(np.ascontiguousarray(array, dtype="<f4").tobytes() for array in arrays.values())
    return Response(body, media_type="application/octet-stream")


def _names(fields: Fields, service: Service) -> list[str]:
    """Give the full names of the points, in the layers that are wanted."""
    given, layers = fields.raw("names"), fields.array("layers")
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise ApiError(400, "names is missing or no array of strings, such as ['resid_post']", param="names")
    config = service.model.config
    with refusals():
        places = find_places(given, config)
    if layers is not None:
        for layer in layers:
            if type(layer) is not int or not -config.n_layers <= layer < config.n_layers:
                n = config.n_layers
                raise ApiError(400, f"a layer is {layer!r:.40}, expected {-n} to {n - 1}", param="layers")
        wanted = {layer % config.n_layers for layer in layers}
        places = [place for place in places if place[1] in wanted]
        if not places:
            raise ApiError(400, "no name has one of the layers", param="layers")
    return [name_of(place, config) for place in places]


def make_length(service: Service, what: Any, chat: bool) -> int:  # noqa: ANN401
    """Count the prompt's tokens, at least about: a byte is hardly ever more than one token."""
    if chat:
        return min(len(json.dumps(what)), service.model.context)
    prompt = what[0]
    return min(len(prompt.encode()) + 1 if isinstance(prompt, str) else len(prompt), service.model.context)


def _check_size(service: Service, names: list[str], tokens: int) -> None:
    core = service.model._core
    count = min(tokens, service.model.context)
    size = _core.Recorder(core, find_places(names, core.config)).bytes(0, count)
    if size > MOST_BYTES:
        raise ApiError(
            413,
            f"activations of up to {count} tokens would be {size / 1e6:,.0f} MB, and {MOST_BYTES / 1e6:,.0f} are the "
            "most: ask for fewer names or layers, or a shorter text",
            code="too_large",
        )


def _kept(positions: list[int] | None, count: int) -> list[int]:
    if positions is None:
        return list(range(count))
    for position in positions:
        if not -count <= position < count:
            raise ApiError(400, f"a position is {position}, and there are {count} tokens", param="positions")
    return [position % count for position in positions]


def _rows(name: str, array: NDArray[np.float32], kept: list[int]) -> NDArray[np.float32]:
    """[1, T, ...] -> [positions, ...]; of patterns [1, n_heads, T, S] -> [n_heads, positions, S]."""
    return np.asarray(array[0][:, kept] if is_pattern(name) else array[0][kept])
