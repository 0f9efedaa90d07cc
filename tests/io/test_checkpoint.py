"""llama2.c checkpoints of every version, whole and damaged, through llama2cpp.load."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    HEADER_BYTES,
    SMALL,
    Arrays,
    Sizes,
    checkpoint_bytes,
    dequantize,
    quantize,
    random_arrays,
    shapes,
)
from hypothesis import given
from hypothesis import strategies as st

import llama2cpp

VERSIONS = list(HEADER_BYTES)
GROUP = 8
UNTIED = Sizes(**{**vars(SMALL), "tied": False})


def load(data: bytes, **options: Any) -> llama2cpp.Model:
    """Open the bytes as a file. On systems that cannot remove a mapped file, it stays in the temporary folder."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.bin"
        path.write_bytes(data)
        return llama2cpp.load(path, threads=1, **options)


def decoded(arrays: Arrays, version: int, group: int = GROUP) -> Arrays:
    """What the file stands for: version 2 holds matrices as int8."""
    if version != 2:
        return arrays
    return {name: a if a.ndim == 1 else dequantize(*quantize(a, group)) for name, a in arrays.items()}


def assert_holds(model: llama2cpp.Model, sizes: Sizes, arrays: Arrays) -> None:
    for field in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len", "tied"):
        assert getattr(model.config, field) == getattr(sizes, field), field
    assert model.config.head_dim == sizes.head_dim
    assert set(model.weights) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(model.weights[name], array, err_msg=name, strict=True)


def size_strategy() -> st.SearchStrategy[Sizes]:
    def sizes(heads: int, per_kv: int, half_head: int, **others: Any) -> Sizes:
        n_heads = heads * per_kv
        return Sizes(dim=n_heads * half_head * 2, n_heads=n_heads, n_kv_heads=heads, **others)

    small = st.integers(1, 4)
    return st.builds(
        sizes,
        small,
        small,
        st.integers(1, 6),
        hidden_dim=st.integers(1, 40).map(lambda value: value * 2),
        n_layers=small,
        vocab_size=st.integers(1, 60),
        seq_len=st.integers(1, 30),
        tied=st.booleans(),
    )


@given(sizes=size_strategy(), version=st.sampled_from(VERSIONS), mmap=st.booleans())
def test_what_was_written_is_read(sizes: Sizes, version: int, mmap: bool) -> None:
    arrays = random_arrays(sizes)
    with load(checkpoint_bytes(version, sizes, arrays, group=2), mmap=mmap) as model:
        assert model.file_format == f"llama2.c v{version}"
        assert_holds(model, sizes, decoded(arrays, version, group=2))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 12])
def test_any_group_that_divides_the_rows(group: int) -> None:
    sizes = Sizes(dim=24, hidden_dim=36, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=7, seq_len=5)
    arrays = random_arrays(sizes)
    assert_holds(load(checkpoint_bytes(2, sizes, arrays, group)), sizes, decoded(arrays, 2, group))


@pytest.mark.parametrize("group", [-8, 0, 5, 8, 24, 2**31 - 1])
def test_other_groups_are_refused(group: int) -> None:
    sizes = Sizes(dim=24, hidden_dim=36, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=7, seq_len=5)
    data = bytearray(checkpoint_bytes(2, sizes, random_arrays(sizes), group=4))
    struct.pack_into("<i", data, 37, group)
    with pytest.raises(llama2cpp.FormatError, match=rf"group size \(byte 37\) is {group}, expected .* 24 .* 36"):
        load(bytes(data))


def test_constants_that_the_format_does_not_hold() -> None:
    config = load(checkpoint_bytes(0, SMALL, random_arrays(SMALL))).config
    assert (config.norm_eps, config.rope_theta) == (np.float32(1e-5), 10000)
    assert config.rope_style == "interleaved"


def test_versions_0_and_1_of_a_real_model_hold_the_same(stories_dir: Path) -> None:
    legacy = llama2cpp.load(stories_dir / "stories260K.bin")
    newer = llama2cpp.load(stories_dir / "stories260K_v1.bin")
    assert legacy.config.to_dict() == newer.config.to_dict()
    assert set(legacy.weights) == set(newer.weights)
    for name, array in legacy.weights.items():
        np.testing.assert_array_equal(array, newer.weights[name], strict=True)


def test_our_writer_makes_the_real_file(stories_dir: Path) -> None:
    sizes = Sizes(64, 172, 5, 8, 4, 512, 512)
    original = (stories_dir / "stories260K_v1.bin").read_bytes()
    arrays = {name: np.array(array) for name, array in load(original).weights.items()}
    assert {name: array.shape for name, array in arrays.items()} == shapes(sizes)
    assert checkpoint_bytes(1, sizes, arrays) == original
    legacy = checkpoint_bytes(0, sizes, arrays)
    real = (stories_dir / "stories260K.bin").read_bytes()
    tables = slice(len(legacy) - 512 * 8 * 4, None)  # cos and sin: theirs were computed in float32
    assert legacy[: tables.start] == real[: tables.start]
    np.testing.assert_allclose(
        np.frombuffer(legacy[tables], "<f4"), np.frombuffer(real[tables], "<f4"), rtol=0, atol=1e-4
    )


def test_weights_outlive_the_model_and_the_file() -> None:
    arrays = random_arrays(SMALL)
    model = load(checkpoint_bytes(0, SMALL, arrays))
    view = model.weights["layers.1.attention.wo.weight"]
    model.close()
    del model
    np.testing.assert_array_equal(view, arrays["layers.1.attention.wo.weight"])
    assert not view.flags.writeable


def test_a_file_that_was_read_may_change_afterwards(tmp_path: Path) -> None:
    arrays = random_arrays(SMALL)
    path = tmp_path / "model.bin"
    path.write_bytes(checkpoint_bytes(0, SMALL, arrays))
    model = llama2cpp.load(path, mmap=False)
    path.write_bytes(b"")
    assert_holds(model, SMALL, arrays)


# Damage


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", [SMALL, UNTIED], ids=["tied", "untied"])
@given(data=st.data())
def test_a_cut_file_says_what_is_missing(version: int, sizes: Sizes, data: st.DataObject) -> None:
    whole = checkpoint_bytes(version, sizes, random_arrays(sizes), GROUP)
    length = data.draw(st.integers(HEADER_BYTES[version], len(whole) - 1))
    with pytest.raises(
        llama2cpp.FormatError, match=rf"expected {len(whole)} bytes, found {length}: it ends in .* bytes \d+ to \d+"
    ):
        load(whole[:length])


@pytest.mark.parametrize("version", VERSIONS)
@given(length=st.integers(0, 255))
def test_a_cut_header(version: int, length: int) -> None:
    header = checkpoint_bytes(version, SMALL, random_arrays(SMALL), GROUP)[: min(length, HEADER_BYTES[version] - 1)]
    with pytest.raises(llama2cpp.FormatError):
        load(header)


@pytest.mark.parametrize("version", VERSIONS)
@given(extra=st.binary(min_size=1, max_size=300))
def test_a_padded_file_says_by_how_much(version: int, extra: bytes) -> None:
    whole = checkpoint_bytes(version, SMALL, random_arrays(SMALL), GROUP)
    found, more = len(whole) + len(extra), len(extra)
    said = f"expected {len(whole)} bytes, found {found}: {more} bytes follow the last tensor"
    with pytest.raises(llama2cpp.FormatError, match=said):
        load(whole + extra)


def opens_whole_or_not_at_all(data: bytes) -> None:
    """A FormatError, or a model whose tensors are the file's bytes, all of them."""
    try:
        model = load(data)
    except llama2cpp.FormatError:
        return
    config = model.config
    version = int(model.file_format[-1])
    used = HEADER_BYTES[version]
    group = struct.unpack_from("<i", data, 37)[0] if version == 2 else 0
    for array in model.weights.values():
        used += array.size + array.size // group * 4 if group and array.ndim == 2 else array.size * 4
    if version == 0:
        used += config.seq_len * config.head_dim * 4
    assert used == len(data)


INTS = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.integers(-4, 64), st.sampled_from([2**31 - 1, -(2**31), 2**30, 65536])
)


@pytest.mark.parametrize("version", VERSIONS)
@given(field=st.integers(0, 9), value=INTS)
def test_a_changed_header_field(version: int, field: int, value: int) -> None:
    data = bytearray(checkpoint_bytes(version, SMALL, random_arrays(SMALL), GROUP))
    struct.pack_into("<i", data, field * 4, value)
    opens_whole_or_not_at_all(bytes(data))


@pytest.mark.parametrize("version", VERSIONS)
@given(values=st.lists(INTS, min_size=7, max_size=7))
def test_a_header_of_anything(version: int, values: list[int]) -> None:
    data = bytearray(checkpoint_bytes(version, SMALL, random_arrays(SMALL), GROUP))
    struct.pack_into("<7i", data, 8 if version else 0, *values)
    opens_whole_or_not_at_all(bytes(data))


@pytest.mark.parametrize("version", VERSIONS)
@given(data=st.data())
def test_changed_bytes_anywhere(version: int, data: st.DataObject) -> None:
    damaged = bytearray(checkpoint_bytes(version, SMALL, random_arrays(SMALL), GROUP))
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    opens_whole_or_not_at_all(bytes(damaged))


@given(data=st.binary(max_size=400))
def test_bytes_that_were_never_a_checkpoint(data: bytes) -> None:
    opens_whole_or_not_at_all(data)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_largest_sizes_are_refused_before_anything_is_allocated(version: int) -> None:
    data = bytearray(checkpoint_bytes(version, SMALL, random_arrays(SMALL), GROUP))
    first = 8 if version else 0
    struct.pack_into("<7i", data, first, *[2**31 - 1] * 7)
    with pytest.raises(llama2cpp.FormatError, match="dim is 2147483647"):
        load(bytes(data))
    # as large as is allowed at all: exabytes in one tensor, and more than 64 bits can count in all
    for n_layers, said in ((1, "it ends in|overflows"), (100_000, "overflows")):
        struct.pack_into("<7i", data, first, 2**30, 2**30, n_layers, 2**20, 2**20, 2**30, 2**30)
        with pytest.raises(llama2cpp.FormatError, match=said):
            load(bytes(data))


@pytest.mark.parametrize(
    ("position", "value", "said"),
    [
        (4, 0, "version .byte 4. is 0, expected 1 or 2"),
        (4, 3, "version .byte 4. is 3, expected 1 or 2"),
        (36, 2, "shared classifier .byte 36. is 2, expected 0 or 1"),
        (37, 1, "byte 37 of the header is 1, expected 0"),
        (255, 9, "byte 255 of the header is 9, expected 0"),
        (20, 5, "dim is 16, which n_heads 5 does not divide"),
        (20, 16, "head_dim is 1, expected an even number"),
        (24, 3, "n_heads is 4, which n_kv_heads 3 does not divide"),
        (28, 0, "vocab_size is 0"),
    ],
)
def test_a_version_1_header_says_what_is_wrong(position: int, value: int, said: str) -> None:
    data = bytearray(checkpoint_bytes(1, SMALL, random_arrays(SMALL)))
    data[position] = value
    with pytest.raises(llama2cpp.FormatError, match=said):
        load(bytes(data))


def test_a_classifier_that_is_not_there() -> None:
    data = bytearray(checkpoint_bytes(1, SMALL, random_arrays(SMALL)))
    data[36] = 0
    with pytest.raises(llama2cpp.FormatError, match=r"it ends in output\.weight.*own classifier"):
        load(bytes(data))


def test_a_version_2_file_with_all_scales_last() -> None:
    # as an early export.py of llama2.c wrote it: the same header and the same length
    whole = checkpoint_bytes(2, SMALL, random_arrays(SMALL), GROUP)
    gains = sum(4 * np.prod(shape) for shape in shapes(SMALL).values() if len(shape) == 1)
    start = 256 + int(gains)
    matrices = [array for array in random_arrays(SMALL).values() if array.ndim == 2]
    values, scales = zip(*(quantize(array, GROUP) for array in matrices), strict=True)
    tensors = b"".join(array.tobytes() for array in (*values, *scales))
    assert start + len(tensors) == len(whole)
    with pytest.raises(llama2cpp.FormatError, match=r"tok_embeddings.weight: scale \d+ .* export it again"):
        load(whole[:start] + tensors)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"lmgg\x03\0\0\0", "a GGML file"),
        (b"PK\x03\x04", "a zip archive, as PyTorch's .pt"),
        (b"\x80\x02", "a Python pickle"),
        (struct.pack("<Q", 16) + b'{"__metadata__":', "a safetensors file"),
        (b"<!DOCTYPE html>", "an HTML page: the download went wrong"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (
            b"hello, hello",
            r"begins with 68 65 6c 6c 6f 2c 20 68 \(hello, h\)\. Tried GGUF: .*; llama2.c v1 and v2: .*llama2.c v0",
        ),
        (b"", "the file is empty"),
    ],
)
def test_foreign_files_are_named(start: bytes, said: str) -> None:
    with pytest.raises(llama2cpp.FormatError, match=said):
        load(start + b"\0" * 100 if start else b"")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stories260K/tok512.bin", r"a llama2\.c tokenizer\.bin"),
        ("llama2/tokenizer.bin", r"a llama2\.c tokenizer\.bin"),
        ("llama2/tokenizer.model", "a SentencePiece tokenizer"),
    ],
)
def test_tokenizers_are_no_checkpoints(models_dir: Path, name: str, said: str) -> None:
    with pytest.raises(llama2cpp.FormatError, match=said):
        llama2cpp.load(models_dir / name)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, FileNotFoundError),
        (lambda path: path.mkdir(), OSError),
    ],
    ids=["missing", "folder"],
)
def test_what_the_system_refuses_is_an_os_error(
    tmp_path: Path, make: Callable[[Path], None], error: type[Exception]
) -> None:
    path = tmp_path / "nothing.bin"
    make(path)
    with pytest.raises(error, match=r"nothing\.bin"):
        llama2cpp.load(path)
