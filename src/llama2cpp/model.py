"""A loaded model."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core, generation
from ._core import Config, Tokenizer
from .common.arguments import checked, float_array, level_of_caller, naming, spelled_out, warn_of_old_name
from .common.generation_config import GenerationConfig, read_generation_config
from .common.library_tokenizer import LibraryTokenizer
from .common.sampling import Sampling
from .common.token_ids import Rows, listed, several, to_ids
from .dialogue import answers
from .dialogue.chat_format import checked_messages
from .inside import observation
from .inside.hooks import ActiveHooks, for_call
from .inside.html_views import TokenList, config_html, details_html, facts_html, size_text, token_list
from .inside.lens_config import LensConfig
from .inside.recording import Recording
from .inside.weights import StackedWeights, Weights, edited
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .common.sampling import SamplingOptions
    from .dialogue.chat_format import Message
    from .generation import Completion, Prompt
    from .inside.cache import ActivationCache
    from .inside.hooks import Hook
    from .inside.observation import Prompts
    from .inside.places import Names

_PERPLEXITY_CHUNK = 128  # tokens whose logits are in memory at a time

_own_tokenizers = threading.Lock()


def _new_lock() -> None:
    """In a child of fork(), which has none of the threads that may have had the old one."""
    global _own_tokenizers
    _own_tokenizers = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class Model(StackedWeights):
    """A Llama-family model: its configuration, its weights and, where it has one, its tokenizer.

    Made by `load` or `from_arrays`. It never changes, so any number of threads and sessions may share it. It closes
    at the end of a ``with`` block.

    Examples
    --------
    >>> import llama2cpp
    >>> with llama2cpp.load("storyteller") as model:
    ...     print(model.config.n_layers, "layers of", model.config.n_heads, "heads")
    5 layers of 6 heads
    """

    _load: ClassVar[Callable[..., Model]]  # loading.py's load(), which it puts here

    def __init__(
        self, core: _core.Model, tokenizer: Tokenizer | None = None, reopen: Mapping[str, Any] | None = None
    ) -> None:
        self._open_core: _core.Model | None = core
        self._tokenizer = tokenizer  # None: the file's own, made when it is asked for
        self._own_tokenizer: Tokenizer | None = None
        self._generation: GenerationConfig | None = None  # read when it is asked for
        self._told_of_sampling = False
        self._reopen = reopen  # what load() was given, for a pickle; None for a model that has no file

    @property
    def _core(self) -> _core.Model:
        if self._open_core is None:
            raise ValueError("the model is closed")
        return self._open_core

    @checked
    def session(self, context: int | None = None) -> Session:
        """Begin an empty sequence.

        Parameters
        ----------
        context : int, optional
            How many tokens it can hold; the model's own if not given. Memory is used only for what is filled.

        Returns
        -------
        Session

        Raises
        ------
        ValueError
            If `context` is not positive, or the model is closed.
        MemoryError
            If keys and values of so many tokens are more than can be addressed.

        Examples
        --------
        >>> import llama2cpp
        >>> llama2cpp.load("storyteller").session(context=100)
        <llama2cpp.Session: position 0 of 100>
        """
        return Session(self._core.session(context), self)

    @checked
    def load_session(self, path: str | PathLike[str], context: int | None = None) -> Session:
        """Open a session that `Session.save` has written. It goes on with the bits that the saved one would give.

        Parameters
        ----------
        path : str or path
            A session file of this model, made with the same type of keys and values and of activations. How the model
            was opened otherwise does not matter, nor do its name, its threads or the machine.
        context : int, optional
            How many tokens it can hold; as many as the saved session if not given.

        Returns
        -------
        Session

        Raises
        ------
        FormatError
            If the file is damaged or no session file, or its session is one of another model. It says what was
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
        return Session(self._core.load_session(path, context), self)

    @checked
    def forward(self, rows: Sequence[tuple[Session, Prompt]], special: bool | None = None) -> list[NDArray[np.float32]]:
        """Feed several sessions in one pass over the weights. Each gets the bits that it would get alone.

        Parameters
        ----------
        rows : sequence of (Session, tokens)
            Each session of this model, at most once, with at least one token for it, in any form that
            `Session.prefill` takes.
        special : bool, optional
            Whether texts that spell control tokens get them, as in `generate`.

        Returns
        -------
        list of numpy.ndarray
            For each session float32 [vocab_size], the logits after its last token; copies.

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
        active = for_call([session for session, _ in rows], self._core)
        fed = [(session._core, session._ids(tokens, "Model.forward", special)) for session, tokens in rows]
        return self._core.forward(fed, active)

    @overload
    def generate(
        self,
        prompt: Prompt = ...,
        *,
        n: None = ...,
        echo: bool = ...,
        special: bool | None = ...,
        logprobs: None = ...,
        **options: Unpack[SamplingOptions],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Prompt = ...,
        *,
        n: int,
        echo: bool = ...,
        special: bool | None = ...,
        logprobs: None = ...,
        **options: Unpack[SamplingOptions],
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] = ...,
        *,
        n: int | None = ...,
        echo: bool = ...,
        special: bool | None = ...,
        logprobs: int | None = ...,
        **options: Unpack[SamplingOptions],
    ) -> Any: ...  # noqa: ANN401
    @spelled_out(Sampling)
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        n: int | None = None,
        echo: bool = False,
        special: bool | None = None,
        logprobs: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Any:
        """Continue a prompt with this model, or several at once.

        Parameters, result and errors are those of `llama2cpp.generate`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.generate("Once upon a time", max_tokens=12, temperature=0)
        ', in a green village, there lived a little boy named'
        """
        return generation.generate(prompt, model=self, n=n, echo=echo, special=special, logprobs=logprobs, **options)

    @spelled_out(Sampling)
    def complete(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        n: int | None = None,
        echo: bool = False,
        special: bool | None = None,
        logprobs: int = 0,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion]:
        """Continue a prompt with this model, or several at once, and say what is known about each token.

        Parameters, result and errors are those of `llama2cpp.complete`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> [completion] = model.complete("Once upon a", max_tokens=1, temperature=0)
        >>> completion.text, round(completion.logprobs[0], 2) + 0
        (' time', 0.0)
        """
        return generation.complete(prompt, model=self, n=n, echo=echo, special=special, logprobs=logprobs, **options)

    @spelled_out(Sampling)
    def stream(
        self,
        prompt: Prompt = "",
        *,
        echo: bool = False,
        special: bool | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Continue a prompt with this model, and give the text as it comes.

        Parameters, result and errors are those of `llama2cpp.stream`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> list(model.stream("Once upon a", max_tokens=2, temperature=0))
        [' time', ',']
        """
        return generation.stream(prompt, model=self, echo=echo, special=special, **options)

    @spelled_out(Sampling, "template_variables", **answers.DEFAULTS)
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        template: str | None = None,
        special_in_content: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        **options: Any,  # noqa: ANN401
    ) -> str:
        """Answer the last of some messages with this model.

        Parameters, result and errors are those of `llama2cpp.chat`. `Conversation` takes turns, and computes less.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.chat([{"role": "user", "content": "Hello"}], template="llama2", max_tokens=5, temperature=0)
        ', andilaa'
        """
        return answers.chat(
            messages,
            model=self,
            template=template,
            special_in_content=special_in_content,
            tools=tools,
            documents=documents,
            template_args=template_args,
            continue_final_message=continue_final_message,
            **options,
        )

    @spelled_out(Sampling, "template_variables", **answers.DEFAULTS)
    def chat_stream(
        self,
        messages: str | Sequence[Message],
        *,
        template: str | None = None,
        special_in_content: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        **options: Any,  # noqa: ANN401
    ) -> Iterator[str]:
        """Answer the last of some messages with this model, and give the text as it comes.

        Parameters, result and errors are those of `llama2cpp.chat_stream`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> list(model.chat_stream("Hello", template="llama2", max_tokens=2, temperature=0))
        [',', ' and']
        """
        return answers.chat_stream(
            messages,
            model=self,
            template=template,
            special_in_content=special_in_content,
            tools=tools,
            documents=documents,
            template_args=template_args,
            continue_final_message=continue_final_message,
            **options,
        )

    @checked
    def chat_text(
        self,
        messages: str | Sequence[Message],
        *,
        template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
    ) -> str:
        r"""Give the text that the chat template makes of messages: that of transformers' ``apply_chat_template``.

        Parameters
        ----------
        messages, template, tools, documents, template_args, continue_final_message
            As in `llama2cpp.chat`.
        add_generation_prompt : bool
            End with what begins an answer, unless the last message is continued.

        Returns
        -------
        str

        Raises
        ------
        ValueError, TypeError
            As in `llama2cpp.chat`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.chat_text("Hello", template="chatml")
        '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
        >>> begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good"}]
        >>> model.chat_text(begun, template="chatml", continue_final_message=True)[-14:]
        'assistant\nGood'
        """
        form = answers.chat_format(
            "Model.chat_text",
            self,
            (),
            template,
            True,
            tools=tools,
            documents=documents,
            template_args=template_args,
            variables={},
        )
        with naming("Model.chat_text"):
            return form.render(
                checked_messages(messages),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )

    @checked
    def chat_tokens(
        self,
        messages: str | Sequence[Message],
        *,
        template: str | None = None,
        special_in_content: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
    ) -> list[int]:
        """Give the ids that `chat` reads for messages: those of `chat_text`, with BOS where the tokenizer wants it.

        Parameters
        ----------
        messages, template, special_in_content, tools, documents, template_args, continue_final_message
            As in `llama2cpp.chat`.
        add_generation_prompt : bool
            End with what begins an answer, unless the last message is continued.

        Returns
        -------
        list of int

        Raises
        ------
        ValueError, TypeError
            As in `llama2cpp.chat`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits = model.session().prefill(model.chat_tokens("Hello", template="llama2"))
        >>> logits.shape
        (1536,)
        """
        form = answers.chat_format(
            "Model.chat_tokens",
            self,
            (),
            template,
            special_in_content,
            tools=tools,
            documents=documents,
            template_args=template_args,
            variables={},
        )
        with naming("Model.chat_tokens"):
            return form.encode(
                checked_messages(messages),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )

    @checked
    def run_with_cache(
        self,
        text_or_tokens: Prompts,
        names_filter: Names | None = None,
        remove_batch_dim: bool = False,
        stop_at_layer: int | None = None,
        positions: int | slice | Sequence[int] | None = None,
        special: bool | None = None,
    ) -> tuple[NDArray[np.float32], ActivationCache]:
        """Run on whole prompts, and keep the activations.

        The names and shapes are TransformerLens's; `ActivationCache` lists them. What is not asked for is neither
        computed apart nor copied. Hooks that are on act too, and what they have changed is what is kept.

        Parameters
        ----------
        text_or_tokens : str, bytes, sequence of int, or a sequence of those
            Text, which gets BOS before it where the tokenizer wants that, or ids [T]. Several of one length, or an
            array [batch, T], are a batch.
        names_filter : str, sequence of str, or predicate, optional
            Which activations: full names ("blocks.0.attn.hook_z"), patterns for them ("blocks.*.hook_resid_post"),
            short names ("z3", or "z" for all layers), or a function of the full name. A negative layer, as in "z-1" or
            "blocks.-1.attn.hook_z", counts from the last. Without it all but ``hook_result``, which is large and has to
            be computed apart.
        remove_batch_dim : bool
            Keep the activations of a single prompt without the batch axis. The logits have it anyway.
        stop_at_layer : int, optional
            Run the layers before this one only, and return the residual stream there instead of logits. Negative
            counts from the end.
        positions : int, slice or sequence of int, optional
            Keep the activations of these tokens only; negative counts from the end. For ``hook_attn_scores`` and
            ``hook_pattern`` it is the queries, and all keys are kept. The logits are all there.
        special : bool, optional
            Whether a text that spells control tokens gets them, as in `llama2cpp.generate`.

        Returns
        -------
        logits : numpy.ndarray
            float32 [batch, T, vocab_size]; with `stop_at_layer` [batch, T, dim].
        cache : ActivationCache
            float32 arrays [batch, T, ...] by name. They are parts of one piece of memory, which is freed with the last
            of them.

        Raises
        ------
        ValueError
            For a name that no activation has, prompts of different lengths, or an argument that cannot be.
        ContextFullError
            If a prompt does not fit in the context.
        MemoryError
            If more memory is needed than is available; it says how much. Nothing has been computed then.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> logits, cache = model.run_with_cache("Once upon a time", names_filter=["pattern", "resid_post4"])
        >>> cache["blocks.2.attn.hook_pattern"].shape, cache["blocks.4.hook_resid_post"].shape
        ((1, 6, 5, 5), (1, 5, 192))
        """
        return self._run(
            "run_with_cache", text_or_tokens, names_filter, remove_batch_dim, stop_at_layer, positions, special
        )

    def _run(
        self,
        function: str,
        text_or_tokens: Prompts,
        names_filter: Names | None,
        remove_batch_dim: bool = False,
        stop_at_layer: int | None = None,
        positions: int | slice | Sequence[int] | None = None,
        special: bool | None = None,
    ) -> tuple[NDArray[np.float32], ActivationCache]:
        """Do what `run_with_cache` does, for the function that was called."""
        return observation.run_with_cache(
            self, function, text_or_tokens, names_filter, remove_batch_dim, stop_at_layer, positions, special
        )

    @checked
    def run_with_hooks(
        self, text_or_tokens: Prompts, fwd_hooks: Sequence[Hook] | None = (), special: bool | None = None
    ) -> NDArray[np.float32]:
        """Run on whole prompts with hooks that act in this call only.

        Parameters
        ----------
        text_or_tokens : str, bytes, sequence of int, or a sequence of those
            As in `run_with_cache`. Hooks are called for each prompt of a batch apart.
        fwd_hooks : sequence
            As in `hooks`.
        special : bool, optional
            As in `run_with_cache`.

        Returns
        -------
        numpy.ndarray
            float32 [batch, T, vocab_size], the logits after every token.

        Raises
        ------
        ValueError
            As in `run_with_cache` and `hooks`.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> def without_head_3(z, hook):
        ...     z[:, :, 3] = 0
        >>> logits = model.run_with_hooks("Once upon a time", [("blocks.0.attn.hook_z", without_head_3)])
        >>> logits.shape
        (1, 5, 1536)
        """
        with self.hooks(fwd_hooks):
            return self._run("run_with_hooks", text_or_tokens, (), special=special)[0]

    def hooks(self, fwd_hooks: Sequence[Hook] | None) -> ActiveHooks:
        """Switch hooks on for a ``with`` block: they act in every call on this model's sessions, `generate` included.

        A hook is a pair of a name and a function ``fn(activation, hook)``. The activation is a float32 array
        [1, T, ...] of one session, writable: what the function leaves in it, or an array of the same shape that it
        returns, is what the model goes on with. One that it keeps never changes afterwards. T is the number of tokens
        of the call: in `generate` first the prompt's, then 1. `hook` is a `HookPoint`.

        Hooks act in the order of the list, those of an inner block after those of an outer one. They act in the context
        of the block: not in other threads, and on a `stream` only while it is iterated in there.

        Parameters
        ----------
        fwd_hooks : sequence of (names, function) or Intervention
            Names are as in `run_with_cache`. `llama2cpp.interventions` has changes that need no Python while the model
            runs.

        Returns
        -------
        context manager

        Raises
        ------
        ValueError
            For a name that no activation has, or a hook that cannot be called; and in calls, if a hook returns an array
            of another shape. An exception in a hook ends the call, whose session is then as it was before it.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> def louder(activation, hook):
        ...     return activation * 3
        >>> with model.hooks([("blocks.1.hook_mlp_out", louder)]):
        ...     text = model.generate("Once upon a time", max_tokens=8, temperature=0)
        >>> text == model.generate("Once upon a time", max_tokens=8, temperature=0)
        False
        """
        return ActiveHooks(self._core, None, fwd_hooks)

    @checked
    def record(self, names_filter: Names | None = None, tokens: int | None = None) -> Recording:
        """Keep the activations of everything that is fed in a ``with`` block: `run_with_cache` for decoding.

        C++ code appends them token by token, in sessions, `forward`, `generate`, `stream` and `chat`, and a step costs
        hardly more than without. As with `hooks` it is the calls of this context that are recorded, and what edits
        have changed is what is kept.

        Parameters
        ----------
        names_filter : str, sequence of str, or predicate, optional
            As in `run_with_cache`. The residual stream of all layers is 4 * n_layers * dim bytes a token.
        tokens : int, optional
            Make room for so many before anything runs. Without it, memory is taken as tokens come.

        Returns
        -------
        Recording
            A context manager, from which `Recording.cache` gets an `ActivationCache`, within the block or after it.
            `Recording.bytes_for` tells beforehand how much memory tokens take.

        Raises
        ------
        ValueError
            For a name that no activation has.
        MemoryError
            If there is no room for `tokens`, or, in calls, for those that are fed; it says how much is needed. The
            call has computed nothing then, and its sessions are as they were.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> with model.record("resid_post") as recording:
        ...     text = model.generate("Once upon a time", max_tokens=8, temperature=0)
        >>> recording.cache()["resid_post", -1].shape  # 5 tokens of the prompt, 7 more that were fed
        (1, 12, 192)
        """
        return Recording(self._core, None, names_filter, tokens, self)

    @checked
    def perplexity(self, text: Prompt, special: bool | None = None) -> float:
        """How surprised the model is by a text: exp of the mean of -log p over its tokens.

        A text longer than the context is cut into pieces that fill it, each begun with the first token again
        (for a string that is BOS). The first token is given and not counted.

        Parameters
        ----------
        text : str, bytes or sequence of int
            Text, or ids that are taken as they are.
        special : bool, optional
            Whether a text that spells control tokens gets them, as in `generate`.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If there are not at least two tokens, or text is given and the model has no tokenizer.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> story = model.perplexity("Once upon a time, there was a little girl named Lily.")
        >>> noise = model.perplexity("girl Lily named upon time a little was, a. there Once")
        >>> story < 3, noise > 100
        (True, True)
        """
        ids = to_ids(self, text, function="perplexity", special=special)
        if len(ids) < 2:
            raise ValueError(f"perplexity needs at least 2 tokens, got {len(ids)}")
        wrong = next((id for id in ids if not 0 <= id < self.config.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"perplexity: a token is {wrong}, expected 0 to {self.config.vocab_size - 1}")
        session = self.session()
        if session.context < 2:
            raise ValueError("perplexity needs a context of at least 2 tokens, the model's is 1")
        total = 0.0
        for begin in range(1, len(ids), session.context - 1):
            session.rewind(0)
            window = ids[:1] + ids[begin : begin + session.context - 1]
            for at in range(0, len(window) - 1, _PERPLEXITY_CHUNK):
                targets = window[at + 1 : at + 1 + _PERPLEXITY_CHUNK]
                logits = session.prefill(window[at : at + len(targets)], all_logits=True)  # [T, vocab_size]
                total -= float(generation.log_softmax(logits)[np.arange(len(targets)), targets].sum())
        return float(np.exp(total / (len(ids) - 1)))

    @checked
    def unembed(self, x: ArrayLike, apply_ln: bool = False) -> NDArray[np.float32]:
        """Turn vectors of the residual stream into logits: what the model would say if it stopped there.

        Runs on the packed weights, in the same arithmetic as a forward pass, so that the last residual stream with
        ``apply_ln=True`` gives the bits of the model's own logits.

        Parameters
        ----------
        x : array [..., dim]
            Residual stream vectors; without `apply_ln` ones that the last norm has been applied to.
        apply_ln : bool
            Apply the last norm, with its gain, first.

        Returns
        -------
        numpy.ndarray
            float32 [..., vocab_size].

        Raises
        ------
        ValueError
            If the last axis of `x` is not dim long, or the model is closed.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.unembed([[0.0] * 192, [1.0] * 192]).shape
        (2, 1536)
        """
        return self._core.unembed(float_array(x), apply_ln)

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

    @checked
    def to_single_token(self, text: str) -> int:
        """Find the one token that has this text.

        Parameters
        ----------
        text : str
            With its leading space, if it has one: " Lily" and "Lily" are different tokens.

        Returns
        -------
        int
            The id. Where several tokens have the text, the one that the tokenizer would use for it, or the last.

        Raises
        ------
        ValueError
            If no token has this text, or the model has no tokenizer.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.tokenizer.piece(model.to_single_token(" time"))
        b' time'
        """
        tokenizer = self.tokenizer
        with naming("to_single_token"):
            ids = tokenizer.encode(text, bos=False, eos=False)
        wanted = text.encode()
        if len(ids) == 1 and tokenizer.piece(ids[0]) == wanted:
            return ids[0]
        found = [id for id in range(tokenizer.vocab_size) if tokenizer.piece(id) == wanted]
        if not found:
            pieces = [tokenizer.piece(id).decode("utf-8", "replace") for id in ids]
            other = text[1:] if text.startswith(" ") else f" {text}"
            hint = (
                f"; {other!r} is one"
                if any(tokenizer.piece(id) == other.encode() for id in range(tokenizer.vocab_size))
                else ""
            )
            raise ValueError(f"{text!r} is not one token: the tokenizer makes {pieces} of it{hint}")
        return found[-1]

    @checked
    def to_str_tokens(self, text: Prompt, prepend_bos: bool | None = None, special: bool | None = None) -> TokenList:
        """Cut a text into tokens, and show the text of each.

        Parameters
        ----------
        text : str, bytes or sequence of int
            Text, or ids.
        prepend_bos, special
            As in `to_tokens`.

        Returns
        -------
        TokenList
            A list of str that also has the ids, and shows itself in colours in a notebook.

        Raises
        ------
        ValueError
            If the model has no tokenizer, or an id is outside the vocabulary.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.to_str_tokens("Once upon a time")
        ['<s>', ' Once', ' upon', ' a', ' time']
        """
        return token_list(self.tokenizer, self._text_ids("to_str_tokens", text, prepend_bos, special))

    @checked
    def to_tokens(
        self, input: Prompt | Sequence[Prompt], prepend_bos: bool | None = None, special: bool | None = None
    ) -> NDArray[np.int64]:
        """Turn a text into ids, as TransformerLens does: a row for each text.

        Parameters
        ----------
        input : str, bytes, sequence of int, or a sequence of those
            Text; ids stay as they are. Several must have equally many tokens.
        prepend_bos : bool, optional
            Whether BOS comes before each text; if not given, where the model is used to one.
        special : bool, optional
            Whether a text that spells control tokens gets them, as in `generate`.

        Returns
        -------
        numpy.ndarray
            int64 [texts, T]; [1, T] for one text. `generate` and `run_with_cache` take it.

        Raises
        ------
        ValueError
            If the texts differ in length, or the model has no tokenizer, or no BOS where one is asked for.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.to_tokens("Once upon a time")
        array([[  1, 508, 509, 260, 420]])
        >>> model.to_tokens(["Once", "The"], prepend_bos=False).shape
        (2, 1)
        """
        given = listed(input)
        many = several(given)
        rows = [self._text_ids("to_tokens", text, prepend_bos, special) for text in ([given] if many is None else many)]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise ValueError(
                f"to_tokens: the texts have from {lengths[0]} to {lengths[-1]} tokens, and the rows of an array are of "
                "one length: take them one by one"
            )
        return np.array(rows, dtype=np.int64)

    def to_string(self, tokens: Rows) -> Any:  # noqa: ANN401
        """Turn ids into the text that they stand for, as TransformerLens does. BOS and other control tokens are in it.

        Parameters
        ----------
        tokens : int, sequence or array of int, or a sequence of those
            An id, ids [T], or rows of ids [B, T].

        Returns
        -------
        str or list of str
            The text; for rows of ids a list with the text of each.

        Raises
        ------
        ValueError
            If they are no ids, one is outside the vocabulary, or the model has no tokenizer.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> model.to_string(model.to_tokens("Once upon a time"))
        ['<s> Once upon a time']
        >>> model.to_string([508, 509])
        ' Once upon'
        """
        given = listed(tokens)
        rows = list(given) if len(getattr(given, "shape", ())) > 1 else several(given)
        if rows is not None:
            return [self.to_string(row) for row in rows]
        tokenizer = self.tokenizer
        with naming("to_string"):
            ids = [given] if np.ndim(given) == 0 and not isinstance(given, str | bytes) else given
            pieces = [tokenizer.piece(id) for id in _core.token_ids(ids)]
        marks = {tokenizer.piece(id) for id in (tokenizer.bos_id, *tokenizer.eos_ids) if id is not None}
        # llama2.c's tokenizers have line ends around the names of BOS and EOS.
        return b"".join(piece.strip() if piece in marks else piece for piece in pieces).decode("utf-8", "replace")

    @property
    def cfg(self) -> LensConfig:
        """The sizes under TransformerLens's names; `config` is the whole configuration."""
        return LensConfig.of(self)

    def _text_ids(self, function: str, text: Prompt, prepend_bos: bool | None, special: bool | None) -> list[int]:
        """Give the ids of one text, with or without BOS, as is asked for."""
        ids = to_ids(self, text, function=function, begin=prepend_bos is not False, special=special)
        if prepend_bos and isinstance(text, str | bytes):
            bos = self.tokenizer.bos_id
            if bos is None:
                raise ValueError(f"{function}: the tokenizer has no BOS, so prepend_bos cannot be True")
            ids = ids if ids[:1] == [bos] else [bos, *ids]
        return ids

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
        """The type in which activations meet the weights: "f32", or "int8" for quantized ones."""
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
    return Model._load(path, tokenizer=given, **options)
