r"""The largest eigenvalue of a symmetric operator as a proven interval, from few products.

Block Krylov from a random block W of k columns gives an orthonormal V whose span holds W, ``H = V^T K V`` with Ritz
values theta_i, residuals of size rho_i, and C, the restriction of K to V's complement. ``lambda_1 >= theta_1``. Above
there are two bounds, and the smaller one counts:

- Where ``s > |C|``, ``s I - K`` is positive semidefinite if its Schur complement is, ``s I - H - R^T (s - C)^-1 R``: so
  ``lambda_1 <= s`` for every s with ``lambda_max(diag(theta) + rho rho^T / (s - |C|)) <= s``. With a gap that is
  ``theta_1 + rho_1^2 / (theta_1 - |C|)``, quadratic in the residual. ``|C|`` is bounded from a new random block
  (:mod:`inrfast.linalg.norm_bounds`).
- With a unit eigenvector x of lambda_1, ``x^T V (lambda_1 - H) = x^T R``. V holds W, so
  ``|x^T V| >= max_i |x . w_i| / |w_i|``, which is at least ``e / max_i |w_i|`` except with probability
  ``(e sqrt(2 / pi))^k``: ``lambda_1 <= theta_1 + |R| max_i |w_i| / e``. That is what an operator with few different
  eigenvalues has, the identity for one.

Where neither is narrow, eigenvalues crowd below lambda_1, and a factorisation just above theta_1 that counts no
eigenvalue there proves the upper end (:mod:`inrfast.linalg.inertia`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inrfast.errors import MemoryBudgetError
from inrfast.linalg.inertia import EVENTS, WHOLE, ProductErrors, certified_counts, noise, product_errors
from inrfast.linalg.lanczos import FAILURE, KrylovBasis
from inrfast.linalg.norm_bounds import BLOCK, NormBound, norm_bound
from inrfast.linalg.operators import UNIT, SymmetricOperator

STEPS = 40
"""Products of blocks at most."""

ACCURACY = 1e-11
"""Relative width that is aimed at where there is a gap."""

GAP = 0.3
"""Size of the ninth Ritz value, relative to the first, up to which the rest may be bounded below the first."""

CLOSE = 1e-9
"""Relative residual of the first pair from which it gains nothing by another product, gap or not."""

NARROW = 1e-7
"""Relative width up to which nothing is factored."""

MARGINS = (1e-8, 1e-6, 1e-4, 1e-2)
"""Where, relative to the lower end, a factorisation tries to prove the upper one."""


def largest_eigenvalue(
    operator: SymmetricOperator, budget: int, seed: int = 0, failure: float = FAILURE, progress: bool | None = None
) -> tuple[float, float]:
    """Return an interval that holds the largest eigenvalue of an operator's own factors in exact arithmetic.

    Parameters
    ----------
    operator
        Symmetric; its ``matrix_error`` is in the interval, its ``jacobian_error`` is not.
    budget
        Bytes for a factorisation, where one is needed and fits; else the interval is wider.
    seed
        Of the random blocks.
    failure
        Probability that the upper end is wrong.
    progress
        Whether a factorisation shows a bar; None: on a terminal only.
    """
    each = failure / 4
    errors = product_errors(operator, each / EVENTS, seed)
    if errors.norm == 0:
        return 0.0, 0.0
    if operator.shape[0] <= WHOLE:
        return _of_small(operator, errors)
    basis, longest = _krylov(operator, errors, seed + 1)
    values, _, residuals = basis.ritz()
    values, residuals = operator.partition.agree(values).cpu(), operator.partition.agree(residuals).cpu()
    own = _error(operator, basis, errors)
    low = float(values[0]) - own
    residuals = residuals + own
    spread = each ** (1 / BLOCK) * math.sqrt(math.pi / 2) / longest - noise(operator.shape[0])
    linear = float(values[0]) + own + float(residuals.norm()) / spread if spread > 0 else math.inf
    if linear - low <= NARROW * low:
        return low, linear
    inner = _complement_norm(operator, basis.vectors[:, : basis.size], errors, low / 2, each, seed + 2)
    high = min(linear, _quadratic(values + own, residuals, inner))
    if high - low > NARROW * abs(low):
        low, high = _by_factors(operator, low, high, budget, seed + 3, each, progress)
    return low, high


def _of_small(operator: SymmetricOperator, errors: ProductErrors) -> tuple[float, float]:
    """Return the interval from all entries."""
    n = operator.shape[0]
    unit = torch.eye(n, dtype=torch.float64, device=operator.device)
    matrix = operator.partition.gather(operator @ operator.partition.mine(unit)).cpu()
    matrix = (matrix + matrix.t()) / 2
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    own = errors.matrix + math.sqrt(n) * errors.sums + 4 * n * UNIT * float(matrix.norm())
    return largest - own, largest + own


def _krylov(operator: SymmetricOperator, errors: ProductErrors, seed: int) -> tuple[KrylovBasis, float]:
    """Return a Krylov basis whose first Ritz pair is good, and the length of the longest vector of the start."""
    partition, like, n = operator.partition, operator.diagonal(), operator.shape[0]
    start = partition.random(BLOCK, seed, like)
    room = min(STEPS * BLOCK, n - n % BLOCK)
    basis = KrylovBasis(start, room, errors.matrix + errors.sums, partition)
    while not basis.full:
        basis.step(operator @ basis.next)
        values, _, residuals = basis.ritz()
        values, residuals = partition.agree(values).cpu(), partition.agree(residuals).cpu()
        largest, own = float(values[0]), float(residuals[0])
        apart = float(values[BLOCK:].amax()) < GAP * largest if len(values) > BLOCK else float(residuals.max()) == 0
        if own <= CLOSE * largest or (apart and own <= math.sqrt(ACCURACY) * largest):
            break
    return basis, float(partition.norm(start).max())


def _error(operator: SymmetricOperator, basis: KrylovBasis, errors: ProductErrors) -> float:
    """Return a bound on the error of a Ritz value, and of a residual."""
    V, n = basis.vectors[:, : basis.size], operator.shape[0]
    gram = operator.partition.total(V.t() @ V)
    skew = float((gram - torch.eye(basis.size, dtype=V.dtype, device=V.device)).norm()) + basis.size * noise(n)
    largest = float(operator.partition.agree(basis.ritz()[0])[0])
    return errors.matrix + math.sqrt(basis.size) * errors.sums + 4 * skew * abs(largest)


def _complement_norm(
    operator: SymmetricOperator, V: Tensor, errors: ProductErrors, below: float, failure: float, seed: int
) -> float:
    """Return a bound on the norm of the operator's restriction to the complement of V's span; ``below`` suffices."""
    partition = operator.partition

    def restricted(W: Tensor) -> Tensor:
        W = W - V @ partition.total(V.t() @ W)
        W = operator @ W
        return W - V @ partition.total(V.t() @ W)

    def enough(bound: NormBound) -> bool:
        return bound.upper < below

    flaw = 8 * V.shape[1] * noise(operator.shape[0])
    found = norm_bound(
        restricted, operator.diagonal(), partition, failure, seed, errors.sums + flaw * errors.norm, 4, enough
    )
    return found.upper + errors.matrix


def _quadratic(values: Tensor, residuals: Tensor, inner: float) -> float:
    """Return the smallest s above ``inner`` with ``lambda_max(diag(values) + rho rho^T / (s - inner)) <= s``."""
    if not math.isfinite(inner):
        return math.inf
    low = max(float(values[0]), inner)
    high = low + float(residuals.norm()) + 4 * UNIT * abs(low)
    outer = torch.outer(residuals, residuals)
    for _ in range(60):
        middle = (low + high) / 2
        if middle <= inner:
            low = middle
            continue
        held = float(torch.linalg.eigvalsh(values.diag() + outer / (middle - inner))[-1]) <= middle
        low, high = (low, middle) if held else (middle, high)
    return high + 8 * len(values) * UNIT * abs(high)


def _by_factors(
    operator: SymmetricOperator, low: float, high: float, budget: int, seed: int, failure: float, progress: bool | None
) -> tuple[float, float]:
    """Return a narrower interval from counts just above its lower end."""
    for number, margin in enumerate(MARGINS):
        level = low * (1 + margin)
        if not low < level < high:
            break
        try:
            (found,) = certified_counts(
                operator, [(level, level)], budget, None, seed + 1000 * number, failure / 4, progress=progress
            )
        except MemoryBudgetError:
            break
        if found.upper == 0:
            return low, level
        if found.lower > 0:
            low = level
    return low, high
