"""safetensors files of a Hugging Face folder: one, or several with an index, as transformers names and fills them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..common.new_files import write_array
from ..common.safetensors_file import Tensor, lay_out

SHARD_SIZE = "5GB"


def split(weights: Iterable[Sequence[Tensor]], shard_size: int) -> list[list[Tensor]]:
    """Fill one shard after another.

    Parameters
    ----------
    weights : iterable of sequence of Tensor
        The tensors that each weight is stored in. They stay together: transformers looks for LLM.int8()'s scales in the
        file that has the integers. A weight that is larger than a shard has one for itself.
    shard_size : int
        Bytes.

    Returns
    -------
    list of list of Tensor
        As they lie in each file: wider types first, as the safetensors library has them, so that all are aligned.
    """
    shards: list[list[Tensor]] = []
    room = 0
    for weight in weights:
        size = sum(tensor.bytes for tensor in weight)
        if not shards or size > room:
            shards.append([])
            room = shard_size
        shards[-1] += weight
        room -= size
    return [sorted(shard, key=lambda tensor: -tensor.width) for shard in shards]


class ShardWriter:
    """Writes tensors into the files that they belong in, and the index where there are several.

    Parameters
    ----------
    folder : Path
        Where the files go.
    weights : iterable of sequence of Tensor
        All that will be written: the tensors of each weight.
    shard_size : int
        The most bytes of tensors in a file.
    parameters : int
        Of the model, for the index.
    """

    def __init__(self, folder: Path, weights: Iterable[Sequence[Tensor]], shard_size: int, parameters: int) -> None:
        self._folder = folder
        self._parameters = parameters
        shards = split(weights, shard_size)
        self._bytes = sum(tensor.bytes for shard in shards for tensor in shard)
        self._count = len(shards)
        self._places: dict[str, tuple[Path, int]] = {}  # file and first byte
        for number, shard in enumerate(shards, 1):
            path = folder / self._name(number)
            layout = lay_out(shard)
            path.write_bytes(layout.header)
            self._places.update((name, (path, begin)) for name, begin in layout.begins.items())
        self._left = {tensor.name: tensor.bytes for shard in shards for tensor in shard if tensor.bytes}

    def _name(self, number: int) -> str:
        one = self._count == 1
        return "model.safetensors" if one else f"model-{number:05}-of-{self._count:05}.safetensors"

    def write(self, name: str, data: NDArray[Any]) -> None:
        """Put a tensor in its place, as its file stores it. Each comes once, in any order."""
        assert data.nbytes == self._left.get(name, 0)
        self.append(name, data)

    def append(self, name: str, data: NDArray[Any]) -> None:
        """Put the next piece of a tensor behind those that are there."""
        if data.nbytes == 0:
            return
        self._left[name] -= data.nbytes
        assert self._left[name] >= 0
        if self._left[name] == 0:
            del self._left[name]
        path, begin = self._places[name]
        self._places[name] = path, begin + data.nbytes
        with path.open("rb+") as file:
            file.seek(begin)
            write_array(file, data)

    def finish(self) -> None:
        """Write the index, where there are several files."""
        assert not self._left
        if self._count == 1:
            return
        metadata: Mapping[str, int] = {"total_parameters": self._parameters, "total_size": self._bytes}
        places = {name: path.name for name, (path, _) in sorted(self._places.items())}
        path = self._folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": metadata, "weight_map": places}, indent=2) + "\n", encoding="utf-8")
