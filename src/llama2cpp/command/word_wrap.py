"""Lines that end between words, of a text that comes in pieces."""

from __future__ import annotations


class WordWrap:
    r"""Breaks lines of a text in pieces so that no word is cut. A word is held back until its end has come.

    Parameters
    ----------
    width : int
        Columns of a line.

    Examples
    --------
    >>> from llama2cpp.command.word_wrap import WordWrap
    >>> wrap = WordWrap(8)
    >>> wrap.feed("one tw") + wrap.feed("o three") + wrap.end()
    'one two\nthree'
    """

    def __init__(self, width: int) -> None:
        self.width = max(1, width)
        self._column = 0
        self._space = ""  # before the word
        self._word = ""
        self._size = 0  # the word's columns
        self._is_rest = False  # the word's beginning has been shown

    def feed(self, text: str) -> str:
        """Take a piece, and give what can be shown."""
        from rich.cells import cell_len

        shown = []
        for character in text:
            if character == "\n":
                shown += [self.end(), "\n"]
                self._column = 0
            elif character.isspace():
                shown.append(self._show())
                self._is_rest = False
                self._space += " " if character == "\t" else character
            else:
                size = cell_len(character)
                if size > 1:  # Chinese and Japanese may be broken anywhere, and so may rows of emoji
                    shown.append(self._show())
                    self._is_rest = False
                self._word += character
                self._size += size
                if self._size >= self.width:  # longer than any line: the terminal breaks it
                    shown.append(self._show())
                    self._is_rest = True
        return "".join(shown)

    def end(self) -> str:
        """Give what is held back."""
        shown = self._show()
        self._is_rest = False
        self._space = ""  # nobody sees it at the end of a line
        return shown

    def _show(self) -> str:
        if not self._word:
            return ""
        space, word, size = self._space, self._word, self._size
        self._space, self._word, self._size = "", "", 0
        column = self._column + len(space) + size
        if column > self.width and self._column and not self._is_rest:
            space, column = "\n", size
        self._column = (column - 1) % self.width + 1
        return space + word
