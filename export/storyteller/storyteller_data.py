"""What the storyteller learns from: a tokenizer made from generated stories, and batches of them without end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import sentencepiece
import torch
from story_grammar import Story, story
from story_names import NAMES, Invented, is_held_out, is_held_out_name
from story_template import choose
from storyteller_model import IGNORED
from torch import Tensor

BOS, EOS = 1, 2

# Which stories are for what: no two uses share a seed.
_TRAINING_SEEDS = 2**32  # from this times (1 + the run's seed)
HELD_OUT_SEEDS = 10**9
TOKENIZER_SEEDS = 2 * 10**9

_TOKENIZER_STORIES = 20_000
_NAME_LINES = 400  # for each name, so that it becomes one piece where there is room for that
_POOL = 1024  # texts that are sorted by length before they are put into batches
_JOINED_ONE_IN = 8  # two stories in one text: what comes after an end is another story

# The first pools are short: the starts of stories, and drills between them. See `drill`.
_SHORT_POOLS = 6
_SHORT = 96  # tokens of a story
_DRILL = 48  # tokens of a drill
_SHORT_BATCH_TOKENS = 1024


def train_tokenizer(pieces: int) -> bytes:
    """Train SentencePiece BPE with byte fallback on stories; every run gives the same `.model` file.

    Parameters
    ----------
    pieces : int
        Size of the vocabulary, the 256 byte pieces and the 3 special ones included.

    Returns
    -------
    bytes
        What a `.model` file holds.
    """
    lines = [story(TOKENIZER_SEEDS + i).text for i in range(_TOKENIZER_STORIES)]
    lines += [f"{name} {name}" for name in sorted(NAMES) for _ in range(_NAME_LINES)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=pieces,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


_FIRST_NAMES = sorted(NAMES)
_INVENTED_NAMES = Invented(as_name=True)


@dataclass(frozen=True)
class Batch:
    """Rows of one text each, cut to the same length: ids [B, T], and the ids that come next, IGNORED after the end."""

    ids: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """How many targets count."""
        return int((self.targets != IGNORED).sum())


class Batches:
    """Batches of fresh stories, the same ones for the same seed, from any batch on.

    Texts of like length go together, each from position 0: so little is padding, and the model meets a story as it
    will when it tells one. Before whole stories come their starts, each batch of them after one of drills.
    """

    def __init__(self, tokenizer: bytes, *, seed: int, batch_tokens: int, context: int) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
        self._seed = seed
        self._batch_tokens = batch_tokens
        self._context = context

    def starting_at(self, pool: int, batch: int) -> Iterator[tuple[int, int, Batch]]:
        """Give (pool, batch, rows) from this place on, without end."""
        while True:
            for i, rows in enumerate(self._pool(pool)):
                if i >= batch:
                    yield pool, i, make_batch(rows)
            pool, batch = pool + 1, 0

    def _pool(self, pool: int) -> list[list[list[int]]]:
        rng = Random((self._seed << 32) + pool)
        short = pool < _SHORT_POOLS
        batch_tokens = _SHORT_BATCH_TOKENS if short else self._batch_tokens
        first = _TRAINING_SEEDS * (1 + self._seed) + pool * 2 * _POOL
        texts: list[list[int]] = []
        for i in range(_POOL):
            ids = encode(self._processor, story(first + 2 * i))
            if int(rng.random() * _JOINED_ONE_IN) == 0:
                ids += encode(self._processor, story(first + 2 * i + 1))
            texts.append(ids[: (_SHORT if short else self._context) + 1])
        texts.sort(key=len)
        batches: list[list[list[int]]] = []
        while texts:
            rows = max(1, batch_tokens // len(texts[-1]))
            batches.append(texts[-rows:])
            del texts[-rows:]
        order = sorted(range(len(batches)), key=lambda _: rng.random())
        if not short:
            return [batches[i] for i in order]
        rows = _SHORT_BATCH_TOKENS // _DRILL
        return [one for i in order for one in ([drill(self._processor, rng) for _ in range(rows)], batches[i])]


def drill(processor: sentencepiece.SentencePieceProcessor, rng: Random) -> list[int]:
    """Say one to three names again and again, in any order.

    Only who copies from what was said can foretell these. Learnt at the very start, copying then serves the stories,
    where it comes late or not at all by itself: a name there is one token in twenty, and 128 of them are as likely.
    """
    said: list[str] = []
    while len(said) < 1 + int(rng.random() * 3):
        name = choose(rng, _FIRST_NAMES) if rng.random() < 0.6 else _INVENTED_NAMES.draw(rng)
        held_out = is_held_out_name(name) if name not in NAMES else any(is_held_out(name, other) for other in said)
        if not held_out:
            said.append(name)
    text = " ".join(choose(rng, said) for _ in range(_DRILL))
    ids: list[int] = processor.encode(text)
    return [BOS, *ids[:_DRILL]]


def encode(processor: sentencepiece.SentencePieceProcessor, told: Story) -> list[int]:
    """BOS, the story, EOS."""
    ids: list[int] = processor.encode(told.text)
    return [BOS, *ids, EOS]


def make_batch(rows: list[list[int]]) -> Batch:
    """Pad texts to the longest of them."""
    length = max(map(len, rows)) - 1
    ids = torch.full((len(rows), length), EOS)
    targets = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row) - 1] = torch.tensor(row[:-1])
        targets[i, : len(row) - 1] = torch.tensor(row[1:])
    return Batch(ids, targets)


@dataclass(frozen=True)
class HeldOut:
    """Stories that are not trained on, with what they must cost: the bits of the choices in them."""

    batches: list[Batch]
    bits: float
    tokens: int

    @classmethod
    def of(cls, tokenizer: bytes, count: int, *, names: bool) -> HeldOut:
        """Write `count` stories; with `names`, of names that never meet in training."""
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
        told = [story(HELD_OUT_SEEDS + i, held_out=names) for i in range(count)]
        rows = sorted((encode(processor, one) for one in told), key=len)
        batches = [make_batch(rows[i : i + 16]) for i in range(0, count, 16)]
        return cls(batches, sum(one.bits for one in told), sum(len(row) - 1 for row in rows))
