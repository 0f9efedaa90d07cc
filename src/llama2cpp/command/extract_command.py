"""``llama2cpp extract``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..loading import load
from .display import one_line, say, say_json, tell
from .options import AdapterPath, AsJson, Model, Opening, TokenizerFile, adapted, examples, find_adapter, grouped

EXTRACT_EXAMPLES = examples(
    "llama2cpp extract smollm2-135m --texts stories.txt --points resid_post --layers 12 --out rows",
    "llama2cpp extract smollm2-135m --texts - --points mlp_out --points z --layers 0-3 --out rows < stories.jsonl",
    "llama2cpp extract smollm2-135m --texts stories.txt --points resid_post --pool mean --dtype f32 --out vectors",
)


@grouped
def extract(
    opening: Opening,
    checkpoint: Model,
    texts: Annotated[
        str, typer.Option("--texts", help="A file with a text in each line, or of JSON lines; - is stdin.")
    ],
    points: Annotated[list[str], typer.Option("--points", help="Activations, such as resid_post. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", help="A folder: new, empty, or of the same run.")],
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", help="A layer, or several as 0-3. May be repeated.", show_default="all"),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="A row for each text: last or mean.", show_default="each token")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="f16, bf16 or f32.")] = "f16",
    shuffle: Annotated[
        int | None,
        typer.Option("--shuffle", help="Shuffle the rows of each file by this seed.", show_default="no", min=0),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on where a run was ended.")] = True,
    truncate: Annotated[bool, typer.Option("--truncate", help="Leave away what does not fit in the context.")] = False,
    special: Annotated[
        bool | None,
        typer.Option(
            "--special/--no-special", help="Whether texts may spell control tokens.", show_default="no, and warn"
        ),
    ] = None,
    field: Annotated[str, typer.Option("--field", help="JSON lines: where the text is.")] = "text",
    shard_size: Annotated[str, typer.Option("--shard-size", help="About how many bytes a file has.")] = "128MB",
    tokenizer: TokenizerFile = None,
    adapter: AdapterPath = None,
    as_json: AsJson = False,
) -> None:
    """Write the activations of many texts to safetensors, for probes and sparse autoencoders.

    Each row has the number of its text, its position and its token. Empty lines are no texts. Lines that begin with {
    in a file that ends in .jsonl or .json, or in stdin, are JSON objects, whose field "text" is the text.

    Ctrl-C keeps what is done, and the same command goes on from there, as it does after a crash. Python reads the
    folder with llama2cpp.read_activations, as NumPy's arrays, PyTorch's data set or Hugging Face's.

    With --json: rows, texts, files, bytes, points and out.
    """
    lines = _Lines(texts, field) if texts == "-" else _FileLines(texts, field)
    find_adapter(adapter)
    with load(checkpoint, tokenizer=tokenizer, **opening.arguments()) as model:
        try:
            data = model.extract(
                lines,
                points,
                None if layers is None else [layer for text in layers for layer in _layers(text)],
                out=out,
                pool=pool,
                dtype=dtype,
                shuffle=shuffle,
                resume=resume,
                truncate=truncate,
                special=special,
                shard_size=shard_size,
                **adapted(model, adapter),
            )
        except KeyboardInterrupt:
            tell(f"stopped: what is done is in {one_line(str(out))}, and the same command goes on from there")
            raise
    files = sorted(out.glob("activations-*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    if as_json:
        say_json(
            {
                "rows": len(data),
                "texts": data.texts,
                "files": len(files),
                "bytes": size,
                "points": data.points,
                "out": str(out),
            }
        )
        return
    say(
        f"{len(data):,} rows of {len(data.points)} activations of {data.texts:,} texts: {len(files)} files, {size:,} "
        f"bytes in {one_line(str(out))}"
    )


def _layers(text: str) -> Iterator[int]:
    """Read "3", "-1" or "0-3"."""
    match = re.fullmatch(r"(-?\d{1,9})|(\d{1,9})-(\d{1,9})", text, flags=re.ASCII)
    if match is None or (match[1] is None and int(match[2]) > int(match[3])):
        raise typer.BadParameter(f"expected a layer, or several as 0-3, got {text!r}", param_hint="--layers")
    if match[1] is not None:
        yield int(match[1])
    else:
        yield from range(int(match[2]), int(match[3]) + 1)


class _Lines:
    """The texts of stdin, one after another."""

    def __init__(self, name: str, field: str) -> None:
        self._name = name
        self._field = field
        self._json = name == "-" or name.endswith((".jsonl", ".json"))

    def __iter__(self) -> Iterator[bytes | str]:
        yield from self._texts(sys.stdin.buffer)

    def _texts(self, file: Any) -> Iterator[bytes | str]:  # noqa: ANN401 - a file of bytes
        for number, line in enumerate(file, 1):
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            if not text.strip():
                continue
            yield self._field_of(text, number) if self._json and text.lstrip().startswith(b"{") else text

    def _field_of(self, line: bytes, number: int) -> str:
        try:
            text = json.loads(line)[self._field]
        except (ValueError, KeyError, RecursionError) as error:
            raise ValueError(
                f"line {number} of {self._name} has no JSON object with {self._field!r}: {error}"
            ) from None
        if not isinstance(text, str):
            raise ValueError(f"line {number} of {self._name}: {self._field!r} is {text!r:.40}, expected a text")
        return text


class _FileLines(_Lines):
    """The texts of a file, whose number is known: a progress bar can say how long it takes."""

    def __init__(self, name: str, field: str) -> None:
        super().__init__(name, field)
        with Path(name).open("rb") as file:
            self._count = sum(1 for line in file if line.strip())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes | str]:
        with Path(self._name).open("rb") as file:
            yield from self._texts(file)
