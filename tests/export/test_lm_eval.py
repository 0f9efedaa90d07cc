"""Tasks of lm-evaluation-harness: the same figures as its own ``hf`` has of the exported folder, offline.

Needs the extra eval and accelerate, 760 MB in all, so it is the check `harness` of ``tests/slow.sh``.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from adapter_folder import save_adapter

import llama2cpp

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip('lm_eval is not installed: pip install ".[eval]" accelerate', allow_module_level=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before it is imported, and only where this file runs: others ask a hub
lm_eval = pytest.importorskip("lm_eval")

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm_eval's own packages

CHOICES = [
    {"question": "Once upon a", "choices": [" time", " dog", " very big dog", "n't"], "answer": 0},
    {"question": "One day, Lily saw a big", "choices": [" red ball", " tree.", " the", ", but"], "answer": 1},
    {"question": "Tim was sad because ", "choices": ["he lost his toy.", "the sky is.", "and"], "answer": 0},
    {"question": "", "choices": ["Once", "Zebra", "the"], "answer": 0},
    {"question": "The dog " * 70, "choices": ["ran", "was", "dog dog dog"], "answer": 2},
]
TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "She liked to play outside in the park with her dog. " * 12,  # longer than the context
    "a",
]
STARTS = ["Once upon a time", "The dog", "Lily and Tim went to the", "She said: "]
TASKS: dict[str, dict[str, Any]] = {
    "tiny_choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_texts": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": [".", "\n\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Hugging Face's and one of tasks."""
    home = tmp_path_factory.mktemp("lm_eval")
    with llama2cpp.load("storyteller", context=128) as model:
        llama2cpp.export.convert(model, home / "model", "f32")
    tasks = home / "tasks"
    tasks.mkdir()
    rows: dict[str, list[Any]] = {
        "tiny_choices": CHOICES,
        "tiny_rolling": [{"text": text} for text in TEXTS],
        "tiny_texts": [{"text": text} for text in STARTS],
    }
    for name, task in TASKS.items():
        data = tasks / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        own = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metadata": {"version": 1},
        }
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({**own, **task}))
    return home


def evaluated(folder: Path, model: str, arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a model answers to each request, by task."""
    import lm_eval.tasks

    import llama2cpp.lm_eval  # noqa: F401 - registers the name

    manager = lm_eval.tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=manager,
        device="cpu",
        batch_size=1,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = {name: [sample["resps"] for sample in found["samples"][name]] for name in TASKS}
    figures = {name: {k: v for k, v in found["results"][name].items() if "," in k} for name in TASKS}
    return {"samples": samples, "figures": figures}


@pytest.fixture(scope="module")
def of_hf(folder: Path) -> dict[str, dict[str, Any]]:
    arguments = {"pretrained": str(folder / "model"), "dtype": "float32", "max_length": 128}
    return evaluated(folder, "hf", arguments)


def same_samples(samples: dict[str, Any], expected: dict[str, Any]) -> None:
    """Log probabilities within rounding, texts to the letter."""
    scored = 0
    for responses, of_theirs in zip(samples["tiny_choices"], expected["tiny_choices"], strict=True):
        for [(logprob, greedy)], [(other, as_greedy)] in zip(responses, of_theirs, strict=True):
            assert math.isclose(float(logprob), float(other), rel_tol=1e-5, abs_tol=1e-4)
            assert str(greedy) == str(as_greedy)
            scored += 1
    assert scored == 17
    for one, two in zip(samples["tiny_rolling"], expected["tiny_rolling"], strict=True):
        assert math.isclose(float(one[0][0]), float(two[0][0]), rel_tol=2e-5, abs_tol=1e-3)
    assert samples["tiny_texts"] == expected["tiny_texts"]
    assert all(text for [[text]] in samples["tiny_texts"])


@pytest.mark.parametrize("speculate", [None, "prompt"])
def test_figures_are_those_of_hf(folder: Path, of_hf: dict[str, dict[str, Any]], speculate: str | None) -> None:
    arguments = {"path": str(folder / "model"), "precision": "exact", "max_length": 128, "speculate": speculate}
    ours = evaluated(folder, "llama2cpp", {name: value for name, value in arguments.items() if value is not None})
    samples, expected = ours["samples"], of_hf["samples"]
    same_samples(samples, expected)
    for name in TASKS:
        assert ours["figures"][name].keys() == of_hf["figures"][name].keys()
        for metric, value in ours["figures"][name].items():
            if isinstance(value, float):
                assert math.isclose(value, of_hf["figures"][name][metric], rel_tol=1e-5), metric


def test_figures_with_an_adapter_are_those_of_hf(folder: Path, of_hf: dict[str, dict[str, Any]]) -> None:
    """hf has peft compute it: the same folder by the same name."""
    beside = str(save_adapter(folder / "style"))
    arguments = {"pretrained": str(folder / "model"), "peft": beside}
    expected = evaluated(folder, "hf", {**arguments, "dtype": "float32", "max_length": 128})
    ours = evaluated(folder, "llama2cpp", {**arguments, "precision": "exact", "max_length": 128})["samples"]
    theirs = expected["samples"]
    assert theirs["tiny_rolling"] != of_hf["samples"]["tiny_rolling"]
    same_samples(ours, theirs)


def test_the_command(folder: Path) -> None:
    """lm_eval's own, which knows the name."""
    arguments = [
        "--model",
        "llama2cpp",
        "--model_args",
        f"path={folder / 'model'},threads=1",
        "--tasks",
        "tiny_choices",
    ]
    command = [sys.executable, "-m", "llama2cpp.lm_eval", *arguments, "--include_path", str(folder / "tasks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "|tiny_choices|" in done.stdout


def test_what_cannot_be(folder: Path) -> None:
    from llama2cpp.lm_eval import Llama2cppLM

    with pytest.raises(ValueError, match="no model is given"):
        Llama2cppLM()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Llama2cppLM("no-such-model.gguf", adapter="nowhere")
    model = Llama2cppLM(str(folder / "model"), max_length=64)
    with pytest.raises(ValueError, match="a task wants 64 new tokens, and the model takes 64"):
        model._asked("Once", {"max_gen_toks": 64})
    with pytest.raises(ValueError, match="what is not known: num_beam_groups"):
        model._asked("Once", {"num_beam_groups": 2, "max_gen_toks": 5})
    with pytest.raises(ValueError, match="a continuation has 70 tokens, and the model takes 64"):
        model._loglikelihood_tokens([(None, [1], [5] * 70)])
