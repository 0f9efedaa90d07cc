"""``llama2cpp chat``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .. import _core
from ..dialogue.conversation import Conversation
from ..model import hardware, load
from .options import Model, Opening, SampledAnswers, TokenizerFile, examples, grouped, is_file

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
        typer.Option(help="chatml, llama2, llama3 or a file with a jinja2 template.", show_default="the model's"),
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
    with load(model, tokenizer=tokenizer, **opening.arguments()) as loaded:
        conversation = Conversation(loaded, system, template=template, **sampled.arguments())
        greeting = f"{model}, context {loaded.context}, {hardware(loaded)}"
        talk(conversation, greeting, sampled.seed)
