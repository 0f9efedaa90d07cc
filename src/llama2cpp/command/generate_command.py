"""``llama2cpp generate``."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from .. import hub
from ..generation import to_ids
from ..model import Model, load
from .display import TextOutput, say_json
from .options import (
    STORYTELLER,
    AsJson,
    Context,
    MinP,
    Penalty,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    examples,
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


def generate(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CHECKPOINT] [PROMPT]...", show_default=False)] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Checkpoint.", show_default="the storyteller", autocompletion=model_names),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="the checkpoint's own")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="The most tokens to generate.", min=0)] = 512,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.9,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    context: Context = None,
    threads: Threads = None,
    echo: Annotated[bool, typer.Option(help="Print the prompt before the text.")] = True,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt, and print the text as it comes.

    The first word is the checkpoint if it names one: a file that is there, or a name that ends as theirs do. Without a
    checkpoint it is the storyteller that continues, the model in the package. The prompt "-" is what stdin has, and so
    is no prompt where stdin is a pipe or a file.

    With --json: model, prompt, text (without the prompt), prompt_tokens, tokens (a list of ids), finish_reason, seed
    and seconds.
    """
    given = list(words or ())
    if checkpoint is None and given and names_a_checkpoint(given[0]):
        checkpoint = given.pop(0)
    prompt = _from_stdin() if given == ["-"] or (not given and _stdin_is_given()) else os.fsencode(" ".join(given))
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    with load(checkpoint, tokenizer=tokenizer, context=context, threads=threads) as model:
        if not model.has_tokenizer:
            raise ValueError("the checkpoint has no tokenizer: pass one, such as -z tokenizer.bin")
        if as_json:
            _print_json(
                model,
                checkpoint or STORYTELLER,
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=stop or (),
            )
            return
        pieces = model.stream(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop or (),
            echo=echo,
        )
        write = TextOutput().write
        for piece in pieces:
            write(piece.encode())
        write(b"\n")


def _print_json(
    model: Model,
    name: str,
    prompt: bytes,
    *,
    seed: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    stop: list[str] | tuple[str, ...],
) -> None:
    began = time.perf_counter()
    completion = model.generate(
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        logprobs=0,
    )
    say_json(
        {
            "model": name,
            "prompt": prompt.decode(errors="replace"),
            "text": completion.text,
            "prompt_tokens": len(to_ids(model, prompt)),
            "tokens": completion.tokens,
            "finish_reason": completion.finish_reason,
            "seed": seed,
            "seconds": round(time.perf_counter() - began, 3),
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
