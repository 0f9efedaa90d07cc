"""Hooks that stay with a model until they are taken away: what `Model.add_hook` keeps. `hooks.py` calls them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from .. import _core

if TYPE_CHECKING:
    from .hooks import Scope

Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True)
class Added:
    """One call of `Model.add_hook`.

    Attributes
    ----------
    scope : Scope
        What acts.
    names : frozenset of str
        At which activations.
    direction : str
        "fwd" or "bwd".
    permanent : bool
        Whether it survives `Model.reset_hooks`.
    at : callable
        Makes what acts at others of these names.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.added_hooks import added_hooks
    >>> model = llama2cpp.load("storyteller")
    >>> model.add_hook("z0", lambda z, hook: z * 0)
    >>> [sorted(added.names) for added in added_hooks(model._core).all]
    [['blocks.0.attn.hook_z']]
    """

    scope: Scope
    names: frozenset[str]
    direction: Direction
    permanent: bool
    at: Callable[[list[str]], Scope]


class AddedHooks:
    """The hooks that have been added to a model, and what hooks note at its activations.

    Examples
    --------
    >>> from llama2cpp.inside.added_hooks import AddedHooks
    >>> AddedHooks().context("hook_embed")
    {}
    """

    def __init__(self) -> None:
        self._all: tuple[Added, ...] = ()  # replaced as a whole, so that a call in another thread sees one state
        self._contexts: dict[str, dict[str, Any]] = {}

    @property
    def all(self) -> tuple[Added, ...]:
        """Give all, in the order of adding."""
        return self._all

    @all.setter
    def all(self, hooks: tuple[Added, ...]) -> None:
        with _lock:
            self._all = hooks
            (_in_use.add if hooks else _in_use.discard)(self)

    def context(self, name: str) -> dict[str, Any]:
        """Give the dict of an activation that all hooks there share."""
        return self._contexts.setdefault(name, {})

    def clear_contexts(self) -> None:
        """Forget what hooks have noted."""
        self._contexts = {}

    def scopes(self, direction: Direction) -> tuple[Scope, ...]:
        """Give what acts in one direction, in the order of adding."""
        return tuple(added.scope for added in self.all if added.direction == direction)

    def remove(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        *,
        name: str | None = None,
        including_permanent: bool = False,
    ) -> None:
        """Take hooks away: all, or those at one activation (what acts at others too, goes on there)."""
        kept = []
        for added in self.all:
            stays = (added.permanent and not including_permanent) or direction not in (added.direction, "both")
            if stays or (name is not None and name not in added.names):
                kept.append(added)
            elif name is not None and len(added.names) > 1:
                names = added.names - {name}
                kept.append(replace(added, scope=added.at(sorted(names)), names=names))
        self.all = tuple(kept)


# A model holds its own, which its hooks may refer back to; here they are found by what a call knows.
_by_core: weakref.WeakKeyDictionary[_core.Model, weakref.ref[AddedHooks]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()
_in_use: weakref.WeakSet[AddedHooks] = weakref.WeakSet()  # those that have some


def any_added() -> bool:
    """Whether any model has hooks that were added: the question of each step, so it has to cost next to nothing."""
    return bool(_in_use)


def added_hooks(core: _core.Model) -> AddedHooks:
    """Find what has been added to a model, or begin it; models that share their weights share their hooks.

    Parameters
    ----------
    core : Model
        The core's.

    Returns
    -------
    AddedHooks
        To be held: it is forgotten with the last reference.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.added_hooks import added_hooks
    >>> model = llama2cpp.load("storyteller")
    >>> added_hooks(model._core) is model._added_hooks
    True
    """
    reference = _by_core.get(core)
    found = None if reference is None else reference()
    if found is not None:
        return found
    with _lock:
        reference = _by_core.get(core)
        found = (None if reference is None else reference()) or AddedHooks()
        _by_core[core] = weakref.ref(found)
    return found
