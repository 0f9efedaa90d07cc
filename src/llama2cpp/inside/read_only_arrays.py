"""Arrays that show what a model or a session has and cannot be written, because it would change nothing there.

============================  ==========================================================================================
array                         writing into it
============================  ==========================================================================================
``model.weights[name]``       refused (also ``weights.transformer_lens``, ``weights.head``, ``model.W_E`` and the other
                              ``W_*``): edit a copy, and give it to `Model.with_weights`
``session.logits``            refused: a copy of what the session samples from
``kv.unrotated_keys(layer)``  refused: computed from ``kv.keys(layer)``
``kv.keys``, ``kv.values``    changes the session; with ``kv_dtype="q8_0"`` refused: copies of what it stands for
a hook's activation           changes what the model goes on with
``cache[name]``               changes the cache: everything computed from it afterwards sees it
``lens.values``               changes that object
what a call computes          yours: logits of ``step``, ``prefill`` and ``forward``, ``unembed``, stacks of a cache
============================  ==========================================================================================
"""

# ruff: noqa: ANN401 - what NumPy passes is anything
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ADVICE = "the array is read-only: change a copy of it"


class ReadOnlyArray(np.ndarray[Any, np.dtype[Any]]):
    """An array, or a view of one, that refuses to be written and says what to do instead.

    To NumPy it is an array like others: what is computed from it, ``copy()`` and ``astype()`` are plain arrays, which
    can be written. ``torch.from_dlpack`` gets a copy, because PyTorch does not keep to the flag, and a write into a
    mapped file would end the process. (``torch.from_numpy`` looks at the memory alone: use ``torch.tensor``.)

    Examples
    --------
    >>> import llama2cpp
    >>> gain = llama2cpp.load().weights["norm.weight"]
    >>> try:
    ...     gain[0] = 0
    ... except ValueError as error:
    ...     print(str(error)[:40])
    the weights of a model are read-only: ch
    """

    _advice: str

    def __array_finalize__(self, source: object) -> None:
        self._advice = getattr(source, "_advice", _ADVICE)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] | None = None, **options: Any
    ) -> Any:
        """Compute with plain arrays."""
        for written in (*(out or ()), *(inputs[:1] if method == "at" else ())):
            _check_writable(written)
        given = [_plain(array) for array in inputs]
        if out is not None:
            options["out"] = tuple(_plain(array) for array in out)
        result = getattr(ufunc, method)(*given, **options)
        # In-place operators bind what they get: the array that was written.
        return out[0] if out is not None and len(out) == 1 and out[0] is not None else result

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().__array_function__(function, types, args, kwargs)
        except ValueError as error:
            if "read-only" in str(error):
                raise ValueError(self._advice) from error
            raise

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def copy(self, order: Any = "C") -> Any:
        """Make a plain array, which can be written."""
        return np.array(self, order=order)

    def __copy__(self) -> Any:
        return np.array(self)

    def __deepcopy__(self, memo: Any) -> Any:
        return np.array(self)

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        """Make a plain array of another type."""
        return np.asarray(self).astype(*args, **kwargs)

    def __dlpack__(self, **options: Any) -> Any:
        if self.flags.writeable:
            return np.asarray(self).__dlpack__(**options)
        if options.get("copy") is False:
            raise BufferError(f"{self._advice} (DLPack gets a copy, and copy=False was asked for)")
        options.pop("copy", None)
        return np.array(self).__dlpack__(**options)

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()

    def __repr__(self) -> str:
        return repr(np.asarray(self))


def _refusing(name: str) -> Callable[..., Any]:
    method = getattr(np.ndarray, name)

    def call(self: ReadOnlyArray, *args: Any, **kwargs: Any) -> Any:
        _check_writable(self)
        return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = name, f"As numpy.ndarray.{name}, where the array can be written."
    return call


for _name in ("__setitem__", "__delitem__", "fill", "partition", "put", "resize", "setfield", "setflags", "sort"):
    setattr(ReadOnlyArray, _name, _refusing(_name))


def _check_writable(array: object) -> None:
    if isinstance(array, ReadOnlyArray) and not array.flags.writeable:
        raise ValueError(array._advice)


def _plain(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, ReadOnlyArray) else array


def read_only(array: NDArray[Any], advice: str) -> NDArray[Any]:
    """Make an array one that refuses to be written. No number is copied.

    Parameters
    ----------
    array : numpy.ndarray
        A view of something, or an array that nobody else writes.
    advice : str
        The message of the ValueError.

    Returns
    -------
    numpy.ndarray

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp.inside.read_only_arrays import read_only
    >>> shown = read_only(numpy.zeros(3), "take a copy")
    >>> try:
    ...     shown += 1
    ... except ValueError as error:
    ...     print(error)
    take a copy
    """
    if array.flags.writeable:
        array.setflags(write=False)
    view = array.view(ReadOnlyArray)
    view._advice = advice
    return view
