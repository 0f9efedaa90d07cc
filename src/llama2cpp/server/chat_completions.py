"""``/v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ..common.grammar import closed_schema, moved_schema
from ..common.piece import Piece, TopLogprobs
from .errors import ApiError
from .fields import MOST_LOGPROBS, MOST_TOKENS, Fields, count_of, sampling_of, with_seed_of
from .interventions_json import interventions_of
from .service import EventStream, Service, completions_of, new_id, pieces_of, reason_of, usage_of
from .tool_calls import CallFilter, find_calls

if TYPE_CHECKING:
    from .._core import Tokenizer
    from ..decoding import Completion
    from ..serving.requests import Request


@dataclass(frozen=True)
class _Asked:
    """What a request wants to have told."""

    id: str
    created: int
    model: str
    logprobs: bool
    names: frozenset[str]  # of tools that may be called
    usage_at_the_end: bool


async def chat_completions(service: Service, http: HttpRequest) -> Response:
    """Answer messages."""
    fields = await service.fields(http)
    messages = messages_of(fields)
    tools, names, must_call = _tools(fields)
    arguments = sampling_of(fields)
    length = fields.integer("max_completion_tokens", 0, MOST_TOKENS)
    older = fields.integer("max_tokens", 0, MOST_TOKENS)
    if length is not None or older is not None:
        arguments["max_tokens"] = length if length is not None else older
    logprobs, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    if top is not None and not logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    arguments |= _format(fields, must_call)
    n = count_of(fields)
    stream, options = fields.flag("stream"), fields.mapping("stream_options")
    template_args = fields.mapping("chat_template_kwargs")
    hooks = interventions_of(fields)
    name, adapter = service.chosen(fields)
    fields.refuse_others()

    def maker(i: int) -> Callable[[], Request]:
        own = with_seed_of(arguments, i)
        return lambda: service.engine.submit_chat(
            messages,
            template=service.settings.template,
            tools=tools,
            template_args=template_args,
            logprobs=(top or 0) if logprobs else None,
            hooks=hooks or None,
            speculate=service.speculate,
            adapter=adapter,
            **own,
        )

    asked = _Asked(
        new_id("chatcmpl"),
        int(time.time()),
        name,
        logprobs,
        names,
        bool((options or {}).get("include_usage")),
    )
    requests = await service.ask([maker(i) for i in range(n)])
    tokenizer = service.model.tokenizer
    if stream:
        return EventStream(_chunks(asked, requests, tokenizer), requests)
    completions = await completions_of(http, requests)
    return JSONResponse(
        {
            "id": asked.id,
            "object": "chat.completion",
            "created": asked.created,
            "model": asked.model,
            "choices": [_choice(i, completion, asked, tokenizer) for i, completion in enumerate(completions)],
            "usage": _usage(requests),
        }
    )


def _usage(requests: Sequence[Request]) -> dict[str, Any]:
    cached = {"cached_tokens": requests[0].usage.reused_tokens}
    return {**usage_of(requests, len(requests)), "prompt_tokens_details": cached}


def _choice(index: int, completion: Completion, asked: _Asked, tokenizer: Tokenizer) -> dict[str, Any]:
    said, calls = find_calls(completion.text, set(asked.names)) if asked.names else (completion.text, [])
    message: dict[str, Any] = {"role": "assistant", "content": said or None if calls else said, "refusal": None}
    if calls:
        message["tool_calls"] = [call.json() for call in calls]
    told = _logprobs(completion, tokenizer) if asked.logprobs else None
    return {
        "index": index,
        "message": message,
        "logprobs": told,
        "finish_reason": "tool_calls" if calls else reason_of(completion),
    }


async def _chunks(asked: _Asked, requests: Sequence[Request], tokenizer: Tokenizer) -> AsyncIterator[dict[str, Any]]:
    head = {"id": asked.id, "object": "chat.completion.chunk", "created": asked.created, "model": asked.model}
    if asked.usage_at_the_end:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, piece: Piece | None = None) -> Any:  # noqa: ANN401
        told = _logprobs(piece, tokenizer) if asked.logprobs and piece is not None else None
        return {**head, "choices": [{"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}]}

    filters = [CallFilter(set(asked.names)) for _ in requests]
    for i in range(len(requests)):
        yield chunk(i, {"role": "assistant", "content": "", "refusal": None})
    async for i, piece in pieces_of(requests):
        if piece is not None:
            text = filters[i].push(piece)
            if text or asked.logprobs:
                yield chunk(i, {"content": text}, piece=piece)
            continue
        text, calls = filters[i].finish()
        if text:
            yield chunk(i, {"content": text})
        if calls:
            yield chunk(i, {"tool_calls": [{"index": at, **call.json()} for at, call in enumerate(calls)]})
        yield chunk(i, {}, "tool_calls" if calls else reason_of(requests[i]))
    if asked.usage_at_the_end:
        yield {**head, "choices": [], "usage": _usage(requests)}


def _logprobs(of: Completion | Piece, tokenizer: Tokenizer) -> dict[str, Any]:
    numbers = zip(of.tokens, of.logprobs, of.top_logprobs, strict=True)
    return {"content": [_token(tokenizer, *one) for one in numbers], "refusal": None}


def _token(tokenizer: Tokenizer, token: int, logprob: float, top: TopLogprobs) -> dict[str, Any]:
    return {**_named(tokenizer, token, logprob), "top_logprobs": [_named(tokenizer, *one) for one in top]}


def _named(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    piece = tokenizer.piece(token)
    return {"token": piece.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(piece)}


def messages_of(fields: Fields) -> list[dict[str, Any]]:
    """Read the field ``messages`` as templates know messages."""
    given = fields.array("messages")
    if not given:
        raise ApiError(400, "messages is missing or empty, expected an array of messages", param="messages")
    return [_message(one, f"messages[{i}]") for i, one in enumerate(given)]


def _message(given: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise ApiError(400, f"{where} is no object with a role", param=where)
    message = {name: value for name, value in given.items() if value is not None}
    if message["role"] == "developer":  # what OpenAI calls system by now
        message["role"] = "system"
    content = message.get("content", "")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content is neither a string nor an array of parts", param=f"{where}.content")
    message["content"] = content
    if "tool_calls" in message:
        message["tool_calls"] = _past_calls(message["tool_calls"], f"{where}.tool_calls")
    return message


def _part(given: Any, where: str) -> str:  # noqa: ANN401
    if isinstance(given, dict) and given.get("type") == "text" and isinstance(given.get("text"), str):
        text: str = given["text"]
        return text
    kind = given.get("type") if isinstance(given, dict) else given
    raise ApiError(400, f"{where} is of type {kind!r:.40}: this server reads text only", param=where)


def _past_calls(given: Any, where: str) -> list[dict[str, Any]]:  # noqa: ANN401
    """Templates write a call's arguments as JSON themselves, so they get them as objects."""
    if not isinstance(given, list):
        raise ApiError(400, f"{where} is no array", param=where)
    calls = []
    for i, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ApiError(400, f"{where}[{i}] has no function with a name", param=f"{where}[{i}]")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise ApiError(400, f"{where}[{i}]: arguments are no JSON", param=f"{where}[{i}]") from None
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return calls


def _tools(fields: Fields) -> tuple[list[dict[str, Any]] | None, frozenset[str], dict[str, Any] | None]:
    """Give the tools, the names of those that may be called, and the schema of a call that must be made."""
    tools, chosen = fields.array("tools"), fields.raw("tool_choice")
    schemas = {}
    for i, tool in enumerate(tools or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or tool.get("type") != "function"
        ):
            raise ApiError(400, f"tools[{i}] is no function with a name", param=f"tools[{i}]")
        schemas[function["name"]] = function.get("parameters") or {"type": "object"}
    if chosen in (None, "auto"):
        return tools or None, frozenset(schemas), None
    if chosen == "none":
        return None, frozenset(), None
    name = chosen.get("function", {}).get("name") if isinstance(chosen, dict) else None
    if chosen != "required" and name not in schemas:
        raise ApiError(400, "tool_choice is none of 'none', 'auto', 'required' and the tools", param="tool_choice")
    if not schemas:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
    wanted = [name] if name is not None else list(schemas)
    calls = []
    for i, one in enumerate(wanted):
        place = "#/properties/arguments" if len(wanted) == 1 else f"#/anyOf/{i}/properties/arguments"
        try:
            arguments = moved_schema(_arguments(one, schemas[one]), place)
        except RecursionError:
            message = f"the parameters of the tool {one!r:.200} are nested too deeply"
            raise ApiError(400, message, param="tools") from None
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": one}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return tools, frozenset(wanted), calls[0] if len(calls) == 1 else {"anyOf": calls}


def _arguments(name: str, schema: Any) -> Any:  # noqa: ANN401
    """Give the schema of a call's arguments, which are an object."""
    if schema is True:
        return {"type": "object"}
    if not isinstance(schema, dict):
        raise ApiError(400, f"the parameters of the tool {name!r:.200} are no JSON schema", param="tools")
    if schema.get("type", "object") != "object":
        raise ApiError(400, f"the parameters of the tool {name!r:.200} are of another type than object", param="tools")
    return {"type": "object", **closed_schema(schema)}


def _format(fields: Fields, must_call: dict[str, Any] | None) -> dict[str, Any]:
    """Read the field ``response_format``: arguments of `Engine.submit_chat`."""
    given = fields.mapping("response_format") or {"type": "text"}
    kind, param = given.get("type"), "response_format"
    if kind not in ("text", "json_object", "json_schema"):
        raise ApiError(400, f"{param} is of type {kind!r:.40}, expected text, json_object or json_schema", param=param)
    if (must_call is not None or kind != "text") and (fields.raw("grammar") or fields.raw("regex")):
        raise ApiError(400, f"{param}, grammar, regex and a call that must be made exclude each other", param=param)
    if must_call is not None:
        if kind != "text":
            raise ApiError(400, f"{param} and a tool_choice that asks for a call exclude each other", param=param)
        return {"json_schema": must_call}
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(400, f"{param}.json_schema has no schema", param=param)
    return {"json_schema": schema}
