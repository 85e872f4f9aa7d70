"""The optimal kernel of random functions, ``K* = E[f f^T]``, kept as the factor that samples of them are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.arrays import Array, ArrayLike, as_numpy, as_tensor, like
from inrfast.errors import check_block, check_index, check_tensor
from inrfast.memory import require_free
from inrfast.modes import in_own_modes, methods_in_own_modes


@methods_in_own_modes
class OptimalKernel:
    """``K* = F^T F / S`` of samples F (S, N) of functions at N points: of rank S at most, never N x N unless asked for.

    Built by :func:`inrfast.optimal_kernel`.

    Attributes
    ----------
    factor
        ``A = F^T / sqrt(S)``, (N, S) in fp64, with ``K* = A A^T``.
    shape
        (N, N).
    """

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor
        self.shape = (len(factor), len(factor))

    @property
    def dtype(self) -> torch.dtype:
        """Of every result: fp64."""
        return self.factor.dtype

    @property
    def device(self) -> torch.device:
        """Of the samples, and of every result."""
        return self.factor.device

    @property
    def samples(self) -> int:
        """Number of sampled functions S, which bounds the rank."""
        return self.factor.shape[1]

    @cached_property
    def inner(self) -> Tensor:
        """``A^T A``, (S, S): its eigenvalues are those of the kernel that are not zero."""
        return self.factor.t() @ self.factor

    def __matmul__(self, V: Array) -> Array:
        """Return ``K* V`` for ``V`` (N,) or (N, k) as ``A (A^T V)``."""
        given = as_tensor("V", V, self.device)
        block = check_block("V", given, self.shape[0], self.device).to(self.dtype)
        product = self.factor @ (self.factor.t() @ block)
        return like(V, product[:, 0] if given.ndim == 1 else product)

    def between(
        self, rows: int | slice | Sequence[int] | Tensor, columns: int | slice | Sequence[int] | Tensor
    ) -> Tensor:
        """Return ``K*[rows][:, columns]``: of held-out and observed points, for :func:`inrfast.kernel_regression`."""
        first = check_index("rows", rows, self.shape[0]).to(self.device)
        second = check_index("columns", columns, self.shape[1]).to(self.device)
        require_free(8 * len(first) * len(second), "a block of the optimal kernel", "ask for fewer points", self.device)
        return self.factor[first] @ self.factor[second].t()

    def to_dense(self) -> Tensor:
        """Return the dense kernel (N, N).

        Raises
        ------
        MemoryBudgetError
            It would take more than half of what is free.
        """
        n = self.shape[0]
        require_free(8 * n * n, f"the optimal kernel of {n} points", "use K @ V or K.between(...)", self.device)
        return self.factor @ self.factor.t()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return :meth:`to_dense` as ``numpy.asarray`` asks for it."""
        return as_numpy(self.to_dense(), dtype, copy)

    def diagonal(self) -> Tensor:
        """Return ``E[f(x)^2]``, (N,)."""
        return self.factor.square().sum(1)

    def trace(self) -> float:
        """Return the trace."""
        return float(self.factor.square().sum())

    def frobenius(self) -> float:
        """Return the Frobenius norm, from S x S numbers."""
        return float(torch.linalg.matrix_norm(self.inner))

    def __repr__(self) -> str:
        return f"OptimalKernel(shape={self.shape}, samples={self.samples})"


@in_own_modes
def optimal_kernel(samples: ArrayLike) -> OptimalKernel:
    """Return ``K*(x, x') = E[f(x) f(x')]`` of samples of functions, the kernel of PEAK's Theorem 3.1 (equation 6).

    Parameters
    ----------
    samples
        Values (S, N) of S functions at N points, one function per row; one function as (N,). Any floating dtype; kept
        in fp64. The mean over the samples is the expectation.

    Raises
    ------
    ValueError, TypeError
        Another number of axes, numbers that are not finite, samples that are zero everywhere.

    Notes
    -----
    What is true of Theorem 3.1. Kernel regression is linear in the values observed, ``f(x) = m(x)^T y`` with
    ``m(x) = K(x, X) K(X, X)^+``. Over functions drawn at random, ``E (m^T f(X) - f(x))^2`` is a quadratic in m, and
    smallest for ``m(x) = K*(x, X) K*(X, X)^+``: no kernel, and no other rule linear in the values, has a smaller mean
    squared error at any point. Of samples this is exact for the mean over these samples, whatever the functions are;
    for functions that are not among them it holds of the true expectation, which many samples approach.

    The paper takes the expectation given the data instead. Then ``y`` is fixed, ``K*(X, X) = y y^T`` has rank one, and
    the formula returns the posterior mean ``E[f(x) | y]`` that went into it (for ``y != 0``): right, but a circle, and
    so does every kernel with that one prediction. Its proof writes ``Y Y^T`` where the first reading needs
    ``E[Y Y^T]``, and equates the two. Only for Gaussian functions of mean zero are both predictions the same; for
    others the best prediction is not linear in the values, and no kernel gives it. A factor before K* changes nothing.

    Examples
    --------
    >>> import torch, inrfast as inr
    >>> K = inr.optimal_kernel(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]))
    >>> K.to_dense()[1]
    tensor([1.0000, 2.5000, 3.0000], dtype=torch.float64)
    """
    given = check_tensor("samples", samples)
    if given.ndim not in (1, 2):
        raise ValueError(f"samples must have shape (S, N), or (N,) for one function, got {tuple(given.shape)}")
    rows = given.detach().reshape(-1, given.shape[-1])
    if not bool(rows.any()):
        raise ValueError("samples must not be zero everywhere: their kernel would be zero")
    require_free(8 * rows.numel(), "the samples in fp64", "give fewer of them", rows.device)
    return OptimalKernel(rows.to(torch.float64).t() / math.sqrt(len(rows)))
