"""llama2.c's checkpoints, versions 0 to 2, and its tokenizer.bin."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import _core
from ..common.new_files import write_array
from ..common.parts import PARTS, Part
from .source import Source, rope_factors, short_float
from .vocabulary import BYTE, Vocabulary

Progress = Callable[[str, int], None]

FORMATS = {"f32": 0, "v0": 0, "v1": 1, "int8": 2, "v2": 2}  # llama2.c's run reads version 0, its runq version 2

_ROTARY_TABLES = "rotary tables"  # stand among the weights in version 0
_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256
_GROUP = 64  # where it divides
_MOST_IN_A_GROUP = 65_536  # whose integer sums fit into 32 bits


def choose_group(config: _core.Config, group: int | None) -> int:
    """Give the group that was asked for, or the one that llama2.c chooses: 64, halved until it divides all rows."""
    if group is None:
        group = _GROUP
        while config.dim % group or config.hidden_dim % group:
            group //= 2
    if group < 1 or config.dim % group or config.hidden_dim % group:
        raise ValueError(f"group is {group}, expected a divisor of dim {config.dim} and hidden_dim {config.hidden_dim}")
    if group > _MOST_IN_A_GROUP:
        raise ValueError(f"group is {group}, expected at most {_MOST_IN_A_GROUP}")
    return group


# Settings that a file of llama2.c's has no place for, and that change what a model computes.
_NEUTRAL = (
    "rotary_dim",
    "rope_long_factors",
    "qk_norm",
    "full_layers",
    "no_rope_layers",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "norm",
    "norm_places",
    "parallel",
    "activation",
    "gated",
    "local_rope_theta",
    "score_cap",
    "logits_cap",
    "n_experts",
)


def check(source: Source) -> None:
    """Raise ValueError for a model that a llama2.c file cannot describe: its reader would run another one."""
    config = source.config
    problems = []
    if short_float(config.norm_eps) != 1e-5:
        problems.append(f"norm_eps {short_float(config.norm_eps)} (llama2.c's is 1e-05)")
    if config.rope_theta != 10000.0:
        problems.append(f"rope_theta {config.rope_theta:g} (llama2.c's is 10000)")
    if config.rope_scaling is not None or rope_factors(config) is not None:
        problems.append("scaled rotary frequencies (rope_scaling, rope_factors)")
    if config.sliding_window is not None and config.sliding_window < config.seq_len:
        problems.append(f"a sliding window (sliding_window {config.sliding_window})")
    if config.head_dim * config.n_heads != config.dim:
        problems.append(f"heads of {config.head_dim} (head_dim; llama2.c's is dim / n_heads)")
    usual = _core.Config(dim=2, hidden_dim=1, n_layers=1, n_heads=1, vocab_size=1, seq_len=1)
    for name in _NEUTRAL:
        if getattr(config, name) != getattr(usual, name):
            problems.append(f"{name} {getattr(config, name)}")
    problems += sorted({"biases" if part.kind == "bias" else part.name for part in source.optional_parts()})
    if problems:
        raise ValueError(f"a llama2.c file has no place for what this model has: {', '.join(problems)}")


def write(path: Path, source: Source, version: int, group: int, progress: Progress) -> dict[str, str]:
    """Write a checkpoint. Returns the format of each weight by llama2.c's name.

    Parameters
    ----------
    path : Path
        The file.
    source : Source
        A model that `check` has passed.
    version : int
        0, 1 or 2.
    group : int
        Version 2: how many int8 values share a scale.
    progress : callable
        Called with the name and the parameters of each weight that is done.
    """
    formats = {}
    with path.open("wb") as file:
        file.write(_header(source.config, version, group))
        for name in _order(source, version):
            if name == _ROTARY_TABLES:
                _write_rotary_tables(file, source.config)
                continue
            array = source.array(name, "interleaved")
            if version == 2 and array.ndim == 2:
                values, scales = _core.encode_int8_group(array, group)
                write_array(file, values)
                write_array(file, scales)
            else:
                write_array(file, array)
            formats[name] = "int8_group" if version == 2 and array.ndim == 2 else "f32"
            progress(name, array.size)
    return formats


def _header(config: _core.Config, version: int, group: int) -> bytes:
    sizes = [config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads]
    if version == 0:
        return struct.pack("<7i", *sizes, config.vocab_size if config.tied else -config.vocab_size, config.seq_len)
    fields = struct.pack("<Ii7iB", _MAGIC, version, *sizes, config.vocab_size, config.seq_len, config.tied)
    if version == 2:
        fields += struct.pack("<i", group)
    return fields.ljust(_HEADER_BYTES, b"\0")


def _order(source: Source, version: int) -> list[str]:
    """Each kind of weight through all layers; after version 0 the vectors first."""

    def names(parts: Iterable[Part]) -> list[str]:
        return [name for part in parts for name in part.in_model(source.config.n_layers)]

    always = [part for part in PARTS if part.in_every_llama]
    output = [] if source.config.tied else names(part for part in PARTS if part.need == "untied")
    if version == 0:
        return [*names(always), _ROTARY_TABLES, *output]
    return [*names(sorted(always, key=lambda part: not part.is_vector)), *output]


def _write_rotary_tables(file: BinaryIO, config: _core.Config) -> None:
    """Write cosines and sines, float32 [seq_len, head_dim / 2] each. No reader of today looks at them."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(10000.0) ** exponents).astype(np.float32)
    for table in (np.cos, np.sin):
        for begin in range(0, config.seq_len, 4096):
            positions = np.arange(begin, min(begin + 4096, config.seq_len), dtype=np.float32)
            write_array(file, table(np.outer(positions, frequencies).astype(np.float32)).astype("<f4"))


def has_tokenizer(vocabulary: Vocabulary) -> bool:
    """Whether llama2.c has tokenizers of this kind at all."""
    return vocabulary.kind != "byte_bpe"


def tokenizer_as_stored(vocabulary: Vocabulary) -> Vocabulary:
    """Give what a tokenizer.bin holds of a tokenizer. ValueError where llama2.c's rules would give other ids."""
    if not has_tokenizer(vocabulary):
        raise ValueError("llama2.c has no byte-level BPE")
    vocabulary.check_scores()
    if vocabulary.unigram or vocabulary.charsmap:
        name = "unigram" if vocabulary.unigram else "charsmap"
        raise ValueError(f"it has no place for a Unigram model, nor for what changes a text first ({name})")
    vocabulary = vocabulary.with_scores()
    if vocabulary.kind == "llama2.c":
        return vocabulary
    for name, expected in (("unk_id", 0), ("bos_id", 1), ("eos_ids", [2])):
        if getattr(vocabulary, name) != expected:
            raise ValueError(f"llama2.c's {name} is {expected}, and this tokenizer's is {getattr(vocabulary, name)}")
    if vocabulary.types[3:259] != [BYTE] * 256:
        raise ValueError("llama2.c's bytes are the pieces 3 to 258, and this tokenizer's are others (types)")
    if not vocabulary.add_space_prefix:
        raise ValueError("llama2.c puts a space before every text, and this tokenizer none (add_space_prefix)")
    if vocabulary.remove_extra_whitespaces:
        raise ValueError("llama2.c keeps extra spaces, and this tokenizer does not (remove_extra_whitespaces)")
    pieces = [piece.replace("\N{LOWER ONE EIGHTH BLOCK}".encode(), b" ") for piece in vocabulary.pieces]
    pieces[1], pieces[2] = b"\n<s>\n", b"\n</s>\n"
    return replace(vocabulary, kind="llama2.c", pieces=pieces)


def tokenizer_bin(vocabulary: Vocabulary) -> bytes:
    """Make a tokenizer.bin. ValueError for a vocabulary that llama2.c's rule of merging cannot serve."""
    vocabulary = tokenizer_as_stored(vocabulary)
    pieces = vocabulary.pieces
    parts = [struct.pack("<i", max(map(len, pieces)))]
    parts += [
        struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(pieces, vocabulary.scores, strict=True)
    ]
    return b"".join(parts)
