"""Many requests at once on an `Engine`, beside the same ones one after another.

    python tests/bench/concurrent_requests.py MODEL [--requests 16] [--prompt 512] [--tokens 128] [--threads 2]
        [--rounds 2]

The two take turns. Prompts are random ids without a common beginning, nothing ends a text early, and no prefix is kept.
It says generated tokens a second from the first request to the last answer, and when the first token came.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import llama2cpp


def run(engine: llama2cpp.Engine, prompts: list[list[int]], tokens: int, at_once: bool) -> tuple[float, list[float]]:
    """Seconds for all, and until the first token of each."""
    begin = time.perf_counter()
    firsts: list[float] = []
    waves = [prompts] if at_once else [[prompt] for prompt in prompts]
    for wave in waves:
        asked = time.perf_counter()
        requests = [engine.submit(prompt, seed=1, max_tokens=tokens) for prompt in wave]
        waiting = list(requests)
        while waiting:
            for request in [request for request in waiting if request.usage.completion_tokens]:
                firsts.append(time.perf_counter() - asked)
                waiting.remove(request)
            time.sleep(0.002)
        for request in requests:
            assert len(request.result().tokens) == tokens
    return time.perf_counter() - begin, firsts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    model = llama2cpp.load(given.model, threads=given.threads)
    ends = {*model.tokenizer.eos_ids, model.tokenizer.bos_id}
    ids = [id for id in range(model.config.vocab_size) if id not in ends]
    random = np.random.default_rng(1)
    prompts = [random.choice(ids, given.prompt).tolist() for _ in range(given.requests)]
    found: dict[bool, list[float]] = {True: [], False: []}
    firsts: dict[bool, list[float]] = {True: [], False: []}
    with llama2cpp.Engine(model, rows=given.requests, prefix_bytes=0) as engine:
        engine.submit(prompts[0][:8], max_tokens=2).result()
        for _ in range(given.rounds):
            for at_once in (True, False):
                seconds, first = run(engine, prompts, given.tokens, at_once)
                found[at_once].append(seconds)
                firsts[at_once] += first
    total = given.requests * given.tokens
    for at_once, name in ((True, "at once"), (False, "one after another")):
        late = float(np.quantile(firsts[at_once], 0.95))
        speed = total / statistics.median(found[at_once])
        print(f"{name}: {speed:.1f} tok/s; first token {late:.2f} s at the 95th percentile")
    print(f"{statistics.median(found[False]) / statistics.median(found[True]):.2f} times")


if __name__ == "__main__":
    main()
