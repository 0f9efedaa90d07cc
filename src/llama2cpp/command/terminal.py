"""A conversation in the terminal, or in a pipe: what ``llama2cpp chat`` does once the model is there."""

from __future__ import annotations

import glob
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

from ..common.arguments import close_names
from ..dialogue.conversation import Conversation, Turn
from .display import TextOutput, one_line, say, tell, visible, without_function
from .line_history import LineHistory, history_path
from .word_wrap import WordWrap

_ANOTHER_SEED = 1_000_003  # between the seeds of one answer and of the next in its place


class _Command(NamedTuple):
    argument: str  # what comes behind it, for people
    about: str
    run: Callable[[_Talk, str], None]


def talk(conversation: Conversation, greeting: str, seed: int | None = None) -> None:
    """Take turns until the user leaves, or the input ends.

    Parameters
    ----------
    conversation : Conversation
        With whom.
    greeting : str
        What is told first, in a terminal.
    seed : int, optional
        That of the conversation, if it has one.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        _InTerminal(conversation, seed).run(greeting)
    else:
        _InPipe(conversation, seed).run()


class _Left(Exception):  # noqa: N818 - no error
    """The user has left."""


class _Talk:
    """What a terminal and a pipe have in common: the commands."""

    def __init__(self, conversation: Conversation, seed: int | None) -> None:
        self.conversation = conversation
        self._seed = seed
        self._tries = 0  # at the last answer, after the first
        self._turns: list[Turn] = []

    def note(self, text: str) -> None:
        raise NotImplementedError

    def show(self, pieces: Any) -> None:  # noqa: ANN401 - a generator of str, to be closed
        raise NotImplementedError

    def hear(self, line: str) -> None:
        """Obey a command, answer a message, and pass over an empty line."""
        if line.startswith("/"):
            self.obey(line)
        elif line.strip():
            self.answer(line)

    def obey(self, line: str) -> None:
        """Do what a line with a slash says."""
        name, _, argument = line.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            self.note(f"there is no {name}{close_names(name, COMMANDS)}; /help lists what there is")
        elif command.argument == "FILE" and not argument.strip():
            self.note(f"{name} needs the name of a file")
        else:
            command.run(self, argument.strip())

    def answer(self, text: str, tries: int = 0) -> None:
        """Say something, and show the answer."""
        self._tries = tries
        before = self.conversation.last_turn
        if tries and self._seed is not None:
            pieces = self.conversation.stream(text, seed=(self._seed + _ANOTHER_SEED * tries) % 2**64)
        else:
            pieces = self.conversation.stream(text)
        try:
            with closing(pieces):
                self.show(pieces)
        finally:
            turn = self.conversation.last_turn
            if turn is not None and turn is not before:
                self._turns.append(turn)
                self.answered(turn)

    def answered(self, turn: Turn) -> None:
        """After an answer, or what there is of it."""

    def _exit(self, _: str) -> None:
        raise _Left

    def _save(self, path: str) -> None:
        self.conversation.save(path)
        self.note(f"saved {len(self.conversation.history)} messages to {path}")

    def _load(self, path: str) -> None:
        self.conversation.load(path)
        self.note(f"loaded {len(self.conversation.history)} messages from {path}")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self.note("a new conversation")

    def _system(self, text: str) -> None:
        self.conversation.system = text or self.conversation.system
        self.note(f"system message: {self.conversation.system or 'none of yours'}")

    def _undo(self, _: str) -> None:
        text = self.conversation.undo()
        self.note("there is no message to take back" if text is None else f"taken back: {text}")

    def _regenerate(self, _: str) -> None:
        tries = self._tries + 1
        text = self.conversation.undo()
        if text is None:
            self.note("there is no message to answer again")
        else:
            self.answer(text, tries)

    def _stats(self, _: str) -> None:
        turns = self._turns
        tokens, seconds = sum(turn.tokens for turn in turns), sum(turn.seconds for turn in turns)
        read = sum(turn.prompt_tokens - turn.reused_tokens for turn in turns)
        reading = sum(turn.prompt_seconds for turn in turns)
        session = self.conversation._session
        self.note(f"messages  {len(self.conversation.history)}, {self.conversation.forgotten} of them left out")
        self.note(f"context   {len(session.tokens)} of {session.context} tokens")
        self.note(f"answers   {len(turns)}, {tokens} tokens, {tokens / max(seconds, 1e-9):.1f} tok/s")
        self.note(f"read      {read} tokens, {read / max(reading, 1e-9):.1f} tok/s")
        if turns:
            self.note(f"the last  {summary(turns[-1])}")

    def _help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self.note(f"{f'{name} {command.argument}':<15} {command.about}")
        self.note("Ctrl-C while the model answers stops the answer. Tab completes commands and names of files.")


COMMANDS = {
    "/regenerate": _Command("", "answer the last message again", _Talk._regenerate),
    "/undo": _Command("", "take the last message and its answer back", _Talk._undo),
    "/reset": _Command("", "begin anew, with the same system message", _Talk._reset),
    "/system": _Command("[TEXT]", "set the system message; without TEXT, show it", _Talk._system),
    "/save": _Command("FILE", "write the conversation to a file", _Talk._save),
    "/load": _Command("FILE", "go on with one from a file", _Talk._load),
    "/stats": _Command("", "how many tokens, and how fast", _Talk._stats),
    "/help": _Command("", "list the commands", _Talk._help),
    "/exit": _Command("", "leave; Ctrl-D and Ctrl-C do so too", _Talk._exit),
}


class _InPipe(_Talk):
    """One line in, one answer out, and nothing else on stdout."""

    def run(self) -> None:
        for line in sys.stdin.buffer:
            text = line.decode(errors="replace").rstrip("\r\n")
            try:
                self.hear(text)
            except _Left:
                return

    def note(self, text: str) -> None:
        tell(one_line(text))

    def show(self, pieces: Any) -> None:  # noqa: ANN401
        write = TextOutput().write
        for piece in pieces:
            write(piece.encode())
        write(b"\n")


class _InTerminal(_Talk):
    """A prompt, answers that are wrapped at words, and notes in a dim colour."""

    def run(self, greeting: str) -> None:
        self._history = LineHistory(history_path())
        self._dim = ("", "") if _is_plain() else ("\x1b[2m", "\x1b[0m")
        _begin_line_editing(self._history)
        self.note(f"{greeting}. /help lists commands.")
        interrupted = False  # by a Ctrl-C after which nothing was said
        while True:
            try:
                text = input("> ").encode(errors="surrogateescape").decode(errors="replace")
            except EOFError:
                say()
                return
            except KeyboardInterrupt:
                say()
                if interrupted:
                    return
                interrupted = True
                self.note("Ctrl-C again leaves.")
                continue
            interrupted = False
            self._history.add(text)
            try:
                self.hear(text)
            except _Left:
                return
            except KeyboardInterrupt:
                interrupted = True
                self.note("stopped")
            except BrokenPipeError:
                raise
            except (ValueError, OSError, RuntimeError) as error:
                self.note(f"error: {without_function(str(error))}")

    def note(self, text: str) -> None:
        begin, end = self._dim  # our own, so behind the filter
        sys.stdout.write(f"{begin}{one_line(text)}{end}\n")
        sys.stdout.flush()

    def show(self, pieces: Any) -> None:  # noqa: ANN401
        output = TextOutput()
        wrap = WordWrap(shutil.get_terminal_size().columns)
        try:
            for piece in pieces:
                wrap.width = max(1, shutil.get_terminal_size().columns)
                output.write(wrap.feed(visible(piece)).encode())
        finally:
            output.write(wrap.end().encode())

    def answered(self, turn: Turn) -> None:
        say()
        self.note(f"[{summary(turn)}]")


def _is_plain() -> bool:
    """Whether notes have no colour: NO_COLOR, or a terminal that knows none."""
    from .display import console

    return console().color_system is None


def _begin_line_editing(history: LineHistory) -> None:
    """Where there is readline, input() edits lines, completes commands, and knows the lines of earlier chats."""
    try:
        import readline
    except ImportError:
        return
    readline.clear_history()
    for line in history.lines():
        readline.add_history(line)
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, state: _candidate(readline.get_line_buffer(), text, state))
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def _candidate(line: str, word: str, number: int) -> str | None:
    found = completions(line, word)
    return found[number] if number < len(found) else None


def completions(line: str, word: str) -> list[str]:
    """Give what Tab makes of a word at the end of a line.

    Examples
    --------
    >>> from llama2cpp.command.terminal import completions
    >>> completions("/re", "/re")
    ['/regenerate', '/reset']
    >>> completions("Hello /re", "/re")
    []
    """
    if line == word:
        return [name for name in COMMANDS if word.startswith("/") and name.startswith(word)]
    name, _, argument = line.partition(" ")
    if name in ("/save", "/load") and " " not in argument:
        paths = sorted(glob.glob(f"{glob.escape(word)}*"))  # noqa: PTH207 - the words that pathlib makes are others
        return [path for path in paths if one_line(path) == path]  # others cannot be shown as they are
    return []


def summary(turn: Turn) -> str:
    """Tell what an answer took."""
    parts = [f"{turn.tokens} tokens, {turn.tokens / max(turn.seconds, 1e-9):.1f} tok/s"]
    read = turn.prompt_tokens - turn.reused_tokens
    parts.append(f"{read} of {turn.prompt_tokens} tokens before them read in {turn.prompt_seconds:.2f} s")
    if turn.finish_reason == "length":
        parts.append("cut at --max-tokens")
    if turn.finish_reason == "context":
        parts.append("the context is full")
    if turn.finish_reason == "incomplete":
        parts.append("cut before its grammar was at an end")
    if turn.forgotten:
        parts.append(f"the context was full, so the {turn.forgotten} oldest messages are left out from here on")
    return "; ".join(parts)
