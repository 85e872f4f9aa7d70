"""Numerical rank of a matrix or of a tangent kernel, as an interval that contains it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import check_float, check_tensor
from inrfast.linalg.spectrum import RankInterval
from inrfast.linalg.tsqr import CHUNK_ROWS, singular_values
from inrfast.memory import chunks
from inrfast.modes import in_own_modes
from inrfast.tangent.kernel import TangentKernel


@in_own_modes
def numerical_rank(matrix_or_kernel: Tensor | np.ndarray | TangentKernel, rtol: float) -> RankInterval:
    """Return how many singular values of a matrix, or eigenvalues of a kernel, exceed ``rtol`` times the largest.

    The two conventions differ on purpose: ``lambda = sigma^2``, so a kernel ``J J^T`` at ``rtol`` has the rank of the
    matrix ``J`` at ``sqrt(rtol)``.

    Parameters
    ----------
    matrix_or_kernel
        A matrix (m, n), tensor or NumPy array, of any floating dtype: **singular values** relative to sigma_1. Or a
        tangent kernel, of one process or shared by several: **eigenvalues** relative to lambda_1. Both in fp64.
    rtol
        Relative tolerance in (0, 1).

    Returns
    -------
    RankInterval
        ``lower`` and ``upper``, equal unless a value lies within rounding of the threshold. A zero matrix has rank 0.

    Raises
    ------
    ResolutionError
        ``rtol`` is below what fp64 resolves for this matrix or kernel.
    ValueError, TypeError
        Not a finite, non-empty matrix; ``rtol`` outside (0, 1).

    Examples
    --------
    >>> print(numerical_rank(torch.diag(torch.tensor([1.0, 1e-2, 1e-4])), 1e-3))
    2
    """
    rtol = check_tolerance("rtol", rtol)
    if isinstance(matrix_or_kernel, TangentKernel):
        return matrix_or_kernel.spectrum(rtol).rank(rtol)
    given = matrix_or_kernel
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(_as_torch_takes_it(given))
    if not isinstance(given, Tensor):
        raise TypeError(
            f"matrix_or_kernel must be a tensor, a NumPy array or a tangent kernel, got {type(given).__name__}"
        )
    matrix = check_tensor("matrix_or_kernel", given, ndim=2).detach()
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.t()
    return singular_values(partial(_row_chunks, matrix), rtol).rank(rtol)


def _as_torch_takes_it(array: np.ndarray) -> np.ndarray:
    """Return a contiguous array of a dtype and byte order that torch knows, the same one if it is so already."""
    if isinstance(array, np.ma.MaskedArray) and bool(np.ma.getmaskarray(array).any()):
        raise TypeError("matrix_or_kernel must be a plain array, got one with masked entries; fill them first")
    if array.dtype.kind == "f" and array.dtype.itemsize > np.dtype(np.float64).itemsize:
        raise TypeError(f"matrix_or_kernel must be fp64 or narrower, got {array.dtype}: numpy.longdouble is too wide")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"matrix_or_kernel must hold real numbers, got dtype {array.dtype}")
    # NumPy keeps a negative stride of a single row or column in what it calls contiguous.
    copied = not array.flags.writeable or any(stride < 0 for stride in array.strides)
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True if copied else None)


def _row_chunks(matrix: Tensor) -> Iterator[Tensor]:
    for rows in chunks(len(matrix), max(CHUNK_ROWS, matrix.shape[1])):
        yield matrix[rows]


def check_tolerance(argument: str, got: float) -> float:
    """Return a relative tolerance, a number in (0, 1)."""
    rtol = check_float(argument, got, minimum=0.0, exclusive=True)
    if rtol >= 1:
        raise ValueError(f"{argument} must be below 1 (it is relative to the largest value), got {rtol}")
    return rtol
