"""Gradients beside PyTorch: seconds and memory of a forward, and of a forward and the way back to every layer.

``python tests/bench/gradients.py MODEL.gguf --threads 2`` runs three processes in turns, so that they share what a busy
machine does to them: the model with ``precision="exact"``, with its defaults, and a Llama of its sizes by transformers,
in float32 with frozen weights. Each round runs a forward, and then a forward with gradients of the residual stream into
each layer, of the mean loss of one prompt. It prints the best of the rounds, and each process's peak memory, weights
and all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

KINDS = ("exact", "default", "torch")
Pair = tuple[Callable[[], Any], Callable[[], Any]]


def ours(path: str, tokens: int, threads: int, kind: str) -> Pair:
    """A forward, and one with gradients, by this project."""
    import llama2cpp
    from llama2cpp import metrics

    options: dict[str, Any] = {"precision": "exact"} if kind == "exact" else {}
    model = llama2cpp.load(path, backend="cpu", threads=threads, **options)
    ids = prompt(tokens, model.config.vocab_size)
    metric = metrics.loss(ids)

    def with_gradients() -> None:
        logits, run = model.run_with_cache(ids, ["resid_pre", "resid_post-1"])
        run.backward(metric(logits)[1], "resid_pre")

    return lambda: model(ids), with_gradients


def shape_of(path: str) -> dict[str, Any]:
    """What transformers calls the sizes of a model."""
    import llama2cpp

    with llama2cpp.load(path, backend="cpu") as model:
        c = model.config
        return {
            "hidden_size": c.dim,
            "intermediate_size": c.hidden_dim,
            "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "vocab_size": c.vocab_size,
            "max_position_embeddings": c.seq_len,
            "tie_word_embeddings": c.tied,
        }


def theirs(shape: str, tokens: int, threads: int) -> Pair:
    """The same by transformers, in float32, with random weights of these sizes."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**json.loads(shape)))
    model = model.eval().requires_grad_(False)
    ids = torch.tensor([prompt(tokens, model.config.vocab_size)])

    def forward() -> None:
        with torch.no_grad():
            model(ids)

    def with_gradients() -> None:
        embeddings = model.get_input_embeddings()(ids).requires_grad_()
        seen: list[Any] = []

        def keep(_: object, args: tuple[Any, ...]) -> None:
            args[0].retain_grad()
            seen.append(args[0])

        hooks = [layer.register_forward_pre_hook(keep) for layer in model.model.layers]
        model(inputs_embeds=embeddings, labels=ids).loss.backward()
        for hook in hooks:
            hook.remove()
        assert all(x.grad is not None for x in seen)

    return forward, with_gradients


def prompt(tokens: int, vocab_size: int) -> list[int]:
    """Ids that look like no text, the same for all."""
    return [(1009 * i + 17) % vocab_size for i in range(tokens)]


def peak_megabytes() -> float:
    """Of this process. macOS counts bytes, all others kilobytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def serve(kind: str, path: str, tokens: int, threads: int) -> None:
    """Run both for every line of stdin, and print seconds and memory."""
    forward, with_gradients = theirs(path, tokens, threads) if kind == "torch" else ours(path, tokens, threads, kind)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        forward()
        middle = time.perf_counter()
        with_gradients()
        end = time.perf_counter()
        print(json.dumps([middle - begin, end - middle, peak_megabytes()]), flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of a Llama")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        serve(given.kind, given.model, given.tokens, given.threads)
        return
    workers: dict[str, Any] = {}
    shape = json.dumps(shape_of(given.model))
    for kind in KINDS:
        command = [sys.executable, __file__, shape if kind == "torch" else given.model, "--kind", kind]
        command += ["--tokens", str(given.tokens), "--threads", str(given.threads)]
        workers[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    measured: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for worker in workers.values():
        while worker.stdout.readline().strip() != "ready":
            if worker.poll() is not None:
                raise SystemExit("a process ended before it was ready")
    for _ in range(given.rounds):
        for kind, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            measured[kind].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    print(f"{given.tokens} tokens, {given.threads} threads, best of {given.rounds} rounds in turns")
    print(f"{'':10}{'forward':>10}{'with gradients':>16}{'ratio':>8}{'peak MB':>10}{'torch / it':>12}")
    best = {kind: [min(column) for column in zip(*rows, strict=True)] for kind, rows in measured.items()}
    for kind, (forward, gradients, _) in best.items():
        peak = max(row[2] for row in measured[kind])
        times = best["torch"][1] / gradients
        print(f"{kind:10}{forward:10.2f}{gradients:16.2f}{gradients / forward:8.2f}{peak:10.0f}{times:12.2f}")


if __name__ == "__main__":
    main()
