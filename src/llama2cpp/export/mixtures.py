"""Which type each weight of a GGUF file gets: llama.cpp's mixtures, so that a name means what its users expect."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from ..common.parts import EMBEDDING, OUTPUT, Part, find_part, get_part, layer_of
from .source import Source

FLOATS = ("f32", "f16", "bf16")
MXFP4 = "mxfp4"


@dataclass(frozen=True)
class Mixture:
    """One of llama.cpp's file types.

    Attributes
    ----------
    base : str
        The format of most matrices.
    file_type : str
        Its name in gguf.LlamaFileType.
    """

    base: str
    file_type: str


MIXTURES = {
    "f32": Mixture("f32", "ALL_F32"),
    "f16": Mixture("f16", "MOSTLY_F16"),
    "bf16": Mixture("bf16", "MOSTLY_BF16"),
    "q8_0": Mixture("q8_0", "MOSTLY_Q8_0"),
    "q4_0": Mixture("q4_0", "MOSTLY_Q4_0"),
    "q4_1": Mixture("q4_1", "MOSTLY_Q4_1"),
    "q5_0": Mixture("q5_0", "MOSTLY_Q5_0"),
    "q5_1": Mixture("q5_1", "MOSTLY_Q5_1"),
    "q2_k": Mixture("q2_k", "MOSTLY_Q2_K"),
    "q2_k_s": Mixture("q2_k", "MOSTLY_Q2_K_S"),
    "q3_k_s": Mixture("q3_k", "MOSTLY_Q3_K_S"),
    "q3_k_m": Mixture("q3_k", "MOSTLY_Q3_K_M"),
    "q3_k_l": Mixture("q3_k", "MOSTLY_Q3_K_L"),
    "q4_k_s": Mixture("q4_k", "MOSTLY_Q4_K_S"),
    "q4_k_m": Mixture("q4_k", "MOSTLY_Q4_K_M"),
    "q5_k_s": Mixture("q5_k", "MOSTLY_Q5_K_S"),
    "q5_k_m": Mixture("q5_k", "MOSTLY_Q5_K_M"),
    "q6_k": Mixture("q6_k", "MOSTLY_Q6_K"),
    MXFP4: Mixture(MXFP4, "MOSTLY_MXFP4_MOE"),  # of experts; see `beside_experts`
}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}

# Those that some mixtures treat otherwise.
_VALUES, _DOWN, _ATTENTION_OUT = get_part("wv"), get_part("w2"), get_part("wo")
_EXPERT_DOWN = get_part("e2")
_ROUTER = "router"  # which llama.cpp's files have in float32 whatever their types are

# Queries, keys and values in one tensor.
_OF_FUSED_ATTENTION = {"q3_k_m": "q4_k", "q3_k_l": "q4_k", "q4_k_m": "q5_k", "q5_k_m": "q6_k"}

# Where a row's length is no multiple of 256. llama.cpp takes IQ4_NL for the first two, which has Q4_0's size.
_NARROWER = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


def has_mxfp4(source: Source) -> bool:
    """Whether it has experts, all of whose matrices are stored as MXFP4."""
    experts = [name for name in source.names() if _is_expert_matrix(name)]
    return bool(experts) and all(source.stored_format(name) == MXFP4 for name in experts)


def other_matrices(source: Source) -> str | None:
    """Give the format of all matrices but experts', None where they have several."""
    matrices = [name for name in source.names() if not _is_expert_matrix(name) and len(source.shape(name)) == 2]
    found = {source.stored_format(name) for name in matrices if (part := find_part(name)) and part.name != _ROUTER}
    return found.pop() if len(found) == 1 else None


def beside_experts(source: Source) -> str:
    """Give the mixture of all that is no expert's in one of MXFP4: the source's floats, or llama.cpp's "q8_0"."""
    found = other_matrices(source)
    return found if found in FLOATS else "q8_0"


def _is_expert_matrix(name: str) -> bool:
    part = find_part(name)
    return part is not None and part.kind == "experts"


def tensor_format(
    mixture: str, config: _core.Config, name: str, columns: int, *, pure: bool = False, fused: bool = False
) -> str:
    """Give the format that a weight gets.

    Parameters
    ----------
    mixture : str
        A key of MIXTURES.
    config : Config
        Of the model.
    name : str
        llama2.c's name of the weight.
    columns : int
        Of one row.
    pure : bool
        All matrices get the base format, where their rows' length allows it.
    fused : bool
        It lies in one tensor with others of its half of a layer.

    Returns
    -------
    str
        A format of `_core.encode`. Gains, biases and routers are always "f32".
    """
    part = find_part(name)
    if part is None or part.is_vector or part.name == _ROUTER:
        return "f32"
    base = MIXTURES[mixture].base
    if base in FLOATS:
        return base
    wanted = base if pure else _wanted(mixture, base, config, part, layer_of(name))
    if fused and not pure:
        wanted = _OF_FUSED_ATTENTION.get(mixture, base) if part.scope == "attention" else base
    if columns % 256 and wanted in _NARROWER:
        wanted = _NARROWER[wanted]
    return "f16" if columns % 32 else wanted


def _wanted(mixture: str, base: str, config: _core.Config, part: Part, layer: int | None) -> str:
    if part is OUTPUT or (part is EMBEDDING and config.tied):
        return base if base == "q8_0" else "q6_k"
    if layer is None:
        return base
    if part is _VALUES:
        return _of_values(mixture, base, config, layer)
    if part in (_DOWN, _EXPERT_DOWN):
        return _of_down(mixture, base, layer, config.n_layers)
    if part is _ATTENTION_OUT:
        return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(mixture, base)
    return base


def _of_values(mixture: str, base: str, config: _core.Config, layer: int) -> str:
    shared_by = config.n_heads // config.n_kv_heads  # each value row serves so many heads
    wanted = base
    if mixture == "q2_k":
        wanted = "q4_k" if shared_by >= 4 else "q3_k"
    elif mixture == "q2_k_s" and shared_by >= 4:
        wanted = "q4_k"
    elif mixture == "q3_k_m":
        wanted = "q5_k" if layer < 2 else "q4_k"
    elif mixture == "q3_k_l":
        wanted = "q5_k"
    elif mixture in ("q4_k_m", "q5_k_m") and _gets_more_bits(layer, config.n_layers):
        wanted = "q6_k"
    elif mixture == "q4_k_s" and layer < 4:
        wanted = "q5_k"
    if config.n_layers == 80 and shared_by > 1 and wanted in ("q3_k", "q4_k"):  # Llama 2 70B and its like
        wanted = "q5_k"
    return wanted


def _of_down(mixture: str, base: str, layer: int, layers: int) -> str:
    early = layer < layers // 8
    if mixture == "q2_k":
        return "q3_k"
    if mixture == "q2_k_s":
        return "q4_k" if early else base
    if mixture == "q3_k_m":
        return "q5_k" if layer < layers // 16 else "q4_k"
    if mixture == "q3_k_l":
        return "q5_k"
    if mixture in ("q4_k_m", "q5_k_m") and _gets_more_bits(layer, layers):
        return "q6_k"
    return "q5_k" if mixture == "q4_k_s" and early else base


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is of the first or last eighth, or every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
