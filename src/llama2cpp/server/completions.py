"""``/v1/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ..common.piece import TopLogprobs
from ..common.probabilities import log_softmax
from .errors import ApiError
from .fields import MOST_LOGPROBS, MOST_TOKENS, Fields, count_of, sampling_of, with_seed_of
from .interventions_json import interventions_of
from .service import EventStream, Service, completions_of, new_id, pieces_of, reason_of, usage_of

if TYPE_CHECKING:
    from .._core import Tokenizer
    from ..serving.requests import Request

DEFAULT_TOKENS = 16  # OpenAI's
MOST_PROMPTS = 256


async def completions(service: Service, http: HttpRequest) -> Response:
    """Continue texts."""
    fields = await service.fields(http)
    prompts = prompts_of(fields, "prompt")
    arguments = sampling_of(fields)
    length = fields.integer("max_tokens", 0, MOST_TOKENS)
    arguments["max_tokens"] = DEFAULT_TOKENS if length is None else length
    logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    echo, n = fields.flag("echo"), count_of(fields)
    best_of = fields.integer("best_of", 1, MOST_TOKENS)
    if best_of not in (None, n):
        raise ApiError(400, f"best_of is {best_of}, and only n ({n}) is supported", param="best_of")
    stream, options = fields.flag("stream"), fields.mapping("stream_options")
    hooks = interventions_of(fields)
    name, adapter = service.chosen(fields)
    fields.refuse_others()

    def maker(prompt: Any, i: int) -> Callable[[], Request]:  # noqa: ANN401
        own = with_seed_of(arguments, i)
        return lambda: service.engine.submit(
            prompt,
            special=False,
            logprobs=logprobs,
            logits="all" if echo and logprobs is not None else "none",
            hooks=hooks or None,
            speculate=service.speculate,
            adapter=adapter,
            **own,
        )

    requests = await service.ask([maker(prompt, i) for prompt in prompts for i in range(n)])
    tokenizer = service.model.tokenizer
    echoes = [_echo(prompt, tokenizer) if echo else "" for prompt in prompts for _ in range(n)]
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
    }
    if stream:
        if echo and logprobs is not None:
            for request in requests:
                request.cancel()
            raise ApiError(400, "echo with logprobs is not streamed", param="echo")
        usage = bool((options or {}).get("include_usage"))
        events = _chunks(head, requests, echoes, n, tokenizer, logprobs is not None, usage)
        return EventStream(events, requests)
    ended = await completions_of(http, requests)
    choices = []
    for i, (request, completion, echoed) in enumerate(zip(requests, ended, echoes, strict=True)):
        told = None
        if logprobs is not None:
            told = _Logprobs(tokenizer)
            if echo:
                told.add_prompt(service, prompts[i // n], request, logprobs)
            told.add(completion.tokens, completion.logprobs, completion.top_logprobs)
        choices.append(
            {
                "index": i,
                "text": echoed + completion.text,
                "logprobs": None if told is None else told.json(),
                "finish_reason": reason_of(completion),
            }
        )
    return JSONResponse({**head, "choices": choices, "usage": usage_of(requests, n)})


async def _chunks(
    head: dict[str, Any],
    requests: Sequence[Request],
    echoes: Sequence[str],
    n: int,
    tokenizer: Tokenizer,
    logprobs: bool,
    usage: bool,
) -> AsyncIterator[dict[str, Any]]:
    if usage:
        head = {**head, "usage": None}

    def chunk(index: int, text: str, reason: str | None = None, told: Any = None) -> dict[str, Any]:  # noqa: ANN401
        return {**head, "choices": [{"index": index, "text": text, "logprobs": told, "finish_reason": reason}]}

    for i, echoed in enumerate(echoes):
        if echoed:
            yield chunk(i, echoed)
    tellers = [_Logprobs(tokenizer) for _ in requests]
    async for i, piece in pieces_of(requests):
        if piece is None:
            yield chunk(i, "", reason_of(requests[i]))
            continue
        told = None
        if logprobs:
            tellers[i].add(list(piece.tokens), list(piece.logprobs), list(piece.top_logprobs))
            told = tellers[i].json()
            tellers[i].clear()
        yield chunk(i, str(piece), told=told)
    if usage:
        yield {**head, "choices": [], "usage": usage_of(requests, n)}


@dataclass
class _Logprobs:
    """What the older shape of OpenAI's tells of tokens: parallel arrays."""

    tokenizer: Tokenizer
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    at: int = 0

    def add(self, tokens: list[int], logprobs: Sequence[float | None], top: Sequence[TopLogprobs | None]) -> None:
        """Take more tokens."""
        for token, logprob, best in zip(tokens, logprobs, top, strict=True):
            text = self._text(token)
            self.tokens.append(text)
            self.logprobs.append(logprob)
            self.top.append(None if best is None else {self._text(one): number for one, number in best})
            self.offsets.append(self.at)
            self.at += len(text)

    def add_prompt(self, service: Service, prompt: Any, request: Request, n_top: int) -> None:  # noqa: ANN401
        """Take the prompt's tokens: nothing is known of the first."""
        ids = to_ids_of(service, prompt)
        assert request.logits is not None
        logprobs = log_softmax(request.logits[:-1])  # [T - 1, vocab_size]
        numbers = [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=True)]
        best = [np.argsort(-row, kind="stable")[:n_top] for row in logprobs]
        top = [[(int(one), float(row[one])) for one in found] for row, found in zip(logprobs, best, strict=True)]
        self.add(ids, [None, *numbers], [None, *top])

    def clear(self) -> None:
        """Forget what has been told."""
        self.tokens, self.logprobs, self.top, self.offsets = [], [], [], []

    def json(self) -> dict[str, Any]:
        """Give the object of an answer."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        }

    def _text(self, token: int) -> str:
        return self.tokenizer.piece(token).decode(errors="replace")


def prompts_of(fields: Fields, name: str) -> list[Any]:
    """Read a field that is a text, ids, or an array of those."""
    given = fields.raw(name)
    if given is None:
        raise ApiError(400, f"{name} is missing", param=name)
    many = isinstance(given, list) and not all(_is_id(one) for one in given)
    prompts = given if many else [given]
    if len(prompts) > MOST_PROMPTS:
        raise ApiError(400, f"{name} has {len(prompts)} texts, expected at most {MOST_PROMPTS}", param=name)
    for prompt in prompts:
        ids = isinstance(prompt, list) and prompt and all(_is_id(one) for one in prompt)
        if not ids and not isinstance(prompt, str):
            raise ApiError(400, f"{name} is neither a string, token ids, nor an array of those", param=name)
    return prompts


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def to_ids_of(service: Service, prompt: Any) -> list[int]:  # noqa: ANN401
    """Give the ids of a prompt as the engine makes them."""
    from ..common.token_ids import to_ids

    return to_ids(service.model, prompt, special=False)


def _echo(prompt: Any, tokenizer: Tokenizer) -> str:  # noqa: ANN401
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
