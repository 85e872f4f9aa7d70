"""Systems ``(K + ridge I) x = y`` with a positive semidefinite K: dense where it is small, else by iteration."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.errors import ResolutionError, check_seed
from inrfast.linalg.conjugate_gradients import cholesky_preconditioner, conjugate_gradients
from inrfast.linalg.eigenvalues import SMALL, DenseableOperator
from inrfast.linalg.pivoted_cholesky import (
    BLOCK,
    SQUARES_OF_VECTORS,
    PivotedCholesky,
    candidate_bytes,
    most_pivots,
)
from inrfast.memory import require

STEPS = 500
"""Products of the iteration at most."""

PIVOTS = 16 * BLOCK
"""Columns of the preconditioner's factor at most."""

LEAST_BLOCK = 16
"""Columns of a block at least."""

VECTORS = 12
"""Vectors of the iteration a right-hand side, what a product and the preconditioner make of them among them."""

CONDITION = 10.0
"""Norm of what the preconditioner leaves of K, in units of the ridge, at which it is good enough: some 25 steps."""


def solve(
    operator: DenseableOperator,
    y: Tensor,
    ridge: float,
    tol: float,
    budget: int,
    seed: int = 0,
    progress: bool | None = None,
) -> Tensor:
    """Return X with ``(K + ridge I) X = Y`` for Y (n, c); see :meth:`inrfast.tangent.kernel.TangentKernel.solve`."""
    n, seed = operator.shape[0], check_seed("seed", seed)
    if n <= SMALL and 3 * 8 * n * n + 4 * y.nbytes <= budget:  # the matrix, its factor and a copy on the way
        return _dense(operator, y, ridge, tol)
    own = operator.partition.mine(y)
    return operator.partition.gather(_iterated(operator, own, ridge, tol, budget, seed, progress))


def _dense(operator: DenseableOperator, y: Tensor, ridge: float, tol: float) -> Tensor:
    matrix: Tensor = operator.to_dense()
    matrix.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise ResolutionError(f"K + {ridge:g} I is not positive definite in fp64; raise ridge")
    x = torch.cholesky_solve(y, factor)
    x += torch.cholesky_solve(y - matrix @ x, factor)  # one step of refinement
    residual = torch.linalg.vector_norm(y - matrix @ x, dim=0)
    return _accepted(x, residual / torch.linalg.vector_norm(y, dim=0).clamp_min(torch.finfo(y.dtype).tiny), tol)


def _iterated(
    operator: DenseableOperator, y: Tensor, ridge: float, tol: float, budget: int, seed: int, progress: bool | None
) -> Tensor:
    n = operator.shape[0]
    block, vectors = min(BLOCK, n), VECTORS * 8 * n * y.shape[1]
    while block > LEAST_BLOCK and max(2 * block * 8 * n, candidate_bytes(block)) > budget // 4:
        block //= 2
    scratch = vectors + 2 * block * 8 * n + candidate_bytes(block)
    least = scratch + block * 8 * n + 8 * SQUARES_OF_VECTORS * block**2
    require(least, budget, f"a preconditioner of order {n}", "raise memory_budget")
    most = min(n, PIVOTS, most_pivots(budget - scratch, 8 * n, SQUARES_OF_VECTORS))
    hidden = None if progress is None else not progress
    factor = PivotedCholesky(operator, seed)
    with tqdm(total=most, desc="preconditioner", disable=hidden, leave=False) as bar:
        while not factor.exhausted and factor.rank < most and not factor.norm_estimate <= CONDITION * ridge:
            bar.update(factor.grow(min(block, most - factor.rank)))
    # Without a ridge the shift is what the factor leaves: below it the preconditioner knows nothing.
    left = min(factor.norm_estimate, factor.trace)
    floor = torch.finfo(y.dtype).eps * factor.operator_trace
    precondition = cholesky_preconditioner(factor, max(ridge, left, floor))
    with tqdm(total=STEPS, desc="conjugate gradients", disable=hidden, leave=False) as bar:
        x, residuals = conjugate_gradients(
            lambda v: operator @ v + ridge * v, y, precondition, tol, STEPS, bar, operator.partition
        )
    return _accepted(x, residuals, tol)


def _accepted(x: Tensor, residuals: Tensor, tol: float) -> Tensor:
    worst = float(residuals.amax())
    if not worst <= tol:
        raise ResolutionError(f"the relative residual {worst:.1e} stays above tol={tol:g}; raise ridge or tol")
    return x
