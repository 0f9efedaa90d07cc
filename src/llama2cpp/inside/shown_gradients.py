"""Gradients, and hooks that are shown them: functions of ``bwd_hooks`` and of ``add_hook(..., dir="bwd")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .added_hooks import added_hooks
from .gradients import gradients
from .hooks import HookPoint, Layer, backward_hooks
from .places import Names, find_places, name_of

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[np.float32]


def shown_gradients(
    model: Model,
    batch: Sequence[Sequence[int]],
    dlogits: ArrayLike,
    names_filter: Names,
    positions: Sequence[int] | None,
    stop_grad: Names,
    held: Mapping[str, Array],
    changed: Sequence[str] = (),
) -> dict[str, Array]:
    """Do what `gradients` does, and call the hooks that are on, from the last activation to the first."""
    hooks = backward_hooks(model._core)
    if not hooks:
        return gradients(model, batch, dlogits, names_filter, positions, stop_grad, held, changed)
    config = model.config
    wanted = find_places(names_filter, config)
    seen = sorted({*wanted, *(place for hook in hooks for place in hook.places)})
    names = [name_of(place, config) for place in seen]
    found = gradients(model, batch, dlogits, names, positions, stop_grad, held, changed)
    added = added_hooks(model._core)
    for place, name in reversed([(place, name_of(place, config)) for place in find_places(names, config)]):
        for hook in hooks:
            if place not in hook.places:
                continue
            shown = found[name].view()
            shown.flags.writeable = False
            parts = name.split(".")
            point = HookPoint(name, Layer(parts[1]) if parts[0] == "blocks" else None, None, None, added)
            if hook.function(shown, point) is not None:
                raise ValueError(
                    f"the hook of gradients at {name!r} returned something: they can be looked at, and stop_grad of "
                    "ActivationCache.backward drops some"
                )
    kept = {name_of(place, config) for place in wanted}
    return {name: array for name, array in found.items() if name in kept}
