"""gpt-oss against transformers: folders of floats and of MXFP4, GGUF files, hooks, weights by name, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from family_models import TOKENS, Case, answers, expected_logits, logits_of
from gguf import GGMLQuantizationType as Type
from gpt_oss_models import DIM, EXPERTS, LAYERS, USED, WHOLE_YARN, WIDTH, YARN, made, make, write_blocks, write_gguf
from hf_folders import change_json, read_json
from reference import largest_error
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import llama2cpp
from llama2cpp.export import Calibration, convert

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt_oss")
    made().save_pretrained(path)
    return path


def test_a_folder(folder: Path) -> None:
    found = logits_of(folder, TOKENS, threads=1)
    assert largest_error(found, expected_logits(made(), TOKENS)) < 1e-5
    # The same bits in any chunks of the prompt, on any number of threads, packed or not.
    for threads, pack in ((1, "never"), (2, "auto"), (3, "always")):
        with llama2cpp.load(folder, kv_dtype="f32", threads=threads, pack=pack) as model:
            for cut in (1, 7):
                session = model.session()
                parts = [session.prefill(TOKENS[:cut], all_logits=True), session.prefill(TOKENS[cut:], all_logits=True)]
                assert np.concatenate(parts).tobytes() == found.tobytes(), (threads, cut)
            steps = model.session()
            assert np.stack([steps.step(token) for token in TOKENS]).tobytes() == found.tobytes(), threads


def test_its_clamps_and_scaling_count(folder: Path) -> None:
    """What the other tests compare is not what a model without them computes."""
    _, cache = llama2cpp.load(folder, kv_dtype="f32").run_with_cache(TOKENS)
    for i in range(LAYERS):
        assert (cache["pre", i] > 7).any()
        assert (np.abs(cache["pre_linear", i]) > 7).any()
    config = llama2cpp.load(folder).config
    assert config.activation == "clamped_swiglu"
    assert list(config.full_layers) == [1, 3]
    assert config.rope_scaling is not None
    assert config.rope_scaling["truncate"] is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_of_halves(dtype: torch.dtype, tmp_path: Path) -> None:
    make().to(dtype).save_pretrained(tmp_path)
    model = GptOssForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert largest_error(logits_of(tmp_path, TOKENS), expected_logits(model, TOKENS)) < 1e-5


def test_blocks_as_openai_writes_them(tmp_path: Path) -> None:
    model = write_blocks(tmp_path)
    assert largest_error(logits_of(tmp_path, TOKENS), expected_logits(model, TOKENS)) < 1e-5
    loaded = llama2cpp.load(tmp_path)
    assert loaded.file_format == "Hugging Face folder, mxfp4"
    for i in range(LAYERS):
        experts = model.model.layers[i].mlp.experts
        for e in (0, EXPERTS - 1):
            name = f"model.layers.{i}.mlp.experts.{e}"
            gate_up, down = experts.gate_up_proj[e].detach().numpy(), experts.down_proj[e].detach().numpy()
            assert np.array_equal(loaded.weights[f"{name}.gate_proj.weight"], gate_up[:, 0::2].T)
            assert np.array_equal(loaded.weights[f"{name}.up_proj.weight"], gate_up[:, 1::2].T)
            assert np.array_equal(loaded.weights[f"{name}.down_proj.weight"], down.T)
    assert loaded.weights.info("model.layers.0.mlp.experts.0.up_proj.weight")["format"] == "mxfp4"
    assert len(answers(tmp_path, TOKENS)) == 1  # rounded input


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0, Type.MXFP4])
def test_a_gguf(kind: Type, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = write_gguf(path, kind)
    assert largest_error(logits_of(path, TOKENS), expected_logits(model, TOKENS)) < 1e-5
    loaded = llama2cpp.load(path)
    sinks = model.model.layers[2].self_attn.sinks.detach().numpy()
    assert np.array_equal(loaded.weights["blk.2.attn_sinks.weight"], sinks)
    assert np.array_equal(loaded.weights["blocks.2.attn.sinks"], sinks)
    biases = model.model.layers[2].mlp.experts.gate_up_proj_bias[3].detach().numpy()
    assert np.array_equal(loaded.weights["blk.2.ffn_up.3.bias"], biases[1::2])


def test_weights_by_name(folder: Path) -> None:
    model = llama2cpp.load(folder)
    tensors = {name: tensor.numpy() for name, tensor in load_file(folder / FILE).items()}
    prefix = "model.layers.1."
    assert np.array_equal(model.weights[f"{prefix}self_attn.sinks"], tensors[f"{prefix}self_attn.sinks"])
    assert np.array_equal(model.weights["blocks.1.attn.sinks"], tensors[f"{prefix}self_attn.sinks"])
    assert np.array_equal(model.weights["blocks.1.mlp.gate.b"], tensors[f"{prefix}mlp.router.bias"])
    assert np.array_equal(model.weights[f"{prefix}mlp.router.bias"], tensors[f"{prefix}mlp.router.bias"])
    inputs, outputs = (tensors[f"{prefix}mlp.experts.{name}"][4] for name in ("gate_up_proj", "down_proj"))
    biases, last = (tensors[f"{prefix}mlp.experts.{name}_bias"][4] for name in ("gate_up_proj", "down_proj"))
    for own, lens, values in (
        ("gate_proj.weight", "W_gate", inputs[:, 0::2]),
        ("up_proj.weight", "W_in", inputs[:, 1::2]),
        ("down_proj.weight", "W_out", outputs),
        ("gate_proj.bias", "b_gate", biases[0::2]),
        ("up_proj.bias", "b_in", biases[1::2]),
        ("down_proj.bias", "b_out", last),
    ):
        assert np.array_equal(model.weights[f"{prefix}mlp.experts.4.{own}"], values.T), own
        assert np.array_equal(model.weights[f"blocks.1.mlp.experts.4.{lens}"], values), lens
    names = list(model.weights.transformer_lens)
    assert sum(".experts." in name for name in names) == LAYERS * EXPERTS * 6
    assert sum(name.endswith(".sinks") for name in names) == LAYERS
    # A model with other ones computes with them.
    before = model.session().prefill(TOKENS)
    for name in ("blocks.0.attn.sinks", "blocks.0.mlp.gate.b", f"{prefix}self_attn.sinks"):
        other = (model.weights[name] + np.arange(model.weights[name].size)).astype(np.float32)
        changed = model.with_weights({name: other})
        assert not np.array_equal(changed.session().prefill(TOKENS), before), name
    every = {f"blocks.0.mlp.experts.{e}.b_out": np.ones(DIM, np.float32) for e in range(EXPERTS)}
    assert not np.array_equal(model.with_weights(every).session().prefill(TOKENS), before)


def test_hooks(folder: Path) -> None:
    model = llama2cpp.load(folder, kv_dtype="f32")
    _, cache = model.run_with_cache(TOKENS)
    for i in range(LAYERS):
        block = f"blocks.{i}"
        scores, pattern = cache["attn_scores", i][0], cache["pattern", i][0]
        sinks = model.weights[f"{block}.attn.sinks"][:, None, None]
        most = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
        powers = np.exp(scores - most)
        expected = powers / (powers.sum(axis=-1, keepdims=True) + np.exp(sinks - most))
        assert largest_error(pattern, expected) < 1e-6
        assert (pattern.sum(axis=-1) < 1).all()
        x = cache["normalized", i, "ln2"][0] * model.weights[f"{block}.ln2.w"]
        router = cache["router_scores", i][0]
        scored = x @ model.weights[f"{block}.mlp.gate.W"] + model.weights[f"{block}.mlp.gate.b"]
        assert largest_error(scored, router) < 1e-5
        ids = cache["expert_indices", i][0].astype(int)
        assert np.array_equal(ids, np.sort(np.argsort(-router, axis=-1, kind="stable")[:, :USED], axis=-1))
        chosen = np.exp(np.take_along_axis(router, ids, axis=-1))
        weights = chosen / chosen.sum(axis=-1, keepdims=True)
        assert largest_error(np.take_along_axis(cache["expert_weights", i][0], ids, axis=-1), weights) < 1e-5
        pre, linear, post, outs = (cache[key, i][0] for key in ("pre", "pre_linear", "post", "expert_out"))
        gate = np.minimum(pre, 7)
        assert largest_error(post, (np.clip(linear, -7, 7) + 1) * gate / (1 + np.exp(-1.702 * gate))) < 1e-5
        for t in (0, 7):
            for j in range(USED):
                expert = {name: model.weights[f"{block}.mlp.experts.{ids[t, j]}.{name}"] for name in NAMES}
                assert largest_error(x[t] @ expert["W_gate"] + expert["b_gate"], pre[t, j]) < 1e-5
                assert largest_error(x[t] @ expert["W_in"] + expert["b_in"], linear[t, j]) < 1e-5
                assert largest_error(post[t, j] @ expert["W_out"] + expert["b_out"], outs[t, j]) < 1e-5
        assert largest_error((weights[..., None] * outs).sum(axis=1), cache["mlp_out", i][0]) < 1e-5


NAMES = ("W_gate", "W_in", "W_out", "b_gate", "b_in", "b_out")


def changed_folder(source: Path, to: Path, tensors: Any = None, **settings: Any) -> Path:
    shutil.copytree(source, to)
    if settings:
        change_json(to / "config.json", **settings)
    if tensors is not None:
        found = load_file(to / FILE)
        tensors(found)
        save_file(found, to / FILE)
    return to


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit .*: 5, and only 7 is implemented"),
        ({"swiglu_alpha": 1.5}, "swiglu_alpha .*: 1.5, and only 1.702 is implemented"),
        ({"sliding_window": None}, "sliding_window .*null, which is not implemented"),
        ({"rope_parameters": ..., "rope_scaling": ...}, "rope_parameters"),
        ({"rope_parameters": None}, r"rope_parameters .*: empty, which is not implemented"),
        ({"rope_parameters": {}}, r"rope_parameters .*: empty, which is not implemented"),
        ({"hidden_act": "gelu"}, '"gelu", expected "silu"'),
        ({"num_local_experts": 6}, r"gate_up_proj\" is F32 \[5, 32, 128\], expected F32 \[6, 32, 128\]"),
        ({"intermediate_size": 32}, r"gate_up_proj\" is F32 \[5, 32, 128\], expected F32 \[5, 32, 64\]"),
        ({"quantization_config": {"quant_method": "awq"}}, '"awq", expected "gptq" or "bitsandbytes"'),
        ({"attention_bias": False}, "there, but config.json has no attention_bias"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(llama2cpp.FormatError, match=message):
        llama2cpp.load(changed_folder(folder, tmp_path / "m", **settings))


INPUTS = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(INPUTS), r"experts\.0\.gate_proj\.weight' is missing"),
        (lambda t: t.pop(f"{INPUTS}_bias"), r"experts\.0\.gate_proj\.bias' is missing"),
        (lambda t: t.pop("model.layers.1.self_attn.sinks"), r"self_attn\.sinks' is missing"),
        (lambda t: t.pop("model.layers.1.mlp.router.bias"), r"mlp\.gate\.bias' is missing"),
        (lambda t: t.update({f"{INPUTS}_bias": t[f"{INPUTS}_bias"][:, 1:].clone()}), r"_bias\" is F32 \[5, 127\]"),
        (lambda t: t.update({INPUTS: t[INPUTS].to(torch.int16)}), r"is I16 .* expected F32 .*, F16, BF16 or F64"),
        (
            lambda t: t.update({"model.layers.1.self_attn.sinks": torch.zeros(3)}),
            r"sinks\" is F32 \[3\], expected F32 \[4\]",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.2.up_proj.bias": torch.zeros(WIDTH)}),
            r"experts\.2\.up_proj\.bias\", which is there too",
        ),
        (lambda t: t.update({f"{INPUTS}_blocks": torch.zeros(1, dtype=torch.uint8)}), '_scales" is missing, beside'),
    ],
)
def test_missing_and_misshapen_tensors_are_refused(change: Any, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(llama2cpp.FormatError, match=message):
        llama2cpp.load(changed_folder(folder, tmp_path / "m", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{INPUTS}_scales"), r"_scales\" is missing, beside"),
        (lambda t: t.pop(f"{INPUTS}_blocks"), r"_blocks\" is missing, beside"),
        (
            lambda t: t.update({f"{INPUTS}_scales": t[f"{INPUTS}_scales"][:, 1:].clone()}),
            r"_scales\" is U8 \[5, 127, 1\]",
        ),
        (lambda t: t.update({f"{INPUTS}_blocks": t[f"{INPUTS}_blocks"][..., 1:].clone()}), r"_blocks\" is U8"),
        (lambda t: t.update({INPUTS: torch.zeros(EXPERTS, DIM, 2 * WIDTH)}), "which is there too"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    write_blocks(tmp_path / "a")
    with pytest.raises(llama2cpp.FormatError, match=message):
        llama2cpp.load(changed_folder(tmp_path / "a", tmp_path / "m", change))


def test_others_have_no_sinks_nor_such_biases(tmp_path: Path) -> None:
    """Names of gpt-oss's in files of another family are refused, not passed over."""
    case = Case("qwen3_moe", {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 8})
    case.save(tmp_path / "a")
    names = {"self_attn.sinks": 4, "mlp.gate.bias": 5, "mlp.experts.0.up_proj.bias": 32, "mlp.up_proj.bias": 64}
    for name, shape in names.items():
        other = tmp_path / name
        changed_folder(
            tmp_path / "a", other, lambda t, name=name, n=shape: t.update({f"model.layers.0.{name}": torch.ones(n)})
        )
        with pytest.raises(llama2cpp.FormatError, match=name.replace(".", r"\.")):
            llama2cpp.load(other)


# --- exports


def test_a_folder_that_is_written(folder: Path, tmp_path: Path) -> None:
    """Tensor by tensor as it was, in one file and in several, and so it opens in transformers."""
    for name, size in (("one", "5GB"), ("several", "40KB")):
        done = convert(folder, tmp_path / name, "f32", tokenizer=False, shard_size=size)
        before = load_file(folder / FILE)
        after = {name: tensor for path in done.path.glob("*.safetensors") for name, tensor in load_file(path).items()}
        assert after.keys() == before.keys()
        for key, tensor in after.items():
            assert torch.equal(tensor, before[key]), key
        theirs = GptOssForCausalLM.from_pretrained(done.path, dtype=torch.float32, attn_implementation="eager")
        assert np.array_equal(expected_logits(theirs, TOKENS), expected_logits(made(), TOKENS))
    assert len(list(done.path.glob("*.safetensors"))) > 3


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks")
    write_blocks(path)
    return path


def unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts as transformers unpacks them."""
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        scales = found.pop(f"{stem}_scales")
        found[stem] = convert_moe_packed_tensors(found.pop(name), scales, dtype=torch.float32)
    return found


@pytest.mark.parametrize("target", ["m", "m.gguf", "m.safetensors"])
def test_blocks_stay_blocks(target: str, blocks: Path, tmp_path: Path) -> None:
    """And all else stays as it was: from a folder to any other file, and from that to a folder again."""
    expected = logits_of(blocks, TOKENS)
    done = convert(blocks, tmp_path / target, tokenizer=False)
    assert set(done.formats.values()) == {"mxfp4", "f32"}
    assert np.array_equal(logits_of(done.path, TOKENS), expected)
    again = convert(done.path, tmp_path / "again", tokenizer=False)
    assert np.array_equal(logits_of(again.path, TOKENS), expected)
    before, after = (load_file(path / FILE) for path in (blocks, again.path))
    assert after.keys() == before.keys()
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}
    for key, tensor in unpacked(after).items():
        assert torch.equal(tensor, unpacked(before)[key]), key
    assert read_json(again.path / "config.json")["quantization_config"]["quant_method"] == "mxfp4"


def test_floats_of_blocks(blocks: Path, tmp_path: Path) -> None:
    """What transformers makes of them."""
    done = convert(blocks, tmp_path / "m", "f32", tokenizer=False)
    before, after = unpacked(load_file(blocks / FILE)), load_file(done.path / FILE)
    assert after.keys() == before.keys()
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]), key
    assert np.array_equal(logits_of(done.path, TOKENS), logits_of(blocks, TOKENS))
    theirs = GptOssForCausalLM.from_pretrained(done.path, dtype=torch.float32, attn_implementation="eager")
    assert largest_error(logits_of(blocks, TOKENS), expected_logits(theirs, TOKENS)) < 1e-5


def test_floats_become_blocks(folder: Path, tmp_path: Path) -> None:
    """With the bytes of gguf's MXFP4."""
    done = convert(folder, tmp_path / "m", "mxfp4", tokenizer=False)
    config = read_json(done.path / "config.json")
    assert config["torch_dtype"] == "float32"
    found = unpacked(load_file(done.path / FILE))
    for key, tensor in load_file(folder / FILE).items():
        if key.endswith(("gate_up_proj", "down_proj")):
            rows = np.ascontiguousarray(tensor.transpose(1, 2).numpy())
            packed = gguf.quants.quantize(rows, Type.MXFP4)
            assert np.array_equal(found[key].transpose(1, 2).numpy(), gguf.quants.dequantize(packed, Type.MXFP4)), key
        else:
            assert torch.equal(found[key], tensor), key
    expected = logits_of(done.path, TOKENS)
    for target in ("m.gguf", "m.safetensors"):
        convert(folder, tmp_path / target, "mxfp4", tokenizer=False)
        assert np.array_equal(logits_of(tmp_path / target, TOKENS), expected)


def test_types_of_all_else(folder: Path, tmp_path: Path) -> None:
    """Beside blocks: the source's floats, or 8 bits in GGUF and bfloat16 in a folder."""
    eight = convert(folder, tmp_path / "eight.gguf", "q8_0", tokenizer=False)
    panels = convert(folder, tmp_path / "eight.safetensors", "q8_0", tokenizer=False)
    assert np.array_equal(logits_of(eight.path, TOKENS), logits_of(panels.path, TOKENS))
    mixed = convert(eight.path, tmp_path / "mixed.gguf", "mxfp4", tokenizer=False)
    assert {mixed.formats[f"layers.0.attention.{name}.weight"] for name in ("wq", "wo")} == {"q8_0"}
    assert mixed.formats["layers.0.feed_forward.experts.2.w2.weight"] == "mxfp4"
    assert (
        mixed.formats["layers.0.feed_forward.gate.weight"] == mixed.formats["layers.0.attention.sinks.weight"] == "f32"
    )
    assert gguf.GGUFReader(mixed.path).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_MXFP4_MOE
    again = convert(mixed.path, tmp_path / "again", tokenizer=False)
    assert again.format == "mxfp4"
    assert set(again.formats.values()) == {"mxfp4", "bf16"}


def test_our_gguf_is_what_gguf_s_names_make_of_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "theirs.gguf")
    make().save_pretrained(tmp_path / "source")
    done = convert(tmp_path / "source", tmp_path / "ours.gguf", "f32", tokenizer=False)
    theirs, ours = (gguf.GGUFReader(tmp_path / f"{whose}.gguf") for whose in ("theirs", "ours"))
    arrays, written = ({tensor.name: np.asarray(tensor.data) for tensor in reader.tensors} for reader in (theirs, ours))
    assert written.keys() == arrays.keys()
    for key, array in arrays.items():
        assert written[key].tobytes() == array.tobytes(), key
    expected, found = (
        {key: field.contents() for key, field in reader.fields.items() if key.startswith("gpt-oss.")}
        for reader in (theirs, ours)
    )
    others = {f"gpt-oss.rope.{key}" for key in ("dimension_count", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow")}
    assert found.keys() - expected.keys() == others
    for key, value in expected.items():
        assert found[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
    # llama.cpp's YaRN has whole ends, which change nothing here where they are whole.
    assert any("ends of YaRN" in note for note in done.notes)
    whole = changed_folder(tmp_path / "source", tmp_path / "whole", rope_parameters=WHOLE_YARN)
    assert not any("YaRN" in note for note in convert(whole, tmp_path / "whole.gguf", "f32", tokenizer=False).notes)


LAYER_TYPES = {"layer_types": ["full_attention", *["sliding_attention"] * (LAYERS - 1)]}


@pytest.mark.parametrize(
    ("settings", "target", "format", "message"),
    [
        ({"rope_parameters": YARN | {"truncate": True}}, "m.gguf", "f32", "no place for truncate true of rope_scaling"),
        (LAYER_TYPES, "m.gguf", "f32", r"llama.cpp has no model .*without one \(full_layers\)"),
        ({"tie_word_embeddings": True}, "m.gguf", "f32", r"llama.cpp has no model .*\(tied\)"),
        ({"rope_parameters": YARN | {"rope_type": "dynamic"}}, "m.gguf", "f32", "of type dynamic"),
        ({}, "m.bin", "f32", "llama2.c file has no place .*experts"),
        ({}, "m", "llm_int8", "not implemented for models with experts"),
        ({"hidden_size": 48}, "m", "mxfp4", r"48 columns \(dim\), which blocks of 32 do not fill"),
    ],
)
def test_what_targets_have_no_place_for(
    settings: dict[str, Any], target: str, format: str, message: str, tmp_path: Path
) -> None:
    make(**settings).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "source", tmp_path / target, format, tokenizer=False)
    assert not (tmp_path / target).exists()


def test_settings_of_folders_that_are_kept(tmp_path: Path) -> None:
    """Those that GGUF has no place for."""
    others: list[dict[str, Any]] = [
        LAYER_TYPES,
        {"tie_word_embeddings": True},
        {"attention_bias": False},
        {"rope_parameters": YARN | {"truncate": True}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    ]
    for i, settings in enumerate(others):
        model = make(**settings)
        model.save_pretrained(tmp_path / f"source{i}")
        done = convert(tmp_path / f"source{i}", tmp_path / f"m{i}", "f32", tokenizer=False)
        theirs = GptOssForCausalLM.from_pretrained(done.path, dtype=torch.float32, attn_implementation="eager")
        assert np.array_equal(expected_logits(theirs, TOKENS), expected_logits(model, TOKENS)), settings


def test_blocks_are_for_experts(tmp_path: Path) -> None:
    for target, message in (("m", "of gpt-oss's models only"), ("m.gguf", "the model has none")):
        with pytest.raises(ValueError, match=message):
            convert("storyteller", tmp_path / target, "mxfp4", tokenizer=False)
    sizes = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 8}
    source = Case("qwen3_moe", sizes | {"norm_topk_prob": True}).save(tmp_path / "qwen3_moe")
    with pytest.raises(ValueError, match="of gpt-oss's models only"):
        convert(source, tmp_path / "m", "mxfp4", tokenizer=False)
    done = convert(source, tmp_path / "m.gguf", "mxfp4", tokenizer=False)
    assert set(done.formats.values()) == {"mxfp4", "f32"}
    back = convert(done.path, tmp_path / "back", tokenizer=False)
    assert back.format == "f16"
    with pytest.raises(ValueError, match="calibration text is for"):
        convert(source, tmp_path / "n.gguf", "mxfp4", calibration=Calibration(TOKENS))


def test_a_packed_file(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.safetensors", "f32", tokenizer=False)
    assert np.array_equal(logits_of(tmp_path / "m.safetensors", TOKENS), logits_of(folder, TOKENS))


def test_a_config_as_openai_writes_it(folder: Path, tmp_path: Path) -> None:
    """Its names of what transformers calls otherwise by now, and settings that change no logit."""
    scaling = {name: value for name, value in YARN.items() if name != "rope_theta"}
    path = changed_folder(
        folder,
        tmp_path / "m",
        rope_parameters=...,
        rope_scaling=scaling,
        rope_theta=150000,
        experts_per_token=USED,
        initial_context_length=64,
        swiglu_limit=7.0,
        output_router_logits=False,
        router_aux_loss_coef=0.9,
    )
    assert np.array_equal(logits_of(path, TOKENS), logits_of(folder, TOKENS))


@pytest.mark.parametrize(
    "name", ["num_local_experts", "num_experts_per_tok", "intermediate_size", "swiglu_limit", "sliding_window"]
)
def test_hostile_settings_are_errors_of_one_line(name: str, folder: Path, tmp_path: Path) -> None:
    path = changed_folder(folder, tmp_path / "m")
    values: tuple[Any, ...] = (0, -1, 1 << 40, 1 << 70, 1.5, "7", {}, True, float("nan"), float("inf"))
    for value in values:
        change_json(path / "config.json", **{name: value})
        with pytest.raises(llama2cpp.FormatError) as error:
            llama2cpp.load(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600


def test_equal_scores_go_to_the_lower_experts(folder: Path, tmp_path: Path) -> None:
    def same(tensors: Any) -> None:
        for name in tensors:
            if ".mlp.router." in name:
                tensors[name].zero_()

    _, cache = llama2cpp.load(changed_folder(folder, tmp_path / "m", same)).run_with_cache(TOKENS)
    assert (cache["router_scores", 1] == 0).all()
    assert (cache["expert_indices", 1][0] == np.arange(USED)).all()
    weights = cache["expert_weights", 1][0]
    assert (weights[:, :USED] == np.float32(1 / USED)).all()
    assert (weights[:, USED:] == 0).all()
