"""How a model's file says that it is to be sampled: what is taken where the caller gives nothing, and what is not."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from gguf_files import llama

import llama2cpp
import llama2cpp.export
from llama2cpp.common.generation_config import _NEUTRAL, _NOT_SAMPLING, USED, read_generation_config

FULL = {"do_sample": True, "temperature": 1.7, "top_p": 0.8, "top_k": 7, "min_p": 0.01, "repetition_penalty": 1.3}
OPTIONS = {name: value for name, value in FULL.items() if name != "do_sample"}
IDS = [1, 5, 9, 5]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, stories: llama2cpp.Model) -> Path:
    model = tiny.model(tiny.config(vocab_size=512, seq_len=200), tokenizer=stories.tokenizer, threads=1)
    return llama2cpp.export.convert(model, tmp_path_factory.mktemp("sampled") / "m", "f32").path


def folder(saved: Path, tmp_path: Path, said: Any) -> Path:
    made = Path(shutil.copytree(saved, tmp_path / "m"))
    (made / "generation_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return made


def test_where_the_caller_gives_nothing(saved: Path, tmp_path: Path) -> None:
    """All that generates takes the file's, and before that what it is given."""
    model = llama2cpp.load(folder(saved, tmp_path, FULL), threads=1)
    plain = llama2cpp.load(saved, threads=1)
    assert (model.sampling_defaults, plain.sampling_defaults) == (OPTIONS, {})
    own: dict[str, Any] = {"max_tokens": 12, "seed": 3}
    for given in ({}, {"temperature": 0.9}, {"top_k": 0, "repetition_penalty": 1.0}, {"temperature": 0}):
        options: dict[str, Any] = {**own, **OPTIONS, **given}
        expected = plain.generate("Once", **options)
        assert model.generate("Once", **own, **given) == expected
        assert model.complete("Once", **own, **given)[0].text == expected
        assert "".join(model.stream("Once", **own, **given)) == expected
        answer = plain.chat("Once", template="llama2", **options)
        assert model.chat("Once", template="llama2", **own, **given) == answer
        assert "".join(model.chat_stream("Once", template="llama2", **own, **given)) == answer
        assert llama2cpp.Conversation(model, template="llama2", **own).say("Once", **given) == answer
    assert plain.generate("Once", **own) == plain.generate("Once", temperature=1.0, top_p=0.9, **own)


@pytest.mark.parametrize(
    "said",
    [
        FULL,
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"do_sample": True, "top_k": 64, "top_p": 0.95},
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [2, 3]},
        {"do_sample": True, "max_length": 4096, "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.31.0"},
    ],
)
def test_transformers_takes_the_same(saved: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    """What it reads from the file; and where it takes the likeliest token each time, the same tokens."""
    place = folder(saved, tmp_path, {**said, "eos_token_id": said.get("eos_token_id", 2)})
    theirs = transformers.GenerationConfig.from_pretrained(place)
    model = llama2cpp.load(place, threads=1)
    found = model.sampling_defaults
    for name in USED:
        if name in said and said.get("do_sample") is not False:
            assert found.get(name) == getattr(theirs, name) == said[name]
    assert (found.get("temperature") == 0) == (theirs.do_sample is False)
    if said.get("do_sample") is False:
        import torch

        network: Any = transformers.AutoModelForCausalLM.from_pretrained(place)
        expected = network.generate(torch.tensor([IDS]), max_new_tokens=8)[0, len(IDS) :].tolist()
        tokens = model.complete(IDS, max_tokens=8)[0].tokens
        assert tokens == expected[: len(tokens)]
        assert len(tokens) >= 3


def test_every_setting_of_transformers_is_known() -> None:
    """What it may write is used, told of, or of no matter to a text."""
    names = set(transformers.GenerationConfig().to_dict())  # type: ignore[no-untyped-call]
    assert names - {*USED, *_NEUTRAL} <= _NOT_SAMPLING
    defaults = transformers.GenerationConfig().to_dict()  # type: ignore[no-untyped-call]
    assert read_generation_config(json.dumps(defaults)).ignored == ()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"typical_p": 0.9}, ["typical_p 0.9"]),
        ({"typical_p": 1.0, "num_beams": 1, "mirostat": 0, "bad_words_ids": None}, []),
        ({"num_beams": 4, "suppress_tokens": [5]}, ["num_beams 4", "suppress_tokens [5]"]),
        (
            {"temperature": "hot", "top_k": 2.5, "top_p": -1, "min_p": True},
            ['temperature "hot"', "top_p -1", "top_k 2.5", "min_p true"],
        ),
        ({"repetition_penalty": 0, "temperature": -1}, ["temperature -1", "repetition_penalty 0"]),
        ('{"temperature": 1e999, "top_p": NaN}', ["temperature Infinity", "top_p NaN"]),
        ({"penalty_last_n": 64}, []),
        ({"penalty_last_n": 64, "repetition_penalty": 1.1}, ["penalty_last_n 64"]),
        ({"do_sample": "no"}, ['do_sample "no"']),
        ({"my_own": "x" * 100}, ['my_own "xxx']),
    ],
)  # fmt: skip
def test_what_is_not_used_is_told(said: Any, told: list[str]) -> None:
    found = read_generation_config(said if isinstance(said, str) else json.dumps(said))
    assert [a[: len(b)] for a, b in zip(found.ignored, told, strict=True)] == told
    assert all(len(text) < 80 for text in found.ignored)


def test_it_is_told_once(saved: Path, tmp_path: Path) -> None:
    model = llama2cpp.load(folder(saved, tmp_path, {"typical_p": 0.9, "top_k": 3}), threads=1)
    assert model.sampling_defaults == {"top_k": 3}  # asking is no use
    with pytest.warns(UserWarning, match=r"m: what the file says of sampling is not used: typical_p 0\.9$") as caught:
        assert model.generate("Once", max_tokens=1) + model.chat("Once", template="llama2", max_tokens=1)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == Path(__file__).name


@pytest.mark.parametrize(
    "said",
    ["", "[]", "{", '{"top_k": 1', "[" * 10**5, '"x"', '{"a": "\ud800"}'.encode("utf-8", "surrogatepass"), " " * 2**21],
)
def test_a_damaged_file(saved: Path, tmp_path: Path, said: str | bytes) -> None:
    """The model opens, and says what is not used."""
    place = folder(saved, tmp_path, {})
    (place / "generation_config.json").write_bytes(said if isinstance(said, bytes) else said.encode())
    model = llama2cpp.load(place, threads=1)
    with pytest.warns(UserWarning, match=r"not used: .*generation_config\.json"):
        model.generate(IDS, max_tokens=1) if model.has_tokenizer else model._sampling_defaults()
    assert model.sampling_defaults == {}


def test_a_gguf_s(tmp_path: Path, saved: Path) -> None:
    keys: dict[str, Any] = {
        "temp": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "penalty_repeat": 1.05,
        "penalty_last_n": 64,
        "mirostat": 2,
    }
    named: dict[str, Any] = {f"general__sampling__{key}": value for key, value in keys.items()}
    file = llama(**named)
    path = tmp_path / "m.gguf"
    path.write_bytes(file.to_bytes())
    model = llama2cpp.load(path, threads=1)
    assert model.sampling_defaults == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05
    }  # fmt: skip
    assert model._generation_config().ignored == ("penalty_last_n 64", "mirostat 2")
    for key, value in [("temp", "hot"), ("temp", float("nan")), ("top_k", 2.5)]:
        wrong: dict[str, Any] = {f"general__sampling__{key}": value}
        path.write_bytes(llama(**wrong).to_bytes())
        with pytest.warns(UserWarning, match=rf"general\.sampling\.{key}"):
            llama2cpp.load(path, threads=1)._sampling_defaults()


@pytest.mark.parametrize(
    "said", [FULL, {"do_sample": False, "typical_p": 0.9}, {"top_k": 5, "no_repeat_ngram_size": 2}]
)
def test_exports_keep_it(saved: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    source = llama2cpp.load(folder(saved, tmp_path, {**said, "eos_token_id": 2}), threads=1)
    lost = [name for name in said if name in _NEUTRAL]
    chain = [("a.gguf", "f32"), ("b", "f32"), ("c.safetensors", "q8_0"), ("d.gguf", "q8_0"), ("e", "f16")]
    place: Any = source
    for name, format in chain:
        done = llama2cpp.export.convert(place, tmp_path / name, format)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = llama2cpp.load(done.path, threads=1)
        assert found.sampling_defaults == source.sampling_defaults, name
        if name == "a.gguf":
            assert [note for note in done.notes if "sampled" in note] == [
                f"GGUF has no place for how the model is sampled ({', '.join(lost)})" for _ in lost
            ]
        if found.file_format.startswith("Hugging Face"):
            theirs = transformers.GenerationConfig.from_pretrained(done.path)
            theirs.validate(strict=True)
            assert theirs.eos_token_id == [2]
        place = done.path
    for target, names in [("f", said), ("g.safetensors", said)]:
        done = llama2cpp.export.convert(source, tmp_path / target, "f32" if target == "f" else "q8_0")
        kept = json.loads(llama2cpp.load(done.path)._core.generation_config)
        assert {name: kept[name] for name in names} == said
    done = llama2cpp.export.convert(source, tmp_path / "m.bin", "f32")
    assert any("llama2.c has no place for how the model is sampled" in note for note in done.notes)


def test_info_and_the_command_line(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from typer.main import get_command

    from llama2cpp.command.cli import app

    place = str(folder(saved, tmp_path, FULL))
    run = get_command(app).main
    run(["info", place, "--json"], standalone_mode=False)
    assert json.loads(capfd.readouterr().out)["sampling"] == OPTIONS
    run(["info", place], standalone_mode=False)
    assert "temperature 1.7, top_p 0.8, top_k 7," in " ".join(capfd.readouterr().out.split())
    model = llama2cpp.load(place, threads=1)
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([], OPTIONS),
        (["-t", "1.0"], {**OPTIONS, "temperature": 1.0}),
        (["--top-k", "0"], {**OPTIONS, "top_k": 0}),
    ]
    for given, options in cases:
        run(["generate", "-m", place, "Once", "-s", "3", "-n", "8", "--no-echo", *given], standalone_mode=False)
        assert capfd.readouterr().out == model.generate("Once", seed=3, max_tokens=8, **options) + "\n"
