"""Where quantization does harm: a reference's activations in a model's run, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.arguments import checked
from ..common.token_ids import Prompt, to_ids
from ..inside.html_views import table
from ..inside.places import names_of_activations
from ..metrics import kl
from ..patching import activation_patch

if TYPE_CHECKING:
    from ..model import Model


class Harm(NamedTuple):
    """What `harm` has found; in a notebook a table.

    Attributes
    ----------
    kl : float
        The Kullback-Leibler divergence, in nats, from the reference's predictions to the model's, the mean over tokens.
    patched : dict of str to numpy.ndarray
        float64 [n_layers] by activation: what is left of it if the activation of this layer is the reference's.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp.analysis import Harm
    >>> found = Harm(2.0, {"mlp_out": numpy.array([1.5, 0.5])})
    >>> found.recovered["mlp_out"].tolist(), found.worst
    ([0.25, 0.75], ('mlp_out', 1))
    """

    kl: float
    patched: dict[str, NDArray[np.float64]]

    @property
    def recovered(self) -> dict[str, NDArray[np.float64]]:
        """What part of the divergence goes away: 1 is all, 0 none; below 0 it grows. NaN where there is none."""
        whole = self.kl if self.kl > 0 else float("nan")
        return {name: 1 - left / whole for name, left in self.patched.items()}

    @property
    def worst(self) -> tuple[str, int]:
        """Where most of it goes away: the activation, and its layer."""
        return min(
            ((name, layer) for name, left in self.patched.items() for layer in range(len(left))),
            key=lambda at: self.patched[at[0]][at[1]],
        )

    def _repr_html_(self) -> str:
        names = list(self.patched)
        rows = [
            (layer, *(f"{self.recovered[name][layer]:.1%}" for name in names))
            for layer in range(len(self.patched[names[0]]))
        ]
        return f"<p>KL {self.kl:.4g}; what part of it goes away</p>{table(('layer', *names), rows)}"


@checked
def harm(
    model: Model,
    reference: Model,
    text: Prompt,
    names: str | Sequence[str] = ("attn_out", "mlp_out"),
    *,
    special: bool | None = None,
    progress: bool | None = None,
) -> Harm:
    """Find where quantization does harm: put a reference's activations into the model's run, one layer at a time.

    What is measured is the divergence of the predictions, over all tokens, from the reference's. The parts do not sum
    to the whole: "attn_out" and "mlp_out" repair what one part adds, "resid_pre" all that is before a layer.

    Parameters
    ----------
    model : Model
        Such as a quantized one. Its own arithmetic is part of what is measured.
    reference : Model
        Such as its original, of the same sizes; open it with ``precision="exact"``.
    text : str, bytes or sequence of int
        Tokenized by the model.
    names : str or sequence of str
        Which activations, each of every layer.
    special : bool, optional
        Whether a text that spells control tokens gets them, as in `generate`.
    progress : bool, optional
        Show a bar on stderr; if not given, where that is a terminal.

    Returns
    -------
    Harm

    Raises
    ------
    ValueError
        For models of other sizes, and as in `patching.activation_patch`.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp import analysis
    >>> exact = llama2cpp.load("storyteller", precision="exact")
    >>> values = exact.weights["blocks.1.mlp.W_out"] * 0.7  # harm, in one place
    >>> found = analysis.harm(exact.with_weights({"blocks.1.mlp.W_out": values}), exact, "Once upon a time")
    >>> found.worst, round(float(found.recovered["mlp_out"][1]), 6)
    (('mlp_out', 1), 1.0)
    """
    chosen = names_of_activations(names)
    if not chosen:
        raise ValueError("harm: names is empty, expected activations")
    sizes = [(each.config.n_layers, each.config.dim, each.config.vocab_size) for each in (model, reference)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"harm: the models have sizes {sizes[0]} and {sizes[1]}: n_layers, dim, vocab_size")
    ids = to_ids(model, text, function="harm", special=special)
    expected, cache = reference._run("harm", ids, chosen)
    metric = kl(expected, position=None)
    patched = {name: activation_patch(model, ids, cache, metric, name, "layer", progress=progress) for name in chosen}
    return Harm(float(metric(model._run("harm", ids, [])[0])[0]), patched)
