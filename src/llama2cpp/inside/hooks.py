"""Hooks: Python callables and interventions that see and change activations while the model runs.

A hook acts where it is switched on: in the ``with`` block of `Model.hooks` or `Session.hooks`, or in one call of
`Model.run_with_hooks`; a recording in that of `Model.record` or `Session.record`. What is on is kept in a context
variable, so other threads' calls do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.not_pickled import NotPickled
from ..interventions import Intervention, Replacement, When
from .added_hooks import AddedHooks, added_hooks, any_added
from .part_inputs import multiplies, part_input_hooks
from .places import Names, Place, find_places, name_of, split_inputs

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..session import Session
    from .tracks import Tracks


class Layer(int):
    """A layer's number, which can be called, too: ``hook.layer`` and, as in TransformerLens, ``hook.layer()``.

    Examples
    --------
    >>> from llama2cpp.inside.hooks import Layer
    >>> Layer(3), Layer(3)() + 1
    (3, 4)
    """

    def __call__(self) -> int:
        """Give the number."""
        return int(self)


@dataclass(slots=True)  # not frozen, which would make it slower to make than a small activation is to copy
class HookPoint:
    """Where a hook is called: its second argument.

    Attributes
    ----------
    name : str
        TransformerLens's name of the activation, such as "blocks.3.attn.hook_z".
    layer : int or None
        The layer in the name, which can also be called, as TransformerLens's ``hook.layer()``; None for "hook_embed"
        and "ln_final".
    session : Session or None
        Whose activation it is. It is in the middle of the call: its position and tokens are those before it, and it
        cannot be used for another call. None where all prompts of a run are shown at once, as `Model.hooks` says.
    position : int or None
        The position of the first token that is shown: row t belongs to the token at ``position + t``. None where there
        is no session.
    ctx : dict
        For notes: all hooks at an activation of a model share it, until `Model.reset_hooks`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> def look(activation, hook):
    ...     print(hook.name, hook.layer, hook.position, activation.shape)
    >>> with model.hooks([("blocks.4.hook_mlp_out", look)]):
    ...     session = model.session()
    ...     logits = session.prefill([1, 508, 509])
    ...     logits = session.step(260)
    blocks.4.hook_mlp_out 4 0 (1, 3, 192)
    blocks.4.hook_mlp_out 4 3 (1, 1, 192)
    """

    name: str
    layer: Layer | None
    session: Session | None
    position: int | None
    _added: AddedHooks | None = field(default=None, repr=False, compare=False)

    @property
    def ctx(self) -> dict[str, Any]:
        """What hooks have noted at this activation."""
        return {} if self._added is None else self._added.context(self.name)


HookFunction: TypeAlias = Callable[[NDArray[np.float32], HookPoint], object]
Hook: TypeAlias = tuple[Names, HookFunction] | Intervention | Replacement


@dataclass(frozen=True, slots=True)
class _Entry:
    """One hook with its places."""

    places: _core.Places
    what: Callable[..., object] | _core.Intervention
    prompt: int | None = None  # of a call it acts on this one only,
    prompts: int | None = None  # and the call has so many
    when: When | None = None
    changes: Sequence[Place] = ()  # where an intervention may change something
    replaces: bool = False  # whether a function leaves nothing of what it is shown, and does not read it


@dataclass(frozen=True, slots=True)
class Backward:
    """A function that is shown gradients."""

    places: Sequence[Place]
    function: Callable[[NDArray[np.float32], HookPoint], object]


@dataclass(frozen=True, eq=False, slots=True)
class Scope:
    """Hooks or a recording that are on for the calls of a model's sessions, or of one session."""

    model: _core.Model
    session: _core.Session | None
    entries: Sequence[_Entry] = ()
    tracks: Tracks | None = None
    backward: Sequence[Backward] = ()

    def concerns(self, session: Session) -> bool:
        """Whether it looks at this session, one of its model."""
        return self.session is None or self.session is session._core


_active: ContextVar[tuple[Scope, ...]] = ContextVar("llama2cpp_hooks", default=())


class Scoped(NotPickled):
    """A context manager in which something looks at calls: what hooks and recordings have in common."""

    _instead = "hooks are on in one process; pass on the list that they were made of"

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> Self:
        _active.set((*_active.get(), self._scope))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scopes = list(_active.get())
        if self._scope in scopes:  # the one that was entered last
            del scopes[len(scopes) - 1 - scopes[::-1].index(self._scope)]
        _active.set(tuple(scopes))


class ActiveHooks(Scoped):
    """What `Model.hooks` and `Session.hooks` return: a context manager in which their hooks are on."""

    def __init__(
        self,
        model: _core.Model,
        session: _core.Session | None,
        fwd_hooks: Iterable[Hook] | None,
        bwd_hooks: Iterable[Hook] | None = (),
    ) -> None:
        entries = [entry for hook in fwd_hooks or () for entry in _entries(hook, model)]
        backward = [_backward(hook, model.config) for hook in bwd_hooks or ()]
        super().__init__(Scope(model, session, entries, backward=backward))


@dataclass(slots=True)
class Watch:
    """Which places functions have changed, by name."""

    places: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)  # those of them of which a dictionary left nothing

    @property
    def changed(self) -> bool:
        """Whether any."""
        return bool(self.places)


_watch: ContextVar[Watch | None] = ContextVar("llama2cpp_watch", default=None)


@contextmanager
def watching() -> Iterator[Watch]:
    """Look in this block whether hooks that are functions change anything."""
    watch = Watch()
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


def _backward(hook: Hook, config: _core.Config) -> Backward:
    if isinstance(hook, Intervention | Replacement):
        raise ValueError("a hook of gradients is an intervention, expected (name or predicate, function)")
    names, function = _pair(hook)
    inputs, rest = split_inputs(names, config)
    if inputs:
        raise ValueError(
            f"{inputs[0]!r} has no gradient of its own: what the MLP's input adds is that of hook_resid_mid less that "
            "of hook_resid_post"
        )
    return Backward(find_places(rest, config), function)


def _entries(hook: Hook, core: _core.Model, *, replaces: bool = False) -> list[_Entry]:
    config = core.config
    if isinstance(hook, Intervention):
        return [
            _Entry(_core.Places(part.places, config), part.change, part.prompt, part.prompts, hook.when, part.places)
            for part in hook.compile(config)
        ]
    if isinstance(hook, Replacement):
        return [
            replace(entry, when=hook.when, replaces=replaces)
            for name, own, replaces in hook.hooks(core)
            for entry in _entries((name, own), core, replaces=replaces)
        ]
    names, function = _pair(hook)
    added = added_hooks(core)

    def call(
        activation: NDArray[np.float32], name: str, layer: int | None, session: Session | None, position: int | None
    ) -> object:
        point = HookPoint(name, None if layer is None else layers[layer], session, position, added)
        watch = _watch.get()
        if watch is not None and replaces:
            watch.places.add(name)
            watch.replaced.add(name)
        if watch is None or name in watch.places:
            return function(activation, point)
        before = activation.copy()  # sums of bits would be cheaper, and miss what is only put in another order
        given = function(activation, point)
        after = activation if given is None else np.asarray(given)
        if not np.array_equal(before, after):
            watch.places.add(name)
        return given

    layers = [Layer(i) for i in range(config.n_layers)]
    inputs, rest = split_inputs(names, config)
    entries = [_Entry(_core.Places(places, config), what) for places, what in part_input_hooks(inputs, call, core)]
    if callable(rest) or rest or not inputs:
        entries.append(_Entry(_core.Places(find_places(rest, config), config), call))
    return entries


def _pair(hook: Hook) -> tuple[Names, HookFunction]:
    """Check what is to be a name and a function."""
    try:
        names, function = hook  # type: ignore[misc]
    except (TypeError, ValueError):
        raise ValueError(f"a hook is {hook!r}, expected (name or predicate, function) or an intervention") from None
    if not callable(function):
        raise ValueError(f"the hook at {names!r} is of type {type(function).__name__}, which cannot be called")
    return names, function


def for_call(
    sessions: Sequence[Session],
    model: _core.Model | None = None,
    *,
    generated: bool | Sequence[bool] = False,
    together: bool = False,
    first: int = 0,
    prompts: int | None = None,
    added: bool = True,
) -> _core.CallHooks | None:
    """Collect what looks at a call which feeds these sessions, all of one model; None if nothing does.

    Parameters
    ----------
    sessions : sequence of Session
        In the order of the call.
    model : Model, optional
        The core's; asked of the first session if not given.
    generated : bool or sequence of bool
        Whether the tokens that are fed have been generated, and are no prompt; of each session, or of all.
    together : bool
        Whether functions are shown all sessions at once.
    first, prompts : int
        Of how many prompts these are the ones from `first` on; all, if not given.
    added : bool
        Whether those of `Model.add_hook` look too; an engine's requests have taken them in.

    Raises
    ------
    ValueError
        For an intervention that is made for another number of prompts.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.inside.hooks import for_call
    >>> for_call([llama2cpp.load().session()]) is None
    True
    """
    scopes = _active.get()
    added = added and any_added()
    if not sessions or not (scopes or added):
        return None
    if model is None:
        model = sessions[0]._core.model
    if added:
        scopes = (*added_hooks(model).scopes("fwd"), *scopes)
    scopes = tuple(
        scope for scope in scopes if scope.model is model and any(scope.concerns(session) for session in sessions)
    )
    if not scopes:
        return None
    call = _core.CallHooks(model, list(sessions))
    adapted = any(session.adapter is not None for session in sessions)
    count = len(sessions) if prompts is None else prompts
    for scope in scopes:
        concerned: list[int | None] = [None]
        if scope.session is not None:
            concerned = [i for i, session in enumerate(sessions) if scope.concerns(session)]
        for sequence in concerned:
            for entry in scope.entries:
                for which in _chosen(entry, sequence, len(sessions), generated, first, count):
                    if adapted and multiplies(entry.what):
                        raise ValueError(
                            "hooks at hook_q_input, hook_k_input, hook_v_input and hook_attn_in multiply with the "
                            "model's own matrices, and a session of the call has an adapter"
                        )
                    if isinstance(entry.what, _core.Intervention):
                        call.add_intervention(entry.places, entry.what, which)
                    else:
                        call.add_callback(entry.places, entry.what, which, together, entry.replaces)
    for scope in scopes:  # after all edits, so that what the model goes on with is kept
        if scope.tracks is not None:
            tracks = [scope.tracks.of(session) if scope.concerns(session) else None for session in sessions]
            call.add_recorder(scope.tracks.recorder, tracks)
    return call


def _chosen(
    entry: _Entry, sequence: int | None, sessions: int, generated: bool | Sequence[bool], first: int, prompts: int
) -> Iterable[int | None]:
    """Give the sessions of a call that an entry acts on; [None] for all."""
    if entry.prompts is not None and entry.prompts != prompts:
        raise ValueError(
            f"patch_from: the cache has {entry.prompts} prompts, and the call {prompts}: each gets its own row"
        )
    chosen: Iterable[int | None] = [sequence]
    if entry.prompt is not None:
        own = entry.prompt - first
        chosen = [own] if 0 <= own < sessions and sequence in (None, own) else []
    if entry.when is None:
        return chosen
    wanted = entry.when == "generated"
    if isinstance(generated, bool):
        return chosen if generated == wanted else []
    everyone = [*range(sessions)] if None in chosen else chosen
    return [i for i in everyone if i is not None and generated[i] == wanted]


def scopes_of(model: _core.Model) -> tuple[Scope, ...]:
    """Give what is on in this context for all sessions of a model."""
    active = tuple(scope for scope in _active.get() if scope.model is model and scope.session is None)
    return (*added_hooks(model).scopes("fwd"), *active)


def any_hooks(model: _core.Model, watch: Watch | None = None) -> bool:
    """Whether hooks, and not only recordings, are on for a model in this context.

    With a `watch` over a run only those count that have changed something, or may have.
    """
    entries = [entry for scope in scopes_of(model) for entry in scope.entries]
    if watch is not None and not watch.changed:
        return any(isinstance(entry.what, _core.Intervention) for entry in entries)
    return bool(entries)


def changed_places(model: _core.Model, watch: Watch) -> set[str]:
    """Name where hooks have changed something in a run that was watched, or where interventions may have."""
    entries = [entry for scope in scopes_of(model) for entry in scope.entries]
    return watch.places | {name_of(place, model.config) for entry in entries for place in entry.changes}


def backward_hooks(model: _core.Model) -> list[Backward]:
    """Give the functions that are shown gradients in this context."""
    scopes = (*added_hooks(model).scopes("bwd"), *scopes_of(model))
    return [each for scope in scopes for each in scope.backward if each.places]


def forked(session: Session, fork: Session) -> None:
    """Tell the recordings that are on for a session that `fork` has begun as its copy."""
    for scope in _active.get():
        if scope.tracks is not None and scope.session is None and scope.model is session._core.model:
            scope.tracks.follow(session, fork)
