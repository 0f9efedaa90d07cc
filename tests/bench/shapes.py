"""Files of well-known shapes with random weights, for measuring: GGUF in several types, and llama2.c's own formats.

They are written piece by piece, so a 7B file needs the disk but not the memory. The values are random bytes under
scales that keep activations near 1; what a model says does not matter to how fast it says it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1] / "support"))

import gptq_models

from llama2cpp.export import convert

Bytes = NDArray[np.uint8]


class Shape(NamedTuple):
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int = 32000
    context: int = 2048
    architecture: str = "llama"  # as a GGUF file names it
    head_dim: int = 0  # 0: dim / n_heads
    window: int = 0  # of the layers that have one; 0: none has


GGUF_SHAPES = {
    "1.1b": Shape(2048, 5632, 22, 32, 4),  # TinyLlama's
    "7b": Shape(4096, 11008, 32, 32, 32),  # Llama 2's
}
# Norms of queries and keys, and a head size of their own; output and embedding are one matrix.
TIED_SHAPES = {
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, 8, 151936, 2048, "qwen3", 128),
    "gemma3-270m": Shape(640, 2048, 18, 4, 1, 262144, 2048, "gemma3", 256, 512),
}
LLAMA2C_SHAPES = {
    "15m": Shape(288, 768, 6, 6, 6, context=256),
    "42m": Shape(512, 1376, 8, 8, 8, context=1024),
    "110m": Shape(768, 2048, 12, 12, 12, context=1024),
}
# type of the matrices -> of the output matrix, as llama.cpp's quantizer chooses
OUTPUT = {"q4_0": "q6_k", "q8_0": "q8_0", "q4_k": "q6_k", "f16": "f16"}

FILE_TYPE = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k": 15}


def blocks(form: str, rows: int, cols: int, rng: np.random.Generator) -> Bytes:
    """Random weights of about 1 / sqrt(cols), as the bytes [rows, row bytes] of a GGUF type."""
    if form == "f16":
        values = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(np.sqrt(cols))
        halves: Bytes = values.astype(np.float16).view(np.uint8)
        return halves
    # columns and bytes of a block, where its scales (f16) lie, and by what the random integers exceed 1
    size, block_bytes, scales_at, excess = {
        "q4_0": (32, 18, [0], 4.6),
        "q8_0": (32, 34, [0], 74.0),
        "q4_k": (256, 144, [0, 2], 140.0),
        "q6_k": (256, 210, [208], 1300.0),
    }[form]
    count = cols // size
    data = np.frombuffer(rng.bytes(rows * count * block_bytes), np.uint8).reshape(rows, count, block_bytes).copy()
    scale = np.frombuffer(np.float16(1 / (excess * np.sqrt(cols))).tobytes(), np.uint8)
    for at in scales_at:
        data[:, :, at : at + 2] = scale
    whole_rows: Bytes = data.reshape(rows, count * block_bytes)
    return whole_rows


def gguf_matrices(shape: Shape, form: str) -> Iterator[tuple[str, int, int, str]]:
    """Name, rows, columns and type of each matrix."""
    head_dim = shape.head_dim or shape.dim // shape.n_heads
    q_dim, kv_dim = shape.n_heads * head_dim, shape.n_kv_heads * head_dim
    yield "token_embd", shape.vocab_size, shape.dim, form
    for layer in range(shape.n_layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_q", q_dim, shape.dim, form
        yield f"{block}.attn_k", kv_dim, shape.dim, form
        yield f"{block}.attn_v", kv_dim, shape.dim, form
        yield f"{block}.attn_output", shape.dim, q_dim, form
        yield f"{block}.ffn_gate", shape.hidden_dim, shape.dim, form
        yield f"{block}.ffn_up", shape.hidden_dim, shape.dim, form
        yield f"{block}.ffn_down", shape.dim, shape.hidden_dim, form
    if shape.architecture == "llama":
        yield "output", shape.vocab_size, shape.dim, OUTPUT[form]


def gguf_vectors(shape: Shape) -> Iterator[tuple[str, int]]:
    """Name and size of each norm's gain."""
    yield "output_norm", shape.dim
    for layer in range(shape.n_layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm", shape.dim
        yield f"{block}.ffn_norm", shape.dim
        if shape.architecture != "llama":
            yield f"{block}.attn_q_norm", shape.head_dim
            yield f"{block}.attn_k_norm", shape.head_dim
        if shape.architecture == "gemma3":
            yield f"{block}.post_attention_norm", shape.dim
            yield f"{block}.post_ffw_norm", shape.dim


def write_gguf(path: Path, shape: Shape, form: str) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.hidden_dim)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.dim // shape.n_heads)
    else:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_freq_base(1e6)
    if shape.window:
        writer.add_sliding_window(shape.window)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(FILE_TYPE[form])
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    kinds = [gguf.TokenType.UNKNOWN] + 2 * [gguf.TokenType.CONTROL] + 256 * [gguf.TokenType.BYTE]
    rest = shape.vocab_size - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + [f"\u2581{i}".encode() for i in range(rest)])
    writer.add_token_scores([-float(i) for i in range(shape.vocab_size)])
    writer.add_token_types([*kinds, *rest * [gguf.TokenType.NORMAL]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    matrices = list(gguf_matrices(shape, form))
    vectors = list(gguf_vectors(shape))
    for name, size in vectors:
        writer.add_tensor_info(f"{name}.weight", [size], np.dtype(np.float32), size * 4)
    for name, rows, cols, kind in matrices:
        raw = Type[kind.upper()]
        size, block_bytes = gguf.GGML_QUANT_SIZES[raw]
        row_bytes = cols // size * block_bytes
        bytes_shape = [rows, row_bytes if raw != Type.F16 else cols]
        dtype = np.dtype(np.float16) if raw == Type.F16 else np.dtype(np.uint8)
        writer.add_tensor_info(f"{name}.weight", bytes_shape, dtype, rows * row_bytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for _, size in vectors:
        writer.write_tensor_data(np.ones(size, np.float32))
    for _, rows, cols, kind in matrices:
        writer.write_tensor_data(blocks(kind, rows, cols, rng))
    writer.close()


def write_llama2c(path: Path, shape: Shape, group: int) -> None:
    """Version 0 (float32) for group 0, else version 2 (int8 groups). Tied, with one kind of matrix after another."""
    dim, hidden, layers = shape.dim, shape.hidden_dim, shape.n_layers
    kv_dim = dim // shape.n_heads * shape.n_kv_heads
    rng = np.random.default_rng(0)
    sizes = (dim, hidden, layers, shape.n_heads, shape.n_kv_heads, shape.vocab_size, shape.context)
    attention = [(dim, dim), (kv_dim, dim), (kv_dim, dim), (dim, dim)]
    mlp = [(hidden, dim), (dim, hidden), (hidden, dim)]

    def floats(rows: int, cols: int) -> bytes:
        values = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(np.sqrt(cols))
        return bytes(values)

    def int8(rows: int, cols: int) -> bytes:
        scales = np.full(rows * cols // group, 1 / (74 * np.sqrt(cols)), np.float32)
        return rng.integers(-127, 128, rows * cols, np.int8).tobytes() + scales.tobytes()

    gains = np.ones((layers, dim), np.float32).tobytes()
    last_gain = np.ones(dim, np.float32).tobytes()
    with path.open("wb") as file:
        if group == 0:
            file.write(struct.pack("<7i", *sizes))
            file.write(floats(shape.vocab_size, dim))
            for kinds in (attention, mlp):
                file.write(gains)
                for rows, cols in kinds:
                    for _ in range(layers):
                        file.write(floats(rows, cols))
            file.write(last_gain)
            file.write(bytes(shape.context * (dim // shape.n_heads) * 4))  # tables of rotary angles, which nobody reads
            return
        header = struct.pack("<Ii7iBi", 0x616B3432, 2, *sizes, 1, group)
        file.write(header + bytes(256 - len(header)))
        file.write(gains + gains + last_gain)
        file.write(int8(shape.vocab_size, dim))
        for rows, cols in attention + mlp:
            for _ in range(layers):
                file.write(int8(rows, cols))


def write_llama2c_tokenizer(path: Path, vocab_size: int) -> None:
    """Pieces for every id, so that llama2.c's programs start."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)]
    pieces += [b" %d" % i for i in range(vocab_size - len(pieces))]
    with path.open("wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for i, piece in enumerate(pieces):
            file.write(struct.pack("<fi", -float(i), len(piece)) + piece)


def make(name: str, folder: Path) -> Path:
    """Get a file by its name, such as "7b:q4_0", "15m:f32" or "15m:int8", making it where it is not there yet.

    "1.1b:gptq4" is a folder.
    """
    size, _, form = name.lower().partition(":")
    if form == "gptq4" and size in gptq_models.SHAPES:
        whole = folder / f"{size}.gptq4"
        if not whole.exists():
            gptq_models.shaped_folder(whole.with_suffix(".part"), gptq_models.SHAPES[size]).rename(whole)
        return whole
    llama2c, tied = size in LLAMA2C_SHAPES, size in TIED_SHAPES
    if (
        not (size in GGUF_SHAPES and form in OUTPUT)
        and not (tied and form in ("f16", "q4_k_m"))
        and not (llama2c and form in ("f32", "int8"))
    ):
        raise ValueError(
            f"{name!r} is no shape: expected {', '.join(GGUF_SHAPES)} with {', '.join(OUTPUT)}, "
            f"{', '.join(TIED_SHAPES)} with f16, q4_k_m, "
            f"{', '.join(gptq_models.SHAPES)} with gptq4, or {', '.join(LLAMA2C_SHAPES)} with f32, int8"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size}.{form}.{'bin' if llama2c else 'gguf'}"
    if not path.exists():
        if form == "q4_k_m":
            convert(make(f"{size}:f16", folder), path, format="q4_k_m")
            return path
        unfinished = path.with_suffix(".part")
        if llama2c:
            write_llama2c(unfinished, LLAMA2C_SHAPES[size], 32 if form == "int8" else 0)
        else:
            write_gguf(unfinished, (TIED_SHAPES if tied else GGUF_SHAPES)[size], form)
        unfinished.rename(path)
    return path
