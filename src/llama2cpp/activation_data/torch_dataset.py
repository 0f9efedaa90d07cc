"""Rows of activations as PyTorch's IterableDataset. Imported when it is asked for: PyTorch takes a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .reading import ActivationData


class ActivationDataset(IterableDataset[dict[str, torch.Tensor]]):
    """What `ActivationData.torch` returns."""

    def __init__(
        self, data: ActivationData, batch_size: int | None, columns: list[str], shuffle: int | None, mix: int
    ) -> None:
        self._data = data
        self._batch_size = batch_size
        self._columns = columns
        self._shuffle = shuffle
        self._mix = mix
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that the next iterators take."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        part = (0, 1) if worker is None else (worker.id, worker.num_workers)
        size = self._batch_size or 256
        batches = self._data._batches(size, self._columns, self._shuffle, self._epoch, self._mix, part, stored=True)
        for batch in batches:
            tensors = {name: self._tensor(name, array) for name, array in batch.items()}
            if self._batch_size is not None:
                yield tensors
            else:
                for i in range(len(tensors["text"])):
                    yield {name: tensor[i] for name, tensor in tensors.items()}

    def _tensor(self, name: str, array: NDArray[Any]) -> torch.Tensor:
        if self._data.manifest["dtype"] == "bf16" and name in self._data.points:
            return torch.from_numpy(array.view("i2")).view(torch.bfloat16)
        return torch.from_numpy(array)
