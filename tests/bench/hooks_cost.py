"""What hooks cost: recordings while decoding, caches of a prompt, and hook points where nobody looks.

    python tests/bench/hooks_cost.py MODEL [--threads 2] [--rounds 15] [--peer] [--steps WITH WITHOUT]

Every kind of run takes its turn in every round. For steps the median over the rounds of the ratio to the same round's
run without is printed, for wall and CPU time. --peer times TransformerLens too, where it is installed: its own
`run_with_cache`, in float32, on a random model of this model's shape. WITH and WITHOUT are two builds of bench_step
(tests/bench/step.cpp), the second with -DLLAMA2CPP_NO_HOOKS=ON; the least CPU time of a round counts, so that other
programs disturb little. With valgrind on the machine the instructions of a step are counted too, on AVX2 kernels (it
knows no AVX-512).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llama2cpp

STEPS = 24  # of a run
BEGIN = 32  # tokens before them
PREFILL = 128

Runs = dict[str, Callable[[], object]]


def taken(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of a call, in milliseconds. What it returns goes after the clocks have been read."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    times = (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3
    del result
    return times


def in_turns(runs: Runs, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Time of each run in each round, [rounds, 2]. Every second round goes backwards."""
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(taken(runs[name]))
    return {name: np.array(values) for name, values in times.items()}


def decoding(model: llama2cpp.Model) -> Runs:
    """Steps with nothing looking, with recordings, and with a Python hook."""
    session = model.session()
    session.prefill(np.arange(3, 3 + BEGIN))

    def steps() -> None:
        session.rewind(BEGIN)
        for _ in range(STEPS):
            session.step(5)

    def recorded(names: str | None) -> Callable[[], None]:
        def run() -> None:
            with model.record(names):
                steps()

        return run

    def hooked() -> None:
        with model.hooks([("resid_post", lambda activation, hook: None)]):
            steps()

    return {
        "steps": steps,
        "residual stream recorded": recorded("resid_post"),
        "all but results recorded": recorded(None),
        "residual stream in Python": hooked,
    }


def caches(model: llama2cpp.Model) -> Runs:
    """`run_with_cache` of a prompt."""
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, PREFILL)

    def cache_of(names: Any) -> Callable[[], object]:
        return lambda: model.run_with_cache(ids, names)

    kinds = {"logits": (), "residual stream": "resid_post", "all but results": None, "all": bool}
    return {name: cache_of(names) for name, names in kinds.items()}


def peer(config: llama2cpp.Config, threads: int) -> Runs:
    """TransformerLens's `run_with_cache` on a random model of the same shape."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(threads)
    make: Any = LlamaForCausalLM
    theirs = make(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.seq_len,
            tie_word_embeddings=config.tied,
        )
    ).eval()
    make_tokenizer: Any = PreTrainedTokenizerFast
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        words = Tokenizer(WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
        make_tokenizer(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w2").save_pretrained(folder)
        bridge: Any = TransformerBridge.boot_transformers(folder, hf_model=theirs)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, config.vocab_size, (1, PREFILL)))

    def run(results: bool) -> object:
        bridge.set_use_attn_result(results)
        with torch.no_grad():
            return bridge.run_with_cache(ids)

    return {"TransformerLens, all but results": lambda: run(False), "TransformerLens, all": lambda: run(True)}


def instructions(program: Path, model: str) -> float:
    """Count those of one step: the difference between a run of many steps and one of few."""
    counts = []
    for steps in (20, 120):
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={os.devnull}",
            str(program),
            model,
            str(steps),
        ]
        env = os.environ | {"LLAMA2CPP_ISA": "avx2"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found is not None, done.stderr
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / 100


def main() -> None:
    """Read the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--steps", type=Path, nargs=2, metavar=("WITH", "WITHOUT"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")

    model = llama2cpp.load(given.model, threads=given.threads)
    times = in_turns(decoding(model), given.rounds)
    for name, runs in times.items():
        wall, cpu = np.median(runs, axis=0) / STEPS
        more = np.median(runs / times["steps"], axis=0) * 100 - 100
        print(f"{name:34} {wall:9.3f} ms a step, {cpu:9.3f} ms of CPU, {more[0]:+6.2f} % and {more[1]:+6.2f} %")
    prompts = caches(model)
    if given.peer:
        prompts |= peer(model.config, given.threads)
    for name, runs in in_turns(prompts, given.rounds).items():
        print(f"{name:34} {np.median(runs[:, 0]):9.3f} ms a prompt of {PREFILL}")
    if not given.steps:
        return
    best = [float("inf")] * 2
    for _ in range(given.rounds):
        for i, program in enumerate(given.steps):
            done = subprocess.run([program, given.model, "200", "20"], capture_output=True, text=True, check=True)
            best[i] = min(best[i], float(done.stdout))
    print(
        f"step with and without hook points: {best[0]:.2f} and {best[1]:.2f} us, {100 * (best[0] / best[1] - 1):+.2f} %"
    )
    if shutil.which("valgrind"):
        ours, plain = (instructions(program, given.model) for program in given.steps)
        print(f"instructions of a step:            {ours:,.0f} and {plain:,.0f}, {100 * (ours / plain - 1):+.2f} %")


if __name__ == "__main__":
    main()
