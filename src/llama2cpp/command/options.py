"""What the commands share: examples in help, arguments that name a model, and options of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import hub

STORYTELLER = "storyteller"


def examples(*lines: str) -> str:
    """Make the end of a help text."""
    return "\n  ".join(["\b\nExamples:", *lines])  # \b keeps the lines apart


def model_names(incomplete: str) -> list[str]:
    """Complete the name of a model in a shell, which completes those of files itself."""
    return [name for name in (STORYTELLER, *hub.KNOWN) if incomplete and name.startswith(incomplete)]


def is_file(word: str) -> bool:
    """Whether there is a file of this name."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # a text that is longer than names may be, or has a NUL
        return False


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A file, a folder, or a name that pull knows.", autocompletion=model_names),
]
ModelOrStoryteller = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        help="A file, a folder, or a name that pull knows; the storyteller if there is none.",
        autocompletion=model_names,
        show_default=False,
    ),
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="the model's own")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Threads that compute.", show_default="all", min=1, max=1024)
]
Context = Annotated[int | None, typer.Option("--context", help="Context in tokens.", show_default="the model's", min=1)]
TopP = Annotated[
    float, typer.Option("--top-p", "-p", help="Likeliest tokens of this probability.")
]  # llama2.c takes any
TopK = Annotated[int, typer.Option("--top-k", help="This many likeliest tokens; 0 for all.", min=0, max=2**31 - 1)]
MinP = Annotated[float, typer.Option("--min-p", help="No token below this share of the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 avoids tokens that were there.")]
Seed = Annotated[
    int | None, typer.Option("--seed", "-s", help="Random seed.", show_default="random", min=0, max=2**64 - 1)
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.", min=0)]
Picture = Annotated[
    Path | None, typer.Option("--picture", help="Draw what differs, as .png, .svg or .pdf.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
