"""What a head writes, by the singular vectors of its matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked, index
from ..common.parts import OUTPUT, get_part
from ..inside.factored_matrix import FactoredMatrix
from ..inside.html_views import table, visible
from ..inside.weights import computed

if TYPE_CHECKING:
    from ..model import Model


class HeadDirections(NamedTuple):
    """What `head_directions` has found: singular vectors of what a head does to what it reads.

    Attributes
    ----------
    values : numpy.ndarray
        float64 [head_dim]: singular values, the largest first.
    reads, writes : numpy.ndarray
        float64 [head_dim, dim], each of length 1: what the head reads along ``reads[i]`` it writes along ``writes[i]``,
        `values[i]` times as long.
    top, bottom : list of list of str
        The tokens whose logits each of `writes` raises most, and lowers most; ids as text without a tokenizer.

    Examples
    --------
    >>> from llama2cpp.analysis import HeadDirections
    >>> HeadDirections._fields
    ('values', 'reads', 'writes', 'top', 'bottom')
    """

    values: NDArray[np.float64]
    reads: NDArray[np.float64]
    writes: NDArray[np.float64]
    top: list[list[str]]
    bottom: list[list[str]]

    def _repr_html_(self) -> str:
        rows = [
            (f"{value:.4g}", "  ".join(map(visible, top)), "  ".join(map(visible, bottom)))
            for value, top, bottom in zip(self.values, self.top, self.bottom, strict=True)
        ]
        return table(("singular value", "writes", "writes against"), rows)


@checked
def head_directions(
    model: Model, layer: int, head: int, *, directions: int | None = None, tokens: int = 10
) -> HeadDirections:
    """Decompose a head's OV matrix into singular vectors, and read what it writes through the output matrix.

    The matrix is W_V @ W_O with the gains of the norms around it, if there are any. What is written is multiplied with
    the last norm's gain and the output matrix (Millidge and Black, 2022). The sign of a pair of singular vectors means
    nothing by itself; here the largest logit, whatever its sign, is that of the first token of `top`.

    Parameters
    ----------
    model : Model
    layer, head : int
        A head of queries; negative ones count from the last.
    directions : int, optional
        How many singular vectors, the largest first; if not given, all: head_dim.
    tokens : int
        How many tokens of each.

    Returns
    -------
    HeadDirections

    Raises
    ------
    ValueError
        For a layer or head that the model does not have, or fewer than one direction or token.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> model = llama2cpp.load("storyteller")
    >>> found = analysis.head_directions(model, 3, 1, directions=4, tokens=5)
    >>> found.values.shape, found.reads.shape, len(found.top), len(found.top[0])
    ((4,), (4, 192), 4, 5)
    """
    config = model.config
    layer = index(layer, config.n_layers, "layer", "head_directions")
    head = index(head, config.n_heads, "head", "head_directions")
    count = config.head_dim if directions is None else directions
    for name, given, most in (("directions", count, config.head_dim), ("tokens", tokens, config.vocab_size)):
        if not 1 <= given <= most:
            raise ValueError(f"head_directions: {name} is {given}, expected 1 to {most}")
    block = f"blocks.{layer}"
    weights = computed(model.weights)
    reads = weights.head(f"{block}.{get_part('wv').lens}", head * config.n_kv_heads // config.n_heads)
    writes = weights.head(f"{block}.{get_part('wo').lens}", head)
    before, after, last = (weights.get(f"{name}.w") for name in (f"{block}.ln1", f"{block}.ln1_post", "ln_final"))
    matrix = FactoredMatrix(
        reads if before is None else before[:, None] * reads, writes if after is None else writes * after
    )
    left, values, right = (part[..., :count] for part in matrix.svd())
    out = weights[OUTPUT.lens].astype(np.float64)  # [dim, vocab_size]
    logits = (right if last is None else last[:, None] * right).T @ out  # [directions, vocab_size]
    signs = np.where(logits.max(axis=1) < -logits.min(axis=1), -1.0, 1.0)
    order = np.argsort(-logits * signs[:, None], axis=1, kind="stable")

    def named(ids: NDArray[np.int64]) -> list[str]:
        return [model.to_single_str_token(int(id)) if model.has_tokenizer else str(id) for id in ids]

    return HeadDirections(
        np.asarray(values, dtype=np.float64),
        left.T * signs[:, None],
        right.T * signs[:, None],
        [named(row[:tokens]) for row in order],
        [named(row[::-1][:tokens]) for row in order],
    )
