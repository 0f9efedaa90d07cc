"""Interventions as a request writes them: the functions of `llama2cpp.interventions` by name, with their arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import interventions
from .errors import ApiError
from .fields import Fields

if TYPE_CHECKING:
    from ..interventions import Intervention

# What each is called with; the first is what it cannot be without.
_KINDS: dict[str, tuple[str, ...]] = {
    "zero": ("names",),
    "set": ("value", "names"),
    "scale": ("factor", "names"),
    "add": ("value", "names"),
    "mean": ("value", "names"),
    "project_out": ("direction", "names"),
    "mask_pattern": ("key",),
}
_WHERE = ("layer", "head", "position", "neuron")


def interventions_of(fields: Fields) -> list[Intervention]:
    """Read the field ``interventions``: ``[{"kind": "scale", "names": "mlp_out", "factor": 2, "layer": 3}]``."""
    given = fields.array("interventions")
    return [_intervention(one, f"interventions[{i}]") for i, one in enumerate(given or [])]


def _intervention(given: Any, where: str) -> Intervention:  # noqa: ANN401
    if not isinstance(given, dict):
        raise _wrong(where, "is no object")
    kind = given.get("kind")
    if kind not in _KINDS:
        raise _wrong(where, f"has the kind {kind!r:.80}, expected {', '.join(_KINDS)}")
    needed = _KINDS[kind]
    known = {*needed, *_WHERE} - ({"neuron"} if kind == "mask_pattern" else set())
    for name in given:
        if name not in known and name != "kind":
            raise _wrong(where, f"has the field {name!r:.80}, expected {', '.join(sorted(known))}")
    for name in needed:
        if given.get(name) is None:
            raise _wrong(where, f"has no {name}, which {kind} needs")
    names = given.get("names", "pattern")
    if not (isinstance(names, str) or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise _wrong(where, "has names that are neither a string nor an array of strings")
    arguments = {name: given[name] for name in known if given.get(name) is not None}
    try:
        intervention: Intervention = getattr(interventions, kind)(**arguments)
    except (ValueError, TypeError) as error:
        raise _wrong(where, f"cannot be: {error}") from error
    return intervention


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where} {what}", param="interventions")
