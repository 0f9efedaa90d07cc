"""The table of parts (src/cpp/core/parts.inc) is the only list of a Llama's weights, and everything follows from it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import gguf
import numpy as np
import pytest
import tiny
import transformers
from conftest import ROOT
from family_models import Case

import llama2cpp
from llama2cpp import _core
from llama2cpp.common.parts import (
    EMBEDDING,
    LAYER_PARTS,
    PARTS,
    Part,
    family_of,
    find_part,
    in_forward_order,
    layer_of,
)
from llama2cpp.export import convert
from llama2cpp.inside.weights import LensWeights

SOURCES = ROOT / "src"
TABLE = SOURCES / "cpp" / "core" / "parts.inc"
QK_NORMS = {"q_norm", "k_norm"}
POST_NORMS = {"attention_post_norm", "ffn_post_norm"}
SINKS = {"sinks"}  # of gpt-oss alone, which has experts: test_gpt_oss.py
NORM_BIASES = {"attention_norm_b", "ffn_norm_b", "norm_b"}
# No model of any family has every part; these have each of them. By model_type: what config.json says, what the config
# does, and the parts that others have.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "llama": ({"attention_bias": True, "mlp_bias": True}, {}, QK_NORMS | POST_NORMS | NORM_BIASES | SINKS),
    "qwen3": ({"attention_bias": True}, {"qk_norm": "head"}, {"b1", "b2", "b3"} | POST_NORMS | NORM_BIASES | SINKS),
    "glm4": ({}, {"norm_places": "both"}, {"w1", "w3", "bo", "b1", "b2", "b3"} | QK_NORMS | NORM_BIASES | SINKS),
    "stablelm": ({"use_qkv_bias": True}, {"norm": "layer"}, {"bo", "b1", "b2", "b3"} | QK_NORMS | POST_NORMS | SINKS),
}
FUSED = "gate_up_proj"  # holds w1 and w3


class Row(NamedTuple):
    """The columns of the table that are names."""

    part: str
    stems: tuple[str, str, str]
    lens: str


def table() -> list[Row]:
    rows = []
    for macro, columns in re.findall(r"^(MODEL|LAYER)_PART\((.+)\)$", TABLE.read_text(), flags=re.MULTILINE):
        cells = [cell.strip().strip('"') for cell in columns.split(",")]
        part, *names = cells[(2 if macro == "LAYER" else 1) :]
        rows.append(Row(part, (names[0], names[1], names[2]), names[-2]))
    return rows


def parts_of(family: str) -> list[Part]:
    return [part for part in PARTS if part.name not in FAMILIES[family][2]]


def any_config(**sizes: Any) -> llama2cpp.Config:
    """Of arrays that have every part: their model is of no family."""
    return tiny.config(qk_norm="head", norm_places="both", norm="layer", **sizes)


def every_part(config: llama2cpp.Config, parts: Iterable[Part] = PARTS) -> dict[str, Any]:
    """Arrays of a model that has these parts, by llama2.c's names."""
    rng = np.random.default_rng(7)
    names = [name for part in parts for name in part.in_model(config.n_layers)]
    return {name: (0.3 * rng.standard_normal(shape_of(name, config))).astype(np.float32) for name in names}


def shape_of(name: str, config: llama2cpp.Config) -> tuple[int, ...]:
    part = find_part(name)
    assert part is not None
    return part.shape(config)


# --- what Python is handed


def test_python_has_the_rows_of_the_table() -> None:
    assert [row.part for row in table()] == [part.name for part in PARTS]
    assert [row.lens for row in table()] == [part.lens for part in PARTS]


def test_the_class_has_the_columns_of_the_core() -> None:
    columns = get_type_hints(Part)
    for row in _core.parts():
        assert list(row) == list(columns)
        for column, value in row.items():
            said = columns[column]
            assert value in get_args(said) if get_args(said) else type(value) is said, (column, value)
        for size in (row["rows"], row["columns"]):
            assert size == "one" or size in {
                "dim",
                "q_dim",
                "kv_dim",
                "q_norm_dim",
                "k_norm_dim",
                "hidden_dim",
                "n_heads",
                "vocab_size",
            }


def test_names_and_layers() -> None:
    for part in PARTS:
        assert find_part(part.at(12)) is part
        assert layer_of(part.at(12)) == (12 if part.in_layers else None)
    for name in ["", "wq", "layers.00.attention.wq.weight", "layers.1.norm.weight", "layers.{}.attention.wq.weight"]:
        assert (find_part(name), layer_of(name)) == (None, None)
    with pytest.raises(ValueError, match="part is 'wx', which no Llama has"):
        _core.part_shape("wx", tiny.config())
    assert [family_of(str(_core.rename_weight(EMBEDDING.at(), family))) for family in _core.NAMINGS] == [*_core.NAMINGS]


# --- against what we did not write


def test_each_part_has_a_family() -> None:
    assert {part.name for family in FAMILIES for part in parts_of(family)} | SINKS == {part.name for part in PARTS}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_transformers(family: str) -> None:
    sizes: dict[str, Any] = {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    stated, more, _ = FAMILIES[family]
    config = llama2cpp.Config(vocab_size=70, seq_len=64, **sizes, **more)
    settings = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": 70,
    }
    model = Case(family, stated | settings).model()
    assert isinstance(model, transformers.PreTrainedModel)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if FUSED not in name}
    names = [name for part in parts_of(family) for name in part.in_model(2)]
    assert {_core.rename_weight(name, "hugging_face"): shape_of(name, config) for name in names} == theirs


@pytest.mark.parametrize(
    ("family", "arch"),
    [
        ("llama", gguf.MODEL_ARCH.LLAMA),
        ("qwen3", gguf.MODEL_ARCH.QWEN3),
        ("glm4", gguf.MODEL_ARCH.GLM4),
        ("stablelm", gguf.MODEL_ARCH.STABLELM),
    ],
)
def test_names_of_gguf_are_the_librarys(family: str, arch: gguf.MODEL_ARCH) -> None:
    theirs = gguf.get_tensor_name_map(arch, 3)
    for part in parts_of(family):
        stored = _core.rename_weight(part.at(2), "hugging_face")
        assert stored is not None
        assert theirs.get_name(stored, (".weight", ".bias")) == _core.rename_weight(part.at(2), "gguf")


# --- each row reaches readers, writers, names, hooks and panels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["m.gguf", "folder", "m.safetensors"])
def test_every_part_is_written_and_read(tmp_path: Path, target: str, family: str) -> None:
    config = tiny.config(dim=64, hidden_dim=96, n_heads=4, vocab_size=64, **FAMILIES[family][1])
    parts = [part for part in PARTS if part.name not in FAMILIES[family][2] - {"w1", "w3"}]
    if (target, family) == ("m.gguf", "qwen3"):  # llama.cpp opens none with biases: test_export_families.py
        parts = [part for part in parts if part.kind != "bias"]
    arrays = every_part(config, parts)
    model = llama2cpp.from_arrays(config, arrays)
    tokens = tiny.tokens(config, 5)
    expected = model.session().prefill(tokens)
    with llama2cpp.load(convert(model, tmp_path / target, "f32", tokenizer=False).path) as found:
        assert set(found._core.part_names()) == set(arrays)
        # Where rows are in another order, or panels are the CPU's alone, sums are rounded otherwise.
        same = (found.config.rope_style, found.backend) == (config.rope_style, model.backend)
        tolerance = 0 if same else 1e-6 * float(np.abs(expected).max())
        np.testing.assert_allclose(found.session().prefill(tokens), expected, rtol=0, atol=tolerance)
        needs = {part.need for name in found._core.part_names() if (part := find_part(name))}
        assert ("optional" in needs) == any(part.need == "optional" for part in parts)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_that_is_missing_or_too_long_is_named(part: Part) -> None:
    config = any_config()
    arrays = every_part(config)
    name = part.at(1)
    rest = {other: array for other, array in arrays.items() if other != name}
    if part.in_layers or not part.is_optional:
        with pytest.raises(ValueError, match=rf"tensor '{re.escape(name)}' is missing"):
            llama2cpp.from_arrays(config, rest)
    longer = np.concatenate([arrays[name], arrays[name][:1]])
    with pytest.raises(ValueError, match=rf"tensor '{re.escape(name)}' is \["):
        llama2cpp.from_arrays(config, rest | {name: longer})
    if part.is_optional:
        without = {other: array for other, array in arrays.items() if find_part(other) is not part}
        assert llama2cpp.from_arrays(config, without).session().step(1).shape == (config.vocab_size,)
    if part.is_optional and part.in_layers:
        with pytest.raises(ValueError, match=rf"'{re.escape(name)}' is there, but layer 0 has none"):
            llama2cpp.from_arrays(config, without | {name: arrays[name]})
    if part.need == "qk_norm":
        other = llama2cpp.Config(**(config.to_dict() | {"qk_norm": "none"}))
        with pytest.raises(ValueError, match=r"_norm\.weight' is there, but config says otherwise \(qk_norm\)"):
            llama2cpp.from_arrays(other, arrays)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_computed_with(part: Part) -> None:
    config = any_config()
    arrays = every_part(config)
    tokens = tiny.tokens(config, 5)
    before = llama2cpp.from_arrays(config, arrays).session().prefill(tokens)
    changed = arrays | {part.at(1): arrays[part.at(1)] * np.float32(1.5)}
    assert llama2cpp.from_arrays(config, changed).session().prefill(tokens).tobytes() != before.tobytes()


def test_what_a_part_reads_is_a_hook_point() -> None:
    points = {name.removeprefix("blocks.0.") for name, _, _ in _core.hook_points()}
    assert {part.reads for part in PARTS} - {""} <= points
    order = [part.lens for part in in_forward_order(LAYER_PARTS)]
    assert [name for name in order if name.startswith("mlp.")] == [
        *("mlp.W_gate", "mlp.W_in", "mlp.W_out"),
        *("mlp.b_gate", "mlp.b_in", "mlp.b_out"),
    ]


def test_names_of_transformer_lens() -> None:
    config = any_config()
    model = llama2cpp.from_arrays(config, every_part(config))
    names = [f"blocks.1.{part.lens}" if part.in_layers else part.lens for part in PARTS]
    assert set(names) <= set(model.weights.transformer_lens)
    for name in names:
        assert name.rpartition(".")[2] in str(LensWeights.__doc__)
    matrices = {part.lens.rpartition(".")[2] for part in PARTS if not part.is_vector}
    assert {name for name in dir(model) if name.startswith("W_")} == matrices


# --- no other list

# Where a string spells the name of a part all the same, and why.
SPELLED = {
    # an example of names, in a message
    ("src/cpp/io/adapter_file.cpp", '; expected such as \\"model.layers.0.self_attn.q_proj\\" or \\"blk.0.attn_q\\"'),
    ("src/llama2cpp/common/parts.py", "tok_embeddings"),  # the engine's name of it is llama2.c's
    ("src/llama2cpp/inside/receivers.py", "attention_norm"),  # the engine's name, which the table is asked by
    ("src/llama2cpp/lens_bridge/weights.py", "ffn_norm"),  # likewise
    ("src/llama2cpp/export/gptq_folder.py", "lm_head"),  # a setting of GPTQ's, whatever the model's names are
}
# Parts that code asks for one by one: what is in no layer, and these.
ONE_BY_ONE = {
    "src/cpp/io/families.cpp": {
        "wq",
        "wk",
        "wv",
        "w1",
        "w3",
        "bq",
        "bk",
        "bv",
        "bo",
        "w2",
        "q_norm",
        "k_norm",
        "ffn_norm",
        "attention_post_norm",
        "ffn_post_norm",
        "sinks",
    },  # what families hold as one, or must have
    "src/cpp/io/gguf_config.cpp": {"ffn_norm"},  # a parallel model is one without
    "src/cpp/io/names.cpp": {"wq"},  # an example of a name, in a message
    "src/cpp/model/forward.cpp": {"wq", "wk", "wv", "wo", "w1", "w2", "w3"},  # for adapters
    "src/cpp/model/session.cpp": {"wo"},  # its hook_result is made of the matrix alone
    "src/llama2cpp/export/llama2c_training.py": {"w1"},  # its height is hidden_dim, which the file does not have
    "src/llama2cpp/export/mixtures.py": {"wv", "w2", "wo"},  # llama.cpp's rules
    "src/llama2cpp/inside/heads_and_neurons.py": {"wo", "w2"},  # what heads and neurons write to the residual stream
    "src/llama2cpp/inside/receivers.py": {"attention_norm"},  # what queries, keys and values read
    "src/llama2cpp/lens_bridge/weights.py": {"ffn_norm"},  # a parallel layer may be without one
    "src/llama2cpp/analysis/heads.py": {"wv", "wo"},  # a head's OV circuit
    "src/llama2cpp/patching.py": {"wo"},  # what a head writes
    "src/llama2cpp/inside/weights.py": {"bo", "b2"},  # what is added to the residual stream without them
    "src/llama2cpp/session.py": {"k_norm"},  # a norm after rotary embedding, which keys are moved under
}


def test_no_source_spells_a_name() -> None:
    assert {(file, text) for file, texts in strings() for text in texts if NAMES.search(text)} == SPELLED


def test_parts_are_listed_nowhere_else() -> None:
    found = {}
    for file in sources():
        asked = set(python_parts(file) if file.suffix == ".py" else re.findall(r"Part::(\w+)", without_comments(file)))
        if more := asked & {part.name for part in LAYER_PARTS}:
            found[file.relative_to(ROOT).as_posix()] = more
    assert found == ONE_BY_ONE


def python_parts(file: Path) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    asked = [call.args[0] for call in calls if ast.unparse(call.func).endswith("get_part")]
    return [str(name.value) for name in asked if isinstance(name, ast.Constant)]


def whole_word(text: str) -> str:
    return rf"(?<![\w.]){re.escape(text)}(?!\w)"


# In a family's own names, with what is around them in full ones; and TransformerLens's.
NAMES = re.compile(
    "|".join(
        [
            *(rf"(?<!\w){re.escape(stem)}(?!\w)" for row in table() for stem in row.stems if re.search(r"[._]", stem)),
            *(whole_word(stem) + r"\.(weight|bias)" for row in table() for stem in row.stems),
            *(rf"(?<!\w){re.escape(row.lens)}(?!\w)" for row in table()),
        ]
    )
)


def sources() -> list[Path]:
    files = [file for file in SOURCES.rglob("*") if file.suffix in {".py", ".h", ".cpp", ".inl"}]
    assert len(files) > 100
    return files


def without_comments(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return text if file.suffix == ".py" else re.sub(r"//.*", "", text)


def strings() -> Iterator[tuple[str, list[str]]]:
    """The texts that each file has in quotes, but for docstrings."""
    for file in sources():
        text = without_comments(file)
        if file.suffix == ".py":
            found = python_strings(ast.parse(text))
        else:
            text = re.sub(r'R"(\w*)\(.*?\)\1"', "", text, flags=re.DOTALL)
            found = re.findall(r'"((?:[^"\\\n]|\\.)*)"', text)
        yield file.relative_to(ROOT).as_posix(), found


def python_strings(tree: ast.Module) -> list[str]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [node.value for node in constants if isinstance(node.value, str)]


def test_the_search_finds_names() -> None:
    for text in ["attention.wq", "model.layers.{}.mlp.up_proj.bias", "blk.0.attn_q.weight", "lm_head", "norm.weight"]:
        assert NAMES.search(text), text
    for text in ["output", "norm_eps", "attention_bias", "feed_forward_length", "blocks.0.attn.hook_q", "qk_norm"]:
        assert not NAMES.search(text), text
