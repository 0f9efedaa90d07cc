"""Engines to be measured, each in a process of its own that waits for its turn: see compare.py.

    python tests/bench/engines.py NAME FILE THREADS CONTEXT [ACTIVATIONS]

reads requests from standard input, one JSON list in a line, and answers each with one JSON value:

    ["decode", depth, steps]           tokens a second of steps of one token each, after a prompt of `depth` tokens
    ["pass", depth, rows, passes]      tokens a second of passes of `rows` tokens each, after so many
    ["prefill", tokens]                tokens a second of a prompt
    ["memory"]                         the most memory that the process has had, in bytes

The answer is null where the engine cannot.

The first line of its output says how it was opened: seconds until the file is open and until the first token is there.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama2cpp


def _this_tree(path: str) -> Any:
    """A file of this tree, whichever build of the package is installed."""
    file = Path(__file__).parents[2] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


speeds = _this_tree("src/llama2cpp/command/speeds.py")


class Engine:
    """What measures one file with one number of threads. Activations are this engine's `activation_dtype`."""

    label: str

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
        raise NotImplementedError

    def first(self) -> None:
        """Make the first token's logits."""
        self.prefill(1)

    def decode(self, depth: int, steps: int) -> float:
        raise NotImplementedError

    def passes(self, depth: int, rows: int, passes: int) -> float | None:
        """None where there is no such call."""
        return None

    def prefill(self, tokens: int) -> float | None:
        raise NotImplementedError


class Ours(Engine):
    label = "llama2cpp"

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
        # Older builds have not that word.
        words: dict[str, Any] = {} if activations == "auto" else {"activation_dtype": activations}
        model = llama2cpp.load(path, threads=threads, context=context, **words)
        self._vocab_size = model.config.vocab_size
        self._session = model.session()

    def first(self) -> None:
        self._session.step(1)

    def decode(self, depth: int, steps: int) -> float:
        return float(speeds.decode_speed(self._session, depth, steps, self._vocab_size))

    def passes(self, depth: int, rows: int, passes: int) -> float | None:
        return float(speeds.pass_speed(self._session, depth, rows, passes, self._vocab_size))

    def prefill(self, tokens: int) -> float | None:
        return float(speeds.prefill_speed(self._session, tokens, self._vocab_size))


class Baseline(Ours):
    """Another build of this package, in an environment of its own."""

    label = "baseline"


class LlamaCpp(Engine):
    """llama.cpp by llama-cpp-python, its C functions called directly, so that no Python but the loop is measured."""

    label = "llama.cpp"

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
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
        return self.passes(depth, 1, steps)

    def passes(self, depth: int, rows: int, passes: int) -> float:
        ids = speeds.prompt_ids(depth + rows * passes, self._vocab_size)
        self._clear()
        self._feed(ids[:depth])
        started = time.perf_counter()
        for at in range(depth, len(ids), rows):
            self._feed(ids[at : at + rows])
        return rows * passes / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float | None:
        ids = speeds.prompt_ids(tokens, self._vocab_size)

        def once() -> None:
            self._clear()
            self._feed(ids)

        return tokens / float(speeds.seconds_of(once))


class Transformers(Engine):
    """Transformers in bfloat16 on a model of the file's shape; random weights, since they do not matter to speed."""

    label = "transformers bf16"

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
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
        return self.passes(depth, 1, steps)

    def passes(self, depth: int, rows: int, passes: int) -> float:
        ids = speeds.prompt_ids(depth + rows * passes, self._vocab_size)
        cache = self._feed(ids[:depth], None)
        started = time.perf_counter()
        for at in range(depth, len(ids), rows):
            cache = self._feed(ids[at : at + rows], cache)
        return rows * passes / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float | None:
        ids = speeds.prompt_ids(tokens, self._vocab_size)
        return tokens / float(speeds.seconds_of(lambda: self._feed(ids, None)))


class OpenVino(Engine):
    """OpenVINO GenAI, which reads GGUF files; its own counters of time."""

    label = "OpenVINO GenAI"

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
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
        ids = speeds.prompt_ids(depth, self._vocab_size)
        return 1000.0 / float(self._generate(ids, steps + 1).get_tpot().mean)

    def prefill(self, tokens: int) -> float | None:
        ids = speeds.prompt_ids(tokens, self._vocab_size)
        return tokens / float(speeds.seconds_of(lambda: self._generate(ids, 1)))


class Llama2c(Engine):
    """llama2.c's run or runq, whose path is in the environment; started anew for each measurement, it times itself."""

    label = "llama2.c"

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
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


class IkLlamaCpp(Engine):
    """ik_llama.cpp's llama-bench, whose path is in the environment; started anew for each measurement, it times itself.

    The better of its two ways is taken: weights as they are, and repacked as they are read (-rtr).
    """

    label = "ik_llama.cpp"

    def __init__(self, path: Path, threads: int, context: int, activations: str) -> None:
        self._command = [os.environ["IK_LLAMA_BENCH"], "-m", str(path), "-t", str(threads), "-r", "3", "-o", "json"]

    def first(self) -> None:
        pass

    def _measure(self, *options: str) -> float:
        return max(self._measure_one(*options, "-rtr", repack) for repack in "01")

    def _measure_one(self, *options: str) -> float:
        told = subprocess.run([*self._command, *options], capture_output=True, check=False, text=True)
        if told.returncode != 0:
            raise RuntimeError(f"{self._command[0]}: {next(reversed(told.stderr.strip().splitlines()), 'it failed')}")
        return ik_speed(told.stdout)

    def decode(self, depth: int, steps: int) -> float:
        return self._measure("-p", "0", "-n", "0", "-gp", f"{depth},{steps}")

    def prefill(self, tokens: int) -> float | None:
        return self._measure("-p", str(tokens), "-n", "0")


def ik_speed(told: str) -> float:
    """Get tokens a second out of what llama-bench tells with ``-o json``: one test, the median of its repetitions."""
    begin = told.find("[\n")  # before it other lines may stand
    tests = json.loads(told[begin:]) if begin >= 0 else []
    if len(tests) != 1 or not tests[0].get("samples_ts"):
        raise RuntimeError(f"llama-bench told no speed: {told[:200]!r}")
    return statistics.median(map(float, tests[0]["samples_ts"]))


ENGINES: dict[str, type[Engine]] = {
    "llama2cpp": Ours,
    "llama_cpp": LlamaCpp,
    "transformers": Transformers,
    "openvino_genai": OpenVino,
    "llama2c": Llama2c,
    "ik_llama": IkLlamaCpp,
    "baseline": Baseline,
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
    name, file, threads, context, activations = [*sys.argv[1:], "auto"][:5]
    with quiet_stdout() as answers:

        def answer(value: object) -> None:
            answers.write(json.dumps(value) + "\n")
            answers.flush()

        started = time.perf_counter()
        engine = ENGINES[name](Path(file), int(threads), int(context), activations)
        opened = time.perf_counter() - started
        engine.first()
        answer({"open": opened, "first": time.perf_counter() - started})
        for line in sys.stdin:
            what, *arguments = json.loads(line)
            if what == "decode":
                answer(engine.decode(*arguments))
            elif what == "pass":
                answer(engine.passes(*arguments))
            elif what == "prefill":
                answer(engine.prefill(*arguments))
            else:
                answer(peak_memory())


if __name__ == "__main__":
    main()
