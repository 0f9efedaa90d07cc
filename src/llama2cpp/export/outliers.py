"""Which columns of each matrix meet large inputs on some text: LLM.int8()'s outliers, to be fixed at export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .calibration import inputs_of
from .source import Array, Source

if TYPE_CHECKING:
    from ..inside.hooks import HookPoint
    from ..model import Model

Columns = NDArray[np.int32]

THRESHOLD = 6.0  # of the paper, and what bitsandbytes takes by itself


def outlier_columns(
    model: Model,
    sequences: Sequence[Sequence[int]],
    *,
    threshold: float = THRESHOLD,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Columns]:
    """Find the columns whose input is ever large.

    Parameters
    ----------
    model : Model
        It reads the text, in its own arithmetic.
    sequences : sequence of sequence of int
        Token ids of a text of the kind that the model will read and write, each sequence from its beginning.
    threshold : float
        What is at least this large in magnitude is an outlier.
    progress : callable, optional
        Called after each sequence with "calibration", the tokens that are done and that there are in all.

    Returns
    -------
    dict of str to numpy.ndarray
        int32 [n], ascending, for each matrix of the layers by llama2.c's name. Matrices with the same input have the
        same columns.

    Raises
    ------
    ValueError
        If there is no token, or the threshold is not above 0.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.export.outliers import outlier_columns
    >>> model = llama2cpp.load("storyteller")
    >>> found = outlier_columns(model, [[1, 403, 407, 261, 378]], threshold=2.0)
    >>> found["layers.0.attention.wq.weight"].tolist() == found["layers.0.attention.wk.weight"].tolist()
    True
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}, expected a number above 0")
    total = sum(map(len, sequences))
    if not total:
        raise ValueError("the calibration text has no tokens")
    layers, largest, source = range(model.config.n_layers), dict[str, Array](), Source(model)
    inputs = inputs_of(model.config, source)
    norms = {f"blocks.{layer}.{each.point}": each.weights(source, layer) for each in inputs for layer in layers}
    points = list(norms)

    def look(activation: Array, hook: HookPoint) -> None:
        rows = activation.reshape(activation.shape[1], -1)
        gain, bias = norms[hook.name]
        if bias is not None:
            rows = rows * (1 if gain is None else gain) + bias
        most = np.abs(rows).max(axis=0)
        largest[hook.name] = np.maximum(most, largest.get(hook.name, most))

    done = 0
    with model.hooks([(points, look)]):
        for ids in filter(len, sequences):
            model.session(context=len(ids)).prefill(ids)
            done += len(ids)
            if progress is not None:
                progress("calibration", done, total)

    found = dict[str, Columns]()
    for layer in layers:
        for each in inputs:
            most = largest[f"blocks.{layer}.{each.point}"]
            gain, bias = norms[f"blocks.{layer}.{each.point}"]
            if gain is not None and bias is None:
                most = most * np.abs(gain)
            columns = np.flatnonzero(most >= threshold).astype(np.int32)
            found.update((matrix.at(layer), columns) for matrix in each.matrices)
    return found
