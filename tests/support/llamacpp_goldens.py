"""What llama.cpp computes of a small model of each family. Not run by the tests.

``python tests/support/llamacpp_goldens.py PYTHON`` writes tests/data/llamacpp_logits.json, where PYTHON has the package
xllamacpp (llama.cpp for Python; the goldens are of 2026.10.11549): of files that the gguf library writes, which the
tests write again and compare. With ``--exports`` behind it, it prints how far llama.cpp is from this engine on our own
exports.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from family_models import Case

GOLDENS = Path(__file__).parents[1] / "data" / "llamacpp_logits.json"

# llama.cpp's contexts are multiples of 256: a prompt is long for LongRoPE where the session's context is.
CONTEXT = 256

OTHERWISE = {
    "phi3-window": "llama.cpp reads a Phi-3's attention.sliding_window, and computes without it",
    "phi3-partial": "llama.cpp wants as many rows of queries as the residual stream is wide",
    **dict.fromkeys(("qwen3-biases", "hunyuan-plain", "arcee", "olmo"), "llama.cpp knows no biases of these"),
    "exaone4": "llama.cpp computes the windows of EXAONE 4 in models of 64 layers only",
}

# How far log-probabilities may be. llama.cpp takes GELU from a table of float16, and rounds the input of products with
# MXFP4 to 8 bits.
TOLERANCE = 2e-5
TOLERANCES = {"gemma": 5e-3, "gemma2-own": 5e-3, "gemma3": 5e-3, "starcoder2": 5e-3, "gpt_oss-MXFP4": 5e-2}


def log_probabilities(path: Path, tokens: list[int], vocab_size: int, context: int) -> list[float]:
    """[vocab_size], of what comes after the tokens: by llama.cpp, on one thread, with keys and values in float32."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    request = {"prompt": tokens, "max_tokens": 1, "n_predict": 1, "logprobs": vocab_size, "n_probs": vocab_size}
    answer = xllamacpp.Server(parameters).handle_completions(request | {"temperature": 1.0, "cache_prompt": False})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    found = [math.nan] * vocab_size
    for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def ask(python: str, path: Path, tokens: list[int], vocab_size: int, context: int = CONTEXT) -> list[float]:
    """The same, by another interpreter."""
    arguments = [json.dumps(tokens), str(vocab_size), str(context)]
    run = subprocess.run(
        [python, __file__, "--file", path, *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    found: list[float] = json.loads(run.stdout.splitlines()[-1])
    return found


def cases() -> dict[str, Case]:
    """The families without experts that llama.cpp runs as transformers does."""
    from family_models import CASES, PHI3_SHORT

    found = {name: case for name, case in CASES.items() if case.architecture and name not in OTHERWISE}
    return found | {"phi3-longrope-short": PHI3_SHORT}


def writers() -> dict[str, Callable[[Path], Any]]:
    """What write the models that llama.cpp runs as transformers does. Each gives transformers' model."""
    import expert_models
    import gpt_oss_models
    from family_models import write_gguf
    from gguf import GGMLQuantizationType as Type

    found: dict[str, Callable[[Path], Any]] = {name: partial(write_gguf, case=case) for name, case in cases().items()}
    found |= {name: partial(expert_models.write_gguf, name=name) for name in expert_models.IN_GGUF}
    # llama.cpp computes YaRN between whole ends only.
    yarn = gpt_oss_models.WHOLE_YARN
    return found | {
        f"gpt_oss-{kind.name}": partial(gpt_oss_models.write_gguf, kind=kind, rope_parameters=yarn)
        for kind in (Type.F32, Type.MXFP4)
    }


def write_goldens(python: str) -> None:
    from family_models import TOKENS

    goldens: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in writers().items():
            path = Path(folder) / f"{name}.gguf"
            vocab_size = write(path).config.vocab_size
            goldens[name] = [round(number, 5) for number in ask(python, path, TOKENS, vocab_size)]
    lines = [f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in goldens.items()]
    GOLDENS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def check_exports(python: str) -> None:
    import expert_models
    import gpt_oss_models
    import numpy as np
    from family_models import CASES, PHI3_SHORT, TOKENS, Case

    import llama2cpp
    from llama2cpp.common.probabilities import log_softmax
    from llama2cpp.export import convert

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        gpt_oss = Case("gpt_oss", gpt_oss_models.SETTINGS | {"rope_parameters": gpt_oss_models.WHOLE_YARN})
        all_cases = CASES | expert_models.CASES | {"phi3-longrope-short": PHI3_SHORT, "gpt_oss": gpt_oss}
        for name, case in all_cases.items():
            source = case.save(folder / name)
            write_tokenizer(source, [*letters, *(f"[{i}]" for i in range(50 - len(letters)))])
            for format in ("f32", "q8_0", *(["mxfp4"] if name == "gpt_oss" else [])):
                path = folder / f"{format}.gguf"  # llama.cpp wants certain pieces where a name says Phi-3
                try:
                    convert(source, path, format, force=True)
                except ValueError as error:
                    print(name, format, "refused:", str(error)[:110], flush=True)
                    continue
                with llama2cpp.load(path, kv_dtype="f32", activation_dtype="f32") as model:
                    context = min(CONTEXT, model.config.seq_len)
                    ours = log_softmax(model.session(context=context).prefill(TOKENS))
                try:
                    theirs = ask(python, path, TOKENS, len(ours))
                except subprocess.CalledProcessError:
                    print(name, format, "llama.cpp does not open it", flush=True)
                    continue
                print(name, format, f"{np.abs(ours - theirs).max():.1e}", flush=True)


def write_tokenizer(folder: Path, pieces: list[str]) -> None:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE({piece: id for id, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    if sys.argv[1] == "--file":
        _, _, file, prompt, count, context = sys.argv
        print(json.dumps(log_probabilities(Path(file), json.loads(prompt), int(count), int(context))))
    elif sys.argv[2:] == ["--exports"]:
        check_exports(sys.argv[1])
    else:
        write_goldens(sys.argv[1])
