"""Changes of the model that a reader of the page makes: as interventions, and as the Python that makes the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import interventions
from ..server.errors import ApiError

if TYPE_CHECKING:
    from .._core import Config
    from ..interventions import Intervention
    from ..model import Model

MOST_EDITS = 64
_LONGEST_TEXT = 2000

# What is edited -> the activations that it is, and what says which of them.
_NAMES: dict[str, tuple[str | list[str], str | None]] = {
    "head": ("z", "head"),
    "neuron": ("post", "neuron"),
    "attention": ("attn_out", None),
    "mlp": ("mlp_out", None),
    "layer": (["attn_out", "mlp_out"], None),
    "key": ("k", "head"),
    "value": ("v", "head"),
    "direction": ("resid_post", None),
}
_DOES = ("off", "scale", "set", "add")
_FIELDS: tuple[str, ...] = (
    "what",
    "do",
    "layer",
    "head",
    "neuron",
    "position",
    "factor",
    "value",
    "token",
    "minus",
    "plus_text",
)
_FIELDS += ("minus_text", "strength")


@dataclass(frozen=True)
class Edit:
    """One change, which has been looked at."""

    function: str  # of llama2cpp.interventions
    arguments: dict[str, Any]  # by keyword, but for a direction
    direction: tuple[int | str, int | str | None, float] | None = None  # towards, away from, how far

    def make(self, model: Model) -> Intervention:
        """Make the intervention."""
        arguments = dict(self.arguments)
        if self.direction is not None:
            arguments["value"] = self._vector(model)
        intervention: Intervention = getattr(interventions, self.function)(**arguments)
        return intervention

    def _vector(self, model: Model) -> Any:  # noqa: ANN401
        assert self.direction is not None
        towards, away, strength = self.direction
        vector = self._of(model, towards)
        if away is not None:
            vector = vector - self._of(model, away)
        length = np.linalg.norm(vector)
        if not length > 0:
            raise ApiError(400, "the direction is 0: both sides say the same", param="edits")
        return strength * vector / length

    def _of(self, model: Model, side: int | str) -> Any:  # noqa: ANN401
        if isinstance(side, int):
            return model.tokens_to_residual_directions(side)
        layer = self.arguments["layer"]
        _, cache = model.run_with_cache(side, f"resid_post{layer}", special=False, return_type=None)
        return cache["resid_post", layer][0, -1]

    def python(self, number: int) -> tuple[list[str], str]:
        """Say it in Python: lines that come before, and the expression."""
        given = [f"{name}={value!r}" for name, value in self.arguments.items()]
        if self.direction is None:
            return [], f"interventions.{self.function}({', '.join(given)})"
        towards, away, strength = self.direction
        name = f"direction_{number}"
        sides = self._said(towards) + ("" if away is None else f" - {self._said(away)}")
        lines = [f"{name} = {sides}", f"{name} = {strength!r} * {name} / np.linalg.norm({name})"]
        return lines, f"interventions.{self.function}({', '.join([given[0], f'value={name}', *given[1:]])})"

    def _said(self, side: int | str) -> str:
        if isinstance(side, int):
            return f"model.tokens_to_residual_directions({side})"
        layer = self.arguments["layer"]
        run = f"model.run_with_cache({side!r}, 'resid_post{layer}', special=False, return_type=None)"
        return f"{run}[1]['resid_post', {layer}][0, -1]"


def edits_of(given: Any, config: Config, experts: bool) -> tuple[Edit, ...]:  # noqa: ANN401
    """Read the field ``edits`` of a request.

    Parameters
    ----------
    given : list of dict, or None
        Such as ``{"what": "head", "do": "scale", "factor": 0.5, "layer": 3, "head": 1}``.
    config : Config
        The model's.
    experts : bool
        Whether its MLPs are experts, whose neurons are not edited.
    """
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MOST_EDITS:
        raise _wrong("edits", f"is no array of at most {MOST_EDITS} objects")
    return tuple(_Reader(one, f"edits[{i}]", config, experts).edit() for i, one in enumerate(given))


def key_of(edits: Sequence[Edit]) -> str:
    """Name a list of edits, so that equal ones have equal names."""
    return json.dumps([[edit.function, edit.arguments, edit.direction] for edit in edits])


class _Reader:
    """Looks at one edit of a request."""

    def __init__(self, given: Any, where: str, config: Config, experts: bool) -> None:  # noqa: ANN401
        if not isinstance(given, dict):
            raise _wrong(where, "is no object")
        for name in given:
            if name not in _FIELDS:
                raise _wrong(where, f"has the field {name!r:.80}, expected {', '.join(_FIELDS)}")
        self._given, self._where, self._config, self._experts = given, where, config, experts

    def edit(self) -> Edit:
        what, do = self._word("what", tuple(_NAMES)), self._word("do", _DOES)
        names, which = _NAMES[what]
        if what == "neuron" and self._experts:
            raise _wrong(self._where, "is of a neuron, and this model's MLPs are experts")
        config = self._config
        where: dict[str, Any] = {"layer": self._index("layer", config.n_layers)}
        if what == "head":
            where["head"] = self._index("head", config.n_heads)
        elif what in ("key", "value"):
            where["head"] = self._index("head", config.n_kv_heads)
            if self._given.get("neuron") is not None:
                where["neuron"] = self._index("neuron", config.head_dim)
        elif which == "neuron":
            where["neuron"] = self._index("neuron", config.hidden_dim)
        if self._given.get("position") is not None:
            where["position"] = self._index("position", 1 << 31)
        elif what in ("key", "value"):
            raise _wrong(self._where, f"has no position, which a {what} needs")
        if (what == "direction") != (do == "add"):
            raise _wrong(self._where, f"would {do} a {what}: directions are added, and nothing else is")
        if do == "off":
            return Edit("zero", {"names": names, **where})
        if do == "scale":
            return Edit("scale", {"names": names, "factor": self._number("factor"), **where})
        if do == "set":
            if what not in ("neuron", "key", "value"):
                raise _wrong(self._where, f"would set a {what}: what is set is a neuron, a key or a value")
            return Edit("set", {"names": names, "value": self._number("value"), **where})
        return Edit("add", {"names": names, **where}, self._direction())

    def _direction(self) -> tuple[int | str, int | str | None, float]:
        texts = self._given.get("plus_text") is not None
        if texts == (self._given.get("token") is not None):
            raise _wrong(self._where, "needs one of token and plus_text")
        strength = self._number("strength")
        if texts:
            away = None if self._given.get("minus_text") in (None, "") else self._text("minus_text")
            return self._text("plus_text"), away, strength
        minus = None if self._given.get("minus") is None else self._index("minus", self._config.vocab_size)
        return self._index("token", self._config.vocab_size), minus, strength

    def _word(self, name: str, words: tuple[str, ...]) -> str:
        found = self._given.get(name)
        if found not in words:
            raise _wrong(self._where, f"has the {name} {found!r:.80}, expected {', '.join(words)}")
        return str(found)

    def _text(self, name: str) -> str:
        found = self._given.get(name)
        if not isinstance(found, str) or not 0 < len(found) <= _LONGEST_TEXT:
            raise _wrong(self._where, f"has no {name} of 1 to {_LONGEST_TEXT} characters")
        return found

    def _index(self, name: str, count: int) -> int:
        found = self._given.get(name)
        if type(found) is not int or not 0 <= found < count:
            raise _wrong(self._where, f"has the {name} {found!r:.80}, expected 0 to {count - 1}")
        return found

    def _number(self, name: str) -> float:
        found = self._given.get(name)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise _wrong(self._where, f"has the {name} {found!r:.80}, expected a number")
        if abs(found) > 1e6:
            raise _wrong(self._where, f"has the {name} {found!r:.80}, expected at most 1,000,000")
        return float(found)


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where} {what}", param="edits")


def python_of(opened: str, ids: Sequence[int], edits: Sequence[Edit]) -> str:
    """Write the Python that gives the numbers of the page.

    Parameters
    ----------
    opened : str
        The expression that opens the model.
    ids : sequence of int
        The prompt.
    edits : sequence of Edit
        What is changed.
    """
    lines = ["import llama2cpp"]
    said = [edit.python(i) for i, edit in enumerate(edits)]
    if any(before for before, _ in said):
        lines.insert(0, "import numpy as np")
    if edits:
        lines.append("from llama2cpp import interventions")
    lines += ["", f"model = {opened}", f"ids = {list(ids)!r}"]
    lines += [line for before, _ in said for line in before]
    if edits:
        lines += ["edits = [", *(f"    {expression}," for _, expression in said), "]"]
        lines += ["before = model(ids)[0, -1]  # the logits after the last token, [vocab_size]"]
        lines += ["after = model.run_with_hooks(ids, edits)[0, -1]"]
    else:
        lines += ["logits = model(ids)[0, -1]  # after the last token, [vocab_size]"]
    return "\n".join(lines) + "\n"
