"""What all endpoints share: the engine, how much may wait for it, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..common.piece import Piece
from .errors import ApiError, failure_of, refusals
from .fields import Fields

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..common.sampling import DraftModel
    from ..decoding import Completion
    from ..model import Model
    from ..serving.engine import Engine
    from ..serving.requests import Request

Result = TypeVar("Result")

# What a reason for the end is called by OpenAI. An answer that was cancelled has no reader.
_REASONS: dict[str | None, str] = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "incomplete": "length",
    "cancelled": "stop",
}


@dataclass(frozen=True)
class Settings:
    """What a server allows.

    Attributes
    ----------
    name : str
        What the model is called in requests.
    rows, queue : int
        How many requests run at a time, and how many more may wait.
    max_body : int
        Bytes of a request.
    api_key : str, optional
        What clients have to show.
    template : str, optional
        The chat template, where it is not the model's own.
    hosts : frozenset of str, optional
        What a ``Host`` may be: none other, so that a page of another site that has its name point here reads nothing.
        None: any.
    """

    name: str
    rows: int
    queue: int
    max_body: int
    api_key: str | None = None
    template: str | None = None
    hosts: frozenset[str] | None = None


class Service:
    """A model that is served.

    Parameters
    ----------
    engine : Engine
        What runs its requests.
    model : Model
        What they are asked of.
    settings : Settings
        What is allowed.
    speculate : "prompt" or Model, optional
        What proposes tokens for all requests.
    adapters : mapping of str to Adapter, optional
        LoRA adapters by the names that requests call them.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        settings: Settings,
        speculate: str | DraftModel | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.speculate = speculate
        self.adapters = dict(adapters or {})
        self.engine = engine
        self.model = model
        self.settings = settings
        self.began = int(time.time())
        self._asked: list[Request] = []
        self._measured = 0

    async def fields(self, request: HttpRequest) -> Fields:
        """Read a request's body, and see that it is for this model, or for it with one of the adapters."""
        fields = Fields(await self._body(request))
        self.chosen(fields)
        return fields

    def chosen(self, fields: Fields) -> tuple[str, Adapter | None]:
        """Give what the answer calls its model, and the adapter: that of the field ``adapter``, or of ``model``."""
        name, named = fields.text("model"), fields.text("adapter")
        if name is not None and name not in self.names:
            raise not_served(name, self.names)
        if named is not None and named not in self.adapters:
            there = f"this server has {', '.join(map(repr, self.adapters))}" if self.adapters else "there are none"
            raise ApiError(
                404, f"the adapter {named!r:.200} does not exist: {there}", param="adapter", code="adapter_not_found"
            )
        if named is not None and name in self.adapters and name != named:
            raise ApiError(400, f"model is the adapter {name!r}, and adapter is {named!r}", param="adapter")
        chosen = named or name or self.settings.name
        return chosen, self.adapters.get(chosen)

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call their model: the model itself, and with each adapter."""
        return self.settings.name, *self.adapters

    async def _body(self, request: HttpRequest) -> bytes:
        most = self.settings.max_body
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise ApiError(413, f"the body has more than {most} bytes, which is the most", code="too_large")
        return bytes(body)

    def check_room(self, count: int) -> None:
        """Refuse what there is no room for: requests that run and wait are counted before more are taken."""
        self._asked = [request for request in self._asked if not request.done]
        most, there = self.settings.rows + self.settings.queue, len(self._asked) + self._measured
        if there + count > most:
            raise ApiError(
                429,
                f"the server is full: {there} requests run or wait, {count} more would be over the limit of {most}; "
                "try again later",
                code="server_full",
            )

    async def ask(self, makers: Sequence[Callable[[], Request]]) -> list[Request]:
        """Submit requests: all of them or none."""
        self.check_room(len(makers))
        self._measured += len(makers)  # their places, while they are made
        made: list[Request] = []
        try:
            with refusals():
                for make in makers:
                    # In a thread: templates and tokenizers may take a while.
                    made.append(await asyncio.to_thread(make))
        except BaseException:
            for request in made:
                request.cancel()
            raise
        finally:
            self._measured -= len(makers)
            self._asked += made
        return made

    async def measure(self, count: int, compute: Callable[[], Result]) -> Result:
        """Run what waits for the engine by itself, as so many requests."""
        self.check_room(count)
        self._measured += count
        try:
            with refusals():
                return await asyncio.to_thread(compute)
        finally:
            self._measured -= count


async def completions_of(http: HttpRequest, requests: Sequence[Request]) -> list[Completion]:
    """Wait for the ends of requests, or for their client to leave."""

    async def end(request: Request) -> Completion:
        completion: Completion = await request
        return completion

    try:
        return await unless_gone(http.receive, asyncio.gather(*(end(request) for request in requests)))
    except (ApiError, ClientDisconnect, asyncio.CancelledError):
        raise
    except Exception as error:
        raise failure_of(error) from error
    finally:
        for request in requests:
            request.cancel()


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Wait for something; a client that leaves ends it."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        working.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events of requests, which end when their reader leaves.

    Parameters
    ----------
    events : async iterator of dict
        JSON objects.
    requests : sequence of Request
        What they tell of.
    """

    def __init__(self, events: AsyncIterator[dict[str, Any]], requests: Sequence[Request]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await unless_gone(receive, self._send(send))
        except (ClientDisconnect, OSError):
            pass
        finally:
            for request in self._requests:
                request.cancel()

    async def _send(self, send: Send) -> None:
        async def event(text: str) -> None:
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

        try:
            async for told in self._events:
                await event(json.dumps(told, ensure_ascii=False))
            await event("[DONE]")
        except (asyncio.CancelledError, OSError):
            raise
        except Exception as error:
            await event(json.dumps(failure_of(error).body, ensure_ascii=False))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def pieces_of(requests: Sequence[Request]) -> AsyncIterator[tuple[int, Piece | None]]:
    """Give the pieces of several requests as they come, with the index of each, and None at each end."""
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def pump(index: int, request: Request) -> None:
        try:
            async for piece in request:
                queue.put_nowait((index, piece))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(i, request)) for i, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            index, piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            running -= piece is None
            yield index, piece
    finally:
        for task in tasks:
            task.cancel()


def reason_of(ended: Completion | Request) -> str:
    """Say as OpenAI does why a text has ended."""
    return _REASONS[ended.finish_reason]


def usage_of(requests: Sequence[Request], n: int) -> dict[str, Any]:
    """Count tokens: each prompt's once, however many choices (n) it has. What was proposed is told where it was."""
    prompt = sum(request.usage.prompt_tokens for request in requests[::n])
    generated = sum(request.usage.completion_tokens for request in requests)
    told: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    proposed = sum(request.usage.proposed_tokens for request in requests)
    if proposed:
        accepted = sum(request.usage.accepted_tokens for request in requests)
        told["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": proposed - accepted,
        }
    return told


def new_id(kind: str) -> str:
    """Make a name for an answer."""
    return f"{kind}-{uuid4().hex}"


def not_served(name: str, served: Sequence[str]) -> ApiError:
    """Say that there is another model."""
    return ApiError(
        404,
        f"the model {name!r:.200} does not exist: this server has {', '.join(map(repr, served))}",
        param="model",
        code="model_not_found",
    )
