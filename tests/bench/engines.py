"""Engines to be measured, each in a process of its own that waits for its turn: see compare.py.

    python tests/bench/engines.py NAME FILE THREADS CONTEXT

reads requests from standard input, one JSON list in a line, and answers each with one JSON value:

    ["decode", depth, steps]    tokens a second of steps of one token each, after a prompt of `depth` tokens
    ["prefill", tokens]         tokens a second of a prompt, or null where the engine cannot
    ["memory"]                  the most memory that the process has had, in bytes

The first line of its output says how it was opened: seconds until the file is open and until the first token is there.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama2cpp
from llama2cpp.command import bench


class Engine:
    """What measures one file with one number of threads."""

    label: str

    def __init__(self, path: Path, threads: int, context: int) -> None:
        raise NotImplementedError

    def first(self) -> None:
        """Make the first token's logits."""
        self.prefill(1)

    def decode(self, depth: int, steps: int) -> float:
        raise NotImplementedError

    def prefill(self, tokens: int) -> float | None:
        raise NotImplementedError


class Ours(Engine):
    label = "llama2cpp"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        model = llama2cpp.load(path, threads=threads, context=context)
        self._vocab_size = model.config.vocab_size
        self._session = model.session()

    def first(self) -> None:
        self._session.step(1)

    def decode(self, depth: int, steps: int) -> float:
        return bench.decode_speed(self._session, depth, steps, self._vocab_size)

    def prefill(self, tokens: int) -> float | None:
        return bench.prefill_speed(self._session, tokens, self._vocab_size)


class LlamaCpp(Engine):
    """llama.cpp by llama-cpp-python, its C functions called directly, so that no Python but the loop is measured."""

    label = "llama.cpp"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._library = importlib.import_module("llama_cpp")
        self._model = self._library.Llama(
            str(path), n_ctx=context, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
            verbose=False,
        )  # fmt: skip
        self._vocab_size = self._model.n_vocab()
        self._context = self._model.ctx

    def first(self) -> None:
        self._feed([1])

    def _feed(self, ids: list[int]) -> None:
        array = (self._library.llama_token * len(ids))(*ids)
        if self._library.llama_decode(self._context, self._library.llama_batch_get_one(array, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")
        self._library.llama_get_logits_ith(self._context, -1)  # waits for the result

    def _clear(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)

    def decode(self, depth: int, steps: int) -> float:
        ids = bench.prompt_ids(depth + steps, self._vocab_size)
        self._clear()
        self._feed(ids[:depth])
        started = time.perf_counter()
        for token in ids[depth:]:
            self._feed([token])
        return steps / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float | None:
        ids = bench.prompt_ids(tokens, self._vocab_size)

        def once() -> None:
            self._clear()
            self._feed(ids)

        return tokens / bench.seconds_of(once)


class Transformers(Engine):
    """Transformers in bfloat16 on a model of the file's shape; random weights, since they do not matter to speed."""

    label = "transformers bf16"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._torch = torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        torch.set_num_threads(threads)
        with llama2cpp.load(path) as model:
            c = model.config
        self._vocab_size = c.vocab_size
        config = transformers.LlamaConfig(
            hidden_size=c.dim, intermediate_size=c.hidden_dim, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim,
            vocab_size=c.vocab_size, max_position_embeddings=context, tie_word_embeddings=c.tied,
        )  # fmt: skip
        torch.set_default_dtype(torch.bfloat16)
        self._model = transformers.LlamaForCausalLM(config).eval()

    def _feed(self, ids: list[int], cache: Any) -> Any:
        with self._torch.inference_mode():
            tokens = self._torch.tensor([ids])
            return self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def decode(self, depth: int, steps: int) -> float:
        ids = bench.prompt_ids(depth + steps, self._vocab_size)
        cache = self._feed(ids[:depth], None)
        started = time.perf_counter()
        for token in ids[depth:]:
            cache = self._feed([token], cache)
        return steps / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float | None:
        ids = bench.prompt_ids(tokens, self._vocab_size)
        return tokens / bench.seconds_of(lambda: self._feed(ids, None))


class OpenVino(Engine):
    """OpenVINO GenAI, which reads GGUF files; its own counters of time."""

    label = "OpenVINO GenAI"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._genai = importlib.import_module("openvino_genai")
        self._numpy = importlib.import_module("numpy")
        self._openvino = importlib.import_module("openvino")
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # or a prompt is computed once only
        scheduler.cache_size = 1  # gigabytes, of keys and values
        scheduler.max_num_batched_tokens = context
        self._pipeline = self._genai.LLMPipeline(
            str(path), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )
        with llama2cpp.load(path) as model:
            self._vocab_size = model.config.vocab_size

    def _generate(self, ids: list[int], new: int) -> Any:
        array = self._numpy.array([ids], self._numpy.int64)
        tokens = self._openvino.Tensor(array)
        mask = self._openvino.Tensor(self._numpy.ones_like(array))
        inputs = self._genai.TokenizedInputs(tokens, mask)
        config = self._genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        return self._pipeline.generate(inputs, config).perf_metrics

    def decode(self, depth: int, steps: int) -> float:
        ids = bench.prompt_ids(depth, self._vocab_size)
        return 1000.0 / float(self._generate(ids, steps + 1).get_tpot().mean)

    def prefill(self, tokens: int) -> float | None:
        ids = bench.prompt_ids(tokens, self._vocab_size)
        return tokens / bench.seconds_of(lambda: self._generate(ids, 1))


class Llama2c(Engine):
    """llama2.c's run or runq, whose path is in the environment; started anew for each measurement, it times itself."""

    label = "llama2.c"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._command = [os.environ["LLAMA2C"], str(path), "-z", os.environ["LLAMA2C_TOKENIZER"], "-t", "0"]
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def first(self) -> None:
        pass

    def decode(self, depth: int, steps: int) -> float:
        command = [*self._command, "-n", str(depth + steps)]
        told = subprocess.run(command, capture_output=True, check=True, env=self._environment).stderr.decode()
        found = re.search(r"achieved tok/s: ([\d.]+)", told)
        if found is None:
            raise RuntimeError(f"{command[0]} told no speed: {told!r}")
        return float(found[1])

    def prefill(self, tokens: int) -> float | None:
        return None


ENGINES: dict[str, type[Engine]] = {
    "llama2cpp": Ours,
    "llama_cpp": LlamaCpp,
    "transformers": Transformers,
    "openvino_genai": OpenVino,
    "llama2c": Llama2c,
}


def peak_memory() -> int | None:
    """Get the most memory that this process has had, file pages included, where the system tells."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    return None


@contextlib.contextmanager
def quiet_stdout() -> Iterator[Any]:
    """Give the real standard output, and send what libraries print there to nowhere."""
    real = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as nowhere:
        os.dup2(nowhere.fileno(), 1)
        yield real


def main() -> None:
    name, file, threads, context = sys.argv[1:]
    with quiet_stdout() as answers:

        def answer(value: object) -> None:
            answers.write(json.dumps(value) + "\n")
            answers.flush()

        started = time.perf_counter()
        engine = ENGINES[name](Path(file), int(threads), int(context))
        opened = time.perf_counter() - started
        engine.first()
        answer({"open": opened, "first": time.perf_counter() - started})
        for line in sys.stdin:
            what, *arguments = json.loads(line)
            if what == "decode":
                answer(engine.decode(*arguments))
            elif what == "prefill":
                answer(engine.prefill(*arguments))
            else:
                answer(peak_memory())


if __name__ == "__main__":
    main()
