r"""How many eigenvalues of a symmetric operator K exceed a level, proven from one factorisation near it.

``A = K - s I`` with a shift s, ``M = G D G^T`` what :func:`inrfast.linalg.block_ldl.block_ldl` made of it. Its numbers
are M's by definition, however they were rounded, and by Sylvester's law M has as many positive eigenvalues, ``p``, as
D has positive entries. The count above a level t is that of positive eigenvalues of ``A - (t - s) I``. With

- ``r >= |A - M|``, from products with K less products with M,
- ``d >= |t - s|`` for every level t of an interval ``[low, high]``,

all norms spectral, A at the level differs from M by at most ``r + d``.

**Theorem 1.** If ``(r + d) |M^-1| < 1``, every ``A - (t - s) I`` has the inertia of M: exactly p eigenvalues of K exceed
every level of the interval. (By Weyl's inequality no eigenvalue crosses zero on the way from M.)

**Theorem 2**, for eigenvalues within r of the level. Let U (n, j) have independent columns, N = M^-1, P the projector
onto the complement of U's span and C the restriction of N to it, ``Theta = U^T N U`` nonsingular, ``R = P N U``.

1. By the block inverse and Haynsworth's inertia additivity (Linear Algebra Appl. 1, 1968) the restriction of M to the
   complement has the inverse ``C - R Theta^-1 R^T``: its eigenvalues are at least
   ``e = 1 / (|C| + |R Theta^-1 R^T|)`` in size, and ``q = p - #{Theta > 0}`` of them are positive.
2. If ``r + d < e``, the restriction of ``A - (t - s) I`` to the complement has the same inertia, by theorem 1, and an
   inverse of norm at most ``1 / (e - r - d)``.
3. By Haynsworth again, K has q eigenvalues above t and as many more as the Schur complement ``T - Z^T (..)^-1 Z`` of
   that restriction has positive eigenvalues, ``T = U^T (K - t I) U``, ``Z = P K U``. So with m the middle of the
   interval, h its half width, ``T = U^T (K - m I) U`` and ``F = Z^T Z / (e - r - d)``::

       q + #{eig(T - F) > h} <= count <= q + #{eig(T + F) > -h}.

U spans M's eigenvectors nearest to zero (block Krylov on N). Then Z is about ``(A - M) U``, of size r, and a level is
decided up to some ``r^2 / e`` from an eigenvalue. Nothing of this depends on how good U is, but how much it proves.

**Probability.** Three norms are bounded from random blocks (:mod:`inrfast.linalg.norm_bounds`): r, ``|M^-1|`` and |C|,
the last one from a block drawn after U. Each may fail with ``failure / EVENTS``; a count tries fewer things than that.

**Rounding.** u is the unit roundoff of fp64, ``v = 4 sqrt(n) u`` stands for sums of n products whose rounding errors
are independent (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019), as elsewhere in this library.

- Products with K are those of a matrix within ``matrix_error`` of K, which counts once in r, T and Z, and their sums
  are off by ``v S`` for a unit vector, ``S >= |K|_F`` (the trace bounds it for ``J J^T``, a random block for others).
- Products with M are off by ``rho = M.rounding()``; solutions are those of a matrix within rho of M. Both enter the
  bounds of r, ``|M^-1|`` and |C| inside the power iteration, where they are magnified by some ``sqrt(n)``.
- With ``S_i`` the computed ``N U_i``: Theta is off by ``1.1 rho |S_i| |S_k| + v |S_k|``, where ``|M^-1| rho <= 0.1`` is
  demanded. Scaled by Theta's diagonal from both sides this has a norm x, demanded to be at most 1/2: the signs of
  Theta stand, and ``|R Theta^-1 R^T| <= sum_i |R_i|^2 / |theta_i| / (1 - x)``.
- ``R_i`` is off by ``(w + 3 v) |S_i| + |P N| rho |S_i|`` with ``w >= |U^T U - I|`` and ``|P N| <= |C| + |R|``.
- T and Z are off by ``eta = matrix_error + sqrt(j) (v S + 3 u (|m| + |K U|)) + j v |K U - m U|``: F grows to
  ``(1.1 Z^T Z + 11 eta^2) / (e - r - d)``, h to ``h (1 + w) + eta``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import MemoryBudgetError
from inrfast.linalg.block_ldl import BlockLDL, block_ldl
from inrfast.linalg.lanczos import FAILURE, KrylovBasis
from inrfast.linalg.norm_bounds import BLOCK, NormBound, norm_bound
from inrfast.linalg.operators import UNIT, SymmetricOperator
from inrfast.linalg.spectrum import CertifiedCount

EVENTS = 64
"""Shares of the probability: a count bounds one norm of K, and three to four norms for each of at most 14
factorisations."""


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
    """
    partition, diagonal = operator.partition, operator.diagonal()
    trace = float(partition.total(diagonal.abs().sum()))
    scale = trace
    if not operator.jacobian_error > 0:
        images = operator @ partition.random(BLOCK, seed, diagonal)
        share, wanted = 1.0, 2 * math.log(failure) / BLOCK
        for _ in range(50):  # share exp(1 - share) = failure^(2 / k), from above
            share = math.exp(wanted - 1 + share) if share < 1 else math.exp(wanted - 1 + 0.5)
        share *= 0.99
        largest = float(partition.norm(images).max())  # apart, or its square may overflow
        size = largest * float((partition.norm(images) / largest).square().sum().sqrt()) if largest > 0 else 0.0
        scale = max(trace, size / math.sqrt(BLOCK * share))
    sums = noise(partition.size) * scale
    return ProductErrors(operator.matrix_error, sums, scale + operator.matrix_error + sums)


def noise(n: int) -> float:
    """Return v, the rounding error of a sum of n products, relative to the product of the factors' norms."""
    return 4 * math.sqrt(n) * UNIT


@dataclass(frozen=True)
class Decision:
    """What a factorisation proves of a level.

    Attributes
    ----------
    lower, upper
        For every level of the interval the number of eigenvalues above it lies between these.
    residual
        Bound on ``|K - shift I - M|``; infinite if none was found.
    route
        What proved it: ``"theorem 1"``, ``"theorem 2"``, or why nothing did.
    failure
        Probability, over random blocks, that the interval or the residual is wrong.
    """

    lower: int
    upper: int
    residual: float
    route: str
    failure: float

    @property
    def exact(self) -> bool:
        """Whether the count is known."""
        return self.lower == self.upper


def residual_bound(
    operator: SymmetricOperator, factor: BlockLDL, errors: ProductErrors, failure: float, seed: int, sharp: float = 0.0
) -> NormBound:
    """Return bounds of ``|K - shift I - M|`` for an exact K, matrix-free.

    Parameters
    ----------
    operator, factor
        K and M.
    errors
        Of products with K.
    failure, seed
        Of the random block.
    sharp
        A bound that is good enough: the power iteration stops there.
    """
    shift = factor.shift

    def difference(V: Tensor) -> Tensor:
        return operator @ V - shift * V - factor.product(V)

    own = errors.sums + factor.rounding() + 4 * UNIT * (errors.norm + abs(shift))
    found = norm_bound(
        difference,
        operator.diagonal(),
        operator.partition,
        failure,
        seed,
        own,
        most=4,
        enough=lambda b: b.upper <= max(sharp, 1.5 * b.lower),
    )
    return NormBound(max(found.lower - errors.matrix, 0.0), found.upper + errors.matrix, failure, found.products)


def decide(
    operator: SymmetricOperator,
    factor: BlockLDL,
    low: float,
    high: float,
    failure: float = FAILURE,
    seed: int = 0,
    errors: ProductErrors | None = None,
) -> Decision:
    """Return what a factorisation of ``K - shift I`` proves of the levels ``[low, high]``, by theorem 1 or 2.

    Parameters
    ----------
    operator
        K, any symmetric operator; of ``jacobian_error`` nothing is used: the count is that of the operator's own
        factors in exact arithmetic.
    factor
        M, of a shift in the interval or near it. Any numbers: what they are worth shows in the residual.
    low, high
        Levels.
    failure
        Probability that may be wrong, over random blocks.
    seed
        Of the random blocks.
    errors
        Of products with K, where they are known.
    """
    n, each = factor.size, failure / EVENTS
    errors = product_errors(operator, each, seed) if errors is None else errors
    nothing = Decision(0, n, math.inf, "the factor is singular or not finite", failure)
    rounding = factor.rounding()
    pivots = factor.pivots
    if not (math.isfinite(rounding) and bool(torch.isfinite(pivots).all() & (pivots != 0).all())):
        return nothing
    r = residual_bound(operator, factor, errors, each, seed + 1, 1e-3 * abs(factor.shift))
    reach = max(abs(high - factor.shift), abs(low - factor.shift)) * (1 + 4 * UNIT)
    off = (r.upper + reach) * (1 + 16 * UNIT)
    if not math.isfinite(off):
        return Decision(0, n, r.upper, "the residual has no bound", failure)
    inverse = norm_bound(
        factor.inverse,
        operator.diagonal(),
        operator.partition,
        each,
        seed + 2,
        lambda before, after: (0 * before, rounding * after),
        enough=lambda b: b.upper * off < 1 or b.lower * off > 1,
    )
    if inverse.upper * off < 1:
        return Decision(factor.positive, factor.positive, r.upper, "theorem 1", failure)
    return Decision(0, n, r.upper, "undecided", failure)


def certified_counts(
    operator: SymmetricOperator,
    levels: Sequence[tuple[float, float]],
    budget: int,
    precision: str | None = None,
    seed: int = 0,
    failure: float = FAILURE,
    out: Any = None,
    progress: bool | None = None,
) -> list[CertifiedCount]:
    """Return proven numbers of eigenvalues above levels, one for every interval of levels.

    Parameters
    ----------
    operator
        K, any symmetric operator. Counts are those of its own factors in exact arithmetic: its ``matrix_error`` is in
        them, its ``jacobian_error`` is not.
    levels
        Intervals (low, high) of absolute levels: a count holds for all of them.
    budget
        Bytes for the factor.
    precision
        Of the factor: ``"high"`` (fp32), ``"highest"`` (fp64), or None: fp32 where that may do, fp64 where it does not.
    seed
        Of the random blocks.
    failure
        Probability that one of the intervals is wrong.
    out
        Where the factor's file is to be; None: in memory.
    progress
        Whether to show a bar; None: on a terminal only.

    Raises
    ------
    MemoryBudgetError
        The factor does not fit the budget.
    """
    each = failure / max(len(levels), 1)
    errors = product_errors(operator, each / EVENTS, seed)
    found = []
    for low, high in levels:
        factor = block_ldl(operator, (low + high) / 2, torch.float64)
        decision = decide(operator, factor, low, high, each, seed, errors)
        found.append(CertifiedCount(low, high, decision.lower, decision.upper, "highest", decision.residual, each))
    return found
