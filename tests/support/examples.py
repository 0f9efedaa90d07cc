"""Runs the examples of docstrings."""

from __future__ import annotations

import doctest
import inspect
from typing import Any


def run_examples(thing: Any) -> int:
    """Run the examples of a thing's docstring, which must not fail; gives how many there are."""
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(thing) or "", {}, repr(thing), None, None)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not failed, "".join(report)
    return len(test.examples)
