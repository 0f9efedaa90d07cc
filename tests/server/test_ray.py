"""`llama2cpp.ray` on a real cluster of this machine: the results are one process's, also when an actor is killed.

Needs the extra ray, 80 MB, so it is the check `ray` of ``tests/slow.sh``.
"""

from __future__ import annotations

import concurrent.futures
import gc
import importlib.util
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folder import save_adapter
from conftest import ROOT
from documents import blocks, expected_lines, run_snippet

import llama2cpp
import llama2cpp.ray
from llama2cpp.ray import map_activations, map_prompts

if importlib.util.find_spec("ray") is None:
    pytest.skip('Ray is not installed: pip install ".[ray]"', allow_module_level=True)

import ray
import ray.data
import ray.exceptions

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own packages

PROMPTS = ["Once upon a time", "The dog", "Tim and Lily", "One day", "The dog", "A cat sat", "", "She said"] * 3
SAMPLED: Any = {"max_tokens": 9, "temperature": 0.9, "top_p": 0.95, "load_args": {"context": 128}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    if str(ROOT / "src") in llama2cpp.__file__:  # not installed: workers look where this process does
        os.environ["PYTHONPATH"] = str(ROOT / "src")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    with warnings.catch_warnings():  # it does not wait for the processes that it ends
        warnings.simplefilter("ignore")
        ray.shutdown()
        gc.collect()


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return llama2cpp.load("storyteller", threads=2, context=128)


def prompts() -> Any:
    rows = [{"id": i, "prompt": prompt, "note": None if i % 3 else "x"} for i, prompt in enumerate(PROMPTS)]
    return ray.data.from_items(rows, override_num_blocks=6)


def by_id(dataset: Any) -> list[dict[str, Any]]:
    return sorted(dataset.take_all(), key=lambda row: row["id"])


def test_the_module_is_not_rays() -> None:
    assert ray is not llama2cpp.ray
    assert Path(ray.__file__).parent.name == "ray"
    assert llama2cpp.ray.__file__ is not None
    assert Path(llama2cpp.ray.__file__).parent == Path(llama2cpp.__file__).parent


def test_without_ray() -> None:
    code = "import sys; sys.modules['ray'] = None\nimport llama2cpp.ray\nllama2cpp.ray.map_prompts(None)"
    paths = [str(ROOT / "src")] if str(ROOT / "src") in llama2cpp.__file__ else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: llama2cpp.ray needs Ray: pip install 'llama2cpp[ray]'"


def test_prompts_with_seeds_by_number(model: llama2cpp.Model) -> None:
    """In batches that no block fits, on two actors, whose order is nobody's business."""
    rows = by_id(
        map_prompts(prompts(), seed=5, seed_column="id", logprobs=True, concurrency=2, batch_size=5, **SAMPLED)
    )
    how = {name: value for name, value in SAMPLED.items() if name != "load_args"}
    expected = [model.complete(prompt, seed=5 + i, **how)[0] for i, prompt in enumerate(PROMPTS)]
    assert [row["completion"] for row in rows] == [one.text for one in expected]
    assert [row["completion_tokens"] for row in rows] == [one.tokens for one in expected]
    assert [row["completion_logprobs"] for row in rows] == [one.logprobs for one in expected]
    assert [row["completion_finish_reason"] for row in rows] == [one.finish_reason for one in expected]
    assert [row["note"] for row in rows] == [None if i % 3 else "x" for i in range(len(PROMPTS))]
    assert len({row["completion"] for row in rows}) > len(set(PROMPTS))


def test_a_killed_actor_loses_nothing(model: llama2cpp.Model, tmp_path: Path) -> None:
    """One actor's process is killed within a text; its rows run again, and no row is there twice."""
    marker = str(tmp_path / "killed")

    def kill_once(ids: list[int], logits: Any) -> Any:
        if len(ids) > 12:
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return logits
            os.kill(os.getpid(), 9)
        return logits

    dataset = map_prompts(
        prompts(), output="said", seed=2, concurrency=2, batch_size=4, logits_processor=kill_once, **SAMPLED
    )
    rows = by_id(dataset)
    assert Path(marker).exists()
    how = {name: value for name, value in SAMPLED.items() if name != "load_args"}
    assert [row["id"] for row in rows] == list(range(len(PROMPTS)))
    assert [row["said"] for row in rows] == model.generate(PROMPTS, seed=2, **how)


def test_messages(model: llama2cpp.Model) -> None:
    said = [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "Hello"}],
    ]
    dataset = ray.data.from_items([{"id": i, "messages": one} for i, one in enumerate(said)])
    rows = by_id(map_prompts(dataset, messages="messages", template="chatml", max_tokens=5, load_args={"context": 128}))
    assert [row["completion"] for row in rows] == [
        model.chat(one, template="chatml", max_tokens=5, seed=0) for one in said
    ]


@pytest.mark.parametrize("pool", [None, "mean"])
def test_activations(model: llama2cpp.Model, tmp_path: Path, pool: str | None) -> None:
    """Names, shapes, order and numbers of the rows that `extract` writes."""
    texts = [text for text in PROMPTS if text][:11]
    dataset = ray.data.from_items([{"id": i, "text": text} for i, text in enumerate(texts)], override_num_blocks=3)
    points = ["resid_post", "z"]
    mapped = map_activations(
        dataset, points, [0, -1], pool=pool, dtype="f32", concurrency=2, batch_size=3, load_args={"context": 128}
    )
    rows = sorted(mapped.take_all(), key=lambda row: (row["id"], row["positions"]))
    data = model.extract(texts, points, [0, -1], out=tmp_path / "rows", pool=pool, dtype="f32")
    assert [row["id"] for row in rows] == data["text"].tolist()
    assert [row["text"] for row in rows] == [texts[i] for i in data["text"]]
    assert [row["positions"] for row in rows] == data["positions"].tolist()
    assert [row["tokens"] for row in rows] == data["tokens"].tolist()
    names = [f"blocks.{layer}.{point}" for layer in (0, 4) for point in ("hook_resid_post", "attn.hook_z")]
    assert set(rows[0]) == {"id", "text", "positions", "tokens", *names}
    for name in names:
        assert np.array_equal(np.stack([row[name] for row in rows]), data[name])


def test_adapters(model: llama2cpp.Model, tmp_path: Path) -> None:
    """Opened by each actor, from a path that all have."""
    folder = save_adapter(tmp_path / "style")
    adapter = model.load_adapter(folder)
    rows = by_id(map_prompts(prompts(), seed=2, adapter=folder, concurrency=2, batch_size=5, **SAMPLED))
    how = {name: value for name, value in SAMPLED.items() if name != "load_args"}
    assert [row["completion"] for row in rows] == model.generate(PROMPTS, seed=2, adapter=adapter, **how)
    texts = ["The dog", "One day"]
    dataset = ray.data.from_items([{"id": i, "text": text} for i, text in enumerate(texts)])
    mapped = map_activations(dataset, "resid_post", 3, pool="last", dtype="f32", adapter=str(folder))
    found = np.stack([row["blocks.3.hook_resid_post"] for row in by_id(mapped)])
    expected = [model.run_with_cache(text, adapter=adapter)[1]["resid_post", 3][0, -1] for text in texts]
    assert np.array_equal(found, np.stack(expected))


def test_a_row_that_cannot_be() -> None:
    """The error says which row."""
    dataset = ray.data.from_items([{"prompt": "The dog"}, {"prompt": "word " * 300}])
    with pytest.raises(ray.exceptions.RayTaskError, match=r"ContextFullError: .*in the row with 'word word"):
        map_prompts(dataset, max_tokens=2, load_args={"context": 128}).take_all()


FACTORS = {"model.layers.0.self_attn.o_proj": (np.ones((2, 192)), np.ones((192, 2)))}
ADAPTER = llama2cpp.Adapter.from_arrays(llama2cpp.load("storyteller", backend="cpu"), FACTORS)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "column": ({"prompt": "text"}, "map_prompts: the data set has no column 'text', it has: id, prompt, note"),
    "output": ({"output": "note"}, "has a column 'note' already: pass another output="),
    "model": ({"model": 3}, r"map_prompts: model is 3 \(int\), expected one of: str, PathLike"),
    "sampling": ({"temperature": -1.0}, "map_prompts: temperature"),
    "threads": ({"threads": 0}, "threads is 0"),
    "threads twice": ({"load_args": {"threads": 1}}, "load_args has threads"),
    "batch": ({"batch_size": 0}, "batch_size is 0"),
    "concurrency": ({"concurrency": (3, 2)}, r"concurrency is \[3, 2\]"),
    "no actors": ({"concurrency": 0}, "concurrency is 0"),
    "template": ({"template": "chatml"}, "template is for messages"),
    "adapter": ({"adapter": ADAPTER}, "map_prompts: adapter is .*, which cannot be sent to actors: expected the path"),
    "adapter's path": ({"adapter": ""}, "map_prompts: adapter is '', expected the path"),
    "a name": ({"max_new_tokens": 3}, "here it is max_tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    """At the call, before an actor begins."""
    arguments, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message):
        map_prompts(prompts(), **arguments)


def test_wrong_arguments_of_activations() -> None:
    texts = ray.data.from_items([{"text": "a"}])
    with pytest.raises(ValueError, match="pool is 'max'"):
        map_activations(texts, "resid_post", pool="max")
    with pytest.raises(ValueError, match="dtype is 'bf16', expected one of: f16, f32"):
        map_activations(texts, "resid_post", dtype="bf16")
    with pytest.raises(TypeError, match=r"dataset is of type list, expected a ray\.data\.Dataset"):
        map_activations([{"text": "a"}], "resid_post")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets of docs/scale.md that need Ray, in their order; what follows ``# ->`` is what they print."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "scale.md"
    names: dict[str, Any] = {}
    snippets = list(blocks(page, "py"))
    assert len(snippets) == 3
    for snippet in snippets:
        assert run_snippet(snippet, page, names) == expected_lines(snippet)


@pytest.mark.skipif(importlib.util.find_spec("ray.serve") is None, reason="Ray Serve is another extra of Ray's")
def test_replicas_answer_as_one_process_does(model: llama2cpp.Model, tmp_path: Path) -> None:
    """Two processes behind one address: texts, streams, adapters and errors are those of `llama2cpp serve`."""
    from ray import serve

    from llama2cpp.ray import deployment

    folder = save_adapter(tmp_path / "style")
    adapter = model.load_adapter(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(
            deployment(replicas=2, adapters={"style": folder}, load_args={"context": 128}, template="llama2"),
            logging_config={"log_level": "ERROR"},
        )
        (found,) = serve.status().applications.values()
        assert found.deployments["llama2cpp"].replica_states == {"RUNNING": 2}

        def ask(path: str, body: dict[str, Any] | None = None) -> str:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
            if body is not None:
                request.data = json.dumps(body).encode()
                request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as response:
                told: str = response.read().decode()
            return told

        def text(i: int) -> str:
            body = {"prompt": PROMPTS[i], "seed": i, "max_tokens": 9, "temperature": 0.9}
            if i % 3 == 1:
                body["model"] = "style"
            if i % 2:
                return str(json.loads(ask("/v1/completions", body))["choices"][0]["text"])
            lines = ask("/v1/completions", {**body, "stream": True}).split("\n\n")
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            return "".join(event["choices"][0]["text"] for event in events)

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            told = list(pool.map(text, range(len(PROMPTS))))
            passes = set(pool.map(lambda _: ask("/metrics").partition("\nllama2cpp_passes_total ")[2][:9], range(40)))
        expected = [
            model.generate(
                prompt, seed=i, max_tokens=9, temperature=0.9, special=False, adapter=adapter if i % 3 == 1 else None
            )
            for i, prompt in enumerate(PROMPTS)
        ]
        assert told == expected
        assert len(passes) >= 2  # each of the two counts its own
        listed = json.loads(ask("/v1/models"))["data"]
        assert [one["id"] for one in listed] == ["storyteller", "style"]
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask("/v1/completions", {"prompt": "a", "temperature": -1})
        assert caught.value.code == 400
        assert json.loads(caught.value.read())["error"]["type"] == "invalid_request_error"
    finally:
        serve.shutdown()


@pytest.mark.skipif(importlib.util.find_spec("ray.serve") is None, reason="Ray Serve is another extra of Ray's")
def test_wrong_arguments_of_deployments() -> None:
    from llama2cpp.ray import deployment

    cases: list[tuple[dict[str, Any], str]] = [
        ({"replicas": 0}, "deployment: replicas is 0, expected 1 or more"),
        ({"rows": 0}, "deployment: rows is 0"),
        ({"queue": -1}, "deployment: queue is -1, expected 0 or more"),
        ({"threads": 0}, "deployment: threads is 0"),
        ({"name": ""}, "deployment: name is empty"),
        ({"adapters": {"storyteller": "x"}}, "deployment: adapters has 'storyteller', which is the model's name"),
        ({"adapters": {"a": ""}}, "deployment: adapter is ''"),
        ({"load_args": {"threads": 2}}, "deployment: load_args has threads"),
    ]
    for arguments, said in cases:
        with pytest.raises(ValueError, match=said):
            deployment(**arguments)
