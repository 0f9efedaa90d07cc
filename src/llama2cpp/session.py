"""One sequence of tokens, and the keys and values that the model has computed for it."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core


class KVCache:
    """The keys and values of a session, layer by layer, as arrays that can be read and written in place.

    Got from ``session.kv``. Keys lie after rotary embedding, in the file's order (``model.config.rope_style``).

    Examples
    --------
    >>> import llama2cpp
    >>> session = llama2cpp.load("stories260K.bin").session()
    >>> logits = session.prefill([1, 403, 407])
    >>> session.kv.keys(0).shape, session.kv.values(4).shape
    ((3, 4, 8), (3, 4, 8))
    >>> session.kv.values(4)[1] = 0  # the second token has nothing more to say in the last layer
    """

    def __init__(self, core: _core.Session) -> None:
        self._core = core

    def keys(self, layer: int) -> NDArray[Any]:
        """Get the keys of one layer, a writable view [position, n_kv_heads, head_dim].

        The view has the rows that exist now. It stays valid when the session goes on, is rewound or is deleted.

        Parameters
        ----------
        layer : int
            From 0 to ``config.n_layers - 1``.

        Returns
        -------
        numpy.ndarray
            float32, or float16 for a model loaded with ``kv="f16"``.

        Raises
        ------
        ValueError
            If there is no such layer.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("stories260K.bin").session()
        >>> logits = session.step(1)
        >>> session.kv.keys(0).shape
        (1, 4, 8)
        """
        return self._core.keys(layer)

    def values(self, layer: int) -> NDArray[Any]:
        """Get the values of one layer, a writable view [position, n_kv_heads, head_dim].

        Parameters, result and errors are those of `keys`.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("stories260K.bin").session()
        >>> logits = session.step(1)
        >>> session.kv.values(0).shape
        (1, 4, 8)
        """
        return self._core.values(layer)

    def __repr__(self) -> str:
        return f"<llama2cpp.KVCache of {self._core.position} positions>"


class Session:
    """One sequence: the tokens so far, their keys and values, and the logits for what comes next.

    Made by ``model.session()``. It keeps the model's memory alive. Different sessions may be used from different
    threads at the same time.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("stories260K.bin", tokenizer="tok512.bin")
    >>> session = model.session()
    >>> logits = session.prefill(model.tokenizer.encode("Once upon a time"))
    >>> model.tokenizer.piece(int(logits.argmax()))
    b','
    >>> session
    <llama2cpp.Session: position 5 of 512>
    """

    def __init__(self, core: _core.Session) -> None:
        self._core = core

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
        >>> session = llama2cpp.load("stories260K.bin").session()
        >>> session.step(1).shape
        (512,)
        """
        return self._core.step(token)

    def prefill(self, tokens: Sequence[int] | NDArray[Any], all_logits: bool = False) -> NDArray[np.float32]:
        """Take many tokens in one pass. The results have the same bits as step by step.

        Ctrl-C ends the call, and leaves the session as it was before it.

        Parameters
        ----------
        tokens : sequence of int, or array of integers [T]
            At least one id, all below ``config.vocab_size``.
        all_logits : bool
            Return the logits after every token, not only after the last one.

        Returns
        -------
        numpy.ndarray
            float32 [vocab_size], or [T, vocab_size] with `all_logits`; a copy.

        Raises
        ------
        ValueError
            If there are no tokens, or a token that the model does not have, or they are not integers.
        ContextFullError
            If the tokens do not fit. The session is left as it was.

        Examples
        --------
        >>> import llama2cpp
        >>> session = llama2cpp.load("stories260K.bin").session()
        >>> session.prefill([1, 403, 407]).shape
        (512,)
        >>> session.prefill([261, 378], all_logits=True).shape
        (2, 512)
        >>> session.position
        5
        """
        return self._core.prefill(tokens, all_logits)

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
        >>> session = llama2cpp.load("stories260K.bin").session()
        >>> logits = session.prefill([1, 403, 407])
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
        >>> session = llama2cpp.load("stories260K.bin").session()
        >>> logits = session.prefill([1, 403, 407])
        >>> other = session.fork()
        >>> logits = other.step(261)
        >>> session.position, other.position
        (3, 4)
        """
        return Session(self._core.fork())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the session to a file, from which `Model.load_session` makes one that goes on with the same bits.

        It is a safetensors file: ``tokens`` I32 [position], ``logits`` F32 [vocab_size] where there are some, and
        ``layers.{i}.keys`` and ``layers.{i}.values``, F32 or F16 [position, n_kv_heads, head_dim], as `kv` shows them.
        Its metadata names the model by a fingerprint of its configuration and weights.

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
        >>> model = llama2cpp.load("stories260K.bin")
        >>> session = model.session()
        >>> logits = session.prefill([1, 403, 407])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     session.save(f"{folder}/story.safetensors")
        ...     again = model.load_session(f"{folder}/story.safetensors")
        >>> again.tokens, bool((again.step(261) == session.step(261)).all())
        ([1, 403, 407], True)
        """
        self._core.save(path)

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
        """The logits after the last token, float32 [vocab_size], a copy. None at the start and after a rewind."""
        return self._core.logits

    @property
    def kv(self) -> KVCache:
        """The keys and values computed so far."""
        return KVCache(self._core)

    def __repr__(self) -> str:
        return f"<llama2cpp.Session: position {self.position} of {self.context}>"
