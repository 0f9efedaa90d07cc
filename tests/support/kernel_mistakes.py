"""Small mistakes for the kernels' source, found in it by their form. For tests/support/mutate_kernels.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Mistake:
    """`wrong` in place of the source from `begin` to `end`."""

    what: str
    begin: int
    end: int
    wrong: str
    fixed: bool = False  # the compiler must know it: it cannot be behind a switch


def arguments(text: str, begin: int) -> tuple[list[tuple[str, int]], int]:
    """The arguments of the call whose parenthesis or bracket opens at `begin` and where each starts; and its end."""
    parts: list[tuple[str, int]] = []
    depth, start = 0, begin + 1

    def part(end: int) -> tuple[str, int]:
        whole = text[start:end]
        return whole.strip(), start + len(whole) - len(whole.lstrip())

    for i in range(begin, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return [*parts, part(i)], i + 1
        elif text[i] == "," and depth == 1:
            parts.append(part(i))
            start = i + 1
    raise ValueError(f"no end to the call at {begin}")


def terms(expression: str) -> list[str]:
    """What a sum adds, if it is one."""
    depth, start, parts = 0, 0, []
    for i, letter in enumerate(expression):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and expression[i : i + 3] == " + ":
            parts.append(expression[start:i])
            start = i + 3
    return [*parts, expression[start:]]


def line_at(text: str, place: int) -> str:
    return text[text.rfind("\n", 0, place) + 1 : text.find("\n", place)]


def calls(text: str, name: str) -> Iterator[tuple[int, list[str], int]]:
    """Where calls of `name` begin, their arguments, and where they end."""
    for call in re.finditer(rf"(?<![\w.]){name}\(", text):
        if re.search(r"(?:inline|static) [\w:]+ $", text[: call.start()]):
            continue  # where it is defined
        parts, end = arguments(text, call.end() - 1)
        yield call.start(), [part for part, _ in parts], end


# Not mistakes: products that are exact, and the first step of exp's polynomial, where a rounding reaches the result for
# one value in thirty million.
EXACT = {
    ("zero", "poison"),
    ("zero", "mul(a, zero)"),
    ("number", "minimum"),
    ("to_float(dots[p][n])", "set1(0.0F)"),
    ("set1(-0.693145752F)", "x"),
    ("r", "set1(1.0F / 720.0F)"),
}
# The same for a unit in the polynomial's last coefficients.
FAINT = {"1.0F / 5040.0F", "1.0F / 720.0F"}


def in_sums(text: str) -> Iterator[Mistake]:
    """Roundings, terms that are not there, factors in another order."""
    for begin, (a, b, c), end in calls(text, "fma"):
        if (b, c) not in EXACT:
            yield Mistake(f"fma({a}, {b}, {c}) rounded twice", begin, end, f"add(mul({a}, {b}), {c})")
        yield Mistake(f"nothing added: fma({a}, {b}, {c})", begin, end, c)
        for factor, other in ((a, b), (b, a)):
            if factor.startswith("mul("):
                (x, y), _ = arguments(factor, 3)
                yield Mistake(f"{factor} in another order", begin, end, f"fma({x[0]}, mul({y[0]}, {other}), {c})")
    for begin, (a, b, c), end in calls(text, "fma_flushed"):  # of factors whose product is exact
        yield Mistake(f"nothing added: fma_flushed({a}, {b}, {c})", begin, end, c)
        yield Mistake(f"as it is: fma_flushed({a}, {b}, {c})", begin, end, f"fma({a}, {b}, {c})")
    for begin, (a, b), end in calls(text, "add"):
        if "magic" not in b:
            yield Mistake(f"nothing added: add({a}, {b})", begin, end, a)
    for begin, (a, b), end in calls(text, "mul"):
        if a.startswith("mul("):
            (x, y), _ = arguments(a, 3)
            yield Mistake(f"mul({a}, {b}) in another order", begin, end, f"mul({x[0]}, mul({y[0]}, {b}))")


def in_constants(text: str) -> Iterator[Mistake]:
    for constant in re.finditer(r"set1\((-?[0-9.e+-]+F(?: / [0-9.]+F)?)\)", text):
        value, line = constant[1], line_at(text, constant.start())
        if value == "0.0F" or (value in {"-0.5F", "0.5F", "127.0F", "-127.0F", "-1.0F", "1.0F"} and "fma" not in line):
            continue  # borders that are exact, not factors
        if value in FAINT or "magic" in line or "round = " in line:
            continue  # a unit more of the latter is two, and still even
        yield Mistake(f"{value} one unit off", constant.start(1), constant.end(1), f"{value} * 1.0000001F")


def in_indices(text: str) -> Iterator[Mistake]:
    """Strides, neighbours and halves that an address forgets."""
    places = [match.end() - 1 for match in re.finditer(r"(?<=[\w>\]])[(\[]", text)]
    for place in places:
        parts, _ = arguments(text, place)
        for part, begin in parts:
            yield from without_a_term(part, begin)
    for start in re.finditer(r"(?<= = )[^;{}=]+(?=;)", text):
        if "constexpr" not in line_at(text, start.start()):
            yield from without_a_term(start[0], start.start())
    loops = {match.start() for match in re.finditer(r"\bfor \(", text)}
    for step in re.finditer(r"\b([\w.]+) \+= ([^;,{}]+?)(?=[;,]|\) )", text):
        loop = max((place for place in loops if place < step.start()), default=-1)
        head = line_at(text, loop) if loop >= 0 else ""
        if re.match(rf"\s*for \([\w:]* ?{step[1]}[ ;]", head) or f"; {step[1]} " in head:
            continue  # never ends
        yield Mistake(f"not {step[0]}", step.start(2), step.end(2), "0")


def without_a_term(expression: str, begin: int) -> Iterator[Mistake]:
    if re.search(r"[;{}?<]|==|>=|&&|\|\|", expression.replace("reinterpret_cast<", "").replace("->", "")):
        return
    parts = terms(expression)
    for i in range(1, len(parts)):
        left = " + ".join(parts[:i] + parts[i + 1 :])
        yield Mistake(f"{left} for {expression}", begin, begin + len(expression), left)


def in_conditions(text: str) -> Iterator[Mistake]:
    for match in re.finditer(r"\bif (?=\()", text):
        _, end = arguments(text, match.end())
        yield Mistake(f"not: if {text[match.end() : end]}", match.end() + 1, end - 1, f"!{text[match.end() : end]}")
    for match in re.finditer(r"(?:= |\(|: |, |return )([\w.+ ]+(?: (?:[<>!=]=?) [\w.+ ]+)?) \? ", text):
        if "constexpr" not in line_at(text, match.start()):
            yield Mistake(f"not: {match[1]} ?", match.start(1), match.end(1), f"!({match[1]})")
    for match in re.finditer(r"\bfor \([^;]*; ([^;]*); ([^\n]*)\) ", text):
        begin, bound = match.start(1), match[1]
        stride = re.match(r"\w+ [+-]= (\w+)", match[2])
        step = stride[1] if stride else "1"
        for less in re.finditer(r"([^&]+) (<=?|>) ([^&]+)", bound):
            left, sign, right = less[1].strip(), less[2], less[3].strip()
            at = begin + less.start() + len(less[1]) - len(less[1].lstrip())
            wrong = {
                "<": f"{left} + {step} < {right}",
                ">": f"{left} > {right} + 1",
                "<=": f"{left} <= {right} + 1",
            }[sign]
            yield Mistake(f"while {wrong}", at, at + len(less[0].strip()), wrong)


def in_templates(text: str) -> Iterator[Mistake]:
    """The quad beside, or the half."""
    for call in re.finditer(r"\b(?!\w+_tokens)(\w+<(?:\w+, )?(?:kBegin \+ )?)(\d)>(?=\()", text):
        _, end = arguments(text, call.end())
        wrong = f"{call[1]}{int(call[2]) ^ 1}>{text[call.end() : end]}"
        yield Mistake(f"{wrong} for {call[0]}", call.start(), end, wrong)


# By hand, for each file, what no form above makes: a stretch of the source and what is wrong in its place, wherever it
# stands.
ZERO_HEADER = "(((blocks - 1) >> layout.share) + 1) * kZeroEntry + 63"
SWAPPED_BLOCKS = """[&] {
        const std::int64_t to = (block ^ 1) < count ? (block ^ 1) - block : 0;
        BlockInput other = input;
        other.x += to * kBlockCols * width;
        other.scales += to * width;
        other.starts += to * L.halves * width;
        other.sums += to * L.halves * width;
        block_half<L, 0>(b, header, block + to, w + to * L.bits * 64, other, width, sum);
      }()"""
SWAPS = {
    "attention.inl": [
        ("tile + kKeyTile", "tile + kKeyTile + 1"),
        ("tile + kKeyTile", "tile + kKeyTile - 1"),
        ("sum_lanes(lanes[n][0]) * factor", "sum_lanes(lanes[n][0]) / call.root"),
    ],
    "llm_int8.inl": [
        ("r.x[k] > r.limit", "r.x[k] >= r.limit"),
        ("r.x[k] < -r.limit", "r.x[k] <= -r.limit"),
        (
            "if_less(negative_abs(x), minus_limit, set1(0.0F), x)",
            "if_less(minus_limit, negative_abs(x), x, set1(0.0F))",
        ),
        (
            "fma(column_of(w + p * c.panel_stride, columns[i], scale[p]), factor, sum[p])",
            "fma(column_of(w + p * c.panel_stride, columns[c.counts[token] - 1 - i], scale[p]), "
            "set1(x[c.counts[token] - 1 - i]), sum[p])",
        ),
        ("column / 4 * 64", "(column + 3) / 4 * 64"),
    ],
    "matmul.inl": [
        ("b.first && begin == 0", "b.first"),
        ("b.first && begin == 0", "begin == 0"),
        ("panel + p * gap + 1 == b.n_panels", "panel + P * gap == b.n_panels"),
        ("(panel + p * gap) * 16", "(panel + p) * 16"),
        ("part * kStreams", "part"),
    ],
    "matmul_blocks.inl": [
        (
            "shift<J % 2 * 4>(load_bytes64(planes + J / 2 * 64))",
            "shift<(J + 1) % 2 * 4>(load_bytes64(planes + J / 2 * 64))",
        ),
        (
            "shift<J % 4 * 2 - to>(load_bytes64(planes + J / 4 * 64))",
            "shift<J % 4 * 2 - to + 1>(load_bytes64(planes + J / 4 * 64))",
        ),
        ("shift<J - to>(load_bytes64(planes))", "shift<J - to + 1>(load_bytes64(planes))"),
        ("15 * kOnes", "7 * kOnes"),
        ("15 * kOnes", "31 * kOnes"),
        ("(3 << to) * kOnes", "(1 << to) * kOnes"),
        ("(1 << to) * kOnes", "(3 << to) * kOnes"),
        ("dot_start(start, kShift)", "dot_start(start, kOffset == 4 ? 3 : kShift)"),
        ("dot_start(start, kShift)", "dot_start(start, kOffset == 8 ? 2 : kShift)"),
        ("dot_start(start, kShift)", "dot_start(start, kOffset == 16 ? 3 : kShift)"),
        ("dot_start(start, kShift)", "dot_start(start, kOffset == 32 ? 4 : kShift)"),
        ("(bytes + 63) / 64 * 64", "bytes"),
        (ZERO_HEADER, ZERO_HEADER.replace("(blocks - 1)", "blocks")),
        ("block >> share", "block"),
        ("(block * kFields + field) * L.halves + half", "(block * kFields + field) * L.halves"),
        ("block * kFields + field", "block * kFields"),
        ("header + field * 32", "header + (field ^ 1) * 32"),
        ("input.scales[n]", "input.scales[0]"),
        ("input.sums[kHalf * width + n]", "input.sums[n]"),
        ("input.starts + kHalf * width + n", "input.starts + n"),
        ("L.halves * width", "width"),
        ("kAll ? N : b.n_tokens", "N"),
        ("token * kBlockCols", "token * kBlockCols * N"),
        ("b.n_tokens * i / parts", "(b.n_tokens * i + 1) / parts"),
        ("block_half<L, 0>(b, header, block, w, input, width, sum)", SWAPPED_BLOCKS),
        ("header_of(layout, count)", "header_of(layout, kUnitBlocks)"),
        ("header_of(layout, count)", "header_of(L, count)"),
    ],
    "unpack_blocks.inl": [
        ("part % 2 == 1", "part % 2 == 0"),
        ("quad * layout.halves / 8 * 64", "quad / 8 * 64"),
        ("(2 << shift_of_offset) <= b.layout.offset", "(2 << shift_of_offset) < b.layout.offset"),
        ("(i * L.halves + half) * 64", "i * L.halves * 64"),
        ("b.n_tokens * i / parts", "(b.n_tokens * i + 1) / parts"),
        ("(n_tokens - 1) * kBlockCols", "(N - 1) * kBlockCols"),
        ("set1(12582912.0F)", "set1(12582913.0F)"),
        ("largest / 127.0F", "largest * (1.0F / 127.0F)"),
        ("header_of(layout, blocks)", "header_of(layout, kUnitBlocks)"),
        ("header_of(layout, blocks)", "header_of(L, blocks)"),
        ("mul(scale, sub(byte_of<I>(w), zero))", "sub(mul(scale, byte_of<I>(w)), mul(scale, zero))"),
        ("scales[n]", "scales[0]"),
        ("sums[n]", "sums[0]"),
    ],
    "scores_of_few.inl": [
        ("even_and_odd_fours(y, x)", "even_and_odd_fours(x, y)"),
        ("even_and_odd(y, x)", "even_and_odd(x, y)"),
        ("twos(a[2], a[3])", "twos(a[3], a[2])"),
        ("mul(add_quarters(quarters[n]), factor)", "div(add_quarters(quarters[n]), set1(call.root))"),
    ],
    "scores_of_many.inl": [
        ("mul(sum.of[n][half], factor)", "div(sum.of[n][half], set1(call.root))"),
        ("call.head_dim > kMostTurned", "call.head_dim > 2 * kMostTurned"),
        ("call.n / kManyKeys * kManyKeys", "(call.n + 1) / kManyKeys * kManyKeys"),
    ],
    "wide_blocks.inl": [
        (
            "shift<J * 4 % 8>(load_bytes64(w + p * b.panel_stride + J / 2 * 64))",
            "shift<(J + 1) * 4 % 8>(load_bytes64(w + p * b.panel_stride + J / 2 * 64))",
        ),
        ("header_of(layout, count)", "header_of(layout, kUnitBlocks)"),
        ("header_of(layout, count)", "header_of(L, count)"),
    ],
}
# The same for what the compiler must know: each is compiled by itself, with all its changes.
FIXED: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "attention.inl": [("tiles of half the size", [("kKeyTile", "(kKeyTile / 2)")])],
    "matmul.inl": [
        (
            "blocks of twice the size",
            [("+ kBlock ", "+ 2 * kBlock "), ("+= kBlock)", "+= 2 * kBlock)")],
        )
    ],
    "scores_of_many.inl": [
        (
            "elements from the last to the first",
            [
                ("turned + i * kManyKeys", "turned + (head_dim - 16 + 2 * J - i) * kManyKeys"),
                ("q[n][i]", "q[n][head_dim - 16 + 2 * J - i]"),
            ],
        )
    ],
    "wide_blocks.inl": [
        (
            "a sum that goes on from unit to unit",
            [("part[p][n] = set1(0.0F)", "part[p][n] = sum[p][n]"), ("add(sum[p][n], part[p][n])", "part[p][n]")],
        )
    ],
}


# What the forms above make of these files that is right as well.
RIGHT_TOO = {
    "attention.inl": {
        "p + 1 < end",  # what queries do not do together each does by itself
        "p + 1 < common",
        "mix_columns<N, 0>(call, query, d, 16)",  # all 16 are a part, too
    },
    "attention_q8.inl": {
        "p + 1 < end",  # as above
        "p + 1 < common",
        "tile > 0 + 1",  # tiles begin at multiples of 256
        "!(call.queries > kQueries)",  # few or many: the same numbers, only slower
        "d + 64 <= call.head_dim + 1",  # heads are multiples of 32
    },
    "llm_int8.inl": {
        "k < (i + 1 < whole ? i + 16 : r.n)",  # both are multiples of 16
        "panel in const std::int64_t rows = rows_of(c, panel + p);",  # only reads too far, which sanitizers see
        "!(rows < 16) in sum[p] = rows < 16 ? load_part(out + p * 16, rows) : load(out + p * 16);",
    },
}


def is_right(name: str, text: str, mistake: Mistake) -> bool:
    line = f"{mistake.wrong} in {line_at(text, mistake.begin).strip()}"
    return not RIGHT_TOO.get(name, set()).isdisjoint({mistake.wrong, line})


def only_asks(text: str, place: int) -> bool:
    """Whether this only asks memory for what is read later, which changes no bits."""
    functions = (match for match in re.finditer(r"\ninline void ask.*?\n}\n", text, re.DOTALL))
    if any(match.start() < place < match.end() for match in functions):
        return True
    line = line_at(text, place)
    next_line = line_at(text, text.find("\n", place) + 1)
    return re.search(r"prefetch|\bask|[aA]head|kLineRows|\bnext\b", line) is not None or "int64_t line = " in next_line


def places(right: str, name: str, text: str) -> list[int]:
    found = [match.start() for match in re.finditer(re.escape(right), text)]
    if not found:
        raise ValueError(f"not in {name}: {right}")
    return found


def mistakes(name: str, text: str) -> list[Mistake]:
    """All mistakes for the file of that name."""
    text = re.sub(r"//.*", lambda comment: " " * len(comment[0]), text)
    if name.startswith("llama2c_"):
        found = [*in_llama2c_order(text), *in_indices(text), *in_conditions(text)]
    else:
        found = [
            mistake
            for kind in (in_sums, in_constants, in_indices, in_conditions, in_templates)
            for mistake in kind(text)
        ]
        for right, wrong in SWAPS.get(name, []):
            found += [Mistake(f"{wrong} for {right}", at, at + len(right), wrong) for at in places(right, name, text)]
        for what, changes in FIXED.get(name, []):
            changed = text
            for right, wrong in changes:
                places(right, name, text)
                changed = changed.replace(right, wrong)
            found.append(Mistake(what, 0, len(text), changed, fixed=True))
    # What is asked of memory early changes no bits.
    return sorted(
        (
            mistake
            for mistake in found
            if mistake.fixed or not (only_asks(text, mistake.begin) or is_right(name, text, mistake))
        ),
        key=lambda mistake: mistake.begin,
    )


def in_llama2c_order(text: str) -> Iterator[Mistake]:
    """The same for the kernels where nothing is fused, but in the doubles of the exponential.

    A unit in a double there reaches the result for one value in hundreds of millions; so its constants change by more.
    """
    for begin, (x, product), end in calls(text, "add"):
        if product.startswith("mul("):
            ((a, _), (b, _)), _ = arguments(product, 3)
            yield Mistake(f"add({x}, {product}) fused", begin, end, f"fma({a}, {b}, {x})")
    for constant in re.finditer(r"(set1|all_f64)\((kExp\w+)\)", text):
        factor = "1.0001" if constant[1] == "all_f64" else "0.9999F"  # one unit too far out, the results are 0 and inf
        yield Mistake(f"{constant[2]} off", constant.start(2), constant.end(2), f"{constant[2]} * {factor}")
    for right, wrong in (
        ("sum + x[i] * x[i]", "__builtin_fmaf(x[i], x[i], sum)"),
        ("mul(mul(gate, div(one, add(one, e))), up)", "mul(mul(gate, up), div(one, add(one, e)))"),
        ("mul(mul(gate, div(one, add(one, e))), up)", "mul(div(gate, add(one, e)), up)"),
        ("div(sum[g], root)", "mul(sum[g], div(set1(1.0F), root))"),
        ("div(sum, root)", "mul(sum, div(set1(1.0F), root))"),
        ("sum + out[p + j]", "sum + out[p + 15 - j]"),
    ):
        if text.count(right) != 1:
            raise ValueError(f"{text.count(right)} times in the source: {right}")
        begin = text.index(right)
        yield Mistake(f"{right} -> {wrong}", begin, begin + len(right), wrong)
