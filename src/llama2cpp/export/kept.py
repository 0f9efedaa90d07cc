"""Whether what an export has written says all that its source says: all fields of the config, all of a tokenizer's.

A target is opened again, by the reader that will open it later, before it appears under its name. What is compared is
enumerated from the two classes: a new field that a writer does not know of is an error, and not another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from .._core import FormatError, Tokenizer
from .source import rope_factors
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_CLOSE = 1e-5  # how near two divisors of rotary frequencies are that were computed in two ways


def changed_fields(wanted: _core.Config, found: _core.Config) -> list[str]:
    """Give the names of the fields in which a written config is another one.

    Not ``rope_style``: rows are in the order that the target has. A window as long as the context is none, and rotary
    scaling is the same where it divides all frequencies by the same numbers.
    """
    changed = []
    before, after = wanted.to_dict(), found.to_dict()
    for name in {**before, **after}:
        if name == "rope_style" or name in _ROTATION:
            continue
        pair = before.get(name), after.get(name)
        if name == "sliding_window":
            pair = _window(wanted), _window(found)
        if name == "attention_multiplier":
            pair = _attention_multiplier(wanted), _attention_multiplier(found)
        if not _same(*pair):
            changed.append(name)
    if not _same_rotation(wanted, found):
        changed += [name for name in _ROTATION if not _same(before[name], after[name])]
    return changed


_ROTATION = ("rope_scaling", "rope_factors")


def _window(config: _core.Config) -> int | None:
    window = config.sliding_window
    return window if window is not None and window < config.seq_len else None


def _attention_multiplier(config: _core.Config) -> float:
    return config.attention_multiplier or 1 / math.sqrt(config.head_dim)


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def _same_rotation(wanted: _core.Config, found: _core.Config) -> bool:
    """Whether all frequencies are divided by the same numbers; YaRN's settings are compared one by one."""
    divisors = []
    rest = []
    for config in (wanted, found):
        scaling = config.rope_scaling
        factors = rope_factors(config)
        all_by = scaling["factor"] if scaling is not None and scaling["type"] == "linear" else 1.0
        divisors.append(
            np.full((config.rotary_dim or config.head_dim) // 2, all_by) * (1.0 if factors is None else factors)
        )
        rest.append(None if scaling is None or scaling["type"] in ("linear", "llama3") else _that_counts(scaling))
    before, after = divisors
    return len(before) == len(after) and np.allclose(before, after, rtol=_CLOSE) and _same(*rest)


def _that_counts(scaling: dict[str, Any]) -> dict[str, Any]:
    """Leave out longrope's factor: what it would say of attention is in attention_factor."""
    return {name: value for name, value in scaling.items() if name != "factor" or scaling["type"] != "longrope"}


# --- tokenizers

# These may differ in ways that change nothing, and are compared by `_changed_roles`.
_ROLES = ("types", "bos_id", "eos_ids", "unk_id", "unk_surface", "add_bos", "add_eos")


def changed_settings(wanted: Vocabulary, found: Vocabulary) -> list[str]:
    """Give what a written tokenizer says otherwise than it was meant to, by the names of `Vocabulary`'s fields."""
    if wanted.kind != found.kind:
        return ["kind"]
    if len(wanted.pieces) != len(found.pieces):
        return ["pieces"]
    names = [name for name in wanted.settings if name not in _ROLES]
    changed = [name for name in names if getattr(wanted, name) != getattr(found, name)]
    return changed + list(_changed_roles(wanted, found))


# A tokenizer.json has the unknown piece among its special tokens, so that text can name it; files of scores have not.
_UNKNOWN = ((UNKNOWN, CONTROL), (CONTROL, UNKNOWN))


def _changed_roles(wanted: Vocabulary, found: Vocabulary) -> Iterator[str]:
    """Compare which pieces are special, and what they are for."""
    for id, (before, after) in enumerate(zip(wanted.types, found.types, strict=True)):
        if before != after and (before, after) not in ((UNUSED, NORMAL), *(_UNKNOWN if id == wanted.unk_id else ())):
            yield "types"
            break
    if wanted.puts_bos != found.puts_bos:
        yield "add_bos"
    if wanted.puts_eos != found.puts_eos:
        yield "add_eos"
    if wanted.bos_id != found.bos_id and (wanted.bos_id >= 0 or found.puts_bos):
        yield "bos_id"
    lost = [id for id in wanted.eos_ids if id not in found.eos_ids]
    gained = [id for id in found.eos_ids if id not in wanted.eos_ids]
    first = wanted.eos_ids[:1]  # which is put behind a text
    if lost or found.eos_ids[: len(first)] != first or any(found.types[id] != CONTROL for id in gained):
        yield "eos_ids"
    if wanted.unk_id != found.unk_id and wanted.kind != "byte_bpe" and wanted.types.count(BYTE) < 256:
        yield "unk_id"


def notes(wanted: Vocabulary, found: Vocabulary) -> list[str]:
    """Give what a target cannot say of a tokenizer and what changes no id."""
    said = []
    gained = [id for id in found.eos_ids if id not in wanted.eos_ids]
    if gained:
        names = ", ".join(repr(found.pieces[id].decode("utf-8", "replace")) for id in gained)
        said.append(f"its readers end a text at {names} too, which the source does not say (eos_ids)")
    if wanted.bos_id < 0 <= found.bos_id:
        name = found.pieces[found.bos_id].decode("utf-8", "replace")
        said.append(f"it cannot say that there is no BOS: readers take {name!r}, but put none before a text (bos_id)")
    return said


_TEXTS = (
    "",
    " ",
    "hello",
    " hello",
    "   two  spaces ",
    "a\nb\tc\r\n d",
    "12 + 34567 = I'LL don't",
    "naïve café 🚀 日本\u3000한국 \u017f",
)
_MOST_MARKS = 48


def probing_texts(vocabulary: Vocabulary) -> list[str]:
    """Give texts that tell tokenizers with other settings apart: spaces, digits, and special pieces in between."""
    flagged = [token.id for token in vocabulary.added]
    # Some vocabularies have hundreds of control pieces, which are all found in one way.
    special = [id for sought in (USER_DEFINED, CONTROL) for id, kind in enumerate(vocabulary.types) if kind == sought]
    texts = list(_TEXTS)
    for id in [id for id in [*flagged, *special] if id != vocabulary.unk_id][:_MOST_MARKS]:
        try:
            mark = vocabulary.pieces[id].decode()
        except UnicodeDecodeError:
            continue
        texts += [f"x{mark}y", f"x {mark} y", f"{mark} hello", f"{mark}hello", f" {mark}", f"{mark}{mark}"]
    return texts


def first_other_ids(wanted: Tokenizer, found: Tokenizer) -> str | None:
    """Give the first probing text that the two encode otherwise, None if there is none."""

    def ids(tokenizer: Tokenizer, text: str, special: bool) -> list[int] | None:
        try:
            return tokenizer.encode(text, special=special)
        except ValueError:  # text that it has no id for
            return None

    for text in probing_texts(Vocabulary.of(wanted).with_escaped_spaces()):
        for special in (False, True):
            if ids(wanted, text, special) != ids(found, text, special):
                return text
    return None


def _suspects(vocabulary: Vocabulary) -> str:
    """Name what a probing text may have told two tokenizers apart by, though each field is as it was to be."""
    found = sorted({name for token in vocabulary.added for name, flag in vars(token).items() if flag is True})
    if USER_DEFINED in vocabulary.types and vocabulary.kind in ("sentencepiece", "ranked_bpe"):
        found.append("whether a space is put behind a user-defined piece (types)")
    return ", ".join(found) or "the rule of its kind"


def check_tokenizer(target: str, wanted: Tokenizer, stored: Vocabulary, found: Tokenizer) -> list[str]:
    """Compare a tokenizer with what has been written of it.

    Parameters
    ----------
    target : str
        What has been written, for messages.
    wanted : Tokenizer
        The source's.
    stored : Vocabulary
        What the target was to hold: the source's vocabulary, of another kind where the target has no other.
    found : Tokenizer
        What its reader makes of it.

    Returns
    -------
    list of str
        Notes: what it cannot say, and what changes no id.

    Raises
    ------
    ValueError
        If a setting is lost, by its name.
    """
    read = Vocabulary.of(found)
    changed = changed_settings(stored, read)
    text = None if changed else first_other_ids(wanted, found)
    if changed:
        raise ValueError(f"{target} cannot hold this tokenizer's {', '.join(changed)}; {WITHOUT}")
    if text is not None:
        why = _suspects(Vocabulary.of(wanted))
        raise ValueError(f"{target} cannot hold this tokenizer's {why}: {text!r} would get other ids; {WITHOUT}")
    said = notes(stored, read)
    if Vocabulary.of(wanted).nfc and not read.nfc:
        said.append("it cannot say that a text is composed first: one that is not gets other ids (nfc)")
    return [f"{target}: {note}" for note in said]


WITHOUT = "pass tokenizer=False (--no-tokenizer) to leave it behind"


def check_written(path: Path, target: str, config: _core.Config, tokenizer: Tokenizer | None) -> list[str]:
    """Open what an export has written, and compare it with what it was to say.

    Parameters
    ----------
    path : Path
        The file or folder, complete.
    target : str
        What it is, for messages.
    config : Config
        The source's.
    tokenizer : Tokenizer, optional
        The source's, where the file has it as it was; else it is not looked at.

    Returns
    -------
    list of str
        Notes.

    Raises
    ------
    ValueError
        If the target's reader refuses it, or gives another config or tokenizer. It names the fields.
    """
    from ..loading import load

    try:
        model = load(path, threads=1, pack="never", backend="cpu")
    except FormatError as error:
        raise ValueError(f"{target} cannot hold this model: {str(error).removeprefix(f'{path}: ')}") from None
    with model:
        changed = changed_fields(config, model.config)
        if changed:
            values = ", ".join(f"{name} ({getattr(config, name)})" for name in changed)
            raise ValueError(f"{target} cannot hold this model's {values}")
        if tokenizer is None:
            return []
        if not model.has_tokenizer:
            raise ValueError(f"{target} has lost the tokenizer: {model.tokenizer_problem}; {WITHOUT}")
        return check_tokenizer(target, tokenizer, Vocabulary.of(tokenizer), model.tokenizer)
