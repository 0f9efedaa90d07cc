"""The model in the package: it is there, it is what its card says, and it tells stories."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from conftest import ROOT

import llama2cpp

sys.path.append(str(ROOT / "export" / "storyteller"))

import check_storyteller as checks
import story_grammar as grammar
from story_names import NAMES
from storyteller_data import HELD_OUT_SEEDS

FOLDER = Path(llama2cpp.__file__).parent / "storyteller"
CARD = FOLDER / "CARD.md"


@pytest.fixture(scope="module")
def storyteller() -> llama2cpp.Model:
    return llama2cpp.load(backend="cpu")  # of which its card speaks


@pytest.fixture(scope="module")
def samples(storyteller: llama2cpp.Model) -> Sequence[llama2cpp.Completion]:
    """The card's two hundred."""
    return checks.sample(storyteller, 200, temperature=0.8, seed=1)


def card_says() -> dict[str, str]:
    """The card's table of checks: name and value."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \| .*? \| [\d,]+ \|$", CARD.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(rows)


def held_to_the_card(found: Sequence[checks.Check]) -> None:
    """The same bits everywhere, so the same figures everywhere."""
    says = card_says()
    assert {check.name.strip(): check.shown() for check in found} == {
        check.name.strip(): says[check.name.strip()] for check in found
    }


def test_what_is_in_the_package(storyteller: llama2cpp.Model) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.suffix in (".bin", ".model")) < 3_000_000
    config = storyteller.config
    assert storyteller.file_format == "llama2.c v2"
    assert (config.head_dim, config.seq_len, config.tied) == (32, 512, True)
    assert config.n_kv_heads < config.n_heads
    # Tied: the embedding counts once.
    shapes = [storyteller.weights.info(name)["shape"] for name in storyteller.weights]
    parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
    assert 1_000_000 <= parameters <= 3_000_000
    assert f"{parameters:,} parameters" in CARD.read_text(encoding="utf-8")


def test_a_cold_start_in_another_process(tmp_path: Path) -> None:
    """In an empty folder, with nothing but the package."""
    code = "import llama2cpp; print(llama2cpp.generate('Once upon a time', seed=1))"
    whole = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=tmp_path, timeout=60
    )
    command = [sys.executable, "-m", "llama2cpp", "generate", "Once upon a time", "--seed", "1"]
    cli = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=tmp_path, timeout=60)
    assert cli.stdout == "Once upon a time" + whole.stdout
    parsed = grammar.parse(cli.stdout.strip())
    assert parsed.ends
    assert parsed.grammatical


def test_the_stories(samples: Sequence[llama2cpp.Completion]) -> None:
    found = list(checks.story_checks(samples))
    held_to_the_card(found)
    grammatical, keeping_to_their_characters, ending = (check.value for check in found[:3])
    assert grammatical >= 0.95
    assert keeping_to_their_characters >= 0.95
    assert ending >= 0.95


def test_the_stories_are_not_the_training_s(samples: Sequence[llama2cpp.Completion]) -> None:
    """No more of them stands in ten thousand training stories than of stories that the grammar writes anew."""
    _, told, fresh = checks.variety_checks([one.text for one in samples], 10_000)
    assert told.value < 1.2 * fresh.value


def test_names_that_never_met(storyteller: llama2cpp.Model) -> None:
    first, later = checks.receiver_prompts(60)
    assert checks.right_answers(storyteller, first + later) >= 0.95


def test_names_that_nobody_has_heard(storyteller: llama2cpp.Model) -> None:
    assert checks.right_answers(storyteller, checks.induction_prompts(120)) >= 0.9


def test_the_card_shows_stories_of_this_model(samples: Sequence[llama2cpp.Completion]) -> None:
    shown = re.findall(r"^Seed (\d+):\n\n> (.*)$", CARD.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(shown) == 5
    assert [text for _, text in shown] == [one.text for one in samples[:5]]


def test_ids_are_sentencepiece_s(storyteller: llama2cpp.Model) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    assert storyteller.tokenizer is not None
    for told in grammar.stories(HELD_OUT_SEEDS, 200):
        assert storyteller.tokenizer.encode(told.text, bos=False) == reference.encode(told.text)


def test_every_first_name_is_one_piece(storyteller: llama2cpp.Model) -> None:
    assert storyteller.tokenizer is not None
    encode = storyteller.tokenizer.encode
    assert [name for name in NAMES if len(encode(name, bos=False)) != 1] == []


def test_the_training_command_is_the_one_that_was_run() -> None:
    training = json.loads((FOLDER / "training.json").read_text())
    command = f"--minutes {training['minutes']:.0f} --seed {training['seed']} --threads {training['threads']}"
    assert command in CARD.read_text(encoding="utf-8")
