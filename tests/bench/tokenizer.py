"""Measure the megabytes a second that encoding takes, beside `tokenizers` and tiktoken, on one thread.

    python tests/bench/tokenizer.py smollm2.gguf llama3/tokenizer.model
    python tests/bench/tokenizer.py smollm2.gguf --text some.txt
    python tests/bench/tokenizer.py qwen2 o200k gemma unigram

A name instead of a file stands for a vocabulary that is trained first, on other text: "qwen2", "llama3" and whatever
`llama2cpp._core.pre_tokenizers` lists for byte-level BPE, beside `tokenizers` and tiktoken; "gemma", "llama2" and
"unigram" for pieces that are characters, with bytes for what they do not spell, beside `tokenizers`; "sentencepiece"
and "sentencepiece-unigram" for .model files, beside `sentencepiece`.

Without --text it is a megabyte of mixed text: half of it many scripts, emoji and runs of this and that, half of it the
sources of Python's standard library. The cases take turns, round after round; of each the best round counts. All give
the same ids, or the script says so and stops.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import sentencepiece
import tiktoken
from tokenizer_files import BYTE_PIECES, SPACE
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from vocabularies import (
    LISTED,
    LLAMA3_PATTERN,
    PATTERNS,
    STAND_INS,
    from_stand_ins,
    gguf_vocabulary,
    mixed_text,
    reference_pre_tokenizer,
)

from llama2cpp import Tokenizer

Encode = Callable[[str], list[int]]


def default_text() -> str:
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    code = "\n".join(source.read_text(encoding="utf-8", errors="replace") for source in sources)[:500_000]
    text = mixed_text(350_000) + code
    return "".join(character for character in text if ord(character) not in LISTED)


def training_texts() -> list[str]:
    """Lines of another kind than those that are measured: what Python's packages say, and other mixed text."""
    sources = sorted(Path(os.__file__).parent.glob("[a-m]*/*.py"))[:150]
    text = "\n".join(source.read_text(encoding="utf-8", errors="replace") for source in sources)
    return (text[:1_500_000] + mixed_text(500_000, seed=1)).splitlines(keepends=True)


def learned(pre_tokenizer: Any, *, size: int = 8000, alphabet: Sequence[str] = (), special: Sequence[str] = ()) -> Any:
    """The vocabulary and merges of a BPE that `tokenizers` has trained."""
    learner = Reference(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=list(alphabet), special_tokens=list(special)
    )
    learner.train_from_iterator(training_texts(), trainer)
    return json.loads(learner.to_str())["model"]


def byte_level(cut: str) -> dict[str, Encode]:
    shape = reference_pre_tokenizer(cut)
    model = learned(shape, alphabet=STAND_INS)
    theirs = Reference(models.BPE(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]))
    theirs.pre_tokenizer, theirs.decoder = shape, decoders.ByteLevel()
    cases = both(theirs)
    if cut in PATTERNS and len(PATTERNS[cut]) == 1:
        ranks = {from_stand_ins(piece): id for piece, id in model["vocab"].items()}
        library = tiktoken.Encoding(cut, pat_str=PATTERNS[cut][0], mergeable_ranks=ranks, special_tokens={})
        cases["tiktoken"] = library.encode_ordinary
    return cases


def of_characters(kind: str) -> dict[str, Encode]:
    """Pieces of characters as Gemma's and Llama 2's files have them: the text is one word."""
    words = pre_tokenizers.Metaspace(SPACE, "always")
    names = ["<unk>", "<s>", "</s>", *BYTE_PIECES]
    theirs: Any
    if kind == "unigram":
        theirs = Reference(models.Unigram(scores(trained_by_sentencepiece("unigram")), 0, byte_fallback=True))
        theirs.pre_tokenizer = words
    else:
        model = learned(words, special=names)
        merges = [tuple(merge) for merge in model["merges"]]
        theirs = Reference(
            models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        replace = normalizers.Replace(" ", SPACE)
        prepend = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        theirs.normalizer = replace if kind == "gemma" else prepend
        if kind == "gemma":
            theirs.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    theirs.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return both(theirs)


def both(theirs: Any) -> dict[str, Encode]:
    """Our reader's tokenizer of the library's file, and the library."""
    ours = opened(theirs.to_str().encode(), "tokenizer.json")
    return {
        "llama2cpp": lambda text: ours.encode(text, bos=False),
        "tokenizers encode": lambda text: theirs.encode(text, add_special_tokens=False).ids,
        "tokenizers encode_batch_fast": lambda text: theirs.encode_batch_fast([text], add_special_tokens=False)[0].ids,
    }


def opened(data: bytes, name: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return Tokenizer.from_file(path)


def trained_by_sentencepiece(model_type: str) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_texts()),
        model_writer=out,
        model_type=model_type,
        vocab_size=8000,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=3,
    )
    return out.getvalue()


def scores(model: bytes) -> list[tuple[str, float]]:
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(library.id_to_piece(id), library.get_score(id)) for id in range(library.get_piece_size())]


def of_sentencepiece(model_type: str) -> dict[str, Encode]:
    model = trained_by_sentencepiece(model_type)
    ours, library = opened(model, "tokenizer.model"), sentencepiece.SentencePieceProcessor(model_proto=model)
    return {"llama2cpp": lambda text: ours.encode(text, bos=False), "sentencepiece": library.encode}


def cases_of(path: Path) -> dict[str, Encode]:
    """Ways to the ids of one vocabulary; the first is ours."""
    if path.name in ("sentencepiece", "sentencepiece-unigram"):
        return of_sentencepiece("bpe" if path.name == "sentencepiece" else "unigram")
    if path.name in ("gemma", "llama2", "unigram"):
        return of_characters(path.name)
    if not path.suffix and not path.exists():
        return byte_level(path.name)
    if path.suffix == ".gguf":
        vocabulary = gguf_vocabulary(path, "smollm")
        ours, theirs = vocabulary.ours(), vocabulary.reference()
        theirs.encode_special_tokens = True
        return {
            "llama2cpp": lambda text: ours.encode(text, bos=False),
            "tokenizers encode": lambda text: theirs.encode(text, add_special_tokens=False).ids,
            "tokenizers encode_batch_fast": lambda text: (
                theirs.encode_batch_fast([text], add_special_tokens=False)[0].ids
            ),
        }
    tokenizer = Tokenizer.from_file(path)
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, path.read_bytes().splitlines())}
    library = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return {"llama2cpp": lambda text: tokenizer.encode(text, bos=False), "tiktoken": library.encode_ordinary}


def measure(cases: dict[str, Encode], text: str, rounds: int) -> dict[str, float]:
    """The best seconds of each."""
    expected = next(iter(cases.values()))(text)
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, encode in cases.items():
            started = time.perf_counter()
            ids = encode(text)
            best[name] = min(best[name], time.perf_counter() - started)
            if ids != expected:
                raise SystemExit(f"{name} gives other ids")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="SmolLM2's GGUF, Llama 3's tokenizer.model, or names")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    text = default_text() if arguments.text is None else arguments.text.read_text(encoding="utf-8")
    size = len(text.encode())
    print(f"{size} bytes of text, one thread, the best of {arguments.rounds} rounds")
    for path in arguments.files:
        best = measure(cases_of(path), text, arguments.rounds)
        ours = next(iter(best.values()))
        print(path.name)
        for name, seconds in best.items():
            print(f"  {name:28} {size / seconds / 1e6:8.1f} MB/s  {seconds / ours:5.1f} x our time")


if __name__ == "__main__":
    main()
