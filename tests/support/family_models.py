"""Small random models of each family, with a value of every switch that is not neutral, as transformers makes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_files import interleaved
from numpy.typing import NDArray
from on_metal import agree

import llama2cpp

TOKENS = [1, 7, 3, 49, 0, 7, 7, 12, 30, 31, 2, 45, 18, 9, 22, 40, 5, 11, 17, 28]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


PLUS_ONE = ("gemma", "gemma2", "gemma3_text", "vaultgemma", "nemotron")  # gains of folders are without it


@dataclass
class Case:
    """A model of a family, and what GGUF says of it beyond the sizes."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""  # GGUF's; empty: it has none that says all of it
    metadata: dict[str, Any] = field(default_factory=dict)  # behind the architecture's prefix
    turned: bool = False  # rows of queries and keys are interleaved in GGUF

    def model(self) -> Any:
        torch.manual_seed(len(self.settings))
        config = transformers.AutoConfig.for_model(self.model_type, **(SIZES | self.settings))
        model = from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = torch.randn_like(parameter) * 0.2
                gain = "norm" in name and self.model_type not in PLUS_ONE
                parameter.copy_(1 + values / 2 if gain else values)
        return model

    def save(self, folder: Path) -> Path:
        self.model().save_pretrained(folder)
        return folder


def from_config(config: Any) -> Any:
    """A model of random weights."""
    make: Any = transformers.AutoModelForCausalLM
    return make.from_config(config, attn_implementation="eager").float().eval()


def expected_logits(model: Any, tokens: list[int]) -> NDArray[np.float64]:
    """[T, vocab_size], by transformers in float32."""
    with torch.no_grad():
        logits: NDArray[np.float64] = model(torch.tensor([tokens])).logits[0].double().numpy()
    return logits


def logits_of(source: Any, tokens: list[int], **options: Any) -> NDArray[np.float32]:
    with llama2cpp.load(source, kv_dtype="f32", activation_dtype="f32", **options) as model:
        return model.session().prefill(tokens, all_logits=True)


def same_bits(path: Path, found: NDArray[np.float32], tokens: list[int], cuts: Iterable[int], **options: Any) -> None:
    """Chunked prefill of which each chunk ends at a cut, and single steps, give the logits that were found at once.

    On Metal the same logits, as near as sums in another order are.
    """
    with llama2cpp.load(path, kv_dtype="f32", **options) as model:
        for cut in cuts:
            session = model.session()
            parts = [session.prefill(tokens[:cut], all_logits=True), session.prefill(tokens[cut:], all_logits=True)]
            assert agree(np.concatenate(parts), found), (cut, options)
        steps = model.session()
        assert agree(np.stack([steps.step(token) for token in tokens]), found), options


def answers(path: Path, tokens: list[int]) -> set[bytes]:
    """All logits with the input that the formats have, by prefill and by steps, packed and not: they should be one."""
    found = set()
    for threads, pack in ((1, "never"), (2, "always")):
        with llama2cpp.load(path, kv_dtype="f32", threads=threads, pack=pack) as model:
            found.add(model.session().prefill(tokens, all_logits=True).tobytes())
            steps = model.session()
            found.add(np.stack([steps.step(token) for token in tokens]).tobytes())
    return found


def begin_gguf(path: Path, architecture: str, config: Any, metadata: dict[str, Any]) -> gguf.GGUFWriter:
    """A GGUF of the sizes in a configuration of transformers, and of what metadata says of the architecture.

    It has a tokenizer, which llama.cpp does not do without: letters, and names that no text has.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        names = ("layer_norm_eps", "norm_eps", "norm_epsilon")
        writer.add_layer_norm_eps(next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5))
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    add: dict[type, Any] = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
    add[list] = writer.add_array
    for key, value in metadata.items():
        add[type(value)](f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    writer.add_token_list([*letters, *(f"[{i}]" for i in range(config.vocab_size - len(letters)))])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_add_bos_token(False)
    return writer


def write_gguf(path: Path, case: Case, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Any:
    """The model as a GGUF by gguf's own names, its matrices of one type. Gives it, with the file's values."""
    model = case.model()
    config = model.config
    writer = begin_gguf(path, case.architecture, config, case.metadata)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == case.architecture)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        stored = table.get_name(name, (".weight", ".bias"))
        if case.model_type in PLUS_ONE and "norm" in name and name.endswith("weight"):
            parameter = parameter + 1
        assert stored is not None, name
        count = heads.get(name.split(".")[-2], 0) if case.turned else 0
        array = parameter.detach().numpy()
        array = interleaved(array, count) if count else array
        quantized = kind != gguf.GGMLQuantizationType.F32 and array.ndim == 2
        if quantized:
            data = gguf.quants.quantize(array, kind)
            assert not count, "rows would have to be turned back"
            parameter.data[:] = torch.from_numpy(gguf.quants.dequantize(data, kind))
            array = data
        writer.add_tensor(stored, array, raw_dtype=kind if quantized else gguf.GGMLQuantizationType.F32)
    rope = config.rope_parameters
    for length in ("long", "short") if rope.get("rope_type") == "longrope" else ():
        divisors = np.array(rope[f"{length}_factor"], dtype=np.float32)
        writer.add_tensor(f"rope_factors_{length}.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 3.7,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.4,
    "logits_scaling": 2.3,
}
SCALES = {"embedding_scale": 3.7, "residual_scale": 0.22, "attention.scale": 0.4, "logit_scale": 2.3}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.5],
    "long_factor": [1.0, 3.0, 5.0],
    "original_max_position_embeddings": 32,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ALPHA = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 50.0}
YARN_ON_FULL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
LINEAR_ON_FULL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 2e4, "factor": 3.0},
}

CASES = {
    "qwen2": Case("qwen2", {}, "qwen2"),
    "qwen2-tied": Case("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}, "qwen2"),
    "qwen2-windows": Case("qwen2", WINDOWS),
    "qwen2-layer-types": Case(
        "qwen2",
        WINDOWS | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen3": Case("qwen3", {"head_dim": 16}, "qwen3"),
    "qwen3-tied": Case("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}, "qwen3"),
    "qwen3-biases": Case("qwen3", {"head_dim": 8, "attention_bias": True}, "qwen3"),
    "qwen3-windows": Case("qwen3", {"head_dim": 8} | WINDOWS),
    "ministral": Case(
        "ministral",
        # transformers takes no head_dim from the other sizes here
        {
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "granite": Case("granite", MULTIPLIERS, "granite", SCALES, turned=True),
    "granite-biases": Case(
        "granite",
        MULTIPLIERS | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "granite",
        SCALES,
        turned=True,
    ),
    "smollm3": Case("smollm3", {"num_hidden_layers": 5}, "smollm3", turned=True),
    "smollm3-every-2": Case("smollm3", {"no_rope_layer_interval": 2, "tie_word_embeddings": False}),
    "smollm3-list": Case("smollm3", {"no_rope_layers": [0, 1, 0]}),
    "phi3": Case("phi3", {}, "phi3"),
    "phi3-window": Case("phi3", {"sliding_window": 6}, "phi3", {"attention.sliding_window": 6}),
    "phi3-partial": Case(
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "head_dim": 16},
        "phi3",
        {"rope.dimension_count": 8},
    ),
    "phi3-longrope": Case(
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
        "phi3",
        {
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": (1 + math.log(64 / 32) / math.log(32)) ** 0.5,
        },
    ),
    "helium": Case("helium", {"head_dim": 8, "mlp_bias": True}),
    "ernie4_5": Case("ernie4_5", {"head_dim": 16}, "ernie4_5"),
    "ernie4_5-untied": Case("ernie4_5", {"head_dim": 6, "tie_word_embeddings": False, "num_key_value_heads": 4}),
    "internlm3": Case("internlm3", {"head_dim": 8}),
    "internlm3-biases": Case("internlm3", {"head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "iquestcoder": Case("iquestcoder", {"head_dim": 8}),
    "seed_oss": Case("seed_oss", {"head_dim": 16}, "seed_oss"),
    "seed_oss-out": Case(
        "seed_oss", {"head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True}
    ),
    "cwm": Case("cwm", {"head_dim": 8, "num_hidden_layers": 5, "sliding_window": 4, "rope_parameters": LLAMA3}),
    "hunyuan": Case("hunyuan_v1_dense", {"head_dim": 8, "rope_parameters": ALPHA}),
    "hunyuan-plain": Case("hunyuan_v1_dense", {"head_dim": 16, "attention_bias": True}, "hunyuan-dense"),
    "olmo2": Case("olmo2", {"num_key_value_heads": 4}, "olmo2"),
    "olmo2-grouped": Case("olmo2", {"attention_bias": True}),
    "olmo3": Case("olmo3", {"num_hidden_layers": 5, "sliding_window": 4}, "olmo2", {"attention.sliding_window": 4}),
    "olmo3-yarn": Case("olmo3", {"num_hidden_layers": 5, "sliding_window": 4, "rope_parameters": YARN_ON_FULL}),
    "exaone4": Case(
        "exaone4", {"num_hidden_layers": 5, "sliding_window": 4}, "exaone4", {"attention.sliding_window": 4}
    ),
    "exaone4-no-window": Case("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}, "exaone4"),
    "gemma": Case("gemma", {"head_dim": 16}, "gemma"),
    "gemma2": Case(
        "gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 11, "sliding_window": 4}
        | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5},
    ),
    "gemma2-own": Case(
        "gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4},
        "gemma2",
        {"attention.sliding_window": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": Case(
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4, "num_hidden_layers": 7},
        "gemma3",
        {"attention.sliding_window": 4},
    ),
    "gemma3-scaled": Case(
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 9, "sliding_window": 4, "num_hidden_layers": 7}
        | {"rope_parameters": LINEAR_ON_FULL, "final_logit_softcapping": 2.0},
    ),
    "vaultgemma": Case(
        "vaultgemma",
        {"head_dim": 16, "query_pre_attn_scalar": 11, "sliding_window": 4}
        | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": None},
    ),
    "arcee": Case("arcee", {"mlp_bias": True}, "arcee", turned=True),
    "nemotron": Case("nemotron", {"head_dim": 8}, "nemotron", {"rope.dimension_count": 4}),
    "nemotron-biases": Case("nemotron", {"attention_bias": True, "mlp_bias": True, "norm_eps": 0.1}),
    "glm": Case("glm", {"head_dim": 16}),
    "glm-narrow": Case("glm", {"head_dim": 8}, "chatglm", {"rope.dimension_count": 4}),
    "glm-no-bias": Case("glm", {"head_dim": 8, "attention_bias": False}),
    "glm4": Case("glm4", {"head_dim": 16}, "glm4", {"rope.dimension_count": 8}),
    "cohere": Case("cohere", {"logit_scale": 0.3}, "command-r", {"logit_scale": 0.3}),
    "cohere-biases": Case("cohere", {"attention_bias": True, "layer_norm_eps": 0.1}),
    "cohere2": Case(
        "cohere2",
        {"num_hidden_layers": 5, "sliding_window": 4},
        "cohere2",
        {"attention.sliding_window": 4, "logit_scale": 0.0625},
    ),
    "starcoder2": Case("starcoder2", {}, "starcoder2"),
    "starcoder2-window": Case("starcoder2", {"sliding_window": 5, "use_bias": False}),
    "stablelm": Case("stablelm", {"use_qkv_bias": True}, "stablelm", {"rope.dimension_count": 2}),
    "stablelm-parallel": Case(
        "stablelm", {"use_parallel_residual": True, "hidden_size": 64}, "stablelm", {"rope.dimension_count": 4}
    ),
    "olmo": Case("olmo", {"attention_bias": True}, "olmo", turned=True),
    "phi3-grouped": Case("phi3", {"num_key_value_heads": 1, "tie_word_embeddings": True}, "phi3"),
}

# Its original context is beyond llama.cpp's shortest.
PHI3_SHORT = Case(
    "phi3",
    {
        "rope_parameters": LONGROPE | {"original_max_position_embeddings": 512},
        "original_max_position_embeddings": 512,
        "max_position_embeddings": 1024,
    },
    "phi3",
    {
        "rope.dimension_count": 6,
        "rope.scaling.original_context_length": 512,
        "rope.scaling.attn_factor": (1 + math.log(2) / math.log(512)) ** 0.5,
    },
)
