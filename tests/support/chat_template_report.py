"""Real chat templates against transformers: which give the same text, which fail in both, which differ.

The templates are not part of this project. They are read from folders with ``*.jinja`` files, such as the one in
llama.cpp's source, ``models/templates``, which llama-cpp-python's source distribution carries:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python tests/support/chat_template_report.py llama_cpp_python-*/vendor/llama.cpp/models/templates

Prints one row for each template and one column for each kind of conversation: "=" the same text, "both" an error of
both, else what is different; and the longest time and the most of each limit that a template needed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from llama2cpp.dialogue.templates import ChatTemplate

TOKENS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}

USER = {"role": "user", "content": "What is 2 + 2, and how hot is it in Łódź?"}
ANSWER = {"role": "assistant", "content": "Four. I do not know how hot it is.  "}
MORE = {"role": "user", "content": "Then ask."}
SYSTEM = {"role": "system", "content": "You are brief.\n"}
DEVELOPER = {"role": "developer", "content": "Be brief."}
PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "temperature",
        "description": "The temperature of a place, in °C",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Its name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "exact": {"type": "boolean", "default": False},
            },
            "required": ["place"],
        },
    },
}
ARGUMENTS = {"place": "Łódź", "days": [1, 2], "exact": True}


def call(content: dict[str, Any], number: str = "abc123def", arguments: Any = None) -> dict[str, Any]:
    """An assistant's message that calls the tool."""
    function = {"name": "temperature", "arguments": ARGUMENTS if arguments is None else arguments}
    return {"role": "assistant", **content, "tool_calls": [{"id": number, "type": "function", "function": function}]}


def result(content: Any = '{"temperature": 12.5}', number: str = "abc123def") -> dict[str, Any]:
    """What the tool said."""
    return {"role": "tool", "tool_call_id": number, "name": "temperature", "content": content}


TALK = [USER, ANSWER, MORE]
TOOLS: dict[str, Any] = {"tools": [TOOL]}
DOCUMENTS = {"documents": [{"title": "Heat", "text": "It is hot.", "doc_id": "1"}]}
LAST = [USER, {"role": "assistant", "content": "Four. I would "}]
THOUGHT = {**ANSWER, "reasoning_content": "Two and two."}

# Kind of conversation -> cases of it: messages, and arguments of apply_chat_template.
KINDS: dict[str, list[tuple[list[dict[str, Any]], dict[str, Any]]]] = {
    "plain": [([USER], {}), (TALK, {}), (TALK, {"add_generation_prompt": False})],
    "system": [([SYSTEM, USER], {}), ([SYSTEM, *TALK], {}), ([DEVELOPER, USER], {})],
    "tools": [
        ([USER], TOOLS),
        ([SYSTEM, *TALK], TOOLS),
        *[
            ([SYSTEM, USER, call(content, arguments=arguments), result()], TOOLS)
            for content in ({}, {"content": None}, {"content": ""}, {"content": "I ask."})
            for arguments in (None, '{"place": "Łódź"}')
        ],
        ([USER, call({}), result(), ANSWER, MORE], TOOLS),
        ([USER, call({}), result(PARTS), ANSWER], TOOLS | {"add_generation_prompt": False}),
        ([USER, call({}), result()], {}),
    ],
    "documents": [([USER], DOCUMENTS), ([SYSTEM, USER], DOCUMENTS | TOOLS)],
    "parts": [
        ([{"role": "user", "content": PARTS}], {}),
        ([{"role": role, "content": PARTS} for role in ("system", "user", "assistant", "user")], {}),
    ],
    "thinking": [
        *[([SYSTEM, USER], {"enable_thinking": value}) for value in (False, True)],
        *[([USER, THOUGHT, MORE], {"enable_thinking": value}) for value in (False, True)],
        ([USER, {**ANSWER, "content": "<think>\nTwo.\n</think>\n\nFour."}, MORE], {}),
        ([USER, {**call({}), "reasoning_content": "Ask."}, result()], TOOLS | {"enable_thinking": True}),
        ([SYSTEM, USER], {"thinking": True}),
        ([SYSTEM, USER], {"reasoning_effort": "high"}),
        ([SYSTEM, USER], {"thinking_budget": 512, "xml_tools": [TOOL], "custom_instructions": "Be kind."}),
    ],
    "continue": [
        (LAST, {"continue_final_message": True, "add_generation_prompt": False}),
        ([SYSTEM, *LAST], TOOLS | {"continue_final_message": True, "add_generation_prompt": False}),
        ([USER, {**ANSWER, "content": PARTS}], {"continue_final_message": True, "add_generation_prompt": False}),
        ([USER, THOUGHT], {"continue_final_message": "reasoning_content", "add_generation_prompt": False}),
    ],
}  # fmt: skip


def outcomes(
    tokenizer: Any,
    source: str,
    messages: list[dict[str, Any]],
    given: dict[str, Any],
) -> tuple[str | None, str | None, str, float]:
    """Their text and ours (None: an error), our error, and our seconds."""
    asked = {"add_generation_prompt": True, **given}
    try:
        theirs = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **asked)
    except Exception:  # whatever a template raises
        theirs = None
    names = ("add_generation_prompt", "continue_final_message", "tools", "documents")
    named = {name: asked.pop(name) for name in names if name in asked}
    began = time.thread_time()
    try:
        ours, error = ChatTemplate(source).render(messages, **TOKENS, **named, variables=asked), ""
    except ValueError as caught:
        ours, error = None, str(caught)
    return theirs, ours, error, time.thread_time() - began


def report(path: Path, tokenizer: Any) -> Iterator[str]:
    """Yield the cells of a template's row, and what is different."""
    source, slowest = path.read_text(encoding="utf-8"), 0.0
    for kind, cases in KINDS.items():
        same, both, wrong = 0, 0, []
        for i, (messages, given) in enumerate(cases):
            theirs, ours, error, seconds = outcomes(tokenizer, source, messages, given)
            slowest = max(slowest, seconds)
            if theirs is None and ours is None:
                both += 1
            elif theirs == ours:
                same += 1
            else:
                wrong.append(f"{kind} {i}: {error or ('they fail' if theirs is None else 'another text')}")
        yield f"{kind} {same}=" + (f" {both} both" if both else "") + (f" {len(wrong)} DIFFER" if wrong else "")
        yield from (f"\n    {line}" for line in wrong)
    yield f"{slowest * 1e3:.0f} ms"


def main() -> None:
    """Report on the folders and files that are named."""
    tokenizer = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS
    )
    given = [Path(name) for name in sys.argv[1:]]
    for place in given:
        for path in sorted(place.glob("*.jinja")) if place.is_dir() else [place]:
            print(f"{path.stem}: {' | '.join(report(path, tokenizer))}", flush=True)


if __name__ == "__main__":
    main()
