"""Analysis of activations: where two models part, what a dictionary leaves of one, directions that steer a text.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import analysis
>>> model = llama2cpp.load("storyteller")
>>> exact = llama2cpp.load("storyteller", precision="exact", backend="cpu")
>>> found = analysis.diff(exact, model, "Once upon a time")
>>> found.points[0].name, found.points[0].largest
('hook_embed', 0.0)
"""

from __future__ import annotations

from ..inside.tuned_lens import TunedLens
from .dictionaries import LossRecovered, loss_recovered
from .differences import Difference, PointDifference, diff
from .harms import Harm, harm
from .heads import HeadDirections, head_directions
from .lenses import fit_tuned_lens, lens_divergence
from .steering import steering_vectors
from .trained_lens import train_tuned_lens

__all__ = [
    "Difference",
    "Harm",
    "HeadDirections",
    "LossRecovered",
    "PointDifference",
    "TunedLens",
    "diff",
    "fit_tuned_lens",
    "harm",
    "head_directions",
    "lens_divergence",
    "loss_recovered",
    "steering_vectors",
    "train_tuned_lens",
]
