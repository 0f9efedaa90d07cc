"""Hugging Face folders: config.json, the weights, and what a tokenizer needs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..common.file_kinds import TOKENIZER_FILES
from ..common.parts import LAYER_MATRICES, LAYER_PARTS, find_part
from .fused import Stored, stored_tensors
from .hf_shards import ShardWriter
from .hf_tokenizer import tokenizer_json
from .safetensors_file import Tensor
from .source import Array, Source, llama3_factors, short_float
from .vocabulary import NORMAL, Vocabulary

Progress = Callable[[str, int], None]

FORMATS = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}

# GGUF files hold Llama 3's scaling as its divisors; these are the settings that known models come with.
_LLAMA3 = [
    {"type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}
    for factor in (8.0, 32.0)
]


def weights_to_write(source: Source) -> list[str]:
    """Give the names of all weights. Where a half of a layer has a bias, transformers wants all; others are zeros."""
    names = source.names()
    biased = _biased(source)
    for scope in sorted(biased):
        biases = [part for part in LAYER_PARTS if part.is_bias_of_matrix and part.scope == scope]
        wanted = [part.at(layer) for layer in range(source.config.n_layers) for part in biases]
        names += [name for name in wanted if name not in source]
    return names


def tensors_to_write(source: Source) -> list[Stored]:
    """Give the tensors that hold `weights_to_write`."""
    return stored_tensors(weights_to_write(source), _family(source)["fused"], "hugging_face")


def _biased(source: Source) -> set[str]:
    """Which halves of layers have a bias that config.json states: "attention", "mlp"."""
    stated = {name.removesuffix("_bias") for name in _family(source)["biases"]}
    return stated & {part.scope for part in source.optional_parts() if part.kind == "bias"}


def _family(source: Source) -> dict[str, Any]:
    return _core.hugging_face_family(source.config, [part.name for part in source.optional_parts()])


def config_json(source: Source, dtype: str, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Make what config.json says of a model.

    Raises
    ------
    ValueError
        For rotary frequencies that transformers has no setting for, and where it has no such model.
    """
    config = source.config
    family = _family(source)
    settings: dict[str, Any] = {
        "architectures": [family["architecture"]],
        "model_type": family["model_type"],
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": short_float(config.norm_eps),
        "rope_theta": short_float(config.rope_theta),
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,  # some families' defaults are beyond a small vocabulary
    }
    if family["has_window"]:
        settings["sliding_window"] = config.sliding_window
    if family["asks_for_window"]:
        settings |= {"use_sliding_window": family["has_window"], "max_window_layers": len(config.full_layers)}
    if family["layer_types"]:
        full = set(config.full_layers if family["has_window"] else range(config.n_layers))
        settings["layer_types"] = [
            "full_attention" if layer in full else "sliding_attention" for layer in range(config.n_layers)
        ]
    if family["no_rope_layers"]:
        without = config.no_rope_layers
        settings["no_rope_layers"] = [int(layer not in without) for layer in range(config.n_layers)]
    if family["partial_rotary"]:
        settings["partial_rotary_factor"] = _part_of(config.rotary_dim or config.head_dim, config.head_dim)
        scaling = config.rope_scaling
        if scaling is not None and scaling["type"] == "longrope":
            settings["original_max_position_embeddings"] = scaling["original_context"]
    if family["multipliers"]:
        usual = 1 / math.sqrt(config.head_dim)
        settings |= {
            "embedding_multiplier": short_float(config.embedding_multiplier),
            "residual_multiplier": short_float(config.residual_multiplier),
            "attention_multiplier": short_float(config.attention_multiplier or usual),
            "logits_scaling": short_float(config.logits_scaling),
        }
    biased = _biased(source)
    settings |= {name: name.removesuffix("_bias") in biased for name in family["biases"]}
    if vocabulary is not None:
        ends = vocabulary.eos_ids
        settings["bos_token_id"] = vocabulary.bos_id if vocabulary.bos_id >= 0 else None
        settings["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return settings


def _part_of(count: int, whole: int) -> float:
    """Give a factor that makes this count of the whole, though readers round down."""
    factor = count / whole
    return factor if int(whole * factor) == count else math.nextafter(factor, 1.0)


def _rope_scaling(config: _core.Config) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is not None and scaling["type"] == "longrope" and not (config.rope_factors and config.rope_long_factors):
        raise ValueError(
            "rope_scaling is of type longrope, and a folder has it as two lists of divisors, one of which is not known"
        )
    lists = {}
    if scaling is not None and scaling["type"] == "longrope":
        lists["short_factor"] = [short_float(factor) for factor in config.rope_factors]
        lists["long_factor"] = [short_float(factor) for factor in config.rope_long_factors]
    elif config.rope_factors:
        factors = np.array(config.rope_factors, dtype=np.float32)
        known = [candidate for candidate in _LLAMA3 if np.allclose(llama3_factors(config, candidate), factors, 1e-5)]
        if scaling is not None or not known:
            raise ValueError("transformers has no setting for this model's rotary frequencies (rope_factors)")
        scaling = known[0]
    if scaling is None:
        return None
    names = {"type": "rope_type", "original_context": "original_max_position_embeddings"}
    numbers = {
        names.get(name, name): short_float(value) if isinstance(value, float) else value
        for name, value in scaling.items()
    }
    return numbers | lists


def write(
    folder: Path,
    source: Source,
    format: str,
    config: dict[str, Any],
    progress: Progress,
    *,
    shard_size: int,
    threads: int | None,
) -> dict[str, str]:
    """Write config.json and the weights' files. Returns the format of each weight by llama2.c's name."""
    write_config(folder, config)
    dtype, _ = FORMATS[format]
    names = weights_to_write(source)
    tensors = tensors_to_write(source)
    weights = [[Tensor.of(tensor.name, dtype, shape_of_all(source, tensor))] for tensor in tensors]
    writer = ShardWriter(folder, weights, shard_size, parameters_of(source, names))
    for tensor in tensors:
        encoded = []
        for name in tensor.weights:
            array = array_of(source, name)
            encoded.append(_core.encode(format, array, threads=threads))
            progress(name, array.size)
        writer.write(tensor.name, encoded[0] if len(encoded) == 1 else np.concatenate(encoded))
    writer.finish()
    return dict.fromkeys(names, format)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def hugging_face_name(name: str) -> str:
    """Give what a folder calls a weight, by llama2.c's name."""
    return str(_core.rename_weight(name, "hugging_face"))


def is_layer_matrix(name: str) -> bool:
    """Whether it is a matrix of a layer, which is what quantized folders quantize."""
    return find_part(name) in LAYER_MATRICES


def shape_of(source: Source, name: str) -> tuple[int, ...]:
    """Give a shape of `weights_to_write`, the source's or what a bias that it has not would have."""
    part = find_part(name)
    return part.shape(source.config) if name not in source and part is not None else source.shape(name)


def shape_of_all(source: Source, tensor: Stored) -> tuple[int, ...]:
    """Give a tensor's shape: the rows of all its weights."""
    shapes = [shape_of(source, name) for name in tensor.weights]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def parameters_of(source: Source, names: list[str]) -> int:
    """Count the numbers of some of `weights_to_write`."""
    return sum(math.prod(shape_of(source, name)) for name in names)


def array_of(source: Source, name: str) -> Array:
    """Decode one of `weights_to_write`, rows in its family's order: a bias that the source has not is zeros."""
    return (
        source.array(name, _family(source)["rope_style"])
        if name in source
        else np.zeros(shape_of(source, name), np.float32)
    )


def write_tokenizer(folder: Path, vocabulary: Vocabulary, seq_len: int) -> Path:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; give the first.

    Raises
    ------
    ValueError
        For what they cannot say.
    """
    files: dict[str, Any] = {"tokenizer.json": tokenizer_json(vocabulary)}

    # A token that is named here is special to those who read it; an ordinary piece that ends a text, by config.json's
    # default, has its id in generation_config.json only.
    ends = vocabulary.eos_ids[0] if vocabulary.eos_ids else -1
    ids = {"bos_token": vocabulary.bos_id, "eos_token": ends, "unk_token": vocabulary.unk_id}
    pieces = vocabulary.with_escaped_spaces().pieces
    files["tokenizer_config.json"] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{
            name: pieces[id].decode() if id >= 0 else None
            for name, id in ids.items()
            if id < 0 or vocabulary.types[id] != NORMAL
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_len,
    }
    if vocabulary.template_names:
        templates = [{"name": name, "template": text} for name, text in vocabulary.templates.items()]
        files["tokenizer_config.json"]["chat_template"] = templates
    elif vocabulary.chat_template:
        files["tokenizer_config.json"]["chat_template"] = vocabulary.chat_template
    files["generation_config.json"] = {
        "bos_token_id": vocabulary.bos_id if vocabulary.bos_id >= 0 else None,
        "eos_token_id": vocabulary.eos_ids or None,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return folder / "tokenizer.json"


def copy_tokenizer(from_folder: Path, folder: Path) -> None:
    """Take a source folder's tokenizer along as it is."""
    for pattern in TOKENIZER_FILES:
        for path in from_folder.glob(pattern):
            if path.is_file():
                target = folder / path.relative_to(from_folder)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
