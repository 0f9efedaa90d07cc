"""One sequence of tokens, and the keys and values that the model has computed for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .adapters import Adapter
from .common.arguments import checked, float_array, index
from .common.kv_size import kv_bytes
from .common.not_pickled import NotPickled
from .common.parts import get_part
from .common.token_ids import Prompt, to_ids
from .inside.hooks import ActiveHooks, for_call, forked
from .inside.html_views import chips, facts_html, size_text, token_list
from .inside.places import layer_or_end
from .inside.read_only_arrays import read_only
from .inside.recording import Recording

if TYPE_CHECKING:
    from typing_extensions import Self

    from .inside.hooks import Hook
    from .inside.places import Names
    from .inside.readable_model import ReadableModel


_NOT_WRITTEN = (
    "keys and values in q8_0 are shown as read-only copies: load with kv_dtype='f16' to write into them, or "
    "use kv.splice"
)


class KVCache(NotPickled):
    """The keys and values of a session, layer by layer, as arrays that can be read and written in place.

    Got from ``session.kv``. Keys lie after rotary embedding, in the file's order (``model.config.rope_style``).

    Examples
    --------
    >>> import llama2cpp
    >>> session = llama2cpp.load("storyteller").session()
    >>> logits = session.prefill([1, 508, 509])
    >>> session.kv.keys(0).shape, session.kv.values(4).shape
    ((3, 2, 32), (3, 2, 32))
    >>> session.kv.values(4)[1] = 0  # the second token has nothing more to say in the last layer
    """

    _instead = "session.fork() copies the session that it is of, session.save(path) writes it"

    def __init__(self, core: _core.Session) -> None:
        self._core = core

    def keys(self, layer: int) -> NDArray[Any]:
        """Get the keys of one layer, a writable view [position, n_kv_heads, head_dim].

        The view has the rows that exist now. It stays valid when the session goes on, is rewound or is deleted. With
        ``kv_dtype="q8_0"`` it is a read-only copy instead: the numbers that the cache stands for, exactly, as they are
        now; `splice` writes there.

        Parameters
        ----------
        layer : int
            From 0 to ``config.n_layers - 1``; negative counts from the last.

        Returns
        -------
        numpy.ndarray
            float32, or float16 for a model loaded with ``kv_dtype="f16"``.

        Raises
        ------
        ValueError
            If there is no such layer.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> logits = session.step(1)
        >>> session.kv.keys(0).shape
        (1, 2, 32)
        """
        return self._shown(self._core.keys(self._layer(layer, "KVCache.keys")))

    def values(self, layer: int) -> NDArray[Any]:
        """Get the values of one layer, a writable view [position, n_kv_heads, head_dim].

        Parameters, result and errors are those of `keys`.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> logits = session.step(1)
        >>> session.kv.values(0).shape
        (1, 2, 32)
        """
        return self._shown(self._core.values(self._layer(layer, "KVCache.values")))

    def _is_copied(self) -> bool:
        return self._core.model.kv_dtype == "q8_0"

    def _shown(self, array: NDArray[Any]) -> NDArray[Any]:
        """Give an array of the cache, or of a cache of integers a copy that refuses to be written."""
        return read_only(array, _NOT_WRITTEN) if self._is_copied() else array

    def _layer(self, layer: int, function: str) -> int:
        return index(layer, self._core.config.n_layers, "layer", function)

    @checked
    def unrotated_keys(self, layer: int) -> NDArray[np.float32]:
        """Compute the keys of one layer as they were before rotary embedding: what a token says wherever it stands.

        Parameters
        ----------
        layer : int
            From 0 to ``config.n_layers - 1``; negative counts from the last.

        Returns
        -------
        numpy.ndarray
            float32 [position, n_kv_heads, head_dim], read-only, in half-split order: within rounding what
            ``blocks.{layer}.attn.hook_k`` had.

        Raises
        ------
        ValueError
            If there is no such layer, or keys are normalized after rotary embedding (``qk_norm="head_after_rope"``).

        Examples
        --------
        >>> import llama2cpp, numpy
        >>> session = llama2cpp.load("storyteller").session()
        >>> logits = session.prefill([508, 508, 508])  # one token at three positions
        >>> keys = session.kv.unrotated_keys(0)
        >>> bool(numpy.allclose(keys[0], keys[2], atol=1e-5)), bool(numpy.allclose(*session.kv.keys(0)[[0, 2]]))
        (True, False)
        """
        config = self._core.config
        layer = self._layer(layer, "KVCache.unrotated_keys")
        keys = self._core.keys(layer)
        if config.qk_norm == "head_after_rope":
            raise ValueError("KVCache.unrotated_keys: qk_norm is head_after_rope, and what hook_k had is not kept")
        cos, sin = (angles.astype(np.float64) for angles in self._core.rotary(len(keys), layer))
        length = _rotary_length(config, layer)
        if length != 1:
            cos, sin = cos / length**2, sin / length**2
        if layer in config.no_rope_layers:
            cos, sin = np.ones_like(cos), np.zeros_like(sin)
        unrotated = _turn(keys, cos, -sin, config, "half_split").astype(np.float32)
        return read_only(unrotated, "unrotated keys are computed and read-only: write into kv.keys(layer), or a copy")

    @checked
    def splice(
        self, source: KVCache, begin: int, end: int, at: int | None = None, *, layers: Iterable[int] | None = None
    ) -> None:
        """Put the keys and values of some positions of another session in the place of this one's.

        From then on this session's tokens look at those. Its list of tokens and its logits stay as they are: rewind by
        one token and step again for logits that know of it. What an adapter of the other session has made comes as it
        is; tokens that follow here are computed with this session's adapter, or none.

        Parameters
        ----------
        source : KVCache
            That of another session, or this one, of a model with the same layers, heads and order of pairs (one made by
            `Model.with_weights`, for instance).
        begin, end : int
            Positions [begin, end) of `source`.
        at : int, optional
            The first position here; `begin` if not given. Keys that move to another position are turned there, within
            rounding, and so are those of a model, or of a LongRoPE context, with other rotary angles. Others keep their
            bits (or are rounded to q8_0 where this session's are; what was rounded once stays as it is).
        layers : iterable of int, optional
            In which layers, all if not given; negative counts from the last.

        Raises
        ------
        ValueError
            If one of the two does not have these positions, there is no such layer, or the models differ in shape; if
            keys would have to be turned that a norm after rotary embedding (``qk_norm="head_after_rope"``) has
            multiplied by 0.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> boy, girl = model.session(), model.session()
        >>> logits = boy.prefill("The boy")
        >>> logits = girl.prefill("The girl")
        >>> boy.kv.splice(girl.kv, 0, girl.position)
        >>> bool((boy.step(260) == girl.step(260)).all())
        True
        """
        at = begin if at is None else at
        mine, theirs = self._core.config, source._core.config
        for name in ("n_layers", "n_kv_heads", "head_dim", "rope_style", "rotary_dim", "no_rope_layers", "qk_norm"):
            if getattr(mine, name) != getattr(theirs, name):
                raise ValueError(f"{name} is {getattr(mine, name)} here and {getattr(theirs, name)} in the source")
        count = end - begin
        for what, first, position in (("source", begin, source._core.position), ("session", at, self._core.position)):
            if count < 0 or first < 0 or first + count > position:
                raise ValueError(f"positions {first} to {first + count} are not in the {what}, which has {position}")
        chosen = range(mine.n_layers) if layers is None else [self._layer(i, "KVCache.splice") for i in layers]
        new = [(i, self._moved(source, i, begin, end, at), source.values(i)[begin:end].copy()) for i in chosen]
        for layer, keys, values in new:
            if self._is_copied():
                self._core.store_kv(layer, at, keys, values)
                continue
            self.keys(layer)[at : at + count] = keys
            self.values(layer)[at : at + count] = values

    def _moved(self, source: KVCache, layer: int, begin: int, end: int, at: int) -> NDArray[Any]:
        """Give the keys of `source` as they would be here from `at` on: their own bits if they are turned as there."""
        keys: NDArray[Any] = source.keys(layer)[begin:end].copy()
        mine, theirs = self._core.config, source._core.config
        if layer in mine.no_rope_layers or begin == end:
            return keys
        old = [angles[begin:] for angles in source._core.rotary(end, layer)]
        new = [angles[at:] for angles in self._core.rotary(at + end - begin, layer)]
        if all(np.array_equal(before, after) for before, after in zip(old, new, strict=True)):
            return keys
        (old_cos, old_sin), (cos, sin) = (np.array(pair, dtype=np.float64) for pair in (old, new))
        turn_cos = cos * old_cos + sin * old_sin  # of the difference of the angles
        turn_sin = sin * old_cos - cos * old_sin
        # cos and sin of both are multiplied by a length. A norm after them has taken it away, but for its epsilon.
        old_length, length = _rotary_length(theirs, layer), _rotary_length(mine, layer)
        normed = mine.qk_norm == "head_after_rope"
        square = old_length * (length if normed else old_length)
        if square != 1:
            turn_cos, turn_sin = turn_cos / square, turn_sin / square
        if not normed:
            return _turn(keys, turn_cos, turn_sin, mine, mine.rope_style)
        gain = source._gain_of_keys(layer)
        return _turn(keys / gain, turn_cos, turn_sin, mine, mine.rope_style) * gain

    def _gain_of_keys(self, layer: int) -> NDArray[np.float64]:
        """[head_dim]: what the norm after rotary embedding has multiplied keys by."""
        model = self._core.model
        gain = model.weight(model.part_names()[get_part("k_norm").at(layer)]).astype(np.float64)
        if not gain.all():
            raise ValueError(
                f"KVCache.splice to other positions: k_norm of layer {layer} has a gain of 0, and what it took away of "
                f"keys cannot be turned"
            )
        return gain

    def __repr__(self) -> str:
        config = self._core.config
        return (
            f"<llama2cpp.KVCache: {self._core.position} of {self._core.context} positions, {config.n_layers} layers, "
            f"{config.n_kv_heads} heads of {config.head_dim}, {self._core.model.kv_dtype}>"
        )

    def _repr_html_(self) -> str:
        config, position = self._core.config, self._core.position
        shape = [position, config.n_kv_heads, config.head_dim]
        kind = "read-only copies" if self._is_copied() else "writable"
        facts = {
            "positions": f"{position} of {self._core.context}",
            "layers": config.n_layers,
            "keys(layer), values(layer)": f"{self._core.model.kv_dtype} {shape}, {kind}",
            "memory in use": size_text(kv_bytes(config, self._core.model.kv_dtype, position)),
        }
        return facts_html("llama2cpp.KVCache", facts)


def _turn(
    keys: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any], config: _core.Config, style: str
) -> NDArray[np.float64]:
    """Turn [T, heads, head_dim] by [T, rotary / 2]: all of a head in the order of `style`, or its first numbers."""
    count = config.rotary_dim or config.head_dim
    turned = _from_pairs(_turned(_to_pairs(keys[..., :count], config.rope_style), cos, sin), style)
    return np.concatenate([turned, keys[..., count:]], axis=-1)


def _to_pairs(keys: NDArray[Any], style: str) -> NDArray[np.float64]:
    """[T, heads, head_dim] -> [T, heads, 2, head_dim / 2]: the first and the second of each rotary pair."""
    pairs = keys.shape[-1] // 2
    split = keys.astype(np.float64).reshape(*keys.shape[:-1], *((pairs, 2) if style == "interleaved" else (2, pairs)))
    return np.swapaxes(split, -1, -2) if style == "interleaved" else split


def _from_pairs(pairs: NDArray[np.float64], style: str) -> NDArray[np.float64]:
    pairs = np.swapaxes(pairs, -1, -2) if style == "interleaved" else pairs
    return pairs.reshape(*pairs.shape[:-2], pairs.shape[-2] * pairs.shape[-1])


def _rotary_length(config: _core.Config, layer: int) -> float:
    """Give what cos and sin are multiplied by: keys that are turned by them twice are longer by its square."""
    local = config.local_rope_theta > 0 and layer not in config.full_layers
    scaling = None if local else config.rope_scaling
    return float(scaling.get("attention_factor", 1.0)) if scaling is not None else 1.0


def _turned(pairs: NDArray[np.float64], cos: NDArray[Any], sin: NDArray[Any]) -> NDArray[np.float64]:
    """Each pair by its position's angle: pairs [T, heads, 2, head_dim / 2], cos and sin [T, head_dim / 2]."""
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    cos, sin = cos[:, None], sin[:, None]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-2)


class Session(NotPickled):
    """One sequence: the tokens so far, their keys and values, and the logits for what comes next.

    Made by ``model.session()``. It keeps the model's memory alive. Different sessions may be used from different
    threads at the same time.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> session = model.session()
    >>> logits = session.prefill(model.tokenizer.encode("Once upon a time"))
    >>> model.tokenizer.piece(int(logits.argmax()))
    b','
    >>> session
    <llama2cpp.Session: position 5 of 512>
    """

    _instead = (
        "save(path) writes it, and model.load_session(path) opens it again, in another process too; fork() copies it"
    )

    def __init__(self, core: _core.Session, model: ReadableModel | None = None, adapter: Adapter | None = None) -> None:
        self._open_core: _core.Session | None = core
        self._model = model  # for what a notebook shows, and caches
        self._adapter = adapter

    @property
    def _core(self) -> _core.Session:
        if self._open_core is None:
            raise ValueError("the session is closed")
        return self._open_core

    def step(self, token: int) -> NDArray[np.float32]:
        """Take one token and return the logits for the next.

        Parameters
        ----------
        token : int
            An id below ``config.vocab_size``.

        Returns
        -------
        numpy.ndarray
            float32 [vocab_size], a copy.

        Raises
        ------
        ValueError
            If the model has no such token.
        ContextFullError
            If the session is full. It is left as it was.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> session.step(1).shape
        (1536,)
        """
        return self._core.step(token, for_call([self], generated=True))

    @checked
    def prefill(
        self,
        tokens: Prompt,
        all_logits: bool = False,
        special: bool | None = None,
        start_at_layer: int | None = None,
    ) -> NDArray[np.float32]:
        """Take many tokens in one pass. The results have the same bits as step by step.

        Ctrl-C ends the call, and leaves the session as it was before it.

        Parameters
        ----------
        tokens : str, bytes, sequence or array of int
            At least one id, all below ``config.vocab_size``: any sequence, an array or a tensor of integers [T] or
            [1, T]. Or a text, which is encoded by itself, with BOS before it where the session is empty and the model
            is used to one.
        all_logits : bool
            Return the logits after every token, not only after the last one.
        special : bool, optional
            Whether a text that spells control tokens gets them, as in `llama2cpp.generate`.
        start_at_layer : int, optional
            `tokens` is the residual stream, float [T, dim], and enters at this layer: what was
            ``blocks.{i}.hook_resid_pre``, changed perhaps. It stands for the next T tokens that the session was rewound
            over, whose keys and values the layers before this one still have. Negative counts from the last layer.

        Returns
        -------
        numpy.ndarray
            float32 [vocab_size], or [T, vocab_size] with `all_logits`; a copy.

        Raises
        ------
        ValueError
            If there are no tokens, or a token that the model does not have, or they are not integers. With
            `start_at_layer` if the session was not rewound over as many tokens, has been fed since then, or was fed at
            an earlier layer: fork it before that.
        ContextFullError
            If the tokens do not fit. The session is left as it was.
        MemoryError
            If their logits, keys and values, or the one pass that editing hooks need, do not fit into memory.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> session.prefill([1, 508, 509]).shape
        (1536,)
        >>> session.prefill([260, 420], all_logits=True).shape
        (2, 1536)
        >>> session.position
        5
        >>> _, cache = llama2cpp.load("storyteller").run_with_cache([1, 508, 509, 260, 420], "resid_pre3")
        >>> before = session.logits
        >>> session.rewind(3)
        >>> after = session.prefill(cache["resid_pre", 3][0, 3:], start_at_layer=3)
        >>> session.tokens, bool((after == before).all())
        ([1, 508, 509, 260, 420], True)
        """
        if start_at_layer is None:
            return self._core.prefill(self._ids(tokens, "Session.prefill", special), all_logits, for_call([self]))
        config = self._core.config
        if isinstance(tokens, str | bytes) or np.ndim(tokens) != 2 or np.shape(tokens)[1] != config.dim:
            raise ValueError(
                f"Session.prefill: with start_at_layer the residual stream is fed, [T, {config.dim}], "
                f"not {'a text' if isinstance(tokens, str | bytes) else f'an array of shape {np.shape(tokens)}'}"
            )
        residual = np.ascontiguousarray(float_array(tokens))
        layer = layer_or_end(start_at_layer, config.n_layers, "Session.prefill: start_at_layer")
        return self._core.prefill_from(residual, layer, all_logits, for_call([self]))

    def _ids(self, tokens: Prompt, function: str, special: bool | None) -> Sequence[int] | NDArray[Any]:
        """Encode a text; the core looks at ids itself."""
        if not isinstance(tokens, str | bytes):
            return tokens
        if self._model is None:
            raise ValueError(f"{function}: the session knows no tokenizer: pass ids")
        return to_ids(self._model, tokens, function=function, begin=self.position == 0, special=special)

    def hooks(self, fwd_hooks: Sequence[Hook] | None) -> ActiveHooks:
        """Switch hooks on for a ``with`` block: they act in calls on this session only.

        That can be a call which feeds others beside it. A fork is another session.

        Parameters
        ----------
        fwd_hooks : sequence of (names, function) or Intervention
            As in `Model.hooks`, and so are errors.

        Returns
        -------
        context manager

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp import interventions
        >>> session = llama2cpp.load("storyteller").session()
        >>> plain = session.fork()
        >>> with session.hooks([interventions.zero("mlp_out", layer=0)]):
        ...     bool((session.step(1) == plain.step(1)).all())
        False
        """
        return ActiveHooks(self._core.model, self._core, fwd_hooks)

    @checked
    def record(self, names_filter: Names | None = None, tokens: int | None = None) -> Recording:
        """Keep the activations of everything that is fed to this session in a ``with`` block.

        Parameters, result and errors are those of `Model.record`. A fork is another session.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> with session.record("resid_post", tokens=100) as recording:
        ...     logits = session.prefill([1, 508])
        ...     logits = session.step(509)
        >>> recording.cache()["resid_post", 0].shape
        (1, 3, 192)
        """
        return Recording(self._core.model, self._core, names_filter, tokens, self._model)

    def rewind(self, position: int) -> None:
        """Keep the first tokens and forget the rest. There are no logits until the next step.

        Parameters
        ----------
        position : int
            How many tokens to keep, from 0 to ``session.position``.

        Raises
        ------
        ValueError
            If the session has fewer tokens than that.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> logits = session.prefill([1, 508, 509])
        >>> session.rewind(1)
        >>> session.tokens, session.logits
        ([1], None)
        """
        self._core.rewind(position)

    def fork(self) -> Session:
        """Copy the session, so that two continuations can be tried. Only the used part is copied.

        Returns
        -------
        Session
            With the same tokens, logits, keys and values, and its own memory.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> logits = session.prefill([1, 508, 509])
        >>> other = session.fork()
        >>> logits = other.step(260)
        >>> session.position, other.position
        (3, 4)
        """
        fork = Session(self._core.fork(), self._model, self._adapter)
        forked(self, fork)
        return fork

    def copy(self) -> Session:
        """Copy the session: `fork` under the name that Python's containers have for it.

        ``copy.copy`` and ``copy.deepcopy`` do so too.

        Returns
        -------
        Session

        Examples
        --------
        >>> import copy
        >>> import llama2cpp
        >>> session = llama2cpp.load("storyteller").session()
        >>> logits = session.prefill([1, 508, 509])
        >>> session.copy().tokens == copy.copy(session).tokens == session.tokens
        True
        """
        return self.fork()

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return self.fork()

    def close(self) -> None:
        """Let go of the keys and values. Arrays and forks made before go on working, and keep what they need.

        A session closes at the end of a ``with`` block; without one, its memory is freed with the last that refers to
        it.

        Examples
        --------
        >>> import llama2cpp
        >>> with llama2cpp.load("storyteller").session() as session:
        ...     logits = session.step(1)
        >>> session
        <llama2cpp.Session: closed>
        """
        self._open_core = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the session to a file, from which `Model.load_session` makes one that goes on with the same bits.

        It is a safetensors file: ``tokens`` I32 [position], ``logits`` F32 [vocab_size] where there are some, and
        ``layers.{i}.keys`` and ``layers.{i}.values``, F32 or F16 [position, n_kv_heads, head_dim], as `kv` shows them.
        Its metadata names the model by a fingerprint of its configuration and weights, and an adapter likewise: to go
        on, the session needs both.

        The file appears when it is complete and on the disk; one that was there before is replaced then, and not
        earlier. A session in the middle of a call in another thread is saved after that call.

        Parameters
        ----------
        path : str or path
            Any name; ``.safetensors`` is what other programs expect.

        Raises
        ------
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import llama2cpp
        >>> import tempfile
        >>> model = llama2cpp.load("storyteller")
        >>> session = model.session()
        >>> logits = session.prefill([1, 508, 509])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     session.save(f"{folder}/story.safetensors")
        ...     again = model.load_session(f"{folder}/story.safetensors")
        >>> again.tokens, bool((again.step(260) == session.step(260)).all())
        ([1, 508, 509], True)
        """
        self._core.save_to(path)

    @property
    def position(self) -> int:
        """How many tokens the session holds."""
        return self._core.position

    @property
    def context(self) -> int:
        """How many tokens the session can hold."""
        return self._core.context

    @property
    def tokens(self) -> list[int]:
        """The ids that the session holds, a copy."""
        return self._core.tokens

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """The logits after the last token, float32 [vocab_size]. None at the start and after a rewind.

        A copy, and read-only: what is written into it would not change what is sampled. Give an edited
        ``session.logits.copy()`` to a `Sampler`.
        """
        logits = self._core.logits
        if logits is None:
            return None
        return read_only(
            logits, "session.logits is a read-only copy: change session.logits.copy(), and give that to Sampler.sample"
        )

    @property
    def adapter(self) -> Adapter | None:
        """The LoRA adapter that acts in all that is fed; forks have it too."""
        _ = self._core  # a closed session has none
        return self._adapter

    @property
    def kv(self) -> KVCache:
        """The keys and values computed so far."""
        return KVCache(self._core)

    def __repr__(self) -> str:
        if self._open_core is None:
            return "<llama2cpp.Session: closed>"
        return f"<llama2cpp.Session: position {self.position} of {self.context}>"

    def _repr_html_(self) -> str:
        if self._open_core is None:
            return "<p>llama2cpp.Session: closed</p>"
        head = f"<p>position {self.position} of {self.context}</p>"
        tokens = self.tokens
        if self._model is None or not self._model.has_tokenizer:
            return head + chips([str(token) for token in tokens], tokens)
        return head + token_list(self._model.tokenizer, tokens)._repr_html_()
