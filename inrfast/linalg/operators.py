"""What the methods of this folder need of a symmetric operator, and a dense matrix that offers it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike
from inrfast.errors import RangeError, check_float, check_tensor
from inrfast.linalg.norm_bounds import BLOCK
from inrfast.linalg.partition import Whole

UNIT = torch.finfo(torch.float64).eps / 2
"""Unit roundoff of fp64."""

SINGLE_UNIT = torch.finfo(torch.float32).eps / 2
"""Unit roundoff of fp32."""

INDEPENDENT = 2 * 3**-0.5
"""Twice the root mean square of rounding errors that are evenly spread, in unit roundoffs: what bounds of sums of
independent ones (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019) are multiplied with."""

ASYMMETRY = 1e-6
"""Difference between mirrored entries, relative to ``sqrt(K_ii K_jj)``, beyond which an operator is called
non-symmetric: far above the rounding of any fp64 operator, far below any error of construction."""

RANGE = (1e-130, 1e130)
"""Norms of an operator for which proofs by products hold: squares of its rounding errors, and of solutions, are numbers
of fp64."""

NEGLIGIBLE = 1e-10
"""Size of a negative eigenvalue, relative to the largest, up to which an operator passes for positive semidefinite; the
errors of a spectrum cover it."""


class SymmetricOperator(Protocol):
    """A real symmetric operator of order n in fp64.

    Symmetry is the operator's promise. It is checked where both of two mirrored entries are read anyway: in principal
    submatrices of pivots, blocks on the diagonal, and products with a Krylov basis. A single entry that differs from
    its mirror image elsewhere may pass unnoticed, and results are then of no certain matrix.

    :class:`inrfast.tangent.kernel_operator.KernelOperator` makes one of a tangent kernel of ``precision="highest"``. A
    method ``identity()``, where there is one, returns plain values by name that tell the operator from others.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""

    @property
    def device(self) -> torch.device:
        """Where its vectors lie."""

    @property
    def partition(self) -> Whole:
        """Which rows of its vectors this process holds; n below stands for their number."""

    @property
    def matrix_error(self) -> float:
        """Spectral-norm bound on the rounding error of the entries."""

    @property
    def jacobian_error(self) -> float:
        """Spectral-norm bound on dJ, where the operator stands for ``(J + dJ)(J + dJ)^T``; 0 if it is exact."""

    def diagonal(self) -> Tensor:
        """Return the diagonal (n,)."""

    def columns(self, index: Tensor) -> Tensor:
        """Return the columns of ``index``, (n, count), memory of their own.

        The index is known to be right: int64, counted over all rows, in range, on the device; rows may repeat. A GPU is
        not waited for.
        """

    def submatrix(self, index: Tensor) -> Tensor:
        """Return the rows and columns of such an index, (count, count)."""

    def blocks_(self, targets: Sequence[tuple[Tensor, slice]], index: Tensor, dtype: torch.dtype) -> None:
        """Write rows, counted over those here, of the columns of such an index into each target ``(out, rows)``.

        ``out`` (rows, count) is of ``dtype``: fp64, or fp32 where entries of single precision suffice. Processes that
        share the operator call it together, each with targets of its own, or none. A GPU is not waited for.
        """

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return the product with a block of vectors (n, k)."""


class DenseOperator:
    """A dense symmetric fp64 matrix (n, n) as a :class:`SymmetricOperator`.

    Parameters
    ----------
    matrix
        Any floating dtype; converted to fp64.
    matrix_error
        Spectral-norm bound on the error of the entries, a number from 0 on; None: their rounding to fp64, ``u |A|_F``.
    """

    def __init__(self, matrix: ArrayLike, matrix_error: float | None = None) -> None:
        matrix = check_tensor("matrix", matrix, ndim=2)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        self.matrix = matrix.detach().double()
        n = len(matrix)
        self.shape = (n, n)
        self.device = matrix.device
        self.partition = Whole(n)
        if matrix_error is None:
            self.matrix_error = UNIT * frobenius(self.matrix)
        else:
            self.matrix_error = check_float("matrix_error", matrix_error, minimum=0.0)
        self.jacobian_error = 0.0

    @property
    def entry_flops(self) -> float:
        """FLOP of all entries: they are there."""
        return 0.0

    @property
    def product_flops(self) -> float:
        """FLOP of a product with one vector."""
        return 2.0 * self.shape[0] ** 2

    def diagonal(self) -> Tensor:
        """Return the diagonal (n,)."""
        return self.matrix.diagonal().clone()

    def columns(self, index: Tensor) -> Tensor:
        """Return the columns of ``index``."""
        return self.matrix[:, index]

    def submatrix(self, index: Tensor) -> Tensor:
        """Return the rows and columns of ``index``."""
        return self.matrix[index][:, index]

    def blocks_(self, targets: Sequence[tuple[Tensor, slice]], index: Tensor, dtype: torch.dtype) -> None:
        """Write rows of the columns of ``index`` into each target, rounded to its dtype."""
        for out, rows in targets:
            out.copy_(self.matrix[rows, index])

    def identity(self) -> dict[str, Any]:
        """Return what tells it from other operators."""
        return {"matrix": digest(self.matrix)}

    def to_dense(self) -> Tensor:
        """Return the matrix, a copy."""
        return self.matrix.clone()

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return the product with a block of vectors."""
        return self.matrix @ V


def digest(*parts: Tensor | str) -> str:
    """Return a hash of texts and of tensors: their values, shapes and dtypes."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{tuple(part.shape)} {part.dtype}".encode())
            found.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            found.update(re.sub("0x[0-9a-f]+", "", part).encode())  # where an object lies, in its text
    return found.hexdigest()[:32]


def shifted_name(shift: float) -> str:
    """Return ``K - shift I`` for messages."""
    if shift == 0:
        return "K"
    return f"K + {-shift:g} I" if shift < 0 else f"K - {shift:g} I"


def frobenius(matrix: Tensor) -> float:
    """Return the Frobenius norm of a finite matrix whose squares may over- or underflow; infinite beyond fp64."""
    norm = float(torch.linalg.matrix_norm(matrix))
    if 1e-140 < norm < 1e150:
        return norm
    largest = float(matrix.abs().amax())
    return float(torch.linalg.matrix_norm(matrix / largest)) * largest if largest > 0 else 0.0


def product_error(operator: SymmetricOperator, trace: float | None = None) -> float:
    """Return a bound on the error of a product with a unit vector: from the entries, and from sums of n terms.

    ``trace`` is the sum of the absolute values on the diagonal, where it is known.
    """
    if trace is None:
        trace = float(operator.partition.total(operator.diagonal().abs().sum()))
    return operator.matrix_error + shape_of(operator) * UNIT * trace


@dataclass(frozen=True)
class ProductErrors:
    """How far products with an operator K are off.

    Attributes
    ----------
    matrix
        Distance of the matrix whose products are taken from K.
    sums
        What summation adds to a product with a unit vector.
    norm
        Bound on ``|K|``.
    """

    matrix: float
    sums: float
    norm: float


def product_errors(operator: SymmetricOperator, failure: float, seed: int) -> ProductErrors:
    """Return the errors of products with an operator.

    One of ``J J^T`` (with a ``jacobian_error``) has ``|K|_F <= trace``. Of others ``|K|_F`` is bounded from a random
    block: ``|K W|_F^2`` has the distribution of ``sum_i lambda_i^2 chi_i`` with chi-squared numbers of k degrees of
    freedom, and by Chernoff's bound it is below ``k y |K|_F^2`` with probability ``(y exp(1 - y))^(k / 2)`` at most.

    Raises
    ------
    RangeError
        The norm is outside :data:`RANGE`, and not 0.
    """
    partition, diagonal = operator.partition, operator.diagonal()
    trace = float(partition.total(diagonal.abs().sum()))
    scale = trace
    if not operator.jacobian_error > 0:
        images = operator @ partition.random(BLOCK, seed, diagonal)
        share, wanted = 0.0, 2 * math.log(failure) / BLOCK
        for _ in range(20):  # y exp(1 - y) = failure^(2 / k), from below
            share = math.exp(wanted - 1 + share)
        size = float(partition.norm(images).norm()) / math.sqrt(BLOCK * share)
        scale = max(trace, size) if math.isfinite(size) else math.inf
    if not (scale == 0 or RANGE[0] <= scale <= RANGE[1]):
        raise RangeError(
            f"a proof by factorisation needs an operator of a norm from {RANGE[0]:g} to {RANGE[1]:g}, so that squares "
            f"of errors are numbers of fp64, got one near {scale:.1e}; scale it with its levels (of a kernel: the "
            "network's weights), or use method='dense'"
        )
    sums = noise(partition.size) * scale
    return ProductErrors(operator.matrix_error, sums, scale + operator.matrix_error + sums)


def noise(n: int) -> float:
    """Return v, the rounding error of a sum of n products, relative to the product of the factors' norms."""
    return 4 * math.sqrt(n) * UNIT


def symmetry_faults(block: Tensor, diagonal: Tensor) -> Tensor:
    """Return two booleans (2,): whether a principal submatrix is not symmetric, and whether its diagonal differs.

    NaN counts as neither.
    """
    sizes = diagonal.clamp_min(0).sqrt()
    scale = ASYMMETRY * torch.outer(sizes, sizes)
    mirrored = ((block - block.mT).abs() > scale).any()
    return torch.stack([mirrored, ((block.diagonal() - diagonal).abs() > scale.diagonal()).any()])


def raise_symmetry_faults(mirrored: bool, diagonal: bool) -> None:
    """Raise a ValueError for what :func:`symmetry_faults` found."""
    if mirrored:
        raise ValueError("the operator is not symmetric: its entries (i, j) and (j, i) differ")
    if diagonal:
        raise ValueError("the operator contradicts itself: diagonal() and columns() give different diagonal entries")


def check_symmetric(block: Tensor, diagonal: Tensor) -> None:
    """Raise a ValueError if a principal submatrix differs from its mirror image or from the operator's diagonal."""
    raise_symmetry_faults(*symmetry_faults(block, diagonal).tolist())


def check_semidefinite(smallest: float, slack: float) -> None:
    """Raise a ValueError if ``smallest``, which the smallest eigenvalue does not exceed, is below ``-slack``."""
    if smallest < -slack:
        raise ValueError(f"the operator is not positive semidefinite: it has an eigenvalue of {smallest:.3e} or less")


def shape_of(operator: Any) -> int:
    """Return the order of a square operator."""
    n, m = operator.shape
    if n != m:
        raise ValueError(f"the operator must be square, got shape {(n, m)}")
    return int(n)
