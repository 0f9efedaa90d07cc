"""Which files of a Hugging Face folder are whose, and what a file is that cannot be read as what it should be."""

from __future__ import annotations

from pathlib import Path

from .. import _core

# What of a Hugging Face folder belongs to its tokenizer, and to how its model answers; patterns, not only names.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)

_BYTES = 512  # more of a file makes no difference


def stand_in(path: Path) -> str:
    """Say what stands in the place of a file that could not be read; empty where its first bytes do not tell.

    It may be a Git LFS pointer, or a page that a server sent instead.
    """
    if not path.is_file():  # a pipe would wait for its writer
        return ""
    try:
        with path.open("rb") as file:
            return _core.find_stand_in(file.read(_BYTES))
    except OSError:
        return ""
