"""Integers that matmul adds up in 32 bits: readers and writers hold the groups of a file to the limit."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import llama2cpp
from llama2cpp import _core
from llama2cpp.export import convert

MOST = 65_536  # columns that share a scale, in llama2.c's int8
WIDE = {"dim": 8, "hidden_dim": 2 * MOST, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "vocab_size": 16, "seq_len": 8}
W2 = "layers.0.feed_forward.w2.weight"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of panels of int8 in groups of 8, whose MLP is wider than a group may be."""
    folder = tmp_path_factory.mktemp("wide")
    config = tiny.config(**WIDE)
    convert(tiny.model(config), folder / "m.bin", "int8", group=8)
    return convert(folder / "m.bin", folder / "m.safetensors").path


def regrouped(path: Path, to: Path, group: int) -> Path:
    """Write the file with another group for w2, and the bytes that it then takes: weights of 1, scales of 1."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    facts: dict[str, Any] = json.loads(header["__metadata__"]["weights"])
    facts[W2]["group"] = group
    header["__metadata__"]["weights"] = json.dumps(facts, separators=(",", ":"))
    groups = 2 * MOST // group
    part = bytes([129]) * (16 * group) + np.ones(16, np.float32).tobytes()
    panels = part * groups
    panels += bytes(-len(panels) % 64)
    body = b""
    for name, tensor in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [-1])[0]):
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        content = panels if name == W2 else data[begin:end]
        tensor["shape"] = [len(content)] if name == W2 else tensor["shape"]
        tensor["data_offsets"] = [len(body), len(body) + len(content)]
        body += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    to.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return to


def test_a_file_of_panels_with_the_largest_group_is_right(wide: Path, tmp_path: Path) -> None:
    model = llama2cpp.load(regrouped(wide, tmp_path / "m.safetensors", MOST), backend="cpu", threads=1)
    _, cache = model.run_with_cache([3], ["blocks.0.hook_mlp_out", "blocks.0.mlp.hook_post"])
    post = np.asarray(cache["blocks.0.mlp.hook_post"], dtype=np.float64).reshape(2, MOST)
    step = np.abs(post).max(axis=1) / 127  # what an input is rounded by, at most half of it
    np.testing.assert_allclose(cache["blocks.0.hook_mlp_out"].ravel(), post.sum(), atol=MOST * step.sum() / 2)
    q = np.rint(post / step[:, None]).sum(axis=1) * step  # exact integer sums
    np.testing.assert_allclose(cache["blocks.0.hook_mlp_out"].ravel(), q.sum(), rtol=1e-2, atol=step.max() * 50)


def test_a_file_of_panels_with_a_larger_group_is_refused(wide: Path, tmp_path: Path) -> None:
    path = regrouped(wide, tmp_path / "m.safetensors", 2 * MOST)
    with pytest.raises(llama2cpp.FormatError, match="groups of 131072, expected at most 65536 in int8_group"):
        llama2cpp.load(path, threads=1)


def test_no_writer_makes_a_larger_group(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group is 131072, expected at most 65536"):
        _core.encode_int8_group(np.zeros((1, 2 * MOST), np.float32), 2 * MOST)
    config = tiny.config(**WIDE | {"dim": 2 * MOST, "hidden_dim": 2 * MOST, "n_heads": 2 * MOST // 8, "n_kv_heads": 1})
    with pytest.raises(ValueError, match="group is 131072, expected at most 65536"):
        llama2cpp.export.llama2c_file.choose_group(config, 2 * MOST)
