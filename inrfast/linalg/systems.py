"""Systems ``(K + ridge I) x = y`` with a positive semidefinite K: dense, by iteration, or by a factorisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from inrfast.backends import warn_once
from inrfast.errors import ResolutionError, check_choice, check_seed
from inrfast.linalg.conjugate_gradients import conjugate_gradients
from inrfast.linalg.eigenvalues import SMALL, DenseableOperator
from inrfast.linalg.factorization import PRECISIONS, bytes_of_factor, factorize
from inrfast.linalg.preconditioners import Preconditioner, System, find
from inrfast.linalg.refinement import SCRATCH
from inrfast.linalg.scales import powers, scaled_back
from inrfast.progress import progress_bar

METHODS = ("auto", "direct", "cg")

STEPS = 500
"""Largest number of products of an iteration."""

LEAST_STEPS = 10
"""Products for whose cost an iteration is started at all, where a factorisation fits."""

VECTORS = 12
"""Vectors that the iteration holds per right-hand side, with the results of products and preconditioner."""

DEFAULT = "pivoted_cholesky"
"""The preconditioner where none is named."""

SINGLE = 1e-5
"""Ridge, relative to the trace, from which on a factor in fp32 is near enough: it is off by some 1e-7 of the largest
eigenvalue."""

FEW = 3
"""Products with K that the refinement of a solution takes, mostly."""

OTHER = "raise ridge or tol, take another preconditioner, or method='direct', which factors K + ridge I"
"""What to do about conjugate gradients that do not converge."""

SMALLER = "give a smaller y or a larger ridge"
"""What to do about a solution beyond fp64."""


class CountedOperator(DenseableOperator, Protocol):
    """An operator that knows what its operations cost; of several processes, in all of them together."""

    @property
    def entry_flops(self) -> float:
        """FLOP of all entries, each pair once."""

    @property
    def product_flops(self) -> float:
        """FLOP of a product with one vector."""


def solve(
    operator: CountedOperator,
    y: Tensor,
    ridge: float,
    tol: float,
    budget: int,
    seed: int = 0,
    progress: bool | None = None,
    preconditioner: object = None,
    method: str = "auto",
) -> Tensor:
    """Return X with ``(K + ridge I) X = Y`` for Y (n, c); see :meth:`inrfast.tangent.kernel.TangentKernel.solve`."""
    n, seed = operator.shape[0], check_seed("seed", seed)
    check_choice("method", method, METHODS)
    if method == "direct" and preconditioner is not None:
        raise ValueError("preconditioner is of conjugate gradients; with method='direct' it must be None")
    make = find(DEFAULT if preconditioner is None else preconditioner)
    factors = powers(y)
    y = y / factors  # or squares of very large or small right-hand sides would over- or underflow
    free = method == "auto" and preconditioner is None
    if free and n <= SMALL and 3 * 8 * n * n + 4 * y.nbytes <= budget:  # the matrix, its factor and a copy on the way
        return scaled_back(_dense(operator, y, ridge, tol), factors, SMALLER)
    system = System(operator, ridge, budget, VECTORS * 8 * n * y.shape[1], seed, progress)
    if method == "direct":
        return scaled_back(_direct(system, y, tol, _precision(system, y) or "high"), factors, SMALLER)
    precision = _precision(system, y) if free else None
    if precision is None:
        return scaled_back(_accepted(*_iterated(system, make, y, tol, STEPS), tol, OTHER), factors, SMALLER)
    return scaled_back(_cheapest(operator, system, make, y, tol, precision), factors, SMALLER)


def _dense(operator: DenseableOperator, y: Tensor, ridge: float, tol: float) -> Tensor:
    matrix: Tensor = operator.to_dense()
    matrix.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise ResolutionError(f"K + {ridge:g} I is not positive definite in fp64; raise ridge")
    x = torch.cholesky_solve(y, factor)
    x += torch.cholesky_solve(y - matrix @ x, factor)  # one step of refinement
    residual = torch.linalg.vector_norm(y - matrix @ x, dim=0)
    size = torch.linalg.vector_norm(y, dim=0).clamp_min(torch.finfo(y.dtype).tiny)
    return _accepted(x, residual / size, tol, "raise ridge or tol")


def _cheapest(
    operator: CountedOperator, system: System, make: Preconditioner, y: Tensor, tol: float, precision: str
) -> Tensor:
    """Return X by conjugate gradients, while they cost no more than a factorisation would; then by that.

    Half of its FLOP go into a preconditioner, half into products. So at most twice the cheaper of the two is spent,
    about, whatever the condition number.
    """
    n, columns, entries = *y.shape, operator.entry_flops
    product = min(operator.product_flops * columns, 2 * entries + 2.0 * n * n * columns)  # by factors or by tiles
    half = (n**3 / 3 + entries) / 2
    afforded = half / product
    told = f"the factorisation (fp{8 * PRECISIONS[precision].itemsize})"
    if afforded >= LEAST_STEPS:
        x, residuals = _iterated(replace(system, flops=half), make, y, tol, int(min(afforded, STEPS)))
        if float(residuals.amax()) <= tol:
            return x
        warn_once(
            f"conjugate gradients did not reach tol={tol:g} at the cost of {told}, which solves the system instead; "
            "method='direct' does so at once, K.factor(-ridge) keeps it for further right-hand sides"
        )
    return _direct(system, y, tol, precision)


def _precision(system: System, y: Tensor) -> str | None:
    """Return the precision of a factor that suits the ridge and fits the budget beside the vectors; None: neither."""
    operator, n = system.operator, system.operator.shape[0]
    trace = float(operator.partition.total(operator.diagonal().sum()))
    left = system.budget - 4 * y.nbytes - 2 * SCRATCH * 8 * n
    fitting = [name for name in PRECISIONS if bytes_of_factor(operator, name) <= left]
    wanted = "high" if system.ridge >= SINGLE * trace else "highest"
    return wanted if wanted in fitting else next(iter(fitting), None)


def _direct(system: System, y: Tensor, tol: float, precision: str) -> Tensor:
    operator, budget, columns = system.operator, system.budget, y.shape[1]
    factor = factorize(operator, -system.ridge, precision, budget, system.seed, system.progress, products=FEW * columns)
    x, residuals = factor.refined(y, tol)
    return _accepted(x, residuals, tol, lambda: f"{factor.told()}; raise ridge or tol")


def _iterated(system: System, make: Preconditioner, y: Tensor, tol: float, steps: int) -> tuple[Tensor, Tensor]:
    """Return X by conjugate gradients, and its relative residuals."""
    operator, ridge = system.operator, system.ridge
    precondition = make(system)
    with progress_bar(total=steps, desc="conjugate gradients", progress=system.progress, leave=False) as bar:
        x, residuals = conjugate_gradients(
            lambda v: operator @ v + ridge * v,
            operator.partition.mine(y),
            precondition,
            tol,
            steps,
            bar,
            operator.partition,
        )
    return operator.partition.gather(x), residuals


def _accepted(x: Tensor, residuals: Tensor, tol: float, instead: str | Callable[[], str]) -> Tensor:
    """Return x if its residuals are small enough; a function that says what to do instead may measure for it."""
    worst = float(residuals.amax())
    if not worst <= tol:
        told = instead if isinstance(instead, str) else instead()
        raise ResolutionError(f"the relative residual {worst:.1e} stays above tol={tol:g}; {told}")
    return x
