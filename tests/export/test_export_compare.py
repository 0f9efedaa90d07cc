"""The report: against sums done another way, and as the command line prints it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pytest
import tiny
from conftest import ROOT

import llama2cpp
from llama2cpp.export import compare, convert, picture

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama2cpp", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_a_model_is_itself(stories: llama2cpp.Model) -> None:
    found = compare(stories, stories, STORY)
    assert stories.tokenizer is not None
    assert found.tokens == len(stories.tokenizer.encode(STORY)) - 1
    assert (found.mean_kl, found.worst_kl, found.top1_agreement) == (0.0, 0.0, 1.0)
    assert found.perplexity_a == found.perplexity_b == pytest.approx(stories.perplexity(STORY))
    assert {tensor.relative_error for tensor in found.tensors} == {0.0}
    assert len(found.tensors) == len(stories.weights)


@pytest.mark.parametrize("window", [512, 7])
def test_against_torch(window: int) -> None:
    torch = pytest.importorskip("torch")
    config = tiny.config()
    a, b = tiny.model(config, seed=1), tiny.model(config, seed=2, scale=0.9)
    ids = tiny.tokens(config, 40)
    found = compare(a, b, ids, window=window)
    logs = []
    for model in (a, b):
        rows = []
        for begin in range(1, len(ids), min(window, model.context) - 1):
            piece = [ids[0], *ids[begin : begin + min(window, model.context) - 1]]
            rows.append(model.session().prefill(piece[:-1], all_logits=True))
        logs.append(torch.log_softmax(torch.from_numpy(np.concatenate(rows)).double(), dim=-1))
    kl = torch.nn.functional.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum(dim=-1)
    assert found.mean_kl == pytest.approx(float(kl.mean()))
    assert found.worst_kl == pytest.approx(float(kl.max()))
    assert found.worst_at == int(kl.argmax()) + 1
    assert found.top1_agreement == float((logs[0].argmax(-1) == logs[1].argmax(-1)).double().mean())
    for perplexity, log in zip((found.perplexity_a, found.perplexity_b), logs, strict=True):
        assert perplexity == pytest.approx(float(torch.nn.functional.nll_loss(log, torch.tensor(ids[1:])).exp()))


def test_tensors(tmp_path: Path) -> None:
    model = tiny.model(tiny.config(dim=64, hidden_dim=96, n_heads=4, n_kv_heads=2))
    done = convert(model, tmp_path / "m", "bf16")  # rows of wq in another order, which is no difference
    with llama2cpp.load(done.path) as after:
        found = compare(model, after, tiny.tokens(model.config, 8))
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert next(iter(by_name)) == "tok_embeddings.weight"
    assert by_name["layers.1.attention.wq.weight"].relative_error < 2**-8
    weight = model.weights["layers.0.feed_forward.w2.weight"]
    rounded = ((weight.view(np.uint32) + 0x7FFF + (weight.view(np.uint32) >> 16 & 1)) >> 16 << 16).view(np.float32)
    tensor = by_name["layers.0.feed_forward.w2.weight"]
    assert tensor.relative_error == pytest.approx(np.linalg.norm(rounded - weight) / np.linalg.norm(weight))
    assert tensor.largest == np.abs(rounded - weight).max() == np.abs(rounded - weight)[tensor.at]
    assert (tensor.format_a, tensor.format_b) == ("f32", "bf16")


def test_better_formats_are_nearer(tmp_path: Path, stories: llama2cpp.Model) -> None:
    kl = []
    for format in ("q4_0", "q5_0", "q8_0", "f16"):
        path = convert(stories, tmp_path / "m.gguf", format, force=True).path
        with llama2cpp.load(path) as after:
            kl.append(compare(stories, after, STORY, tensors=False).mean_kl)
    assert kl == sorted(kl, reverse=True)
    assert kl[0] > 20 * kl[2]


def test_errors(stories: llama2cpp.Model) -> None:
    other = tiny.model(tiny.config())
    with pytest.raises(ValueError, match="the vocabularies have 53 and 512 pieces"):
        compare(other, stories, [1, 2, 3])
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        compare(stories, stories, [1])
    with pytest.raises(ValueError, match="tokenizer"):
        compare(other, other, "text")


# The picture


def test_picture(tmp_path: Path, stories: llama2cpp.Model) -> None:
    """What is drawn is what was found."""
    path = convert(stories, tmp_path / "m.gguf", "q4_0").path
    with llama2cpp.load(path) as after:
        found = compare(stories, after, STORY)
    figure = picture(found, "stories")
    weights, predictions, _ = figure.axes
    columns = [text.get_text() for text in weights.get_xticklabels()]
    assert columns == ["attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"]
    by_name = {tensor.name: tensor for tensor in found.tensors}
    image: Any = weights.images[0].get_array()
    assert image.shape == (stories.config.n_layers, len(columns))
    for layer in range(stories.config.n_layers):
        for kind, place in (("attention.wq", 1), ("attention.wo", 4), ("feed_forward.w2", 7)):
            assert image[layer, place] == by_name[f"layers.{layer}.{kind}.weight"].relative_error
    assert image.mask[:, [0, 5]].all()  # gains are equal
    largest = max(found.tensors, key=lambda tensor: tensor.largest)
    assert largest.name in weights.get_xlabel()
    lines = {str(line.get_label()): line for line in predictions.lines}
    np.testing.assert_array_equal(predictions.lines[0].get_ydata(), found.kl)
    assert lines[f"worst {found.worst_kl:.3g}"].get_xdata()[0] == found.worst_at  # type: ignore[index]
    assert figure.get_suptitle() == "stories"
    with matplotlib.style.context("dark_background"):  # dark text on white all the same
        figure = picture(found)
    assert {axes.xaxis.label.get_color() for axes in figure.axes} == {"#222222"}
    assert [axes.get_facecolor() for axes in figure.axes[:2]] == [(1, 1, 1, 1)] * 2


def test_picture_of_equal_models(stories: llama2cpp.Model) -> None:
    """No difference has no logarithm, and no weights were compared in the second."""
    for found in (compare(stories, stories, STORY), compare(stories, stories, STORY, tensors=False)):
        figure = picture(found)
        figure.savefig(io.BytesIO(), format="png")
        assert len(figure.axes) >= 2


# The command line


def test_export_command(tmp_path: Path, stories_dir: Path) -> None:
    target = tmp_path / "stories.gguf"
    arguments: list[Any] = ["export", stories_dir / "stories260K.bin", target, "-z", stories_dir / "tok512.bin"]
    (tmp_path / "story.txt").write_text(STORY)
    result = command(*arguments, "--format", "q8_0", "--text", tmp_path / "story.txt")
    assert result.returncode == 0, result.stderr
    assert f"{target}: q8_0, {target.stat().st_size:,} bytes" in result.stdout
    for what in ("perplexity", "KL divergence", "same likeliest token", "The 10 weights that differ most"):
        assert what in result.stdout
    assert result.stdout.count(" at [") == 10

    again = command(*arguments, "--format", "q8_0")
    assert (again.returncode, again.stdout) == (1, "")
    assert "exists; pass --force to replace it" in again.stderr

    told = command(*arguments, "--format", "q4_0", "--force", "--json")
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert facts["bytes"] == target.stat().st_size
    assert facts["formats"]["norm.weight"] == "f32"
    assert 0 < facts["comparison"]["mean_kl"] < 0.2
    assert facts["comparison"]["tokens"] == 255  # what the model has written itself

    wrong = command(*arguments, "--format", "int8")
    assert wrong.returncode == 1
    assert "has no format 'int8'" in wrong.stderr


def test_export_script(tmp_path: Path, stories_dir: Path) -> None:
    script = ROOT / "export" / "export.py"
    target = tmp_path / "stories.bin"
    arguments = [stories_dir / "stories260K.bin", target, "--format", "int8", "--no-report"]
    result = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert llama2cpp.load(target).file_format == "llama2.c v2"
    assert "no tokenizer goes along" in result.stdout


@pytest.mark.cpu_bits("what a program computes there, with int8 activations")
def test_compare_command(tmp_path: Path, stories_dir: Path, stories: llama2cpp.Model) -> None:
    a, b = stories_dir / "stories260K.bin", tmp_path / "stories.gguf"
    convert(stories, b, "q5_1")
    (tmp_path / "story.txt").write_text(STORY)
    arguments: list[Any] = ["compare", a, b, "-z", stories_dir / "tok512.bin", "--text", tmp_path / "story.txt"]
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" at [") == len(stories.weights)
    drawn = tmp_path / "drawn.png"
    told = command(*arguments, "--json", "--picture", drawn)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(told.stdout)
    wrong = command(*arguments, "--picture", tmp_path / "drawn.txt")
    assert wrong.returncode == 1
    assert "expected a name that ends with one of .png" in wrong.stderr
    with llama2cpp.load(b) as quantized:
        expected = compare(stories, quantized, STORY)
    assert facts["mean_kl"] == expected.mean_kl
    assert [tensor["name"] for tensor in facts["tensors"]] == [tensor.name for tensor in expected.tensors]
