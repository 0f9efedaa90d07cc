"""Tuned lenses and directions of heads: against PyTorch in double, and NumPy's least squares and SVD."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from on_metal import agree

import llama2cpp
from llama2cpp import analysis
from llama2cpp.analysis import trained_lens

CONFIG = tiny.config(n_layers=3)
IDS = [5, 9, 2, 30, 7, 11]


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return tiny.model(CONFIG)


def translators(seed: int = 0) -> dict[str, Any]:
    """The state dict that the package tuned-lens saves."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(CONFIG.dim, CONFIG.dim) for _ in range(CONFIG.n_layers)]
    saved = {f"{i}.{name}": value for i, own in enumerate(layers) for name, value in own.state_dict().items()}
    return {name: value.detach().numpy() for name, value in saved.items()}


def in_torch(model: llama2cpp.Model, x: Any, saved: dict[str, Any] | None, layer: int) -> Any:
    """Logits of a stream [..., dim], in double: its translator, the last norm, the output matrix."""
    x = torch.from_numpy(np.array(x)).double()
    if saved is not None and layer < CONFIG.n_layers:
        x = x + torch.nn.functional.linear(
            x, *(torch.tensor(saved[f"{layer}.{w}"]).double() for w in ("weight", "bias"))
        )
    x = x / (x.square().mean(-1, keepdim=True) + CONFIG.norm_eps).sqrt()
    weights = model.weights
    return (x * torch.from_numpy(np.array(weights["ln_final.w"])).double()) @ torch.from_numpy(
        np.array(weights["unembed.W_U"])
    ).double()


@pytest.mark.parametrize("tuned", [False, True])
def test_a_lens_and_its_divergence_are_torchs(model: llama2cpp.Model, tuned: bool) -> None:
    saved = translators() if tuned else None
    lens = None if saved is None else analysis.TunedLens.of(saved)
    _, cache = model.run_with_cache(IDS)
    names = [*(f"blocks.{i}.hook_resid_pre" for i in range(3)), "blocks.2.hook_resid_post"]
    logits = [in_torch(model, cache[name][0], saved, i) for i, name in enumerate(names)]
    found = llama2cpp.logit_lens(model, IDS, positions=None, translators=lens)
    some = llama2cpp.logit_lens(model, IDS, positions=None, translators=lens, layers=[2, -1])
    for i, expected in enumerate(logits):
        np.testing.assert_allclose(found.values[i, 0], expected, atol=2e-4)
    assert agree(some.values, found.values[[2, 3]])
    assert agree(found.values[-1], model(IDS))
    logs = [each.log_softmax(-1) for each in logits]
    kl = [torch.nn.functional.kl_div(own, logs[-1], reduction="none", log_target=True).sum(-1) for own in logs]
    np.testing.assert_allclose(analysis.lens_divergence(model, IDS, lens), torch.stack(kl), atol=2e-5)


def test_identity_has_the_logit_lenss_bits(model: llama2cpp.Model) -> None:
    zero = analysis.TunedLens(np.zeros((3, CONFIG.dim, CONFIG.dim)))
    for lens in (zero, analysis.TunedLens([None] * 3)):
        assert (
            llama2cpp.logit_lens(model, IDS, translators=lens).values == llama2cpp.logit_lens(model, IDS).values
        ).all()
        assert (analysis.lens_divergence(model, IDS, lens) == analysis.lens_divergence(model, IDS)).all()


@pytest.mark.parametrize("skip", [0, 1])
def test_a_fit_is_numpys_least_squares(model: llama2cpp.Model, skip: int) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, CONFIG.vocab_size, size=rng.integers(3, 20)).tolist() for _ in range(60)]
    lens = analysis.fit_tuned_lens(model, texts, ridge=0, skip=skip, progress=False)
    caches = [model.run_with_cache(ids)[1] for ids in texts]
    last = np.concatenate([cache["resid_post", -1][0, skip:] for cache in caches]).astype(np.float64)
    for layer in range(3):
        x = np.concatenate([cache["resid_pre", layer][0, skip:] for cache in caches]).astype(np.float64)
        solved, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], last, rcond=None)
        np.testing.assert_allclose(lens.translate(x, layer), np.c_[x, np.ones(len(x))] @ solved, atol=1e-3)
    held = analysis.fit_tuned_lens(model, texts, ridge=1e6, skip=skip, progress=False)
    assert max(abs(weight).max() for weight in held.weights if weight is not None) < 1e-4


def test_a_fit_helps_on_texts_that_it_has_not_seen(stories: llama2cpp.Model) -> None:
    texts = [stories.generate("Once upon a", max_tokens=60, seed=i, echo=True) for i in range(20)]
    lens = analysis.fit_tuned_lens(stories, texts[:16], progress=False)
    plain, tuned = (
        np.mean([analysis.lens_divergence(stories, text, each).mean(axis=1) for text in texts[16:]], axis=0)
        for each in (None, lens)
    )
    assert (tuned[1:-1] < plain[1:-1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: analysis.TunedLens(np.zeros((2, 3, 4))), "layer 0 has a weight of shape [3, 4]"),
        (lambda m: analysis.TunedLens(np.zeros((2, 3, 3)), np.zeros((2, 4))), "expected [dim, dim] and [dim]"),
        (lambda m: analysis.TunedLens([None], [None, None]), "there are 1 weights and 2 biases"),
        (lambda m: analysis.TunedLens.of({"1.weight": np.eye(2)}), "there is no '0.weight'"),
        (lambda m: analysis.lens_divergence(m, IDS, analysis.TunedLens([None] * 2)), "are of 2 layers and dim None"),
        (
            lambda m: llama2cpp.logit_lens(m, IDS, translators=analysis.TunedLens(np.zeros((3, 4, 4)))),
            "logit_lens: the translators are of 3 layers and dim 4, and the model has 3 and 36",
        ),
        (
            lambda m: llama2cpp.logit_lens(m, IDS, incl_mid=True, translators=analysis.TunedLens([None] * 3)),
            "incl_mid",
        ),
        (lambda m: analysis.fit_tuned_lens(m, [[1]]), "no tokens behind the first 1"),
        (lambda m: analysis.fit_tuned_lens(m, [], skip=0), "no tokens"),
        (lambda m: analysis.fit_tuned_lens(m, [[1, 2]], skip=-1), "skip is -1"),
        (lambda m: analysis.fit_tuned_lens(m, [[1, 2]], ridge=np.nan), "ridge is nan"),
        (lambda m: analysis.fit_tuned_lens(m, [[1, 2]], ridge=np.inf), "ridge is inf"),
        (lambda m: analysis.TunedLens([[[1.0]]]).translate([3.0], -1), "layer is -1, expected 0 or more"),
        (lambda m: analysis.TunedLens([[[1.0]]]).translate([3.0, 2.0], 0), "shape [2], expected [..., 1]"),
        (lambda m: analysis.head_directions(m, 3, 0), "layer is 3"),
        (lambda m: analysis.head_directions(m, 0, 9), "head is 9"),
        (lambda m: analysis.head_directions(m, 0, 0, directions=9), "directions is 9"),
        (lambda m: analysis.head_directions(m, 0, 0, tokens=0), "tokens is 0"),
    ],
)
def test_wrong_calls(model: llama2cpp.Model, call: Any, message: str) -> None:
    with pytest.raises((ValueError, IndexError)) as caught:  # the text is compared
        call(model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: cast(Any, analysis).TunedLens(3), "weights is of type int"),
        (lambda m: cast(Any, analysis).TunedLens({"0.weight": np.ones((2, 2))}), "TunedLens.of takes arrays by name"),
        (lambda m: cast(Any, analysis).TunedLens([None], 3), "biases is of type int"),
        (lambda m: cast(Any, analysis).TunedLens.of(5), "arrays is 5 (int)"),
        (lambda m: cast(Any, analysis).lens_divergence(m, IDS, [None] * 3), "translators is [None, None, None] (list)"),
        (lambda m: cast(Any, llama2cpp).logit_lens(m, IDS, translators="lens"), "translators is 'lens' (str)"),
    ],
)
def test_wrong_types(model: llama2cpp.Model, call: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(model)
    assert message in str(caught.value)


@pytest.mark.parametrize("head", [0, 4, -1])
def test_directions_of_a_head(model: llama2cpp.Model, head: int) -> None:
    found = analysis.head_directions(model, 1, head, tokens=5)
    weights, own = model.weights, head % CONFIG.n_heads
    kv = own * CONFIG.n_kv_heads // CONFIG.n_heads
    matrix = (
        torch.from_numpy(np.array(weights["blocks.1.ln1.w"])).double()[:, None]
        * torch.from_numpy(np.array(weights["blocks.1.attn.W_V"][kv])).double()
        @ torch.from_numpy(np.array(weights["blocks.1.attn.W_O"][own])).double()
    )
    values = torch.linalg.svdvals(matrix)[: CONFIG.head_dim]
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    np.testing.assert_allclose(found.reads @ matrix.numpy(), found.values[:, None] * found.writes, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.writes, axis=1), 1)
    logits = (found.writes * weights["ln_final.w"]) @ weights["unembed.W_U"]
    for i, row in enumerate(logits):
        assert found.top[i] == [str(id) for id in np.argsort(-row, kind="stable")[:5]]
        assert int(found.bottom[i][0]) == row.argmin()
        assert row.max() >= -row.min()
    few = analysis.head_directions(model, 1, head, directions=2)
    assert (few.writes == found.writes[:2]).all()
    assert "singular value" in found._repr_html_()


def test_directions_have_texts(stories: llama2cpp.Model) -> None:
    found = analysis.head_directions(stories, -1, 0, directions=1, tokens=3)
    assert all(stories.to_single_token(text) >= 0 for text in found.top[0])


SIZES: dict[str, dict[str, Any]] = {
    "rms": {},
    "layer, with a bias": {"norm": "layer"},
    "layer, plain": {"norm": "layer_plain"},
    "capped and scaled": {"logits_cap": 3.0, "logits_scaling": 1.7},
    "one matrix": {"tied": True},
}


def read_in_torch(model: llama2cpp.Model, x: Any) -> Any:
    """Logits of a stream, in double."""
    c, weights = model.config, model.weights
    names = weights.transformer_lens
    if c.norm != "rms":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
    if "ln_final.w" in names:
        x = x * torch.from_numpy(np.array(weights["ln_final.w"])).double()
    if "ln_final.b" in names:
        x = x + torch.from_numpy(np.array(weights["ln_final.b"])).double()
    logits = x @ torch.from_numpy(np.array(weights["unembed.W_U"])).double() / c.logits_scaling
    return c.logits_cap * torch.tanh(logits / c.logits_cap) if c.logits_cap else logits


@pytest.mark.parametrize("name", SIZES)
def test_gradients_of_a_reading_are_torchs(name: str) -> None:
    model = tiny.model(tiny.config(n_layers=2, **SIZES[name]), precision="exact", backend="cpu")
    rng = np.random.default_rng(0)
    x, other = (rng.normal(size=(7, model.config.dim)).astype(np.float32) for _ in range(2))
    wide = torch.from_numpy(x).double().requires_grad_()
    wanted = read_in_torch(model, torch.from_numpy(other).double()).log_softmax(-1)
    read = read_in_torch(model, wide).log_softmax(-1)
    loss: Any = torch.nn.functional.kl_div(read, wanted, reduction="sum", log_target=True)
    (theirs,) = torch.autograd.grad(loss, wide)
    found = trained_lens._Reading(model).gradient(x, wanted.numpy())
    assert np.abs(found - theirs.numpy()).max() < 1e-5 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize("name", SIZES)
def test_training_is_torchs(name: str) -> None:
    """Three steps of torch's Adam, in double, on the same rows."""
    model = tiny.model(tiny.config(n_layers=2, **SIZES[name]), precision="exact", backend="cpu")
    dim = model.config.dim
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, model.config.vocab_size, size=n).tolist() for n in (9, 14, 3, 20)]
    start = analysis.TunedLens(rng.normal(size=(2, dim, dim)) / 30, rng.normal(size=(2, dim)) / 30)
    given: dict[str, Any] = {"rows": 12, "learning_rate": 0.02, "progress": False}
    found = analysis.train_tuned_lens(model, texts, start, **given)
    caches = [model.run_with_cache(ids, ["resid_pre", "resid_post-1"])[1] for ids in texts]

    def rows_of(key: str, layer: int) -> Any:
        return torch.from_numpy(np.concatenate([cache[key, layer][0, 1:] for cache in caches])).double()

    last = read_in_torch(model, rows_of("resid_post", -1)).log_softmax(-1)
    assert len(last) // 12 == 3
    for layer in range(2):
        weight, bias = (
            torch.tensor(array[layer]).double().requires_grad_() for array in (start.weights, start.biases) if array
        )
        adam = torch.optim.Adam([weight, bias], lr=0.02)
        x = rows_of("resid_pre", layer)
        for first in (0, 12, 24):
            own = x[first : first + 12]
            read = read_in_torch(model, own + own @ weight.T + bias).log_softmax(-1)
            loss: Any = torch.nn.functional.kl_div(
                read, last[first : first + 12], reduction="batchmean", log_target=True
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
        # Adam's steps are of one size: where a gradient is 0 but for rounding, they are not the same.
        pairs: Any = ((found.weights[layer], weight), (found.biases[layer], bias))
        for ours, theirs in pairs:
            off = np.abs(np.subtract(ours, theirs.detach().numpy()))
            assert np.quantile(off, 0.98) < 1e-3
            assert off.max() < 0.07
        moved: Any = np.subtract(found.weights[layer], start.weights[layer])  # type: ignore[arg-type]  # none is None
        assert np.abs(moved).max() > 0.03
    plain = analysis.train_tuned_lens(model, texts, **given)
    assert [weight.shape for weight in plain.weights if weight is not None] == [(dim, dim)] * 2


def test_training_helps_on_texts_that_it_has_not_seen(stories: llama2cpp.Model) -> None:
    texts = [stories.generate("Once upon a", max_tokens=60, seed=i, echo=True) for i in range(20)]
    fitted = analysis.fit_tuned_lens(stories, texts[:16], progress=False)
    trained = analysis.train_tuned_lens(stories, texts[:16] * 3, fitted, rows=32, progress=False)
    before, after = (
        np.mean([analysis.lens_divergence(stories, text, lens).mean(axis=1) for text in texts[16:]], axis=0)
        for lens in (fitted, trained)
    )
    assert (after[:-1] < before[:-1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0, expected a number above 0"),
        ({"rows": 0}, "rows is 0, expected 1 or more"),
        ({"skip": -1}, "skip is -1, expected 0 or more"),
        ({"rows": 100}, "fewer than 100 tokens behind the first 1 of each"),
        ({"start": analysis.TunedLens([None])}, "train_tuned_lens: the translators are of 1 layers"),
    ],
)
def test_training_that_cannot_be(model: llama2cpp.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.train_tuned_lens(model, [IDS], **options)
