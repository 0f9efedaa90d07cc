"""Models of this package in PyPI's ``llm``: its command, its Python interface, its conversations, schemas and tools.

Needs the extra client-test, which .ci/run installs for this file and its neighbours. Nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import llama2cpp
from llama2cpp.common.grammar import closed_schema

if importlib.util.find_spec("llm") is None:
    pytest.skip('llm is not installed: pip install ".[client-test]"', allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import llm
    import llm.plugins
    from llm.parts import AttachmentPart, Message, TextPart, ToolCallPart, ToolResultPart

    from llama2cpp import llm_plugin

pytestmark = pytest.mark.filterwarnings("ignore")  # of llm's own packages

GREEDY: Any = {"temperature": 0.0, "max_tokens": 12}
CALL = r'<tool_call>\{"name": "look", "arguments": \{"at": 3\}\}</tool_call>'


@pytest.fixture(autouse=True)
def user_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    llm.plugins.load_plugins()
    if not any(plugin is llm_plugin for plugin in llm.plugins.pm.get_plugins()):  # this package is not installed
        llm.plugins.pm.register(llm_plugin)
    return tmp_path / "llm"


@pytest.fixture(scope="module")
def model() -> llama2cpp.Model:
    return llama2cpp.load("storyteller")


def look(at: int) -> str:
    """Look at a place."""
    return f"place {at}"


def command(tmp_path: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``llm``, which finds the plugin by the entry point that pyproject.toml names."""
    named = re.search(
        r"^\[project\.entry-points\.llm\]\n(\w+) = \"([\w.]+)\"$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert named is not None
    info = tmp_path / "site" / "llama2cpp-0.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llama2cpp\nVersion: 0.0\n")
    (info / "entry_points.txt").write_text(f"[llm]\n{named[1]} = {named[2]}\n")
    paths = [str(ROOT / "src")] if str(ROOT / "src") in llama2cpp.__file__ else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(info.parent)]), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "llm", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bool(done.returncode) == fails, done
    return done


def in_process(*arguments: str) -> str:
    from click.testing import CliRunner
    from llm.cli import cli

    if "llama2cpp" not in cli.commands:
        llm_plugin.register_commands(cli)
    said: str = CliRunner().invoke(cli, arguments).output
    return said


def test_command(tmp_path: Path, model: llama2cpp.Model) -> None:
    """The storyteller, with nothing downloaded; then the conversation goes on, as the log has it."""
    options = ["-o", "temperature", "0", "-o", "max_tokens", "12"]
    said = command(tmp_path, "-m", "storyteller", "Once", *options).stdout.removesuffix("\n")
    assert said == model.generate("Once", **GREEDY)
    then = command(tmp_path, "-c", " Then", *options).stdout.removesuffix("\n")
    assert then == model.generate(f"Once{said} Then", **GREEDY)
    (logged,) = json.loads(in_process("logs", "-n", "1", "--json"))
    assert (logged["model"], logged["output_tokens"]) == ("storyteller", 12)
    assert logged["input_tokens"] == len(model.tokenizer.encode(f"Once{said} Then"))


def test_command_names_models(tmp_path: Path, user_dir: Path) -> None:
    run = functools.partial(in_process, "llama2cpp")
    assert "No such file" in run("add", str(tmp_path / "none.bin"))
    assert "pass --name" in run("add", "storyteller")
    assert run("add", "storyteller", "--name", "tales") == "llm -m tales\n"
    assert run("add", "storyteller", "--name", "tales") == "llm -m tales\n"  # again is no other's name
    for name in ("", " ", "two words", "two\nlines"):
        assert "is no name of a model: it has to be one word" in run("add", "storyteller", "--name", name)
    llm.set_alias("mine", "tales")
    names = {name for known in llm.get_models_with_aliases() for name in (known.model.model_id, *known.aliases)}
    assert {"gpt-4o", "4o", "mine"} <= names
    for name in ("gpt-4o", "4o", "mine", "3-small", "llama2cpp"):
        assert f"{name} is another model's name: pass --name" in run("add", "storyteller", "--name", name)
    llm.remove_alias("mine")
    assert json.loads((user_dir / "llama2cpp.json").read_text("utf-8")) == {"tales": "storyteller"}
    asked = {"seed": 3, "max_tokens": 5}
    by_name = llm.get_model("tales").prompt("The dog", **asked).text()
    assert by_name == llm.get_model("llama2cpp").prompt("The dog", model="storyteller", **asked).text()
    assert "there are: tales" in run("remove", "other")
    assert run("remove", "tales") == ""
    with pytest.raises(llm.UnknownModelError):
        llm.get_model("tales")


def test_import_is_light() -> None:
    """Each start of llm imports the plugin: what opens and runs models stays out."""
    code = "import sys, llm, llama2cpp.llm_plugin; print(sorted(n for n in sys.modules if n.startswith('llama2cpp')))"
    paths = [str(ROOT / "src")] if str(ROOT / "src") in llama2cpp.__file__ else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    allowed = {"llama2cpp", "llama2cpp._core", "llama2cpp.command", "llama2cpp.command.early_interrupt"}
    assert set(re.findall(r"'(.*?)'", loaded)) == {*allowed, "llama2cpp.llm_plugin"}


@pytest.mark.parametrize("stream", [True, False])
def test_text_and_usage(model: llama2cpp.Model, stream: bool) -> None:
    response = llm.get_model("storyteller").prompt("The dog", stream=stream, seed=7, max_tokens=9, top_p=0.5, stop="zz")
    pieces = list(response)
    assert "".join(pieces) == model.generate("The dog", seed=7, max_tokens=9, top_p=0.5, stop="zz")
    assert len(pieces) > 1
    assert "" not in pieces
    usage = response.usage()
    assert (usage.input, usage.output) == (len(model.tokenizer.encode("The dog")), 9)
    assert response.response_json == {"finish_reason": "length"}


def test_async(model: llama2cpp.Model) -> None:
    async def ask() -> str:
        response: Any = llm.get_async_model("storyteller").prompt("The dog", seed=7, max_tokens=9)
        return "".join([piece async for piece in response])

    assert asyncio.run(ask()) == model.generate("The dog", seed=7, max_tokens=9)


def test_conversation_with_a_template(model: llama2cpp.Model) -> None:
    """Each turn is what `chat` says to the messages so far; the system message comes once."""
    conversation = llm.get_model("storyteller").conversation()
    messages = [{"role": "system", "content": "Be kind."}]
    for said in ("Hello", "And then?"):
        answer = conversation.prompt(said, system="Be kind.", template="chatml", **GREEDY).text()
        messages.append({"role": "user", "content": said})
        assert answer == model.chat(messages, template="chatml", **GREEDY)
        messages.append({"role": "assistant", "content": answer})


def test_what_is_left_early_ends() -> None:
    from llama2cpp.serving.engine import engine_of

    response = llm.get_model("storyteller").prompt("Once", max_tokens=390)
    pieces = iter(response)
    next(pieces)
    pieces.close()
    del response, pieces
    engine = engine_of(llm_plugin._opened("storyteller"))
    assert engine.drain(60)
    assert engine.stats.running == 0
    llm_plugin._open.cache_clear()  # its engine takes no more


@pytest.mark.parametrize("template", [None, "chatml"])
def test_schema(template: str | None) -> None:
    schema = llm.schema_dsl("age int, kind")
    response = llm.get_model("storyteller").prompt("A dog", schema=schema, seed=1, template=template, max_tokens=200)
    said = json.loads(response.text())
    assert list(said) == ["age", "kind"]
    assert type(said["age"]) is int
    assert type(said["kind"]) is str
    assert "additionalProperties" not in schema  # the caller's own stays as it is


def test_closed_schemas() -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}}
    closed = {**point, "additionalProperties": False}
    assert closed_schema(point) == closed
    assert closed_schema({"anyOf": [point]}) == {"anyOf": [closed]}
    assert closed_schema({"items": point, "$defs": {"p": point}}) == {"items": closed, "$defs": {"p": closed}}
    named = {"type": "object", "properties": {"properties": point}}
    assert closed_schema(named)["properties"] == {"properties": closed}
    for other in ({**point, "additionalProperties": {"type": "null"}}, {"allOf": [point, point]}, True):
        assert closed_schema(other) == other


def test_tools(model: llama2cpp.Model) -> None:
    """A call, the tool's answer, and what the model makes of it. A regex forces the call."""
    asked = llm.get_model("storyteller").conversation(tools=[look])
    response = asked.prompt("Look!", template="chatml", regex=CALL, max_tokens=200)
    assert response.text() == ""
    (call,) = response.tool_calls()
    assert (call.name, call.arguments) == ("look", {"at": 3})
    (result,) = response.execute_tool_calls()
    assert result.output == "place 3"
    answer = asked.prompt(tool_results=[result], template="chatml", **GREEDY).text()
    function = {"name": "look", "arguments": {"at": 3}}
    messages: list[Any] = [
        {"role": "user", "content": "Look!"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": "look", "content": "place 3"},
    ]
    assert answer == model.chat(messages, template="chatml", **GREEDY)


def test_tools_reach_the_template(model: llama2cpp.Model) -> None:
    template = "{% for tool in tools %}{{ tool.function.name }}:{{ tool.function.parameters.required[0] }}{% endfor %}!"
    with_tools = llm.get_model("storyteller").prompt("x", tools=[look], template=template, **GREEDY)
    assert with_tools.text() == model.generate("look:at!", **GREEDY).lstrip()


def test_messages() -> None:
    """All that llm's messages may hold, as templates read them."""
    calls = [ToolCallPart(name="look", arguments={"at": 1}, tool_call_id="a")]
    given = [
        Message("system", [TextPart("S")]),
        Message("user", [TextPart("one "), TextPart("two")]),
        Message("assistant", [TextPart("I look."), *calls]),
        Message("tool", [ToolResultPart(name="look", output="x", tool_call_id="a")]),
        Message("system", [TextPart("S")]),
    ]
    function = {"name": "look", "arguments": {"at": 1}}
    assert llm_plugin._messages(given) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one two"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"type": "function", "id": "a", "function": function}],
        },
        {"role": "tool", "tool_call_id": "a", "name": "look", "content": "x"},
    ]


def test_embeddings(model: llama2cpp.Model) -> None:
    vectors = list(llm.get_embedding_model("storyteller").embed_multi(["The dog ran.", "A cat."]))
    assert vectors == model.embed(["The dog ran.", "A cat."]).tolist()


PICTURE = llm.Attachment(type="image/png", content=b"x")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "system": ({"prompt": "x", "system": "S"}, "no chat template.*-o template chatml"),
    "tools": ({"prompt": "x", "tools": [look]}, "no chat template.*no tools"),
    "negative": ({"prompt": "x", "max_tokens": -1}, "max_tokens must not be negative"),
    "template": ({"prompt": "x", "template": "{% if %}"}, "template"),
    "regex": ({"prompt": "x", "regex": "("}, "regex"),
    "attachment": ({"messages": [Message("user", [AttachmentPart(PICTURE)])]}, "attachments cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises((ValueError, llm.ModelError), match=message):
        llm.get_model("storyteller").prompt(**arguments).text()


def test_which_model() -> None:
    with pytest.raises(llm.ModelError, match=r"which model.*-o model FILE.*llm llama2cpp add FILE"):
        llm.get_model("llama2cpp").prompt("x").text()
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        llm.get_model("llama2cpp").prompt("x", model="none.gguf").text()


def test_a_damaged_list_of_models(user_dir: Path) -> None:
    user_dir.mkdir(exist_ok=True)
    (user_dir / "llama2cpp.json").write_text("[1]")
    with pytest.raises(Exception, match=r"llama2cpp\.json is no list of models: mend or remove it"):
        llm.get_model("storyteller")
