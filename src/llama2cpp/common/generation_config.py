"""How a model's makers want it sampled, as defaults: generation_config.json, or a GGUF's general.sampling.*."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from .sampling import Sampling, SamplingOptions

USED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# Settings that change a text and that are not implemented, with the values at which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": ([],),
    "force_words_ids": ([],),
    "bad_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ([], {}),
    "stop_strings": ([], ""),
    "watermarking_config": (),
    "dola_layers": (),
    "xtc_probability": (0,),
    "mirostat": (0,),
    "penalty_last_n": (-1,),  # all of the context: what repetition_penalty looks at
    "sequence": (),
}

# Of others nothing is used: ids, lengths, how transformers computes and what it returns.
_NOT_SAMPLING = frozenset(
    {
        *("do_sample", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "_from_model_config"),
        *("max_length", "max_new_tokens", "max_time", "num_return_sequences", "early_stopping", "length_penalty"),
        *("transformers_version", "use_cache", "cache_implementation", "cache_config", "renormalize_logits"),
        *("return_dict_in_generate", "return_legacy_cache", "remove_invalid_values", "low_memory", "is_assistant"),
        *("output_attentions", "output_hidden_states", "output_logits", "output_scores", "token_healing"),
        *("prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config", "trust_remote_code"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens"),
        *("max_matching_ngram_size", "assistant_ensemble_weight", "max_cache_len", "speculation_type", "use_mtp"),
        *("xtc_threshold", "mirostat_tau", "mirostat_eta", "generation_kwargs"),
    }
)


@dataclass(frozen=True)
class GenerationConfig:
    """What a file says of sampling.

    Attributes
    ----------
    options : SamplingOptions
        What `generate`, `chat` and their sisters take where the caller gives nothing.
    ignored : tuple of str
        What is not used though it would change texts, such as "typical_p 0.9".
    said : dict
        All that the file says, for exports.
    """

    options: SamplingOptions = field(default_factory=SamplingOptions)
    ignored: tuple[str, ...] = ()
    said: dict[str, Any] = field(default_factory=dict)


def read_generation_config(text: str, problem: str = "") -> GenerationConfig:
    """Read the text of a generation_config.json.

    Parameters
    ----------
    text : str
        A JSON object; empty where nothing is said.
    problem : str
        Why it could not be read.

    Returns
    -------
    GenerationConfig

    Examples
    --------
    >>> from llama2cpp.common.generation_config import read_generation_config
    >>> found = read_generation_config('{"do_sample": true, "temperature": 0.6, "typical_p": 0.9}')
    >>> found.options, found.ignored
    ({'temperature': 0.6}, ('typical_p 0.9',))
    """
    try:
        said = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        problem, said = str(error), {}
    said = {name: value for name, value in said.items() if value is not None}
    options: dict[str, Any] = {}
    ignored = [problem] if problem else []
    for name in USED:
        if name not in said:
            continue
        if _is_possible(name, said[name]):
            options[name] = said[name]
        else:
            ignored.append(_shown(name, said[name]))
    if said.get("do_sample") is False:
        options["temperature"] = 0.0  # the likeliest token each time
    elif said.get("do_sample", True) is not True:
        ignored.append(_shown("do_sample", said["do_sample"]))
    for name, value in said.items():
        if name in _NEUTRAL:
            if name == "penalty_last_n" and options.get("repetition_penalty", 1) == 1:
                continue
            if not any(value == neutral and not isinstance(value, bool) for neutral in _NEUTRAL[name]):
                ignored.append(_shown(name, value))
        elif name not in USED and name not in _NOT_SAMPLING:
            ignored.append(_shown(name, value))
    return GenerationConfig(options, tuple(ignored), said)  # type: ignore[arg-type]


def _is_possible(name: str, value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
        return False
    if not math.isfinite(value) or not abs(value) < 2**31:
        return False
    if name in ("top_p", "min_p") and not 0 <= value <= 1:
        return False
    try:
        given: Any = {name: value}
        Sampling(**given).samplers(1)
    except (ValueError, TypeError):
        return False
    return True


def _shown(name: str, value: Any) -> str:  # noqa: ANN401
    text = json.dumps(value)
    return f"{name} {text if len(text) <= 40 else text[:40] + '...'}"
