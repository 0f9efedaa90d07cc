"""Against TransformerLens itself: names, shapes and values of weights, activations, decompositions and edits."""

from __future__ import annotations

import dataclasses
import re
import warnings
from typing import Any, NamedTuple

import gguf_files
import numpy as np
import pytest
from hf_folders import Spec
from numpy.typing import NDArray
from vocabularies import characters

import llama2cpp
from llama2cpp import analysis, interventions, utils
from llama2cpp.inside.activation_names import get_act_name

with warnings.catch_warnings():  # its imports', and theirs
    warnings.simplefilter("ignore")
    pytest.importorskip("transformer_lens", reason='TransformerLens is not installed: pip install ".[lens-test]"')
    import torch
    import transformer_lens.utilities as their_utils
    from lens_bridge import bridge, difference
    from tokenizers.processors import TemplateProcessing
    from transformer_lens import FactoredMatrix
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities import get_act_name as their_act_name
    from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-4
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

SPECS = {
    "plain": Spec(seed=1, settings={"num_hidden_layers": 3}),
    "one kv head": Spec(seed=2, settings={"num_key_value_heads": 1}),
    "no groups": Spec(seed=3, settings={"num_key_value_heads": 4}),
    "head size of its own": Spec(seed=4, settings={"num_attention_heads": 6, "hidden_size": 48, "head_dim": 10}),
    "biases": Spec(seed=5, settings={"attention_bias": True, "mlp_bias": True}),
    "tied": Spec(seed=6, settings={"tie_word_embeddings": True}),
    "llama 3's rotary": Spec(
        seed=7,
        settings={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
}


class Pair(NamedTuple):
    tokens: list[int]
    ours: llama2cpp.Model
    cache: llama2cpp.ActivationCache  # everything
    logits: NDArray[np.float32]
    theirs: Any  # TransformerBridge
    their_cache: Any
    their_logits: Any
    folded_cache: Any  # of the same model with the norms' gains folded into the matrices after them


# The GGUF writer of the tests has no scaled rotary frequencies; test_gguf.py has.
KINDS = [(name, kind) for name in SPECS for kind in ("folder", "GGUF") if (name, kind) != ("llama 3's rotary", "GGUF")]


@pytest.fixture(scope="module", params=KINDS, ids=", ".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, kind = request.param
    spec = SPECS[name]
    folder = tmp_path_factory.mktemp("model")
    spec.save(folder)
    if kind == "GGUF":
        ours = llama2cpp.load(gguf_files.write_model(folder / "model.gguf", spec.model()))
    else:
        ours = llama2cpp.load(folder)
    tokens = np.random.default_rng(spec.seed).integers(50, size=13).tolist()
    theirs, folded = (bridge(spec.model(), folder, fold_ln=fold_ln) for fold_ln in (False, True))
    theirs.set_use_attn_result(True)
    with torch.no_grad():
        their_logits, their_cache = theirs.run_with_cache(torch.tensor([tokens]))
        _, folded_cache = folded.run_with_cache(torch.tensor([tokens]))
    logits, cache = ours.run_with_cache(tokens, names_filter=lambda name: True)
    return Pair(tokens, ours, cache, logits, theirs, their_cache, their_logits, folded_cache)


def test_every_weight(pair: Pair) -> None:
    for name, ours in pair.ours.weights.transformer_lens.items():
        where, _, leaf = name.rpartition(".")
        part = pair.theirs
        for step in where.split("."):
            part = part[int(step)] if step.isdecimal() else getattr(part, step)
        assert difference(ours, getattr(part, leaf)) == 0, name


@pytest.mark.parametrize("name", ["W_E", "W_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"])
def test_stacked_weights(pair: Pair, name: str) -> None:
    assert difference(getattr(pair.ours, name), getattr(pair.theirs, name)) == 0


def test_every_activation(pair: Pair) -> None:
    """All that we have, they have, in the same shape."""
    assert difference(pair.logits, pair.their_logits) < TOLERANCE
    assert len(pair.cache) == 3 + 21 * pair.ours.config.n_layers
    gaps = {name: difference(array, pair.their_cache[name]) for name, array in pair.cache.items()}
    assert {name: gap for name, gap in gaps.items() if not gap < TOLERANCE} == {}


def test_an_edit(pair: Pair) -> None:
    """Heads and neurons switched off, the residual stream doubled: in both by callbacks."""
    edits = {
        "blocks.0.attn.hook_z": (slice(None), slice(None), 1),
        "blocks.1.mlp.hook_post": (slice(None), slice(3, None), slice(5, 9)),
        "blocks.1.attn.hook_pattern": (slice(None), 2),
    }

    def edit(activation: Any, hook: Any) -> Any:
        activation = activation.clone() if isinstance(activation, torch.Tensor) else activation
        activation[edits[hook.name]] = 0
        return activation

    hooks = [(name, edit) for name in edits]
    with torch.no_grad():
        expected = pair.theirs.run_with_hooks(torch.tensor([pair.tokens]), fwd_hooks=hooks)
    logits = pair.ours.run_with_hooks(pair.tokens, fwd_hooks=hooks)
    assert difference(logits, expected) < TOLERANCE
    assert np.abs(logits - pair.ours.run_with_hooks(pair.tokens, fwd_hooks=[])).max() > 1e-3


DECOMPOSITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "accumulated": ("accumulated_resid", {}),
    "accumulated, mid": ("accumulated_resid", {"incl_mid": True, "pos_slice": -1}),
    "accumulated up to 1": ("accumulated_resid", {"layer": 1, "mlp_input": True}),
    "accumulated, normalised": ("accumulated_resid", {"apply_ln": True}),
    "decompose": ("decompose_resid", {}),
    "decompose up to 1, mlp input": ("decompose_resid", {"layer": 1, "mlp_input": True, "pos_slice": (2, 7)}),
    "decompose, attn": ("decompose_resid", {"mode": "attn", "incl_embeds": False}),
    "decompose, mlp": ("decompose_resid", {"mode": "mlp", "pos_slice": [0, 4]}),
    "decompose, embeddings only": ("decompose_resid", {"layer": 0}),
    "heads": ("stack_head_results", {"layer": -1}),
    "heads and the rest": ("stack_head_results", {"layer": 1, "incl_remainder": True, "pos_slice": -1}),
    "neurons": ("stack_neuron_results", {"layer": 2, "neuron_slice": (4, 9)}),
    "one neuron": ("stack_neuron_results", {"layer": 1, "neuron_slice": 7, "pos_slice": -2}),
    "neurons and the rest": ("stack_neuron_results", {"layer": 1, "incl_remainder": True, "pos_slice": (1, 3)}),
    "full": ("get_full_resid_decomposition", {"pos_slice": -1}),
    "full, MLPs whole": ("get_full_resid_decomposition", {"expand_neurons": False}),
    "full up to 1, mlp input": ("get_full_resid_decomposition", {"layer": 1, "mlp_input": True, "pos_slice": -1}),
}


@pytest.mark.parametrize("case", DECOMPOSITIONS)
def test_decompositions(pair: Pair, case: str) -> None:
    method, arguments = DECOMPOSITIONS[case]
    with torch.no_grad():
        theirs, their_labels = getattr(pair.their_cache, method)(**arguments, return_labels=True)
    ours, labels = getattr(pair.cache, method)(**arguments, return_labels=True)
    assert labels == [re.sub(r"tensor\((\d+)\)", r"\1", str(label)) for label in their_labels]
    assert difference(ours, theirs) < TOLERANCE
    _, one = pair.ours.run_with_cache(pair.tokens, remove_batch_dim=True)
    np.testing.assert_allclose(getattr(one, method)(**arguments), ours[:, 0], rtol=0, atol=TOLERANCE)


# Theirs with the gains folded: then a norm is the division alone, and W_U has the gain.
@pytest.mark.parametrize("pos_slice", [None, -1, (3, 8)])
def test_logit_attributions(pair: Pair, pos_slice: Any) -> None:
    with torch.no_grad():
        their_stack = pair.folded_cache.decompose_resid(pos_slice=pos_slice)
        theirs = pair.folded_cache.logit_attrs(their_stack, 7, incorrect_tokens=11, pos_slice=pos_slice)
    stack = pair.cache.decompose_resid(pos_slice=pos_slice)
    assert difference(pair.cache.logit_attrs(stack, 7, 11, pos_slice=pos_slice), theirs) < TOLERANCE


@pytest.mark.parametrize(("layer", "mlp_input"), [(None, False), (1, False), (1, True)])
def test_norms_of_parts(pair: Pair, layer: int | None, mlp_input: bool) -> None:
    """Ours have the gain; theirs leave it to folded weights."""
    with torch.no_grad():
        theirs = pair.their_cache.decompose_resid(layer=layer, mlp_input=mlp_input, apply_ln=True)
    norm = "ln_final" if layer is None else f"blocks.{layer}.ln{2 if mlp_input else 1}"
    ours = pair.cache.decompose_resid(layer=layer, mlp_input=mlp_input, apply_ln=True)
    assert difference(ours, theirs * torch.tensor(pair.ours.weights[f"{norm}.w"])) < TOLERANCE


def test_parts_of_one_prompt_of_a_batch(pair: Pair) -> None:
    batch = np.stack([pair.tokens, pair.tokens[::-1]])
    _, ours = pair.ours.run_with_cache(batch)
    with torch.no_grad():
        _, theirs = pair.theirs.run_with_cache(torch.tensor(batch))
        options: dict[str, Any] = {"pos_slice": -1, "batch_slice": 1, "has_batch_dim": False}
        expected = theirs.apply_ln_to_stack(theirs.decompose_resid(pos_slice=-1)[:, 1], **options)
    gain = torch.tensor(pair.ours.weights["ln_final.w"])
    stack = ours.decompose_resid(pos_slice=-1)
    assert difference(ours.apply_ln_to_stack(stack[:, 1], **options), expected * gain) < TOLERANCE
    logits = ours.logit_attrs(stack[:, 1], 7, **options)
    np.testing.assert_allclose(logits, ours.logit_attrs(stack, 7, pos_slice=-1)[:, 1], atol=1e-6)


def test_what_their_notebooks_call_beside(pair: Pair) -> None:
    """The same expressions on both, whatever makes arrays of the one and tensors of the other."""
    ours, theirs, ids = pair.ours, pair.theirs, np.stack([pair.tokens, pair.tokens[::-1]])
    tensor = torch.tensor(ids)
    with torch.no_grad():
        residual, tokens, *rest = ours.input_to_embed(ids)
        expected = theirs.input_to_embed(tensor)
        assert difference(residual, expected[0]) < TOLERANCE
        assert tokens.tolist() == expected[1].tolist()
        assert rest == [None, None] == [expected[2], None]
        assert difference(ours(residual, start_at_layer=0), theirs(tensor)) < TOLERANCE
        names = ["blocks.1.attn.hook_z", "blocks.0.hook_resid_mid"]
        caches = []
        both: list[tuple[Any, Any]] = [(ours, ids), (theirs, tensor)]
        for model, given in both:
            cache = model.add_caching_hooks(lambda name: name in names)
            model(given)
            model.reset_hooks()
            caches.append(cache)
        for name in names:
            assert difference(caches[0][name], caches[1][name]) < TOLERANCE
        assert ours.attn_head_labels == theirs.attn_head_labels
        found = theirs.get_hook_point("blocks.0.attn.hook_z")
        point = ours.get_hook_point("blocks.0.attn.hook_z")
        assert found is not None
        assert point is not None
        assert ours.get_hook_point("blocks.0.attn.hook_zz") is theirs.get_hook_point("blocks.0.attn.hook_zz") is None
        assert ours.eval() is ours
        logits, pattern = theirs(tensor), pair.their_cache["pattern", 0][0, 0]
        for make, other in ((utils.get_corner, their_utils.get_corner), (utils.transpose, their_utils.transpose)):
            assert difference(np.asarray(make(logits.numpy())), other(logits)) == 0
        for square in (pattern, pattern.T, pattern[:2]):
            assert utils.is_square(square.numpy()) == their_utils.is_square(square)
            assert utils.is_lower_triangular(square.numpy()) == their_utils.is_lower_triangular(square)
        for chosen in (None, -1, (1, 4), [0, 3], slice(2, 9, 3)):
            one, other = utils.Slice(chosen), their_utils.Slice(chosen)
            assert difference(one.apply(logits.numpy(), dim=1), other.apply(logits, dim=1)) == 0
            assert one.indices(13).tolist() == other.indices(13).tolist()
            assert repr(one) == repr(other)


@pytest.mark.parametrize("project", [1, 2])
def test_projected_neurons(pair: Pair, project: int) -> None:
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((pair.ours.config.dim, 3)[:project]).astype(np.float32)
    arguments: dict[str, Any] = {"layer": 2, "pos_slice": (1, 4), "incl_remainder": True}
    with torch.no_grad():
        theirs = pair.their_cache.stack_neuron_results(**arguments, project_output_onto=torch.tensor(directions))
    assert difference(pair.cache.stack_neuron_results(**arguments, project_output_onto=directions), theirs) < TOLERANCE
    whole = pair.cache.stack_neuron_results(**arguments, apply_ln=True) @ directions
    fused = pair.cache.stack_neuron_results(**arguments, apply_ln=True, project_output_onto=directions)
    np.testing.assert_allclose(fused, whole, rtol=0, atol=TOLERANCE * np.abs(whole).max())


def test_directions_of_heads(pair: Pair) -> None:
    """Their FactoredMatrix's singular values, and the tokens that their unembedding gives for each direction."""
    config = pair.ours.config
    layer = config.n_layers - 1
    attn = pair.theirs.blocks[layer].attn
    gain, last = (np.array(pair.ours.weights[name])[:, None] for name in (f"blocks.{layer}.ln1.w", "ln_final.w"))
    for head in range(config.n_heads):
        shared = head * config.n_kv_heads // config.n_heads
        theirs = FactoredMatrix(torch.from_numpy(gain) * attn.W_V[shared].detach(), attn.W_O[head].detach())
        found = analysis.head_directions(pair.ours, layer, head, tokens=5)
        u, values, v = theirs.svd()
        assert difference(found.values.astype(np.float32), values) < TOLERANCE
        logits = (torch.from_numpy(last) * v).T @ pair.theirs.W_U.detach()
        for i in range(3):  # those that are well apart from the next
            along = float(found.writes[i] @ v[:, i].detach().numpy())
            assert abs(along) == pytest.approx(1, abs=1e-3)
            assert found.reads[i] @ u[:, i].detach().numpy() == pytest.approx(along, abs=2e-3)
            order = (logits[i] * np.sign(along)).argsort(descending=True).tolist()
            named = [pair.ours.to_single_str_token(id) if pair.ours.has_tokenizer else str(id) for id in order]
            assert (found.top[i], found.bottom[i]) == (named[:5], named[::-1][:5])


@pytest.mark.parametrize("kind", ["autoencoder", "features", "transcoder", "of heads"])
def test_dictionaries_in_a_run(pair: Pair, kind: str) -> None:
    """A dictionary in one of their hooks, in PyTorch, and ours as an intervention."""
    layer = pair.ours.config.n_layers - 1
    block = f"blocks.{layer}"
    name = {"transcoder": f"{block}.hook_mlp_out", "of heads": f"{block}.attn.hook_z"}.get(
        kind, f"{block}.hook_resid_pre"
    )
    width = int(np.prod(pair.cache[name].shape[2:]))
    rng = np.random.default_rng(5)
    w_enc, w_dec = rng.normal(size=(width, 70)) / width**0.5, rng.normal(size=(70, width)) / 70**0.5
    b_enc, b_dec = rng.normal(size=70) / 4, rng.normal(size=width) / 4
    enc, dec, of_enc, of_dec = (torch.tensor(array, dtype=torch.float32) for array in (w_enc, w_dec, b_enc, b_dec))
    read: dict[str, Any] = {}

    def look(x: Any, hook: Any) -> None:
        read["x"] = x

    def put(x: Any, hook: Any) -> Any:
        features = ((read["x"] if kind == "transcoder" else x).flatten(2) @ enc + of_enc).relu()
        if kind == "features":  # without the seventh, and with what is not explained
            return x - features[..., 7:8] * dec[7]
        return (features @ dec + of_dec).reshape(x.shape)

    hooks = [(f"{block}.mlp.hook_in", look)] if kind == "transcoder" else []
    expected = pair.theirs.run_with_hooks(torch.tensor([pair.tokens]), fwd_hooks=[*hooks, (name, put)])

    def without(features: Any, hook: Any) -> None:
        features[..., 7] = 0

    options: dict[str, Any] = {
        "transcoder": {"reads": "mlp.hook_in"},
        "features": {"error_term": True, "features": without},
    }
    coder = interventions.replace_with(name, w_enc, b_enc, w_dec, b_dec, **options.get(kind, {}))
    found = pair.ours.run_with_hooks(pair.tokens, [coder])
    assert difference(found, expected) < TOLERANCE
    assert difference(found, pair.their_logits) > 10 * TOLERANCE


@pytest.mark.parametrize("return_type", ["logits", "log_probs", "probs"])
def test_logit_lens(pair: Pair, return_type: Any) -> None:
    wanted: list[dict[str, Any]] = [{"vocab": [3, 5]}, {"targets": [4, 9]}, {}, {"incl_mid": True, "layers": [0, -2]}]
    for options in wanted:
        arguments = {"positions": (2, None), "return_type": return_type} | options
        theirs = pair.their_cache.logit_lens(**arguments)
        ours = pair.cache.logit_lens(**arguments)
        assert ours.labels == theirs.labels
        assert difference(ours.values, theirs.values) < TOLERANCE
        assert difference(ours.entropy, theirs.readout.entropy) < TOLERANCE
        if "targets" in options:
            assert ours.target_ranks is not None
            near = np.abs(ours.target_ranks - theirs.readout.target_ranks.numpy())
            assert near.max() <= 1  # two logits may be equal to seven digits


@pytest.mark.parametrize("layer", [None, 0, 11])
@pytest.mark.parametrize("layer_type", [None, "a", "m", "b", "ln1", "ln2", "attn", "mlp", "block"])
def test_short_names(layer: int | None, layer_type: str | None) -> None:
    names = ["q", "key", "pattern", "attn", "attn_logits", "resid_pre", "scale", "normalized", "pre", "post", "embed"]
    names += [
        "pre_linear",
        "mlp_out",
        "k6",
        "scale4ln1",
        "pre5",
        "hook_embed",
        "blocks.0.attn.hook_q",
        "result",
        "rot_q",
    ]
    ours = {name: get_act_name(name, layer, layer_type) for name in names}
    assert ours == {name: their_act_name(name, layer, layer_type) for name in names}


def test_circuitsvis_draws_our_arrays(stories: llama2cpp.Model) -> None:
    """It takes [heads, T, S] as it comes out of a cache."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import circuitsvis
    _, cache = stories.run_with_cache("Once upon a time", remove_batch_dim=True)
    tokens = stories.to_str_tokens("Once upon a time")
    drawn = str(circuitsvis.attention.attention_patterns(tokens=tokens, attention=cache["pattern", 0]))
    assert "AttentionPatterns" in drawn
    assert " upon" in drawn or "up" in drawn


# --- what there is beside activations: sizes, ids and text under their names

# Their -1 and None stand for what we state: the square root of a head's width, as many heads, the whole head.
STANDS_FOR = {"attn_scale": -1.0, "n_key_value_heads": None, "rotary_dim": None}


def test_config(pair: Pair) -> None:
    ours = dataclasses.asdict(pair.ours.cfg)
    assert len(ours) > 15
    for name, value in ours.items():
        theirs = getattr(pair.theirs.cfg, name)
        if name == "rotary_base":  # theirs is the default of transformers, whatever rope_parameters says
            theirs = pair.theirs.original_model.config.rope_parameters["rope_theta"]
        if name == "model_name":  # theirs is the class, or where the folder was
            continue
        if name == "dtype":
            theirs = str(theirs).removeprefix("torch.")
        if name in STANDS_FOR and theirs == STANDS_FOR[name]:
            meant = {"attn_scale": ours["d_head"] ** 0.5, "n_key_value_heads": ours["n_heads"]}
            theirs = meant.get(name, ours["d_head"])
        assert value == pytest.approx(theirs) if isinstance(value, float) else value == theirs, name


class Texts(NamedTuple):
    ours: llama2cpp.Model
    theirs: Any


@pytest.fixture(scope="module", params=[True, False], ids=["with BOS", "without BOS"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """Models that have a tokenizer which cuts any text, and which puts BOS before it or not."""
    folder = tmp_path_factory.mktemp("texts")
    tokenizer = characters([("a", "b"), ("ab", "c"), (SPACE, "a")], alphabet="abc\u00e9", prefix="Replace")
    if request.param:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    spec = Spec(seed=8, settings={"vocab_size": tokenizer.get_vocab_size()})
    spec.save(folder)
    make_tokenizer: Any = PreTrainedTokenizerFast
    make_tokenizer(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(folder)
    theirs = TransformerBridge.boot_transformers(str(folder), hf_model=spec.model())
    return Texts(llama2cpp.load(folder), theirs)


@pytest.mark.parametrize(
    "text", ["abc", "a", " abcabc ab", "caf\u00e9 \u65e5\u672c", "x\n\ty", ["ac", "bc"], ["a", "b", " "]]
)
@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_texts_as_tokens_and_back(texts: Texts, text: Any, prepend_bos: bool | None) -> None:
    options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    # Where nothing is asked for, they put BOS before any model's texts, and we where its tokenizer does.
    used_to_it = {"prepend_bos": texts.ours.cfg.default_prepend_bos}
    theirs = texts.theirs.to_tokens(text, **(options or used_to_it))
    ours = texts.ours.to_tokens(text, **options)
    assert ours.tolist() == theirs.tolist()
    assert texts.ours.to_string(ours) == texts.theirs.to_string(theirs)
    for row in theirs:
        assert texts.ours.to_string(row.numpy()) == texts.theirs.to_string(row)
        assert texts.ours.to_string(row.tolist()) == texts.theirs.to_string(row.tolist())
        assert texts.ours.to_string(int(row[-1])) == texts.theirs.to_string(int(row[-1]))
    if isinstance(text, str):
        assert texts.ours.to_str_tokens(text, **options) == texts.theirs.to_str_tokens(text, **(options or used_to_it))
