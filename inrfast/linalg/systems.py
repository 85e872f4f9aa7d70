"""Systems ``(K + ridge I) x = y`` with a positive semidefinite K: dense where it is small, else by iteration."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.errors import ResolutionError, check_seed
from inrfast.linalg.conjugate_gradients import conjugate_gradients
from inrfast.linalg.eigenvalues import SMALL, DenseableOperator
from inrfast.linalg.preconditioners import Preconditioner, System, find
from inrfast.linalg.scales import powers, scaled_back

STEPS = 500
"""Largest number of products of an iteration."""

VECTORS = 12
"""Vectors that the iteration holds per right-hand side, with the results of products and preconditioner."""

DEFAULT = "pivoted_cholesky"
"""The preconditioner where none is named."""

SMALLER = "give a smaller y or a larger ridge"
"""What to do about a solution beyond fp64."""


def solve(
    operator: DenseableOperator,
    y: Tensor,
    ridge: float,
    tol: float,
    budget: int,
    seed: int = 0,
    progress: bool | None = None,
    preconditioner: object = None,
) -> Tensor:
    """Return X with ``(K + ridge I) X = Y`` for Y (n, c); see :meth:`inrfast.tangent.kernel.TangentKernel.solve`."""
    n, seed = operator.shape[0], check_seed("seed", seed)
    make = find(DEFAULT if preconditioner is None else preconditioner)
    factors = powers(y)
    y = y / factors  # or squares of very large or small right-hand sides would over- or underflow
    small = n <= SMALL and 3 * 8 * n * n + 4 * y.nbytes <= budget  # the matrix, its factor and a copy on the way
    if small and preconditioner is None:
        return scaled_back(_dense(operator, y, ridge, tol), factors, SMALLER)
    own = operator.partition.mine(y)
    system = System(operator, ridge, budget, VECTORS * 8 * n * y.shape[1], seed, progress)
    return scaled_back(operator.partition.gather(_iterated(system, make, own, tol)), factors, SMALLER)


def _dense(operator: DenseableOperator, y: Tensor, ridge: float, tol: float) -> Tensor:
    matrix: Tensor = operator.to_dense()
    matrix.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise ResolutionError(f"K + {ridge:g} I is not positive definite in fp64; raise ridge")
    x = torch.cholesky_solve(y, factor)
    x += torch.cholesky_solve(y - matrix @ x, factor)  # one step of refinement
    residual = torch.linalg.vector_norm(y - matrix @ x, dim=0)
    return _accepted(
        x, residual / torch.linalg.vector_norm(y, dim=0).clamp_min(torch.finfo(y.dtype).tiny), tol, "raise ridge or tol"
    )


def _iterated(system: System, make: Preconditioner, y: Tensor, tol: float) -> Tensor:
    operator, ridge = system.operator, system.ridge
    precondition = make(system)
    hidden = None if system.progress is None else not system.progress
    with tqdm(total=STEPS, desc="conjugate gradients", disable=hidden, leave=False) as bar:
        x, residuals = conjugate_gradients(
            lambda v: operator @ v + ridge * v, y, precondition, tol, STEPS, bar, operator.partition
        )
    return _accepted(x, residuals, tol, "raise ridge or tol, or take another preconditioner")


def _accepted(x: Tensor, residuals: Tensor, tol: float, instead: str) -> Tensor:
    worst = float(residuals.amax())
    if not worst <= tol:
        raise ResolutionError(f"the relative residual {worst:.1e} stays above tol={tol:g}; {instead}")
    return x
