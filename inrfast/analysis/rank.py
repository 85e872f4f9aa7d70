"""Numerical rank of a matrix, of a tangent kernel or of any symmetric operator, as an interval that contains it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from inrfast.arrays import is_array
from inrfast.errors import RangeError, ResolutionError, check_tensor
from inrfast.linalg.counted import check_diagonal
from inrfast.linalg.eigenvalues import DenseableOperator, check_levels, counts
from inrfast.linalg.operators import (
    ASYMMETRY,
    UNIT,
    DenseOperator,
    check_semidefinite,
    check_symmetric,
    frobenius,
)
from inrfast.linalg.spectrum import LEAST_RTOL, RankInterval, check_tolerance
from inrfast.linalg.tsqr import CHUNK_ROWS, singular_values
from inrfast.memory import LEAST_ROWS, budget_bytes, chunks, require_free
from inrfast.modes import in_own_modes
from inrfast.tangent.kernel import TangentKernel


@overload
def numerical_rank(matrix_or_kernel: Any, rtol: float, levels: None = None) -> RankInterval: ...


@overload
def numerical_rank(matrix_or_kernel: Any, rtol: Sequence[float], levels: None = None) -> tuple[RankInterval, ...]: ...


@overload
def numerical_rank(
    matrix_or_kernel: Any, rtol: float | Sequence[float] | None = None, *, levels: Sequence[float]
) -> tuple[RankInterval, ...]: ...


@in_own_modes
def numerical_rank(
    matrix_or_kernel: Any,
    rtol: float | Sequence[float] | None = None,
    levels: Sequence[float] | None = None,
) -> RankInterval | tuple[RankInterval, ...]:
    """Return how many singular values of a matrix, or eigenvalues of a kernel, exceed ``rtol`` times the largest.

    The two conventions differ on purpose: ``lambda = sigma^2``, so a kernel ``J J^T`` at ``rtol`` has the rank of the
    matrix ``J`` at ``sqrt(rtol)``.

    Parameters
    ----------
    matrix_or_kernel
        A matrix (m, n), tensor or NumPy array, of any floating dtype: **singular values** relative to sigma_1. Or
        something symmetric and positive semidefinite: **eigenvalues** relative to lambda_1. That is a tangent kernel
        (one of its ``layers``, or one shared by several processes), any object with ``shape`` (n, n) and ``to_dense()``
        (a tensor or array of its own; of one that is also a :class:`inrfast.linalg.operators.SymmetricOperator` no
        matrix is made), or a SciPy ``LinearOperator``, written down by n products. All in fp64; products that come in
        a lower precision, of unit roundoff u, count as off by ``u sqrt(n)`` of the operator's Frobenius norm.
    rtol
        Relative tolerance in (0, 1), or a sequence of them.
    levels
        Absolute levels in place of ``rtol``: the numbers of singular values or eigenvalues above them. They are taken
        as exact. None, or none of them: ``rtol`` counts.

    Returns
    -------
    RankInterval
        An interval that holds the number, from ``lower`` to ``upper``; a tuple of them for a sequence of tolerances, or
        for levels, in their order. A zero matrix has rank 0. The two are equal unless a value lies within rounding of
        the threshold, or the number is large and pivots answer (then they are up to 3 % apart), or the memory budget,
        or fp64 at a level so low, allows no more: then as wide as it takes. ``spectrum`` of a kernel says why.

    Raises
    ------
    ResolutionError
        ``rtol`` is below what fp64 resolves for this matrix or kernel, or its memory budget (half of what is free, for
        others than kernels) allows no certificate.
    RangeError
        Entries so large or so small that errors of fp64 cannot be bounded.
    ValueError, TypeError
        Not a finite, non-empty matrix; an operator that is not symmetric or not positive semidefinite (of an operator
        of which no matrix is made, symmetry is looked for in :data:`LOOKED_AT` rows and columns, drawn at random, and
        its other entries are taken on trust); ``rtol`` outside (0, 1); neither ``rtol`` nor ``levels``, or both.

    Notes
    -----
    Above order 4,096 the eigenvalues of a kernel are counted, not computed: by pivoted Cholesky where few are large,
    otherwise by factorisations of ``K - level I``, whatever the rank.

    Examples
    --------
    >>> print(numerical_rank(torch.diag(torch.tensor([1.0, 1e-2, 1e-4])), 1e-3))
    2
    >>> print(*numerical_rank(torch.diag(torch.tensor([1.0, 1e-2, 1e-4])), levels=[2.0, 0.5, 1e-3, 1e-5]))
    0 1 2 3
    """
    absolute = () if levels is None else check_levels("levels", levels)
    if absolute and rtol is not None:
        raise TypeError(f"give rtol or levels, not both: got rtol={rtol!r} and levels={levels!r}")
    rtols = () if absolute else _tolerances(rtol)
    if is_array(matrix_or_kernel):
        ranks = _of_matrix(matrix_or_kernel, rtols, absolute)
    else:
        ranks = _of_operator(matrix_or_kernel, rtols, absolute)
    return ranks if absolute or getattr(rtol, "ndim", isinstance(rtol, Sequence)) else ranks[0]


def _tolerances(rtol: Any) -> tuple[float, ...]:
    """Return one tolerance or several as a tuple."""
    if rtol is None:
        raise TypeError("rtol must be a number in (0, 1) or a sequence of them, got None and no levels")
    rtols = tuple(check_tolerance("rtol", entry) for entry in check_levels("rtol", rtol))
    if not rtols:
        raise ValueError("rtol must hold at least one tolerance, got none")
    return rtols


def _of_operator(given: Any, rtols: tuple[float, ...], levels: tuple[float, ...]) -> tuple[RankInterval, ...]:
    """Return numbers of eigenvalues."""
    wanted = rtols or (LEAST_RTOL,)
    if isinstance(given, TangentKernel):
        spectrum = given.counts(wanted, levels)
    else:
        operator = as_operator("matrix_or_kernel", given)
        budget = budget_bytes(None, operator.device)
        spectrum = counts(operator, wanted, operator.shape[0], budget, levels=levels)
        if len(spectrum.eigenvalues) == spectrum.size:
            smallest = float(spectrum.eigenvalues[-1])
            check_semidefinite(smallest, ROUNDED * float(spectrum.eigenvalues.abs().max()) + spectrum.lower_error)
    if levels:
        return tuple(spectrum.count_above(level) for level in levels)
    try:
        return tuple(spectrum.rank(rtol) for rtol in rtols)
    except ResolutionError as error:
        raise ResolutionError(f"{error} ({spectrum.note})" if spectrum.note else str(error)) from None


def _of_matrix(given: Any, rtols: tuple[float, ...], levels: tuple[float, ...]) -> tuple[RankInterval, ...]:
    """Return numbers of singular values."""
    matrix = check_tensor("matrix_or_kernel", given, ndim=2).detach()
    largest = max(-float(matrix.min()), float(matrix.max())) if matrix.numel() else 0.0  # no copy is made
    if 0 < largest < SMALLEST:
        raise RangeError(f"matrix_or_kernel has entries of {largest:.1e} at most, which fp64 holds in part; scale it")
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.t()
    source = partial(_row_chunks, matrix)
    if not levels:
        values = singular_values(source, min(rtols))
        return tuple(values.rank(rtol) for rtol in rtols)
    found = singular_values(source, 0.5)
    largest = float(found.values[0])
    if largest > min(levels) < found.floor * largest:
        found = singular_values(source, min(levels) / largest)
    counted = [(int((found.lower > level).sum()), int((found.upper > level).sum())) for level in levels]
    return tuple(
        RankInterval(lower, max(lower, upper), level / largest if largest > 0 else math.inf)
        for level, (lower, upper) in zip(levels, counted, strict=True)
    )


OFFERED = ("device", "partition", "matrix_error", "jacobian_error", "diagonal", "columns", "submatrix", "blocks_")
"""What makes an object a :class:`inrfast.linalg.operators.SymmetricOperator`."""

ROUNDED = 1e-5
"""Size of a negative eigenvalue, relative to the largest, that rounding of entries to fp32 may have left."""

SMALLEST = 1e-280
"""Largest entry of a matrix below which its small singular values may have lost digits."""

MATRICES = 4
"""Matrices of the operator's order in memory while it is written down and made symmetric."""

LOOKED_AT = 64
"""Rows and columns of an operator without a matrix in which symmetry is looked for at the door."""


def as_operator(argument: str, given: Any) -> DenseableOperator:
    """Return an object as a symmetric operator in fp64, checked.

    Raises
    ------
    ValueError, TypeError
        It is none of those that :func:`numerical_rank` takes; not square, finite and symmetric; or negative on its
        diagonal.
    """
    shape = getattr(given, "shape", None)
    written = "to_dense" if hasattr(given, "to_dense") else "matmat" if hasattr(given, "matmat") else ""
    matrix_free = written == "to_dense" and all(hasattr(given, name) for name in OFFERED)
    if not written or isinstance(given, type) or not isinstance(shape, tuple):
        raise TypeError(
            f"{argument} must be a tensor, a NumPy array, a tangent kernel, or a symmetric operator with shape and "
            f"to_dense(), got {type(given).__name__}"
        )
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"{argument} must be square to have eigenvalues, got an operator of shape {tuple(shape)}")
    operator: DenseableOperator = given
    if not matrix_free:
        operator = _written_down(argument, given, written)
    check_diagonal(operator.partition.gather(operator.diagonal()))
    if matrix_free:
        drawn = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))[:LOOKED_AT].to(operator.device)
        block = check_tensor(argument, operator.submatrix(drawn), ndim=2)
        check_symmetric(block, operator.partition.pick(operator.diagonal(), drawn))
    return operator


def _written_down(argument: str, given: Any, method: str) -> DenseOperator:
    """Return an object with such a method as a dense operator; what its mirrored entries differ by is its error."""
    n = given.shape[0]
    require_free(MATRICES * 8 * n**2, f"{argument} of order {n}, written down,", "take a smaller one")
    matrix = given.to_dense() if method == "to_dense" else given.matmat(np.eye(n))
    found = check_tensor(argument, matrix, ndim=2).detach()
    matrix = found.double()
    if tuple(matrix.shape) != (n, n):
        raise ValueError(f"{argument} has shape {(n, n)}, but {method}() gives {tuple(matrix.shape)}")
    largest, gap = float(matrix.diagonal().abs().max()), 0.0
    for rows in chunks(n, LEAST_ROWS):
        difference = matrix[rows] - matrix[:, rows].t()
        if float(difference.abs().max()) > ASYMMETRY * largest:
            raise ValueError(f"{argument} must be symmetric: its entries (i, j) and (j, i) differ")
        gap = math.hypot(gap, frobenius(difference))
    symmetric = matrix / 2 + matrix.t() / 2  # whose sum might overflow
    unit = UNIT if method == "to_dense" else max(UNIT, torch.finfo(found.dtype).eps / 2 * math.sqrt(n))
    error = gap / 2 + unit * frobenius(symmetric)
    if not math.isfinite(error):
        raise RangeError(f"{argument} has entries near {largest:.1e}, whose norm is beyond fp64; scale it")
    return DenseOperator(symmetric, error)


def _row_chunks(matrix: Tensor) -> Iterator[Tensor]:
    for rows in chunks(len(matrix), max(CHUNK_ROWS, matrix.shape[1])):
        yield matrix[rows]
