"""Activations of many texts in folders: each row is the run's, once, whatever has ended a run before."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import SUPPORT
from numpy.typing import NDArray
from safetensors import safe_open

import llama2cpp
from llama2cpp import interventions
from llama2cpp.activation_data.shards import encoded, permutation, widened
from llama2cpp.inside.places import is_pattern

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX's")

RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(1, 53, size=length).tolist() for length in RNG.integers(1, 12, size=80)]
TOKENS = sum(map(len, TEXTS))


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(tiny.config(n_layers=3), threads=1)


@pytest.fixture(scope="module")
def runs(model: llama2cpp.Model) -> list[llama2cpp.ActivationCache]:
    """Each text by itself."""
    return [model.run_with_cache(ids, return_type=None)[1] for ids in TEXTS]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def in_order(data: llama2cpp.ActivationData, array: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(array[np.lexsort((data["positions"], data["text"]))])


def pooled(rows: NDArray[np.float32], pool: str | None) -> NDArray[Any]:
    if pool == "mean":
        return np.asarray(rows.mean(axis=0, keepdims=True, dtype=np.float64), dtype=np.float32)
    return rows[-1:] if pool == "last" else rows


@pytest.mark.cpu_bits("runs of several texts have the bits of single ones")
@pytest.mark.parametrize("pool", [None, "last", "mean"])
@pytest.mark.parametrize("shuffle", [None, 3])
def test_rows_are_those_of_the_runs(
    model: llama2cpp.Model, runs: list[Any], pool: str | None, shuffle: int | None, tmp_path: Path
) -> None:
    data = model.extract(
        iter(TEXTS),
        lambda name: not is_pattern(name),
        out=tmp_path,
        pool=pool,
        dtype="f32",
        shuffle=shuffle,
        shard_size=500_000,
    )
    assert len(data._rows) > 1 or pool
    assert data.texts == len(TEXTS)
    assert len(data) == (len(TEXTS) if pool else TOKENS)
    assert set(data.points) == {name for name in runs[0] if not is_pattern(name)} | {
        f"blocks.{i}.attn.hook_result" for i in range(3)
    }
    for name in runs[0]:
        if is_pattern(name):
            continue
        expected = np.concatenate([pooled(run[name][0], pool) for run in runs])
        assert (in_order(data, data[name]) == expected).all(), name
    lengths = [len(ids) for ids in TEXTS]
    last = np.array(lengths) - 1
    positions = last if pool else np.concatenate([np.arange(length) for length in lengths])
    assert (in_order(data, data["positions"]) == positions).all()
    ids = [ids[-1:] if pool else ids for ids in TEXTS]
    assert (in_order(data, data["tokens"]) == np.concatenate(ids)).all()
    if shuffle is not None and pool is None:
        assert (data["text"] != np.sort(data["text"])).any()


def test_other_programs_read_the_files(model: llama2cpp.Model, runs: list[Any], tmp_path: Path) -> None:
    data = model.extract(TEXTS[:9], ["resid_post", "hook_embed"], [0, -1], out=tmp_path)
    with safe_open(tmp_path / "activations-00000.safetensors", "numpy") as file:
        names = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "hook_embed"]
        assert set(file.keys()) == {"text", "tokens", "positions", *names}
        for name in data.points:
            expected = np.concatenate([run[name][0] for run in runs[:9]])
            assert file.get_tensor(name).dtype == np.float16
            np.testing.assert_allclose(file.get_tensor(name), expected, rtol=1e-3, atol=1e-6)
    manifest = json.loads((tmp_path / "activations.json").read_text())
    assert (manifest["complete"], manifest["texts"], manifest["dtype"]) == (True, 9, "f16")
    assert manifest["points"]["hook_embed"] == [36]


def test_float_types_are_torchs() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, size=20_000, dtype=np.uint32)
    floats = np.concatenate(
        [bits.view(np.float32), np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8], dtype=np.float32)]
    )
    as_torch = torch.from_numpy(floats).to(torch.bfloat16)
    stored = widened(encoded(floats, "bf16", "x"))
    assert np.array_equal(stored, as_torch.float().numpy(), equal_nan=True)
    small = floats[np.abs(np.nan_to_num(floats, nan=0, posinf=0, neginf=0)) < 65_000]
    assert np.array_equal(encoded(small, "f16", "x"), torch.from_numpy(small).to(torch.float16).numpy(), equal_nan=True)


def test_numbers_that_float16_has_not(model: llama2cpp.Model, tmp_path: Path) -> None:
    huge = interventions.scale("resid_post", 1e6, layer=1)
    told = (
        r"extract: text \d+: blocks.1.hook_resid_post has a number of size [\d.e+]+, and float16 none above 65504: pass"
    )
    with model.hooks([huge]), pytest.raises(ValueError, match=told):
        model.extract(TEXTS, "resid_post", 1, out=tmp_path / "f16")
    with model.hooks([huge]):
        data = model.extract(TEXTS, "resid_post", 1, out=tmp_path / "bf16", dtype="bf16")
    assert np.isfinite(data["resid_post", 1]).all()


# --- going on


KILLED = f"""
import os, random, signal, sys, time
sys.path.insert(0, {str(SUPPORT)!r})
import numpy as np, tiny
from pathlib import Path

rng = np.random.default_rng(1)
texts = [rng.integers(1, 53, size=length).tolist() for length in rng.integers(1, 20, size=400)]
model = tiny.model(tiny.config(n_layers=3), threads=1)
def run(folder):
    model.extract(iter(texts), "resid_post", out=folder, shuffle=5, shard_size=20_000, progress=False)
whole, killed = Path(sys.argv[1]), Path(sys.argv[2])
began = time.perf_counter()
run(whole)
seconds = time.perf_counter() - began
kills = 0
random.seed(3)
while kills < 12:
    child = os.fork()
    if child == 0:
        run(killed)
        os._exit(0)
    time.sleep(random.uniform(0, seconds / 3))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    manifest = killed / "activations.json"
    if manifest.exists() and b'"complete": true' in manifest.read_bytes():
        break
print(kills, len(list(killed.glob("act*"))), len(list(whole.glob("act*"))))
run(killed)
"""


@posix
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Nothing is lost and nothing doubled: the bytes are those of a run that was never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, whole, killed], capture_output=True, text=True, check=True, timeout=300
    )
    kills, _, files = map(int, done.stdout.split())
    assert kills >= 3
    assert files > 10
    assert contents(killed) == contents(whole)


@pytest.mark.cpu_bits("what goes on has the bits of what did not stop")
@pytest.mark.parametrize("shuffle", [None, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_is_done_is_kept(
    model: llama2cpp.Model, tmp_path: Path, error: type[BaseException], shuffle: int | None
) -> None:
    """And not computed again."""

    def until(stop: int) -> Iterator[list[int]]:
        yield from TEXTS[:stop]
        raise error

    def extract(texts: Any, folder: str) -> llama2cpp.ActivationData:
        return model.extract(
            texts, "resid_post", out=tmp_path / folder, shuffle=shuffle, shard_size=100_000, progress=False
        )

    extract(TEXTS, "whole")
    for stop in (32, 40, 70):
        with pytest.raises(error):
            extract(until(stop), "stopped")
        there = llama2cpp.read_activations(tmp_path / "stopped")
        assert there.texts >= stop - 32
        assert "not complete" in repr(there)
    seen = []
    with model.hooks([("hook_embed", lambda embed, hook: seen.append(embed.shape[1]))]):
        extract(iter(TEXTS), "stopped")
    assert seen == [len(ids) for ids in TEXTS[there.texts :]]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.cpu_bits("what goes on has the bits of what did not stop")
def test_texts_may_be_added(model: llama2cpp.Model, tmp_path: Path) -> None:
    for count in (0, 10, 10, 45, 80):
        data = model.extract(TEXTS[:count], "resid_post", out=tmp_path / "more", shuffle=1, shard_size=30_000)
        assert data.texts == count
    model.extract(TEXTS, "resid_post", out=tmp_path / "once", shuffle=1, shard_size=30_000)
    assert contents(tmp_path / "more") == contents(tmp_path / "once")


def test_texts_are_read_as_they_are_needed(model: llama2cpp.Model, tmp_path: Path) -> None:
    read = 0
    ahead = []

    def texts() -> Iterator[list[int]]:
        nonlocal read
        for ids in TEXTS:
            read += 1
            yield ids

    with model.hooks([("hook_embed", lambda embed, hook: ahead.append(read - len(ahead)))]):
        model.extract(texts(), "resid_post", 0, out=tmp_path)
    assert max(ahead) <= 33


def other_model() -> llama2cpp.Model:
    return llama2cpp.from_arrays(tiny.config(n_layers=3), tiny.arrays(tiny.config(n_layers=3), seed=9))


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("points", {"points": "z"}, "its points is"),
    ("layers", {"layers": 1}, "its points is"),
    ("pool", {"pool": "mean"}, "its pool is None, and this one's 'mean'"),
    ("dtype", {"dtype": "f32"}, "its dtype is 'f16', and this one's 'f32'"),
    ("shuffle", {"shuffle": 2}, "its shuffle is None, and this one's 2"),
    ("shard_size", {"shard_size": "1MB"}, "its shard_rows is"),
    ("truncate", {"truncate": True}, "its truncate is False, and this one's True"),
    ("texts", {"texts": [[1, 2, 3], *TEXTS[1:]]}, "is of other texts: in activations-00000.safetensors, those from 0"),
    ("fewer texts", {"texts": TEXTS[:3]}, "is of other texts: it has"),
    ("resume", {"resume": False}, "has activations: pass resume=True"),
    ("model", {"model": other_model}, "its model is"),
]


@pytest.mark.parametrize(("changed", "message"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_another_run_is_refused(model: llama2cpp.Model, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"texts": TEXTS, "points": "resid_post", "layers": None, "shard_size": "20kB"}
    model.extract(**usual, out=tmp_path)
    before = contents(tmp_path)
    runner = changed.get("model", lambda: model)()
    given = {**usual, **{name: value for name, value in changed.items() if name != "model"}}
    with pytest.raises(FileExistsError, match=re.escape(message)) as caught:
        runner.extract(**given, out=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == before


def test_no_name_is_no_folder(model: llama2cpp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the current one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^extract: out is '', expected the name of a folder$"):
        model.extract([[1, 2]], "resid_post", out="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(model: llama2cpp.Model, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir")
    with pytest.raises(FileExistsError, match=r"has letter\.txt, and no activations: pass an empty folder"):
        model.extract(TEXTS, "resid_post", out=tmp_path)
    with pytest.raises(FileExistsError, match=r"letter\.txt is a file, expected the name of a folder"):
        model.extract(TEXTS, "resid_post", out=tmp_path / "letter.txt")


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"points": "resid_pots"}, ValueError, "called 'resid_pots'; close to it are resid_post"),
    ({"points": []}, ValueError, "name no activation"),
    ({"points": "pattern"}, ValueError, "blocks.0.attn.hook_pattern has a number for each pair of tokens"),
    ({"points": "attn_scores0"}, ValueError, "run_with_cache gives it"),
    ({"points": "z0", "layers": 1}, ValueError, "points 'z0' with layers 1 name no activation"),
    ({"layers": 3}, ValueError, "extract: layers is 3, expected -3 to 2"),
    ({"layers": [0, -4]}, ValueError, "extract: layers is -4, expected -3 to 2"),
    ({"layers": "last"}, TypeError, "layers is 'last' (str), expected an integer"),
    ({"layers": []}, ValueError, "name no activation"),
    ({"pool": "max"}, ValueError, "pool is 'max', expected None, 'last' or 'mean'"),
    ({"dtype": "float16"}, ValueError, "dtype is 'float16', expected one of: f16, bf16, f32"),
    ({"shuffle": -1}, ValueError, "shuffle is -1"),
    ({"shuffle": True}, TypeError, "shuffle is True"),
    ({"shard_size": "many"}, ValueError, "shard_size is 'many', expected a number of bytes"),
    ({"shard_size": 0}, ValueError, "shard_size is 0"),
    ({"texts": "Once upon a time"}, TypeError, "texts is of type str, expected several texts"),
    ({"texts": 5}, TypeError, "texts is of type int"),
    ({"texts": [[1, 2], []]}, ValueError, "extract: text 1 has no tokens"),
    ({"texts": [[1, 2], [53]]}, ValueError, "extract: text 1: a token is 53, expected 0 to 52"),
    ({"texts": [[1, 2.5]]}, ValueError, "extract: text 0: a token id is 2.5"),
    ({"texts": [{"text": "Once"}]}, TypeError, "text 0 is of type dict, expected a text or ids; pass the texts in it"),
    ({"texts": [None]}, TypeError, "text 0 is of type NoneType"),
    ({"texts": ["Once"]}, ValueError, "the model has no tokenizer"),
    ({"texts": [[1] * 65]}, ValueError, "text 0 has 65 tokens, and the context 64: pass truncate=True"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_calls(
    model: llama2cpp.Model, tmp_path: Path, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model.extract(**{"texts": TEXTS, "points": "resid_post", "out": tmp_path / "rows", **changed})


def test_long_texts_are_cut_where_asked(model: llama2cpp.Model, tmp_path: Path) -> None:
    data = model.extract([[1] * 70, [1, 2]], "resid_post", 0, out=tmp_path, truncate=True)
    assert len(data) == 66
    assert data.manifest["truncated"] == 1


# --- reading


@pytest.fixture(scope="module")
def data(model: llama2cpp.Model, tmp_path_factory: pytest.TempPathFactory) -> llama2cpp.ActivationData:
    folder = tmp_path_factory.mktemp("rows")
    return model.extract(TEXTS, "resid_post", [0, 2], out=folder, dtype="bf16", shuffle=1, shard_size=10_000)


def keys(batches: Any) -> list[tuple[int, int]]:
    return [pair for batch in batches for pair in zip(batch["text"].tolist(), batch["positions"].tolist(), strict=True)]


EVERY = sorted((i, position) for i, ids in enumerate(TEXTS) for position in range(len(ids)))


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("shuffle", [None, 0, 4])
@pytest.mark.parametrize("mix", [1, 3, 100])
def test_batches_have_each_row_once(data: llama2cpp.ActivationData, size: int, shuffle: int | None, mix: int) -> None:
    batches = list(data.batches(size, ("resid_post", -1), shuffle=shuffle, mix=mix))
    assert sorted(keys(batches)) == EVERY
    assert all(len(batch["text"]) == size for batch in batches[:-1])
    assert set(batches[0]) == {"blocks.2.hook_resid_post", "text", "tokens", "positions"}
    rows = dict(zip(keys([{"text": data["text"], "positions": data["positions"]}]), data["resid_post", 2], strict=True))
    for batch in batches[:3]:
        for key, row in zip(keys([batch]), batch["blocks.2.hook_resid_post"], strict=True):
            assert (row == rows[key]).all()


def test_orders(data: llama2cpp.ActivationData) -> None:
    def order(**options: Any) -> list[tuple[int, int]]:
        return keys(data.batches(16, **options))

    assert order(shuffle=3) == order(shuffle=3, epoch=0)
    assert len({tuple(order(shuffle=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(permutation([1, 2], 1000).tolist()) == list(range(1000))
    assert permutation([1, 2], 5).tolist() == permutation([1, 2], 5).tolist()


def test_seeds_and_sizes_of_batches(data: llama2cpp.ActivationData) -> None:
    for read in (data.batches, data.torch):
        assert sorted(keys(read(16, shuffle=2**64 - 1))) == EVERY
        with pytest.raises(ValueError, match=r"shuffle is 18446744073709551616, expected 0 to 2\*\*64 - 1"):
            read(16, shuffle=2**64)
        with pytest.raises(ValueError, match="size is 0"):
            read(0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork")
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_workers_of_torch_share_the_rows(data: llama2cpp.ActivationData, workers: int, batch_size: int | None) -> None:
    rows = data.torch(batch_size, [("resid_post", 0)], shuffle=2)
    loader = torch.utils.data.DataLoader(rows, batch_size=None if batch_size else 16, num_workers=workers)
    batches = list(loader)
    assert sorted(keys(batches)) == EVERY
    assert batches[0]["blocks.0.hook_resid_post"].dtype == torch.bfloat16
    first = keys(batches)
    rows.set_epoch(1)
    assert keys(loader) != first


def test_hugging_faces_form_is_asked_for_by_files(
    data: llama2cpp.ActivationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library, which splits lists of a generator's arguments among processes, is not among the tests' own."""
    asked: dict[str, Any] = {}

    class IterableDataset:
        @staticmethod
        def from_generator(generator: Callable[..., Any], gen_kwargs: dict[str, Any]) -> str:
            asked.update(generator=generator, **gen_kwargs)
            return "made"

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(IterableDataset=IterableDataset))
    assert data.datasets(("resid_post", 2)) == "made"
    generator, files = asked.pop("generator"), asked.pop("files")
    rows = [row for part in (files[::2], files[1::2]) for row in generator(files=part, **asked)]
    assert sorted((row["text"], row["positions"]) for row in rows) == EVERY
    assert rows[0]["blocks.2.hook_resid_post"].shape == (36,)


@pytest.mark.parametrize(("method", "package"), [("datasets", "datasets"), ("torch", "torch")])
def test_a_library_that_is_missing(
    data: llama2cpp.ActivationData, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "llama2cpp.activation_data.torch_dataset", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"ActivationData\.{method} needs .*: pip install {package}$"):
        getattr(data, method)()


def test_damaged_folders(data: llama2cpp.ActivationData, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(data.folder, tmp_path / name))

    with pytest.raises(FileNotFoundError, match=r"activations\.json, which extract writes"):
        llama2cpp.read_activations(tmp_path)
    missing = copy("missing")
    (missing / "activations-00003.safetensors").unlink()
    with pytest.raises(llama2cpp.FormatError, match=r"activations-00003\.safetensors is missing"):
        llama2cpp.read_activations(missing)
    broken = copy("broken")
    file = broken / "activations-00001.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], whole[:8] + b"[" * 5000, b"\0" * 64):
        file.write_bytes(damaged)
        with pytest.raises(llama2cpp.FormatError, match="activations-00001"):
            llama2cpp.read_activations(broken)
    rng = np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little")
    for _ in range(150):
        changed = bytearray(whole)
        changed[rng.integers(8, 8 + header)] = rng.integers(256)
        file.write_bytes(changed)
        with contextlib.suppress(llama2cpp.FormatError, MemoryError):
            list(llama2cpp.read_activations(broken).batches(1000))
    for text in ("", "[]", "{}", "[" * 9999, '{"format": "x"}'):
        (broken / "activations.json").write_text(text)
        with pytest.raises(llama2cpp.FormatError, match=r"activations\.json: expected a manifest"):
            llama2cpp.read_activations(broken)


# --- means


def test_means_and_variances(model: llama2cpp.Model, runs: list[Any]) -> None:
    shifted = interventions.add("mlp_out", 1000.0, layer=2)  # where sums of squares would lose everything
    found = model.mean_activations(iter(TEXTS), ["resid_post", "z"])
    assert (found.tokens, found.texts) == (TOKENS, len(TEXTS))
    with model.hooks([shifted]):
        far = model.mean_activations(TEXTS, "resid_post", 2)
        rows = [model.run_with_cache(ids, "resid_post2", return_type=None)[1]["resid_post", 2][0] for ids in TEXTS]
    for cache, key, whole in [
        *((found, (name, i), [run[name, i][0] for run in runs]) for name in ("resid_post", "z") for i in range(3)),
        (far, ("resid_post", 2), rows),
    ]:
        every = np.concatenate(whole).astype(np.float64)
        np.testing.assert_allclose(cache.mean[key][0, 0], every.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cache.variance[key][0, 0], every.var(axis=0), rtol=1e-4, atol=1e-9)
    ablated = model.run_with_hooks(TEXTS[0], [interventions.mean("z", found.mean, layer=1)])
    by_hand = model.run_with_hooks(TEXTS[0], [interventions.set("z1", found.mean["z", 1][0, 0])])
    assert (ablated == by_hand).all()


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [([], ValueError, "there are no texts"), ("Once", TypeError, "mean_activations: texts is of type str")],
)
def test_wrong_means(model: llama2cpp.Model, texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.mean_activations(texts, "resid_post")


# --- the command


@posix
@pytest.mark.cpu_bits("the command chooses for itself")
def test_the_command_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    lines = [f"Once upon a time there were {i} dogs in a park." for i in range(40)]
    command = [sys.executable, "-m", "llama2cpp", "extract", "storyteller", "--points", "resid_post", "--layers", "0-2"]
    command += ["--layers", "-1", "--shuffle", "1", "--shard-size", "100kB"]
    stopped = tmp_path / "stopped"
    with subprocess.Popen(
        [*command, "--texts", "-", "--out", stopped], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write("\n".join(lines).encode())
        child.stdin.flush()
        until = time.monotonic() + 60
        while not (stopped / "activations-00000.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGINT)
        child.stdin.close()
        told = child.stderr.read().decode()
        assert child.wait(60) == 130
    assert "stopped: what is done is in" in told
    (tmp_path / "texts.jsonl").write_text("\n\n".join(json.dumps({"text": line}) for line in lines))
    for folder in (stopped, tmp_path / "whole"):
        done = subprocess.run(
            [*command, "--texts", tmp_path / "texts.jsonl", "--out", folder, "--json"],
            capture_output=True,
            check=True,
            timeout=120,
        )
    assert json.loads(done.stdout)["texts"] == 40
    assert contents(stopped) == contents(tmp_path / "whole")
