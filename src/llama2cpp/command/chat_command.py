"""``llama2cpp chat``."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from .. import _core
from ..dialogue.conversation import Conversation
from ..loading import load
from ..model import hardware
from .options import (
    AdapterPath,
    Model,
    Opening,
    SampledAnswers,
    TokenizerFile,
    adapted,
    examples,
    find_adapter,
    grouped,
    is_file,
)

CHAT_EXAMPLES = examples(
    "llama2cpp chat smollm2-135m",
    'llama2cpp chat smollm2-135m -t 0 -y "You are a pirate."',
    'echo "Why is the sky blue?" | llama2cpp chat smollm2-135m',
)


@grouped
def chat(
    model: Model,
    sampled: SampledAnswers,
    opening: Opening,
    tokenizer: TokenizerFile = None,
    system: Annotated[str | None, typer.Option("--system", "-y", help="System message.", show_default=False)] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="chatml, llama2, llama3, one of the model's by its name, or a file with a jinja2 template.",
            show_default="the model's",
        ),
    ] = None,
    adapter: AdapterPath = None,
    template_args: Annotated[
        str | None,
        typer.Option(
            help='What the template reads beside messages: a JSON object such as {"enable_thinking": false}.',
            show_default=False,
        ),
    ] = None,
) -> None:
    """Talk with a model.

    In a terminal, Ctrl-C stops an answer, Ctrl-D leaves, and /help lists what else there is. From a pipe, each line is
    a message, and stdout gets the answers alone.
    """
    from ..dialogue.templates import NAMED
    from .terminal import talk

    is_path = template is not None and template not in NAMED and os.path.lexists(template)
    if template is not None and (is_path or is_file(template)):
        template = _core.read_file(template).decode()
    given = None if template_args is None else _object(template_args)
    find_adapter(adapter)
    with load(model, tokenizer=tokenizer, **opening.arguments()) as loaded:
        options = {**sampled.arguments(opening), **adapted(loaded, adapter)}
        conversation = Conversation(loaded, system, template=template, template_args=given, **options)
        greeting = f"{model}, context {loaded.context}, {hardware(loaded)}"
        talk(conversation, greeting, sampled.seed)


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"expected a JSON object: {error}", param_hint="'--template-args'") from None
    if not isinstance(given, dict):
        raise typer.BadParameter(f"expected a JSON object, got {text!r:.80}", param_hint="'--template-args'")
    return given
