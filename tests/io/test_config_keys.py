"""A key of config.json that changes logits is followed or refused by its name, whatever the model_type says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from config_keys import ALL, outcomes

import llama2cpp

# Keys that some programs compute from, with a value at which they change nothing.
SOURCE = Path(__file__).parents[2] / "src/cpp/io/families.cpp"
SWITCHES = re.findall(r'^    \{"([a-z_]+)", "[a-z_.]*", (-?[0-9.]+)', SOURCE.read_text(), flags=re.MULTILINE)

# The long form, of all keys of all families, is `python tests/support/config_keys.py`.
SHORT = {
    "gemma3": ["rms_norm_eps", "attn_logit_softcapping", "rope_parameters", "per_layer_config"],
    "olmo3": ["rms_norm_eps", "rope_parameters", "rope_theta"],
    "cohere": ["rope_parameters", "logit_scale", "use_qk_norm"],
    "qwen3_moe": ["norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"],
    "gpt_oss": ["swiglu_limit", "rms_norm_eps", "num_experts_per_tok"],
}


def error_of(path: Path) -> str:
    """What loading fails with; nothing where it does not."""
    try:
        llama2cpp.load(path).close()
    except llama2cpp.FormatError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", SHORT)
def test_logits_follow_or_the_key_is_refused(name: str) -> None:
    found = list(outcomes(ALL[name], keys=SHORT[name]))
    assert [outcome for outcome in found if not outcome.is_right] == []
    assert any(outcome.theirs == "changed" for outcome in found)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3", "olmo2", "mixtral", "gpt_oss"])
def test_settings_of_other_families_are_refused(name: str, tmp_path: Path) -> None:
    folder = ALL[name].save(tmp_path / "m")
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    refused: set[str] = set()
    for key, neutral in SWITCHES:
        for value in (float(neutral) + 1, [float(neutral) + 1]):
            file.write_text(json.dumps(settings | {key: value}))
            said = error_of(folder)
            assert not said or key in said, (key, value, said)
            refused |= {key} if said else set()
    taken = {key for key, _ in SWITCHES} - refused
    assert taken == set()
    assert len(refused) > 55
