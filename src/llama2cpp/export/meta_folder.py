"""Meta's own folders: params.json, consolidated.00.pth and its further shards, and tokenizer.model beside them.

Sources: the loader and the model of Meta's llama and llama-models repositories, and transformers' conversion of these
folders, for what they leave unsaid.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .. import _core
from .._core import FormatError, Tokenizer
from ..common.file_kinds import stand_in
from ..common.parts import EMBEDDING, OUTPUT
from .torch_files import Piece, TorchCheckpoint, TorchFile, name_tied, same_numbers

_PARAMS = "params.json"
_KNOWN = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "use_scaled_rope",
    "rope_scaling_factor",
    "sliding_window",
}
_ABOUT_RUNNING = {"max_batch_size", "max_seq_len"}


def is_meta_folder(folder: Path) -> bool:
    """Whether this is Meta's: a folder with params.json and no config.json."""
    return (folder / _PARAMS).is_file() and not (folder / "config.json").is_file()


def open_meta_folder(folder: Path, tokenizer: Tokenizer | Path | None) -> TorchCheckpoint:
    """Open the files; their weights stay where they are.

    Parameters
    ----------
    folder : Path
        With params.json.
    tokenizer : Tokenizer or Path, optional
        Another than tokenizer.model in the folder, or in the one above.

    Raises
    ------
    FormatError
        For a setting that no Llama has, a quantized checkpoint, or shards that do not fit together.
    OSError, ImportError
        If a file cannot be opened, or PyTorch is missing.
    """
    params = _read_params(folder / _PARAMS)
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise FileNotFoundError(f"{folder} has {_PARAMS}, but no consolidated.00.pth")
    for number, path in enumerate(paths):
        expected = f"consolidated.{number:02}.pth"
        if path.name != expected:
            raise FileNotFoundError(f"{folder} has {path.name}, but no {expected}")
    pieces = _pieces([TorchFile(path, len(paths)) for path in paths])
    name_tied(pieces)
    embedding, output = EMBEDDING.at(), OUTPUT.at()
    if embedding not in pieces:
        raise FormatError(f"{paths[0]}: tensor {embedding} is missing")
    tied = output not in pieces or same_numbers(pieces[output], pieces[embedding])
    config = _config(folder / _PARAMS, params, pieces, tied=tied)
    if tied:
        pieces.pop(output, None)
    found, problem = _tokenizer(folder, tokenizer, config.vocab_size)
    shards = f", {len(paths)} shards" if paths[1:] else ""
    return TorchCheckpoint(folder, f"Meta folder{shards}", config, pieces, found, problem)


def _read_params(path: Path) -> dict[str, Any]:
    try:
        params = json.loads(_core.read_file(path))
    except ValueError as error:
        found = stand_in(path)
        raise FormatError(f"{path}: {f'expected JSON, found {found}' if found else error}") from None
    if not isinstance(params, dict):
        raise FormatError(f"{path}: expected an object of settings, found {type(params).__name__}")
    params = {name: value for name, value in params.items() if value is not None and name not in _ABOUT_RUNNING}
    for name in params:
        if name not in _KNOWN:
            raise FormatError(f"{path}: {name!r} is a setting that this version does not know")
    for name in ("dim", "n_layers", "n_heads"):
        if name not in params:
            raise FormatError(f"{path}: {name!r} is missing")
    for name, value in params.items():
        if not isinstance(value, int | float):
            raise FormatError(f"{path}: {name!r} is {value!r}, expected a number")
    return params


def _pieces(files: list[TorchFile]) -> dict[str, list[Piece]]:
    """Find each weight's part in every file."""
    pieces: dict[str, list[Piece]] = {}
    for file in files:
        if not isinstance(file.content, dict):
            raise FormatError(f"{file.path}: expected a dict of tensors, found {type(file.content).__name__}")
        for name in file.content:
            if str(name).endswith("rope.freqs"):  # computed anew
                continue
            if _core.rename_weight(str(name), "llama2.c") != name:
                raise FormatError(f"{file.path}: {name!r} has no place in a Llama that this version reads")
            pieces.setdefault(name, []).append(Piece(file, (name,)))
    for name, parts in pieces.items():
        if len(parts) != len(files):
            raise FormatError(f"{files[0].path.parent}: {name} is in {len(parts)} of {len(files)} shards")
    return pieces


def _config(path: Path, params: dict[str, Any], pieces: dict[str, list[Piece]], *, tied: bool) -> _core.Config:
    dim = int(params["dim"])
    vocab_size = int(params.get("vocab_size", -1))
    if vocab_size < 1:
        vocab_size = _vocab_size(pieces[EMBEDDING.at()], dim)
    theta = float(params.get("rope_theta", 10000.0))
    scaled = bool(params.get("use_scaled_rope", False))
    norm_eps = float(params.get("norm_eps", 1e-5))
    scaling: dict[str, Any] | None = None
    if scaled:
        # The file may leave the factor out: it is 32 in Llama 3.2, whose text models are tied, and 8 in others.
        scaling = {
            "type": "llama3",
            "factor": float(params.get("rope_scaling_factor", 32.0 if tied else 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_context": 8192,
        }
    try:
        return _core.Config(
            dim=dim,
            hidden_dim=_hidden_dim(params),
            n_layers=int(params["n_layers"]),
            n_heads=int(params["n_heads"]),
            n_kv_heads=int(params.get("n_kv_heads", params["n_heads"])),
            head_dim=int(params["head_dim"]) if "head_dim" in params else None,
            vocab_size=vocab_size,
            seq_len=_context(theta, norm_eps, scaled=scaled),
            norm_eps=norm_eps,
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=int(params["sliding_window"]) if "sliding_window" in params else None,
            tied=tied,
        )
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


def _vocab_size(parts: list[Piece], dim: int) -> int:
    """Count the pieces where params.json says -1: shards of the embedding share its columns, or its rows."""
    rows, columns = parts[0].shape if len(parts[0].shape) == 2 else (0, 0)
    return rows * len(parts) if columns == dim else rows


def _hidden_dim(params: dict[str, Any]) -> int:
    """Two thirds of 4 * dim, times a factor where there is one, rounded up: each step to a whole number."""
    if "hidden_dim" in params:
        return int(params["hidden_dim"])
    hidden = int(2 * (4 * int(params["dim"])) / 3)
    if "ffn_dim_multiplier" in params:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = max(1, int(params.get("multiple_of", 256)))
    return multiple * ((hidden + multiple - 1) // multiple)


def _context(theta: float, norm_eps: float, *, scaled: bool) -> int:
    """Tell the context, which the file does not have, by what does differ between the families."""
    if scaled:
        return 131072  # Llama 3.1 and 3.2
    if theta == 1e6:
        return 16384  # Code Llama
    if theta == 500000.0:
        return 8192  # Llama 3
    return 4096 if norm_eps == 1e-5 else 2048  # Llama 2; Llama 1


def _tokenizer(folder: Path, given: Tokenizer | Path | None, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """Open what was given, or tokenizer.model, which Meta's downloads have in the folder or in the one above it."""
    if isinstance(given, Tokenizer):
        return given, ""
    if given is not None:
        return Tokenizer.from_file(given, vocab_size), ""
    for place in (folder, folder.absolute().parent):
        path = place / "tokenizer.model"
        if path.is_file():
            try:
                found = Tokenizer.from_file(path, vocab_size)
            except FormatError as error:
                return None, str(error)
            if found.vocab_size == vocab_size:
                return found, ""
            return None, f"{path} has {found.vocab_size} pieces and the model a vocabulary of {vocab_size}"
    return None, f"{folder} has no tokenizer.model, and none was given"


_SHARD = re.compile(r"consolidated\.\d+\.pth")


def is_shard(path: Path) -> bool:
    """Whether a file is one of such a folder's."""
    return _SHARD.fullmatch(path.name) is not None and is_meta_folder(path.parent)
