"""Files of panels: the model that they were made from, to the bit, and errors for all that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hf_folders import write_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from on_metal import agree
from panel_sources import SOURCES, float_folder, llm_int8, packed_with_all, wide

import llama2cpp
from llama2cpp.export import convert
from llama2cpp.export.mixtures import MIXTURES


def logits(path: Path, **options: Any) -> NDArray[np.float32]:
    with llama2cpp.load(path, **options) as model:
        ids = tiny.tokens(model.config, 19)
        session = model.session()
        first = session.prefill(ids[:16], all_logits=True)
        return np.concatenate([first, *[session.step(id)[None] for id in ids[16:]]])


@pytest.mark.cpu_bits("panels")
@pytest.mark.parametrize("source", SOURCES)
def test_the_same_bits_and_weights_as_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    begin = SOURCES[source](tmp_path)
    done = convert(begin, tmp_path / "packed.safetensors")
    a, b = llama2cpp.load(begin), llama2cpp.load(done.path)
    assert b.file_format == "panels v4"
    assert b.config == a.config
    assert (b.kv_dtype, b.activation_dtype) == (a.kv_dtype, a.activation_dtype)
    assert list(b.weights) == list(a.weights)
    for name in a.weights:
        np.testing.assert_array_equal(b.weights[name], a.weights[name], err_msg=name)
        assert b.weights.info(name)["format"] == a.weights.info(name)["format"]
        assert b.weights.info(name)["shape"] == a.weights.info(name)["shape"]
    for activations in ("auto", "f32"):
        wanted = logits(begin, activation_dtype=activations, threads=1)
        assert np.isfinite(wanted).all()
        for pack in ("auto", "always", "never"):
            for threads in (1, 2):
                found = logits(done.path, activation_dtype=activations, pack=pack, threads=threads)
                np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(logits(done.path, activation_dtype=activations, mmap=False), wanted)
    for isa in tiny.ISAS:
        monkeypatch.setenv("LLAMA2CPP_ISA", isa)
        try:
            llama2cpp.build_info()
        except ValueError:
            continue  # not on this machine
        for activations in ("auto", "f32"):
            wanted = logits(begin, activation_dtype=activations)
            np.testing.assert_array_equal(logits(done.path, activation_dtype=activations), wanted, err_msg=isa)


def test_panels_of_panels_are_the_same_file(tmp_path: Path) -> None:
    sources = (
        "GGUF q4_k_m",
        "GPTQ in order of activations",
        "llama2.c v2",
        "LLM.int8()",
        "LLM.int8() with fixed outliers",
    )
    for number, source in enumerate(sources):
        folder = tmp_path / str(number)
        folder.mkdir()
        first = convert(SOURCES[source](folder), folder / "first.safetensors").path
        second = convert(first, folder / "second.safetensors").path
        assert second.read_bytes() == first.read_bytes()


@pytest.mark.cpu_bits("panels")
@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0", "q4_k_m", "q5_0"])
def test_a_format_means_what_it_means_for_gguf(tmp_path: Path, format: str) -> None:
    model = tiny.model(wide())
    packed = convert(model, tmp_path / "a.safetensors", format)
    file = convert(model, tmp_path / "a.gguf", format)
    assert packed.formats == file.formats
    assert packed.format == format
    np.testing.assert_array_equal(logits(packed.path), logits(file.path))
    assert set(MIXTURES) >= {format}
    # and from a file of panels, everything else can be made again
    again = convert(packed.path, tmp_path / "again.gguf", "f32")
    np.testing.assert_array_equal(
        logits(again.path, activation_dtype="f32"), logits(packed.path, kv_dtype="f32", activation_dtype="f32")
    )


@pytest.mark.cpu_bits("panels")
def test_stories_with_its_tokenizer(tmp_path: Path, stories_dir: Path, stories: llama2cpp.Model) -> None:
    for format in ("v0", "v2"):
        source = convert(stories, tmp_path / f"{format}.bin", format)
        with_tokenizer = llama2cpp.load(source.path, tokenizer=stories_dir / "tok512.bin")
        done = convert(with_tokenizer, tmp_path / f"{format}.safetensors")
        assert done.tokenizer == done.path
        model = llama2cpp.load(done.path)
        assert model.tokenizer is not None
        assert model.tokenizer == stories.tokenizer
        story = model.generate("Once upon a time", max_tokens=40, temperature=0)
        assert story == with_tokenizer.generate("Once upon a time", max_tokens=40, temperature=0)


def test_smollm2_with_its_chat(tmp_path: Path, smollm2_path: Path) -> None:
    a = llama2cpp.load(smollm2_path)
    b = llama2cpp.load(convert(a, tmp_path / "smollm2.safetensors").path)
    assert a.tokenizer is not None
    assert b.tokenizer is not None
    assert b.tokenizer == a.tokenizer
    assert b.tokenizer.chat_template
    messages = [{"role": "user", "content": "Say hello."}]
    assert b.chat(messages, max_tokens=8, temperature=0) == a.chat(messages, max_tokens=8, temperature=0)
    ids = a.tokenizer.encode(a.generate("The sea", max_tokens=40, temperature=0))
    for pack in ("auto", "never"):
        found = llama2cpp.load(tmp_path / "smollm2.safetensors", pack=pack).session().prefill(ids, all_logits=True)
        np.testing.assert_array_equal(found, a.session().prefill(ids, all_logits=True))


@pytest.mark.cpu_bits("panels")
@pytest.mark.parametrize(
    "source", ["GGUF q4_0", "GPTQ in order of activations", "llama2.c v2", "LLM.int8() with fixed outliers"]
)
def test_it_is_a_model_like_any_other(tmp_path: Path, source: str) -> None:
    begin = SOURCES[source](tmp_path)
    a = llama2cpp.load(begin)
    b = llama2cpp.load(convert(begin, tmp_path / "packed.safetensors").path)
    ids = tiny.tokens(a.config, 12)
    (logits_a, cache_a), (logits_b, cache_b) = a.run_with_cache(ids), b.run_with_cache(ids)
    np.testing.assert_array_equal(logits_b, logits_a)
    for name in cache_a:
        if name.endswith("hook_result"):  # of GGUF's columns cut at heads, which those of panels are not
            np.testing.assert_allclose(cache_b[name], cache_a[name], rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(cache_b[name], cache_a[name], err_msg=name)
    for name in ("blocks.0.attn.W_Q", "embed.W_E", "unembed.W_U"):
        edit = {name: a.weights[name] * np.float32(0.5)}
        found = b.with_weights(edit).session().prefill(ids)
        np.testing.assert_array_equal(found, a.with_weights(edit).session().prefill(ids))
    session = b.session()
    session.prefill(ids)
    session.save(tmp_path / "session.safetensors")
    again = b.load_session(tmp_path / "session.safetensors")
    np.testing.assert_array_equal(again.step(1), session.step(1))
    with pytest.raises(llama2cpp.FormatError, match="another model"):
        a.load_session(tmp_path / "session.safetensors")


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    return header, data[8 + size :]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return packed_with_all(tmp_path_factory.mktemp("packed"))


def refused(tmp_path: Path, data: bytes, match: str | None = None) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(llama2cpp.FormatError, match=match):
        llama2cpp.load(path)


def test_a_layout_of_another_version_is_refused(tmp_path: Path, packed: bytes) -> None:
    for key, value in (
        ("layout_version", "1"),
        ("layout_version", "2"),
        ("layout_version", "3"),
        ("layout", "panels32"),
    ):
        header, data = header_of(packed)
        header["__metadata__"][f"llama2cpp.{key}"] = value
        said = "this version of llama2cpp reads 'panels16', version 4: export the model again from the file that it"
        refused(tmp_path, with_header(header, data), said)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no config": (lambda h: h["__metadata__"].pop("config"), "metadata 'config' is missing"),
    "an unknown key": (lambda h: h["__metadata__"].update(more="1"), 'metadata "more" is none'),
    "names": (lambda h: h["__metadata__"].update(names="pytorch"), "metadata 'names' is \"pytorch\""),
    "arithmetic": (lambda h: h["__metadata__"].update(arithmetic="fast"), "metadata 'arithmetic' is \"fast\""),
    "a missing weight": (lambda h: change_weights(h, lambda w: w.pop(Q)), "metadata 'weights' has"),
    "more rows": (lambda h: change_weights(h, lambda w: w[Q].update(rows=65)), "expected U8"),
    "fewer columns": (lambda h: change_weights(h, lambda w: w[Q].update(cols=32)), "expected I32"),
    "huge rows": (lambda h: change_weights(h, lambda w: w[Q].update(rows=1 << 62)), "cannot be in the"),
    "huge columns": (lambda h: change_weights(h, lambda w: w[Q].update(cols=1 << 62)), "cannot be in the"),
    "no rows": (lambda h: change_weights(h, lambda w: w[Q].update(rows=0)), "cannot be in the"),
    "no group": (lambda h: change_weights(h, lambda w: w[Q].update(group=0)), "groups of 0"),
    "another group": (lambda h: change_weights(h, lambda w: w[Q].update(group=8)), "expected U8"),
    "a format": (lambda h: change_weights(h, lambda w: w[Q].update(format="q4_0")), "has no order"),
    "no format": (lambda h: change_weights(h, lambda w: w[Q].update(format="q9")), "unknown weight format"),
    "a member": (lambda h: change_weights(h, lambda w: w[Q].update(more=1)), "expected no such member"),
    "no tensor": (lambda h: change_weights(h, lambda w: w.update(x=w[Q])), "there is no such tensor"),
    "no tokenizer": (lambda h: h["__metadata__"].pop("tokenizer"), "belongs to no tokenizer"),
    "a vector that is none": (lambda h: h.update({"model.norms.weight": h.pop("model.norm.weight")}), "no place"),
    "fewer layers": (lambda h: change_config(h, n_layers=1), "no place"),
    "more layers": (lambda h: change_config(h, n_layers=3), "is missing"),
    "another dim": (lambda h: change_config(h, dim=32), "expected \\["),
    "tied": (lambda h: change_config(h, tied=True), "no place"),
    "vocab_size": (lambda h: change_config(h, vocab_size=49), "expected \\[49"),
    "heads": (lambda h: change_config(h, n_heads=0), "n_heads"),
    "a dim that is no number": (lambda h: change_config(h, dim="64"), "expected an integer"),
}
Q = "model.layers.0.self_attn.q_proj.weight"


def change_weights(header: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    weights = json.loads(header["__metadata__"]["weights"])
    change(weights)
    header["__metadata__"]["weights"] = json.dumps(weights)


def change_config(header: dict[str, Any], **changes: Any) -> None:
    config = json.loads(header["__metadata__"]["config"]) | changes
    header["__metadata__"]["config"] = json.dumps(config)


@pytest.mark.parametrize("change", CHANGES)
def test_a_header_that_contradicts_its_file_is_refused(tmp_path: Path, packed: bytes, change: str) -> None:
    header, data = header_of(packed)
    CHANGES[change][0](header)
    refused(tmp_path, with_header(header, data), CHANGES[change][1])


@pytest.mark.parametrize("group", [0, -1, -(1 << 63)])
@pytest.mark.parametrize(
    "format", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q6_k", "int8_group", "llm_int8", "gptq4_v2"]
)
def test_groups_that_are_no_number_of_columns_are_refused(
    tmp_path: Path, packed: bytes, format: str, group: int
) -> None:
    """They are divided by, whatever the format."""
    header, data = header_of(packed)
    change_weights(header, lambda w: w[Q].update(format=format, group=group))
    if format == "llm_int8":
        change_weights(header, lambda w: w[Q].update(outlier_threshold=6.0))
    refused(tmp_path, with_header(header, data), f"groups of {group} are none of {format}")


WQ = "model.layers.0.self_attn.q_proj.weight"
OF_BYTES = {"format": "int8_group", "rows": 36, "cols": 36, "group": 36}
MANY = {"format": "llm_int8", "rows": 1, "cols": 132_105, "group": 132_105, "outlier_threshold": 6.0}
OUTLIERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no threshold": (lambda w: w[WQ].pop("outlier_threshold"), "outlier_threshold"),
    "a threshold below 0": (lambda w: w[WQ].update(outlier_threshold=-1), "expected a number of 0 or more"),
    "an endless one": (lambda w: w[WQ].update(outlier_threshold=1e300), "expected a number of 0 or more"),
    "a threshold of others": (lambda w: w["model.embed_tokens.weight"].update(outlier_threshold=6.0), "no such member"),
    "groups": (lambda w: w[WQ].update(group=18), "groups of 18"),
    "another format": (lambda w: w.update({WQ: OF_BYTES}), "has no outliers"),
    "too many columns": (lambda w: w["model.embed_tokens.weight"].update(MANY), "expected at most 132104"),
}


@pytest.fixture(scope="module")
def with_outliers(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("outliers")
    source = llm_int8(folder, text=list(range(1, 30)), vocab_size=300)
    return convert(source, folder / "packed.safetensors").path.read_bytes()


@pytest.mark.parametrize("change", OUTLIERS)
def test_outliers_that_contradict_their_file_are_refused(tmp_path: Path, with_outliers: bytes, change: str) -> None:
    header, data = header_of(with_outliers)
    change_weights(header, OUTLIERS[change][0])
    refused(tmp_path, with_header(header, data), OUTLIERS[change][1])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ([-1, 3, 17], "number 0 is -1, expected columns of 36"),
        ([3, 3, 17], "number 1 is 3, expected columns of 36"),
        ([3, 17, 36], "number 2 is 36, expected columns of 36"),
        ([], "expected I32"),
        ([3, 17], "expected U8"),
    ],
)
def test_outlier_columns_that_are_none_are_refused(
    tmp_path: Path, with_outliers: bytes, columns: list[int], said: str
) -> None:
    header, data = header_of(with_outliers)
    facts = header[f"{WQ}.outlier_columns"]
    begin, end = facts["data_offsets"]
    found = np.frombuffer(data[begin:end], dtype=np.int32)
    np.testing.assert_array_equal(found[:3], [3, 17, 30])
    if len(columns) < 3:  # so many bytes less
        gap = end - begin - 4 * len(columns)
        changed = data[:begin] + np.array(columns, dtype=np.int32).tobytes() + data[end:]
        for name, other in header.items():
            if name != "__metadata__" and other["data_offsets"][0] >= end:
                other["data_offsets"] = [place - gap for place in other["data_offsets"]]
        facts["shape"], facts["data_offsets"] = [len(columns)], [begin, end - gap]
    else:
        changed = data[:begin] + np.array(columns, dtype=np.int32).tobytes() + data[begin + 12 :]
    refused(tmp_path, with_header(header, changed), said)


def test_every_cut_is_refused(tmp_path: Path, packed: bytes) -> None:
    ends = {0, 1, 7, 8, 9, 40, len(packed) // 2, len(packed) - 1, *range(100, len(packed), len(packed) // 50)}
    for end in sorted(ends):
        refused(tmp_path, packed[:end])
    refused(tmp_path, packed + b"\0")


def test_orders_that_are_none_are_refused(tmp_path: Path, packed: bytes) -> None:
    header, data = header_of(packed)
    begin, end = header[f"{Q}.order"]["data_offsets"]
    for order in ([-1, *range(63)], [64, *range(63)], [0, *range(63)]):
        changed = data[:begin] + np.array(order, dtype=np.int32).tobytes() + data[end:]
        refused(tmp_path, with_header(header, changed), "each of 0 to 63 once")


def test_a_matrix_must_begin_at_a_multiple_of_64(tmp_path: Path, packed: bytes) -> None:
    header, data = header_of(packed)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64 + 8)
    refused(tmp_path, len(text).to_bytes(8, "little") + text + data, "expected a multiple of 64")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_a_model_or_a_format_error(
    tmp_path: Path, packed: bytes, with_outliers: bytes, data: st.DataObject
) -> None:
    packed = data.draw(st.sampled_from([packed, with_outliers]))
    changed = bytearray(packed)
    size = int.from_bytes(packed[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, size + 7) | st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(changed)
    try:
        with llama2cpp.load(path, threads=1) as model:
            model.session(4).prefill([1, 2])
            for name in model.weights:
                assert model.weights[name].size
    except ValueError:  # FormatError, or a tokenizer's
        pass


def test_a_file_of_hugging_face_beside_its_config_opens_as_before(tmp_path: Path) -> None:
    folder = float_folder(tmp_path, "float32")
    (file,) = folder.glob("*.safetensors")
    assert llama2cpp.load(file).file_format == "Hugging Face folder"
    done = convert(folder, folder / "packed.safetensors")  # and one of panels does too, wherever it lies
    assert llama2cpp.load(done.path).file_format == "panels v4"
    assert agree(logits(done.path), logits(file))
    import torch

    alone = tmp_path / "alone"
    alone.mkdir()
    write_tensors(alone, {"x": torch.zeros(3)})
    (stranger,) = alone.glob("*.safetensors")
    with pytest.raises(llama2cpp.FormatError, match="a safetensors file"):
        llama2cpp.load(stranger)
