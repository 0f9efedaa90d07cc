"""JSON schemas, grammars and regular expressions as masks of token ids, by llguidance (``pip install llguidance``).

llguidance parses bytes. Which bytes a token adds to a text is our own tokenizer's to say, so it needs no other files,
and a text that the masks let through is one that the decoder gives.
"""

from __future__ import annotations

import functools
import json
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._core import Tokenizer, token_texts
from .library_tokenizer import LibraryTokenizer

if TYPE_CHECKING:
    import llguidance

# A schema as a dict, as JSON text, or a class that has one (Pydantic's).
JsonSchema: TypeAlias = Mapping[str, Any] | str | bool | type

_BITS = 32  # of a word of a mask
_BYTES = 256
_STATES_TRIED = 4000  # in search of a text that a grammar accepts
_BRANCHES_TRIED = 100
_MANY_WAYS = 16
_GRAMMARS_KEPT = 8
# Every token that the grammar allows is allowed: without this, where only one text can follow, it is one cut of it.
_EVERY_TOKEN = '\n%llguidance {"no_forcing": true}\n'

_lock = threading.Lock()
_vocabularies: weakref.WeakKeyDictionary[Tokenizer | LibraryTokenizer, dict[int, TokenTexts]] = (
    weakref.WeakKeyDictionary()
)


def closed_schema(schema: Any) -> Any:  # noqa: ANN401
    """Give a schema whose objects have the named properties only, where it does not speak of others.

    A small model would go on with others. Parts of ``allOf`` stay as they are: together they are one object.

    Parameters
    ----------
    schema : dict or bool

    Returns
    -------
    dict or bool
        A copy.

    Examples
    --------
    >>> from llama2cpp.common.grammar import closed_schema
    >>> closed_schema({"type": "object", "properties": {"age": {"type": "integer"}}})["additionalProperties"]
    False
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            closed[key] = {name: closed_schema(inner) for name, inner in schema[key].items()}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            closed[key] = [closed_schema(inner) for inner in schema[key]]
    if "items" in schema:
        closed["items"] = closed_schema(schema["items"])
    others = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "$ref")
    if "properties" in schema and not any(key in schema for key in others):
        closed["additionalProperties"] = False
    return closed


_DATA = ("const", "enum", "default", "examples")  # which are no schemas
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # of several, any names


def moved_schema(schema: Any, path: str) -> Any:  # noqa: ANN401
    """Give a schema that becomes a part of another, where its own references are found.

    Parameters
    ----------
    schema : dict, list or bool
    path : str
        Where it will be, such as "#/properties/arguments".

    Returns
    -------
    dict, list or bool
        A copy.

    Examples
    --------
    >>> from llama2cpp.common.grammar import moved_schema
    >>> moved_schema({"properties": {"dog": {"$ref": "#/$defs/Dog"}}}, "#/items")
    {'properties': {'dog': {'$ref': '#/items/$defs/Dog'}}}
    """
    if isinstance(schema, list):
        return [moved_schema(inner, path) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for key, inner in schema.items():
        if key in _BY_NAME and isinstance(inner, dict):
            moved[key] = {name: moved_schema(one, path) for name, one in inner.items()}
        else:
            moved[key] = inner if key in _DATA else moved_schema(inner, path)
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = path + reference[1:]
    return moved


def library() -> Any:  # noqa: ANN401
    """Give llguidance's module.

    Raises
    ------
    ImportError
        If it is not installed, with the command that does.

    Examples
    --------
    >>> from llama2cpp.common.grammar import library
    >>> library().LLMatcher.grammar_from_lark("start: /[a-z]+/")
    'start: /[a-z]+/'
    """
    try:
        import llguidance
    except ImportError:
        raise ImportError(
            "json_schema, grammar and regex need llguidance: run `pip install 'llama2cpp[grammar]'`, or "
            "`pip install llguidance`"
        ) from None
    return llguidance


def grammar_text(
    json_schema: JsonSchema | None = None, grammar: str | None = None, regex: str | None = None
) -> str | None:
    """Give a schema, a grammar or an expression in llguidance's words, and refuse one that is wrong.

    Parameters
    ----------
    json_schema : mapping, str, bool or class, optional
        JSON Schema as a dict or as JSON text, or a class with ``model_json_schema()``.
    grammar : str, optional
        A lark grammar as llguidance reads it, or a GBNF grammar as llama.cpp does (with ``root ::=``).
    regex : str, optional
        A regular expression for the whole text, without lookaround and backreferences.

    Returns
    -------
    str or None
        None where nothing is given.

    Raises
    ------
    ValueError
        If more than one is given, for what is no schema, grammar or expression, what of it is not supported, and where
        no text satisfies it.
    TypeError
        For another type.
    ImportError
        Without llguidance.

    Examples
    --------
    >>> from llama2cpp.common.grammar import grammar_text
    >>> grammar_text()
    >>> try:
    ...     grammar_text({"type": "integer", "minimum": 5, "maximum": 3})
    ... except ValueError as error:
    ...     print(error)
    json_schema: Unsatisfiable schema: minimum (5) is greater than maximum (3)
    """
    given = {"json_schema": json_schema, "grammar": grammar, "regex": regex}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are given, expected one of them")
    [name] = names
    for kind, value in (("grammar", grammar), ("regex", regex)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{kind} is {value!r:.80} ({type(value).__name__}), expected str or None")
    guidance = library()
    if json_schema is not None:
        text = "start: %json " + json.dumps(_schema(json_schema)) + _EVERY_TOKEN
    elif grammar is not None:
        text = _lark(guidance, grammar) + _EVERY_TOKEN
    else:
        made = json.loads(guidance.LLMatcher.grammar_from_regex(regex))
        made["grammars"][0]["lark_grammar"] += _EVERY_TOKEN
        text = json.dumps(made)
    _refuse_unsatisfiable(text, name)
    return text


def _schema(given: JsonSchema) -> dict[str, Any]:
    """Give a schema as a dict that asks for compact JSON, where it does not say otherwise."""
    if isinstance(given, type):
        maker = getattr(given, "model_json_schema", None)
        if maker is None:
            raise TypeError(f"json_schema is the class {given.__name__}, which has no model_json_schema()")
        given = maker()
    schema: Any = given
    if isinstance(given, str):
        try:
            schema = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"json_schema is no JSON: {error}") from None
    if isinstance(schema, bool):
        if not schema:
            raise ValueError("json_schema is false, which nothing satisfies")
        schema = {}
    if not isinstance(schema, Mapping):
        raise TypeError(
            f"json_schema is {given!r:.80} ({type(given).__name__}), expected a dict, JSON text of an object, or a "
            "class with model_json_schema()"
        )
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json_schema is no JSON: {error}") from None
    how = copy.get("x-guidance", {})
    copy["x-guidance"] = {"whitespace_flexible": False, **how} if isinstance(how, dict) else how
    return copy


def _lark(guidance: Any, text: str) -> str:  # noqa: ANN401
    """Give a grammar in lark's words: GBNF, which defines rules by ``::=``, is turned into them."""
    if "::=" not in text:
        return text
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # the converter's own class, and others
        raise ValueError(f"grammar: as GBNF it cannot be read: {error}") from None


def _matcher(guidance: Any, tokens: Any, text: str, name: str) -> llguidance.LLMatcher:  # noqa: ANN401
    matcher = guidance.LLMatcher(tokens, text, log_level=0)
    if matcher.is_error():
        raise ValueError(f"{name}: {_problem(matcher.get_error())}")
    made: llguidance.LLMatcher = matcher
    return made


def _problem(message: str) -> str:
    """Leave out what llguidance says of its own state, of our line, and of where a schema stands in it."""
    message = message.partition("\n<state>")[0]
    _, schema, of_schema = message.partition("failed to compile JSON schema: ")
    if schema:
        return of_schema.partition("\n   1 | ")[0].strip()
    return "\n".join(line for line in message.splitlines() if _EVERY_TOKEN.strip() not in line).strip()


@functools.lru_cache(maxsize=64)
def _refuse_unsatisfiable(text: str, name: str) -> None:
    """Look for a text that a grammar accepts, as long as there are few ways on: an error if there is none."""
    states = [_matcher(library(), _byte_tokens(), text, name)]
    tried, branches = 0, 0
    while states and tried < _STATES_TRIED and branches < _BRANCHES_TRIED:
        state = states.pop()
        if state.is_accepting():
            return
        tried += 1
        allowed = np.unpackbits(np.frombuffer(state.compute_bitmask(), np.uint8), bitorder="little")
        ways = np.flatnonzero(allowed[:_BYTES]).tolist()
        if len(ways) > _MANY_WAYS:
            return
        branches += len(ways) > 1
        for byte in ways:
            following = state if byte == ways[-1] else state.deep_copy()
            if following.consume_token(byte):
                states.append(following)
    if not states:
        raise ValueError(f"{name}: no text satisfies it")
    if branches == 0:
        raise ValueError(f"{name}: no text of up to {_STATES_TRIED} bytes satisfies it")


class _Tokens:
    """Tokens as llguidance's constructor reads them: their bytes, of which those of special ones begin with 0xFF."""

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        special = [id for id, text in enumerate(texts) if not text]
        self.tokens = [text or b"\xff<%d>" % id for id, text in enumerate(texts)]
        self.tokens += [bytes([byte]) for byte in range(_BYTES)]  # to feed any bytes, whatever the tokenizer has
        self.tokens.append(b"\xff<end>")
        self.eos_token_id = (
            len(self.tokens) - 1
        )  # none of the model's: whether those may come is not llguidance's to say
        self.bos_token_id = None
        self.special_token_ids = [*special, self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        """Cut a text, which is asked for nowhere where every token is allowed."""
        first = self.eos_token_id - _BYTES
        return [first + byte for byte in text]

    def made(self) -> Any:  # noqa: ANN401
        guidance = library()
        return guidance.LLTokenizer(guidance.TokenizerWrapper(self), n_vocab=len(self.tokens))


@functools.cache
def _byte_tokens() -> Any:  # noqa: ANN401
    """Tokens of one byte each, and nothing else."""
    return _Tokens([]).made()


class TokenTexts:
    """What each id of a vocabulary adds to a text, for llguidance.

    Parameters
    ----------
    tokenizer : Tokenizer or LibraryTokenizer
    vocab_size : int
        The model's: ids that the tokenizer has no piece for spell nothing.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.grammar import TokenTexts
    >>> TokenTexts(llama2cpp.load().tokenizer, 1536).texts[508]
    b' Once'
    """

    def __init__(self, tokenizer: Tokenizer | LibraryTokenizer, vocab_size: int) -> None:
        texts = tokenizer.token_texts() if isinstance(tokenizer, LibraryTokenizer) else token_texts(tokenizer)
        self.texts: list[bytes | None] = [*texts, *[None] * (vocab_size - len(texts))][:vocab_size]
        self.vocab_size = vocab_size
        self.first_texts: list[bytes | None] = []  # where a first piece loses the space that it begins with
        self._tokens: dict[bool, Any] = {}
        self._matchers: dict[
            tuple[str, bool], llguidance.LLMatcher
        ] = {}  # the last that was asked for is the last here

    @classmethod
    def of(cls, tokenizer: Tokenizer | LibraryTokenizer, vocab_size: int) -> TokenTexts:
        """Give those of a tokenizer, which are made once."""
        with _lock:
            found = _vocabularies.setdefault(tokenizer, {})
            if vocab_size not in found:
                found[vocab_size] = cls(tokenizer, vocab_size)
            return found[vocab_size]

    def byte_tokens(self, text: bytes) -> list[int]:
        """Give a text as llguidance's tokens of one byte, which lie behind the vocabulary's."""
        return [self.vocab_size + byte for byte in text]

    def matcher(self, text: str, *, first: bool) -> llguidance.LLMatcher:
        """Give a matcher at the beginning of a grammar, where `first`, of tokens that have lost a space there.

        Those of the last few grammars are kept.
        """
        with _lock:
            if first not in self._tokens:
                self._tokens[first] = _Tokens(self.first_texts if first else self.texts).made()
            found = self._matchers.pop((text, first), None) or _matcher(library(), self._tokens[first], text, "grammar")
            while len(self._matchers) >= _GRAMMARS_KEPT:
                del self._matchers[next(iter(self._matchers))]
            self._matchers[text, first] = found
            return found.deep_copy()


def loses_space(tokenizer: Tokenizer | LibraryTokenizer, before: Iterable[int], texts: TokenTexts) -> bool:
    """Find out whether a token that begins with a space loses it behind these ids, as at the beginning of a text.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.grammar import TokenTexts, loses_space
    >>> tokenizer = llama2cpp.load().tokenizer
    >>> texts = TokenTexts.of(tokenizer, tokenizer.vocab_size)
    >>> loses_space(tokenizer, [1], texts), loses_space(tokenizer, [1, 508], texts)
    (True, False)
    """
    asked = next((i for i, text in enumerate(texts.texts) if text and text[:1] == b" " and text[1:].isalpha()), None)
    if asked is None:
        return False
    ids = list(before)
    added = len(tokenizer.decode([*ids, asked])) - len(tokenizer.decode(ids))
    loses = added < len((texts.texts[asked] or b"").decode())
    if loses and not texts.first_texts:
        texts.first_texts = [
            tokenizer.decode([id]).encode() if text is not None and text[:1] == b" " else text
            for id, text in enumerate(texts.texts)
        ]
    return loses


class GrammarState:
    """Where a text is in a grammar: which ids may come next, and whether it may end.

    Parameters
    ----------
    texts : TokenTexts
        Of the tokenizer that decodes the text.
    text : str
        What `grammar_text` gives.
    first : bool
        Whether the first token loses a space at its beginning.

    Raises
    ------
    ValueError
        If the grammar is none.

    Examples
    --------
    >>> import llama2cpp
    >>> from llama2cpp.common.grammar import GrammarState, TokenTexts, grammar_text
    >>> tokenizer = llama2cpp.load().tokenizer
    >>> state = GrammarState(TokenTexts.of(tokenizer, 1536), grammar_text(regex="(yes|no)"), False)
    >>> for id in tokenizer.encode("yes", bos=False, prefix_space=False):
    ...     state.accept(id)
    >>> state.accepting, state.finished
    (True, True)
    """

    def __init__(self, texts: TokenTexts, text: str, first: bool) -> None:
        self._texts = texts
        self._begin = texts.matcher(text, first=False)
        self._matcher = self._begin.deep_copy()
        self._first = texts.matcher(text, first=True) if first else None
        self._accepted: list[int] = []  # how many of llguidance's tokens each of ours was

    @property
    def accepting(self) -> bool:
        """Whether the text satisfies the grammar as it is."""
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether it does, and nothing can follow."""
        return self.accepting and not self.mask().any()

    def mask(self) -> NDArray[np.uint32]:
        """Give the ids that may come next, packed as `Sampler.sample` says. Ends of a text are not among them."""
        matcher = self._matcher if self._accepted or self._first is None else self._first
        words, rest = divmod(self._texts.vocab_size, _BITS)
        packed: NDArray[np.uint32] = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: words + (rest > 0)].copy()
        if rest:
            packed[words] &= np.uint32(2**rest - 1)
        return packed

    def accept(self, id: int) -> None:
        """Go on by a token that the mask allows."""
        matcher = self._matcher
        if not self._accepted and self._first is not None:
            tokens = self._texts.byte_tokens(self._texts.first_texts[id] or b"")
        else:
            tokens = [id]
        if not all(matcher.consume_token(token) for token in tokens):
            raise ValueError(f"the grammar does not allow id {id}: {_problem(matcher.get_error())}")
        self._accepted.append(len(tokens))

    def take_back(self, count: int) -> None:
        """Forget the last tokens."""
        if count:
            taken = sum(self._accepted[-count:])
            del self._accepted[-count:]
            if not self._matcher.rollback(taken):
                raise ValueError(f"the grammar cannot go back: {_problem(self._matcher.get_error())}")

    def accepts(self, text: str) -> bool:
        """Whether a whole text satisfies the grammar."""
        matcher = self._begin.deep_copy()
        tokens = self._texts.byte_tokens(text.encode())
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())
