"""``llama2cpp explore``."""

from __future__ import annotations

import secrets
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..loading import load
from ..model import hardware
from .display import one_line, say, tell
from .options import STORYTELLER, ModelOrStoryteller, Opening, TokenizerFile, examples, grouped

EXPLORE_EXAMPLES = examples(
    "llama2cpp explore",
    "llama2cpp explore smollm2-135m --port 8080",
    "llama2cpp explore my-checkpoint.gguf --no-browser",
)
_HOST = "127.0.0.1"


@grouped
def explore(
    opening: Opening,
    model: ModelOrStoryteller = STORYTELLER,
    tokenizer: TokenizerFile = None,
    port: Annotated[int, typer.Option(help="Port; 0 for any free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Open a page in the browser that shows the model at work, and lets you change it.

    Tokens, what comes next, each layer's part in it, attention, the logit lens, attribution, patching, and edits with
    the Python that makes them. Only this machine can open the page, with the token in the URL that is printed. SIGINT
    and SIGTERM end it.
    """
    try:
        from ..explorer.app import Page, make_app
        from ..server.running import listen, run, url_of
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        tell(f"llama2cpp: error: explore needs the package {package}: pip install 'llama2cpp[server]'")
        raise typer.Exit(2) from None

    taken = listen(_HOST, port)
    token = secrets.token_urlsafe(24)
    with taken:
        url = f"{url_of(taken)}/?token={token}"
        say(url)  # at once: who opens it early waits for the model
        with load(model, tokenizer=tokenizer, **opening.arguments()) as loaded:
            name = Path(model).name
            given = {"tokenizer": None if tokenizer is None else str(tokenizer), **opening.arguments()}
            usual = Opening().arguments()
            options = [f"{key}={value!r}" for key, value in given.items() if value != usual.get(key)]
            page = Page(name, f"llama2cpp.load({', '.join([repr(model), *options])})", token)
            app, worker = make_app(loaded, page)
            say(one_line(f"{name}, context {loaded.context}, {hardware(loaded)}"))
            if browser:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
            try:
                run(app, taken)
            finally:
                worker.close()
