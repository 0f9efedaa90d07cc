"""``llama2cpp explain``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..loading import load
from .display import console, say_json
from .options import AdapterPath, AsJson, Model, Opening, TokenizerFile, adapted, examples, find_adapter, grouped

EXPLAIN_EXAMPLES = examples(
    'llama2cpp explain storyteller "When Lily and Tom went to the park, Lily gave the ball to"',
    'llama2cpp explain smollm2-135m "The capital of France is" --instead " Berlin"',
)


@grouped
def explain(
    opening: Opening,
    checkpoint: Model,
    words: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="The text.", show_default=False)],
    answer: Annotated[
        str | None, typer.Option("--answer", help="The token that is explained.", show_default="the likeliest")
    ] = None,
    instead: Annotated[
        str | None,
        typer.Option("--instead", help="A token that it is compared with, with its space.", show_default=False),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many next tokens.", min=1)] = 10,
    special: Annotated[
        bool | None,
        typer.Option(
            "--special/--no-special", help="Whether the prompt may spell control tokens.", show_default="no, and warn"
        ),
    ] = None,
    tokenizer: TokenizerFile = None,
    adapter: AdapterPath = None,
    as_json: AsJson = False,
) -> None:
    """Show what comes next, how surprising each token was, and which heads and layers speak for the answer.

    Numbers of heads and layers are what they add to the answer's logit, and sum to it. A token's space belongs to it:
    --answer " time".

    With --json: ids, tokens, surprise (in bits), next_tokens, answer, instead, logit and contributions.
    """
    prompt = os.fsencode(" ".join(words))
    find_adapter(adapter)
    with load(checkpoint, tokenizer=tokenizer, **opening.arguments()) as model:
        found = model.explain(
            prompt,
            answer,
            instead=instead,
            top_k=min(top_k, model.config.vocab_size),
            special=special,
            **adapted(model, adapter),
        )
        if as_json:
            say_json(found.to_dict())
        else:
            console().print(found)
