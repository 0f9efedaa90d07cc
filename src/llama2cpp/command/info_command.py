"""``llama2cpp info``."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.kv_size import kv_bytes
from ..loading import load
from .display import console, one_line, say_json
from .options import STORYTELLER, AsJson, ModelOrStoryteller, examples

if TYPE_CHECKING:
    from ..model import Model

INFO_EXAMPLES = examples("llama2cpp info", "llama2cpp info stories260K.bin", "llama2cpp info smollm2-135m --json")

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def info(checkpoint: ModelOrStoryteller = STORYTELLER, as_json: AsJson = False) -> None:
    """Show what is in a checkpoint, without reading its weights.

    Weights that all layers have alike are one row, with the bytes of all. With --json each weight is told: model,
    file_format, config, parameters, weight_bytes, tokenizer, chat_template, sampling, kv, activations, memory and
    weights.
    """
    with load(checkpoint) as model:
        if as_json:
            say_json(_facts(model, checkpoint))
        else:
            _print(model, checkpoint)


def _facts(model: Model, name: str) -> dict[str, Any]:
    """Give what --json prints. Its keys stay."""
    config = model.config
    per_token = kv_bytes(config, model.kv_dtype)
    weights = [{"name": name, **_weight(model, name)} for name in model.weights]
    matrices = model._core.matrix_bytes
    tokenizer = model.tokenizer if model.has_tokenizer else None
    return {
        "model": name,
        "file_format": model.file_format,
        "config": config.to_dict(),
        "parameters": sum(math.prod(weight["shape"]) for weight in weights),
        "weight_bytes": sum(weight["bytes"] for weight in weights),
        "tokenizer": None if tokenizer is None else repr(tokenizer).removeprefix("<Tokenizer of ").removesuffix(">"),
        "tokenizer_problem": model.tokenizer_problem or None,
        "chat_template": tokenizer is not None and bool(tokenizer.chat_template),
        "sampling": dict(model.sampling_defaults),
        "context": model.context,
        "kv": {"type": model.kv_dtype, "bytes_per_token": per_token, "bytes": per_token * model.context},
        "activations": model.activation_dtype,
        "memory": {
            "bytes": matrices + per_token * model.context,
            "matrix_bytes": matrices,
            "packed": model._core.pack == "always",
        },
        "weights": weights,
    }


def _weight(model: Model, name: str) -> dict[str, Any]:
    weight = model.weights.info(name)
    return {"shape": list(weight["shape"]), "format": weight["format"], "bytes": int(weight["bytes"])}


def _print(model: Model, name: str) -> None:
    from rich.table import Table

    facts = _facts(model, name)
    kv, memory = facts["kv"], facts["memory"]
    problem = facts["tokenizer_problem"]
    rows = {
        "file format": facts["file_format"],
        **facts["config"],
        "parameters": f"{facts['parameters']:,}",
        "weights": f"{facts['weight_bytes']:,} bytes",
        "tokenizer": facts["tokenizer"] or (f"none ({problem})" if problem else "none"),
        "chat template": "yes" if facts["chat_template"] else "no",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in facts["sampling"].items()) or "not in the file",
        "keys and values": f"{kv['type']}, {kv['bytes_per_token']:,} bytes a token, {kv['bytes']:,} for "
        f"{facts['context']}",
        "activations": facts["activations"],
        "memory": f"{memory['bytes']:,} bytes with one full session: matrices "
        f"{'packed' if memory['packed'] else 'in place'}, {memory['matrix_bytes']:,}, and its keys and values",
    }
    head = Table(show_header=False, title=one_line(name), title_justify="left")
    for label, value in rows.items():
        head.add_row(one_line(label), f"{value:g}" if isinstance(value, float) else one_line(str(value)))
    weights = Table("weight", "shape", "format", title="weights", title_justify="left")
    weights.add_column("bytes", justify="right")
    for row in summed_up(facts["weights"]):
        weights.add_row(one_line(row.name), row.shape, row.format, f"{row.bytes:,}")
    out = console()
    out.print(head)
    out.print(weights)


class Row(NamedTuple):
    """Equal weights of several layers, or one weight."""

    name: str  # with "0-5" where the layer's number is
    shape: str
    format: str
    bytes: int  # of all


def summed_up(weights: list[dict[str, Any]]) -> list[Row]:
    """Put weights together that differ in the number of their layer alone, where the first of them is."""
    groups: dict[tuple[str, str, str], list[tuple[int | None, int]]] = {}
    for weight in weights:
        number = _LAYER.search(weight["name"])
        stem = weight["name"] if number is None else _LAYER.sub("{}", weight["name"], count=1)
        key = (stem, " x ".join(map(str, weight["shape"])), weight["format"])
        groups.setdefault(key, []).append((None if number is None else int(number[0]), weight["bytes"]))
    return [
        Row(
            stem.replace("{}", _ranges([layer for layer, _ in parts if layer is not None]), 1),
            shape,
            format,
            sum(size for _, size in parts),
        )
        for (stem, shape, format), parts in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    """Write [0, 1, 2, 5] as "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
