"""The pivots of a block of a pivoted Cholesky factor, and small matrices' norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inrfast.linalg.operators import UNIT

POWER_STEPS = 12
"""Power iterations for the norm of a small matrix, which is needed to about ten percent."""


@dataclass(frozen=True)
class PivotBlock:
    """A block's pivots.

    Attributes
    ----------
    pivots
        Their rows in the operator (wanted,); the first one again after the last.
    factor
        Cholesky factor of the residual's rows and columns there (wanted, wanted), after the last one the identity's.
    count
        How many there are, 0-dimensional.
    faults
        What is wrong with the operator's entries: see :meth:`inrfast.linalg.pivoted_cholesky.PivotedCholesky._judge`.
    block, multiples
        Rows and columns of the residual at the candidates, and for how many rows each of them stands.
    single
        Whether their columns are kept in fp32; then ``factor`` holds numbers of fp32.
    moved
        Bound on the norm by which that moved its product with its transpose.
    """

    pivots: Tensor
    factor: Tensor
    count: Tensor
    faults: tuple[Tensor, ...]
    block: Tensor
    multiples: Tensor
    single: bool = False
    moved: float = 0.0

    def rounded(self) -> PivotBlock:
        """Return the same with ``factor`` in numbers of fp32."""
        factor = self.factor.to(torch.float32).to(self.factor)
        moved = norm_bound(factor @ factor.t() - self.factor @ self.factor.t())
        rounding = len(factor) * UNIT * float(torch.linalg.matrix_norm(factor)) ** 2
        return replace(self, factor=factor, single=True, moved=moved + 2 * rounding)

    @property
    def used(self) -> Tensor:
        """Which of the pivots there are (wanted,), boolean."""
        return torch.arange(len(self.pivots), device=self.pivots.device) < self.count

    def cut(self, count: int) -> PivotBlock:
        """Return the same without what comes after the last pivot."""
        return replace(self, pivots=self.pivots[:count], factor=self.factor[:count, :count])

    def norm(self) -> Tensor:
        """Return the residual's norm as the candidates' rows and columns show it.

        Too large on average where the residual has more large eigenvalues than were drawn.
        """
        known = torch.isfinite(self.multiples)  # a candidate without weight stands for nothing
        sizes = torch.where(known, self.multiples * self.block.diagonal(), 0).clamp_min(0)
        trace = sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny)
        roots = (torch.where(known, self.multiples, 0) / trace).sqrt()
        scaled = self.block * torch.outer(roots, roots)
        return trace * power(scaled.mv, (sizes / trace).sqrt(), POWER_STEPS)[1]


def power(product: Callable[[Tensor], Tensor], v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return a vector near the leading eigenvector of a positive semidefinite matrix, and its norm from a little below.

    The matrix has trace 1, so that unit vectors ``v`` neither overflow nor vanish. Nothing is read from a GPU.
    """
    last = v
    for _ in range(steps):
        last, v = v, product(v)
    return v, torch.linalg.vector_norm(v) / torch.linalg.vector_norm(last).clamp_min(torch.finfo(v.dtype).tiny)


def norm_bound(matrix: Tensor) -> float:
    """Return a bound on a matrix's spectral norm: by its largest sums of a row and of a column, or Frobenius's norm."""
    sums = matrix.abs()
    largest = math.sqrt(float(sums.sum(0).max()) * float(sums.sum(1).max()))
    return min(largest, float(torch.linalg.matrix_norm(matrix)))
