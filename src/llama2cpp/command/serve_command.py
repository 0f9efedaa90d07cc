"""``llama2cpp serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import _core
from ..adapters import adapter_files
from ..dialogue.chat_format import ChatFormat
from ..loading import load
from ..model import hardware
from ..serving.engine import Engine
from ..speculation import check_speculation
from .display import one_line, say, tell
from .options import (
    STORYTELLER,
    ModelOrStoryteller,
    Opening,
    Speculate,
    TokenizerFile,
    examples,
    grouped,
    is_file,
    speculation,
)

SERVE_EXAMPLES = examples(
    "llama2cpp serve",
    "llama2cpp serve smollm2-135m --port 8080",
    "LLAMA2CPP_API_KEY=secret llama2cpp serve smollm2-135m --host 0.0.0.0",
)
_LOCAL = ("localhost", "127.0.0.1", "::1")


def _named_paths(given: list[str], served: str) -> dict[str, str]:
    """Read NAME=PATH, of which every name is another."""
    paths: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name.strip() and equals and path):
            raise typer.BadParameter(f"{one!r}, expected NAME=PATH", param_hint="'--adapter'")
        if name in paths or name == served:
            raise typer.BadParameter(f"{name!r} is the name of another model here", param_hint="'--adapter'")
        paths[name] = path
    return paths


@grouped
def serve(
    opening: Opening,
    model: ModelOrStoryteller = STORYTELLER,
    tokenizer: TokenizerFile = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What requests call the model.", show_default="MODEL, without a folder")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="What clients have to show.", envvar="LLAMA2CPP_API_KEY", show_default="none"),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="chatml, llama2, llama3, one of the model's by its name, or a file with a jinja2 template.",
            show_default="the model's",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Requests that run at a time.", min=1, max=4096)] = 32,
    queue: Annotated[int, typer.Option(help="More requests that may wait; others get status 429.", min=0)] = 256,
    kv_bytes: Annotated[
        int | None,
        typer.Option(help="Keys and values of those that run.", show_default="half of the memory", min=1),
    ] = None,
    prefix_bytes: Annotated[
        int | None,
        typer.Option(
            help="Keys and values that are kept for prompts which begin alike.",
            show_default="1 GiB, or an eighth of the memory",
            min=0,
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.", min=1024)] = 8 << 20,
    speculate: Speculate = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A LoRA adapter, a folder of peft's or a GGUF file: requests name it as their model. Again for more.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Answer requests over HTTP in the shape of OpenAI's API.

    /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/activations, /v1/models, /health and /metrics. The URL is
    printed when it can be used. SIGINT and SIGTERM end the server when what it has begun is answered.
    """
    try:
        from ..server.app import UNEQUAL_BITS, make_app
        from ..server.running import listen, run, url_of
        from ..server.service import Settings
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        tell(f"llama2cpp: error: serve needs the package {package}: pip install 'llama2cpp[server]'")
        raise typer.Exit(2) from None

    if template is not None and is_file(template):
        template = _core.read_file(template).decode()
    served = name or Path(model).name
    paths = _named_paths(adapter or [], served)
    for path in paths.values():
        adapter_files(path)
    taken = listen(host, port)
    with taken, load(model, tokenizer=tokenizer, **opening.arguments()) as loaded:
        settings = Settings(
            name=served,
            rows=rows,
            queue=queue,
            max_body=max_body,
            api_key=api_key or None,
            template=template,
            hosts=frozenset({*_LOCAL, host}) if host in _LOCAL else None,
        )
        drafts = None if speculate is None else speculation(speculate, opening)
        check_speculation("serve", drafts, loaded)
        tokens = loaded.tokenizer  # a model without one is told here, and a template that cannot be
        if template is not None:
            ChatFormat(tokens, template)
        adapters = {named: loaded.load_adapter(path) for named, path in paths.items()}
        engine = Engine(loaded, rows=rows, kv_bytes=kv_bytes, prefix_bytes=prefix_bytes)
        try:
            app = make_app(engine, loaded, settings, drafts, adapters)
            say(url_of(taken))
            say(one_line(f"{settings.name}, context {loaded.context}, {hardware(loaded)}"))
            for named, one in adapters.items():
                say(one_line(f"{named}: {served} with an adapter of rank {one.rank}, {paths[named]}"))
            if loaded.backend != "cpu":
                say(UNEQUAL_BITS)
            if host not in _LOCAL and not settings.api_key:
                tell("llama2cpp: warning: other machines can use this server, and no --api-key is asked of them")
            run(app, taken)
        finally:
            engine.close()
