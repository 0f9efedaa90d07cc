"""LoRA adapters against peft: folders and GGUF files, of every kind of layer; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_models import TOKENS, write_gguf
from lora_files import ALL, CASES, expected_logits, merged_logits, save_adapter, write_gguf_adapter
from reference import largest_error
from safetensors.numpy import load_file, save_file

import llama2cpp

pytest.importorskip("peft", reason='needs peft: pip install "llama2cpp[lora-test]"')
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers will leave out

# (targets, other settings)
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "attention": (["q_proj", "v_proj"], {"r": 1}),
    "rslora": (ALL, {"use_rslora": True, "r": 5}),
    "patterns": (
        ALL,
        {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
            "alpha_pattern": {"down_proj": 3, r"model\.layers\.[02]\.self_attn\.o_proj": 11},
        },
    ),
    "some layers": (["v_proj", "down_proj"], {"layers_to_transform": [0, 2]}),
    "an expression": (r".*\.(0|2)\.self_attn\.(q|o)_proj", {}),
    "all-linear": ("all-linear", {}),
}


def logits_of(source: Any, adapter: Path, **options: Any) -> Any:
    with llama2cpp.load(source, kv_dtype="f32", activation_dtype="f32", **options) as model:
        return model.session(adapter=model.load_adapter(adapter)).prefill(TOKENS, all_logits=True)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_of_peft_gives_what_peft_gives(name: str, tmp_path: Path) -> None:
    case, targets = CASES[name]
    case.save(tmp_path / "base")
    with_peft = save_adapter(case, tmp_path / "adapter", targets)
    found = logits_of(tmp_path / "base", tmp_path / "adapter", threads=1)
    assert largest_error(found, expected_logits(with_peft, TOKENS)) < 1e-5
    # Folded into the weights, which is another computation of the same.
    assert largest_error(found, merged_logits(with_peft, TOKENS)) < 1e-5
    # It changes much more than that.
    plain = llama2cpp.load(tmp_path / "base", kv_dtype="f32", activation_dtype="f32").session()
    assert largest_error(plain.prefill(TOKENS, all_logits=True), expected_logits(with_peft, TOKENS)) > 1e-2


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_peft(settings: str, tmp_path: Path) -> None:
    case, _ = CASES["llama"]
    targets, others = SETTINGS[settings]
    case.save(tmp_path / "base")
    with_peft = save_adapter(case, tmp_path / "adapter", targets, **others)
    found = logits_of(tmp_path / "base", tmp_path / "adapter")
    assert largest_error(found, expected_logits(with_peft, TOKENS)) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_factors_of_other_types(dtype: str, tmp_path: Path) -> None:
    import torch

    case, targets = CASES["llama"]
    case.save(tmp_path / "base")
    with_peft = save_adapter(case, tmp_path / "adapter", targets)
    kind = getattr(torch, dtype)
    with torch.no_grad():
        for name, parameter in with_peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(parameter.to(kind).float())
    expected = expected_logits(with_peft, TOKENS)
    for name, parameter in with_peft.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(kind)
    with_peft.save_pretrained(tmp_path / "adapter")
    assert largest_error(logits_of(tmp_path / "base", tmp_path / "adapter"), expected) < 1e-5


IN_GGUF = [name for name, (case, _) in CASES.items() if case.architecture]


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_adapters_and_gguf_models_beside_folders(name: str, tmp_path: Path) -> None:
    """Each kind of adapter for each kind of model: rows of queries and keys come in two orders."""
    case, targets = CASES[name]
    case.save(tmp_path / "base")
    write_gguf(tmp_path / "base.gguf", case)
    with_peft = save_adapter(case, tmp_path / "adapter", targets)
    write_gguf_adapter(tmp_path / "adapter.gguf", case, with_peft, alpha=6)
    expected = expected_logits(with_peft, TOKENS)
    for base in ("base", "base.gguf"):
        for adapter in ("adapter", "adapter.gguf"):
            assert largest_error(logits_of(tmp_path / base, tmp_path / adapter), expected) < 1e-5, (base, adapter)


def test_an_adapter_beside_llama2c_files_and_quantized_weights(tmp_path: Path) -> None:
    case, targets = CASES["llama"]
    case.save(tmp_path / "base")
    with_peft = save_adapter(case, tmp_path / "adapter", targets)
    expected = expected_logits(with_peft, TOKENS)
    llama2cpp.export.convert(tmp_path / "base", tmp_path / "m.bin")
    assert largest_error(logits_of(tmp_path / "m.bin", tmp_path / "adapter"), expected) < 1e-5
    # Beside integers the adapter's products are still float32: with one thread or two, packed or not, the same bits.
    llama2cpp.export.convert(tmp_path / "base", tmp_path / "q.gguf", "q8_0")
    found = set()
    for threads, pack in ((1, "never"), (2, "always")):
        with llama2cpp.load(tmp_path / "q.gguf", threads=threads, pack=pack) as model:
            adapter = model.load_adapter(tmp_path / "adapter")
            found.add(model.session(adapter=adapter).prefill(TOKENS, all_logits=True).tobytes())
            steps = model.session(adapter=adapter)
            found.add(np.stack([steps.step(token) for token in TOKENS]).tobytes())
    assert len(found) == 1


def test_a_whole_loop_of_arrays_is_the_folder(tmp_path: Path) -> None:
    case, targets = CASES["llama"]
    case.save(tmp_path / "base")
    save_adapter(case, tmp_path / "adapter", targets)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors})
    factors: Any = {
        module: tuple(tensors[f"base_model.model.{module}.lora_{which}.weight"] for which in "AB") for module in modules
    }
    model = llama2cpp.load(tmp_path / "base")
    made, read = llama2cpp.Adapter.from_arrays(model, factors, alpha=6), model.load_adapter(tmp_path / "adapter")
    assert set(made.modules) == set(read.modules)
    assert made.rank == read.rank == 4
    assert made.nbytes == read.nbytes
    first, second = (model.session(adapter=adapter).prefill(TOKENS) for adapter in (made, read))
    assert first.tobytes() == second.tobytes()


Change = Any


def _config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        given = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in given.items() if value is not Ellipsis}))

    return change


def _tensors(edit: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)

    return change


def _cut(count: int) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:count])

    return change


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def _put(name: str, shape: tuple[int, ...], value: float = 1.0) -> Any:
    return lambda tensors: tensors.__setitem__(name, np.full(shape, value, dtype=np.float32))


BAD: dict[str, tuple[Change, str]] = {
    "another method": (_config(peft_type="IA3"), "peft_type is 'IA3', expected 'LORA'"),
    "DoRA": (_config(use_dora=True), "use_dora is True, which is not implemented"),
    "biases": (_config(bias="all"), "bias is 'all', expected 'none'"),
    "modules saved whole": (_config(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]"),
    "turned weights": (_config(fan_in_fan_out=True), "fan_in_fan_out is true"),
    "trained tokens": (_config(trainable_token_indices=[1]), "trainable_token_indices"),
    "parameters of experts": (_config(target_parameters=["experts.gate_up_proj"]), "target_parameters"),
    "activated LoRA": (_config(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"),
    "PiSSA": (_config(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
    "no rank": (_config(r=...), "r is None, expected an integer of 1 or more"),
    "rank 0": (_config(r=0), "r is 0, expected an integer of 1 or more"),
    "a rank that is text": (_config(r="8"), "r is '8', expected an integer"),
    "another rank": (_config(r=8), "has rank 4, and adapter_config.json says 8"),
    "alpha is not finite": (_config(lora_alpha=float("inf")), "lora_alpha is inf, expected a number"),
    "alpha is none": (_config(lora_alpha=None), "lora_alpha is None, expected a number"),
    "patterns that are a list": (_config(rank_pattern=[1]), r"rank_pattern is \[1\], expected an object"),
    "a repeated group": (_config(rank_pattern={"(q|v)+_proj": 1}), r"repeats a group, or more than 3 things"),
    "a repeated group after a backslash": (_config(rank_pattern={r"(q\\\\)+_proj": 1}), "repeats a group"),
    "many repetitions": (_config(rank_pattern={"a*b*c*d*": 1}), "more than 3 things"),
    "a pattern that is none": (_config(alpha_pattern={"(": 1}), "the pattern '\\(' is no regular expression"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json: expected JSON"),
    "a JSON list": (lambda f: (f / "adapter_config.json").write_text("[]"), "expected a JSON object, found list"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "expected adapter_config.json and adapter_model"),
    "a cut header": (_cut(40), "adapter_model.safetensors"),
    "cut tensors": (_cut(-4), "adapter_model.safetensors"),
    "an empty file": (_cut(0), "adapter_model.safetensors"),
    "NaN": (_tensors(lambda t: t[f"{Q0}B.weight"].__setitem__((0, 0), np.nan)), "factor B of .*q_proj.* not finite"),
    "infinity": (_tensors(lambda t: t[f"{Q0}A.weight"].__setitem__((0, 0), np.inf)), "factor A of .*q_proj.* not fin"),
    "half of a pair": (_tensors(lambda t: t.pop(f"{Q0}B.weight")), "0.self_attn.q_proj.lora_B.weight' is missing"),
    "a vector": (_tensors(_put(f"{Q0}A.weight", (32,))), r"is F32 \[32\], expected a matrix"),
    "an empty matrix": (_tensors(_put(f"{Q0}A.weight", (0, 32))), r"is F32 \[0, 32\], expected a matrix"),
    "narrower inputs": (_tensors(_put(f"{Q0}A.weight", (4, 31))), r"\[4, 31\] and \[32, 4\], expected \[4, 32\]"),
    "fewer outputs": (_tensors(_put(f"{Q0}B.weight", (30, 4))), r"shapes \[4, 32\] and \[30, 4\], expected"),
    "ranks that differ": (_tensors(_put(f"{Q0}B.weight", (32, 3))), r"expected \[rank, columns\] and \[rows, rank\]"),
    "a magnitude": (_tensors(_put(f"{Q0[:-5]}lora_magnitude_vector.weight", (1, 32))), "belongs to DoRA"),
    "an embedding": (
        _tensors(_put("base_model.model.model.embed_tokens.lora_embedding_A", (4, 5))),
        "beside embeddings",
    ),
    "a whole module": (_tensors(_put("base_model.model.lm_head.weight", (50, 32))), "is no factor of a matrix"),
    "no factors": (_tensors(lambda t: t.clear()), "no factors"),
    "a layer that is not there": (
        _tensors(lambda t: [t.__setitem__(n.replace(".0.", ".7."), t[n]) for n in [*t]]),
        "is of layer 7, and the model has 3",
    ),
    "fewer layers": (
        _tensors(lambda t: [t.pop(n) for n in [*t] if ".2." in n]),
        "in 2 layers, and none in layer 2 of the model's 3: the adapter is of another model",
    ),
    "an unknown module": (
        _tensors(lambda t: [t.__setitem__(n.replace("q_proj", "qq_proj"), t.pop(n)) for n in [*t]]),
        "qq_proj\" is no matrix of this model, which has 3 layers",
    ),
    "the output": (
        _tensors(lambda t: (_put("base_model.model.lm_head.lora_A.weight", (4, 32))(t),
                            _put("base_model.model.lm_head.lora_B.weight", (50, 4))(t))),
        "'lm_head' belongs to no layer",
    ),
    "the embeddings as a matrix": (
        _tensors(lambda t: (_put("base_model.model.model.embed_tokens.lora_A.weight", (4, 32))(t),
                            _put("base_model.model.model.embed_tokens.lora_B.weight", (50, 4))(t))),
        "'model.embed_tokens' belongs to no layer",
    ),
    "a norm": (
        _tensors(lambda t: (_put("base_model.model.model.layers.0.input_layernorm.lora_A.weight", (4, 32))(t),
                            _put("base_model.model.model.layers.0.input_layernorm.lora_B.weight", (1, 4))(t))),
        "is no matrix",
    ),
    "experts": (
        _tensors(lambda t: (_put("base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight", (4, 32))(t),
                            _put("base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_B.weight", (64, 4))(t))),
        "is a part of experts",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    case, _ = CASES["llama"]
    case.save(folder / "base")
    with_peft = save_adapter(case, folder / "adapter", ["q_proj", "v_proj"])
    write_gguf_adapter(folder / "adapter.gguf", case, with_peft, alpha=6)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_by_name(name: str, good: Path, tmp_path: Path) -> None:
    change, said = BAD[name]
    folder = tmp_path / "adapter"
    shutil.copytree(good / "adapter", folder)
    change(folder)
    with llama2cpp.load(good / "base") as model, pytest.raises(llama2cpp.FormatError, match=said) as caught:
        model.load_adapter(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


BAD_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "a model": ({"type": "model"}, 'general.type\' is "model", expected "adapter"'),
    "another adapter": ({"kind": "control_vector"}, 'adapter.type\' is "control_vector", expected "lora"'),
    "no alpha": ({"alpha": None}, "adapter.lora.alpha' is missing"),
    "alpha is NaN": ({"alpha": float("nan")}, "adapter.lora.alpha.*not finite"),
    "another family": ({"architecture": "gemma2"}, 'general.architecture\' is "gemma2"'),
    "no family": ({"architecture": "nothing"}, 'general.architecture\' is "nothing"'),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_bad_gguf_adapters_are_refused_by_name(name: str, good: Path, tmp_path: Path) -> None:
    changed, said = BAD_GGUF[name]
    case, _ = CASES["llama"]
    with_peft = save_adapter(case, tmp_path / "adapter", ["q_proj", "v_proj"])
    write_gguf_adapter(tmp_path / "a.gguf", case, with_peft, **{"alpha": 6, **changed})
    with llama2cpp.load(good / "base") as model, pytest.raises(llama2cpp.FormatError, match=said) as caught:
        model.load_adapter(tmp_path / "a.gguf")
    assert str(tmp_path / "a.gguf") in str(caught.value)


def test_gguf_scales_as_llama_cpp_has_them(good: Path, tmp_path: Path) -> None:
    """alpha / rank, and 1 where alpha is 0."""
    case, _ = CASES["llama"]
    with_peft = save_adapter(case, tmp_path / "adapter", ["q_proj", "v_proj"])
    write_gguf_adapter(tmp_path / "zero.gguf", case, with_peft, 0)
    write_gguf_adapter(tmp_path / "four.gguf", case, with_peft, 4)  # the rank
    assert logits_of(good / "base", tmp_path / "zero.gguf").tobytes() == (
        logits_of(good / "base", tmp_path / "four.gguf").tobytes()
    )


def test_other_files(good: Path, tmp_path: Path) -> None:
    with llama2cpp.load(good / "base") as model:
        assert model.load_adapter(good / "adapter" / "adapter_model.safetensors").rank == 4
        assert model.load_adapter(good / "adapter" / "adapter_config.json").rank == 4  # its folder, as tab completes it
        shutil.copy(good / "adapter" / "adapter_model.safetensors", tmp_path / "alone.safetensors")
        with pytest.raises(llama2cpp.FormatError, match=r"without the adapter_config.json"):
            model.load_adapter(tmp_path / "alone.safetensors")
        with pytest.raises(FileNotFoundError):
            model.load_adapter(tmp_path / "nowhere")
        (tmp_path / "text").write_text("hello, this is not an adapter at all")
        with pytest.raises(llama2cpp.FormatError, match="text"):
            model.load_adapter(tmp_path / "text")


def test_every_cut_of_a_gguf_adapter_is_an_error(good: Path, tmp_path: Path) -> None:
    content = (good / "adapter.gguf").read_bytes()
    with llama2cpp.load(good / "base") as model:
        for length in [*range(1, 200, 7), *range(200, len(content), 331)]:
            (tmp_path / "cut.gguf").write_bytes(content[:length])
            with pytest.raises(llama2cpp.FormatError):
                model.load_adapter(tmp_path / "cut.gguf")


def test_an_adapter_of_another_base(good: Path, tmp_path: Path) -> None:
    case, targets = CASES["gemma2"]
    case.save(tmp_path / "base")
    save_adapter(case, tmp_path / "adapter", targets)
    with llama2cpp.load(good / "base") as model:
        with pytest.raises(llama2cpp.FormatError, match=r"shapes .* expected .* for this model"):
            model.load_adapter(tmp_path / "adapter")
        other = llama2cpp.load(tmp_path / "base").load_adapter(tmp_path / "adapter")
        with pytest.raises(ValueError, match=r"Model.session: the adapter was loaded for another model"):
            model.session(adapter=other)
    assert gguf.GGUFReader(good / "adapter.gguf").tensors[0].name.endswith((".lora_a", ".lora_b"))
