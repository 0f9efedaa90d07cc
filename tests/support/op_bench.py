"""What the tests of the ops share: finding llama2cpp_ops, the software device's modes, operands, and largest errors.

Errors are counted in u = 2^-24 times what the op adds up, and the bounds are derived from the order of operations, not
tuned: products within 2 u sum|w||x| a few rows at a time and 8 u in tiles, which is far below what a rounding to f16
(1,700 u) or one lost number costs. On the software device each example runs in another order of threads and of
threadgroups, with products and sums fused or not, with denormals kept or flushed.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

U = 2.0**-24  # half a unit in the last place of a float between 1 and 2
TINY = 2.0**-126  # the least normal float: what is below may be flushed to 0

EXAMPLES = int(os.environ.get("LLAMA2CPP_OP_EXAMPLES", "8"))
COST = 400_000  # products that one example may ask for
# A planted fault need not be made small, and its kernel is compiled in one way only.
MUTATION = "LLAMA2CPP_OP_MUTATION" in os.environ
PHASES = [Phase.generate] if MUTATION else [Phase.reuse, Phase.generate, Phase.shrink]
few = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
many = settings(few, max_examples=3 * EXAMPLES)


def find_ops() -> Any:
    """Find the module: where LLAMA2CPP_OPS says, and there it must be; or in the build folder that holds _core.

    Else skip.
    """
    named = os.environ.get("LLAMA2CPP_OPS")
    core = importlib.import_module("llama2cpp._core").__file__
    assert core is not None
    folder = Path(named) if named else Path(core).resolve().parent
    if named is None and not list(folder.glob("llama2cpp_ops.*")):
        pytest.skip("llama2cpp_ops is not built (cmake -DLLAMA2CPP_TESTS=ON, and _core in its build folder)")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module("llama2cpp_ops")


@dataclasses.dataclass(frozen=True)
class Mode:
    """How the software device runs kernels; on a GPU there is one mode, its own."""

    threads: str = "forward"
    simdgroups: str = "forward"
    groups: str = "forward"
    contract: str = "off"
    ftz: str = "off"

    def options(self, seed: int = 1) -> str:
        orders = f"threads={self.threads},simdgroups={self.simdgroups},groups={self.groups}"
        return f"page=4k,{orders},contract={self.contract},ftz={self.ftz},seed={seed}"


ORDERS = ("forward", "reverse", "shuffled")
# Every two of the orders of threads, of simdgroups and of groups, with every way to round.
MODES = [
    Mode(ORDERS[threads], ORDERS[(threads - groups) % 3], ORDERS[groups], *rounding)
    for threads, groups in itertools.product(range(3), range(3))
    for rounding in itertools.product(("off",) if MUTATION else ("off", "on"), ("off", "on"))
]


# Every two orders still; each order of each with three ways to round.
FEW_MODES = [mode for i, mode in enumerate(MODES) if i % 4 == (i // 12 + i // 4) % 3 + 1]


class Bench:
    """Backends of one kind, made once for each mode that they must be made in."""

    def __init__(self, ops: Any, kind: str) -> None:
        self.ops = ops
        self.kind = kind
        self.soft = kind == "metal" and ops.has_soft_device
        self.modes = (MODES if EXAMPLES >= 8 else FEW_MODES) if self.soft else [Mode()]
        self.made: dict[tuple[str, str], Any] = {}

    def backend(self, mode: Mode, seed: int = 1) -> Any:
        if self.soft:
            self.ops.soft.set_options(mode.options(seed))
        key = (mode.contract, mode.ftz)  # kernels are compiled with them
        if key not in self.made:
            self.made[key] = self.ops.Backend(self.kind)
        return self.made[key]


GUARD = {4: 0x7FC0ABCD, 2: 0x7EAB}  # bits of NaNs, by the bytes of a number


class Operand:
    """An array in memory of the backend's: rows with gaps between them, behind some numbers and before others, all of
    which are NaNs of one pattern, which no op may read or change."""

    def __init__(
        self, backend: Any, values: NDArray[Any], *, offset: int = 0, gap: int = 0, reserved: bool = False
    ) -> None:
        values = np.asarray(values)
        *outer, n = values.shape
        rows = int(np.prod(outer)) if outer else 1
        gap = gap if outer else 0
        self.memory: NDArray[Any] = backend.array(
            [offset + max(rows * (n + gap), 1) + 5], values.dtype.str[1:], reserved=reserved
        )
        self.bits = self.memory.view(f"u{values.itemsize}")
        self.bits[...] = GUARD[values.itemsize]
        whole = self.memory[offset : offset + rows * (n + gap)].reshape(*outer, n + gap)
        self.view: NDArray[Any] = whole[..., :n]
        mask = np.ones(self.memory.shape, bool)
        mask[offset : offset + rows * (n + gap)].reshape(*outer, n + gap)[..., :n] = False
        self.outside = mask
        self.view[...] = values

    def check(self, name: str) -> None:
        guard = GUARD[self.memory.itemsize]
        touched = np.flatnonzero((self.bits != guard) & self.outside)
        assert not touched.size, f"{name}: numbers outside of the operand were written, the first at {touched[0]}"


@dataclasses.dataclass
class Scene:
    """How one example runs, and its numbers."""

    mode: Mode
    seed: int
    numbers: str

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def backend(self, bench: Bench) -> Any:
        return bench.backend(self.mode if bench.soft else Mode(), self.seed % 1000)

    def values(self, *shape: int) -> Floats:
        x = self.rng.standard_normal(shape)
        if self.numbers == "zeros":
            x = np.where(self.rng.random(shape) < 0.5, self.rng.choice([0.0, -0.0, 1.0], shape), x)
        if self.numbers == "wide":
            x = np.ldexp(x, self.rng.integers(-40, 20, shape))
        return x.astype(np.float32)

    def layout(self) -> dict[str, int]:
        """Where an operand begins, and how far its rows are apart."""
        return {"offset": int(self.rng.choice([0, 0, 1, 2, 3, 4, 7])), "gap": int(self.rng.choice([0, 0, 1, 3, 8]))}

    def operand(self, backend: Any, values: NDArray[Any], **layout: Any) -> Operand:
        return Operand(backend, values, **(layout or self.layout()))

    def empty(self, backend: Any, *shape: int) -> Operand:
        return self.operand(backend, np.full(shape, np.nan, np.float32))


tokens = st.one_of(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 65, 70]), st.integers(1, 70))
scenes = st.builds(
    Scene, st.sampled_from(MODES), st.integers(0, 2**32 - 1), st.sampled_from(["ordinary", "ordinary", "zeros", "wide"])
)


@dataclasses.dataclass
class Largest:
    error: float = 0.0
    bound: float = 0.0
    cases: int = 0
    unit: str = ""


# (op, format) -> the largest error so far; written to the file that LLAMA2CPP_OPS_TABLE names
TABLE: dict[tuple[str, str], Largest] = {}


def within(
    op: str, kind: str, got: NDArray[Any], exact: Doubles, unit: Doubles, bound: float, what: str, slack: Any = 0.0
) -> None:
    """Check |got - exact| <= bound * unit + slack, of finite numbers, and note the largest error in units.

    `unit` is an array like `exact`: u * sum |w| |x| for products; `what` says so.
    """
    assert got.shape == exact.shape
    assert np.all(np.isfinite(got)), f"{op} {kind}: {np.count_nonzero(~np.isfinite(got))} of {got.size} are not finite"
    error = np.maximum(np.abs(got.astype(np.float64) - exact) - slack, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        units = np.where(error == 0, 0.0, error / unit)
    largest = TABLE.setdefault((op, kind), Largest(unit=what))
    largest.cases += 1
    if not units.size:
        return
    at = np.unravel_index(int(np.argmax(units)), units.shape)
    largest.error = max(largest.error, float(units[at]))
    largest.bound = max(largest.bound, bound)
    assert units[at] <= bound, (
        f"{op} {kind}: at {[int(i) for i in at]} of {list(got.shape)} it is {got[at]}, expected {exact[at]}: "
        f"{units[at]:.3g} times {what}, allowed {bound:.3g}; {np.count_nonzero(units > bound)} are too far off"
    )


def same_bits(op: str, kind: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Check equal bits, and note that."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    a, b = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    different = np.flatnonzero((a.view(f"u{a.itemsize}") != b.view(f"u{a.itemsize}")).reshape(-1))
    TABLE.setdefault((op, kind), Largest(unit="equal bits")).cases += 1
    assert not different.size, (
        f"{op} {kind}: {different.size} of {got.size} numbers differ, the first at {different[0]}: "
        f"{a.reshape(-1)[different[0]]}, expected {b.reshape(-1)[different[0]]}"
    )


def write_table() -> None:
    path = os.environ.get("LLAMA2CPP_OPS_TABLE")
    if path is None or not TABLE:
        return
    rows = [[*key, *dataclasses.astuple(largest)] for key, largest in TABLE.items()]
    Path(path).write_text(json.dumps(rows), encoding="utf-8")


def main() -> None:
    """Print the table that LLAMA2CPP_OPS_TABLE named, or with --line what it amounts to."""
    path = Path(sys.argv[-1])
    rows = json.loads(path.read_text(encoding="utf-8"))
    metal = [row for row in rows if row[0].startswith("metal ")]
    assert metal, "no op ran on Metal"
    wrong = [row for row in metal if not row[2] <= row[3]]
    assert not wrong, f"beyond their bounds: {wrong}"
    if "--line" in sys.argv:
        formats = {row[1] for row in metal if row[0].startswith("metal matmul")}
        kernels = list(Path(__file__).parents[2].glob("src/cpp/backend/metal/kernels/formats/*.metal"))
        assert len(formats) >= len(kernels) > 0, (
            f"products ran in {sorted(formats)}, and there are {len(kernels)} kernels"
        )
        print(f"{sum(row[4] for row in metal)} op cases, {len(formats)} formats")
        return
    for op, kind, error, bound, cases, unit in sorted(metal):
        largest = unit if unit == "equal bits" else f"at most {error:.2f} of {bound:.1f} {unit}"
        print(f"{op.removeprefix('metal '):<24} {kind:<11} {cases:>5} cases  {largest}")


if __name__ == "__main__":
    main()
