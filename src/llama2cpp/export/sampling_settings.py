"""How a model is to be sampled, from one container to another: generation_config.json, and GGUF's general.sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _core
from ..common.generation_config import USED, GenerationConfig, read_generation_config
from .source import Source

if TYPE_CHECKING:
    from gguf import GGUFWriter

_FILE = "generation_config.json"
_GGUF = _core.gguf_sampling_keys()  # as gguf's own methods have them behind add_sampling_


def config_of(source: Source) -> GenerationConfig:
    """Give what the source's file says; nothing for a source that has no such place."""
    core = source.core
    return GenerationConfig() if core is None else read_generation_config(core.generation_config)


def write_gguf(writer: GGUFWriter, config: GenerationConfig) -> None:
    """Write what GGUF has keys for."""
    for name, key in _GGUF.items():
        value = config.options.get(name, None if name in USED else config.said.get(name))
        if isinstance(value, int | float) and not isinstance(value, bool):
            getattr(writer, f"add_sampling_{key}")(value)


def write_folder(folder: Path, config: GenerationConfig) -> None:
    """Put it into the folder's generation_config.json, beside the ids that are there."""
    said = {
        name: value for name, value in config.said.items() if not name.endswith(("_token_id", "transformers_version"))
    }
    if config.options and "do_sample" not in said:  # a GGUF, which has no such key
        said["do_sample"] = config.options.get("temperature") != 0
    if said.get("do_sample") is False and said.get("temperature") == 0:
        del said["temperature"]  # transformers takes none that is 0
    path = folder / _FILE
    ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if said:
        path.write_text(json.dumps(said | ids, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def panel_metadata(config: GenerationConfig) -> dict[str, str]:
    """Give the metadata of a file of panels that holds it."""
    return {"generation_config": json.dumps(config.said)} if config.said else {}


def lost(config: GenerationConfig, container: str) -> list[str]:
    """Say what a container has no place for: a GGUF file, or a llama2.c file."""
    ignored = [text.partition(" ")[0] for text in config.ignored]
    in_gguf = container != "llama2.c"
    names = [name for name in ignored if name not in _GGUF] if in_gguf else [*config.options, *ignored]
    return [f"{container} has no place for how the model is sampled ({', '.join(names)})"] if names else []
