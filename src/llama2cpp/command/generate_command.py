"""``llama2cpp generate``."""

from __future__ import annotations

import os
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import hub
from ..loading import load
from ..model import Model
from .display import TextOutput, say_json
from .options import (
    STORYTELLER,
    AdapterPath,
    AsJson,
    Opening,
    Sampled,
    adapted,
    examples,
    find_adapter,
    grouped,
    is_file,
    model_names,
)

GENERATE_EXAMPLES = examples(
    "llama2cpp generate",
    "llama2cpp generate Once upon a time -s 1",
    'llama2cpp generate stories260K.bin -z tok512.bin "Tim saw" -t 0.8 -s 7',
    'llama2cpp generate -m stories260K.bin -z tok512.bin "stories.bin is a file"',
    "llama2cpp generate smollm2-135m - < letter.txt",
)


@grouped
def generate(
    sampled: Sampled,
    opening: Opening,
    words: Annotated[list[str] | None, typer.Argument(metavar="[CHECKPOINT] [PROMPT]...", show_default=False)] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Checkpoint.", show_default="the storyteller", autocompletion=model_names),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="the checkpoint's own")
    ] = None,
    special: Annotated[
        bool | None,
        typer.Option(
            "--special/--no-special", help="Whether the prompt may spell control tokens.", show_default="no, and warn"
        ),
    ] = None,
    adapter: AdapterPath = None,
    echo: Annotated[bool, typer.Option(help="Print the prompt before the text.")] = True,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt, and print the text as it comes.

    The first word is the checkpoint if it names one: a file that is there, or a name that ends as theirs do. Without a
    checkpoint it is the storyteller that continues, the model in the package. The prompt "-" is what stdin has, and so
    is no prompt where stdin is a pipe or a file.

    With --json: model, prompt, text (without the prompt), prompt_tokens, tokens (a list of ids), finish_reason, seed
    and seconds; with --speculate also passes, those over the weights behind the prompt.
    """
    given = list(words or ())
    if checkpoint is None and given and names_a_checkpoint(given[0]):
        checkpoint = given.pop(0)
    prompt = _from_stdin() if given == ["-"] or (not given and _stdin_is_given()) else os.fsencode(" ".join(given))
    if sampled.seed is None:
        sampled = replace(sampled, seed=int.from_bytes(os.urandom(4), "little"))
    find_adapter(adapter)
    with load(checkpoint, tokenizer=tokenizer, **opening.arguments()) as model:
        if not model.has_tokenizer:
            raise ValueError("the checkpoint has no tokenizer: pass one, such as -z tokenizer.bin")
        options = {**sampled.arguments(opening), **adapted(model, adapter)}
        if as_json:
            _print_json(model, checkpoint or STORYTELLER, prompt, special, options, sampled)
            return
        pieces = model.stream(prompt, echo=echo, special=special, **options)
        write = TextOutput().write
        for piece in pieces:
            write(piece.encode())
        write(b"\n")


def _print_json(
    model: Model, name: str, prompt: bytes, special: bool | None, options: dict[str, Any], sampled: Sampled
) -> None:
    began = time.perf_counter()
    [completion] = model.complete(prompt, special=special, **options)
    say_json(
        {
            "model": name,
            "prompt": prompt.decode(errors="replace"),
            "text": completion.text,
            "prompt_tokens": completion.usage.prompt_tokens,
            "tokens": completion.tokens,
            "finish_reason": completion.finish_reason,
            "seed": sampled.seed,
            "seconds": round(time.perf_counter() - began, 3),
            **({"passes": completion.usage.passes} if sampled.speculate else {}),
        }
    )


def _stdin_is_given() -> bool:
    """Whether somebody has connected stdin to a text: a pipe or a file, and not a terminal or nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _from_stdin() -> bytes:
    """All of stdin, without the end of its last line."""
    text = sys.stdin.buffer.read()
    return text.removesuffix(b"\n").removesuffix(b"\r")


def names_a_checkpoint(word: str) -> bool:
    """Whether a word in front of a prompt is meant as a checkpoint."""
    return (
        word in hub.KNOWN
        or word == STORYTELLER
        or word.endswith((".bin", ".gguf", ".safetensors"))
        or is_file(word)
        or is_file(f"{word}/config.json")  # Hugging Face's folders
    )
