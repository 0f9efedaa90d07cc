"""Models with routed experts against transformers: logits, hooks, weights by name, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expert_models import CASES, EXPERTS, IN_GGUF, USED, made, write_gguf
from family_models import TOKENS, answers, expected_logits, logits_of, same_bits
from gguf import GGMLQuantizationType as Type
from hf_folders import change_json
from reference import largest_error
from safetensors.numpy import load_file, save_file

import llama2cpp
from llama2cpp.export import convert

pytestmark = pytest.mark.cpu_bits("experts, which Metal refuses by name")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in CASES:
        found[name] = tmp_path_factory.mktemp(name)
        made(name).save_pretrained(found[name])
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_folder(name: str, folders: dict[str, Path]) -> None:
    found = logits_of(folders[name], TOKENS, threads=1)
    assert largest_error(found, expected_logits(made(name), TOKENS)) < 1e-5
    # The same bits in any chunks of the prompt, on any number of threads, packed or not.
    for threads, pack in ((1, "never"), (2, "auto"), (3, "always")):
        same_bits(folders[name], found, TOKENS, (1, 7), threads=threads, pack=pack)


@pytest.mark.parametrize("name", IN_GGUF)
def test_a_gguf(name: str, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", name)
    assert largest_error(logits_of(tmp_path / "m.gguf", TOKENS), expected_logits(model, TOKENS)) < 1e-5


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0])
def test_quantized_experts(kind: Type, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = write_gguf(path, "qwen3_moe", kind)
    assert largest_error(logits_of(path, TOKENS), expected_logits(model, TOKENS)) < 1e-5
    assert len(answers(path, TOKENS)) == 1  # rounded input


def test_weights_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    model = llama2cpp.load(folders["granitemoe"])
    whole = load_file(folders["granitemoe"] / "model.safetensors")
    inputs = whole["model.layers.1.block_sparse_moe.input_linear.weight"]
    gate, up = np.split(inputs[4], 2)
    down = whole["model.layers.1.block_sparse_moe.output_linear.weight"][4]
    assert np.array_equal(model.weights["model.layers.1.mlp.experts.4.gate_proj.weight"], gate)
    assert np.array_equal(model.weights["blocks.-1.mlp.experts.4.W_gate"], gate.T)
    assert np.array_equal(model.weights["blocks.1.mlp.experts.4.W_in"], up.T)
    assert np.array_equal(model.weights["blocks.1.mlp.experts.4.W_out"], down.T)
    router = whole["model.layers.0.block_sparse_moe.router.layer.weight"]
    assert np.array_equal(model.weights["blocks.0.mlp.gate.W"], router.T)
    names = list(model.weights.transformer_lens)
    assert sum(".experts." in name for name in names) == 2 * EXPERTS * 3
    for name in ("blocks.0.mlp.experts.5.W_in", "blocks.0.mlp.experts.01.W_in", "blocks.0.mlp.W_in"):
        assert name not in model.weights
    write_gguf(tmp_path / "m.gguf", "granitemoe")
    other = llama2cpp.load(tmp_path / "m.gguf")
    assert np.array_equal(other.weights["blk.1.ffn_down.4.weight"], down)
    # A model with another expert computes with it.
    name = "blocks.0.mlp.experts.2.W_out"
    changed = model.with_weights({name: model.weights[name] * 0})
    tokens = TOKENS[:6]
    before, cache = model.run_with_cache(tokens)
    after, _ = changed.run_with_cache(tokens)
    used = (cache["expert_indices", 0][0] == 2).any(axis=-1)
    assert used.any()
    first = int(np.argmax(used))
    assert np.array_equal(before[0, :first], after[0, :first])
    assert not np.array_equal(before[0, first], after[0, first])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe-as-they-are", "granitemoe"])
def test_hooks(name: str, folders: dict[str, Path]) -> None:
    model = llama2cpp.load(folders[name], kv_dtype="f32")
    _, cache = model.run_with_cache(TOKENS)
    config = model.config
    for i in range(config.n_layers):
        x = cache["normalized", i, "ln2"][0] * model.weights[f"blocks.{i}.ln2.w"]
        scores = cache["router_scores", i][0]
        assert largest_error(x @ model.weights[f"blocks.{i}.mlp.gate.W"], scores) < 1e-5
        ids = cache["expert_indices", i][0].astype(int)
        chosen = np.sort(np.argsort(-scores, axis=-1, kind="stable")[:, :USED], axis=-1)
        assert np.array_equal(ids, chosen)
        exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = np.where((exp[..., None, :] * 0 + np.arange(EXPERTS) == ids[..., None]).any(axis=-2), exp, 0)
        whole = name == "qwen3_moe-as-they-are"
        weights = weights / (exp if whole else weights).sum(axis=-1, keepdims=True)
        assert largest_error(cache["expert_weights", i][0], weights) < 1e-6
        pre, linear, post = (cache[key, i][0] for key in ("pre", "pre_linear", "post"))
        outs = cache["expert_out", i][0]
        assert pre.shape == (len(TOKENS), USED, config.hidden_dim)
        assert outs.shape == (len(TOKENS), USED, config.dim)
        assert largest_error(post, pre / (1 + np.exp(-pre)) * linear) < 1e-5
        for t in (0, 7):
            for j in range(USED):
                expert = f"blocks.{i}.mlp.experts.{ids[t, j]}"
                assert largest_error(x[t] @ model.weights[f"{expert}.W_gate"], pre[t, j]) < 1e-5
                assert largest_error(post[t, j] @ model.weights[f"{expert}.W_out"], outs[t, j]) < 1e-5
        summed = (np.take_along_axis(weights, ids, axis=-1)[..., None] * outs).sum(axis=1)
        assert largest_error(summed * config.residual_multiplier, cache["mlp_out", i][0]) < 1e-5


def test_hooks_that_route(folders: dict[str, Path]) -> None:
    model = llama2cpp.load(folders["mixtral"], kv_dtype="f32")
    plain, cache = model.run_with_cache(TOKENS)

    def run(name: str, hook: Any) -> tuple[Any, Any]:
        with model.hooks([(f"blocks.0.mlp.hook_{name}", hook)]):
            return model.run_with_cache(TOKENS)

    # What changes nothing leaves the bits.
    for name in ("router_scores", "expert_weights", "expert_indices", "expert_out"):
        logits, _ = run(name, lambda array, hook: array)
        assert np.array_equal(logits, plain), name
    # A weight for an expert that a token does not go to sends it there, as in TransformerLens.
    wanted = next(e for e in range(EXPERTS) if e not in cache["expert_indices", 0][0, 3])

    def boost(array: Any, hook: Any) -> Any:
        array[0, 3] = 0
        array[0, 3, wanted] = 1
        return array

    _, changed = run("expert_weights", boost)
    ids, row = changed["expert_indices", 0][0, 3], changed["expert_weights", 0][0, 3]
    assert wanted in ids
    assert row[wanted] == 1
    assert row.sum() == 1
    assert largest_error(changed["mlp_out", 0][0, 3], changed["expert_out", 0][0, 3][list(ids).index(wanted)]) < 1e-6

    # Indices say where tokens go, in any order.
    def swap(array: Any, hook: Any) -> Any:
        array[:] = [4, 0, 2]
        return array

    _, changed = run("expert_indices", swap)
    gate = model.weights["blocks.0.mlp.experts.4.W_gate"]
    x = changed["normalized", 0, "ln2"][0] * model.weights["blocks.0.ln2.w"]
    assert largest_error(x @ gate, changed["pre", 0][0, :, 2]) < 1e-5
    for bad in (0.5, -1.0, EXPERTS, np.nan):
        with pytest.raises(ValueError, match="hook_expert_indices"):
            run("expert_indices", lambda array, hook, bad=bad: np.full_like(array, bad))
    with pytest.raises(ValueError, match="same expert twice"):
        run("expert_indices", lambda array, hook: np.zeros_like(array))


def changed_folder(source: Path, to: Path, tensors: Any = None, **settings: Any) -> Path:
    shutil.copytree(source, to)
    if settings:
        change_json(to / "config.json", **settings)
    if tensors is not None:
        arrays = load_file(to / "model.safetensors")
        tensors(arrays)
        save_file(arrays, to / "model.safetensors")
    return to


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 6}, "n_experts_used is 6, expected 1 to n_experts, which is 5"),
        ("mixtral", {"num_experts_per_tok": 0}, "n_experts_used is 0"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts"),
        ("mixtral", {"num_local_experts": 6}, r"mlp\.gate\.weight"),
        ("mixtral", {"num_local_experts": 4}, r"experts\.4"),
        ("mixtral", {"num_local_experts": 1 << 40}, "n_experts is"),
        ("mixtral", {"intermediate_size": 16}, r"experts\.0\.down_proj"),
        ("granitemoe", {"num_local_experts": 6}, r"gate\.weight|input_linear|output_linear"),
        ("granitemoe", {"intermediate_size": 16}, "input_linear|output_linear"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3_moe", {"num_experts": 6}, "num_local_experts"),
        ("olmoe", {"clip_qkv": 4.0}, "clip_qkv"),
        ("mixtral", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "experts"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, settings: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(llama2cpp.FormatError, match=message):
        llama2cpp.load(changed_folder(folders[name], tmp_path / "m", **settings))


def test_missing_and_misshapen_tensors_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    expert = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    path = changed_folder(folders["mixtral"], tmp_path / "a", lambda arrays: arrays.pop(expert))
    with pytest.raises(llama2cpp.FormatError, match=r"mlp\.experts\.3\.down_proj\.weight' is missing"):
        llama2cpp.load(path)
    stacked = "model.layers.1.block_sparse_moe.input_linear.weight"
    path = changed_folder(
        folders["granitemoe"], tmp_path / "b", lambda arrays: arrays.update({stacked: arrays[stacked][:, :-1].copy()})
    )
    with pytest.raises(llama2cpp.FormatError, match=r"input_linear\.weight\" is F32 \[5, 63, 32\], expected"):
        llama2cpp.load(path)
    write_gguf(tmp_path / "m.gguf", "olmoe")
    data = (tmp_path / "m.gguf").read_bytes()
    for cut in range(0, len(data) - 1, len(data) // 15):
        (tmp_path / "cut.gguf").write_bytes(data[:cut])
        with pytest.raises((llama2cpp.FormatError, OSError)):
            llama2cpp.load(tmp_path / "cut.gguf")


@pytest.mark.parametrize("target", ["m", "m.gguf", "m.safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_an_export(name: str, target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    expected = logits_of(folders[name], TOKENS)
    refused = {"qwen3_moe-as-they-are": "softmax_topk", "olmoe-renormalised": "router_renormalise"}.get(name)
    if refused is not None and target == "m.gguf":  # whose metadata do not say whether weights are renormalised
        with pytest.raises(ValueError, match=f"n_experts.*{refused}"):
            convert(folders[name], tmp_path / target, "f32", tokenizer=False)
        return
    convert(folders[name], tmp_path / target, "f32", tokenizer=False)
    assert largest_error(logits_of(tmp_path / target, TOKENS), expected) < 1e-5
    if target == "m":  # tensor for tensor as it was
        before, after = (load_file(path / "model.safetensors") for path in (folders[name], tmp_path / target))
        assert {key: value.tobytes() for key, value in after.items()} == {
            key: value.tobytes() for key, value in before.items()
        }


@pytest.mark.parametrize("name", ["mixtral-full", "qwen3_moe", "granitemoe"])
def test_q8_0_is_that_of_panels(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for target in ("m.gguf", "m.safetensors"):
        done = convert(folders[name], tmp_path / target, "q8_0", tokenizer=False)
        assert done.formats["layers.1.feed_forward.experts.4.w2.weight"] == "q8_0"
        assert done.formats["layers.1.feed_forward.gate.weight"] == "f32"
    found, expected = (logits_of(tmp_path / target, TOKENS) for target in ("m.gguf", "m.safetensors"))
    assert largest_error(found, expected) < 1e-5
    assert largest_error(found, logits_of(folders[name], TOKENS)) > 1e-4


def test_llama_cpp_s_olmoe_has_all_heads_of_keys(tmp_path: Path) -> None:
    case = replace(CASES["olmoe"], settings=CASES["olmoe"].settings | {"num_key_value_heads": 2})
    with pytest.raises(ValueError, match=r"fewer heads of keys than of queries \(n_kv_heads\)"):
        convert(case.save(tmp_path / "m"), tmp_path / "m.gguf", "f32", tokenizer=False)


def test_what_is_not_done_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llm_int8 is not implemented for models with experts"):
        convert(folders["mixtral"], tmp_path / "m", "llm_int8", tokenizer=False)
    with pytest.raises(ValueError, match="n_experts 5"):
        convert(folders["mixtral"], tmp_path / "m.bin", tokenizer=False)
    model = llama2cpp.load(folders["mixtral"])
    _, cache = model.run_with_cache(TOKENS)
    with pytest.raises(ValueError, match="models without experts"):
        cache.get_neuron_results(0)


def test_sessions_are_their_models(folders: dict[str, Path], tmp_path: Path) -> None:
    """How a router weighs is in the fingerprint of session files."""
    model = llama2cpp.load(folders["olmoe"], kv_dtype="f32")
    session = model.session()
    session.prefill(TOKENS)
    session.save(tmp_path / "s.safetensors")
    again = model.load_session(tmp_path / "s.safetensors").logits
    assert again is not None
    assert session.logits is not None
    assert np.array_equal(again, session.logits)
    other = changed_folder(folders["olmoe"], tmp_path / "m", norm_topk_prob=True)
    with pytest.raises(ValueError, match="another model"):
        llama2cpp.load(other, kv_dtype="f32").load_session(tmp_path / "s.safetensors")
