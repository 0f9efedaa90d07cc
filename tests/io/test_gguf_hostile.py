"""GGUF files that are damaged, foreign or ask for what is not computed: each is an error that says what and where."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from gguf_files import BPE, SPM, File, Tensor, array, llama, pair, text, value
from hypothesis import given
from hypothesis import strategies as st

import llama2cpp

U32, STRING, ARRAY, U64 = 4, 8, 9, 10
HUGE = 2**63


def load(data: bytes) -> llama2cpp.Model:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        return llama2cpp.load(path, threads=1, mmap=False)


def refused(data: bytes | File, said: str) -> None:
    with pytest.raises(llama2cpp.FormatError, match=said):
        load(data.to_bytes() if isinstance(data, File) else data)


def changed(file: File, tensor: str, changes: dict[str, Any]) -> File:
    """The same file with one tensor changed; the others stay where they are."""
    placed = [replace(one, offset=offset) for one, offset in zip(file.tensors, file.offsets(), strict=True)]
    assert any(one.name == tensor for one in placed)
    file.tensors = [replace(one, **changes) if one.name == tensor else one for one in placed]
    return file


def with_metadata(*entries: bytes) -> File:
    file = llama()
    file.metadata += entries
    return file


def test_a_good_one_opens() -> None:
    model = load(llama().to_bytes())
    assert model.config.dim == 32
    assert not model.has_tokenizer
    with pytest.raises(ValueError, match="the file has no tokenizer"):
        _ = model.tokenizer
    assert model._core.tokenizer_problem == "the file has no tokenizer"
    assert not model.session().step(1).any()  # all weights are zeros


def test_version_2_opens() -> None:
    file = llama()
    file.version = 2
    assert load(file.to_bytes()).file_format == "GGUF v2"


# --- the container


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (0, r"GGUF version \(byte 4\) is 0, expected 2 or 3"),
        (1, r"GGUF version \(byte 4\) is 1, expected 2 or 3: version 1 was in use"),
        (4, r"GGUF version \(byte 4\) is 4, expected 2 or 3"),
        (3 << 24, r"version \(byte 4\) is 3 written big-endian: this GGUF file is for big-endian machines"),
    ],
)
def test_other_versions(version: int, said: str) -> None:
    file = llama()
    file.version = version
    refused(file, said)


def test_every_cut_is_noticed() -> None:
    whole = llama().to_bytes()
    for length in [*range(4, len(whole) - 1, 7), len(whole) - 1]:
        with pytest.raises(llama2cpp.FormatError):
            load(whole[:length])


def test_bytes_after_the_last_tensor_are_nobodys() -> None:
    assert load(llama().to_bytes() + b"more").config.n_layers == 1


@pytest.mark.parametrize("count", [10_000, 2**32, HUGE, 2**64 - 1])
def test_counts_that_the_file_has_no_room_for(count: int) -> None:
    file = llama()
    refused(replace(file, count=count), rf"the number of tensors \(byte 8\) is {count}, but the \d+ bytes that follow")
    refused(replace(file, values=count), rf"the number of metadata values \(byte 16\) is {count}, but the")


@pytest.mark.parametrize("length", [10**6, HUGE - 1, HUGE, 2**64 - 1])
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            lambda length: struct.pack("<Q", length) + b"key",
            r"the key of metadata value 8 \(byte \d+\) is a text of \d+ ",
        ),
        (
            lambda length: pair("x.y", STRING, struct.pack("<Q", length) + b"text"),
            r'metadata "x\.y" \(byte \d+\) is a text of \d+ bytes, but \d+ are left in the file',
        ),
        (
            lambda length: pair("x.y", ARRAY, array(U32, length, bytes(8))),
            r'metadata "x\.y" \(byte \d+\) is an array of \d+ uint32s, but \d+ bytes are left in the file',
        ),
        (
            lambda length: pair("x.y", ARRAY, array(STRING, length, bytes(8))),
            r'metadata "x\.y" \(byte \d+\) is an array of \d+ strings, but \d+ bytes are left in the file',
        ),
        (
            lambda length: pair("x.y", ARRAY, array(STRING, 1, struct.pack("<Q", length))),
            r'metadata "x\.y" \(byte \d+\) is a text of \d+ bytes',
        ),
    ],
    ids=["key", "string", "array", "strings", "string-in-array"],
)
def test_lengths_that_the_file_has_no_room_for(entry: Callable[[int], bytes], length: int, said: str) -> None:
    file = llama()
    file.metadata.append(entry(length))
    refused(file, said)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (pair("x", 13, b""), r'metadata "x" has type 13 \(byte \d+\), expected 0 to 12'),
        (pair("x", 2**32 - 1, b""), r'metadata "x" has type 4294967295 \(byte \d+\), expected 0 to 12'),
        (pair("x", ARRAY, array(13, 0, b"")), r'metadata "x" has type 13 \(byte \d+\), expected 0 to 12'),
        (pair("x", ARRAY, array(ARRAY, 1, array(U32, 0, b""))), r'metadata "x" is an array of arrays'),
        (pair("x", 7, b"\2"), r'metadata "x" \(byte \d+\) is 2, expected a bool: 0 or 1'),
        (pair("x", ARRAY, array(7, 3, b"\0\1\xff")), r'metadata "x" \(byte \d+\) is 255, expected a bool: 0 or 1'),
        (value("", 1), r"the key of metadata value 8 \(byte \d+\) has 0 bytes, expected 1 to 65535"),
        (value("k" * 65536, 1), r"the key of metadata value 8 \(byte \d+\) has 65536 bytes, expected 1 to 65535"),
        (value(b"caf\xe9", 1), r"the key of metadata value 8: byte \d+ is not UTF-8"),
        (value("llama.block_count", 1), r'metadata "llama\.block_count" \(byte \d+\) is there twice'),
    ],
)
def test_bad_metadata(entry: bytes, said: str) -> None:
    refused(with_metadata(entry), said)


def test_texts_that_are_not_utf8() -> None:
    """Where they are read they are errors, with the byte; elsewhere they may be anything."""
    architecture = value("general.architecture", "llama")
    file = llama()
    at = file.metadata.index(architecture)
    file.metadata[at] = pair("general.architecture", STRING, text(b"ab\xed\xa0\x80"))
    byte = file.to_bytes().index(b"\xed\xa0\x80")
    refused(file, f'metadata "general.architecture": byte {byte} is not UTF-8')
    for entry in (pair("x", STRING, text(b"\xff")), pair("x", ARRAY, array(STRING, 2, text("a") + text(b"\xff")))):
        assert load(with_metadata(entry).to_bytes()).config.dim == 32
    tokens = pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 2, text("a") + text(b"\xff")))
    model = load(with_metadata(value("tokenizer.ggml.model", "llama"), tokens).to_bytes())
    assert re.fullmatch(r'metadata "tokenizer.ggml.tokens": byte \d+ is not UTF-8', model.tokenizer_problem)


@pytest.mark.parametrize("alignment", [1, 8, 16, 64, 4096])
def test_alignments(alignment: int) -> None:
    file = llama(general__alignment=alignment)
    file.alignment = alignment
    assert load(file.to_bytes()).config.dim == 32


@pytest.mark.parametrize("alignment", [0, 3, 24, 2**21, 2**31])
def test_bad_alignments(alignment: int) -> None:
    refused(
        llama(general__alignment=alignment),
        rf'metadata "general\.alignment" \(byte \d+\) is {alignment}, expected a power of two up to 1048576',
    )


def test_a_u64_above_what_is_signed() -> None:
    file = llama(llama__block_count=None)
    file.metadata.append(pair("llama.block_count", U64, struct.pack("<Q", HUGE)))
    refused(file, r"\"llama.block_count\" \(byte \d+\) is 9223372036854775808, expected an integer below 2\^63")


# --- tensors

NORM = "output_norm.weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": 21}, r'"output_norm.weight" has type IQ3_S \(21, byte \d+\), which this version does not read'),
        ({"kind": 26}, r'tensor "output_norm.weight" has type I32 \(26, byte \d+\), which this version does not'),
        ({"kind": 4}, r'tensor "output_norm.weight" has type 4 \(byte \d+\), which ggml does not have'),
        ({"kind": 2**32 - 1}, r"has type 4294967295 \(byte \d+\), which ggml does not have"),
        ({"kind": 12}, r'"output_norm.weight" has rows of 32, which blocks of 256 \(q4_k\) do not fill'),
        ({"shape": (), "bytes": 0}, r'tensor "output_norm.weight" has 0 dimensions \(byte \d+\), expected 1 to 4'),
        ({"shape": (1, 1, 1, 1, 32)}, r'tensor "output_norm.weight" has 5 dimensions \(byte \d+\), expected 1 to 4'),
        ({"shape": (0,)}, r'tensor "output_norm.weight": size 0 \(byte \d+\) is 0, expected 1 or more, below 2\^62'),
        ({"shape": (32, HUGE), "bytes": 128}, r"size 1 \(byte \d+\) is 9223372036854775808, expected 1 or more"),
        ({"shape": (2**61, 8), "bytes": 128}, r"tensor \"output_norm.weight\" \(byte \d+\): .* overflows"),
        ({"shape": (32, 2**33), "bytes": 128}, r"takes 1099511627776 bytes from offset \d+ on"),
        ({"offset": 2**63}, r"takes 128 bytes from offset 9223372036854775808 on .*, but the file has \d+ bytes"),
        ({"offset": 2**64 - 32}, r"takes 128 bytes from offset 18446744073709551584 on"),
        ({"offset": 1024 + 4}, r"\(byte \d+\) has offset 1028, expected a multiple of the alignment 32"),
        ({"offset": 0}, r'tensor "\w+.weight" begins at byte \d+, inside of tensor "\w+.weight"'),
        ({"offset": 992}, r'tensor "output_norm.weight" begins at byte \d+, inside of tensor "token_embd.weight"'),
        ({"shape": (33,), "offset": 49152}, r"tensor 'output_norm.weight' is \[1, 33\], expected \[1, 32\]"),
        ({"shape": (32, 2), "offset": 49152}, r"tensor 'output_norm.weight' is \[2, 32\], expected \[1, 32\]"),
        ({"shape": (4, 4, 2)}, r'tensor "output_norm.weight" \(byte \d+\) has 3 dimensions, expected a vector or'),
        ({"name": "token_embd.weight"}, r'tensor "token_embd.weight" \(byte \d+\) is there twice'),
        ({"name": ""}, r"the name of tensor 1 \(byte \d+\) has 0 bytes, expected 1 to 64"),
        ({"name": "x" * 65}, r"the name of tensor 1 \(byte \d+\) has 65 bytes, expected 1 to 64"),
        ({"name": b"\x80"}, r"the name of tensor 1: byte \d+ is not UTF-8"),
        ({"name": "x"}, r'tensor "x" \(byte \d+\) has no place in a Llama of 1 layers'),
        ({"name": "blk.1.attn_norm.weight"}, r'tensor "blk.1.attn_norm.weight" .* has no place in a Llama of 1'),
        ({"name": "blk.0.attn_sinks.weight"}, r'tensor "blk.0.attn_sinks.weight" .* has no place in a Llama'),
        (
            {"name": "output.weight", "shape": (32, 8), "offset": 49152},
            r"tensor 'output_norm.weight' is missing from the 11 tensors",
        ),
    ],
)
def test_bad_tensors(changes: dict[str, Any], said: str) -> None:
    file = changed(llama(), NORM, changes)
    # Offsets that are absurd must not make the file so.
    data = file.header() + bytes(64 * 1024)
    refused(data, said)


def test_four_dimensions_of_which_two_are_one() -> None:
    file = changed(llama(), "blk.0.attn_q.weight", {"shape": (32, 32, 1, 1)})
    assert load(file.to_bytes()).weights["blk.0.attn_q.weight"].shape == (32, 32)


def test_any_order_and_gaps() -> None:
    file = llama()
    places = file.offsets()
    file.tensors = [replace(one, offset=place) for one, place in zip(file.tensors, places, strict=True)][::-1]
    assert load(file.to_bytes()).config.dim == 32
    file.tensors[0].offset = places[-1] + 4096
    assert load(file.to_bytes()).config.dim == 32


def test_a_bias_that_only_some_layers_have() -> None:
    file = llama(llama__block_count=2)
    file.tensors.append(Tensor("blk.1.attn_q.bias", (32,)))
    refused(file, "tensor 'blk.1.attn_q.bias' is there, but layer 0 has none")
    file.tensors[-1].name = "blk.0.attn_q.bias"
    refused(file, "tensor 'blk.1.attn_q.bias' is missing")


def test_tensors_that_nobody_needs() -> None:
    file = llama()
    file.tensors += [Tensor("blk.0.attn_rot_embd.weight", (4,))]
    assert "blk.0.attn_rot_embd.weight" not in load(file.to_bytes()).weights


# --- what is not computed is refused by its name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"general__architecture": "falcon"},
            r'"general.architecture" \(byte \d+\) is "falcon", expected "qwen2", "llama",.* or "gpt-oss"',
        ),
        ({"general__architecture": None}, "metadata 'general.architecture' is missing"),
        ({"general__type": "adapter"}, r'"general.type" \(byte \d+\) is "adapter", expected "model"'),
        ({"split__count": 3}, r'"split.count" \(byte \d+\) is 3: the file is part 1 of 3 of a model, expected a'),
        ({"llama__expert_count": 8}, "'llama.expert_used_count' is missing"),
        ({"llama__rope__scaling__type": "su"}, r'"llama.rope.scaling.type" \(byte \d+\) is "su", expected "none"'),
        (
            {"llama__rope__scaling__attn_factor": 1.5},
            r'"llama.rope.scaling.attn_factor" .* is 1.5, and without .*"yarn" only 1',
        ),
        ({"llama__rope__dimension_count": 4}, r'"llama.rope.dimension_count" \(byte \d+\) is 4, and only 8'),
        ({"llama__attention__key_length": 8, "llama__attention__value_length": 16}, r"is 16, and only 8"),
        ({"llama__attention__scale": 0.5}, r'"llama.attention.scale" \(byte \d+\) is 0.5, and only 0 is implemented'),
        ({"llama__attention__clamp_kqv": 8.0}, r'"llama.attention.clamp_kqv" .* is 8, and only 0 is'),
        ({"llama__attention__causal": False}, r'"llama.attention.causal" \(byte \d+\) is 0, and only 1 is'),
        ({"llama__attn_logit_softcapping": 50.0}, r'"llama.attn_logit_softcapping" .* is 50, and only 0'),
        ({"llama__final_logit_softcapping": 30.0}, r'"llama.final_logit_softcapping" .* is 30, and only 0'),
        ({"llama__use_parallel_residual": True}, r'"llama.use_parallel_residual" \(byte \d+\) is 1, and only 0'),
        ({"llama__logit_scale": 0.5}, r'"llama.logit_scale" \(byte \d+\) is 0.5, and only 1'),
        ({"llama__residual_scale": 0.22}, r'"llama.residual_scale" .* is 0.22, and only 1'),
        ({"llama__never_heard_of": 1}, r'"llama.never_heard_of" \(byte \d+\) is not known'),
        ({"llama__attention__head_count_kv": [1, 2]}, "an array of numbers that differ"),
        ({"llama__attention__head_count_kv": []}, None),
    ],
    ids=str,
)
def test_what_is_not_computed(changes: dict[str, Any], said: str | None) -> None:
    if said is None:
        file = llama(llama__attention__head_count_kv=None)
        file.metadata.append(pair("llama.attention.head_count_kv", ARRAY, array(U32, 0, b"")))
        refused(file, "an array of numbers that differ")
    else:
        refused(llama(**changes), said)


@pytest.mark.parametrize(
    "changes",
    [
        {"llama__expert_count": 0, "llama__expert_used_count": 0},
        {"llama__attention__causal": True},
        {"llama__use_parallel_residual": False},
        {"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 8.0},
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 1.0},
        {"llama__rope__scaling__factor": 0.0},
        {"llama__tensor_data_layout": "Meta AI original pth"},
        {"llama__attention__head_count_kv": [2]},
        {"llama__attention__sliding_window": 0},
        {"llama__logit_scale": 1.0},
        {"general__type": "model", "split__count": 1, "anything__else": "at all"},
    ],
    ids=str,
)
def test_what_changes_nothing(changes: dict[str, Any]) -> None:
    assert load(llama(**changes).to_bytes()).config == load(llama().to_bytes()).config


@pytest.mark.parametrize("name", ["scaling__factor", "scale_linear"])
def test_a_factor_without_a_type_is_linear(name: str) -> None:
    changes: dict[str, Any] = {f"llama__rope__{name}": 4.0}
    config = load(llama(**changes).to_bytes()).config
    assert config.rope_scaling == {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama__block_count": None}, "metadata 'llama.block_count' is missing"),
        ({"llama__context_length": None}, "metadata 'llama.context_length' is missing"),
        ({"llama__embedding_length": None}, "metadata 'llama.embedding_length' is missing"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, "'llama.attention.layer_norm_rms_epsilon' is missing"),
        ({"llama__attention__head_count": None}, "config: dim is 32, which n_heads 0 does not divide"),
        ({"llama__attention__head_count": 5}, "config: dim is 32, which n_heads 5 does not divide"),
        ({"llama__attention__head_count_kv": 3}, "config: n_heads is 4, which n_kv_heads 3 does not divide"),
        ({"llama__feed_forward_length": None}, "config: hidden_dim is 0"),
        ({"llama__block_count": 2**32 - 1}, "config: n_layers is 4294967295"),
        ({"llama__block_count": 2}, "tensor 'blk.1.attn_norm.weight' is missing"),
        ({"llama__vocab_size": 9}, r"tensor 'token_embd.weight' is \[8, 32\], expected \[9, 32\]"),
        ({"llama__rope__freq_base": float("nan")}, "config: rope_theta is nan"),
        ({"llama__rope__scaling__factor": -2.0}, "config: rope_scaling's factor is -2"),
        ({"llama__rope__freq_base": 10000}, r'"llama.rope.freq_base" \(byte \d+\) is a uint32, expected a float'),
        ({"llama__block_count": "1"}, r'"llama.block_count" \(byte \d+\) is a string, expected an integer'),
        ({"llama__block_count": 1.0}, r'"llama.block_count" \(byte \d+\) is a float32, expected an integer'),
        ({"llama__block_count": [1]}, r'"llama.block_count" \(byte \d+\) is an array, expected a single value'),
        ({"general__architecture": ["llama"]}, r'"general.architecture" \(byte \d+\) is an array, expected a single'),
        ({"general__architecture": 1}, r'"general.architecture" \(byte \d+\) is a uint32, expected a string'),
    ],
    ids=str,
)
def test_configs_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    metadata = gguf_files.llama_metadata(**changes)
    file = llama()
    file.metadata = [value(key, setting) for key, setting in metadata.items()]
    refused(file, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (3,)}, r"'rope_freqs.weight' \(byte \d+\) has 1 dimensions and rows of 3 f32, expected one .* of 4"),
        ({"shape": (4,), "kind": 1}, r"rows of 4 f16, expected one dimension of 4 f32"),
        ({"shape": (4, 1)}, r"has 2 dimensions and rows of 4 f32"),
        ({"shape": (4,)}, "config: one of rope_factors is 0, expected a finite number above 0"),
    ],
)
def test_rope_factors_that_cannot_be(change: dict[str, Any], said: str) -> None:
    file = llama()
    file.tensors.append(Tensor("rope_freqs.weight", **change))
    refused(file, said)


# --- tokenizers


def tokenizer_of(**metadata: Any) -> llama2cpp.Tokenizer:
    tokenizer = load(llama(**metadata).to_bytes())._core.tokenizer
    assert tokenizer is not None
    return tokenizer


def test_a_sentencepiece_vocabulary() -> None:
    tokenizer = tokenizer_of(**SPM)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.encode("a\nab") == [1, 4, 3, 7]  # BOS, U+2581 and a, the byte, ab
    assert tokenizer.decode([1, 4, 3, 7]) == "a\nab"


def test_spaces_in_user_defined_pieces() -> None:
    tokens = [*SPM["tokenizer__ggml__tokens"][:-1], "b  a"]
    types = [*SPM["tokenizer__ggml__token_type"][:-1], 4]
    tokenizer = tokenizer_of(**(SPM | {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}))
    assert tokenizer.encode("ab  ab", bos=False) == [4, 7, 6]
    assert tokenizer.decode([4, 7, 6]) == "ab  ab"


def test_a_byte_level_vocabulary() -> None:
    tokenizer = tokenizer_of(**BPE)
    assert tokenizer.bos_id == 5
    assert tokenizer.eos_ids == (7, 6)
    assert tokenizer.piece(4) == b" "
    assert tokenizer.encode("ab ab", bos=False) == [3, 4, 3]


def test_ends_of_generation() -> None:
    ends = BPE | {"tokenizer__ggml__eos_token_id": None, "tokenizer__ggml__eot_token_id": 2}
    assert tokenizer_of(**ends).eos_ids == (2, 6, 7)
    assert tokenizer_of(**(BPE | {"tokenizer__ggml__eom_token_id": 0})).eos_ids == (7, 0, 6)
    none = BPE | {"tokenizer__ggml__token_type": [1] * 8, "tokenizer__ggml__eos_token_id": None}
    assert tokenizer_of(**none).eos_ids == ()  # a piece that is ordinary text ends nothing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tokenizer__ggml__model": "bert"},
            'the file\'s tokenizer is of kind "bert", and only "llama", "gpt2" and "t5" are',
        ),
        ({"tokenizer__ggml__pre": "none"}, 'the file\'s pre-tokenizer is "none", known are "default", "gpt-2"'),
        ({"tokenizer__ggml__model": "no_vocab"}, "the file has no tokenizer"),
    ],
)
def test_a_model_whose_tokenizer_is_not_known(changes: dict[str, Any], said: str) -> None:
    core = load(llama(**(BPE | changes)).to_bytes())._core
    assert core.tokenizer is None
    assert said in core.tokenizer_problem
    assert len(core.session().step(1)) == 8


@pytest.mark.parametrize(
    ("base", "changes", "said"),
    [
        (SPM, {"tokens": None}, "metadata 'tokenizer.ggml.tokens' is missing"),
        (SPM, {"tokens": ["a"]}, r"token_type\" \(byte \d+\) is an array of 8, expected one for each of the 1 pieces"),
        (SPM, {"tokens": "a"}, r"tokens\" \(byte \d+\) is a single string, expected an array"),
        (SPM, {"tokens": [1] * 8}, r"tokens\" \(byte \d+\) is an array of uint32s, expected strings"),
        (SPM, {"scores": [0.0] * 7}, r"scores\" \(byte \d+\) is an array of 7, expected one for each of the 8 pieces"),
        (SPM, {"scores": [float("nan")] * 8}, r"scores\" \(byte \d+\) is NaN for piece 0"),
        (SPM, {"scores": [1] * 8}, r"scores\" \(byte \d+\) is an array of uint32s, expected float32s"),
        (SPM, {"token_type": [1] * 9}, r"token_type\" \(byte \d+\) is an array of 9, expected one for each of the 8"),
        (SPM, {"add_bos_token": 1}, r"add_bos_token\" \(byte \d+\) is a uint32, expected a bool"),
        (BPE, {"merges": ["ab"]}, "merge 0, 'ab': expected two pieces"),
        (BPE, {"merges": ["a b", "ab c"]}, "merge 1, 'ab c': its joined piece is not in the vocabulary"),
        (BPE, {"merges": ["a z"]}, "merge 0, 'a z': its right part is not in the vocabulary"),
        (BPE, {"merges": ["a \u4e00"]}, "has a character that stands for no byte"),
    ],
)
def test_bad_tokenizers(base: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    """The model opens; its tokenizer is refused."""
    file = llama(**(base | {f"tokenizer__ggml__{key}": change for key, change in changes.items()}))
    core = load(file.to_bytes())._core
    assert core.tokenizer is None
    assert re.search(said, core.tokenizer_problem)


def test_merges_in_a_circle() -> None:
    """Two ways to the same piece, one piece merged with itself, the same merge twice: encoding ends all the same."""
    pieces = ["a", "aa", "aaa", "b", "ba", "aab", "ab", "aaaa"]
    merges = ["a a", "aa a", "a aa", "a a", "aa aa", "b a", "a b", "aa b", "a ab", "aaa a"]
    changes: dict[str, Any] = {"tokenizer__ggml__tokens": pieces, "tokenizer__ggml__merges": merges}
    changes |= {"tokenizer__ggml__token_type": None, "tokenizer__ggml__bos_token_id": None}
    tokenizer = tokenizer_of(**(BPE | changes))
    spelled = "aabaaaaaaabbaaab"
    assert tokenizer.decode(tokenizer.encode(spelled, bos=False)) == spelled


def test_pieces_that_are_empty_or_there_twice() -> None:
    tokens = ["<unk>", "<s>", "</s>", "", "\u2581a", "a", "a", ""]
    types = [2, 3, 3, 1, 1, 1, 1, 4]
    tokenizer = tokenizer_of(**(SPM | {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}))
    assert tokenizer.encode("aa a", bos=False) == [4, 5, 4]
    assert tokenizer.decode([4, 5, 4]) == "aa a"


# --- any damage at all

WHOLE = llama(**(BPE | {"tokenizer__chat_template": "{{ messages }}"})).to_bytes()
HEADER = len(WHOLE) - llama().data_bytes()


@pytest.mark.filterwarnings("ignore:the file's tokenizer")  # what damage leaves may be usable, with a warning
@given(
    st.lists(st.tuples(st.integers(0, HEADER - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    st.integers(0, 64),
)
def test_damage_opens_or_is_a_format_error(damage: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(WHOLE)
    for at, replacement in damage:
        data[at : at + len(replacement)] = replacement
    try:
        core = load(bytes(data[: len(data) - cut]))._core
        assert core.tokenizer is None or core.tokenizer.vocab_size == core.config.vocab_size
        for name in core.weight_names():
            assert core.weight(name).size > 0
    except llama2cpp.FormatError:
        return
