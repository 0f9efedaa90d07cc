"""``llama2cpp export`` and ``llama2cpp compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Picture, Threads, examples, model_names

EXPORT_EXAMPLES = examples(
    "llama2cpp export smollm2-135m smollm2-q4_k.gguf --format q4_k",
    "llama2cpp export stories260K.bin stories.bin -z tok512.bin --format int8",
    "llama2cpp export smollm2-135m smollm2.safetensors",
    "llama2cpp export smollm2-135m smollm2-folder --format f16",
    "llama2cpp export smollm2-135m smollm2-gptq --format gptq4 --group-size 64 --calibrate book.txt",
    "llama2cpp export smollm2-135m smollm2-int8 --format llm_int8 --calibrate book.txt",
)
COMPARE_EXAMPLES = examples("llama2cpp compare smollm2-135m smollm2-q4_k.gguf --text book.txt")


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A file, a folder, or a name that pull knows. PyTorch's too.",
            autocompletion=model_names,
        ),
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
    threads: Threads = None,
    report: Annotated[bool, typer.Option(help="Compare the result with the source, which runs both.")] = True,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to compare on.", show_default="what the source writes")
    ] = None,
    tokens: Annotated[int, typer.Option(help="The most tokens of it.", min=2)] = 2048,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in another container or other types, and say what that has cost.

    TARGET's ending says what is written, and which formats there are:

    \b
    .gguf         llama.cpp and this engine: f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0,
                  q6_k q5_k q4_k q3_k q2_k (and with _s, _m, _l as in llama.cpp), mxfp4
    .bin          llama2.c: f32 (run), int8 (runq), v1
    .safetensors  this engine, packed: opens at once; formats of .gguf
    none          a folder for transformers: f32 f16 bf16, llm_int8,
                  gptq8 gptq4 gptq3 gptq2, mxfp4 (gpt-oss)
    """  # noqa: D301 (\b keeps the lines apart)
    from ..export import Calibration
    from ..export.report import export_and_report

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


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The original: a file, a folder, or a name that pull knows.", autocompletion=model_names
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", help="What was made of it, or another of its vocabulary.", autocompletion=model_names
        ),
    ],
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to compare on.", show_default="what A writes")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-z", help="Tokenizer file.", show_default="A's own")
    ] = None,
    threads: Threads = None,
    tokens: Annotated[int, typer.Option(help="The most tokens of the text.", min=2)] = 2048,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Show what B predicts otherwise than A, and how their weights differ.

    Perplexity: how many tokens it is as unsure between as it is on this text; lower is better. KL divergence: how far
    B's predictions are from A's, in nats; 0 is equal. Relative error: of a weight's numbers, 0 is equal.
    """
    from ..export.report import compare_and_report

    compare_and_report(
        a, b, text=text, tokenizer=tokenizer, threads=threads, tokens=tokens, picture=picture, as_json=as_json
    )
