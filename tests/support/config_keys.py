"""Each key of transformers' configurations alone changed in a small folder: our logits follow, or the key is refused.

``python tests/support/config_keys.py [CASE ...]`` runs all keys of all families, and prints what does not.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import expert_models
import family_models
import gpt_oss_models
import numpy as np
from family_models import SIZES, TOKENS, Case, expected_logits, from_config, logits_of
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import llama2cpp

ALL = family_models.CASES | expert_models.CASES
ALL |= {
    "llama": Case("llama"),
    "mistral": Case("mistral", {"sliding_window": 5, "head_dim": 8}),
    "gpt_oss": Case("gpt_oss", gpt_oss_models.SETTINGS),
}
# One case of each family, and those in which other keys count.
CASES = list({case.model_type: name for name, case in reversed(ALL.items())}.values())
CASES += ["qwen2-windows", "qwen3-windows", "phi3-window", "starcoder2-window", "stablelm-parallel"]

# Keys of a folder, not of what a model computes; and lm_head, which a folder of a tied model has or has not.
_OTHERS = {
    *("model_type", "architectures", "transformers_version", "dtype", "vocab_size", "id2label", "label2id"),
    *("return_dict", "output_attentions", "output_hidden_states", "use_cache", "tie_word_embeddings"),
    *("max_position_embeddings", "output_router_logits", *(name for name in SIZES if name.endswith("_token_id"))),
}
# What older files have, and what transformers takes for any model.
_OLDER = {"rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "partial_rotary_factor"}
_ANY = {"per_layer_config": [{"0": {"rms_norm_eps": 0.5, "layer_norm_eps": 0.5}}, {"1": {"sliding_window": 2}}]}
_LONGEST = 400  # of a list in a default


@dataclass
class Outcome:
    """What became of a value: transformers' side, and ours."""

    key: str
    value: Any
    theirs: str  # "same", "changed", "tensors" (others are asked for) or "error"
    ours: str  # "same", "follows", "differs" or "refused"
    said: str = ""

    @property
    def is_right(self) -> bool:
        """Whether nobody is deceived: what we open computes as transformers does."""
        if self.theirs in ("error", "tensors"):
            return True
        return self.ours == "refused" or self.ours == ("same" if self.theirs == "same" else "follows")


@cache
def siblings() -> dict[str, list[Any]]:
    """All keys of all configurations of causal language models, with their defaults."""
    keys: dict[str, list[Any]] = {}
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            settings = CONFIG_MAPPING[model_type]().to_dict()
        except Exception:  # a configuration that cannot be made from nothing
            continue
        for key, value in settings.items():
            if isinstance(value, bool | int | float | str | list | dict | None):
                keys.setdefault(key, []).append(value)
    return keys


def values(key: str, own: Any) -> list[Any]:
    """Values that the key may have, other than its own."""
    known = [own, *siblings().get(key, [])]
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    found: list[Any] = list(_ANY.get(key, []))
    if any(isinstance(value, bool) for value in known):
        found += [True, False]
    if any(isinstance(value, float) for value in numbers):
        found += [0.37, 3.0]
    if any(isinstance(value, int) for value in numbers) or set(map(type, known)) == {type(None)}:
        found += [1, 2, 5]
    found += [value for value in known if isinstance(value, str)][:3]
    found += ["gelu", "relu", "gelu_pytorch_tanh", "silu"] if "act" in key else []
    found += [value for value in known if isinstance(value, list | dict) and len(json.dumps(value)) < _LONGEST][:3]
    found.append(None)
    return [value for i, value in enumerate(found) if value != own and value not in found[:i]]


def outcomes(case: Case, *, keys: Iterable[str] | None = None) -> Iterator[Outcome]:
    """Change each key alone. Without `keys`: all that it has, that older files have, and all siblings'."""
    model = case.model()
    weights, usual = model.state_dict(), expected_logits(model, TOKENS)
    limit = 1e-5 * np.abs(usual).max()
    own = model.config.to_dict()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder) / "config.json"
        settings = json.loads(file.read_text())
        for key in sorted(set(own) | _OLDER | set(_ANY) | set(siblings())) if keys is None else keys:
            if key in _OTHERS or key.startswith("_"):
                continue
            for value in values(key, own.get(key, settings.get(key))):
                changed = settings | {key: value}
                theirs, expected = "same", usual
                try:
                    config = CONFIG_MAPPING[case.model_type].from_dict(copy.deepcopy(changed))
                    other = from_config(config)
                    loaded = other.load_state_dict(weights, strict=False)
                    if loaded.missing_keys or loaded.unexpected_keys:
                        theirs = "tensors"
                    else:
                        expected = expected_logits(other, TOKENS)
                        theirs = "same" if np.abs(expected - usual).max() < limit else "changed"
                except Exception:  # whatever it is, transformers does not open it
                    theirs = "error"
                file.write_text(json.dumps(changed))
                try:
                    found = logits_of(folder, TOKENS)
                except llama2cpp.FormatError as error:
                    yield Outcome(key, value, theirs, "refused", str(error))
                    continue
                if np.abs(found - usual).max() < limit:
                    ours = "same"
                else:
                    near = np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
                    ours = "follows" if near else "differs"
                yield Outcome(key, value, theirs, ours)


def main(names: list[str]) -> None:
    logging.disable(logging.WARNING)
    for name in names or CASES:
        all_ = list(outcomes(ALL[name]))
        count = {
            pair: sum((each.theirs, each.ours) == pair for each in all_) for pair in {(o.theirs, o.ours) for o in all_}
        }
        print(name, len(all_), "values;", ", ".join(f"{a}/{b} {n}" for (a, b), n in sorted(count.items())), flush=True)
        for each in all_:
            if not each.is_right:
                print("   WRONG", each.key, each.value, each.theirs, each.ours, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
