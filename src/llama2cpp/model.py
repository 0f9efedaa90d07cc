"""A loaded model."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import ArrayLike

from . import _core
from ._core import Config, Tokenizer
from .common.arguments import level_of_caller, warn_of_old_name
from .common.generation_config import GenerationConfig, read_generation_config
from .common.library_tokenizer import LibraryTokenizer
from .common.method_names import named_after_class
from .inside import observation, shown_gradients
from .inside.added_hooks import added_hooks
from .inside.html_views import config_html, details_html, facts_html, size_text
from .inside.lens_config import LensConfig
from .inside.weights import Weights, edited
from .methods import asking, chatting, classic, extracting, generating, measuring, observing, sequences, texts

if TYPE_CHECKING:
    from typing_extensions import Self

    from .common.sampling import SamplingOptions
    from .serving.engine import Engine

_own_tokenizers = threading.Lock()


def _new_lock() -> None:
    """In a child of fork(), which has none of the threads that may have had the old one."""
    global _own_tokenizers
    _own_tokenizers = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@named_after_class
class Model(classic.ClassicSurface):
    """A Llama-family model: its configuration, its weights and, where it has one, its tokenizer.

    Made by `load` or `from_arrays`. It never changes, but for hooks that `add_hook` adds, so any number of threads and
    sessions may share it. It closes at the end of a ``with`` block.

    Examples
    --------
    >>> import llama2cpp
    >>> with llama2cpp.load("storyteller") as model:
    ...     print(model.config.n_layers, "layers of", model.config.n_heads, "heads")
    5 layers of 6 heads
    """

    def __init__(
        self, core: _core.Model, tokenizer: Tokenizer | None = None, reopen: Mapping[str, Any] | None = None
    ) -> None:
        self._open_core: _core.Model | None = core
        self._added_hooks = added_hooks(core)
        self._tokenizer = tokenizer  # None: the file's own, made when it is asked for
        self._own_tokenizer: Tokenizer | None = None
        self._generation: GenerationConfig | None = None  # read when it is asked for
        self._told_of_sampling = False
        self._engine: Engine | None = None  # of the methods that need one, made when one does
        self._reopen = reopen  # what load() was given, for a pickle; None for a model that has no file

    @property
    def _core(self) -> _core.Model:
        if self._open_core is None:
            raise ValueError("the model is closed")
        return self._open_core

    session = sequences.session
    load_session = sequences.load_session
    load_adapter = sequences.load_adapter
    forward = sequences.forward

    generate = generating.generate
    complete = generating.complete
    stream = generating.stream
    astream = asking.astream

    chat = chatting.chat
    chat_stream = chatting.chat_stream
    chat_text = chatting.chat_text
    chat_tokens = chatting.chat_tokens

    _run = observation.run_with_cache  # for the function that was called
    _gradients = shown_gradients.shown_gradients  # for caches
    run_with_cache = observing.run_with_cache
    run_with_hooks = observing.run_with_hooks
    __call__ = observing.call
    hooks = observing.hooks
    record = observing.record
    explain = observing.explain
    extract = extracting.extract
    mean_activations = extracting.mean_activations

    add_hook = classic.add_hook
    add_perma_hook = classic.add_perma_hook
    reset_hooks = classic.reset_hooks
    get_caching_hooks = classic.get_caching_hooks
    add_caching_hooks = classic.add_caching_hooks
    input_to_embed = classic.input_to_embed
    loss_fn = classic.loss_fn
    all_composition_scores = classic.all_composition_scores

    perplexity = measuring.perplexity
    unembed = measuring.unembed
    score = asking.score
    embed = asking.embed

    get_token_position = classic.get_token_position
    to_single_str_token = classic.to_single_str_token
    to_single_token = texts.to_single_token
    to_str_tokens = texts.to_str_tokens
    to_tokens = texts.to_tokens
    to_string = texts.to_string

    def with_weights(self, weights: Mapping[str, ArrayLike]) -> Model:
        """Make a model that has other numbers in some of its weights, and shares all the rest with this one.

        Parameters
        ----------
        weights : mapping of str to array
            New values by name: the file's names and shapes, or TransformerLens's (``model.weights.transformer_lens``
            lists them). They are copied. Edited matrices are float32, whatever the file's format, so their inputs are
            not rounded to int8. ``W_E`` or ``W_U`` of a model whose output is its embedding table changes only the one;
            the embedding table's name in the file changes both.

        Returns
        -------
        Model
            With the same threads, context and options; it has no file, so it cannot be pickled.

        Raises
        ------
        ValueError
            For a name that the model has not, a shape that is not the weight's, one weight under two names, or a closed
            model.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> out = model.weights["blocks.0.attn.W_O"].copy()
        >>> out[3] = 0  # head 3 of the first layer may look, but not speak
        >>> mute = model.with_weights({"blocks.0.attn.W_O": out})
        >>> bool((mute.session().step(1) == model.session().step(1)).all())
        False
        """
        return Model(edited(self._core, weights), self._find_tokenizer())

    @property
    def cfg(self) -> LensConfig:
        """The sizes under TransformerLens's names; `config` is the whole configuration."""
        return LensConfig.of(self)

    def close(self) -> None:
        """Let go of the weights. Sessions and arrays made before go on working, and keep what they need.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.close()
        >>> model
        <llama2cpp.Model: closed>
        """
        self._open_core = None
        self._engine = None
        self._added_hooks.all = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle holds the path and not the weights: who unpickles it opens the file again.
        path = self._core.path
        if self._reopen is None:
            raise TypeError("a model of arrays or edited weights cannot be pickled: it has no file to open again")
        return _load_again, (str(Path(path).absolute()), self._tokenizer, dict(self._reopen))

    def __copy__(self) -> Model:
        return Model(self._core, self._tokenizer, self._reopen)  # it never changes, so the weights are shared

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self.__copy__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> Config:
        """The sizes and constants of the model."""
        return self._core.config

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns text into ids and back: what `load` was given, or the file's own.

        Where there is neither it is a ValueError, which says why; `has_tokenizer` asks. What could not be used of the
        file's tokenizer, such as a special id that is not in the vocabulary, is told once, as a UserWarning.
        """
        found = self._find_tokenizer()
        if found is None:
            problem = self.tokenizer_problem
            raise ValueError(
                f"the model has no tokenizer{f' ({problem})' if problem else ''}: pass one, such as "
                "load(path, tokenizer='tokenizer.bin'), or work with ids through model.session()"
            )
        return found

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a `tokenizer`. If not, the model takes and gives ids only."""
        return self._find_tokenizer() is not None

    def _find_tokenizer(self) -> Tokenizer | None:
        if self._tokenizer is not None:
            return self._tokenizer
        with _own_tokenizers:  # making it takes a moment, so once
            if self._own_tokenizer is None and self._open_core is not None:
                self._own_tokenizer = self._open_core.tokenizer
            return self._own_tokenizer

    @property
    def tokenizer_problem(self) -> str:
        """Why the file's tokenizer cannot be used; empty if it can, or if the file has none."""
        return self._core.tokenizer_problem

    @property
    def sampling_defaults(self) -> SamplingOptions:
        """How the file says that the model is to be sampled; a copy, empty where it says nothing.

        ``temperature``, ``top_p``, ``top_k``, ``min_p`` and ``repetition_penalty``, as generation_config.json or a
        GGUF's ``general.sampling`` has them; ``do_sample: false`` is a temperature of 0. `generate`, `chat` and their
        sisters take them for what the caller does not give. What of the file changes texts and is not used, such as
        ``typical_p``, is told once, as a UserWarning.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").sampling_defaults
        {}
        """
        return self._generation_config().options.copy()

    def _generation_config(self) -> GenerationConfig:
        if self._generation is None:
            core = self._core
            self._generation = read_generation_config(core.generation_config, core.generation_problem)
        return self._generation

    def _sampling_defaults(self) -> SamplingOptions:
        """Give the defaults where they are used, and tell once what of the file is not."""
        found = self._generation_config()
        if found.ignored and not self._told_of_sampling:
            self._told_of_sampling = True
            warnings.warn(
                f"{self.path}: what the file says of sampling is not used: {', '.join(found.ignored)}",
                stacklevel=level_of_caller(),
            )
        return found.options

    @property
    def weights(self) -> Weights:
        """The parameter matrices by their names in the file."""
        return Weights(self._core)

    @property
    def context(self) -> int:
        """How many tokens a session holds unless it is told otherwise."""
        return self._core.context

    @property
    def backend(self) -> str:
        """What computes: "cpu" or "metal"."""
        return self._core.backend

    @property
    def isa(self) -> str:
        """Which kernels run: "avx512", "avx2", "neon", "scalar", "reference", or a GPU's family, such as "apple8"."""
        return self._core.isa

    @property
    def threads(self) -> int:
        """How many threads compute."""
        return self._core.threads

    @property
    def activation_dtype(self) -> str:
        """The type in which activations meet the weights: "f32", "int8" for quantized ones, or "bf16"."""
        return self._core.activation_dtype

    @property
    def kv_dtype(self) -> str:
        """The type of keys and values in sessions: "f32" or "f16"."""
        return self._core.kv_dtype

    @property
    def activations(self) -> str:
        """Deprecated: the old name of `activation_dtype`."""
        warn_of_old_name("Model.activations", "Model.activation_dtype")
        return self.activation_dtype

    @property
    def kv(self) -> str:
        """Deprecated: the old name of `kv_dtype`."""
        warn_of_old_name("Model.kv", "Model.kv_dtype")
        return self.kv_dtype

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in ("activations", "kv")]

    @property
    def path(self) -> str:
        """The file that the model was loaded from, empty for arrays."""
        return self._core.path

    @property
    def file_format(self) -> str:
        """What kind of file that is, such as "llama2.c v0"."""
        return self._core.file_format

    def __repr__(self) -> str:
        if self._open_core is None:
            return "<llama2cpp.Model: closed>"
        config = self.config
        return (
            f"<llama2cpp.Model: {self.path or 'arrays'} ({self.file_format}), {config.n_layers} layers, "
            f"dim {config.dim}, vocabulary {config.vocab_size}, context {self.context}, "
            f"{hardware(self)}>"
        )

    def _repr_html_(self) -> str:
        if self._open_core is None:
            return "<p>llama2cpp.Model: closed</p>"
        facts = {
            "file": self.path or "arrays",
            "format": self.file_format,
            "parameters": f"{sum(math.prod(self.weights.info(name)['shape']) for name in self.weights):,}",
            "weights": size_text(sum(self.weights.info(name)["bytes"] for name in self.weights)),
            "context": f"{self.context} tokens, keys and values in {self.kv_dtype}",
            "tokenizer": repr(self.tokenizer)[1:-1] if self.has_tokenizer else "none: ids only",
            "runs on": f"{self.backend}, {self.isa}, {self.threads} thread{'' if self.threads == 1 else 's'}",
            "activations": self.activation_dtype,
        }
        return facts_html("llama2cpp.Model", facts) + details_html("configuration", config_html(self.config))


def hardware(model: Model) -> str:
    """Say what a model runs on, in a few words.

    Parameters
    ----------
    model : Model

    Returns
    -------
    str

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.model import hardware
    >>> hardware(llama2cpp.load("storyteller", threads=1)).endswith(" x 1 threads")
    True
    """
    return f"{model.isa} x {model.threads} threads" if model.backend == "cpu" else f"{model.backend} ({model.isa})"


def _load_again(path: str, tokenizer: Tokenizer | None, options: dict[str, Any]) -> Model:
    """Do what pickles ask for."""
    given = tokenizer.library() if isinstance(tokenizer, LibraryTokenizer) else tokenizer
    # By name: loading.py imports this module, and a process that unpickles may have imported no other.
    loading = import_module(f"{__package__}.loading")
    return cast("Model", loading.load(path, tokenizer=given, **options))
