"""Calls of tools in what a model says: the ways in which families write them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call.

    Attributes
    ----------
    name : str
        Of the function.
    arguments : str
        JSON, as OpenAI has it.
    """

    name: str
    arguments: str

    def json(self) -> dict[str, Any]:
        """Give the object of an answer."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}


def find_calls(text: str, names: set[str]) -> tuple[str, list[ToolCall]]:
    """Tell what is said from what is called; only tools of these names are.

    Hermes and Qwen write ``<tool_call>{...}</tool_call>``, Mistral ``[TOOL_CALLS][...]``, and Llama 3 the object alone.
    """
    found = [call for block in _BLOCK.findall(text) for call in _calls(block, names)]
    if found:
        return _BLOCK.sub("", text).strip(), found
    stripped = text.strip()
    for mark in ("[TOOL_CALLS]", "<|python_tag|>"):
        before, found_mark, after = stripped.partition(mark)
        calls = _calls(after, names) if found_mark else []
        if calls:
            return before.strip(), calls
    calls = _calls(stripped, names)
    return ("", calls) if calls else (text, [])


def _calls(text: str, names: set[str]) -> list[ToolCall]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for one in given if isinstance(given, list) else [given]:
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or function.get("name") not in names:
            return []
        arguments = function.get("arguments", function.get("parameters", {}))
        calls.append(ToolCall(function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return calls


class CallFilter:
    """Text as it comes, of which what may be a call is held back until it is known.

    Parameters
    ----------
    names : set of str
        The tools.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._held = ""
        self._said = ""  # what has been let through

    def push(self, text: str) -> str:
        """Take more; gives what is no call for sure."""
        if not self._names:
            return text
        self._held += text
        if not self._said and self._held.lstrip()[:1] in ("", "{", "["):
            return ""
        marks = [at for at in (self._held.find(mark) for mark in _MARKS) if at >= 0]
        keep = min(marks) if marks else len(self._held) - max(_overlap(self._held, mark) for mark in _MARKS)
        out, self._held = self._held[:keep], self._held[keep:]
        self._said += out
        return out

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Give what was held back: text, and calls."""
        return find_calls(self._held, self._names)


def _overlap(text: str, mark: str) -> int:
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
