"""Names of activations: TransformerLens's full ones, and its short keys."""

from __future__ import annotations

import re

from .._core import Config
from ..common.arguments import checked

_LAYER_TYPES = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}
_SHORT = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
# The layer in "blocks.-1.hook_mlp_out" or "model.layers.-1.mlp.up_proj.weight", and in "z-1" or "scale-1ln1".
_NEGATIVE = re.compile(r"(?<=\.)-\d{1,9}(?=\.)|(?<=[a-z])-\d{1,9}(?=$|ln[12](?:_post)?$)", re.ASCII)
_IN_ATTN = ("k", "v", "q", "z", "k_normed", "q_normed", "rot_k", "rot_q", "result", "pattern", "attn_scores")
_IN_MLP = (
    "pre",
    "post",
    "mid",
    "pre_linear",
    "router_scores",
    "expert_weights",
    "expert_indices",
    "expert_out",
)

_BLOCK = re.compile(r"(?:(blocks\.-?\d+)\.)?([a-z0-9_.]+)", re.ASCII)

# TransformerLens 4's names by the module that an activation goes into or comes out of, in a layer. Only where an edit
# there does the same: what `ln2.hook_in` shows is the residual stream, but an edit is seen by the MLP alone.
_BY_MODULE = {
    "hook_in": "hook_resid_pre",
    "hook_out": "hook_resid_post",
    "ln2.hook_in": "hook_mlp_in",
    "attn.q.hook_out": "attn.hook_q",
    "attn.k.hook_out": "attn.hook_k",
    "attn.v.hook_out": "attn.hook_v",
    "attn.o.hook_in": "attn.hook_z",
    "attn.hook_attn_in": "hook_attn_in",
    "attn.hook_q_input": "hook_q_input",
    "attn.hook_k_input": "hook_k_input",
    "attn.hook_v_input": "hook_v_input",
}
# Where nothing comes between what a half of a layer computes and the residual stream.
_ADDED_AS_IT_IS = {
    "attn.o.hook_out": "hook_attn_out",
    "attn.hook_out": "hook_attn_out",
    "mlp.hook_out": "hook_mlp_out",
}
_GATED = {
    "mlp.gate.hook_out": "mlp.hook_pre",
    "mlp.in.hook_out": "mlp.hook_pre_linear",
    "mlp.out.hook_in": "mlp.hook_post",
    "mlp.out.hook_out": "hook_mlp_out",
}
_NOT_GATED = {
    "mlp.in.hook_out": "mlp.hook_pre",
    "mlp.out.hook_in": "mlp.hook_post",
    "mlp.out.hook_out": "hook_mlp_out",
}

MODULE_NAMES = (*_BY_MODULE, *_ADDED_AS_IT_IS, *_GATED)  # those of a layer


def by_module(name: str, config: Config) -> str:
    """Turn a name of TransformerLens 4 that says a module into the one that it is an alias of.

    Parameters
    ----------
    name : str
        Such as "blocks.0.attn.o.hook_in"; any other is returned as it is.
    config : Config
        Of the model: in some families what a module gives is not what is added to the residual stream.

    Returns
    -------
    str

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.activation_names import by_module
    >>> config = llama2cpp.load("storyteller").config
    >>> by_module("blocks.0.attn.o.hook_in", config), by_module("blocks.4.hook_out", config)
    ('blocks.0.attn.hook_z', 'blocks.4.hook_resid_post')
    """
    if not name.endswith(("hook_in", "hook_out", "_input", "attn_in")):
        return name
    if name == "embed.hook_out" and config.embedding_multiplier == 1:
        return "hook_embed"
    if name == "ln_final.hook_in":
        return f"blocks.{config.n_layers - 1}.hook_resid_post"
    match = _BLOCK.fullmatch(name)
    if match is None or match[1] is None:
        return name
    names = dict(_BY_MODULE)
    if config.norm_places == "before" and config.residual_multiplier == 1:
        names |= _ADDED_AS_IT_IS
    if config.n_experts is None and config.norm_places == "before" and config.residual_multiplier == 1:
        names |= _GATED if config.gated else _NOT_GATED
    found = names.get(match[2])
    return name if found is None else f"{match[1]}.{found}"


@checked
def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """Make the full name of an activation from a short one, as TransformerLens does.

    Parameters
    ----------
    name : str
        Such as "q", "resid_post" or "embed"; with the layer in it ("k6", "scale4ln1") or not. A full name is returned
        as it is.
    layer : int, optional
        The layer, for activations that each layer has; negative counts from the last where the name is used.
    layer_type : str, optional
        "attn", "mlp", "ln1" or "ln2"; only "scale" and "normalized" need it.

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.inside.activation_names import get_act_name
    >>> get_act_name("pattern", 3), get_act_name("scale4ln1"), get_act_name("normalized")
    ('blocks.3.attn.hook_pattern', 'blocks.4.ln1.hook_scale', 'ln_final.hook_normalized')
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if name.endswith("_grad"):
        return get_act_name(name.removesuffix("_grad"), layer, layer_type) + "_grad"
    digits = re.match(r"([a-z]+)(-?\d+)([a-z]?.*)", name)
    if digits is not None:
        name, layer, layer_type = digits.groups()
    name = _SHORT.get(name, name)
    if name in _IN_ATTN:
        layer_type = "attn"
    elif name in _IN_MLP:
        layer_type = "mlp"
    elif layer_type is not None:
        layer_type = _LAYER_TYPES.get(layer_type, layer_type)
    block = "" if layer is None else f"blocks.{layer}."
    place = f"{layer_type}." if layer_type else ""
    if name in ("scale", "normalized") and layer is None:
        block = "ln_final."
    return f"{block}{place}hook_{name}"


def from_first(name: str, n_layers: int) -> str:
    """Count a layer in a name from the first one: "blocks.-1.hook_mlp_out", "z-1" and "layers.-2.ffn_norm.weight".

    Parameters
    ----------
    name : str
        Of an activation or a weight, or anything else, which is left alone.
    n_layers : int
        How many layers there are.

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.inside.activation_names import from_first
    >>> from_first("blocks.-1.attn.W_Q", 5), from_first("resid_post-2", 5), from_first("z-6", 5)
    ('blocks.4.attn.W_Q', 'resid_post3', 'z-6')
    """

    def counted(match: re.Match[str]) -> str:
        layer = int(match[0])
        return str(layer + n_layers) if -n_layers <= layer < 0 else match[0]

    if "-" not in name:
        return name
    return _NEGATIVE.sub(counted, name, count=1)
