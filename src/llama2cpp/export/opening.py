"""What an export begins with: a model, or files that are read for an export only."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .. import hub
from .._core import FormatError, Tokenizer
from ..common.library_tokenizer import is_of_library

if TYPE_CHECKING:
    from ..model import Model
    from .source import Checkpoint
    from .torch_files import TorchCheckpoint

_BAD = (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Opened:
    """A source that is open, for `convert` and for what comes after it.

    Attributes
    ----------
    checkpoint : Checkpoint
        A model, or files of PyTorch's.
    has_own_tokenizer : bool
        Whether its tokenizer is the one that its files come with.
    """

    checkpoint: Checkpoint
    has_own_tokenizer: bool

    def close(self) -> None:
        """Close it."""
        self.checkpoint.close()


def open_source(
    source: str | PathLike[str],
    *,
    tokenizer: str | PathLike[str] | Tokenizer | None = None,
    threads: int | None = None,
) -> Opened:
    """Do what `open_checkpoint` does, and remember whether a tokenizer was given."""
    if is_of_library(tokenizer):
        raise ValueError(
            "an export cannot keep a tokenizer of the tokenizers library: save it as a tokenizer.json and pass its "
            "path, or leave the tokenizer out (tokenizer=False, --no-tokenizer)"
        )
    return Opened(open_checkpoint(source, tokenizer=tokenizer, threads=threads), tokenizer is None)


def open_checkpoint(
    source: str | PathLike[str],
    *,
    tokenizer: str | PathLike[str] | Tokenizer | None = None,
    threads: int | None = None,
) -> Checkpoint:
    """Open what `llama2cpp.load` opens, or one of PyTorch's files or folders of them.

    Parameters
    ----------
    source : str or path
        Besides what `load` takes: a folder of Meta's (params.json and consolidated.00.pth), one of its files, or a
        training checkpoint of llama2.c (``.pt``). These need PyTorch.
    tokenizer, threads
        As in `load`.

    Raises
    ------
    FormatError, OSError, ValueError
        As in `load`.
    ImportError
        Where PyTorch is needed and not installed.
    """
    from ..loading import load

    path = Path(hub.find(source))
    try:
        opened = _open_torch(path, tokenizer)
    except _BAD as error:  # values of other types than a checkpoint has, which torch.load takes for good
        raise FormatError(f"{path}: expected a checkpoint, found values that are none: {error}") from None
    if opened is None:
        return load(source, tokenizer=tokenizer, threads=threads, backend="cpu")
    if opened.tokenizer is not None and opened.tokenizer.vocab_size != opened.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {opened.tokenizer.vocab_size} pieces and the model a vocabulary of "
            f"{opened.config.vocab_size}: they do not belong together"
        )
    return opened


def runnable(checkpoint: Checkpoint, threads: int | None = None) -> Model | None:
    """Give a model that computes what a checkpoint holds; None for PyTorch's files that memory should not hold."""
    from ..loading import from_arrays
    from ..model import Model
    from .torch_files import TorchCheckpoint

    if isinstance(checkpoint, Model):
        return checkpoint
    assert isinstance(checkpoint, TorchCheckpoint)
    arrays = checkpoint.arrays()
    if arrays is None:
        return None
    return from_arrays(checkpoint.config, arrays, checkpoint.tokenizer, threads=threads, backend="cpu")


def _open_torch(path: Path, tokenizer: str | PathLike[str] | Tokenizer | None) -> TorchCheckpoint | None:
    from . import llama2c_training, meta_folder

    given = tokenizer if tokenizer is None or isinstance(tokenizer, Tokenizer) else Path(tokenizer)
    if path.is_dir() and meta_folder.is_meta_folder(path):
        return meta_folder.open_meta_folder(path, given)
    if not path.is_file() or path.suffix.lower() not in (".pt", ".pth"):
        return None
    if meta_folder.is_shard(path):
        return meta_folder.open_meta_folder(path.parent, given)
    return llama2c_training.open_training_checkpoint(path, given)
