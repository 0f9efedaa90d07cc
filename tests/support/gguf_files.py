"""GGUF files for the tests: good ones through the gguf package, bad ones byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

if TYPE_CHECKING:
    import transformers

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Every type that is read, and where in a block its scales (half floats) are.
SCALES: dict[Type, tuple[int, ...]] = {
    Type.Q8_0: (0,),
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
}
FLOATS = (Type.F32, Type.F16, Type.BF16)
TYPES = (*FLOATS, *SCALES, Type.MXFP4)


# --- values


def decoded(data: NDArray[Any], kind: Type) -> Floats:
    """What gguf says that the bytes stand for."""
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(data, kind), dtype=np.float32)


def blocks(kind: Type, rows: int, columns: int, rng: np.random.Generator) -> Bytes:
    """Rows of random bytes."""
    size, bytes_each = gguf.GGML_QUANT_SIZES[kind]
    return rng.integers(256, size=(rows, columns // size * bytes_each), dtype=np.uint8)


def with_scales(data: Bytes, kind: Type, patterns: Sequence[NDArray[np.uint16]]) -> Bytes:
    """The same blocks with these scales, one for each block; a block's second scale is from the second array."""
    _, bytes_each = gguf.GGML_QUANT_SIZES[kind]
    each = data.reshape(-1, bytes_each).copy()
    for offset, pattern in zip(SCALES[kind], patterns, strict=False):
        each[:, offset : offset + 2] = pattern.astype("<u2").reshape(-1, 1).view(np.uint8)
    return np.asarray(each.reshape(data.shape))


def encoded(values: Floats, kind: Type, rng: np.random.Generator) -> NDArray[Any]:
    """About these values where gguf can encode the type; elsewhere random ones of the same size."""
    if kind == Type.F32:
        return values
    if kind not in SCALES or not (kind.name.endswith("_K") or kind.name.startswith("IQ")):
        return np.asarray(gguf.quants.quantize(values, kind))
    rows, columns = values.shape
    data = blocks(kind, rows, columns, rng)
    count = data.size // gguf.GGML_QUANT_SIZES[kind][1]

    def scaled(*scales: float) -> Bytes:
        return with_scales(data, kind, [np.full(count, np.float16(scale).view(np.uint16)) for scale in scales])

    # A minimum is scaled so that the mean is about 0, as weights' is.
    minimum = 0.0
    if len(SCALES[kind]) == 2:
        minimum = -float(decoded(scaled(1, 0), kind).mean() / decoded(scaled(0, 1), kind).mean())
    scale = float(values.std() / decoded(scaled(1, minimum), kind).std())
    return scaled(scale, scale * minimum)


# --- good files


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[NDArray[Any], Type]]) -> Path:
    """A GGUF by the gguf package. Metadata: int becomes uint32, float float32; lists become arrays."""
    writer = gguf.GGUFWriter(path, "llama")
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        add[type(value)](key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Hugging Face's name -> GGUF's
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{INNER[part]}.{kind}"


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of wq or wk, or their biases: the two of a rotary pair side by side, not half a head apart."""
    split = rows.reshape(heads, 2, -1, *rows.shape[1:])  # [heads, half, pair, ...]
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def half_split(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The opposite."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def metadata_of(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """What GGUF says of a Hugging Face Llama, but for the scaling of its rotary frequencies."""
    metadata: dict[str, Any] = {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.vocab_size": config.vocab_size,
    }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    metadata["llama.rope.dimension_count"] = head_dim
    if head_dim * config.num_attention_heads != config.hidden_size:
        metadata |= {"llama.attention.key_length": head_dim, "llama.attention.value_length": head_dim}
    if getattr(config, "sliding_window", None):
        metadata["llama.attention.sliding_window"] = config.sliding_window
    return metadata


def write_model(
    path: Path,
    model: Any,
    kind: Type | Callable[[str], Type] = Type.F32,
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[NDArray[Any], Type]] | None = None,
) -> Path:
    """A Hugging Face Llama as a GGUF, its matrices of one type, or of the type that `kind` gives for a GGUF name.

    The model gets the values that the file stands for, so that it computes what the file's reader should.
    """
    rng = np.random.default_rng(1)
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    written: dict[str, tuple[NDArray[Any], Type]] = {}
    for name, parameter in model.named_parameters():  # a tied lm_head is not among them
        target = gguf_name(name)
        turned = heads.get(target.split(".")[-2], 0)
        values = parameter.detach().float().numpy()
        values = interleaved(values, turned) if turned else values
        if values.ndim == 1:
            written[target] = (values, Type.F32)
            continue
        type_ = kind(target) if callable(kind) else kind
        data = encoded(values, type_, rng)
        written[target] = (data, type_)
        values = decoded(data, type_)
        parameter.data[:] = parameter.data.new_tensor(half_split(values, turned) if turned else values)
    return write(path, metadata_of(config) | dict(metadata or {}), written | dict(tensors or {}))


# --- bad files

ELEMENTS = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, data: bytes) -> bytes:
    """A metadata value of the type with that number."""
    return text(key) + struct.pack("<I", kind) + data


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + data


def value(key: str | bytes, value: Any) -> bytes:
    """A metadata value of the usual type: str, bool, uint32, float32, or an array of one of them."""
    if isinstance(value, str):
        return pair(key, 8, text(value))
    if isinstance(value, list):
        if isinstance(value[0], str):
            return pair(key, 9, array(8, len(value), b"".join(map(text, value))))
        kind, form = ELEMENTS[type(value[0])]
        return pair(key, 9, array(kind, len(value), b"".join(struct.pack(form, one) for one in value)))
    kind, form = ELEMENTS[type(value)]
    return pair(key, kind, struct.pack(form, value))


@dataclass
class Tensor:
    name: str | bytes
    shape: tuple[int, ...]  # ggml's order: the length of a row is first
    kind: int = 0
    offset: int | None = None  # None: after the tensor before it
    bytes: int = -1  # -1: what the shape takes as f32

    def size(self) -> int:
        return 4 * int(np.prod(self.shape)) if self.bytes < 0 else self.bytes


@dataclass
class File:
    """A GGUF, part by part; `data` comes where the tensors are, or as many zeros as they take."""

    metadata: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    values: int | None = None  # how many the header says there are
    count: int | None = None  # of tensors
    alignment: int = 32
    data: bytes | None = None

    def header(self) -> bytes:
        count = len(self.tensors) if self.count is None else self.count
        values = len(self.metadata) if self.values is None else self.values
        out = self.magic + struct.pack("<IQQ", self.version, count, values) + b"".join(self.metadata)
        for tensor, offset in zip(self.tensors, self.offsets(), strict=True):
            out += text(tensor.name) + struct.pack("<I", len(tensor.shape))
            out += b"".join(struct.pack("<Q", size) for size in tensor.shape) + struct.pack("<IQ", tensor.kind, offset)
        return out + bytes(-len(out) % self.alignment)

    def offsets(self) -> list[int]:
        at, offsets = 0, []
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            offsets.append(offset)
            at = -(-(offset + tensor.size()) // self.alignment) * self.alignment
        return offsets

    def data_bytes(self) -> int:
        return max(offset + tensor.size() for tensor, offset in zip(self.tensors, self.offsets(), strict=True))

    def to_bytes(self) -> bytes:
        return self.header() + (bytes(self.data_bytes()) if self.data is None else self.data)


SIZES: dict[str, Any] = {
    "llama.context_length": 16,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Of a small Llama. A change's name has __ for a dot; None leaves the key out."""
    changed = {key.replace("__", "."): change for key, change in changes.items()}
    merged = {"general.architecture": "llama"} | SIZES | changed
    return {key: setting for key, setting in merged.items() if setting is not None}


def llama_tensors(metadata: Mapping[str, Any], vocab_size: int = 8, kind: int = 0, bits: float = 32) -> list[Tensor]:
    """The tensors of the Llama that the metadata describe, its matrices of one type."""
    dim, hidden = metadata["llama.embedding_length"], metadata["llama.feed_forward_length"]
    kv = dim // metadata["llama.attention.head_count"] * metadata["llama.attention.head_count_kv"]

    def matrix(name: str, columns: int, rows: int) -> Tensor:
        return Tensor(f"{name}.weight", (columns, rows), kind, bytes=int(columns * rows * bits / 8))

    tensors = [matrix("token_embd", dim, vocab_size), Tensor("output_norm.weight", (dim,))]
    for i in range(metadata["llama.block_count"]):
        tensors += [Tensor(f"blk.{i}.attn_norm.weight", (dim,)), Tensor(f"blk.{i}.ffn_norm.weight", (dim,))]
        parts = [("attn_q", dim, dim), ("attn_k", dim, kv), ("attn_v", dim, kv), ("attn_output", dim, dim)]
        parts += [("ffn_gate", dim, hidden), ("ffn_up", dim, hidden), ("ffn_down", hidden, dim)]
        tensors += [matrix(f"blk.{i}.{name}", columns, rows) for name, columns, rows in parts]
    return tensors


def llama(vocab_size: int = 8, **changes: Any) -> File:
    """A small Llama of zeros that opens; `changes` as in llama_metadata."""
    metadata = llama_metadata(**changes)
    sizes = SIZES | {key: setting for key, setting in metadata.items() if key in SIZES and isinstance(setting, int)}
    return File([value(key, setting) for key, setting in metadata.items()], llama_tensors(sizes, vocab_size))


# Two small vocabularies, as metadata.
SPM: dict[str, Any] = {
    "tokenizer__ggml__model": "llama",
    "tokenizer__ggml__tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581a", "a", "b", "ab"],
    "tokenizer__ggml__scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -0.5],
    "tokenizer__ggml__token_type": [2, 3, 3, 6, 1, 1, 1, 1],
}
BPE: dict[str, Any] = {
    "tokenizer__ggml__model": "gpt2",
    "tokenizer__ggml__pre": "llama-bpe",
    "tokenizer__ggml__tokens": ["a", "b", "c", "ab", "\u0120", "<|begin|>", "<|eot_id|>", "<|end_of_text|>"],
    "tokenizer__ggml__token_type": [1, 1, 1, 1, 1, 3, 3, 3],
    "tokenizer__ggml__merges": ["a b"],
    "tokenizer__ggml__bos_token_id": 5,
    "tokenizer__ggml__eos_token_id": 7,
}
