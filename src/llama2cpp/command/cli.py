"""The ``llama2cpp`` command: its parts, its errors and its exit codes.

0 is success, 1 an error, 2 a command line that is wrong, 130 Ctrl-C, and 141 a reader that has left (``| head -1``),
as shells report SIGINT and SIGPIPE.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import OptionInfo

from .. import __version__
from ..common.arguments import close_names
from .bench_command import BENCH_EXAMPLES, bench
from .chat_command import CHAT_EXAMPLES, chat
from .display import one_line, say, tell, without_function
from .early_interrupt import end_early
from .explain_command import EXPLAIN_EXAMPLES, explain
from .explore_command import EXPLORE_EXAMPLES, explore
from .export_command import COMPARE_EXAMPLES, EXPORT_EXAMPLES, compare, export
from .extract_command import EXTRACT_EXAMPLES, extract
from .generate_command import GENERATE_EXAMPLES, generate
from .info_command import INFO_EXAMPLES, info
from .notebooks_command import notebooks
from .options import examples
from .pull_command import PULL_EXAMPLES, pull
from .run_command import RUN_EXAMPLES, run
from .serve_command import SERVE_EXAMPLES, serve

__all__ = [
    "app",
    "bench",
    "chat",
    "compare",
    "explain",
    "explore",
    "export",
    "extract",
    "generate",
    "in_command_words",
    "info",
    "main",
    "notebooks",
    "pull",
    "run",
    "serve",
]

app = typer.Typer(
    help="Run Llama-family models.",
    epilog=examples(
        "llama2cpp generate Once upon a time",
        "llama2cpp run stories260K.bin -z tok512.bin -t 0 -n 200",
        "llama2cpp pull smollm2-135m",
        "llama2cpp chat smollm2-135m",
        "llama2cpp serve smollm2-135m",
        "llama2cpp explore",
        "llama2cpp info stories260K.bin",
        "llama2cpp export smollm2-135m smollm2.gguf --format q4_k",
        "llama2cpp bench smollm2-135m",
    ),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: tuple[tuple[Any, str], ...] = (
    (run, RUN_EXAMPLES),
    (generate, GENERATE_EXAMPLES),
    (chat, CHAT_EXAMPLES),
    (serve, SERVE_EXAMPLES),
    (explore, EXPLORE_EXAMPLES),
    (pull, PULL_EXAMPLES),
    (export, EXPORT_EXAMPLES),
    (compare, COMPARE_EXAMPLES),
    (explain, EXPLAIN_EXAMPLES),
    (extract, EXTRACT_EXAMPLES),
    (info, INFO_EXAMPLES),
    (bench, BENCH_EXAMPLES),
    (notebooks, examples("llama2cpp notebooks lessons")),
)
for _command, _epilog in _COMMANDS:
    app.command(epilog=_epilog)(_command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(__version__)
    elif context.invoked_subcommand is None:
        say(context.get_help())


def main() -> None:
    """Run the command, and exit. Every error is one line on stderr."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started the command
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open
    warnings.showwarning = _warn
    warnings.filterwarnings("default", message="--", category=DeprecationWarning)  # of old options
    if isinstance(sys.stdout, TextIOWrapper):  # names that its encoding has not are spelled, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        end_early()
        code = _run()
        code = _flushed(code)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run() -> int:
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        return 130
    except BrokenPipeError:
        return 141
    except SystemExit as error:  # typer and rich make one of a closed pipe
        return 141 if isinstance(error.__context__, BrokenPipeError) else _exit_code(error.code)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, RuntimeError, MemoryError, ImportError) as error:
        return _fail(str(error) or "out of memory")
    except Exception as error:
        message = getattr(error, "format_message", None)  # a wrong option: click's error, from typer's own click or not
        if message is None:
            tell(traceback.format_exc().rstrip())
            return 1
        return _fail(
            _in_plain_words(error, message()) + _close_command(error), _exit_code(getattr(error, "exit_code", 2))
        )


def _exit_code(code: object) -> int:
    return code if isinstance(code, int) else 0 if code is None else 1


def _flushed(code: int) -> int:
    """Write what is left, for which Python itself would make up other messages and codes."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 141
    except OSError as error:  # such as a full disk, which may have been told: buffers keep what they could not write
        code = code or _fail(str(error))
    with suppress(OSError, ValueError):  # it has no descriptor, or is closed
        if code in (1, 141):  # what could not be written is not tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _fail(message: str, code: int = 1) -> int:
    said = in_command_words(message)
    if code == 1 and said is not message and said.startswith("-"):  # an option's value
        code = 2
    tell(f"llama2cpp: error: {' '.join(one_line(said).split())}")
    return code


def _warn(message: Warning | str, *_where: object, **_file: object) -> None:
    tell(f"llama2cpp: warning: {' '.join(one_line(in_command_words(str(message))).split())}")


def in_command_words(message: str, command: str | None = None) -> str:
    """Say the arguments of the package's functions in a message as the options of the command.

    Parameters
    ----------
    message : str
        Of an exception.
    command : str, optional
        "generate" and so on; the one that runs if not given.

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.command.cli import in_command_words
    >>> in_command_words("m.gguf exists; pass force=True (--force) to replace it")
    'm.gguf exists; pass --force to replace it'
    >>> in_command_words("load: threads is 0, expected 1 or more", "generate")
    '--threads is 0, expected 1 or more'
    >>> in_command_words("there is no Metal kernel for it; use backend='cpu'", "generate")
    'there is no Metal kernel for it; use --backend cpu'
    >>> in_command_words("it has no room: ask for one with context=", "generate")
    'it has no room: ask for one with --context'
    """
    message = without_function(message)
    message = re.sub(r"\b\w+=[\w\"']* \((--?[\w-]+)\)", r"\1", message)
    options = _options(command or next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    message = re.sub(
        r"\b(\w+)=(?:'(\w+)'|(?=[\s;,.)]|$))",
        lambda found: f"{options[found[1]]} {found[2] or ''}".rstrip() if found[1] in options else found[0],
        message,
    )
    first = re.match(r"(?:[\w.]+: )?(\w+) (?=is |must )", message)
    if first is not None and first[1] in options:
        return f"{options[first[1]]} {message[first.end() :]}"
    return message


def _options(command: str) -> dict[str, str]:
    """Give the options of a command by the names that their values have in Python."""
    function = next((function for function, _ in _COMMANDS if function.__name__ == command), None)
    if function is None:
        return {}
    options = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        for told in getattr(hint, "__metadata__", ()):
            if isinstance(told, OptionInfo):
                # In an annotation the first of its names is where typer has a default.
                spelled = [word for word in (told.default, *(told.param_decls or ())) if isinstance(word, str)]
                spelled = spelled or [f"--{name.replace('_', '-')}"]
                options[name] = next((word for word in spelled if word.startswith("--")), spelled[0])
    return options


# What typer's checks call a wrong value -> what it is. Others keep typer's words.
_WRONG = {
    "int_parsing": "{input!r} is not an integer",
    "int_from_float": "{input!r} is not an integer",
    "int_parsing_size": "{input!r} is out of range",
    "float_parsing": "{input!r} is not a number",
    "bool_parsing": "{input!r} is not true or false",
    "greater_than_equal": "{input} is less than {ge}",
    "less_than_equal": "{input} is more than {le}",
}


def _in_plain_words(error: Exception, message: str) -> str:
    """Say what is wrong with an option's value as other errors do, where typer shows pydantic's words for it."""
    details = getattr(error.__cause__, "errors", None)
    for found in details() if callable(details) else ():
        if found.get("type") in _WRONG:
            wrong = _WRONG[found["type"]].format(input=found.get("input"), **found.get("ctx", {}))
            message = message.replace(found["msg"], wrong)
    return message


def _close_command(error: Exception) -> str:
    """Suggest a command for a word that is none, where typer has not done so."""
    word = re.match(r"No such command '(.*)'\.", str(error))
    if word is None or "Did you mean" in str(error):
        return ""
    return close_names(word[1], [command.__name__ for command, _ in _COMMANDS])
