"""jinja2 for templates that strangers wrote: its sandbox, with limits on time, memory and nesting.

A chat template comes with a model's file, so it is a stranger's program. It sees plain data only, jinja2's sandbox
keeps it from Python's insides, and a budget ends one that would run for ever or fill the memory.

Nesting has limits of its own, because Python's recursion limit counts its own frames and not the C stack, of which a
thread may have as little as 256 KB: jinja2 and the interpreter pass through C code for each call of a macro, each
bracket of a source and each list in a list.
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
MAX_CALLS = 40  # of macros, callers, blocks and recursive loops within each other
MAX_DATA = 50  # lists and dicts within each other

# How deep its source may be: for jinja2's parser, where a bracket counts twice and a block once; the tree that comes of
# it, where x.a.b.c has 4; and how many elif an if may have, which Python's compiler has within each other.
MAX_PARSING = 36
MAX_TREE = 60
MAX_ELIFS = 200

_Flat = frozenset({str, int, float, bool, type(None)})  # most of what there is, and quickly told
_Nested = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView)


class TooMuchError(BaseException):
    """The budget is spent. Not an Exception: jinja2 catches those while it folds constants."""


class _Budget:
    """What is left of a rendering's time and characters."""

    def __init__(self) -> None:
        self._characters = MAX_CHARACTERS
        self._end = time.thread_time() + MAX_SECONDS
        self.calls = 0  # that are within each other now
        # By id, with what it is, which must not go away. Nothing in a sandbox changes a list.
        self._depths: dict[int, tuple[Any, int]] = {}

    def take(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TooMuchError(f"it makes more than {MAX_CHARACTERS:,} characters")

    def depth(self, value: Any) -> int:
        """Measure how many lists and dicts are within each other."""
        if type(value) in _Flat or not isinstance(value, _Nested):
            return 0
        known = self._depths.get(id(value))
        if known is not None:
            return known[1]
        deepest = 0
        for item in value:
            deepest = max(deepest, self.depth(item))
        if isinstance(value, Mapping):
            for item in value.values():
                deepest = max(deepest, self.depth(item))
        if deepest == MAX_DATA:
            raise TooMuchError(f"it has more than {MAX_DATA} lists and dicts within each other")
        if deepest > 0:
            self._depths[id(value)] = value, deepest + 1
        return deepest + 1

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Python calls this for every line that runs."""
        if time.thread_time() > self._end:
            raise TooMuchError(f"it takes more than {MAX_SECONDS:g} seconds")
        return self.trace


_budget: ContextVar[_Budget] = ContextVar("_budget")


@contextmanager
def limited() -> Iterator[None]:
    """Give what templates do inside the block a budget of their own."""
    budget = _Budget()
    token = _budget.set(budget)
    before = sys.gettrace()
    sys.settrace(budget.trace)
    try:
        yield
    finally:
        sys.settrace(before)
        _budget.reset(token)


def _take(characters: int) -> None:
    _budget.get().take(characters)


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
            total += 2 * len(item)
        else:
            total += 1
    return total


def _take_format(text: Any, mark: str, values: Iterable[Any]) -> None:
    """Charge for str.format ("{") or the % operator: no width from outside, and no wide one from inside."""
    text = str(text)
    if re.search(r"\{[^{}]*:[^{}]*\{" if mark == "{" else r"%[-+ #0-9.]*\*", text):
        raise SecurityError("a format may not take its width from a value")
    widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", text))
    _take(len(text) + widths + text.count(mark) * max((_size(value) for value in values), default=0))


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
            if isinstance(node, nodes.If) and len(node.elif_) > MAX_ELIFS:
                raise TemplateSyntaxError(f"an if has more than {MAX_ELIFS} elif", node.lineno)
        level = [child for node in level for child in node.iter_child_nodes()]
    if level:
        raise TemplateSyntaxError("it is nested too deeply", level[0].lineno)


class _Code(CodeGenerator):
    """jinja2's compiler, but ``a ~ b`` asks the environment, which also sees each list, tuple and dict."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

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
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = _Parser(self, source, name, filename).parse()
        _check_tree(template)
        return template

    @staticmethod
    def collected(value: Any) -> Any:
        _budget.get().depth(value)
        return value

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            _take(len(part))
            kept.append(part)
        return "".join(kept)

    def concatenated(self, parts: Sequence[Any]) -> str:
        _take(_size(parts))
        return "".join(map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            _take_format(left, "%", right if isinstance(right, tuple) else (right,))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            _take(bits if operator != "+" else 1)
        elif operator == "*":
            _take(_length(left) * _length(right))
        else:
            _take(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes | int):
            values = [*args, *kwargs.values()]
            name = getattr(obj, "__name__", "")
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                _take(_size(args[0]) + len(args[0]) * _length(owner))
            elif name == "replace" and len(args) > 1:
                _take_replace(owner, *args[:2])
            elif name == "translate":
                _take(_length(owner) * _size(values))
            else:
                _take(_whole(values) * (_length(owner) if name == "expandtabs" else 1))
            _take(_length(owner))
        budget = _budget.get()
        for value in args:  # it may give them back within a list
            budget.depth(value)
        for name, value in kwargs.items():
            if name not in ("_loop_vars", "_block_vars"):  # jinja2's own
                budget.depth(value)
        if budget.calls == MAX_CALLS:
            raise TooMuchError(f"it has more than {MAX_CALLS} calls within each other")
        budget.calls += 1
        try:
            return super().call(context, obj, *args, **kwargs)
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
            _take_format(value.__self__, "{", [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return charged


def _length(value: Any) -> int:
    """Measure text and lists by their length, an integer by its value."""
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | bytes | list | tuple) else 1


def _take_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, type(old)):
        _take(len(text) + text.count(old) * _length(new))


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
        _take(_size(value))
        if name in ("center", "batch", "slice", "round"):
            _take(_whole(options))
        elif name in ("indent", "tojson", "wordwrap", "urlize", "join"):
            lines = _length(value) if name == "join" else _size(value)
            _take(lines * max([_whole(options), *(len(o) for o in options if isinstance(o, str))]))
        elif name == "replace" and len(options) > 1:
            _take_replace(str(value), str(options[0]), str(options[1]))
        elif name == "format":
            _take_format(value, "%", options)
        elif name == "sum" and not all(o is None or isinstance(o, int | float | str) for o in options):
            raise SecurityError("sum may add numbers only")
        result = run(*args, **kwargs)
        if type(result) in _Flat:
            return result
        if isinstance(result, Iterator):  # a generator runs those that it is made of within it
            result = list(result)
        if isinstance(result, _Nested):
            _take(_size(result))
            _budget.get().depth(result)
        return result

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
    _take_format(format, "%", ())
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
        _take(_size(value))
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
