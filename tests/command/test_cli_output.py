"""What commands print for programs, what they read, and the words of their messages; lines of a chat and their file."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import meta_files
import numpy as np
import pytest
import tiny
import torch
from adapter_folder import save_adapter

import llama2cpp
from llama2cpp.command.cli import in_command_words
from llama2cpp.command.info_command import summed_up
from llama2cpp.command.line_history import LineHistory, history_path
from llama2cpp.command.terminal import completions
from llama2cpp.export.opening import open_checkpoint

COMMAND = [sys.executable, "-m", "llama2cpp"]


def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    result = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.mark.cpu_bits("what a program computes there, with int8 activations")
def test_generate_json() -> None:
    code, text, errors = call("generate", "--json", "-n", "5", "-s", "7", "-", stdin="Zoë saw\n".encode())
    assert (code, errors) == (0, "")
    told: dict[str, Any] = json.loads(text)
    keys = {"model", "prompt", "text", "prompt_tokens", "tokens", "finish_reason", "seed", "seconds"}
    assert set(told) == keys
    expected = llama2cpp.generate("Zoë saw", max_tokens=5, seed=7, top_p=0.9)
    assert (told["text"], told["prompt"], told["seed"], len(told["tokens"])) == (expected, "Zoë saw", 7, 5)
    assert (told["model"], told["finish_reason"]) == ("storyteller", "length")


@pytest.mark.cpu_bits("adapters are the CPU's")
def test_commands_with_an_adapter(tmp_path: Path) -> None:
    """What the methods give with ``adapter=``; one that is not there is told before a model is opened."""
    folder = save_adapter(tmp_path / "style")
    model = llama2cpp.load("storyteller")
    adapter = model.load_adapter(folder)
    beside = ("--adapter", str(folder))
    expected = model.generate("The dog", max_tokens=8, seed=3, adapter=adapter)
    assert expected != model.generate("The dog", max_tokens=8, seed=3)
    assert call("generate", "-n", "8", "-s", "3", "--no-echo", *beside, "The dog") == (0, expected + "\n", "")
    told = json.loads(call("generate", "--json", "-n", "8", "-s", "3", *beside, "The dog")[1])
    assert told["text"] == expected

    code, text, errors = call(
        "chat", "storyteller", "--template", "llama2", "-t", "0", "-n", "8", *beside, stdin=b"Hello\n"
    )
    answer = model.chat("Hello", template="llama2", temperature=0, max_tokens=8, adapter=adapter)
    assert (code, text.strip(), errors) == (0, answer.strip(), "")

    told = json.loads(call("explain", "storyteller", "--json", *beside, "The dog")[1])
    assert told["logit"] == model.explain("The dog", adapter=adapter).logit

    lines = tmp_path / "lines.txt"
    lines.write_text("The dog\nOne day\n")
    rows = tmp_path / "rows"
    arguments = ("extract", "storyteller", "--texts", str(lines), "--points", "mlp_out", "--layers", "1")
    assert call(*arguments, "--dtype", "f32", "--out", str(rows), *beside)[0] == 0
    _, cache = model.run_with_cache("The dog", adapter=adapter)
    found = llama2cpp.read_activations(rows)
    assert np.array_equal(found["mlp_out", 1][found["text"] == 0], cache["mlp_out", 1][0])
    assert "of another run: its adapter" in call(*arguments, "--dtype", "f32", "--out", str(rows))[2]

    for words in (("generate", "-m"), ("chat",), ("explain",), ("extract",)):
        rest = [*arguments[2:], "--out", str(rows)] if words == ("extract",) else ["Once"] * (words != ("chat",))
        code, text, errors = call(*words, "no-such.gguf", *rest, "--adapter", "nowhere")
        assert (code, text) == (1, "")
        assert errors == "llama2cpp: error: nowhere: No such file or directory\n"


@pytest.mark.cpu_bits("adapters are the CPU's")
def test_run_with_an_adapter(stories_dir: Path, tmp_path: Path) -> None:
    """What llama2.c's loop gives over a session that has it."""
    checkpoint, tokenizer = stories_dir / "stories260K.bin", stories_dir / "tok512.bin"
    model = llama2cpp.load(checkpoint, tokenizer=tokenizer, backend="cpu")
    config = model.config
    folder = save_adapter(tmp_path / "style", config.n_layers, config.dim, config.hidden_dim)
    said = ("run", str(checkpoint), "-z", str(tokenizer), "-t", "0", "-n", "24", "-i", "Tim saw")
    plain, beside = call(*said), call(*said, "--adapter", str(folder))
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "echo": True}
    for given, adapter in ((plain, None), (beside, model.load_adapter(folder))):
        text = given[1].rstrip("\n")
        assert given[0] == 0
        assert len(text) > 20
        assert model.generate("Tim saw", adapter=adapter, **options).startswith(text)
    assert plain[1] != beside[1]
    assert call(*said, "--adapter", "nowhere")[2] == "llama2cpp: error: nowhere: No such file or directory\n"


@pytest.mark.cpu_bits("speculation is the CPU's")
def test_generate_with_speculation(stories_dir: Path) -> None:
    said = ("generate", "--json", "-n", "30", "-s", "7", "Tim, Tim, Tim, Tim")
    plain = json.loads(call(*said)[1])
    for draft in ("prompt", "storyteller"):
        code, text, errors = call(*said, "--speculate", draft)
        assert (code, errors) == (0, "")
        told = json.loads(text)
        assert 0 < told.pop("passes") < 30
        assert {**told, "seconds": 0} == {**plain, "seconds": 0}
    code, text, errors = call(*said, "--speculate", str(stories_dir / "stories260K.bin"))
    assert (code, text) == (1, "")
    assert errors.count("\n") == 1


def test_a_draft_that_there_is_not() -> None:
    code, text, errors = call("generate", "a", "--speculate", "lookup")
    assert (code, text) == (2, "")
    assert "--speculate is 'lookup', expected prompt, or the file or name of a draft model (No such file" in errors


def test_prompts_from_stdin() -> None:
    said = call("generate", "-n", "5", "-t", "0", "Once upon a time")
    assert call("generate", "-n", "5", "-t", "0", "-", stdin=b"Once upon a time\n") == said
    assert call("generate", "-n", "5", "-t", "0", stdin=b"Once upon a time") == said


def test_info_json() -> None:
    code, text, errors = call("info", "--json")
    assert (code, errors) == (0, "")
    told = json.loads(text)
    model = llama2cpp.load("storyteller")
    assert [weight["name"] for weight in told["weights"]] == list(model.weights)
    assert told["weight_bytes"] == sum(weight["bytes"] for weight in told["weights"])
    assert told["config"]["dim"] == model.config.dim
    assert (told["model"], told["chat_template"], told["tokenizer_problem"]) == ("storyteller", False, None)


def test_weights_are_summed_up() -> None:
    def weight(name: str, format: str = "f32") -> dict[str, Any]:
        return {"name": name, "shape": [2, 3], "format": format, "bytes": 24}

    weights = [weight(f"blk.{i}.a.weight", "f16" if i == 2 else "f32") for i in (10, 0, 1, 2, 3)]
    rows = summed_up([*weights, weight("norm.weight")])
    assert [(row.name, row.format, row.bytes) for row in rows] == [
        ("blk.0-1,3,10.a.weight", "f32", 96),
        ("blk.2.a.weight", "f16", 24),
        ("norm.weight", "f32", 24),
    ]


@pytest.mark.parametrize(
    ("message", "command", "expected"),
    [
        ("temperature is nan, expected more", "run", "-t is nan, expected more"),
        ("Sampler: top_p is 2, expected less", "generate", "--top-p is 2, expected less"),
        ("a exists; pass force=True (--force) to replace it", "export", "a exists; pass --force to replace it"),
        ("dim is 0, expected 1", "generate", "dim is 0, expected 1"),
    ],
)
def test_messages_in_the_command_s_words(message: str, command: str, expected: str) -> None:
    assert in_command_words(message, command) == expected


@pytest.mark.parametrize(("words", "told"), [(["infoo"], "info"), (["generate", "--tempratur", "1"], "--temperature")])
def test_close_names(words: list[str], told: str) -> None:
    code, text, errors = call(*words)
    assert (code, text) == (2, "")
    assert told in errors.replace(words[-2 if len(words) > 1 else -1], "")


def test_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state" / "history"
    monkeypatch.setenv("LLAMA2CPP_HISTORY", str(path))
    history = LineHistory(history_path())
    for line in ("one", "", "two\x1b[31m"):
        history.add(line)
    assert history.lines() == ["one", "two\\x1b[31m"]
    if os.name == "posix":
        path.chmod(0o644)
        history.add("three")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("x\n" * 3000)
    assert len(history.lines()) == 1000 == len(path.read_text().splitlines())
    for off in ("", "0"):
        monkeypatch.setenv("LLAMA2CPP_HISTORY", off)
        assert history_path() is None


def test_completions(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    (tmp_path / "a\x1b.json").touch()
    assert completions("/un", "/un") == ["/undo"]
    assert completions(f"/load {tmp_path}/a", f"{tmp_path}/a") == [f"{tmp_path}/a.json"]


def test_undo_gives_the_conversation_before() -> None:
    def begun() -> llama2cpp.Conversation:
        talk = llama2cpp.Conversation(template="llama2", temperature=0, max_tokens=5)
        talk.say("Hello")
        return talk

    one, other = begun(), begun()
    one.say("What?")
    assert one.undo() == "What?"
    assert one.history == other.history
    assert one.say("Who?") == other.say("Who?")
    assert [one.undo(), one.undo(), one.undo()] == ["Who?", "Hello", None]


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_of_pytorch(tmp_path: Path, legacy: bool) -> None:
    """Cut anywhere, or with bytes changed in the pickle and the directory: it is read, or a FormatError names it."""
    config = tiny.config()
    path = meta_files.save_training_checkpoint(tmp_path / "ckpt.pt", config, tiny.arrays(config))
    if legacy:
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    whole, rng = path.read_bytes(), random.Random(0)
    refused: list[str] = []
    for i in range(300):
        data = bytearray(whole)
        if i % 3 == 0:
            data = data[: rng.randrange(len(data))]
        for _ in range(i % 3):
            data[rng.choice([rng.randrange(3000), -1 - rng.randrange(3000)])] = rng.randrange(256)
        path.write_bytes(data)
        try:
            opened = open_checkpoint(path)
            opened.close()
        except llama2cpp.FormatError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(str(path) in message for message in refused)
