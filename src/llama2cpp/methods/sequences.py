"""Methods of `Model` that begin sequences and feed them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import adapters
from ..adapters import Adapter, check_adapter
from ..common.arguments import checked
from ..inside.hooks import for_call
from ..session import Session

if TYPE_CHECKING:
    from ..generation import Prompt
    from ..model import Model


@checked
def session(self: Model, context: int | None = None, adapter: Adapter | None = None) -> Session:
    """Begin an empty sequence.

    Parameters
    ----------
    context : int, optional
        How many tokens it can hold; the model's own if not given. Memory is used only for what is filled.
    adapter : Adapter, optional
        A LoRA adapter of this model, which acts in all that is fed.

    Returns
    -------
    Session

    Raises
    ------
    ValueError
        If `context` is not positive, the adapter is another model's, or the model is closed.
    MemoryError
        If keys and values of so many tokens are more than can be addressed.

    Examples
    --------
    >>> import llama2cpp
    >>> llama2cpp.load("storyteller").session(context=100)
    <llama2cpp.Session: position 0 of 100>
    """
    check_adapter("Model.session", adapter, self)
    return Session(self._core.session(context, None if adapter is None else adapter._core), self, adapter)


@checked
def load_session(
    self: Model, path: str | PathLike[str], context: int | None = None, adapter: Adapter | None = None
) -> Session:
    """Open a session that `Session.save` has written. It goes on with the bits that the saved one would give.

    Parameters
    ----------
    path : str or path
        A session file of this model, made with the same type of keys and values and of activations. How the model
        was opened otherwise does not matter, nor do its name, its threads or the machine.
    context : int, optional
        How many tokens it can hold; as many as the saved session if not given.
    adapter : Adapter, optional
        The one that the saved session had: the file says which.

    Returns
    -------
    Session

    Raises
    ------
    FormatError
        If the file is damaged or no session file, or its session is one of another model or adapter. It says what was
        expected, what was found, and where.
    ValueError
        If `context` is not positive or less than the tokens in the file, or the model is closed.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import llama2cpp
    >>> import tempfile
    >>> model = llama2cpp.load("storyteller")
    >>> session = model.session()
    >>> logits = session.prefill([1, 508, 509])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     session.save(f"{folder}/story.safetensors")
    ...     model.load_session(f"{folder}/story.safetensors", context=100)
    <llama2cpp.Session: position 3 of 100>
    """
    check_adapter("Model.load_session", adapter, self)
    core = self._core.load_session(path, context, None if adapter is None else adapter._core)
    return Session(core, self, adapter)


@checked
def load_adapter(self: Model, path: str | PathLike[str]) -> Adapter:
    """Open a LoRA adapter for this model: what is computed beside its weights, which stay as they are.

    Parameters
    ----------
    path : str or path
        A folder that peft has written (``adapter_config.json`` and ``adapter_model.safetensors``), or a GGUF file that
        llama.cpp's ``convert_lora_to_gguf.py`` has. Of what the model was opened does not matter: an adapter of peft's
        can be used with a GGUF file of its base model.

    Returns
    -------
    Adapter

    Raises
    ------
    FormatError
        If the files are damaged or no LoRA adapter, if they ask for what is not computed (DoRA, biases, modules that
        are saved whole, embeddings, the output matrix, experts), or if they are of another model. It says what was
        found, and where.
    ValueError
        If the model is closed, or on Metal.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> try:
    ...     adapter = model.load_adapter("my-adapter")  # a folder with adapter_config.json, or a GGUF file
    ... except FileNotFoundError:
    ...     print("not there")
    not there
    """
    return adapters.load_adapter(self, path)


@checked
def forward(
    self: Model, rows: Sequence[tuple[Session, Prompt]], special: bool | None = None, all_logits: bool = False
) -> list[NDArray[np.float32]]:
    """Feed several sessions in one pass over the weights. Each gets the bits that it would get alone.

    Parameters
    ----------
    rows : sequence of (Session, tokens)
        Each session of this model, at most once, with at least one token for it, in any form that
        `Session.prefill` takes.
    special : bool, optional
        Whether texts that spell control tokens get them, as in `generate`.
    all_logits : bool
        Return the logits after each of the tokens.

    Returns
    -------
    list of numpy.ndarray
        For each session float32 [vocab_size], the logits after its last token, or with `all_logits`
        [tokens, vocab_size]; copies.

    Raises
    ------
    ValueError
        For a session of another model, a session named twice, no tokens or unknown ones.
    ContextFullError
        If a session has no room for its tokens. All sessions are left as they were.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> first, second = model.session(), model.session()
    >>> [logits.shape for logits in model.forward([(first, [1, 508]), (second, [1])])]
    [(1536,), (1536,)]
    """
    rows = list(rows)
    if any(not isinstance(row, tuple | list) or len(row) != 2 or not isinstance(row[0], Session) for row in rows):
        raise TypeError(
            "Model.forward: rows are pairs of a session and its tokens; model(tokens) gives the logits of whole prompts"
        )
    fed = [(session._core, session._ids(tokens, "Model.forward", special)) for session, tokens in rows]
    generated = [session.position > 0 and np.size(ids) == 1 for (session, _), (_, ids) in zip(rows, fed, strict=True)]
    active = for_call([session for session, _ in rows], self._core, generated=generated)
    return self._core.forward(fed, active, all_logits)
