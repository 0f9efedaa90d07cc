"""What `Model.explain` says: probabilities, surprise, heads and layers. `test_parts_of_families.py` sums them up."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

import llama2cpp
from llama2cpp.inside.explanation import Contribution, NextToken

PROMPT = "When Lily and Tom went to the park, Lily gave the ball to"


@pytest.fixture(scope="module")
def teller() -> llama2cpp.Model:
    return llama2cpp.load("storyteller", precision="exact")


def test_tokens_and_surprise_are_the_logits(teller: llama2cpp.Model) -> None:
    found = teller.explain(PROMPT, top_k=5)
    ids = teller.tokenizer.encode(PROMPT)
    logits = torch.from_numpy(teller(PROMPT)[0]).double()
    chances = logits.log_softmax(-1)
    assert found.ids == ids
    assert found.tokens == list(teller.to_str_tokens(PROMPT))
    surprise = -chances[torch.arange(len(ids) - 1), torch.tensor(ids[1:])] / np.log(2)
    assert np.isnan(found.surprise[0])
    np.testing.assert_allclose(found.surprise[1:], surprise.numpy(), rtol=1e-9, atol=1e-13)
    best = logits[-1].topk(5)
    assert [token.id for token in found.next_tokens] == best.indices.tolist()
    assert [token.text for token in found.next_tokens][:2] == [" Tom", " Lily"]
    np.testing.assert_allclose([token.logit for token in found.next_tokens], best.values.numpy())
    np.testing.assert_allclose(
        [token.probability for token in found.next_tokens], chances[-1].exp()[best.indices].numpy(), rtol=1e-6
    )


def test_the_head_that_tells_who_gets_the_ball(teller: llama2cpp.Model) -> None:
    found = teller.explain(PROMPT, " Tom", instead=" Lily")
    assert found.heads()[0].label == "L4H2"  # the guide's
    assert len(found.heads()) == 30
    layers = found.layers()
    assert [layer for layer, _, _ in layers] == [0, 1, 2, 3, 4]
    whole = sum(attention + mlp for _, attention, mlp in layers) + sum(part.value for part in found._others())
    assert whole == pytest.approx(found.logit, abs=1e-6)


def test_what_pages_show_is_escaped() -> None:
    """A token may be markup of HTML, of rich, or for a terminal."""
    texts = ["<b>", "[bold]", "\x1b[31m", " &amp;", "\n"]
    found = llama2cpp.Explanation(
        ids=[1, 2, 3, 4, 5],
        tokens=texts,
        surprise=np.array([np.nan, 0.5, 2.0, 5.0, 20.0]),
        next_tokens=[NextToken(i, text, 0.1, 1.0) for i, text in enumerate(texts)],
        answer=1,
        instead=2,
        logit=1.5,
        contributions=[Contribution("L0H0", 1.25), Contribution("0_mlp_out", 0.25)],
        answer_text="<b>",
        instead_text="\x1b[31m",
    )
    page = found._repr_html_()
    assert "<b>" not in page.replace("<b>next</b>", "").replace("<b>what speaks for", "")
    assert "&lt;b&gt;" in page
    assert len(re.findall(r"#[0-9a-f]{6};color:#000", page)) == 5
    assert len(set(re.findall(r"background:(#[0-9a-f]{6})", page))) == 4  # the first and the least are one step
    for terminal in (False, True):
        stream = io.StringIO()
        Console(file=stream, force_terminal=terminal, color_system="truecolor" if terminal else None, width=100).print(
            found
        )
        shown = stream.getvalue()
        assert ("\x1b[30;48;2;" in shown) == terminal
        assert "\\x1b[31m" in shown
        assert "\x1b[31m" not in shown
        assert "[bold]" in shown


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 0}, "explain: top_k is 0, expected 1 to 1536"),
    ({"top_k": 1537}, "explain: top_k is 1537"),
    ({"answer": 1536}, "explain: answer is 1536, expected 0 to 1535"),
    ({"instead": -1}, "explain: instead is -1"),
    ({"answer": "a park bench"}, "explain: answer: 'a park bench' is not one token"),
    ({"instead": ""}, "explain: instead: '' is not one token"),
    ({"prompt": []}, "there are no tokens"),
    ({"prompt": [1536]}, "1536"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_wrong_calls(teller: llama2cpp.Model, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        teller.explain(**{"prompt": "Once upon a", **wrong})


def test_models_without_a_tokenizer() -> None:
    found = tiny.model(tiny.config()).explain([5, 9, 2], 7)
    assert found.tokens == ["[5]", "[9]", "[2]"]
    assert found.answer_text == "[7]"


@pytest.mark.cpu_bits("the command chooses for itself")
def test_the_command() -> None:
    command = [sys.executable, "-m", "llama2cpp", "explain", "storyteller", PROMPT, "--answer", " Tom"]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()
    assert "what speaks for '·Tom'" in shown
    assert "L4H2" in shown
    assert "\x1b" not in shown  # a pipe gets no colours
    told = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, check=True, timeout=120).stdout.decode()
    )
    assert told["answer"]["text"] == " Tom"
    assert sum(told["contributions"].values()) == pytest.approx(told["logit"], abs=1e-6)
    assert len(told["tokens"]) == len(told["surprise"]) == 16


def test_small_numbers() -> None:
    """A small probability is not 0, and what rounds to 0 has no sign: on pages, terminals, and in one line."""
    found = llama2cpp.Explanation(
        ids=[1],
        tokens=["a"],
        surprise=np.array([np.nan]),
        next_tokens=[NextToken(0, "a", 0.00003, -0.0001), NextToken(1, "b", 0.0, 1.0), NextToken(2, "c", 0.00005, 1.0)],
        answer=0,
        instead=None,
        logit=-0.0001,
        contributions=[Contribution("L0H0", 1e-5), Contribution("0_mlp_out", -1e-5), Contribution("remainder", -4e-4)],
    )
    file = io.StringIO()
    Console(file=file, width=100).print(found)
    for shown in (found._repr_html_(), file.getvalue()):
        assert "3e-05" in shown
        assert "0.0000" in shown  # what is 0
        assert "5e-05" in shown or "0.0001" in shown
        assert "-0.000" not in shown
        assert "+0.000" not in shown
    assert "next with 3e-05; '' has 0.000" in repr(found)
