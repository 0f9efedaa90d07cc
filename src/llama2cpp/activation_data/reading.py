"""Activations of many texts as they are read: arrays, batches, PyTorch's datasets and Hugging Face's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError, need_memory
from ..common.arguments import checked, close_names
from ..inside.activation_names import from_first, get_act_name
from .extraction import read_manifest
from .shards import KEYS, STORED, Rows, Shard, permutation, shard_path, shard_paths

if TYPE_CHECKING:
    from .torch_dataset import ActivationDataset


@checked
def read_activations(folder: str | PathLike[str]) -> ActivationData:
    """Open a folder that `Model.extract` has written, or is writing.

    Parameters
    ----------
    folder : str or path

    Returns
    -------
    ActivationData

    Raises
    ------
    FormatError
        If the files are damaged, or one is missing.
    OSError
        If there is no such folder, or it cannot be read.

    Examples
    --------
    >>> import llama2cpp, tempfile
    >>> model = llama2cpp.load("storyteller")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.extract(["Once upon a time", "The dog"], "resid_post", [1, 3], out=folder)
    ...     data = llama2cpp.read_activations(folder)
    ...     print(data["resid_post", 3].shape, data["tokens"][:3].tolist())
    (9, 192) [1, 508, 509]
    """
    return ActivationData(Path(folder))


class ActivationData:
    """The rows of a folder of `Model.extract`: one for each token or, if they are pooled, for each text.

    Beside the activations each row has the number of its ``text``, and the ``positions`` and ``tokens`` that it is of;
    if it is pooled, those of the text's last token. float16 and float32 are read as they are; bfloat16 is float32 in
    NumPy and bfloat16 in PyTorch. Rows that a run which goes on writes later are not seen.

    Attributes
    ----------
    folder : Path
    manifest : dict
        What the folder says of itself: model, points, dtype, pool, seed, and at the end counts of texts and rows.
    points : list of str
        Full names of the activations.
    texts : int
        How many there are.

    Examples
    --------
    >>> import llama2cpp, tempfile
    >>> model = llama2cpp.load("storyteller")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = model.extract(["Once upon a time", "The dog"], "resid_post", 3, out=folder, pool="mean")
    ...     print(data, data["resid_post", 3].dtype)
    <llama2cpp.ActivationData: 2 rows of 1 activation, 2 texts> float16
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.points = list(self.manifest["points"])
        self._rows: list[int] = []  # of each file
        self.texts = 0
        for path in shard_paths(folder):
            shard = Shard(path)
            if shard.points != self.points:
                raise FormatError(f"{path}: it has {', '.join(shard.points)}, expected {', '.join(self.points)}")
            self._rows.append(shard.facts.rows)
            self.texts += shard.facts.texts
        expected = self.manifest.get("rows", len(self)) if self.manifest.get("complete") else len(self)
        if len(self) != expected:
            missing = shard_path(folder, len(self._rows))
            raise FormatError(f"{folder} has {len(self)} rows of {expected}: {missing.name} is missing")

    def __len__(self) -> int:
        return sum(self._rows)

    def __repr__(self) -> str:
        points = f"{len(self.points)} activation{'' if len(self.points) == 1 else 's'}"
        state = "" if self.manifest.get("complete") else ", not complete"
        return f"<llama2cpp.ActivationData: {len(self)} rows of {points}, {self.texts} texts{state}>"

    def _name(self, key: Any) -> str:  # noqa: ANN401
        parts = key if isinstance(key, tuple) else (key,)
        layers = [int(point.split(".")[1]) for point in self.points if point.startswith("blocks.")]
        if len(parts) == 1 and parts[0] in (*KEYS, *self.points):
            return str(parts[0])
        name = from_first(get_act_name(*parts), 1 + max(layers, default=0))
        if name not in self.points:
            raise KeyError(f"no {name!r} among {', '.join(self.points)}{close_names(name, self.points)}")
        return name

    def __getitem__(self, key: Any) -> NDArray[Any]:  # noqa: ANN401
        """Read one column whole, by its full name, or as ``data["resid_post", 3]``.

        A negative layer counts from the last one that is here. MemoryError if there is no room.
        """
        name = self._name(key)
        kind = "<f2" if self.manifest["dtype"] == "f16" else "<f4"
        if name in KEYS:
            kind = STORED[KEYS[name]]
        shape = (len(self), *([] if name in KEYS else self.manifest["points"][name]))
        need_memory(int(np.prod(shape)) * np.dtype(kind).itemsize, f"all rows of {name}", "use batches")
        whole = np.empty(shape, kind)
        at = 0
        for shard in self._shards():
            whole[at : at + shard.facts.rows] = shard.read(name)
            at += shard.facts.rows
        return whole

    def _shards(self) -> Iterator[Shard]:
        return (Shard(shard_path(self.folder, number)) for number in range(len(self._rows)))

    def _columns(self, points: str | Sequence[Any] | None) -> list[str]:
        keys = self.points if points is None else [points] if isinstance(points, str | tuple) else points
        return [*(self._name(key) for key in keys), *KEYS]

    @checked
    def batches(
        self,
        size: int,
        points: str | Sequence[Any] | None = None,
        *,
        shuffle: int | None = None,
        epoch: int = 0,
        mix: int = 4,
    ) -> Iterator[Rows]:
        """Give all rows once, in batches. The last one may be smaller.

        Parameters
        ----------
        size : int
            Rows of a batch.
        points : str or sequence, optional
            Which activations, by full names or (name, layer); all if not given.
        shuffle : int, optional
            A seed: files are taken in another order in each epoch, and the rows of `mix` files at a time are mixed.
            That many are in memory, as far as `points` asks for them.
        epoch : int
            Which order.
        mix : int
            Files that are mixed. 1 mixes the rows of each file.

        Returns
        -------
        iterator of dict
            Arrays [rows, ...] by name, and ``text``, ``tokens`` and ``positions``.

        Raises
        ------
        ValueError
            If a number cannot be.
        KeyError
            For an activation that is not here.

        Examples
        --------
        >>> import llama2cpp, tempfile
        >>> model = llama2cpp.load("storyteller")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = model.extract(["Once upon a time", "The dog"], "resid_post", 3, out=folder)
        ...     for batch in data.batches(4, shuffle=1):
        ...         print(batch["blocks.3.hook_resid_post"].shape)
        (4, 192)
        (4, 192)
        (1, 192)
        """
        if size < 1 or mix < 1 or epoch < 0:
            raise ValueError(f"batches: size is {size}, mix {mix} and epoch {epoch}, expected 1, 1 and 0 or more")
        return self._batches(size, self._columns(points), shuffle, epoch, mix, (0, 1), stored=False)

    def _batches(
        self,
        size: int,
        columns: list[str],
        shuffle: int | None,
        epoch: int,
        mix: int,
        part: tuple[int, int],
        *,
        stored: bool,
    ) -> Iterator[Rows]:
        """Give the rows of every n-th file from the i-th on, for part (i, n)."""
        order = np.arange(len(self._rows)) if shuffle is None else permutation([shuffle, epoch], len(self._rows))
        own = order[part[0] :: part[1]].tolist()
        at_once = 1 if shuffle is None else mix
        left: Rows = {}
        for first in range(0, len(own), at_once):
            shards = [Shard(shard_path(self.folder, number)) for number in own[first : first + at_once]]
            rows = {
                name: np.concatenate([shard.stored(name) if stored else shard.read(name) for shard in shards])
                for name in columns
            }
            count = len(rows["text"])
            chosen = np.arange(count)
            if shuffle is not None:
                chosen = permutation([shuffle, epoch, own[first]], count)
            begin = 0
            if left:
                begin = min(size - len(left["text"]), count)
                left = {name: np.concatenate([left[name], rows[name][chosen[:begin]]]) for name in columns}
                if len(left["text"]) < size:
                    continue
                yield left
                left = {}
            while begin < count:
                batch = {name: rows[name][chosen[begin : begin + size]] for name in columns}
                if count - begin < size:
                    left = batch
                    break
                yield batch
                begin += size
        if left:
            yield left

    @checked
    def torch(
        self,
        batch_size: int | None = None,
        points: str | Sequence[Any] | None = None,
        *,
        shuffle: int | None = None,
        mix: int = 4,
    ) -> ActivationDataset:
        """Make an ``IterableDataset`` of PyTorch's, for a ``DataLoader`` with any number of workers.

        Each worker reads every n-th file, so each row comes once; workers that are more than the files have nothing to
        do. ``set_epoch`` gives another order, as in `batches`.

        Parameters
        ----------
        batch_size : int, optional
            Give batches of so many rows, for ``DataLoader(..., batch_size=None)``, which is much faster; single rows if
            not given.
        points, shuffle, mix
            As in `batches`.

        Returns
        -------
        ActivationDataset
            It gives dicts of tensors.

        Raises
        ------
        ModuleNotFoundError
            If there is no PyTorch.
        ValueError, KeyError
            As in `batches`.

        Examples
        --------
        >>> import llama2cpp, tempfile
        >>> model = llama2cpp.load("storyteller")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = model.extract(["Once upon a time", "The dog"], "resid_post", 3, out=folder)
        ...     sum(len(batch["tokens"]) for batch in data.torch(4, shuffle=1))
        9
        """
        try:
            from .torch_dataset import ActivationDataset
        except ModuleNotFoundError as error:
            raise _without("torch", "PyTorch", error) from None

        self.batches(1 if batch_size is None else batch_size, points, shuffle=shuffle, mix=mix)  # checks
        return ActivationDataset(self, batch_size, self._columns(points), shuffle, mix)

    @checked
    def datasets(self, points: str | Sequence[Any] | None = None) -> Any:  # noqa: ANN401
        """Make an ``IterableDataset`` of Hugging Face's library ``datasets``, with a shard for each file.

        Parameters
        ----------
        points : str or sequence, optional
            As in `batches`.

        Returns
        -------
        datasets.IterableDataset
            Its rows are dicts of arrays and numbers.

        Raises
        ------
        ModuleNotFoundError
            If the library is not installed.
        KeyError
            As in `batches`.

        Examples
        --------
        ::

            rows = llama2cpp.read_activations("rows").datasets("blocks.3.hook_resid_post")
            rows.shuffle(seed=1).with_format("torch")

        Without the library it is refused, and nothing else needs it:

        >>> import llama2cpp
        >>> callable(llama2cpp.ActivationData.datasets)
        True
        """
        try:
            from datasets import IterableDataset  # type: ignore[import-not-found,unused-ignore]
        except ModuleNotFoundError as error:
            raise _without("datasets", "Hugging Face's datasets", error) from None

        columns = self._columns(points)
        files = list(range(len(self._rows)))
        return IterableDataset.from_generator(rows_of, gen_kwargs={"folder": str(self.folder), "files": files,
                                                                   "columns": tuple(columns)})  # fmt: skip


def _without(method: str, library: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Say which library is missing, and how to get it."""
    return ModuleNotFoundError(
        f"ActivationData.{method} needs {library} (there is no module {error.name!r}): pip install {method}",
        name=error.name,
    )


def rows_of(folder: str, files: list[int], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Give rows of some files: what `datasets` calls, in processes of its own, with a part of the list.

    Parameters
    ----------
    folder : str
    files : list of int
        Their numbers.
    columns : tuple of str
        Which.

    Returns
    -------
    iterator of dict
        An array or a number by name.

    Examples
    --------
    >>> from llama2cpp.activation_data.reading import rows_of
    >>> list(rows_of("rows", [], ("tokens",)))
    []
    """
    for number in files:
        shard = Shard(shard_path(Path(folder), number))
        whole = {name: shard.read(name) for name in columns}
        for i in range(shard.facts.rows):
            yield {name: array[i] if array.ndim > 1 else array[i].item() for name, array in whole.items()}
