"""Write unicode_tables.inc, the classes that pre_tokenizer.cpp looks up.

    pip install unicodedata2==16.0.0
    python src/cpp/text/make_unicode_tables.py

The references' regular expressions (tiktoken 0.14, tokenizers 0.23) have the classes of Unicode 16.0, and so has Python
3.14; other Pythons need unicodedata2. tests/text/test_byte_bpe_classes.py compares all code points with the references.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

VERSION = "16.0.0"
if unicodedata.unidata_version != VERSION:
    import unicodedata2 as unicodedata
BLOCK = 256  # code points
OTHER, LETTER, NUMBER, SPACE = range(4)
NO_CASE, UPPER, LOWER, EITHER = range(4)

# The property White_Space, which no module has. It has not changed since Unicode 6.3.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def class_of(code: int) -> int:
    """Tell the class of one code point."""
    if code in SPACES:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(chr(code))[0], OTHER)


def case_of(code: int) -> int:
    """Tell the case of one code point."""
    cases = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": EITHER, "Lo": EITHER}
    category = unicodedata.category(chr(code))
    return EITHER if category[0] == "M" else cases.get(category, NO_CASE)


def words_of(block: range, value_of: Callable[[int], int]) -> tuple[int, ...]:
    """Pack the values of a block, two bits each, the first in the lowest."""
    per_word = 32
    return tuple(
        sum(value_of(block[at + i]) << 2 * i for i in range(per_word)) for at in range(0, len(block), per_word)
    )


def table(name: str, value_of: Callable[[int], int]) -> str:
    """Write the two arrays of a table: which block each code point is in, and the blocks."""
    numbers: dict[tuple[int, ...], int] = {}  # of equal blocks one is kept
    of_block = [
        numbers.setdefault(words_of(range(at, at + BLOCK), value_of), len(numbers)) for at in range(0, 0x110000, BLOCK)
    ]
    packed = [f"0x{word:016X}" for words in numbers for word in words]
    return f"""\
// [code point / {BLOCK}]: which of the blocks below it lies in.
constexpr std::uint8_t k{name}BlockOf[{len(of_block)}] = {{
{rows([str(number) for number in of_block], 28)}
}};

// [block][code point % {BLOCK} / 32]: 32 code points, the first in the lowest bits.
constexpr std::uint64_t k{name}Blocks[{len(packed)}] = {{
{rows(packed, 6)}
}};
"""


def punctuation() -> list[tuple[int, int]]:
    """Give the runs of code points of general category P, first and last."""
    runs: list[tuple[int, int]] = []
    for code in range(0x110000):
        if unicodedata.category(chr(code))[0] != "P":
            continue
        begin = runs.pop()[0] if runs and runs[-1][1] == code - 1 else code
        runs.append((begin, code))
    return runs


def rows(values: list[str], per_row: int) -> str:
    """Lay out the values of an array."""
    return "\n".join("    " + ", ".join(values[at : at + per_row]) + "," for at in range(0, len(values), per_row))


def main() -> None:
    """Write the file beside this script."""
    if unicodedata.unidata_version != VERSION:
        raise SystemExit(f"expected Unicode {VERSION}, found {unicodedata.unidata_version}")
    runs = punctuation()
    text = f"""\
// Made by make_unicode_tables.py from Unicode {VERSION}; not edited by hand. Two bits for each code point: 0 other,
// 1 letter (general category L), 2 number (N), 3 white space.

{table("", class_of)}
// The same for case: 0 none, 1 upper or title (general categories Lu, Lt), 2 lower (Ll), 3 either (Lm, Lo, marks: M).

{table("Case", case_of)}
// Punctuation (general category P), which is among the others: the first and the last code point of each run.
constexpr std::uint32_t kPunctuation[{len(runs)}][2] = {{
{rows([f"{{0x{begin:X}, 0x{end:X}}}" for begin, end in runs], 6)}
}};
"""
    Path(__file__).with_name("unicode_tables.inc").write_text(text)


if __name__ == "__main__":
    main()
