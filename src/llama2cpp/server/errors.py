"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse

from .._core import ContextFullError

_FUNCTION = re.compile(r"^(?:Engine\.)?(?:submit(?:_chat)?|embed|score)(?:: (?=text|prompt))?:? ?")
# Options that the engine names where it refuses them, and their fields.
_FIELDS = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")}
_FIELDS |= {
    name: name for name in ("frequency_penalty", "seed", "stop", "min_tokens", "logit_bias", "regex", "grammar")
}
_FIELDS |= {"json_schema": "response_format", "stop_ids": "stop_token_ids"}
_OPTION = re.compile(r"([a-z_]+)(?::| is | has )")
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a request is answered with in place of a result.

    Parameters
    ----------
    status : int
        HTTP's.
    message : str
        What was expected, and what came.
    param : str, optional
        The field of the request that is wrong.
    code : str, optional
        A word that programs can test.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the engine refuses into errors of the client's."""
    try:
        yield
    except ContextFullError as error:
        # In the words by which LiteLLM knows it.
        message = f"the request exceeds the available context size: {_said(error)}"
        raise ApiError(400, message, code="context_length_exceeded") from error
    except MemoryError as error:
        raise ApiError(400, _said(error), code="too_large") from error
    except ImportError as error:  # of what an option needs
        raise ApiError(400, _said(error), code="unsupported") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        said = _said(error)
        option = _OPTION.match(said)
        raise ApiError(400, said, param=None if option is None else _FIELDS.get(option[1])) from error


def failure_of(error: BaseException) -> ApiError:
    """Give what is said of a request that has begun and could not go on."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):  # such as a grammar that no token satisfies
        return ApiError(400, _said(error))
    return ApiError(500, f"the request failed: {type(error).__name__}: {error}")


def _said(error: BaseException) -> str:
    return _FUNCTION.sub("", str(error)) or type(error).__name__
