"""Write categories.inc, general categories for patterns, and composition.inc, what canonical composition (NFC) needs.

    pip install unicodedata2==16.0.0
    python src/cpp/text/make_unicode_tables.py

The references' regular expressions and their NFC (tiktoken 0.14, tokenizers 0.23) have Unicode 16.0, and so has Python
3.14; other Pythons need unicodedata2. tests/text/test_byte_bpe_classes.py and tests/text/test_patterns.py compare all
code points with the references.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

VERSION = "16.0.0"
if unicodedata.unidata_version != VERSION:
    import unicodedata2 as unicodedata
CATEGORIES = [
    "Lu",
    "Ll",
    "Lt",
    "Lm",
    "Lo",
    "Mn",
    "Mc",
    "Me",
    "Nd",
    "Nl",
    "No",
    "Pc",
    "Pd",
    "Ps",
    "Pe",
    "Pi",
    "Pf",
    "Po",
    "Sm",
    "Sc",
    "Sk",
    "So",
    "Zs",
    "Zl",
    "Zp",
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
]

# The property White_Space, which no module has. It has not changed since Unicode 6.3.
SPACES = [0x09, 0x20, 0x85, 0xA0, 0x1680, 0x2000, 0x2028, 0x202F, 0x205F, 0x3000]
SPACE_ENDS = [0x0E, 0x21, 0x86, 0xA1, 0x1681, 0x200B, 0x202A, 0x2030, 0x2060, 0x3001]


def runs(value_of: Callable[[int], int]) -> list[tuple[int, int]]:
    """Give each code point at which a value begins, and the value; the first is 0."""
    found: list[tuple[int, int]] = []
    for code in range(0x110000):
        value = value_of(code)
        if not found or found[-1][1] != value:
            found.append((code, value))
    return found


def decompositions() -> list[tuple[int, int, int, bool]]:
    """Give code points with what they canonically are (the second 0: one alone), and whether these compose again.

    Hangul syllables are not among them: they follow a rule.
    """
    found = []
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code))
        if not parts or parts.startswith("<"):
            continue
        first, *second = (int(part, 16) for part in parts.split())
        found.append((code, first, second[0] if second else 0, unicodedata.normalize("NFC", chr(code)) == chr(code)))
    return found


def rows(values: list[str], per_row: int) -> str:
    """Lay out the values of an array."""
    return "\n".join("    " + ", ".join(values[at : at + per_row]) + "," for at in range(0, len(values), per_row))


def main() -> None:
    """Write the files beside this script."""
    if unicodedata.unidata_version != VERSION:
        raise SystemExit(f"expected Unicode {VERSION}, found {unicodedata.unidata_version}")
    categories = runs(lambda code: CATEGORIES.index(unicodedata.category(chr(code))))
    classes = runs(lambda code: unicodedata.combining(chr(code)))
    parts = decompositions()
    names = rows([f'"{name}"' for name in CATEGORIES], 15)
    header = f"// Made by make_unicode_tables.py from Unicode {VERSION}; not edited by hand.\n\n"
    tables = f"""\
// General categories, by the numbers that the next table has for them.
constexpr std::string_view kCategoryNames[{len(CATEGORIES)}] = {{
{names}
}};

// Code points at which a category begins: code point * 32 + category.
constexpr std::uint32_t kCategoryRuns[{len(categories)}] = {{
{rows([f"0x{code << 5 | value:X}" for code, value in categories], 12)}
}};

// White space (the property White_Space): first code point and the one behind the last.
constexpr std::uint32_t kSpaceRuns[{len(SPACES)}][2] = {{
{rows([f"{{0x{first:X}, 0x{end:X}}}" for first, end in zip(SPACES, SPACE_ENDS, strict=True)], 6)}
}};
"""
    Path(__file__).with_name("categories.inc").write_text(header + tables)
    tables = f"""\
// Code points at which another canonical combining class begins: code point * 256 + class.
constexpr std::uint32_t kCombiningRuns[{len(classes)}] = {{
{rows([f"0x{code << 8 | value:X}" for code, value in classes], 12)}
}};

// What a code point canonically is: two others, or one (the second is 0). composes: NFC makes it of the two.
struct Decomposition {{
  std::uint32_t code, first, second;
  bool composes;
}};
constexpr Decomposition kDecompositions[{len(parts)}] = {{
{rows([f"{{0x{code:X}, 0x{a:X}, 0x{b:X}, {'true' if both else 'false'}}}" for code, a, b, both in parts], 4)}
}};
"""
    Path(__file__).with_name("composition.inc").write_text(header + tables)


if __name__ == "__main__":
    main()
