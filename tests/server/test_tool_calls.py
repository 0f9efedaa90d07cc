"""Calls of tools in a model's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2cpp.server.tool_calls import CallFilter, find_calls

CALL = '{"name": "look", "arguments": {"at": [1, "a"]}}'

# What is said, and what of it is text; each holds one call of look({"at": [1, "a"]}).
WRITTEN = {
    "hermes": (f"<tool_call>\n{CALL}\n</tool_call>", ""),
    "hermes-after-text": (f"I will look. <tool_call>{CALL}</tool_call>", "I will look."),
    "hermes-cut": (f"<tool_call>{CALL}", ""),
    "mistral": (f"[TOOL_CALLS] [{CALL}]", ""),
    "llama3": ('{"name": "look", "parameters": {"at": [1, "a"]}}', ""),
    "llama3-tag": (f"<|python_tag|>{CALL}", ""),
    "openai": (f'[{{"type": "function", "function": {CALL}}}]', ""),
    "text-arguments": (json.dumps({"name": "look", "arguments": '{"at": [1, "a"]}'}), ""),
}
NO_CALLS = ["", "The dog ran.", "{", '{"name": "other", "arguments": {}}', "<tool_call>no JSON</tool_call>", "[1, 2]"]


@pytest.mark.parametrize("form", WRITTEN)
def test_forms(form: str) -> None:
    said, text = WRITTEN[form]
    found, calls = find_calls(said, {"look", "go"})
    assert found == text
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("look", {"at": [1, "a"]})]


@pytest.mark.parametrize("said", NO_CALLS)
def test_what_is_no_call_is_text(said: str) -> None:
    assert find_calls(said, {"look"}) == (said, [])


@given(st.sampled_from([*(said for said, _ in WRITTEN.values()), *NO_CALLS]), st.data())
def test_in_any_pieces(said: str, data: Any) -> None:
    """A stream shows the same calls, and no part of one as text."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    pieces = [said[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    kept = CallFilter({"look"})
    shown = "".join(kept.push(piece) for piece in pieces)
    rest, calls = kept.finish()
    text, expected = find_calls(said, {"look"})
    assert [(call.name, call.arguments) for call in calls] == [(call.name, call.arguments) for call in expected]
    assert (shown + rest).strip() == text.strip()


@given(st.text(max_size=40), st.integers(1, 5))
def test_without_tools_nothing_is_held_back(said: str, step: int) -> None:
    kept = CallFilter(set())
    assert "".join(kept.push(said[at : at + step]) for at in range(0, len(said), step)) == said
    assert kept.finish() == ("", [])
