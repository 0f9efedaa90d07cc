"""Every setting of every family, in config.json and in GGUF's metadata, with values that cannot be.

Each is an error of one line that names the setting as the file does, or changes nothing. The lists of settings are what
the files of the families have, and what the readers' own tables name.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import expert_models
import family_models
import gguf
import gpt_oss_models
import numpy as np
import pytest
from family_models import Case, logits_of
from gguf_files import array, pair, text
from safetensors.numpy import load_file, save_file

import llama2cpp

SOURCES = Path(__file__).parents[2] / "src/cpp/io"
FAMILIES = family_models.CASES | expert_models.CASES
FAMILIES |= {"llama": Case("llama"), "gpt_oss": Case("gpt_oss", gpt_oss_models.SETTINGS)}

# Between them they have every setting.
FOLDERS = [
    *("llama", "qwen2-windows", "granite", "smollm3", "phi3-longrope", "cwm", "hunyuan", "olmo3-yarn", "gemma2"),
    *("gemma3-scaled", "glm", "cohere2", "stablelm", "mixtral", "qwen3_moe", "gpt_oss"),
]
# What nobody computes from.
FOLDERS_UNREAD = {
    *("_sliding_window_pattern", "architectures", "attention_dropout", "bos_token_id", "dtype", "embd_pdrop"),
    *("eod_token_id", "eos_token_id", "hidden_dropout", "initializer_range", "output_router_logits", "pad_token_id"),
    *("pretraining_tp", "resid_pdrop", "router_aux_loss_coef", "router_jitter_noise", "transformers_version"),
    *("use_cache", "rope_parameters", "full_attention", "sliding_attention"),
    # beside layer_types, no_rope_layers, or of a family without windows
    *("max_window_layers", "no_rope_layer_interval", "sliding_window_pattern", "use_sliding_window"),
}
BAD_JSON: tuple[Any, ...] = (
    {},
    "seven",
    True,
    0,
    -1,
    1 << 40,
    1 << 70,
    1.5,
    1e300,
    1e-300,
    math.nan,
    math.inf,
    [1] * 9,
)
NUMBERS = {repr(1.5), repr(1 << 40), repr(1 << 70)}  # positive ones
# Values that a setting may have.
FINE_JSON: dict[str, Set[str]] = {
    **dict.fromkeys(["rms_norm_eps", "layer_norm_eps", "alpha", "beta_fast", "beta_slow"], NUMBERS | {"0"}),
    **dict.fromkeys(["attn_logit_softcapping", "final_logit_softcapping"], NUMBERS | {"0"}),
    **dict.fromkeys(["embedding_multiplier", "residual_multiplier", "attention_multiplier"], NUMBERS),
    **dict.fromkeys(["logits_scaling", "logit_scale", "query_pre_attn_scalar", "rope_theta", "factor"], NUMBERS),
    **dict.fromkeys(["low_freq_factor", "high_freq_factor"], NUMBERS),
    **dict.fromkeys(["tie_word_embeddings", "norm_topk_prob", "truncate", "use_qkv_bias"], frozenset({"True"})),
    **dict.fromkeys(["qk_layernorm", "use_bidirectional_attention"], frozenset({"0"})),
    "decoder_sparse_step": {"True", repr([1] * 9)},
    "mlp_only_layers": {"-1"},
    "intermediate_size": {"0", "-1", repr(1 << 40)},  # of Qwen3-MoE, whose experts have a width of their own
}


def error_of(path: Path) -> str:
    """What loading fails with; nothing where it does not."""
    try:
        llama2cpp.load(path).close()
    except llama2cpp.FormatError as error:
        return str(error)
    return ""


def check(said: str, name: str, *, fine: bool, where: Any) -> None:
    assert bool(said) or fine, (where, "opens")
    if said:
        assert re.search(rf"\b{re.escape(name)}\b", said), (where, said)
        assert "\n" not in said, where
        assert len(said) < 600, where


def places(settings: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in settings.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


def changed(settings: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(settings)
    inner = whole
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in FOLDERS:
        made[name] = FAMILIES[name].save(tmp_path_factory.mktemp("hostile") / "m")
    return made


def test_every_setting_of_config_json(folders: dict[str, Path]) -> None:
    seen: set[tuple[str, ...]] = set()
    for family, folder in folders.items():
        file = folder / "config.json"
        settings = json.loads(file.read_text())
        for place in places(settings):
            if place in seen or place[-1] in FOLDERS_UNREAD:
                continue
            seen.add(place)
            for value in BAD_JSON:
                file.write_text(json.dumps(changed(settings, place, value)))
                said = error_of(folder).replace(str(folder), "")
                fine = repr(value) in FINE_JSON.get(place[-1], ())
                # The tensors of a norm that a parallel layer does not have.
                name = (
                    "post_attention_layernorm" if (place[-1], value) == ("use_parallel_residual", True) else place[-1]
                )
                check(said, name, fine=fine, where=(family, place, value))
        file.write_text(json.dumps(settings))
    assert len(seen) > 55


def test_experts_of_config_json(folders: dict[str, Path]) -> None:
    """More are chosen than there are; names that say two numbers; none at all; and groups, which no family here has."""
    for family, name in (
        ("mixtral", "num_local_experts"),
        ("gpt_oss", "num_local_experts"),
        ("qwen3_moe", "num_experts"),
    ):
        file = folders[family] / "config.json"
        settings = json.loads(file.read_text())
        both = {"num_local_experts": None, "num_experts": None}
        cases: list[tuple[dict[str, Any], str]] = [
            ({"num_experts_per_tok": 6}, "num_experts_per_tok"),
            ({"num_experts_per_tok": None}, "num_experts_per_tok"),
            (both, name),
            (both | {name: 0}, name),
            ({"num_local_experts": 5, "num_experts": 6}, "num_local_experts"),
            ({"n_group": 2}, "n_group"),
            ({"topk_group": 2}, "topk_group"),
            ({"n_shared_experts": 1}, "n_shared_experts"),
            ({"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
            ({"scoring_func": "sigmoid"}, "scoring_func"),
            ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
            ({"first_k_dense_replace": 1}, "first_k_dense_replace"),
            ({"per_layer_config": {"0": {"num_experts_per_tok": 1}}}, "per_layer_config"),
            ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ]
        for changes, said in cases:
            file.write_text(json.dumps(settings | changes))
            check(error_of(folders[family]), said, fine=False, where=(family, changes))
        file.write_text(json.dumps(settings))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_shared_experts_are_tensors(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Their width alone, which classes without them pass over, says nothing; their tensors are refused."""
    folder = tmp_path / family
    shutil.copytree(folders[family], folder)
    tokens = [1, 2, 3]
    expected = logits_of(folder, tokens)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"shared_expert_intermediate_size": 64}))
    assert np.array_equal(logits_of(folder, tokens), expected)
    path = folder / "model.safetensors"
    name = "model.layers.0.mlp.shared_expert.gate_proj.weight"
    save_file(load_file(path) | {name: np.zeros((64, settings["hidden_size"]), np.float32)}, path)
    assert name in error_of(folder)


# --- GGUF

GGUFS = [
    *("granite", "phi3-longrope", "olmo3", "gemma2-own", "gemma3", "cohere2", "stablelm", "mixtral-full", "qwen3_moe"),
    "gpt_oss",
]


def numbered(kind: int, form: str) -> Callable[[str, Any], bytes]:
    return lambda key, value: pair(key, kind, struct.pack(form, value))


u32, i32, f32, u64, f64 = (numbered(*kind) for kind in ((4, "<I"), (5, "<i"), (6, "<f"), (10, "<Q"), (12, "<d")))
BAD_GGUF: dict[str, Callable[[str], bytes]] = {
    "0": lambda key: u32(key, 0),
    "-1": lambda key: i32(key, -1),
    "2^40": lambda key: u64(key, 2**40),
    "2^63": lambda key: u64(key, 2**63),
    "0.0": lambda key: f32(key, 0),
    "-1.0": lambda key: f32(key, -1),
    "nan": lambda key: f32(key, math.nan),
    "inf": lambda key: f32(key, math.inf),
    "1e300": lambda key: f64(key, 1e300),
    "1e-300": lambda key: f64(key, 1e-300),
    "text": lambda key: pair(key, 8, text("seven")),
    "true": lambda key: pair(key, 7, b"\1"),
    "[]": lambda key: pair(key, 9, array(4, 0, b"")),
    "[1, 2]": lambda key: pair(key, 9, array(4, 2, struct.pack("<II", 1, 2))),
    "bools": lambda key: pair(key, 9, array(7, 9, b"\1" * 9)),
}
NONE = {"0", "0.0"}
FINE_GGUF: dict[str, Set[str]] = {
    **dict.fromkeys(["attention.clamp_kqv", "attention.max_alibi_bias", "attention.temperature_scale"], NONE),
    **dict.fromkeys(["attn_logit_softcapping", "final_logit_softcapping", "attention.scale", "pooling_type"], NONE),
    **dict.fromkeys(["expert_shared_count", "use_parallel_residual", "rope.scaling.yarn_log_multiplier"], NONE),
    **dict.fromkeys(
        ["rope.scaling.factor", "rope.scale_linear", "attention.layer_norm_rms_epsilon"], frozenset({"0.0"})
    ),
    **dict.fromkeys(["embedding_scale", "residual_scale", "logit_scale", "attention.causal"], frozenset({"true"})),
    **dict.fromkeys(
        ["attention.output_scale", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"], frozenset({"true"})
    ),
    **dict.fromkeys(["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"], frozenset({"0.0"})),
    "attention.sliding_window": {"0", "2^40"},  # none, and beyond the context where no layer has one
    "attention.sliding_window_pattern": {"0", "2^40"},  # every so many layers
    "vocab_size": {"0"},  # the table's
    "expert_count": {"0"},
    "feed_forward_length": {"0", "-1", "2^40"},  # of experts with a width of their own
}
# What a reader looks at where another setting says so only.
WITHOUT_USE = {
    "attention.layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
    "expert_used_count": "",
    "expert_feed_forward_length": "",
    "rope.scaling.original_context_length": "",
    "rope.scaling.yarn_beta_fast": "",
    "rope.scaling.yarn_beta_slow": "",
    "use_parallel_residual": "",  # of StableLM: the tensors say
}


def gguf_keys() -> set[str]:
    """The readers' own lists, without those of what nobody computes from."""
    config = (SOURCES / "gguf_config.cpp").read_text()
    lists = config[config.index("kRead[]") : config.index("template <class List>")]
    keys = set(re.findall(r'"([a-z0-9_.]+)"', lists)) | set(re.findall(r' k\w+ =\s+"([a-z0-9_.]+)"', config))
    table = (SOURCES / "families.cpp").read_text()
    keys |= set(re.findall(r'\{"[a-z_]*", "([a-z0-9_.]+)", ', table))
    keys |= set(re.findall(r' k\w+Cap = "([a-z_]+)"', (SOURCES / "families.h").read_text()))
    return {key for key in keys if not key.endswith(".weight")} - {"rope.scaling.finetuned", "tensor_data_layout"}


class Parts:
    """A GGUF, taken apart so that one value of its metadata can be another."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.metadata = {
            name: b"".join(part.tobytes() for part in field.parts)
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        whole, last = path.read_bytes(), reader.tensors[-1].field
        begin = min(tensor.field.offset for tensor in reader.tensors)
        self.count = len(reader.tensors)
        self.tensors = whole[begin : last.offset + sum(part.nbytes for part in last.parts)]
        self.data = whole[reader.data_offset :]
        self.architecture = next(name.split(".")[0] for name in self.metadata if name.endswith(".block_count"))

    def with_value(self, key: str, value: bytes) -> bytes:
        metadata = self.metadata | {key: value}
        head = b"GGUF" + struct.pack("<IQQ", 3, self.count, len(metadata)) + b"".join(metadata.values()) + self.tensors
        return head + bytes(-len(head) % 32) + self.data


def write(path: Path, name: str) -> Path:
    if name == "gpt_oss":
        gpt_oss_models.write_gguf(path)
    elif name in expert_models.CASES:
        expert_models.write_gguf(path, name)
    else:
        family_models.write_gguf(path, family_models.CASES[name])
    return path


def test_every_setting_of_gguf(tmp_path: Path) -> None:
    keys = gguf_keys()
    assert {"expert_used_count", "rope.freq_base_swa", "attention.sliding_window_pattern", "attention.scale"} <= keys
    assert len(keys) > 38
    file = tmp_path / "m.gguf"
    for number, name in enumerate(GGUFS):
        parts = Parts(write(tmp_path / f"{name}.gguf", name))
        own = {key.partition(".")[2] for key in parts.metadata if key.startswith(parts.architecture)}
        experts = "expert_count" in own
        # All keys of the first, and of others what they have themselves and what may depend on that.
        for key in sorted(
            keys if number == 0 else own & keys | {"rope.freq_base_swa", "attention.sliding_window_pattern"}
        ):
            full = f"{parts.architecture}.{key}"
            for value, make in BAD_GGUF.items():
                file.write_bytes(parts.with_value(full, make(full)))
                said = error_of(file)
                fine = value in FINE_GGUF.get(key, ())
                fine |= key in WITHOUT_USE and not (experts and key.startswith("expert") and value != "0")
                fine |= key == "attention.layer_norm_rms_epsilon" and "attention.layer_norm_epsilon" in own
                # Without any, their tensors have no place.
                named = "ffn_down_exps" if (full, value) == ("llama.expert_count", "0") else full
                check(said, named, fine=fine, where=(name, key, value))


def test_more_experts_than_there_are(tmp_path: Path) -> None:
    parts = Parts(write(tmp_path / "m.gguf", "mixtral-full"))
    for key, value in (("expert_used_count", 6), ("expert_used_count", 0), ("expert_count", 2)):
        file = tmp_path / "n.gguf"
        file.write_bytes(parts.with_value(f"llama.{key}", u32(f"llama.{key}", value)))
        check(error_of(file), f"llama.{key}", fine=False, where=(key, value))
