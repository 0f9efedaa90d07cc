"""Checks a storyteller through the engine: whether its stories are stories, and its circuits work.

    python export/storyteller/check_storyteller.py storyteller/storyteller.bin -z storyteller/tokenizer.model

Prints a table, or with --json what is in it for a program. The stories are sampled from nothing but BOS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from story_grammar import PLOTS, Recall, Story, parse, stories
from story_names import NAMES, is_invented
from storyteller_card import CLEAN, card
from storyteller_data import HELD_OUT_SEEDS

import llama2cpp

_IN_CARD = 5  # stories
_TOGETHER = 20  # samples that are decoded in one pass
_LONGEST = 480  # tokens of a story that does not end
_NGRAM = 12  # words
_SHORT_NGRAM = 4
_PROMPT_SEEDS = HELD_OUT_SEEDS + 10**8


@dataclass(frozen=True)
class Check:
    """One figure: a share of 1 or a number, and the aim if there is one."""

    name: str
    value: float
    aim: str = ""
    of: int = 0  # how many were looked at

    def shown(self) -> str:
        """As people read it."""
        return f"{self.value:.1%}" if self.value <= 1 else f"{self.value:,.2f}"


def sample(
    model: llama2cpp.Model, count: int, *, temperature: float, seed: int, top_p: float = 0.9
) -> list[llama2cpp.Completion]:
    """Tell `count` stories from BOS; story i has seed + i. What is not said is `generate`'s own."""
    assert model.tokenizer is not None
    found: list[llama2cpp.Completion] = []
    for begin in range(0, count, _TOGETHER):
        found += model.generate(
            "",
            n=max(2, min(_TOGETHER, count - begin)),
            seed=seed + begin,
            temperature=temperature,
            top_p=top_p,
            max_tokens=_LONGEST,
            logprobs=0,
        )
    return found[:count]


def story_checks(samples: Sequence[llama2cpp.Completion]) -> Iterator[Check]:
    """Count what the parser says of sampled stories."""
    count = len(samples)
    read = [parse(one.text) for one in samples]
    yield Check("grammatical", sum(one.grammatical for one in read) / count, ">= 95%", count)
    yield Check("keeping to their characters", sum(one.keeps_to_characters for one in read) / count, ">= 95%", count)
    ended = [one.finish_reason == "end" and story.ends for one, story in zip(samples, read, strict=True)]
    yield Check("ending by themselves, and where a story may end", sum(ended) / count, ">= 95%", count)
    yield Check("in an order that a plot has", sum(one.free_of("order") for one in read) / count, "", count)
    yield Check(CLEAN, sum(one.ok for one in read) / count, "", count)
    words = [len(one.text.split()) for one in samples]
    yield Check("words a story", sum(words) / count, "60 to 220", count)


def ngrams(text: str, length: int) -> Iterator[tuple[str, ...]]:
    """Give the runs of `length` words, punctuation with them."""
    words = text.split()
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def variety_checks(texts: Sequence[str], training: int) -> Iterator[Check]:
    """How varied the sampled stories are, and how much of them stands in training text word for word."""
    short = Counter(gram for text in texts for gram in ngrams(text, _SHORT_NGRAM))
    yield Check("4-grams that are distinct", len(short) / short.total(), "", short.total())
    fresh = [one.text for one in stories(_PROMPT_SEEDS * 2, len(texts))]
    wanted = {gram for text in [*texts, *fresh] for gram in ngrams(text, _NGRAM)}
    seen: set[tuple[str, ...]] = set()
    for told in stories(2**33, training):  # where the training of seed 1 begins
        seen.update(wanted.intersection(ngrams(told.text, _NGRAM)))
    for name, group in (("samples", texts), ("fresh stories of the grammar", fresh)):
        grams = [gram for text in group for gram in ngrams(text, _NGRAM)]
        share = sum(gram in seen for gram in grams) / max(1, len(grams))
        yield Check(f"12-grams of {name} in {training:,} training stories", share, "small", len(grams))


@dataclass(frozen=True)
class Prompt:
    """A text, and how it must go on."""

    text: str
    answer: str


def recall_prompts(told: Story, recalls: Sequence[Recall]) -> list[Prompt]:
    """Cut a story before each of these places."""
    return [Prompt(told.text[: one.begin].rstrip(), told.text[one.begin : one.end]) for one in recalls]


def receiver_prompts(count: int) -> tuple[list[Prompt], list[Prompt]]:
    """Sentences that give something to one of two, whose names never met in training: first sentences, and later ones.

    Greedy completion must name the other one.
    """
    first: list[Prompt] = []
    later: list[Prompt] = []
    for told in stories(_PROMPT_SEEDS, 10**9, held_out=True):
        for one in told.recalls:
            before = told.text[: one.begin]
            if one.role not in ("hero", "friend") or not before.endswith(" to "):
                continue
            group = first if "." not in before else later
            if len(group) < count:
                group += recall_prompts(told, [one])
        if len(first) == len(later) == count:
            return first, later
    raise AssertionError("the seeds do not end")


def bare_prompts(count: int) -> list[Prompt]:
    """Two names that never met, in a sentence of the kind that such circuits are looked at with."""
    found: list[Prompt] = []
    for told in islice(stories(_PROMPT_SEEDS, 10**9, held_out=True), count * 10):
        people = [name for name in told.names if name in NAMES]
        if len(people) == 2 and len(found) < count:
            a, b = people if len(found) % 2 else people[::-1]
            giver, other = (a, b) if len(found) % 4 < 2 else (b, a)
            found.append(Prompt(f"When {a} and {b} went to the park, {giver} gave the ball to", other))
    return found


def induction_prompts(count: int) -> list[Prompt]:
    """Stories with an invented name that no training story has, cut before it where it must come again.

    It is several pieces long: what follows the first of them, only the earlier place can tell.
    """
    found: list[Prompt] = []
    for told in stories(_PROMPT_SEEDS, 10**9, held_out=True):
        recalls = [one for one in told.recalls if is_invented(told.text[one.begin : one.end])]
        found += recall_prompts(told, recalls)
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the seeds do not end")


def thing_prompts(count: int) -> list[Prompt]:
    """Stories cut before a box that holds what is wanted (there is another one), or a place on the way."""
    found: list[Prompt] = []
    for told in stories(_PROMPT_SEEDS, 10**9, held_out=True):
        wanted = [one for one in told.recalls if told.plot == "key" and one.role in ("box", "box2")]
        found += recall_prompts(told, wanted)
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the seeds do not end")


def right_answers(model: llama2cpp.Model, prompts: Sequence[Prompt]) -> float:
    """Share of prompts that the likeliest tokens complete."""
    right = 0
    for prompt in prompts:
        text = model.generate(prompt.text, max_tokens=8, temperature=0)
        right += text.strip().startswith(prompt.answer)
    return right / len(prompts)


def circuit_checks(model: llama2cpp.Model, count: int) -> Iterator[Check]:
    """Names, invented names and boxes that must be remembered."""
    first, later = receiver_prompts(count // 2)
    yield Check("receiver named, pairs never together", right_answers(model, first + later), ">= 95%", count)
    yield Check("  of these in the first sentence", right_answers(model, first), "", len(first))
    yield Check("  of these later in a story", right_answers(model, later), "", len(later))
    bare = bare_prompts(count)
    yield Check('"When A and B went to the park, A gave the ball to"', right_answers(model, bare), "", len(bare))
    induction = induction_prompts(count)
    yield Check("unseen invented names finished", right_answers(model, induction), ">= 90%", len(induction))
    things = thing_prompts(count // 2)
    yield Check("the right one of two boxes opened", right_answers(model, things), "", len(things))


def main(
    checkpoint: Annotated[Path, typer.Argument(help="What train_storyteller.py has made.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", "-z", help="Its tokenizer.bin or .model.")],
    samples: Annotated[int, typer.Option(help="Stories to sample.")] = 200,
    prompts: Annotated[int, typer.Option(help="Prompts to complete, of each kind.")] = 500,
    training: Annotated[int, typer.Option(help="Training stories to look for 12-grams in.")] = 100_000,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the first sample.")] = 1,
    show: Annotated[int, typer.Option(help="Print this many samples, with what is wrong with them.")] = 0,
    card_path: Annotated[
        Path | None, typer.Option("--card", help="Write the model's card here; training.json is beside the checkpoint.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")] = False,
) -> None:
    """Check a storyteller."""
    model = llama2cpp.load(checkpoint, tokenizer=tokenizer)
    told = sample(model, samples, temperature=temperature, seed=seed)
    uncut = [parse(one.text) for one in sample(model, samples, temperature=temperature, seed=seed, top_p=1.0)]
    checks = [
        *story_checks(told),
        Check("grammatical, with no top-p", sum(one.grammatical for one in uncut) / samples, "", samples),
        Check(
            "keeping to their characters, with no top-p",
            sum(one.keeps_to_characters for one in uncut) / samples,
            "",
            samples,
        ),
        *variety_checks([one.text for one in told], training),
        *circuit_checks(model, prompts),
    ]
    held_out = [one.text for one in stories(HELD_OUT_SEEDS, 100)]
    perplexities = [model.perplexity(text) for text in held_out]
    checks.append(Check("perplexity of held-out stories", sum(perplexities) / len(perplexities), "", len(held_out)))
    console = Console(stderr=as_json, highlight=False)
    for i, one in enumerate(told[:show]):
        console.print(f"\n[bold]seed {seed + i}[/bold]  {one.text}", soft_wrap=False)
        for problem in parse(one.text).problems:
            console.print(f"  [red]{problem.kind}[/red] {problem.what}")
    table = Table("check", title=str(checkpoint), title_justify="left")
    for heading in ("value", "aim", "of"):
        table.add_column(heading, justify="right")
    for check in checks:
        table.add_row(check.name, check.shown(), check.aim, f"{check.of:,}")
    console.print(table)
    if card_path is not None:
        text = card(
            json.loads((checkpoint.parent / "training.json").read_text()),
            [asdict(check) for check in checks],
            [check.shown() for check in checks],
            [(seed + i, one.text) for i, one in enumerate(told[:_IN_CARD])],
            samples=samples,
            temperature=temperature,
            first_seed=seed,
            plots=len(PLOTS),
            bytes=checkpoint.stat().st_size + tokenizer.stat().st_size,
        )
        card_path.write_text(text, encoding="utf-8")
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))


if __name__ == "__main__":
    typer.run(main)
