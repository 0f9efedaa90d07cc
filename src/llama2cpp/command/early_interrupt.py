"""Ctrl-C while the command is still importing: it ends with exit code 130, and not in a traceback of an import.

The package imports this first. It does nothing but in a process that is the command, which `cli.main` takes over.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os._exit(130)


def _is_the_command() -> bool:
    first = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""  # noqa: PTH119 - pathlib is slow
    if first == "-m":  # while the package of `python -m package` is imported
        given = sys.orig_argv
        return "-m" in given[:-1] and given[given.index("-m") + 1] == "llama2cpp"
    return first in ("llama2cpp", "llama2cpp.exe")


if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and _is_the_command()
):
    signal.signal(signal.SIGINT, _leave)


def end_early() -> None:
    """Hand Ctrl-C back to Python: from here on there are things to close."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
