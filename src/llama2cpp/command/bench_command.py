"""``llama2cpp bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common.arguments import warn_of_old_name
from ..loading import load
from .display import say_json
from .options import STORYTELLER, ActivationDtype, AsJson, Backend, KvDtype, ModelOrStoryteller, examples

BENCH_EXAMPLES = examples(
    "llama2cpp bench",
    "llama2cpp bench smollm2-135m",
    "llama2cpp bench stories260K.bin --threads 1 --threads 4 --prefill 32 --json",
    "llama2cpp bench llama2-7b.gguf --backend metal --bandwidth 100 --teraflops 3.6",
)


def bench(
    checkpoint: ModelOrStoryteller = STORYTELLER,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads. May be repeated.", show_default="1 and all", min=1, max=1024)
    ] = None,
    prefill: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a prompt. May be repeated.", show_default="16, 64 and 512", min=1),
    ] = None,
    depth: Annotated[int, typer.Option(help="Positions before the first decoded token.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Tokens to decode.", min=1)] = 64,
    rounds: Annotated[int, typer.Option(help="Times that everything is measured.", min=1)] = 5,
    activation_dtype: ActivationDtype = "auto",
    kv_dtype: KvDtype = "auto",
    backend: Backend = "auto",
    bandwidth: Annotated[
        float | None,
        typer.Option(
            help="Gigabytes a second that the machine reads.", show_default="measured; of a GPU, by its name", min=1e-3
        ),
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option(
            help="Float32 teraflops a second that it computes.", show_default="of a GPU, by its name", min=1e-6
        ),
    ] = None,
    activations: Annotated[str | None, typer.Option("--activations", hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model decodes and reads prompts, beside how fast the machine reads memory.

    A decoded token reads every weight once, so the speed of reading is its limit, measured before and after; a prompt's
    is the speed of computing. All take turns, round after round; told is the median, with the least and the most.
    """
    from .bench import measure, print_table

    if activations is not None:
        warn_of_old_name("--activations", "--activation-dtype")
        activation_dtype = activations

    with load(checkpoint, backend=backend, threads=threads[0] if threads else None) as model:  # also finds names
        backend = model.backend
        longest = model.context
        most_threads = model.threads
    report = measure(
        checkpoint,
        threads=threads or sorted({1, most_threads}),
        prefills=prefill or [tokens for tokens in (16, 64, 512) if tokens <= longest],
        depth=depth,
        steps=steps,
        rounds=rounds,
        activation_dtype=activation_dtype,
        kv_dtype=kv_dtype,
        backend=backend,
        gigabytes=bandwidth,
        teraflops=teraflops,
    )
    if as_json:
        say_json(report)
    else:
        print_table(report)
