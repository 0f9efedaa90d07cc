"""The card of a storyteller: what it is, how it was made, and what was found. No figure in it is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_HEAD = """# The storyteller

The model in the llama2cpp package: a Llama of {parameters:,} parameters that tells short children's stories. This project
trained it, from nothing, on stories that its own grammar writes; no text or weight of anyone else's is in it.

It is there so that `llama2cpp.generate()` works with nothing to download, and to be looked at: it is small enough to
see through, and its data make it learn what people look for in larger models: who gets what from whom, names that come
again, which box holds the key.

| | |
|---|---|
| files | `storyteller.bin` (llama2.c version 2: int8, groups of {group}), `tokenizer.model` (SentencePiece BPE) |
| size | {bytes:,} bytes together |
| shape | dim {dim}, n_layers {n_layers}, n_heads {n_heads}, n_kv_heads {n_kv_heads}, head_dim {head_dim}, hidden_dim {hidden_dim}, context {seq_len} |
| kind | Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU; output tied to the embedding |
| vocabulary | {vocab_size:,} pieces with byte fallback. Each of the grammar's first names is one piece, as studies of circuits want it |
| licence | MIT, as the project |

## Data

`export/storyteller/story_grammar.py` writes a story for any seed: {plots} plots of beats told in several ways, with casts of children
or animals, things, places and feelings drawn for each story. Whoever recurs, recurs by name, so what came before decides
what comes next. Pairs of names and invented names that training never sees are kept for the checks. Every training
story is a fresh one.

## Training

```sh
python export/storyteller/train_storyteller.py --minutes {minutes:.0f} --seed {seed} --threads {threads} --out storyteller
```

{tokens:,} tokens in {steps:,} steps, {tokens_a_second:,.0f} tokens a second. Muon for the matrices inside the layers,
AdamW for the rest; the export is an average of the last part's weights, rounded to int8. The first million tokens or
so are drills (names said again and again) and the starts of stories: so it learns to copy a name at once, and not late.

| held-out stories | loss, nats a token | of that, choices of the grammar that nothing foretells |
|---|---|---|
| new stories | {held_out[loss]:.4f} | {held_out[floor]:.4f} |
| of names that never met in training | {held_out_names[loss]:.4f} | {held_out_names[floor]:.4f} |

{remarks}Measured on the weights before rounding. Another run with the same seed sees the same stories; how many, the machine
decides.

## Checks

```sh
python export/storyteller/check_storyteller.py storyteller/storyteller.bin -z storyteller/tokenizer.model --card storyteller/CARD.md
```

{samples} stories sampled at temperature {temperature:g} (top-p 0.9, as `generate` has it) with seeds from {first_seed} on, from
nothing but BOS, read by the grammar's parser; and prompts completed greedily. All with the int8 file, by the engine.

"""

_TAIL = """
## Limits

In {slips:.1%} of the stories above somebody is mixed up, or a sentence is not the grammar's; most often where a name is
chosen. It knows the grammar's world and no other: a prompt about anything else is continued with something that looks like a
story. It is no assistant, knows no facts, and was not tested for any use but stories and study.
"""

CLEAN = "without any of these problems"  # the name of a check


def card(
    training: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    shown: Sequence[str],
    told: Iterable[tuple[int, str]],
    **facts: object,
) -> str:
    """Write the card.

    Parameters
    ----------
    training : mapping
        What `train_storyteller.py` left in training.json.
    checks : sequence of mapping
        Name, aim and number of each check.
    shown : sequence of str
        Their values as people read them.
    told : iterable of (int, str)
        Seeds and stories to show.
    **facts
        What else the head names: samples, temperature, first_seed, plots, bytes.

    Returns
    -------
    str
        Markdown.
    """
    sizes = training["settings"]["sizes"]
    head_dim = sizes["dim"] // sizes["n_heads"]
    remarks = "".join(f"{remark}\n\n" for remark in training.get("remarks", []))
    lines = [_HEAD.format(**{**training, **sizes, "head_dim": head_dim, **facts, "remarks": remarks})]
    lines.append("| check | value | aim | looked at |\n|---|---|---|---|\n")
    for check, value in zip(checks, shown, strict=True):
        lines.append(f"| {check['name'].strip()} | {value} | {check['aim']} | {check['of']:,} |\n")
    lines.append("\n## Stories\n")
    for seed, text in told:
        lines.append(f"\nSeed {seed}:\n\n> {text}\n")
    clean = next(float(check["value"]) for check in checks if check["name"] == CLEAN)
    lines.append(_TAIL.format(slips=1 - clean))
    return "".join(lines)
