"""Arguments that are sent to processes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any


def adapter_path(function: str, given: object) -> str | None:
    """Give the path of an adapter, which machines of a cluster may have where this one has none.

    Parameters
    ----------
    function : str
        What was called, for messages.
    given : str, path or None
        The argument.

    Returns
    -------
    str or None

    Raises
    ------
    TypeError, ValueError
        For what is no path.

    Examples
    --------
    >>> from llama2cpp.common.ray_arguments import adapter_path
    >>> adapter_path("map_prompts", "style")
    'style'
    """
    if given is None:
        return None
    if not isinstance(given, str | PathLike):
        raise TypeError(
            f"{function}: adapter is {given!r:.60} ({type(given).__name__}), which cannot be sent to actors: expected "
            "the path of a folder or file that each machine has"
        )
    path = fspath(given)
    if not isinstance(path, str) or not path:
        raise ValueError(f"{function}: adapter is {path!r:.60}, expected the path of a folder or file")
    return path


def opening(function: str, given: Mapping[str, Any] | None, threads: int) -> dict[str, Any]:
    """Give the arguments of `load`, with the threads that Ray reserves.

    Parameters
    ----------
    function : str
        What was called, for messages.
    given : mapping or None
        Its ``load_args``.
    threads : int
        Its ``threads``.

    Returns
    -------
    dict

    Raises
    ------
    TypeError, ValueError
        For what is no mapping, or has ``threads`` too.

    Examples
    --------
    >>> from llama2cpp.common.ray_arguments import opening
    >>> opening("map_prompts", {"context": 128}, 2)
    {'context': 128, 'threads': 2}
    """
    if threads < 1:
        raise ValueError(f"{function}: threads is {threads}, expected at least 1")
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{function}: load_args is {given!r:.80}, expected a mapping of arguments of load, or None")
    if given is not None and "threads" in given:
        raise ValueError(f"{function}: load_args has threads, which is an argument of {function} itself")
    return {**(given or {}), "threads": threads}
