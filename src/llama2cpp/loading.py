"""The ways to get a model: `load` opens files, `from_arrays` takes weights in memory."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from . import _core, hub
from ._core import Config, Tokenizer
from .common.arguments import checked, close_names
from .common.library_tokenizer import LibraryTokenizer, is_of_library
from .model import Model

if TYPE_CHECKING:
    import tokenizers

_STORYTELLER = "storyteller"  # its name
_STORYTELLER_FOLDER = Path(__file__).parent / "storyteller"  # the model in the package; its card is beside it


@checked
def load(
    source: str | PathLike[str] | None = None,
    *,
    tokenizer: str | PathLike[str] | Tokenizer | tokenizers.Tokenizer | None = None,
    backend: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    activation_dtype: str = "auto",
    kv_dtype: str = "auto",
    precision: str = "auto",
    pack: str = "auto",
    mmap: bool = True,
) -> Model:
    """Open a checkpoint.

    Parameters
    ----------
    source : str or path, optional
        A llama2.c checkpoint (``.bin``), a GGUF file, a Hugging Face folder (config.json, safetensors files and, for
        text, tokenizer.json; a safetensors file beside a config.json stands for its folder), a ``.safetensors`` file of
        panels that ``llama2cpp export`` has written, or the name of a model that ``llama2cpp pull`` has downloaded:
        "smollm2-135m", "org/repo" or "org/repo:file". What exists as a path is never taken for a name. "storyteller",
        or nothing, is a small model of this project's own that is in the package and tells children's stories.
    tokenizer : str, path, Tokenizer or tokenizers.Tokenizer, optional
        A llama2.c ``tokenizer.bin``, a SentencePiece ``.model``, Llama 3's ``tokenizer.model`` or a
        ``tokenizer.json``; or one of the ``tokenizers`` library, for what is not read here: ids and texts are then the
        library's, BOS, EOS and chat template those that the files beside the model name, and no export keeps it.
        Without it the tokenizer is what the checkpoint itself holds; llama2.c's hold none, and the model then takes and
        gives ids only.
    backend : str
        "cpu", "metal" (the GPU of a Mac with Apple silicon) or "auto": Metal where there is such a GPU, with kernels
        for all of the model's weights and room for them, unless an option or a llama2.c int8 file asks for what only
        the CPU does; else the CPU.
    threads : int, optional
        How many threads compute, on the CPU. The default is what this process may use: its CPU affinity and quota. The
        results do not depend on it.
    context : int, optional
        How many tokens a session holds; what the model was trained for if not given, or on a GPU, which takes all of
        the memory at once, what half of the memory that the weights leave has room for.
    activation_dtype : str
        The type in which activations meet the weights: "int8" for quantized ones, "f32", "bf16" for weights of bf16
        and f16, or "auto": int8 for quantized weights and f32 for all others. With int8, a version 2 file of llama2.c
        gives the logits of its ``runq``, bit for bit. "bf16" reads prompts about twice as fast as "f32" on processors
        with AVX512_BF16, and rounds activations, and weights of f16, to 8 bits.
    kv_dtype : str
        The type of keys and values: "auto", "f32", "f16", or "q8_0", which takes little more than half of f16's memory:
        integers of 8 bits, with a scale for each 32 (head_dim must be a multiple of that). On the CPU.
    precision : str
        "auto", or "exact" for f32 in both: the model computes with what its weights stand for, and nothing is rounded
        on the way. Slower where weights are quantized.
    pack : str
        "auto", "always" or "never": whether weights are rearranged for speed on first use. The results do not
        depend on it.
    mmap : bool
        Map the file, so that it opens at once. With False it is read into memory, and may change afterwards.

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        If the file is damaged, or not of a kind that is known. It says what was expected, what was found, and where.
    ValueError
        For an argument that cannot be, or a tokenizer whose size is not that of the model's vocabulary.
    OSError
        If a file cannot be opened. For a name that has not been downloaded yet it says the command that does so.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller", threads=1)
    >>> model.config.dim, model.threads
    (192, 1)
    """
    if source is None or (source == _STORYTELLER and not Path(source).exists()):
        source = _STORYTELLER_FOLDER / "storyteller.bin"
        tokenizer = _STORYTELLER_FOLDER / "tokenizer.model" if tokenizer is None else tokenizer
    options: dict[str, Any] = {
        "backend": backend,
        "threads": threads,
        "context": context,
        **_dtypes("load", precision, activation_dtype=activation_dtype, kv_dtype=kv_dtype),
        "pack": pack,
        "mmap": mmap,
    }
    try:
        core = _core.Model.open(hub.find(source), **options)
    except FileNotFoundError as error:
        hint = close_names(source, [_STORYTELLER, *hub.KNOWN]) if isinstance(source, str) else ""
        if not hint or error.errno is None or Path(source).exists():
            raise
        raise FileNotFoundError(error.errno, f"{error.strerror}{hint}", str(source)) from None
    return Model(core, _open_tokenizer(tokenizer, core.config.vocab_size, core), options)


@checked
def from_arrays(
    config: Config,
    arrays: Mapping[str, NDArray[np.float32]],
    tokenizer: str | PathLike[str] | Tokenizer | tokenizers.Tokenizer | None = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    activation_dtype: str = "auto",
    kv_dtype: str = "auto",
    precision: str = "auto",
    pack: str = "auto",
) -> Model:
    """Make a model from weights in memory. They are not copied, and must not change while the model lives.

    Parameters
    ----------
    config : Config
        The sizes. ``rope_style="half_split"`` for weights as Hugging Face orders them.
    arrays : mapping of str to numpy.ndarray
        float32 matrices, C-contiguous, under llama2.c's names (``layers.0.attention.wq.weight``) or Hugging Face's
        (``model.layers.0.self_attn.q_proj.weight``). With ``config.tied`` there is no output matrix.
    tokenizer, backend, threads, context, activation_dtype, kv_dtype, precision, pack
        As in `load`.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If an array is missing, unknown, or has another shape or type than the configuration asks for.

    Examples
    --------
    >>> import llama2cpp
    >>> stories = llama2cpp.load("storyteller", activation_dtype="f32")
    >>> copy = llama2cpp.from_arrays(stories.config, dict(stories.weights))
    >>> bool((copy.session().step(1) == stories.session().step(1)).all())
    True
    """
    core = _core.Model.from_arrays(
        config,
        arrays,
        backend=backend,
        threads=threads,
        context=context,
        **_dtypes("from_arrays", precision, activation_dtype=activation_dtype, kv_dtype=kv_dtype),
        pack=pack,
    )
    return Model(core, _open_tokenizer(tokenizer, config.vocab_size))


def _dtypes(function: str, precision: str, **dtypes: str) -> dict[str, str]:
    """Give the types that a precision stands for."""
    if precision not in ("auto", "exact"):
        raise ValueError(f"{function}: precision is {precision!r}, expected one of: auto, exact")
    if precision == "auto":
        return dtypes
    for name, dtype in dtypes.items():
        if dtype not in ("auto", "f32"):
            raise ValueError(f"{function}: {name} is {dtype!r}, but precision='exact' stands for 'f32'")
    return dict.fromkeys(dtypes, "f32")


def _open_tokenizer(
    tokenizer: str | PathLike[str] | Tokenizer | tokenizers.Tokenizer | None,
    vocab_size: int,
    core: _core.Model | None = None,
) -> Tokenizer | None:
    if tokenizer is None:
        return None
    if is_of_library(tokenizer):
        path, own = ("", None) if core is None else (core.path, core.tokenizer)
        library = cast("tokenizers.Tokenizer", tokenizer)
        # It has the methods of ours, whose class has no heirs.
        return cast("Tokenizer", LibraryTokenizer.from_library(library, vocab_size, path, own))
    if not isinstance(tokenizer, Tokenizer):
        # The size makes a tokenizer.bin read as llama2.c reads it: as many pieces as the model has ids.
        tokenizer = Tokenizer.from_file(cast("str | PathLike[str]", tokenizer), vocab_size)
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} pieces and the model a vocabulary of {vocab_size}: "
            "they do not belong together"
        )
    return tokenizer
