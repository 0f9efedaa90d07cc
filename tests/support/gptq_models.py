"""Whole GPTQ folders without torch: of a given shape for measuring speed, and of a GGUF's values for measuring error.

python tests/support/gptq_models.py 1.1b FOLDER         TinyLlama's shape, random weights
python tests/support/gptq_models.py model.gguf FOLDER   the file's own values, rounded to the nearest
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "135m": dict(zip(SIZES, (576, 1536, 30, 9, 3), strict=True)) | {"vocab_size": 49152},  # SmolLM2's
    "1.1b": dict(zip(SIZES, (2048, 5632, 22, 32, 4), strict=True)) | {"vocab_size": 32000},  # TinyLlama's
    "7b": dict(zip(SIZES, (4096, 11008, 32, 32, 32), strict=True)) | {"vocab_size": 32000},  # Llama 2's
}


def pack(values: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """[n, m] values to [n * bits / 32, m] words: down a column, a stream of bits that starts at the lowest."""
    n, m = values.shape
    stream = (values.astype(np.uint8)[:, None, :] >> np.arange(bits, dtype=np.uint8)[None, :, None]) & 1  # [n, bits, m]
    words = stream.reshape(n * bits // 32, 32, m).astype(np.uint32)
    packed: NDArray[np.uint32] = (words << np.arange(32, dtype=np.uint32)[None, :, None]).sum(axis=1, dtype=np.uint32)
    return packed.view(np.int32)


def rounded(weight: Floats, bits: int, group_size: int, order: NDArray[np.intp] | None = None) -> Arrays:
    """A module's planes, version 1, for [rows, cols] floats: each group's range in even steps, to the nearest.

    `order` is the column at each place, as activation order would choose it.
    """
    rows, cols = weight.shape
    group_size = cols if group_size == -1 else group_size
    most = (1 << bits) - 1
    place = np.arange(cols)
    g_idx = np.empty(cols, np.int32)
    g_idx[place if order is None else order] = place // group_size
    q = np.empty((cols, rows), np.uint8)
    groups = int(g_idx[-1] if order is None else g_idx.max()) + 1
    scales, zeros = np.empty((groups, rows), np.float16), np.empty((groups, rows), np.uint8)
    for group in range(groups):
        columns = np.flatnonzero(g_idx == group)
        values = weight[:, columns].T  # [columns, rows]
        low, high = np.minimum(values.min(axis=0), 0), np.maximum(values.max(axis=0), 0)
        scale = np.maximum((high - low) / most, 1e-5).astype(np.float16)
        zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, most)
        q[columns] = np.clip(np.rint(values / scale.astype(np.float32)) + zero, 0, most)
        scales[group], zeros[group] = scale, zero
    return {
        "qweight": pack(q, bits),
        "qzeros": np.ascontiguousarray(pack(((zeros - 1) & most).T, bits).T),
        "scales": scales,
        "g_idx": g_idx,
    }


def random_module(rows: int, cols: int, bits: int, group_size: int, rng: np.random.Generator) -> Arrays:
    """Planes of random weights of about 1 / sqrt(cols)."""
    group_size = cols if group_size == -1 else group_size
    groups = -(-cols // group_size)
    scale = 3.46 / ((1 << bits) * np.sqrt(cols))  # integers that are evenly spread deviate by their range / 3.46
    zero = (1 << (bits - 1)) - 1
    return {
        "qweight": np.frombuffer(rng.bytes(cols * bits // 8 * rows), np.int32).reshape(cols * bits // 32, rows),
        "qzeros": np.ascontiguousarray(pack(np.full((rows, groups), zero), bits).T),
        "scales": np.full((groups, rows), scale, np.float16),
        "g_idx": (np.arange(cols) // group_size).astype(np.int32),
    }


def matrices(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Each linear module of a layer with its rows and columns."""
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    kv_dim = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    attention = {"q_proj": (dim, dim), "k_proj": (kv_dim, dim), "v_proj": (kv_dim, dim), "o_proj": (dim, dim)}
    mlp = {"gate_proj": (hidden, dim), "up_proj": (hidden, dim), "down_proj": (dim, hidden)}
    return {f"self_attn.{name}": shape for name, shape in attention.items()} | {
        f"mlp.{name}": shape for name, shape in mlp.items()
    }


def write_folder(
    folder: Path,
    config: dict[str, Any],
    bits: int,
    group_size: int,
    tensor: Callable[[str, tuple[int, ...]], NDArray[Any]],
    module: Callable[[str, tuple[int, int]], Arrays],
) -> Path:
    """A folder as GPTQ's libraries write them: matrices of the layers by `module`, all else by `tensor`, as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    dim = config["hidden_size"]
    floats: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], dim)}
    floats["model.norm.weight"] = (dim,)
    if not config.get("tie_word_embeddings", False):
        floats["lm_head.weight"] = (config["vocab_size"], dim)
    stored: Arrays = {}
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            floats[f"model.layers.{layer}.{norm}.weight"] = (dim,)
        for name, shape in matrices(config).items():
            full = f"model.layers.{layer}.{name}"
            stored |= {f"{full}.{part}": value for part, value in module(full, shape).items()}
    stored |= {name: tensor(name, shape).astype(np.float16) for name, shape in floats.items()}
    save_file(stored, folder / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False, "sym": False}
    whole = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "quantization_config": settings} | config
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


def shaped_folder(folder: Path, config: dict[str, Any], bits: int = 4, group_size: int = 128) -> Path:
    """Random weights of a shape, one of `SHAPES` or another with the same keys, that keep activations near 1."""
    rng = np.random.default_rng(0)

    def tensor(_: str, shape: tuple[int, ...]) -> NDArray[Any]:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        values: Floats = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
        return values

    return write_folder(
        folder, config, bits, group_size, tensor, lambda _, shape: random_module(*shape, bits, group_size, rng)
    )


def folder_of_gguf(source: Path, folder: Path, bits: int = 4, group_size: int = 128, act_order: bool = False) -> Path:
    """The values of a GGUF of a Llama, its matrices rounded to GPTQ. Without its tokenizer."""
    import gguf
    import gguf_files

    reader = gguf.GGUFReader(source)
    tensors = {t.name: t for t in reader.tensors}
    rng = np.random.default_rng(0)

    def field(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads = {"q_proj": field("attention.head_count"), "k_proj": field("attention.head_count_kv")}
    config: dict[str, Any] = {
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads["q_proj"],
        "num_key_value_heads": heads["k_proj"],
        "vocab_size": len(tensors["token_embd.weight"].data),
        "rope_theta": field("rope.freq_base"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": field("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }

    def values(name: str) -> Floats:
        found = tensors[gguf_files.gguf_name(name)]
        floats = gguf_files.decoded(found.data, found.tensor_type)
        part = name.split(".")[-2]
        return gguf_files.half_split(floats, heads[part]) if part in heads else floats

    def module(name: str, _: tuple[int, int]) -> Arrays:
        weight = values(f"{name}.weight")
        return rounded(weight, bits, group_size, rng.permutation(weight.shape[1]) if act_order else None)

    return write_folder(folder, config, bits, group_size, lambda name, _: values(name), module)


if __name__ == "__main__":
    what, target = sys.argv[1], Path(sys.argv[2])
    print(shaped_folder(target, SHAPES[what]) if what in SHAPES else folder_of_gguf(Path(what), target))
