"""Hugging Face folders: config.json, the weights, and what a tokenizer needs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..common.file_kinds import TOKENIZER_FILES
from ..common.parts import LAYER_MATRICES, find_part, get_part
from ..common.safetensors_file import Tensor
from .fused import Stored, in_turn, stored_tensors
from .hf_shards import ShardWriter
from .hf_tokenizer import tokenizer_json
from .source import Array, Source, llama3_factors, short_float
from .vocabulary import NORMAL, Vocabulary

Progress = Callable[[str, int], None]

_NEEDS_BOS = ("cwm",)  # where transformers takes no null, but has an id by default
FORMATS = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}

# GGUF files hold Llama 3's scaling as its divisors; these are the settings that known models come with.
_LLAMA3 = [
    {"type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}
    for factor in (8.0, 32.0)
]


def weights_to_write(source: Source) -> list[str]:
    """Give the names of all weights. Of biases that one setting states, transformers wants all; others are zeros."""
    names = source.names()
    family = _family(source)
    biases = [*family["norm_biases"], *(name for parts in _stated_biases(source).values() for name in parts)]
    for part in map(get_part, biases):
        names += [name for name in part.in_model(source.config.n_layers) if name not in source]
    return names


def tensors_to_write(source: Source) -> list[Stored]:
    """Give the tensors that hold `weights_to_write`."""
    return stored_tensors(weights_to_write(source), _family(source), "hugging_face")


def rope_style(source: Source) -> str:
    """Give the rotary order of the rows in the folder."""
    return str(_family(source)["rope_style"])


def _stated_biases(source: Source) -> dict[str, list[str]]:
    """Give the settings of config.json that are true of the model's biases, and the parts that each is about."""
    there = {part.name for part in source.optional_parts()}
    return {name: parts for name, parts in _family(source)["biases"].items() if there & set(parts)}


def _family(source: Source) -> dict[str, Any]:
    parts = [part.name for part in source.optional_parts()]
    return _core.hugging_face_family(source.config, parts, source.model_type)


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
        "hidden_act": family["activation"],
        "rope_theta": short_float(config.rope_theta),
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,  # some families' defaults are beyond a small vocabulary
    }
    if family["eps"]:
        settings[family["eps"]] = short_float(config.norm_eps)
    if family["activation"] != "silu":
        settings["hidden_activation"] = family["activation"]  # what Gemma's call it
    if config.activation == "clamped_swiglu":
        settings["swiglu_limit"] = 7.0  # which transformers takes for granted, and other readers ask for
    if family["has_window"]:
        settings["sliding_window"] = config.sliding_window
    elif family["layer_types"] and not family["asks_for_window"]:
        settings["sliding_window"] = None  # without it there would be one
    if family["asks_for_window"]:
        settings |= {"use_sliding_window": family["has_window"], "max_window_layers": len(config.full_layers)}
    if family["layer_types"]:
        full = set(config.full_layers if family["has_window"] else range(config.n_layers))
        settings["layer_types"] = [
            "full_attention" if layer in full else "sliding_attention" for layer in range(config.n_layers)
        ]
    if family["needs_rope"]:
        settings["rope_parameters"] = _rope_parameters(settings["rope_scaling"], settings["rope_theta"])
    if family["local_rope"]:
        settings |= _rope_of_layer_types(config, settings["rope_scaling"], older=family["local_theta"])
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
    settings |= _own_settings(config, family)
    stated = _stated_biases(source)
    settings |= {name: name in stated for name in family["biases"]}
    if vocabulary is not None:
        ends = vocabulary.eos_ids
        settings["bos_token_id"] = vocabulary.bos_id if vocabulary.bos_id >= 0 else None
        settings["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    if settings["bos_token_id"] is None and family["model_type"] in _NEEDS_BOS:
        del settings["bos_token_id"]
    return settings


def _own_settings(config: _core.Config, family: Mapping[str, Any]) -> dict[str, Any]:
    """Give what only a few families state."""
    settings: dict[str, Any] = {}
    if family["query_scalar"]:
        settings["query_pre_attn_scalar"] = _query_scalar(config)
    if family["score_cap"]:
        settings["attn_logit_softcapping"] = short_float(config.score_cap) or None
    if family["logits_cap"]:
        settings["final_logit_softcapping"] = short_float(config.logits_cap) or None
    if family["logit_scale"]:
        settings["logit_scale"] = short_float(1 / config.logits_scaling)
    if family["says_parallel"]:
        settings["use_parallel_residual"] = config.parallel
    if config.n_experts is not None:
        settings |= {
            "num_local_experts": config.n_experts,  # and what others call it
            "num_experts": config.n_experts,
            "num_experts_per_tok": config.n_experts_used,
        }
        if family["expert_size"]:
            settings[family["expert_size"]] = config.hidden_dim
        if family["says_renormalise"]:
            settings["norm_topk_prob"] = config.router_renormalise
    return settings


def _query_scalar(config: _core.Config) -> float:
    """Give what scores are divided by the root of: a whole number, where it is one but for how roots are rounded."""
    if config.attention_multiplier == 0:
        return config.head_dim
    scalar = 1 / config.attention_multiplier**2
    return round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-6) else scalar


def _rope_of_layer_types(config: _core.Config, scaling: dict[str, Any] | None, *, older: bool) -> dict[str, Any]:
    """Make the rotary settings of layers with and without a window. `older`: with a name of transformers 4."""
    theta = short_float(config.rope_theta)
    local = short_float(config.local_rope_theta) or theta
    parameters = {
        "full_attention": _rope_parameters(scaling, theta),
        "sliding_attention": _rope_parameters(None, local),
    }
    return {"rope_parameters": parameters} | ({"rope_local_base_freq": local} if older else {})


def _rope_parameters(scaling: dict[str, Any] | None, theta: float) -> dict[str, Any]:
    return (scaling or {"rope_type": "default"}) | {"rope_theta": theta}


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
        for piece in pieces_of(source, tensor, progress):
            writer.append(tensor.name, _core.encode(format, piece, threads=threads))
    writer.finish()
    return dict.fromkeys(names, format)


def pieces_of(source: Source, tensor: Stored, progress: Progress) -> Iterator[Array]:
    """Decode a tensor as the folder has it: its weights one after another, or one expert after another."""
    for weights in tensor.of_each_expert() if tensor.turned else [(name,) for name in tensor.weights]:
        arrays = arrays_of(source, weights)
        yield np.ascontiguousarray(in_turn(arrays).T) if tensor.turned else arrays[0]
        for name, array in zip(weights, arrays, strict=True):
            progress(name, array.size)


def has_turned_experts(source: Source) -> bool:
    """Whether its folders have all experts' matrices in tensors whose columns come first."""
    return bool(_family(source)["turned"])


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def hugging_face_name(name: str) -> str:
    """Give what folders of most families call a weight, by llama2.c's name: those of no layer, all do."""
    return str(_core.rename_weight(name, "hugging_face"))


def is_layer_matrix(name: str) -> bool:
    """Whether it is a matrix of a layer, which is what quantized folders quantize."""
    part = find_part(name)
    return part is not None and (part in LAYER_MATRICES or part.kind == "experts")


def shape_of(source: Source, name: str) -> tuple[int, ...]:
    """Give a shape of `weights_to_write`, the source's or what a bias that it has not would have."""
    part = find_part(name)
    return part.shape(source.config) if name not in source and part is not None else source.shape(name)


def shape_of_all(source: Source, tensor: Stored) -> tuple[int, ...]:
    """Give a tensor's shape: the rows of all its weights."""
    return tensor.shape([shape_of(source, name) for name in tensor.weights])


def parameters_of(source: Source, names: list[str]) -> int:
    """Count the numbers of some of `weights_to_write`."""
    return sum(math.prod(shape_of(source, name)) for name in names)


def array_of(source: Source, name: str) -> Array:
    """Decode one of `weights_to_write` as its family's folders have it.

    Rows are in their order; gains are without the 1 that some add to them; a bias that the source has not is zeros.
    """
    if name not in source:
        return np.zeros(shape_of(source, name), np.float32)
    family, part = _family(source), find_part(name)
    array = source.array(name, family["rope_style"])
    plus_one = family["gain_plus_one"] and part is not None and part.kind == "gain"
    return array - np.float32(1) if plus_one else array


def arrays_of(source: Source, names: Sequence[str]) -> list[Array]:
    """Decode several of `weights_to_write`."""
    return [array_of(source, name) for name in names]


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
