"""Every number of ``llama2cpp explore``'s API against the Python that gives it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from explored import ODD_TEXTS, TOKEN, Explored, explored, odd_gguf, probabilities

import llama2cpp
from llama2cpp import metrics, patching
from llama2cpp.explorer.drawing import cut
from llama2cpp.explorer.products import KINDS

TEXT = "When Lily and Tom went to the park, Lily gave the ball to"
CORRUPT = "When Lily and Tom went to the park, Tom gave the ball to"
EDITS: list[dict[str, Any]] = [
    {"what": "head", "do": "off", "layer": 4, "head": 2},
    {"what": "head", "do": "scale", "factor": 2.5, "layer": 1, "head": 0, "position": 3},
    {"what": "neuron", "do": "set", "value": 3, "layer": 2, "neuron": 17},
    {"what": "neuron", "do": "off", "layer": 0, "neuron": 5},
    {"what": "attention", "do": "scale", "factor": 0.5, "layer": 2},
    {"what": "mlp", "do": "off", "layer": 3},
    {"what": "layer", "do": "off", "layer": 1},
    {"what": "direction", "do": "add", "layer": 2, "token": 862, "minus": 848, "strength": 9},
    {"what": "direction", "do": "add", "layer": 1, "plus_text": "happy", "minus_text": "sad", "strength": 4},
    {"what": "direction", "do": "add", "layer": 1, "plus_text": 'it\'s "so"\n', "strength": 4, "position": 5},
    {"what": "key", "do": "scale", "factor": 3, "layer": 4, "head": 1, "position": 4},
    {"what": "value", "do": "off", "layer": 4, "head": 0, "position": 11},
    {"what": "value", "do": "set", "value": 2, "layer": 3, "head": 0, "position": 11, "neuron": 7},
]


@pytest.fixture(scope="module")
def exact() -> Iterator[Explored]:
    options = "'storyteller', precision='exact', backend='cpu'"
    with (
        llama2cpp.load("storyteller", precision="exact", backend="cpu") as model,
        explored(model, opened=f"llama2cpp.load({options})") as page,
    ):
        yield page


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explored]:
    path = odd_gguf(tmp_path_factory.mktemp("odd") / "odd.gguf")
    with llama2cpp.load(path, precision="exact", backend="cpu") as model, explored(model) as page:
        yield page


@pytest.fixture(params=["storyteller", "odd"])
def page(request: pytest.FixtureRequest) -> Any:
    """What is known, and a checkpoint that nobody has seen."""
    return request.getfixturevalue("exact" if request.param == "storyteller" else "odd")


def ids_of(page: Explored) -> list[int]:
    if page.model.config.vocab_size > 1000:
        return [int(id) for id in page.model.to_tokens(TEXT)[0]]
    return [1, *range(3, 3 + len(ODD_TEXTS)), 14, 15]


def test_about_and_tokens(page: Explored) -> None:
    told, model = page.ask("about"), page.model
    for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size"):
        assert told[name] == getattr(model.config, name)
    ids = ids_of(page)
    tokens = page.ask("tokens", ids=ids)["tokens"]
    assert [token["id"] for token in tokens] == ids
    assert [bytes.fromhex(token["bytes"]) for token in tokens] == [model.tokenizer.piece(id) for id in ids]
    assert [token["special"] for token in tokens] == [id in model.tokenizer.special_ids for id in ids]
    written = model.tokenizer.decode(ids[1:])
    assert [one["id"] for one in page.ask("tokens", text=written)["tokens"]] == model.to_tokens(written)[0].tolist()
    for token in tokens[1:4]:
        assert page.ask("token", text=f"#{token['id']}") == token


@pytest.mark.parametrize("edited", [False, True])
def test_next(page: Explored, edited: bool) -> None:
    ids = ids_of(page)
    edits = [{"what": "head", "do": "off", "layer": 2, "head": 1}] if edited else []
    hooks = [llama2cpp.interventions.zero("z", layer=2, head=1)] if edited else []
    logits = page.model.run_with_hooks(ids, hooks)[0, -1]
    told = page.ask("next", ids=ids, edits=edits, rows=30)
    p = probabilities(logits)
    assert [row["id"] for row in told["rows"]] == np.argsort(-logits, kind="stable")[:30].tolist()
    np.testing.assert_allclose([row["p"] for row in told["rows"]], p[[row["id"] for row in told["rows"]]], rtol=1e-12)
    assert [row["logit"] for row in told["rows"]] == [float(logits[row["id"]]) for row in told["rows"]]
    assert told["kept"] == told["count"] == page.model.config.vocab_size
    assert told["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-9)
    later = page.ask("next", ids=ids, edits=edits, rows=5, begin=7)["rows"]
    assert later == told["rows"][7:12]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 9, "top_p": 0.6, "min_p": 0.05},
        {"temperature": 0},
        {"top_p": 0.5, "temperature": 2},
        {"top_k": 1},
    ],
    ids=str,
)
def test_cuts_are_those_of_the_sampler(settings: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal(40) * 2).astype(np.float32)
    options: Any = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}
    made = cut(logits, **options, shown=40)
    assert made.q.sum() == pytest.approx(1)
    sampler = llama2cpp.Sampler(seed=1, **options)
    drawn = np.bincount([sampler.sample(logits) for _ in range(6000)], minlength=40) / 6000
    assert set(np.flatnonzero(drawn)) <= set(made.order[: made.kept].tolist())
    assert np.abs(drawn - made.q).max() < 0.03
    assert [bool(by) for by in made.by[: made.kept]] == [False] * len(made.by[: made.kept])
    assert all(made.q[id] > 0 for id in made.order[: made.kept])
    assert made.q[made.order[made.kept :]].sum() == 0


def test_generate_is_that_of_the_model(exact: Explored) -> None:
    ids = ids_of(exact)
    settings: list[dict[str, Any]] = [{"temperature": 0.0, "top_p": 1.0}]
    settings.append({"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": 5})
    for options in settings:
        told = exact.ask("generate", ids=ids, max_tokens=12, **options)
        sampling = {"seed": 0, **options}
        text = exact.model.generate(ids, max_tokens=12, **sampling)
        assert exact.model.tokenizer.decode([token["id"] for token in told]).strip() == text.strip()
    step = exact.ask("generate", ids=ids, temperature=0)
    assert [token["id"] for token in step] == [told_id(exact, ids)]


def told_id(page: Explored, ids: list[int]) -> int:
    return int(page.model(ids)[0, -1].argmax())


def test_flow_layer_and_head(page: Explored) -> None:
    ids, config = ids_of(page), page.model.config
    _, cache = page.model.run_with_cache(ids)
    told = page.ask("flow", ids=ids)
    assert len(told["stations"]) == 2 + 5 * config.n_layers
    for station in told["stations"]:
        array = cache[station["name"]][0]
        assert station["shape"] == list(array.shape)
        np.testing.assert_allclose(station["norms"], np.linalg.norm(array, axis=-1), rtol=1e-5)
    layer = page.ask("layer", ids=ids, layer=1, position=5)
    assert len(layer["parts"]) > 12
    for part in layer["parts"]:
        array = cache[part["name"]][0]
        assert part["shape"] == list(array.shape)
        assert part["norm"] == pytest.approx(np.linalg.norm(array[5]), rel=1e-5)
    head = page.ask("head", ids=ids, layer=1, head=4, position=5)
    assert head["kv_head"] == 4 * config.n_kv_heads // config.n_heads
    assert head["pattern"] == cache["pattern", 1][0, 4, 5, :6].tolist()
    np.testing.assert_allclose(head["scores"], cache["attn_scores", 1][0, 4, 5, :6])
    assert head["z"] == cache["z", 1][0, 5, 4].tolist()
    values = cache["v", 1][0, :6, head["kv_head"]]
    np.testing.assert_allclose(head["value_norms"], np.linalg.norm(values, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_products_give_the_number_of_the_run(page: Explored, kind: str) -> None:
    ids = ids_of(page)
    _, cache = page.model.run_with_cache(ids)
    where: dict[str, Any] = {"layer": 2, "head": 1, "position": 6, "key": 3, "output": 0 if kind == "score" else 9}
    where["output"] = (
        min(where["output"], page.model.config.head_dim - 1) if kind in ("q", "k", "v", "mix") else where["output"]
    )
    told = page.ask("product", ids=ids, kind=kind, rows=200, **where)
    o = where["output"]
    expected = {
        "q": lambda: cache["q", 2][0, 6, 1, o],
        "k": lambda: cache["k", 2][0, 6, 1, o],
        "v": lambda: cache["v", 2][0, 6, 1, o],
        "score": lambda: cache["attn_scores", 2][0, 1, 6, 3],
        "mix": lambda: cache["z", 2][0, 6, 1, o],
        "attn_out": lambda: cache["attn_out", 2][0, 6, o],
        "gate": lambda: cache["pre", 2][0, 6, o],
        "up": lambda: cache["pre_linear", 2][0, 6, o],
        "mlp_out": lambda: cache["mlp_out", 2][0, 6, o],
        "logit": lambda: page.model(ids)[0, 6, o],
    }[kind]()
    assert told["measured"] == pytest.approx(float(expected), rel=1e-6)
    assert told["result"] == pytest.approx(told["measured"], rel=1e-4, abs=1e-4)
    for term in told["terms"]:
        assert term["product"] == pytest.approx(term["x"] * term["w"], rel=1e-9)
    if told["count"] <= 200:
        assert sum(term["product"] for term in told["terms"]) == pytest.approx(told["sum"], rel=1e-9)
    sizes = [abs(term["product"]) for term in told["terms"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "rounded"),
    [
        ({}, "int8 in groups of 64"),
        ({"activation_dtype": "f32", "kv_dtype": "f16"}, ""),
        ({"activation_dtype": "f32", "kv_dtype": "q8_0"}, ""),
    ],
    ids=["int8", "f16 cache", "q8_0 cache"],
)
def test_products_round_as_the_model_does(options: dict[str, Any], rounded: str) -> None:
    """With the rounding of a model that is opened as usual, the sum is the model's number but for the last digits."""
    with llama2cpp.load("storyteller", backend="cpu", **options) as model, explored(model) as page:
        ids = ids_of(page)
        for kind in KINDS:
            for layer, output in [(0, 0), (2, 5), (4, 11)]:
                where = {"layer": layer, "head": 1, "position": len(ids) - 1, "key": output}
                told = page.ask("product", ids=ids, kind=kind, output=0 if kind == "score" else output, **where)
                assert told["rounded"] == ("" if kind in ("score", "mix") else rounded)
                assert told["result"] == pytest.approx(told["measured"], abs=5e-5), kind


def test_attention(page: Explored) -> None:
    ids, config = ids_of(page), page.model.config
    _, cache = page.model.run_with_cache(ids, "pattern")
    told = page.ask("attention_head", ids=ids, layer=1, head=3)
    assert told["pattern"] == cache["pattern", 1][0, 3].tolist()
    assert told["outside"] == [0.0] * len(ids)
    grid = page.ask("attention_grid", ids=ids)
    small = np.frombuffer(base64.b64decode(grid["bytes"]), np.uint8)
    small = small.reshape(config.n_layers, config.n_heads, grid["side"], grid["side"])
    full = np.stack([cache["pattern", i][0] for i in range(config.n_layers)])
    assert np.abs(small / 255 - full).max() <= 0.5 / 255 + 1e-6


def test_lens_and_attribution(page: Explored) -> None:
    ids, model = ids_of(page), page.model
    _, cache = model.run_with_cache(ids)
    target, versus = 14, 15
    told = page.ask("lens", ids=ids, target=target)
    lens = cache.logit_lens(positions=None, top_k=1, return_type="probs")
    assert lens.top_ids is not None
    assert told["ids"] == lens.top_ids[:, 0, :, 0].tolist()
    np.testing.assert_allclose(told["p"], lens.values[:, 0, :, 0], rtol=1e-6)
    aimed = cache.logit_lens(positions=None, targets=[target], return_type="probs")
    assert aimed.target_ranks is not None
    assert told["target"]["ranks"] == aimed.target_ranks[:, 0, :, 0].tolist()
    for other in (None, versus):
        made = page.ask("attribution", ids=ids, position=7, token=target, versus=other)
        heads = cache.logit_attrs(cache.stack_head_results(pos_slice=7), target, other, pos_slice=7)[:, 0]
        np.testing.assert_allclose(np.ravel(made["heads"]), heads, rtol=1e-4, atol=1e-5)
        logits = model(ids)[0, 7]
        difference = float(logits[target]) - (0.0 if other is None else float(logits[other]))
        assert made["logit"] == pytest.approx(difference, abs=1e-4)
        assert made["sum"] == pytest.approx(difference, abs=1e-3)
        assert made["sum"] == pytest.approx(sum(part["value"] for part in made["parts"]), abs=1e-4)
    neurons = page.ask("neurons", ids=ids, position=7, token=target, rows=5)["neurons"]
    direction = model.tokens_to_residual_directions(target)
    every = cache.stack_neuron_results(None, pos_slice=7, apply_ln=True, project_output_onto=direction)[:, 0]
    best = np.argsort(-np.abs(every), kind="stable")[:5]
    width = model.config.hidden_dim
    assert [one["layer"] * width + one["neuron"] for one in neurons] == best.tolist()
    np.testing.assert_allclose([one["value"] for one in neurons], every[best], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("edits", [[edit] for edit in EDITS] + [EDITS, []], ids=lambda edits: str(edits)[:60])
def test_python_does_the_same(exact: Explored, edits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ready to copy is run, and gives the numbers that the page shows."""
    ids = ids_of(exact)
    code = exact.ask("python", ids=ids, edits=edits)["python"]
    assert code.count("llama2cpp.load(") == 1
    monkeypatch.setattr(llama2cpp, "load", lambda *_, **__: exact.model)
    names: dict[str, Any] = {}
    exec(code, names)
    if not edits:
        before = after = names["logits"]
    else:
        before, after = names["before"], names["after"]
        assert not (before == after).all()
    told = exact.ask("compare", ids=ids, edits=edits, rows=10)
    for row in told["rows"]:
        assert row["logit_before"] == float(before[row["id"]])
        assert row["logit_after"] == float(after[row["id"]])
        assert row["before"] == pytest.approx(probabilities(before)[row["id"]], rel=1e-9)
        assert row["after"] == pytest.approx(probabilities(after)[row["id"]], rel=1e-9)
    assert told["best_after"]["id"] == int(after.argmax())


@pytest.mark.parametrize("name", ["resid_pre", "z", "attn_out", "mlp_out"])
def test_patching(exact: Explored, name: str) -> None:
    model = exact.model
    tom, lily = model.to_single_token(" Tom"), model.to_single_token(" Lily")
    first, *pieces = exact.ask("patch", clean_text=TEXT, corrupt_text=CORRUPT, name=name, answer=tom, wrong=lily)
    grid = np.full((first["rows"], first["columns"]), np.nan)
    for piece in pieces:
        grid[piece["layer"], piece["begin"] : piece["begin"] + len(piece["values"])] = piece["values"]
    _, cache = model.run_with_cache(TEXT)
    axis = "head" if name == "z" else "position"
    metric = metrics.logit_diff(tom, lily)
    expected = patching.activation_patch(model, CORRUPT, cache, metric, name, ["layer", axis], progress=False)
    assert (grid == expected).all()
    assert first["clean"] == metric(model(TEXT))[0]
    assert first["corrupt"] == metric(model(CORRUPT))[0]
    assert len(pieces) >= first["rows"]


def test_views_are_of_the_edited_model(exact: Explored) -> None:
    ids = ids_of(exact)
    edits = [EDITS[5]]
    with exact.model.hooks([llama2cpp.interventions.zero("mlp_out", layer=3)]):
        _, cache = exact.model.run_with_cache(ids)
    told = exact.ask("attention_head", ids=ids, edits=edits, layer=4, head=1)
    assert told["pattern"] == cache["pattern", 4][0, 1].tolist()
    stations = {one["name"]: one for one in exact.ask("flow", ids=ids, edits=edits)["stations"]}
    assert max(stations["blocks.3.hook_mlp_out"]["norms"]) == 0
    plain = {one["name"]: one for one in exact.ask("flow", ids=ids)["stations"]}
    assert min(plain["blocks.3.hook_mlp_out"]["norms"]) > 0


def test_long_prompts_come_in_pages(exact: Explored) -> None:
    """Never more than 5 MB for a view, and a page in the middle is that part of the whole."""
    rng = np.random.default_rng(0)
    ids = [1, *rng.integers(300, 1500, size=exact.model.context - 1).tolist()]
    where: dict[str, Any] = {"position": 400, "begin": 337}
    asked: dict[str, dict[str, Any]] = {
        "tokens": {},
        "next": {"rows": 200},
        "flow": {"begin": 337},
        "layer": {"layer": 1, "position": 400},
        "head": {"layer": 1, "head": 1, **where},
        "attention_grid": {"begin": 337},
        "attention_head": {"layer": 1, "head": 1, "begin": 337},
        "lens": {"begin": 337, "target": 300},
        "attribution": {"position": 400, "token": 300},
        "neurons": {"position": 400, "token": 300, "rows": 200},
        "python": {},
    }
    told = {}
    for view, body in asked.items():
        status, _, data = exact.send("POST", f"/api/{view}", {"ids": ids, **body}, Authorization=f"Bearer {TOKEN}")
        assert status == 200
        assert len(data) < 5_000_000
        told[view] = json.loads(data)
    pattern = exact.model.run_with_cache(ids, "pattern1")[1]["pattern", 1][0, 1]
    assert told["attention_head"]["pattern"] == pattern[337:401, 337:401].tolist()
    np.testing.assert_allclose(told["attention_head"]["outside"], pattern[337:401, :337].sum(axis=-1), rtol=1e-5)
    assert len(told["lens"]["ids"][0]) == 64
    assert told["attention_grid"]["side"] == 32
