"""From any checkpoint to any other."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from .._core import FormatError, Tokenizer
from ..common.arguments import checked
from ..common.byte_sizes import parse_size
from ..common.new_files import new_file, new_folder, refuse_existing, refuse_replacing
from . import (
    gguf_file,
    gptq_folder,
    hf_folder,
    hf_shards,
    hf_tokenizer,
    kept,
    llama2c_file,
    llm_int8,
    mxfp4_folder,
    panel_file,
    sampling_settings,
)
from .calibration import Calibration, importance_of_inputs
from .gptq import BITS, Settings
from .mixtures import ALIASES, FLOATS, MXFP4, has_mxfp4
from .opening import Opened, open_source, runnable
from .outliers import outlier_columns
from .source import Array, Checkpoint, Source, tokenizer_of
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..model import Model

_Made = TypeVar("_Made")
_LARGEST_HALF = 65504.0  # of f16, which scales are too
_GGUF_ENDS = 3  # the ends of a text, of a turn and of a message


@dataclass(frozen=True)
class Conversion:
    """What `convert` has written.

    Attributes
    ----------
    path : pathlib.Path
        The file or folder.
    format : str
        The format that was asked for, or chosen.
    bytes : int
        Its size on disk, with all files of a folder.
    seconds : float
        How long it took.
    formats : dict of str to str
        How each weight is stored, by llama2.c's name.
    tokenizer : pathlib.Path or None
        The tokenizer that goes along: the same file, or one beside it. None where there is none.
    notes : tuple of str
        What could not go along and why, and what readers of the target take otherwise.
    """

    path: Path
    format: str
    bytes: int
    seconds: float
    formats: dict[str, str]
    tokenizer: Path | None
    notes: tuple[str, ...]


@checked
def convert(
    source: str | PathLike[str] | Model | Opened,
    target: str | PathLike[str],
    format: str | None = None,
    *,
    tokenizer: str | PathLike[str] | Tokenizer | Literal[False] | None = None,
    group: int | None = None,
    pure: bool = False,
    importance: Mapping[str, Array] | None = None,
    calibration: str | PathLike[str] | Calibration | None = None,
    act_order: bool = True,
    damp: float = 0.01,
    symmetric: bool = True,
    shard_size: int | str = hf_shards.SHARD_SIZE,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write a checkpoint in another container, other types, or both.

    Weights are decoded, encoded and written one after another, so memory stays near one weight's size. The target
    appears under its name when it is complete and synced, and not earlier.

    Parameters
    ----------
    source : str, path or Model
        What `llama2cpp.load` opens, or a model that is open. Also, with PyTorch, a folder of Meta's (params.json,
        consolidated.00.pth and its further shards, tokenizer.model) and a training checkpoint of llama2.c (``.pt``).
    target : str or path
        The suffix gives the container: ``.gguf``; ``.bin`` for llama2.c's, with a ``.tokenizer.bin`` beside it where
        the tokenizer can be one; ``.safetensors`` for a file of panels, which this engine opens without packing;
        without a suffix, a Hugging Face folder.
    format : str, optional
        ``.gguf``: "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", or one of llama.cpp's mixtures "q2_k",
        "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k" ("q3_k", "q4_k" and
        "q5_k" are their "_m"), "mxfp4" (experts' matrices; all others in the source's float format, else as "q8_0").
        ``.bin``: "f32" or "v0" (for llama2.c's run), "v1", "int8" or "v2" (for its runq). A folder: "f32", "f16",
        "bf16"; "gptq4", "gptq8", "gptq3", "gptq2"; "llm_int8" (as bitsandbytes stores it); "mxfp4" (gpt-oss as OpenAI
        writes it; all but experts' matrices in the source's float format, else "bf16"). ``.safetensors``: those of
        ``.gguf``. Without it a ``.safetensors`` keeps what the source has, to the bit; a ``.bin`` gets "f32", experts
        that are MXFP4 stay so, and others get what all matrices of the source have if that is a float format, else
        "f16".
    tokenizer : str, path or Tokenizer, optional
        As in `load`, where the source has none or another is wanted. False leaves the source's behind.
    group : int, optional
        Version 2 of llama2.c: how many int8 values share a scale. As llama2.c chooses if not given: 64, or its largest
        half, quarter ... that divides all rows. GPTQ: how many columns share a scale, or -1 for a whole row; 128 if not
        given.
    pure : bool
        GGUF and panels: all matrices get the format's own type, and not llama.cpp's mixture.
    importance : mapping of str to numpy.ndarray, optional
        Types of 2 to 6 bits: by llama2.c's name of a weight float32 [columns], how much the squared error of a
        column counts, such as the mean square of what that column is multiplied by.
    calibration : path or Calibration, optional
        Text of the kind that the model is for. GPTQ needs it: matrices are rounded for the inputs that they have on it.
        Types of 2 to 6 bits take their importance from it. For "llm_int8" the columns whose input reaches 6 on it are
        fixed as outliers, and go along in float16; without it they are decided as the model runs, for each token.
    act_order : bool
        GPTQ: round the columns whose inputs are largest first (``desc_act``).
    damp : float
        GPTQ: how much of the mean square of all inputs is added to each one's.
    symmetric : bool
        GPTQ: one zero for all groups; else each has its own, and the folder is of GPTQ's version 2.
    shard_size : int or str
        A folder: the most bytes of weights in one file, as a number or such as "500MB". Larger models are in several,
        with an index.
    force : bool
        Replace a target that exists.
    threads : int, optional
        How many threads encode; all that this process may use if not given. The bytes do not depend on it.
    progress : callable, optional
        Called after each weight with its name, and the parameters that are done and that there are in all.

    Returns
    -------
    Conversion

    Raises
    ------
    ValueError
        If the format does not fit the container, or the container has no place for something that the model computes
        with or for a setting of the tokenizer, or a number is too large for the format. Nothing is written then.
    FileExistsError
        If the target exists and `force` is not given.
    FormatError, OSError
        As in `load`, and where the target cannot be written.
    ImportError
        For GGUF without the gguf library (the extra ``export``), and for PyTorch's files without PyTorch.

    Examples
    --------
    >>> import llama2cpp
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = llama2cpp.export.convert("storyteller", f"{folder}/stories.bin", "int8")
    ...     done.bytes, done.formats["norm.weight"], done.formats["layers.0.attention.wq.weight"]
    (2411008, 'f32', 'int8_group')
    """
    from ..model import Model

    path = Path(target)
    container, format = _check_format(path, format)
    refuse_existing(path, force=force)
    if container == "folder":
        refuse_replacing(path)
    elif path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is not written in its place")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder")
    bytes_of_shard = parse_size(shard_size)
    begun = time.perf_counter()
    if format in BITS:
        settings = Settings(BITS[format], 128 if group is None else group, act_order, damp, symmetric)
    text = _calibration(calibration, container, format, importance)
    if isinstance(source, Model):
        opened = Opened(source, has_own_tokenizer=False)
    elif isinstance(source, Opened):
        opened = source
    else:
        opened = open_source(source, tokenizer=tokenizer or None, threads=threads)
    checkpoint = opened.checkpoint
    try:
        if checkpoint.config.n_experts is not None and format == llm_int8.FORMAT:
            raise ValueError(
                f"{format} is not implemented for models with experts (n_experts {checkpoint.config.n_experts})"
            )
        job = _Job(Source(checkpoint), path, format or _same_width(Source(checkpoint), container), progress)
        if tokenizer is False:
            job.notes.append("no tokenizer goes along: it was to be left behind")
        else:
            job.take_vocabulary(opened)
        reader = None if text is None else runnable(checkpoint, threads)  # of the text
        if text is not None and reader is None:
            what = f"{checkpoint.path} is too large to be run for a calibration text"
            raise ValueError(f"{what}: convert it first, then that")
        sequences = [] if text is None or reader is None else job.take_text(reader, text)
        if container == "gguf":
            gguf_file.require_library()  # before the text is read, which takes a while
        if reader is not None and container in ("gguf", "panels"):
            importance = importance_of_inputs(reader, sequences, progress=progress)
        if container == "llama2.c":
            formats = job.write_llama2c(group, force=force)
        elif container == "gguf":
            formats = job.write_gguf(pure=pure, importance=importance or {}, threads=threads)
        elif format in BITS:
            formats = job.write_gptq(settings, sequences, shard_size=bytes_of_shard, threads=threads)
        elif container == "panels":
            formats = job.write_panels(checkpoint, pure=pure, importance=importance or {}, threads=threads)
        else:
            formats = job.write_folder(reader, sequences, shard_size=bytes_of_shard, threads=threads)
    finally:
        if opened is not source and checkpoint is not source:  # opened here
            opened.close()
    files = [path] if path.is_file() else list(path.iterdir())
    return Conversion(
        path=path,
        format=job.format,
        bytes=sum(file.stat().st_size for file in files),
        seconds=time.perf_counter() - begun,
        formats=formats,
        tokenizer=job.tokenizer,
        notes=tuple(job.notes),
    )


def _check_format(path: Path, format: str | None) -> tuple[str, str | None]:
    """Give the container that a path names, and the format in small letters. ValueError if they do not fit."""
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        raise ValueError(f"{path} would be PyTorch's file, which is not written; expected .gguf, .bin or a folder")
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        ".gguf": ("gguf", gguf_file.FORMATS),
        ".bin": ("llama2.c", tuple(llama2c_file.FORMATS)),
        ".safetensors": ("panels", panel_file.FORMATS),
    }
    if suffix not in known and re.fullmatch(r"\.[a-z]{2,}", suffix):  # a model's name may end in .5 or .1-8B
        raise ValueError(f"{path}: {suffix} is no file that is written; expected .gguf, .bin, .safetensors or a folder")
    of_folders = (*hf_folder.FORMATS, MXFP4, *gptq_folder.FORMATS, llm_int8.FORMAT)
    container, formats = known.get(suffix, ("folder", of_folders))
    if format is not None and format.lower() not in formats:
        what = {
            "gguf": "a .gguf file",
            "llama2.c": "a .bin file",
            "panels": "a .safetensors file of panels",
            "folder": "a Hugging Face folder",
        }[container]
        raise ValueError(f"{what} ({path}) has no format {format!r}, expected one of: {', '.join(formats)}")
    return container, None if format is None else format.lower()


def _calibration(
    given: str | PathLike[str] | Calibration | None,
    container: str,
    format: str | None,
    importance: Mapping[str, Array] | None,
) -> Calibration | None:
    """Give the text that a format is to be fitted to. ValueError where it is missing, or of no use."""
    if given is None:
        if format in BITS:
            raise ValueError(f"{format} needs calibration text: pass calibration=FILE (--calibrate FILE)")
        return None
    if importance is not None:
        raise ValueError("calibration and importance are both given, and one is made of the other")
    of_use = format in (*BITS, llm_int8.FORMAT) or (
        container in ("gguf", "panels") and format not in (None, *FLOATS, "q8_0", MXFP4)
    )
    if not of_use:
        raise ValueError(
            "calibration text is for GPTQ, llm_int8 and GGUF's types of less than 8 bits, "
            f"the format is {format or 'not given'}"
        )
    return given if isinstance(given, Calibration) else Calibration(given)


def _same_width(source: Source, container: str) -> str:
    if container == "llama2.c":
        return "f32"
    if container == "panels":
        return panel_file.KEEP
    if has_mxfp4(source) and (container == "gguf" or hf_folder.has_turned_experts(source)):
        return MXFP4
    found = {source.stored_format(name) for name in source.names() if len(source.shape(name)) == 2}
    if found == {"f64"}:
        return "f32"
    return found.pop() if len(found) == 1 and found <= {"f32", "f16", "bf16"} else "f16"


# Of the four models of tests/export/test_calibrated_experts.py.
_LITTLE_TEXT = (
    "on other text than theirs, small models with experts that saw 50 tokens had 1.2 to 2.2 times the error of "
    "rounding alone, with 400 tokens 0.73 to 0.79 times"
)


class _Job:
    """One conversion: what is known before the first byte is written, and the ways to write."""

    def __init__(
        self, source: Source, path: Path, format: str, progress: Callable[[str, int, int], None] | None
    ) -> None:
        self.source = source
        self.path = path
        self.format = format
        self.notes: list[str] = []
        self.tokenizer: Path | None = None
        self.vocabulary: Vocabulary | None = None
        self.source_folder: Path | None = None  # whose tokenizer files may be copied
        self.generation = sampling_settings.config_of(source)
        self._report = progress
        self._done = 0
        self._all = sum(int(np.prod(source.shape(name))) for name in source.names())

    def take_vocabulary(self, opened: Opened) -> None:
        checkpoint = opened.checkpoint
        tokenizer = tokenizer_of(checkpoint)
        if tokenizer is None:
            problem = checkpoint.tokenizer_problem
            self.notes.append(f"no tokenizer goes along: {problem or 'the source has none, and none was given'}")
            return
        self.vocabulary = Vocabulary.of(tokenizer)
        folder = Path(checkpoint.path) if Path(checkpoint.path).is_dir() else Path(checkpoint.path).parent
        if opened.has_own_tokenizer and checkpoint.file_format.startswith("Hugging Face") and folder.is_dir():
            self.source_folder = folder

    def progress(self, name: str, parameters: int) -> None:
        self._done += parameters
        if self._report is not None:
            self._report(name, self._done, max(self._all, self._done))

    def write_llama2c(self, group: int | None, *, force: bool) -> dict[str, str]:
        version = llama2c_file.FORMATS[self.format]
        self.notes += sampling_settings.lost(self.generation, "llama2.c")
        llama2c_file.check(self.source)
        group = llama2c_file.choose_group(self.source.config, group) if version == 2 else 0
        if self.vocabulary is not None and not llama2c_file.has_tokenizer(self.vocabulary):
            self._leave_tokenizer("no tokenizer.bin goes along: llama2.c has no byte-level BPE")
        tokenizer = None
        if self.vocabulary is not None and self.vocabulary.templates:
            self.notes.append("tokenizer.bin has no place for the chat template (chat_template)")
            self.vocabulary = replace(self.vocabulary, chat_template="", template_names=[], template_texts=[])
        beside = self.path.with_suffix(".tokenizer.bin")
        if self.vocabulary is not None:
            tokenizer = self._try("tokenizer.bin", llama2c_file.tokenizer_bin)
            self._check_tokenizer("tokenizer.bin", llama2c_file.tokenizer_as_stored, _write_bytes(tokenizer))
            refuse_existing(beside, force=force)
        with contextlib.ExitStack() as stack:  # both are there before one appears
            if tokenizer is not None:
                stack.enter_context(new_file(beside)).write_bytes(tokenizer)
            begun = stack.enter_context(new_file(self.path))
            formats = llama2c_file.write(begun, self.source, version, group, self.progress)
            self._check_written(begun, "a llama2.c file")
        if tokenizer is not None:
            self.tokenizer = beside
        return formats

    def write_gguf(self, *, pure: bool, importance: Mapping[str, Array], threads: int | None) -> dict[str, str]:
        gguf_file.require_library()
        gguf_file.check(self.source)
        self.notes += gguf_file.notes(self.source)
        fused = gguf_file.family_of(self.source)["fused"]
        formats = gguf_file.formats_of(self.source, self.format, pure=pure, fused=fused)
        self.notes += sampling_settings.lost(self.generation, "GGUF")
        self._try("GGUF", gguf_file.check_vocabulary)
        self._check_tokenizer("GGUF", gguf_file.as_stored, gguf_file.write_vocabulary)
        with new_file(self.path) as begun:
            gguf_file.write(
                begun,
                _Checked(self.source, formats),
                formats,
                self.progress,
                name=self.path.stem,
                file_type=ALIASES.get(self.format, self.format),
                vocabulary=self.vocabulary,
                sampling=self.generation,
                importance=importance,
                threads=threads,
            )
            self._check_written(begun, "GGUF")
        if self.vocabulary is not None:
            self.tokenizer = self.path
            if len(self.vocabulary.eos_ids) > _GGUF_ENDS:
                others = self.vocabulary.eos_ids[_GGUF_ENDS:]
                self.notes.append(
                    f"GGUF names {_GGUF_ENDS} pieces that end a text; {others} are known by their text only"
                )
        return formats

    def write_panels(
        self, checkpoint: Checkpoint, *, pure: bool, importance: Mapping[str, Array], threads: int | None
    ) -> dict[str, str]:
        formats = panel_file.formats_of(self.source, self.format, pure=pure)
        if self.vocabulary is not None and len(self.vocabulary.pieces) != self.source.config.vocab_size:
            self._leave_tokenizer("no tokenizer goes along: it has another number of pieces than the model")
        with new_file(self.path) as begun:
            panel_file.write(
                begun,
                _Checked(self.source, formats),
                formats,
                self.progress,
                tokenizer=None if self.vocabulary is None else tokenizer_of(checkpoint),
                sampling=self.generation,
                importance=importance,
                threads=threads,
            )
            self._check_written(begun, "a file of panels", tokenizer=True)
        self.tokenizer = self.path if self.vocabulary is not None else None
        return formats

    def take_text(self, model: Model, text: Calibration) -> list[list[int]]:
        sequences = text.tokens(model)
        if self.format == llm_int8.FORMAT:  # which makes no sums over the text
            return sequences
        config = self.source.config
        count, enough = sum(map(len, sequences)), max(config.dim, config.hidden_dim)
        experts = config.n_experts or 0
        seen = count * (config.n_experts_used or 0) // experts if experts else count
        if seen < enough:
            each = f", about {seen} for each of {experts} experts" if experts else ""
            measured = f": {_LITTLE_TEXT}" if experts and self.format in BITS else ""
            self.notes.append(
                f"the calibration text has {count} tokens{each}, and matrices have up to {enough} columns{measured}"
            )
        return sequences

    def write_gptq(
        self, settings: Settings, sequences: Sequence[Sequence[int]], *, shard_size: int, threads: int | None
    ) -> dict[str, str]:
        gptq_folder.check(self.source, settings)
        formats = gptq_folder.formats_of(self.source, self.format)
        config = hf_folder.config_json(self.source, gptq_folder.FLOAT, self.vocabulary)
        source = _Checked(self.source, formats)
        self.notes += gptq_folder.notes(self.source, settings)
        with new_folder(self.path) as begun:
            self._write_tokenizer(begun)
            self.notes += gptq_folder.write(
                begun, source, config, settings, sequences, self.progress, shard_size=shard_size, threads=threads
            )
            self._check_written(begun, "a folder", tokenizer=self.source_folder is not None)
        self.tokenizer = self.path if self.vocabulary is not None else None
        return formats

    def write_folder(
        self, reader: Model | None, sequences: Sequence[Sequence[int]], *, shard_size: int, threads: int | None
    ) -> dict[str, str]:
        int8, mxfp4 = self.format == llm_int8.FORMAT, self.format == MXFP4
        if mxfp4:
            mxfp4_folder.check(self.source)
        kind = "f16" if int8 else mxfp4_folder.float_of(self.source) if mxfp4 else self.format
        config = hf_folder.config_json(self.source, hf_folder.FORMATS[kind][1], self.vocabulary)
        every = dict.fromkeys(self.source.names(), self.format)
        source = _Checked(self.source, mxfp4_folder.formats_of(self.source) if mxfp4 else every)
        outliers = None if reader is None else outlier_columns(reader, sequences, progress=self._report)
        with new_folder(self.path) as begun:
            self._write_tokenizer(begun)
            if int8:
                formats = llm_int8.write(
                    begun, source, config, outliers, self.progress, shard_size=shard_size, threads=threads
                )
            elif mxfp4:
                formats = mxfp4_folder.write(
                    begun, source, config, self.progress, shard_size=shard_size, threads=threads
                )
            else:
                formats = hf_folder.write(
                    begun, source, self.format, config, self.progress, shard_size=shard_size, threads=threads
                )
            self._check_written(begun, "a folder", tokenizer=self.source_folder is not None)
        self.tokenizer = self.path if self.vocabulary is not None else None
        return formats

    def _write_tokenizer(self, folder: Path) -> None:
        if self.source_folder is not None:
            return hf_folder.copy_tokenizer(self.source_folder, folder)
        seq_len = self.source.config.seq_len

        def write(vocabulary: Vocabulary) -> Path:
            return hf_folder.write_tokenizer(folder, vocabulary, seq_len)

        path = self._try("a folder", write)
        sampling_settings.write_folder(folder, self.generation)
        if path is not None:
            self._compare_tokenizer("a folder", hf_tokenizer.as_stored, path)

    def _leave_tokenizer(self, note: str) -> None:
        self.vocabulary = None
        self.notes.append(note)

    def _try(self, target: str, make: Callable[[Vocabulary], _Made]) -> _Made | None:
        """Make something of the tokenizer, if there is one. ValueError where that cannot be, which says what to do."""
        if self.vocabulary is None:
            return None
        try:
            return make(self.vocabulary)
        except ValueError as error:
            raise ValueError(f"{target} cannot hold this tokenizer: {error}; {kept.WITHOUT}") from None

    def _check_tokenizer(
        self, target: str, as_stored: Callable[[Vocabulary], Vocabulary], write: Callable[[Path, Vocabulary], None]
    ) -> None:
        """Write the tokenizer alone, before the work begins, and compare what its reader makes of it."""
        if self.vocabulary is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer"
            write(path, self.vocabulary)
            self._compare_tokenizer(target, as_stored, path)

    def _compare_tokenizer(self, target: str, as_stored: Callable[[Vocabulary], Vocabulary], path: Path) -> None:
        wanted = tokenizer_of(self.source.checkpoint)
        assert wanted is not None
        assert self.vocabulary is not None
        try:
            found = Tokenizer.from_file(path)
        except FormatError as error:
            said = str(error).removeprefix(f"{path}: ")
            raise ValueError(f"{target} cannot hold this tokenizer: {said}; {kept.WITHOUT}") from None
        self.notes += kept.check_tokenizer(target, wanted, as_stored(self.vocabulary), found)

    def _check_written(self, path: Path, target: str, *, tokenizer: bool = False) -> None:
        """Compare what has been written with its source. `tokenizer`: with that too, if it goes along."""
        wanted = tokenizer_of(self.source.checkpoint) if tokenizer and self.vocabulary is not None else None
        self.notes += kept.check_written(path, target, self.source.config, wanted)


def _write_bytes(data: bytes | None) -> Callable[[Path, Vocabulary], None]:
    def write(path: Path, vocabulary: Vocabulary) -> None:
        assert data is not None
        path.write_bytes(data)

    return write


class _Checked(Source):
    """A source that refuses numbers which a narrower format would turn into infinities."""

    def __init__(self, source: Source, formats: Mapping[str, str]) -> None:
        super().__init__(source.checkpoint)
        self._formats = formats

    def array(self, name: str, rope_style: str) -> Array:
        array = super().array(name, rope_style)
        format = self._formats[name]
        if format not in ("f32", "bf16") and array.size:
            largest = max(abs(float(array.max())), abs(float(array.min())))
            stays = format == "f16" and self.stored_format(name) == "f16"  # infinities that are there may stay
            if not largest <= _LARGEST_HALF and not stays:
                raise ValueError(f"{name} has a magnitude of {largest:g}, and {format} holds up to {_LARGEST_HALF:g}")
        return array
