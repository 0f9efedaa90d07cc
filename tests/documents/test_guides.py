"""The guides for people who come from other packages: what stands on the left exists there, and gives our numbers."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT

import llama2cpp
from llama2cpp import export

GUIDE = ROOT / "docs" / "guide"
TEXT = "When Lily and Tom went to the park, Lily gave the ball to"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = (GUIDE / f"{page}.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(lines) > 8
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:] if "---" not in line]


def code(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.convert("storyteller", tmp_path_factory.mktemp("guides") / "folder", "f32").path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@pytest.fixture(scope="module")
def ours(folder: Path) -> llama2cpp.Model:
    return llama2cpp.load(folder, precision="exact")


def close(got: Any, expected: Any) -> None:
    expected = expected.detach().numpy().reshape(got.shape)
    assert np.abs(got - expected).max() < 3e-6 * np.abs(expected).max()


def test_modules_and_names(theirs: Any, ours: llama2cpp.Model) -> None:
    """Each row of the guide for nnsight, whose modules are transformers'."""
    logits, cache = ours.run_with_cache(TEXT)
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            outputs = output if isinstance(output, tuple) else (output,)
            seen.update({f"{name}.input": given, f"{name}.output": output})
            seen.update({f"{name}.output[{i}]": one for i, one in enumerate(outputs)})

        return hook

    hooks = [
        module.register_forward_hook(keep(f"model.{name}"), with_kwargs=True) for name, module in theirs.named_modules()
    ]
    with torch.no_grad():
        theirs(torch.tensor(ours.to_tokens(TEXT)))
    for hook in hooks:
        hook.remove()
    table = rows("from_nnsight", "Modules and names")
    assert len(table) == 16
    for layer in range(ours.config.n_layers):
        for module, name in table:
            expected = seen[code([module])[0].replace("[i]", f".{layer}", 1)]
            if name == "the logits":
                close(logits, expected)
                continue
            found, *gain = code([name])
            got = eval(found.replace(" i]", f" {layer}]").replace(".i.", f".{layer}."), {"cache": cache})
            close(got * eval(gain[0].replace("[i]", f"[{layer}]"), {"model": ours}) if gain else got, expected)


GENERATION = {
    *transformers.GenerationConfig().to_dict(),  # type: ignore[no-untyped-call]
    *inspect.signature(transformers.GenerationMixin.generate).parameters,
}


def test_settings_of_transformers_exist() -> None:
    named = re.findall(r"\b(\w+)=", " ".join(code([row[0] for row in rows("from_transformers", "Generation")])))
    assert len(named) > 20
    assert sorted({*named} - GENERATION) == []
    assert hasattr(transformers.GenerationMixin, "compute_transition_scores")
    assert {"TextIteratorStreamer", "DynamicCache", "GPTQConfig", "BitsAndBytesConfig", "set_seed"} <= set(
        dir(transformers)
    )
    here = set(inspect.signature(llama2cpp.Model.complete).parameters)
    middle = [row[1] for row in rows("from_transformers", "Generation") if row[1] != "the same"]
    assert sorted({*re.findall(r"(?<![\w.])(\w+)=", " ".join(code(middle)))} - here) == []


@pytest.mark.parametrize("prompt", [TEXT, "Once upon a time", "The dog"])
def test_generate(prompt: str, theirs: Any, ours: llama2cpp.Model) -> None:
    ids = torch.tensor(ours.to_tokens(prompt))
    options = {"max_new_tokens": 24, "pad_token_id": 0}
    with torch.no_grad():
        plain = theirs.generate(ids, do_sample=False, **options)[0, ids.shape[1] :].tolist()
        comma = ours.to_single_token(",")
        without = theirs.generate(ids, do_sample=False, repetition_penalty=1.3, suppress_tokens=[comma], **options)
    (got,) = ours.complete(prompt, temperature=0, max_tokens=24)
    assert got.tokens == [id for id in plain if id not in ours.tokenizer.eos_ids]
    (got,) = ours.complete(
        prompt, temperature=0, max_tokens=24, repetition_penalty=1.3, logit_bias={comma: -float("inf")}
    )
    assert got.tokens == [id for id in without[0, ids.shape[1] :].tolist() if id not in ours.tokenizer.eos_ids]


def test_caches(theirs: Any, ours: llama2cpp.Model) -> None:
    """past_key_values is session.kv, crop is rewind, and a copy a fork."""
    ids = ours.to_tokens(TEXT)[0].tolist()
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), use_cache=True)
        session = ours.session()
        session.prefill(ids)
        for layer in range(ours.config.n_layers):
            for kind in ("keys", "values"):
                expected = getattr(out.past_key_values.layers[layer], kind)[0].transpose(0, 1)
                close(np.array(getattr(session.kv, kind)(layer)), expected.contiguous())
        branch, fork = copy.deepcopy(out.past_key_values), session.fork()
        branch.crop(5 - len(ids))
        fork.rewind(5)
        close(fork.step(7), theirs(torch.tensor([[7]]), past_key_values=branch).logits[0, -1])
        close(session.step(7), theirs(torch.tensor([[7]]), past_key_values=out.past_key_values).logits[0, -1])


def test_embeddings_and_scores(theirs: Any, ours: llama2cpp.Model) -> None:
    with torch.no_grad():
        out = theirs(torch.tensor(ours.to_tokens(TEXT)), output_hidden_states=True)
    close(ours.embed(TEXT), out.hidden_states[-1][0].mean(dim=0))
    close(ours.embed(TEXT, pooling="last"), out.hidden_states[-1][0, -1])
    tom = ours.to_single_token(" Tom")
    score = ours.score(TEXT, " Tom")
    assert score.logprob == pytest.approx(torch.log_softmax(out.logits[0, -1], -1)[tom].item(), abs=1e-5)
    close(ours.W_U.T, theirs.get_output_embeddings().weight)
    close(ours.W_E, theirs.get_input_embeddings().weight)


def test_names_of_llama_cpp_python() -> None:
    """Each method and keyword of the guide's left column is in its signatures."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when installed")
    headings = ["Opening", "Texts", "Logits, caches and vectors"]
    left = " ".join(code([row[0] for heading in headings for row in rows("from_llama_cpp_python", heading)]))
    methods = set(re.findall(r"\bLlama\.(\w+)", left))
    assert len(methods) > 15
    calls = [llama_cpp.Llama, *(getattr(llama_cpp.Llama, name) for name in methods - {"scores", "n_tokens"})]
    known = {name for call in calls for name in inspect.signature(call).parameters}
    assert sorted(set(re.findall(r"\b(\w+)=", left)) - known) == []


def test_names_of_nnsight() -> None:
    nnsight = pytest.importorskip("nnsight", reason="needs nnsight, whose numbers the modules of transformers are")
    from nnsight.intervention.tracer import InterleavingTracer

    left = " ".join(code([row[0] for row in rows("from_nnsight", "Call by call")]))
    of_model, of_tracer = set(re.findall(r"\bmodel\.(\w+)\(", left)), set(re.findall(r"\btracer\.(\w+)", left))
    assert {"trace", "session", "edit", "generate", "scan"} <= of_model
    assert {"cache", "invoke", "stop", "iter"} <= of_tracer
    assert sorted(name for name in of_model - {"lm_head", "norm"} if not hasattr(nnsight.TransformersModel, name)) == []
    assert sorted(name for name in of_tracer if not hasattr(InterleavingTracer, name)) == []
