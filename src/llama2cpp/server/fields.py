"""Fields of a request's JSON: what is there, of which type, and what nobody knows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.arguments import close_names
from .errors import ApiError

MOST_TOKENS = 2**31 - 1
MOST_LOGPROBS = 20
MOST_CHOICES = 128  # of `n`
MOST_STOPS = 64

# Who asks, and what a service would do with it: nothing here, and nothing of it changes an answer.
IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)


class Fields:
    """The JSON object of a request, whose fields are asked for one by one.

    Parameters
    ----------
    body : bytes
        What came.
    """

    def __init__(self, body: bytes) -> None:
        try:
            given = json.loads(body, parse_constant=_no_constant)
        except RecursionError:
            raise ApiError(400, "the body is not JSON that can be read: it is nested too deeply") from None
        except ValueError as error:  # bytes that are no text too
            raise ApiError(400, f"the body is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise ApiError(400, f"the body is {_kind(given)}, expected a JSON object")
        self._given: dict[str, Any] = given
        self._asked: set[str] = set()

    def raw(self, name: str) -> Any:  # noqa: ANN401
        """Give a field as it is; None where it is null or not there."""
        self._asked.add(name)
        return self._given.get(name)

    def text(self, name: str) -> str | None:
        """Give a field that is a text."""
        found: str | None = self._of(name, str, "a string")
        return found

    def flag(self, name: str) -> bool:
        """Give a field that is true or false; false where it is not there."""
        return bool(self._of(name, bool, "true or false"))

    def mapping(self, name: str) -> dict[str, Any] | None:
        """Give a field that is an object."""
        found: dict[str, Any] | None = self._of(name, dict, "an object")
        return found

    def array(self, name: str) -> list[Any] | None:
        """Give a field that is an array."""
        found: list[Any] | None = self._of(name, list, "an array")
        return found

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Give a field that is an integer in a range."""
        found = self.raw(name)
        if found is None:
            return None
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool):
            raise ApiError(400, f"{name} is {_shown(found)}, expected an integer", param=name)
        if not least <= found <= most:
            raise ApiError(400, f"{name} is {found}, expected {least} to {most}", param=name)
        return found

    def number(self, name: str) -> float | None:
        """Give a field that is a number."""
        found = self.raw(name)
        if found is None:
            return None
        if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
            raise ApiError(400, f"{name} is {_shown(found)}, expected a number", param=name)
        return found

    def choice(self, name: str, choices: Iterable[str]) -> str | None:
        """Give a field that is one of some words."""
        found = self.text(name)
        if found is not None and found not in (allowed := list(choices)):
            raise ApiError(400, f"{name} is {found!r}, expected {' or '.join(map(repr, allowed))}", param=name)
        return found

    def _of(self, name: str, kind: type, expected: str) -> Any:  # noqa: ANN401
        found = self.raw(name)
        if found is not None and not isinstance(found, kind):
            raise ApiError(400, f"{name} is {_shown(found)}, expected {expected}", param=name)
        return found

    def refuse_others(self) -> None:
        """Refuse fields that nobody has asked for: an answer that leaves out what was wanted would be wrong."""
        for name, value in self._given.items():
            if name not in self._asked and name not in IGNORED and value is not None:
                raise ApiError(
                    400,
                    f"unrecognized field {name!r:.80}{close_names(name, [*self._asked, *IGNORED])}",
                    param=name[:80],
                    code="unknown_parameter",
                )


def sampling_of(fields: Fields) -> dict[str, Any]:
    """Give how tokens are to be drawn: keyword arguments of `Engine.submit`."""
    given: dict[str, Any] = {
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k", 0, MOST_TOKENS),
        "min_p": fields.number("min_p"),
        "repetition_penalty": fields.number("repetition_penalty"),
        "seed": fields.integer("seed", -(2**63), 2**64 - 1),
        "stop": _stops(fields),
        "presence_penalty": fields.number("presence_penalty"),
        "frequency_penalty": fields.number("frequency_penalty"),
        "logit_bias": _biases(fields),
        "min_tokens": fields.integer("min_tokens", 0, MOST_TOKENS),
        "stop_ids": _stop_ids(fields),
        "grammar": fields.text("grammar"),
        "regex": fields.text("regex"),
    }
    if given["seed"] is not None:
        given["seed"] %= 2**64
    return {name: value for name, value in given.items() if value is not None}


def with_seed_of(arguments: Mapping[str, Any], choice: int) -> dict[str, Any]:
    """Give the arguments of one of n choices: its seed is so many after the request's."""
    seed = arguments.get("seed")
    return {**arguments} if seed is None else {**arguments, "seed": (seed + choice) % 2**64}


def count_of(fields: Fields) -> int:
    """Give how many choices are wanted."""
    return fields.integer("n", 1, MOST_CHOICES) or 1


def _stops(fields: Fields) -> list[str] | None:
    found = fields.raw("stop")
    if found is None:
        return None
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(400, f"stop is {_shown(found)}, expected a string or an array of strings", param="stop")
    if len(stops) > MOST_STOPS:
        raise ApiError(400, f"stop has {len(stops)} strings, expected at most {MOST_STOPS}", param="stop")
    return stops


def _stop_ids(fields: Fields) -> list[int] | None:
    found = fields.array("stop_token_ids")
    if found is not None and not all(type(one) is int and 0 <= one < 2**31 for one in found):
        raise ApiError(400, "stop_token_ids is no array of token ids", param="stop_token_ids")
    return found


def _biases(fields: Fields) -> dict[int, float] | None:
    found = fields.mapping("logit_bias")
    if found is None:
        return None
    biases = {}
    for name, value in found.items():
        if not (name.isascii() and name.isdigit()) or len(name) > 10:
            raise ApiError(400, f"logit_bias has the key {name!r:.80}, expected token ids", param="logit_bias")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ApiError(400, f"logit_bias of {name} is {_shown(value)}, expected a number", param="logit_bias")
        biases[int(name)] = -math.inf if value <= -100 else float(value)  # OpenAI's -100 is a ban
    return biases


def _no_constant(name: str) -> Any:  # noqa: ANN401
    raise ValueError(f"{name} is no JSON")


def _kind(value: object) -> str:
    kinds: Mapping[type, str] = {list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)[:80]
