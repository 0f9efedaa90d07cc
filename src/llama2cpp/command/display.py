r"""What the commands write, and the filter that all of it goes through: only this module prints.

What a model says, the names of files, the text of errors and what a file holds are others' words. A terminal obeys
control characters among them (it may be told to rename its window, to clear the screen, to type), and characters that
change the direction of reading make one name look like another. They are spelled instead: ``\x1b``, ``\u202e``.

Names and messages are always filtered. The text that `generate`, `run` and `chat` produce is filtered where it goes to
a terminal; in a pipe or a file it is the model's, byte for byte.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Controls of ASCII and of Latin-1; the ends of lines and paragraphs that Unicode adds; all that have the property
# Bidi_Control, and the deprecated controls of formatting after them; marks of annotations; the byte order mark; halves
# of surrogate pairs, which bytes of a name that are no UTF-8 become in Python, and which no stream can encode.
_SPELLED = [
    *range(0x20),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F, 0x2028, 0x2029),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x2070),
    *range(0xFFF9, 0xFFFC),
    0xFEFF,
    *range(0xD800, 0xE000),
]
_ALL = {code: chr(code).encode("ascii", "backslashreplace").decode() for code in _SPELLED}
_ALL |= {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}
_TEXT = {code: spelled for code, spelled in _ALL.items() if chr(code) not in "\n\t"}


# What the package's messages begin with, which the user of a command has not called.
_FUNCTION = re.compile(r"^(?:generate|complete|stream|load|explain|extract|chat|chat_stream|Conversation(?:\.\w+)?): ")


def without_function(message: str) -> str:
    """Take the function away that a message of the package begins with.

    Parameters
    ----------
    message : str
        Of an exception.

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.command.display import without_function
    >>> without_function("Conversation.say: text has the lone surrogate U+D800 at character 0")
    'text has the lone surrogate U+D800 at character 0'
    """
    return _FUNCTION.sub("", message)


def visible(text: str) -> str:
    r"""Spell what a terminal would obey, in a text of several lines: all controls but tabs and ends of lines.

    Examples
    --------
    >>> from llama2cpp.command.display import visible
    >>> visible("a\x1b[31m name\u202e")
    'a\\x1b[31m name\\u202e'
    """
    return text.replace("\r\n", "\n").translate(_TEXT)


def one_line(text: str) -> str:
    """Do the same for a name or a message, which is to be one line: its ends of lines become spaces."""
    return text.replace("\n", " ").replace("\t", " ").translate(_ALL)


def say(text: str = "", *, end: str = "\n") -> None:
    """Print to stdout."""
    sys.stdout.write(visible(text) + end)
    sys.stdout.flush()


def tell(text: str) -> None:
    """Print to stderr. Where nobody listens there, that is no error."""
    try:
        sys.stderr.write(visible(text) + "\n")
        sys.stderr.flush()
    except OSError:
        pass


def say_json(value: Any, indent: int | None = 1) -> None:  # noqa: ANN401
    """Print a value as JSON, in ASCII, so that any terminal can show it."""
    say(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


class TextFilter:
    """`visible` for text in pieces of UTF-8, which may be cut within a character."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, piece: bytes) -> str:
        """Take a piece, and give what can be shown."""
        return visible(self._decode(piece))


class TextOutput:
    """Stdout for text that comes in pieces, which are written at once, and as they are unless it is a terminal."""

    def __init__(self) -> None:
        self._filter = TextFilter() if sys.stdout.isatty() else None

    def write(self, piece: bytes) -> None:
        """Write a piece."""
        if self._filter is not None:
            piece = self._filter.feed(piece).encode(sys.stdout.encoding or "utf-8", "backslashreplace")
        sys.stdout.flush()
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def console(*, stderr: bool = False) -> Console:
    """Make a console of rich for tables and bars. Names are no markup in it; cells are to be `visible`."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
