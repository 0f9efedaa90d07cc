"""Arguments of the public functions: integers that are integers, numbers from tensors, names that others use.

`checked` reads the annotations of a function, so that an argument annotated as an integer is one, and the messages of
all functions are alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .later import Later

Function = TypeVar("Function", bound=Callable[..., Any])

# What other libraries call an argument -> what it is called here, or what to do instead.
FOREIGN = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "n_ctx": "context",
    "num_ctx": "context",
    "max_seq_len": "context",
    "max_model_len": "context",
    "context_length": "context",
    "context_size": "context",
    "n_threads": "threads",
    "num_threads": "threads",
    "num_return_sequences": "n",
    "num_samples": "n",
    "best_of": "n",
    "do_sample": "temperature (0 takes the likeliest token each time)",
    "temp": "temperature",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "stop_words": "stop",
    "repeat_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "stop_token_ids": "stop_ids",
    "eos_token_id": "stop_ids",
    "logits_processors": "logits_processor",
    "guided_json": "json_schema",
    "response_format": "json_schema",
    "guided_grammar": "grammar",
    "guided_regex": "regex",
    "random_seed": "seed",
    "random_state": "seed",
    "manual_seed": "seed",
    "top_logprobs": "logprobs",
    "use_mmap": "mmap",
    "model_path": "source",
    "model_name": "source",
    "pretrained_model_name_or_path": "source",
    "device": "backend",
    "dtype": "kv_dtype (the type of keys and values) or activation_dtype; weights keep the type of their file",
    "torch_dtype": "kv_dtype (the type of keys and values) or activation_dtype; weights keep the type of their file",
    "cache_type": "kv_dtype",
    "type_k": "kv_dtype",
    "type_v": "kv_dtype",
    "overwrite": "force",
    "exist_ok": "force",
    "system_prompt": "system",
    "chat_template": "template",
    "chat_template_kwargs": "template_args",
    "return_full_text": "echo",
    "lora": "adapter (model.load_adapter(path) opens one)",
    "lora_path": "adapter (model.load_adapter(path) opens one)",
    "lora_request": "adapter (model.load_adapter(path) opens one)",
}

# What TransformerLens's functions take, and what to do instead.
INSTEAD = {
    "pos_slice": "positions= keeps those of some tokens",
    "return_cache_object": "cache.to_numpy() is the dict",
    "reset_hooks_end": "hooks of a call end with it, and those of add_hook stay until reset_hooks",
    "clear_contexts": "reset_hooks(clear_contexts=True) forgets what hooks have noted",
    "padding_side": "prompts are not padded: several may be a list of different lengths",
    "attention_mask": "prompts are not padded: several may be a list of different lengths",
    "move_to_device": "arrays are NumPy's",
    "truncate": "model.context says how many tokens there is room for",
    "past_kv_cache": "a session keeps keys and values: model.session()",
    "past_key_values": "a session keeps keys and values: model.session()",
    "use_past_kv_cache": "keys and values are kept",
    "freq_penalty": "frequency_penalty counts each token down",
    "stop_at_eos": "stop_ids= says what ends a text",
    "verbose": "it shows no progress",
}

# What an argument was called here before -> what it is called now. The old word works, with a DeprecationWarning.
RENAMED = {"kv": "kv_dtype", "activations": "activation_dtype"}

_OWNERS = dict.fromkeys(("source", "context", "threads", "backend", "kv_dtype", "mmap"), "load")
_OWNERS |= {
    "adapter": "Model.session() and generate",
    "system": "Conversation",
    "template": "chat",
    "template_args": "chat",
    "force": "export.convert",
}
_INPUTS = ("prompt", "text_or_tokens", "text", "tokens", "messages", "input")  # what is read, by the function
_FOREIGN_INPUTS = {*_INPUTS, "input_ids", "inputs", "query"}
_WHOLE = {"max_tokens", "min_tokens"}  # integers for which 2.0 will do
_MANY = re.compile(r"(Sequence|Iterable|tuple|list)\[int|\bIndex\b|\bSelection\b")  # annotations of several integers
# Annotations that are checked by isinstance, and classes that are known by their names.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bytes": (bytes,),
    "PathLike": (os.PathLike,),
    "Mapping": (Mapping,),
    "None": (type(None),),
    "Literal[False]": (),
}
_CLASSES = {"Model", "Opened", "Tokenizer", "tokenizers.Tokenizer", "Config", "Calibration", "ActivationCache"}
_CLASSES |= {"Difference", "Intervention", "LogitLens", "Replacement", "TunedLens"}
_RANGES = dict.fromkeys(("seed", "shuffle"), (0, 2**64 - 1))  # others are of 64 bits with a sign


def integer(value: object, name: str, function: str, *, whole: bool = False, text: bool = False) -> int:
    """Make an int of an argument that stands for one: Python's, NumPy's, or an array or tensor of no dimensions.

    A truth value stands for none, here and in the extension module.

    Parameters
    ----------
    value : object
        What was passed.
    name, function : str
        Of what, for the message.
    whole : bool
        Take floats that are whole numbers, too.
    text : bool
        Say that it might have been a str, which the caller takes.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is beyond 64 bits.

    Examples
    --------
    >>> from llama2cpp.common.arguments import integer
    >>> try:
    ...     integer(2.5, "max_tokens", "generate")
    ... except TypeError as error:
    ...     print(error)
    generate: max_tokens is 2.5 (float), expected an integer
    """
    expected = "an integer or a str" if text else "an integer"
    if _is_bool(value):
        raise TypeError(f"{function}: {name} is {_shown(value)}, expected {expected}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # its error is what is asked for
    except TypeError:
        if not (whole and isinstance(value, float | np.floating) and float(value).is_integer()):
            raise TypeError(f"{function}: {name} is {_shown(value)}, expected {expected}") from None
        number = int(value)
    least, most = _RANGES.get(name, (-(2**63), 2**63 - 1))
    if not least <= number <= most:
        wrong = f"{name} is {_shown(value)}, which is out of range"
        if name in _RANGES:
            wrong = seed_message(number, name)
        raise ValueError(f"{function}: {wrong}")
    return number


def seed_message(seed: int, name: str = "seed") -> str:
    """Say that a seed is none.

    Parameters
    ----------
    seed : int
        The number.
    name : str
        What the argument is called.

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.common.arguments import seed_message
    >>> seed_message(-1)
    'seed is -1, expected 0 to 2**64 - 1'
    """
    return f"{name} is {seed}, expected 0 to 2**64 - 1"


def index(value: object, count: int, name: str, function: str) -> int:
    """Count an index from 0 that may count from the end.

    Parameters
    ----------
    value : object
        What was passed.
    count : int
        How many there are.
    name, function : str
        Of what, for the message.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If there is no such one.

    Examples
    --------
    >>> from llama2cpp.common.arguments import index
    >>> index(-1, 5, "layer", "KVCache.keys")
    4
    """
    number = integer(value, name, function)
    if not -count <= number < count:
        raise ValueError(f"{function}: {name} is {number}, expected {-count} to {count - 1}")
    return number % count


def integers(
    value: Any,  # noqa: ANN401
    name: str,
    function: str,
    *,
    optional: bool = True,
    gaps: bool = False,
    text: bool = False,
) -> Any:  # noqa: ANN401
    """Check an argument that is one integer or several: a sequence, an array, a slice, or None.

    Parameters
    ----------
    value : object
        What was passed.
    name, function : str
        Of what, for the message.
    optional : bool
        Whether it may be None.
    gaps : bool
        Whether a tuple is the arguments of a slice, where None stands for an end.
    text : bool
        Whether it may be a str, which is left alone.

    Raises
    ------
    TypeError
        If a number is no integer. Floats that are whole will do.
    ValueError
        If one is beyond 64 bits.

    Examples
    --------
    >>> from llama2cpp.common.arguments import integers
    >>> integers((0, 3), "head", "zero"), integers(slice(1, None), "positions", "run_with_cache")
    ([0, 3], slice(1, None, None))
    """
    if (value is None and optional) or (text and isinstance(value, str)):
        return value
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return slice(*(None if end is None else integer(end, name, function) for end in ends))
    if isinstance(value, tuple) and gaps:
        return tuple(None if end is None else integer(end, name, function) for end in value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.floor(array)).all():
            array = array.astype(np.int64)
        if array.ndim == 0:
            return integer(array[()], name, function)
        kinds = "iub" if gaps else "iu"  # what selects from an axis may be a mask
        if array.dtype.kind not in kinds and array.size > 0:
            raise TypeError(f"{function}: {name} is an array of {array.dtype}, expected integers")
        return array
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_no_bool(item, name, function) for item in value]
    return integer(value, name, function, whole=True)


def checked(function: Function) -> Function:
    """Check a public function's arguments by its signature before it runs.

    Those annotated as an integer or several must be that, and a name that it does not have is a TypeError with the name
    that it has here.

    Parameters
    ----------
    function : callable
        With annotations.

    Returns
    -------
    callable
        The same, checked.

    Examples
    --------
    >>> from llama2cpp.common.arguments import checked
    >>> @checked
    ... def take(max_tokens: "int | None" = None) -> None:
    ...     pass
    >>> try:
    ...     take(max_new_tokens=5)
    ... except TypeError as error:
    ...     print(error)
    take() has no argument 'max_new_tokens': here it is max_tokens
    """
    parameters = inspect.signature(function).parameters
    names = frozenset(parameters)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    label = ""
    checks: list[tuple[str, int, Callable[[Any], Any]]] | None = None

    def prepare() -> list[tuple[str, int, Callable[[Any], Any]]]:
        """Make the checks in the first call: by then a method has the name of its class (`method_names`)."""
        nonlocal label, checks
        label = function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]
        checks = [
            (name, place, check)
            for place, (name, parameter) in enumerate(parameters.items())
            if name != "self" and (check := _check_of(name, str(parameter.annotation), label)) is not None
        ]
        return checks

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        known = prepare() if checks is None else checks
        if not open_ended and not kwargs.keys() <= names:
            kwargs = _with_new_names(kwargs, names, label)
        if not open_ended and not kwargs.keys() <= names:
            raise TypeError(unknown_argument(next(name for name in kwargs if name not in names), names, label))
        for name, place, check in known:
            if name in kwargs:
                kwargs[name] = check(kwargs[name])
            elif place < len(args):
                args = (*args[:place], check(args[place]), *args[place + 1 :])
        return function(*args, **kwargs)

    return cast(Function, call)


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Put what was called in front of the messages of plain errors in a ``with`` block, where they do not say it.

    Parameters
    ----------
    what : str
        A function, or a function and what of its arguments.

    Examples
    --------
    >>> from llama2cpp.common.arguments import naming
    >>> try:
    ...     with naming("generate"):
    ...         raise ValueError("a token id is 2.5")
    ... except ValueError as error:
    ...     print(error)
    generate: a token id is 2.5
    """
    try:
        yield
    except (ValueError, TypeError, _core.ContextFullError) as error:
        plain = type(error) in (ValueError, TypeError, _core.ContextFullError)  # others have more than a message
        if not plain or str(error).startswith(f"{what}: "):
            raise
        raise type(error)(f"{what}: {error}") from None


def spelled_out(kind: type, rest: str | None = None, **defaults: object) -> Callable[[Function], Function]:
    """Show a function's ``**options`` as the fields of a dataclass: in help, in completion, and to `checked`.

    Parameters
    ----------
    kind : type
        The dataclass, whose fields have defaults.
    rest : str, optional
        What further keyword arguments are called, where the function takes and checks those itself.
    **defaults
        Other ones.

    Returns
    -------
    callable
        A decorator, to stand below `checked`.

    Examples
    --------
    >>> import inspect
    >>> from llama2cpp.common.arguments import spelled_out
    >>> from llama2cpp.common.sampling import Sampling
    >>> @spelled_out(Sampling, temperature=0.7)
    ... def say(text: str, **options: object) -> None:
    ...     pass
    >>> list(inspect.signature(say).parameters)[:3]
    ['text', 'max_tokens', 'temperature']
    """
    fields = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=field.type,
        )
        for field in dataclasses.fields(kind)
    ]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())
        assert own[-1].kind is inspect.Parameter.VAR_KEYWORD
        further = [] if rest is None else [own[-1].replace(name=rest, annotation="Any")]
        shown = signature.replace(parameters=[*own[:-1], *fields, *further])
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return decorate


def level_of_caller() -> int:
    """Count the calls up to the first that is not the package's: the ``stacklevel`` of a warning that is about it.

    Returns
    -------
    int
        For who calls this function.

    Examples
    --------
    >>> from llama2cpp.common.arguments import level_of_caller
    >>> level_of_caller()
    1
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "llama2cpp":
        level, frame = level + 1, frame.f_back
    return level


def warn_of_old_name(old: str, new: str) -> None:
    """Say that a name has another now.

    Parameters
    ----------
    old, new : str
        Both names.

    Examples
    --------
    >>> import warnings
    >>> from llama2cpp.common.arguments import warn_of_old_name
    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     warn_of_old_name("Model.kv", "Model.kv_dtype")
    >>> str(told[0].message)
    'Model.kv is now Model.kv_dtype; the old name will go'
    """
    warnings.warn(f"{old} is now {new}; the old name will go", DeprecationWarning, stacklevel=level_of_caller())


def _with_new_names(given: dict[str, Any], names: frozenset[str], function: str) -> dict[str, Any]:
    """Give the arguments under the names that they have now."""
    arguments = {}
    for name, value in given.items():
        new = RENAMED.get(name, name)
        if name not in names and new in names:
            if new in given:
                raise TypeError(f"{function}() got {name!r} and {new!r}, which are one argument: pass {new}")
            warn_of_old_name(f"{function}: {name}", new)
            arguments[new] = value
        else:
            arguments[name] = value
    return arguments


def checked_options(options: Mapping[str, Any], kind: type, function: str) -> dict[str, Any]:
    """Check keyword arguments that are passed on, by the TypedDict that describes them.

    Parameters
    ----------
    options : mapping of str to object
        What was passed.
    kind : type
        The TypedDict.
    function : str
        To what, for the message.

    Returns
    -------
    dict
        The same, integers as int.

    Raises
    ------
    TypeError
        For a name that is none of them, and for what is no integer where one is wanted.
    ValueError
        For an integer beyond 64 bits.

    Examples
    --------
    >>> from llama2cpp.common.arguments import checked_options
    >>> from llama2cpp.common.sampling import SamplingOptions
    >>> checked_options({"max_tokens": 5.0}, SamplingOptions, "chat")
    {'max_tokens': 5}
    """
    annotations = inspect.get_annotations(kind)
    checked = {}
    for name, value in options.items():
        if name not in annotations:
            raise TypeError(unknown_argument(name, annotations, function))
        annotation = annotations[name]
        check = _check_of(name, getattr(annotation, "__forward_arg__", str(annotation)), function)
        checked[name] = value if check is None else check(value)
    return checked


def unknown_argument(name: str, names: Iterable[str], function: str) -> str:
    """Say that a function has no such argument, and which one is meant, if that can be guessed.

    Parameters
    ----------
    name : str
        What was passed.
    names : iterable of str
        What there is.
    function : str
        Whose.

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.common.arguments import unknown_argument
    >>> unknown_argument("n_ctx", ["source", "context"], "load")
    "load() has no argument 'n_ctx': here it is context"
    """
    known = [other for other in names if other != "self"]
    meant = FOREIGN.get(name, name if name in _OWNERS else "")
    if name in _FOREIGN_INPUTS:
        meant = next((own for own in _INPUTS if own in known), "")
    own = meant.split(" ")[0]
    if own in known:
        return f"{function}() has no argument {name!r}: here it is {meant}"
    if own:
        return f"{function}() has no argument {name!r}: it is {own} of {_OWNERS.get(own, 'generate')}()"
    if name in INSTEAD:
        return f"{function}() has no argument {name!r}: {INSTEAD[name]}"
    return f"{function}() has no argument {name!r}{close_names(name, known)}"


def instead_of(name: str, table: Mapping[str, str]) -> str:
    """Give the end of a message about what other libraries have: what to use instead, where the table says it.

    Parameters
    ----------
    name : str
        What was asked for.
    table : mapping of str to str

    Returns
    -------
    str

    Examples
    --------
    >>> from llama2cpp.common.arguments import instead_of
    >>> instead_of("cuda", {"cuda": "arrays are NumPy's"})
    ": arrays are NumPy's"
    """
    return f": {table[name]}" if name in table else ""


def close_names(name: object, names: Iterable[str], count: int = 3) -> str:
    """Give the end of a message about a name that there is not: those that are written almost like it.

    Parameters
    ----------
    name : object
        What was asked for.
    names : iterable of str
        What there is.
    count : int
        The most that are named.

    Returns
    -------
    str
        Empty if none is close.

    Examples
    --------
    >>> from llama2cpp.common.arguments import close_names
    >>> close_names("max_token", ["max_tokens", "top_p"])
    '; close to it is max_tokens'
    """
    known = list(names)
    close = [other for other in known if other.lower() == str(name).lower()]
    close = close or [other for other in known if f"{name}s" == other or name == f"{other}s"]  # one or several
    close = close or difflib.get_close_matches(str(name), known, n=count, cutoff=0.6)
    if not close:
        return ""
    return f"; close to it {'is' if len(close) == 1 else 'are'} {', '.join(close)}"


def float_array(value: Any, dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:  # noqa: ANN401
    """Make an array of floats of numbers, arrays and tensors, those of bfloat16 too, without a copy if it is one.

    Parameters
    ----------
    value : number, array or tensor
        A tensor of PyTorch's may be of any type, on any device, and have a gradient, which is left behind.
    dtype : type
        numpy.float32 or numpy.float64.

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    TypeError
        For complex numbers, whose imaginary part would be lost.

    Examples
    --------
    >>> from llama2cpp.common.arguments import float_array
    >>> float_array([1, 2.5])
    array([1. , 2.5], dtype=float32)
    """
    if "complex" in str(getattr(value, "dtype", "")):
        raise TypeError("the numbers are complex, expected real ones")
    if all(hasattr(value, method) for method in ("detach", "float", "cpu")):
        value = value.detach().cpu()  # NumPy knows neither its devices nor its bfloat16
        value = value.double() if dtype is np.float64 else value.float()
    return np.asarray(value, dtype=dtype)


def _check_of(name: str, annotation: str, function: str) -> Callable[[Any], Any] | None:
    """Find the check that an annotation asks for."""
    if _MANY.search(annotation):
        aliases = "Selection" in annotation or "Index" in annotation  # both have None
        own = {
            "optional": aliases or "None" in annotation,
            "gaps": "Selection" in annotation,
            "text": "str" in annotation,
        }
        return functools.partial(integers, name=name, function=function, **own)
    if annotation.startswith("Sequence[Mapping["):
        return functools.partial(_mappings, name=name, function=function, optional="None" in annotation)
    parts = {part.strip() for part in annotation.split("|")}
    if parts in ({"bool"}, {"bool", "None"}):
        return functools.partial(truth, name=name, function=function, optional="None" in parts)
    if parts == {"bool", "str"}:
        return functools.partial(truth, name=name, function=function, text=True)
    if parts in ({"float"}, {"float", "None"}):
        return functools.partial(_real, name=name, function=function, optional="None" in parts)
    if "int" not in parts:
        kinds = {part if part.startswith("Literal") else part.partition("[")[0] for part in parts}
        if kinds <= {*_KINDS, *_CLASSES}:
            return functools.partial(_kind, name=name, function=function, annotation=annotation, kinds=kinds)
        return None
    optional, text, whole = "None" in parts, "str" in parts, name in _WHOLE
    least = 0 if name in _RANGES else -(2**63)

    def check(value: Any) -> Any:  # noqa: ANN401
        if type(value) is int and least <= value < 2**63:  # almost always
            return value
        if (value is None and optional) or (text and isinstance(value, str)):
            return value
        return integer(value, name, function, whole=whole, text=text)

    return check


def _kind(value: object, name: str, function: str, annotation: str, kinds: set[str]) -> object:
    """Check an argument that is a text, a path, a mapping or one of the package's own."""
    if isinstance(value, Later):
        return value
    known = [kind for part in kinds for kind in _KINDS.get(part, ())]
    classes = {kind.__name__ for kind in type(value).__mro__}  # by name: they are defined above this module
    off = value is False and "Literal[False]" in kinds
    if isinstance(value, tuple(known)) or classes & kinds or off:
        return value
    expected = re.sub(r"\[[^|]*\]", "", annotation.replace("Literal[False]", "False")).replace(" | ", ", ")
    raise TypeError(f"{function}: {name} is {_shown(value)}, expected one of: {expected}")


def _mappings(value: object, name: str, function: str, optional: bool) -> object:
    """Check a sequence of mappings: JSON objects."""
    if value is None and optional:
        return value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(
            f"{function}: {name} is {_shown(value)}, expected a sequence of dicts{' or None' if optional else ''}"
        )
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise TypeError(f"{function}: {name}[{i}] is {_shown(item)}, expected a dict")
    return value


def _no_bool(value: object, name: str, function: str) -> int:
    """Check one of several integers: a list of bools is a mask, and not the numbers 0 and 1."""
    if _is_bool(value):
        raise TypeError(f"{function}: {name} has {_shown(value)} in it, expected integers")
    return integer(value, name, function, whole=True)


def truth(value: object, name: str, function: str, *, optional: bool = False, text: bool = False) -> Any:  # noqa: ANN401
    """Check an argument that says yes or no: True or False, NumPy's too, and nothing that Python calls true.

    Parameters
    ----------
    value : object
        What was passed.
    name, function : str
        Of what, for the message.
    optional, text : bool
        Whether it may be None; or a str.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> from llama2cpp.common.arguments import truth
    >>> try:
    ...     truth("yes", "special", "generate")
    ... except TypeError as error:
    ...     print(error)
    generate: special is 'yes' (str), expected True or False
    """
    if value is True or value is False or (value is None and optional) or (isinstance(value, str) and text):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(
        f"{function}: {name} is {_shown(value)}, expected True"
        f"{', False or None' if optional else ', False or a str' if text else ' or False'}"
    )


def _is_bool(value: object) -> bool:
    """Whether it is a truth value, of Python's or another library's."""
    return isinstance(value, bool | np.bool_) or str(getattr(value, "dtype", "")).endswith("bool")


def _real(value: object, name: str, function: str, optional: bool) -> object:
    """Check a number: Python's, NumPy's, or an array or tensor of no dimensions."""
    if isinstance(value, float) or (value is None and optional):
        return value
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # its error is what is asked for
        return value if isinstance(value, int) else number
    except OverflowError:
        bits = int(value).bit_length()  # type: ignore[call-overload]  # only an integer can be so large
        raise ValueError(f"{function}: {name} is an integer of {bits} bits, which no float holds") from None
    except (TypeError, ValueError):
        raise TypeError(f"{function}: {name} is {_shown(value)}, expected a number") from None


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:80] + '...'} ({type(value).__name__})"
