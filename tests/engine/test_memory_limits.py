"""What does not fit is refused before it is taken, and the message has both numbers: needed and available."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SUPPORT

import llama2cpp
from llama2cpp import _core

# A model with large logits, keys and values and MLP, whose process may take 300 MB more.
PREPARE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {support!r})
import numpy as np
import llama2cpp, tiny
from llama2cpp import _core

model = tiny.model(tiny.config(vocab_size=40000, hidden_dim=4000, seq_len=20000), threads=1)
session = model.session()
session.prefill([1, 2, 3])
before = session.fork().prefill([4, 5]).tobytes()
long = [1] * 15000
_, cache = model.run_with_cache(long[:300], names_filter=lambda name: "hook_post" in name or "resid" in name)
large = np.broadcast_to(np.float32(1), (1, 1 << 20, model.config.dim))
streams = [f"blocks.{{i}}.hook_resid_{{at}}" for i in range(2) for at in ("pre", "post")]
many = llama2cpp.ActivationCache(dict.fromkeys(streams, large), model)

def used(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

limit, line = {limit!r}
resource.setrlimit(getattr(resource, limit), (used(line) + (300 << 20),) * 2)
left = _core.available_memory()
assert 200 << 20 < left <= 300 << 20, left

def refused(what, call):
    try:
        call()
    except MemoryError as error:
        print(what, "|", error)
    else:
        print(what, "| it was done")

refused("all logits", lambda: session.prefill([1] * 5000, all_logits=True))
refused("one pass", lambda: model.run_with_hooks(long, fwd_hooks=[("resid_post0", lambda a, hook: a * 2)]))
refused("run_with_cache", lambda: model.run_with_cache(long[:9000]))
refused("context", lambda: model.session(context=2**40))
refused("absurd context", lambda: model.session(context=2**62))
refused("neurons", lambda: cache.stack_neuron_results(-1))
refused("lens", lambda: llama2cpp.logit_lens(cache, positions=None, incl_mid=True))
refused("activations of all layers", lambda: many.accumulated_resid())
files = [Path({folder!r}) / name for name in ("a.npz", "a.safetensors", "model.gguf")]
for path in files:
    with path.open("wb") as file:
        file.truncate(1 << 30)  # of zeros, which lie nowhere
refused("an npz", lambda: llama2cpp.ActivationCache.load(files[0]))
refused("safetensors", lambda: llama2cpp.ActivationCache.load(files[1]))
refused("a file not to be mapped", lambda: llama2cpp.load(files[2], mmap=False))
assert session.tokens == [1, 2, 3]
assert session.prefill([4, 5]).tobytes() == before
print("as before")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process as Linux has them")
@pytest.mark.parametrize("limit", [("RLIMIT_AS", "VmSize:"), ("RLIMIT_DATA", "VmData:")], ids=["address space", "data"])
def test_a_limited_process_refuses_with_both_numbers(limit: tuple[str, str], tmp_path: Path) -> None:
    script = PREPARE.format(support=str(SUPPORT), limit=limit, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.pop() == "as before"
    assert len(lines) == 11
    for line in lines:
        print(line)
        assert re.search(r"needs [\d.]+ GB.*, and 0\.[23]\d\d GB (of memory )?are available: ", line), line


@pytest.mark.parametrize("context", [2**40, 2**50, 2**62, 2**63 - 1])
def test_a_context_without_addresses_is_a_memory_error(stories: llama2cpp.Model, context: int) -> None:
    with pytest.raises(
        MemoryError, match=rf"a context of {context} tokens needs \d+ GB .*, and .* GB .*smaller context"
    ):
        stories.session(context=context)


def test_what_is_asked_for_is_compared_with_what_there_is() -> None:
    assert _core.available_memory() > 0
    _core.need_memory(1.0, "a byte", "")
    with pytest.raises(MemoryError, match=r"^a wish needs \d+ GB, and [\d.]+ GB are available: wish less$"):
        _core.need_memory(1e18, "a wish", "wish less")
