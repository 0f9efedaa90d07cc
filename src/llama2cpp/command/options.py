"""What the commands share: examples in help, arguments that name a model, and options of opening it and of sampling."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .. import _core, hub
from ..adapters import adapter_files
from ..loading import load
from ..model import Model as Loaded

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
ActivationDtype = Annotated[
    str, typer.Option("--activation-dtype", help="Activations that meet the weights: auto, f32, bf16 or int8.")
]
Backend = Annotated[str, typer.Option("--backend", help="Where to compute: auto, cpu or metal.")]
KvDtype = Annotated[str, typer.Option("--kv-dtype", help="Keys and values: auto, f32, f16 or q8_0.")]
Speculate = Annotated[
    str | None,
    typer.Option(
        "--speculate",
        metavar="prompt|MODEL",
        help="Propose tokens, from what was there or by a smaller model, and check several at once: the same text.",
        show_default="none",
    ),
]
AdapterPath = Annotated[
    Path | None,
    typer.Option("--adapter", help="A LoRA adapter: a folder of peft's, or a GGUF file.", show_default="none"),
]
Picture = Annotated[
    Path | None, typer.Option("--picture", help="Draw what differs, as .png, .svg or .pdf.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


def _or(default: str) -> str:
    """Show the default of what a model's file may say."""
    return f"the model's, or {default}"


@dataclasses.dataclass(frozen=True)
class Opening:
    """How a model is opened: keyword arguments of `load`."""

    context: Annotated[
        int | None, typer.Option("--context", help="Context in tokens.", show_default="the model's", min=1)
    ] = None
    backend: Backend = "auto"
    threads: Threads = None
    activation_dtype: ActivationDtype = "auto"
    kv_dtype: KvDtype = "auto"

    def arguments(self) -> dict[str, Any]:
        """Give them by their names."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """How a text is sampled: keyword arguments of `generate`."""

    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="The most tokens to generate.", min=0)] = 512
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0 takes the likeliest token.", show_default=_or("1.0"), min=0),
    ] = None
    top_p: Annotated[
        float | None,  # llama2.c takes any
        typer.Option("--top-p", "-p", help="Likeliest tokens of this probability.", show_default=_or("0.9")),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", help="This many likeliest tokens; 0 for all.", show_default=_or("0"), min=0, max=2**31 - 1
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", help="No token below this share of the likeliest.", show_default=_or("0")),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option("--repetition-penalty", help="Above 1 avoids tokens that were there.", show_default=_or("1.0")),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", "-s", help="Random seed.", show_default="random", min=0, max=2**64 - 1)
    ] = None
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text. May be repeated.")] = None
    stop_ids: Annotated[list[int] | None, typer.Option("--stop-id", help="End at this token id. May be repeated.")] = (
        None
    )
    min_tokens: Annotated[
        int | None, typer.Option("--min-tokens", help="Do not end before so many tokens.", show_default="0", min=0)
    ] = None
    presence_penalty: Annotated[
        float | None,
        typer.Option("--presence-penalty", help="Off the logits of tokens that the text has.", show_default="0"),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        typer.Option("--frequency-penalty", help="The same, each time it has them.", show_default="0"),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="ID=BIAS", help="Add to a token's logit. May be repeated."),
    ] = None
    json_schema: Annotated[
        str | None,
        typer.Option("--json-schema", help="Write JSON of this schema: a file, or the schema.", show_default=False),
    ] = None
    grammar: Annotated[
        str | None,
        typer.Option(
            "--grammar", help="Write a text of this grammar, lark or GBNF: a file, or it.", show_default=False
        ),
    ] = None
    regex: Annotated[
        str | None, typer.Option("--regex", help="Write a text that this expression matches.", show_default=False)
    ] = None

    speculate: Speculate = None

    def arguments(self, opening: Opening | None = None) -> dict[str, Any]:
        """Give by their names those that were given; a draft model is opened as the model is."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if "logit_bias" in given:
            given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
        for name in ("json_schema", "grammar"):
            if name in given and is_file(given[name]):
                given[name] = _core.read_file(given[name]).decode()
        if "speculate" in given:
            given["speculate"] = speculation(given["speculate"], opening)
        return given


def find_adapter(path: Path | None) -> None:
    """Tell an adapter whose files are not there, if one was asked for, before a model is opened."""
    if path is not None:
        adapter_files(path)


def adapted(model: Loaded, path: Path | None) -> dict[str, Any]:
    """Give the adapter that was asked for as a keyword argument of the model's methods; none if none was."""
    return {} if path is None else {"adapter": model.load_adapter(path)}


def speculation(word: str, opening: Opening | None = None) -> str | Loaded:
    """Give what ``--speculate`` means: "prompt", or a model, opened as the other is."""
    if word == "prompt":
        return word
    options = {} if opening is None else opening.arguments()
    try:
        return load(word, **{**options, "context": None})
    except FileNotFoundError as error:
        expected = "expected prompt, or the file or name of a draft model"
        raise typer.BadParameter(f"--speculate is {word!r}, {expected} ({error.strerror or error})") from None


def _bias(text: str) -> tuple[int, float]:
    """Read ID=BIAS."""
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise typer.BadParameter(f"expected ID=BIAS, such as 420=-5 or 420=-inf, got {text!r}") from None


@dataclasses.dataclass(frozen=True)
class SampledAnswers(Sampled):
    """The same for chats, whose answers end by themselves."""

    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="The most tokens of an answer.", min=0)] = 1024
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0 takes the likeliest token.", show_default=_or("0.7"), min=0),
    ] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have the fields of a dataclass as options, where it has a parameter that is one.

    Parameters
    ----------
    command : callable
        Whose annotations are classes like `Opening`, or what typer knows.

    Returns
    -------
    callable
        A function with an option for each field, for typer.

    Examples
    --------
    >>> import inspect
    >>> from llama2cpp.command import options
    >>> def show(opening: options.Opening) -> None:
    ...     print(opening.threads)
    >>> command = options.grouped(show)
    >>> list(inspect.signature(command).parameters)
    ['context', 'backend', 'threads', 'activation_dtype', 'kv_dtype']
    >>> command(threads=3)
    3
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind))
            continue
        groups[parameter.name] = kind
        types = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
                )
            )

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401
        made = {
            name: kind(
                **{field.name: given.pop(field.name) for field in dataclasses.fields(kind) if field.name in given}
            )
            for name, kind in groups.items()
        }
        command(**given, **made)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
