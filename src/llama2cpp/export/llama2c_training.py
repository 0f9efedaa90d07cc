"""llama2.c's training checkpoints: ckpt.pt, with the model's weights and the arguments that it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import _core
from .._core import FormatError, Tokenizer
from ..common.parts import EMBEDDING, OUTPUT, get_part
from .torch_files import Piece, TorchCheckpoint, TorchFile, name_tied, same_numbers

_COMPILED = "_orig_mod."  # what torch.compile puts before every name
_ROTARY = ("freqs_cos", "freqs_sin")  # of its first versions; computed anew


def open_training_checkpoint(path: Path, tokenizer: Tokenizer | Path | None) -> TorchCheckpoint:
    """Open the file; its weights stay where they are.

    Parameters
    ----------
    path : Path
        A file of llama2.c's train.py.
    tokenizer : Tokenizer or Path, optional
        The file has none.

    Raises
    ------
    FormatError
        If it is no such file.
    OSError, ImportError
        If it cannot be opened, or PyTorch is missing.
    """
    file = TorchFile(path)
    content = file.content
    if not isinstance(content, dict) or not {"model", "model_args"} <= set(content):
        found = ", ".join(map(repr, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise FormatError(f"{path}: expected a training checkpoint of llama2.c ('model', 'model_args'), found {found}")
    pieces: dict[str, list[Piece]] = {}
    for stored in content["model"]:
        name = str(stored).removeprefix(_COMPILED)
        if name in _ROTARY:
            continue
        if _core.rename_weight(name, "llama2.c") != name:
            raise FormatError(f"{path}: {stored!r} has no place in a Llama")
        pieces[name] = [Piece(file, ("model", stored))]
    name_tied(pieces)  # train.py always ties
    config = _config(path, content["model_args"], pieces)
    if config.tied:
        pieces.pop(OUTPUT.at(), None)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_file(tokenizer, config.vocab_size)
    problem = "" if tokenizer is not None else "a training checkpoint of llama2.c has none, and none was given"
    return TorchCheckpoint(path, "llama2.c training checkpoint", config, pieces, tokenizer, problem)


def _config(path: Path, args: dict[str, Any], pieces: dict[str, list[Piece]]) -> _core.Config:
    first = get_part("w1").at(0)
    for name in (EMBEDDING.at(), first):
        if name not in pieces:
            raise FormatError(f"{path}: tensor {name} is missing")
    embedding = pieces[EMBEDDING.at()]
    output = pieces.get(OUTPUT.at(), embedding)
    try:
        return _core.Config(
            dim=args["dim"],
            hidden_dim=pieces[first][0].shape[0],  # derived from dim and multiple_of when it was trained
            n_layers=args["n_layers"],
            n_heads=args["n_heads"],
            n_kv_heads=args.get("n_kv_heads") or args["n_heads"],
            vocab_size=embedding[0].shape[0],
            seq_len=args.get("max_seq_len", 2048),
            norm_eps=args.get("norm_eps", 1e-5),
            tied=same_numbers(output, embedding),
        )
    except KeyError as error:
        raise FormatError(f"{path}: model_args has no {error}") from None
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from None
