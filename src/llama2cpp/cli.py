"""The ``llama2cpp`` command. Typer is imported here and by notebook_files only; rich is imported where it draws."""

from __future__ import annotations

import itertools
import json
import os
import string
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from . import __version__, _core, hub
from ._core import Sampler, Tokenizer
from .conversation import Conversation
from .model import Model, load
from .notebook_files import notebooks
from .session import Session


def _examples(*lines: str) -> str:
    return "\n  ".join(["\b\nExamples:", *lines])  # \b keeps the lines apart


app = typer.Typer(
    help="Run Llama-family models.",
    epilog=_examples(
        "llama2cpp generate Once upon a time",
        "llama2cpp run stories260K.bin -z tok512.bin -t 0 -n 200",
        "llama2cpp pull smollm2-135m",
        "llama2cpp chat smollm2-135m",
        "llama2cpp info stories260K.bin",
        "llama2cpp export smollm2-135m smollm2.gguf --format q4_k",
        "llama2cpp bench smollm2-135m",
    ),
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# llama2.c's run knows these two by number.
_BOS = 1
_EOS = 2
_PRINTABLE = frozenset(string.printable.encode())

CheckpointArgument = Annotated[Path, typer.Argument(metavar="CHECKPOINT", show_default=False)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A file, or a name that pull knows.")]


def main() -> None:
    """Run the command. Every error is one line on stderr; the exit code is 1 for errors and 130 for Ctrl-C."""
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except OSError as error:
        code = _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, RuntimeError, MemoryError, ImportError) as error:
        code = _fail(str(error) or "out of memory")
    except Exception as error:
        message = getattr(error, "format_message", None)  # a wrong option: click's error, from typer's own click or not
        if message is None:
            raise
        code = _fail(message())
    sys.exit(code)


def _fail(message: str) -> int:
    sys.stderr.write(f"llama2cpp: {' '.join(message.split())}\n")
    return 1


def _write(data: bytes) -> None:
    """To stdout at once, byte for byte."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=_examples(
        "llama2cpp run stories15M.bin",
        "llama2cpp run stories260K.bin -z tok512.bin -t 0 -n 200",
        'llama2cpp run llama2_7b_chat.bin -m chat -y "You are a pirate."',
    )
)
def run(
    checkpoint: CheckpointArgument,
    temperature: Annotated[float, typer.Option("-t", help="Temperature; 0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option("-p", help="Sample from the likeliest tokens of this probability.")] = 0.9,
    seed: Annotated[int, typer.Option("-s", help="Random seed; 0 for the time.")] = 0,
    steps: Annotated[int, typer.Option("-n", help="Positions to run, the prompt's too; 0 for all.")] = 256,
    prompt: Annotated[str | None, typer.Option("-i", help="Prompt.", show_default=False)] = None,
    tokenizer: Annotated[Path, typer.Option("-z", help="Tokenizer.")] = Path("tokenizer.bin"),
    mode: Annotated[str, typer.Option("-m", help="generate or chat.")] = "generate",
    system: Annotated[str | None, typer.Option("-y", help="System prompt of a chat.", show_default=False)] = None,
) -> None:
    """Do what llama2.c's run does, with the same options and the same text.

    The speed is told on stderr.
    """
    if mode not in ("generate", "chat"):
        raise ValueError(f"-m must be generate or chat, got {mode!r}")
    model = load(checkpoint, tokenizer=tokenizer)
    sampler = Sampler(
        temperature=max(temperature, 0.0),
        top_p=top_p if 0 <= top_p <= 1 else 0.9,
        seed=seed if seed > 0 else int(time.time()),
    )
    session = model.session()
    if not 0 < steps <= session.context:
        steps = session.context
    text = None if prompt is None else os.fsencode(prompt)
    if mode == "generate":
        _run_generate(session, model.tokenizer, sampler, text or b"", steps)
    else:
        _run_chat(session, model.tokenizer, sampler, text, None if system is None else os.fsencode(system), steps)


def _run_generate(session: Session, tokenizer: Tokenizer, sampler: Sampler, prompt: bytes, steps: int) -> None:
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
                _write(_printable(tokenizer, previous, token))
        position = end
        if position == 1:
            started = time.perf_counter()
    _write(b"\n")
    if position > 1:
        sys.stderr.write(f"achieved tok/s: {(position - 1) / (time.perf_counter() - started):f}\n")


def _run_chat(
    session: Session, tokenizer: Tokenizer, sampler: Sampler, prompt: bytes | None, system: bytes | None, steps: int
) -> None:
    user = b""
    position = 0
    while position < steps:
        if position == 0 and system is None:
            system = _read_line(b"Enter system prompt (optional): ", b"")
        user = prompt if position == 0 and prompt is not None else _read_line(b"User: ", user)
        if position == 0 and system:
            ids = tokenizer.encode(b"[INST] <<SYS>>\n%s\n<</SYS>>\n\n%s [/INST]" % (system, user))
        else:
            ids = tokenizer.encode(b"[INST] %s [/INST]" % user)
        _write(b"Assistant: ")
        known = ids[: steps - position]
        if _EOS in known:  # one that the user spells ends the turn too
            known = known[: known.index(_EOS) + 1]
        token = following = -1
        for i, logits in enumerate(session.prefill(known, all_logits=True)):
            token, following = known[i], sampler.sample(logits)  # drawn at every position, as llama2.c does
            if following == _EOS:
                _write(b"\n")
            elif i == len(ids) - 1:
                _write(_printable(tokenizer, token, following))
        position += len(known)
        while position < steps and token != _EOS:
            token, following = following, sampler.sample(session.step(following))
            position += 1
            _write(b"\n" if following == _EOS else _printable(tokenizer, token, following))
    _write(b"\n")


def _read_line(guide: bytes, before: bytes) -> bytes:
    """Up to 511 bytes of a line, as llama2.c's buffer holds; what was there before at the end of the input."""
    _write(guide)
    line = sys.stdin.buffer.readline(511)
    return line.removesuffix(b"\n") if line else before


def _printable(tokenizer: Tokenizer, previous: int, token: int) -> bytes:
    """Give what llama2.c prints for a token: nothing for a single byte that a terminal cannot show."""
    piece = tokenizer.piece_after(previous, token)
    return b"" if len(piece) == 1 and piece[0] not in _PRINTABLE else piece


@app.command(
    epilog=_examples(
        "llama2cpp generate",
        "llama2cpp generate Once upon a time -s 1",
        'llama2cpp generate stories260K.bin -z tok512.bin "Tim saw" -t 0.8 -s 7',
        'llama2cpp generate -m stories260K.bin -z tok512.bin "stories.bin is a file"',
    )
)
def generate(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CHECKPOINT] [PROMPT]...", show_default=False)] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint.", show_default="the storyteller")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="the checkpoint's own")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="The most tokens to generate.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", "-p", help="Likeliest tokens of this probability.")] = 0.9,
    top_k: Annotated[int, typer.Option("--top-k", help="This many likeliest tokens; 0 for all.")] = 0,
    min_p: Annotated[float, typer.Option("--min-p", help="No token below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids tokens that were there.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", "-s", help="Random seed.", show_default="random")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    context: Annotated[int | None, typer.Option(help="Context in tokens.", show_default="the model's")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", show_default="all")] = None,
    echo: Annotated[bool, typer.Option(help="Print the prompt before the text.")] = True,
) -> None:
    """Continue a prompt, and print the text as it comes.

    The first word is the checkpoint if it names one: a file that is there, or a name that ends as theirs do. Without a
    checkpoint it is the storyteller that continues, the model in the package.
    """
    prompt = list(words or ())
    if checkpoint is None and prompt and _names_a_checkpoint(prompt[0]):
        checkpoint = prompt.pop(0)
    with load(checkpoint, tokenizer=tokenizer, context=context, threads=threads) as model:
        if not model.has_tokenizer:
            raise ValueError("the checkpoint has no tokenizer: pass one, such as -z tokenizer.bin")
        pieces = model.stream(
            os.fsencode(" ".join(prompt)),
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
        for piece in pieces:
            _write(piece.encode())
        _write(b"\n")


def _names_a_checkpoint(word: str) -> bool:
    """Whether a word in front of a prompt is meant as a checkpoint."""
    return (
        word in hub.KNOWN
        or word.endswith((".bin", ".gguf", ".safetensors"))
        or _is_file(word)
        or _is_file(f"{word}/config.json")  # Hugging Face's folders
    )


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # a text that is longer than names may be
        return False


@app.command(
    epilog=_examples(
        "llama2cpp chat smollm2-135m",
        'llama2cpp chat smollm2-135m -t 0 -y "You are a pirate."',
        'echo "Why is the sky blue?" | llama2cpp chat smollm2-135m',
    )
)
def chat(
    model: ModelArgument,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="the model's own")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-y", help="System message.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="The most tokens of an answer.")] = 1024,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", "-p", help="Likeliest tokens of this probability.")] = 0.9,
    top_k: Annotated[int, typer.Option("--top-k", help="This many likeliest tokens; 0 for all.")] = 0,
    min_p: Annotated[float, typer.Option("--min-p", help="No token below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids tokens that were there.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", "-s", help="Random seed.", show_default="random")] = None,
    context: Annotated[int | None, typer.Option(help="Context in tokens.", show_default="the model's")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", show_default="all")] = None,
    template: Annotated[
        str | None,
        typer.Option(help="chatml, llama2, llama3 or a file with a jinja2 template.", show_default="the model's"),
    ] = None,
) -> None:
    """Talk with a model.

    In a terminal, Ctrl-C stops an answer, Ctrl-D leaves, and /help lists what else there is. From a pipe, each line is
    a message, and stdout gets the answers alone.
    """
    from .templates import NAMED
    from .terminal import talk

    is_path = template is not None and template not in NAMED and os.path.lexists(template)
    if template is not None and (is_path or _is_file(template)):
        template = _core.read_file(template).decode()
    with load(model, tokenizer=tokenizer, context=context, threads=threads) as loaded:
        conversation = Conversation(
            loaded,
            system,
            template=template,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        talk(conversation, f"{model}, context {loaded.context}, {loaded.isa} x {loaded.threads} threads")


@app.command(epilog=_examples("llama2cpp pull smollm2-135m", "llama2cpp pull --list", "llama2cpp pull org/repo:file"))
def pull(
    name: Annotated[
        str | None,
        typer.Argument(help="A name of the list, or org/repo, org/repo:file or org/repo:Q4_K_M.", show_default=False),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the names that are known, and what is here.")] = False,
) -> None:
    """Download a model, for the other commands and load() to find by its name."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.table import Table

    from .progress import progress_bar

    if show_list:
        table = Table("name", "model", "licence", "download", "here", box=None)
        for known in hub.KNOWN.values():
            here = "yes" if known.path.is_file() else "no"
            table.add_row(known.name, known.about, known.licence, f"{known.download_bytes / 1e6:.0f} MB", here)
        Console(highlight=False).print(table)
        return
    if name is None:
        raise ValueError("pull needs a name; --list shows those that are known")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task(name, total=None, visible=name in hub.KNOWN)
        path = hub.pull(name, lambda done, total: bar.update(task, completed=done, total=total))
    print(path)


@app.command(
    epilog=_examples(
        "llama2cpp export smollm2-135m smollm2-q4_k.gguf --format q4_k",
        "llama2cpp export stories260K.bin stories.bin -z tok512.bin --format int8",
        "llama2cpp export smollm2-135m smollm2.safetensors",
        "llama2cpp export smollm2-135m smollm2-folder --format f16",
        "llama2cpp export smollm2-135m smollm2-gptq --format gptq4 --group-size 64 --calibrate book.txt",
        "llama2cpp export smollm2-135m smollm2-int8 --format llm_int8 --calibrate book.txt",
    )
)
def export(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A file, a folder, or a name that pull knows. PyTorch's too.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="Ends in .gguf, .bin, .safetensors or nothing: see above.", show_default=False
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", "-f", help="How weights are stored: see above.", show_default="no loss, or f16"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="the source's own")
    ] = None,
    keep_tokenizer: Annotated[
        bool, typer.Option("--with-tokenizer/--no-tokenizer", help="Whether the tokenizer goes along.")
    ] = True,
    group: Annotated[
        int | None,
        typer.Option("--group", "--group-size", help="int8, gptq: values that share a scale.", show_default="64, 128"),
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help=".gguf, .safetensors: one type for all matrices.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            help="Text of the kind that the model is for. gptq needs it; llm_int8 and types of 2 to 6 bits get better.",
            show_default=False,
        ),
    ] = None,
    sequences: Annotated[int, typer.Option(help="Sequences of that text, spread over it.", min=1)] = 64,
    length: Annotated[int, typer.Option(help="Tokens of each.", min=1)] = 512,
    act_order: Annotated[bool, typer.Option(help="gptq: columns with large inputs first.")] = True,
    damp: Annotated[float, typer.Option(help="gptq: share of the inputs' mean square that is added to each.")] = 0.01,
    symmetric: Annotated[bool, typer.Option("--sym/--no-sym", help="gptq: one zero for all groups.")] = True,
    shard_size: Annotated[str, typer.Option(help="A folder: the most bytes of weights in a file.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace a target that exists.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", show_default="all")] = None,
    report: Annotated[bool, typer.Option(help="Compare the result with the source, which runs both.")] = True,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to compare on.", show_default="what the source writes")
    ] = None,
    tokens: Annotated[int, typer.Option(help="The most tokens of it.", min=2)] = 2048,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw what differs, as .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a checkpoint in another container or other types, and say what that has cost.

    TARGET's ending says what is written, and which formats there are:

    \b
    .gguf         llama.cpp and this engine: f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0,
                  q6_k q5_k q4_k q3_k q2_k (and with _s, _m, _l as in llama.cpp)
    .bin          llama2.c: f32 (run), int8 (runq), v1
    .safetensors  this engine, packed: opens at once; formats of .gguf
    none          a folder for transformers: f32 f16 bf16, llm_int8,
                  gptq8 gptq4 gptq3 gptq2
    """  # noqa: D301 (\b keeps the lines apart)
    from .export import Calibration
    from .export.report import export_and_report

    export_and_report(
        source,
        target,
        format,
        tokenizer=tokenizer,
        keep_tokenizer=keep_tokenizer,
        group=group,
        pure=pure,
        calibration=None if calibrate is None else Calibration(calibrate, sequences, length),
        act_order=act_order,
        damp=damp,
        symmetric=symmetric,
        shard_size=shard_size,
        force=force,
        threads=threads,
        report=report,
        text=text,
        tokens=tokens,
        picture=picture,
        as_json=as_json,
    )


@app.command(epilog=_examples("llama2cpp compare smollm2-135m smollm2-q4_k.gguf --text book.txt"))
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The original: a file, a folder, or a name that pull knows.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What was made of it, or another of its vocabulary.")],
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to compare on.", show_default="what A writes")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="A's own")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", show_default="all")] = None,
    tokens: Annotated[int, typer.Option(help="The most tokens of the text.", min=2)] = 2048,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw what differs, as .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what B predicts otherwise than A, and how their weights differ.

    Perplexity: how many tokens it is as unsure between as it is on this text; lower is better. KL divergence: how far
    B's predictions are from A's, in nats; 0 is equal. Relative error: of a weight's numbers, 0 is equal.
    """
    from .export.report import compare_and_report

    compare_and_report(
        a, b, text=text, tokenizer=tokenizer, threads=threads, tokens=tokens, picture=picture, as_json=as_json
    )


@app.command(epilog=_examples("llama2cpp info stories260K.bin"))
def info(checkpoint: ModelArgument) -> None:
    """Show what is in a checkpoint, without reading its weights."""
    from rich.console import Console
    from rich.table import Table

    with load(checkpoint) as model:
        facts = Table(show_header=False, title=checkpoint, title_justify="left")
        for name, value in _facts(model).items():
            facts.add_row(name, f"{value:g}" if isinstance(value, float) else str(value))
        tensors = Table("tensor", "shape", "format", title="weights", title_justify="left")
        tensors.add_column("bytes", justify="right")
        for name in model.weights:
            weight = model.weights.info(name)
            tensors.add_row(name, " x ".join(map(str, weight["shape"])), weight["format"], f"{weight['bytes']:,}")
        console = Console(highlight=False)
        console.print(facts)
        console.print(tensors)


def _facts(model: Model) -> dict[str, object]:
    config = model.config
    weights = [model.weights.info(name) for name in model.weights]
    kv_bytes = 2 * config.n_layers * config.n_kv_heads * config.head_dim * (2 if model.kv == "f16" else 4)
    parameters = sum(_product(weight["shape"]) for weight in weights)
    matrices = model._core.matrix_bytes
    form = "packed" if model._core.pack == "always" else "in place"
    full = matrices + kv_bytes * model.context
    return {
        "file format": model.file_format,
        **config.to_dict(),
        "parameters": f"{parameters:,}",
        "weights": f"{sum(weight['bytes'] for weight in weights):,} bytes",
        "tokenizer": _tokenizer_fact(model),
        "chat template": "yes" if model.has_tokenizer and model.tokenizer.chat_template else "no",
        "keys and values": f"{model.kv}, {kv_bytes:,} bytes a token, {kv_bytes * model.context:,} for {model.context}",
        "activations": model.activations,
        "memory": f"{full:,} bytes with one full session: matrices {form}, {matrices:,}, and its keys and values",
    }


def _tokenizer_fact(model: Model) -> str:
    if not model.has_tokenizer:
        return f"none ({model.tokenizer_problem})" if model.tokenizer_problem else "none"
    return repr(model.tokenizer).removeprefix("<Tokenizer of ").removesuffix(">")


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


@app.command(
    epilog=_examples(
        "llama2cpp bench smollm2-135m",
        "llama2cpp bench stories260K.bin --threads 1 --threads 4 --prefill 32 --json",
    )
)
def bench(
    checkpoint: ModelArgument,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads. May be repeated.", show_default="1 and all")
    ] = None,
    prefill: Annotated[
        list[int] | None, typer.Option(help="Tokens of a prompt. May be repeated.", show_default="16, 64 and 512")
    ] = None,
    depth: Annotated[int, typer.Option(help="Positions before the first decoded token.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Tokens to decode.", min=1)] = 64,
    rounds: Annotated[int, typer.Option(help="Times that everything is measured.", min=1)] = 5,
    activations: Annotated[str, typer.Option(help="auto, f32 or int8.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Measure how fast a model decodes and reads prompts, beside how fast the machine reads memory.

    A decoded token reads every weight once, so the speed of reading is its limit. All measurements take turns, round
    after round; told is the median, with the least and the most.
    """
    from .bench import measure, print_table

    with load(checkpoint) as model:  # also finds names
        longest = model.context
        most_threads = model.threads
    report = measure(
        checkpoint,
        threads=threads or sorted({1, most_threads}),
        prefills=prefill or [tokens for tokens in (16, 64, 512) if tokens <= longest],
        depth=depth,
        steps=steps,
        rounds=rounds,
        activations=activations,
    )
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print_table(report)


app.command(epilog=_examples("llama2cpp notebooks lessons"))(notebooks)
