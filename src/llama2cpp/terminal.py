"""A conversation in the terminal, or in a pipe: what ``llama2cpp chat`` does once the model is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from .conversation import Conversation, Turn

if TYPE_CHECKING:
    from rich.console import Console

_HELP = """\
/reset          begin anew, with the same system message
/system TEXT    set the system message; without TEXT, show it
/save FILE      write the conversation to a file
/load FILE      go on with one from a file
/exit           leave; Ctrl-D and Ctrl-C do so too
Ctrl-C while the model answers stops the answer."""

# What a model says may not move the cursor: no control characters but the ends of lines and tabs.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])
for _allowed in "\n\t":
    del _CONTROLS[ord(_allowed)]


def talk(conversation: Conversation, greeting: str) -> None:
    """Take turns until the user leaves, or the input ends."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk_interactively(conversation, greeting)
    else:
        _talk_plainly(conversation)


def _talk_plainly(conversation: Conversation) -> None:
    """One line in, one answer out, and nothing else on stdout."""
    for line in sys.stdin.buffer:
        text = line.decode(errors="replace").rstrip("\r\n")
        if text.startswith("/"):
            if not _obey(conversation, text, lambda note: print(note, file=sys.stderr)):
                return
        elif text.strip():
            with closing(conversation.stream(text)) as pieces:
                for piece in pieces:
                    sys.stdout.buffer.write(piece.encode())
                    sys.stdout.buffer.flush()
            sys.stdout.buffer.write(b"\n")
            sys.stdout.buffer.flush()


def _talk_interactively(conversation: Conversation, greeting: str) -> None:
    from rich.console import Console

    with suppress(ImportError):  # where there is one, input() edits lines and remembers them
        import readline  # noqa: F401
    console = Console(highlight=False)

    def note(text: str) -> None:
        console.out(text, style="dim", highlight=False)

    note(f"{greeting}. /help lists commands.")
    interrupted = False  # by a Ctrl-C after which nothing was said
    while True:
        try:
            text = input("> ").encode(errors="surrogateescape").decode(errors="replace")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            interrupted = True
            note("Ctrl-C again leaves.")
            continue
        interrupted = False
        try:
            if text.startswith("/"):
                if not _obey(conversation, text, note):
                    return
            elif text.strip():
                _answer(conversation, text, console, note)
        except KeyboardInterrupt:
            interrupted = True
            note("stopped")
        except (ValueError, OSError, RuntimeError) as error:
            note(f"error: {' '.join(str(error).split())}")


def _answer(conversation: Conversation, text: str, console: Console, note: Callable[[str], None]) -> None:
    before = conversation.last_turn
    try:
        with closing(conversation.stream(text)) as pieces:
            for piece in pieces:
                console.out(piece.translate(_CONTROLS), end="", highlight=False)
    finally:
        turn = conversation.last_turn
        if turn is not None and turn is not before:
            console.out("")
            note(_summary(turn))


def _summary(turn: Turn) -> str:
    parts = [f"{turn.tokens} tokens, {turn.tokens / max(turn.seconds, 1e-9):.1f} tok/s"]
    read = turn.prompt_tokens - turn.reused_tokens
    parts.append(f"{read} of {turn.prompt_tokens} tokens before them read in {turn.prompt_seconds:.2f} s")
    if turn.finish_reason == "length":
        parts.append("cut at --max-tokens")
    if turn.finish_reason == "context":
        parts.append("the context is full")
    if turn.forgotten:
        parts.append(f"the context was full, so the {turn.forgotten} oldest messages are left out from here on")
    return f"[{'; '.join(parts)}]"


def _obey(conversation: Conversation, line: str, note: Callable[[str], None]) -> bool:
    """Do what a line with a slash says; False to leave."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command == "/exit":
        return False
    if command in ("/save", "/load") and not argument:
        note(f"{command} needs the name of a file")
    elif command == "/save":
        conversation.save(argument)
        note(f"saved {len(conversation.history)} messages to {argument}")
    elif command == "/load":
        conversation.load(argument)
        note(f"loaded {len(conversation.history)} messages from {argument}")
    elif command == "/reset":
        conversation.reset()
        note("a new conversation")
    elif command == "/system":
        conversation.system = argument or conversation.system
        note(f"system message: {conversation.system or 'none of yours'}")
    elif command == "/help":
        note(_HELP)
    else:
        note(f"there is no {command}; /help lists what there is")
    return True
