r"""The largest eigenvalue of a symmetric operator as a proven interval, from few products.

Block Krylov from a random block W of k columns gives an orthonormal V whose span holds W, ``H = V^T K V`` with Ritz
values theta_i, residuals of size rho_i, and C, the restriction of K to V's complement. ``lambda_1 >= theta_1``. Above
there are two bounds, and the smaller one counts:

- Where ``C <= c < s``, ``s I - K`` is positive semidefinite if its Schur complement is, ``s I - H - R^T (s - C)^-1 R``:
  so ``lambda_1 <= s`` for every s with ``lambda_max(diag(theta) + rho rho^T / (s - c)) <= s``. With a gap that is about
  ``theta_1 + rho_1^2 / (theta_1 - c)``, quadratic in the residual. Lanczos from a new random start bounds C
  (:func:`inrfast.linalg.lanczos.spectral_bounds`).
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
from inrfast.linalg.counting import WHOLE, certified_counts
from inrfast.linalg.inertia import EVENTS
from inrfast.linalg.lanczos import FAILURE, KrylovBasis, SpectralBounds, spectral_bounds
from inrfast.linalg.operators import UNIT, ProductErrors, SymmetricOperator, noise, product_errors

WIDTH = 2
"""Vectors per block: products cost as much as their columns, and two find a double eigenvalue."""

STEPS = 80
"""Products of blocks at most."""

ACCURACY = 1e-8
"""Relative width that is aimed at."""

OTHERS = 32
"""Products of a vector at most for the bound on the rest: it is then some ten percent above the norm."""

CLOSE = 1e-5
"""Relative residual of the first pair from which a factorisation proves more than another product, without a gap."""

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
        Whether a factorisation shows a bar; None: on a terminal and in a notebook.

    Raises
    ------
    RangeError
        The operator's norm is outside :data:`inrfast.linalg.operators.RANGE`.
    """
    each = failure / 4
    errors = product_errors(operator, each / EVENTS, seed)
    if errors.norm == 0:
        return 0.0, 0.0
    if operator.shape[0] <= WHOLE:
        return _of_small(operator, errors)
    basis, longest = _krylov(operator, errors, seed + 1)
    values, residuals = _ritz(basis)
    own = _error(operator, basis, float(values[0]), errors)
    low = float(values[0]) - own
    residuals = residuals + own
    spread = each ** (1 / WIDTH) * math.sqrt(math.pi / 2) / longest - noise(operator.shape[0])
    linear = float(values[0]) + own + float(residuals.norm()) / spread if spread > 0 else math.inf
    if linear - low <= NARROW * low:
        return low, linear
    inner = _complement_bound(operator, basis.vectors[:, : basis.size], errors, low, each, seed + 2)
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
    start = partition.random(WIDTH, seed, like)
    basis = KrylovBasis(start, min(STEPS * WIDTH, n - n % WIDTH), errors.matrix + errors.sums, partition)
    while not basis.full:
        basis.step(operator @ basis.next)
        values, residuals = _ritz(basis)
        largest, own = float(values[0]), float(residuals[0])
        left = values[residuals > 0.1 * values.abs()]  # what the complement has is about the first of these
        gap = largest - 1.25 * float(left.amax()) if len(left) > 0 else largest
        if own <= CLOSE * largest or own * own <= ACCURACY / 4 * largest * gap:
            break
    return basis, float(partition.norm(start).max())


def _ritz(basis: KrylovBasis) -> tuple[Tensor, Tensor]:
    """Return Ritz values, descending, and the norms of their residuals, the same numbers in every process."""
    values, _, residuals = basis.ritz()
    return basis.partition.agree(values).cpu(), basis.partition.agree(residuals).cpu()


def _error(operator: SymmetricOperator, basis: KrylovBasis, largest: float, errors: ProductErrors) -> float:
    """Return a bound on the error of a Ritz value, and of a residual."""
    V, n = basis.vectors[:, : basis.size], operator.shape[0]
    gram = operator.partition.total(V.t() @ V)
    skew = float((gram - torch.eye(basis.size, dtype=V.dtype, device=V.device)).norm()) + basis.size * noise(n)
    return errors.matrix + math.sqrt(basis.size) * errors.sums + 4 * skew * abs(largest)


def _complement_bound(
    operator: SymmetricOperator, V: Tensor, errors: ProductErrors, largest: float, failure: float, seed: int
) -> float:
    """Return an upper bound on the spectrum of the operator's restriction to the complement of V's span."""
    partition = operator.partition

    def restricted(W: Tensor) -> Tensor:
        W = W - V @ partition.total(V.t() @ W)
        W = operator @ W
        return W - V @ partition.total(V.t() @ W)

    def enough(bounds: SpectralBounds) -> bool:
        return bounds.upper < 0.6 * largest or bounds.inner_upper > 0.99 * largest

    flaw = 8 * V.shape[1] * noise(operator.shape[0])
    error, like = errors.sums + flaw * errors.norm, operator.diagonal()
    found = spectral_bounds(restricted, like, OTHERS, failure, seed, error, enough, partition=partition)
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
