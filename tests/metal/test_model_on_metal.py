"""A model on Metal, which here is the software device, does all that it does on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import checkpoints
import expert_models
import numpy as np
import panel_sources
import pytest
import tiny
from conftest import SUPPORT
from numpy.typing import ArrayLike

import llama2cpp
from llama2cpp import Model
from llama2cpp.export import convert

pytestmark = pytest.mark.skipif("metal" not in llama2cpp.build_info()["backends"], reason="no Metal in this build")

IDS = [1, 403, 407, 261, 378, 31, 44]


def near(found: ArrayLike, expected: ArrayLike, kv_dtype: str = "f32") -> bool:
    """Within a few rounding errors of the largest: the two sum in different orders. One of f16 may be among them."""
    a, b = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    most = 1e-3 if kv_dtype == "f16" else 4e-6
    return a.shape == b.shape and bool(np.abs(a - b).max() <= most * max(1.0, float(np.abs(b).max())))


class Pair(NamedTuple):
    """The same file on the CPU and on Metal, with keys and values of one type."""

    cpu: Model
    metal: Model

    def near(self, found: ArrayLike, expected: ArrayLike) -> bool:
        return near(found, expected, self.metal.kv_dtype)


@pytest.fixture(scope="module", params=["f32", "f16"])
def pair(request: pytest.FixtureRequest, models_dir: Path) -> Iterator[Pair]:
    path = models_dir / "stories260K" / "stories260K.bin"
    tokenizer = models_dir / "stories260K" / "tok512.bin"
    cpu, metal = (
        llama2cpp.load(path, tokenizer=tokenizer, backend=backend, activation_dtype="f32", kv_dtype=request.param)
        for backend in ("cpu", "metal")
    )
    assert (metal.backend, metal.isa, metal.threads) == ("metal", "apple7", 1)
    yield Pair(cpu, metal)
    metal.close()


def test_greedy_text_is_the_cpus(pair: Pair) -> None:
    cpu, metal = pair
    texts = [str(model.generate("Once upon a time", max_tokens=24, temperature=0)) for model in (cpu, metal)]
    assert texts[0] == texts[1]


def test_an_engines_texts_logits_scores_and_vectors_are_the_cpus(pair: Pair) -> None:
    cpu, metal = pair
    prompts = ["Once upon a time", "The dog", "A girl named"]
    logits = []
    with llama2cpp.Engine(metal) as engine:
        alone = engine.submit(prompts[0], max_tokens=0, logits="all")  # in one pass, which has no other row
        alone.result(300)
        assert alone.logits is not None
        assert pair.near(alone.logits, cpu.session().prefill(prompts[0], all_logits=True))
        requests = [engine.submit(text, max_tokens=6, temperature=0, logits="all") for text in prompts]
        for request, text in zip(requests, prompts, strict=True):
            assert request.result(300).text == cpu.generate(text, max_tokens=6, temperature=0)
            logits.append(request.logits)
    for found, text in zip(logits, prompts, strict=True):
        assert found is not None
        assert pair.near(found, cpu.session().prefill(text, all_logits=True))
    scores = [model.score("Once upon", [" a time", " the"]) for model in (metal, cpu)]
    assert pair.near([score.logprob for score in scores[0]], [score.logprob for score in scores[1]])
    assert pair.near(metal.embed(prompts), cpu.embed(prompts))


def test_a_prompt_then_steps_then_a_fork_a_rewind_and_a_file(pair: Pair, tmp_path: Path) -> None:
    cpu, metal = pair
    a, b = cpu.session(), metal.session()
    assert pair.near(b.prefill(IDS, all_logits=True), a.prefill(IDS, all_logits=True))
    for token in (5, 17):
        assert pair.near(b.step(token), a.step(token))
    assert pair.near(b.fork().step(9), a.fork().step(9))
    b.save(tmp_path / "session")
    assert pair.near(metal.load_session(tmp_path / "session").step(9), a.fork().step(9))
    for session in (a, b):
        session.rewind(4)
    assert pair.near(b.step(3), a.step(3))


def test_keys_and_values_are_views_and_an_edit_counts(pair: Pair) -> None:
    cpu, metal = pair
    sessions = [model.session() for model in (cpu, metal)]
    for session in sessions:
        session.prefill(IDS)
        for layer in range(2):
            session.kv.keys(layer)[:, 2] = 0.25
            session.kv.values(layer)[:, 3] *= 2
    a, b = sessions
    assert pair.near(b.kv.keys(1), a.kv.keys(1))
    assert pair.near(b.kv.values(1), a.kv.values(1))
    assert pair.near(b.step(8), a.step(8))


def test_sessions_in_one_pass(pair: Pair) -> None:
    cpu, metal = pair
    logits = []
    for model in (cpu, metal):
        first, second, third = (model.session() for _ in range(3))
        first.prefill(IDS)
        logits.append(model.forward([(first, [4]), (second, IDS[:3]), (third, IDS)]))
    for expected, found in zip(*logits, strict=True):
        assert pair.near(found, expected)


def test_every_activation_is_seen_and_can_be_changed(pair: Pair) -> None:
    cpu, metal = pair
    caches = [model.run_with_cache(IDS)[1] for model in pair]
    assert list(caches[0]) == list(caches[1])
    for name in caches[0]:
        a, b = np.asarray(caches[0][name]), np.asarray(caches[1][name])
        seen = np.isfinite(a)
        assert np.array_equal(seen, np.isfinite(b)), name
        assert pair.near(b[seen], a[seen]), name

    def change(activation: np.ndarray, hook: object) -> None:
        activation[..., 0] *= 0.5

    for place in ("attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_result", "hook_mlp_out", "ln1.hook_scale"):
        logits = [model.run_with_hooks(IDS, fwd_hooks=[("blocks.2." + place, change)]) for model in (cpu, metal)]
        assert pair.near(logits[1], logits[0]), place


def test_weights_from_memory_and_edited_ones(pair: Pair, models_dir: Path) -> None:
    path = models_dir / "stories260K" / "stories260K.bin"
    read = llama2cpp.load(path, backend="metal", mmap=False)
    expected = pair[0].session().prefill(IDS)
    if pair[0].kv_dtype == "f32":
        assert pair.near(read.session().prefill(IDS), expected)
    name = next(iter(pair[0].weights))
    change = {name: np.asarray(pair[0].weights[name]) * np.float32(0.5)}
    logits = [model.with_weights(change).session().prefill(IDS) for model in pair]
    assert pair.near(logits[1], logits[0])
    assert not pair.near(logits[1], expected)


def test_a_prompt_of_more_tokens_than_a_tile_has(models_dir: Path) -> None:
    path = models_dir / "stories260K" / "stories260K.bin"
    ids = [1 + i * 7 % 500 for i in range(70)]
    logits = [
        llama2cpp.load(path, backend=backend, activation_dtype="f32").session().prefill(ids)
        for backend in ("cpu", "metal")
    ]
    assert near(logits[1], logits[0])


def test_options_of_the_cpus_are_refused_by_name(models_dir: Path) -> None:
    path = models_dir / "stories260K" / "stories260K.bin"
    with pytest.raises(ValueError, match="activation_dtype is 'int8', but the metal backend multiplies floats only"):
        llama2cpp.load(path, backend="metal", activation_dtype="int8")
    with pytest.raises(ValueError, match="activation_dtype is 'bf16', but the metal backend multiplies float32 only"):
        llama2cpp.load(path, backend="metal", activation_dtype="bf16")
    with pytest.raises(ValueError, match="pack is 'always', but the metal backend reads weights where they lie"):
        llama2cpp.load(path, backend="metal", pack="always")
    model = llama2cpp.load(path, backend="metal")
    dim = model.config.dim
    factors = {"model.layers.0.self_attn.o_proj": (np.ones((2, dim)), np.ones((dim, 2)))}
    with pytest.raises(ValueError, match=r"Adapter.from_arrays: the metal backend does not compute adapters"):
        llama2cpp.Adapter.from_arrays(model, factors)


REFUSED = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny

model = tiny.model(tiny.config(vocab_size=4000, hidden_dim=400, seq_len=20000), backend="metal")
session = model.session(context=2000)
session.prefill([1, 2, 3])
before = session.fork().prefill([4, 5]).tobytes()

def refused(call):
    try:
        call()
    except MemoryError as error:
        print(error)

refused(lambda: model.session(context=2**21))
refused(lambda: model.session(context=2**62))
refused(lambda: [model.session(context=2**19) for _ in range(10)])
refused(lambda: model.run_with_cache([1] * 15000))
refused(lambda: model.run_with_hooks([1] * 15000, fwd_hooks=[("attn_scores0", lambda activation, hook: None)]))
assert session.tokens == [1, 2, 3]
assert session.prefill([4, 5]).tobytes() == before
"""


def test_memory_that_the_gpu_does_not_have_is_refused_before_anything_is_computed() -> None:
    """Both numbers are told, and the session goes on as if nothing had been asked for."""
    told = subprocess.run(
        [sys.executable, "-c", REFUSED, SUPPORT],
        env=os.environ | {"LLAMA2CPP_SOFT_METAL": "memory=300m"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert len(lines) == 5
    assert re.match(r"a context of 2097152 tokens needs 0\.403 GB .*, and 0\.3\d\d GB .*: ask for a smaller", lines[0])
    for line in lines:
        assert re.search(r"needs [\d.]+ GB.*, and 0\.[0-3]\d\d GB (of memory )?are available: ask for ", line), line


def test_threads_are_the_cpus(models_dir: Path) -> None:
    path = models_dir / "stories260K" / "stories260K.bin"
    with pytest.raises(ValueError, match=r"threads is 2, but the metal backend computes on the GPU; leave it out, or"):
        llama2cpp.load(path, backend="metal", threads=2)
    model = llama2cpp.load(path, backend="cpu")
    with pytest.raises(ValueError, match="threads is 1, but the metal backend"):
        llama2cpp.from_arrays(model.config, dict(model.weights), backend="metal", threads=1)


def files_of_each_kind(folder: Path) -> dict[str, Path]:
    """A model as floats, as blocks, as llama2.c's int8, and as the CPU's panels."""
    config = tiny.config(dim=64, hidden_dim=96, n_heads=4, n_kv_heads=2)
    floats = tiny.write_v0(folder / "f32.bin", config, tiny.arrays(config))
    int8 = folder / "int8.bin"
    sizes = checkpoints.Sizes(32, 64, 2, 4, 2, 50, 32)
    int8.write_bytes(checkpoints.v2_bytes(sizes, checkpoints.random_arrays(sizes), 8))
    return {
        "f32": floats,
        "q8_0": convert(floats, folder / "q8_0.gguf", "q8_0").path,
        "int8": int8,
        "panels": convert(floats, folder / "panels.safetensors", "q8_0").path,
    }


def test_auto_takes_metal_where_all_can_be_done_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of_each_kind(tmp_path)
    monkeypatch.setenv("LLAMA2CPP_AUTO_METAL", "1")  # the software device is for tests that ask for it
    chosen = {kind: llama2cpp.load(path, backend="auto").backend for kind, path in files.items()}
    assert chosen == {"f32": "metal", "q8_0": "metal", "int8": "cpu", "panels": "cpu"}
    assert llama2cpp.load(files["int8"], backend="auto", activation_dtype="f32").backend == "metal"
    for option in ({"threads": 2}, {"activation_dtype": "int8"}, {"pack": "always"}):
        assert llama2cpp.load(files["q8_0"], backend="auto", **option).backend == "cpu"
    monkeypatch.delenv("LLAMA2CPP_AUTO_METAL")
    assert llama2cpp.load(files["f32"], backend="auto").backend == ("metal" if sys.platform == "darwin" else "cpu")


WRITTEN = [
    *(("f32", "m.gguf", format) for format in ("f32", "q8_0", "q4_k_m")),
    *(("f32", "m", format) for format in ("f32", "llm_int8")),
    *(("f32", "m.bin", format) for format in ("f32", "v1", "int8")),
    *(("f32", "m.safetensors", format) for format in ("f32", "q8_0")),
    ("q8_0", "m.safetensors", None),
]


@pytest.mark.parametrize(("source", "name", "format"), WRITTEN)
def test_exports_are_the_bytes_of_the_cpus(source: str, name: str, format: str | None, tmp_path: Path) -> None:
    path = files_of_each_kind(tmp_path)[source]
    written = []
    for backend in ("cpu", "metal"):
        (tmp_path / backend).mkdir()
        done = convert(llama2cpp.load(path, backend=backend), tmp_path / backend / name, format, tokenizer=False).path
        files = [done] if done.is_file() else [file for file in sorted(done.iterdir()) if file.name != "README.md"]
        written.append([(file.name, file.read_bytes()) for file in files])
    assert written[0] == written[1]


def test_weights_without_kernels_are_refused_by_name(tmp_path: Path) -> None:
    files = files_of_each_kind(tmp_path)
    with pytest.raises(llama2cpp.FormatError, match=r"tensor '.*panels, which are made for the CPU; use backend='cpu'"):
        llama2cpp.load(files["panels"], backend="metal")
    llm_int8 = panel_sources.llm_int8(tmp_path)
    with pytest.raises(llama2cpp.FormatError, match=r"tensor '.*llm_int8; use backend='cpu'"):
        llama2cpp.load(llm_int8, backend="metal")


def test_experts_are_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expert_models.made("olmoe").save_pretrained(tmp_path)
    with pytest.raises(llama2cpp.FormatError, match=r"experts \(n_experts 5\), which the metal .*; use backend='cpu'"):
        llama2cpp.load(tmp_path, backend="metal")
    monkeypatch.setenv("LLAMA2CPP_AUTO_METAL", "1")
    assert llama2cpp.load(tmp_path, backend="auto").backend == "cpu"


def test_kernels_that_do_not_compile_are_found_when_a_model_is_opened(tmp_path: Path) -> None:
    """With "auto" the model is the CPU's; and one that does not need them stays on Metal."""
    files = files_of_each_kind(tmp_path)
    code = (
        "import sys, llama2cpp\n"
        "print(*[llama2cpp.load(path).backend for path in sys.argv[1:]])\n"
        "llama2cpp.load(sys.argv[1], backend='metal')"
    )
    knobs = {"LLAMA2CPP_AUTO_METAL": "1", "LLAMA2CPP_SOFT_METAL": "refuse=q8_0"}
    command = [sys.executable, "-c", code, str(files["q8_0"]), str(files["f32"])]
    told = subprocess.run(command, env=os.environ | knobs, capture_output=True, text=True, timeout=120)
    assert told.stdout == "cpu metal\n"
    assert re.search(
        r"FormatError: tensor '.*': compiling the kernels of 'q8_0': .*error: refused; use backend='cpu'\n$",
        told.stderr,
    )
    knobs["LLAMA2CPP_SOFT_METAL"] = "refuse=attention"  # which all models need
    told = subprocess.run(command, env=os.environ | knobs, capture_output=True, text=True, timeout=120)
    assert told.stdout == "cpu cpu\n"
    assert re.search(
        r"ValueError: backend is 'metal', but compiling the kernels of 'attention': .*error: refused; use 'cpu'\n$",
        told.stderr,
    )


def test_a_session_of_rounded_activations_is_the_cpus(tmp_path: Path) -> None:
    path = files_of_each_kind(tmp_path)["q8_0"]
    cpu, metal = (llama2cpp.load(path, backend=backend) for backend in ("cpu", "metal"))
    assert (cpu.activation_dtype, metal.activation_dtype) == ("int8", "f32")
    session = cpu.session()
    session.prefill([3, 4])
    session.save(tmp_path / "session")
    with pytest.raises(ValueError, match="int8"):
        metal.load_session(tmp_path / "session")
    floats = llama2cpp.load(path, backend="cpu", activation_dtype="f32").session()
    floats.prefill([3, 4])
    floats.save(tmp_path / "floats")
    assert near(metal.load_session(tmp_path / "floats").step(5), floats.step(5), "f16")


def in_a_fork(model: Model) -> str:
    """What a forked child hears that goes on with its parent's model."""
    try:
        model.session()
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_a_forked_child_is_told_to_be_spawned(pair: Pair) -> None:
    _, metal = pair
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, in_a_fork(metal).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert "spawn" in answer.read()
    os.waitpid(child, 0)
    assert pair.near(metal.session().prefill(IDS), pair[0].session().prefill(IDS))


def test_a_fork_of_a_process_with_metal_gets_the_cpu(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of its own would end it on macOS."""
    path = pair[1].path
    monkeypatch.setenv("LLAMA2CPP_AUTO_METAL", "1")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = [str(llama2cpp.build_info().get("no_metal")), llama2cpp.load(path, backend="auto").backend]
            try:
                llama2cpp.load(path, backend="metal")
            except ValueError as error:
                told.append(str(error))
            os.write(write, "\n".join(told).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        reason, backend, refusal = answer.read().split("\n")
    os.waitpid(child, 0)
    assert "a fork of one that has used Metal" in reason
    assert backend == "cpu"
    assert refusal == f"backend is 'metal', but {reason}; use 'cpu'"
    assert llama2cpp.load(path, backend="auto").backend == "metal"


def open_and_step(path: str) -> int:
    """In a process of its own."""
    return int(np.argmax(llama2cpp.load(path, backend="metal").session().prefill(IDS)))


def test_a_spawned_process_opens_its_own(models_dir: Path) -> None:
    path = models_dir / "stories260K" / "stories260K.bin"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(open_and_step, (str(path),))
    assert found == int(np.argmax(llama2cpp.load(path, activation_dtype="f32").session().prefill(IDS)))


def test_ctrl_c_ends_a_long_pass_and_the_session_stays(pair: Pair) -> None:
    _, metal = pair
    session = metal.session()
    session.prefill(IDS)
    before = session.tokens

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            session.prefill([3] * 500)  # half a minute
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert session.tokens == before  # it had not come to its end
    assert pair.near(session.step(5), pair.cpu.session().prefill([*IDS, 5]))


def test_an_exception_in_a_hook_leaves_the_session_where_it_was(pair: Pair) -> None:
    _, metal = pair
    session = metal.session()
    session.prefill(IDS)

    def fail(activation: np.ndarray, hook: object) -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"), session.hooks([("blocks.2.hook_mlp_out", fail)]):
        session.step(5)
    assert session.position == len(IDS)
    assert pair.near(session.step(5), pair[1].session().prefill([*IDS, 5]))
