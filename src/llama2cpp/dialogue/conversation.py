"""A conversation with a model, which keeps what it has computed."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .. import _core
from .._core import ContextFullError, FormatError
from ..adapters import Adapter, check_adapter
from ..common.arguments import checked, checked_options, naming, spelled_out
from ..common.file_kinds import stand_in
from ..common.new_files import new_file
from ..common.not_pickled import NotPickled
from ..common.sampling import Sampling, SamplingOptions
from ..decoding import FinishReason, Sample, decode
from ..defaults import default_model
from ..model import Model
from .answers import DEFAULTS, begin_answer, chat_format, sampling_of, split_options
from .chat_format import checked_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Turn:
    """What one answer took: `Conversation.last_turn`.

    Attributes
    ----------
    prompt_tokens : int
        All tokens before the answer: the template's text of the whole conversation.
    reused_tokens : int
        How many of them were in the session's cache.
    prompt_seconds : float
        How long the rest took.
    tokens : int
        The answer's.
    seconds : float
        How long they took, with the time that the reader of the stream needed.
    finish_reason : str
        "end" (the model ended its turn), "stop" (a stop string), "length" (``max_tokens``), "context" (it is full),
        "incomplete" (within its grammar) or "interrupted" (nobody wanted more of it).
    forgotten : int
        How many messages were left out for the first time, because the context was full.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> conversation = llama2cpp.Conversation(model, template="llama2", temperature=0, max_tokens=5)
    >>> answer = conversation.say("Hello")
    >>> conversation.last_turn.tokens, conversation.last_turn.finish_reason
    (5, 'length')
    """

    prompt_tokens: int
    reused_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float
    finish_reason: FinishReason | Literal["interrupted"]
    forgotten: int


class Conversation(NotPickled):
    """Messages that go back and forth, and one session that keeps what was computed for them.

    Before each answer the template's text of all messages is compared with what the session holds, and only what
    follows their longest common beginning is computed. The results are those of a fresh session, bit for bit.

    When the context is nearly full (no room for the answer, or for a quarter of the context where that is less), the
    oldest turns after the system message are left out until at most half of it is used. `history` keeps them,
    `forgotten` counts them, and `Turn.forgotten` says when it happened. If the last message alone does not fit, that
    is a `ContextFullError`. An answer that fills the context ends there, with the reason "context".

    One thread at a time may use a conversation.

    Parameters
    ----------
    model : Model
        From `load`.
    system : str, optional
        The system message. Many templates have one of their own that comes in where there is none.
    context : int, optional
        How many tokens the session holds; the model's own if not given.
    template, special_in_content, tools, documents, template_args, **template_variables
        As in `chat`.
    max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop
        As in `chat`. Answer i is sampled with ``seed + i``.
    presence_penalty, frequency_penalty, logit_bias, min_tokens, stop_ids, logits_processor, json_schema, grammar, regex
        As in `generate`.
    speculate
        As in `generate`: the same answers, sooner where much of them is as proposed.

    Raises
    ------
    ValueError
        As in `chat`.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> conversation = llama2cpp.Conversation(model, template="llama2", temperature=0, max_tokens=5)
    >>> conversation.say("Hello")
    ', andilaa'
    >>> for piece in conversation.stream("What?"):
    ...     print(end=piece)
    and the tuli
    >>> len(conversation.history), conversation.last_turn.reused_tokens > 10
    (4, True)
    """

    _instead = "save(path) writes it, and load(path) of another conversation goes on with it"

    @checked
    @spelled_out(Sampling, "template_variables", **DEFAULTS)
    def __init__(
        self,
        model: Model | None = None,
        system: str | None = None,
        *,
        context: int | None = None,
        template: str | None = None,
        special_in_content: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._options, variables = split_options(options)
        sampling_of("Conversation", self._options)
        self._model = default_model() if model is None else model
        own = ("model", "system", "context", "template", "special_in_content", "tools", "documents", "template_args")
        self._format = chat_format(
            "Conversation",
            self._model,
            own,
            template,
            special_in_content,
            tools=tools,
            documents=documents,
            template_args=template_args,
            variables=variables,
        )
        self._tokenizer = self._model.tokenizer
        adapter = cast("Adapter | None", self._options.get("adapter"))
        check_adapter("Conversation", adapter, self._model)
        self._session = self._model.session(context, adapter)
        self._messages: list[dict[str, Any]] = []  # without the system message
        self._answering: Generator[str, None, None] | None = None
        self._forgotten = 0
        self._last_turn: Turn | None = None
        self.system = system

    def say(self, text: str, **options: Unpack[SamplingOptions]) -> str:
        """Say something and get the answer; both become part of the history.

        Parameters
        ----------
        text : str
            The user's message.
        **options
            What is different for this answer.

        Returns
        -------
        str

        Raises
        ------
        ValueError, ContextFullError
            As in `chat`. The history is as before.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> conversation = llama2cpp.Conversation(model, template="llama2", temperature=0)
        >>> conversation.say("Hello", max_tokens=3)
        ', andil'
        """
        return "".join(self._begin("Conversation.say", text, options))

    def stream(self, text: str, **options: Unpack[SamplingOptions]) -> Generator[str, None, None]:
        """Say something and get the answer as it comes.

        The messages are read before `stream` returns. An answer that is broken off (by ``close()``, an exception such
        as Ctrl-C's, or the next message) stays in the history as far as it came. If nothing of it had come, the
        message is not in the history either.

        Parameters
        ----------
        text : str
            The user's message.
        **options
            What is different for this answer.

        Returns
        -------
        generator of str
            Whole characters, never empty.

        Raises
        ------
        ValueError, ContextFullError
            As in `chat`, and at the call. The history is as before.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> conversation = llama2cpp.Conversation(model, template="llama2", temperature=0)
        >>> pieces = conversation.stream("Hello")
        >>> next(pieces), next(pieces)
        (',', ' and')
        >>> pieces.close()
        >>> conversation.history[-1]
        {'role': 'assistant', 'content': ', and'}
        """
        return self._begin("Conversation.stream", text, options)

    def _begin(self, function: str, text: str, options: SamplingOptions) -> Generator[str, None, None]:
        given = checked_options(options, SamplingOptions, function)
        if given.get("adapter", self._session.adapter) is not self._session.adapter:
            raise ValueError(f"{function}: adapter is the whole conversation's: give it to Conversation")
        sampling = sampling_of(function, {**self._options, **given}, self._model)  # type: ignore[typeddict-item]
        self._end_answer()
        if sampling.seed is not None:
            answers = sum(message["role"] == "assistant" for message in self._messages)
            sampling = replace(sampling, seed=(int(sampling.seed) + answers) % 2**64)
        question = {"role": "user", "content": text}
        ids, forgotten = self._fit(function, question, sampling.max_tokens)
        began = time.perf_counter()
        reused = self._rewind_to(ids)
        self._session.prefill(ids[reused:])
        sample = begin_answer(self._tokenizer, self._session, self._format, sampling)
        newly = forgotten - self._forgotten
        self._forgotten = forgotten
        seconds = time.perf_counter() - began
        self._answering = self._answer(question, sample, (len(ids), reused, seconds), newly)
        return self._answering

    def _answer(
        self, question: dict[str, Any], sample: Sample, prompt: tuple[int, int, float], forgotten: int
    ) -> Generator[str, None, None]:
        parts: list[str] = []
        began = time.perf_counter()
        try:
            with closing(decode(self._model, [sample])) as decoded:
                for _, piece in decoded:
                    if piece:
                        parts.append(piece)
                        yield piece
        finally:
            if parts or sample.finish_reason is not None:
                self._messages += [question, {"role": "assistant", "content": "".join(parts)}]
            seconds = time.perf_counter() - began
            reason = sample.finish_reason or "interrupted"
            self._last_turn = Turn(*prompt, len(sample.tokens), seconds, reason, forgotten)

    def _end_answer(self) -> None:
        if self._answering is not None:
            self._answering.close()
            self._answering = None

    def _encode(self, function: str, forgotten: int, *more: dict[str, Any]) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        with naming(function):
            return self._format.encode([*system, *self._messages[forgotten:], *more])

    def _fit(self, function: str, question: dict[str, Any], max_tokens: int | None) -> tuple[list[int], int]:
        """Give the ids of the messages that leave room for an answer, and how many are not among them."""
        context, forgotten = self._session.context, self._forgotten
        ids = self._encode(function, forgotten, question)
        room = context // 4 if max_tokens is None else min(max_tokens, context // 4)
        if len(ids) + room > context:
            while len(ids) > context // 2 and forgotten < len(self._messages):
                roles = [message["role"] for message in self._messages]
                forgotten = roles.index("user", forgotten + 1) if "user" in roles[forgotten + 1 :] else len(roles)
                ids = self._encode(function, forgotten, question)
        if len(ids) > context:
            what = "the message" if self.system is None else "the system message and the message"
            raise ContextFullError(f"{what} take {len(ids)} tokens, and the context holds {context}")
        return ids, forgotten

    def _rewind_to(self, ids: list[int]) -> int:
        """Keep what the session has in common with the ids, but leave the last one for its logits."""
        tokens = self._session.tokens
        end = min(len(tokens), len(ids) - 1)
        common = next((i for i in range(end) if tokens[i] != ids[i]), end)
        if common < len(tokens):
            self._session.rewind(common)
        return common

    def reset(self) -> None:
        """Begin anew, with the same system message. What the session holds of that stays computed.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> conversation = llama2cpp.Conversation(model, template="llama2", max_tokens=5)
        >>> answer = conversation.say("Hello")
        >>> conversation.reset()
        >>> conversation.history
        []
        """
        self._end_answer()
        self._messages, self._forgotten, self._last_turn = [], 0, None

    def undo(self) -> str | None:
        """Take the last message of the user and all that came after it out of the history.

        Returns
        -------
        str or None
            The message; None where there is none.

        Examples
        --------
        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> conversation = llama2cpp.Conversation(model, template="llama2", max_tokens=5)
        >>> answer = conversation.say("Hello")
        >>> conversation.undo(), conversation.history
        ('Hello', [])
        """
        self._end_answer()
        last = next((i for i in reversed(range(len(self._messages))) if self._messages[i]["role"] == "user"), None)
        if last is None:
            return None
        text = self._messages[last]["content"]
        del self._messages[last:]
        self._forgotten = min(self._forgotten, last)
        return str(text)

    @checked
    def save(self, path: str | PathLike[str], *, session: bool = False) -> None:
        """Write the history to a JSON file, which is complete or not there.

        Parameters
        ----------
        path : str or path
            Any name, such as ``talk.json``.
        session : bool
            Also write the session, to the same name with ``.safetensors`` behind it. Its keys and values are large,
            and spare computing them again.

        Raises
        ------
        OSError
            If a file cannot be written.

        Examples
        --------
        >>> import llama2cpp
        >>> import tempfile
        >>> model = llama2cpp.load("storyteller")
        >>> conversation = llama2cpp.Conversation(model, template="llama2", max_tokens=5, seed=1)
        >>> answer = conversation.say("Hello")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     conversation.save(f"{folder}/talk.json", session=True)
        ...     other = llama2cpp.Conversation(model, template="llama2")
        ...     other.load(f"{folder}/talk.json", session=True)
        >>> other.history == conversation.history
        True
        """
        self._end_answer()
        target = Path(path)
        saved = {"llama2cpp": "conversation", "version": 1, "system": self.system, "forgotten": self._forgotten}
        text = json.dumps({**saved, "messages": self._messages}, ensure_ascii=False, indent=1)
        with new_file(target) as begun:
            begun.write_bytes(f"{text}\n".encode())
            if session:
                self._session.save(_session_path(target))

    @checked
    def load(self, path: str | PathLike[str], *, session: bool = False) -> None:
        """Go on with a history that `save` has written, perhaps with another model.

        Parameters
        ----------
        path : str or path
            The JSON file.
        session : bool
            Also open the session that was saved with it, by the same model.

        Raises
        ------
        FormatError
            If a file is damaged or none of ours, or the session is another model's. The conversation is as before.
        OSError
            If a file cannot be read.

        Examples
        --------
        See `save`.

        >>> import llama2cpp
        >>> model = llama2cpp.load("storyteller")
        >>> conversation = llama2cpp.Conversation(model, template="llama2")
        >>> try:
        ...     conversation.load("no such file.json")
        ... except FileNotFoundError:
        ...     print("not there")
        not there
        """
        system, messages, forgotten = _read_saved(Path(path))
        context = self._session.context
        adapter = self._session.adapter
        opened = self._model.load_session(_session_path(Path(path)), context, adapter) if session else None
        self.reset()
        self.system, self._messages, self._forgotten = system, messages, forgotten
        self._session = opened or self._session

    @property
    def history(self) -> list[dict[str, Any]]:
        """All messages so far, the system message first if there is one; a copy."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *(dict(message) for message in self._messages)]

    @property
    def forgotten(self) -> int:
        """How many of the oldest messages, the system message not counted, the model does not see any more."""
        return self._forgotten

    @property
    def last_turn(self) -> Turn | None:
        """What the last answer took; None before the first."""
        return self._last_turn

    def __repr__(self) -> str:
        return f"<llama2cpp.Conversation: {len(self._messages)} messages, {self._session.position} tokens computed>"


def _session_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.safetensors")


def _read_saved(path: Path) -> tuple[str | None, list[dict[str, Any]], int]:
    try:
        saved = json.loads(_core.read_file(path))
    except (ValueError, RecursionError) as error:
        found = stand_in(path) or f"something else: {error}"
        raise FormatError(f"{path}: expected JSON, found {found}") from None
    if not isinstance(saved, dict) or saved.get("llama2cpp") != "conversation" or saved.get("version") != 1:
        found = f", found {given}" if (given := stand_in(path)) else ""
        raise FormatError(f"{path}: expected a conversation that llama2cpp has saved, version 1{found}")
    system, messages, forgotten = (saved.get(name) for name in ("system", "messages", "forgotten"))
    if not isinstance(messages, list) or not (system is None or isinstance(system, str)):
        raise FormatError(f"{path}: expected a list of messages and a system message or null")
    try:
        messages = checked_messages(messages) if messages else []
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None
    if type(forgotten) is not int or not 0 <= forgotten <= len(messages):
        raise FormatError(f"{path}: expected 'forgotten' from 0 to {len(messages)}, found {forgotten!r}")
    return system, messages, forgotten
