"""The engine: a thread that computes passes for all requests of a model."""

from __future__ import annotations

import contextvars
import copy
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary, ref

from .. import _core
from .._core import ContextFullError
from ..adapters import adapter_of, check_adapter
from ..common.arguments import checked, checked_options, naming, spelled_out
from ..common.grammar import TokenTexts
from ..common.not_pickled import NotPickled
from ..common.sampling import Sampling, SamplingOptions
from ..common.token_ids import Prompt, check_prompt, to_ids
from ..decoding import Sample, check_logprobs
from ..dialogue.answers import DEFAULTS, Asked, encoded, sampling_of, split_options
from ..dialogue.chat_format import Message, checked_messages
from ..inside.hooks import ActiveHooks, Hook, scopes_of
from ..inside.recording import Recording
from ..speculation import check_speculation
from .jobs import Job, MeasureJob, TextJob
from .requests import Request
from .scheduler import PREFIX_BYTES, ROWS, Limits, Scheduler

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..inside.places import Names
    from ..model import Model
    from ..session import Session

Logits = Literal["none", "last", "all"]


_engines: WeakKeyDictionary[_core.Model, ref[Engine]] = WeakKeyDictionary()  # those that are open, by their model


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done, and what it is doing: `Engine.stats`.

    Attributes
    ----------
    passes : int
        Passes over the weights.
    prompt_tokens : int
        Tokens of prompts that were computed.
    reused_tokens : int
        Tokens of prompts that were not, because an earlier request had begun with them.
    generated_tokens : int
        Tokens that were sampled.
    accepted_tokens : int
        How many of them `speculate` had proposed, so that those behind them needed no passes of their own.
    running : int
        Requests that have a row of each pass.
    waiting : int
        Requests that do not have one yet.
    prefix_bytes : int
        Bytes of keys and values that are kept for prompts to come.

    Examples
    --------
    >>> import llama2cpp
    >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
    ...     completion = engine.submit("Once upon a time", max_tokens=3, temperature=0).result()
    >>> engine.stats.prompt_tokens, engine.stats.generated_tokens, engine.stats.passes
    (5, 3, 3)
    """

    passes: int
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    accepted_tokens: int
    running: int
    waiting: int
    prefix_bytes: int


class Engine(NotPickled):
    """Many requests on one model at a time: continuous batching.

    Requests join and leave between passes. Prompts are read in pieces, beside the texts that go on: none of those
    waits for more than 128 tokens of a prompt (one with `hooks` is read whole). Those that wait come in the order of
    their arrival. What a prompt shares with the beginning of an earlier one is not computed again.

    On the CPU a request gives the bits that it gives alone, whatever else runs, and so what `generate` gives with the
    same seed. On Metal it does not: there the shape of a pass shows in the last bits of its results.

    A thread computes while there is something to do. A request ends for itself: by its own end, `Request.cancel`, a
    full context, or an exception in one of its hooks. At the end of a ``with`` block the engine waits for all; after an
    exception it cancels them.

    Parameters
    ----------
    model : Model
        From `load`. A model has one engine at a time.
    rows : int
        How many requests run at a time. Others wait.
    kv_bytes : int, optional
        How much memory the keys and values of those that run may fill, in bytes; half of what is available if not
        given. A request is let in when all that it may need is left.
    prefix_bytes : int, optional
        How much memory keeps keys and values of requests that have ended, for prompts that begin alike; an eighth of
        what is available, but at most 1 GiB, if not given. The least recently used go first. 0 keeps none.

    Raises
    ------
    ValueError
        For a number that cannot be, or a model that is closed or has an engine.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> with llama2cpp.Engine(model) as engine:
    ...     requests = [engine.submit("The dog", seed=seed, max_tokens=10) for seed in range(4)]
    ...     texts = [request.result().text for request in requests]
    >>> texts[3] == model.generate("The dog", seed=3, max_tokens=10)
    True
    """

    _instead = "its requests run in this process; their results can be"

    @checked
    def __init__(
        self,
        model: Model,
        *,
        rows: int = ROWS,
        kv_bytes: int | None = None,
        prefix_bytes: int | None = None,
    ) -> None:
        self._set_up(model, rows, kv_bytes, prefix_bytes)
        core = self._model._core
        other = _engines.get(core)
        found = None if other is None else other()
        if found is not None and not found._closed:
            raise ValueError(f"Engine: the model has an engine already, {found!r}: use it, or close it first")
        _engines[core] = ref(self)

    def _set_up(self, model: Model, rows: int, kv_bytes: int | None, prefix_bytes: int | None) -> None:
        self._closed = True  # until it stands
        available = _core.available_memory()
        if rows < 1:
            raise ValueError(f"Engine: rows is {rows}, expected 1 or more")
        for name, given in (("kv_bytes", kv_bytes), ("prefix_bytes", prefix_bytes)):
            if given is not None and given < 0:
                raise ValueError(f"Engine: {name} is {given}, expected 0 or more")
        self._model = copy.copy(model)  # which goes on when the user closes theirs
        self._limits = Limits(
            rows,
            available // 2 if kv_bytes is None else kv_bytes,
            min(available // 8, PREFIX_BYTES) if prefix_bytes is None else prefix_bytes,
        )
        self._scheduler = Scheduler(self._model, self._limits)
        self._lock = threading.Condition()  # told when the thread has nothing to do
        self._incoming: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False

    @checked
    @spelled_out(Sampling)
    def submit(
        self,
        prompt: Prompt = "",
        options: Mapping[str, Any] | None = None,
        *,
        special: bool | None = None,
        logprobs: int | None = None,
        logits: str = "none",
        hooks: Sequence[Hook] | None = None,
        record: Names | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Request:
        """Ask for the continuation of a prompt. It begins when its turn has come, and this call does not wait.

        Parameters
        ----------
        prompt : str, bytes, sequence or array of int
            One prompt, as in `generate`.
        options : mapping, optional
            How to sample, the arguments of `generate` by name; the same as arguments of their own.
        special : bool, optional
            Whether a text that spells control tokens gets them, as in `generate`.
        logprobs : int, optional
            Give the log probability of each token, and of this many likeliest alternatives.
        logits : str
            Which of the prompt's logits `Request.logits` gives: "none", "last" (after the prompt) or "all" (after each
            of its tokens).
        hooks : sequence of (names, function) or Intervention, optional
            What acts on this request alone, as in `Model.hooks`; after what is on in the context of this call. A
            function runs in the engine's thread.
        record : str, sequence of str, or predicate, optional
            Which activations to keep for `Request.cache`; names are as in `Model.run_with_cache`.
        **sampling
            How to sample and where the text ends, as in `generate`.

        Returns
        -------
        Request

        Raises
        ------
        ValueError, TypeError
            As in `generate`, and if the engine is closed.
        ContextFullError
            If the prompt does not fit in the context.
        MemoryError
            If it may need more keys and values than the engine may fill, or the logits have no room.

        Examples
        --------
        >>> import llama2cpp
        >>> from llama2cpp import interventions
        >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
        ...     plain = engine.submit("The dog", temperature=0, max_tokens=4)
        ...     changed = engine.submit(
        ...         "The dog", temperature=0, max_tokens=4, hooks=[interventions.zero("mlp_out", layer=0)]
        ...     )
        ...     print(plain.result().text != changed.result().text)
        True
        """
        given = checked_options(options or {}, SamplingOptions, "Engine.submit")
        return self._submit("Engine.submit", prompt, {**given, **sampling}, special, logprobs, logits, hooks, record)

    def _submit(
        self,
        function: str,
        prompt: Prompt,
        given: dict[str, Any],
        special: bool | None,
        logprobs: int | None,
        logits: str = "none",
        hooks: Sequence[Hook] | None = None,
        record: Names | None = None,
    ) -> Request:
        """Do what `submit` does, for the function that messages name."""
        model = self._model
        check_logprobs(function, logprobs)
        Sampling(**given).checked(function)
        check_prompt(prompt, function)
        merged: Any = {**model._sampling_defaults(), **given}
        how = Sampling(**merged).checked(function, model.config.vocab_size)
        tokenizer = model.tokenizer
        check_speculation(function, how.speculate, model)
        check_adapter(function, how.adapter, model)
        ids = to_ids(model, prompt, function=function, special=special)
        (sampler,) = how.samplers(1)

        def sample(session: Session) -> Sample:
            return Sample(tokenizer, session, sampler, prompt, how, logprobs)

        return self._request(function, ids, how, sample, logits, hooks, record)

    @checked
    @spelled_out(Sampling, "template_variables", **DEFAULTS)
    def submit_chat(
        self,
        messages: str | Sequence[Message],
        *,
        template: str | None = None,
        special_in_content: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        logprobs: int | None = None,
        logits: str = "none",
        hooks: Sequence[Hook] | None = None,
        record: Names | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Request:
        """Ask for the answer to some messages.

        Parameters
        ----------
        messages, template, special_in_content, tools, documents, template_args, continue_final_message, **options
            As in `chat`.
        logprobs, logits, hooks, record
            As in `submit`.

        Returns
        -------
        Request

        Raises
        ------
        ValueError, TypeError, ContextFullError, MemoryError
            As in `chat` and `submit`.

        Examples
        --------
        >>> import llama2cpp
        >>> with llama2cpp.Engine(llama2cpp.load("storyteller")) as engine:
        ...     engine.submit_chat("Hello", template="llama2", max_tokens=10, temperature=0).result().text
        ', andilaaaaa. Every'
        """
        function, model = "Engine.submit_chat", self._model
        check_logprobs(function, logprobs)
        with naming(function):
            said = checked_messages(messages)
        sampled, variables = split_options(options)
        how = sampling_of(function, sampled, model)
        asked = Asked(template, special_in_content, tools, documents, template_args, continue_final_message)
        form, ids = encoded(function, said, model, asked, variables, ("logprobs", "logits", "hooks", "record"))
        ends, strings = form.ends
        how = replace(how, stop=how.stops + strings)
        (sampler,) = how.samplers(1)
        tokenizer, begun = model.tokenizer, "" if continue_final_message else None

        def sample(session: Session) -> Sample:
            return Sample(tokenizer, session, sampler, begun, how, logprobs, ends)

        return self._request(function, ids, how, sample, logits, hooks, record)

    def _request(
        self,
        function: str,
        ids: list[int],
        how: Sampling,
        sample: Any,  # noqa: ANN401
        logits: str,
        hooks: Sequence[Hook] | None,
        record: Names | None,
    ) -> Request:
        """Refuse what cannot be, and let the rest wait for its turn."""
        core = self._model._core
        if logits not in ("none", "last", "all"):
            raise ValueError(f"{function}: logits is {logits!r}, expected 'none', 'last' or 'all'")
        self._check_ids(function, ids)
        if how.grammar_text is not None:  # made here, once for a tokenizer: in the engine's thread all would wait
            TokenTexts.of(self._model.tokenizer, core.config.vocab_size)
        context = self._model.context
        positions = min(len(ids) + (context if how.max_tokens is None else how.max_tokens), context)
        self._check_size(function, positions)
        if logits == "all":
            size = len(ids) * core.config.vocab_size * 4
            advice = "pass logits='last', or a shorter prompt"
            _core.need_memory(2 * size, f"the logits after each of {len(ids)} tokens", advice)
        scopes = [*scopes_of(core)]
        if hooks:
            scopes.append(ActiveHooks(core, None, hooks)._scope)
        request = Request()
        if record is not None:
            request._recording = Recording(core, None, record, None, self._model)
            scopes.append(request._recording._scope)
        self._add([TextJob(request, ids, positions, scopes, sample, logits, adapter_of(how))])
        return request

    def _check_ids(self, function: str, ids: Sequence[int]) -> None:
        vocab_size, context = self._model.config.vocab_size, self._model.context
        if not ids:
            raise ValueError(f"{function}: there are no tokens, expected at least one")
        for token in ids:
            if not 0 <= token < vocab_size:
                raise ValueError(f"{function}: a token is {token}, expected 0 to {vocab_size - 1}")
        if len(ids) > context:
            raise ContextFullError(f"{function}: there are {len(ids)} tokens, and the context has room for {context}")

    def _check_size(self, function: str, positions: int) -> None:
        size = self._scheduler.bytes_for(positions)
        if size > self._limits.kv_bytes:
            raise MemoryError(
                f"{function}: keys and values of {positions} tokens are {size:,} bytes, and the engine may fill "
                f"{self._limits.kv_bytes:,}: ask for fewer with max_tokens=, or give it more with kv_bytes="
            )

    def _measure(self, function: str, jobs: Iterable[MeasureJob]) -> None:
        """Run jobs whose numbers somebody waits for, to their ends."""
        jobs = list(jobs)
        for job in jobs:
            self._check_size(function, job.positions)
        self._add(jobs)
        try:
            for job in jobs:
                job.wait()
        except BaseException:
            for job in jobs:
                job.cancel()
            raise

    def _add(self, jobs: Iterable[Job]) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("the engine is another process's: make one in this process")
        with self._lock:
            if self._closed:
                raise ValueError("the engine is closed")
            self._incoming += jobs
            if self._thread is None:
                # In a context of its own: hooks that are on where a request comes from are that request's.
                self._thread = threading.Thread(
                    target=contextvars.Context().run, args=(self._work,), name="llama2cpp engine", daemon=True
                )
                self._thread.start()

    def _work(self) -> None:
        """Compute until there is nothing to do."""
        scheduler = self._scheduler
        while True:
            with self._lock:
                while self._incoming:
                    scheduler.add(self._incoming.popleft())
                if not scheduler.busy:
                    self._thread = None
                    self._lock.notify_all()
                    return
            try:
                scheduler.step()
            except BaseException as error:  # a fault here must not leave requests that never end
                scheduler.end_all(error)

    @checked
    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those that there are.

        Parameters
        ----------
        timeout : float, optional
            The most seconds to wait; as long as it takes if not given.

        Returns
        -------
        bool
            Whether all have ended.

        Examples
        --------
        >>> import llama2cpp
        >>> engine = llama2cpp.Engine(llama2cpp.load("storyteller"))
        >>> request = engine.submit("Once upon a", max_tokens=3, temperature=0)
        >>> engine.drain(), request.text
        (True, ' time, in')
        """
        with self._lock:
            self._closed = True
            return self._lock.wait_for(lambda: self._thread is None, timeout)

    def close(self) -> None:
        """Cancel what has not ended, and let go of what is kept. The model can have another engine then.

        Examples
        --------
        >>> import llama2cpp
        >>> engine = llama2cpp.Engine(llama2cpp.load("storyteller"))
        >>> engine.close()
        >>> engine
        <llama2cpp.Engine: closed>
        """
        with self._lock:
            self._closed = True
            self._scheduler.stopping = True
            self._lock.wait_for(lambda: self._thread is None)
        self._scheduler.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.drain()
        self.close()

    @property
    def stats(self) -> EngineStats:
        """What it has done so far, and what it is doing."""
        scheduler = self._scheduler
        return EngineStats(
            **asdict(scheduler.counts),
            running=scheduler.running,
            waiting=len(scheduler.waiting) + len(self._incoming),
            prefix_bytes=scheduler.prefix_bytes,
        )

    def __repr__(self) -> str:
        if self._closed:
            return "<llama2cpp.Engine: closed>"
        stats = self.stats
        return f"<llama2cpp.Engine: {stats.running} running of {self._limits.rows}, {stats.waiting} waiting>"


def engine_of(model: Model) -> Engine:
    """Get the model's engine: the one that is open, or one for the model's own methods, made when they need it."""
    registered = _engines.get(model._core)
    found = None if registered is None else registered()
    if found is not None and not found._closed and found._process == os.getpid():
        return found
    own = model._engine
    if own is None or own._process != os.getpid():
        own = Engine.__new__(Engine)
        own._set_up(model, ROWS, None, None)
        model._engine = own
    return own
