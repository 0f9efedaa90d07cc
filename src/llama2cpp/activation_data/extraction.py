"""What `Model.extract` does: texts in, files of rows out, so that a run that was killed can go on.

A folder has a manifest, which says what is in it, and files of rows (`shards.py`) that each appear when they are
complete. Where a file ends depends on the texts alone, so a run that goes on writes what one that was never killed
would have written, byte for byte. The file that is being filled is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError
from ..adapters import Adapter, check_adapter
from ..common.byte_sizes import parse_size
from ..common.new_files import write_file
from ..common.token_ids import Prompt
from ..inside.places import Names
from .passes import Array, Passes, Texts, chosen_places, mean_row
from .shards import DTYPES, KEYS, Facts, Shard, encoded, permutation, shard_path, shard_paths, write_shard

if TYPE_CHECKING:
    from ..model import Model

MANIFEST = "activations.json"
_FORMAT = "llama2cpp activations of texts, 1"
POOLS = (None, "last", "mean")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a folder says of itself. FormatError for one that extract has not written."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != _FORMAT or not isinstance(manifest["points"], dict):
            raise ValueError(f"it says {manifest['format']!r}")
    except FileNotFoundError:
        raise FileNotFoundError(2, f"no {MANIFEST}, which extract writes", str(folder)) from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: expected a manifest of extract, but {error}") from error
    found: dict[str, Any] = manifest
    return found


@dataclass(frozen=True)
class _Held:
    """What goes into the file that is being filled. A new one for each pass, so that Ctrl-C finds it whole."""

    number: int = 0  # of the file
    first_text: int = 0
    texts: int = 0
    rows: int = 0
    rows_before: int = 0  # in files that are full
    pieces: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def next(self) -> _Held:
        """Begin the next file."""
        return _Held(self.number + 1, self.first_text + self.texts, rows_before=self.rows_before + self.rows)

    def done(self) -> tuple[int, int]:
        """Count texts and rows from the beginning."""
        return self.first_text + self.texts, self.rows_before + self.rows


def _hashed(digest: Any, batch: Iterable[list[int]]) -> Any:  # noqa: ANN401 - hashlib's class has no public name
    digest = digest.copy()
    for ids in batch:
        digest.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype="<i4").tobytes())
    return digest


class Extraction:
    """One run of `Model.extract`. The arguments are its own.

    Examples
    --------
    See `Model.extract`.

    >>> import llama2cpp
    >>> from llama2cpp.activation_data.extraction import Extraction
    >>> model = llama2cpp.load("storyteller")
    >>> try:
    ...     Extraction(model, ["Once"], "resid_post", 0, out="rows", dtype="int8")
    ... except ValueError as error:
    ...     print(error)
    extract: dtype is 'int8', expected one of: f16, bf16, f32
    """

    def __init__(
        self,
        model: Model,
        texts: Iterable[Prompt],
        points: Names,
        layers: int | Sequence[int] | None = None,
        *,
        out: Path | str,
        pool: str | None = None,
        dtype: str = "f16",
        shuffle: int | None = None,
        resume: bool = True,
        truncate: bool = False,
        special: bool | None = None,
        shard_size: int | str = "128MB",
        adapter: Adapter | None = None,
    ) -> None:
        check_adapter("extract", adapter, model)
        if pool not in POOLS:
            raise ValueError(f"extract: pool is {pool!r}, expected None, 'last' or 'mean'")
        if dtype not in DTYPES:
            raise ValueError(f"extract: dtype is {dtype!r}, expected one of: {', '.join(DTYPES)}")
        self._folder = Path(out)
        self._pool, self._dtype, self._shuffle = pool, dtype, shuffle
        shard_bytes = parse_size(shard_size)
        self._passes = Passes(model, chosen_places("extract", points, layers, model), pool, adapter)
        self._texts = Texts(model, "extract", texts, truncate=truncate, special=special)
        shapes = dict(zip(self._passes.names, self._passes.row_shapes(), strict=True))
        width = {"f16": 2, "bf16": 2, "f32": 4}[dtype]
        row_bytes = 16 + sum(width * int(np.prod(shape)) for shape in shapes.values())
        self._shard_rows = max(1, shard_bytes // row_bytes)
        self._settings = {
            "format": _FORMAT,
            "model": model._core.fingerprint,
            "adapter": None if adapter is None else adapter.fingerprint,
            "backend": model.backend,
            "activation_dtype": model.activation_dtype,
            "kv_dtype": model.kv_dtype,
            "context": model.context,
            "points": {name: list(shape) for name, shape in shapes.items()},
            "pool": pool,
            "dtype": dtype,
            "shuffle": shuffle,
            "truncate": truncate,
            "shard_rows": self._shard_rows,
        }
        self._check_folder(resume)
        self._held = _Held()

    def _check_folder(self, resume: bool) -> None:
        folder = self._folder
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file, expected the name of a folder")
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        there = [name for name in there if not name.startswith(".llama2cpp-")]  # what a killed process has left
        if not there:
            return
        if MANIFEST not in there:
            raise FileExistsError(f"{folder} has {there[0]}, and no activations: pass an empty folder, or a new one")
        if not resume:
            raise FileExistsError(f"{folder} has activations: pass resume=True (--resume) to go on, or a new folder")
        manifest = read_manifest(folder)
        for name, value in self._settings.items():
            if manifest.get(name) != value:
                theirs, own = (list(v) if isinstance(v, dict) else v for v in (manifest.get(name), value))
                raise FileExistsError(
                    f"{folder} is of another run: its {name} is {theirs!r}, and this one's {own!r}: pass a new folder"
                )

    def run(self, seen: Callable[[int, int], None] = lambda texts, rows: None) -> None:
        """Do it. `seen` is told how many texts and rows are done. What ends it early keeps what is done."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / MANIFEST).exists():
            self._write_manifest({"complete": False})
        self._go_on(seen)
        try:
            while True:
                if self._held.rows >= self._shard_rows:
                    self._write_shard(full=True)
                    self._held = self._held.next()
                batch = self._passes.take(self._texts, lambda rows: self._held.rows + rows < self._shard_rows)
                if not batch:
                    break
                self._held = self._with(batch, self._run(batch))
                seen(*self._held.done())
        except BaseException:
            with suppress(OSError, MemoryError):  # the first error is the one to be told
                self._write_shard(full=False)
            raise
        self._write_shard(full=False)
        texts, rows = self._held.done()
        self._write_manifest({"complete": True, "texts": texts, "rows": rows, "truncated": self._texts.truncated})

    def _run(self, batch: Sequence[list[int]]) -> list[dict[str, NDArray[Any]]]:
        if self._dtype == "f16" and self._pool != "mean":
            with suppress(OverflowError):  # which number that is the conversion says
                return self._passes.run(batch, halves=True)
        return self._passes.run(batch)

    def _write_manifest(self, ends: dict[str, Any]) -> None:
        text = json.dumps({**self._settings, **ends}, indent=1) + "\n"
        write_file(self._folder / MANIFEST, text.encode())

    def _with(self, batch: Sequence[list[int]], results: Sequence[dict[str, Array]]) -> _Held:
        """Add the rows of texts to what is held."""
        held = self._held
        pieces = []
        for text, (ids, arrays) in enumerate(zip(batch, results, strict=True), held.first_text + held.texts):
            positions = np.arange(len(ids), dtype="<i4")[-1 if self._pool else None :]
            columns: dict[str, NDArray[Any]] = {
                "text": np.full(len(positions), text, dtype="<i8"),
                "tokens": np.asarray(ids, dtype="<i4")[positions],
                "positions": positions,
            }
            for name, array in arrays.items():
                if self._pool == "mean":
                    array = mean_row(array)
                columns[name] = encoded(array, self._dtype, f"extract: text {text}: {name}")
            pieces.append(columns)
        return replace(
            held,
            texts=held.texts + len(batch),
            rows=held.rows + sum(len(piece["text"]) for piece in pieces),
            pieces=held.pieces + pieces,
            digest=_hashed(held.digest, batch),
        )

    def _order(self, number: int, rows: int) -> NDArray[np.int64] | None:
        return None if self._shuffle is None else permutation([self._shuffle, number], rows)

    def _write_shard(self, *, full: bool) -> None:
        """Write what is held."""
        held = self._held
        if not held.texts:
            return
        types = {**KEYS, **dict.fromkeys(self._passes.names, DTYPES[self._dtype])}
        columns = {name: (kind, [piece[name] for piece in held.pieces]) for name, kind in types.items()}
        facts = Facts(held.first_text, held.texts, held.rows, held.digest.hexdigest(), full)
        write_shard(shard_path(self._folder, held.number), columns, facts, self._order(held.number, held.rows))

    def _go_on(self, seen: Callable[[int, int], None]) -> None:
        """Pass over the texts whose rows are there, and take up a file that is not full."""
        for path in shard_paths(self._folder):
            shard = Shard(path)
            facts, begun = shard.facts, self._held
            if facts.first_text != begun.first_text:
                raise FormatError(f"{path}: its first text is {facts.first_text}, expected {begun.first_text}")
            digest = begun.digest
            for _ in range(facts.texts):
                if self._texts.peek() is None:
                    raise FileExistsError(
                        f"{self._folder} is of other texts: it has {facts.first_text + facts.texts} or more, and there "
                        f"are {self._texts.taken}"
                    )
                digest = _hashed(digest, [self._texts.take()])
            if digest.hexdigest() != facts.tokens_sha256:
                raise FileExistsError(
                    f"{self._folder} is of other texts: in {path.name}, those from {facts.first_text} to "
                    f"{facts.first_text + facts.texts - 1} have other tokens"
                )
            there = replace(begun, texts=facts.texts, rows=facts.rows, digest=digest)
            seen(*there.done())
            if not facts.full:
                self._held = replace(there, pieces=[self._read_again(shard, begun.number)])
                return
            self._held = there.next()

    def _read_again(self, shard: Shard, number: int) -> dict[str, NDArray[Any]]:
        """Read all columns, in the order before they were shuffled."""
        order = self._order(number, shard.facts.rows)
        columns = {}
        for name in (*KEYS, *self._passes.names):
            stored = columns[name] = shard.stored(name)
            if order is not None:
                columns[name] = np.empty_like(stored)
                columns[name][order] = stored
        return columns
