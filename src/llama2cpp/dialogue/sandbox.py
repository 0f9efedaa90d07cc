"""jinja2 for templates that strangers wrote: its sandbox, with limits on time, memory and nesting.

A chat template comes with a model's file, so it is a stranger's program. It sees plain data only, jinja2's sandbox
keeps it from Python's insides, and a budget ends one that would run for ever or fill the memory.

Nesting has limits of its own, because Python's recursion limit counts its own frames and not the C stack, of which a
thread may have as little as 256 KB: jinja2 and the interpreter pass through C code for each call of a macro, each
bracket of a source and each list in a list.

A limit on time is looked at between the lines of Python that run. So what one call of Python's own C code does is
bounded by the size of what it is given: of integers, and of lists with all that is in them, counted as often as it is
named. (minijinja has such limits built in, but no % of text, no rsplit and no {% generation %}, which templates use.)
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from math import log2
from string import Formatter
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# What one rendering may use. Real templates need thousandths of it.
MAX_SECONDS = 2.0  # of this thread's processor time
MAX_CHARACTERS = 100_000_000  # in all strings and lists that it makes, those that it throws away too
MAX_DIGITS = 4000  # of an integer
MAX_CALLS = 40  # of macros, callers, blocks and recursive loops within each other
MAX_DATA = 50  # lists and dicts within each other

# How deep its source may be: for jinja2's parser, where a bracket counts twice and a block once; the tree that comes of
# it, where x.a.b.c has 4; and how many elif an if may have, which Python's compiler has within each other.
MAX_PARSING = 36
MAX_TREE = 60
MAX_ELIFS = 200

MAX_BITS = MAX_DIGITS * 10 // 3
_ITEM = 64  # characters that an item of a list counts for, in what has to be gone through at once
_PLACE = 8  # and in what is made: it is a pointer
_Numbers = frozenset({int, float, bool, type(None)})
_Flat = _Numbers | {str}  # most of what there is, and quickly told
_Nested = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView)


class TooMuchError(BaseException):
    """The budget is spent. Not an Exception: jinja2 catches those while it folds constants."""


class _Budget:
    """What is left of a rendering's time and characters."""

    def __init__(self, lines: bool) -> None:
        self._lines = lines
        self._characters = MAX_CHARACTERS
        self._end = time.thread_time() + MAX_SECONDS
        self._earliest = time.perf_counter() + MAX_SECONDS  # before that, no thread can have used so much
        self.calls = 0  # that are within each other now
        # By id, with what it is, which must not go away. Nothing in a sandbox changes a list.
        self._measured: dict[int, tuple[Any, int, int]] = {}

    def charge(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TooMuchError(f"it makes more than {MAX_CHARACTERS:,} characters")

    def checked(self, value: Any) -> Any:
        """Give back what an operation has made, unless it is larger than others may be given."""
        if isinstance(value, int):
            _check_digits(value.bit_length())
        elif type(value) not in _Flat:
            self.measure(value)
        return value

    def measure(self, value: Any) -> tuple[int, int]:
        """Give how many lists and dicts are within each other, and the characters with all that is named again."""
        if isinstance(value, str | bytes):
            return 0, len(value)
        if type(value) in _Flat or not isinstance(value, _Nested):
            return 0, 0
        known = self._measured.get(id(value))
        if known is not None:
            return known[1:]
        deepest, size = 0, 0
        for items in (value, value.values()) if isinstance(value, Mapping) else (value,):
            size += _ITEM * len(items)
            if size <= MAX_CHARACTERS and not _Numbers.issuperset(map(type, items)):
                for item in items:
                    depth, characters = self.measure(item)
                    deepest, size = max(deepest, depth), size + characters
        if deepest == MAX_DATA:
            raise TooMuchError(f"it has more than {MAX_DATA} lists and dicts within each other")
        if size > MAX_CHARACTERS:
            raise TooMuchError(f"it makes more than {MAX_CHARACTERS:,} characters")
        if size > 0:
            self._measured[id(value)] = value, deepest + 1, size
        return deepest + 1, size

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Python calls this for every call of a function, and for every line that runs where it gives itself back."""
        if time.perf_counter() > self._earliest:  # asking for the processor time of a thread is a system call
            left = self._end - time.thread_time()
            if left < 0:
                raise TooMuchError(f"it takes more than {MAX_SECONDS:g} seconds")
            self._earliest = time.perf_counter() + left
        return self.trace if self._lines and frame.f_globals is not globals() else None  # what is here is short


_budget: ContextVar[_Budget] = ContextVar("_budget")


@contextmanager
def limited(lines: bool = True) -> Iterator[None]:
    """Give what templates do inside the block a budget of their own.

    Without `lines`, the time is looked at where functions are called only: for jinja2's parser and compiler, which call
    some for each token.
    """
    budget = _Budget(lines)
    token = _budget.set(budget)
    before = sys.gettrace()
    sys.settrace(budget.trace)
    try:
        yield
    finally:
        sys.settrace(before)
        _budget.reset(token)


def _charge(characters: int) -> None:
    _budget.get().charge(characters)


def _check_digits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooMuchError(f"it has an integer of more than {MAX_DIGITS:,} digits")


def _size(value: Any) -> int:
    """How many characters str(value) has, roughly; what is named twice counts twice."""
    total, left = 0, [value]
    while left and total <= MAX_CHARACTERS:
        item = left.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int) and not isinstance(item, bool):
            total += item.bit_length() // 3 + 1
        elif isinstance(item, Mapping):
            left += [*item, *item.values()]
        elif isinstance(item, _Nested):
            left += item
            total += _PLACE * len(item)
        else:
            total += 1
    return total


def _charge_format(text: Any, mark: str, values: Iterable[Any]) -> None:
    """Charge for str.format ("{") or the % operator: no width from outside, and no wide one from inside."""
    text = str(text)
    if mark == "{":  # a field within a field
        nested = any("{" in (specification or "") for _, _, specification, _ in Formatter().parse(text))
    else:
        nested = re.search(r"%[-+ #0-9.]*\*", text) is not None
    if nested:
        raise SecurityError("a format may not take its width from a value")
    widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", text))
    _charge(len(text) + widths + text.count(mark) * max((_size(value) for value in values), default=0))


def _whole(values: Iterable[Any]) -> int:
    """Find the largest integer among arguments."""
    return max((abs(value) for value in values if isinstance(value, int)), default=0)


class _Parser(Parser):
    """jinja2's parser, but it stops before its recursion is deep."""

    _depth = 0

    def _deeper(self, by: int = 1) -> None:
        self._depth += by
        if self._depth > MAX_PARSING:
            self.fail("it is nested too deeply", self.stream.current.lineno)

    def parse_statement(self) -> nodes.Node | list[nodes.Node]:
        self._deeper()  # what fails is not parsed further, so that the depth need not be put back
        statement = super().parse_statement()
        self._depth -= 1
        return statement

    def parse_condexpr(self) -> nodes.Expr:  # of each bracket, and within itself behind "else"
        self._deeper(2)
        expression = super().parse_condexpr()
        self._depth -= 2
        return expression

    def parse_not(self) -> nodes.Expr:
        if not self.stream.current.test("name:not"):
            return super().parse_not()
        self._deeper()
        expression = super().parse_not()
        self._depth -= 1
        return expression

    def parse_unary(self, with_filter: bool = True) -> nodes.Expr:
        if self.stream.current.type not in ("add", "sub"):
            return super().parse_unary(with_filter)
        self._deeper()
        expression = super().parse_unary(with_filter)
        self._depth -= 1
        return expression


def _check_tree(root: nodes.Node) -> None:
    level: list[nodes.Node] = [root]
    for _ in range(MAX_TREE):
        for node in level:
            if isinstance(node, nodes.Const) and isinstance(node.value, int) and node.value.bit_length() > MAX_BITS:
                raise TemplateSyntaxError(f"an integer has more than {MAX_DIGITS:,} digits", node.lineno)
            if isinstance(node, nodes.If) and len(node.elif_) > MAX_ELIFS:
                raise TemplateSyntaxError(f"an if has more than {MAX_ELIFS} elif", node.lineno)
        level = [child for node in level for child in node.iter_child_nodes()]
    if level:
        raise TemplateSyntaxError("it is nested too deeply", level[0].lineno)


class _Code(CodeGenerator):
    """jinja2's compiler, but ``a ~ b`` and ``a[b:c]`` ask the environment, which sees each list, tuple and dict."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            self.visit(bound or nodes.Const(None), frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.collected(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.collected(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":  # names to assign to
            super().visit_Tuple(node, frame)
            return
        self.write("environment.collected(")
        super().visit_Tuple(node, frame)
        self.write(")")


class _Generation(Extension):
    """``{% generation %}``, which marks answers for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, where everything that can make something large is charged before it does."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = _Parser(self, source, name, filename).parse()
        _check_tree(template)
        node: Any
        for node in template.find_all((nodes.Call, nodes.Filter, nodes.Test)):
            if node.dyn_args is not None:  # *x: the filter is charged for each item
                node.dyn_args = nodes.Filter(node.dyn_args, "list", [], [], None, None, lineno=node.lineno)
        return template

    @staticmethod
    def collected(value: Any) -> Any:
        return _budget.get().checked(value)

    @staticmethod
    def sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        _charge(len(part) * (1 if isinstance(part, str | bytes) else _PLACE))
        return _budget.get().checked(part)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            _charge(len(part))
            kept.append(part)
        return "".join(kept)

    def concatenated(self, parts: Sequence[Any]) -> str:
        _charge(_size(parts))
        return "".join(map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            _charge_format(left, "%", right if isinstance(right, tuple) else (right,))
        elif isinstance(left, int) and isinstance(right, int):
            _charge_integers(operator, left, right)
        elif operator == "*":
            _charge(_length(left) * _length(right) * _place(left, right))
        elif operator in ("+", "-"):
            _charge((_length(left) + _length(right)) * _place(left, right))
        return _budget.get().checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes | int):
            values = [*args, *kwargs.values()]
            name = getattr(obj, "__name__", "")
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                _charge(_size(args[0]) + len(args[0]) * _length(owner))
            elif name == "replace" and len(args) > 1:
                _charge_replace(owner, *args[:2])
            elif name == "translate":
                _charge(_length(owner) * _size(values))
            elif name in _SLOW_SEARCHES and args:
                _charge(_length(owner) * _length(args[0]) // 16)
            elif name in ("split", "splitlines"):
                _charge_split(owner, name, values)
            else:
                _charge(_whole(values) * (_length(owner) if name == "expandtabs" else 1))
            _charge(_length(owner))
        budget = _budget.get()
        budget.measure(args)  # it may give them back within a list
        for name, value in kwargs.items():
            if name not in ("_loop_vars", "_block_vars"):  # jinja2's own
                budget.checked(value)
        if budget.calls == MAX_CALLS:
            raise TooMuchError(f"it has more than {MAX_CALLS} calls within each other")
        budget.calls += 1
        try:
            result = super().call(context, obj, *args, **kwargs)
            if isinstance(result, _Nested):
                _charge(_PLACE * len(result))
            return budget.checked(result)
        finally:
            budget.calls -= 1

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        # jinja2 itself would print nothing, and complain only where more is done with it.
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def charged(*args: Any, **kwargs: Any) -> str:
            _charge_format(value.__self__, "{", [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return charged


def _length(value: Any) -> int:
    """Measure text and lists by their length, an integer by its value."""
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | bytes | list | tuple) else 1


def _place(*values: Any) -> int:
    return _PLACE if any(isinstance(value, list | tuple) for value in values) else 1


# What Python looks for from the end, or for each of some characters, takes the product of both lengths.
_SLOW_SEARCHES = frozenset({"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip"})


def _charge_integers(operator: str, left: int, right: int) -> None:
    """Charge for an operation before it runs."""
    bits = left.bit_length(), right.bit_length()
    _check_digits(max(bits))
    if operator == "**":
        _charge(bits[0] * max(right, 1))
        _check_digits(int(max(right, 0) * log2(abs(left) or 1)) + 1)
    else:
        _charge(sum(bits))
        _check_digits(sum(bits) if operator == "*" else max(bits))


_SPACES = [character for character in map(chr, range(0x3001)) if character.isspace()]  # ends of lines among them


def _charge_split(text: Any, name: str, options: Sequence[Any]) -> None:
    """Charge for the pieces, of which each takes more memory than its characters."""
    if name == "split" and options and isinstance(options[0], type(text)):
        pieces = text.count(options[0]) if options[0] else 0
    elif isinstance(text, str):
        pieces = sum(map(text.count, _SPACES))
    else:
        pieces = _length(text) // 2
    _charge(pieces * _ITEM)


def _charge_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, type(old)):
        _charge(len(text) + text.count(old) * _length(new))


_CHEAP = frozenset({"length", "count", "first", "last", "default", "d"})  # they do not go through what they get


def _charged(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter, which gives about as much as it gets; the ones that multiply are charged for that."""
    passed = 1 if hasattr(run, "jinja_pass_arg") else 0  # the environment or context that jinja2 puts first

    @functools.wraps(run)
    def charged(*args: Any, **kwargs: Any) -> Any:
        value, *options = args[passed:]
        options += kwargs.values()
        if name in ("join", "list", "sort", "reverse") and isinstance(value, Iterator):
            value = list(value)
            args = (*args[:passed], value, *args[passed + 1 :])
        if name not in _CHEAP:
            _charge(_size(value))
        if name in ("center", "batch", "slice", "round"):
            _charge(_whole(options))
        if name in ("list", "sort", "join", "unique", "groupby") and isinstance(value, str):
            _charge(_ITEM * len(value))
        longest = _whole(options) if name == "round" else _length(value) if name == "int" and type(value) is str else 0
        if longest > MAX_DIGITS:
            raise TooMuchError(f"it has an integer of more than {MAX_DIGITS:,} digits")
        if name in ("indent", "tojson", "wordwrap", "urlize", "join"):
            lines = _length(value) if name == "join" else _size(value)
            _charge(lines * max([_whole(options), *(len(o) for o in options if isinstance(o, str))]))
        elif name == "replace" and len(options) > 1:
            _charge_replace(str(value), str(options[0]), str(options[1]))
        elif name == "format":
            _charge_format(value, "%", options)
        elif name == "sum" and not all(o is None or isinstance(o, int | float | str) for o in options):
            raise SecurityError("sum may add numbers only")
        result = run(*args, **kwargs)
        if isinstance(result, Iterator):  # a generator runs those that it is made of within it
            result = list(result)
        if isinstance(result, _Nested):
            _charge(_size(result))
        return _budget.get().checked(result)

    return charged


class _Namespace(Namespace):
    """``namespace()`` whose attributes cannot be named like Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # namespace(self=...) is allowed
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # what is in it may be it


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace may not have an attribute {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    _charge_format(format, "%", ())
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _charged_finalize(value: Any) -> Any:
    if not isinstance(value, str):  # concat charges for those
        _charge(_size(value))
    return value


@functools.lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """Get the one environment, set up as transformers does, whose behaviour is what templates are written for."""
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # it folds constants, in a time that grows with the third power of an expression's depth
        finalize=_charged_finalize,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.filters = {name: _charged(name, run) for name, run in environment.filters.items()}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),  # and not the type, which has attributes
    }
    del environment.globals["lipsum"]
    return environment
