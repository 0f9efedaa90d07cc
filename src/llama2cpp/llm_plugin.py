"""Models of this package in the command and library `llm` (``pip install "llama2cpp[llm]"``).

``llm`` finds this module by its entry point and imports it at every start, so it opens no model and imports nothing
heavy before a model is asked:

    llm -m storyteller "Once upon a time"
    llm -m llama2cpp -o model model.gguf "Why is the sky blue?"
    llm llama2cpp add model.gguf --name sky

Text comes from the model's `Engine`: a conversation computes only what is new in it.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click
    import llm
    from llm import parts
    from pydantic import Field
except ImportError as error:
    raise ImportError(f"llama2cpp.llm_plugin needs the package {error.name}: pip install 'llama2cpp[llm]'") from None

if TYPE_CHECKING:
    from .model import Model
    from .serving.requests import Request

_ANY = "llama2cpp"  # the model whose file is an option
_STORYTELLER = "storyteller"
_OPENING = ("threads", "context")  # options of `load`

_opening = threading.Lock()


class _Options(llm.Options):  # type: ignore[misc]  # llm's types are not read
    max_tokens: int | None = Field(default=None, description="The most tokens of the answer")
    temperature: float | None = Field(default=None, description="0 takes the likeliest token each time")
    top_p: float | None = Field(default=None, description="Sample from the likeliest tokens of this probability")
    top_k: int | None = Field(default=None, description="Sample from this many tokens, 0 for all")
    min_p: float | None = Field(default=None, description="Leave out tokens below this part of the likeliest's")
    repetition_penalty: float | None = Field(default=None, description="Above 1, tokens that were there are rarer")
    presence_penalty: float | None = Field(default=None, description="Taken from the logits of tokens that were there")
    frequency_penalty: float | None = Field(default=None, description="The same, for each time that they were there")
    seed: int | None = Field(default=None, description="The same seed gives the same text")
    stop: str | None = Field(default=None, description="The text ends before this")
    regex: str | None = Field(default=None, description="What the whole answer matches")
    grammar: str | None = Field(default=None, description="Likewise, in Lark's or GBNF's notation")
    template: str | None = Field(default=None, description="A chat template: chatml, llama2, llama3 or jinja2's text")
    threads: int | None = Field(default=None, description="How many threads compute")
    context: int | None = Field(default=None, description="How many tokens there is room for")


class _OptionsWithModel(_Options):
    model: str | None = Field(default=None, description="A file, a folder, or a name that `llama2cpp pull` knows")


class _Shared:
    """What the models for both kinds of calls have in common.

    Parameters
    ----------
    model_id : str
        Its name in llm.
    source : str, optional
        What `load` opens; by default what the option ``model`` says.
    """

    can_stream = True
    supports_schema = True
    supports_tools = True

    def __init__(self, model_id: str, source: str | None = None) -> None:
        self.model_id = model_id
        self.Options = _OptionsWithModel if source is None else _Options
        self._source = source

    def _begin(self, prompt: Any) -> tuple[Request, Any]:  # noqa: ANN401
        """Ask for an answer; gives also what tells calls of tools from text."""
        from .common.grammar import closed_schema
        from .server.tool_calls import CallFilter
        from .serving.engine import engine_of

        options = prompt.options.model_dump(exclude_none=True)
        source = options.pop("model", self._source)
        if source is None:
            raise llm.ModelError(
                f"{_ANY}: which model? Pass -o model FILE, or give it a name with: llm llama2cpp add FILE"
            )
        model = _opened(source, **{name: options.pop(name) for name in _OPENING if name in options})
        template = options.pop("template", None)
        if prompt.schema:
            options["json_schema"] = closed_schema(prompt.schema)
        tools = [_tool(tool) for tool in prompt.tools]
        messages = _messages(prompt.messages)
        engine = engine_of(model)
        if template is not None or model.tokenizer.chat_template is not None:
            request = engine.submit_chat(messages, template=template, tools=tools or None, **options)
        else:
            request = engine.submit(_plain_text(self.model_id, messages, tools), **options)
        return request, CallFilter({tool["function"]["name"] for tool in tools})

    def _end(self, response: Any, request: Request, calls: Iterable[Any]) -> None:  # noqa: ANN401
        """Tell llm what there is beside the text."""
        for call in calls:
            try:
                arguments = json.loads(call.arguments)
            except ValueError:
                arguments = None
            if not isinstance(arguments, dict):
                raise llm.ModelError(f"{self.model_id} called {call.name} with arguments that are no JSON object")
            response.add_tool_call(llm.ToolCall(name=call.name, arguments=arguments))
        usage = request.usage
        reused = {"prompt_tokens_details": {"cached_tokens": usage.reused_tokens}} if usage.reused_tokens else None
        response.set_usage(input=usage.prompt_tokens, output=usage.completion_tokens, details=reused)
        response.response_json = {"finish_reason": request.finish_reason}


class Llama2cpp(_Shared, llm.Model):  # type: ignore[misc]
    """A model as ``llm`` calls it."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:  # noqa: ANN401
        """Give the answer in pieces."""
        request, kept = self._begin(prompt)
        try:
            for piece in request:
                yield from _some(kept.push(piece))
            text, calls = kept.finish()
            yield from _some(text)
        finally:
            request.cancel()  # where nobody wants the rest
        self._end(response, request, calls)


class AsyncLlama2cpp(_Shared, llm.AsyncModel):  # type: ignore[misc]
    """The same for ``llm.get_async_model``."""

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncIterator[str]:  # noqa: ANN401
        """Give the answer in pieces."""
        request, kept = self._begin(prompt)
        try:
            async for piece in request:
                for text in _some(kept.push(piece)):
                    yield text
            text, calls = kept.finish()
            for rest in _some(text):
                yield rest
        finally:
            request.cancel()
        self._end(response, request, calls)


class Llama2cppEmbedding(llm.EmbeddingModel):  # type: ignore[misc]
    """Vectors of texts: the mean of the last hidden states, as `Model.embed` has it.

    Parameters
    ----------
    model_id : str
        Its name in llm.
    source : str
        What `load` opens.
    """

    batch_size = 32

    def __init__(self, model_id: str, source: str) -> None:
        self.model_id = model_id
        self._source = source

    def embed_batch(self, items: Iterable[str], *, key: str | None = None) -> Iterator[list[float]]:
        """Give the vectors of some texts."""
        return iter(_opened(self._source).embed(list(items)).tolist())


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Any) -> None:  # noqa: ANN401
    """Tell llm of the storyteller, of the models that were added, and of the one whose file is an option."""
    register(Llama2cpp(_ANY), AsyncLlama2cpp(_ANY))
    for name, source in _named().items():
        register(Llama2cpp(name, source), AsyncLlama2cpp(name, source))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_embedding_models(register: Any) -> None:  # noqa: ANN401
    """Tell llm of what makes vectors."""
    for name, source in _named().items():
        register(Llama2cppEmbedding(name, source))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_commands(cli: Any) -> None:  # noqa: ANN401
    """Add ``llm llama2cpp``."""

    @cli.group(name="llama2cpp")  # type: ignore[untyped-decorator]
    def group() -> None:
        """Models that llama2cpp runs"""  # noqa: D400 - as llm's own

    @group.command(name="add")  # type: ignore[untyped-decorator]
    @click.argument("source", metavar="MODEL")
    @click.option("--name", help="How llm calls it; the file's name if not given")
    def add(source: str, name: str | None) -> None:
        """Give a file, a folder or a name of `llama2cpp pull` a name in llm"""  # noqa: D400
        if Path(source).exists():
            source = str(Path(source).resolve())
        name = (Path(source).stem if name is None else name).strip()
        if not name or any(character.isspace() for character in name):
            raise click.ClickException(f"{name!r} is no name of a model: it has to be one word, pass --name")
        if name in {*_others(), _ANY, _STORYTELLER}:
            raise click.ClickException(f"{name} is another model's name: pass --name")
        try:
            _opened(source)
        except Exception as error:  # of any reader
            raise click.ClickException(str(error)) from None
        _write({**_added(), name: source})
        click.echo(f"llm -m {name}")

    @group.command(name="remove")  # type: ignore[untyped-decorator]
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget the name of a model; its file stays"""  # noqa: D400
        added = _added()
        if added.pop(name, None) is None:
            raise click.ClickException(f"{name} has not been added; there are: {', '.join(added) or 'none'}")
        _write(added)


def _others() -> set[str]:
    """Give the names of llm's models that are not of here, and all aliases: one of two with the same is hidden."""
    found: set[str] = set()
    for known in (*llm.get_models_with_aliases(), *llm.get_embedding_models_with_aliases()):
        found |= {*known.aliases}
        if not isinstance(known.model, Llama2cpp | Llama2cppEmbedding):
            found.add(known.model.model_id)
    return found


def _file() -> Path:
    folder: Path = llm.user_dir()
    return folder / "llama2cpp.json"


def _added() -> dict[str, str]:
    try:
        found = json.loads(_file().read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(source, str) for source in found.values()):
        raise click.ClickException(f"{_file()} is no list of models: mend or remove it")
    return found


def _named() -> dict[str, str]:
    return {**_added(), _STORYTELLER: _STORYTELLER}


def _write(added: dict[str, str]) -> None:
    from .common.new_files import new_file

    with new_file(_file()) as begun:
        begun.write_text(json.dumps(added, indent=2) + "\n", "utf-8")


def _opened(source: str, **options: Any) -> Model:  # noqa: ANN401
    with _opening:
        return _open(source, **options)


@functools.cache
def _open(source: str, **options: Any) -> Model:  # noqa: ANN401
    from .loading import load

    return load(source, **options)


def _some(text: str) -> Iterator[str]:
    """Give the text where there is some: `llm` prints each piece by itself."""
    if text:
        yield str(text)


def _tool(tool: Any) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(tool, llm.Tool):
        raise llm.ModelError(f"llama2cpp: {tool} runs at a service, and here is none")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _messages(given: Iterable[Any]) -> list[dict[str, Any]]:
    """Give llm's messages as templates know them; a system message that is still the same comes once."""
    said: list[dict[str, Any]] = []
    system = None
    for message in given:
        texts = [_text(part) for part in message.parts]
        entry: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
        calls = [part for part in message.parts if isinstance(part, parts.ToolCallPart)]
        results = [part for part in message.parts if isinstance(part, parts.ToolResultPart)]
        if calls:
            entry["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.tool_call_id,
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        if message.role == "system":
            if system == entry["content"]:
                continue
            system = entry["content"]
        if results:
            said += [
                {"role": "tool", "tool_call_id": part.tool_call_id, "name": part.name, "content": part.output}
                for part in results
            ]
        else:
            said.append(entry)
    return said


def _text(part: Any) -> str:  # noqa: ANN401
    if isinstance(part, parts.AttachmentPart):
        raise llm.ModelError("llama2cpp: attachments cannot be read, only text")
    return part.text if isinstance(part, parts.TextPart) else ""


def _plain_text(model_id: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """Give the text that a model without a chat template goes on with: all that was said, as it stands."""
    if tools or any(message["role"] not in ("user", "assistant") for message in messages):
        raise llm.ModelError(
            f"{model_id} has no chat template, so it goes on with texts and knows no system message and no tools: "
            "leave them out, or pass -o template chatml, llama2 or llama3"
        )
    return "".join(message["content"] for message in messages)
