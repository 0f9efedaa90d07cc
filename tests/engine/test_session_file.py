"""Saved sessions: they go on with the same bits, the safetensors library reads and writes them, and damage is named."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
import tiny
from conftest import SUPPORT
from hypothesis import given, settings
from hypothesis import strategies as st
from on_metal import ON_METAL, agree, examples
from safetensors import SafetensorError, safe_open

import llama2cpp
from llama2cpp import FormatError, Model, Session

CONFIG = tiny.config()
PROMPT = tiny.tokens(CONFIG, 9)
Header = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(CONFIG)


@pytest.fixture(scope="module")
def data(model: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a session that has taken PROMPT."""
    session = model.session()
    session.prefill(PROMPT)
    return saved(session, tmp_path_factory.mktemp("saved") / "session.safetensors")


def saved(session: Session, path: Path) -> bytes:
    session.save(path)
    return path.read_bytes()


def opened(model: Model, data: bytes, path: Path, context: int | None = None) -> Session:
    path.write_bytes(data)
    return model.load_session(path, context)


def split(data: bytes) -> tuple[Header, bytes]:
    """The header as a dict, and the tensors' bytes."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: Header | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def state(session: Session) -> tuple[Any, ...]:
    """Everything that can be seen, as bits."""
    kv = [view(i).tobytes() for i in range(CONFIG.n_layers) for view in (session.kv.keys, session.kv.values)]
    logits = None if session.logits is None else session.logits.tobytes()
    return session.tokens, session.position, session.context, logits, kv


# They go on.


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_goes_on_with_the_same_bits(kv: str, tmp_path: Path) -> None:
    model = tiny.model(CONFIG, kv_dtype=kv)

    @settings(max_examples=examples(40))
    @given(
        prompt=st.lists(st.integers(0, CONFIG.vocab_size - 1), max_size=20),
        rewound=st.integers(0, 3),
        more=st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=5),
        context=st.integers(26, 80),
    )
    def check(prompt: list[int], rewound: int, more: list[int], context: int) -> None:
        session = model.session(context)
        if prompt:
            session.prefill(prompt)
        if rewound:
            session.rewind(max(0, len(prompt) - rewound))
        session.save(tmp_path / "session")
        fork, loaded = session.fork(), model.load_session(tmp_path / "session")
        assert state(loaded) == state(fork) == state(session)
        for token in more:
            assert loaded.step(token).tobytes() == fork.step(token).tobytes()
        assert state(loaded) == state(fork)

    check()


def test_views_are_writable_and_edits_are_saved(model: Model, tmp_path: Path) -> None:
    session = model.session()
    session.prefill(PROMPT)
    session.kv.values(1)[3] = 7
    session.save(tmp_path / "session")
    loaded = model.load_session(tmp_path / "session")
    assert (loaded.kv.values(1)[3] == 7).all()
    loaded.kv.keys(0)[:] = 0
    assert state(loaded) != state(session)
    assert state(model.load_session(tmp_path / "session")) == state(session)


def test_context(model: Model, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "session"
    path.write_bytes(data)
    assert model.load_session(path).context == CONFIG.seq_len
    assert model.load_session(path, 1000).context == 1000
    full = model.load_session(path, context=len(PROMPT))
    with pytest.raises(llama2cpp.ContextFullError):
        full.step(1)
    for context in (len(PROMPT) - 1, 0, -1):
        with pytest.raises(ValueError, match=f"context is {context}"):
            model.load_session(path, context)
    wide = model.session(1000)
    wide.save(path)
    assert model.load_session(path).context == 1000


@pytest.mark.cpu_bits("900 tokens take the software device minutes, and files are written by the host")
def test_the_largest_piece_is_crossed(tmp_path: Path) -> None:
    """Keys and values of a layer that are more than what is written at a time."""
    config = tiny.config(dim=8, hidden_dim=2, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=80, seq_len=1000)
    model = tiny.model(config)
    session = model.session()
    session.prefill(tiny.tokens(config, 900))
    assert session.kv.keys(0).nbytes > 2**20
    session.save(tmp_path / "session")
    loaded = model.load_session(tmp_path / "session")
    for view in ("keys", "values"):
        assert getattr(loaded.kv, view)(0).tobytes() == getattr(session.kv, view)(0).tobytes()


def test_a_closed_model_loads_nothing_and_its_sessions_still_save(data: bytes, tmp_path: Path) -> None:
    model = tiny.model(CONFIG)
    session = model.session()
    session.prefill(PROMPT)
    model.close()
    assert saved(session, tmp_path / "session") == data
    with pytest.raises(ValueError, match="closed"):
        model.load_session(tmp_path / "session")


# The safetensors library.


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_safetensors_reads_it(kv: str, tmp_path: Path) -> None:
    session = tiny.model(CONFIG, kv_dtype=kv).session(30)
    session.prefill(PROMPT)
    session.save(tmp_path / "session")
    arrays = safetensors.numpy.load_file(tmp_path / "session")
    expected: dict[str, Any] = {"tokens": np.array(PROMPT, np.int32), "logits": session.logits}
    for i in range(CONFIG.n_layers):
        expected |= {f"layers.{i}.keys": session.kv.keys(i), f"layers.{i}.values": session.kv.values(i)}
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
    with safe_open(tmp_path / "session", "numpy") as file:
        metadata = file.metadata()
    assert len(metadata.pop("fingerprint")) == 32
    assert metadata == {
        "format": "llama2cpp session",
        "version": "1",
        "kv": kv,
        "activations": "f32",
        "position": "9",
        "context": "30",
    }


def test_an_empty_session_is_a_file_too(model: Model, tmp_path: Path) -> None:
    model.session().save(tmp_path / "session")
    arrays = safetensors.numpy.load_file(tmp_path / "session")
    assert arrays["layers.1.keys"].shape == (0, CONFIG.n_kv_heads, CONFIG.head_dim)
    assert "logits" not in arrays
    loaded = model.load_session(tmp_path / "session")
    assert state(loaded) == state(model.session())


def test_safetensors_writes_it(model: Model, data: bytes, tmp_path: Path) -> None:
    """In its own order of tensors, with metadata that is none of ours."""
    header, _ = split(data)
    arrays = safetensors.numpy.load(data)
    metadata = {**header["__metadata__"], "note": "é\n"}
    safetensors.numpy.save_file(arrays, tmp_path / "session", metadata)
    theirs = (tmp_path / "session").read_bytes()
    assert theirs != data
    loaded = model.load_session(tmp_path / "session")
    assert state(loaded) == state(opened(model, data, tmp_path / "ours"))


# Which model.


def fingerprint_of(model: Model, path: Path) -> str:
    fingerprint: str = split(saved(model.session(), path))[0]["__metadata__"]["fingerprint"]
    return fingerprint


def fingerprint_by_hand(config: llama2cpp.Config, arrays: tiny.Arrays) -> str:
    """Another implementation: FNV-1a with 128 bits over what src/cpp/model/fingerprint.cpp says."""
    chunks: list[bytes] = []

    def add_int(value: int) -> None:
        chunks.append(struct.pack("<Q", value))

    def add_text(text: str) -> None:
        add_int(len(text.encode()))
        chunks.append(text.encode())

    def add_float(value: float) -> None:
        add_int(*struct.unpack("<I", struct.pack("<f", value)))

    fields = config.to_dict()
    scaling: dict[str, Any] = {
        "type": "none",
        "factor": 1.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_context": 8192,
    }
    scaling |= fields["rope_scaling"] or {}
    for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "seq_len"):
        add_int(fields[name])
    add_int(fields["sliding_window"] or 0)
    add_int(scaling["original_context"])
    add_float(fields["norm_eps"])
    add_float(fields["rope_theta"])
    add_text(scaling["type"])
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        add_float(scaling[name])
    if scaling["type"] == "yarn":
        for name in ("attention_factor", "beta_fast", "beta_slow"):
            add_float(scaling[name])
        add_int(scaling["truncate"])
    add_int(len(fields["rope_factors"]))
    for factor in fields["rope_factors"]:
        add_float(factor)
    add_text(fields["rope_style"])
    add_int(fields["tied"])
    for name in sorted(arrays):
        add_text(name)
        add_text("f32")
        rows, columns = np.atleast_2d(arrays[name]).shape
        for number in (rows, columns, 1):
            add_int(number)
        plane = arrays[name].tobytes()
        add_int(len(plane))
        middle = (len(plane) - 4096) // 2
        samples = [plane[:4096], plane[middle : middle + 4096], plane[-4096:]]
        chunks.extend([plane] if len(plane) <= 3 * 4096 else samples)
        for _ in range(3):  # the planes that float weights do not have
            add_int(0)
    value = 0x6C62272E07BB014262B821756295C58D
    for byte in b"".join(chunks):
        value = (value ^ byte) * (2**88 + 0x13B) % 2**128
    return f"{value:032x}"


LONG = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0, "original_context": 64}


YARN = {"type": "yarn", "factor": 4.0, "original_context": 64, "attention_factor": 1.5}
YARN |= {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": True}


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": LONG, "rope_factors": (1.0, 2.0, 3.0), "sliding_window": 9}, {"rope_scaling": YARN}],
    ids=["plain", "long", "yarn"],
)
def test_fingerprint(changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny.config(hidden_dim=171, rope_theta=5e5, norm_eps=1e-6, **changes)
    arrays = tiny.arrays(config)
    assert max(array.nbytes for array in arrays.values()) > 3 * 4096
    assert fingerprint_of(llama2cpp.from_arrays(config, arrays), tmp_path / "s") == fingerprint_by_hand(config, arrays)


def test_fingerprint_is_the_models_and_not_the_files(
    stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is opened, by whatever kernels it runs, before and after packing: sessions go from each to each."""
    file = stories_dir / "stories260K.bin"
    first = llama2cpp.load(file)
    session = first.session()
    session.prefill([1, 403, 407])
    data = saved(session, tmp_path / "session")
    expected = session.step(261)
    arrays = dict(first.weights)
    apart = {}  # the same, with holes between the rows
    for name, array in arrays.items():
        wide = np.full((len(array), array.size // len(array) + 3), np.nan, np.float32)
        wide[:, :-3] = np.reshape(array, (len(array), -1))
        apart[name] = wide[:, :-3] if array.ndim == 2 else array
    others = [
        first,
        llama2cpp.load(file, mmap=False, pack="never", threads=1),
        llama2cpp.load(file, pack="auto" if ON_METAL else "always", threads=3, context=7),
        llama2cpp.load(stories_dir / "stories260K_v1.bin"),
        llama2cpp.from_arrays(first.config, arrays),
    ]
    if ON_METAL:
        with pytest.raises(ValueError, match=r"rows do not follow each other in memory; pass numpy.ascontiguousarray"):
            llama2cpp.from_arrays(first.config, apart)
    else:
        others.append(llama2cpp.from_arrays(first.config, apart))
    for isa in [] if ON_METAL else tiny.ISAS:
        tiny.choose_isa(monkeypatch, isa)
        others.append(llama2cpp.load(file))
    for other in others:
        loaded = opened(other, data, tmp_path / "session")
        assert agree(loaded.step(261), expected)
        assert saved(opened(other, data, tmp_path / "session"), tmp_path / "again") == data


def other_models() -> dict[str, Callable[[], Model]]:
    arrays = tiny.arrays(CONFIG)
    last = {name: array.copy() for name, array in arrays.items()}
    last["layers.1.feed_forward.w2.weight"][-1, -1] += 1
    gain = {name: array.copy() for name, array in arrays.items()}
    gain["norm.weight"][5] *= -1
    fields = CONFIG.to_dict()
    return {
        "one weight": lambda: llama2cpp.from_arrays(CONFIG, last),
        "one gain": lambda: llama2cpp.from_arrays(CONFIG, gain),
        "seed": lambda: tiny.model(CONFIG, seed=1),
        "names": lambda: llama2cpp.from_arrays(CONFIG, tiny.hugging_face_names(arrays)),
        **{
            name: lambda name=name, value=value: llama2cpp.from_arrays(  # type: ignore[misc]
                llama2cpp.Config(**(fields | {name: value})), arrays
            )
            for name, value in {
                "norm_eps": 1e-6,
                "rope_theta": 10001.0,
                "rope_style": "half_split",
                "seq_len": 65,
            }.items()
        },
    }


@pytest.mark.parametrize("name", other_models())
def test_another_model(name: str, data: bytes, tmp_path: Path) -> None:
    other = other_models()[name]()
    ours, theirs = split(data)[0]["__metadata__"]["fingerprint"], fingerprint_of(other, tmp_path / "s")
    message = rf"metadata 'fingerprint' is \"{ours}\", expected \"{theirs}\" \(the session is of another model\)"
    with pytest.raises(FormatError, match=message):
        opened(other, data, tmp_path / "session")


def test_another_type_of_keys_and_values(data: bytes, tmp_path: Path) -> None:
    other = tiny.model(CONFIG, kv_dtype="f16")
    with pytest.raises(FormatError, match='metadata \'kv\' is "f32", expected "f16"'):
        opened(other, data, tmp_path / "session")


@pytest.mark.cpu_bits("int8 activations")
def test_another_type_of_activations(tmp_path: Path) -> None:
    """It would go on, but with other bits than the saved session."""
    sizes = checkpoints.SMALL
    file = tmp_path / "v2.bin"
    file.write_bytes(checkpoints.v2_bytes(sizes, checkpoints.random_arrays(sizes), group=8))
    fast, exact = llama2cpp.load(file), llama2cpp.load(file, activation_dtype="f32")
    session = fast.session()
    session.prefill([1, 2, 3])
    data = saved(session, tmp_path / "session")
    with pytest.raises(FormatError, match='metadata \'activations\' is "int8", expected "f32"'):
        exact.load_session(tmp_path / "session")
    assert opened(fast, data, tmp_path / "session").step(4).tobytes() == session.step(4).tobytes()


# Damaged and foreign files.


def test_every_cut(model: Model, data: bytes, tmp_path: Path) -> None:
    for length in range(len(data)):
        with pytest.raises(FormatError):
            opened(model, data[:length], tmp_path / "session")


@given(st.binary(min_size=1, max_size=100))
def test_padding(model: Model, data: bytes, tmp_path_factory: pytest.TempPathFactory, more: bytes) -> None:
    with pytest.raises(FormatError, match=f"expected {len(data)} bytes, .* found {len(data) + len(more)}"):
        opened(model, data + more, tmp_path_factory.getbasetemp() / "padded")


def library_reads(data: bytes) -> bool:
    try:
        safetensors.numpy.load(data)
    except SafetensorError:
        return False
    return True


def check_opening(model: Model, data: bytes, path: Path) -> None:
    """A session that works, or a FormatError; and no file that the library refuses."""
    try:
        session = opened(model, data, path)
    except FormatError:
        return
    assert library_reads(data)
    assert all(0 <= token < CONFIG.vocab_size for token in session.tokens)
    assert session.position == len(session.tokens) <= session.context
    if session.position < session.context:
        assert session.step(1).shape == (CONFIG.vocab_size,)


Edits = list[tuple[int, bytes]]


def edits_of(length: int) -> st.SearchStrategy[Edits]:
    """Places, and what is written over them."""
    text = st.sampled_from([b"0", b"1", b"9", b'"', b",", b"[", b"]", b"{", b"}", b":", b"-", b"e", b" ", b"\\", b"F"])
    return st.lists(
        st.tuples(st.integers(0, length - 1), text | st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    )


def test_damage(model: Model, data: bytes, tmp_path: Path) -> None:
    header_end = len(data) - len(split(data)[1])

    @settings(max_examples=examples(600))
    @given(edits=edits_of(header_end) | edits_of(len(data)), cut=st.sampled_from([0, 0, 0, 1, 40]))
    def check(edits: Edits, cut: int) -> None:
        damaged = bytearray(data)
        for at, new in edits:
            damaged[at : at + len(new)] = new
        check_opening(model, bytes(damaged[: len(damaged) - cut]), tmp_path / "session")

    check()


def test_inserted_and_removed_bytes(model: Model, data: bytes, tmp_path: Path) -> None:
    """With a header length that fits again, so that what is inside has to be looked at."""
    header, body = data[8 : len(data) - len(split(data)[1])], split(data)[1]

    @settings(max_examples=examples(600))
    @given(edits=edits_of(len(header)), removed=st.integers(0, 3))
    def check(edits: Edits, removed: int) -> None:
        damaged = bytearray(header)
        for at, new in edits:
            damaged[at : at + removed] = new
        check_opening(model, joined(bytes(damaged), body), tmp_path / "session")

    check()


@given(noise=st.data())
def test_damaged_numbers_are_numbers(
    model: Model, data: bytes, tmp_path_factory: pytest.TempPathFactory, noise: st.DataObject
) -> None:
    """Logits, keys and values may be any bits, and are taken as they are."""
    header, body = split(data)
    begin = header["logits"]["data_offsets"][0]
    damaged = bytearray(body)
    for at in noise.draw(st.lists(st.integers(begin, len(body) - 1), max_size=20)):
        damaged[at] = noise.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "noise"
    loaded = opened(model, joined(header, bytes(damaged)), path)
    loaded.save(path)
    assert split(path.read_bytes())[1] == damaged
    loaded.step(1)


@given(st.binary(max_size=200))
def test_foreign_bytes(model: Model, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with pytest.raises(FormatError):
        opened(model, data, tmp_path_factory.getbasetemp() / "foreign")


def edited(data: bytes, change: Callable[[Header], object]) -> bytes:
    header, body = split(data)
    change(header)
    return joined(header, body)


def meta(**changes: Any) -> Callable[[Header], object]:
    """Changes metadata; None removes it."""

    def change(header: Header) -> None:
        for name, value in changes.items():
            if value is None:
                del header["__metadata__"][name]
            else:
                header["__metadata__"][name] = value

    return change


def tensor(name: str, **changes: Any) -> Callable[[Header], object]:
    return lambda header: header[name].update(changes)


def with_tokens(data: bytes, tokens: list[int]) -> bytes:
    header, body = split(data)
    return joined(header, np.array(tokens, "<i4").tobytes() + body[4 * len(tokens) :])


HUGE = 2**62
PROBLEMS: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda d: b"", "the file is empty"),
    (lambda d: d[:7], "expected the header's length in the first 8 bytes, found 7 bytes in all"),
    (lambda d: b"\xff" * 8 + d[8:], "header's length .byte 0. is 18446744073709551615, expected at most [0-9]+"),
    (lambda d: struct.pack("<Q", len(d) - 7) + d[8:], "which is the rest of the file"),
    (lambda d: struct.pack("<Q", 0) + d[8:], "expected '{' at byte 8"),
    (lambda d: joined(b" {}", b""), "expected '{' at byte 8"),
    (lambda d: joined(b"{}", b""), "a safetensors file, but no session: the metadata has no 'fingerprint'"),
    (lambda d: joined(b'{"a":1}', b""), r"header.a .byte 13.: expected an object, found an integer"),
    (lambda d: joined(b'{"a":{},"a":{}}', b""), 'header: byte 20: the object has "a" twice'),
    (lambda d: joined(b'{"a":{"dtype":"F32","dtype":"F32"}}', b""), '"dtype" twice'),
    (lambda d: joined(b'{"a":{}} x', b""), "header: byte 17: expected nothing after the value"),
    (lambda d: joined(b'{"\xff":{}}', b""), "header: byte 10: expected UTF-8, found byte 255"),
    (lambda d: joined(b'{"__metadata__":{"a":1}}', b""), "header.__metadata__.a .byte 29.: expected a string"),
    (lambda d: joined(b'{"__metadata__":null}', b""), "no session: the metadata has no 'fingerprint'"),
    (lambda d: edited(d, meta(fingerprint=None)), "the metadata has no 'fingerprint'"),
    (lambda d: edited(d, meta(format=None)), "the metadata has no 'format'"),
    (lambda d: edited(d, meta(format="pt")), '\'format\' is "pt", expected "llama2cpp session"'),
    (lambda d: edited(d, meta(version="2")), '\'version\' is "2", expected "1"'),
    (lambda d: edited(d, meta(fingerprint="0" * 32)), "the session is of another model"),
    (lambda d: edited(d, meta(kv="f64")), '\'kv\' is "f64", expected "f32"'),
    (lambda d: edited(d, meta(position=None)), "the metadata has no 'position'"),
    (lambda d: edited(d, meta(position="-1")), "'position' is \"-1\", expected a number of 0 or more"),
    (lambda d: edited(d, meta(position="9.0")), "'position' is \"9.0\", expected a number"),
    (lambda d: edited(d, meta(position="")), "'position' is \"\", expected a number"),
    (lambda d: edited(d, meta(position="9" * 30)), "'position' is \"9{30}\", expected a number"),
    (lambda d: edited(d, meta(position="8")), r"tensor 'tokens' is I32 \[9\], expected I32 \[8\]"),
    (lambda d: edited(d, meta(position="0")), r"tensor 'tokens' is I32 \[9\], expected I32 \[0\]"),
    (lambda d: edited(d, meta(position=str(HUGE), context=str(HUGE))), rf"expected I32 \[{HUGE}\]"),
    (lambda d: edited(d, meta(context="8")), "'context' is \"8\", expected a number of 9 or more"),
    (lambda d: edited(d, meta(context=str(10**14))), f"'context' is {10**14}, for which there is no room in memory"),
    (lambda d: edited(d, meta(context=str(HUGE))), "for which there is no room in memory"),
    (lambda d: edited(d, tensor("tokens", dtype="U32")), r"'tokens' is U32 \[9\], expected I32 \[9\]"),
    (lambda d: edited(d, tensor("tokens", shape=[3, 3])), r"'tokens' is I32 \[3, 3\], expected I32 \[9\]"),
    (lambda d: edited(d, tensor("logits", dtype="I32")), r"'logits' is I32 \[53\], expected F32 \[53\]"),
    (
        lambda d: edited(d, tensor("layers.0.keys", shape=[9, 6, 2])),
        r"'layers.0.keys' is F32 \[9, 6, 2\], expected F32 \[9, 2, 6\]",
    ),
    (
        lambda d: edited(d, tensor("layers.0.keys", shape=[9, 2, 7])),
        r'header\["layers.0.keys"\] .byte [0-9]+.: F32 \[9, 2, 7\] takes 504 bytes, but its place in the file has 432',
    ),
    (lambda d: edited(d, tensor("tokens", dtype="I33")), 'header.tokens.dtype .*: the type "I33" is none that'),
    (lambda d: edited(d, tensor("tokens", dtype=5)), "header.tokens.dtype .*: expected a string, found an integer"),
    (lambda d: edited(d, tensor("tokens", shape=[-9])), "header.tokens.shape.0. .*: expected a size of 0 or more"),
    (lambda d: edited(d, tensor("tokens", shape=[9.0])), "header.tokens.shape.0. .*: expected an integer"),
    (lambda d: edited(d, tensor("tokens", shape=[HUGE, HUGE])), "overflows the address space"),
    (
        lambda d: edited(d, tensor("tokens", shape=[2**64])),
        "header.tokens.shape.0. .*: expected an integer, found a nu",
    ),
    (lambda d: edited(d, tensor("tokens", data_offsets=[0])), "data_offsets .*: expected .begin, end., found 1 values"),
    (lambda d: edited(d, tensor("tokens", data_offsets=[36, 0])), "data_offsets .*: expected 0 <= begin <= end <= "),
    (lambda d: edited(d, tensor("tokens", data_offsets=[0, 10**9])), "which is the end of the file, found 0 and 1000"),
    (lambda d: edited(d, tensor("tokens", data_offsets=[-1, 35])), "data_offsets.0. .*: expected an integer of 0 or"),
    (lambda d: edited(d, tensor("tokens", data_offsets=[1, 37])), 'tensor "tokens" begins at byte [0-9]+, expected'),
    (lambda d: edited(d, tensor("tokens", dtype="F4", shape=[3])), "12 bits are no whole bytes"),
    (lambda d: edited(d, lambda h: h.pop("tokens")), 'tensor "logits" begins at byte .*, where the header ends'),
    (lambda d: edited(d, lambda h: h.update(a=h["tokens"])), "begins at byte .*, where the tensor before it ends"),
    (
        lambda d: edited(d, lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
        'tensor "more" has no place in a session of this model',
    ),
    (
        lambda d: edited(d, lambda h: h.update({"layers.2.keys": h.pop("layers.1.keys")})),
        "tensor 'layers.1.keys' is missing",
    ),
    (lambda d: edited(d, lambda h: h.pop("layers.1.values")), "which is where the last tensor ends, found"),
    (lambda d: with_tokens(d, [1, 2, CONFIG.vocab_size]), "token 2 is 53, expected 0 to 52"),
    (lambda d: with_tokens(d, [-1]), "token 0 is -1, expected 0 to 52"),
]


@pytest.mark.parametrize(("damage", "problem"), PROBLEMS)
def test_damage_is_named(
    model: Model, data: bytes, tmp_path: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    with pytest.raises(FormatError, match=re.escape(str(tmp_path / "session")) + ": .*" + problem):
        opened(model, damage(data), tmp_path / "session")


def test_a_smaller_context_helps(model: Model, data: bytes, tmp_path: Path) -> None:
    damaged = edited(data, meta(context=str(10**14)))
    assert opened(model, damaged, tmp_path / "session", context=20).tokens == PROMPT


def test_logits_without_tokens(model: Model, tmp_path: Path) -> None:
    header, body = split(saved(model.session(), tmp_path / "session"))
    size = 4 * CONFIG.vocab_size
    header["logits"] = {"dtype": "F32", "shape": [CONFIG.vocab_size], "data_offsets": [len(body), len(body) + size]}
    with pytest.raises(FormatError, match='tensor "logits" has no place'):
        opened(model, joined(header, body + bytes(size)), tmp_path / "session")


def test_other_files(stories_dir: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="header's length"):
        model.load_session(stories_dir / "stories260K.bin")
    safetensors.numpy.save_file({"weight": np.zeros((2, 3), np.float32)}, tmp_path / "weights")
    with pytest.raises(FormatError, match="no session"):
        model.load_session(tmp_path / "weights")
    with pytest.raises(FileNotFoundError):
        model.load_session(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        model.load_session(tmp_path)


# Writing.


@pytest.mark.parametrize("name", ["plain", "é \U0001f680.safetensors", "x" * 255])
def test_names(model: Model, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    session = opened(model, data, tmp_path / name)
    session.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == data
    monkeypatch.chdir(tmp_path)
    session.save(name)
    assert state(model.load_session(name)) == state(session)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_path_that_cannot_be(model: Model, tmp_path: Path) -> None:
    session = model.session()
    with pytest.raises(FileNotFoundError) as error:
        session.save(tmp_path / "missing" / "session")
    assert error.value.filename == str(tmp_path / "missing" / "session")
    with pytest.raises(IsADirectoryError):
        session.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/null")
def test_a_device_is_not_replaced(model: Model) -> None:
    with pytest.raises(OSError, match="/dev/null"):
        model.session().save(os.devnull)
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's permissions")
def test_permissions_are_those_of_any_new_file(model: Model, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    model.session().save(tmp_path / "session")
    assert (tmp_path / "session").stat().st_mode == (tmp_path / "any").stat().st_mode


FULL_DISK = """
import resource, sys
sys.path[:0] = [{support!r}]
import tiny
session = tiny.model(tiny.config()).session()
session.prefill(list(range(40)))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    session.save({path!r})
except OSError as error:
    print(error.strerror, "|", error.filename)
"""

SAVES = """
import sys
sys.path[:0] = [{support!r}]
import tiny
session = tiny.model(tiny.config()).session()
while True:
    session.prefill([1, 2, 3])
    session.save({path!r})
    print(session.position, flush=True)
    if session.position == 60:
        session.rewind(0)
"""


def program(text: str, path: Path, **values: Any) -> list[str]:
    return [sys.executable, "-c", text.format(support=str(SUPPORT), path=str(path), **values)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit for the size of files")
@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_a_full_disk_leaves_the_old_file(model: Model, data: bytes, tmp_path: Path, limit: int) -> None:
    path = tmp_path / "session"
    path.write_bytes(data)
    result = subprocess.run(
        program(FULL_DISK, path, limit=limit),
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        timeout=120,
    )
    assert result.stdout == f"File too large | {path}\n"
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_a_whole_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "session"
    for saves in (1, 2, 17):
        with subprocess.Popen(program(SAVES, path), stdout=subprocess.PIPE, env=environment()) as process:
            assert process.stdout is not None
            for _ in range(saves):
                assert process.stdout.readline()
            process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        loaded = model.load_session(path)
        assert loaded.tokens == [1, 2, 3] * (loaded.position // 3)
        path.unlink()


def test_many_threads_save_to_one_path(model: Model, tmp_path: Path) -> None:
    sessions = [model.session() for _ in range(8)]
    for i, session in enumerate(sessions):
        session.prefill([i] * (i + 1))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(lambda session: session.save(tmp_path / "session"), sessions))
            assert state(model.load_session(tmp_path / "session")) in [state(session) for session in sessions]
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_waits_for_a_call_that_is_on(model: Model, tmp_path: Path) -> None:
    """What is saved is the state before a call or after it."""
    length = 200 if ON_METAL else 2000  # all positions are attended to again and again
    chunk = length // 20
    session = model.session(length)
    tokens = tiny.tokens(CONFIG, length)
    with ThreadPoolExecutor(1) as pool:
        for begin in range(0, length, chunk):
            call = pool.submit(session.prefill, tokens[begin : begin + chunk])
            session.save(tmp_path / "session")
            call.result()
            loaded = model.load_session(tmp_path / "session")
            assert loaded.position in (begin, begin + chunk)
            assert loaded.tokens == tokens[: loaded.position]
            if loaded.position:
                assert loaded.logits is not None
                expected = model.session(length).prefill(tokens[: loaded.position])
                assert agree(loaded.logits, expected)
