"""GGUF models in several files, as gguf and llama-gguf-split cut them: opened by the first, equal to the one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hf_folders import Spec
from test_hf_folder import TOKENS, logits_of

import llama2cpp
from llama2cpp import FormatError, export
from llama2cpp.command import cli

PART = "{name}-{no:05}-of-{count:05}.gguf"
KINDS = {
    gguf.GGUFValueType.UINT32: "add_uint32",
    gguf.GGUFValueType.FLOAT32: "add_float32",
    gguf.GGUFValueType.STRING: "add_string",
    gguf.GGUFValueType.BOOL: "add_bool",
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    settings = {"tie_word_embeddings": True, "attention_bias": True} if request.param else {}
    Spec(settings=settings).save(folder / "hf")
    export.convert(folder / "hf", folder / "whole.gguf", "f16")
    return folder / "whole.gguf"


def cut(whole: Path, folder: Path, sizes: list[int], **changes: Any) -> list[Path]:
    """Write the tensors of a file into several, so many in each; without changes as gguf's own writer numbers them."""
    reader = gguf.GGUFReader(whole)
    assert sum(sizes) == len(reader.tensors)
    tensors = iter(reader.tensors)
    paths = []
    for no, size in enumerate(sizes):
        path = folder / PART.format(name="model", no=no + 1, count=len(sizes))
        writer = gguf.GGUFWriter(path, "llama") if no == 0 else gguf.GGUFWriter(path, "")
        if no == 0:
            for field in reader.fields.values():
                if field.name.startswith(("GGUF.", "general.architecture", "general.alignment")):
                    continue
                if field.types[0] in KINDS:
                    getattr(writer, KINDS[field.types[0]])(field.name, field.contents())
        writer.add_uint16("split.no", changes.get("no", no) if no > 0 else no)
        writer.add_uint16("split.count", changes.get("count", len(sizes)) if no > 0 else len(sizes))
        writer.add_int32("split.tensors.count", changes.get("tensors", sum(sizes)))
        for _ in range(size):
            tensor = next(tensors)
            name = changes.get("name", tensor.name) if no > 0 else tensor.name
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def sizes_of(whole: Path, parts: int, first: int | None = None) -> list[int]:
    count = len(gguf.GGUFReader(whole).tensors)
    start = [] if first is None else [first]
    rest = count - sum(start)
    left = parts - len(start)
    return [*start, *(rest // left + (i < rest % left) for i in range(left))]


@pytest.mark.parametrize(("parts", "first"), [(2, None), (3, None), (7, None), (2, 0), (3, 1)])
@pytest.mark.parametrize("mmap", [True, False])
def test_equal_to_the_one_file(whole: Path, tmp_path: Path, parts: int, first: int | None, mmap: bool) -> None:
    """Also where the first has no tensor, which llama-gguf-split can make so."""
    paths = cut(whole, tmp_path, sizes_of(whole, parts, first))
    with llama2cpp.load(paths[0], mmap=mmap, kv_dtype="f32") as split, llama2cpp.load(whole, kv_dtype="f32") as one:
        assert split.config == one.config
        assert list(split.weights) == list(one.weights)
        for name in one.weights:
            assert np.array_equal(split.weights[name], one.weights[name])
        assert np.array_equal(
            split.session().prefill(TOKENS, all_logits=True), one.session().prefill(TOKENS, all_logits=True)
        )


def test_what_opens_a_model_opens_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = cut(whole, tmp_path, sizes_of(whole, 3))[0]
    cli.info(str(first))
    assert "GGUF v3, 3 files" in capsys.readouterr().out
    for target in ("one.gguf", "one.safetensors", "folder"):
        export.convert(first, tmp_path / target)
        export.convert(whole, tmp_path / f"whole-{target}")
        assert np.array_equal(logits_of(tmp_path / target), logits_of(tmp_path / f"whole-{target}"))


def test_links_of_a_cache(whole: Path, tmp_path: Path) -> None:
    """In Hugging Face's cache each part is a link to a file with another name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    for i, path in enumerate(cut(whole, tmp_path, sizes_of(whole, 2))):
        path.rename(tmp_path / "blobs" / f"{i}")
        (tmp_path / "snapshots" / path.name).symlink_to(Path("..") / "blobs" / f"{i}")
    first = tmp_path / "snapshots" / PART.format(name="model", no=1, count=2)
    assert np.array_equal(logits_of(first), logits_of(whole))


def refused(path: Path, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        llama2cpp.load(path)


def test_a_later_part_names_the_first(whole: Path, tmp_path: Path) -> None:
    for no, path in enumerate(cut(whole, tmp_path, sizes_of(whole, 3))[1:], start=2):
        refused(path, rf"part {no} of 3 of a model; open the first, model-00001-of-00003\.gguf")


def test_a_missing_part_is_named(whole: Path, tmp_path: Path) -> None:
    paths = cut(whole, tmp_path, sizes_of(whole, 3))
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.gguf"):
        llama2cpp.load(paths[0])


def test_another_name(whole: Path, tmp_path: Path) -> None:
    path = cut(whole, tmp_path, sizes_of(whole, 2))[0]
    path.rename(tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", r"part 1 of 2 of a model, expected a name that ends in -00001-of-00002\.gguf")


def test_parts_in_the_wrong_order(whole: Path, tmp_path: Path) -> None:
    paths = cut(whole, tmp_path, sizes_of(whole, 3))
    paths[1].rename(tmp_path / "away")
    paths[2].rename(paths[1])
    (tmp_path / "away").rename(paths[2])
    refused(paths[0], r"model-00002-of-00003\.gguf: .*'split\.no' is 2, which is part 3, expected 1, as its name says")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no": 0}, r"model-00002-of-00002\.gguf: metadata 'split\.no' is 0, which is part 1, expected 1"),
        ({"count": 3}, r"model-00002-of-00002\.gguf: metadata 'split\.count' is 3, expected 2"),
        ({"tensors": 999}, r'"split\.tensors\.count" .* is 999, but the 2 files have \d+ tensors together'),
        ({"name": "blk.0.attn_norm.weight"}, r"model-00002-of-00002\.gguf: tensor .* is in a file before this one too"),
        ({"name": "blk.7.attn_q.weight"}, r"blk\.7\.attn_q\.weight.* has no place in a Llama of 2 layers"),
    ],
)
def test_parts_that_do_not_belong_together(whole: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    count = len(gguf.GGUFReader(whole).tensors)
    sizes = [count - 1, 1]
    refused(cut(whole, tmp_path, sizes, **changes)[0], said)


def test_every_cut_of_a_part_is_noticed(whole: Path, tmp_path: Path) -> None:
    first, second = cut(whole, tmp_path, sizes_of(whole, 2))
    content = second.read_bytes()
    for length in [*range(1, 200, 7), len(content) // 2, len(content) - 33]:
        second.write_bytes(content[:length])
        refused(first, second.name.replace(".", r"\."))
