"""A matrix of low rank as the product of two: what a head reads and writes, without the [dim, dim] that it makes."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.arguments import checked, float_array

Array: TypeAlias = NDArray[np.floating[Any]]


class FactoredMatrix:
    """The matrix A @ B, kept as its factors. Leading axes are those of many matrices, and are broadcast.

    Parameters
    ----------
    A : array [..., ldim, mdim]
        The left factor.
    B : array [..., mdim, rdim]
        The right one.

    Attributes
    ----------
    A, B : numpy.ndarray
        The factors, broadcast to each other.
    ldim, mdim, rdim : int
        Their sizes; the rank is at most mdim.
    shape : tuple of int
        That of the product, [..., ldim, rdim].

    Raises
    ------
    ValueError
        If the inner sizes differ, or leading axes cannot be broadcast.

    Examples
    --------
    >>> import llama2cpp
    >>> model = llama2cpp.load("storyteller")
    >>> model.OV[2, 3]
    FactoredMatrix: shape (192, 192), inner dimension 32
    >>> model.OV[2, 3].eigenvalues.shape
    (32,)
    """

    __array_ufunc__ = None  # so that array @ matrix comes to __rmatmul__

    def __init__(self, A: ArrayLike, B: ArrayLike) -> None:  # noqa: N803 - their names
        left, right = _floats(A), _floats(B)
        if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
            raise ValueError(
                f"the factors have shapes {list(left.shape)} and {list(right.shape)}, expected [..., l, m] and "
                "[..., m, r]"
            )
        self.ldim, self.mdim, self.rdim = left.shape[-2], left.shape[-1], right.shape[-1]
        leading = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        self.A: Array = np.broadcast_to(left, (*leading, self.ldim, self.mdim))
        self.B: Array = np.broadcast_to(right, (*leading, self.mdim, self.rdim))
        self.shape: tuple[int, ...] = (*leading, self.ldim, self.rdim)

    @property
    def ndim(self) -> int:
        """How many axes the product has."""
        return len(self.shape)

    @property
    def has_leading_dims(self) -> bool:
        """Whether there is more than one matrix."""
        return self.ndim > 2

    @property
    def pair(self) -> tuple[Array, Array]:
        """Both factors."""
        return self.A, self.B

    @property
    def AB(self) -> Array:  # noqa: N802
        """The product itself, [..., ldim, rdim]."""
        return np.asarray(self.A @ self.B)

    @property
    def BA(self) -> Array:  # noqa: N802
        """The factors multiplied the other way round, [..., mdim, mdim]: it has the product's eigenvalues."""
        if self.ldim != self.rdim:
            raise ValueError(f"BA: the matrix is {self.ldim} by {self.rdim}, expected a square one")
        return np.asarray(self.B @ self.A)

    @property
    def T(self) -> FactoredMatrix:  # noqa: N802
        """The transposed matrix."""
        return FactoredMatrix(np.swapaxes(self.B, -1, -2), np.swapaxes(self.A, -1, -2))

    def __matmul__(self, other: Any) -> Any:  # noqa: ANN401 - a matrix or a vector
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        array = _floats(other)
        if array.ndim < 2:
            return (self.A @ (self.B @ array[..., None]))[..., 0]
        if array.shape[-2] != self.rdim:
            raise ValueError(f"@: the shapes are {list(self.shape)} and {list(array.shape)}")
        return FactoredMatrix(self.A, self.B @ array) if self.rdim > self.mdim else FactoredMatrix(self.AB, array)

    def __rmatmul__(self, other: ArrayLike) -> Any:  # noqa: ANN401
        array = _floats(other)
        if array.ndim < 2:
            return ((array[..., None, :] @ self.A) @ self.B)[..., 0, :]
        if array.shape[-1] != self.ldim:
            raise ValueError(f"@: the shapes are {list(array.shape)} and {list(self.shape)}")
        return FactoredMatrix(array @ self.A, self.B) if self.ldim > self.mdim else FactoredMatrix(array, self.AB)

    def __mul__(self, scalar: Any) -> FactoredMatrix:  # noqa: ANN401
        if np.size(scalar) != 1:
            raise ValueError(
                f"*: a factor has shape {list(np.shape(scalar))}, expected one number; @ multiplies matrices"
            )
        return FactoredMatrix(self.A * np.reshape(scalar, ()), self.B)

    __rmul__ = __mul__

    def __getitem__(self, key: Any) -> FactoredMatrix:  # noqa: ANN401
        """Take some matrices, or some rows and columns; an int leaves an axis of one there, as in TransformerLens."""
        keys = key if isinstance(key, tuple) else (key,)
        if any(item is None for item in keys):
            raise IndexError("a FactoredMatrix takes no new axes by None: see unsqueeze")
        if any(item is Ellipsis for item in keys):
            at = next(i for i, item in enumerate(keys) if item is Ellipsis)
            keys = (*keys[:at], *[slice(None)] * (self.ndim - len(keys) + 1), *keys[at + 1 :])
        if len(keys) > self.ndim:
            raise IndexError(f"there are {len(keys)} indices, and the matrix has shape {list(self.shape)}")
        leading = self.ndim - 2
        rows = _kept(keys[leading]) if len(keys) > leading else slice(None)
        columns = _kept(keys[leading + 1]) if len(keys) > leading + 1 else slice(None)
        chosen = keys[:leading]
        return FactoredMatrix(self.A[chosen][..., rows, :], self.B[chosen][..., :, columns])

    @checked
    def unsqueeze(self, k: int) -> FactoredMatrix:
        """Put a leading axis of one before axis `k`.

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> FactoredMatrix(numpy.eye(2) * 2, numpy.eye(2)).unsqueeze(0).shape
        (1, 2, 2)
        """
        return FactoredMatrix(np.expand_dims(self.A, k), np.expand_dims(self.B, k))

    @cached_property
    def _svd(self) -> tuple[Array, Array, Array]:
        ua, sa, va = np.linalg.svd(self.A.astype(np.float64), full_matrices=False)
        ub, sb, vb = np.linalg.svd(self.B.astype(np.float64), full_matrices=False)
        u, s, v = np.linalg.svd((sa[..., :, None] * va) @ (ub * sb[..., None, :]), full_matrices=False)
        return ua @ u, s, np.swapaxes(v @ vb, -1, -2)

    def svd(self) -> tuple[Array, Array, Array]:
        """Decompose into singular values, in double precision, without making the product.

        Returns
        -------
        U, S, V : numpy.ndarray
            [..., ldim, mdim], [..., mdim] descending, [..., rdim, mdim]: the matrix is ``U * S[..., None, :] @ V.T``.

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> FactoredMatrix(numpy.eye(2) * 3, numpy.eye(2)).svd()[1].tolist()
        [3.0, 3.0]
        """
        return self._svd

    @property
    def U(self) -> Array:  # noqa: N802
        """Left singular vectors, in columns."""
        return self._svd[0]

    @property
    def S(self) -> Array:  # noqa: N802
        """Singular values."""
        return self._svd[1]

    @property
    def V(self) -> Array:  # noqa: N802
        """Right singular vectors, in columns."""
        return self._svd[2]

    @property
    def Vh(self) -> Array:  # noqa: N802
        """The same as `V`, whatever its name says: TransformerLens calls it so, too."""
        return self.V

    @property
    def eigenvalues(self) -> NDArray[np.complexfloating[Any, Any]]:
        """The mdim eigenvalues that may differ from 0, complex: those of the small matrix `BA`."""
        return np.linalg.eigvals(self.BA.astype(np.float64)).astype(np.complex128)

    def norm(self) -> Array:
        """Measure the Frobenius norm, [...].

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> round(float(FactoredMatrix(numpy.eye(2) * 2, numpy.eye(2)).norm()), 4)
        2.8284
        """
        return np.asarray(np.sqrt(np.square(self.S).sum(axis=-1)))

    def make_even(self) -> FactoredMatrix:
        """Share the singular values between the factors, whose columns and rows are then orthogonal.

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> round(float(abs(FactoredMatrix(numpy.eye(2) * 2, numpy.eye(2)).make_even().A).max()), 4)
        1.4142
        """
        root = np.sqrt(self.S)
        return FactoredMatrix(self.U * root[..., None, :], root[..., :, None] * np.swapaxes(self.V, -1, -2))

    def collapse_l(self) -> Array:
        """Leave out the orthogonal left side: [..., mdim, rdim], which has the matrix's norms and singular values.

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> round(float(numpy.linalg.norm(FactoredMatrix(numpy.eye(2) * 2, numpy.eye(2)).collapse_l())), 4)
        2.8284
        """
        return np.asarray(self.S[..., :, None] * np.swapaxes(self.V, -1, -2))

    def collapse_r(self) -> Array:
        """Leave out the orthogonal right side: [..., ldim, mdim].

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> round(float(numpy.linalg.norm(FactoredMatrix(numpy.eye(2) * 2, numpy.eye(2)).collapse_r())), 4)
        2.8284
        """
        return np.asarray(self.U * self.S[..., None, :])

    @checked
    def get_corner(self, k: int = 3) -> Array:
        """Look at the first `k` rows and columns.

        Examples
        --------
        >>> import numpy
        >>> from llama2cpp import FactoredMatrix
        >>> FactoredMatrix(numpy.eye(2) * 2, numpy.eye(2)).get_corner(1).tolist()
        [[2.0]]
        """
        return np.asarray(self.A[..., :k, :] @ self.B[..., :, :k])

    def __repr__(self) -> str:
        return f"FactoredMatrix: shape {self.shape}, inner dimension {self.mdim}"


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Array:
    """How much of what one matrix writes another reads: ``|left @ right| / (|left| |right|)``, Frobenius norms.

    Parameters
    ----------
    left, right : FactoredMatrix
        [..., l, m] and [..., m, r].
    broadcast_dims : bool
        Score each of the left with each of the right: the result has the leading axes of both, the left's first.

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    ValueError
        If the inner sizes differ.

    Examples
    --------
    >>> import numpy
    >>> from llama2cpp import FactoredMatrix
    >>> from llama2cpp.utils import composition_scores
    >>> one = FactoredMatrix(numpy.ones((2, 1)), numpy.ones((1, 2)))
    >>> round(float(composition_scores(one, one)), 6)
    1.0
    """
    if left.rdim != right.ldim:
        raise ValueError(
            f"the shapes are {list(left.shape)} and {list(right.shape)}, expected [..., l, m] and [..., m, r]"
        )
    a, b = left.collapse_l(), right.collapse_r()
    if broadcast_dims:
        b = b.reshape((1,) * (a.ndim - 2) + b.shape)
        a = a.reshape(*a.shape[:-2], *(1,) * (right.ndim - 2), *a.shape[-2:])
    norms = [np.linalg.norm(each, axis=(-2, -1)) for each in (a @ b, a, b)]
    return np.asarray(norms[0] / norms[1] / norms[2])


def _floats(value: Any) -> Array:  # noqa: ANN401
    array = np.asarray(value)
    return array if array.dtype == np.float64 else float_array(value)


def _kept(item: Any) -> Any:  # noqa: ANN401
    """Keep an axis that an int would take away."""
    if isinstance(item, int | np.integer):
        return slice(int(item), int(item) + 1 or None)
    return item
