"""``llama2cpp run``: llama2.c's run, with its options, its text and its oddities."""

from __future__ import annotations

import itertools
import os
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .._core import Sampler, Tokenizer
from ..loading import load
from ..session import Session
from .display import TextOutput, tell
from .options import AdapterPath, adapted, examples, find_adapter

RUN_EXAMPLES = examples(
    "llama2cpp run stories15M.bin",
    "llama2cpp run stories260K.bin -z tok512.bin -t 0 -n 200",
    'llama2cpp run llama2_7b_chat.bin -m chat -y "You are a pirate."',
)

# llama2.c's run knows these two by number.
_BOS = 1
_EOS = 2
_PRINTABLE = frozenset(string.printable.encode())


def run(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", show_default=False)],
    temperature: Annotated[float, typer.Option("-t", help="Temperature; 0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option("-p", help="Sample from the likeliest tokens of this probability.")] = 0.9,
    seed: Annotated[int, typer.Option("-s", help="Random seed; 0 for the time.")] = 0,
    steps: Annotated[int, typer.Option("-n", help="Positions to run, the prompt's too; 0 for all.")] = 256,
    prompt: Annotated[str | None, typer.Option("-i", help="Prompt.", show_default=False)] = None,
    tokenizer: Annotated[Path, typer.Option("-z", help="Tokenizer.")] = Path("tokenizer.bin"),
    mode: Annotated[str, typer.Option("-m", help="generate or chat.")] = "generate",
    system: Annotated[str | None, typer.Option("-y", help="System prompt of a chat.", show_default=False)] = None,
    adapter: AdapterPath = None,
) -> None:
    """Do what llama2.c's run does, with the same options and the same text; --adapter is ours alone.

    The speed is told on stderr.
    """
    if mode not in ("generate", "chat"):
        raise typer.BadParameter(f"expected generate or chat, got {mode!r}", param_hint="'-m'")
    find_adapter(adapter)
    model = load(checkpoint, tokenizer=tokenizer, backend="cpu")  # the same text is promised there only
    sampler = Sampler(
        temperature=max(temperature, 0.0),
        top_p=top_p if 0 <= top_p <= 1 else 0.9,
        seed=seed if seed > 0 else int(time.time()),
    )
    session = model.session(**adapted(model, adapter))
    if not 0 < steps <= session.context:
        steps = session.context
    text = None if prompt is None else os.fsencode(prompt)
    if mode == "generate":
        _run_generate(session, model.tokenizer, sampler, text or b"", steps)
    else:
        _run_chat(session, model.tokenizer, sampler, text, None if system is None else os.fsencode(system), steps)


def _run_generate(session: Session, tokenizer: Tokenizer, sampler: Sampler, prompt: bytes, steps: int) -> None:
    write = TextOutput().write
    started = 0.0
    position = 0
    ids = tokenizer.encode(prompt)  # and what is sampled comes after
    if _BOS in ids[1:]:  # it ends the text, even one that the prompt spells
        steps = min(steps, ids.index(_BOS, 1))
    while position < steps:
        # All positions whose next token is known go in one pass; but the first alone, for llama2.c's clock.
        end = min(len(ids), steps) if position > 0 else 1
        logits = session.prefill(ids[position:end])
        if end == len(ids):
            ids.append(sampler.sample(logits))
            if ids[-1] == _BOS:
                steps = end
        for previous, token in itertools.pairwise(ids[position : end + 1]):
            if token != _BOS:
                write(_printable(tokenizer, previous, token))
        position = end
        if position == 1:
            started = time.perf_counter()
    write(b"\n")
    if position > 1:
        tell(f"achieved tok/s: {(position - 1) / (time.perf_counter() - started):f}")


def _run_chat(
    session: Session, tokenizer: Tokenizer, sampler: Sampler, prompt: bytes | None, system: bytes | None, steps: int
) -> None:
    write = TextOutput().write
    user = b""
    position = 0
    while position < steps:
        if position == 0 and system is None:
            system = _read_line(write, b"Enter system prompt (optional): ", b"")
        user = prompt if position == 0 and prompt is not None else _read_line(write, b"User: ", user)
        if position == 0 and system:
            ids = tokenizer.encode(b"[INST] <<SYS>>\n%s\n<</SYS>>\n\n%s [/INST]" % (system, user))
        else:
            ids = tokenizer.encode(b"[INST] %s [/INST]" % user)
        write(b"Assistant: ")
        known = ids[: steps - position]
        if _EOS in known:  # one that the user spells ends the turn too
            known = known[: known.index(_EOS) + 1]
        token = following = -1
        for i, logits in enumerate(session.prefill(known, all_logits=True)):
            token, following = known[i], sampler.sample(logits)  # drawn at every position, as llama2.c does
            if following == _EOS:
                write(b"\n")
            elif i == len(ids) - 1:
                write(_printable(tokenizer, token, following))
        position += len(known)
        while position < steps and token != _EOS:
            token, following = following, sampler.sample(session.step(following))
            position += 1
            write(b"\n" if following == _EOS else _printable(tokenizer, token, following))
    write(b"\n")


def _read_line(write: Callable[[bytes], None], guide: bytes, before: bytes) -> bytes:
    """Up to 511 bytes of a line, as llama2.c's buffer holds; what was there before at the end of the input."""
    write(guide)
    line = sys.stdin.buffer.readline(511)
    return line.removesuffix(b"\n") if line else before


def _printable(tokenizer: Tokenizer, previous: int, token: int) -> bytes:
    """Give what llama2.c prints for a token: nothing for a single byte that a terminal cannot show."""
    piece = tokenizer.piece_after(previous, token)
    return b"" if len(piece) == 1 and piece[0] not in _PRINTABLE else piece
