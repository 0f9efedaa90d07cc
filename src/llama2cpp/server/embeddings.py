"""``/v1/embeddings``."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ..serving.measures import embed
from .completions import prompts_of, to_ids_of
from .errors import ApiError, refusals
from .service import Service, unless_gone


async def embeddings(service: Service, http: HttpRequest) -> Response:
    """Turn texts into vectors of length 1."""
    fields = await service.fields(http)
    texts = prompts_of(fields, "input")
    as_base64 = fields.choice("encoding_format", ["float", "base64"]) == "base64"
    pooling = fields.choice("pooling", ["mean", "last"]) or "mean"
    dimensions = fields.integer("dimensions", 1, 2**31 - 1)
    if dimensions not in (None, service.model.config.dim):
        raise ApiError(
            400, f"dimensions is {dimensions}, and the model has {service.model.config.dim}", param="dimensions"
        )
    name, adapter = service.chosen(fields)
    fields.refuse_others()
    with refusals():
        ids = [to_ids_of(service, text) for text in texts]
    work = service.measure(len(ids), lambda: embed(service.engine, ids, pooling, True, False, adapter))
    vectors = await unless_gone(http.receive, work)

    def shown(vector: Any) -> Any:  # noqa: ANN401
        if as_base64:
            return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
        return [float(number) for number in vector]

    count = sum(map(len, ids))
    data = [{"object": "embedding", "index": i, "embedding": shown(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})
