"""Pictures: what they show, taken from the figure, and that they leave pyplot alone."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from typing import Any, cast

import numpy as np
import pytest
import tiny

import llama2cpp
from llama2cpp import analysis, attribution, metrics, patching, plot

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def cache(stories: llama2cpp.Model) -> llama2cpp.ActivationCache:
    return stories.run_with_cache(TEXT)[1]


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def images(figure: Any) -> list[Any]:
    """Of the heads, without the colour bar's."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_visible()]


def test_attention_patterns(stories: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    figure = plot.attention_patterns(cache, -1)
    drawn = images(figure)
    assert len(drawn) == 8
    allowed = np.tri(5, dtype=bool)
    for head, image in enumerate(drawn):
        np.testing.assert_array_equal(~image.mask, allowed)
        np.testing.assert_array_equal(image.data[allowed], cache["pattern", -1][0, head][allowed])
    names = [text.replace(" ", "·") for text in stories.to_str_tokens(TEXT)]
    assert texts(figure.axes[0].get_yticklabels()) == names
    assert texts(figure.axes[6].get_xticklabels()) == names
    assert figure.get_suptitle() == "layer 4"
    assert [axes.get_title() for axes in figure.axes[:8]] == [f"head {head}" for head in range(8)]


def test_some_heads_and_positions(stories: llama2cpp.Model) -> None:
    _, cache = stories.run_with_cache(TEXT, positions=[1, 4], remove_batch_dim=True)
    figure = plot.attention_patterns(cache, 1, heads=[5, 0], columns=1, title="two")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["head 5", "head 0"]
    assert texts(figure.axes[0].get_yticklabels()) == ["·Once", "·time"]
    np.testing.assert_array_equal(images(figure)[0].data[1], cache["pattern", 1][5, 1])
    assert images(figure)[1].mask.sum() == 3


def test_a_pattern_alone() -> None:
    """The last T of S positions look, as in a session that goes on."""
    pattern = np.full((3, 1, 4), 0.25, dtype=np.float32)
    figure = plot.attention_patterns(pattern, tokens=["a", "b\n", "$x$", "\u4e2d\U000f0000"])
    assert texts(figure.axes[2].get_xticklabels())[:3] == ["a", "b↵", "$x$"]
    assert not images(figure)[0].mask.any()
    png = figure._repr_png_()  # type: ignore[attr-defined]
    assert png.startswith(b"\x89PNG")
    assert len(images(plot.attention_patterns(np.eye(3)[None].repeat(5, 0)))) == 5


def test_logit_lens(stories: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    figure = plot.logit_lens(cache, title="a title")
    axes = figure.axes[0]
    assert texts(axes.get_yticklabels()) == [f"after layer {i}" for i in range(4, -1, -1)] + ["embedding"]
    lens = cache.logit_lens(positions=None, top_k=1, return_type="probs")
    np.testing.assert_array_equal(images(figure)[0], lens.values[::-1, 0, :, 0])
    said = np.array(texts(axes.texts), dtype=object).reshape(6, 5)
    assert said[0, 2] == "·a"  # Once upon -> a
    assert said[0, -1] == ","
    assert texts(axes.get_xticklabels())[-1] == "·time"
    some = plot.logit_lens(cache, positions=(-2, None), incl_mid=True)
    assert texts(some.axes[0].get_xticklabels()) == ["·a", "·time"]
    assert texts(some.axes[0].get_yticklabels())[1:3] == ["layer 4, half", "after layer 3"]
    one = plot.logit_lens(llama2cpp.logit_lens(stories, TEXT, top_k=2, return_type="probs"))
    assert images(one)[0].shape == (6, 1)
    assert texts(one.axes[0].get_xticklabels()) == ["·time"]


def test_without_a_tokenizer() -> None:
    model = tiny.model(tiny.config())
    logits, cache = model.run_with_cache([5, 7, 9])
    assert texts(plot.attention_patterns(cache, 0).axes[0].get_yticklabels()) == ["0", "1", "2"]
    assert texts(plot.logit_lens(cache).axes[0].texts)[:3] == [str(id) for id in logits[0].argmax(axis=-1)]


def test_attributions() -> None:
    figure = plot.attributions([1.0, -3.0, 2.0, 0.5, 0.25], list("abcde"), most=2, unit="nats", title="t")
    axes: Any = figure.axes[0]
    assert texts(axes.get_yticklabels()) == ["b", "c", "all others"]
    assert [bar.get_width() for bar in axes.patches] == [-3.0, 2.0, 1.75]
    assert axes.get_xlabel() == "nats"


def test_next_tokens(stories: llama2cpp.Model) -> None:
    logits, _ = stories.run_with_cache(TEXT)
    axes: Any = plot.next_tokens(stories, logits[0, -1], most=4).axes[0]
    probs = np.sort(np.exp(logits[0, -1].astype(np.float64)))[::-1] / np.exp(logits[0, -1].astype(np.float64)).sum()
    assert texts(axes.get_yticklabels())[0] == ","
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], probs[:4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected \[512\]"):
        plot.next_tokens(stories, logits)
    numbers = plot.next_tokens(tiny.model(tiny.config()), np.arange(53)).axes[0]
    assert texts(numbers.get_yticklabels())[:2] == ["52", "51"]


METRIC_TEXTS = ("Tom saw Lily. Lily smiled at", "Tom saw Lily. Tom smiled at")


@pytest.fixture(scope="module")
def storyteller() -> llama2cpp.Model:
    return llama2cpp.load("storyteller", precision="exact", backend="cpu")


@pytest.fixture(scope="module")
def grids(storyteller: llama2cpp.Model) -> dict[str, Any]:
    """What functions of patching give, and their tokens."""
    clean, corrupt = METRIC_TEXTS
    _, cache = storyteller.run_with_cache(clean)
    metric = metrics.logit_diff(storyteller.to_single_token(" Tom"), storyteller.to_single_token(" Lily"))
    call = (storyteller, corrupt, cache, metric)
    return {
        "tokens": storyteller.to_str_tokens(corrupt),
        "metric": metric(storyteller(corrupt))[0],
        "resid": patching.activation_patch(*call, "resid_pre"),
        "heads": patching.activation_patch(*call, "z"),
        "some": patching.activation_patch(*call, "z", {"layer": [1, 3], "position": [2, -1], "head": [0, 4]}),
        "pattern": patching.activation_patch(*call, "pattern2", ["head", "dest_pos", "src_pos"]),
        "block": patching.get_act_patch_block_every(*call),
        "losses": patching.ablate(storyteller, clean, metric, "mlp_out", ["layer"]),
    }


def test_patching_of_layers_and_positions(grids: dict[str, Any]) -> None:
    figure = plot.patching(grids["resid"], tokens=grids["tokens"], center=grids["metric"], title="t", unit="logits")
    axes: Any = figure.axes[0]
    np.testing.assert_array_equal(images(figure)[0], grids["resid"])
    assert texts(axes.get_yticklabels()) == list("01234")
    assert texts(axes.get_xticklabels()) == [text.replace(" ", "·") for text in grids["tokens"]]
    assert (axes.get_ylabel(), axes.get_xlabel(), figure.get_suptitle()) == ("layer", "token", "t")
    low, high = axes.images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(grids["metric"]), "white is the run without a change"
    assert max(abs(grids["resid"].ravel() - grids["metric"])) == pytest.approx((high - low) / 2)
    bar: Any = figure.axes[1]
    assert bar.get_ylabel() == "logits"
    shown = [*grids["resid"].ravel(), grids["metric"]]
    np.testing.assert_allclose(bar.get_ylim(), (min(shown), max(shown)))
    written = np.array([float(text.get_text()) for text in axes.texts]).reshape(grids["resid"].shape)
    np.testing.assert_allclose(written, grids["resid"], atol=0.05 + 1e-9)


def test_patching_of_other_axes(grids: dict[str, Any]) -> None:
    heads: Any = plot.patching(grids["heads"]).axes[0]
    assert (heads.get_ylabel(), heads.get_xlabel()) == ("layer", "head")
    assert texts(heads.get_xticklabels()) == list("012345")

    over = {"layer": [1, 3], "position": [2, -1], "head": [0, 4]}
    some = plot.patching(grids["some"], over, tokens=grids["tokens"])
    np.testing.assert_array_equal(images(some)[0], grids["some"].transpose(0, 2, 1).reshape(4, 2))
    assert texts(some.axes[0].get_yticklabels()) == ["L1H0", "L1H4", "L3H0", "L3H4"]
    assert texts(some.axes[0].get_xticklabels()) == ["·saw", "·at"]

    pattern = plot.patching(grids["pattern"], ["head", "dest_pos", "src_pos"])
    for drawn, head in zip(images(pattern), grids["pattern"], strict=True):
        np.testing.assert_array_equal(drawn, head)
    assert [axes.get_title() for axes in pattern.axes[:6]] == [f"H{head}" for head in range(6)]
    assert (pattern.get_supylabel(), pattern.get_supxlabel()) == ("position", "key's position")

    names = ["resid_pre", "attn_out", "mlp_out"]
    block = plot.patching(grids["block"], ["layer", "position"], panels=names, columns=3)
    assert [axes.get_title() for axes in block.axes[:3]] == names
    for drawn, kind in zip(images(block), grids["block"], strict=True):
        np.testing.assert_array_equal(drawn, kind)

    one: Any = plot.patching(grids["losses"]).axes[0]
    assert (one.get_xlabel(), texts(one.get_xticklabels())) == ("layer", list("01234"))

    paths = np.arange(36.0).reshape(2, 3, 2, 3)
    twice: Any = plot.patching(paths, ["layer", "head", "layer", "head"])
    np.testing.assert_array_equal(images(twice)[0], paths.reshape(6, 6))
    assert texts(twice.axes[0].get_yticklabels()) == texts(twice.axes[0].get_xticklabels())
    assert texts(twice.axes[0].get_xticklabels())[4] == "L1H1"


def test_cells_that_were_not_computed() -> None:
    values = np.array([[1.0, np.nan], [-2.0, 0.0]])
    figure = plot.patching(values)
    np.testing.assert_array_equal(images(figure)[0].mask, np.isnan(values))
    axes: Any = figure.axes[0]
    assert texts(axes.texts) == ["1.00", "-2.00", "0.00"]
    assert axes.images[0].get_clim() == (-2, 2)
    assert images(plot.patching(np.full((2, 2), np.nan)))[0].mask.all()
    many: Any = plot.patching(np.zeros((30, 40)), ["layer", "neuron"]).axes[0]
    assert texts(many.texts) == [], "there is no room for numbers"


def test_attributions_by_names(storyteller: llama2cpp.Model, grids: dict[str, Any]) -> None:
    change = grids["heads"] - grids["metric"]
    axes: Any = plot.attributions(change, most=3).axes[0]
    order = np.argsort(-np.abs(change).ravel())[:3]
    assert texts(axes.get_yticklabels())[:3] == [f"L{i // 6}H{i % 6}" for i in order]
    np.testing.assert_array_equal([bar.get_width() for bar in axes.patches][:3], change.ravel()[order])
    neurons: Any = plot.attributions([[0, 1], [3, 0]], over={"layer": [2, 4], "neuron": [10, 20]}).axes[0]
    assert texts(neurons.get_yticklabels())[:2] == ["L4N10", "L2N20"]
    layers: Any = plot.attributions([1.0, 2.0]).axes[0]
    assert texts(layers.get_yticklabels()) == ["L1", "L0"]
    tokens: Any = plot.attributions([1.0, -2.0], tokens=[" a", "b"]).axes[0]
    assert texts(tokens.get_yticklabels()) == ["b", "·a"]

    metric = metrics.log_prob(storyteller.to_single_token(" Tom"))
    edges = attribution.edge_attribution(storyteller, *METRIC_TEXTS, metric)
    best: Any = plot.attributions(edges, most=4).axes[0]
    assert texts(best.get_yticklabels())[:4] == edges.top(4)
    assert [bar.get_width() for bar in best.patches][:4] == [edges[name] for name in edges.top(4)]
    by_name: Any = plot.attributions({"m0": 1.0, "m1": -3.0}).axes[0]
    assert texts(by_name.get_yticklabels()) == ["m1", "m0"]


def test_token_values(stories: llama2cpp.Model) -> None:
    tokens = ["<s>", " Once", " upon", "\n", " a", "$x$"]
    figure = plot.token_values(tokens, [np.nan, 0.0, 4.0, 1.0, 2.0, 3.0], title="t", unit="surprise (bits)")
    axes: Any = figure.axes[0]
    assert texts(axes.texts) == ["<s>", "·Once", "·upon", "↵", "·a", "$x$"]
    assert figure.get_suptitle() == "t"
    bar: Any = figure.axes[1]
    assert (bar.get_xlabel(), bar.get_xlim()) == ("surprise (bits)", (0, 4))
    grounds = np.array([text.get_bbox_patch().get_facecolor()[:3] for text in axes.texts])
    np.testing.assert_array_equal(grounds[0], (1, 1, 1), "NaN has no colour")
    lightness = grounds[1:] @ [0.2126, 0.7152, 0.0722]
    assert np.argsort(-lightness).tolist() == [0, 2, 3, 4, 1], "the larger, the darker"
    heights = [text.get_position()[1] for text in axes.texts]
    assert len({round(height, 6) for height in heights[:4]}) == 1
    assert heights[4] < heights[3], "a line end ends the line"

    signed: Any = plot.token_values(["a", "b", "c"], [-1.0, 0.0, 0.5])
    red, white, blue = (text.get_bbox_patch().get_facecolor() for text in signed.axes[0].texts)
    assert signed.axes[1].get_xlim() == (-1, 1)
    assert red[0] > red[2]
    assert min(white[:3]) > 0.95
    assert blue[2] > blue[0]


@pytest.mark.parametrize("count", [1, 40, 400])
def test_no_token_lies_on_another(stories: llama2cpp.Model, count: int) -> None:
    tokens = stories.to_str_tokens([1, *(100 + np.arange(count - 1) * 37 % 400).tolist()])
    figure: Any = plot.token_values(tokens, np.arange(count), width=6, title="words " * count, unit="number")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 : i + 60])
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    scale = figure.axes[1].get_tightbbox()
    assert min(box.y0 for box in boxes) > scale.y1, "the scale is below the text"
    assert max(box.y1 for box in boxes) < figure._suptitle.get_window_extent().y0


def test_quantization_damage(storyteller: llama2cpp.Model) -> None:
    found = analysis.diff(storyteller, llama2cpp.load("storyteller", backend="cpu"), TEXT)
    figure = plot.quantization_damage({"rounded": found, "$x$": found}, ["z", "resid_post"], title="t")
    relative = {point.name: point.relative for point in found.points}
    for axes, name in zip(figure.axes, ("attn.hook_z", "hook_resid_post"), strict=True):
        assert len(axes.lines) == 2
        assert axes.get_xlabel() == "layer"
        for line in axes.lines:
            assert np.asarray(line.get_xdata()).tolist() == [0, 1, 2, 3, 4]
            assert np.asarray(line.get_ydata()).tolist() == [relative[f"blocks.{layer}.{name}"] for layer in range(5)]
    assert figure.axes[0].get_ylabel() == "relative difference"
    assert [axes.get_title() for axes in figure.axes] == ["z", "residual stream after the layer"]
    [legend] = figure.legends
    assert texts(legend.get_texts()) == [f"{name}, KL {found.kl.mean():.2g} nats" for name in ("rounded", "$x$")]
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]

    same: Any = plot.quantization_damage(analysis.diff(storyteller, storyteller, TEXT))
    assert [list(axes.lines[0].get_ydata()) for axes in same.axes] == [[0] * 5] * 3
    assert same.axes[0].get_yscale() == "linear"
    worse = analysis.Difference([point._replace(relative=1000 * point.relative) for point in found.points], found.kl)
    assert plot.quantization_damage({"a": found, "b": worse}).axes[0].get_yscale() == "log"


def overlaps(figure: Any) -> list[str]:
    """Labels of neighbouring ticks whose boxes share a pixel, at the size and density that a notebook shows."""
    figure.set_dpi(110)
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            shown = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_visible()]
            shown = [pair for pair in shown if pair[0]]
            found += [f"{a[0]} {b[0]}" for a, b in itertools.pairwise(shown) if a[1].overlaps(b[1])]
    return found


@pytest.mark.parametrize("count", [1, 30, 250])
def test_labels_do_not_overlap(stories: llama2cpp.Model, count: int) -> None:
    ids = [1, *(100 + np.arange(count - 1) * 37 % 400).tolist()]
    _, cache = stories.run_with_cache(ids)
    patterns = cache["pattern", 0][0]
    pictures = [
        plot.attention_patterns(cache, 0, heads=[1]),
        plot.attention_patterns(patterns[:, -1:], tokens=stories.to_str_tokens(ids), heads=[0, 3]),
        plot.logit_lens(cache, title="words " * count),
        plot.next_tokens(stories, stories.unembed(cache["resid_post", -1][0, -1]), most=count),
        plot.attributions(np.arange(count) - count / 3, [f"{i} some label" * 4 for i in range(count)], most=count),
        plot.patching(np.ones((12, count)), tokens=stories.to_str_tokens(ids), title="words " * count),
        plot.patching(np.ones((count, count)), ["dest_pos", "src_pos"]),
    ]
    if count == 30:
        pictures.append(plot.attention_patterns(cache, 0))
    for figure in pictures:
        assert overlaps(figure) == []
        width, height = figure.get_size_inches()
        assert width <= 14
        assert height <= 17
        labels = [label for axes in figure.axes for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]]
        assert len([label for label in labels if label.get_visible() and label.get_text()]) >= min(count, 10)


def test_the_last_label_stays(stories: llama2cpp.Model) -> None:
    """The last row is the one that predicts. A label stays at its own token."""
    pattern = np.tri(250, dtype=np.float32)[None].repeat(2, 0)
    axes = plot.attention_patterns(pattern).axes[0]
    rows = axes.get_yticks().tolist()
    assert rows[-1] == 249
    assert texts(axes.get_yticklabels()) == [str(row) for row in rows]


def test_small_probabilities(stories: llama2cpp.Model) -> None:
    logits = np.full(stories.config.vocab_size, -np.inf)
    logits[300:305] = np.log([0.95, 0.045, 0.004, 3e-5, 2e-9])
    axes = plot.next_tokens(stories, logits, most=6).axes[0]
    assert texts(axes.texts) == ["0.95", "0.05", "0.004", "3e-05", "2e-09", "0.00"]
    flat: Any = plot.next_tokens(stories, np.zeros(stories.config.vocab_size)).axes[0]
    assert flat.patches[0].get_width() > flat.get_xlim()[1] / 2, "bars can be seen"


def test_every_script_without_empty_boxes() -> None:
    """`filterwarnings = error` makes an error of matplotlib's warning about a glyph that no font has."""
    scripts = [
        "日本",
        "中文",
        "한국어",
        "हिन्दी",
        "ไทย",
        "العربية",
        "עברית",
        "😀",
        "\x07",
        "\ud800",
        "\U000f0000",
        "$x$",
        "日" * 9,
    ]
    figure = plot.attributions(np.arange(len(scripts)), scripts, most=99, title="日本 $a$ $", unit="$ ไทย")
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    names = dict(zip(reversed(scripts), texts(figure.axes[0].get_yticklabels()), strict=True))
    assert names["日本"] in ("日本", "\\u65e5\\u672c"), "by a font, or by its code points"
    assert names["\x07"] == "\\x07"
    assert names["\ud800"] == "\\ud800"
    assert names["\U000f0000"] == "\\U000f0000"
    assert names["العربية"] == "العربية", "DejaVu has Arabic"
    assert names["$x$"] == "$x$"
    assert plot.figures.short_text("日" * 9) in ("日" * 9, "\\u65e5" * 2 + "…"), "a code point is not cut in two"


@pytest.mark.parametrize("style", ["default", "dark_background", "ggplot"])
def test_readable_on_every_page(stories: llama2cpp.Model, cache: llama2cpp.ActivationCache, style: str) -> None:
    """Dark text on white, whatever style is set: the same picture."""
    import matplotlib.style
    from matplotlib.colors import to_rgb

    with matplotlib.style.context(style):
        figures = [plot.attributions([1, 2], ["a", "b"], title="t"), plot.attention_patterns(cache, 0, title="t")]
        figures += [plot.next_tokens(stories, np.zeros(stories.config.vocab_size)), plot.logit_lens(cache)]
        figures += [plot.patching([[1, 2], [3, 4]], title="t"), plot.token_values(["a", "b"], [1, 2], title="t")]
        figures += [plot.quantization_damage(analysis.diff(stories, stories, TEXT), title="t")]
        for figure in figures:
            assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
            words = [label for axes in figure.axes for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]]
            words += [figure._suptitle] if figure._suptitle else []  # type: ignore[attr-defined]
            words += [axes.xaxis.label for axes in figure.axes] + [axes.title for axes in figure.axes]
            assert {max(to_rgb(word.get_color())) < 0.2 for word in words} == {True}


def test_what_cannot_be(stories: llama2cpp.Model, cache: llama2cpp.ActivationCache) -> None:
    _, two = stories.run_with_cache([[1, 403], [1, 407]])
    calls: list[tuple[Any, str]] = [
        (lambda: plot.attention_patterns(cache), "pass the layer"),
        (lambda: plot.attention_patterns(two, 0), "2 prompts"),
        (lambda: plot.logit_lens(two), "2 prompts"),
        (lambda: plot.attention_patterns(cache, 0, heads=[8]), "some of 0 to 7"),
        (lambda: plot.attention_patterns(cache, 0, tokens=["a"]), "1 tokens for 5 positions"),
        (lambda: plot.attention_patterns(np.zeros((2, 2))), r"expected \[heads, T, S\]"),
        (lambda: plot.logit_lens(cache.logit_lens(top_k=1)), "return_type"),
        (lambda: plot.attributions([1.0], []), "0 labels for 1 values"),
        (lambda: plot.attributions([1.0], ["a"], most=0), "most is 0"),
        (lambda: plot.next_tokens(stories, np.zeros(512), most=-1), "most is -1"),
        (lambda: plot.patching(1.0), "expected cells"),
        (lambda: plot.patching(np.zeros((0, 3))), r"\[0, 3\], expected cells"),
        (lambda: plot.patching(np.zeros((3, 2, 2))), r"\[3, 2, 2\]: name the axes by over="),
        (lambda: plot.patching(np.zeros((3, 2, 2)), panels=["a"]), "expected 3 names"),
        (lambda: plot.patching(np.zeros(3), panels=["a", "b", "c"]), "nothing but panels"),
        (lambda: plot.patching(np.zeros((2, 2)), ["layer"]), r"over names 1 axes, the values have shape \[2, 2\]"),
        (lambda: plot.patching(np.zeros((2, 2)), ["layer", "heads"]), "over has 'heads'.*head"),
        (lambda: plot.patching(np.zeros((2, 2)), {"layer": [0], "head": None}), "names 1 places of axis 'layer'"),
        (
            lambda: plot.patching(np.zeros((2, 2)), {"layer": [0, -1], "head": None}),
            "layer -1, expected numbers from 0",
        ),
        (lambda: plot.patching(np.zeros((2, 5)), tokens=["a", "b"]), "2 tokens for 5 positions"),
        (lambda: plot.patching(np.zeros((70, 2, 2)), ["layer", "pos", "src_pos"]), "70 pictures are too many"),
        (lambda: plot.patching(np.zeros((2, 2)), columns=0), "columns is 0"),
        (lambda: plot.attributions({"a": 1.0}, ["a"]), "the values have names"),
        (lambda: plot.attributions([1.0], ["a"], over=["layer"]), "either labels= or over="),
        (lambda: plot.attributions([[1.0]], over=["layer"]), "over names 1 axes"),
        (lambda: plot.token_values(["a"], [1, 2]), r"shape \[2\], expected \[1\]"),
        (lambda: plot.token_values([], []), "there are 0 tokens"),
        (lambda: plot.token_values(["a"], [1], width=0), "width is 0"),
        (lambda: plot.quantization_damage({}), "0 differences"),
        (lambda: plot.quantization_damage(analysis.diff(stories, stories, TEXT), ["nothing"]), "no 'nothing' of any"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="'a' is a float, expected what analysis"):
        plot.quantization_damage({"a": 1.0})  # type: ignore[dict-item]


SCRIPT = """
import sys
import llama2cpp
assert not any(name.partition(".")[0] == "matplotlib" for name in sys.modules), "imported with the package"
llama2cpp.plot.attributions([1.0], ["a"])._repr_png_()
assert "matplotlib.pyplot" not in sys.modules, "pyplot has been imported"
sys.modules["matplotlib.figure"] = None
llama2cpp.plot.figures.figure_class.cache_clear()
try:
    llama2cpp.plot.attributions([1.0], ["a"])
except ImportError as error:
    print(error)
"""


def test_matplotlib_is_imported_when_a_picture_is_drawn() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == 'pictures need matplotlib: pip install "llama2cpp[notebook]"\n'


HALF = np.full((2, 3, 3), 0.5)
ANY: Any = plot  # for calls of wrong types


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: ANY.attention_patterns(HALF, tokens="abc"), TypeError, "tokens is 'abc', expected a sequence"),
        (lambda m: ANY.attention_patterns(HALF, tokens=[1, 2, 3]), TypeError, "tokens has 1 (int) in it"),
        (lambda m: ANY.attention_patterns(HALF, columns=0), ValueError, "columns is 0"),
        (lambda m: ANY.attention_patterns(HALF[:, :, :2]), ValueError, "3 rows and 2 columns"),
        (lambda m: ANY.attention_patterns(HALF[:, :0, :0]), ValueError, "shape [2, 0, 0]"),
        (lambda m: ANY.attention_patterns(HALF + 0j), TypeError, "complex"),
        (lambda m: ANY.attention_patterns(m.run_with_cache("Once")[1], 99), ValueError, "layer is 99"),
        (lambda m: ANY.attention_patterns(m.run_with_cache("Once")[1], -99), ValueError, "layer is -99"),
        (
            lambda m: ANY.attention_patterns(m.run_with_cache("Once", ["pattern3"])[1], 2),
            ValueError,
            "no patterns of layer 2: it has blocks.3.attn.hook_pattern",
        ),
        (
            lambda m: ANY.attention_patterns(m.run_with_cache("Once", ["z3"])[1], 3),
            ValueError,
            "no patterns of layer 3: it has those of none",
        ),
        (lambda m: ANY.patching([[1e308, -1e308]]), ValueError, "patching: values has 1e+308 in size, expected"),
        (lambda m: ANY.attributions([-1e308, 1]), ValueError, "attributions: values has 1e+308 in size"),
        (lambda m: ANY.token_values(["a", "b"], [1, 1e308]), ValueError, "token_values: values has 1e+308 in size"),
        (lambda m: ANY.next_tokens(m, np.full(512, np.nan)), ValueError, "the largest logit is nan"),
        (lambda m: ANY.next_tokens(m, np.full(512, -np.inf)), ValueError, "the largest logit is -inf"),
        (lambda m: ANY.attributions([]), ValueError, "attributions: the values have shape [0]"),
        (lambda m: ANY.attributions({}), ValueError, "attributions: the values have shape [0]"),
        (lambda m: ANY.attributions(1.0), ValueError, "attributions: the values have shape []"),
        (lambda m: ANY.attributions([1, np.inf]), ValueError, "expected one or more, finite or NaN"),
        (lambda m: ANY.attributions([1, 2], "ab"), TypeError, "labels is 'ab'"),
        (lambda m: ANY.attributions([1, 2], [1, 2]), TypeError, "labels has 1 (int) in it"),
        (lambda m: ANY.attributions([1, 2], over=5), TypeError, "over is 5"),
        (lambda m: ANY.attributions([1, 2], over={"layer": "ab"}), TypeError, "over has layer 'ab'"),
        (lambda m: ANY.attributions([1, 2], over={"layer": [0.5, 1]}), TypeError, "layer is 0.5 (float)"),
        (lambda m: ANY.patching(HALF[0], tokens=[1, 2, 3]), TypeError, "tokens has 1 (int) in it"),
        (lambda m: ANY.patching(HALF[0], center=np.inf), ValueError, "center is inf"),
        (lambda m: ANY.token_values("ab", [1, 2]), TypeError, "tokens is 'ab'"),
        (lambda m: ANY.token_values([1, 2], [1, 2]), TypeError, "tokens has 1 (int) in it"),
        (lambda m: ANY.token_values(["a"], [1], center=np.nan), ValueError, "center is nan"),
        (lambda m: ANY.logit_lens(m.run_with_cache("Once")[1], layers=[]), ValueError, "layers is empty"),
        (lambda m: ANY.logit_lens("x"), TypeError, "lens is 'x' (str)"),
        (lambda m: ANY.quantization_damage(5), TypeError, "differences is 5 (int)"),
        (lambda m: ANY.quantization_damage({3: 5}), TypeError, "differences has 3 (int) in it"),
    ],
)
def test_what_cannot_be_drawn(stories: llama2cpp.Model, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call(stories)
    assert message in str(caught.value)


def test_the_largest_and_smallest_values_that_are_drawn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (1e300, 1e-300, 5e-324):
            for figure in (
                plot.patching([[size, -size, 0]]),
                plot.patching([[size, -size, 0]], center=1),
                plot.attributions([size, -size, 0]),
                plot.token_values(["a", "b"], [size, -size]),
                plot.attention_patterns(np.full((1, 2, 2), size)),
            ):
                figure.canvas.draw()


def test_values_from_torch_and_values_that_are_missing(stories: llama2cpp.Model) -> None:
    import torch

    given = torch.tensor([[0.5, -2.0], [1.0, float("nan")]], dtype=torch.bfloat16, requires_grad=True)
    figure = plot.attributions(given, most=2)
    assert texts(figure.axes[0].get_yticklabels()) == ["L0H1", "L1H0", "all others"]
    assert [bar.get_width() for bar in cast(Any, figure.axes[0].patches)] == [-2.0, 1.0, 0.5]  # without what is NaN
    assert plot.patching(given).axes
    assert plot.token_values(["a", "b"], given[0]).axes
    assert plot.next_tokens(stories, torch.zeros(512, dtype=torch.bfloat16)).axes


def test_caches_whose_divergence_is_not_known(stories: llama2cpp.Model) -> None:
    caches = [stories.run_with_cache(each, "mlp_out")[1] for each in ("Once upon a", "Once upon a")]
    figure = plot.quantization_damage({"same": analysis.diff(caches[0], caches[1])}, "mlp_out")
    assert texts(figure.legends[0].get_texts()) == ["same"]
